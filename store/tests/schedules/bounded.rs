//! One entry touches a bounded number of rows, whatever it sets off, and others are served meanwhile.

use quorate_store::command::{Batch, Command, Connect, Origin, Subscribe};
use quorate_store::effect::{AllEffects, Outcome};
use quorate_store::ids::ClusterTime;
use quorate_store::machine::{EntryContext, Machine};
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{connect, filter, options, publish, retain, subscribe, will};
use crate::testkit::counting::CountingRows;
use crate::testkit::{DRAIN_NONCE, Happened, Rig};

/// Rows that one entry may read and write, by our measure: a step of 128 sessions, each with its row, its will
/// and one recipient.
const ROWS_MAX: u64 = 4_000;
const MANY: usize = 100_000;

/// Goes on from the rows of `rig` with a replica that counts: entries at each of `stamps` until nothing is left
/// to do then, every other a publish that must be answered there and then. Returns the number of entries.
fn drain_counting(rig: &mut Rig, stamps: &[u64], publish_from: u64) -> (Machine<CountingRows>, usize) {
    let rows = CountingRows::new(rig.machine.store().clone());
    let counter = rows.counter();
    let mut machine = Machine::open(rows).unwrap();
    let mut entries = 0;
    for stamp in stamps {
        let mut is_first = true;
        while std::mem::take(&mut is_first) || machine.has_continuations() {
            entries += 1;
            assert!(entries < 10_000, "it does not end");
            let batch = if entries % 2 == 0 {
                rig.next_batch(publish_from, vec![Command::Publish(publish(None, 1, "live", "x"))])
            } else {
                Batch { origin: Origin::Direct { nonce: DRAIN_NONCE }, commands: vec![Command::Tick] }
            };
            let index = machine.applied().index + 1;
            let entry = EntryContext { index, term: rig.term, stamp: ClusterTime(*stamp) };
            let mut effects = AllEffects::default();
            counter.reset();
            machine.apply(entry, &batch, &mut effects).unwrap();
            machine.commit_run().unwrap();
            assert!(counter.touched() <= ROWS_MAX, "entry {index} touches {} rows", counter.touched());
            if entries % 2 == 0 {
                let outcomes = Happened(effects.0).outcomes();
                assert!(matches!(outcomes.as_slice(), [Outcome::Published { .. }]), "answered in its own entry");
            }
        }
    }
    (machine, entries)
}

/// Applies `commands` in batches of 1,000 from one node.
fn many(rig: &mut Rig, node: u64, commands: impl Iterator<Item = Command>) {
    let commands: Vec<Command> = commands.collect();
    for chunk in commands.chunks(1000) {
        let batch = rig.next_batch(node, chunk.to_vec());
        rig.append_uncommitted(batch);
    }
    rig.machine.commit_run().unwrap();
}

#[test]
fn losing_a_node_with_100_000_sessions_touches_a_bounded_number_of_rows_per_entry() {
    let mut rig = Rig::with_nodes(2);
    let o = rig.subscriber(2, "o", 1, "w/+");
    let connects = (0..MANY).map(|n| {
        let will = will(&format!("w/{n}"), "gone", (n % 2) as u32);
        Command::Connect(Connect { will: Some(will), expiry_s: (n % 3) as u32, ..connect(&format!("c{n}")) })
    });
    many(&mut rig, 1, connects);
    let (incarnation, term) = (rig.incarnation(1), rig.term);
    rig.append(Batch { origin: Origin::Direct { nonce: 1 }, commands: vec![Command::NodeLost { incarnation, term }] });
    assert!(rig.machine.has_continuations());
    let stamps = [rig.now, rig.now + 10_000];
    let (machine, ticks) = drain_counting(&mut rig, &stamps, 2);
    assert!(ticks > 100, "{ticks} entries");
    let left: Vec<_> = machine.sessions().into_iter().map(|s| s.client_id).collect();
    assert_eq!(left, ["o"]);
    let queued = machine.sessions()[0].queued;
    assert_eq!(queued, MANY as u64, "each will, once");
    assert_eq!(machine.sessions()[0].session, o.session);
}

