//! The promises of the client's half of a session.

use super::*;
use crate::client::packet::ConnAck;

fn options(version: Version) -> SessionOptions {
    SessionOptions {
        version,
        client_id: "c".to_owned(),
        clean_start: true,
        expiry_s: 3600,
        receive_maximum: 10,
        window_max: 4,
        keep_alive_s: 10,
    }
}

fn connack(present: bool) -> Packet {
    Packet::ConnAck(ConnAck {
        present,
        reason: 0,
        receive_maximum: 10,
        packet_bytes_max: None,
        keep_alive_s: None,
        reason_string: None,
        server_reference: None,
    })
}

fn ack(kind: AckKind, packet_id: u16) -> Packet {
    Packet::Ack(Ack { kind, packet_id, reason: 0 })
}

fn message(qos: Qos) -> Outgoing {
    Outgoing { topic: "t".to_owned(), qos, retain: false, payload: Bytes::from_static(b"x") }
}

fn delivery(qos: Qos, packet_id: u16, dup: bool) -> Packet {
    Packet::Publish(Publish {
        dup,
        qos,
        retain: false,
        topic: "t".to_owned(),
        packet_id,
        payload: Bytes::from_static(b"x"),
    })
}

fn sent(session: &mut Session) -> Vec<Packet> {
    std::iter::from_fn(|| session.next_packet()).collect()
}

fn receive(session: &mut Session, packet: Packet) -> Vec<Event> {
    let mut events = Vec::new();
    session.receive(packet, &mut events).unwrap();
    events
}

fn open(session: &mut Session, present: bool) -> Vec<Event> {
    session.connect();
    assert!(matches!(sent(session)[..], [Packet::Connect(_)]));
    receive(session, connack(present))
}

#[test]
fn a_resumed_session_repeats_publishes_with_dup_and_owed_pubrels_in_order() {
    for version in [Version::V311, Version::V5] {
        let mut session = Session::new(options(version));
        open(&mut session, false);
        for (token, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce), (3, Qos::ExactlyOnce)] {
            session.publish(message(qos), token).unwrap();
        }
        assert_eq!(sent(&mut session).len(), 3);
        assert_eq!(receive(&mut session, ack(AckKind::Pubrec, 2)), [Event::Acknowledged { token: 2, reason: 0 }]);
        assert_eq!(sent(&mut session), [ack(AckKind::Pubrel, 2)]);
        session.lost();
        assert!(session.publish(message(Qos::AtLeastOnce), 4).is_err());
        let events = open(&mut session, true);
        let resent = |token| Event::Resent { token };
        assert_eq!(events, [Event::Connected { present: true }, resent(1), resent(3)]);
        let repeats = sent(&mut session);
        assert_eq!(repeats[1], ack(AckKind::Pubrel, 2));
        for (packet, id) in [(&repeats[0], 1), (&repeats[2], 3)] {
            assert!(matches!(packet, Packet::Publish(p) if p.dup && p.packet_id == id), "{packet:?}");
        }
        assert_eq!(receive(&mut session, ack(AckKind::Pubcomp, 2)), [Event::Completed { token: 2 }]);
        receive(&mut session, ack(AckKind::Puback, 1));
        receive(&mut session, ack(AckKind::Pubrec, 3));
        receive(&mut session, ack(AckKind::Pubcomp, 3));
        assert_eq!(session.unacknowledged(), 0);
    }
}

#[test]
fn only_the_first_connect_begins_anew() {
    let mut session = Session::new(options(Version::V5));
    let clean = |session: &mut Session| {
        session.connect();
        match session.next_packet() {
            Some(Packet::Connect(connect)) => connect.clean_start,
            other => panic!("{other:?}"),
        }
    };
    assert!(clean(&mut session), "nothing was accepted yet");
    assert!(clean(&mut session), "the first CONNECT may not have reached the server");
    receive(&mut session, connack(false));
    assert!(!clean(&mut session));
}

