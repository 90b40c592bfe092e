//! Deadlines: what time brings, and when the leader has to tick.
//!
//! Every entry advances them, and then [`super::continuations`], by a bounded step. The leader appends a tick each
//! second while there are deadlines, and ticks as fast as they are applied while there is work
//! ([`Machine::has_continuations`]).

use crate::effect::EffectSink;
use crate::ids::{QueueSeq, SessionId};
use crate::rows::RowStore;

use super::state::DeadlineKind;
use super::{Machine, MachineError};

/// Rows, sessions or deadlines that one entry handles beside its commands.
pub(super) const STEP_ROWS: usize = 128;
/// Rows of a window that cost as much to read as one session costs to detach.
const ROWS_A_STEP: usize = 16;

impl<S: RowStore> Machine<S> {
    /// Whether something waits for time to pass: the leader must tick.
    #[must_use]
    pub fn has_deadlines(&self) -> bool {
        !self.deadlines.is_empty() || !self.retained_expiry.is_empty() || !self.waiting.is_empty()
    }

    /// Whether something waits for entries only: the leader must tick at once.
    #[must_use]
    pub fn has_continuations(&self) -> bool {
        let now = self.applied.time;
        !self.continuations.is_empty()
            || self.has_servable_shares()
            || self.deadlines.first().is_some_and(|d| d.at <= now)
            || self.retained_expiry.is_due(now)
            || self.waiting.is_due(now)
            || self.has_surplus_keys()
            || !self.sessions.orphans(|i| self.streams.contains_key(&i), 1).is_empty()
    }

    pub(super) fn advance_timers(&mut self, fx: &mut dyn EffectSink) -> Result<(), MachineError> {
        let mut budget = STEP_ROWS;
        for id in self.sessions.orphans(|i| self.streams.contains_key(&i), budget) {
            // Its window is read, and what shared groups gave it goes back to them, row by row. The cost follows from
            // the rows, not from what this replica has loaded.
            let cost = self.sessions.get(id).map_or(1, |s| {
                let window = s.counters.rows.min(u64::from(s.row.receive_maximum)) as usize;
                1 + window / ROWS_A_STEP + s.counters.shared as usize
            });
            // The first of an entry is detached whatever it costs.
            if cost > budget && budget < STEP_ROWS {
                break;
            }
            self.detach_orphan(id)?;
            budget = budget.saturating_sub(cost);
        }
        while budget > 0 {
            let Some(due) = self.deadlines.first().copied().filter(|d| d.at <= self.applied.time) else { break };
            self.deadlines.remove(&due);
            budget -= 1;
            match due.kind {
                DeadlineKind::Will => self.publish_will(due.session, Some(due.at), fx)?,
                DeadlineKind::Expiry => {
                    let outlived_its_connection = self.sessions.get(due.session).is_some_and(|s| s.row.expiry_s > 0);
                    self.expired += u64::from(outlived_its_connection);
                    let shares = self.sessions.get(due.session).and_then(|s| s.membership.as_ref());
                    budget = budget.saturating_sub(shares.map_or(0, |membership| membership.shares.len()));
                    self.end_session(due.session, fx)?;
                }
            }
        }
        self.advance_delayed(&mut budget, fx)?;
        while budget > 0 {
            let Some(topic) = self.retained_expiry.take_due(self.applied.time) else { break };
            budget -= 1;
            self.expire_retained(&topic);
        }
        self.advance_idempotency()?;
        self.advance_continuations(budget, fx)
    }

    /// The last row number that a queue has given out (tests).
    #[must_use]
    pub fn queue_tail(&self, session: SessionId) -> Option<QueueSeq> {
        Some(self.sessions.get(session)?.counters.next_seq)
    }
}
