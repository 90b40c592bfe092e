//! What must hold after each entry and at the end of a history, whatever the model says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_store::effect::{Connected, Effect, Outcome};
use quorate_store::ids::{ClusterTime, Incarnation, Position, QoS};
use quorate_store::message::Message;
use quorate_store::rows::key::RowKind;

use super::compare::Verdict;
use super::driver::{Driver, FILTERS, TOPICS};
use super::ops::{Cmd, Who};
use super::shares::Seen;
use super::state::Session;
use crate::testkit::Happened;
use crate::testkit::commands::{payload, topic};

impl Driver {
    /// Counts how often a history comes to the places that it is made for.
    pub(super) fn note_what_was_reached(&mut self, happened: &Happened) {
        let mut reached: Vec<&'static str> = Vec::new();
        for outcome in happened.outcomes() {
            match outcome {
                Outcome::Connected(c) => reached.extend(self.kinds_of_resume(&c)),
                Outcome::ConnectExpired => reached.push("CONNECT too late"),
                Outcome::AlreadyRecorded => reached.push("QoS 2 repeated"),
                Outcome::Repeated { .. } => reached.push("key repeated"),
                Outcome::Refused(_) => reached.push("refused"),
                Outcome::Released { known: true } => reached.push("released"),
                Outcome::Fenced => reached.push("fenced"),
                Outcome::QueueFull => reached.push("queue full"),
                Outcome::Void => reached.push("void"),
                Outcome::StartOutdated(_) => reached.push("start outdated"),
                Outcome::Subscribed(granted) if granted.contains(&Err(0x97)) => reached.push("exclusive refused"),
                _ => {}
            }
        }
        for effect in &happened.0 {
            reached.push(match effect {
                Effect::Gap { .. } => "gap",
                Effect::Kick { .. } => "kick",
                Effect::Withdraw { .. } => "withdrawn",
                Effect::IncarnationClosed { .. } => "incarnation closed",
                Effect::Deliver { delivery, .. } if delivery.message.topic.as_str().starts_with("w/") => "will",
                Effect::Deliver { delivery, .. } if delivery.retain => "retained",
                Effect::Deliver { delivery, .. } if delivery.seq.is_none() => "sent without a row",
                Effect::Deliver { .. } => "sent from a row",
                _ => continue,
            });
        }
        if !self.model.later.is_empty() {
            reached.push("delayed");
        }
        reached.extend(&self.model.shares.reached);
        if happened.is_silent() {
            reached.push("ignored");
        }
        for place in reached {
            *self.reached.entry(place).or_default() += 1;
        }
    }

