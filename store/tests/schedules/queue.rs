//! Rows of a session's queue: nothing acknowledged is lost, nothing settled comes back, DUP is exact, and no
//! packet identifier is in flight twice (guarantees 2, 4, 5 and 11).

use quorate_store::command::{AckKind, Command, Connect, QueueFullPolicy, SessionRef, Setting};
use quorate_store::effect::{Connected, Outcome};
use quorate_store::ids::QueueSeq;
use quorate_store::rows::key::RowKind;
use quorate_store::rows::page::queue_page;

use crate::testkit::Rig;
use crate::testkit::commands::{close, connect, publish, publish2, retain, subscribe, transient, unsubscribe, will};

/// `s` subscribed to `t` at QoS 2 on node 1 of two, and `count` messages of QoS `q` in its queue.
fn queued(q: u8, count: u64, receive_maximum: u16) -> (Rig, SessionRef) {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, Connect { receive_maximum, ..connect("s") }).session;
    rig.one(1, subscribe(s, 2, "t"));
    for n in 0..count {
        rig.publish(2, publish(None, q, "t", &n.to_string()));
    }
    (rig, s)
}

/// Sequence numbers that go out with DUP=1 on this connection.
fn dups(rig: &Rig, connected: &Connected) -> Vec<u64> {
    let rows = rig.queue(connected.session.session);
    rows.iter().filter(|row| row.seq < connected.sent_until).map(|row| row.seq.0).collect()
}

fn numbers(rig: &Rig, s: SessionRef) -> Vec<u64> {
    rig.queue(s.session).iter().map(|row| row.seq.0).collect()
}

#[test]
fn dup_is_exact_after_a_connection_that_its_node_saw_end() {
    let (mut rig, s) = queued(1, 5, 10);
    rig.batch(1, vec![Command::Close(close(s, 3))]);
    rig.publish(2, publish(None, 1, "t", "while away"));
    let s = rig.connect(2, connect("s"));
    assert_eq!(dups(&rig, &s), [0, 1, 2]);
    assert_eq!((s.queue_head, s.queue_tail), (QueueSeq(0), QueueSeq(6)));
}

#[test]
fn dup_is_the_windows_end_after_a_node_loss_and_after_a_takeover() {
    for lost in [true, false] {
        let (mut rig, s) = queued(1, 5, 2);
        if lost {
            rig.lose(1);
        }
        rig.publish(2, publish(None, 1, "t", "later"));
        let again = rig.connect(2, connect("s"));
        assert_eq!(dups(&rig, &again), [0, 1], "the window was two rows");
        if !lost {
            // The old owner's own account comes too late.
            assert_eq!(rig.one(1, Command::Close(close(s, 5))), Outcome::Fenced);
        }
        rig.settle(2, again.session, AckKind::Puback, &[0, 1]);
        assert_eq!(numbers(&rig, again.session), [2, 3, 4, 5]);
    }
}

#[test]
fn a_window_moves_when_a_settle_is_applied_and_not_before() {
    let (mut rig, s) = queued(1, 6, 2);
    rig.settle(1, s, AckKind::Puback, &[1]);
    // Rows 0 and 2 are in the window now.
    let again = rig.connect(2, Connect { receive_maximum: 2, ..connect("s") });
    assert_eq!(dups(&rig, &again), [0, 2]);
}

#[test]
fn what_may_have_been_sent_stays_so_over_connections_that_did_not_come_to_it() {
    let (mut rig, _) = queued(1, 6, 5);
    // Up to row 4 may have been sent. The next connection sends one row and says so.
    let second = rig.connect(2, Connect { receive_maximum: 1, ..connect("s") });
    rig.batch(2, vec![Command::Close(close(second.session, 1))]);
    let third = rig.connect(2, connect("s"));
    assert_eq!(dups(&rig, &third), [0, 1, 2, 3, 4]);
}

#[test]
fn a_node_cannot_claim_to_have_sent_what_does_not_exist() {
    let (mut rig, s) = queued(1, 2, 10);
    rig.batch(1, vec![Command::Close(close(s, 1_000))]);
    rig.publish(2, publish(None, 1, "t", "new"));
    let again = rig.connect(2, connect("s"));
    assert_eq!(dups(&rig, &again), [0, 1], "the third row is sent for the first time");
}

