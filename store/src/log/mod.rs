//! The Raft log on disk, written and synced by one thread, read by many.
//!
//! What it is for: [`LogEngine`] is all that `quorate-raft` sees of the log: opaque bytes under consecutive
//! indices, a vote, and marks for what was purged and committed. There are two engines, [`RocksLog`] and
//! [`SegmentLog`]; they differ in what is on the disk, and in nothing that a caller could see.
//!
//! What it owns: the folder `log/`, the order in which its writes reach the disk, and the promise that what
//! was reported done is there after a power cut. One writer thread takes all that is queued, in order, into
//! one synced write (group commit).
//!
//! What it never does: it never looks into an entry, never reorders, never retries a failed write or fsync,
//! and never skips a damaged record. A log that it cannot vouch for is refused by name.
//!
//! - `engine`, `tail`, `writer`, `read`: what the engines share: the state that callers see, entries in memory from
//!   `append` until they are flushed and beyond, the queue and the group commit
//! - `disk`: what an engine is besides
//! - `rocks`: RocksDB; [`keys`] has every row, to the byte, [`wal`] tells the torn end of a power cut from damage
//! - `segment`: preallocated files; `format` has them to the byte, `open` tells the torn end from damage
//!
//! **The durability contract** stands at the one function of each engine that writes: `RocksDisk::write_synced` and
//! `SegmentDisk::write_synced`.

mod disk;
mod engine;
mod error;
mod mark;
mod options;
mod read;
mod rocks;
mod segment;
mod stats;
mod tail;
mod writer;

use std::sync::Arc;

use bytes::Bytes;

pub use error::LogError;
#[doc(hidden)]
pub use options::SkipSync;
pub use options::{EngineKind, LogOptions, OnFatal};
pub use rocks::{RocksLog, keys, wal};
pub use segment::SegmentLog;
pub use stats::{LogStats, SYNC_US_BOUNDS};

/// One encoded Raft entry; the log does not look into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Raft log index.
    pub index: u64,
    /// The entry. It stays in memory until it is flushed and a while longer: hand over bytes that do not
    /// hold a much larger buffer alive.
    pub bytes: Bytes,
}

/// What stands in the log, counting what is queued but not flushed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last vote handed to [`LogEngine::save_vote`].
    pub vote: Option<Bytes>,
    /// The last mark handed to [`LogEngine::save_committed`]; after a power cut it may be an older one.
    pub committed: Option<Bytes>,
    /// Index up to which (inclusive) records were purged, with the log id handed over then; after a power
    /// cut it may be an older one.
    pub purged: Option<(u64, Bytes)>,
    /// Index of the last record there is; `None` when the log holds no record.
    pub last: Option<u64>,
}

/// Called once, on the writer thread, when an operation is on disk or has failed for good.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// A Raft log on one disk. Operations take effect in the order of the calls; calls never wait for the disk
/// (except [`Self::read`] of what is no longer in memory, and a caller that has run far ahead of the disk,
/// see [`LogOptions::queue_bytes_max`]).
///
/// After a failed write or fsync the engine is poisoned: the fatal hook given at open is called, every
/// operation in flight and every later one fails with that first error, and nothing is ever written again.
pub trait LogEngine: Clone + Send + Sync + 'static {
    /// What stands in the log.
    fn state(&self) -> LogState;

    /// Appends `records`, whose indices must follow the last one without a gap. They are readable when this
    /// returns; `done` is called when they are on disk.
    ///
    /// Records that do not follow are a bug in the caller, which must not end up on disk: the engine poisons
    /// itself with [`LogError::NotConsecutive`].
    fn append(&self, records: Vec<LogRecord>, done: Done);

    /// Keeps `vote`; `done` is called when it is on disk.
    fn save_vote(&self, vote: Bytes, done: Done);

    /// Removes all records from `index` on; `done` is called when that is on disk.
    fn truncate_from(&self, index: u64, done: Done);

    /// Removes all records up to `index`, inclusive, and remembers `log_id` for it. Not synced: it rides on
    /// the next synced write, at most [`LogOptions::lazy_ms_max`] later. An `index` beyond the last record
    /// empties the log, which then goes on at `index + 1`.
    fn purge_to(&self, index: u64, log_id: Bytes);

    /// Keeps `committed`. Not synced, like [`Self::purge_to`].
    fn save_committed(&self, committed: Bytes);

    /// Records from `from` up to `to_exclusive`, in order and without a gap, at most `bytes_max` bytes of
    /// them but at least one if there is one. What was purged at the front, or does not exist at the end, is
    /// left out.
    ///
    /// # Errors
    /// The first error of a poisoned engine; [`LogError::Hole`] and [`LogError::Record`] for a damaged log.
    fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> Result<Vec<LogRecord>, LogError>;

    /// Bytes handed to [`Self::append`] that are not on disk yet: above its bound the leader refuses
    /// proposals.
    fn unflushed_bytes(&self) -> usize;

    /// Its counters.
    fn stats(&self) -> Arc<LogStats>;

    /// The error that ended this engine, if one did.
    fn poisoned(&self) -> Option<LogError>;
}
