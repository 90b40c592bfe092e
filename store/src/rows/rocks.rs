//! Rows in RocksDB.
//!
//! **Durability, on purpose the other way round than usual:** writes here are not logged and not synced
//! (`disable_wal`). A crash falls back to the last flush, and the Raft log, which is fsynced, is replayed
//! from the applied index that stands in the rows themselves. Hence the log is purged only up to what a
//! flushed snapshot covers, and one `WriteBatch` (one applied run, its applied index inside) is never split
//! over two flushes: there is one memtable, and `atomic_flush` keeps it so should column families come.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, Direction, FlushOptions,
    IteratorMode, LruCacheOptions, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::{RowBatch, RowRead, RowStore, RowVisitor, RowsError, RowsOptions};
use crate::log::wal::trim_manifest;

/// A piece of an index or filter.
const METADATA_BLOCK_BYTES: usize = 4096;
/// A part of the block cache with a lock of its own, as a power of two: 2 bits are 4 parts. RocksDB's own choice makes
/// parts of 512 KiB, in which a large block never stays.
const CACHE_SHARD_BITS: i32 = 2;

fn block_cache(bytes: usize) -> Cache {
    let mut options = LruCacheOptions::default();
    options.set_capacity(bytes);
    options.set_num_shard_bits(CACHE_SHARD_BITS);
    Cache::new_lru_cache_opts(&options)
}

fn database_options(options: &RowsOptions) -> Options {
    let mut o = Options::default();
    o.create_if_missing(true);
    o.set_atomic_flush(true);
    o.set_write_buffer_size(options.write_buffer_bytes);
    o.set_max_write_buffer_number(options.write_buffers_max);
    o.set_max_open_files(options.open_files_max);
    o.set_max_background_jobs(2);
    o.set_level_compaction_dynamic_level_bytes(true);
    o.set_compression_type(DBCompressionType::Lz4);
    o.set_bytes_per_sync(1 << 20);
    // hivemq-ce#183: unbounded, the LOG files of an idle database grew by 300 MB a day.
    o.set_keep_log_file_num(4);
    o.set_max_log_file_size(4 << 20);
    // Nearly all that is asked for is there: no filters where most rows are.
    o.set_optimize_filters_for_hits(true);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&block_cache(options.block_cache_bytes));
    table.set_cache_index_and_filter_blocks(true);
    table.set_bloom_filter(10.0, false);
    // Index and filters in pieces: whole, those of a table with a million rows are megabytes, and with a cache that
    // is bounded like ours each look-up read, checked and unpacked them anew.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(METADATA_BLOCK_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    o.set_block_based_table_factory(&table);
    o
}

/// Reads the applied rows from any thread.
#[derive(Clone)]
pub struct RocksReader(Arc<DB>);

impl std::fmt::Debug for RocksReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RocksReader").field(&self.0.path()).finish()
    }
}

impl RocksReader {
    /// Writes memtables to files and waits; then what was applied is on disk.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn flush(&self) -> Result<(), RowsError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        Ok(self.0.flush_opt(&options)?)
    }

    /// Makes a checkpoint in `to`, a folder that does not exist yet on the same file system: all that is
    /// applied, flushed first, by hard links.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn checkpoint(&self, to: &Path) -> Result<(), RowsError> {
        // There is no WAL, so that whatever its size (0) says, a checkpoint has to flush first.
        self.flush()?;
        Ok(Checkpoint::new(self.0.as_ref())?.create_checkpoint_with_log_size(to, 0)?)
    }

    /// The rows of this moment.
    pub(super) fn frozen(&self) -> impl RowRead {
        Frozen(self.0.snapshot())
    }

    /// Bytes of memtables, table readers and files, for metrics: `(memory, disk)`.
    #[must_use]
    pub fn size_bytes(&self) -> (u64, u64) {
        let property = |name| self.0.property_int_value(name).ok().flatten().unwrap_or_default();
        (
            property("rocksdb.cur-size-all-mem-tables") + property("rocksdb.estimate-table-readers-mem"),
            property("rocksdb.live-sst-files-size"),
        )
    }
}

fn scan(mut iterator: DBRawIterator<'_>, from: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
    iterator.seek(from);
    while let Some((key, value)) = iterator.item() {
        if f(key, value).is_break() {
            break;
        }
        iterator.next();
    }
    // The iterator stops at an error as at the end: ask which it was.
    Ok(iterator.status()?)
}

fn until(to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    options
}

