//! The commands: everything that can change the replicated state, as it stands in the log.
//!
//! Enum variants are only ever appended; a new meaning is a new variant (docs/FORMAT.md).

use bincode::{Decode, Encode};

use crate::access::{AclRule, Permission, User};
use crate::codec::{Enveloped, Kind, Payload, PayloadSource};
use crate::ids::{BatchSeq, ClusterTime, Epoch, Incarnation, NodeId, PacketId, Position, QoS, QueueSeq, SessionId};
use crate::message::MessageProperties;
use crate::topic::{TopicFilter, TopicName};

/// All that one node proposes at once. It is encoded once, by the node that cut it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct Batch {
    /// Whose it is, and its number there.
    pub origin: Origin,
    /// In order; the n-th has number n in its [`Position`].
    pub commands: Vec<Command>,
}

/// Bytes of a command in the log beside what its sender chose, about.
const COMMAND_BYTES: usize = 32;
/// Bytes of an acknowledgement there, about.
const ACK_BYTES: usize = 20;

impl Batch {
    /// About as many bytes as it takes in the log: for bounds of this node only, never for anything replicated. All that
    /// a client chooses is counted, so that nobody makes long entries that count as short ones.
    pub(crate) fn log_bytes(&self) -> usize {
        let chosen = |command: &Command| match command {
            Command::Publish(publish) => publish.charge_bytes(),
            Command::Settle(settle) => settle.acks.len() * ACK_BYTES,
            Command::Connect(connect) => connect.charge_bytes(),
            Command::Subscribe(subscribe) => subscribe.filters.iter().map(|(filter, _)| filter.as_str().len()).sum(),
            Command::Unsubscribe { filters, .. } => filters.iter().map(|filter| filter.as_str().len()).sum(),
            _ => 0,
        };
        self.commands.iter().map(|command| COMMAND_BYTES + chosen(command)).sum()
    }
}

/// Where a batch comes from, and how a repeat of it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Origin {
    /// The next of a node's ordered, deduplicated proposal stream: applied when `seq` is the last applied
    /// of that incarnation plus one, ignored when seen, refused when it leaves a gap or the incarnation
    /// is closed.
    Stream {
        /// Proposing node.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Number in the stream, from 1.
        seq: BatchSeq,
    },
    /// Outside the streams: commands that are idempotent by themselves ([`Command::NodeStarted`],
    /// [`Command::NodeLost`], [`Command::Tick`], [`Command::AllocateNode`], settings, users, rules). The nonce names the
    /// answer.
    Direct {
        /// Chosen at random by the proposer; only echoed.
        nonce: u128,
    },
}

/// A session's connection, as named by commands that come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct SessionRef {
    /// Which session.
    pub session: SessionId,
    /// Which connection of it; commands of an older epoch are ignored.
    pub epoch: Epoch,
}

/// One change of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub enum Command {
    /// A client connects: opens, resumes or takes over its session.
    Connect(Connect),
    /// A connection is over.
    Close(Close),
    /// An application message.
    Publish(Publish),
    /// PUBREL for an inbound QoS 2 packet identifier: forget it, then answer PUBCOMP.
    Release {
        /// From.
        from: SessionRef,
        /// The identifier.
        packet_id: PacketId,
    },
    /// Acknowledgements of a receiver, many at once.
    Settle(Settle),
    /// SUBSCRIBE.
    Subscribe(Subscribe),
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// From.
        from: SessionRef,
        /// In the packet's order.
        filters: Vec<TopicFilter>,
    },
    /// A node starts (or starts over). Direct. A repeat of the same nonce is a no-op.
    NodeStarted(NodeStarted),
    /// The leader has not heard of this incarnation for `node_timeout`. Direct; void in an entry of
    /// another term than `term`.
    NodeLost {
        /// The silent incarnation.
        incarnation: Incarnation,
        /// Term of the leader that says so.
        term: u64,
    },
    /// Nothing but the stamp: lets deadlines pass and continuations advance. Direct.
    Tick,
    /// Allocates a node id for a machine that wants to join. Direct; a repeat of `token` answers the same id.
    AllocateNode {
        /// Chosen by the joiner, kept in its data directory.
        token: u128,
        /// Its name and addresses.
        info: NodeInfo,
    },
    /// The node left the membership for good: its incarnation is closed, its row goes, its id never returns.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// Sets a replicated setting.
    Set(Setting),
    /// Ends a session now (an operator's delete). Direct.
    EndSession {
        /// Which.
        session: SessionId,
    },
    /// Adds a user, or replaces the one of this name. Direct.
    PutUser(Box<User>),
    /// Removes a user; sessions of clients that connected as it stay. Direct.
    DeleteUser {
        /// Which.
        name: String,
    },
    /// Adds a rule, or replaces the one of this number. Direct.
    PutAclRule(Box<AclRule>),
    /// Removes a rule. Direct.
    DeleteAclRule {
        /// Which.
        number: u32,
    },
    /// How the members of a shared group are chosen, whether there is such a group now or not. Direct, or of a stream.
    SetShareStrategy {
        /// Share name.
        share: String,
        /// Filter, without `$share/` and the name.
        filter: TopicFilter,
        /// How; the default forgets that there was another.
        strategy: ShareStrategy,
    },
}

