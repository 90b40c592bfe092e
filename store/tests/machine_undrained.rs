//! Histories in which continuations are never given the time to end: sessions of lost nodes wait to be closed,
//! cursors over retained messages wait to go on, rows of ended sessions wait to be swept, and clients come,
//! go and publish meanwhile.
//!
//! What the machine does by and by the model does at once, so outcomes are compared as they come, and queues,
//! topic by topic, when all is done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod model;
mod testkit;

use std::collections::BTreeMap;

use model::Model;
use model::compare::check_outcomes_but_dup;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use quorate_store::command::{Ack, AckKind, Batch, Close, Command, Connect, NodeStarted, Origin, Settle, Will};
use quorate_store::ids::{NodeId, QueueSeq, SessionId};
use testkit::commands::{close, connect, publish, retain, subscribe, will};
use testkit::replica::{Then, replay};
use testkit::{DRAIN_NONCE, Rig, Stream, cases, text};

/// More of each than one entry handles.
const CLIENTS: u16 = 800;
const RETAINED: u16 = 1000;
/// Its node is never lost.
const OBSERVER: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A node is lost, or not, and starts over.
    Restart {
        node: u64,
        is_lost: bool,
    },
    /// A client connects to an open node.
    Connect {
        client: u16,
        node: u64,
        clean: bool,
        durable: bool,
        delayed: bool,
    },
    /// A connection ends.
    Close {
        client: u16,
        drop_will: bool,
        end: bool,
    },
    /// A durable client subscribes to all that is retained, or to what is live.
    Subscribe {
        client: u16,
        retained: bool,
    },
    /// A publish to the live topic.
    Publish,
    /// A retained publish: a new value, or none.
    Retain {
        topic: u16,
        clear: bool,
    },
    /// The acknowledgement of some row of a queue.
    Settle {
        client: u16,
        row: u16,
    },
    /// An operator.
    End {
        client: u16,
    },
    Tick,
    Reopen,
}

/// Mostly few, so that the same ones meet again.
fn client() -> impl Strategy<Value = u16> {
    prop_oneof![1 => 0..CLIENTS, 4 => (CLIENTS - 8)..CLIENTS]
}

fn step() -> impl Strategy<Value = Step> {
    let flag = prop::bool::weighted;
    prop_oneof![
        2 => (1..3_u64, any::<bool>()).prop_map(|(node, is_lost)| Step::Restart { node, is_lost }),
        6 => (client(), 1..4_u64, flag(0.1), flag(0.8), any::<bool>()).prop_map(
            |(client, node, clean, durable, delayed)| Step::Connect { client, node, clean, durable, delayed }
        ),
        2 => (client(), any::<bool>(), flag(0.2))
            .prop_map(|(client, drop_will, end)| Step::Close { client, drop_will, end }),
        4 => (client(), any::<bool>()).prop_map(|(client, retained)| Step::Subscribe { client, retained }),
        4 => Just(Step::Publish),
        4 => (0..RETAINED + 5, flag(0.3)).prop_map(|(topic, clear)| Step::Retain { topic, clear }),
        4 => (client(), any::<u16>()).prop_map(|(client, row)| Step::Settle { client, row }),
        1 => client().prop_map(|client| Step::End { client }),
        1 => Just(Step::Tick),
        1 => Just(Step::Reopen),
    ]
}

struct Undrained {
    rig: Rig,
    model: Model,
    counter: u64,
    /// Entries that found something waiting to be continued.
    waited: usize,
}

impl Undrained {
    fn new() -> Self {
        let mut this = Self { rig: Rig::new(), model: Model::default(), counter: 0, waited: 0 };
        this.start(1);
        for node in 2..=3 {
            let token = u128::from(node) << 64;
            this.direct(Command::AllocateNode { token, info: Default::default() });
            this.start(node);
        }
        this.stream(OBSERVER, vec![Command::Connect(connect("observer"))]);
        let observer = this.model.session_of("observer").unwrap().reference();
        this.stream(OBSERVER, vec![subscribe(observer, 1, "w/+")]);
        let values = (0..RETAINED).map(|n| Command::Publish(retain(None, &format!("r/{n:04}"), &format!("first {n}"))));
        this.stream(OBSERVER, values.collect());
        for node in [1, 2] {
            let mine = (0..CLIENTS).filter(|n| u64::from(n % 2) + 1 == node);
            let connects = mine.map(|n| this.connect(n, n % 3 != 0, n % 5 == 0, false)).collect();
            this.stream(node, connects);
        }
        this
    }

