//! The two sides of the database: the writer's, with the durability contract, and the readers'.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, ReadOptions, WriteBatch, WriteOptions};

use super::super::disk::{Disk, DiskReader, Logged};
use super::super::mark::Mark;
use super::super::writer::Op;
use super::super::{LogError, LogOptions, LogRecord};
use super::keys::{self, Kind};
use super::open::{Opened, open};
use super::options;

/// The writer's side.
pub(super) struct RocksDisk {
    db: Arc<DB>,
    group: u16,
    mark: Mark,
    synced: WriteOptions,
    unsynced: WriteOptions,
    scratch: Vec<u8>,
}

/// The readers' side.
pub(super) struct RocksReader {
    db: Arc<DB>,
    dir: PathBuf,
    group: u16,
}

impl RocksDisk {
    pub(super) fn open(dir: &Path, tuned: &LogOptions) -> Result<(Self, RocksReader, Logged), LogError> {
        let Opened { db, mark, logged } = open(dir, tuned)?;
        let (db, group) = (Arc::new(db), tuned.group);
        let reader = RocksReader { db: Arc::clone(&db), dir: dir.to_path_buf(), group };
        let (synced, unsynced) = (options::synced(), options::unsynced());
        Ok((Self { db, group, mark, synced, unsynced, scratch: Vec::new() }, reader, logged))
    }

    /// **The durability contract, and the only place in this engine that writes.** When this returns `Ok`, every
    /// operation in `batch`, and all written before it, survives the loss of power: RocksDB has appended the
    /// batch to its write-ahead log as one record, has synced that file (and, for a new file, its folder), and
    /// `wal::check` will refuse a log in which it is missing. No waiter may be called, and no vote, append or
    /// truncation be reported to Raft, on any other ground. RocksDB's default options do not sync; the options
    /// used here do. When this returns an error nobody knows what is on disk: it is never tried again.
    ///
    /// `sync` is false only in the tests that must see the loss (`SkipSync`).
    fn write_synced(&mut self, batch: WriteBatch, sync: bool) -> Result<(), LogError> {
        if !sync {
            return self.db.write_opt(batch, &self.unsynced).map_err(LogError::write);
        }
        self.db.write_opt(batch, &self.synced).map_err(LogError::write)?;
        // Deliberately not synced: a lower bound of what is, see `mark`.
        self.mark.note(self.db.latest_sequence_number());
        Ok(())
    }

    /// One batch of all of `ops`, in their order: a range deleted and then written again holds what was
    /// written, because RocksDB numbers the operations of a batch in order.
    fn batch(&mut self, ops: &[Op]) -> WriteBatch {
        let group = self.group;
        let bytes = ops.iter().map(Op::bytes).sum::<usize>();
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 64 * ops.len() + 4096);
        let scratch = &mut self.scratch;
        let mut put = |batch: &mut WriteBatch, key: keys::Key, body: &[&[u8]]| {
            keys::value_into(scratch, &key, body);
            batch.put(key, &*scratch);
        };
        for op in ops {
            match op {
                Op::Append { records, begins, .. } => {
                    if *begins && let Some(first) = records.first() {
                        put(&mut batch, keys::key(group, Kind::Begin, 0), &[&first.index.to_le_bytes()]);
                    }
                    for record in records {
                        put(&mut batch, keys::record(group, record.index), &[&record.bytes]);
                    }
                }
                Op::Vote { vote, .. } => put(&mut batch, keys::key(group, Kind::Vote, 0), &[vote]),
                Op::Truncate { from, .. } => {
                    batch.delete_range(keys::record(group, *from), keys::records_end(group));
                }
                Op::Purge { from, to, log_id } => {
                    batch.delete_range(keys::record(group, *from), keys::record(group, to.saturating_add(1)));
                    put(&mut batch, keys::key(group, Kind::Purged, 0), &[&to.to_le_bytes(), log_id]);
                }
                Op::Committed(committed) => put(&mut batch, keys::key(group, Kind::Committed, 0), &[committed]),
            }
        }
        batch
    }
}

impl Disk for RocksDisk {
    type Reader = RocksReader;

    fn write(&mut self, ops: &[Op], sync: bool) -> Result<(), LogError> {
        let batch = self.batch(ops);
        self.write_synced(batch, sync)
    }
}

impl DiskReader for RocksReader {
    fn read(
        &self,
        from: u64,
        to_exclusive: u64,
        bytes_left: &mut usize,
        out: &mut Vec<LogRecord>,
    ) -> Result<u64, LogError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::record(self.group, to_exclusive));
        // Read once or twice and purged: the block cache is for what is read often.
        options.fill_cache(false);
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(keys::record(self.group, from));
        let mut next = from;
        while let Some((key, value)) = rows.item() {
            if keys::record_index(self.group, key) != Some(next) {
                return Ok(next);
            }
            let body = keys::body(key, value).map_err(|what| LogError::Record {
                dir: self.dir.clone(),
                row: format!("record {next}"),
                what,
            })?;
            if body.len() > *bytes_left && !out.is_empty() {
                *bytes_left = 0;
                return Ok(next);
            }
            *bytes_left = bytes_left.saturating_sub(body.len());
            out.push(LogRecord { index: next, bytes: Bytes::copy_from_slice(body) });
            next += 1;
            rows.next();
        }
        rows.status().map_err(LogError::rocks("reading", &self.dir))?;
        Ok(next)
    }
}
