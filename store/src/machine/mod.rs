//! The replicated state machine: rows and a command in, changed rows and effects out.
//!
//! It owns the meaning of everything that is replicated, and it is deterministic: it sees the rows and the
//! command, never a clock (time is the leader's stamp in the entry), a configuration file, a random number,
//! the order of a hash map or the result of I/O. What it keeps in memory (subscription trie, session table,
//! windows) is rebuilt from the rows at start. It never sends anything: effects tell the node what to do.
//!
//! Each command touches a bounded number of rows. What is more (a node lost with 100,000 sessions, the rows
//! of a session that ended) is left to [`timers`] and [`continuations`], which every later entry advances by a
//! bounded step.
//!
//! | file | what it applies |
//! |---|---|
//! | [`connect`] | CONNECT, the end of a connection, the end of a session |
//! | [`publish`] | PUBLISH, inbound QoS 2, wills |
//! | [`delayed`] | publishes that wait for their time |
//! | [`idempotency`] | publishes that were published before, by their keys |
//! | [`queue`] | rows of a session's queue: append, settle |
//! | [`references`] | how many queue rows point to a message |
//! | [`room`] | room in a queue that is at its byte bound |
//! | [`subscribe`] | SUBSCRIBE, UNSUBSCRIBE |
//! | [`shares`] | shared subscriptions: who gets a message, what waits, what returns |
//! | [`exclusive`] | exclusive subscriptions |
//! | [`retained`] | retained messages for a new subscription |
//! | [`nodes`] | incarnations, node ids, proposal streams |
//! | [`access`] | users and rules |
//! | [`timers`] | deadlines |
//! | [`continuations`] | what one entry began and later ones go on with |

mod access;
mod connect;
mod continuations;
mod delayed;
mod exclusive;
mod idempotency;
mod nodes;
mod open;
mod publish;
mod queue;
mod references;
mod retained;
mod room;
mod shares;
mod state;
mod subscribe;
mod timers;
mod trie;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::access::{Access, Permission};
use crate::codec::CodecError;
use crate::command::{Batch, Command, NodeInfo, Origin, QueueFullPolicy, SessionRef, Setting};
use crate::effect::{Delivery, Effect, EffectSink, Outcome, QueuesOverHalf, SessionSummary};
use crate::ids::{BatchSeq, ClusterTime, Incarnation, NodeId, Position, QoS, QueueSeq, SessionId};
use crate::message::SharedMessage;
use crate::rows::key::{self, MetaName, RowKind};
use crate::rows::overlay::Overlay;
use crate::rows::value::{AppliedRow, NodeRow, NumberRow, SettingRow, Value, shared_identifiers};
use crate::rows::{RowStore, RowsError, digest};
use crate::seeded_bug::{SeededBug, is_seeded};
use crate::topic::TopicName;
use continuations::Continuations;
use delayed::Waiting;
use idempotency::Idempotency;
use references::References;
use shares::Shares;
use state::{Deadline, RetainedExpiry, RetainedTopics, Session, Sessions};
use trie::Trie;

/// Why apply cannot go on. The process ends: a replica that cannot apply must not guess.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The rows fail.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// A row cannot be encoded.
    #[error("a row cannot be encoded: {0}")]
    Encode(#[from] CodecError),
    /// An entry that is not the next one.
    #[error("entry {found} came where {expected} is next; the log or the rows were changed from outside")]
    OutOfOrder {
        /// Index of the entry.
        found: u64,
        /// Index that is next.
        expected: u64,
    },
    /// The rows were written by a newer version.
    #[error("the state has format {found}, this build reads up to {known}: start it with the newer version again")]
    NewerFormat {
        /// Format of the rows.
        found: u32,
        /// Newest format that this build reads.
        known: u32,
    },
}

/// What the log says of an entry besides its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryContext {
    /// Log index.
    pub index: u64,
    /// Term of the leader that appended it.
    pub term: u64,
    /// Cluster time that the leader stamped.
    pub stamp: ClusterTime,
}

/// Where in the log the machine is.
pub type Applied = AppliedRow;

/// A node, as the state knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSummary {
    /// Its id.
    pub id: NodeId,
    /// Name and addresses.
    pub info: NodeInfo,
    /// Its latest incarnation.
    pub incarnation: Option<Incarnation>,
    /// Whether that is open.
    pub up: bool,
    /// Wall clock at its latest start, milliseconds since 1970.
    pub wall_ms: u64,
}