#[test]
fn the_end_of_a_session_with_100_000_rows_touches_a_bounded_number_of_rows_per_entry() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(1, "s", 1, "t");
    many(&mut rig, 2, (0..MANY).map(|n| Command::Publish(publish(None, 1, "t", &n.to_string()))));
    rig.append(Batch {
        origin: Origin::Direct { nonce: 1 },
        commands: vec![Command::EndSession { session: s.session }],
    });
    assert!(rig.machine.has_continuations());
    let stamps = [rig.now];
    let (machine, ticks) = drain_counting(&mut rig, &stamps, 2);
    assert!(ticks > 100, "{ticks} entries");
    let left = machine.store().rows().iter().filter(|(key, _)| {
        [RowKind::Queue, RowKind::Message, RowKind::Subscription, RowKind::Counters].iter().any(|k| key[2] == *k as u8)
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn a_subscribe_over_100_000_retained_topics_touches_a_bounded_number_of_rows_per_entry() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, connect("s")).session;
    many(&mut rig, 2, (0..MANY).map(|n| Command::Publish(retain(None, &format!("r/{n}"), "v"))));
    rig.batch_undrained(1, vec![subscribe(s, 1, "r/#")]);
    assert!(rig.machine.has_continuations());
    let stamps = [rig.now];
    let (machine, ticks) = drain_counting(&mut rig, &stamps, 2);
    assert!(ticks > 100, "{ticks} entries");
    assert_eq!(machine.sessions()[0].queued, MANY as u64);
}

#[test]
fn a_subscribe_to_topics_that_do_not_match_looks_at_a_bounded_number_of_rows_per_entry() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, connect("s")).session;
    many(&mut rig, 2, (0..MANY).map(|n| Command::Publish(retain(None, &format!("r/{n}/x"), "v"))));
    rig.batch_undrained(1, vec![subscribe(s, 1, "+/+/y")]);
    let stamps = [rig.now];
    let (machine, _) = drain_counting(&mut rig, &stamps, 2);
    assert_eq!(machine.sessions()[0].queued, 0);
}

#[test]
fn a_command_with_many_filters_looks_at_a_bounded_number_of_rows() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, connect("s")).session;
    many(&mut rig, 2, (0..5000).map(|n| Command::Publish(retain(None, &format!("r/{n}/x"), "v"))));
    let filters = (0..200).map(|n| (filter(&format!("+/+/{n}")), options(1))).collect();
    let subscribe = Command::Subscribe(Subscribe { from: s, identifier: None, filters });
    let rows = CountingRows::new(rig.machine.store().clone());
    let counter = rows.counter();
    let mut machine = Machine::open(rows).unwrap();
    let batch = rig.next_batch(1, vec![subscribe]);
    let entry = EntryContext { index: rig.next_index(), term: 1, stamp: ClusterTime(rig.now) };
    counter.reset();
    machine.apply(entry, &batch, &mut AllEffects::default()).unwrap();
    machine.commit_run().unwrap();
    assert!(counter.touched() <= ROWS_MAX, "one SUBSCRIBE touches {} rows", counter.touched());
}

/// What a lost node's members had not settled returns to their group by and by, 200 rows of each.
#[test]
fn losing_a_node_whose_members_hold_many_messages_touches_a_bounded_number_of_rows() {
    let mut rig = Rig::with_nodes(2);
    for n in 0..30 {
        let member = Connect { receive_maximum: 500, ..connect(&format!("m{n}")) };
        let from = rig.connect(1, member).session;
        rig.one(1, subscribe(from, 1, "$share/g/t"));
    }
    many(&mut rig, 2, (0..15_000).map(|n| Command::Publish(publish(None, 1, "t", &n.to_string()))));
    rig.drain();
    assert_eq!((rig.count(RowKind::Queue), rig.machine.shares()[0].waiting), (15_000, 0));
    let (incarnation, term) = (rig.incarnation(1), rig.term);
    rig.direct_undrained(Command::NodeLost { incarnation, term });
    let stamp = rig.now;
    let (machine, entries) = drain_counting(&mut rig, &[stamp], 2);
    assert_eq!(machine.shares()[0].waiting, 15_000);
    assert!(entries >= 29, "{entries}");
}
