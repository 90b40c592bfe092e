//! Which engine the log has, and its limits. What RocksDB itself is told stands in `rocks::options`.

use std::fmt;
use std::sync::Arc;

use super::error::LogError;

/// Called once, on the writer thread, when a write or fsync has failed: the binary logs it and ends the
/// process with status 70. It comes before any waiter hears of the failure.
pub type OnFatal = Arc<dyn Fn(&LogError) + Send + Sync>;

/// The engines that a log can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// A RocksDB database: [`super::RocksLog`].
    #[default]
    RocksDb,
    /// A journal of preallocated segment files: [`super::SegmentLog`].
    Segments,
}

/// As the configuration says it.
impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RocksDb => "rocksdb",
            Self::Segments => "segments",
        })
    }
}

/// Limits of a log. The defaults are those of a server.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Which engine a node opens. The engines themselves do not look at it.
    pub engine: EngineKind,
    /// Raft group whose records these are.
    pub group: u16,
    /// Records kept in memory behind the flushed end, for replication and apply. What is not flushed is
    /// kept in any case.
    pub tail_bytes_max: usize,
    /// Most bytes of records in one synced write.
    pub drain_bytes_max: usize,
    /// Bytes queued and not flushed at which a caller of `append` waits. The leader refuses proposals long
    /// before (`unflushed_bytes`); this bounds memory whatever happens.
    pub queue_bytes_max: usize,
    /// Operations queued at which a caller waits.
    pub queue_ops_max: usize,
    /// Longest time that a purge or a committed mark waits for a synced write to ride on.
    pub lazy_ms_max: u64,
    /// RocksDB: size of a memtable, and so of a write-ahead log file.
    pub write_buffer_bytes: usize,
    /// RocksDB: memtables, the one that is being filled included.
    pub write_buffers: usize,
    /// Write-ahead log or segment files kept for reuse (no block allocation and no size change on the hot path);
    /// 0 turns reuse off.
    pub recycled_wals: usize,
    /// RocksDB: write-ahead logs filled with padding at open, so that syncs are cheap from the start; each costs one
    /// `write_buffer_bytes` of writing then.
    pub warm_wals: usize,
    /// Segments: size of a segment file. One write that is longer gets a file of its own size.
    pub segment_bytes: u64,
    /// RocksDB: bytes of records, from the newest back, whose checksums and indices are verified at open. Older ones
    /// are verified when they are read. Segments are all verified.
    pub verify_bytes_max: u64,
    /// For tests that must see a loss when a sync is left out. Never set elsewhere.
    #[doc(hidden)]
    pub skip_sync: SkipSync,
}

/// The one synced write that a test leaves out.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkipSync {
    /// As in production: everything that is acknowledged is synced.
    #[default]
    Nothing,
    /// Votes are acknowledged without a sync.
    Vote,
    /// Appends are acknowledged without a sync.
    Append,
    /// Truncations are acknowledged without a sync.
    Truncate,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            group: 0,
            tail_bytes_max: 64 << 20,
            drain_bytes_max: 4 << 20,
            queue_bytes_max: 512 << 20,
            queue_ops_max: 1 << 16,
            lazy_ms_max: 1000,
            write_buffer_bytes: 64 << 20,
            write_buffers: 4,
            recycled_wals: 4,
            warm_wals: 2,
            segment_bytes: 64 << 20,
            verify_bytes_max: 1 << 30,
            skip_sync: SkipSync::Nothing,
        }
    }
}
