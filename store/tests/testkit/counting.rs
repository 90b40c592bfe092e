//! Rows that count how many of them are read and written, and over how many deleted ones a scan passes: a database
//! keeps those for long, and passing over them costs as much as reading.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
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
    deleted: BTreeSet<Box<[u8]>>,
    counter: Counter,
}

impl CountingRows {
    pub(crate) fn new(rows: MemRows) -> Self {
        Self { rows, deleted: BTreeSet::new(), counter: Counter::default() }
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
        let mut end: Box<[u8]> = to.into();
        self.rows.scan(from, to, &mut |key, value| -> ControlFlow<()> {
            self.counter.add(1);
            let flow = f(key, value);
            if flow.is_break() {
                end = key.into();
            }
            flow
        })?;
        if from < &*end {
            self.counter
                .add(self.deleted.range::<[u8], _>((Bound::Included(from), Bound::Excluded(&*end))).count() as u64);
        }
        Ok(())
    }
}

impl RowStore for CountingRows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        let rows: Vec<_> = rows.into_iter().collect();
        self.counter.add(rows.len() as u64);
        for (key, change) in &rows {
            if change.value().is_some() {
                self.deleted.remove(key.as_bytes());
            } else if self.rows.get(key.as_bytes())?.is_some() {
                self.deleted.insert(key.as_bytes().into());
            }
        }
        self.rows.write(rows.into_iter().collect())
    }
}
