//! What the tests of the machine share: a rig that plays leader and nodes over one log, and short ways to
//! write commands.
//!
//! Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod commands;
pub(crate) mod counting;
pub(crate) mod replica;

use std::collections::BTreeMap;

use proptest::test_runner::Config as ProptestConfig;
use quorate_store::command::{AckKind, Batch, Command, Connect, NodeInfo, NodeStarted, Origin, Publish};
use quorate_store::command::{SessionRef, Settle};
use quorate_store::effect::{AllEffects, Connected, Delivery, Effect, Outcome};
use quorate_store::ids::{BatchSeq, ClusterTime, Incarnation, NodeId, Position, QueueSeq, SessionId};
use quorate_store::machine::{EntryContext, Machine};
use quorate_store::rows::key::RowKind;
use quorate_store::rows::{MemRows, QueuedRow, page};

/// So many cases of a property, unless `PROPTEST_CASES` says otherwise. What fails is shrunk, not kept in a file:
/// it becomes a schedule by name.
#[allow(clippy::disallowed_methods, reason = "how long to test is the tester's to say; the machine sees nothing of it")]
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let asked = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: asked("PROPTEST_CASES").unwrap_or(cases),
        max_shrink_iters: asked("PROPTEST_MAX_SHRINK_ITERS").unwrap_or(5_000),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Nonce of the ticks that a leader appends because a continuation waits.
pub(crate) const DRAIN_NONCE: u128 = u128::MAX;
/// More ticks than any test needs; beyond, a continuation does not end.
const DRAIN_TICKS_MAX: usize = 100_000;

/// One entry of the log.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) context: EntryContext,
    pub(crate) batch: Batch,
}

/// A node, as the leader sees its proposal stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) incarnation: Incarnation,
    pub(crate) last: u64,
}

/// One machine, its log, and the nodes that propose.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) machine: Machine<MemRows>,
    pub(crate) log: Vec<Entry>,
    pub(crate) term: u64,
    /// Next stamp.
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<u64, Stream>,
    nonce: u128,
}

/// What one entry led to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Happened(pub(crate) Vec<Effect>);

impl Rig {
    /// An empty cluster at a cluster time of 1,000 s.
    pub(crate) fn new() -> Self {
        let machine = Machine::open(MemRows::default()).unwrap();
        Self { machine, log: Vec::new(), term: 1, now: 1_000_000, nodes: BTreeMap::new(), nonce: 0 }
    }

    /// A cluster of which nodes 1 to `nodes` have started.
    pub(crate) fn with_nodes(nodes: u64) -> Self {
        let mut rig = Self::new();
        for node in 1..=nodes {
            // The first of all starts unasked.
            if node > 1 {
                rig.allocate(node);
            }
            rig.start(node);
        }
        rig
    }

    /// Index of the next entry.
    pub(crate) fn next_index(&self) -> u64 {
        self.log.len() as u64 + 1
    }

    /// Appends an entry, applies it and commits the run; continuations are left as they are.
    pub(crate) fn append(&mut self, batch: Batch) -> Happened {
        let happened = self.append_uncommitted(batch);
        self.machine.commit_run().unwrap();
        happened
    }

    /// Appends and applies an entry without writing rows.
    pub(crate) fn append_uncommitted(&mut self, batch: Batch) -> Happened {
        let context = EntryContext { index: self.next_index(), term: self.term, stamp: ClusterTime(self.now) };
        let mut effects = AllEffects::default();
        self.machine.apply(context, &batch, &mut effects).unwrap();
        self.log.push(Entry { context, batch });
        Happened(effects.0)
    }

    /// Appends ticks at the same time until no continuation is left.
    pub(crate) fn drain(&mut self) -> Happened {
        let mut all = Happened::default();
        for _ in 0..DRAIN_TICKS_MAX {
            if !self.machine.has_continuations() {
                return all;
            }
            let tick = Batch { origin: Origin::Direct { nonce: DRAIN_NONCE }, commands: vec![Command::Tick] };
            all.0.extend(self.append(tick).0);
        }
        panic!("a continuation does not end");
    }

    /// A direct entry, and all that it leaves to be continued.
    pub(crate) fn direct(&mut self, command: Command) -> Happened {
        let mut happened = self.direct_undrained(command);
        happened.0.extend(self.drain().0);
        happened
    }