/// The replicated settings in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Byte bound of one session's queue.
    pub queue_bytes_max: u64,
    /// What happens at the bound.
    pub queue_full_policy: QueueFullPolicy,
    /// Largest Session Expiry Interval, seconds.
    pub session_expiry_s_max: u32,
    /// Idempotency keys that are remembered.
    pub idempotency_keys_max: u64,
    /// How long they are, seconds.
    pub idempotency_window_s: u32,
    /// Longest delay of a delayed publish, seconds.
    pub delay_s_max: u32,
    /// Byte bound of all delayed publishes that wait.
    pub delayed_bytes_max: u64,
    /// Subscriptions of one session.
    pub subscriptions_max: u32,
    /// What holds for a client when no rule fits.
    pub acl_otherwise: Permission,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_bytes_max: 1 << 30,
            queue_full_policy: QueueFullPolicy::Reject,
            session_expiry_s_max: 7 * 24 * 3600,
            idempotency_keys_max: 1_000_000,
            idempotency_window_s: 24 * 3600,
            delay_s_max: 4_294_967,
            delayed_bytes_max: 256 << 20,
            subscriptions_max: 65_536,
            acl_otherwise: Permission::Allow,
        }
    }
}

impl Settings {
    fn set(&mut self, setting: Setting) {
        match setting {
            Setting::QueueBytesMax(bytes) => self.queue_bytes_max = bytes,
            Setting::QueueFullPolicy(policy) => self.queue_full_policy = policy,
            Setting::SessionExpiryMax(seconds) => self.session_expiry_s_max = seconds,
            Setting::IdempotencyKeysMax(keys) => self.idempotency_keys_max = keys,
            Setting::IdempotencyWindow(seconds) => self.idempotency_window_s = seconds,
            Setting::DelayMax(seconds) => self.delay_s_max = seconds,
            Setting::DelayedBytesMax(bytes) => self.delayed_bytes_max = bytes,
            Setting::SubscriptionsMax(most) => self.subscriptions_max = most,
            Setting::AclOtherwise(permission) => self.acl_otherwise = permission,
        }
    }
}

/// How many there are, in the whole cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sessions, connected or not.
    pub sessions: u64,
    /// Sessions with a connection.
    pub connected: u64,
    /// Subscriptions of all sessions.
    pub subscriptions: u64,
    /// Sessions that expired, as far as this replica has applied it since it was opened.
    pub expired: u64,
    /// Rows in all queues.
    pub queued: u64,
    /// Retained messages.
    pub retained: u64,
}

/// The proposal stream of an open incarnation.
#[derive(Clone, Copy, Debug)]
struct Stream {
    node: NodeId,
    last: BatchSeq,
    dirty: bool,
}

/// The state machine over `S`.
#[derive(Debug)]
pub struct Machine<S> {
    rows: Overlay<S>,
    applied: AppliedRow,
    raft_state: Option<Bytes>,
    settings: Settings,
    /// Shared with readers: changed by a copy, once they have it.
    access: Arc<Access>,
    nodes: BTreeMap<NodeId, NodeRow>,
    next_node: u64,
    /// Open incarnations.
    streams: BTreeMap<Incarnation, Stream>,
    sessions: Sessions,
    trie: Trie,
    deadlines: BTreeSet<Deadline>,
    continuations: Continuations,
    retained_expiry: RetainedExpiry,
    retained_topics: RetainedTopics,
    /// Counted for people only.
    expired: u64,
    references: References,
    idempotency: Idempotency,
    waiting: Waiting,
    /// Retained messages that the current entry's SUBSCRIBEs may still look at.
    retained_budget: usize,
    /// Next number for what apply itself publishes in the current entry.
    next_number: u32,
    /// Deliveries and kicks of the current batch: they follow its outcomes, so that a connection hears
    /// CONNACK before its first message.
    pending: Vec<Effect>,
    /// Rows that came and went in the current batch: their deliveries are not passed on.
    withdrawn: BTreeSet<(SessionId, QueueSeq)>,
    shares: Shares,
    /// Messages of shared groups that the current entry may still serve.
    share_budget: usize,
    /// Whose commands are being applied.
    origin: Option<Incarnation>,
}

/// Commands of one batch that are applied; what is beyond is answered as void. A proposer cuts batches of some dozens.
const COMMANDS_MAX: usize = 1 << 18;
/// Numbers of one entry that may be given away freely: the rest is kept for wills and delayed publishes, which cannot be
/// refused. A command sets off one will at most, and a step of the timers no more than it has rows.
const NUMBERS_MAX: usize = Position::NUMBER_MAX as usize - COMMANDS_MAX - timers::STEP_ROWS;

