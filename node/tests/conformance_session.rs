//! Sessions: made, resumed, discarded, taken over; and what of them outlives a connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use conformance::client::{AckKind, Value, publish};
use conformance::{both, v4, v5};
use quorate_jepsen::wire::property;

/// [MQTT-3.1.2-5], [MQTT-3.1.2-23], [MQTT-3.2.2-3], [MQTT-3.1.2-4 v3.1.1], [MQTT-3.2.2-2 v3.1.1]: the client identifier
/// names it [MQTT-3.1.3-2], [MQTT-3.1.3-2 v3.1.1].
#[test]
fn a_session_that_was_left_is_resumed_by_its_identifier() {
    both(|t| {
        let (mut client, present) = t.resume("c");
        assert!(!present);
        client.subscribe(&t.topic("t"), 1);
        client.disconnect();
        t.publish(&t.topic("t"), 1, "while away");
        let (_, present) = t.resume("another");
        assert!(!present);
        let (mut client, present) = t.resume("c");
        assert!(present);
        client.receive("while away");
        t.publish(&t.topic("t"), 1, "still subscribed");
        client.receive("still subscribed");
    });
}

/// [MQTT-3.1.2-6], [MQTT-3.2.2-3 v3.1.1].
#[test]
fn a_session_that_is_not_there_is_made() {
    both(|t| {
        let (mut client, present) = t.resume("new");
        assert!(!present);
        client.subscribe(&t.topic("t"), 0);
        t.publish(&t.topic("t"), 0, "x");
        client.receive("x");
    });
}

/// [MQTT-3.1.2-4], [MQTT-3.2.2-2], [MQTT-3.1.4-4], [MQTT-3.1.2-6 v3.1.1], [MQTT-3.2.2-1 v3.1.1],
/// [MQTT-3.1.4-3 v3.1.1].
#[test]
fn a_clean_start_discards_the_session() {
    both(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 1);
        client.disconnect();
        t.publish(&t.topic("t"), 1, "discarded");
        let (mut client, present) = t.accepted(&t.lasting("c").fresh());
        assert!(!present);
        client.expect_nothing();
        t.publish(&t.topic("t"), 1, "nobody subscribes");
        client.expect_nothing();
        client.disconnect();
        // On 3.1.1 a clean session ends with its connection, on 5.0 that is for the expiry to say.
        assert_eq!(t.resume("c").1, t.is_v5());
    });
}

/// [MQTT-4.1.0-2]: at once when the interval is 0, [MQTT-3.1.2-6 v3.1.1] on 3.1.1.
#[test]
fn a_session_without_expiry_ends_with_its_connection() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1);
        client.disconnect();
        t.publish(&t.topic("t"), 1, "nobody is there");
        let (mut client, present) = t.resume("c");
        assert!(!present);
        client.expect_nothing();
    });
}

/// [MQTT-4.1.0-2]: after its interval. The end shows by the will, which is delayed beyond it.
#[test]
fn a_session_ends_when_its_expiry_interval_has_passed() {
    v5(|t| {
        let mut watcher = t.client("watcher");
        watcher.subscribe(&t.topic("will"), 0);
        let mut connect = t.clean("c").with(property::SESSION_EXPIRY, Value::U32(1));
        connect = connect.will(&t.topic("will"), 0, false, "ended").will_with(property::WILL_DELAY, Value::U32(600));
        let started = std::time::Instant::now();
        t.accepted(&connect).0.break_off();
        watcher.receive("ended");
        assert!(started.elapsed().as_millis() >= 900, "{:?}", started.elapsed());
        assert!(!t.resume("c").1);
    });
}

/// [MQTT-4.1.0-1], [MQTT-4.1.0-1 v3.1.1], [MQTT-4.1.0-2 v3.1.1].
#[test]
fn a_session_is_kept_for_as_long_as_its_connection() {
    both(|t| {
        // Its state would be gone already if it did not depend on the connection: its expiry is 0.
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        for n in 0..50 {
            t.publish(&t.topic("t"), n % 3, &n.to_string());
            client.receive(&n.to_string());
        }
    });
}

/// [MQTT-3.1.2-5 v3.1.1], [MQTT-4.5.0-1], [MQTT-4.5.0-1 v3.1.1].
#[test]
fn messages_of_qos_1_and_2_join_the_session_of_every_subscriber_also_of_those_away() {
    both(|t| {
        let names = ["here", "away", "further"];
        for name in names {
            let (mut client, _) = t.resume(name);
            client.subscribe(&t.topic("+/x"), 2);
            client.disconnect();
        }
        let (mut here, _) = t.resume("here");
        t.publish(&t.topic("1/x"), 1, "one");
        t.publish(&t.topic("2/x"), 2, "two");
        here.receive("one");
        here.receive("two");
        for name in ["away", "further"] {
            let (mut client, _) = t.resume(name);
            assert_eq!(client.receive("one").qos, 1);
            assert_eq!(client.receive("two").qos, 2);
            client.expect_nothing();
        }
    });
}

