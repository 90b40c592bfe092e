//! QoS 2 exactly once, both directions, over takeovers, node losses and restarts (guarantee 3).

use quorate_store::command::{AckKind, Command, Connect, Setting};
use quorate_store::effect::Outcome;
use quorate_store::ids::{PacketId, QoS};
use quorate_store::rows::key::RowKind;

use crate::testkit::Rig;
use crate::testkit::commands::{close, connect, packet_id, publish2, release, transient};

fn is_published(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Published { .. })
}

#[test]
fn a_first_seen_dup_qos2_is_a_new_message() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(2, "s", 2, "t");
    let p = rig.publisher(1, "p");
    // What was sent to node 1 died with it; node 2 sees the resend (DUP=1 on the wire) first. The log knows of
    // no DUP: an identifier that is not recorded is a new message.
    let died = rig.next_batch(1, vec![Command::Publish(publish2(p, 5, "t", "m"))]);
    rig.lose(1);
    assert!(rig.append(died).is_silent());
    let p = rig.connect(2, connect("p"));
    assert!(p.inbound_qos2.is_empty());
    assert!(is_published(&rig.one(2, Command::Publish(publish2(p.session, 5, "t", "m")))));
    assert_eq!(rig.queued(s.session), ["m"]);
}

#[test]
fn a_repeated_qos2_publish_is_not_published_again_wherever_it_comes() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(2, "s", 2, "t");
    let mut p = rig.publisher(1, "p");
    let mut node = 1;
    assert!(is_published(&rig.one(1, Command::Publish(publish2(p, 5, "t", "m")))));
    for step in 0..6 {
        let happened = rig.publish(node, publish2(p, 5, "t", "m"));
        assert_eq!(happened.outcome(), Outcome::AlreadyRecorded);
        assert!(happened.sent(s.session).is_empty());
        match step % 3 {
            0 => rig.reopen(),
            1 => drop(rig.lose(node)),
            _ => drop(rig.batch(node, vec![Command::Close(close(p, 0))])),
        }
        if step % 3 == 1 {
            rig.start(node);
        }
        node = 3 - node;
        let again = rig.connect(node, connect("p"));
        assert_eq!(again.inbound_qos2, [packet_id(5)]);
        p = again.session;
    }
    assert_eq!(rig.one(node, release(p, 5)), Outcome::Released { known: true });
    assert_eq!(rig.one(node, release(p, 5)), Outcome::Released { known: false });
    assert_eq!(rig.queued(s.session), ["m"]);
}

#[test]
fn reused_packet_identifier_after_release_is_a_new_message() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 2, "t");
    let p = rig.publisher(1, "p");
    for text in ["1", "2", "3"] {
        assert!(is_published(&rig.one(1, Command::Publish(publish2(p, 5, "t", text)))));
        rig.reopen();
        assert_eq!(rig.one(1, release(p, 5)), Outcome::Released { known: true });
    }
    // Also within one batch.
    let batch = vec![
        Command::Publish(publish2(p, 5, "t", "4")),
        Command::Publish(publish2(p, 5, "t", "4")),
        release(p, 5),
        Command::Publish(publish2(p, 5, "t", "5")),
    ];
    let outcomes = rig.batch(1, batch).outcomes();
    assert!(is_published(&outcomes[0]) && is_published(&outcomes[3]));
    assert_eq!(outcomes[1..3], [Outcome::AlreadyRecorded, Outcome::Released { known: true }]);
    assert_eq!(rig.queued(s.session), ["1", "2", "3", "4", "5"]);
    assert_eq!(rig.count(RowKind::Inbound), 1);
}

#[test]
fn packet_identifiers_of_two_clients_have_nothing_to_do_with_each_other() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 2, "t");
    let (p, q) = (rig.publisher(1, "p"), rig.publisher(1, "q"));
    for from in [p, q] {
        assert!(is_published(&rig.one(1, Command::Publish(publish2(from, 5, "t", "m")))));
    }
    assert_eq!(rig.one(1, release(p, 5)), Outcome::Released { known: true });
    assert_eq!(rig.one(1, Command::Publish(publish2(q, 5, "t", "m"))), Outcome::AlreadyRecorded);
    assert_eq!(rig.queued(s.session).len(), 2);
}

#[test]
fn a_refused_qos2_publish_records_no_identifier() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 2, "t");
    let p = rig.publisher(1, "p");
    rig.direct(Command::Set(Setting::QueueBytesMax(10)));
    assert_eq!(rig.one(1, Command::Publish(publish2(p, 5, "t", "m"))), Outcome::QueueFull);
    assert_eq!(rig.count(RowKind::Inbound), 0);
    assert_eq!(rig.one(1, release(p, 5)), Outcome::Released { known: false });
    rig.direct(Command::Set(Setting::QueueBytesMax(1000)));
    assert!(is_published(&rig.one(1, Command::Publish(publish2(p, 5, "t", "m")))));
    assert_eq!(rig.queued(s.session), ["m"]);
}

