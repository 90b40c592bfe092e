//! How connections end: errors, DISCONNECT, AUTH where there is none, limits that a client sets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use conformance::client::{AckKind, Connect, Got, Value, field, packet, prop, publish};
use conformance::{Test, both, v5};
use quorate_jepsen::wire::property;

const REASON_STRING: u8 = 0x1f;

/// [MQTT-4.13.1-1], [MQTT-4.8.0-1 v3.1.1]; the reason is of the list [MQTT-3.14.2-1] and no Session Expiry Interval comes
/// with it [MQTT-3.14.2-2]; then nothing more and the close [MQTT-3.14.4-1], [MQTT-3.14.4-2], [MQTT-4.13.2-1].
#[test]
fn a_wrong_packet_ends_its_connection_with_the_reason() {
    both(|t| {
        for (bytes, reason) in [
            (&[0x00, 0][..], 0x81),
            (&[0x20, 2, 0, 0], 0x82),
            (&[0x36, 6, 0, 1, b'a', 0, 1, 0], 0x81),
            (&[0x40, 1, 0], 0x81),
            (&[0x40, 2, 0, 0], 0x82),
            (&[0x60, 2, 0, 1], 0x81),
            (&[0xc1, 0], 0x81),
            (&[0xd0, 0], 0x82),
            (&[0x30, 0xff, 0xff, 0xff, 0xff, 1], 0x81),
        ] {
            let mut client = t.client("c");
            // What follows is not answered.
            client.send(&[bytes, &[0xc0, 0]].concat());
            if t.is_v5() {
                let got = client.read();
                assert_eq!((got.first, got.reason()), (0xe0, reason), "{bytes:02x?}");
                assert!(got.properties().iter().all(|p| p.id != property::SESSION_EXPIRY));
            }
            client.expect_silent_close();
        }
    });
}

/// [MQTT-3.6.1-1], [MQTT-3.6.1-1 v3.1.1], [MQTT-2.2.2-2 v3.1.1], [MQTT-2.1.3-1].
#[test]
fn other_flags_of_the_fixed_header_end_the_connection() {
    both(|t| {
        for (kind, right) in [(0x40, 0), (0x50, 0), (0x60, 2), (0x70, 0), (0xc0, 0), (0xe0, 0)] {
            for flags in (0..16).filter(|flags| *flags != right) {
                let mut client = t.client("c");
                let body: &[u8] = if kind < 0x80 { &[0, 1] } else { &[] };
                client.send(&packet(kind | flags, body));
                client.expect_end(0x81);
            }
        }
    });
}

/// [MQTT-3.14.1-1], [MQTT-3.14.1-1 v3.1.1]; the will is published, because it was no DISCONNECT.
#[test]
fn a_disconnect_with_reserved_flags_is_none() {
    both(|t| {
        let mut watcher = t.client("watcher");
        watcher.subscribe(&t.topic("will"), 1);
        for flags in 1..16 {
            let mut client = t.accepted(&t.clean("c").will(&t.topic("will"), 1, false, "last words")).0;
            client.send(&[0xe0 | flags, 0]);
            client.expect_end(0x81);
            watcher.receive("last words");
        }
    });
}

/// [MQTT-3.12.4-1], [MQTT-3.12.4-1 v3.1.1].
#[test]
fn every_ping_is_answered() {
    both(|t| {
        let mut client = t.client("c");
        client.send(&[0xc0, 0].repeat(20));
        for _ in 0..20 {
            let got = client.read();
            assert_eq!((got.first, got.body.len()), (0xd0, 0));
        }
    });
}

/// [MQTT-3.14.4-1], [MQTT-3.14.4-2]: nothing that follows a client's DISCONNECT is processed, and the broker closes.
#[test]
fn nothing_is_processed_after_a_disconnect() {
    both(|t| {
        let mut watcher = t.client("watcher");
        watcher.subscribe(&t.topic("#"), 2);
        let mut client = t.client("c");
        let mut bytes = vec![0xe0, 0];
        for qos in 0..=2 {
            quorate_jepsen::wire::encode::publish(&mut bytes, t.version, &publish(&t.topic("t"), qos, 1, "late"));
        }
        bytes.extend([0xc0, 0]);
        client.send(&bytes);
        client.expect_silent_close();
        watcher.expect_nothing();
    });
}