/// [MQTT-3.1.4-3], [MQTT-3.1.4-2 v3.1.1].
#[test]
fn the_older_connection_of_a_client_is_ended_by_the_newer() {
    both(|t| {
        let (mut older, _) = t.resume("c");
        older.subscribe(&t.topic("t"), 1);
        let (mut newer, present) = t.resume("c");
        assert!(present);
        older.expect_end(0x8e);
        t.publish(&t.topic("t"), 1, "for the newer");
        newer.receive("for the newer");
    });
}

/// [MQTT-3.1.2-7 v3.1.1].
#[test]
fn retained_messages_outlive_the_session_that_published_them() {
    both(|t| {
        let mut publisher = t.client("publisher");
        let id = publisher.fresh_id();
        let retained = publish(&t.topic("t"), 1, id, "kept");
        publisher.publish_through(&conformance::client::Publish { retain: true, ..retained });
        publisher.disconnect();
        t.client("publisher").disconnect();
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1);
        assert!(client.receive("kept").retain);
    });
}

/// [MQTT-4.4.0-1], [MQTT-4.4.0-1 v3.1.1]: with the same identifiers [MQTT-2.3.1-3 v3.1.1] and DUP 1 [MQTT-3.3.1-1],
/// [MQTT-3.3.1-1 v3.1.1]. What was not acknowledged stays so until it is: [MQTT-4.3.2-3], [MQTT-4.3.3-3],
/// [MQTT-4.3.3-5]; on the first connection no DUP [MQTT-4.3.2-2], [MQTT-4.3.3-2].
#[test]
fn what_was_not_acknowledged_is_sent_again_on_the_next_connection_and_not_before() {
    both(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 2);
        for (qos, payload) in [(1, "one"), (2, "two"), (2, "three"), (1, "four")] {
            t.publish(&t.topic("t"), qos, payload);
        }
        let sent: Vec<_> = (0..4).map(|_| client.message()).collect();
        assert!(sent.iter().all(|p| !p.dup && p.id > 0), "{sent:?}");
        // One is settled, one is received and not complete.
        client.ack(AckKind::Puback, sent[3].id);
        client.ack(AckKind::Pubrec, sent[1].id);
        client.expect_ack(AckKind::Pubrel, sent[1].id);
        client.expect_nothing();
        client.break_off();
        let (mut client, present) = t.resume("c");
        assert!(present);
        client.expect_ack(AckKind::Pubrel, sent[1].id);
        for before in [&sent[0], &sent[2]] {
            let again = client.message();
            assert_eq!((again.id, &again.payload, again.dup), (before.id, &before.payload, true));
            client.settle(&again);
        }
        client.ack(AckKind::Pubcomp, sent[1].id);
        client.expect_nothing();
        client.disconnect();
        t.resume("c").0.expect_nothing();
    });
}

/// [MQTT-4.4.0-2]; the identifier of a refused QoS 2 message is free, and no PUBREL comes.
#[test]
fn a_message_that_the_client_refuses_is_not_sent_again() {
    v5(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 2);
        t.publish(&t.topic("t"), 1, "one");
        t.publish(&t.topic("t"), 2, "two");
        let (one, two) = (client.message(), client.message());
        client.ack_with(AckKind::Puback, one.id, 0x83);
        client.ack_with(AckKind::Pubrec, two.id, 0x97);
        client.expect_nothing();
        client.break_off();
        t.resume("c").0.expect_nothing();
    });
}

/// Session Present of a session that only a 3.1.1 client could have left [MQTT-3.2.2-2 v3.1.1].
#[test]
fn a_session_is_the_same_whichever_version_comes_back_to_it() {
    v4(|four| {
        let (mut client, _) = four.resume("c");
        client.subscribe(&four.topic("t"), 1);
        client.disconnect();
        let five = four.broker.test(conformance::client::Version::V5);
        four.publish(&four.topic("t"), 1, "x");
        let mut connect = five.lasting("c");
        connect.id = four.id("c");
        let (mut client, present) = five.accepted(&connect);
        assert!(present);
        client.receive("x");
        client.disconnect();
        assert!(four.resume("c").1);
    });
}
