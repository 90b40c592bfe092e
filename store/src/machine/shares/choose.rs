//! Which member gets a message.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::Xxh3;

use crate::command::ShareStrategy;
use crate::ids::{Incarnation, NodeId, Position, QoS, SessionId, ShareId};
use crate::message::Message;
use crate::rows::RowStore;
use crate::rows::value::{Given, SubscriptionRow, shared_identifiers};
use crate::topic::TopicName;

use super::super::Machine;
use super::super::queue::Addressed;
use super::super::state::Session;
use super::super::window::SPAN_MAX;
use super::{SHARED_INFLIGHT_MAX, Share};

/// Where one message goes in all groups whose filter matches, decided before anything is written.
#[derive(Default)]
pub(in crate::machine) struct Plan {
    /// Some member of some group lives.
    pub(in crate::machine) matched: bool,
    /// Rows of members.
    pub(in crate::machine) given: Vec<Addressed>,
    /// At QoS 0.
    pub(in crate::machine) direct: Vec<Addressed>,
    /// Groups in which it waits.
    pub(in crate::machine) waits: Vec<ShareId>,
    /// Who was served last, afterwards.
    turns: Vec<(ShareId, SessionId)>,
}

/// For whom a member is looked for.
pub(super) struct Asked<'a> {
    pub(super) topic: &'a TopicName,
    /// The publisher's node.
    pub(super) near: Option<NodeId>,
    /// Rows that this message adds to a session before it gets this one.
    pub(super) taken: &'a dyn Fn(SessionId) -> u64,
    /// At QoS 0 nothing waits, and nothing takes room.
    pub(super) needs_room: bool,
}

impl<S: RowStore> Machine<S> {
    /// The session, when it lives and is connected to a node that does.
    pub(super) fn connected(&self, id: SessionId) -> Option<(&Session, Incarnation)> {
        let session = self.sessions.get(id).filter(|s| self.lives(s))?;
        Some((session, self.open_owner(session.row.owner)?))
    }

    /// How many more rows of shared groups a connected session takes: those that its window lets it be sent now, in
    /// number and in span, so that none waits behind one that is not settled while another member has room.
    pub(super) fn share_room(session: &Session, taken: u64) -> u64 {
        let receive_maximum = u64::from(session.row.receive_maximum);
        let counters = &session.counters;
        let mut window = receive_maximum.saturating_sub(counters.rows.saturating_add(taken));
        if counters.rows > 0 {
            let end = counters.head.0.saturating_add(SPAN_MAX - 1);
            window = window.min(end.saturating_sub(counters.next_seq.0.saturating_add(taken)));
        }
        window.min(SHARED_INFLIGHT_MAX.saturating_sub(session.counters.shared.saturating_add(taken)))
    }

    /// The member that gets a message.
    pub(super) fn choose(&self, share: &Share, asked: &Asked<'_>) -> Option<SessionId> {
        let candidates = self.candidates(share.row.turn, share, asked);
        let most_room = |near_first: bool| {
            let is_near = |c: &Candidate| near_first && asked.near == c.node;
            let mut best: Option<Candidate> = None;
            for c in candidates.clone().filter(|c| c.room > 0 || !asked.needs_room) {
                // Of equals the one that comes first after the last.
                if best.is_none_or(|best| (is_near(&c), c.room) > (is_near(&best), best.room)) {
                    best = Some(c);
                    // None can be better: with members that are idle a group costs no more for being large.
                    if c.room >= SHARED_INFLIGHT_MAX && (is_near(&c) || !near_first) {
                        break;
                    }
                }
            }
            best.map(|c| c.session)
        };
        match share.strategy {
            ShareStrategy::MostRoom => most_room(false),
            ShareStrategy::RoundRobin => {
                candidates.clone().find(|c| c.room > 0 || !asked.needs_room).map(|c| c.session)
            }
            ShareStrategy::StickyTopic => {
                let favourite = candidates.clone().max_by_key(|c| (weight(asked.topic, c.session), c.session));
                let has_room = favourite.filter(|c| c.room > 0 || !asked.needs_room).map(|c| c.session);
                has_room.or_else(|| most_room(false))
            }
            ShareStrategy::Local => most_room(asked.near.is_some()),
        }
    }

