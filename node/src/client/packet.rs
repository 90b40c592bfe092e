//! MQTT control packets as a client sees them, 3.1.1 and 5.0 alike: only what `pub`, `sub` and `demo` need.

use bytes::Bytes;

/// Protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1
    V311,
    /// MQTT 5.0
    V5,
}

/// A quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl Qos {
    /// `None` above 2.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Client identifier.
    pub client_id: String,
    /// Clean Start (5.0) or Clean Session (3.1.1).
    pub clean_start: bool,
    /// Session Expiry Interval, 5.0 only.
    pub expiry_s: u32,
    /// Receive Maximum, 5.0 only.
    pub receive_maximum: u16,
    /// Keep Alive.
    pub keep_alive_s: u16,
}

/// CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    /// Session Present.
    pub present: bool,
    /// Reason code of 5.0; the return codes of 3.1.1 are translated.
    pub reason: u8,
    /// How many QoS 1 and 2 publishes the server takes at a time.
    pub receive_maximum: u16,
    /// Largest packet that the server takes.
    pub packet_bytes_max: Option<u32>,
    /// Server Keep Alive.
    pub keep_alive_s: Option<u16>,
    /// Reason String.
    pub reason_string: Option<String>,
    /// Server Reference.
    pub server_reference: Option<String>,
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: Qos,
    /// RETAIN.
    pub retain: bool,
    /// Topic Name.
    pub topic: String,
    /// 0 at QoS 0.
    pub packet_id: u16,
    /// Payload.
    pub payload: Bytes,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which of the four.
    pub kind: AckKind,
    /// Packet identifier.
    pub packet_id: u16,
    /// Reason code; 0 in 3.1.1.
    pub reason: u8,
}

/// The four acknowledgements; the value is the packet type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AckKind {
    /// QoS 1.
    Puback = 4,
    /// QoS 2, first.
    Pubrec = 5,
    /// QoS 2, second, from the sender.
    Pubrel = 6,
    /// QoS 2, last.
    Pubcomp = 7,
}

/// A control packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Client to server.
    Connect(Connect),
    /// Server to client.
    ConnAck(ConnAck),
    /// Both ways.
    Publish(Publish),
    /// Both ways.
    Ack(Ack),
    /// Client to server.
    Subscribe {
        /// Packet identifier.
        packet_id: u16,
        /// Filters with the QoS that is asked for.
        filters: Vec<(String, Qos)>,
    },
    /// Server to client.
    SubAck {
        /// Packet identifier.
        packet_id: u16,
        /// One for each filter.
        reasons: Vec<u8>,
    },
    /// Client to server.
    PingReq,
    /// Server to client.
    PingResp,
    /// Client to server; from the server in 5.0 only.
    Disconnect {
        /// Reason code.
        reason: u8,
        /// Server Reference, from the server.
        server_reference: Option<String>,
    },
}

/// A reason code in the words of MQTT 5.0 §2.4.
#[must_use]
pub fn reason_text(reason: u8) -> &'static str {
    match reason {
        0x00 => "success",
        0x10 => "no matching subscribers",
        0x11 => "no subscription existed",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client identifier not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8a => "banned",
        0x8b => "server shutting down",
        0x8d => "keep alive timeout",
        0x8e => "session taken over",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x92 => "packet identifier not found",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        _ => "unknown reason",
    }
}
