//! The whole proposer short of sockets (queue, stream, apply thread's end) against a model of everything that
//! can go wrong on the way into the log: links that lose what is under way or deliver it late, leaders that
//! change and drop what was not committed, or drop single batches without a word, closures, snapshots.
//!
//! Holds DESIGN's "Retries are exact": each command is applied at most once and in order, its outcome is told
//! exactly once, and only while its incarnation lives.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_store::effect::Outcome;
use quorate_store::ids::ClusterTime;

use super::testkit::{
    Entry, FakeFront, ModelMachine, NODE, Told, connection, observe, publish_from, settle, submission,
};
use super::*;
use crate::apply::ApplyObserver;
use crate::clock::ClusterClock;
use crate::consensus::AppliedView;
use crate::incarnation::StartTable;

/// A connection to the leader of one term, and what is under way on it.
#[derive(Debug)]
struct Conn {
    term: u64,
    frames: VecDeque<Bytes>,
}

/// A command that was taken.
struct Submitted {
    id: u64,
    incarnation: Incarnation,
    withdrawn: Arc<AtomicBool>,
    /// Session of its connection.
    session: u64,
    is_publish: bool,
}

impl Submitted {
    fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }
}

struct World {
    proposer: Proposer,
    observer: StreamObserver,
    front: Arc<FakeFront>,
    starts: Arc<StartTable>,
    now: Instant,
    next_id: u64,
    /// Submitted and taken, in order.
    submitted: Vec<Submitted>,
    told: HashMap<u64, Outcome>,
    nonce: u128,
    conns: Vec<Conn>,
    /// The stream's link; the others are given up, but what is under way on them may still arrive.
    current: Option<usize>,
    term: u64,
    log: Vec<Entry>,
    committed: usize,
    applied: usize,
    machine: ModelMachine,
}

#[derive(Clone, Debug)]
enum Action {
    Submit(u8),
    SubmitSettles(u8),
    Withdraw,
    Pump(u8),
    Deliver { conn: u8, frames: u8 },
    DropOne { conn: u8 },
    Break { conn: u8 },
    Reconnect,
    NewLeader { kept: u8 },
    Commit(u8),
    Apply(u8),
    Wait(u16),
    DeclareLost,
    Start,
    Snapshot,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (1..40u8).prop_map(Action::Submit),
        3 => (1..20u8).prop_map(Action::SubmitSettles),
        1 => Just(Action::Withdraw),
        8 => (1..40u8).prop_map(Action::Pump),
        8 => (any::<u8>(), 1..20u8).prop_map(|(conn, frames)| Action::Deliver { conn, frames }),
        2 => any::<u8>().prop_map(|conn| Action::DropOne { conn }),
        1 => any::<u8>().prop_map(|conn| Action::Break { conn }),
        3 => Just(Action::Reconnect),
        1 => (0..8u8).prop_map(|kept| Action::NewLeader { kept }),
        8 => (1..20u8).prop_map(Action::Commit),
        8 => (1..20u8).prop_map(Action::Apply),
        1 => (1..3000u16).prop_map(Action::Wait),
        1 => Just(Action::DeclareLost),
        3 => Just(Action::Start),
        1 => Just(Action::Snapshot),
    ]
}

impl World {
    fn new() -> Self {
        let limits =
            Limits { batch_commands_max: 8, batches_in_flight_max: 6, waiting_commands_max: 200, ..Limits::default() };
        let proposer = Proposer::new(NODE, &limits, Arc::new(StreamStats::default()));
        let front = Arc::new(FakeFront::default());
        let starts = Arc::new(StartTable::default());
        let clock = Arc::new(ClusterClock::new(Duration::MAX));
        let directs = Arc::new(DirectTable::default());
        let observer = StreamObserver::new(&proposer, directs, starts.clone(), clock, front.clone());
        Self {
            proposer,
            observer,
            front,
            starts,
            now: Instant::now(),
            next_id: 0,
            submitted: Vec::new(),
            told: HashMap::new(),
            nonce: 0,
            conns: Vec::new(),
            current: None,
            term: 1,
            log: Vec::new(),
            committed: 0,
            applied: 0,
            machine: ModelMachine::default(),
        }
    }