    fn connect(&mut self, client: u16, durable: bool, delayed: bool, clean_start: bool) -> Command {
        self.counter += 1;
        let last_words = format!("will {}", self.counter);
        let delay_s = if delayed { 1_000_000 } else { 0 };
        let will = Will { ..will(&format!("w/c{client}"), &last_words, delay_s) };
        Command::Connect(Connect {
            expiry_s: if durable { 3600 } else { 0 },
            clean_start,
            will: Some(will),
            ..connect(&format!("c{client}"))
        })
    }

    /// One entry for both; outcomes are compared.
    fn entry(&mut self, batch: &Batch, for_model: &Batch) {
        let (index, term, now) = (self.rig.next_index(), self.rig.term, self.rig.now);
        self.waited += usize::from(self.rig.machine.has_continuations());
        let expected = self.model.apply(index, term, now, for_model);
        let happened = self.rig.append(batch.clone());
        if let Err(why) = check_outcomes_but_dup(&expected.answer, &happened.0) {
            panic!("entry {index} {batch:?}: {why}");
        }
    }

    fn direct(&mut self, command: Command) {
        self.counter += 1;
        let batch = Batch { origin: Origin::Direct { nonce: self.counter.into() }, commands: vec![command] };
        self.entry(&batch, &batch);
    }

    fn stream(&mut self, node: u64, commands: Vec<Command>) {
        let batch = self.rig.next_batch(node, commands);
        self.entry(&batch, &batch);
    }

    fn start(&mut self, node: u64) {
        self.counter += 1;
        let nonce = u128::from(self.counter);
        let replaces = self.model.nodes.get(&NodeId(node)).and_then(|n| n.incarnation);
        let started = NodeStarted { node: NodeId(node), nonce, replaces, wall_ms: 0, info: Default::default() };
        self.direct(Command::NodeStarted(started));
        let incarnation = self.model.nodes[&NodeId(node)].incarnation.unwrap();
        self.rig.nodes.insert(node, Stream { incarnation, last: 0 });
    }

