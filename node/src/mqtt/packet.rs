//! One model of MQTT packets, whatever version is spoken: 3.1 and 3.1.1 are normalised to 5.0 here.
//!
//! What a client sends is [`Packet`], what it is sent is [`Outgoing`]. Both are plain data without a
//! reference to sockets or codecs; the session machine sees nothing else.

use std::fmt;
use std::sync::Arc;

use quorate_store::codec::Payload;
use quorate_store::command::{SubscribeOptions, Will};
use quorate_store::ids::{PacketId, Position, QoS};
use quorate_store::message::{MessageProperties, SharedMessage};
use quorate_store::topic::{TopicFilter, TopicName};

use super::reason::Reason;

/// Version of the protocol that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.1 (`MQIsdp`).
    V31,
    /// 3.1.1.
    V311,
    /// 5.0.
    V5,
}

impl Version {
    /// Whether reason codes and properties exist.
    #[must_use]
    pub const fn is_v5(self) -> bool {
        matches!(self, Self::V5)
    }
}

/// A packet from a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    /// CONNECT
    Connect(Box<Connect>),
    /// PUBLISH
    Publish(Publish),
    /// PUBACK
    PubAck {
        /// Of the acknowledged PUBLISH.
        id: PacketId,
        /// Whatever it says, the message is settled [MQTT-4.8.2-6].
        reason: Reason,
    },
    /// PUBREC
    PubRec {
        /// Of the PUBLISH.
        id: PacketId,
        /// 0x80 and above end the exchange.
        reason: Reason,
    },
    /// PUBREL
    PubRel {
        /// Of the exchange.
        id: PacketId,
    },
    /// PUBCOMP
    PubComp {
        /// Of the exchange.
        id: PacketId,
    },
    /// SUBSCRIBE
    Subscribe(Subscribe),
    /// UNSUBSCRIBE
    Unsubscribe {
        /// For UNSUBACK.
        id: PacketId,
        /// In order; a reason where the text is no topic filter.
        filters: Vec<Result<TopicFilter, Reason>>,
    },
    /// PINGREQ
    PingReq,
    /// DISCONNECT
    Disconnect {
        /// 0x00 drops the will.
        reason: Reason,
        /// Session Expiry Interval, when the packet changes it.
        expiry_s: Option<u32>,
    },
    /// AUTH
    Auth(Auth),
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Connect {
    /// As sent; empty asks for an assigned one.
    pub client_id: String,
    /// Clean Start, or Clean Session of 3.1.1.
    pub clean_start: bool,
    /// Keep Alive in seconds, 0 for none.
    pub keep_alive_s: u16,
    /// Session Expiry Interval; `None` for 3.1.1, which has none.
    pub expiry_s: Option<u32>,
    /// Receive Maximum; 65,535 when absent.
    pub receive_maximum: u16,
    /// Maximum Packet Size that the client accepts.
    pub packet_bytes_max: Option<u32>,
    /// Authentication Method and Data: it asks for enhanced authentication.
    pub auth: Option<Box<AuthData>>,
    /// Request Problem Information: Reason Strings and user properties on any packet, not only on CONNACK and DISCONNECT.
    pub wants_problems: bool,
    /// Topic Alias Maximum: aliases that the client takes.
    pub topic_alias_max: u16,
    /// Request Response Information.
    pub wants_response_information: bool,
    /// User Name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Will.
    pub will: Option<Will>,
}

/// Bytes that prove who somebody is: they reach no log line.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub bytes::Bytes);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Authentication Method and Authentication Data of CONNECT, AUTH and CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthData {
    /// Authentication Method.
    pub method: String,
    /// Authentication Data.
    pub data: Option<Secret>,
}

/// AUTH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// 0x00, 0x18 or 0x19.
    pub reason: Reason,
    /// `None` where the packet has no method.
    pub auth: Option<Box<AuthData>>,
}

