//! Rows in memory, for tests and the simulator. Cloning is a crash point: the clone is what the disk had.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::{RowBatch, RowRead, RowStore, RowVisitor, RowsError};

/// Rows in a `BTreeMap`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemRows(BTreeMap<Box<[u8]>, Bytes>);

impl MemRows {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All rows, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.0.iter().map(|(k, v)| (k.as_ref(), v))
    }
}

impl RowRead for MemRows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        if from < to {
            for (key, value) in self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
                if let ControlFlow::Break(()) = f(key, value) {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl RowStore for MemRows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        for (key, change) in rows {
            match change.value() {
                Some(value) => self.0.insert(key.as_bytes().into(), value.to_bytes()?),
                None => self.0.remove(key.as_bytes()),
            };
        }
        Ok(())
    }
}