    /// A connected client and its node.
    fn connected(&self, client: u16) -> Option<(u64, &model::state::Session)> {
        let session = self.model.session_of(&format!("c{client}"))?;
        let owner = session.owner?;
        Some((self.model.lives[&owner].node.0, session))
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::Restart { node, is_lost } => {
                if is_lost {
                    let (incarnation, term) = (self.rig.incarnation(node), self.rig.term);
                    self.direct(Command::NodeLost { incarnation, term });
                }
                self.start(node);
            }
            Step::Connect { client, node, clean, durable, delayed } => {
                let connect = self.connect(client, durable, delayed, clean);
                self.stream(node, vec![connect]);
            }
            Step::Close { client, drop_will, end } => {
                let Some((node, session)) = self.connected(client) else { return };
                let expiry_s = end.then_some(0);
                let closing = Close { drop_will, expiry_s, ..close(session.reference(), 0) };
                self.stream(node, vec![Command::Close(closing)]);
            }
            Step::Subscribe { client, retained } => {
                if retained {
                    self.forget_what_is_owed(client);
                }
                let Some((node, session)) = self.connected(client).filter(|(_, s)| s.durable) else { return };
                let subscribe = subscribe(session.reference(), 1, if retained { "r/+" } else { "live" });
                self.stream(node, vec![subscribe]);
            }
            Step::Publish => {
                self.counter += 1;
                let text = format!("live {}", self.counter);
                self.stream(OBSERVER, vec![Command::Publish(publish(None, 1, "live", &text))]);
            }
            Step::Retain { topic, clear } => {
                self.counter += 1;
                let text = if clear { String::new() } else { format!("value {}", self.counter) };
                self.stream(OBSERVER, vec![Command::Publish(retain(None, &format!("r/{topic:04}"), &text))]);
            }
            Step::Settle { client, row } => self.settle(client, row),
            Step::End { client } => {
                let Some(session) = self.model.session_of(&format!("c{client}")).map(|s| s.id) else { return };
                self.direct(Command::EndSession { session });
            }
            Step::Tick => {
                self.rig.now += 5;
                self.direct(Command::Tick);
            }
            Step::Reopen => self.rig.reopen(),
        }
    }

    /// A SUBSCRIBE takes the place of what an earlier one of the same filter still owes. How much that is only the
    /// machine knows: what it has not brought is the last of its topic.
    fn forget_what_is_owed(&mut self, client: u16) {
        let Some(id) = self.connected(client).map(|(_, session)| session.id) else { return };
        let brought = self.by_topic(id);
        let Some(session) = self.model.sessions.get_mut(&id) else { return };
        let mut wanted: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (seq, row) in &session.rows {
            wanted.entry(row.msg.topic.clone()).or_default().push(*seq);
        }
        for (topic, seqs) in wanted {
            let missing = seqs.len() - brought.get(&topic).map_or(0, Vec::len);
            if missing > 0 {
                assert_eq!(missing, 1, "one cursor owes a topic once");
                let row = session.rows.remove(&seqs[seqs.len() - 1]);
                assert!(row.is_some_and(|row| row.retain == Some(true)), "only retained messages come later");
            }
        }
    }

    /// Acknowledges the first row of its topic: the model knows it by another number.
    fn settle(&mut self, client: u16, row: u16) {
        let Some((node, session)) = self.connected(client) else { return };
        let from = session.reference();
        let queue = self.rig.queue(session.id);
        let Some(row) = queue.get(usize::from(row) % queue.len().max(1)) else { return };
        let Some(first) = queue.iter().find(|r| r.message.topic == row.message.topic) else { return };
        let topic = first.message.topic.as_str();
        let (seq, _) = session.rows.iter().find(|(_, r)| r.msg.topic == topic).expect("the model has one, too");
        let (seq, kind, position) = (QueueSeq(*seq), AckKind::Puback, first.message.position);
        let ack = |seq| vec![Command::Settle(Settle { from, acks: vec![Ack { seq, position, kind }] })];
        let batch = self.rig.next_batch(node, ack(first.seq));
        let for_model = Batch { origin: batch.origin, commands: ack(seq) };
        self.entry(&batch, &for_model);
    }

    /// Lets everything end, and compares what is left.
    fn finish(&mut self) {
        self.rig.drain();
        let machine: Vec<_> = self.rig.machine.sessions().into_iter().map(|s| (s.session, s.owner)).collect();
        let model: Vec<_> = self.model.sessions.values().map(|s| (s.id, s.owner)).collect();
        assert_eq!(machine, model, "sessions and their owners");
        for session in self.model.sessions.values() {
            let mut want: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
            for row in session.rows.values() {
                let row = (row.msg.topic.clone(), text(&row.msg.payload), row.retain.unwrap());
                want.entry(row.0).or_default().push((row.1, row.2));
            }
            assert_eq!(self.by_topic(session.id), want, "queue of {}", session.client_id);
        }
    }

    fn by_topic(&self, session: SessionId) -> BTreeMap<String, Vec<(String, bool)>> {
        let mut topics: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
        for row in self.rig.queue(session) {
            let entry = topics.entry(row.message.topic.to_string()).or_default();
            entry.push((text(&row.message.payload), row.retain));
        }
        topics
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn what_waits_to_be_continued_changes_no_outcome(
        steps in prop::collection::vec(step(), 10..80),
        cuts in prop::collection::vec(prop_oneof![
            Just(Then::GoOn), Just(Then::Commit), Just(Then::Reopen), Just(Then::Flush), Just(Then::Crash)
        ], 1..20),
    ) {
        let mut history = Undrained::new();
        for step in &steps {
            history.play(step);
        }
        history.finish();
        let (rows, told) = replay(&history.rig.log, &cuts);
        prop_assert!(rows == *history.rig.machine.store(), "the replica that was cut differs");
        let ticks = history.rig.log.iter().filter(|e| e.batch.origin == Origin::Direct { nonce: DRAIN_NONCE }).count();
        prop_assert!(told.len() == history.rig.log.len() && ticks < 1000);
    }
}

/// Else the property proves nothing.
#[test]
fn random_histories_do_not_wait_for_continuations() {
    let mut runner = TestRunner::new_with_rng(cases(1), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (mut entries, mut waited) = (0, 0);
    for _ in 0..20 {
        let mut history = Undrained::new();
        for step in prop::collection::vec(step(), 80).new_tree(&mut runner).unwrap().current() {
            history.play(&step);
        }
        entries += history.rig.log.len();
        waited += history.waited;
    }
    assert!(waited * 3 > entries, "{waited} of {entries} entries");
}
