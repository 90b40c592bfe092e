//! CONNECT and CONNACK as both specifications want them: what is accepted, what is refused and how, and that nothing of a
//! refused client is acted on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use std::sync::Arc;

use conformance::client::{Client, Connect, Value, Version, field, packet, prop, publish, section};
use conformance::{Broker, START_MAX, Test, both, v4, v5};
use quorate_jepsen::harness::wait_for;
use quorate_jepsen::wire::property;

/// A CONNECT of these Connect Flags with these bytes behind the Keep Alive (and the property length).
fn connect_bytes(t: &Test, flags: u8, payload: &[u8]) -> Vec<u8> {
    let level = if t.is_v5() { 5 } else { 4 };
    let mut body = [&field(b"MQTT")[..], &[level, flags, 0, 0]].concat();
    if t.is_v5() {
        body.push(0);
    }
    packet(0x10, &[&body[..], payload].concat())
}

/// An invalid CONNECT is answered by a close: without CONNACK on 3.1.1, with one that says why, or none, on 5.0.
fn assert_invalid(t: &Test, bytes: &[u8], what: &str) {
    let mut client = t.open();
    client.send(bytes);
    match client.next() {
        None => {}
        Some(got) => {
            assert!(t.is_v5() && got.first == 0x20 && got.reason() >= 0x80, "{what}: {got:?}");
            assert_eq!(got.body[0], 0, "{what}: Session Present");
            client.expect_silent_close();
        }
    }
}

/// [MQTT-3.1.4-5], [MQTT-3.1.4-4 v3.1.1]; CONNACK's reserved bits [MQTT-3.2.2-1].
#[test]
fn a_valid_connect_is_accepted() {
    both(|t| {
        let mut client = t.open();
        let ack = client.greet(&t.clean("c"));
        assert_eq!((ack.first, ack.reason(), ack.body[0]), (0x20, 0, 0), "{ack:?}");
        client.ping();
    });
}

/// [MQTT-3.2.0-1], [MQTT-3.2.0-1 v3.1.1], and no second one [MQTT-3.2.0-2].
#[test]
fn connack_comes_first_and_once_whatever_waits_for_the_client() {
    both(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 1);
        client.break_off();
        t.publish(&t.topic("t"), 1, "waiting");
        // It asks before it hears that it is connected.
        let mut client = t.open();
        client.send(&[t.lasting("c").bytes(), vec![0xc0, 0]].concat());
        assert_eq!(client.read().first, 0x20);
        let mut rest = [client.read().first, client.read().first];
        rest.sort_unstable();
        assert_eq!(rest.map(|first| first >> 4), [3, 13], "a PUBLISH and a PINGRESP");
        client.ping();
    });
}

/// User name and password are there if, and only if, their flags say so: [MQTT-3.1.2-16], [MQTT-3.1.2-17],
/// [MQTT-3.1.2-18], [MQTT-3.1.2-19], [MQTT-3.1.2-18 v3.1.1], [MQTT-3.1.2-19 v3.1.1], [MQTT-3.1.2-20 v3.1.1],
/// [MQTT-3.1.2-21 v3.1.1]; on 3.1.1 no password without a user name [MQTT-3.1.2-22 v3.1.1].
#[test]
fn user_name_and_password_are_there_exactly_when_their_flags_say_so() {
    both(|t| {
        let id = field(t.id("c").as_bytes());
        let (user, password) = (field(b"user"), field(b"password"));
        let with = |flags, fields: &[&[u8]]| connect_bytes(t, flags, &[&id[..], &fields.concat()].concat());
        assert_invalid(t, &with(0x02, &[&user]), "a user name without its flag");
        assert_invalid(t, &with(0x82, &[&user, &password]), "a password without its flag");
        assert_invalid(t, &with(0x82, &[]), "no user name");
        assert_invalid(t, &with(0xc2, &[&user]), "no password");
        if !t.is_v5() {
            assert_invalid(t, &with(0x42, &[&password]), "a password alone");
        }
        // Anybody may connect here, whatever the name.
        for (user_name, password) in [(Some(b"user".to_vec()), None), (Some(b"user".to_vec()), Some(vec![0, 255]))] {
            t.accepted(&Connect { user_name, password, ..t.clean("c") });
        }
    });
}