#[test]
fn resume_with_a_smaller_receive_maximum() {
    let (mut rig, s) = queued(2, 6, 5);
    rig.settle(1, s, AckKind::Pubrec, &[1, 4]);
    let again = rig.connect(2, Connect { receive_maximum: 1, ..connect("s") });
    let s = again.session;
    assert_eq!(dups(&rig, &again), [0, 1, 2, 3, 4]);
    let owed: Vec<u64> = rig.queue(s.session).iter().filter(|r| r.released).map(|r| r.seq.0).collect();
    assert_eq!(owed, [1, 4], "the PUBRELs that are owed, though they lie outside the window");
    // They are resent outside the quota and completed there.
    rig.settle(2, s, AckKind::Pubcomp, &[4, 1]);
    assert_eq!(numbers(&rig, s), [0, 2, 3, 5]);
    rig.settle(2, s, AckKind::Pubrec, &[0]);
    rig.settle(2, s, AckKind::Pubcomp, &[0]);
    assert_eq!(numbers(&rig, s), [2, 3, 5]);
}

#[test]
fn a_released_row_is_kept_released_over_takeover() {
    let (mut rig, s) = queued(2, 2, 10);
    rig.settle(1, s, AckKind::Pubrec, &[0]);
    for step in 0..3 {
        match step {
            0 => drop(rig.connect(2, connect("s"))),
            1 => drop(rig.lose(2)),
            _ => rig.reopen(),
        }
        let rows = rig.queue(s.session);
        assert_eq!(rows.iter().map(|r| r.released).collect::<Vec<_>>(), [true, false]);
    }
}

#[test]
fn a_settled_row_never_comes_back() {
    let (mut rig, s) = queued(1, 0, 10);
    let p = rig.publisher(2, "p");
    let batch = rig.next_batch(2, vec![Command::Publish(publish(p, 1, "t", "m"))]);
    rig.append(batch.clone());
    rig.settle(1, s, AckKind::Puback, &[0]);
    rig.append(batch);
    rig.lose(1);
    rig.reopen();
    let again = rig.connect(2, connect("s"));
    assert_eq!(again.queue_head, again.queue_tail);
    assert!(rig.queue(s.session).is_empty());
    // A PUBACK that the old owner still had in its hand settles nothing of the new connection.
    rig.publish(2, publish(p, 1, "t", "next"));
    assert_eq!(numbers(&rig, again.session), [1], "and its number is not used again");
    assert_eq!(rig.settle(2, again.session, AckKind::Puback, &[0]), Outcome::Done);
    assert_eq!(numbers(&rig, again.session), [1]);
}

#[test]
fn numbers_go_on_over_an_empty_queue_and_a_restart() {
    let (mut rig, s) = queued(1, 3, 10);
    rig.settle(1, s, AckKind::Puback, &[0, 1, 2]);
    rig.reopen();
    rig.publish(2, publish(None, 1, "t", "next"));
    assert_eq!(numbers(&rig, s), [3]);
}

#[test]
fn a_row_that_may_have_been_sent_survives_drop_oldest_and_expiry() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, Connect { receive_maximum: 2, ..connect("s") }).session;
    rig.one(1, subscribe(s, 1, "t"));
    let send = |rig: &mut Rig, text: &str| {
        let expiring = quorate_store::command::Publish { expiry_s: Some(1), ..publish(None, 1, "t", text) };
        rig.publish(2, expiring).outcome()
    };
    for n in 0..4 {
        send(&mut rig, &n.to_string());
    }
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)));
    // All have expired; the window holds 0 and 1.
    rig.pass_ms(5_000);
    send(&mut rig, "4");
    assert_eq!(numbers(&rig, s)[..2], [0, 1], "connected: the window stays");
    rig.batch(1, vec![Command::Close(close(s, 2))]);
    rig.pass_ms(5_000);
    for n in 5..10 {
        send(&mut rig, &n.to_string());
    }
    assert_eq!(numbers(&rig, s)[..2], [0, 1], "disconnected: what was sent stays");
    let again = rig.connect(2, connect("s"));
    assert_eq!(dups(&rig, &again), [0, 1]);
    let newest: Vec<String> = rig.queued(s.session).split_off(2);
    assert_eq!(newest, ["8", "9"], "of the others the newest");
    assert!(rig.queue(s.session).iter().all(|row| row.seq.0 < again.queue_tail.0));
}

