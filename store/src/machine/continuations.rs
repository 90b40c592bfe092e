//! Continuations: work too large for one entry, which later entries go on with.
//!
//! Each is a replicated row at a position. Entries serve them in the order of positions, one after the other and
//! from the beginning again, each its share of what the entry may do; the one served last is a row as well, so that
//! every replica goes on at the same place, also after a restart. How far a sweep has come is not written, because
//! the rows themselves say it: what is remembered of it here saves only reading over what is deleted already.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::effect::EffectSink;
use crate::ids::{Position, QueueSeq, SessionId, ShareId};
use crate::rows::key::{self, Key, MetaName, RowKind};
use crate::rows::share::WaitingRow;
use crate::rows::value::{ContinuationRow, NumberRow, QueueRow, SubscriptionRow, Value as _};
use crate::rows::{RowRead as _, RowStore, RowsError};
use crate::topic::{FilterKind, TopicFilter};

use super::trie::Subscriber;
use super::{Machine, MachineError};

/// So many continuations share what one entry may do, when there are as many.
const SHARES: usize = 4;
/// The rows of a session that has ended, in the order in which they are swept.
const SWEPT: [RowKind; 3] = [RowKind::Subscription, RowKind::Queue, RowKind::Inbound];

/// Key and value.
type FoundRow = (Key, Bytes);

/// A continuation and what is known of its progress.
#[derive(Debug)]
pub(super) enum Continuation {
    /// The rows of a session that has ended are removed.
    Sweep(Sweep),
    /// Retained messages go to a new subscription ([`super::retained`]).
    Retained(Cursor),
    /// The marks of a cursor that has ended are removed; those before this key are.
    Marks(Option<Key>),
    /// What waited in a shared group that is gone is removed.
    ShareSweep(ShareSweep),
}

/// The sweep of a shared group's queue.
#[derive(Debug)]
pub(super) struct ShareSweep {
    share: ShareId,
    /// All rows up to this key are gone.
    after: Option<Key>,
}

impl ShareSweep {
    pub(super) fn new(share: ShareId) -> Self {
        Self { share, after: None }
    }
}

/// A sweep, and what needs no reading any more.
#[derive(Debug)]
pub(super) struct Sweep {
    session: SessionId,
    /// No queue row is below.
    head: QueueSeq,
    /// So many of [`SWEPT`] are gone.
    kinds_done: usize,
    /// Of the next kind all rows up to this key are.
    after: Option<Key>,
}

impl Sweep {
    pub(super) fn new(session: SessionId, head: QueueSeq) -> Self {
        Self { session, head, kinds_done: 0, after: None }
    }
}

/// Retained messages on their way to a new subscription.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub(super) session: SessionId,
    pub(super) filter: TopicFilter,
    pub(super) subscription: SubscriptionRow,
    /// Position of the SUBSCRIBE.
    pub(super) until: Position,
    /// First topic that is not looked at yet.
    pub(super) next_topic: String,
    /// Its mark rows.
    pub(super) marks: u64,
}

impl Continuation {
    fn row(&self) -> ContinuationRow {
        match self {
            Self::Sweep(sweep) => ContinuationRow::Sweep { session: sweep.session },
            Self::Retained(cursor) => ContinuationRow::Retained {
                session: cursor.session,
                filter: cursor.filter.as_str().to_owned(),
                subscription: cursor.subscription,
                until: cursor.until,
                next_topic: cursor.next_topic.clone(),
            },
            Self::Marks(_) => ContinuationRow::Marks,
            Self::ShareSweep(sweep) => ContinuationRow::ShareSweep { share: sweep.share },
        }
    }
}

/// All continuations.
#[derive(Debug, Default)]
pub(super) struct Continuations {
    by_position: BTreeMap<Position, Continuation>,
    /// How many of them are cursors.
    cursors: usize,
    /// The one that was served last.
    served: Position,
}

impl Continuations {
    pub(super) fn is_empty(&self) -> bool {
        self.by_position.is_empty()
    }

    pub(super) fn has_cursors(&self) -> bool {
        self.cursors > 0
    }

    pub(super) fn cursor(&self, at: Position) -> Option<&Cursor> {
        match self.by_position.get(&at) {
            Some(Continuation::Retained(cursor)) => Some(cursor),
            _ => None,
        }
    }

    pub(super) fn cursor_mut(&mut self, at: Position) -> Option<&mut Cursor> {
        match self.by_position.get_mut(&at) {
            Some(Continuation::Retained(cursor)) => Some(cursor),
            _ => None,
        }
    }

    fn insert(&mut self, at: Position, continuation: Continuation) {
        self.cursors += usize::from(matches!(continuation, Continuation::Retained(_)));
        self.by_position.insert(at, continuation);
    }