/// [MQTT-3.1.3-12], [MQTT-3.1.3-11 v3.1.1]; client identifier [MQTT-3.1.3-4], [MQTT-3.1.3-4 v3.1.1]; Will Topic
/// [MQTT-3.1.3-11], [MQTT-3.1.3-10 v3.1.1].
#[test]
fn texts_of_a_connect_are_utf_8() {
    for bad in [&b"\xff"[..], b"a\xc0\xafb", b"a\xed\xa0\x80", b"a\0b"] {
        both(|t| {
            let bad = field(bad);
            let id = field(t.id("c").as_bytes());
            let will_properties = if t.is_v5() { vec![0] } else { Vec::new() };
            assert_invalid(t, &connect_bytes(t, 0x02, &bad), "client identifier");
            assert_invalid(t, &connect_bytes(t, 0x82, &[id.clone(), bad.clone()].concat()), "user name");
            let will = [id, will_properties, bad, field(b"payload")].concat();
            assert_invalid(t, &connect_bytes(t, 0x06, &will), "Will Topic");
        });
    }
}

/// [MQTT-3.1.3-1], [MQTT-3.1.3-1 v3.1.1]: client identifier, will, user name, password; the identifier is first
/// [MQTT-3.1.3-3], [MQTT-3.1.3-3 v3.1.1].
#[test]
fn the_payload_of_connect_is_read_in_its_order() {
    both(|t| {
        let mut watcher = t.client("watcher");
        watcher.subscribe(&t.topic("will"), 0);
        let connect = Connect {
            user_name: Some(b"user".to_vec()),
            password: Some(b"password".to_vec()),
            ..t.lasting("c").will(&t.topic("will"), 0, false, "payload of the will")
        };
        t.accepted(&connect).0.break_off();
        watcher.receive("payload of the will");
        assert!(t.resume("c").1, "the identifier is not the first field");
    });
}

/// [MQTT-3.1.3-5], [MQTT-3.1.3-5 v3.1.1].
#[test]
fn client_identifiers_of_up_to_23_letters_and_digits_are_accepted() {
    const LETTERS: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    both(|t| {
        for id in [&LETTERS[..1], &LETTERS[..23], &LETTERS[23..46], &LETTERS[39..]] {
            t.accepted(&Connect::new(t.version, id, true));
        }
    });
}

/// [MQTT-3.1.3-6], [MQTT-3.1.3-6 v3.1.1]; 5.0 tells it [MQTT-3.1.3-7], [MQTT-3.2.2-16].
#[test]
fn a_client_without_an_identifier_gets_one_that_nobody_has() {
    both(|t| {
        let nameless = Connect::new(t.version, "", true);
        let (mut one, mut two) = (t.open(), t.open());
        let (a, b) = (one.greet(&nameless), two.greet(&nameless));
        assert_eq!((a.reason(), b.reason()), (0, 0));
        // With one name the second would have ended the first.
        one.ping();
        two.ping();
        if t.is_v5() {
            let name = |got: &conformance::client::Got| {
                property::text(&got.properties(), property::ASSIGNED_CLIENT_ID).unwrap().to_owned()
            };
            assert!(!name(&a).is_empty() && name(&a) != name(&b));
            // It is the name of the session from then on.
            let (mut taker, _) = t.accepted(&Connect::new(t.version, &name(&a), true));
            one.expect_end(0x8e);
            taker.ping();
        }
    });
}

