//! Rows that were changed lately, in front of the database.
//!
//! Most rows live for milliseconds: a message is queued, sent, settled and gone. What is made and removed in here never
//! reaches the database, and what is written again and again, like the counters of a session, reaches it once. No
//! durability is lost: rows are not logged anyway (see [`super::rocks`]).
//!
//! **Whole states only.** A crash falls back to what the database has flushed, and that must be the state after some
//! entry, its applied index inside. So nothing trickles out of here: all that there is is *frozen* between two runs and
//! written in one batch, while what comes meanwhile gathers anew in front of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::changes::{Changes, Scan, ScanKey};
use super::key::Key;
use super::{Change, RowValue, RowVisitor, RowsError};

/// Reads of what lies behind some changes.
pub(super) type Behind<'a> = dyn FnOnce(&mut RowVisitor<'_>) -> Result<(), RowsError> + 'a;

/// Calls `f` with the rows behind and the changes in front of them, in key order, until it breaks. Both have the same
/// bounds.
pub(super) fn merge(changes: Scan<'_>, behind: Box<Behind<'_>>, f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
    let mut changes = changes.peekable();
    let mut is_over = false;
    let mut failed = None;
    let mut show = |f: &mut RowVisitor<'_>, key: &[u8], change: &Change| match change.value().map(RowValue::encoded) {
        Some(Ok(value)) => f(key, &value),
        None => ControlFlow::Continue(()),
        Some(Err(error)) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    };
    behind(&mut |key, value| {
        while let Some((k, change)) = changes.next_if(|(k, _)| k.as_bytes() < key) {
            is_over = show(f, k.as_bytes(), change).is_break();
            if is_over {
                return ControlFlow::Break(());
            }
        }
        let flow = match changes.next_if(|(k, _)| k.as_bytes() == key) {
            Some((_, change)) => show(f, key, change),
            None => f(key, value),
        };
        is_over = flow.is_break();
        flow
    })?;
    if !is_over {
        let _ = changes.try_for_each(|(k, change)| show(f, k.as_bytes(), change));
    }
    failed.map_or(Ok(()), Err)
}

/// What gathers, and what is being written.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Since the last freeze.
    pub(super) gathering: Changes,
    /// Is being written to the database.
    pub(super) frozen: Option<Arc<Changes>>,
    /// Bytes of log, about, whose rows came since the database was last told to flush. So much is applied again after a
    /// crash, at least; and so much is held at most by messages in here, which are slices of its records.
    pub(super) unflushed_bytes: usize,
    /// Writing failed, perhaps in the background; who writes next hears of it.
    pub(super) failed: Option<Arc<RowsError>>,
}

impl Recent {
    /// The change of this key, if there is one.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Change> {
        self.gathering.get(key).or_else(|| self.frozen.as_ref()?.get(key))
    }

    /// All that gathers is now frozen. None if there is nothing.
    pub(super) fn freeze(&mut self) -> Option<Arc<Changes>> {
        if self.gathering.is_empty() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut self.gathering));
        self.frozen = Some(frozen.clone());
        Some(frozen)
    }

    pub(super) fn bytes(&self) -> usize {
        self.gathering.bytes() + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes())
    }
}

/// The changes of a range in one moment.
pub(super) struct Front {
    gathering: Vec<(Key, Change)>,
    frozen: Option<Arc<Changes>>,
}

impl Front {
    pub(super) fn new(gathering: Vec<(Key, Change)>, frozen: Option<Arc<Changes>>) -> Self {
        Self { gathering, frozen }
    }

    /// Reads `from <= key < to`, with the rows of the same moment behind.
    pub(super) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        behind: impl FnOnce(&mut RowVisitor<'_>) -> Result<(), RowsError>,
        f: &mut RowVisitor<'_>,
    ) -> Result<(), RowsError> {
        let gathering: Scan<'_> = Box::new(self.gathering.iter().map(|(key, change)| (ScanKey::Kept(key), change)));
        match &self.frozen {
            None => merge(gathering, Box::new(behind), f),
            Some(frozen) => {
                let frozen = frozen.in_range(from, to);
                merge(gathering, Box::new(|f: &mut RowVisitor<'_>| merge(frozen, Box::new(behind), f)), f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::changes::ENTRY_BYTES;
    use super::super::changes::tests::{key, value};
    use super::*;

    #[test]
    fn what_was_new_before_the_freeze_lies_behind_after_it() {
        let mut recent = Recent::default();
        recent.gathering.take(key(1), Change::New(value(1)));
        assert!(recent.freeze().is_some());
        assert!(recent.freeze().is_none());
        recent.gathering.take(key(1), Change::Delete);
        assert!(matches!(recent.get(&[1]), Some(Change::Delete)));
        assert_eq!(recent.bytes(), 2 * (ENTRY_BYTES + 1) + 1);
    }

    #[test]
    fn a_scan_sees_the_newest_of_three_layers() {
        let mut recent = Recent::default();
        for k in [1, 2, 3] {
            recent.gathering.take(key(k), Change::Put(value(20 + k)));
        }
        recent.gathering.take(key(4), Change::Delete);
        recent.freeze();
        recent.gathering.take(key(2), Change::Delete);
        recent.gathering.take(key(3), Change::Put(value(33)));
        let database = [(0, 0), (3, 3), (4, 4), (5, 5)];
        let (gathering, more) = recent.gathering.some_in_range(&[0], &[9], 10);
        assert!(more.is_none());
        let front = Front::new(gathering, recent.frozen.clone());
        for stop in 1..=4 {
            let mut seen = Vec::new();
            let behind = |f: &mut RowVisitor<'_>| {
                let _ = database.iter().try_for_each(|(k, v)| f(&[*k], &[*v]));
                Ok(())
            };
            front
                .scan(&[0], &[9], behind, &mut |k, v| {
                    seen.push((k[0], v[0]));
                    if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .unwrap();
            assert_eq!(seen, [(0, 0), (1, 21), (3, 33), (5, 5)][..stop]);
        }
    }
}
