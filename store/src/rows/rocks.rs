//! Rows in RocksDB, behind those that were changed lately ([`super::recent`]).
//!
//! **Durability, on purpose the other way round than usual:** writes here are not logged and not synced
//! (`disable_wal`). A crash falls back to the last flush, and the Raft log, which is fsynced, is replayed
//! from the applied index that stands in the rows themselves. Hence the log is purged only up to what a
//! flushed snapshot covers, and one `WriteBatch` (one applied run, its applied index inside) is never split
//! over two flushes: there is one memtable, and `atomic_flush` keeps it so should column families come.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, Direction, FlushOptions,
    IteratorMode, LruCacheOptions, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::changes::Changes;
use super::key::{self, Key};
use super::recent::{Front, Recent};
use super::{MessageVisitor, RowBatch, RowRead, RowStore, RowValue, RowVisitor, RowsError, RowsOptions};
use crate::ids::Position;
use crate::log::wal::trim_manifest;
use crate::message::SharedMessage;

/// Changes that a scan copies at a time, while nobody else reads or writes rows.
const SCAN_COPIES_MAX: usize = 256;
/// Messages that are looked for at a time, likewise.
const MESSAGES_AT_ONCE: usize = 256;

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

struct Shared {
    database: DB,
    recent: Mutex<Recent>,
    /// Held by who writes what is frozen: one at a time.
    writing: Mutex<()>,
}

impl Shared {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all that has gathered to the database. Rows are read and written meanwhile.
    fn write_back(&self) -> Result<(), RowsError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let frozen = {
            let mut recent = self.recent();
            if let Some(error) = recent.failed.clone() {
                return Err(RowsError::Earlier(error));
            }
            let Some(frozen) = recent.freeze() else { return Ok(()) };
            frozen
        };
        let written = self.write(&frozen);
        let mut recent = self.recent();
        match written {
            Ok(()) => {
                recent.frozen = None;
                Ok(())
            }
            // It stays frozen: who reads still sees it, and who writes next hears of it.
            Err(error) => Err(RowsError::Earlier(recent.failed.insert(Arc::new(error)).clone())),
        }
    }

    fn write(&self, changes: &Changes) -> Result<(), RowsError> {
        let mut batch = WriteBatch::default();
        for (key, change) in changes.in_runs() {
            match change.value() {
                Some(value) => batch.put(key.as_bytes(), value.encoded()?),
                None => batch.delete(key.as_bytes()),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.database.write_opt(batch, &options)?)
    }

    /// Writes memtables to files and waits; then what was applied is on disk.
    fn flush(&self) -> Result<(), RowsError> {
        self.recent().unflushed_bytes = 0;
        self.write_back()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        Ok(self.database.flush_opt(&options)?)
    }
}

/// Reads the applied rows from any thread.
#[derive(Clone)]
pub struct RocksReader(Arc<Shared>);

impl std::fmt::Debug for RocksReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RocksReader").field(&self.0.database.path()).finish()
    }
}

impl RocksReader {
    fn new(database: DB) -> Self {
        Self(Arc::new(Shared { database, recent: Mutex::default(), writing: Mutex::default() }))
    }