#[test]
fn when_nothing_may_be_dropped_the_new_message_is() {
    let (mut rig, s) = queued(1, 3, 10);
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)));
    let happened = rig.publish(2, publish(None, 1, "t", "no room"));
    assert!(matches!(happened.outcome(), Outcome::Published { matched: true, .. }));
    assert!(happened.sent(s.session).is_empty());
    assert_eq!(rig.queued(s.session), ["0", "1", "2"]);
}

#[test]
fn a_full_queue_refuses_for_all_before_anything_is_written() {
    let (mut rig, full) = queued(1, 3, 10);
    let other = rig.subscriber(2, "other", 1, "t");
    let p = rig.publisher(2, "p");
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    let before: Vec<_> = without_streams(&rig);
    let mut refused = publish2(p, 3, "t", "refused");
    refused.retain = true;
    let happened = rig.publish(2, refused);
    assert_eq!(happened.outcome(), Outcome::QueueFull);
    assert!(happened.sent(full.session).is_empty() && happened.sent(other.session).is_empty());
    assert_eq!(without_streams(&rig), before);
    assert_eq!(rig.count(RowKind::Retained) + rig.count(RowKind::Inbound), 0);
    // What needs no room in it goes on: QoS 0, other topics, acknowledgements.
    assert!(matches!(rig.publish(2, publish(p, 0, "t", "q0")).outcome(), Outcome::Published { .. }));
    assert!(matches!(rig.publish(2, publish(p, 1, "u", "u")).outcome(), Outcome::Published { .. }));
    rig.settle(1, full, AckKind::Puback, &[0]);
    assert!(matches!(rig.publish(2, publish(p, 1, "t", "3")).outcome(), Outcome::Published { .. }));
    assert_eq!(rig.queued(full.session), ["1", "2", "3"]);
}

fn without_streams(rig: &Rig) -> Vec<(Vec<u8>, Vec<u8>)> {
    rig.rows_without_index().into_iter().filter(|(key, _)| key[2] != RowKind::Dedup as u8).collect()
}

#[test]
fn a_will_cannot_be_refused_so_the_full_sessions_copy_is_dropped() {
    let (mut rig, full) = queued(1, 3, 10);
    let other = rig.subscriber(2, "other", 1, "t");
    let c = rig.connect(2, Connect { will: Some(will("t", "will", 0)), ..connect("c") }).session;
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    rig.batch(2, vec![Command::Close(close(c, 0))]);
    assert_eq!(rig.queued(full.session), ["0", "1", "2"]);
    assert_eq!(rig.queued(other.session), ["will"]);
}

#[test]
fn a_message_larger_than_the_bound_does_not_empty_a_queue_for_nothing_under_reject() {
    let (mut rig, s) = queued(1, 3, 10);
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    let large = "x".repeat(10_000);
    assert_eq!(rig.publish(2, publish(None, 1, "t", &large)).outcome(), Outcome::QueueFull);
    assert_eq!(rig.queued(s.session), ["0", "1", "2"]);
}

#[test]
fn a_message_is_stored_once_and_goes_with_its_last_row() {
    let mut rig = Rig::with_nodes(1);
    let subscribers: Vec<SessionRef> = (0..5).map(|n| rig.subscriber(1, &format!("s{n}"), 1, "t")).collect();
    rig.publish(1, publish(None, 1, "t", "m"));
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::Queue)), (1, 5));
    rig.settle(1, subscribers[2], AckKind::Puback, &[0]);
    rig.direct(Command::EndSession { session: subscribers[0].session });
    rig.reopen();
    rig.settle(1, subscribers[1], AckKind::Puback, &[0]);
    rig.settle(1, subscribers[3], AckKind::Puback, &[0]);
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::Queue)), (1, 1));
    assert_eq!(rig.queued(subscribers[4].session), ["m"]);
    rig.settle(1, subscribers[4], AckKind::Puback, &[0]);
    assert_eq!(rig.count(RowKind::Message) + rig.count(RowKind::Queue) + rig.count(RowKind::References), 0);
}

#[test]
fn unsubscribing_leaves_what_is_queued() {
    let (mut rig, s) = queued(1, 3, 1);
    assert_eq!(rig.one(1, unsubscribe(s, "t")), Outcome::Unsubscribed(vec![true]));
    assert_eq!(rig.one(1, unsubscribe(s, "t")), Outcome::Unsubscribed(vec![false]));
    rig.publish(2, publish(None, 1, "t", "not any more"));
    assert_eq!(rig.queued(s.session), ["0", "1", "2"]);
}