#[test]
fn a_session_that_the_server_forgot_publishes_anew() {
    let mut session = Session::new(options(Version::V5));
    open(&mut session, false);
    session.publish(message(Qos::ExactlyOnce), 1).unwrap();
    session.publish(message(Qos::AtLeastOnce), 2).unwrap();
    receive(&mut session, ack(AckKind::Pubrec, 1));
    session.lost();
    let events = open(&mut session, false);
    let (done, resent) = (Event::Completed { token: 1 }, Event::Resent { token: 2 });
    assert_eq!(events, [Event::Connected { present: false }, done, resent]);
    assert!(matches!(&sent(&mut session)[..], [Packet::Publish(p)] if !p.dup && p.packet_id == 2));
}

#[test]
fn a_qos_2_delivery_is_shown_once_whatever_is_repeated() {
    let mut session = Session::new(options(Version::V5));
    open(&mut session, false);
    assert!(matches!(receive(&mut session, delivery(Qos::ExactlyOnce, 7, false))[..], [Event::Message(_)]));
    assert_eq!(session.phases().received_without_pubrec, 1);
    session.release_acks(1);
    assert_eq!((session.phases().pubrec_without_pubrel, sent(&mut session)), (1, vec![ack(AckKind::Pubrec, 7)]));
    session.lost();
    open(&mut session, true);
    assert_eq!(receive(&mut session, delivery(Qos::ExactlyOnce, 7, true)), [Event::Repeated { packet_id: 7 }]);
    session.release_acks(1);
    assert_eq!(receive(&mut session, ack(AckKind::Pubrel, 7)), [Event::Released { packet_id: 7 }]);
    assert_eq!(session.phases().released_without_pubcomp, 1);
    session.lost();
    open(&mut session, true);
    receive(&mut session, ack(AckKind::Pubrel, 7));
    session.release_acks(9);
    assert_eq!(sent(&mut session), [ack(AckKind::Pubcomp, 7)]);
    let events = receive(&mut session, delivery(Qos::ExactlyOnce, 7, false));
    assert!(matches!(events[..], [Event::Message(_)]), "the identifier is free again");
}

#[test]
fn acks_wait_until_they_are_released_in_order() {
    let mut session = Session::new(options(Version::V5));
    open(&mut session, false);
    for id in 1..=3 {
        receive(&mut session, delivery(Qos::AtLeastOnce, id, false));
    }
    assert_eq!((session.held_acks(), sent(&mut session).len()), (3, 0));
    session.release_acks(2);
    assert_eq!(sent(&mut session), [ack(AckKind::Puback, 1), ack(AckKind::Puback, 2)]);
    session.lost();
    assert_eq!(session.held_acks(), 0, "the server delivers 3 again");
}

#[test]
fn the_window_is_kept_and_a_refused_publish_is_done() {
    let mut session = Session::new(options(Version::V5));
    open(&mut session, false);
    for token in 0..4 {
        session.publish(message(Qos::ExactlyOnce), token).unwrap();
    }
    assert_eq!(session.publish(message(Qos::ExactlyOnce), 4), Err(WindowFull));
    let refused = Packet::Ack(Ack { kind: AckKind::Pubrec, packet_id: 1, reason: 0x97 });
    let events = receive(&mut session, refused);
    assert_eq!(events, [Event::Acknowledged { token: 0, reason: 0x97 }, Event::Completed { token: 0 }]);
    session.publish(message(Qos::ExactlyOnce), 4).unwrap();
    assert_eq!(session.phases().publish_without_pubrec, 4);
}

#[test]
fn an_ack_of_nothing_is_a_protocol_error() {
    let mut session = Session::new(options(Version::V5));
    open(&mut session, false);
    session.publish(message(Qos::ExactlyOnce), 1).unwrap();
    let mut events = Vec::new();
    for packet in [ack(AckKind::Puback, 1), ack(AckKind::Pubcomp, 1), ack(AckKind::Pubrec, 9)] {
        assert!(session.receive(packet, &mut events).is_err());
    }
    assert!(session.receive(connack(true), &mut events).is_err());
    assert!(events.is_empty());
}
