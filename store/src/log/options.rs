//! How the log is tuned, and why: the RocksDB options of the log database stand here and nowhere else.

use std::path::Path;
use std::sync::Arc;

use rocksdb::{DBCompressionType, DBRecoveryMode, Options, WriteOptions};

use super::error::LogError;

/// Called once, on the writer thread, when a write or fsync has failed: the binary logs it and ends the
/// process with status 70. It comes before any waiter hears of the failure.
pub type OnFatal = Arc<dyn Fn(&LogError) + Send + Sync>;

/// Limits of a log. The defaults are those of a server.
#[derive(Clone, Debug)]
pub struct LogOptions {
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
    /// Size of a memtable, and so of a write-ahead log file.
    pub write_buffer_bytes: usize,
    /// Memtables, the one that is being filled included.
    pub write_buffers: usize,
    /// Write-ahead log files kept for reuse (no block allocation and no size change on the hot path); 0 turns
    /// reuse off.
    pub recycled_wals: usize,
    /// Write-ahead logs filled with padding at open, so that syncs are cheap from the start; each costs one
    /// `write_buffer_bytes` of writing then.
    pub warm_wals: usize,
    /// Bytes of records, from the newest back, whose checksums and indices are verified at open. Older ones
    /// are verified when they are read.
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
            verify_bytes_max: 1 << 30,
            skip_sync: SkipSync::Nothing,
        }
    }
}

impl LogOptions {
    /// The options of the log database.
    ///
    /// **Recovery mode.** RocksDB offers two that could serve. Tolerate-corrupted-tail refuses a record with a
    /// wrong checksum even where a power cut tore it, passes over zeroed blocks and damaged lengths near the
    /// end without a word, and forbids reuse of write-ahead logs. Point-in-time stops at the first damage,
    /// whatever was synced behind it, and says nothing. So it is point-in-time, *behind* [`super::wal::check`],
    /// which reads every live write-ahead log before RocksDB may touch it and refuses all but the torn end of
    /// a power cut. Never skip-any-corrupted-record.
    pub(super) fn database(&self) -> Options {
        let mut o = Options::default();
        o.create_if_missing(true);
        o.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        o.set_recycle_log_file_num(self.recycled_wals);
        // Entries are written once, read soon and purged: compression would only cost time.
        o.set_compression_type(DBCompressionType::None);
        // One writer thread: a concurrent memtable and a pipelined write only add hand-overs.
        o.set_allow_concurrent_memtable_write(false);
        o.set_enable_pipelined_write(false);
        o.set_write_buffer_size(self.write_buffer_bytes);
        o.set_max_write_buffer_number(i32::try_from(self.write_buffers).unwrap_or(i32::MAX));
        o.set_max_total_wal_size((self.write_buffer_bytes as u64).saturating_mul(self.write_buffers as u64));
        o.set_level_zero_file_num_compaction_trigger(8);
        o.set_max_background_jobs(2);
        // The info LOG must not grow on a plant for years (hivemq-ce#183).
        o.set_keep_log_file_num(4);
        o.set_max_log_file_size(4 << 20);
        o
    }

    /// For the one function that writes: synced unless a test asks otherwise.
    pub(super) fn synced() -> WriteOptions {
        let mut w = WriteOptions::default();
        w.set_sync(true);
        w
    }

    /// For tests that leave a sync out.
    pub(super) fn unsynced() -> WriteOptions {
        WriteOptions::default()
    }
}

/// Options that open the database read-only without looking at its write-ahead logs and without writing a
/// byte into its folder: both are pointed at `aside`, an empty folder.
pub(super) fn manifest_only(aside: &Path) -> Options {
    let mut o = Options::default();
    o.set_wal_dir(aside);
    o.set_db_log_dir(aside);
    o.set_keep_log_file_num(1);
    o
}
