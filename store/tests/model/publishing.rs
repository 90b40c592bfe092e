//! Who gets a message, and what happens when a queue has no room for it.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_store::codec::{self, Payload};
use quorate_store::command::QueueFullPolicy;
use quorate_store::ids::{ClusterTime, Position, QoS, SessionId};
use quorate_store::message::Message;
use quorate_store::topic::TopicName;

use super::matching::matches;
use super::shares::of_one_session;
use super::state::{Msg, Row, Session, Sub};
use super::{Model, Sent};

/// Rows that may make room for one message.
const LOOKED_AT: usize = 256;

/// How one session gets a message: once, at the highest QoS of the subscriptions that match [MQTT-3.3.4-2].
struct Copy {
    session: SessionId,
    qos: QoS,
    retain: Option<bool>,
    identifiers: BTreeSet<u32>,
}

impl Model {
    fn copies(&self, msg: &Msg, publisher: Option<SessionId>) -> Vec<Copy> {
        let mut copies = Vec::new();
        for session in self.sessions.values() {
            let subs: Vec<&Sub> = session
                .subs
                .iter()
                .filter(|(filter, sub)| {
                    of_one_session(filter).is_some_and(|f| matches(f, &msg.topic))
                        && !(sub.options.no_local && publisher == Some(session.id))
                })
                .map(|(_, sub)| sub)
                .collect();
            let Some(granted) = subs.iter().map(|sub| sub.options.qos).max() else { continue };
            let as_published: BTreeSet<bool> = subs.iter().map(|sub| sub.options.retain_as_published).collect();
            let retain = match (msg.retain, as_published.len()) {
                (false, _) => Some(false),
                (true, 1) => as_published.first().copied(),
                (true, _) => None,
            };
            copies.push(Copy {
                session: session.id,
                qos: granted.min(msg.qos),
                retain,
                identifiers: subs.iter().filter_map(|sub| sub.identifier).collect(),
            });
        }
        copies
    }

    /// Whether nobody but the publisher's own No Local subscription matches: MQTT leaves open whether that
    /// counts as a matching subscriber.
    pub(super) fn only_no_local_matches(&self, topic: &str, publisher: Option<SessionId>) -> bool {
        let matching = |s: &Session, local: bool| {
            s.subs.iter().any(|(f, sub)| {
                of_one_session(f).is_some_and(|f| matches(f, topic))
                    && (sub.options.no_local && publisher == Some(s.id)) == local
            })
        };
        self.sessions.values().any(|s| matching(s, true)) && !self.sessions.values().any(|s| matching(s, false))
    }

    /// The sessions to which a QoS 0 message is routed, with the Subscription Identifiers.
    pub(super) fn qos0_routes(&self, topic: &str, publisher: Option<SessionId>) -> Vec<(&Session, BTreeSet<u32>)> {
        let msg = Msg {
            topic: topic.to_owned(),
            payload: Vec::new(),
            qos: QoS::AtMostOnce,
            retain: false,
            expires_at: None,
            position: None,
        };
        self.copies(&msg, publisher).into_iter().map(|c| (&self.sessions[&c.session], c.identifiers)).collect()
    }

    /// Version 1 of the formula: the message's row as encoded, and 64 bytes.
    fn charge_of(&self, msg: &Msg) -> u64 {
        if !self.charges {
            return 0;
        }
        let message = Message {
            // A position of the early log, whichever: all of them take the same room.
            position: msg.position.unwrap_or(Position::new(1, 0)),
            topic: TopicName::new(&msg.topic).unwrap(),
            qos: msg.qos,
            retain: msg.retain,
            published_at: ClusterTime(self.time),
            expires_at: msg.expires_at.map(ClusterTime),
            properties: None,
            payload: Payload(Bytes::from(msg.payload.clone())),
        };
        64 + codec::encode(&message).unwrap().len() as u64
    }

    /// Decided for all recipients before anything is written.
    pub(super) fn is_refused(&self, msg: &Msg, publisher: Option<SessionId>) -> bool {
        self.settings.policy == QueueFullPolicy::Reject
            && self.copies(msg, publisher).iter().any(|copy| {
                let session = &self.sessions[&copy.session];
                let charge = self.charge_of(msg);
                copy.qos > QoS::AtMostOnce
                    && session.durable
                    && session.bytes() + charge > self.settings.queue_bytes_max
            })
    }

