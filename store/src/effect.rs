//! What apply tells a node to do. Every replica computes the same effects; a node acts on those that
//! name its own incarnation and learns from them, never from a reply, what became of its commands.

use std::sync::Arc;

use crate::access::AccessError;
use crate::command::{SessionRef, ShareStrategy};
use crate::ids::{BatchSeq, ClusterTime, Incarnation, NodeId, Position, QoS, QueueSeq, SessionId, ShareId};
use crate::message::SharedMessage;

/// One thing to do or to know. In log order; deliveries and outcomes of one entry are in command order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A batch of this incarnation's stream was applied: one outcome for each command, in order.
    Applied {
        /// Whose.
        incarnation: Incarnation,
        /// Which.
        seq: BatchSeq,
        /// One for each command.
        outcomes: Vec<Outcome>,
    },
    /// A batch left a gap in its stream and was refused: resend, in order, from `expected`.
    Gap {
        /// Whose.
        incarnation: Incarnation,
        /// First batch that is missing.
        expected: BatchSeq,
    },
    /// A direct batch was applied.
    DirectApplied {
        /// Its nonce.
        nonce: u128,
        /// One for each command.
        outcomes: Vec<Outcome>,
    },
    /// Send this to a connection.
    Deliver {
        /// Incarnation that owns the session.
        owner: Incarnation,
        /// What.
        delivery: Delivery,
    },
    /// A row of a connected session that was certainly not sent is gone (it expired, or made room): do not send
    /// it any more. It comes before everything that could bring the row into the window.
    Withdraw {
        /// Incarnation that owns the session.
        owner: Incarnation,
        /// Which connection.
        from: SessionRef,
        /// Which row.
        seq: QueueSeq,
    },
    /// Disconnect this connection; nothing of it is accepted any more.
    Kick {
        /// Incarnation that owned the session.
        owner: Incarnation,
        /// Which connection.
        from: SessionRef,
        /// Why.
        reason: KickReason,
    },
    /// This incarnation is closed: its node acknowledges nothing more, disconnects its clients and starts over.
    IncarnationClosed {
        /// Which.
        incarnation: Incarnation,
        /// Its node.
        node: NodeId,
    },
}

/// A message for one session.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Which connection.
    pub to: SessionRef,
    /// Row in the session's queue; `None` for QoS 0 and for transient sessions, whose queue is the owner's memory (but
    /// of a shared group they have rows, too).
    pub seq: Option<QueueSeq>,
    /// QoS of this delivery.
    pub qos: QoS,
    /// RETAIN of this delivery.
    pub retain: bool,
    /// Subscription Identifiers of the subscriptions that matched.
    pub identifiers: Arc<[u32]>,
    /// The message.
    pub message: SharedMessage,
}

/// Why a connection is ended by the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KickReason {
    /// Another CONNECT took the session over (0x8E).
    TakenOver,
    /// An operator ended it (0x98).
    Administrative,
}

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; nothing more to say (Release, Settle, Close, Unsubscribe's fallback, Tick, Set, ...).
    Done,
    /// The session is the connection's now.
    Connected(Connected),
    /// CONNECT came after its deadline.
    ConnectExpired,
    /// The message is committed.
    Published {
        /// Its position.
        position: Position,
        /// Whether any subscription matched (else 0x10 No matching subscribers).
        matched: bool,
    },
    /// A publish whose idempotency key is in the window: it was published then, and nothing was now.
    Repeated {
        /// Position of the first.
        position: Position,
    },
    /// A publish that cannot be taken, whatever the state, or a CONNECT to the session of another user; nothing was
    /// written. With the reason code.
    Refused(u8),
    /// A QoS 2 identifier that was recorded already: answer PUBREC again, nothing was published.
    AlreadyRecorded,
    /// PUBREL: whether the identifier was known (else 0x92 on v5).
    Released {
        /// It was recorded.
        known: bool,
    },
    /// A full queue refused the message; nothing was written (0x97).
    QueueFull,
    /// One answer for each filter: what was granted, or a reason code of 0x80 and above.
    Subscribed(Vec<Result<Granted, u8>>),
    /// One answer for each filter: whether there was such a subscription (0x00, else 0x11).
    Unsubscribed(Vec<bool>),
    /// The command named an older epoch or an ended session: it was ignored. Its connection is gone.
    Fenced,
    /// The allocated node.
    NodeAllocated(NodeId),
    /// The incarnation that this start of a node has; of a repeat, the one it got first.
    NodeStarted(Incarnation),
    /// A start that does not follow the node's latest life, which is this one: it was late, or the node did not
    /// know of it yet. Nothing was changed.
    StartOutdated(Option<Incarnation>),
    /// A table that is bounded is full: nothing was changed.
    LimitReached,
    /// `NodeLost` that was void (another term, or closed already), or a node, user or rule that is unknown.
    Void,
    /// The user or rule was not taken: it, or their number, is beyond a bound. Nothing was changed.
    AccessRefused(AccessError),
}

