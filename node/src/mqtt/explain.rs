//! Reason Strings: why a packet says no, in words, for whoever reads a client's log.
//!
//! One static text per reason and packet. It owns nothing and decides nothing: whether a text is sent depends on
//! what the client asked for [MQTT-3.1.2-29] and on its Maximum Packet Size, which [`super::conn`] looks after.

use super::packet::Outgoing;
use super::reason::Reason;

/// The Reason String of `packet`; none where there is nothing to explain.
#[must_use]
pub fn reason_string(packet: &Outgoing) -> Option<&'static str> {
    match packet {
        Outgoing::ConnAck(ack) => refusal(ack.reason),
        Outgoing::Disconnect(reason, _) => refusal(*reason),
        Outgoing::PubAck(_, reason) | Outgoing::PubRec(_, reason) => publish(*reason),
        Outgoing::SubAck(_, reasons) => reasons.iter().find_map(|reason| subscribe(*reason)),
        Outgoing::UnsubAck(_, reasons) => reasons.iter().find_map(|reason| unsubscribe(*reason)),
        Outgoing::Publish(_)
        | Outgoing::PubAckAt(..)
        | Outgoing::PubRecAt(..)
        | Outgoing::PubRel(..)
        | Outgoing::PubComp(..)
        | Outgoing::PingResp
        | Outgoing::Auth(..) => None,
    }
}

/// Whether a client that set Request Problem Information to 0 may be told all the same.
#[must_use]
pub const fn is_always_told(packet: &Outgoing) -> bool {
    matches!(packet, Outgoing::ConnAck(_) | Outgoing::Disconnect(..))
}

/// Of CONNACK and DISCONNECT.
const fn refusal(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::UNSUPPORTED_PROTOCOL_VERSION => "MQTT 3.1, 3.1.1 and 5.0 are spoken here",
        Reason::CLIENT_IDENTIFIER_NOT_VALID => "an empty Client Identifier needs Clean Start",
        Reason::NOT_AUTHORIZED => "this client may not do that here",
        Reason::SERVER_UNAVAILABLE => "no majority of the cluster answers: nothing can be committed now",
        Reason::SERVER_BUSY => "too much at the moment: come back later",
        Reason::SERVER_SHUTTING_DOWN => "this node stops",
        Reason::BAD_AUTHENTICATION_METHOD => "this Authentication Method is not offered",
        Reason::KEEP_ALIVE_TIMEOUT => "nothing came for one and a half times the keep alive",
        Reason::SESSION_TAKEN_OVER => "another connection uses this Client Identifier",
        Reason::TOPIC_NAME_INVALID => "the topic name is not accepted",
        Reason::RECEIVE_MAXIMUM_EXCEEDED => "more QoS 1 and 2 publishes than Receive Maximum are unanswered",
        Reason::TOPIC_ALIAS_INVALID => "the Topic Alias is 0 or above the maximum in CONNACK",
        Reason::PACKET_TOO_LARGE => "the packet is above the Maximum Packet Size in CONNACK",
        Reason::QUOTA_EXCEEDED => "more waits for this session than it may have waiting",
        Reason::ADMINISTRATIVE_ACTION => "an operator ended the session",
        Reason::PAYLOAD_FORMAT_INVALID => "the will's payload is not UTF-8, as its Payload Format Indicator says",
        Reason::RETAIN_NOT_SUPPORTED => "retained messages are switched off here",
        Reason::QOS_NOT_SUPPORTED => "the QoS is above the Maximum QoS in CONNACK",
        Reason::USE_ANOTHER_SERVER => "another node serves this client for now",
        Reason::SERVER_MOVED => "another node serves this client from now on",
        Reason::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED => "shared subscriptions are switched off here",
        Reason::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED => "Subscription Identifiers are switched off here",
        Reason::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED => "wildcard subscriptions are switched off here",
        _ => return None,
    })
}

/// Of PUBACK and PUBREC.
const fn publish(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NOT_AUTHORIZED => "this client may not publish to this topic",
        Reason::IMPLEMENTATION_SPECIFIC_ERROR => "the idempotency-key is empty, too long, or given twice differently",
        Reason::TOPIC_NAME_INVALID => "a delayed publish has the topic $delayed/SECONDS/TOPIC",
        Reason::QUOTA_EXCEEDED => "the queue of a subscriber or of delayed messages is full, or the delay too long",
        Reason::PAYLOAD_FORMAT_INVALID => "the payload is not UTF-8, as its Payload Format Indicator says",
        _ => return None,
    })
}

const fn subscribe(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NOT_AUTHORIZED => "this client may not subscribe to this filter",
        Reason::TOPIC_FILTER_INVALID => "not a topic filter, or one with more levels than are accepted",
        Reason::QUOTA_EXCEEDED => "too many filters in one packet, or subscriptions of one session",
        Reason::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED => "shared subscriptions are not offered here",
        _ => return None,
    })
}

const fn unsubscribe(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::TOPIC_FILTER_INVALID => "not a topic filter",
        Reason::IMPLEMENTATION_SPECIFIC_ERROR => "too many filters in one packet",
        _ => return None,
    })
}
