//! What a PUBLISH asks of the log beside being delivered: to be published once (an idempotency key), or later
//! (`$delayed/`). What is asked in a form that is none is refused here, before anything is proposed; whether it can be
//! had, the log says.

use quorate_store::ids::Position;
use quorate_store::message::MessageProperties;
use quorate_store::topic::TopicName;
use quorate_store::{delayed, idempotency};

use super::Session;
use crate::mqtt::packet::Outgoing;
use crate::mqtt::reason::Reason;
use crate::mqtt::wire;

/// What one PUBLISH asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wishes {
    /// It has an idempotency key.
    pub(super) has_key: bool,
    /// It is published later.
    pub(super) is_delayed: bool,
}

impl Wishes {
    /// Of a PUBLISH; the reason when what it asks for is none.
    pub(super) fn of(topic: &TopicName, properties: Option<&MessageProperties>) -> Result<Self, Reason> {
        let is_delayed = match delayed::split(topic) {
            None => false,
            Some(Ok(_)) => true,
            Some(Err(error)) => {
                tracing::debug!(%topic, %error, "a delayed publish is refused");
                return Err(Reason::TOPIC_NAME_INVALID);
            }
        };
        match idempotency::key_of(properties) {
            Ok(key) => Ok(Self { has_key: key.is_some(), is_delayed }),
            Err(error) => {
                tracing::debug!(%topic, %error, "a publish is refused");
                // "The PUBLISH is valid but the receiver is not willing to accept it" (MQTT 5.0 §3.4.2.1).
                Err(Reason::IMPLEMENTATION_SPECIFIC_ERROR)
            }
        }
    }

    /// Whether it goes through the log at QoS 0, too.
    pub(super) fn need_the_log(self) -> bool {
        self.has_key || self.is_delayed
    }
}

impl Session {
    /// PUBACK or PUBREC of a PUBLISH with an idempotency key: it tells where the message stands, unless the client
    /// wants no user properties there [MQTT-3.1.2-29] or it would not fit [MQTT-3.4.2-3], [MQTT-3.5.2-3].
    pub(super) fn placed(&self, plain: Outgoing, position: Option<Position>) -> Outgoing {
        let Some(position) = position.filter(|_| self.version.is_v5() && self.wants_problems) else { return plain };
        let placed = match plain {
            Outgoing::PubAck(id, reason) => Outgoing::PubAckAt(id, reason, position),
            Outgoing::PubRec(id, reason) => Outgoing::PubRecAt(id, reason, position),
            other => return other,
        };
        if wire::encoded_len(self.version, &placed) <= self.packet_bytes_max { placed } else { plain }
    }
}
