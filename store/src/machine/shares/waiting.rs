//! Messages that wait for a member with room, in the order of their positions: one that returns takes its old place.
//!
//! The bound of a session's queue and its policy hold for this queue, too. What returns from a member is never refused.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::command::QueueFullPolicy;
use crate::ids::{ClusterTime, Position, ShareId};
use crate::rows::key::{self, RowKind};
use crate::rows::share::WaitingRow;
use crate::rows::value::Value as _;
use crate::rows::{RowRead as _, RowStore, RowsError};

use super::super::{Machine, MachineError};

/// Rows looked at to make room for one message.
const ROOM_ROWS: usize = 256;
/// Rows read at once.
const LOAD_ROWS: usize = 64;
/// Rows held in memory.
const HELD_ROWS: usize = 1024;

/// The first rows of a queue, held in memory.
#[derive(Debug)]
pub(super) struct Front {
    rows: BTreeMap<Position, WaitingRow>,
    /// All rows below are here; `None` when all are.
    until: Option<Position>,
}

impl Front {
    pub(super) fn new(has_rows: bool) -> Self {
        Self { rows: BTreeMap::new(), until: has_rows.then_some(Position::ZERO) }
    }

    fn insert(&mut self, position: Position, row: WaitingRow) {
        if self.until.is_none_or(|until| position < until) {
            self.rows.insert(position, row);
            if self.rows.len() > HELD_ROWS
                && let Some((last, _)) = self.rows.pop_last()
            {
                self.until = Some(last);
            }
        }
    }

    /// There is no row before.
    fn start(&self) -> Position {
        let first = self.rows.keys().next().copied();
        first.or(self.until).unwrap_or(Position::ZERO)
    }

    fn first(&self) -> Option<(Position, WaitingRow)> {
        self.rows.first_key_value().map(|(position, row)| (*position, *row))
    }
}

impl<S: RowStore> Machine<S> {
    /// One message more waits. Its row is new, or comes back.
    pub(in crate::machine) fn push_waiting(
        &mut self,
        id: ShareId,
        position: Position,
        row: WaitingRow,
    ) -> Result<(), MachineError> {
        let Some(share) = self.shares.change(id) else { return Ok(()) };
        share.row.rows += 1;
        share.row.bytes += u64::from(row.charge);
        share.row.expiring += u64::from(row.expires_at.is_some());
        share.front.insert(position, row);
        share.no_room_before = None;
        let begins = share.row.rows == 1;
        self.rows.put(key::share_queue(id, position), row.to_bytes()?);
        if begins {
            self.note_waiting(id, true);
        }
        Ok(())
    }

    /// A message waits no more; what becomes of it is for the caller to say.
    pub(super) fn remove_waiting(&mut self, id: ShareId, position: Position, row: &WaitingRow) {
        self.rows.delete(key::share_queue(id, position));
        let Some(share) = self.shares.change(id) else { return };
        share.row.rows = share.row.rows.saturating_sub(1);
        share.row.bytes = share.row.bytes.saturating_sub(u64::from(row.charge));
        share.row.expiring = share.row.expiring.saturating_sub(u64::from(row.expires_at.is_some()));
        share.front.rows.remove(&position);
        share.no_room_before = None;
        if share.row.rows == 0 {
            share.front = Front::new(false);
            self.note_waiting(id, false);
        }
    }

    /// Tells all members that messages wait in a group, or none any more. Who has no room now comes to be looked at
    /// when that changes ([`super::Shares::note_room`]).
    fn note_waiting(&mut self, id: ShareId, do_wait: bool) {
        let Some(share) = self.shares.by_id.get(&id) else { return };
        for member in share.members.keys() {
            let Some(session) = self.sessions.get_mut(*member) else { continue };
            session.membership().note_waiting(id, do_wait);
            if do_wait && session.row.owner.is_some() && Self::share_room(session, 0) > 0 {
                self.shares.roomy.insert(*member);
            }
        }
    }

