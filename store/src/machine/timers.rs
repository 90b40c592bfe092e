//! Deadlines and continuations: what time brings, and work too large for one entry.
//!
//! Every entry advances them by a bounded step. The leader appends a tick each second while there are
//! deadlines, and ticks as fast as they are applied while there is work ([`Machine::has_continuations`]).

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::effect::EffectSink;
use crate::ids::{Position, QueueSeq, SessionId};
use crate::rows::key::{self, RowKind};
use crate::rows::value::{ContinuationRow, QueueRow, Value as _};
use crate::rows::{RowRead as _, RowStore};
use crate::topic::TopicFilter;

use super::state::DeadlineKind;
use super::{Machine, MachineError};

/// Rows, sessions or deadlines that one entry handles beside its commands.
pub(super) const STEP_ROWS: usize = 128;
/// Rows of a window that cost as much to read as one session costs to detach.
const ROWS_A_STEP: usize = 16;

/// Key and value.
type FoundRow = (Box<[u8]>, Bytes);

impl<S: RowStore> Machine<S> {
    /// Whether something waits for time to pass: the leader must tick.
    #[must_use]
    pub fn has_deadlines(&self) -> bool {
        !self.deadlines.is_empty() || !self.retained_expiry.is_empty()
    }

    /// Whether something waits for entries only: the leader must tick at once.
    #[must_use]
    pub fn has_continuations(&self) -> bool {
        let now = self.applied.time;
        !self.continuations.is_empty()
            || self.deadlines.first().is_some_and(|d| d.at <= now)
            || self.retained_expiry.first().is_some_and(|(at, _)| *at <= now)
            || !self.sessions.orphans(|i| self.streams.contains_key(&i), 1).is_empty()
    }

    pub(super) fn advance_timers(&mut self, fx: &mut dyn EffectSink) -> Result<(), MachineError> {
        let mut budget = STEP_ROWS;
        for id in self.sessions.orphans(|i| self.streams.contains_key(&i), budget) {
            if budget == 0 {
                break;
            }
            // Its window is read. The cost follows from the rows, not from what this replica has loaded.
            let rows = self.sessions.get(id).map_or(0, |s| s.counters.rows.min(u64::from(s.row.receive_maximum)));
            self.detach_orphan(id)?;
            budget = budget.saturating_sub(1 + rows as usize / ROWS_A_STEP);
        }
        while budget > 0 {
            let Some(due) = self.deadlines.first().copied().filter(|d| d.at <= self.applied.time) else { break };
            self.deadlines.remove(&due);
            budget -= 1;
            match due.kind {
                DeadlineKind::Will => self.publish_will(due.session, Some(due.at), fx)?,
                DeadlineKind::Expiry => self.end_session(due.session, fx)?,
            }
        }
        while budget > 0 {
            let Some(due) = self.retained_expiry.first().filter(|(at, _)| *at <= self.applied.time).cloned() else {
                break;
            };
            self.retained_expiry.remove(&due);
            budget -= 1;
            self.expire_retained(&due.1);
        }
        let mut after = None;
        while budget > 0 {
            // In order of position, each once an entry: the same on every replica.
            let next = match after {
                None => self.continuations.iter().next(),
                Some(at) => {
                    self.continuations.range((std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded)).next()
                }
            };
            let Some((at, row)) = next.map(|(at, row)| (*at, row.clone())) else { break };
            after = Some(at);
            self.advance_continuation(at, row, &mut budget, fx)?;
        }
        Ok(())
    }

    fn advance_continuation(
        &mut self,
        at: Position,
        row: ContinuationRow,
        budget: &mut usize,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        match row {
            ContinuationRow::Sweep { session } => {
                if self.sweep(session, budget)? {
                    self.end_continuation(at);
                }
            }
            cursor @ ContinuationRow::Retained { .. } => match self.advance_retained(Some(at), cursor, budget, fx)? {
                Some(rest) => self.put_continuation(at, rest)?,
                None => self.end_cursor(at)?,
            },
            ContinuationRow::Marks => {
                let prefix = key::of_position(RowKind::ContinuationMark, at);
                let marks = self.some_rows(prefix.as_bytes(), &prefix.end(), *budget)?;
                *budget -= marks.len();
                for (k, _) in marks {
                    self.rows.delete(k);
                }
                if *budget > 0 {
                    self.end_continuation(at);
                }
            }
        }
        Ok(())
    }

    pub(super) fn put_continuation(&mut self, at: Position, row: ContinuationRow) -> Result<(), MachineError> {
        self.rows.put(key::of_position(RowKind::Continuation, at).into(), row.to_bytes()?);
        self.continuations.insert(at, row);
        Ok(())
    }

    /// Removes rows of a session that has ended; true when none is left.
    fn sweep(&mut self, session: SessionId, budget: &mut usize) -> Result<bool, MachineError> {
        for kind in [RowKind::Subscription, RowKind::Queue, RowKind::Inbound] {
            let prefix = key::of_session(kind, session);
            let rows = self.some_rows(prefix.as_bytes(), &prefix.end(), *budget)?;
            *budget -= rows.len();
            for (k, v) in rows {
                match kind {
                    RowKind::Subscription => {
                        let filter = k.get(prefix.as_bytes().len()..).unwrap_or_default();
                        if let Ok(filter) = TopicFilter::new(&String::from_utf8_lossy(filter)) {
                            self.trie.remove(&filter, session);
                        }
                    }
                    RowKind::Queue => {
                        let row = QueueRow::read(&k, &v)?;
                        self.release_message(row.position, row.is_shared)?;
                    }
                    _ => {}
                }
                self.rows.delete(k);
            }
            if *budget == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn some_rows(&self, from: &[u8], to: &[u8], most: usize) -> Result<Vec<FoundRow>, MachineError> {
        let mut rows = Vec::new();
        if most > 0 {
            self.rows.scan(from, to, &mut |k, v| {
                rows.push((k.into(), Bytes::copy_from_slice(v)));
                if rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(rows)
    }

    /// The last row number that a queue has given out (tests).
    #[must_use]
    pub fn queue_tail(&self, session: SessionId) -> Option<QueueSeq> {
        Some(self.sessions.get(session)?.counters.next_seq)
    }
}