/// Who of a shared group gets a message. Only connected members with room in their window are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum ShareStrategy {
    /// Who has the most room; of several, who comes next after the one that was served last.
    #[default]
    MostRoom,
    /// Who comes next.
    RoundRobin,
    /// Always the same member for a topic, as long as it is connected; when it has no room, who has the most.
    StickyTopic,
    /// Of those connected to the publisher's node who has the most room; else of all.
    Local,
}

/// CONNECT, normalised to MQTT 5.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct Connect {
    /// Never empty: the front end assigns one.
    pub client_id: String,
    /// Clean Start: end the session that exists, if any, first.
    pub clean_start: bool,
    /// Session Expiry Interval in seconds; 0 makes it transient, `u32::MAX` never (both bounded by the
    /// replicated maximum). 3.1.1: 0 with Clean Session, else `u32::MAX`.
    pub expiry_s: u32,
    /// How many QoS 1 and 2 deliveries may be in flight to it (the client's Receive Maximum, bounded).
    pub receive_maximum: u16,
    /// Will of this connection.
    pub will: Option<Will>,
    /// Refused when cluster time is beyond this: the client has long given up.
    pub deadline: ClusterTime,
    /// The authenticated user; `None` for anonymous clients, who are all one. Idempotency keys are its own.
    pub user: Option<String>,
}

impl Connect {
    /// What the client chose, about as it lies in memory.
    fn charge_bytes(&self) -> usize {
        let will = self.will.as_ref().map_or(0, |will| {
            let properties = will.properties.as_deref().map_or(0, MessageProperties::charge_bytes);
            will.topic.as_str().len() + will.payload.len() + properties
        });
        self.client_id.len() + self.user.as_ref().map_or(0, String::len) + will
    }
}

/// A will message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct Will {
    /// Will Delay Interval in seconds.
    pub delay_s: u32,
    /// Will Topic.
    pub topic: TopicName,
    /// Will QoS.
    pub qos: QoS,
    /// Will Retain.
    pub retain: bool,
    /// Will Properties.
    pub properties: Option<Box<MessageProperties>>,
    /// Message Expiry Interval in seconds, counted from its publication.
    pub expiry_s: Option<u32>,
    /// Will Payload.
    pub payload: Payload,
}

/// The end of a connection, as its node saw it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Close {
    /// Which connection.
    pub from: SessionRef,
    /// Whether the will is dropped (DISCONNECT 0x00) or becomes due.
    pub drop_will: bool,
    /// Session Expiry Interval of a v5 DISCONNECT, when it had one.
    pub expiry_s: Option<u32>,
    /// First queue row that was certainly not sent on this connection.
    pub sent_until: QueueSeq,
}

/// An application message on its way in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct Publish {
    /// The publisher; `None` for the administration API.
    pub from: Option<SessionRef>,
    /// Its packet identifier, QoS 2 only: recorded until [`Command::Release`].
    pub packet_id: Option<PacketId>,
    /// QoS.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Topic Name, alias resolved.
    pub topic: TopicName,
    /// MQTT 5 properties.
    pub properties: Option<Box<MessageProperties>>,
    /// Message Expiry Interval in seconds.
    pub expiry_s: Option<u32>,
    /// The bytes.
    pub payload: Payload,
}

impl Publish {
    /// Topic, properties and payload, about as they lie in memory. For bounds of this node only, never for anything
    /// replicated.
    #[must_use]
    pub fn charge_bytes(&self) -> usize {
        let properties = self.properties.as_deref().map_or(0, MessageProperties::charge_bytes);
        self.topic.as_str().len() + self.payload.len() + properties
    }
}

/// Acknowledgements of one session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Settle {
    /// From.
    pub from: SessionRef,
    /// In the order in which they came.
    pub acks: Vec<Ack>,
}

/// One acknowledgement of one queue row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    /// Which row.
    pub seq: QueueSeq,
    /// The message in it: written for the ledger (the log alone answers where a message went).
    pub position: Position,
    /// What came.
    pub kind: AckKind,
}

/// What a receiver answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AckKind {
    /// PUBACK, whatever its reason code [MQTT-4.8.2-6]: the row goes.
    Puback,
    /// PUBREC below 0x80: marked released, then PUBREL goes out.
    Pubrec,
    /// PUBREC of 0x80 or above: the row goes.
    PubrecRefused,
    /// PUBCOMP: the row goes.
    Pubcomp,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Subscribe {
    /// From.
    pub from: SessionRef,
    /// Subscription Identifier of the packet.
    pub identifier: Option<u32>,
    /// In the packet's order.
    pub filters: Vec<(TopicFilter, SubscribeOptions)>,
}

