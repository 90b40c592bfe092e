//! What a client is sent: the window, pages, acknowledgements, rows that go.

use super::*;

fn row(seq: u64, qos: QoS) -> QueuedRow {
    QueuedRow {
        seq: QueueSeq(seq),
        qos,
        retain: false,
        released: false,
        identifiers: Arc::from([]),
        message: message(None),
    }
}

fn page(rows: std::ops::Range<u64>, end: bool) -> QueuePage {
    let next = QueueSeq(rows.end);
    QueuePage { rows: rows.map(|seq| row(seq, QoS::AtLeastOnce)).collect(), next, end }
}

#[test]
fn acknowledgements_of_one_read_are_one_command_and_the_window_moves_when_it_is_applied() {
    let mut rig = Rig::open(Version::V5);
    for seq in 0..12 {
        rig.deliver(Some(seq), QoS::AtLeastOnce, message(None));
    }
    assert_eq!(rig.said().len(), 10, "Receive Maximum");
    rig.drive(|session, out| {
        for n in [1, 2, 2, 4] {
            session.packet(Packet::PubAck { id: id(n), reason: Reason::SUCCESS }, NOW, out);
        }
    });
    assert_eq!(rig.take_acks(), [(0, AckKind::Puback), (1, AckKind::Puback), (3, AckKind::Puback)]);
    assert!(rig.said().is_empty());
    rig.outcome(1, Outcome::Done);
    assert_eq!(rig.said(), [("publish", 11, 0), ("publish", 12, 0)]);
}

#[test]
fn an_exchange_of_qos_2_and_its_odd_answers() {
    let mut rig = Rig::open(Version::V5);
    for seq in 0..3 {
        rig.deliver(Some(seq), QoS::ExactlyOnce, message(None));
    }
    rig.take_packets();
    rig.packet(Packet::PubRec { id: id(1), reason: Reason::SUCCESS });
    rig.packet(Packet::PubRec { id: id(1), reason: Reason::SUCCESS });
    rig.packet(Packet::PubRec { id: id(2), reason: Reason(0x83) });
    rig.packet(Packet::PubRec { id: id(50), reason: Reason::SUCCESS });
    rig.packet(Packet::PubRec { id: id(51), reason: Reason(0x80) });
    rig.packet(Packet::PubComp { id: id(52) });
    rig.packet(Packet::PubAck { id: id(53), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("pubrel", 50, 0x92)]);
    assert_eq!(rig.take_acks(), [(0, AckKind::Pubrec), (1, AckKind::PubrecRefused)]);
    rig.outcome(1, Outcome::Done);
    rig.outcome(2, Outcome::Done);
    assert_eq!(rig.said(), [("pubrel", 1, 0)]);
    rig.packet(Packet::PubRec { id: id(1), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("pubrel", 1, 0)]);
    rig.packet(Packet::PubComp { id: id(1) });
    assert_eq!(rig.take_acks(), [(0, AckKind::Pubcomp)]);
    rig.packet(Packet::PubAck { id: id(3), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("disconnect", 0, 0x82)], "PUBACK is no answer to QoS 2");
}

#[test]
fn what_expired_is_settled_unsent_and_what_is_left_is_counted_down() {
    let mut rig = Rig::open(Version::V5);
    rig.deliver(Some(0), QoS::AtLeastOnce, message(Some(50_000)));
    rig.deliver(Some(1), QoS::ExactlyOnce, message(Some(49_999)));
    rig.deliver(Some(2), QoS::AtLeastOnce, message(Some(52_001)));
    rig.deliver(None, QoS::AtMostOnce, message(Some(50_000)));
    assert_eq!(rig.take_acks(), [(0, AckKind::Puback), (1, AckKind::PubrecRefused)]);
    rig.outcome(1, Outcome::Done);
    rig.outcome(2, Outcome::Done);
    let [Outgoing::Publish(sent)] = &rig.take_packets()[..] else { panic!() };
    assert_eq!(sent.expiry_s, Some(3));
    assert_eq!(rig.out.counts.expired, 3);
}