    /// A direct entry.
    pub(crate) fn direct_undrained(&mut self, command: Command) -> Happened {
        self.nonce += 1;
        self.append(Batch { origin: Origin::Direct { nonce: self.nonce }, commands: vec![command] })
    }

    /// The next batch of a node's stream.
    pub(crate) fn next_batch(&mut self, node: u64, commands: Vec<Command>) -> Batch {
        let stream = self.nodes.get_mut(&node).expect("a started node");
        stream.last += 1;
        let seq = BatchSeq(stream.last);
        Batch { origin: Origin::Stream { node: NodeId(node), incarnation: stream.incarnation, seq }, commands }
    }

    /// One batch of a node's stream, and all that it leaves to be continued.
    pub(crate) fn batch(&mut self, node: u64, commands: Vec<Command>) -> Happened {
        let mut happened = self.batch_undrained(node, commands);
        happened.0.extend(self.drain().0);
        happened
    }

    /// One batch of a node's stream.
    pub(crate) fn batch_undrained(&mut self, node: u64, commands: Vec<Command>) -> Happened {
        let batch = self.next_batch(node, commands);
        self.append(batch)
    }

    /// One command; its outcome.
    pub(crate) fn one(&mut self, node: u64, command: Command) -> Outcome {
        self.batch(node, vec![command]).outcome()
    }

    pub(crate) fn allocate(&mut self, node: u64) {
        let command = Command::AllocateNode { token: u128::from(node) << 64, info: NodeInfo::default() };
        assert_eq!(self.direct(command).outcome(), Outcome::NodeAllocated(NodeId(node)));
    }

    /// Starts a node anew.
    pub(crate) fn start(&mut self, node: u64) -> Happened {
        self.nonce += 1;
        let started = self.node_started(node, self.nonce);
        let happened = self.direct(Command::NodeStarted(started));
        let Outcome::NodeStarted(incarnation) = happened.outcome() else { panic!("{happened:?}") };
        self.nodes.insert(node, Stream { incarnation, last: 0 });
        happened
    }

    /// A start of a node that knows of its latest life.
    pub(crate) fn node_started(&self, node: u64, nonce: u128) -> NodeStarted {
        let replaces = self.nodes.get(&node).map(|stream| stream.incarnation);
        NodeStarted { node: NodeId(node), nonce, replaces, wall_ms: 0, info: NodeInfo::default() }
    }

    /// The leader of this term declares a node's incarnation lost.
    pub(crate) fn lose(&mut self, node: u64) -> Happened {
        let (incarnation, term) = (self.incarnation(node), self.term);
        self.direct(Command::NodeLost { incarnation, term })
    }

    pub(crate) fn incarnation(&self, node: u64) -> Incarnation {
        self.nodes[&node].incarnation
    }

    /// Lets time pass and appends a tick.
    pub(crate) fn pass_ms(&mut self, ms: u64) -> Happened {
        self.now += ms;
        self.direct(Command::Tick)
    }

    /// Connects; panics unless connected.
    pub(crate) fn connect(&mut self, node: u64, connect: Connect) -> Connected {
        self.batch(node, vec![Command::Connect(connect)]).connected()
    }

    /// Connects, and leaves what is to be continued as it is.
    pub(crate) fn connect_undrained(&mut self, node: u64, connect: Connect) -> SessionRef {
        self.batch_undrained(node, vec![Command::Connect(connect)]).connected().session
    }

    /// A durable session that has subscribed to `to` at QoS `q`.
    pub(crate) fn subscriber(&mut self, node: u64, client_id: &str, q: u8, to: &str) -> SessionRef {
        let from = self.connect(node, commands::connect(client_id)).session;
        assert_eq!(self.one(node, commands::subscribe(from, q, to)), commands::granted_new(q));
        from
    }

    /// A session that publishes only.
    pub(crate) fn publisher(&mut self, node: u64, client_id: &str) -> SessionRef {
        self.connect(node, commands::connect(client_id)).session
    }

    /// Acknowledges rows of a queue, by number.
    pub(crate) fn settle(&mut self, node: u64, from: SessionRef, kind: AckKind, seqs: &[u64]) -> Outcome {
        let rows = self.queue(from.session);
        let acks = seqs
            .iter()
            .map(|seq| {
                let row = rows.iter().find(|row| row.seq.0 == *seq);
                commands::ack(*seq, row.map_or(Position::ZERO, |row| row.message.position), kind)
            })
            .collect();
        self.one(node, Command::Settle(Settle { from, acks }))
    }

