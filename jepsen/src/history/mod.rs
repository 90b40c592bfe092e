//! What clients saw: publishes as their publishers saw them, deliveries as subscribers saw them.
//!
//! A message is named by its publisher and a number that the publisher counts up from 0 and writes into the
//! payload, so nothing here depends on what the broker calls it.

pub mod event;
pub mod index;
pub mod read;
pub mod record;

use std::fmt;

use serde::{Deserialize, Serialize};

/// A message, as its publisher named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageName {
    /// Who sent it.
    pub publisher: u32,
    /// Which of its messages, from 0, in the order of sending.
    pub seq: u64,
}

impl fmt::Display for MessageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.publisher, self.seq)
    }
}

impl MessageName {
    /// The payload that carries it: `publisher/seq` and then `padding`.
    #[must_use]
    pub fn payload(self, padding: &str) -> Vec<u8> {
        format!("{self} {padding}").into_bytes()
    }

    /// From such a payload.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let (publisher, seq) = text.split(' ').next()?.split_once('/')?;
        Some(Self { publisher: publisher.parse().ok()?, seq: seq.parse().ok()? })
    }
}

/// One publish, as its publisher saw it in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Which.
    pub message: MessageName,
    /// 1 or 2.
    pub qos: u8,
    /// How often its bytes were handed to a connection: above 1 after a resend.
    pub times: u32,
    /// PUBACK or PUBREC with a reason code below 0x80 was seen.
    pub acknowledged: bool,
}

/// One delivery, as its subscriber saw it. For QoS 2 a subscriber writes down what its packet identifiers left
/// standing: a PUBLISH whose identifier is received and not yet released is no delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// To whom.
    pub subscriber: u32,
    /// On which of its connections, counted up.
    pub connection: u32,
    /// Which.
    pub message: MessageName,
    /// QoS of the delivery.
    pub qos: u8,
    /// DUP of the delivery.
    pub dup: bool,
    /// Packet identifier of the delivery.
    pub packet_id: u16,
}

/// Everything, deliveries of each subscriber in the order in which it saw them.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every publish of every publisher.
    pub sent: Vec<Sent>,
    /// Every delivery to every subscriber.
    pub delivered: Vec<Delivered>,
    /// Subscribers that must get everything: subscribed before the first publish, sessions never ended.
    pub subscribers: Vec<u32>,
}

impl History {
    /// Deliveries to one subscriber, in its order.
    pub fn to(&self, subscriber: u32) -> impl Iterator<Item = &Delivered> {
        self.delivered.iter().filter(move |d| d.subscriber == subscriber)
    }

    /// Every subscriber that saw anything or should have, in order.
    #[must_use]
    pub fn all_subscribers(&self) -> Vec<u32> {
        let all: std::collections::BTreeSet<u32> =
            self.subscribers.iter().copied().chain(self.delivered.iter().map(|d| d.subscriber)).collect();
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_carries_its_name() {
        let name = MessageName { publisher: 3, seq: 17 };
        assert_eq!(MessageName::parse(&name.payload("xxxx")), Some(name));
        assert_eq!(MessageName::parse(b"nothing"), None);
    }
}
