//! `$SYS` as the front end sees it: the values that a new subscriber gets at once, and who comes and goes.
//!
//! The values are made elsewhere (`crate::sys`) and stand on a board here. A SUBSCRIBE whose filter begins with `$SYS`
//! and was granted gets what matches right behind its SUBACK, at QoS 0 with RETAIN set, as if they were retained;
//! later values come as live messages. Connections are announced under the names that EMQX has for that.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quorate_store::codec::Payload;
use quorate_store::command::{Publish, SessionRef};
use quorate_store::effect::Delivery;
use quorate_store::ids::{ClusterTime, NodeId, Position, QoS};
use quorate_store::message::{Message, SharedMessage};
use quorate_store::topic::{TopicFilter, TopicName};
use serde_json::json;

use super::packet::{Connect, Version};
use super::reason::Reason;

/// The first level of all that the server itself publishes.
pub(crate) const SYS: &str = "$SYS";

/// A granted subscription to `$SYS` topics.
#[derive(Clone, Debug)]
pub struct SysAsk {
    /// What is subscribed to.
    pub filter: TopicFilter,
    /// Subscription Identifier.
    pub identifier: Option<u32>,
    /// Retain Handling 1: only when there was no such subscription before.
    pub only_new: bool,
}

impl SysAsk {
    /// Whether `filter` asks for `$SYS` topics.
    #[must_use]
    pub fn is_one(filter: &TopicFilter) -> bool {
        filter.levels().next() == Some(SYS)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct SysBoard {
    node: OnceLock<NodeId>,
    values: RwLock<Arc<[SharedMessage]>>,
}

impl SysBoard {
    /// Says which node this is: its clients are announced from now on.
    pub fn announce_as(&self, node: NodeId) {
        let _ = self.node.set(node); // a node never changes its id
    }

    /// Replaces all values.
    pub fn show(&self, values: Vec<SharedMessage>) {
        *self.values.write().unwrap_or_else(PoisonError::into_inner) = values.into();
    }

    fn values(&self) -> Arc<[SharedMessage]> {
        self.values.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the board has for a new subscription.
    pub(super) fn deliveries(&self, to: SessionRef, ask: &SysAsk) -> impl Iterator<Item = Delivery> + use<> {
        let identifiers: Arc<[u32]> = ask.identifier.into_iter().collect();
        let values = self.values();
        let matching: Vec<SharedMessage> = values.iter().filter(|v| ask.filter.matches(&v.topic)).cloned().collect();
        matching.into_iter().map(move |message| Delivery {
            to,
            seq: None,
            qos: QoS::AtMostOnce,
            retain: true,
            identifiers: identifiers.clone(),
            message,
        })
    }
}

/// A value of a `$SYS` topic.
#[must_use]
pub fn value(topic: TopicName, payload: String) -> SharedMessage {
    Arc::new(Message {
        position: Position::ZERO,
        topic,
        qos: QoS::AtMostOnce,
        retain: false,
        published_at: ClusterTime(0),
        expires_at: None,
        properties: None,
        payload: Payload(Bytes::from(payload)),
    })
}

/// A value as it is published.
#[must_use]
pub fn publish(value: &Message) -> Publish {
    Publish {
        from: None,
        packet_id: None,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: value.topic.clone(),
        properties: None,
        expiry_s: None,
        payload: value.payload.clone(),
    }
}

/// Wall clock in milliseconds since 1970, for people.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64)
}

/// What is told of a client when it comes and when it goes.
#[derive(Debug)]
pub(super) struct ClientFacts {
    username: Option<Box<str>>,
    peer: Option<SocketAddr>,
    version: Version,
    keep_alive_s: u16,
    clean_start: bool,
    expiry_s: u32,
    connected_ms: u64,
}

impl ClientFacts {
    pub(super) fn of(connect: &Connect, version: Version, peer: Option<SocketAddr>) -> Box<Self> {
        Box::new(Self {
            username: connect.username.as_deref().map(Box::from),
            peer,
            version,
            keep_alive_s: connect.keep_alive_s,
            clean_start: connect.clean_start,
            expiry_s: connect.expiry_s.unwrap_or(0),
            connected_ms: wall_ms(),
        })
    }

    /// The announcement that it is connected; `None` where its identifier makes no topic, or nobody is to be told.
    pub(super) fn connected(&self, board: &SysBoard, client_id: &str) -> Option<Publish> {
        let mut facts = self.common(client_id);
        if let Some(facts) = facts.as_object_mut() {
            facts.insert("connack".into(), json!(0));
            facts.insert("keepalive".into(), json!(self.keep_alive_s));
            facts.insert("clean_start".into(), json!(self.clean_start));
            facts.insert("expiry_interval".into(), json!(self.expiry_s));
        }
        announce(board, client_id, "connected", &facts)
    }

    /// The announcement that it is gone.
    pub(super) fn disconnected(
        &self,
        board: &SysBoard,
        client_id: &str,
        reason: Reason,
        is_goodbye: bool,
    ) -> Option<Publish> {
        let mut facts = self.common(client_id);
        if let Some(facts) = facts.as_object_mut() {
            facts.insert("reason".into(), json!(ending(reason, is_goodbye)));
            facts.insert("disconnected_at".into(), json!(wall_ms()));
        }
        announce(board, client_id, "disconnected", &facts)
    }

    fn common(&self, client_id: &str) -> serde_json::Value {
        let (name, version) = match self.version {
            Version::V31 => ("MQIsdp", 3),
            Version::V311 => ("MQTT", 4),
            Version::V5 => ("MQTT", 5),
        };
        json!({
            "clientid": client_id,
            "username": self.username.as_deref().unwrap_or("undefined"),
            "ipaddress": self.peer.map(|peer| peer.ip().to_canonical().to_string()),
            "proto_name": name,
            "proto_ver": version,
            "connected_at": self.connected_ms,
            "ts": wall_ms(),
        })
    }
}

fn announce(board: &SysBoard, client_id: &str, what: &str, facts: &serde_json::Value) -> Option<Publish> {
    let node = board.node.get()?;
    let topic = format!("{SYS}/brokers/{}/clients/{client_id}/{what}", node.0);
    // An identifier with a wildcard, or one that is too long, has no topic.
    let topic = TopicName::new(&topic).ok()?;
    Some(publish(&value(topic, facts.to_string())))
}

/// How a connection ended, in EMQX's words where it has one.
const fn ending(reason: Reason, is_goodbye: bool) -> &'static str {
    match reason {
        Reason::SUCCESS if is_goodbye => "normal",
        Reason::SUCCESS => "tcp_closed",
        Reason::SESSION_TAKEN_OVER => "takenover",
        Reason::ADMINISTRATIVE_ACTION => "kicked",
        Reason::KEEP_ALIVE_TIMEOUT => "keepalive_timeout",
        Reason::MALFORMED_PACKET | Reason::PROTOCOL_ERROR => "protocol_error",
        Reason::PACKET_TOO_LARGE => "frame_too_large",
        Reason::QUOTA_EXCEEDED => "queue_full",
        Reason::NOT_AUTHORIZED => "not_authorized",
        Reason::USE_ANOTHER_SERVER | Reason::SERVER_MOVED => "use_another_server",
        Reason::SERVER_BUSY | Reason::SERVER_UNAVAILABLE => "server_busy",
        Reason::SERVER_SHUTTING_DOWN => "server_shutting_down",
        _ => "error",
    }
}
