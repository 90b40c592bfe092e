//! Waiting messages go to members that have room: at the end of every entry, a bounded number of them.
//!
//! Who has room and for whom something waits is a function of the rows, so what is left over needs no row of its own:
//! the next entry finds it again, and the leader ticks as long as there is some ([`Machine::has_continuations`]).

use crate::effect::EffectSink;
use crate::ids::{Position, QoS, SessionId, ShareId};
use crate::message::SharedMessage;
use crate::rows::key::{self, RowKind};
use crate::rows::share::WaitingRow;
use crate::rows::value::Given;
use crate::rows::{RowRead as _, RowStore};

use super::super::{Machine, MachineError};
use super::choose::{Asked, addressed};

impl<S: RowStore> Machine<S> {
    /// The group that has something for a session with room, if there is one.
    fn served_next(&self, id: SessionId) -> Option<ShareId> {
        let (session, _) = self.connected(id)?;
        let membership = session.membership.as_ref()?;
        if Self::share_room(session, 0) == 0 {
            return None;
        }
        membership.next_waiting(session.counters.turn)
    }

    /// Whether something waits for a member that could have it now.
    pub(in crate::machine) fn has_servable_shares(&self) -> bool {
        self.shares.roomy.iter().any(|id| self.served_next(*id).is_some())
    }

    /// Serves up to `budget` messages.
    pub(in crate::machine) fn serve_shares(
        &mut self,
        mut budget: usize,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        while budget > 0
            && let Some(id) = self.shares.roomy.first().copied()
        {
            let Some(share) = self.served_next(id) else {
                self.shares.roomy.remove(&id);
                continue;
            };
            budget -= 1;
            if let Some(counters) = self.sessions.counters_mut(id) {
                counters.turn = share;
            }
            if !self.serve_one(share, fx)? {
                // Not reached: the session itself is a member with room. It must not stop the others if it is.
                self.shares.roomy.remove(&id);
            }
        }
        Ok(())
    }

    /// Gives the first message that waits to a member.
    fn serve_one(&mut self, id: ShareId, fx: &mut dyn EffectSink) -> Result<bool, MachineError> {
        let Some((position, row)) = self.first_waiting(id)? else { return Ok(false) };
        if row.expires_at.is_some_and(|at| at <= self.applied.time) {
            self.remove_waiting(id, position, &row);
            self.release_message(position, row.is_shared)?;
            return Ok(true);
        }
        let key = key::of_position(RowKind::Message, position);
        let Some(message) = self.rows.message(key.as_bytes())? else { return Err(missing(&key).into()) };
        let Some(share) = self.shares.get(id) else { return Ok(false) };
        // The publisher may be gone: who is near it does not count any more.
        let asked = Asked { topic: &message.topic, near: None, taken: &|_| 0, needs_room: true };
        let chosen = self.choose(share, &asked).and_then(|to| Some((to, *share.members.get(&to)?)));
        let Some((to, subscription)) = chosen else { return Ok(false) };
        self.give(id, position, row, (to, subscription), &message, fx)?;
        Ok(true)
    }

    fn give(
        &mut self,
        id: ShareId,
        position: Position,
        row: WaitingRow,
        (to, subscription): (SessionId, crate::rows::value::SubscriptionRow),
        message: &SharedMessage,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        self.remove_waiting(id, position, &row);
        if let Some(share) = self.shares.change(id) {
            share.row.turn = to;
        }
        let to = addressed(to, subscription, Given { share: id, qos: row.qos, retain: row.retain });
        if to.qos == QoS::AtMostOnce {
            self.release_message(position, row.is_shared)?;
            self.deliver(&to, None, message, fx);
            return Ok(());
        }
        self.append_queued(&to, message, row.charge, row.is_shared, fx)
    }
}

fn missing(key: &key::Key) -> crate::rows::RowsError {
    crate::rows::RowsError::Damaged {
        key: key::describe(key.as_bytes()),
        reason: "a shared group's queue points to a message that is not there".to_owned(),
    }
}