/// Else, were the connection lost before, the next one would send it behind what came after it.
#[test]
fn nothing_is_sent_behind_an_expired_message_before_its_end_is_committed() {
    let mut rig = Rig::open(Version::V5);
    rig.deliver(Some(0), QoS::AtLeastOnce, message(Some(1)));
    rig.deliver(Some(1), QoS::AtLeastOnce, message(None));
    rig.deliver(Some(2), QoS::AtLeastOnce, message(Some(1)));
    assert_eq!(rig.said(), []);
    assert_eq!(rig.take_acks(), [(0, AckKind::Puback)]);
    rig.outcome(1, Outcome::Done);
    assert_eq!(rig.said(), [("publish", 2, 0)]);
    assert_eq!(rig.take_acks(), [(2, AckKind::Puback)]);
}

#[test]
fn expired_messages_in_a_row_are_passed_over_together() {
    let mut rig = Rig::open(Version::V5);
    rig.deliver(Some(0), QoS::AtLeastOnce, message(Some(1)));
    rig.deliver(Some(1), QoS::AtLeastOnce, message(Some(1)));
    assert_eq!(rig.take_acks(), [(0, AckKind::Puback), (1, AckKind::Puback)]);
    rig.outcome(1, Outcome::Done);
    rig.deliver(Some(2), QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [], "one of the two ends is not committed");
    rig.outcome(2, Outcome::Done);
    assert_eq!(rig.said(), [("publish", 3, 0)]);
}

#[test]
fn what_may_have_been_sent_goes_on_after_it_expired() {
    let connected = Connected { sent_until: QueueSeq(1), queue_tail: QueueSeq(2), ..found() };
    let mut rig = Rig::open_with(Version::V5, connected);
    let wanted = rig.out.page.take().unwrap();
    assert_eq!(wanted.from, QueueSeq(0));
    let row = |seq| QueuedRow {
        seq: QueueSeq(seq),
        qos: QoS::AtLeastOnce,
        retain: false,
        released: false,
        identifiers: Arc::from([]),
        message: message(Some(1)),
    };
    let page = QueuePage { rows: vec![row(0), row(1)], next: QueueSeq(2), end: true };
    rig.drive(|session, out| session.page(Ok(page), out));
    assert_eq!(rig.said(), [("dup", 1, 0)]);
    assert_eq!(rig.take_acks(), [(1, AckKind::Puback)]);
}

#[test]
fn a_packet_too_large_for_the_client_is_settled_unsent() {
    let connect = Connect { packet_bytes_max: Some(14), ..hello(Version::V5) };
    let mut rig = Rig::connecting(Version::V5, connect, MqttOptions::default());
    rig.take_commands();
    rig.outcome(0, Outcome::Connected(found()));
    rig.take_packets();
    rig.deliver(Some(0), QoS::AtLeastOnce, message(None));
    rig.deliver(None, QoS::AtMostOnce, message(None));
    assert_eq!(rig.said(), [("publish", 0, 0)], "13 bytes without an identifier, 15 with one");
    assert_eq!(rig.take_acks(), [(0, AckKind::Puback)]);
    assert_eq!(rig.out.counts.too_large, 1);
}

#[test]
fn a_transient_session_has_numbers_of_its_own_and_logs_no_acknowledgement() {
    let mut rig = Rig::open_with(Version::V5, Connected { durable: false, present: false, ..found() });
    for _ in 0..2 {
        rig.deliver(None, QoS::ExactlyOnce, message(None));
    }
    rig.deliver(None, QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 32_769, 0), ("publish", 32_770, 0), ("publish", 32_771, 0)]);
    rig.packet(Packet::PubRec { id: id(32_769), reason: Reason::SUCCESS });
    rig.packet(Packet::PubAck { id: id(32_771), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("pubrel", 32_769, 0)]);
    rig.packet(Packet::PubComp { id: id(32_769) });
    assert!(rig.take_commands().is_empty() && rig.out.page.is_none());
    rig.packet(Packet::PubAck { id: id(32_770), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("disconnect", 0, 0x82)], "PUBACK is no answer to QoS 2");
}