    fn kinds_of_resume(&self, c: &Connected) -> Vec<&'static str> {
        let rows = self.rig.queue(c.session.session);
        let holds = |dup: bool, released: bool| {
            let fits = |seq| (seq < c.sent_until) == dup && seq < c.queue_tail;
            rows.iter().any(|r| fits(r.seq) && r.released == released)
        };
        [
            (holds(true, true), "resumed with a PUBREL owed"),
            (holds(true, false), "resumed with rows to send again"),
            (holds(false, false), "resumed with rows to send first"),
            (!c.inbound_qos2.is_empty(), "resumed with inbound QoS 2"),
        ]
        .into_iter()
        .filter_map(|(holds, place)| holds.then_some(place))
        .collect()
    }

    /// A position names one message.
    pub(super) fn one_message_at_each_position(&mut self, happened: &Happened) -> Verdict {
        let mut seen: Vec<Arc<Message>> = Vec::new();
        for effect in &happened.0 {
            if let Effect::Deliver { delivery, .. } = effect {
                seen.push(delivery.message.clone());
            }
        }
        for session in self.model.sessions.values() {
            seen.extend(self.rig.queue(session.id).into_iter().map(|row| row.message));
        }
        for message in seen {
            let what = (message.topic.as_str().to_owned(), message.payload.to_vec());
            let first = self.positions.entry(message.position).or_insert_with(|| what.clone());
            if *first != what {
                return Err(format!("position {} names {first:?} and {what:?}", message.position));
            }
        }
        Ok(())
    }

    /// What has ended leaves nothing behind.
    pub(super) fn no_row_is_left_over(&self, seen: &Seen) -> Verdict {
        let mut kinds: BTreeMap<u8, usize> = BTreeMap::new();
        for (key, _) in self.rig.machine.store().iter() {
            *kinds.entry(key[2]).or_default() += 1;
        }
        let sessions = || self.model.sessions.values();
        let mut messages: BTreeSet<Position> =
            sessions().flat_map(|s| self.rig.queue(s.id).into_iter().map(|row| row.message.position)).collect();
        let shares = || self.model.shares.by_key.values().filter(|share| !share.is_over);
        messages.extend(shares().flat_map(|share| share.waiting.keys().copied()));
        let exclusive = |s: &Session| s.subs.keys().filter(|f| f.starts_with("$exclusive/")).count();
        let waiting: usize = shares().map(|share| share.waiting.len()).sum();
        if waiting != seen.waiting() {
            return Err(format!("{} messages wait in groups, expected {waiting}", seen.waiting()));
        }
        let want = [
            (RowKind::Share, shares().count()),
            (RowKind::ShareQueue, waiting),
            (RowKind::Exclusive, sessions().map(exclusive).sum()),
            (RowKind::Session, sessions().count()),
            (RowKind::Subscription, sessions().map(|s| s.subs.len()).sum()),
            (RowKind::Queue, sessions().map(|s| s.rows.len()).sum()),
            (RowKind::Message, messages.len()),
            (RowKind::Inbound, sessions().map(|s| s.inbound.len()).sum()),
            (RowKind::Will, sessions().filter(|s| s.will.is_some()).count()),
            (RowKind::Node, self.model.nodes.len()),
            (RowKind::Continuation, 0),
            (RowKind::ContinuationMark, 0),
            (RowKind::Idempotency, self.model.known.len()),
            (RowKind::IdempotencyOrder, self.model.known.len()),
            (RowKind::Delayed, self.model.later.len()),
        ];
        for (kind, want) in want {
            let got = kinds.get(&(kind as u8)).copied().unwrap_or(0);
            if got != want {
                return Err(format!("{got} rows of kind {kind:?}, expected {want}"));
            }
        }
        Ok(())
    }

    /// At the end: retained messages, QoS 0 routes, summaries, and whether ticks are asked for.
    pub(crate) fn check_rest(&mut self) -> Verdict {
        let machine = &self.rig.machine;
        if self.model.waits_for_time() && !machine.has_deadlines() {
            return Err("a deadline exists and the machine asks for no ticks".into());
        }
        let sessions: BTreeSet<_> = machine
            .sessions()
            .into_iter()
            .map(|s| (s.session, s.client_id, s.owner, s.expires_at.map(|t| t.0)))
            .collect();
        let want: BTreeSet<_> =
            self.model.sessions.values().map(|s| (s.id, s.client_id.clone(), s.owner, s.expires_at)).collect();
        if sessions != want {
            return Err(format!("sessions {sessions:?}, expected {want:?}"));
        }
        let up: Vec<_> = machine.nodes().into_iter().map(|n| (n.id, n.incarnation, n.up)).collect();
        let open = |i: Option<Incarnation>| i.is_some_and(|i| !self.model.lives[&i].closed);
        let want: Vec<_> = self.model.nodes.iter().map(|(id, n)| (*id, n.incarnation, open(n.incarnation))).collect();
        if up != want {
            return Err(format!("nodes {up:?}, expected {want:?}"));
        }
        let mut bytes: Vec<_> = machine.sessions().into_iter().map(|s| (s.session, s.queued, s.queued_bytes)).collect();
        if !self.model.charges {
            bytes.iter_mut().for_each(|(_, _, bytes)| *bytes = 0);
        }
        let want: Vec<_> = self.model.sessions.values().map(|s| (s.id, s.rows.len() as u64, s.bytes())).collect();
        if bytes != want {
            return Err(format!("queued {bytes:?}, expected {want:?}"));
        }
        self.check_qos0()?;
        // A new session that subscribes to everything is shown all that is retained.
        let node = 1 + self.model.next_node;
        self.join()?;
        let connect =
            Cmd::Connect { client: 99, clean: true, expiry_s: 100, receive_maximum: 10, will: None, late: false };
        self.batch(node, &[connect])?;
        let who = Who { pick: 0, stale: false };
        for f in ["#", "$s/#"] {
            let filter = FILTERS.iter().position(|other| *other == f).unwrap_or_default() as u8;
            self.batch(node, &[Cmd::Subscribe { who, filter, qos: 2, identifier: None, flags: 0 }])?;
        }
        Ok(())
    }

    fn check_qos0(&self) -> Verdict {
        for t in TOPICS.into_iter().chain(["w/c1", "nobody", "$s"]) {
            let message = Arc::new(Message {
                position: Position::ZERO,
                topic: topic(t),
                qos: QoS::AtMostOnce,
                retain: false,
                published_at: ClusterTime(0),
                expires_at: None,
                properties: None,
                payload: payload("q0"),
            });
            let publishers = self.model.sessions.keys().map(|id| Some(*id)).chain([None]);
            for publisher in publishers {
                let mut got = Vec::new();
                self.rig.machine.match_qos0(publisher, &topic(t), &message, &mut |owner, d| {
                    let ids: BTreeSet<u32> = d.identifiers.iter().copied().collect();
                    assert!(d.seq.is_none() && d.qos == QoS::AtMostOnce && !d.retain);
                    got.push((owner, d.to.session, d.to.epoch, ids));
                });
                let mut want = BTreeSet::new();
                for (session, ids) in self.model.qos0_routes(t, publisher) {
                    want.extend(session.owner.map(|owner| (owner, session.id, session.epoch, ids)));
                }
                for route in &want {
                    let Some(at) = got.iter().position(|found| found == route) else {
                        return Err(format!("QoS 0 on {t} goes to {got:?}, expected {want:?}"));
                    };
                    got.remove(at);
                }
                // What is left goes to one member of each group.
                let shares = self.model.qos0_members(t);
                let is_member = |session| shares.iter().any(|members| members.contains(session));
                if got.len() != shares.len() || !got.iter().all(|(_, session, ..)| is_member(session)) {
                    return Err(format!("QoS 0 on {t} goes to {got:?} of groups, expected one of each of {shares:?}"));
                }
            }
        }
        Ok(())
    }
}
