//! Opening: what is refused, and what the log holds when it is not.
//!
//! In this order: the write-ahead logs are checked before RocksDB may touch them ([`super::wal`]); RocksDB
//! recovers; it must have come to the same end; then the rows themselves are read and must be consecutive. The
//! synced writes here (format, warming) are the only ones beside the writer's: nobody else is there yet.

use std::path::Path;

use bytes::Bytes;
use rocksdb::{DB, ReadOptions, WriteBatch};

use super::super::disk::{Logged, refuse_other_engine};
use super::super::mark::{self, Mark};
use super::super::{EngineKind, LogError, LogOptions, LogState};
use super::keys::{self, Kind};
use super::warm::warm;
use super::{options, wal};
use crate::files::create_dir_synced;

/// An opened log.
pub(super) struct Opened {
    pub(super) db: DB,
    pub(super) mark: Mark,
    pub(super) logged: Logged,
}

/// Opens or creates the log in `dir`.
pub(super) fn open(dir: &Path, tuned: &LogOptions) -> Result<Opened, LogError> {
    create_dir_synced(dir).map_err(LogError::io("creating", dir))?;
    refuse_other_engine(dir, EngineKind::RocksDb)?;
    let synced = mark::read(dir)?;
    wal::trim_manifest(dir)?;
    let expected = match wal::floor(dir)? {
        Some(floor) => Some(wal::check(dir, floor, synced)?),
        None if synced > 0 => {
            return Err(LogError::Damaged {
                file: dir.join("CURRENT"),
                offset: 0,
                what: format!("the file is gone, but the log was synced up to sequence number {synced}"),
            });
        }
        None => None,
    };
    let db = DB::open(&options::database(tuned), dir).map_err(LogError::rocks("opening", dir))?;
    let recovered = db.latest_sequence_number();
    if let Some(expected) = expected
        && expected != recovered
    {
        return Err(LogError::RecoveryDisagrees { dir: dir.to_path_buf(), expected, recovered });
    }
    let mut mark = Mark::open(dir)?;
    let rows = Rows { db: &db, dir, group: tuned.group };
    rows.check_format()?;
    let (state, begin) = rows.load(tuned.verify_bytes_max)?;
    warm(&db, dir, tuned)?;
    mark.note(db.latest_sequence_number());
    Ok(Opened { db, mark, logged: Logged { state, begin } })
}

/// The rows of one group, while they are loaded.
struct Rows<'a> {
    db: &'a DB,
    dir: &'a Path,
    group: u16,
}

impl Rows<'_> {
    /// Writes the format into a new database, checks it in an old one.
    fn check_format(&self) -> Result<(), LogError> {
        let Some(found) = self.get(Kind::Format)? else {
            if self.has_rows()? {
                return Err(self.damaged("the Format row".to_owned(), "it is gone, and others are there".to_owned()));
            }
            let key = keys::key(self.group, Kind::Format, 0);
            let mut value = Vec::new();
            keys::value_into(&mut value, &key, &[&keys::FORMAT.to_le_bytes()]);
            let mut batch = WriteBatch::default();
            batch.put(key, value);
            // Synced, as every record of the write-ahead log must be.
            return self.db.write_opt(batch, &options::synced()).map_err(LogError::rocks("creating", self.dir));
        };
        let found = found.first_chunk().map_or(u16::MAX, |b| u16::from_le_bytes(*b));
        if found == keys::FORMAT {
            return Ok(());
        }
        Err(LogError::Format { dir: self.dir.to_path_buf(), found, known: keys::FORMAT })
    }

    /// Whether the group has any row.
    fn has_rows(&self) -> Result<bool, LogError> {
        let mut rows = self.db.raw_iterator();
        let group = self.group.to_be_bytes();
        rows.seek(group);
        let is_one = rows.key().is_some_and(|key| key.starts_with(&group));
        rows.status().map_err(LogError::rocks("reading", self.dir))?;
        Ok(is_one)
    }

    /// The body of one of the rows that are no records.
    fn get(&self, kind: Kind) -> Result<Option<Bytes>, LogError> {
        let key = keys::key(self.group, kind, 0);
        let value = self.db.get_pinned(key).map_err(LogError::rocks("reading", self.dir))?;
        let Some(value) = value else { return Ok(None) };
        let body = keys::body(&key, &value).map_err(|what| self.damaged(format!("the {kind:?} row"), what))?;
        Ok(Some(Bytes::copy_from_slice(body)))
    }

    fn damaged(&self, row: String, what: String) -> LogError {
        LogError::Record { dir: self.dir.to_path_buf(), row, what }
    }

    /// A body that begins with an index.
    fn indexed(&self, kind: Kind) -> Result<Option<(u64, Bytes)>, LogError> {
        let Some(mut body) = self.get(kind)? else { return Ok(None) };
        let Some(index) = body.first_chunk().map(|b| u64::from_le_bytes(*b)) else {
            return Err(
                self.damaged(format!("the {kind:?} row"), format!("{} bytes, at least 8 belong there", body.len()))
            );
        };
        Ok(Some((index, body.split_off(8))))
    }

    /// What the log holds. The newest `verify_bytes_max` bytes of records are read and verified, and that the
    /// log begins where it should.
    fn load(&self, verify_bytes_max: u64) -> Result<(LogState, u64), LogError> {
        let purged = self.indexed(Kind::Purged)?;
        let begin = self.indexed(Kind::Begin)?.map_or(0, |(index, _)| index);
        let first = purged.as_ref().map_or(begin, |(index, _)| index.saturating_add(1));
        let last = self.verify(first, verify_bytes_max)?;
        let state = LogState { vote: self.get(Kind::Vote)?, committed: self.get(Kind::Committed)?, purged, last };
        Ok((state, begin))
    }

    /// Reads records from the last one back. Returns the last index.
    fn verify(&self, first: u64, verify_bytes_max: u64) -> Result<Option<u64>, LogError> {
        let hole = |index| LogError::Hole { dir: self.dir.to_path_buf(), index };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::record(self.group, 0));
        options.set_iterate_upper_bound(keys::records_end(self.group));
        options.fill_cache(false);
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek_to_last();
        let mut last = None;
        let mut next_down = None;
        let mut bytes = 0;
        while let Some((key, value)) = rows.item() {
            let Some(index) = keys::record_index(self.group, key) else {
                return Err(self.damaged(format!("the key {key:02x?}"), "not the key of a record".to_owned()));
            };
            if let Some(expected) = next_down.filter(|expected| *expected != index) {
                return Err(hole(expected));
            }
            if index < first {
                return Err(
                    self.damaged(format!("record {index}"), format!("it stands before {first}, where the log begins"))
                );
            }
            keys::body(key, value).map_err(|what| self.damaged(format!("record {index}"), what))?;
            last = last.or(Some(index));
            bytes += value.len() as u64;
            if index == first {
                // Nothing may stand before the beginning.
                next_down = None;
            } else if bytes >= verify_bytes_max {
                // The rest is verified when it is read; that the beginning is there is known at once.
                rows.seek(keys::record(self.group, 0));
                return match rows.key().and_then(|key| keys::record_index(self.group, key)) {
                    Some(index) if index == first => Ok(last),
                    _ => Err(hole(first)),
                };
            } else {
                next_down = Some(index - 1);
            }
            rows.prev();
        }
        rows.status().map_err(LogError::rocks("reading", self.dir))?;
        if let Some(expected) = next_down {
            return Err(hole(expected));
        }
        Ok(last)
    }
}
