//! Incarnations and proposal streams (guarantees 2, 3 and 8).

use quorate_store::command::{Batch, Command, NodeStarted, Origin};
use quorate_store::effect::{Effect, Outcome};
use quorate_store::ids::{BatchSeq, ClusterTime, NodeId};
use quorate_store::machine::{EntryContext, MachineError};
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{connect, publish, publish2, subscribe};
use crate::testkit::{Happened, Rig};

/// A cluster of two nodes in which `s` on node 2 subscribes to `t`, and `p` on node 1 publishes.
fn two_nodes() -> (Rig, quorate_store::command::SessionRef, quorate_store::command::SessionRef) {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(2, "s", 2, "t");
    let p = rig.publisher(1, "p");
    (rig, s, p)
}

#[test]
fn a_node_declared_lost_that_is_alive_has_its_batch_refused() {
    let (mut rig, s, p) = two_nodes();
    let in_its_hand = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", "ghost"))]);
    let next = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", "ghost of a ghost"))]);
    let lost = rig.lose(1);
    assert_eq!(lost.outcome(), Outcome::Done);
    assert_eq!(lost.closed(), [rig.incarnation(1)]);
    let before = rig.rows_without_index();
    for batch in [in_its_hand.clone(), next, in_its_hand] {
        assert!(rig.append(batch).is_silent(), "neither an outcome nor a delivery");
    }
    assert_eq!(rig.rows_without_index(), before);
    assert!(rig.queued(s.session).is_empty());
}

#[test]
fn a_node_that_starts_over_is_heard_again_but_not_its_former_life() {
    let (mut rig, s, p) = two_nodes();
    let former = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", "former"))]);
    assert_eq!(rig.start(1).closed().len(), 1);
    let p = rig.publisher(1, "p");
    assert!(rig.append(former).is_silent());
    assert!(rig.publish(1, publish(p, 1, "t", "new")).is_applied());
    assert_eq!(rig.queued(s.session), ["new"]);
}

#[test]
fn a_node_lost_of_a_deposed_leader_is_void() {
    let (mut rig, s, p) = two_nodes();
    let said = Command::NodeLost { incarnation: rig.incarnation(1), term: rig.term };
    rig.term += 1;
    let happened = rig.direct(said);
    assert_eq!(happened.outcome(), Outcome::Void);
    assert!(happened.closed().is_empty());
    // Nor is one from the future of this term.
    let said = Command::NodeLost { incarnation: rig.incarnation(1), term: rig.term + 1 };
    assert_eq!(rig.direct(said).outcome(), Outcome::Void);
    assert!(rig.publish(1, publish(p, 1, "t", "alive")).is_applied());
    assert_eq!(rig.queued(s.session), ["alive"]);
}

#[test]
fn a_node_lost_again_or_of_a_former_life_is_void() {
    let (mut rig, _, _) = two_nodes();
    let former = rig.incarnation(1);
    assert_eq!(rig.lose(1).outcome(), Outcome::Done);
    assert_eq!(rig.lose(1).outcome(), Outcome::Void);
    rig.start(1);
    let term = rig.term;
    let happened = rig.direct(Command::NodeLost { incarnation: former, term });
    assert_eq!(happened.outcome(), Outcome::Void);
    assert!(happened.closed().is_empty());
    assert!(rig.batch(1, vec![Command::Connect(connect("c"))]).is_applied());
}

#[test]
fn a_start_that_is_repeated_opens_nothing_and_closes_nothing() {
    let mut rig = Rig::with_nodes(1);
    let started = rig.node_started(1, 77);
    let first = rig.direct(Command::NodeStarted(started.clone()));
    let Outcome::NodeStarted(incarnation) = first.outcome() else { panic!("{first:?}") };
    rig.nodes.insert(1, crate::testkit::Stream { incarnation, last: 0 });
    let p = rig.publisher(1, "p");
    let again = rig.direct(Command::NodeStarted(started.clone()));
    assert_eq!(again.outcome(), Outcome::NodeStarted(incarnation));
    assert!(again.closed().is_empty());
    assert!(rig.publish(1, publish(p, 1, "t", "still here")).is_applied());
    // Also after that life has ended: it does not come back.
    rig.lose(1);
    assert_eq!(rig.direct(Command::NodeStarted(started)).outcome(), Outcome::NodeStarted(incarnation));
    let batch = rig.next_batch(1, vec![Command::Connect(connect("q"))]);
    assert!(rig.append(batch).is_silent());
    assert!(!rig.machine.nodes()[0].up);
}

