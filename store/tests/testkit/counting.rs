//! Rows that count how many of them are read and written.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorate_store::rows::{MemRows, RowBatch, RowRead, RowStore, RowVisitor, RowsError};

/// How many rows were read and written since it was reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

impl Counter {
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(crate) fn touched(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, rows: u64) {
        self.0.fetch_add(rows, Ordering::Relaxed);
    }
}

/// Rows in memory, with a counter.
#[derive(Debug)]
pub(crate) struct CountingRows {
    rows: MemRows,
    counter: Counter,
}

impl CountingRows {
    pub(crate) fn new(rows: MemRows) -> Self {
        Self { rows, counter: Counter::default() }
    }

    pub(crate) fn counter(&self) -> Counter {
        self.counter.clone()
    }

    pub(crate) fn rows(&self) -> &MemRows {
        &self.rows
    }
}

impl RowRead for CountingRows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        self.counter.add(1);
        self.rows.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        self.rows.scan(from, to, &mut |key, value| -> ControlFlow<()> {
            self.counter.add(1);
            f(key, value)
        })
    }
}

impl RowStore for CountingRows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        self.counter.add(rows.0.len() as u64);
        self.rows.write(rows)
    }
}
