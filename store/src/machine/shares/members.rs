//! Members come and go, and give back what they have not settled.

use crate::command::ShareStrategy;
use crate::effect::Outcome;
use crate::ids::{Position, QoS, QueueSeq, SessionId, ShareId};
use crate::rows::key::{self, RowKind};
use crate::rows::share::{ShareRow, WaitingRow};
use crate::rows::value::{ShareStrategyRow, SubscriptionRow, Value as _};
use crate::rows::{RowRead as _, RowStore};
use crate::seeded_bug::{SeededBug, is_seeded};
use crate::topic::TopicFilter;

use super::super::continuations::{Continuation, ShareSweep};
use super::super::trie::Subscriber;
use super::super::window::WindowRow;
use super::super::{Machine, MachineError};
use super::{MEMBERS_MAX, Membership, SESSION_SHARES_MAX, STRATEGIES_MAX};

impl<S: RowStore> Machine<S> {
    /// Whether the session is a member of the group `whole`.
    pub(in crate::machine) fn is_member(&self, whole: &TopicFilter, id: SessionId) -> bool {
        let share = self.shares.by_filter.get(whole).and_then(|share| self.shares.get(*share));
        share.is_some_and(|share| share.members.contains_key(&id))
    }

    /// Makes the session a member of the group `whole`, or replaces its options. False at a limit.
    pub(in crate::machine) fn join_share(&mut self, whole: &TopicFilter, id: SessionId, row: SubscriptionRow) -> bool {
        let is_new = !self.is_member(whole, id);
        let known = self.shares.by_filter.get(whole).copied();
        let memberships =
            self.sessions.get(id).and_then(|s| s.membership.as_ref()).map_or(0, |membership| membership.shares.len());
        let members = known.and_then(|share| self.shares.get(share)).map_or(0, |share| share.members.len());
        if is_new && (memberships >= SESSION_SHARES_MAX || members >= MEMBERS_MAX) {
            return false;
        }
        let share = match known {
            Some(share) => share,
            None if self.numbers_left() == 0 => return false,
            None => {
                let share = ShareId(self.own_position());
                let filter = whole.as_str().to_owned();
                let row =
                    ShareRow { turn: SessionId(Position::ZERO), rows: 0, bytes: 0, dropped: 0, expiring: 0, filter };
                self.shares.add(share, row, &mut self.trie);
                share
            }
        };
        let Some(group) = self.shares.change(share) else { return false };
        group.members.insert(id, row);
        let do_wait = group.row.rows > 0;
        if let Some(session) = self.sessions.get_mut(id) {
            let membership = session.membership();
            membership.shares.insert(share);
            if do_wait {
                membership.note_waiting(share, true);
                self.shares.roomy.insert(id);
            }
        }
        true
    }

    /// Ends the membership in the group `whole`; true when there was one.
    pub(in crate::machine) fn leave_share_of(
        &mut self,
        whole: &TopicFilter,
        id: SessionId,
    ) -> Result<bool, MachineError> {
        match self.shares.by_filter.get(whole) {
            Some(share) => self.leave_share(*share, id),
            None => Ok(false),
        }
    }

    /// Ends a membership. A group without members is gone, and with it what waits; what is in flight stays with the
    /// sessions that have it.
    pub(in crate::machine) fn leave_share(&mut self, share: ShareId, id: SessionId) -> Result<bool, MachineError> {
        let Some(group) = self.shares.by_id.get_mut(&share) else { return Ok(false) };
        if group.members.remove(&id).is_none() {
            return Ok(false);
        }
        let is_empty = group.members.is_empty();
        if let Some(session) = self.sessions.get_mut(id) {
            let membership = session.membership();
            membership.shares.remove(&share);
            membership.note_waiting(share, false);
            session.forget_empty_membership();
        }
        if is_empty && let Some(group) = self.shares.by_id.remove(&share) {
            self.trie.remove(&group.filter, Subscriber::Share(share));
            if let Ok(whole) = TopicFilter::new(&group.row.filter) {
                self.shares.by_filter.remove(&whole);
            }
            self.rows.delete(key::of_position(RowKind::Share, share.0));
            if group.row.rows > 0 {
                self.put_continuation(share.0, Continuation::ShareSweep(ShareSweep::new(share)))?;
            }
        }
        Ok(true)
    }

