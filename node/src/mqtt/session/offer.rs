//! What this node does not take, by configuration or by nature: told in CONNACK, and refused here.
//!
//! Pure checks over the options, and the answers that follow: a PUBLISH of 5.0 is refused with a reason; one of 3.1.1
//! cannot be, and an acknowledgement would promise what was not done, so its connection is closed
//! [MQTT-3.3.5-2]. At QoS 0 it is dropped and counted.

use quorate_store::command::{SubscribeOptions, Will};
use quorate_store::delayed;
use quorate_store::ids::{PacketId, QoS};
use quorate_store::message::MessageProperties;
use quorate_store::topic::{TopicFilter, TopicName};

use super::{Ending, Output, Session};
use crate::mqtt::options::MqttOptions;
use crate::mqtt::packet::{Offered, Outgoing, Subscribe};
use crate::mqtt::reason::Reason;

/// What CONNACK says is offered.
pub(super) fn offered(options: &MqttOptions) -> Offered {
    Offered {
        qos_max: options.qos_max,
        retain: options.retain_available,
        wildcards: options.wildcard_available,
        identifiers: options.subscription_identifiers_available,
        shared: options.shared_available,
    }
}

/// Whether a topic is the server's own: no client publishes there, neither now nor later.
fn is_ours(topic: &TopicName) -> bool {
    delayed::target(topic).strip_prefix("$SYS").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn claims_utf8_wrongly(options: &MqttOptions, properties: Option<&MessageProperties>, payload: &[u8]) -> bool {
    options.payload_utf8_check
        && properties.is_some_and(|p| p.is_utf8 == Some(true))
        && std::str::from_utf8(payload).is_err()
}

impl Session {
    /// Why a CONNECT with this will is refused [MQTT-3.2.2-12], [MQTT-3.2.2-13].
    pub(super) fn will_refusal(&self, will: &Will) -> Option<Reason> {
        if let Some(reason) = self.not_offered(will.qos, will.retain) {
            Some(reason)
        } else if is_ours(&will.topic) {
            Some(Reason::NOT_AUTHORIZED)
        } else if claims_utf8_wrongly(&self.options, will.properties.as_deref(), &will.payload) {
            Some(Reason::PAYLOAD_FORMAT_INVALID)
        } else {
            None
        }
    }

    /// A QoS or RETAIN that CONNACK said is not offered: a protocol error.
    pub(super) fn not_offered(&self, qos: QoS, retain: bool) -> Option<Reason> {
        if qos > self.options.qos_max {
            Some(Reason::QOS_NOT_SUPPORTED)
        } else if retain && !self.options.retain_available {
            Some(Reason::RETAIN_NOT_SUPPORTED)
        } else {
            None
        }
    }

    /// Why a PUBLISH is refused without ending the connection of a client that can be told.
    pub(super) fn publish_refusal(
        &self,
        topic: &TopicName,
        properties: Option<&MessageProperties>,
        payload: &[u8],
    ) -> Option<Reason> {
        if is_ours(topic) {
            Some(Reason::NOT_AUTHORIZED)
        } else if claims_utf8_wrongly(&self.options, properties, payload) {
            Some(Reason::PAYLOAD_FORMAT_INVALID)
        } else {
            None
        }
    }

    /// Answers a PUBLISH that is not taken, in its turn. One of 3.1.1 cannot be refused, and an acknowledgement would
    /// promise what was not done: its connection is closed. At QoS 0 it is dropped and counted.
    pub(super) fn refuse_publish(&mut self, qos: QoS, id: Option<PacketId>, reason: Reason, out: &mut Output) {
        out.counts.refused += 1;
        match (qos, id) {
            (QoS::AtLeastOnce | QoS::ExactlyOnce, _) if !self.version.is_v5() => {
                self.end(Ending::Error(reason), out);
            }
            (QoS::AtLeastOnce, Some(id)) => self.in_turn(Outgoing::PubAck(id, reason), out),
            (QoS::ExactlyOnce, Some(id)) => self.in_turn(Outgoing::PubRec(id, reason), out),
            _ => {}
        }
    }

    /// Holds a SUBSCRIBE against what is offered. A QoS that is not is lowered [MQTT-3.2.2-10]; the rest ends the
    /// connection of a client that was told in CONNACK, and refuses the filter of one that was not.
    pub(super) fn hold_to_offer(&self, subscribe: &mut Subscribe) -> Result<(), Reason> {
        if subscribe.identifier.is_some() && !self.options.subscription_identifiers_available {
            return Err(Reason::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED);
        }
        for entry in &mut subscribe.filters {
            let Ok((filter, asked)) = entry else { continue };
            let refused = self.filter_refusal(filter);
            lower(asked, self.options.qos_max);
            match refused {
                Some(reason) if self.version.is_v5() => return Err(reason),
                Some(reason) => *entry = Err(reason),
                None => {}
            }
        }
        Ok(())
    }

    fn filter_refusal(&self, filter: &TopicFilter) -> Option<Reason> {
        if !self.options.shared_available && filter.as_str().starts_with("$share/") {
            Some(Reason::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
        } else if !self.options.wildcard_available && filter.has_wildcard() {
            Some(Reason::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED)
        } else {
            None
        }
    }
}

fn lower(asked: &mut SubscribeOptions, qos_max: QoS) {
    asked.qos = asked.qos.min(qos_max);
}
