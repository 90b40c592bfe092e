//! How RocksDB is tuned, and why: the options of the log database stand here and nowhere else.

use std::path::Path;

use rocksdb::{DBCompressionType, DBRecoveryMode, Options, WriteOptions};

use super::super::LogOptions;

/// The options of the log database.
///
/// **Recovery mode.** RocksDB offers two that could serve. Tolerate-corrupted-tail refuses a record with a
/// wrong checksum even where a power cut tore it, passes over zeroed blocks and damaged lengths near the
/// end without a word, and forbids reuse of write-ahead logs. Point-in-time stops at the first damage,
/// whatever was synced behind it, and says nothing. So it is point-in-time, *behind* [`super::wal::check`],
/// which reads every live write-ahead log before RocksDB may touch it and refuses all but the torn end of
/// a power cut. Never skip-any-corrupted-record.
pub(super) fn database(tuned: &LogOptions) -> Options {
    let mut o = Options::default();
    o.create_if_missing(true);
    o.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    o.set_recycle_log_file_num(tuned.recycled_wals);
    // Entries are written once, read soon and purged: compression would only cost time.
    o.set_compression_type(DBCompressionType::None);
    // One writer thread: a concurrent memtable and a pipelined write only add hand-overs.
    o.set_allow_concurrent_memtable_write(false);
    o.set_enable_pipelined_write(false);
    o.set_write_buffer_size(tuned.write_buffer_bytes);
    o.set_max_write_buffer_number(i32::try_from(tuned.write_buffers).unwrap_or(i32::MAX));
    o.set_max_total_wal_size((tuned.write_buffer_bytes as u64).saturating_mul(tuned.write_buffers as u64));
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

/// Options that open the database read-only without looking at its write-ahead logs and without writing a
/// byte into its folder: both are pointed at `aside`, an empty folder.
pub(super) fn manifest_only(aside: &Path) -> Options {
    let mut o = Options::default();
    o.set_wal_dir(aside);
    o.set_db_log_dir(aside);
    o.set_keep_log_file_num(1);
    o
}