    fn run(&mut self, action: &Action) {
        match action {
            Action::Submit(count) => (0..*count).for_each(|i| self.submit(u64::from(i % 3), true)),
            Action::SubmitSettles(count) => (0..*count).for_each(|i| self.submit(u64::from(i % 3), false)),
            Action::Withdraw => {
                if let Some(last) = self.submitted.last() {
                    last.withdrawn.store(true, Ordering::Release);
                }
            }
            Action::Pump(steps) => (0..*steps).for_each(|_| {
                self.pump();
            }),
            Action::Deliver { conn, frames } => {
                (0..*frames).for_each(|_| self.deliver(usize::from(*conn)));
            }
            Action::DropOne { conn } => {
                // A leader that has just lost its lease drops one batch, and takes the next.
                if let Some(conn) = self.conn(usize::from(*conn)) {
                    conn.frames.pop_front();
                }
            }
            Action::Break { conn } => {
                if let Some(conn) = self.conn(usize::from(*conn)) {
                    conn.frames.clear();
                    conn.term = 0;
                }
            }
            Action::Reconnect => self.reconnect(),
            Action::NewLeader { kept } => {
                self.log.truncate(self.committed + usize::from(*kept));
                self.term += 1;
            }
            Action::Commit(count) => self.committed = (self.committed + usize::from(*count)).min(self.log.len()),
            Action::Apply(count) => self.apply(usize::from(*count)),
            Action::Wait(ms) => self.wait(Duration::from_millis(u64::from(*ms))),
            Action::DeclareLost => {
                if let Some(incarnation) = self.machine.open {
                    self.log.push(Entry::Lost(incarnation));
                }
            }
            Action::Start => self.start(),
            Action::Snapshot => self.snapshot(),
        }
    }

    fn wait(&mut self, patience: Duration) {
        self.now += patience;
        let now = self.now;
        if self.proposer.shared().with_stream(|s| s.stalled(now)).unwrap_or(false) {
            self.reconnect();
        }
    }

    fn submit(&mut self, session: u64, is_publish: bool) {
        let id = self.next_id;
        let withdrawn = Arc::new(AtomicBool::new(false));
        let from = connection(session, 1);
        let command = if is_publish { publish_from(from, id) } else { settle(from, id) };
        // Some acknowledgements wait for others to go with.
        let can_wait = !is_publish && id.is_multiple_of(2);
        let submission = Submission { withdrawn: Some(withdrawn.clone()), can_wait, ..submission(id, command) };
        match (self.proposer.submit(submission), self.proposer.incarnation()) {
            (Ok(()), Some(incarnation)) => {
                self.submitted.push(Submitted { id, incarnation, withdrawn, session, is_publish });
                self.next_id += 1;
            }
            (Ok(()), None) => panic!("a command was taken without an incarnation"),
            (Err(busy), _) => assert_eq!(busy.submission.ticket.request, id),
        }
    }

    /// What the sending task does; whether there was anything to do.
    fn pump(&mut self) -> bool {
        match self.proposer.shared().step(self.now) {
            Step::Send(batch) => {
                let current = self.current.expect("nothing is sent without a link");
                self.conns[current].frames.push_back(batch);
                true
            }
            Step::Again => true,
            Step::Wait { .. } => false,
        }
    }

    fn conn(&mut self, n: usize) -> Option<&mut Conn> {
        let count = self.conns.len();
        if count == 0 { None } else { self.conns.get_mut(n % count) }
    }

    /// The leader at the other end takes one frame, if it still leads.
    fn deliver(&mut self, n: usize) {
        let term = self.term;
        let Some(conn) = self.conn(n) else { return };
        if conn.term != term {
            conn.frames.clear();
        } else if let Some(batch) = conn.frames.pop_front() {
            self.log.push(Entry::Batch(batch));
        }
    }

    fn reconnect(&mut self) {
        let (term, now) = (self.term, self.now);
        self.conns.push(Conn { term, frames: VecDeque::new() });
        self.current = Some(self.conns.len() - 1);
        self.proposer.shared().with_stream(|s| {
            s.disconnected();
            s.connected(now);
        });
    }

    /// What the incarnation task does: one nonce until it is applied or given up.
    fn start(&mut self) {
        if self.proposer.incarnation().is_some() {
            return;
        }
        if !self.starts.is_expecting(self.nonce) {
            self.nonce += 1;
            self.starts.expect(self.nonce);
        }
        self.log.push(Entry::Start(self.nonce));
    }

    fn apply(&mut self, count: usize) {
        let end = (self.applied + count).min(self.committed);
        if end == self.applied {
            return;
        }
        while self.applied < end {
            self.applied += 1;
            let effects = self.machine.apply(self.applied as u64, &self.log[self.applied - 1]);
            observe(&mut self.observer, effects);
        }
        self.observer.committed(self.view());
        self.check();
    }