impl<S: RowStore> Machine<S> {
    /// Applies one entry. Nothing is visible to readers before [`Self::commit_run`].
    ///
    /// # Errors
    /// [`MachineError`]; the machine must not be used any more.
    pub fn apply(
        &mut self,
        entry: EntryContext,
        batch: &Batch,
        effects: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        self.advance_to(entry)?;
        self.rows.count_entry(batch.log_bytes());
        self.next_number = u32::try_from(batch.commands.len().min(COMMANDS_MAX)).unwrap_or(u32::MAX);
        self.retained_budget = timers::STEP_ROWS;
        self.share_budget = timers::STEP_ROWS;
        match batch.origin {
            Origin::Stream { node, incarnation, seq } => {
                if let Some(true) = self.accept(node, incarnation, seq, effects) {
                    let outcomes = self.run(entry, Some(incarnation), &batch.commands, effects)?;
                    if effects.wants(incarnation) {
                        effects.push(Effect::Applied { incarnation, seq, outcomes });
                    }
                }
            }
            Origin::Direct { nonce } => {
                let outcomes = self.run(entry, None, &batch.commands, effects)?;
                effects.push(Effect::DirectApplied { nonce, outcomes });
            }
        }
        self.origin = None;
        self.advance_timers(effects)?;
        self.serve_shares(self.share_budget, effects)?;
        for effect in self.pending.drain(..) {
            let is_withdrawn = match &effect {
                Effect::Deliver { delivery: Delivery { to, seq: Some(seq), .. }, .. } => {
                    !self.withdrawn.is_empty() && self.withdrawn.contains(&(to.session, *seq))
                }
                _ => false,
            };
            if !is_withdrawn {
                effects.push(effect);
            }
        }
        self.withdrawn.clear();
        Ok(())
    }

    /// Takes note of an entry without commands: a new leader's blank one, or a membership change with the
    /// Raft layer's bytes for it, which are kept for [`Self::raft_state`].
    ///
    /// # Errors
    /// [`MachineError::OutOfOrder`].
    pub fn note(&mut self, entry: EntryContext, raft_state: Option<&[u8]>) -> Result<(), MachineError> {
        self.advance_to(entry)?;
        if let Some(bytes) = raft_state {
            let bytes = Bytes::copy_from_slice(bytes);
            self.rows.put(key::meta(MetaName::Raft), bytes.clone());
            self.raft_state = Some(bytes);
        }
        Ok(())
    }

    /// Writes what the entries since the last call changed, applied index included, in one atomic batch.
    ///
    /// # Errors
    /// [`MachineError`] when the rows cannot be written; the machine must not be used any more.
    pub fn commit_run(&mut self) -> Result<(), MachineError> {
        for id in self.sessions.take_dirty() {
            if let Some(session) = self.sessions.get_mut(id) {
                session.counters_dirty = false;
                let value = session.counters.to_bytes()?;
                self.sessions.count_queued(id);
                self.rows.put(key::of_session(RowKind::Counters, id), value);
            }
        }
        for (incarnation, stream) in self.streams.iter_mut().filter(|(_, s)| s.dirty) {
            stream.dirty = false;
            self.rows.put(key::dedup(*incarnation), NumberRow(stream.last.0).to_bytes()?);
        }
        self.references.write(&mut self.rows)?;
        self.write_shares()?;
        self.rows.put(key::meta(MetaName::Applied), self.applied.to_bytes()?);
        Ok(self.rows.commit()?)
    }

    fn advance_to(&mut self, entry: EntryContext) -> Result<(), MachineError> {
        let expected = self.applied.index + 1;
        // The log of a bootstrapped cluster begins at 0, rows begin before it.
        if entry.index != expected && !(entry.index == 0 && self.applied == AppliedRow::initial()) {
            return Err(MachineError::OutOfOrder { found: entry.index, expected });
        }
        self.applied.index = entry.index;
        self.applied.term = entry.term;
        self.applied.time = self.applied.time.max(entry.stamp);
        Ok(())
    }