#[test]
fn identifiers_of_a_transient_session_are_recorded_too_and_end_with_it() {
    let mut rig = Rig::with_nodes(1);
    let p = rig.connect(1, transient("p")).session;
    let all: Vec<u16> = vec![1, 2, 500, 65_535];
    for id in &all {
        assert!(is_published(&rig.one(1, Command::Publish(publish2(p, *id, "t", "m")))));
        assert_eq!(rig.one(1, Command::Publish(publish2(p, *id, "t", "m"))), Outcome::AlreadyRecorded);
    }
    assert_eq!(rig.count(RowKind::Inbound), 4);
    rig.batch(1, vec![Command::Close(close(p, 0))]);
    assert_eq!(rig.count(RowKind::Inbound), 0);
    assert!(rig.connect(1, transient("p")).inbound_qos2.is_empty());
}

#[test]
fn all_recorded_identifiers_are_told_to_the_next_connection() {
    let mut rig = Rig::with_nodes(2);
    let p = rig.publisher(1, "p");
    for id in [9, 1, 65_535, 300] {
        rig.one(1, Command::Publish(publish2(p, id, "t", "m")));
    }
    rig.one(1, release(p, 9));
    let again = rig.connect(2, connect("p"));
    let mut ids: Vec<u16> = again.inbound_qos2.iter().map(|id: &PacketId| id.get()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 300, 65_535]);
}

#[test]
fn an_outbound_exchange_goes_on_from_its_phase_on_another_node() {
    for (pubrec, pubcomp) in [(false, false), (true, false), (true, true)] {
        let mut rig = Rig::with_nodes(2);
        let s = rig.subscriber(1, "s", 2, "t");
        let p = rig.publisher(2, "p");
        rig.one(2, Command::Publish(publish2(p, 1, "t", "m")));
        let id = rig.queue(s.session)[0].seq.packet_id();
        if pubrec {
            rig.settle(1, s, AckKind::Pubrec, &[0]);
        }
        if pubcomp {
            rig.settle(1, s, AckKind::Pubcomp, &[0]);
        }
        rig.lose(1);
        let s = rig.connect(2, connect("s"));
        let rows = rig.queue(s.session.session);
        if pubcomp {
            assert!(rows.is_empty());
            continue;
        }
        assert_eq!((rows.len(), rows[0].released, rows[0].qos), (1, pubrec, QoS::ExactlyOnce));
        assert_eq!(rows[0].seq.packet_id(), id, "the identifier survives the node");
        assert!(s.sent_until > rows[0].seq, "what may have been sent is sent again with DUP=1");
        rig.settle(2, s.session, AckKind::Pubrec, &[0]);
        assert!(rig.queue(s.session.session)[0].released);
        rig.settle(2, s.session, AckKind::Pubcomp, &[0]);
        assert!(rig.queue(s.session.session).is_empty());
        assert_eq!(rig.count(RowKind::Message), 0);
    }
}

#[test]
fn a_negative_pubrec_ends_the_exchange() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 2, "t");
    let p = rig.publisher(1, "p");
    rig.one(1, Command::Publish(publish2(p, 1, "t", "m")));
    rig.settle(1, s, AckKind::PubrecRefused, &[0]);
    assert!(rig.queue(s.session).is_empty());
    let again = rig.connect(1, Connect { ..connect("s") });
    assert_eq!(again.queue_head, again.queue_tail);
}

#[test]
fn acknowledgements_that_do_not_fit_the_row_change_nothing() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 2, "t");
    rig.publish(1, crate::testkit::commands::publish(None, 1, "t", "one"));
    rig.publish(1, crate::testkit::commands::publish(None, 2, "t", "two"));
    for (kind, seq) in [
        (AckKind::Pubrec, 0),
        (AckKind::Pubcomp, 0),
        (AckKind::PubrecRefused, 0),
        (AckKind::Puback, 1),
        (AckKind::Pubcomp, 1),
        (AckKind::Puback, 2),
        (AckKind::Puback, u64::MAX),
    ] {
        assert_eq!(rig.settle(1, s, kind, &[seq]), Outcome::Done);
        let rows = rig.queue(s.session);
        assert_eq!(rows.len(), 2, "{kind:?} of row {seq}");
        assert!(!rows[0].released && !rows[1].released, "{kind:?} of row {seq}");
    }
    // A PUBREC that comes late does not take back a PUBREL.
    rig.settle(1, s, AckKind::Pubrec, &[1]);
    rig.settle(1, s, AckKind::PubrecRefused, &[1]);
    assert!(rig.queue(s.session)[1].released);
}