/// [MQTT-3.1.3-8 v3.1.1], [MQTT-3.1.3-9 v3.1.1]; Session Present is 0 [MQTT-3.2.2-4 v3.1.1] and the close follows
/// [MQTT-3.2.2-5 v3.1.1].
#[test]
fn a_3_1_1_client_without_an_identifier_must_ask_for_a_clean_session() {
    v4(|t| {
        let mut client = t.open();
        let ack = client.greet(&Connect::new(Version::V4, "", false));
        assert_eq!((ack.first, &ack.body[..]), (0x20, &[0, 2][..]));
        client.expect_silent_close();
    });
}

/// [MQTT-3.1.4-5 v3.1.1], [MQTT-3.1.4-6]; with CONNACK's error comes Session Present 0 [MQTT-3.2.2-6] and the close
/// [MQTT-3.2.2-7], [MQTT-4.13.2-1], [MQTT-3.1.4-2].
#[test]
fn what_follows_a_refused_connect_is_not_processed() {
    both(|t| {
        let mut watcher = t.client("watcher");
        watcher.subscribe(&t.topic("#"), 2);
        let refused = if t.is_v5() {
            t.clean("c").with(0x15, Value::Text("NO-SUCH-METHOD".into()))
        } else {
            Connect::new(Version::V4, "", false)
        };
        let mut client = t.open();
        let mut bytes = refused.bytes();
        for qos in 0..=2 {
            let mut more = Vec::new();
            quorate_jepsen::wire::encode::publish(&mut more, t.version, &publish(&t.topic("x"), qos, 1, "no"));
            bytes.extend(more);
        }
        client.send(&bytes);
        let ack = client.read();
        assert_eq!((ack.first, ack.body[0], ack.reason()), (0x20, 0, if t.is_v5() { 0x8c } else { 2 }), "{ack:?}");
        client.expect_silent_close();
        watcher.expect_nothing();
    });
}

/// [MQTT-3.1.4-1], [MQTT-3.1.4-1 v3.1.1]: no return code of 3.1.1 means that bytes are wrong [MQTT-3.2.2-6 v3.1.1].
#[test]
fn an_invalid_connect_is_closed() {
    both(|t| {
        let id = field(t.id("c").as_bytes());
        assert_invalid(t, &connect_bytes(t, 0x03, &id), "reserved flag");
        assert_invalid(t, &connect_bytes(t, 0x02, &[&id[..], &[1]].concat()), "a byte too many");
        assert_invalid(t, &connect_bytes(t, 0x1a, &id), "Will QoS 3 and no will");
        assert_invalid(t, &connect_bytes(t, 0x02, &id[..1]), "half an identifier");
    });
}

/// [MQTT-3.1.2-1], [MQTT-3.1.2-1 v3.1.1].
#[test]
fn another_protocol_name_is_not_mqtt() {
    both(|t| {
        for name in [&b"MQTX"[..], b"mqtt", b"HTTP", b"MQTTX"] {
            let mut body = field(name);
            body.extend([if t.is_v5() { 5 } else { 4 }, 2, 0, 0]);
            body.extend(if t.is_v5() { &[0][..] } else { &[] });
            body.extend(field(b"c"));
            let mut client = t.open();
            client.send(&packet(0x10, &body));
            match client.next() {
                None => {}
                Some(got) => assert_eq!((got.first, got.reason(), client.next()), (0x20, 0x84, None)),
            }
        }
    });
}

/// [MQTT-3.1.2-2], [MQTT-3.1.2-2 v3.1.1].
#[test]
fn a_version_that_is_not_served_is_refused() {
    v4(|t| {
        for level in [0, 1, 2, 3, 6, 127] {
            let mut body = field(b"MQTT");
            body.extend([level, 2, 0, 0]);
            body.extend(if level > 4 { &[0][..] } else { &[] });
            body.extend(field(t.id("c").as_bytes()));
            let mut client = t.open();
            client.send(&packet(0x10, &body));
            let got = client.read();
            let refusal = if level > 4 { 0x84 } else { 1 };
            assert_eq!((got.first, got.reason()), (0x20, refusal), "level {level}");
            client.expect_silent_close();
        }
    });
}