    fn run(
        &mut self,
        entry: EntryContext,
        origin: Option<Incarnation>,
        commands: &[Command],
        effects: &mut dyn EffectSink,
    ) -> Result<Vec<Outcome>, MachineError> {
        self.origin = origin;
        let mut outcomes = Vec::with_capacity(commands.len());
        for (number, command) in commands.iter().enumerate() {
            if number >= COMMANDS_MAX {
                outcomes.push(Outcome::Void);
                continue;
            }
            let position = Position::new(entry.index, u32::try_from(number).unwrap_or(u32::MAX));
            let outcome = match origin {
                Some(incarnation) => self.command(incarnation, position, command, effects)?,
                None => self.direct(entry, position, command, effects)?,
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// A command of a node's stream.
    fn command(
        &mut self,
        origin: Incarnation,
        position: Position,
        command: &Command,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        match command {
            Command::Connect(connect) => self.connect(origin, position, connect, fx),
            Command::Close(close) if self.is_current(origin, close.from) => self.close(close),
            Command::Publish(publish) if publish.from.is_none_or(|from| self.is_current(origin, from)) => {
                self.publish(position, publish, fx)
            }
            Command::Release { from, packet_id } if self.is_current(origin, *from) => {
                self.release(from.session, *packet_id)
            }
            Command::Settle(settle) if self.is_current(origin, settle.from) => self.settle(settle),
            Command::Subscribe(subscribe) if self.is_current(origin, subscribe.from) => {
                self.subscribe(position, subscribe, fx)
            }
            Command::Unsubscribe { from, filters } if self.is_current(origin, *from) => {
                self.unsubscribe(from.session, filters)
            }
            Command::Close(_)
            | Command::Publish(_)
            | Command::Release { .. }
            | Command::Settle(_)
            | Command::Subscribe(_)
            | Command::Unsubscribe { .. } => Ok(Outcome::Fenced),
            Command::Set(setting) => self.set(*setting),
            Command::EndSession { session } => self.end_by_operator(*session, fx),
            Command::PutUser(user) => self.put_user(user),
            Command::DeleteUser { name } => self.delete_user(name),
            Command::PutAclRule(rule) => self.put_acl_rule(rule),
            Command::DeleteAclRule { number } => Ok(self.delete_acl_rule(*number)),
            Command::SetShareStrategy { share, filter, strategy } => self.set_share_strategy(share, filter, *strategy),
            Command::NodeStarted(_)
            | Command::NodeLost { .. }
            | Command::Tick
            | Command::AllocateNode { .. }
            | Command::RemoveNode { .. } => Ok(Outcome::Void),
        }
    }

    /// A command outside the streams: idempotent by itself.
    fn direct(
        &mut self,
        entry: EntryContext,
        position: Position,
        command: &Command,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        match command {
            Command::NodeStarted(started) => self.node_started(position, started, fx),
            Command::NodeLost { incarnation, term } => self.node_lost(entry, *incarnation, *term, fx),
            Command::AllocateNode { token, info } => self.allocate_node(*token, info),
            Command::RemoveNode { node } => self.remove_node(*node, fx),
            Command::Set(setting) => self.set(*setting),
            Command::EndSession { session } => self.end_by_operator(*session, fx),
            Command::PutUser(user) => self.put_user(user),
            Command::DeleteUser { name } => self.delete_user(name),
            Command::PutAclRule(rule) => self.put_acl_rule(rule),
            Command::DeleteAclRule { number } => Ok(self.delete_acl_rule(*number)),
            Command::SetShareStrategy { share, filter, strategy } => self.set_share_strategy(share, filter, *strategy),
            Command::Tick => Ok(Outcome::Done),
            Command::Connect(_)
            | Command::Close(_)
            | Command::Publish(_)
            | Command::Release { .. }
            | Command::Settle(_)
            | Command::Subscribe(_)
            | Command::Unsubscribe { .. } => Ok(Outcome::Void),
        }
    }

    /// Whether `from` is the session's connection of today and `origin` its node: the fence.
    fn is_current(&self, origin: Incarnation, from: SessionRef) -> bool {
        self.sessions.get(from.session).is_some_and(|s| {
            (s.row.epoch == from.epoch && s.row.owner == Some(origin)) || is_seeded(SeededBug::TakeoverWithoutFencing)
        })
    }

    fn set(&mut self, setting: Setting) -> Result<Outcome, MachineError> {
        self.settings.set(setting);
        let ordinal = match setting {
            Setting::QueueBytesMax(bytes) => {
                self.sessions.set_queue_bytes_max(bytes);
                1
            }
            Setting::QueueFullPolicy(_) => 2,
            Setting::SessionExpiryMax(_) => 3,
            Setting::IdempotencyKeysMax(_) => 4,
            Setting::IdempotencyWindow(_) => 5,
            Setting::DelayMax(_) => 6,
            Setting::DelayedBytesMax(_) => 7,
            Setting::SubscriptionsMax(_) => 8,
            Setting::AclOtherwise(permission) => {
                self.set_acl_otherwise(permission);
                9
            }
        };
        self.rows.put(key::setting(ordinal), SettingRow(setting).to_bytes()?);
        Ok(Outcome::Done)
    }

    /// The owner of a session, if its incarnation is open.
    fn open_owner(&self, owner: Option<Incarnation>) -> Option<Incarnation> {
        owner.filter(|incarnation| self.streams.contains_key(incarnation))
    }

    /// Whether a session has not ended: not by its expiry, and not with a connection to a node that was lost and
    /// from which it is not detached yet.
    fn lives(&self, session: &Session) -> bool {
        let ends_with_its_connection = session.row.expiry_s == 0;
        session.is_live(self.applied.time)
            && (!ends_with_its_connection || self.open_owner(session.row.owner).is_some())
    }

    /// A position of this entry for something that apply itself makes. Whoever can do without asks
    /// [`Self::numbers_left`] first.
    fn own_position(&mut self) -> Position {
        let position = Position::new(self.applied.index, self.next_number.min(Position::NUMBER_MAX));
        self.next_number = self.next_number.saturating_add(1);
        position
    }

    /// How many positions this entry still has for what is not owed in it.
    fn numbers_left(&self) -> usize {
        NUMBERS_MAX.saturating_sub(self.next_number as usize)
    }

    /// Where in the log the machine is, and cluster time.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.applied
    }

    /// The Raft layer's bytes of the last [`Self::note`] that had some.
    #[must_use]
    pub fn raft_state(&self) -> Option<Bytes> {
        self.raft_state.clone()
    }

    /// The replicated settings in force.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// How many there are of what the whole cluster holds, without looking at each.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            sessions: self.sessions.len() as u64,
            connected: self.sessions.connected() as u64,
            subscriptions: (self.trie.len() + self.shares.memberships()) as u64,
            expired: self.expired,
            queued: self.sessions.queued(),
            retained: self.retained_topics.len() as u64,
        }
    }

