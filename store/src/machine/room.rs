//! Room in a queue that is at its byte bound.
//!
//! Messages that have expired make room under either policy; under `drop-oldest` the oldest others do, too. Only
//! rows that were certainly not sent go, see [`super::queue`]; a message that would not fit even so drops none of them.
//! A full queue is asked again with every publish that matches, so that the answer "nothing can go" has to be cheap:
//! it is given at once when no row expires, and remembered while nothing has changed.

use std::ops::ControlFlow;

use crate::command::{QueueFullPolicy, SessionRef};
use crate::effect::{Effect, EffectSink};
use crate::ids::{ClusterTime, QueueSeq, SessionId};
use crate::rows::RowStore;
use crate::seeded_bug::{SeededBug, is_seeded};

use super::window::WindowRow;
use super::{Machine, MachineError};

/// Rows looked at to make room for one message.
const ROOM_ROWS: usize = 256;

/// What a search for expired rows saw that found none. The same search finds none again before `until`.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoRoom {
    from: QueueSeq,
    next_seq: QueueSeq,
    rows: u64,
    until: ClusterTime,
}

impl<S: RowStore> Machine<S> {
    /// Whether the session has room for `charge` bytes, after others have made it.
    pub(super) fn make_room(
        &mut self,
        id: SessionId,
        charge: u64,
        fx: &mut dyn EffectSink,
    ) -> Result<bool, MachineError> {
        let bytes_max = self.settings.queue_bytes_max;
        let drop_oldest = self.settings.queue_full_policy == QueueFullPolicy::DropOldest;
        let Some(session) = self.sessions.get(id) else { return Ok(false) };
        let counters = session.counters;
        let wanted = counters.bytes.saturating_add(charge).saturating_sub(bytes_max);
        if wanted == 0 {
            return Ok(true);
        }
        if charge > bytes_max || (!drop_oldest && counters.expiring == 0) {
            return Ok(false);
        }
        let from = self.unsent_from(id)?;
        let now = self.applied.time;
        let is_known = |seen: NoRoom| {
            (seen.from, seen.next_seq, seen.rows) == (from, counters.next_seq, counters.rows) && now < seen.until
        };
        if !drop_oldest && self.sessions.get(id).and_then(|s| s.no_room.as_deref().copied()).is_some_and(is_known) {
            return Ok(false);
        }
        let has_expired = |row: &WindowRow| row.expires_at.is_some_and(|at| at <= now);
        let mut rows = Vec::new();
        let mut freed = 0;
        self.scan_queue(id, from, counters.next_seq, &mut |row| {
            if drop_oldest || has_expired(&row) {
                freed += u64::from(row.charge);
            }
            rows.push(row);
            if freed >= wanted || rows.len() >= ROOM_ROWS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let suffices = freed >= wanted;
        // What is above a bound that was lowered goes in any case, oldest first: else a queue far above it would
        // keep the oldest and drop the newest for as long as nobody reads.
        let mut surplus = counters.bytes.saturating_sub(bytes_max);
        let mut gone_until = from;
        let mut all_went = true;
        let mut dropped = 0;
        for row in &rows {
            let expired = has_expired(row);
            let goes = expired || (drop_oldest && (suffices || surplus > 0));
            all_went &= goes;
            if all_went {
                gone_until = row.seq.next();
            }
            if goes {
                surplus = surplus.saturating_sub(row.charge.into());
                dropped += u64::from(!expired);
                self.remove_queued(id, row)?;
                self.withdraw(id, row, fx);
            }
        }
        if dropped > 0 {
            self.count_dropped(id, dropped);
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.gone = if session.gone.1 == from { (session.gone.0, gone_until) } else { (from, gone_until) };
            let soonest = rows.iter().filter_map(|row| row.expires_at).min();
            let until = soonest.unwrap_or(ClusterTime(u64::MAX));
            let (next_seq, rows) = (counters.next_seq, session.counters.rows);
            let found_none = !drop_oldest && rows == counters.rows;
            session.no_room = found_none.then(|| Box::new(NoRoom { from, next_seq, rows, until }));
        }
        Ok(suffices)
    }

    /// Counts messages that the session does not get, or not any more, because its queue is full.
    pub(super) fn count_dropped(&mut self, id: SessionId, messages: u64) {
        if let Some(counters) = self.sessions.counters_mut(id) {
            counters.dropped = counters.dropped.saturating_add(messages);
        }
    }

    /// A number from which on all rows were certainly not sent, and before which there is no such row.
    fn unsent_from(&mut self, id: SessionId) -> Result<QueueSeq, MachineError> {
        // Of a session whose node was lost the window counts, too, as long as it is not detached.
        let window_end = match self.sessions.get(id) {
            Some(session) if session.row.owner.is_some() => self.window_end(id)?,
            _ => QueueSeq(0),
        };
        let Some(session) = self.sessions.get(id) else { return Ok(window_end) };
        if is_seeded(SeededBug::SentRowDroppedByExpiry) {
            return Ok(session.counters.head);
        }
        let from = session.row.sent_until.max(window_end).max(session.counters.head);
        Ok(if session.gone.0 <= from && from < session.gone.1 { session.gone.1 } else { from })
    }

    /// Tells the node that has the session's connection not to send a row that is gone. At once: before any
    /// outcome of this entry, and so before anything that lets the row into the window.
    fn withdraw(&mut self, id: SessionId, row: &WindowRow, fx: &mut dyn EffectSink) {
        if row.position.index() == self.applied.index {
            // Nobody has heard of it yet.
            self.withdrawn.insert((id, row.seq));
            return;
        }
        let Some(session) = self.sessions.get(id) else { return };
        if let Some(owner) = self.open_owner(session.row.owner).filter(|owner| fx.wants(*owner)) {
            let from = SessionRef { session: id, epoch: session.row.epoch };
            fx.push(Effect::Withdraw { owner, from, seq: row.seq });
        }
    }
}