    fn remove(&mut self, at: Position) -> Option<Continuation> {
        let removed = self.by_position.remove(&at)?;
        self.cursors -= usize::from(matches!(removed, Continuation::Retained(_)));
        Some(removed)
    }

    /// The next in order.
    fn next(&self) -> Option<Position> {
        let later = self.by_position.range((Bound::Excluded(self.served), Bound::Unbounded));
        later.chain(&self.by_position).next().map(|(at, _)| *at)
    }
}

impl<S: RowStore> Machine<S> {
    /// Writes the row of a continuation that begins or has got further.
    pub(super) fn put_continuation(&mut self, at: Position, continuation: Continuation) -> Result<(), MachineError> {
        self.rows.put(key::of_position(RowKind::Continuation, at), continuation.row().to_bytes()?);
        if let Continuation::Retained(cursor) = &continuation
            && let Some(session) = self.sessions.get_mut(cursor.session)
        {
            session.cursors.insert(cursor.filter.clone(), at);
        }
        self.continuations.insert(at, continuation);
        Ok(())
    }

    /// A cursor has nothing more to bring; its marks, if it has any, are removed by later steps.
    pub(super) fn end_cursor(&mut self, at: Position) -> Result<(), MachineError> {
        match self.continuations.remove(at) {
            Some(Continuation::Retained(cursor)) => self.end_of_cursor(at, &cursor),
            Some(other) => {
                self.continuations.insert(at, other);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn end_of_cursor(&mut self, at: Position, cursor: &Cursor) -> Result<(), MachineError> {
        if let Some(session) = self.sessions.get_mut(cursor.session)
            && session.cursors.get(&cursor.filter) == Some(&at)
        {
            session.cursors.remove(&cursor.filter);
        }
        if cursor.marks > 0 {
            return self.put_continuation(at, Continuation::Marks(None));
        }
        self.rows.delete(key::of_position(RowKind::Continuation, at));
        Ok(())
    }

    /// Spends at most `budget` rows on continuations.
    pub(super) fn advance_continuations(
        &mut self,
        mut budget: usize,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let served = self.continuations.served;
        let share = (budget / self.continuations.by_position.len().clamp(1, SHARES)).max(1);
        while budget > 0
            && let Some(at) = self.continuations.next()
        {
            self.continuations.served = at;
            let mut left = share.min(budget);
            let before = left;
            if let Some(continuation) = self.continuations.remove(at) {
                self.advance_continuation(at, continuation, &mut left, fx)?;
            }
            // One that had nothing to do has cost something, too: there may be any number of them.
            budget -= (before - left).max(1);
        }
        if served != self.continuations.served {
            let served = NumberRow(self.continuations.served.as_u64()).to_bytes()?;
            self.rows.put(key::meta(MetaName::Served), served);
        }
        Ok(())
    }

    /// One step of a continuation that was taken out; what is left of it is put back.
    fn advance_continuation(
        &mut self,
        at: Position,
        continuation: Continuation,
        budget: &mut usize,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let rest = match continuation {
            Continuation::Sweep(mut sweep) => {
                let is_done = self.sweep(&mut sweep, budget)?;
                (!is_done).then_some(Continuation::Sweep(sweep))
            }
            Continuation::Retained(mut cursor) => {
                if self.advance_cursor(Some(at), &mut cursor, budget, fx)? {
                    return self.end_of_cursor(at, &cursor);
                }
                // How far it has come is not to be seen from other rows.
                return self.put_continuation(at, Continuation::Retained(cursor));
            }
            Continuation::Marks(after) => {
                let prefix = key::of_position(RowKind::ContinuationMark, at);
                let marks = self.rows_after(after.as_ref(), prefix.as_bytes(), &prefix.end(), *budget)?;
                *budget -= marks.len();
                let last = marks.last().map(|(k, _)| k.clone());
                for (k, _) in marks {
                    self.rows.delete(k);
                }
                (*budget == 0).then_some(Continuation::Marks(last))
            }
            Continuation::ShareSweep(sweep) => self.sweep_share(&sweep, budget)?.map(Continuation::ShareSweep),
        };
        match rest {
            Some(rest) => self.continuations.insert(at, rest),
            None => self.rows.delete(key::of_position(RowKind::Continuation, at)),
        }
        Ok(())
    }

    /// Removes rows of a session that has ended; true when none is left.
    fn sweep(&mut self, sweep: &mut Sweep, budget: &mut usize) -> Result<bool, MachineError> {
        let session = sweep.session;
        while let Some(kind) = SWEPT.get(sweep.kinds_done) {
            let prefix = key::of_session(*kind, session);
            let first = match kind {
                RowKind::Queue => key::queue(session, sweep.head),
                _ => key::of_session(*kind, session),
            };
            let rows = self.rows_after(sweep.after.as_ref(), first.as_bytes(), &prefix.end(), *budget)?;
            *budget -= rows.len();
            if let Some((k, _)) = rows.last() {
                sweep.after = Some(k.clone());
            }
            for (k, v) in rows {
                match kind {
                    RowKind::Subscription => {
                        let filter = k.as_bytes().get(prefix.as_bytes().len()..).unwrap_or_default();
                        let filter = TopicFilter::new(&String::from_utf8_lossy(filter)).ok();
                        match filter.map(|filter| (filter.kind(), filter)) {
                            Some((FilterKind::Exclusive { filter }, _)) => {
                                self.trie.remove(&filter, Subscriber::Exclusive(session));
                                self.free_exclusive(&filter, session)?;
                            }
                            Some((_, filter)) => {
                                self.trie.remove(&filter, Subscriber::Session(session));
                            }
                            None => {}
                        }
                    }
                    RowKind::Queue => {
                        let damaged = |reason| RowsError::Damaged { key: key::describe(k.as_bytes()), reason };
                        let (row, _) = QueueRow::split(&v).map_err(damaged)?;
                        self.release_message(row.position, row.is_shared)?;
                    }
                    _ => {}
                }
                self.rows.delete(k);
            }
            if *budget == 0 {
                return Ok(false);
            }
            sweep.kinds_done += 1;
            sweep.after = None;
        }
        Ok(true)
    }

    /// Removes what waits in a shared group that is gone; `None` when nothing is left.
    fn sweep_share(&mut self, sweep: &ShareSweep, budget: &mut usize) -> Result<Option<ShareSweep>, MachineError> {
        let prefix = key::of_position(RowKind::ShareQueue, sweep.share.0);
        let rows = self.rows_after(sweep.after.as_ref(), prefix.as_bytes(), &prefix.end(), *budget)?;
        *budget -= rows.len();
        let after = rows.last().map(|(k, _)| k.clone());
        for (k, v) in rows {
            let damaged = |reason| RowsError::Damaged { key: key::describe(k.as_bytes()), reason };
            let row = WaitingRow::from_slice(&v).map_err(damaged)?;
            let position = key::rest_u64(k.as_bytes(), 8).ok_or_else(|| damaged("short key".to_owned()))?;
            self.release_message(Position::from_u64(position), row.is_shared)?;
            self.rows.delete(k);
        }
        Ok((*budget == 0).then_some(ShareSweep { share: sweep.share, after }))
    }

    /// Up to `most` rows of `first <= key < to`, of which those up to `after` are known to be deleted.
    fn rows_after(
        &self,
        after: Option<&Key>,
        first: &[u8],
        to: &[u8],
        most: usize,
    ) -> Result<Vec<FoundRow>, MachineError> {
        let mut rows = Vec::new();
        if most > 0 {
            self.rows.scan(after.map_or(first, Key::as_bytes), to, &mut |k, v| {
                rows.push((k.into(), Bytes::copy_from_slice(v)));
                if rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(rows)
    }

    /// Start: what the rows say.
    pub(super) fn load_continuations(&mut self) -> Result<(), MachineError> {
        let mut loaded = Continuations::default();
        self.each(RowKind::Continuation, |k, row: ContinuationRow| {
            let at = Position::from_u64(key::rest_u64(k, 0)?);
            let continuation = match row {
                ContinuationRow::Sweep { session } => Continuation::Sweep(Sweep::new(session, QueueSeq(0))),
                ContinuationRow::Retained { session, filter, subscription, until, next_topic } => {
                    let filter = TopicFilter::new(&filter).ok()?;
                    Continuation::Retained(Cursor { session, filter, subscription, until, next_topic, marks: 0 })
                }
                ContinuationRow::Marks => Continuation::Marks(None),
                ContinuationRow::ShareSweep { share } => Continuation::ShareSweep(ShareSweep::new(share)),
            };
            loaded.insert(at, continuation);
            Some(())
        })?;
        let marks = Key::kind(RowKind::ContinuationMark);
        self.rows.scan(marks.as_bytes(), &marks.end(), &mut |k, _| {
            let at = key::rest_u64(k, 0).map(Position::from_u64);
            if let Some(cursor) = at.and_then(|at| loaded.cursor_mut(at)) {
                cursor.marks += 1;
            }
            ControlFlow::Continue(())
        })?;
        for (at, continuation) in &loaded.by_position {
            if let Continuation::Retained(cursor) = continuation
                && let Some(session) = self.sessions.get_mut(cursor.session)
            {
                session.cursors.insert(cursor.filter.clone(), *at);
            }
        }
        if let Some(NumberRow(served)) = self.row(&key::meta(MetaName::Served))? {
            loaded.served = Position::from_u64(served);
        }
        self.continuations = loaded;
        Ok(())
    }
}