#[test]
fn a_transient_session_leaves_no_rows() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.connect(1, transient("s"));
    assert!(!s.durable);
    rig.one(1, subscribe(s.session, 2, "t"));
    let sent = rig.publish(1, publish(None, 2, "t", "m")).to(s.session.session);
    assert_eq!(sent.len(), 1);
    assert!(sent[0].seq.is_none());
    assert_eq!(rig.count(RowKind::Queue) + rig.count(RowKind::Message), 0);
}

#[test]
fn pages_join_up_to_the_queue() {
    let (mut rig, s) = queued(1, 40, 10);
    rig.settle(1, s, AckKind::Puback, &[0, 3, 4, 5, 9]);
    let whole = numbers(&rig, s);
    for (rows_max, bytes_max) in [(1, 1_000), (3, 1_000), (35, 1_000), (100, 1), (100, 5), (7, 7)] {
        let mut joined = Vec::new();
        let mut from = QueueSeq(0);
        loop {
            let page = queue_page(rig.machine.store(), s.session, from, rows_max, bytes_max).unwrap();
            assert!(page.rows.len() <= rows_max);
            assert!(page.end || page.next > from, "a page that gets nowhere");
            joined.extend(page.rows.iter().map(|row| row.seq.0));
            from = page.next;
            if page.end {
                break;
            }
        }
        assert_eq!(joined, whole, "{rows_max} rows, {bytes_max} bytes");
    }
}

#[test]
fn all_subscribers_see_one_order() {
    let mut rig = Rig::with_nodes(2);
    let subscribers =
        [rig.subscriber(1, "a", 1, "#"), rig.subscriber(2, "b", 2, "t/+"), rig.subscriber(2, "c", 1, "t/#")];
    let (p, q) = (rig.publisher(1, "p"), rig.publisher(2, "q"));
    for n in 0..20 {
        let (node, from) = if n % 2 == 0 { (1, p) } else { (2, q) };
        let commands = (0..3).map(|k| Command::Publish(publish(from, 1 + n % 2, "t/x", &format!("{n}.{k}"))));
        rig.batch(node, commands.collect());
    }
    let orders: Vec<Vec<String>> = subscribers.iter().map(|s| rig.queued(s.session)).collect();
    assert_eq!(orders[0].len(), 60);
    assert!(orders.iter().all(|order| *order == orders[0]));
}

#[test]
fn messages_and_retained_values_take_no_more_than_the_bound_of_a_new_subscriber() {
    let mut rig = Rig::with_nodes(1);
    for n in 0..50 {
        rig.publish(1, retain(None, &format!("r/{n:02}"), "value"));
    }
    let s = rig.connect(1, connect("s")).session;
    rig.direct(Command::Set(Setting::QueueBytesMax(1000)));
    rig.one(1, subscribe(s, 1, "r/+"));
    let summary = rig.machine.sessions().into_iter().find(|x| x.session == s.session).unwrap();
    assert!(summary.queued_bytes <= 1000, "{summary:?}");
    assert!(summary.queued > 0);
}

/// 65,536 rows: the packet identifier of the last is that of the first.
#[test]
fn no_packet_identifier_is_in_flight_twice() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.connect(1, Connect { receive_maximum: 65_535, ..connect("s") }).session;
    rig.one(1, subscribe(s, 1, "t"));
    for n in 0..66_u64 {
        let commands = (0..1000).map(|k| Command::Publish(publish(None, 1, "t", &(n * 1000 + k).to_string())));
        let batch = rig.next_batch(2, commands.collect());
        rig.append_uncommitted(batch);
    }
    rig.machine.commit_run().unwrap();
    // All are settled but the first, as far as the window allows.
    let rows = rig.queue(s.session);
    let acked = crate::testkit::commands::settle(s, AckKind::Puback, &rows[1..60_000]);
    rig.batch(1, vec![acked]);
    let again = rig.connect(2, Connect { receive_maximum: 65_535, ..connect("s") });
    assert_eq!(QueueSeq(0).packet_id(), QueueSeq(65_535).packet_id());
    let in_flight: Vec<u16> = rig
        .queue(s.session)
        .iter()
        .filter(|row| row.seq < again.sent_until)
        .map(|row| row.seq.packet_id().get())
        .collect();
    let distinct: std::collections::BTreeSet<u16> = in_flight.iter().copied().collect();
    assert_eq!(distinct.len(), in_flight.len(), "the window spans fewer rows than there are identifiers");
    assert!(in_flight.len() > 5_000);
}
