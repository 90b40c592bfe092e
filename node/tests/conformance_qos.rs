//! QoS 1 and 2 in both directions: identifiers, acknowledgements, order, flow control.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use std::sync::Arc;

use conformance::client::{AckKind, Client, Publish, Value, Version, publish};
use conformance::{Broker, Test, both, v5};
use quorate_jepsen::wire::property;

fn subscriber(t: &Test) -> Client {
    let mut client = t.client("c");
    client.subscribe(&t.topic("t"), 2);
    client
}

/// [MQTT-2.2.1-4], [MQTT-4.3.2-1], [MQTT-4.3.3-1], [MQTT-2.3.1-2 v3.1.1], [MQTT-2.3.1-4 v3.1.1],
/// [MQTT-4.3.2-1 v3.1.1].
#[test]
fn messages_in_flight_have_identifiers_that_differ_and_none_is_0() {
    both(|t| {
        let mut client = subscriber(t);
        let mut publisher = t.client("publisher");
        for n in 0..20 {
            publisher.publish(&t.topic("t"), 1 + n % 2, &n.to_string());
        }
        let messages: Vec<_> = (0..20).map(|_| client.message()).collect();
        let mut ids: Vec<u16> = messages.iter().map(|p| p.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() == 20 && ids[0] > 0, "{ids:?}");
        assert!(messages.iter().all(|p| !p.dup));
        // Also while some of them are settled and others not.
        for message in messages.iter().step_by(2) {
            client.settle(message);
        }
        publisher.publish(&t.topic("t"), 1, "later");
        let later = client.message();
        assert!(messages.iter().skip(1).step_by(2).all(|p| p.id != later.id));
    });
}

/// [MQTT-4.3.2-5], [MQTT-4.3.2-2 v3.1.1]: whatever DUP says.
#[test]
fn after_a_puback_the_same_identifier_is_a_new_message() {
    both(|t| {
        let mut client = subscriber(t);
        let mut publisher = t.client("publisher");
        for dup in [false, true, false] {
            publisher.publish_through(&Publish { dup, ..publish(&t.topic("t"), 1, 7, "x") });
            client.receive("x");
        }
        client.expect_nothing();
    });
}

/// [MQTT-4.3.3-10], [MQTT-4.3.3-2 v3.1.1]; PUBREL gets PUBCOMP [MQTT-4.3.3-11] and then the identifier is new
/// [MQTT-4.3.3-12].
#[test]
fn a_qos_2_message_is_delivered_once_until_its_pubrel() {
    both(|t| {
        let mut client = subscriber(t);
        let (mut publisher, _) = t.resume("publisher");
        let message = publish(&t.topic("t"), 2, 7, "first");
        let again = Publish { dup: true, ..message.clone() };
        publisher.send_publish(&message);
        publisher.expect_ack(AckKind::Pubrec, 7);
        publisher.send_publish(&again);
        publisher.expect_ack(AckKind::Pubrec, 7);
        client.receive("first");
        client.expect_nothing();
        // Over a broken connection, too.
        publisher.break_off();
        let (mut publisher, present) = t.resume("publisher");
        assert!(present);
        publisher.send_publish(&again);
        publisher.expect_ack(AckKind::Pubrec, 7);
        client.expect_nothing();
        for _ in 0..2 {
            publisher.ack(AckKind::Pubrel, 7);
            let got = publisher.read();
            assert_eq!((got.first, got.id()), (0x70, 7));
        }
        publisher.publish_through(&publish(&t.topic("t"), 2, 7, "second"));
        client.receive("second");
        client.expect_nothing();
    });
}

/// [MQTT-4.3.3-13].
#[test]
fn a_qos_2_handshake_is_finished_for_a_message_that_has_expired() {
    v5(|t| {
        let (mut publisher, _) = t.resume("publisher");
        let properties = vec![conformance::client::prop(0x02, Value::U32(1))];
        publisher.send_publish(&Publish { properties, ..publish(&t.topic("t"), 2, 7, "short") });
        publisher.expect_ack(AckKind::Pubrec, 7);
        t.accepted(&t.clean("clock").keep_alive(1)).0.expect_end(0x8d);
        publisher.ack(AckKind::Pubrel, 7);
        publisher.expect_ack(AckKind::Pubcomp, 7);
    });
}

/// [MQTT-4.3.3-7]: it was sent before it expired, so its handshake goes on, also on another connection.
#[test]
fn what_was_sent_at_qos_2_does_not_expire() {
    v5(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 2);
        let mut publisher = t.client("publisher");
        let properties = vec![conformance::client::prop(0x02, Value::U32(3))];
        publisher.publish_through(&Publish { properties, ..publish(&t.topic("t"), 2, 7, "short") });
        let sent = client.message();
        client.break_off();
        t.accepted(&t.clean("clock").keep_alive(3)).0.expect_end(0x8d);
        let (mut client, _) = t.resume("c");
        let again = client.receive("short");
        assert_eq!((again.id, again.dup), (sent.id, true));
    });
}

/// [MQTT-4.3.3-4], [MQTT-4.3.3-6], [MQTT-4.3.3-1 v3.1.1]: PUBREL with the identifier [MQTT-2.2.1-5], and no PUBLISH
/// after it.
#[test]
fn a_pubrec_is_answered_by_pubrel_and_the_message_is_not_sent_again() {
    both(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 2);
        t.publish(&t.topic("t"), 2, "x");
        let message = client.message();
        client.ack(AckKind::Pubrec, message.id);
        client.expect_ack(AckKind::Pubrel, message.id);
        client.break_off();
        for _ in 0..2 {
            let (mut client, _) = t.resume("c");
            client.expect_ack(AckKind::Pubrel, message.id);
            client.expect_nothing();
        }
        let (mut client, _) = t.resume("c");
        client.expect_ack(AckKind::Pubrel, message.id);
        client.ack(AckKind::Pubcomp, message.id);
        client.expect_nothing();
        client.break_off();
        t.resume("c").0.expect_nothing();
    });
}