    /// The connection of a session is over: what its groups gave it, and what was certainly not processed (QoS 1) or
    /// certainly not sent (QoS 2), goes back to them, unless they are gone. The rest ends with the session
    /// [MQTT-4.8.2-5].
    pub(in crate::machine) fn return_to_shares(&mut self, id: SessionId) -> Result<(), MachineError> {
        let Some(session) = self.sessions.get_mut(id) else { return Ok(()) };
        let window = session.window.take();
        let (head, sent_until) = (session.counters.head, session.row.sent_until);
        let Some(membership) = &session.membership else { return Ok(()) };
        if is_seeded(SeededBug::SharedMessageNotReturned) {
            return Ok(());
        }
        let mut head_went = false;
        for seq in membership.rows.iter().copied().collect::<Vec<QueueSeq>>() {
            let key = key::queue(id, seq);
            let row = match window.as_ref().and_then(|window| window.get(seq)) {
                Some(row) => Some(row),
                None => match self.rows.get(key.as_bytes())? {
                    Some(bytes) => Some(WindowRow::read(key.as_bytes(), &bytes)?),
                    None => None,
                },
            };
            let Some((row, given)) = row.and_then(|row| Some((row, row.given?))) else { continue };
            let may_be_sent = (row.released || row.seq < sent_until) && !is_seeded(SeededBug::SharedQos2Returned);
            if self.shares.get(given.share).is_none() || (row.qos == QoS::ExactlyOnce && may_be_sent) {
                continue;
            }
            self.rows.delete(key);
            self.uncount_queued(id, &row);
            head_went |= seq == head;
            let waiting = WaitingRow {
                qos: given.qos,
                retain: given.retain,
                is_shared: row.is_shared,
                charge: row.charge,
                expires_at: row.expires_at,
            };
            self.push_waiting(given.share, row.position, waiting)?;
        }
        if head_went {
            self.advance_head(id, head)?;
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.forget_empty_membership();
        }
        Ok(())
    }

    /// A session has ended: it leaves all its groups. How many there were.
    pub(in crate::machine) fn leave_all_shares(&mut self, id: SessionId) -> Result<usize, MachineError> {
        let shares: Vec<ShareId> = match self.sessions.get(id).and_then(|s| s.membership.as_ref()) {
            Some(membership) => membership.shares.iter().copied().collect(),
            None => return Ok(0),
        };
        for share in &shares {
            self.leave_share(*share, id)?;
        }
        Ok(shares.len())
    }

    /// Sets how members of `$share/{name}/{filter}` are chosen; it holds also while there is no such group.
    pub(in crate::machine) fn set_share_strategy(
        &mut self,
        name: &str,
        filter: &TopicFilter,
        strategy: ShareStrategy,
    ) -> Result<Outcome, MachineError> {
        let Ok(whole) = TopicFilter::shared(name, filter) else { return Ok(Outcome::Void) };
        let key = key::share_strategy(whole.as_str());
        if strategy == ShareStrategy::default() {
            self.shares.strategies.remove(&whole);
            self.rows.delete(key);
        } else {
            let is_new = !self.shares.strategies.contains_key(&whole);
            if is_new && self.shares.strategies.len() >= STRATEGIES_MAX {
                return Ok(Outcome::LimitReached);
            }
            self.shares.strategies.insert(whole.clone(), strategy);
            self.rows.put(key, ShareStrategyRow(strategy).to_bytes()?);
        }
        let share = self.shares.by_filter.get(&whole).copied();
        if let Some(share) = share.and_then(|share| self.shares.by_id.get_mut(&share)) {
            share.strategy = strategy;
        }
        Ok(Outcome::Done)
    }
}

impl super::super::state::Session {
    /// What it has to do with shared groups, to be changed.
    pub(in crate::machine) fn membership(&mut self) -> &mut Membership {
        self.membership.get_or_insert_default()
    }

    /// Most sessions have nothing to do with shared groups, and hold nothing for them.
    pub(in crate::machine) fn forget_empty_membership(&mut self) {
        if self.membership.as_ref().is_some_and(|membership| membership.is_empty()) {
            self.membership = None;
        }
    }
}