/// [MQTT-3.1.2-24].
#[test]
fn no_packet_is_larger_than_the_client_takes() {
    v5(|t| {
        const LIMIT: u32 = 200;
        let mut client = t.accepted(&t.clean("c").with(property::MAXIMUM_PACKET, Value::U32(LIMIT))).0;
        let topic = t.topic("t");
        client.subscribe(&topic, 2);
        // Topic and lengths take their part of the 200: fixed header, topic, identifier, properties.
        let fits = LIMIT as usize - 3 - 2 - topic.len() - 2 - 1;
        for qos in 0..=2 {
            let longest = fits + if qos == 0 { 2 } else { 0 };
            for payload in [fits - 1, fits, fits + 1, fits + 2, fits + 3, fits + 1000] {
                t.publish(&topic, qos, &"x".repeat(payload));
                if payload <= longest {
                    let got = client.read();
                    assert!(got.body.len() + 3 <= LIMIT as usize, "{} bytes", got.body.len() + 3);
                    let message = got.publish();
                    assert_eq!(message.payload.len(), payload);
                    client.settle(&message);
                }
            }
        }
        client.expect_nothing();
    });
}

/// [MQTT-3.1.2-25]: it is settled, so that it takes no place in the window and does not come later.
#[test]
fn a_message_that_is_too_large_is_dropped_as_if_it_had_been_sent() {
    v5(|t| {
        let small = t.lasting("c").with(property::MAXIMUM_PACKET, Value::U32(200));
        let mut client = t.accepted(&small.with(property::RECEIVE_MAXIMUM, Value::U16(1))).0;
        client.subscribe(&t.topic("t"), 2);
        for qos in 1..=2 {
            for _ in 0..3 {
                t.publish(&t.topic("t"), qos, &"x".repeat(1000));
            }
            t.publish(&t.topic("t"), qos, "small");
            client.receive("small");
        }
        client.disconnect();
        // Without the limit it does not come either: it counts as delivered.
        t.resume("c").0.expect_nothing();
    });
}

/// What a refusal of each kind is answered with, on a connection of its own with these properties.
fn refusals(t: &Test, properties: &[(u8, Value)]) -> Vec<Got> {
    let connect = |mut connect: Connect| {
        connect.properties.extend(properties.iter().map(|(id, value)| prop(*id, value.clone())));
        connect
    };
    let refused = t.open().greet(&connect(t.clean("refused").with(0x15, Value::Text("NO-SUCH-METHOD".into()))));
    let mut client = t.accepted(&connect(t.clean("c"))).0;
    let mut answers = vec![refused];
    for qos in 1..=2 {
        client.send_publish(&publish("$SYS/not/for/clients", qos, 7, "x"));
        answers.push(client.read());
    }
    answers.push(client.subscribe_with(&[], &[("a#", 0)]));
    answers.push(client.unsubscribe(&["a#"]));
    client.send_publish(&publish("a/#", 0, 0, "x"));
    answers.push(client.read());
    client.expect_silent_close();
    answers
}

