//! Helpers of the tests of the proposal path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use quorate_store::codec::{self, Payload};
use quorate_store::command::{Ack, AckKind, Batch, Command, Origin, Publish, SessionRef, Settle};
use quorate_store::effect::{Effect, Outcome};
use quorate_store::ids::{BatchSeq, Epoch, Incarnation, NodeId, Position, QoS, QueueSeq, SessionId};
use quorate_store::topic::TopicName;
use tokio::sync::watch;

use super::Submission;
use super::lock;
use crate::apply::ApplyObserver;
use crate::consensus::{AppendRefused, Appended, AppliedView, LeaderView, ReadIndexError};
use crate::effects::{AppliedRun, NodeEffects, NodeEvent, Ticket};
use crate::leader_intake::Leadership;

/// The node whose proposer is tested.
pub(crate) const NODE: NodeId = NodeId(1);

/// The `n`-th incarnation.
pub(crate) fn incarnation(n: u64) -> Incarnation {
    Incarnation(Position::new(n, 0))
}

/// The ticket of command `id`.
pub(crate) fn ticket(id: u64) -> Ticket {
    Ticket { worker: 0, slot: 1, generation: 2, request: id }
}

/// A connection.
pub(crate) fn connection(session: u64, epoch: u64) -> SessionRef {
    SessionRef { session: SessionId(Position::new(session, 0)), epoch: Epoch(Position::new(epoch, 0)) }
}

/// A QoS 1 publish of `from` whose payload is `id`.
pub(crate) fn publish_from(from: SessionRef, id: u64) -> Command {
    Command::Publish(Publish {
        from: Some(from),
        packet_id: None,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: TopicName::new("t").unwrap(),
        properties: None,
        expiry_s: None,
        payload: Payload(Bytes::copy_from_slice(&id.to_le_bytes())),
    })
}

/// A QoS 1 publish whose payload is `id`.
pub(crate) fn publish(id: u64) -> Command {
    publish_from(connection(1, 1), id)
}

/// An acknowledgement of row `id`.
pub(crate) fn settle(from: SessionRef, id: u64) -> Command {
    let ack = Ack { seq: QueueSeq(id), position: Position::ZERO, kind: AckKind::Puback };
    Command::Settle(Settle { from, acks: vec![ack] })
}

/// `command` with the ticket of `id`.
pub(crate) fn submission(id: u64, command: Command) -> Submission {
    Submission { command, ticket: ticket(id), withdrawn: None, can_wait: false }
}

/// The ids in a command made by [`publish`] or [`settle`].
pub(crate) fn ids_of(command: &Command) -> Vec<u64> {
    match command {
        Command::Publish(publish) => {
            publish.payload.first_chunk().map(|b| u64::from_le_bytes(*b)).into_iter().collect()
        }
        Command::Settle(settle) => settle.acks.iter().map(|a| a.seq.0).collect(),
        _ => Vec::new(),
    }
}

/// A front end that only remembers.
#[derive(Debug, Default)]
pub(crate) struct FakeFront(Mutex<Vec<Told>>);

/// What it was told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Outcome(u64, Outcome),
    Other,
    Started(Incarnation),
    Closed(Incarnation),
}

impl FakeFront {
    pub(crate) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut lock(&self.0))
    }

    /// Everything so far.
    pub(crate) fn seen(&self) -> Vec<Told> {
        lock(&self.0).clone()
    }
}

impl NodeEffects for FakeFront {
    fn applied(&self, run: AppliedRun) {
        lock(&self.0).extend(run.events.into_iter().map(|event| match event {
            NodeEvent::Outcome { ticket, outcome } => Told::Outcome(ticket.request, outcome),
            NodeEvent::Deliver(_) | NodeEvent::Withdraw { .. } | NodeEvent::Kick { .. } => Told::Other,
        }));
    }

    fn incarnation_started(&self, incarnation: Incarnation) {
        lock(&self.0).push(Told::Started(incarnation));
    }

    fn incarnation_closed(&self, incarnation: Incarnation) {
        lock(&self.0).push(Told::Closed(incarnation));
    }
}

/// A log entry of the model.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Batch(Bytes),
    Start(u128),
    Lost(Incarnation),
}