/// PUBLISH on its way in.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// DUP. Only noted: what is new is decided by the log, not by this flag.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Packet identifier, with QoS 1 and 2.
    pub id: Option<PacketId>,
    /// Topic Name; `None` when only an alias stands for it.
    pub topic: Option<TopicName>,
    /// Topic Alias as sent.
    pub alias: Option<u16>,
    /// Message Expiry Interval in seconds.
    pub expiry_s: Option<u32>,
    /// The properties that travel with the message.
    pub properties: Option<Box<MessageProperties>>,
    /// The application's bytes, in a buffer of their own size.
    pub payload: Payload,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    /// For SUBACK.
    pub id: PacketId,
    /// Subscription Identifier.
    pub identifier: Option<u32>,
    /// In order; a reason where the text is no topic filter, or one that is not offered.
    pub filters: Vec<Result<(TopicFilter, SubscribeOptions), Reason>>,
}

/// A packet to a client.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// CONNACK
    ConnAck(Box<ConnAck>),
    /// PUBLISH
    Publish(Delivered),
    /// PUBACK
    PubAck(PacketId, Reason),
    /// PUBREC
    PubRec(PacketId, Reason),
    /// PUBACK with the position of the message, as a user property
    PubAckAt(PacketId, Reason, Position),
    /// PUBREC likewise
    PubRecAt(PacketId, Reason, Position),
    /// PUBREL
    PubRel(PacketId, Reason),
    /// PUBCOMP
    PubComp(PacketId, Reason),
    /// SUBACK
    SubAck(PacketId, Vec<Reason>),
    /// UNSUBACK
    UnsubAck(PacketId, Vec<Reason>),
    /// PINGRESP
    PingResp,
    /// AUTH; only to clients whose CONNECT has an Authentication Method.
    Auth(Reason, Box<AuthData>),
    /// DISCONNECT; 3.1.1 clients are only closed.
    Disconnect(Reason, Option<Arc<str>>),
}

/// CONNACK.
#[derive(Clone, Debug)]
pub struct ConnAck {
    /// Session Present.
    pub session_present: bool,
    /// 0x00 or why not.
    pub reason: Reason,
    /// The rest, on success.
    pub granted: Option<Granted>,
    /// Server Reference.
    pub server_reference: Option<Arc<str>>,
}

/// What a successful v5 CONNACK tells.
#[derive(Clone, Debug)]
pub struct Granted {
    /// Session Expiry Interval, when it differs from what was asked for.
    pub expiry_s: Option<u32>,
    /// Receive Maximum.
    pub receive_maximum: u16,
    /// Maximum Packet Size.
    pub packet_bytes_max: u32,
    /// Assigned Client Identifier.
    pub client_id: Option<Arc<str>>,
    /// Topic Alias Maximum.
    pub topic_alias_max: u16,
    /// Server Keep Alive, when it differs from what was asked for.
    pub keep_alive_s: Option<u16>,
    /// What is offered at all.
    pub offered: Offered,
    /// Response Information, for a client that asked for it.
    pub response_information: Option<Box<str>>,
    /// Authentication Method and Data, when the client was authenticated by them [MQTT-4.12.0-5].
    pub auth: Option<Box<AuthData>>,
}

/// What CONNACK says is not to be had here, and the session machine refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Maximum QoS.
    pub qos_max: QoS,
    /// Retain Available.
    pub retain: bool,
    /// Wildcard Subscription Available.
    pub wildcards: bool,
    /// Subscription Identifier Available.
    pub identifiers: bool,
    /// Shared Subscription Available.
    pub shared: bool,
}

/// PUBLISH on its way out.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// DUP.
    pub dup: bool,
    /// QoS of this delivery.
    pub qos: QoS,
    /// RETAIN of this delivery.
    pub retain: bool,
    /// Packet identifier, with QoS 1 and 2.
    pub id: Option<PacketId>,
    /// Message Expiry Interval that is left, in seconds.
    pub expiry_s: Option<u32>,
    /// Subscription Identifiers.
    pub identifiers: Arc<[u32]>,
    /// Topic Alias, and whether it stands for the Topic Name already.
    pub alias: Option<SentAlias>,
    /// The message.
    pub message: SharedMessage,
}

/// Topic Alias of a PUBLISH on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentAlias {
    /// 1 to the client's Topic Alias Maximum.
    pub number: u16,
    /// The client knows it: the Topic Name is left out.
    pub is_known: bool,
}