    /// Sessions whose queue is over half of its byte bound, `named_max` of them by name, without looking at each. For
    /// people: a replica that was opened meanwhile may take one for below it that has been above.
    #[must_use]
    pub fn queues_over_half(&self, named_max: usize) -> QueuesOverHalf {
        self.sessions.over_half(named_max)
    }

    /// The rows as they are written.
    #[must_use]
    pub fn store(&self) -> &S {
        self.rows.store()
    }

    /// All nodes, in order of id.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeSummary> {
        let summary = |(id, row): (&NodeId, &NodeRow)| NodeSummary {
            id: *id,
            info: row.info.clone(),
            incarnation: row.incarnation,
            up: row.is_up,
            wall_ms: row.wall_ms,
        };
        self.nodes.iter().map(summary).collect()
    }

    /// All sessions, in order of creation (administration, tests).
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionSummary> {
        self.sessions.summaries()
    }

    /// Calls `deliver` for each connected session that a QoS 0 message is routed to. Reads only: QoS 0
    /// without RETAIN does not go through the log. Of a shared group one connected member is chosen here, by this node
    /// alone.
    pub fn match_qos0(
        &self,
        publisher: Option<SessionId>,
        topic: &TopicName,
        message: &SharedMessage,
        deliver: &mut dyn FnMut(Incarnation, Delivery),
    ) {
        let found = self.trie.matches(topic, publisher);
        let mut send = |to: SessionId, identifiers: Arc<[u32]>| {
            let Some(session) = self.sessions.get(to) else { return };
            let Some(owner) = self.open_owner(session.row.owner) else { return };
            let to = SessionRef { session: to, epoch: session.row.epoch };
            let (qos, message) = (QoS::AtMostOnce, message.clone());
            deliver(owner, Delivery { to, seq: None, qos, retain: false, identifiers, message });
        };
        for found in found.sessions {
            send(found.session, shared_identifiers(found.identifiers.into_iter()));
        }
        for share in found.shares {
            if let Some(to) = self.choose_qos0(share, publisher, topic) {
                send(to.session, to.identifiers);
            }
        }
    }

    /// Hash of all rows as written: equal on all replicas at the same applied index.
    ///
    /// # Errors
    /// [`MachineError`] when the rows cannot be read.
    pub fn digest(&self) -> Result<u64, MachineError> {
        Ok(digest(self.rows.store())?)
    }
}