/// It is a member of a shared group: those deliveries are rows, and settled through the log.
#[test]
fn a_transient_sessions_rows_and_its_memory_share_window_and_identifiers() {
    let mut rig = Rig::open_with(Version::V5, Connected { durable: false, present: false, ..found() });
    for seq in 0..8 {
        rig.deliver(Some(seq), QoS::AtLeastOnce, message(None));
        rig.deliver(None, QoS::AtLeastOnce, message(None));
    }
    let sent: Vec<u16> = rig.said().iter().map(|(_, id, _)| *id).collect();
    assert_eq!(sent.len(), 10, "Receive Maximum holds for both together");
    assert_eq!(sent.iter().filter(|id| **id < 32_768).count(), 5, "in turn: {sent:?}");
    rig.drive(|session, out| {
        for id_sent in &sent {
            session.packet(Packet::PubAck { id: id(*id_sent), reason: Reason::SUCCESS }, NOW, out);
        }
    });
    assert_eq!(rig.said().len(), 5, "what is not logged is settled at once");
    assert_eq!(rig.take_acks().len(), 5);
    rig.outcome(1, Outcome::Done);
    assert_eq!(rig.said().len(), 1, "and the rows when the log says so");
    rig.drive(|session, out| session.end(Ending::SocketClosed, out));
    assert_eq!(rig.close().sent_until, QueueSeq(8));
}

/// Identifiers of rows are fixed: a row whose identifier is in use waits, and the memory takes none that is.
#[test]
fn no_packet_identifier_is_in_use_twice() {
    let connected = Connected { durable: false, present: false, ..found() };
    let mut rig = Rig::open_with(Version::V5, connected);
    rig.deliver(None, QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 32_769, 0)]);
    // All rows up to the one with this identifier have come and gone elsewhere.
    let page = QueuePage { rows: vec![row(32_768, QoS::AtLeastOnce)], next: QueueSeq(32_769), end: true };
    rig.drive(|session, _| session.note(QueueSeq(32_768)));
    assert!(rig.out.page.take().is_some());
    rig.drive(|session, out| session.page(Ok(page), out));
    assert!(rig.said().is_empty());
    // It holds up nothing else.
    rig.deliver(None, QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 2, 0)], "far from the row");
    rig.packet(Packet::PubAck { id: id(32_769), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("publish", 32_769, 0)]);
    rig.packet(Packet::PubAck { id: id(32_769), reason: Reason::SUCCESS });
    assert_eq!(rig.take_acks(), [(32_768, AckKind::Puback)]);
}

#[test]
fn nothing_is_sent_from_the_queue_while_the_client_does_not_read() {
    let mut rig = Rig::open(Version::V5);
    rig.out.room = 0;
    rig.deliver(Some(0), QoS::AtLeastOnce, message(None));
    rig.deliver(None, QoS::AtMostOnce, message(None));
    assert!(rig.session.is_blocked() && rig.said().is_empty());
    assert_eq!(rig.out.counts.qos0_dropped, 1);
    rig.out.room = 100;
    rig.drive(|session, _| session.writable());
    assert_eq!(rig.said(), [("publish", 1, 0)]);
    assert!(!rig.session.is_blocked());
}

#[test]
fn a_row_that_was_only_noted_is_paged_in_its_turn() {
    let mut rig = Rig::open(Version::V5);
    rig.drive(|session, _| session.note(QueueSeq(0)));
    assert_eq!(rig.out.page.take().unwrap().from, QueueSeq(0));
    // Later ones wait for the page, and do not come twice.
    rig.deliver(Some(1), QoS::AtLeastOnce, message(None));
    assert!(rig.said().is_empty());
    let row = |seq| QueuedRow {
        seq: QueueSeq(seq),
        qos: QoS::AtLeastOnce,
        retain: false,
        released: false,
        identifiers: Arc::from([]),
        message: message(None),
    };
    let page = QueuePage { rows: vec![row(0), row(1), row(2)], next: QueueSeq(3), end: true };
    rig.drive(|session, out| session.page(Ok(page), out));
    rig.deliver(Some(2), QoS::AtLeastOnce, message(None));
    rig.deliver(Some(3), QoS::AtLeastOnce, message(None));
    let ids: Vec<_> = rig.said().into_iter().map(|(_, id, _)| id).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    assert!(rig.out.page.is_none());
}