/// Subscription Options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SubscribeOptions {
    /// Maximum QoS.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Retain Handling: 0 send, 1 send when new, 2 do not send.
    pub retain_handling: u8,
}

/// A node's start.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeStarted {
    /// Which node.
    pub node: NodeId,
    /// Random, new for each start.
    pub nonce: u128,
    /// The life that this one follows, as the node knows it from its log. A start that arrives late names an
    /// older one than the state does, and is refused: else it would close the node's life of today.
    pub replaces: Option<Incarnation>,
    /// Wall clock in milliseconds since 1970, for the first leader after a cold start.
    pub wall_ms: u64,
    /// Its name and addresses now.
    pub info: NodeInfo,
}

/// What others need to know of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct NodeInfo {
    /// Its name, for people.
    pub name: String,
    /// MQTT address, as clients are told it.
    pub mqtt: String,
    /// Peer address.
    pub peer: String,
    /// Administration address.
    pub admin: String,
}

/// A replicated setting. Each has a default that holds until the first `Set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Setting {
    /// Byte bound of one session's queue.
    QueueBytesMax(u64),
    /// What happens at the bound.
    QueueFullPolicy(QueueFullPolicy),
    /// Largest Session Expiry Interval in seconds.
    SessionExpiryMax(u32),
    /// How many idempotency keys are remembered, of all users together; 0 for none.
    IdempotencyKeysMax(u64),
    /// How long an idempotency key is remembered, in seconds; 0 for not at all.
    IdempotencyWindow(u32),
    /// Longest delay of a delayed publish in seconds.
    DelayMax(u32),
    /// Byte bound of all delayed publishes that wait; 0 for none.
    DelayedBytesMax(u64),
    /// Subscriptions that one session may have; one more is answered with 0x97.
    SubscriptionsMax(u32),
    /// What holds when no rule fits.
    AclOtherwise(Permission),
}

/// What happens to a message for which a session's queue has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum QueueFullPolicy {
    /// The publish is refused for all recipients, before any row is written (0x97).
    Reject,
    /// The oldest rows that were certainly not sent make room, and are counted.
    DropOldest,
}

impl Enveloped for Batch {
    const KIND: Kind = Kind::Batch;

    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        for command in &self.commands {
            match command {
                Command::Publish(publish) => f(&publish.payload),
                Command::Connect(Connect { will: Some(will), .. }) => f(&will.payload),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn what_a_client_chooses_counts_as_long_as_it_is() {
        let long = |n: u8| char::from(b'a' + n).to_string().repeat(9_000);
        let from =
            SessionRef { session: SessionId(Position::new(1 << 40, 7)), epoch: Epoch(Position::new(1 << 40, 7)) };
        let properties = Some(Box::new(MessageProperties {
            content_type: Some(long(0)),
            response_topic: Some(long(1)),
            correlation_data: Some(long(2).into()),
            user: vec![(long(3), long(4))],
            ..MessageProperties::default()
        }));
        let (topic, payload) = (TopicName::new(&long(5)).unwrap(), Payload(long(6).into()));
        let filter = |n| TopicFilter::new(&long(n)).unwrap();
        let options =
            SubscribeOptions { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
        let will = Will {
            delay_s: 0,
            topic: topic.clone(),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: properties.clone(),
            expiry_s: None,
            payload: payload.clone(),
        };
        let ack =
            |n: u64| Ack { seq: QueueSeq((1 << 40) | n), position: Position::new(1 << 40, 7), kind: AckKind::Puback };
        let commands = [
            Command::Publish(Publish {
                from: Some(from),
                packet_id: None,
                qos: QoS::AtLeastOnce,
                retain: false,
                topic,
                properties,
                expiry_s: None,
                payload,
            }),
            Command::Connect(Connect {
                client_id: long(7),
                clean_start: false,
                expiry_s: 0,
                receive_maximum: 1,
                will: Some(will),
                deadline: ClusterTime(0),
                user: Some(long(8)),
            }),
            Command::Subscribe(Subscribe {
                from,
                identifier: None,
                filters: vec![(filter(9), options), (filter(10), options)],
            }),
            Command::Unsubscribe { from, filters: vec![filter(11), filter(12)] },
            Command::Settle(Settle { from, acks: (0..1_000).map(ack).collect() }),
        ];
        for command in commands {
            let batch = Batch { origin: Origin::Direct { nonce: 0 }, commands: vec![command] };
            let (counted, len) = (batch.log_bytes(), codec::encode(&batch).unwrap().len());
            assert!(counted * 10 >= len * 9 && counted <= len * 2, "{counted} for {len}");
        }
    }
}
