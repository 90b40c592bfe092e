//! PUBLISH, the inbound half of QoS 2, and wills.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::command::{Publish, QueueFullPolicy};
use crate::delayed;
use crate::effect::{EffectSink, Outcome};
use crate::idempotency;
use crate::ids::{ClusterTime, PacketId, Position, QoS, SessionId};
use crate::message::Message;
use crate::rows::key::{self, RowKind};
use crate::rows::value::{NumberRow, Value as _, WillRow, shared_identifiers};
use crate::rows::{RowRead as _, RowStore};
use crate::seeded_bug::{SeededBug, apply_time, is_seeded};

use super::queue::{Addressed, Outgoing, Reserved};
use super::{Machine, MachineError};

/// PUBACK and PUBREC reason code: the PUBLISH is valid but the receiver is not willing to accept it.
const NOT_ACCEPTED: u8 = 0x83;
/// PUBACK and PUBREC reason code: Topic Name invalid.
const TOPIC_NAME_INVALID: u8 = 0x90;

/// Whether a message can be refused for want of room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A publisher hears of it.
    Possible,
    /// Nobody would: the full session's copy is dropped and counted.
    Impossible,
}

impl<S: RowStore> Machine<S> {
    pub(super) fn publish(
        &mut self,
        position: Position,
        publish: &Publish,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        let inbound = match (publish.qos, publish.from, publish.packet_id) {
            (QoS::ExactlyOnce, Some(from), Some(packet_id)) => Some((from.session, packet_id)),
            _ => None,
        };
        let is_recorded = inbound
            .is_some_and(|(id, packet_id)| self.sessions.get(id).is_some_and(|s| s.inbound.contains(&packet_id)));
        let named = match idempotency::key_of(publish.properties.as_deref()) {
            Ok(Some(key)) => self.named(publish.from, key)?,
            Err(_) if !is_recorded => return Ok(Outcome::Refused(NOT_ACCEPTED)),
            Ok(None) | Err(_) => None,
        };
        if let Some(first) = named.as_ref().and_then(|named| self.first_position(named)) {
            // Its packet identifier is one of its own, and waits for its PUBREL.
            if let Some((id, packet_id)) = inbound.filter(|_| !is_recorded) {
                self.record_inbound(id, packet_id, position)?;
            }
            return Ok(Outcome::Repeated { position: first });
        }
        if is_recorded {
            return Ok(Outcome::AlreadyRecorded);
        }
        let outcome = match delayed::split(&publish.topic) {
            None => self.publish_now(position, publish, fx)?,
            Some(Ok(delayed)) => self.delay(position, publish, delayed)?,
            Some(Err(_)) => Outcome::Refused(TOPIC_NAME_INVALID),
        };
        if !matches!(outcome, Outcome::Published { .. }) {
            // Nothing was written; in particular neither a packet identifier nor an idempotency key was recorded.
            return Ok(outcome);
        }
        if let Some((id, packet_id)) = inbound {
            self.record_inbound(id, packet_id, position)?;
        }
        if let Some(named) = named {
            self.remember(named, position)?;
        }
        Ok(outcome)
    }

    fn publish_now(
        &mut self,
        position: Position,
        publish: &Publish,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        let now = apply_time(self.applied.time);
        let message = Message {
            position,
            topic: publish.topic.clone(),
            qos: publish.qos,
            retain: publish.retain,
            published_at: now,
            expires_at: publish.expiry_s.map(|s| now.plus_secs(s)),
            properties: publish.properties.clone(),
            payload: publish.payload.clone(),
        };
        let publisher = publish.from.map(|from| from.session);
        let matched = self.spread(message, publisher, Refusal::Possible, fx)?;
        Ok(matched.map_or(Outcome::QueueFull, |matched| Outcome::Published { position, matched }))
    }

    /// The message and its identifier are one commit: before PUBREC, both or neither.
    fn record_inbound(&mut self, id: SessionId, packet_id: PacketId, position: Position) -> Result<(), MachineError> {
        if !is_seeded(SeededBug::InboundQos2NotPersisted) {
            self.rows.put(key::inbound(id, packet_id), NumberRow(position.as_u64()).to_bytes()?);
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.inbound.insert(packet_id);
        }
        Ok(())
    }

    /// PUBREL.
    pub(super) fn release(&mut self, id: SessionId, packet_id: PacketId) -> Result<Outcome, MachineError> {
        let known = self.sessions.get_mut(id).is_some_and(|s| s.inbound.remove(&packet_id));
        if known {
            self.rows.delete(key::inbound(id, packet_id));
        }
        Ok(Outcome::Released { known })
    }

    /// Publishes a session's will and forgets it.
    pub(super) fn publish_will(
        &mut self,
        id: SessionId,
        due: Option<ClusterTime>,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let key = key::of_session(RowKind::Will, id);
        let bytes = self.rows.get(key.as_bytes())?;
        if due.is_none() || !is_seeded(SeededBug::WillByTwoNodes) {
            self.forget_will(id, due);
        }
        let Some(bytes) = bytes else { return Ok(()) };
        let will = WillRow::read(key.as_bytes(), &bytes)?.will;
        let message = Message {
            position: self.own_position(),
            topic: will.topic,
            qos: will.qos,
            retain: will.retain,
            published_at: self.applied.time,
            expires_at: will.expiry_s.map(|s| self.applied.time.plus_secs(s)),
            properties: will.properties,
            payload: will.payload,
        };
        self.spread(message, Some(id), Refusal::Impossible, fx)?;
        Ok(())
    }