#[test]
fn rows_that_vanished_leave_no_gap_to_wait_for() {
    let mut rig = Rig::open_with(Version::V5, Connected { queue_tail: QueueSeq(100), ..found() });
    assert!(rig.out.page.take().is_some());
    let page = QueuePage { rows: Vec::new(), next: QueueSeq(0), end: true };
    rig.drive(|session, out| session.page(Ok(page), out));
    assert!(rig.out.page.is_none());
    rig.deliver(Some(100), QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 101, 0)]);
}

#[test]
fn a_page_that_cannot_be_read_ends_the_connection() {
    let mut rig = Rig::open_with(Version::V5, Connected { queue_tail: QueueSeq(1), ..found() });
    rig.drive(|session, out| session.page(Err(()), out));
    assert_eq!(rig.said(), [("disconnect", 0, 0x83)]);
}

#[test]
fn a_row_that_is_withdrawn_is_not_sent() {
    // Ready, behind a full window.
    let mut rig = Rig::open(Version::V5);
    for seq in 0..13 {
        rig.deliver(Some(seq), QoS::AtLeastOnce, message(None));
    }
    assert_eq!(rig.said().len(), 10);
    rig.drive(|session, _| session.withdraw(QueueSeq(11)));
    for n in 1..=10 {
        rig.packet(Packet::PubAck { id: id(n), reason: Reason::SUCCESS });
        rig.outcome(u64::from(n), Outcome::Done);
    }
    assert_eq!(rig.said(), [("publish", 11, 0), ("publish", 13, 0)]);

    // In a page that was read before.
    let mut rig = Rig::open_with(Version::V5, Connected { queue_tail: QueueSeq(4), ..found() });
    assert!(rig.out.page.take().is_some());
    rig.drive(|session, _| session.withdraw(QueueSeq(1)));
    rig.deliver(Some(4), QoS::AtLeastOnce, message(None));
    rig.drive(|session, _| session.withdraw(QueueSeq(4)));
    rig.drive(|session, out| session.page(Ok(page(0..5, true)), out));
    assert_eq!(rig.said(), [("publish", 1, 0), ("publish", 3, 0), ("publish", 4, 0)]);
    rig.deliver(Some(5), QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 6, 0)]);
}

/// A page that was read late has rows that came when the session was another connection's already: they are that one's to
/// send, and this one's only when it hears of them.
#[test]
fn a_page_that_was_read_late_brings_no_row_that_the_connection_has_not_heard_of() {
    let mut rig = Rig::open_with(Version::V5, Connected { queue_tail: QueueSeq(2), ..found() });
    assert!(rig.out.page.take().is_some());
    rig.drive(|session, out| session.page(Ok(page(0..5, true)), out));
    assert_eq!(rig.said(), [("publish", 1, 0), ("publish", 2, 0)]);
    rig.deliver(Some(2), QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 3, 0)]);
    rig.drive(|session, out| session.end(Ending::SocketClosed, out));
    assert_eq!(rig.close().sent_until, QueueSeq(3));
}

#[test]
fn a_page_is_read_again_from_where_too_many_rows_went() {
    let mut rig = Rig::open_with(Version::V5, Connected { queue_tail: QueueSeq(5000), ..found() });
    assert!(rig.out.page.take().is_some());
    rig.drive(|session, _| (2..4000).for_each(|seq| session.withdraw(QueueSeq(seq))));
    rig.drive(|session, out| session.page(Ok(page(0..4999, true)), out));
    assert_eq!(rig.said(), [("publish", 1, 0), ("publish", 2, 0)]);
    let wanted = rig.out.page.take().unwrap();
    assert!((2..4000).contains(&wanted.from.0), "{wanted:?}");
    let again = QueuePage { rows: vec![row(4000, QoS::AtLeastOnce)], next: QueueSeq(4001), end: true };
    rig.drive(|session, out| session.page(Ok(again), out));
    assert_eq!(rig.said(), [("publish", 4001, 0)]);
}