    /// Retains `msg` if it says so and gives it to everybody who subscribed. Whether somebody did.
    pub(super) fn spread(&mut self, msg: &Msg, publisher: Option<SessionId>) -> bool {
        if msg.retain && msg.payload.is_empty() {
            self.retained.remove(&msg.topic);
        } else if msg.retain {
            self.retained.insert(msg.topic.clone(), msg.clone());
        }
        let copies = self.copies(msg, publisher);
        let matched = !copies.is_empty() | self.offer(msg);
        for copy in copies {
            self.give(copy, msg);
        }
        matched
    }

    /// Retained messages go to a new subscription [MQTT-3.3.1-9], RETAIN set [MQTT-3.3.1-8].
    pub(super) fn send_retained(&mut self, to: SessionId, filter: &str, sub: &Sub) {
        let found: Vec<Msg> = self.retained.values().filter(|m| matches(filter, &m.topic)).cloned().collect();
        for msg in found {
            let msg = Msg { position: None, ..msg };
            let qos = msg.qos.min(sub.options.qos);
            let copy = Copy { session: to, qos, retain: Some(true), identifiers: sub.identifier.into_iter().collect() };
            self.give(copy, &msg);
        }
    }

    fn give(&mut self, copy: Copy, msg: &Msg) {
        let charge = self.charge_of(msg);
        let max = self.settings.queue_bytes_max;
        let policy = self.settings.policy;
        let Copy { session, qos, retain, identifiers } = copy;
        let Some(session) = self.sessions.get_mut(&session) else { return };
        let mut seq = None;
        if qos > QoS::AtMostOnce && session.durable {
            let (has_room, gone) = session.make_room_for(charge, max, policy);
            session.dropped += gone.len() as u64;
            let (id, owner, reference) = (session.id, session.owner, session.reference());
            for (seq, row) in gone {
                if row.fresh {
                    // It comes and goes in one entry: nobody hears of it.
                    self.out.retain(|sent| sent.to.session != id || sent.seq != Some(seq));
                } else {
                    self.withdrawn.extend(owner.map(|owner| (owner, reference, seq)));
                }
            }
            if !has_room {
                session.dropped += 1;
                return;
            }
            seq = Some(session.tail);
            let row = Row {
                msg: msg.clone(),
                qos,
                retain,
                identifiers: identifiers.clone(),
                released: false,
                may_be_gone: false,
                fresh: true,
                charge,
                given: None,
                may_return: false,
            };
            session.rows.insert(session.tail, row);
            session.tail += 1;
        }
        if session.owner.is_some() {
            let to = session.reference();
            self.out.push(Sent { to, seq, qos, retain, identifiers, msg: msg.clone() });
        }
    }
}

impl Session {
    /// Whether there is room, where the policy is to drop after the oldest rows that were certainly not sent have
    /// gone. They go when that suffices; else only what is above the bound as it is.
    fn make_room_for(&mut self, charge: u64, max: u64, policy: QueueFullPolicy) -> (bool, Vec<(u64, Row)>) {
        let bytes = self.bytes();
        if bytes + charge <= max {
            return (true, Vec::new());
        }
        if charge > max || policy != QueueFullPolicy::DropOldest {
            return (false, Vec::new());
        }
        let unsent = self.maybe_sent_end().0;
        let oldest: Vec<(u64, u64)> =
            self.rows.range(unsent..).take(LOOKED_AT).map(|(seq, row)| (*seq, row.charge)).collect();
        let suffices = bytes + charge <= max + oldest.iter().map(|(_, charge)| charge).sum::<u64>();
        let wanted = if suffices { bytes + charge } else { bytes };
        let mut freed = 0;
        let mut gone = Vec::new();
        for (seq, charge) in oldest {
            if wanted <= max + freed {
                break;
            }
            freed += charge;
            gone.extend(self.rows.remove_entry(&seq));
        }
        (suffices, gone)
    }
}