#[test]
fn a_start_that_arrives_when_the_node_has_started_anew_closes_nothing() {
    let mut rig = Rig::with_nodes(1);
    let late = rig.node_started(1, 76);
    let repeated = rig.node_started(1, 77);
    let Outcome::NodeStarted(incarnation) = rig.direct(Command::NodeStarted(repeated.clone())).outcome() else {
        panic!("the first of the two was refused")
    };
    rig.nodes.insert(1, crate::testkit::Stream { incarnation, last: 0 });
    rig.start(1);
    let now = rig.incarnation(1);
    let p = rig.publisher(1, "p");
    for outdated in [late, repeated] {
        let happened = rig.direct(Command::NodeStarted(outdated));
        assert_eq!(happened.outcome(), Outcome::StartOutdated(Some(now)));
        assert!(happened.closed().is_empty());
    }
    assert!(rig.publish(1, publish(p, 1, "t", "still here")).is_applied());
    // A process that has just begun knows of no life, is told, and follows.
    let unaware = NodeStarted { replaces: None, ..rig.node_started(1, 78) };
    assert_eq!(rig.direct(Command::NodeStarted(unaware)).outcome(), Outcome::StartOutdated(Some(now)));
    assert_eq!(rig.start(1).closed(), [now]);
}

#[test]
fn a_batch_is_applied_once_however_often_it_arrives() {
    let (mut rig, s, p) = two_nodes();
    let one = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", "1"))]);
    let two = rig.next_batch(1, vec![Command::Publish(publish2(p, 9, "t", "2"))]);
    assert!(rig.append(one.clone()).is_applied());
    let before = rig.rows_without_index();
    assert!(rig.append(one.clone()).is_silent(), "a repeat releases no acknowledgement");
    assert_eq!(rig.rows_without_index(), before);
    assert!(rig.append(two.clone()).is_applied());
    for batch in [one, two] {
        assert!(rig.append(batch).is_silent());
    }
    assert_eq!(rig.queued(s.session), ["1", "2"]);
}

#[test]
fn a_gap_is_refused_and_the_proposer_told_where_to_resume() {
    let (mut rig, s, p) = two_nodes();
    let batches: Vec<Batch> =
        (1..=3).map(|n| rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", &n.to_string()))])).collect();
    let Origin::Stream { incarnation, seq, .. } = batches[0].origin else { unreachable!() };
    for late in [2, 1] {
        let happened = rig.append(batches[late].clone());
        let [Effect::Gap { incarnation: of, expected }] = happened.0.as_slice() else { panic!("{happened:?}") };
        assert_eq!((*of, *expected), (incarnation, seq));
    }
    assert!(rig.queued(s.session).is_empty());
    for batch in batches {
        assert!(rig.append(batch).is_applied());
    }
    assert_eq!(rig.queued(s.session), ["1", "2", "3"]);
}

#[test]
fn a_stream_is_counted_over_a_restart_of_the_replica() {
    let (mut rig, s, p) = two_nodes();
    let one = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", "1"))]);
    rig.append(one.clone());
    rig.reopen();
    assert!(rig.append(one).is_silent());
    assert!(rig.publish(1, publish(p, 1, "t", "2")).is_applied());
    assert_eq!(rig.queued(s.session), ["1", "2"]);
}

#[test]
fn a_connect_in_the_hand_of_a_lost_node_does_not_take_the_session_back() {
    let mut rig = Rig::with_nodes(2);
    let stuck = rig.next_batch(1, vec![Command::Connect(connect("c"))]);
    rig.lose(1);
    let c = rig.connect(2, connect("c")).session;
    let happened: Happened = rig.append(stuck);
    assert!(happened.is_silent());
    assert_eq!(rig.one(2, subscribe(c, 1, "t")), crate::testkit::commands::granted_new(1));
}

#[test]
fn a_batch_under_another_nodes_name_is_refused() {
    let (mut rig, s, p) = two_nodes();
    let mut batch = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "t", "x"))]);
    if let Origin::Stream { node, .. } = &mut batch.origin {
        *node = NodeId(2);
    }
    assert!(!rig.append(batch).is_applied());
    assert!(rig.queued(s.session).is_empty());
}

#[test]
fn commands_of_a_session_are_heard_from_its_own_node_only() {
    let (mut rig, s, p) = two_nodes();
    // Node 2 speaks for a connection of node 1.
    assert_eq!(rig.one(2, Command::Publish(publish(p, 1, "t", "forged"))), Outcome::Fenced);
    assert!(rig.queued(s.session).is_empty());
}