    /// Connected members in turn, from the one after `last` on.
    fn candidates<'a>(
        &'a self,
        last: SessionId,
        share: &'a Share,
        asked: &'a Asked<'_>,
    ) -> impl Iterator<Item = Candidate> + Clone + 'a {
        let later = share.members.range((Bound::Excluded(last), Bound::Unbounded));
        let in_turn = later.chain(share.members.range(..=last));
        in_turn.filter_map(|(id, _)| {
            let (session, owner) = self.connected(*id)?;
            let room = Self::share_room(session, (asked.taken)(*id));
            let node = self.streams.get(&owner).map(|stream| stream.node);
            Some(Candidate { session: *id, room, node })
        })
    }

    /// Decides for `message`, which also goes to the sessions `queued`, who stand in order.
    pub(in crate::machine) fn plan_shares(&self, shares: &[ShareId], message: &Message, queued: &[Addressed]) -> Plan {
        let mut plan = Plan::default();
        let near = self.origin.and_then(|origin| self.streams.get(&origin)).map(|stream| stream.node);
        // Rows of this message, by session: a session may be a member of many of the groups.
        let mut given_to: BTreeMap<SessionId, u64> = BTreeMap::new();
        for id in shares {
            let Some(share) = self.shares.get(*id) else { continue };
            if !share.members.keys().any(|m| self.sessions.get(*m).is_some_and(|s| self.lives(s))) {
                continue;
            }
            plan.matched = true;
            let taken = |session: SessionId| {
                let own = queued.binary_search_by_key(&session, |to| to.session).is_ok();
                u64::from(own) + given_to.get(&session).copied().unwrap_or(0)
            };
            let needs_room = message.qos > QoS::AtMostOnce;
            let asked = Asked { topic: &message.topic, near, taken: &taken, needs_room };
            let must_wait = needs_room && share.row.rows > 0;
            let chosen = (!must_wait).then(|| self.choose(share, &asked)).flatten();
            let Some((to, subscription)) = chosen.and_then(|to| Some((to, share.members.get(&to)?))) else {
                if needs_room {
                    plan.waits.push(*id);
                }
                continue;
            };
            let given = Given { share: *id, qos: message.qos, retain: message.retain };
            let to = addressed(to, *subscription, given);
            plan.turns.push((*id, to.session));
            if to.qos == QoS::AtMostOnce {
                plan.direct.push(to);
            } else {
                *given_to.entry(to.session).or_default() += 1;
                plan.given.push(to);
            }
        }
        plan
    }

    /// The plan is carried out: who was served last.
    pub(in crate::machine) fn take_turns(&mut self, plan: &Plan) {
        for (share, session) in &plan.turns {
            if let Some(share) = self.shares.change(*share) {
                share.row.turn = *session;
            }
        }
    }

    /// The member that gets a QoS 0 message which goes past the log: decided here and now, for this one node.
    pub(in crate::machine) fn choose_qos0(
        &self,
        share: ShareId,
        publisher: Option<SessionId>,
        topic: &TopicName,
    ) -> Option<Addressed> {
        let share_row = self.shares.get(share)?;
        let owner = publisher.and_then(|p| self.sessions.get(p)).and_then(|s| s.row.owner);
        let near = owner.and_then(|owner| self.streams.get(&owner)).map(|stream| stream.node);
        let asked = Asked { topic, near, taken: &|_| 0, needs_room: false };
        let to = match share_row.strategy {
            ShareStrategy::StickyTopic => self.choose(share_row, &asked)?,
            strategy => {
                let last = SessionId(Position::from_u64(share_row.qos0_turn.load(Ordering::Relaxed)));
                let in_turn = || self.candidates(last, share_row, &asked);
                let is_near = |c: &Candidate| c.node.is_some() && c.node == near;
                let first_near = if strategy == ShareStrategy::Local { in_turn().find(is_near) } else { None };
                let next = first_near.or_else(|| in_turn().next())?.session;
                share_row.qos0_turn.store(next.0.as_u64(), Ordering::Relaxed);
                next
            }
        };
        let given = Given { share, qos: QoS::AtMostOnce, retain: false };
        Some(addressed(to, *share_row.members.get(&to)?, given))
    }
}

#[derive(Clone, Copy)]
struct Candidate {
    session: SessionId,
    room: u64,
    node: Option<NodeId>,
}

/// Rendezvous hashing: a member that comes or goes moves only the topics that are its own.
fn weight(topic: &TopicName, session: SessionId) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&session.0.as_u64().to_le_bytes());
    hash.update(topic.as_str().as_bytes());
    hash.digest()
}

/// How a member gets a message of its group.
pub(super) fn addressed(session: SessionId, subscription: SubscriptionRow, given: Given) -> Addressed {
    Addressed {
        session,
        qos: subscription.options.qos.min(given.qos),
        retain: subscription.options.retain_as_published && given.retain,
        identifiers: shared_identifiers(subscription.identifier.into_iter()),
        given: Some(given),
    }
}
