//! [`RocksLog`]: the Raft log in a RocksDB database of its own.
//!
//! - [`keys`]: every row, to the byte
//! - [`wal`]: which ends of a write-ahead log are the torn end of a power cut, and which are damage
//! - `disk`: the two sides of it, and the durability contract

mod disk;
pub mod keys;
mod open;
mod options;
pub mod wal;
mod warm;

use std::path::Path;

use self::disk::{RocksDisk, RocksReader};
use super::engine::{Log, impl_log_engine};
use super::{LogError, LogOptions, OnFatal};

/// The Raft log in a RocksDB database of its own. Clones share it; when the last one goes, what is queued is
/// written and the database is closed (which waits for the disk).
#[derive(Clone, Debug)]
pub struct RocksLog(Log<RocksReader>);

impl RocksLog {
    /// Opens the log in `dir`, or creates an empty one there. `on_fatal` is called once when the engine
    /// poisons itself; the binary ends the process in it.
    ///
    /// # Errors
    /// A damaged log is refused by name, as is one that another process has open, a newer version wrote or the
    /// other engine wrote.
    pub fn open(dir: impl AsRef<Path>, options: LogOptions, on_fatal: OnFatal) -> Result<Self, LogError> {
        let dir = dir.as_ref();
        let opened = RocksDisk::open(dir, &options)?;
        Log::start(dir, options, on_fatal, opened).map(Self)
    }
}

impl_log_engine!(RocksLog);