    /// Writes memtables to files and waits; then what was applied is on disk.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn flush(&self) -> Result<(), RowsError> {
        self.0.flush()
    }

    /// Makes a checkpoint in `to`, a folder that does not exist yet on the same file system: all that is
    /// applied, flushed first, by hard links.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn checkpoint(&self, to: &Path) -> Result<(), RowsError> {
        // There is no WAL, so that whatever its size (0) says, a checkpoint has to flush first.
        self.flush()?;
        Ok(Checkpoint::new(&self.0.database)?.create_checkpoint_with_log_size(to, 0)?)
    }

    /// Encoded, if it has to be, by the caller: behind the lock.
    fn value(&self, key: &[u8]) -> Result<Option<RowValue>, RowsError> {
        let recent = self.0.recent().get(key).map(|change| change.value().cloned());
        match recent {
            Some(value) => Ok(value),
            None => Ok(self.0.database.get_pinned(key)?.map(|v| Bytes::copy_from_slice(&v).into())),
        }
    }

    /// The rows of this moment.
    pub(super) fn frozen(&self) -> impl RowRead {
        let recent = self.0.recent();
        Frozen {
            gathering: recent.gathering.clone(),
            frozen: recent.frozen.clone(),
            behind: self.0.database.snapshot(),
        }
    }

    /// Bytes of recent rows, memtables, table readers and files, for metrics: `(memory, disk)`.
    #[must_use]
    pub fn size_bytes(&self) -> (u64, u64) {
        let property = |name| self.0.database.property_int_value(name).ok().flatten().unwrap_or_default();
        let tables = property("rocksdb.cur-size-all-mem-tables") + property("rocksdb.estimate-table-readers-mem");
        (self.0.recent().bytes() as u64 + tables, property("rocksdb.live-sst-files-size"))
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

/// The value at `key`. From a message to one of the same entry or the next it is one step; a look-up costs ten.
fn find<'a>(iterator: &'a mut DBRawIterator<'_>, key: &[u8]) -> Result<Option<&'a [u8]>, RowsError> {
    let entry = |key: &[u8]| key::rest_u64(key, 0).map(|position| Position::from_u64(position).index());
    let is_near = |at: &[u8]| at < key && entry(at).zip(entry(key)).is_some_and(|(at, to)| to.saturating_sub(at) <= 1);
    if iterator.key().is_some_and(is_near) {
        iterator.next();
    }
    if iterator.key() != Some(key) {
        iterator.seek(key);
    }
    // An iterator stops at an error as at the end: ask which it was.
    iterator.status()?;
    Ok(iterator.item().filter(|(at, _)| *at == key).map(|(_, value)| value))
}

fn until(to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    options
}

impl RowRead for RocksReader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        self.value(key)?.map(|value| value.to_bytes()).transpose()
    }

    fn message(&self, key: &[u8]) -> Result<Option<SharedMessage>, RowsError> {
        self.value(key)?.map(|value| value.to_message(key)).transpose()
    }

    fn messages(&self, keys: &[Key], f: &mut MessageVisitor<'_>) -> Result<(), RowsError> {
        for keys in keys.chunks(MESSAGES_AT_ONCE) {
            // The iterator is made under the lock: what is written back meanwhile is in one of the three.
            let (recent, mut behind) = {
                let recent = self.0.recent();
                let of_key = |key: &Key| recent.get(key.as_bytes()).map(|change| change.value().cloned());
                let found: Vec<Option<Option<RowValue>>> = keys.iter().map(of_key).collect();
                let behind = found.iter().any(Option::is_none).then(|| self.0.database.raw_iterator());
                (found, behind)
            };
            for (key, recent) in keys.iter().map(Key::as_bytes).zip(recent) {
                let message = match (recent, &mut behind) {
                    (Some(value), _) => value.map(|value| value.to_message(key)).transpose()?,
                    (None, Some(behind)) => find(behind, key)?
                        .map(|value| RowValue::from(Bytes::copy_from_slice(value)).to_message(key))
                        .transpose()?,
                    (None, None) => None,
                };
                if f(message).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// In pieces, each of one moment: rows that change meanwhile may be seen as they were or as they are.
    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        let mut from = Key::from_encoded(from);
        let mut is_over = false;
        while !is_over {
            let (front, end, behind) = {
                // The iterator is made under the lock: what is written back meanwhile is in one of the three.
                let recent = self.0.recent();
                let (gathering, more) = recent.gathering.some_in_range(from.as_bytes(), to, SCAN_COPIES_MAX);
                let end = more.unwrap_or_else(|| Key::from_encoded(to));
                let behind = self.0.database.raw_iterator_opt(until(end.as_bytes()));
                (Front::new(gathering, recent.frozen.clone()), end, behind)
            };
            is_over = end.as_bytes() == to;
            let mut visit = |key: &[u8], value: &[u8]| {
                let flow = f(key, value);
                is_over |= flow.is_break();
                flow
            };
            let first = from.as_bytes();
            front.scan(first, end.as_bytes(), |f| scan(behind, first, f), &mut visit)?;
            from = end;
        }
        Ok(())
    }
}

/// The rows of one moment.
struct Frozen<'a> {
    gathering: Changes,
    frozen: Option<Arc<Changes>>,
    behind: rocksdb::Snapshot<'a>,
}