/// [MQTT-3.1.0-2], [MQTT-3.1.0-2 v3.1.1].
#[test]
fn a_second_connect_ends_the_connection() {
    both(|t| {
        let mut client = t.client("c");
        client.send(&t.clean("c").bytes());
        client.expect_end(0x82);
    });
}

/// [MQTT-3.1.0-1], [MQTT-3.1.0-1 v3.1.1], and no DISCONNECT before a good CONNACK [MQTT-3.14.0-1].
#[test]
fn what_does_not_begin_with_connect_is_closed_without_a_word() {
    both(|t| {
        for bytes in [&[0xc0, 0][..], &[0x30, 3, 0, 1, b'a'], &[0xe0, 0], &[0xf0, 0], &[0x82, 6, 0, 1, 0, 1, b'a', 0]] {
            let mut stranger = t.open();
            stranger.send(bytes);
            stranger.expect_silent_close();
        }
    });
}

/// [MQTT-3.1.2-28]: asked for or not, there is none.
#[test]
fn response_information_is_not_sent_unasked() {
    v5(|t| {
        for connect in [t.clean("c"), t.clean("c").with(0x19, Value::U8(0))] {
            let ack = t.open().greet(&connect);
            assert!(ack.properties().iter().all(|p| p.id != 0x1a), "{ack:?}");
        }
    });
}

/// [MQTT-3.2.2-8]: every CONNACK of this file has a code of the list; here those of a broker that is full.
#[test]
fn a_broker_that_is_full_refuses_with_a_code_of_the_list() {
    let broker = Arc::new(Broker::start(&[("connections_max", "1")]));
    let (four, five) = (broker.test(Version::V4), broker.test(Version::V5));
    // The place of the client that saw that the broker is there becomes free when the broker has seen it go.
    let there = wait_for("the only place is free", START_MAX, || {
        let mut client = five.open();
        let ack = client.greet(&five.clean("there"));
        if ack.reason() == 0 { Ok(client) } else { Err(format!("{ack:?}")) }
    });
    let _there = there.unwrap();
    let refusal = |t: &Test| {
        let mut client = t.open();
        let ack = client.greet(&t.clean("late"));
        client.expect_silent_close();
        (ack.first, ack.body[0], ack.reason())
    };
    assert_eq!(refusal(&five), (0x20, 0, 0x89));
    assert_eq!(refusal(&four), (0x20, 0, 3));
}

/// [MQTT-3.1.2-22], [MQTT-3.1.2-24 v3.1.1]: no sooner.
#[test]
fn a_client_that_is_silent_for_one_and_a_half_keep_alives_is_disconnected() {
    both(|t| {
        let mut client = t.accepted(&t.clean("c").keep_alive(2)).0;
        client.ping();
        let heard = std::time::Instant::now();
        client.expect_end(0x8d);
        assert!(heard.elapsed().as_millis() >= 2900, "{:?}", heard.elapsed());
    });
}

/// [MQTT-3.2.2-22]: without Server Keep Alive the client's value counts, also none at all.
#[test]
fn the_client_s_own_keep_alive_counts_when_connack_has_none() {
    v5(|t| {
        let mut client = t.open();
        let ack = client.greet(&t.clean("c").keep_alive(1));
        assert_eq!(property::number(&ack.properties(), property::SERVER_KEEP_ALIVE), None);
        let mut without = t.client("without");
        client.expect_end(0x8d);
        without.ping();
    });
}