/// CONNACK [MQTT-3.2.2-19], PUBACK [MQTT-3.4.2-2], PUBREC [MQTT-3.5.2-2], SUBACK [MQTT-3.9.2-1], UNSUBACK
/// [MQTT-3.11.2-1] and DISCONNECT [MQTT-3.14.2-3]: the reason in words is left out where it does not fit, the reason code
/// is not. No user properties come with them: [MQTT-3.2.2-20], [MQTT-3.4.2-3], [MQTT-3.5.2-3], [MQTT-3.9.2-2],
/// [MQTT-3.11.2-2], [MQTT-3.14.2-4].
#[test]
fn reason_strings_come_only_within_the_client_s_maximum_packet_size() {
    v5(|t| {
        let bare = |got: &Got| match got.first {
            0x90 | 0xb0 => got.codes().to_vec(),
            _ => vec![got.reason()],
        };
        let whole = refusals(t, &[]);
        assert_eq!(whole.iter().map(|got| got.first).collect::<Vec<_>>(), [0x20, 0x40, 0x50, 0x90, 0xb0, 0xe0]);
        for (n, full) in whole.iter().enumerate() {
            assert!(property::text(&full.properties(), REASON_STRING).is_some(), "{full:?}");
            for (limit, fits) in [(full.bytes(), true), (full.bytes() - 1, false)] {
                let answers = refusals(t, &[(property::MAXIMUM_PACKET, Value::U32(limit as u32))]);
                let got = &answers[n];
                assert_eq!((got.first, bare(got)), (full.first, bare(full)));
                assert_eq!(property::text(&got.properties(), REASON_STRING).is_some(), fits, "{limit}: {got:?}");
                for got in &answers {
                    assert!(got.bytes() <= limit, "{limit}: {got:?}");
                    assert!(got.properties().iter().all(|p| p.id != property::USER), "{got:?}");
                }
            }
        }
    });
}

/// [MQTT-3.1.2-29].
#[test]
fn a_client_that_wants_no_problem_information_gets_words_only_in_connack_and_disconnect() {
    v5(|t| {
        for got in refusals(t, &[(0x17, Value::U8(0))]) {
            let may = matches!(got.first, 0x20 | 0xe0);
            assert!(may || got.properties().is_empty(), "{got:?}");
        }
    });
}

/// [MQTT-4.12.0-1].
#[test]
fn a_method_that_is_not_supported_is_refused() {
    v5(|t| {
        for method in ["NO-SUCH-METHOD", ""] {
            let mut client = t.open();
            let ack = client.greet(&t.clean("c").with(0x15, Value::Text(method.into())));
            assert_eq!((ack.first, ack.reason()), (0x20, 0x8c));
            client.expect_silent_close();
        }
    });
}

/// [MQTT-4.12.0-6]: neither AUTH nor a method in CONNACK.
#[test]
fn a_client_without_a_method_hears_of_none() {
    v5(|t| {
        let mut client = t.open();
        let ack = client.greet(&t.clean("c"));
        assert_eq!(ack.first, 0x20);
        assert!(ack.properties().iter().all(|p| p.id != 0x15 && p.id != 0x16), "{ack:?}");
        client.ping();
    });
}

/// [MQTT-3.15.1-1], and AUTH of a client that has no method is an error, however it looks: each is good but for one
/// thing, and the reason tells which.
#[test]
fn an_auth_in_the_middle_of_a_session_without_a_method_is_an_error() {
    v5(|t| {
        let method = [&[0x15][..], &field(b"M")].concat();
        let with = |code: u8| [&[code, method.len() as u8][..], &method].concat();
        for (first, body, reason) in [
            (0xf0, vec![], 0x82),
            (0xf0, with(0x19), 0x82),
            (0xf0, with(0x18), 0x82),
            (0xf1, with(0x19), 0x81),
            (0xf2, with(0x19), 0x81),
            (0xf8, vec![], 0x81),
            (0xf0, with(0x55), 0x81),
        ] {
            let mut client = t.client("c");
            client.ping();
            client.send(&packet(first, &body));
            client.expect_end(reason);
        }
    });
}

/// What a client leaves open is not the next one's: [MQTT-4.8.0-2 v3.1.1], an error ends the connection that it came on
/// and no other.
#[test]
fn an_error_ends_its_own_connection_only() {
    both(|t| {
        let mut other = t.client("other");
        other.subscribe(&t.topic("t"), 1);
        let mut publisher = t.client("publisher");
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1);
        client.send(&[0x00, 0]);
        client.expect_end(0x81);
        publisher.publish(&t.topic("t"), 1, "x");
        let got = other.message();
        other.ack(AckKind::Puback, got.id);
        other.ping();
    });
}
