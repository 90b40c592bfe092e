//! PUBLISH, the inbound half of QoS 2, and wills.

use crate::codec::Payload;
use crate::command::{Publish, QueueFullPolicy};
use crate::effect::{EffectSink, Outcome};
use crate::ids::{ClusterTime, PacketId, Position, QoS, SessionId};
use crate::message::Message;
use crate::rows::key::{self, RowKind};
use crate::rows::value::{NumberRow, Value as _, WillRow};
use crate::rows::{RowRead as _, RowStore};

use super::queue::{Addressed, Outgoing};
use super::{Machine, MachineError};

/// Whether a message can be refused for want of room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
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
        if let Some((id, packet_id)) = inbound
            && self.sessions.get(id).is_some_and(|s| s.inbound.contains(&packet_id))
        {
            return Ok(Outcome::AlreadyRecorded);
        }
        let message = Message {
            position,
            topic: publish.topic.clone(),
            qos: publish.qos,
            retain: publish.retain,
            published_at: self.applied.time,
            expires_at: publish.expiry_s.map(|s| self.applied.time.plus_secs(s)),
            properties: publish.properties.clone(),
            payload: publish.payload.clone(),
        };
        let publisher = publish.from.map(|from| from.session);
        let Some(matched) = self.spread(message, publisher, Refusal::Possible, fx)? else {
            // Nothing was written; in particular no packet identifier was recorded.
            return Ok(Outcome::QueueFull);
        };
        if let Some((id, packet_id)) = inbound {
            // The message and the identifier are one commit: before PUBREC, both or neither.
            self.rows.put(key::inbound(id, packet_id).into(), NumberRow(position.as_u64()).to_bytes()?);
            if let Some(session) = self.sessions.get_mut(id) {
                session.inbound.insert(packet_id);
            }
        }
        Ok(Outcome::Published { position, matched })
    }

    /// PUBREL.
    pub(super) fn release(&mut self, id: SessionId, packet_id: PacketId) -> Result<Outcome, MachineError> {
        let known = self.sessions.get_mut(id).is_some_and(|s| s.inbound.remove(&packet_id));
        if known {
            self.rows.delete(key::inbound(id, packet_id).into());
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
        self.forget_will(id, due);
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
    fn spread(
        &mut self,
        message: Message,
        publisher: Option<SessionId>,
        refusal: Refusal,
        fx: &mut dyn EffectSink,
    ) -> Result<Option<bool>, MachineError> {
        let outgoing = Outgoing::new(message)?;
        let message = outgoing.message.clone();
        let found = self.trie.matches(&message.topic, publisher);
        let mut matched = false;
        let mut queued = Vec::new();
        let mut direct = Vec::new();
        for found in found {
            let now = self.applied.time;
            let id = found.session;
            // First: a session that ended with its lost connection is nobody's recipient and refuses nothing.
            self.detach_orphan(id)?;
            let Some(session) = self.sessions.get(id).filter(|s| s.is_live(now)) else { continue };
            matched = true;
            let to = Addressed {
                session: id,
                qos: found.qos.min(message.qos),
                retain: found.retain_as_published && message.retain,
                identifiers: found.identifiers.into(),
            };
            if session.row.durable && to.qos > QoS::AtMostOnce {
                queued.push(to);
            } else if session.row.owner.is_some() {
                direct.push(to);
            }
        }
        let drop_oldest = self.settings.queue_full_policy == QueueFullPolicy::DropOldest;
        let mut full = Vec::new();
        for to in &queued {
            if !self.make_room(to.session, outgoing.charge(), drop_oldest)? {
                if refusal == Refusal::Possible && !drop_oldest {
                    return Ok(None);
                }
                full.push(to.session);
            }
        }
        if !full.is_empty() {
            for id in &full {
                if let Some(counters) = self.sessions.counters_mut(*id) {
                    counters.dropped += 1;
                }
            }
            queued.retain(|to| !full.contains(&to.session));
        }
        let recipients: Vec<_> = queued.iter().chain(&direct).map(|to| to.session).collect();
        self.bring_retained_first(&recipients, &message, fx)?;
        if message.retain {
            self.retain(&message, &outgoing.row)?;
        }
        self.enqueue(&outgoing, &queued, fx)?;
        for to in &direct {
            self.deliver(to, None, &message, fx);
        }
        Ok(Some(matched))
    }

    /// A copy of a retained message for one session; it gets a position of its own, because the original
    /// may be settled and gone.
    pub(super) fn copy_for(
        &mut self,
        retained: Message,
        to: &Addressed,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let Some(session) = self.sessions.get(to.session) else { return Ok(()) };
        let durable = session.row.durable;
        let copy = Message { position: self.own_position(), payload: Payload(retained.payload.0.clone()), ..retained };
        let outgoing = Outgoing::new(copy)?;
        if durable && to.qos > QoS::AtMostOnce {
            let drop_oldest = self.settings.queue_full_policy == QueueFullPolicy::DropOldest;
            if self.make_room(to.session, outgoing.charge(), drop_oldest)? {
                self.enqueue(&outgoing, std::slice::from_ref(to), fx)?;
            } else if let Some(counters) = self.sessions.counters_mut(to.session) {
                counters.dropped += 1;
            }
        } else {
            self.deliver(to, None, &outgoing.message, fx);
        }
        Ok(())
    }
}