    /// Gives `message` to all whose subscriptions match, and to the retained messages when it says so. `None`
    /// when a full queue refused it, before anything was written; else whether a subscription matched.
    pub(super) fn spread(
        &mut self,
        message: Message,
        publisher: Option<SessionId>,
        refusal: Refusal,
        fx: &mut dyn EffectSink,
    ) -> Result<Option<bool>, MachineError> {
        let message = Arc::new(message);
        let mut matched = false;
        let mut queued = Vec::new();
        let mut direct = Vec::new();
        let found = self.trie.matches(&message.topic, publisher);
        for found in found.sessions {
            let Some(session) = self.sessions.get(found.session).filter(|s| self.lives(s)) else { continue };
            matched = true;
            let to = Addressed {
                session: found.session,
                qos: found.qos.min(message.qos),
                retain: found.retain_as_published && message.retain,
                identifiers: shared_identifiers(found.identifiers.into_iter()),
                given: None,
            };
            if session.row.durable && to.qos > QoS::AtMostOnce {
                queued.push(to);
            } else if self.open_owner(session.row.owner).is_some() {
                direct.push(to);
            }
        }
        let mut plan = self.plan_shares(&found.shares, &message, &queued);
        matched |= plan.matched;
        // Encoded only when a row needs it: most messages on most replicas go nowhere.
        let is_kept = !queued.is_empty() || !plan.given.is_empty() || !plan.waits.is_empty() || message.retain;
        let outgoing = is_kept.then(|| Outgoing::new(message.clone())).transpose()?;
        let charge = outgoing.as_ref().map_or(0, Outgoing::charge);
        let drop_oldest = self.settings.queue_full_policy == QueueFullPolicy::DropOldest;
        let mut full = BTreeSet::new();
        for to in &queued {
            if !self.make_room(to.session, charge.into(), fx)? {
                if refusal == Refusal::Possible && !drop_oldest {
                    return Ok(None);
                }
                full.insert(to.session);
            }
        }
        let mut full_shares = BTreeSet::new();
        for share in &plan.waits {
            if !self.make_share_room(*share, charge.into())? {
                if refusal == Refusal::Possible && !drop_oldest {
                    return Ok(None);
                }
                full_shares.insert(*share);
            }
        }
        for id in &full {
            self.count_dropped(*id, 1);
        }
        for share in &full_shares {
            self.count_share_dropped(*share, 1);
        }
        plan.waits.retain(|share| !full_shares.contains(share));
        if !full.is_empty() {
            queued.retain(|to| !full.contains(&to.session));
        }
        self.bring_retained_first(&direct, Reserved { queued: &queued, charge }, &message, fx)?;
        if let Some(outgoing) = &outgoing {
            if message.retain {
                self.retain(&message, &outgoing.row);
            }
            queued.append(&mut plan.given);
            self.enqueue(outgoing, &queued, &plan.waits, fx)?;
        }
        self.take_turns(&plan);
        for to in direct.iter().chain(&plan.direct) {
            self.deliver(to, None, &message, fx);
        }
        Ok(Some(matched))
    }

    /// One copy of a retained message for all of `recipients`, who stand in order of session. It gets a position of
    /// its own, because the original may be settled and gone.
    pub(super) fn copy_for(
        &mut self,
        retained: &Message,
        recipients: Vec<Addressed>,
        reserved: Reserved<'_>,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let (queued, direct): (Vec<_>, Vec<_>) = recipients
            .into_iter()
            .filter(|to| self.sessions.get(to.session).is_some_and(|s| self.lives(s)))
            .partition(|to| to.qos > QoS::AtMostOnce && self.sessions.get(to.session).is_some_and(|s| s.row.durable));
        if self.numbers_left() == 0 {
            for to in &queued {
                self.count_dropped(to.session, 1);
            }
            return Ok(());
        }
        let message = Arc::new(Message { position: self.own_position(), ..retained.clone() });
        if !queued.is_empty() {
            let outgoing = Outgoing::new(message.clone())?;
            let mut kept: Vec<Addressed> = Vec::with_capacity(queued.len());
            let mut bytes = 0;
            for to in queued {
                if kept.last().is_none_or(|last| last.session != to.session) {
                    bytes = reserved.of(to.session);
                }
                if self.make_room(to.session, bytes + u64::from(outgoing.charge()), fx)? {
                    bytes += u64::from(outgoing.charge());
                    kept.push(to);
                } else {
                    self.count_dropped(to.session, 1);
                }
            }
            self.enqueue(&outgoing, &kept, &[], fx)?;
        }
        for to in &direct {
            self.deliver(to, None, &message, fx);
        }
        Ok(())
    }
}
