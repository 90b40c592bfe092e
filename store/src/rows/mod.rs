//! Rows: the keys and values of the state database (RocksDB #2), and how they are read and written.
//!
//! Rows are the truth; what the machine also holds in memory is rebuilt from them at start. The whole key
//! space stands in [`key`], the values in [`value`]. The machine writes through an [`overlay::Overlay`],
//! one atomic batch for each applied run; everybody else only reads.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use self::value::Value as _;
use crate::codec::CodecError;
use crate::log::LogError;
use crate::message::{Message, SharedMessage};

mod changes;
mod database;
pub mod key;
pub mod mem;
pub(crate) mod overlay;
pub mod page;
pub mod plain;
mod recent;
pub mod rocks;
mod row_value;
pub mod share;
pub mod value;

pub use database::{Rows, RowsEngine, RowsOptions, RowsReader};
pub use mem::MemRows;
pub use page::{QueuePage, QueuedRow};
pub use rocks::RocksRows;
pub use row_value::RowValue;

/// Why rows could not be read or written. All of these end the process: nothing is skipped.
#[derive(Debug, Error)]
pub enum RowsError {
    /// The database says so; the text names the file.
    #[error("the state database failed: {0}; check the disk, and replace this node if its files are damaged")]
    Database(#[from] rocksdb::Error),
    /// The torn end of its MANIFEST cannot be cut off.
    #[error("the state database cannot be opened: {0}")]
    Manifest(#[from] LogError),
    /// A value does not decode.
    #[error("the row {key} is damaged: {reason}; replace this node, its state comes back from the others")]
    Damaged {
        /// The key, for people.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// What was written earlier failed.
    #[error(transparent)]
    Earlier(Arc<RowsError>),
    /// A value that was to be encoded later does not encode.
    #[error("a row cannot be encoded: {0}")]
    Encode(#[from] CodecError),
    /// Files could not be reached.
    #[error("the state database at {path} cannot be used: {source}")]
    Io {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Reads of rows.
pub trait RowRead {
    /// The value at `key`.
    ///
    /// # Errors
    /// [`RowsError`] when the database fails.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError>;

    /// The message at `key`; the very one that was written, if it is still in memory.
    ///
    /// # Errors
    /// [`RowsError`] when the database fails, or when this is no message.
    fn message(&self, key: &[u8]) -> Result<Option<SharedMessage>, RowsError> {
        self.get(key)?.map(|bytes| Ok(Arc::new(Message::read(key, &bytes)?))).transpose()
    }

    /// Calls `f` with the message at each of `keys`, in their order, until it breaks. They may change meanwhile: each
    /// is as it was at some moment of the call.
    ///
    /// # Errors
    /// As [`Self::message`].
    fn messages(&self, keys: &[key::Key], f: &mut MessageVisitor<'_>) -> Result<(), RowsError> {
        for key in keys {
            if f(self.message(key.as_bytes())?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Calls `f` with every row of `from <= key < to`, in key order, until it breaks.
    ///
    /// # Errors
    /// [`RowsError`] when the database fails.
    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError>;
}

/// Takes one row of a scan: key, value.
pub type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Takes one message of [`RowRead::messages`], none where none is.
pub type MessageVisitor<'a> = dyn FnMut(Option<SharedMessage>) -> ControlFlow<()> + 'a;

/// What the machine runs over.
pub trait RowStore: RowRead + Send + 'static {
    /// Writes all of `rows` or nothing.
    ///
    /// # Errors
    /// [`RowsError`] when the database fails; the machine must not be used any more.
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError>;
}

/// What becomes of a row.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is made, and its key was never used before: positions and sequence numbers do not repeat.
    New(RowValue),
    /// It is made, or replaced.
    Put(RowValue),
    /// It is removed, if it exists.
    Delete,
}

impl Change {
    /// The value, if it stays.
    #[must_use]
    pub const fn value(&self) -> Option<&RowValue> {
        match self {
            Self::New(value) | Self::Put(value) => Some(value),
            Self::Delete => None,
        }
    }
}

/// Changes that become visible together.
#[derive(Debug, Default)]
pub struct RowBatch {
    changes: changes::Changes,
    /// About as many bytes as the entries behind them take in the log.
    log_bytes: usize,
}

impl RowBatch {
    /// Rows that are set, or deleted where there is no value, whether they exist or not.
    #[must_use]
    pub fn set(rows: impl IntoIterator<Item = (key::Key, Option<Bytes>)>) -> Self {
        rows.into_iter()
            .map(|(key, value)| (key, value.map_or(Change::Delete, |value| Change::Put(value.into()))))
            .collect()
    }
}

impl FromIterator<(key::Key, Change)> for RowBatch {
    fn from_iter<T: IntoIterator<Item = (key::Key, Change)>>(rows: T) -> Self {
        let mut batch = Self::default();
        rows.into_iter().for_each(|(key, change)| {
            batch.log_bytes += change.value().map_or(0, RowValue::len);
            batch.changes.take(key, change);
        });
        batch
    }
}

impl IntoIterator for RowBatch {
    type Item = (key::Key, Change);
    type IntoIter = Box<dyn Iterator<Item = Self::Item>>;

    /// In no order.
    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.changes.into_rows())
    }
}

/// Hash of all rows of `store`.
///
/// # Errors
/// [`RowsError`] when they cannot be read.
pub fn digest(store: &impl RowRead) -> Result<u64, RowsError> {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    store.scan(&[], &[0xff; 4], &mut |key, value| {
        for part in [key, value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        ControlFlow::Continue(())
    })?;
    Ok(hash.digest())
}