#[test]
fn a_pubrec_for_a_row_that_is_still_to_be_resent_waits_for_it() {
    let mut rig =
        Rig::open_with(Version::V5, Connected { sent_until: QueueSeq(1), queue_tail: QueueSeq(1), ..found() });
    assert!(rig.out.page.take().is_some());
    // Of the connection before: a PUBREL now, and our DUP would be a second message to the client.
    rig.packet(Packet::PubRec { id: id(1), reason: Reason::SUCCESS });
    assert!(rig.said().is_empty() && rig.take_commands().is_empty());
    // The row after it was never sent: nothing is known of it.
    rig.packet(Packet::PubRec { id: id(2), reason: Reason::SUCCESS });
    assert_eq!(rig.said(), [("pubrel", 2, 0x92)]);
    let resent = QueuePage { rows: vec![row(0, QoS::ExactlyOnce)], next: QueueSeq(1), end: true };
    rig.drive(|session, out| session.page(Ok(resent), out));
    assert_eq!(rig.said(), [("dup", 1, 0)]);
    rig.packet(Packet::PubRec { id: id(1), reason: Reason::SUCCESS });
    assert_eq!(rig.take_acks(), [(0, AckKind::Pubrec)]);
}

#[test]
fn what_waits_in_memory_is_charged_its_properties() {
    let options = MqttOptions { transient_queue_bytes_max: 10_000, ..MqttOptions::default() };
    let mut rig = Rig::connecting(Version::V5, hello(Version::V5), options);
    rig.take_commands();
    rig.outcome(0, Outcome::Connected(Connected { durable: false, present: false, ..found() }));
    rig.take_packets();
    let large = || {
        let mut message = Arc::unwrap_or_clone(message(None));
        let properties =
            quorate_store::message::MessageProperties { correlation_data: Some(vec![0; 3000]), ..Default::default() };
        message.properties = Some(Box::new(properties));
        Arc::new(message)
    };
    for _ in 0..20 {
        rig.deliver(None, QoS::AtLeastOnce, large());
    }
    assert!(rig.session.is_over(), "3 kB each wait, of ten kB that may");
    assert_eq!(rig.out.closed, Some(Reason::QUOTA_EXCEEDED));
}

/// [MQTT-3.3.2-6]: the interval less the time waited, and never longer than what was published.
#[test]
fn no_estimate_of_cluster_time_makes_an_expiry_interval_longer_than_it_was_published() {
    let left = |interval_ms: u64, cluster: u64| {
        let (published_at, expires_at) = (ClusterTime(5000), Some(ClusterTime(5000 + interval_ms)));
        let message = Message { published_at, expires_at, ..Arc::unwrap_or_clone(message(None)) };
        outbox::expiry_left(&message, Now { cluster: ClusterTime(cluster), ..Now::default() })
    };
    assert_eq!(left(1000, 5000), Some(Some(1)));
    assert_eq!(left(1000, 4999), Some(Some(1)), "the estimate is behind");
    assert_eq!(left(1_000_000, 0), Some(Some(1000)), "the estimate is far behind");
    assert_eq!(left(1_000_000, 6000), Some(Some(999)));
    assert_eq!(left(1_000_000, 6001), Some(Some(999)));
    assert_eq!(left(1000, 6000), None);
    assert_eq!(left(0, 0), None, "an interval of 0, with an estimate that is behind");
}

#[test]
fn acknowledgements_can_wait_as_long_as_nothing_waits_for_them() {
    let answered = |sent: u64, qos: QoS, packet: &dyn Fn(PacketId) -> Packet| {
        let mut rig = Rig::open(Version::V5);
        (0..sent).for_each(|seq| rig.deliver(Some(seq), qos, message(None)));
        rig.packet(packet(id(1)));
        assert_eq!(rig.take_acks().len(), 1);
        rig.out.acks_can_wait
    };
    let puback = |id| Packet::PubAck { id, reason: Reason::SUCCESS };
    assert!(answered(1, QoS::AtLeastOnce, &puback));
    assert!(answered(5, QoS::AtLeastOnce, &puback));
    assert!(!answered(6, QoS::AtLeastOnce, &puback), "more than half of the window is used");
    assert!(!answered(11, QoS::AtLeastOnce, &puback), "a message waits for the window");
    let pubrec = |id| Packet::PubRec { id, reason: Reason::SUCCESS };
    assert!(!answered(1, QoS::ExactlyOnce, &pubrec), "the client waits for PUBREL");

    let mut rig = Rig::open(Version::V5);
    rig.deliver(Some(0), QoS::AtLeastOnce, message(Some(1)));
    assert_eq!(rig.take_acks().len(), 1);
    assert!(!rig.out.acks_can_wait, "nothing goes out behind a message that expired before its end is committed");
}
