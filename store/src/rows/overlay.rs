//! The rows that the current run has changed, in front of the rows that are written.
//!
//! A row that is made and removed within one run never reaches the database.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::key::Key;
use super::{RowBatch, RowRead, RowStore, RowVisitor, RowsError};

#[derive(Clone, Debug)]
enum Change {
    /// The key was not in the database when this run began.
    New(Bytes),
    /// It may have been.
    Put(Bytes),
    Delete,
}

impl Change {
    fn value(&self) -> Option<&Bytes> {
        match self {
            Self::New(v) | Self::Put(v) => Some(v),
            Self::Delete => None,
        }
    }
}

/// A store with this run's changes in front.
#[derive(Debug)]
pub(crate) struct Overlay<S> {
    store: S,
    changes: BTreeMap<Key, Change>,
}

impl<S: RowStore> Overlay<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, changes: BTreeMap::new() }
    }

    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    /// Sets a row that may exist.
    pub(crate) fn put(&mut self, key: Key, value: Bytes) {
        match self.changes.entry(key) {
            Entry::Vacant(e) => {
                e.insert(Change::Put(value));
            }
            Entry::Occupied(mut e) => {
                let change = if matches!(e.get(), Change::New(_)) { Change::New(value) } else { Change::Put(value) };
                e.insert(change);
            }
        }
    }

    /// Sets a row whose key has never been used before: positions and sequence numbers do not repeat.
    pub(crate) fn put_new(&mut self, key: Key, value: Bytes) {
        let before = self.changes.insert(key, Change::New(value));
        assert!(before.is_none(), "a key that is new by construction was there");
    }

    /// Removes a row, whether it exists or not.
    pub(crate) fn delete(&mut self, key: Key) {
        match self.changes.entry(key) {
            Entry::Vacant(e) => {
                e.insert(Change::Delete);
            }
            Entry::Occupied(mut e) => {
                if matches!(e.get(), Change::New(_)) {
                    e.remove();
                } else {
                    e.insert(Change::Delete);
                }
            }
        }
    }

    /// Writes the run's changes at once and begins the next run.
    pub(crate) fn commit(&mut self) -> Result<(), RowsError> {
        let rows = std::mem::take(&mut self.changes)
            .into_iter()
            .map(|(key, change)| match change {
                Change::New(value) | Change::Put(value) => (key, Some(value)),
                Change::Delete => (key, None),
            })
            .collect();
        self.store.write(RowBatch(rows))
    }
}

impl<S: RowStore> RowRead for Overlay<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.value().cloned()),
            None => self.store.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        if from >= to {
            return Ok(());
        }
        let mut changed = self.changes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).peekable();
        let mut stopped = false;
        self.store.scan(from, to, &mut |key, value| {
            while let Some((k, change)) = changed.next_if(|(k, _)| k.as_bytes() < key) {
                if let Some(v) = change.value()
                    && f(k.as_bytes(), v).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match changed.next_if(|(k, _)| k.as_bytes() == key) {
                Some((_, change)) => change.value().map_or(ControlFlow::Continue(()), |v| f(key, v)),
                None => f(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for (k, change) in changed {
                if let Some(v) = change.value()
                    && f(k.as_bytes(), v).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