    /// A snapshot of the committed state is installed: this node sees none of the effects.
    fn snapshot(&mut self) {
        if self.applied == self.committed {
            return;
        }
        while self.applied < self.committed {
            self.applied += 1;
            self.machine.apply(self.applied as u64, &self.log[self.applied - 1]);
        }
        self.observer.installed(self.view());
        self.check();
        assert_eq!(self.proposer.incarnation(), None, "a node over which a snapshot jumped starts over");
    }

    fn view(&self) -> AppliedView {
        AppliedView { index: self.applied as u64, time: ClusterTime(1), ..AppliedView::default() }
    }

    /// What the front end was told must be what the machine did.
    fn check(&mut self) {
        for told in self.front.take() {
            match told {
                Told::Outcome(id, outcome) => {
                    let position = self.machine.positions.get(&id).copied();
                    let expected = position.map(|position| Outcome::Published { position, matched: true });
                    assert_eq!(Some(&outcome), expected.as_ref(), "the outcome of {id} is not what was applied");
                    assert!(self.told.insert(id, outcome).is_none(), "{id} is answered twice");
                }
                Told::Started(_) => self.current = None,
                Told::Closed(_) => {}
                Told::Other => panic!("nothing else can come"),
            }
        }
        for (incarnation, applied) in &self.machine.applied {
            let mine: HashMap<u64, &Submitted> =
                self.submitted.iter().filter(|s| s.incarnation == *incarnation).map(|s| (s.id, s)).collect();
            assert!(applied.iter().all(|id| mine.contains_key(id)), "applied under another incarnation than submitted");
            // Acknowledgements may move forward, into an earlier one, but never past their own connection's commands.
            let in_order = |of: &dyn Fn(&Submitted) -> bool| {
                let ids: Vec<u64> = applied.iter().copied().filter(|id| of(mine[id])).collect();
                assert!(ids.is_sorted(), "applied out of order: {ids:?}");
                let last = ids.last().copied().unwrap_or(0);
                for (id, skipped) in mine.iter().filter(|(id, s)| **id < last && of(s) && !ids.contains(id)) {
                    assert!(skipped.is_withdrawn(), "{id} was skipped");
                }
            };
            in_order(&|s| s.is_publish);
            (0..3).for_each(|session| in_order(&|s| s.session == session));
        }
    }

    /// All faults end: everything that was submitted in the incarnation that lives is answered.
    fn heal(&mut self, patience: Duration) {
        for _ in 0..400 {
            if self.proposer.incarnation().is_none() {
                self.start();
            } else if self.current.is_none_or(|c| self.conns[c].term != self.term) {
                self.reconnect();
            }
            while self.proposer.incarnation().is_some() && self.current.is_some() && self.pump() {}
            if let Some(current) = self.current {
                while !self.conns[current].frames.is_empty() {
                    self.deliver(current);
                }
            }
            self.committed = self.log.len();
            let before = self.applied;
            self.apply(usize::MAX / 2);
            if self.applied == before && self.proposer.incarnation().is_some() {
                if self.proposer.depth() == (0, 0) {
                    break;
                }
                self.wait(patience);
            }
        }
        assert_eq!(self.proposer.depth(), (0, 0), "the stream does not drain");
        let incarnation = self.proposer.incarnation().expect("an incarnation at the end");
        for one in self.submitted.iter().filter(|s| s.incarnation == incarnation && !s.is_withdrawn()) {
            assert!(self.told.contains_key(&one.id), "{} was never answered", one.id);
        }
    }
}

/// Nothing goes wrong.
fn calm_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1..40u8).prop_map(Action::Submit),
        1 => (1..20u8).prop_map(Action::SubmitSettles),
        3 => (1..40u8).prop_map(Action::Pump),
        3 => (1..20u8).prop_map(|frames| Action::Deliver { conn: 0, frames }),
        3 => (1..20u8).prop_map(Action::Commit),
        3 => (1..20u8).prop_map(Action::Apply),
    ]
}

/// With an incarnation and a link.
fn started() -> World {
    let mut world = World::new();
    world.start();
    world.committed = 1;
    world.apply(1);
    world.reconnect();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_command_is_applied_once_in_order_and_answered_once(actions in prop::collection::vec(action(), 1..250)) {
        let mut world = started();
        for action in &actions {
            world.run(action);
        }
        world.heal(Duration::from_secs(60));
    }

    #[test]
    fn without_faults_nothing_is_sent_twice_or_waits_for_patience(actions in prop::collection::vec(calm_action(), 1..250)) {
        let mut world = started();
        for action in &actions {
            world.run(action);
        }
        world.heal(Duration::ZERO);
        prop_assert_eq!(world.proposer.stats().resent.get(), 0);
        prop_assert_eq!(world.proposer.stats().gaps.get(), 0);
    }
}