    /// The message that has waited longest.
    pub(super) fn first_waiting(&mut self, id: ShareId) -> Result<Option<(Position, WaitingRow)>, MachineError> {
        let Some(share) = self.shares.by_id.get(&id) else { return Ok(None) };
        let Some(from) = share.front.until.filter(|_| share.front.rows.is_empty()) else {
            return Ok(share.front.first());
        };
        let rows = self.read_waiting(id, from, LOAD_ROWS)?;
        let Some(share) = self.shares.by_id.get_mut(&id) else { return Ok(None) };
        share.front.until = match rows.last() {
            Some((last, _)) if rows.len() == LOAD_ROWS => Some(Position::from_u64(last.as_u64() + 1)),
            _ => None,
        };
        share.front.rows.extend(rows);
        Ok(share.front.first())
    }

    fn read_waiting(
        &self,
        id: ShareId,
        from: Position,
        most: usize,
    ) -> Result<Vec<(Position, WaitingRow)>, MachineError> {
        let mut rows = Vec::new();
        let mut failed = None;
        let end = key::of_position(RowKind::ShareQueue, id.0).end();
        self.rows.scan(key::share_queue(id, from).as_bytes(), &end, &mut |k, v| {
            let damaged = |reason| RowsError::Damaged { key: key::describe(k), reason };
            match (key::rest_u64(k, 8), WaitingRow::from_slice(v)) {
                (Some(position), Ok(row)) => rows.push((Position::from_u64(position), row)),
                (None, _) => failed = Some(damaged("short key".to_owned())),
                (_, Err(reason)) => failed = Some(damaged(reason)),
            }
            if failed.is_some() || rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        failed.map_or(Ok(rows), |e| Err(e.into()))
    }

    /// Whether the group's queue has room for `charge` bytes, after what has expired, and under `drop-oldest` the
    /// oldest, has made it.
    pub(in crate::machine) fn make_share_room(&mut self, id: ShareId, charge: u64) -> Result<bool, MachineError> {
        let (bytes_max, now) = (self.settings.queue_bytes_max, self.applied.time);
        let drop_oldest = self.settings.queue_full_policy == QueueFullPolicy::DropOldest;
        let Some(share) = self.shares.get(id) else { return Ok(false) };
        let bytes = share.row.bytes;
        let wanted = bytes.saturating_add(charge).saturating_sub(bytes_max);
        if wanted == 0 {
            return Ok(true);
        }
        if charge > bytes_max || (!drop_oldest && share.row.expiring == 0) {
            return Ok(false);
        }
        // Asked again with every message: that nothing can go is remembered while nothing has changed.
        if !drop_oldest && share.no_room_before.is_some_and(|at| now < at) {
            return Ok(false);
        }
        let from = share.front.start();
        let rows = self.read_waiting(id, from, ROOM_ROWS)?;
        let has_expired = |row: &WaitingRow| row.expires_at.is_some_and(|at| at <= now);
        let can_go = |row: &WaitingRow| drop_oldest || has_expired(row);
        let suffices = rows.iter().filter(|(_, r)| can_go(r)).map(|(_, r)| u64::from(r.charge)).sum::<u64>() >= wanted;
        // What is above a bound that was lowered goes in any case, see the queues of sessions.
        let mut surplus = if suffices { wanted } else { bytes.saturating_sub(bytes_max) };
        let mut went = 0_usize;
        for (position, row) in &rows {
            let expired = has_expired(row);
            let goes = expired || (drop_oldest && surplus > 0);
            if !goes {
                continue;
            }
            surplus = surplus.saturating_sub(row.charge.into());
            went += 1;
            self.remove_waiting(id, *position, row);
            self.release_message(*position, row.is_shared)?;
            if !expired {
                self.count_share_dropped(id, 1);
            }
        }
        if went == 0
            && let Some(share) = self.shares.by_id.get_mut(&id)
        {
            let soonest = rows.iter().filter_map(|(_, row)| row.expires_at).min();
            share.no_room_before = Some(soonest.unwrap_or(ClusterTime(u64::MAX)));
        }
        Ok(suffices)
    }

    /// Counts messages that no member gets because too many wait.
    pub(in crate::machine) fn count_share_dropped(&mut self, id: ShareId, messages: u64) {
        if let Some(share) = self.shares.change(id) {
            share.row.dropped = share.row.dropped.saturating_add(messages);
        }
    }
}