impl RowRead for RocksReader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        Ok(self.0.get_pinned(key)?.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        scan(self.0.raw_iterator_opt(until(to)), from, f)
    }
}

/// The rows of one moment.
struct Frozen<'a>(rocksdb::Snapshot<'a>);

impl RowRead for Frozen<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        Ok(self.0.get_pinned(key)?.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        let mut options = until(to);
        options.fill_cache(false);
        scan(self.0.raw_iterator_opt(options), from, f)
    }
}

/// The rows of this node; one owner, the apply thread, writes them.
#[derive(Debug)]
pub struct RocksRows {
    reader: RocksReader,
}

impl RocksRows {
    /// Opens or creates the database in `dir`.
    ///
    /// # Errors
    /// [`RowsError`] when the folder cannot be used or a file is damaged; nothing is repaired or skipped.
    pub fn open(dir: &Path, options: &RowsOptions) -> Result<Self, RowsError> {
        // The torn end of a flush that never returned. What is missing then was not counted on: a snapshot, and
        // with it a purge of the log, comes after its flush.
        trim_manifest(dir)?;
        let database = DB::open(&database_options(options), dir)?;
        Ok(Self { reader: RocksReader(Arc::new(database)) })
    }

    /// A reader for other threads.
    #[must_use]
    pub fn reader(&self) -> RocksReader {
        self.reader.clone()
    }

    /// Writes memtables to files and waits; then what was applied is on disk.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn flush(&self) -> Result<(), RowsError> {
        self.reader.flush()
    }

    /// Makes a checkpoint; see [`RocksReader::checkpoint`].
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn checkpoint(&self, to: &Path) -> Result<(), RowsError> {
        self.reader.checkpoint(to)
    }

    /// Opens the database in `dir` for reading only; nobody else may have it open.
    ///
    /// # Errors
    /// [`RowsError`] when it cannot be read.
    pub fn peek(dir: &Path) -> Result<RocksReader, RowsError> {
        let mut options = database_options(&RowsOptions::default());
        options.create_if_missing(false);
        Ok(RocksReader(Arc::new(DB::open_for_read_only(&options, dir, false)?)))
    }

    /// Checks every block of every file against its checksum by reading all rows.
    ///
    /// # Errors
    /// [`RowsError`] names the damaged file.
    pub fn verify(&self) -> Result<(), RowsError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        for row in self.reader.0.iterator_opt(IteratorMode::From(&[], Direction::Forward), options) {
            row?;
        }
        Ok(())
    }
}

impl RowRead for RocksRows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        self.reader.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        self.reader.scan(from, to, f)
    }
}

impl RowStore for RocksRows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        let mut batch = WriteBatch::default();
        for (key, value) in rows.0 {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.reader.0.write_opt(batch, &options)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{self, RowKind};
    use super::*;
    use crate::ids::Position;

    fn one(k: u8, v: Option<u8>) -> RowBatch {
        let key = key::of_position(RowKind::Message, Position::new(u64::from(k), 0));
        RowBatch(vec![(key, v.map(|v| Bytes::copy_from_slice(&[v])))])
    }

    fn get(rows: &impl RowRead, k: u8) -> Option<u8> {
        let key = key::of_position(RowKind::Message, Position::new(u64::from(k), 0));
        rows.get(key.as_bytes()).unwrap().map(|v| v[0])
    }

    #[test]
    fn a_crash_falls_back_to_the_last_flush_and_a_checkpoint_has_everything() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = RocksRows::open(&dir.path().join("a"), &RowsOptions::default()).unwrap();
        rows.write(one(1, Some(1))).unwrap();
        rows.flush().unwrap();
        rows.write(one(2, Some(2))).unwrap();
        // What a crash would leave: the files as they are, copied without the database closing.
        let crashed = dir.path().join("crashed");
        std::fs::create_dir(&crashed).unwrap();
        for file in std::fs::read_dir(dir.path().join("a")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), crashed.join(file.file_name())).unwrap();
        }
        let after = RocksRows::open(&crashed, &RowsOptions::default()).unwrap();
        assert_eq!((get(&after, 1), get(&after, 2)), (Some(1), None));

        rows.checkpoint(&dir.path().join("b")).unwrap();
        rows.write(one(1, None)).unwrap();
        let copy = RocksRows::open(&dir.path().join("b"), &RowsOptions::default()).unwrap();
        assert_eq!((get(&copy, 1), get(&copy, 2)), (Some(1), Some(2)));
        copy.verify().unwrap();
        assert_eq!(get(&rows.reader(), 1), None);
    }
}
