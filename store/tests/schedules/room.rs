//! Room in a full queue: what goes, who hears of it, and what it costs (guarantees 2, 4, 11 and 12).

use quorate_store::command::{AckKind, Command, Connect, Publish, QueueFullPolicy, SessionRef, Setting, Settle};
use quorate_store::effect::{AllEffects, Effect, Outcome};
use quorate_store::ids::ClusterTime;
use quorate_store::machine::{EntryContext, Machine};

use crate::testkit::Rig;
use crate::testkit::commands::{ack, close, connect, publish, publish2, subscribe};
use crate::testkit::counting::CountingRows;
use crate::testkit::replica::{Then, replay};

fn set_policy(rig: &mut Rig, policy: QueueFullPolicy) {
    rig.direct(Command::Set(Setting::QueueFullPolicy(policy)));
}

/// From now on there is room for what is queued, and for nothing more.
fn set_bound(rig: &mut Rig) {
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
}

fn many(rig: &mut Rig, count: usize, expiry_s: Option<u32>) {
    let message = Publish { expiry_s, ..publish(None, 1, "t", "xxxx") };
    for chunk in vec![Command::Publish(message); count].chunks(1000) {
        rig.batch(2, chunk.to_vec());
    }
}

/// `s` on node 1 of two, at a Receive Maximum of 10, with `count` messages in its queue, which is full.
fn full(count: usize, expiry_s: Option<u32>, policy: QueueFullPolicy) -> (Rig, SessionRef) {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(1, "s", 2, "t");
    many(&mut rig, count, expiry_s);
    set_bound(&mut rig);
    set_policy(&mut rig, policy);
    (rig, s)
}

fn numbers(rig: &Rig, s: SessionRef) -> Vec<u64> {
    rig.queue(s.session).iter().map(|row| row.seq.0).collect()
}

/// Where the window ends is written into the session's row, and what a replica has read in advance must not move it.
#[test]
fn a_window_ends_where_the_rows_say_whatever_a_replica_has_read() {
    let (mut rig, s) = full(300, None, QueueFullPolicy::DropOldest);
    // The window's copy holds 256 rows; 10 are left of it, the whole window.
    rig.settle(1, s, AckKind::Puback, &(0..246).collect::<Vec<_>>());
    set_bound(&mut rig);
    // The first row outside makes room; a replica that starts now reads over the gap.
    let happened = rig.publish(2, publish(None, 1, "t", "xxxx"));
    assert_eq!(happened.withdrawn(s), [256]);
    rig.connect(2, connect("s"));
    let (rows, _) = replay(&rig.log, &[Then::Reopen]);
    assert!(rows == *rig.machine.store(), "a replica that starts anew after each entry differs");
}

#[test]
fn a_row_that_makes_room_is_withdrawn_before_it_could_come_into_the_window() {
    let (mut rig, s) = full(12, None, QueueFullPolicy::DropOldest);
    let position = rig.queue(s.session)[0].message.position;
    let settle = Command::Settle(Settle { from: s, acks: vec![ack(0, position, AckKind::Puback)] });
    let happened = rig.batch(1, vec![Command::Publish(publish(None, 1, "t", "xxxx")), settle]);
    assert_eq!(happened.withdrawn(s), [10]);
    let at = |f: &dyn Fn(&Effect) -> bool| happened.0.iter().position(f).unwrap();
    let withdrawn = at(&|e| matches!(e, Effect::Withdraw { .. }));
    assert!(withdrawn < at(&|e| matches!(e, Effect::Applied { .. })), "{happened:?}");
    assert_eq!(numbers(&rig, s), (1..10).chain(11..13).collect::<Vec<_>>());
}

#[test]
fn a_row_that_comes_and_goes_in_one_batch_is_never_sent() {
    let (mut rig, s) = full(11, None, QueueFullPolicy::DropOldest);
    let happened = rig.batch(2, vec![Command::Publish(publish(None, 1, "t", "xxxx")); 3]);
    assert_eq!(happened.withdrawn(s), [10]);
    let sent: Vec<_> = happened.to(s.session).iter().filter_map(|d| d.seq).map(|seq| seq.0).collect();
    assert_eq!(sent, [13], "11 and 12 made room for others of their batch");
    assert_eq!(numbers(&rig, s), (0..10).chain([13]).collect::<Vec<_>>());
}

#[test]
fn a_row_that_has_expired_and_makes_room_is_withdrawn() {
    let (mut rig, s) = full(12, Some(5), QueueFullPolicy::Reject);
    rig.pass_ms(6_000);
    let happened = rig.publish(2, publish(None, 1, "t", "xxxx"));
    assert!(matches!(happened.outcome(), Outcome::Published { matched: true, .. }));
    assert_eq!(happened.withdrawn(s), [10]);
}

