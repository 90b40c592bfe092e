//! A history as it happened: one line of JSON for each event, in the order of the harness's monotonic clock.
//!
//! A client begins an operation with [`What::Invoke`] and ends it with exactly one of [`What::Ok`], [`What::Fail`] and
//! [`What::Info`]. *Fail* means that it certainly had no effect: a reason code of 0x80 or above, or not a byte of it
//! was sent. Everything else that did not end well is *info*: it may have happened, or may still happen. What clients
//! see without asking (deliveries, ends of connections) and what the nemesis does are events by themselves.
//!
//! Nothing here is the broker's word but [`Answer`] and [`Delivery::position`]; the checks that need no position stand
//! without it.

use serde::{Deserialize, Serialize};

use super::MessageName;

/// A client: one client identifier, over all its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Client(pub u32);

/// A connection of a client, counted up from 1 over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Connection(pub u32);

/// An operation, unique in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(pub u64);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since the run began, by one monotonic clock for all clients and the nemesis.
    pub at_ns: u64,
    /// Whose; none: the nemesis's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The client begins an operation: written down before its first byte goes out.
    Invoke {
        /// Which.
        op: OpId,
        /// What it asks.
        #[serde(flatten)]
        call: Call,
    },
    /// A PUBLISH goes out once more (DUP=1), or its PUBREL, on a later connection. The operation is still open.
    Again {
        /// Which.
        op: OpId,
        /// On which connection.
        connection: Connection,
    },
    /// The broker accepted it.
    Ok {
        /// Which.
        op: OpId,
        /// With what.
        #[serde(flatten)]
        answer: Answer,
    },
    /// It certainly had no effect.
    Fail {
        /// Which.
        op: OpId,
        /// Reason code of the refusal; none when nothing was sent.
        code: Option<u8>,
    },
    /// Nobody knows.
    Info {
        /// Which.
        op: OpId,
        /// Why not.
        why: String,
    },
    /// A PUBLISH arrived. Written down before anything is answered.
    Deliver(Delivery),
    /// The client answers a delivery: written down before the bytes go out.
    Settle {
        /// On which connection.
        connection: Connection,
        /// Packet identifier.
        packet_id: u16,
        /// Which answer.
        step: Step,
    },
    /// PUBREL arrived.
    Released {
        /// On which connection.
        connection: Connection,
        /// Packet identifier.
        packet_id: u16,
    },
    /// The connection is over.
    Closed {
        /// Which.
        connection: Connection,
        /// How.
        how: Closing,
    },
    /// The nemesis begins something.
    Fault {
        /// Counted up from 1.
        number: u32,
        /// Name of the nemesis.
        nemesis: String,
        /// Nodes that it hits, by their names.
        nodes: Vec<String>,
        /// In words.
        what: String,
    },
    /// The nemesis has ended it.
    Healed {
        /// Which.
        number: u32,
    },
    /// The nemesis could not do what it wanted: said, never passed over.
    NotInstalled {
        /// Name of the nemesis.
        nemesis: String,
        /// Why.
        why: String,
    },
    /// From here on the workload only reads what is left: no more faults, no more publishes.
    Drain,
    /// The administration of the cluster was asked.
    Leader {
        /// Who leads, by its name.
        node: String,
        /// In which term.
        term: u64,
    },
    /// A node's rows by a full scan, at the end.
    Digest {
        /// Its name.
        node: String,
        /// Applied log index.
        applied: u64,
        /// The digest.
        digest: String,
    },
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "snake_case")]
pub enum Call {
    /// CONNECT.
    Connect {
        /// The connection that it opens.
        connection: Connection,
        /// To which node, by its name.
        node: String,
        /// Clean Start.
        clean_start: bool,
        /// Session Expiry Interval, seconds.
        expiry_s: u32,
        /// The will, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        will: Option<Will>,
    },
    /// DISCONNECT.
    Disconnect {
        /// Which connection.
        connection: Connection,
        /// Reason 0x04: the will is published.
        with_will: bool,
    },
    /// PUBLISH.
    Publish {
        /// The connection on which it goes out first.
        connection: Connection,
        /// Its name.
        message: MessageName,
        /// Topic Name.
        topic: String,
        /// QoS.
        qos: u8,
        /// RETAIN.
        retain: bool,
        /// Packet identifier; 0 at QoS 0.
        packet_id: u16,
        /// `idempotency-key`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// Message Expiry Interval, seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expiry_s: Option<u32>,
    },
    /// SUBSCRIBE with one filter.
    Subscribe {
        /// The connection.
        connection: Connection,
        /// Topic Filter.
        filter: String,
        /// QoS.
        qos: u8,
    },
    /// UNSUBSCRIBE of one filter.
    Unsubscribe {
        /// The connection.
        connection: Connection,
        /// Topic Filter.
        filter: String,
    },
    /// The retained value of a topic, by a new subscription at QoS 1, which is given up after the answer.
    ReadRetained {
        /// The connection.
        connection: Connection,
        /// Topic Name.
        topic: String,
    },
}

/// What a CONNECT leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Its name.
    pub message: MessageName,
    /// Topic Name.
    pub topic: String,
    /// QoS.
    pub qos: u8,
    /// Will Delay Interval, seconds.
    pub delay_s: u32,
}

/// How the broker accepted an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// CONNACK.
    Connected {
        /// Session Present.
        present: bool,
    },
    /// PUBACK or PUBREC: the message is the broker's. (PUBCOMP is no promise that a history needs.)
    Published {
        /// Reason code, below 0x80.
        code: u8,
        /// Position that the broker gave it, where it said so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<u64>,
    },
    /// SUBACK.
    Subscribed {
        /// Granted QoS.
        code: u8,
    },
    /// UNSUBACK.
    Unsubscribed {
        /// Reason code; 0 on 3.1.1.
        code: u8,
    },
    /// The retained value; none: there is none.
    Retained {
        /// Its name.
        message: Option<MessageName>,
    },
    /// The DISCONNECT was written, which is all that its client can know.
    Sent,
}

/// A PUBLISH that arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// On which connection.
    pub connection: Connection,
    /// Which message.
    pub message: MessageName,
    /// Topic Name.
    pub topic: String,
    /// QoS.
    pub qos: u8,
    /// DUP.
    pub dup: bool,
    /// RETAIN.
    pub retain: bool,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// QoS 2: this identifier was received before and not released since: it is no new message for its client.
    pub repeated: bool,
    /// Position that the broker says, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// How a client answers a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// PUBACK.
    Ack,
    /// PUBREC.
    Received,
    /// PUBCOMP.
    Complete,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closing {
    /// The client broke it, without DISCONNECT.
    Broken,
    /// The client sent DISCONNECT.
    Disconnected,
    /// The broker sent DISCONNECT with this reason code.
    Told {
        /// Reason code.
        code: u8,
    },
    /// The broker or the network ended it without a word.
    Lost,
}