    /// The process starts anew on the same rows.
    pub(crate) fn reopen(&mut self) {
        let machine = Machine::open(self.machine.store().clone()).unwrap();
        self.machine = machine;
    }

    /// How many rows of a kind there are.
    pub(crate) fn count(&self, kind: RowKind) -> usize {
        self.machine.store().iter().filter(|(key, _)| key[2] == kind as u8).count()
    }

    /// All rows but the one that says which entry is applied.
    pub(crate) fn rows_without_index(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let rows = self.machine.store().iter().filter(|(key, _)| key[2..] != [RowKind::Meta as u8, 1]);
        rows.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    pub(crate) fn publish(&mut self, node: u64, publish: Publish) -> Happened {
        self.batch(node, vec![Command::Publish(publish)])
    }

    /// All rows of a queue.
    pub(crate) fn queue(&self, session: SessionId) -> Vec<QueuedRow> {
        page::queue_page(self.machine.store(), session, QueueSeq(0), usize::MAX, usize::MAX).unwrap().rows
    }

    /// Payloads in a queue, as text, in order.
    pub(crate) fn queued(&self, session: SessionId) -> Vec<String> {
        self.queue(session).iter().map(|row| text(&row.message.payload)).collect()
    }
}

impl Happened {
    /// Whether its batch was applied.
    pub(crate) fn is_applied(&self) -> bool {
        self.0.iter().any(|e| matches!(e, Effect::Applied { .. }))
    }

    /// Outcomes of the entry; of its continuations' ticks nothing.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let outcomes = |effect: &Effect| match effect {
            Effect::Applied { outcomes, .. } => Some(outcomes.clone()),
            Effect::DirectApplied { nonce, outcomes } if *nonce != DRAIN_NONCE => Some(outcomes.clone()),
            _ => None,
        };
        self.0.iter().find_map(outcomes).unwrap_or_default()
    }

    /// The outcome of its only command.
    pub(crate) fn outcome(&self) -> Outcome {
        let mut outcomes = self.outcomes();
        assert_eq!(outcomes.len(), 1, "one outcome: {self:?}");
        outcomes.remove(0)
    }

    pub(crate) fn connected(&self) -> Connected {
        match self.outcome() {
            Outcome::Connected(connected) => connected,
            other => panic!("not connected: {other:?}"),
        }
    }

    /// All deliveries.
    pub(crate) fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        self.0.iter().filter_map(|effect| match effect {
            Effect::Deliver { delivery, .. } => Some(delivery),
            _ => None,
        })
    }

    /// All deliveries to a session, whichever its connection.
    pub(crate) fn to(&self, session: SessionId) -> Vec<Delivery> {
        let delivery = |effect: &Effect| match effect {
            Effect::Deliver { delivery, .. } if delivery.to.session == session => Some(delivery.clone()),
            _ => None,
        };
        self.0.iter().filter_map(delivery).collect()
    }

    /// Payloads of all deliveries to a session, as text.
    pub(crate) fn sent(&self, session: SessionId) -> Vec<String> {
        self.to(session).iter().map(|d| text(&d.message.payload)).collect()
    }

    /// Rows that a session's connection is told not to send any more.
    pub(crate) fn withdrawn(&self, from: SessionRef) -> Vec<u64> {
        let withdrawn = |effect: &Effect| match effect {
            Effect::Withdraw { from: of, seq, .. } if *of == from => Some(seq.0),
            _ => None,
        };
        self.0.iter().filter_map(withdrawn).collect()
    }

    /// Whether the machine has nothing to say to anybody.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn kicks(&self) -> Vec<&Effect> {
        self.0.iter().filter(|e| matches!(e, Effect::Kick { .. })).collect()
    }

    pub(crate) fn closed(&self) -> Vec<Incarnation> {
        let closed = |effect: &Effect| match effect {
            Effect::IncarnationClosed { incarnation, .. } => Some(*incarnation),
            _ => None,
        };
        self.0.iter().filter_map(closed).collect()
    }
}

pub(crate) fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}