/// The state machine's rule for streams, written down a second time.
#[derive(Debug, Default)]
pub(crate) struct ModelMachine {
    pub(crate) open: Option<Incarnation>,
    nonce: Option<u128>,
    last: u64,
    /// By incarnation, in the order of application: command ids.
    pub(crate) applied: HashMap<Incarnation, Vec<u64>>,
    pub(crate) positions: HashMap<u64, Position>,
}

impl ModelMachine {
    /// Applies the entry at `index`.
    pub(crate) fn apply(&mut self, index: u64, entry: &Entry) -> Vec<Effect> {
        match entry {
            Entry::Start(nonce) => {
                let mut effects = Vec::new();
                if self.nonce != Some(*nonce) {
                    effects.extend(self.close());
                    self.nonce = Some(*nonce);
                    self.open = Some(Incarnation(Position::new(index, 0)));
                    self.last = 0;
                }
                let incarnation = self.open.unwrap_or(Incarnation(Position::ZERO));
                effects
                    .push(Effect::DirectApplied { nonce: *nonce, outcomes: vec![Outcome::NodeStarted(incarnation)] });
                effects
            }
            Entry::Lost(incarnation) if self.open == Some(*incarnation) => self.close().into_iter().collect(),
            Entry::Lost(_) => Vec::new(),
            Entry::Batch(bytes) => self.batch(index, &codec::decode(bytes).unwrap()),
        }
    }

    fn close(&mut self) -> Option<Effect> {
        self.open.take().map(|incarnation| Effect::IncarnationClosed { incarnation, node: NODE })
    }

    fn batch(&mut self, index: u64, batch: &Batch) -> Vec<Effect> {
        let Origin::Stream { incarnation, seq, .. } = batch.origin else { panic!("only streams here") };
        if self.open != Some(incarnation) || seq.0 <= self.last {
            return Vec::new();
        }
        if seq.0 > self.last + 1 {
            return vec![Effect::Gap { incarnation, expected: BatchSeq(self.last + 1) }];
        }
        self.last = seq.0;
        let mut outcomes = Vec::new();
        for (number, command) in batch.commands.iter().enumerate() {
            let position = Position::new(index, number as u32);
            for id in ids_of(command) {
                self.applied.entry(incarnation).or_default().push(id);
                assert!(self.positions.insert(id, position).is_none(), "command {id} is applied twice");
            }
            outcomes.push(Outcome::Published { position, matched: true });
        }
        vec![Effect::Applied { incarnation, seq, outcomes }]
    }
}

/// Hands the effects of one entry to an observer, as the machine and the apply thread do.
pub(crate) fn observe(observer: &mut impl ApplyObserver, effects: Vec<Effect>) {
    for effect in effects {
        let wanted = match &effect {
            Effect::Applied { incarnation, .. }
            | Effect::Gap { incarnation, .. }
            | Effect::IncarnationClosed { incarnation, .. } => observer.wants(*incarnation),
            _ => true,
        };
        if wanted {
            observer.effect(effect);
        }
    }
}

/// What a fake leader does with the next appends.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mood {
    /// Appends them.
    #[default]
    Takes,
    /// Says that it does, and drops them.
    Swallows,
    /// Refuses them.
    Refuses(AppendRefused),
}

/// Raft on one node of a model cluster: all share one log.
#[derive(Clone)]
pub(crate) struct FakeRaft(Arc<FakeRaftState>);

struct FakeRaftState {
    node: NodeId,
    voters: Vec<NodeId>,
    view: watch::Sender<LeaderView>,
    applied: watch::Sender<AppliedView>,
    log: watch::Sender<Vec<Bytes>>,
    mood: Mutex<Mood>,
    swallowed: watch::Sender<u64>,
    refused: watch::Sender<u64>,
    acked_at: Mutex<Option<Instant>>,
    heard_at: Mutex<Option<Instant>>,
    removed: Mutex<Vec<NodeId>>,
}