/// [MQTT-1.5.4-3], [MQTT-1.5.3-3 v3.1.1].
#[test]
fn a_byte_order_mark_is_a_character_like_others() {
    both(|t| {
        let marked = format!("\u{feff}{}", t.topic("t"));
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1);
        t.publish(&marked, 1, "with");
        client.expect_nothing();
        client.subscribe(&marked, 1);
        t.publish(&marked, 1, "with");
        assert_eq!(client.receive("with").topic.as_bytes()[..3], [0xef, 0xbb, 0xbf]);
    });
}

/// [MQTT-2.2.2-1]: 5.0 packets without properties have a property length of 0, and ours too.
#[test]
fn a_property_length_is_there_without_properties() {
    v5(|t| {
        let mut client = t.client("c");
        let ack = client.subscribe_with(&[], &[(&t.topic("t"), 0)]);
        assert_eq!(ack.body[2..], [0, 0]);
        t.publish(&t.topic("t"), 0, "x");
        let topic = t.topic("t").len();
        assert_eq!(client.read().body[2 + topic..], *b"\0x");
        assert_eq!(client.unsubscribe(&[&t.topic("t")]).body[2..], [0, 0]);
        // Left out, the rest is read as properties.
        let without = [&1_u16.to_be_bytes()[..], &field(b"a"), &[0]].concat();
        client.send(&packet(0x82, &without));
        client.expect_end(0x81);
    });
}

/// [MQTT-2.1.3-1], [MQTT-2.2.2-1 v3.1.1]: the flags of every packet that a broker sends.
#[test]
fn the_reserved_flags_of_what_the_broker_sends_are_as_listed() {
    both(|t| {
        let mut firsts = Vec::new();
        let mut client = t.open();
        firsts.push(client.greet(&t.clean("c")).first);
        firsts.push(client.subscribe_with(&[], &[(&t.topic("t"), 2)]).first);
        let mut publisher = t.client("publisher");
        publisher.publish(&t.topic("t"), 2, "x");
        let message = client.message();
        client.ack(conformance::client::AckKind::Pubrec, message.id);
        firsts.push(client.read().first);
        client.ack(conformance::client::AckKind::Pubcomp, message.id);
        client.send_publish(&publish(&t.topic("other"), 1, 100, "x"));
        firsts.push(client.read().first);
        client.send_publish(&publish(&t.topic("other"), 2, 101, "x"));
        firsts.push(client.read().first);
        client.ack(conformance::client::AckKind::Pubrel, 101);
        firsts.push(client.read().first);
        firsts.push(client.unsubscribe(&[&t.topic("t")]).first);
        client.send(&[0xc0, 0]);
        firsts.push(client.read().first);
        assert_eq!(firsts, [0x20, 0x90, 0x62, 0x40, 0x50, 0x70, 0xb0, 0xd0]);
        if t.is_v5() {
            client.send(&[0xc1, 0]);
            assert_eq!(client.read().first, 0xe0);
        }
    });
}

/// [MQTT-4.2-1], [MQTT-4.2.0-1 v3.1.1]: a TCP stream, cut anywhere.
#[test]
fn packets_may_come_in_any_pieces() {
    both(|t| {
        let mut client = t.open();
        let body = section(&[prop(0x26, Value::Pair("k".into(), "v".into()))]);
        assert_eq!(body.len(), 8);
        let mut bytes = t.clean("c").bytes();
        for n in 0..20 {
            quorate_jepsen::wire::encode::publish(&mut bytes, t.version, &publish(&t.topic("t"), 1, n + 1, "x"));
        }
        for piece in bytes.chunks(7) {
            client.send(piece);
        }
        assert_eq!(client.read().first, 0x20);
        for n in 0..20 {
            client.expect_ack(conformance::client::AckKind::Puback, n + 1);
        }
        let mut at_once = Client::open(t.at, t.version);
        at_once.send(&[t.clean("d").bytes(), vec![0xc0, 0], vec![0xc0, 0]].concat());
        assert_eq!([at_once.read().first, at_once.read().first, at_once.read().first], [0x20, 0xd0, 0xd0]);
    });
}
