//! The rows that the current run has changed, in front of the rows that are written.
//!
//! A row that is made and removed within one run never reaches the database.

use bytes::Bytes;

use super::changes::Changes;
use super::key::Key;
use super::recent::merge;
use super::{Change, RowBatch, RowRead, RowStore, RowValue, RowVisitor, RowsError};
use crate::message::SharedMessage;

/// A store with this run's changes in front.
#[derive(Debug)]
pub(crate) struct Overlay<S> {
    store: S,
    changes: Changes,
    log_bytes: usize,
}

impl<S: RowStore> Overlay<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, changes: Changes::default(), log_bytes: 0 }
    }

    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    /// Sets a row that may exist.
    pub(crate) fn put(&mut self, key: Key, value: impl Into<RowValue>) {
        self.changes.take(key, Change::Put(value.into()));
    }

    /// Sets a row whose key has never been used before: positions and sequence numbers do not repeat.
    pub(crate) fn put_new(&mut self, key: Key, value: impl Into<RowValue>) {
        let is_new = self.changes.take(key, Change::New(value.into()));
        assert!(is_new, "a key that is new by construction was there");
    }

    /// Removes a row, whether it exists or not.
    pub(crate) fn delete(&mut self, key: Key) {
        self.changes.take(key, Change::Delete);
    }

    /// The run goes on with an entry of about so many bytes.
    pub(crate) fn count_entry(&mut self, log_bytes: usize) {
        self.log_bytes += log_bytes;
    }

    /// Writes the run's changes at once and begins the next run.
    pub(crate) fn commit(&mut self) -> Result<(), RowsError> {
        let next = Changes::like(&self.changes);
        let changes = std::mem::replace(&mut self.changes, next);
        self.store.write(RowBatch { changes, log_bytes: std::mem::take(&mut self.log_bytes) })
    }
}

impl<S: RowStore> RowRead for Overlay<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        match self.changes.get(key) {
            Some(change) => change.value().map(RowValue::to_bytes).transpose(),
            None => self.store.get(key),
        }
    }

    fn message(&self, key: &[u8]) -> Result<Option<SharedMessage>, RowsError> {
        match self.changes.get(key) {
            Some(change) => change.value().map(|value| value.to_message(key)).transpose(),
            None => self.store.message(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        if from >= to {
            return Ok(());
        }
        let behind = |f: &mut RowVisitor<'_>| self.store.scan(from, to, f);
        merge(self.changes.in_range(from, to), Box::new(behind), f)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::MemRows;
    use super::*;

    fn key(k: u8) -> Key {
        Key::from([k].as_slice())
    }

    fn all(o: &Overlay<MemRows>) -> Vec<u8> {
        let mut seen = vec![];
        o.scan(&[0], &[255], &mut |k, v| {
            seen.push(k[0]);
            assert_eq!(v[0], k[0]);
            ControlFlow::Continue(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn a_scan_sees_the_runs_own_changes_in_key_order() {
        let mut o = Overlay::new(MemRows::default());
        for k in [2, 4, 6] {
            o.put(key(k), Bytes::copy_from_slice(&[k]));
        }
        o.commit().unwrap();
        o.put(key(4), Bytes::from_static(&[4]));
        o.delete(key(6));
        o.put_new(key(1), Bytes::from_static(&[1]));
        o.put_new(key(9), Bytes::from_static(&[9]));
        assert_eq!(all(&o), [1, 2, 4, 9]);
        o.commit().unwrap();
        assert_eq!(all(&o), [1, 2, 4, 9]);
        assert_eq!(o.store().len(), 4);
    }

    #[test]
    fn a_row_made_and_removed_in_one_run_is_never_written() {
        let mut o = Overlay::new(MemRows::default());
        o.put_new(key(1), Bytes::from_static(&[1]));
        o.put(key(1), Bytes::from_static(&[1]));
        o.delete(key(1));
        assert!(o.changes.is_empty());
        assert_eq!(o.get(&[1]).unwrap(), None);
    }

    #[test]
    fn a_scan_that_is_broken_off_stops() {
        let mut o = Overlay::new(MemRows::default());
        for k in 1..9 {
            o.put(key(k), Bytes::copy_from_slice(&[k]));
            if k == 4 {
                o.commit().unwrap();
            }
        }
        for stop in 1..9 {
            let mut last = 0;
            o.scan(&[0], &[255], &mut |k, _| {
                last = k[0];
                if last == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
            assert_eq!(last, stop);
        }
    }
}