#[test]
fn nobody_is_told_of_a_row_that_nobody_could_send() {
    for lost in [true, false] {
        let (mut rig, s) = full(12, None, QueueFullPolicy::DropOldest);
        if lost {
            rig.lose(1);
        } else {
            rig.batch(1, vec![Command::Close(close(s, 10))]);
        }
        assert!(rig.publish(2, publish(None, 1, "t", "xxxx")).withdrawn(s).is_empty());
        assert_eq!(numbers(&rig, s), (0..10).chain(11..13).collect::<Vec<_>>());
    }
}

/// A QoS 2 row that went while its node still had it in hand would be sent, and its identifier never come free.
#[test]
fn of_a_qos_2_row_that_makes_room_the_node_hears_too() {
    let (mut rig, s) = full(10, None, QueueFullPolicy::DropOldest);
    let p = rig.publisher(2, "p");
    rig.direct(Command::Set(Setting::QueueBytesMax(1 << 20)));
    rig.publish(2, publish2(p, 1, "t", "xxxx"));
    set_bound(&mut rig);
    assert_eq!(rig.publish(2, publish2(p, 2, "t", "xxxx")).withdrawn(s), [10]);
}

#[test]
fn a_message_for_which_the_oldest_do_not_suffice_drops_none_of_them() {
    let (mut rig, s) = full(400, None, QueueFullPolicy::DropOldest);
    rig.batch(1, vec![Command::Close(close(s, 0))]);
    let bytes = rig.machine.sessions()[0].queued_bytes as usize;
    for len in [bytes * 3 / 4, bytes, bytes * 2] {
        let happened = rig.publish(2, publish(None, 1, "t", &"x".repeat(len)));
        assert!(matches!(happened.outcome(), Outcome::Published { matched: true, .. }));
        assert_eq!(numbers(&rig, s), (0..400).collect::<Vec<_>>(), "{len} bytes do not fit in the place of 256 rows");
    }
    let happened = rig.publish(2, publish(None, 1, "t", &"x".repeat(bytes / 4)));
    assert!(matches!(happened.outcome(), Outcome::Published { matched: true, .. }));
    let left = numbers(&rig, s);
    assert!(left.len() > 250 && left.last() == Some(&400), "as many went as it takes: {left:?}");
}

#[test]
fn a_queue_far_above_a_bound_that_was_lowered_comes_down_to_it() {
    let (mut rig, s) = full(1000, None, QueueFullPolicy::DropOldest);
    rig.batch(1, vec![Command::Close(close(s, 0))]);
    rig.direct(Command::Set(Setting::QueueBytesMax(1_000)));
    for _ in 0..6 {
        rig.publish(2, publish(None, 1, "t", "newest"));
    }
    let left = rig.queued(s.session);
    assert!(rig.machine.sessions()[0].queued_bytes <= 1_000, "{} rows are left", left.len());
    assert_eq!(left.last().map(String::as_str), Some("newest"));
}

/// Applies `commands`, one an entry, on a replica that counts; how many rows each touches.
fn touched(rig: &mut Rig, commands: impl IntoIterator<Item = Command>) -> Vec<u64> {
    let rows = CountingRows::new(rig.machine.store().clone());
    let counter = rows.counter();
    let mut machine = Machine::open(rows).unwrap();
    let mut touched = Vec::new();
    for command in commands {
        let batch = rig.next_batch(2, vec![command]);
        let index = machine.applied().index + 1;
        let entry = EntryContext { index, term: rig.term, stamp: ClusterTime(rig.now) };
        counter.reset();
        machine.apply(entry, &batch, &mut AllEffects::default()).unwrap();
        machine.commit_run().unwrap();
        touched.push(counter.touched());
    }
    touched
}

/// Every publisher that meets a full queue asks again: it must not cost the others anything.
#[test]
fn refusing_a_message_for_a_full_queue_reads_no_rows() {
    for (expiry_s, connected) in [(None, true), (None, false), (Some(3600), true), (Some(3600), false)] {
        let (mut rig, s) = full(1000, expiry_s, QueueFullPolicy::Reject);
        if !connected {
            rig.batch(1, vec![Command::Close(close(s, 0))]);
        }
        let touched = touched(&mut rig, vec![Command::Publish(publish(None, 1, "t", "xxxx")); 50]);
        // The first may look at the oldest rows, and at a window.
        assert!(touched[0] <= 600, "{touched:?}");
        assert!(touched[1..].iter().all(|rows| *rows <= 10), "{expiry_s:?}, connected {connected}: {touched:?}");
    }
}

#[test]
fn dropping_the_oldest_costs_the_same_however_many_were_dropped_before() {
    for connected in [true, false] {
        let (mut rig, s) = full(100, None, QueueFullPolicy::DropOldest);
        if !connected {
            rig.batch(1, vec![Command::Close(close(s, 10))]);
        }
        let touched = touched(&mut rig, vec![Command::Publish(publish(None, 1, "t", "xxxx")); 2000]);
        assert!(touched[1..].iter().all(|rows| *rows <= 20), "connected {connected}: {touched:?}");
    }
}