/// A subscription that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// At which QoS.
    pub qos: QoS,
    /// There was none with this filter before, which is what Retain Handling 1 asks [MQTT-3.3.1-10].
    pub is_new: bool,
}

/// A session as its new connection finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Session and epoch.
    pub session: SessionRef,
    /// CONNACK's Session Present.
    pub present: bool,
    /// Session Expiry Interval in force, seconds (bounded by the replicated maximum).
    pub expiry_s: u32,
    /// Deliveries are logged rows; else they come as [`Delivery`] without a row and are not settled, but those of
    /// shared groups.
    pub durable: bool,
    /// First row that may be unsettled: where resending starts.
    pub queue_head: QueueSeq,
    /// Rows below this may have been sent before: they go out with DUP=1.
    pub sent_until: QueueSeq,
    /// First row that did not exist yet at this CONNECT; later ones come as [`Delivery`].
    pub queue_tail: QueueSeq,
    /// Inbound QoS 2 identifiers that wait for their PUBREL.
    pub inbound_qos2: Vec<crate::ids::PacketId>,
}

/// Takes the effects of a node's own incarnation as they arise. Others' are not even built.
pub trait EffectSink {
    /// Whether effects for this incarnation are wanted here.
    fn wants(&self, incarnation: Incarnation) -> bool;
    /// Takes one.
    fn push(&mut self, effect: Effect);
}

/// Collects everything, for tests and the simulator.
#[derive(Debug, Default)]
pub struct AllEffects(pub Vec<Effect>);

impl EffectSink for AllEffects {
    fn wants(&self, _: Incarnation) -> bool {
        true
    }
    fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }
}

/// What a scan of the state says about a session (administration, tests).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSummary {
    /// Which.
    pub session: SessionId,
    /// Client identifier.
    pub client_id: String,
    /// Incarnation it is connected to.
    pub owner: Option<Incarnation>,
    /// Unsettled rows.
    pub queued: u64,
    /// Bytes charged for them.
    pub queued_bytes: u64,
    /// When it ends, while disconnected.
    pub expires_at: Option<ClusterTime>,
}

/// Sessions whose queue came to half of its byte bound, and is not below three eighths since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuesOverHalf {
    /// Some of them, those that are over it for longest.
    pub named: Vec<SessionSummary>,
    /// How many there are.
    pub total: u64,
    /// The bound.
    pub bytes_max: u64,
}

/// A group of a shared subscription (administration, tests).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSummary {
    /// Which.
    pub share: ShareId,
    /// Share name.
    pub name: String,
    /// Filter.
    pub filter: String,
    /// How members are chosen.
    pub strategy: ShareStrategy,
    /// Members, connected or not, in order of creation.
    pub members: Vec<SessionId>,
    /// Messages that wait for a member with room.
    pub waiting: u64,
    /// Bytes charged for them.
    pub waiting_bytes: u64,
    /// Messages that were dropped because too many waited.
    pub dropped: u64,
}
