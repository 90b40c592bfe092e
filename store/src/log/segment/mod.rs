//! [`SegmentLog`]: the Raft log as a journal of preallocated segment files.
//!
//! What it is for: each record is written once, where it stays until its file is used again. RocksDB writes it to a
//! write-ahead log, to a table when the memtable is full, and once more when tables are merged.
//!
//! What it owns: the files `<number>.seg` in the log's folder. One synced write is one *batch*: one vectored write
//! behind the last batch, and one fdatasync, which changes no metadata because the blocks are there. What is purged is
//! dropped a whole file at a time; such files are used again. The writer thread creates no file (but for a batch that
//! is longer than a segment) and removes none: a thread of its own does, ahead of need and behind it.
//!
//! What it never does: it never writes a batch before the last one is synced, so a power cut can tear one batch at
//! most; it never skips a batch that it cannot read, and never repairs one.
//!
//! - `format`: segments and batches, to the byte
//! - `open`: which ends of a log are the torn end of a power cut, and which are damage
//! - `index`: which record stands in which batch, and which segments are needed
//! - `disk`: the two sides of it, and the durability contract
//! - `spares`: the thread that prepares segments and takes back those that are purged
//! - `file`: the few calls to the system

mod disk;
mod file;
mod format;
mod index;
mod open;
mod spares;

use std::path::Path;

use self::disk::{SegmentDisk, SegmentReader};
use super::engine::{Log, impl_log_engine};
use super::{LogError, LogOptions, OnFatal};

/// The Raft log as a journal of preallocated segment files. Clones share it; when the last one goes, what is queued
/// is written and the files are closed (which waits for the disk).
#[derive(Clone, Debug)]
pub struct SegmentLog(Log<SegmentReader>);

impl SegmentLog {
    /// Opens the log in `dir`, or creates an empty one there. `on_fatal` is called once when the engine
    /// poisons itself; the binary ends the process in it.
    ///
    /// # Errors
    /// A damaged log is refused by name, as is one that another process has open, a newer version wrote or the
    /// other engine wrote.
    pub fn open(dir: impl AsRef<Path>, options: LogOptions, on_fatal: OnFatal) -> Result<Self, LogError> {
        let dir = dir.as_ref();
        let opened = SegmentDisk::open(dir, &options)?;
        Log::start(dir, options, on_fatal, opened).map(Self)
    }
}

impl_log_engine!(SegmentLog);