/// One entry must not close a hundred thousand sessions because an alarm is published.
#[test]
fn a_publish_to_the_sessions_of_a_lost_node_reads_none_of_their_queues() {
    let mut rig = Rig::with_nodes(2);
    let sessions = 1000;
    for n in 0..sessions {
        let s = rig.connect(1, connect(&format!("c{n}"))).session;
        rig.batch_undrained(1, vec![subscribe(s, 1, "t")]);
    }
    many(&mut rig, 20, None);
    let (incarnation, term) = (rig.incarnation(1), rig.term);
    rig.direct_undrained(Command::NodeLost { incarnation, term });
    let publishes = vec![Command::Publish(publish(None, 1, "t", "alarm")); 3];
    let touched = touched(&mut rig, publishes);
    // A queue row and the counters of each, and what the timers may do beside.
    assert!(touched.iter().all(|rows| *rows <= 2 * sessions + 4000), "{touched:?}");
}

#[test]
fn a_session_that_ended_with_its_lost_node_gets_and_refuses_nothing() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, Connect { expiry_s: 3600, ..connect("s") }).session;
    rig.one(1, subscribe(s, 1, "t"));
    // The session has rows, and ends with its connection from now on.
    rig.publish(2, publish(None, 1, "t", "x"));
    rig.connect(1, Connect { expiry_s: 0, ..connect("s") });
    set_bound(&mut rig);
    let (incarnation, term) = (rig.incarnation(1), rig.term);
    rig.direct_undrained(Command::NodeLost { incarnation, term });
    let happened = rig.batch_undrained(2, vec![Command::Publish(publish(None, 1, "t", "y"))]);
    assert!(matches!(happened.outcome(), Outcome::Published { matched: false, .. }), "{happened:?}");
}

fn over_half(rig: &Rig) -> Vec<String> {
    rig.machine.queues_over_half(usize::MAX).named.into_iter().map(|session| session.client_id).collect()
}

/// A queue is told of from half of its bound on, until it is below three eighths.
#[test]
fn a_queue_is_over_half_from_half_of_its_bound_until_it_is_well_below() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 1, "t");
    rig.publish(1, publish(None, 1, "t", "x"));
    let charge = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(charge * 16)));
    for _ in 2..=7 {
        rig.publish(1, publish(None, 1, "t", "x"));
    }
    assert!(over_half(&rig).is_empty(), "seven of sixteen");
    rig.publish(1, publish(None, 1, "t", "x"));
    assert_eq!(over_half(&rig), ["s"], "eight of sixteen");
    rig.settle(1, s, AckKind::Puback, &[0, 1]);
    assert_eq!(over_half(&rig), ["s"], "six of sixteen: it is not told of over and over");
    rig.settle(1, s, AckKind::Puback, &[2]);
    assert!(over_half(&rig).is_empty(), "five of sixteen");
    // The bound may come to the queue as well.
    rig.direct(Command::Set(Setting::QueueBytesMax(charge * 10)));
    assert_eq!(over_half(&rig), ["s"]);
    rig.reopen();
    assert_eq!(over_half(&rig), ["s"], "a replica that starts finds it");
    rig.direct(Command::Set(Setting::QueueBytesMax(charge * 100)));
    assert!(over_half(&rig).is_empty());
    rig.direct(Command::Set(Setting::QueueBytesMax(charge * 10)));
    rig.one(1, Command::EndSession { session: s.session });
    assert!(over_half(&rig).is_empty(), "a session that is gone");
}

/// So many have a name, whichever come later: one that is told of does not give way.
#[test]
fn the_queues_that_are_named_are_those_that_were_first() {
    let mut rig = Rig::with_nodes(1);
    let sessions = ["a", "b", "c"].map(|name| rig.subscriber(1, name, 1, name));
    rig.publish(1, publish(None, 1, "b", "x"));
    let charge = rig.machine.sessions()[1].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(charge * 2)));
    rig.publish(1, publish(None, 1, "c", "x"));
    rig.publish(1, publish(None, 1, "a", "x"));
    let named = |rig: &Rig| {
        let found = rig.machine.queues_over_half(2);
        assert_eq!(found.bytes_max, charge * 2);
        (found.named.into_iter().map(|session| session.client_id).collect::<Vec<_>>(), found.total)
    };
    assert_eq!(named(&rig), (vec!["b".to_owned(), "c".to_owned()], 3));
    rig.settle(1, sessions[1], AckKind::Puback, &[0]);
    assert_eq!(named(&rig), (vec!["c".to_owned(), "a".to_owned()], 2));
}
