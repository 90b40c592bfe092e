//! Rows: the keys and values of the state database (RocksDB #2), and how they are read and written.
//!
//! Rows are the truth; what the machine also holds in memory is rebuilt from them at start. The whole key
//! space stands in [`key`], the values in [`value`]. The machine writes through an [`overlay::Overlay`],
//! one atomic batch for each applied run; everybody else only reads.

use std::ops::ControlFlow;

use bytes::Bytes;
use thiserror::Error;

use crate::log::LogError;

mod database;
pub mod key;
pub mod mem;
pub(crate) mod overlay;
pub mod page;
pub mod plain;
pub mod rocks;
pub mod share;
pub mod value;

pub use database::{Rows, RowsEngine, RowsOptions, RowsReader};
pub use mem::MemRows;
pub use page::{QueuePage, QueuedRow};
pub use rocks::RocksRows;

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

    /// Calls `f` with every row of `from <= key < to`, in key order, until it breaks.
    ///
    /// # Errors
    /// [`RowsError`] when the database fails.
    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError>;
}

/// Takes one row of a scan: key, value.
pub type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// What the machine runs over.
pub trait RowStore: RowRead + Send + 'static {
    /// Writes all of `rows` or nothing.
    ///
    /// # Errors
    /// [`RowsError`] when the database fails; the machine must not be used any more.
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError>;
}

/// Changes that become visible together: key, and the value or `None` to delete, in key order.
#[derive(Debug, Default)]
pub struct RowBatch(pub Vec<(key::Key, Option<Bytes>)>);

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
