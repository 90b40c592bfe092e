//! The rows of a node, whichever engine keeps them.

use std::path::Path;

use bytes::Bytes;

use super::key::{self, Key, MetaName};
use super::plain::{PlainReader, PlainRows};
use super::rocks::{RocksReader, RocksRows};
use super::value::{AppliedRow, Value as _};
use super::{MessageVisitor, QueuePage, RowBatch, RowRead, RowStore, RowVisitor, RowsError, digest, page};
use crate::ids::{QueueSeq, SessionId};
use crate::message::SharedMessage;

/// What keeps the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowsEngine {
    /// RocksDB.
    #[default]
    Rocks,
    /// Memory and one file, without threads: for simulations.
    Plain,
}

/// Engine and sizes. They change speed and memory, never an outcome, so each node may have its own.
#[derive(Clone, Debug)]
pub struct RowsOptions {
    /// What keeps the rows.
    pub engine: RowsEngine,
    /// Bytes of one memtable; after so many bytes of log all rows are flushed, so that a crash need not apply more again.
    /// At twice as many apply waits.
    pub write_buffer_bytes: usize,
    /// Bytes of rows that are kept before the database sees them; what is removed by then it never sees. At twice as
    /// many apply waits.
    pub recent_bytes_max: usize,
    /// Memtables at once (one is written to while others are flushed).
    pub write_buffers_max: i32,
    /// Bytes of the block cache, index and filter blocks included.
    pub block_cache_bytes: usize,
    /// Files kept open.
    pub open_files_max: i32,
}

impl Default for RowsOptions {
    fn default() -> Self {
        Self {
            engine: RowsEngine::Rocks,
            write_buffer_bytes: 32 << 20,
            recent_bytes_max: 8 << 20,
            write_buffers_max: 3,
            block_cache_bytes: 32 << 20,
            open_files_max: 512,
        }
    }
}

/// The rows of this node; one owner, the apply thread, writes them.
#[derive(Debug)]
pub enum Rows {
    /// In RocksDB.
    Rocks(RocksRows),
    /// In memory and one file.
    Plain(PlainRows),
}

/// Reads the applied rows from any thread.
#[derive(Clone, Debug)]
pub enum RowsReader {
    /// From RocksDB.
    Rocks(RocksReader),
    /// From memory.
    Plain(PlainReader),
}

macro_rules! either {
    ($of:expr, $rows:ident => $do:expr) => {
        match $of {
            Self::Rocks($rows) => $do,
            Self::Plain($rows) => $do,
        }
    };
}

impl Rows {
    /// Opens or creates the rows in `dir`.
    ///
    /// # Errors
    /// [`RowsError`] when the folder cannot be used or a file is damaged; nothing is repaired or skipped.
    pub fn open(dir: &Path, options: &RowsOptions) -> Result<Self, RowsError> {
        Ok(match options.engine {
            RowsEngine::Rocks => Self::Rocks(RocksRows::open(dir, options)?),
            RowsEngine::Plain => Self::Plain(PlainRows::open(dir)?),
        })
    }

    /// A reader for other threads.
    #[must_use]
    pub fn reader(&self) -> RowsReader {
        match self {
            Self::Rocks(rows) => RowsReader::Rocks(rows.reader()),
            Self::Plain(rows) => RowsReader::Plain(rows.reader()),
        }
    }

    /// Makes all that was applied durable.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn flush(&self) -> Result<(), RowsError> {
        self.reader().flush()
    }

    /// Where in the log the rows in `dir` are, and the Raft layer's bytes in them. Nobody else may have them open.
    ///
    /// # Errors
    /// [`RowsError`] when they cannot be read.
    pub fn read_applied(dir: &Path) -> Result<(AppliedRow, Bytes), RowsError> {
        let reader = if PlainRows::are_in(dir) {
            RowsReader::Plain(PlainRows::open(dir)?.reader())
        } else {
            RowsReader::Rocks(RocksRows::peek(dir)?)
        };
        let raft_state = reader.get(key::meta(MetaName::Raft).as_bytes())?.unwrap_or_default();
        Ok((applied_of(&reader)?, raft_state))
    }
}

fn applied_of(rows: &impl RowRead) -> Result<AppliedRow, RowsError> {
    let key = key::meta(MetaName::Applied);
    match rows.get(key.as_bytes())? {
        Some(bytes) => AppliedRow::read(key.as_bytes(), &bytes),
        None => Ok(AppliedRow::initial()),
    }
}

impl RowsReader {
    /// A page of a session's queue; see [`page::queue_page`].
    ///
    /// # Errors
    /// [`RowsError`] when the database fails or a row is damaged.
    pub fn queue_page(
        &self,
        session: SessionId,
        from: QueueSeq,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<QueuePage, RowsError> {
        page::queue_page(self, session, from, rows_max, bytes_max)
    }

    /// Makes all that was applied durable.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn flush(&self) -> Result<(), RowsError> {
        either!(self, rows => rows.flush())
    }

    /// Makes a checkpoint in `to`, a folder that does not exist yet on the same file system: all that is applied,
    /// flushed first.
    ///
    /// # Errors
    /// [`RowsError`] when the disk refuses.
    pub fn checkpoint(&self, to: &Path) -> Result<(), RowsError> {
        either!(self, rows => rows.checkpoint(to))
    }

    /// Hash of all rows, with the applied index it belongs to: equal on all replicas at the same index. A full
    /// scan of the rows as they are now, beside whoever writes.
    ///
    /// # Errors
    /// [`RowsError`] when they cannot be read.
    pub fn digest(&self) -> Result<(u64, u64), RowsError> {
        either!(self, rows => {
            let frozen = rows.frozen();
            Ok((applied_of(&frozen)?.index, digest(&frozen)?))
        })
    }

    /// Bytes of recent rows, memtables, table readers and files, for metrics: `(memory, disk)`.
    #[must_use]
    pub fn size_bytes(&self) -> (u64, u64) {
        match self {
            Self::Rocks(rows) => rows.size_bytes(),
            Self::Plain(_) => (0, 0),
        }
    }
}

impl RowRead for RowsReader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        either!(self, rows => rows.get(key))
    }

    fn message(&self, key: &[u8]) -> Result<Option<SharedMessage>, RowsError> {
        either!(self, rows => rows.message(key))
    }

    fn messages(&self, keys: &[Key], f: &mut MessageVisitor<'_>) -> Result<(), RowsError> {
        either!(self, rows => rows.messages(keys, f))
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        either!(self, rows => rows.scan(from, to, f))
    }
}

impl RowRead for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        either!(self, rows => rows.get(key))
    }

    fn message(&self, key: &[u8]) -> Result<Option<SharedMessage>, RowsError> {
        either!(self, rows => rows.message(key))
    }

    fn messages(&self, keys: &[Key], f: &mut MessageVisitor<'_>) -> Result<(), RowsError> {
        either!(self, rows => rows.messages(keys, f))
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        either!(self, rows => rows.scan(from, to, f))
    }
}

impl RowStore for Rows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        either!(self, of => of.write(rows))
    }
}
