//! Short ways to write commands.

use bytes::Bytes;
use quorate_store::codec::Payload;
use quorate_store::command::{Ack, AckKind, Close, Command, Connect, Publish, Settle, Subscribe};
use quorate_store::command::{SessionRef, SubscribeOptions, Will};
use quorate_store::effect::{Granted, Outcome};
use quorate_store::ids::{ClusterTime, PacketId, Position, QoS, QueueSeq};
use quorate_store::message::MessageProperties;
use quorate_store::rows::QueuedRow;
use quorate_store::topic::{TopicFilter, TopicName};

pub(crate) fn topic(text: &str) -> TopicName {
    TopicName::new(text).unwrap()
}

pub(crate) fn filter(text: &str) -> TopicFilter {
    TopicFilter::new(text).unwrap()
}

pub(crate) fn payload(text: &str) -> Payload {
    Payload(Bytes::copy_from_slice(text.as_bytes()))
}

pub(crate) fn qos(n: u8) -> QoS {
    QoS::from_u8(n).unwrap()
}

pub(crate) fn packet_id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

/// A durable session of an hour, without a will, at a Receive Maximum of 10.
pub(crate) fn connect(client_id: &str) -> Connect {
    Connect {
        client_id: client_id.to_owned(),
        clean_start: false,
        expiry_s: 3600,
        receive_maximum: 10,
        will: None,
        deadline: ClusterTime(u64::MAX),
        user: None,
    }
}

/// A session that ends with its connection.
pub(crate) fn transient(client_id: &str) -> Connect {
    Connect { expiry_s: 0, clean_start: true, ..connect(client_id) }
}

/// A will at QoS 1.
pub(crate) fn will(to: &str, text: &str, delay_s: u32) -> Will {
    Will {
        delay_s,
        topic: topic(to),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: None,
        expiry_s: None,
        payload: payload(text),
    }
}

pub(crate) fn publish(from: impl Into<Option<SessionRef>>, q: u8, to: &str, text: &str) -> Publish {
    Publish {
        from: from.into(),
        packet_id: None,
        qos: qos(q),
        retain: false,
        topic: topic(to),
        properties: None,
        expiry_s: None,
        payload: payload(text),
    }
}

/// QoS 2 with a packet identifier.
pub(crate) fn publish2(from: SessionRef, id: u16, to: &str, text: &str) -> Publish {
    Publish { packet_id: Some(packet_id(id)), ..publish(from, 2, to, text) }
}

pub(crate) fn retain(from: impl Into<Option<SessionRef>>, to: &str, text: &str) -> Publish {
    Publish { retain: true, ..publish(from, 1, to, text) }
}

/// With an idempotency key.
pub(crate) fn keyed(key: &str, publish: Publish) -> Publish {
    let user = vec![("idempotency-key".to_owned(), key.to_owned())];
    Publish { properties: Some(Box::new(MessageProperties { user, ..Default::default() })), ..publish }
}

pub(crate) fn options(q: u8) -> SubscribeOptions {
    SubscribeOptions { qos: qos(q), no_local: false, retain_as_published: false, retain_handling: 0 }
}

pub(crate) fn subscribe(from: SessionRef, q: u8, to: &str) -> Command {
    Command::Subscribe(Subscribe { from, identifier: None, filters: vec![(filter(to), options(q))] })
}

pub(crate) fn unsubscribe(from: SessionRef, to: &str) -> Command {
    Command::Unsubscribe { from, filters: vec![filter(to)] }
}

pub(crate) fn release(from: SessionRef, id: u16) -> Command {
    Command::Release { from, packet_id: packet_id(id) }
}

pub(crate) fn ack(seq: u64, position: Position, kind: AckKind) -> Ack {
    Ack { seq: QueueSeq(seq), position, kind }
}

/// One acknowledgement of each of `rows`.
pub(crate) fn settle<'a>(from: SessionRef, kind: AckKind, rows: impl IntoIterator<Item = &'a QueuedRow>) -> Command {
    let acks = rows.into_iter().map(|row| Ack { seq: row.seq, position: row.message.position, kind }).collect();
    Command::Settle(Settle { from, acks })
}

/// The network broke; the node knows what it sent.
pub(crate) fn close(from: SessionRef, sent_until: u64) -> Close {
    Close { from, drop_will: false, expiry_s: None, sent_until: QueueSeq(sent_until) }
}

/// DISCONNECT 0x00.
pub(crate) fn disconnect(from: SessionRef, sent_until: u64) -> Close {
    Close { drop_will: true, ..close(from, sent_until) }
}

/// The answer to a SUBSCRIBE of one filter that the session did not have.
pub(crate) fn granted_new(q: u8) -> Outcome {
    Outcome::Subscribed(vec![Ok(Granted { qos: qos(q), is_new: true })])
}