impl RowRead for Frozen<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        let frozen = || self.frozen.as_ref()?.get(key);
        match self.gathering.get(key).or_else(frozen) {
            Some(change) => change.value().map(RowValue::to_bytes).transpose(),
            None => Ok(self.behind.get_pinned(key)?.map(|v| Bytes::copy_from_slice(&v))),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        let mut options = until(to);
        options.fill_cache(false);
        let (gathering, _) = self.gathering.some_in_range(from, to, usize::MAX);
        let front = Front::new(gathering, self.frozen.clone());
        front.scan(from, to, |f| scan(self.behind.raw_iterator_opt(options), from, f), f)
    }
}

/// Writes back and flushes when it is asked to, on a thread of its own, so that apply does not wait for it.
#[derive(Debug)]
struct Flusher {
    /// None: it is told to end.
    asks: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    fn start(shared: Arc<Shared>, flush_bytes: usize) -> Result<Self, RowsError> {
        let (asks, asked) = sync_channel(1);
        let path = shared.database.path().display().to_string();
        let thread = thread::Builder::new()
            .name("rows-flush".into())
            .spawn(move || run_flusher(&shared, flush_bytes, &asked))
            .map_err(|source| RowsError::Io { path, source })?;
        Ok(Self { asks: Some(asks), thread: Some(thread) })
    }

    fn ask(&self) {
        // One that is asked already looks again.
        let _ = self.asks.as_ref().map(|asks| asks.try_send(()));
    }
}

fn run_flusher(shared: &Shared, flush_bytes: usize, asked: &Receiver<()>) {
    while asked.recv().is_ok() {
        let is_due = shared.recent().unflushed_bytes >= flush_bytes;
        let done = if is_due { shared.flush() } else { shared.write_back() };
        if let Err(error) = done {
            shared.recent().failed.get_or_insert_with(|| Arc::new(error));
            return;
        }
    }
    // As a database does that is closed. If it fails the log has it all.
    if let Err(error) = shared.write_back() {
        tracing::warn!(%error, "what changed lately was not written when the rows were closed");
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // Whoever drops the rows may open their folder again at once.
        self.asks = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The rows of this node; one owner, the apply thread, writes them.
#[derive(Debug)]
pub struct RocksRows {
    reader: RocksReader,
    flusher: Flusher,
    recent_bytes_max: usize,
    flush_bytes: usize,
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
        let reader = RocksReader::new(DB::open(&database_options(options), dir)?);
        let (recent_bytes_max, flush_bytes) = (options.recent_bytes_max, options.write_buffer_bytes);
        let flusher = Flusher::start(reader.0.clone(), flush_bytes)?;
        Ok(Self { reader, flusher, recent_bytes_max, flush_bytes })
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
        Ok(RocksReader::new(DB::open_for_read_only(&options, dir, false)?))
    }

    /// Checks every block of every file against its checksum by reading all rows.
    ///
    /// # Errors
    /// [`RowsError`] names the damaged file.
    pub fn verify(&self) -> Result<(), RowsError> {
        self.flush()?;
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        for row in self.reader.0.database.iterator_opt(IteratorMode::From(&[], Direction::Forward), options) {
            row?;
        }
        Ok(())
    }
}

impl RowRead for RocksRows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        self.reader.get(key)
    }

    fn message(&self, key: &[u8]) -> Result<Option<SharedMessage>, RowsError> {
        self.reader.message(key)
    }

    fn messages(&self, keys: &[Key], f: &mut MessageVisitor<'_>) -> Result<(), RowsError> {
        self.reader.messages(keys, f)
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        self.reader.scan(from, to, f)
    }
}

impl RowStore for RocksRows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        let shared = &self.reader.0;
        let (gathered, unflushed) = {
            let mut recent = shared.recent();
            if let Some(error) = recent.failed.clone() {
                return Err(RowsError::Earlier(error));
            }
            recent.unflushed_bytes += rows.log_bytes;
            recent.gathering.take_all(rows.changes);
            (recent.gathering.bytes(), recent.unflushed_bytes)
        };
        // The flusher cannot keep up: now apply waits for the disk, as it must somewhere.
        if unflushed >= 2 * self.flush_bytes {
            return shared.flush();
        }
        if gathered >= 2 * self.recent_bytes_max {
            return shared.write_back();
        }
        if gathered >= self.recent_bytes_max || unflushed >= self.flush_bytes {
            self.flusher.ask();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "rocks_tests.rs"]
mod tests;