#[test]
fn the_id_of_a_removed_node_never_comes_back() {
    let mut rig = Rig::with_nodes(3);
    let closed = rig.incarnation(3);
    let removed = rig.direct(Command::RemoveNode { node: NodeId(3) });
    assert_eq!((removed.outcome(), removed.closed()), (Outcome::Done, vec![closed]));
    assert_eq!(rig.direct(Command::RemoveNode { node: NodeId(3) }).outcome(), Outcome::Void);
    rig.reopen();
    let started = rig.node_started(3, 5);
    assert_eq!(rig.direct(Command::NodeStarted(started)).outcome(), Outcome::Void);
    let allocate = |token| Command::AllocateNode { token, info: Default::default() };
    assert_eq!(rig.direct(allocate(4)).outcome(), Outcome::NodeAllocated(NodeId(4)));
    assert_eq!(rig.direct(allocate(4)).outcome(), Outcome::NodeAllocated(NodeId(4)), "the same token again");
    assert_eq!(rig.direct(allocate(5)).outcome(), Outcome::NodeAllocated(NodeId(5)));
}

/// A joiner that asks a cluster which has only just begun must not become its first node.
#[test]
fn no_id_is_allocated_before_the_first_node_has_started() {
    let mut rig = Rig::new();
    let allocate = Command::AllocateNode { token: 7, info: Default::default() };
    assert_eq!(rig.direct(allocate.clone()).outcome(), Outcome::Void);
    rig.start(1);
    assert_eq!(rig.direct(allocate).outcome(), Outcome::NodeAllocated(NodeId(2)));
}

#[test]
fn what_is_kept_of_streams_is_bounded_by_the_nodes() {
    let mut rig = Rig::with_nodes(2);
    for _ in 0..20 {
        rig.start(1);
        rig.publisher(1, "p");
    }
    assert_eq!(rig.count(RowKind::Dedup), 2);
    assert_eq!(rig.count(RowKind::Node), 2);
}

#[test]
fn the_raft_layers_state_and_blank_entries_are_taken_note_of() {
    let mut rig = Rig::with_nodes(1);
    let entry = |index| EntryContext { index, term: 4, stamp: ClusterTime(0) };
    let index = rig.next_index();
    rig.machine.note(entry(index), Some(b"members")).unwrap();
    rig.machine.note(entry(index + 1), None).unwrap();
    rig.machine.commit_run().unwrap();
    rig.reopen();
    let applied = rig.machine.applied();
    assert_eq!((applied.index, applied.term), (index + 1, 4));
    assert_eq!(applied.time, ClusterTime(rig.now), "a note of 0 does not turn time back");
    assert_eq!(rig.machine.raft_state().as_deref(), Some(b"members".as_slice()));
}

#[test]
fn an_entry_out_of_order_halts_the_replica() {
    let mut rig = Rig::with_nodes(1);
    let index = rig.next_index();
    let tick = Batch { origin: Origin::Direct { nonce: 1 }, commands: vec![Command::Tick] };
    for wrong in [index - 1, index + 1] {
        let entry = EntryContext { index: wrong, term: 1, stamp: ClusterTime(0) };
        let mut effects = quorate_store::effect::AllEffects::default();
        let refused = rig.machine.apply(entry, &tick, &mut effects);
        assert!(matches!(refused, Err(MachineError::OutOfOrder { .. })), "{refused:?}");
        assert!(effects.0.is_empty());
        rig.reopen();
    }
}

#[test]
fn session_commands_outside_a_stream_are_void() {
    let (mut rig, s, p) = two_nodes();
    for command in [
        Command::Connect(connect("d")),
        Command::Publish(publish(p, 1, "t", "x")),
        Command::Publish(publish(None, 1, "t", "x")),
        subscribe(p, 1, "#"),
    ] {
        assert_eq!(rig.direct(command).outcome(), Outcome::Void);
    }
    // And node commands are void within one: they would escape their term, or come twice.
    let (incarnation, term) = (rig.incarnation(2), rig.term);
    assert_eq!(rig.one(1, Command::NodeLost { incarnation, term }), Outcome::Void);
    assert!(rig.queued(s.session).is_empty());
    let next = BatchSeq(rig.nodes[&2].last + 1);
    let origin = Origin::Stream { node: NodeId(2), incarnation, seq: next };
    assert!(rig.append(Batch { origin, commands: vec![] }).is_applied());
}