/// [MQTT-4.3.3-9]: here because a queue is full.
#[test]
fn after_a_pubrec_that_refuses_the_identifier_is_new() {
    let broker = Arc::new(Broker::start(&[("bootstrap_queue_bytes_max", "65536")]));
    let t = broker.test(Version::V5);
    let (mut full, _) = t.resume("full");
    full.subscribe(&t.topic("t"), 1);
    full.disconnect();
    let mut publisher = t.client("publisher");
    let large = "x".repeat(10_000);
    let mut refused = 0;
    for _ in 0..20 {
        publisher.send_publish(&publish(&t.topic("t"), 2, 7, &large));
        let rec = publisher.read();
        assert_eq!((rec.first, rec.id()), (0x50, 7));
        if rec.reason() >= 0x80 {
            assert_eq!(rec.reason(), 0x97);
            refused += 1;
            continue;
        }
        publisher.ack(AckKind::Pubrel, 7);
        publisher.expect_ack(AckKind::Pubcomp, 7);
    }
    assert!(refused > 0, "the queue was never full");
    // It is a new message: not swallowed as a repeat of the refused one.
    let mut other = t.client("other");
    other.subscribe(&t.topic("u"), 2);
    publisher.publish_through(&publish(&t.topic("u"), 2, 7, "taken"));
    other.receive("taken");
}

/// [MQTT-4.6.0-5], [MQTT-4.6.0-6], [MQTT-4.6.0-5 v3.1.1], [MQTT-4.6.0-6 v3.1.1].
#[test]
fn messages_of_a_publisher_topic_and_qos_come_in_their_order() {
    both(|t| {
        let mut client = subscriber(t);
        let mut publisher = t.client("publisher");
        for qos in 0..=2 {
            for n in 0..50 {
                publisher.send_publish(&publish(&t.topic("t"), qos, n + 1, &n.to_string()));
            }
            let messages: Vec<_> = (0..50).map(|_| client.message()).collect();
            for (n, message) in (0..50).zip(&messages) {
                assert_eq!(String::from_utf8_lossy(&message.payload), n.to_string());
                client.settle(message);
                match qos {
                    0 => {}
                    1 => publisher.expect_ack(AckKind::Puback, n + 1),
                    _ => publisher.expect_ack(AckKind::Pubrec, n + 1),
                }
            }
            for n in (0..50).filter(|_| qos == 2) {
                publisher.ack(AckKind::Pubrel, n + 1);
                publisher.expect_ack(AckKind::Pubcomp, n + 1);
            }
        }
        client.expect_nothing();
    });
}

/// [MQTT-3.3.4-9], [MQTT-4.9.0-1], [MQTT-4.9.0-2]; what is no PUBLISH goes on, and QoS 0 too [MQTT-3.3.4-10],
/// [MQTT-4.9.0-3].
#[test]
fn no_more_messages_are_in_flight_than_the_client_allows_and_nothing_else_waits() {
    v5(|t| {
        let limited = t.clean("c").with(property::RECEIVE_MAXIMUM, Value::U16(2));
        let mut client = t.accepted(&limited).0;
        client.subscribe(&t.topic("t"), 2);
        let mut publisher = t.client("publisher");
        for n in 0..5 {
            publisher.publish(&t.topic("t"), 1 + n % 2, &n.to_string());
        }
        let first = client.message();
        let second = client.message();
        // The window is full: pings, subscriptions, the client's own publishes and QoS 0 are not held back.
        client.ping();
        client.subscribe(&t.topic("plain"), 0);
        client.publish(&t.topic("elsewhere"), 1, "own");
        client.publish(&t.topic("elsewhere"), 2, "own");
        publisher.publish(&t.topic("plain"), 2, "plain");
        client.receive("plain");
        client.ping();
        // Every acknowledgement makes room for one; PUBREC does not.
        client.ack(AckKind::Pubrec, second.id);
        client.expect_ack(AckKind::Pubrel, second.id);
        client.ping();
        client.settle(&first);
        let third = client.message();
        assert_eq!(third.payload, b"2");
        client.ping();
        client.ack(AckKind::Pubcomp, second.id);
        assert_eq!(client.message().payload, b"3");
        client.ping();
        client.settle(&third);
        assert_eq!(client.message().payload, b"4");
    });
}

/// [MQTT-3.3.4-7].
#[test]
fn a_client_above_receive_maximum_is_disconnected() {
    let broker = Arc::new(Broker::start(&[("receive_maximum", "2")]));
    let t = broker.test(Version::V5);
    let mut client = t.open();
    let ack = client.greet(&t.clean("c"));
    assert_eq!(property::number(&ack.properties(), property::RECEIVE_MAXIMUM), Some(2));
    for id in [1, 2] {
        client.send_publish(&publish(&t.topic("t"), 2, id, "x"));
        client.expect_ack(AckKind::Pubrec, id);
    }
    // The handshakes are open. QoS 0 does not count.
    client.publish(&t.topic("t"), 0, "x");
    client.send_publish(&publish(&t.topic("t"), 1, 3, "x"));
    client.expect_end(0x93);
}