impl FakeRaft {
    /// One for each node, with one log.
    pub(crate) fn cluster(nodes: &[u64]) -> Vec<Self> {
        let log = watch::Sender::new(Vec::new());
        let voters: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let one = |node: &NodeId| {
            Self(Arc::new(FakeRaftState {
                node: *node,
                voters: voters.clone(),
                view: watch::Sender::new(LeaderView::default()),
                applied: watch::Sender::new(AppliedView::default()),
                log: log.clone(),
                mood: Mutex::default(),
                swallowed: watch::Sender::new(0),
                refused: watch::Sender::new(0),
                acked_at: Mutex::new(None),
                heard_at: Mutex::new(None),
                removed: Mutex::default(),
            }))
        };
        voters.iter().map(one).collect()
    }

    /// All of `cluster` know that `leader` leads in `term`.
    pub(crate) fn elect(cluster: &[Self], leader: u64, term: u64) {
        let is_leader = |raft: &&Self| raft.0.node == NodeId(leader);
        // It knows first: nobody is sent to one that does not lead yet.
        for raft in cluster.iter().filter(is_leader).chain(cluster.iter().filter(|raft| !is_leader(raft))) {
            let is_self = is_leader(&raft);
            *lock(&raft.0.acked_at) = is_self.then(Instant::now);
            raft.0.view.send_modify(|view| *view = LeaderView { leader: Some(NodeId(leader)), term, is_self, ..*view });
        }
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        *lock(&self.0.mood) = mood;
    }

    /// How many appends it has swallowed.
    pub(crate) fn swallowed(&self) -> watch::Receiver<u64> {
        self.0.swallowed.subscribe()
    }

    /// How many appends it has refused in its mood.
    pub(crate) fn refused(&self) -> watch::Receiver<u64> {
        self.0.refused.subscribe()
    }

    /// Something that was enqueued was dropped.
    pub(crate) fn tell_refusal(&self) {
        self.0.view.send_modify(|view| view.refusals += 1);
    }

    pub(crate) fn set_acked(&self, at: Option<Instant>) {
        *lock(&self.0.acked_at) = at;
    }

    pub(crate) fn set_heard(&self, at: Option<Instant>) {
        *lock(&self.0.heard_at) = at;
    }

    /// `node` is no member any more, as this one sees it.
    pub(crate) fn remove(&self, node: NodeId) {
        lock(&self.0.removed).push(node);
    }

    /// The log, and each change of it.
    pub(crate) fn log(&self) -> watch::Receiver<Vec<Bytes>> {
        self.0.log.subscribe()
    }
}

impl Leadership for FakeRaft {
    fn node_id(&self) -> NodeId {
        self.0.node
    }

    async fn append(&self, bytes: Bytes, _: Appended) -> Result<(), AppendRefused> {
        let view = *self.0.view.borrow();
        if !view.is_self {
            return Err(AppendRefused::NotLeader { leader: view.leader });
        }
        match lock(&self.0.mood).clone() {
            Mood::Takes => self.0.log.send_modify(|log| log.push(bytes)),
            Mood::Swallows => self.0.swallowed.send_modify(|n| *n += 1),
            Mood::Refuses(refused) => {
                self.0.refused.send_modify(|n| *n += 1);
                return Err(refused);
            }
        }
        Ok(())
    }

    fn leader_watch(&self) -> watch::Receiver<LeaderView> {
        self.0.view.subscribe()
    }

    fn applied_watch(&self) -> watch::Receiver<AppliedView> {
        self.0.applied.subscribe()
    }

    fn quorum_acked_at(&self) -> Option<Instant> {
        *lock(&self.0.acked_at)
    }

    fn leader_heard_at(&self) -> Option<Instant> {
        *lock(&self.0.heard_at)
    }

    fn is_member(&self, node: NodeId) -> bool {
        !lock(&self.0.removed).contains(&node)
    }

    fn voters(&self) -> Vec<NodeId> {
        self.0.voters.clone()
    }

    async fn read_index(&self) -> Result<u64, ReadIndexError> {
        let view = *self.0.view.borrow();
        if !view.is_self {
            return Err(ReadIndexError::NotLeader { leader: view.leader });
        }
        if lock(&self.0.acked_at).is_none() {
            return Err(ReadIndexError::NoQuorum);
        }
        Ok(self.0.log.borrow().len() as u64)
    }
}
