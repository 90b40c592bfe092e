//! What CONNACK offers and what is beyond it, over sockets: aliases, reasons in words, availability, rates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::time::{Duration, Instant};

use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, Raw, connect, packet, string};
use quorate::mqtt::MqttOptions;
use quorate_store::ids::QoS;

/// CONNECT of 5.0 with these properties, and the CONNACK.
fn connect_with(at: std::net::SocketAddr, client_id: &str, properties: &[u8]) -> (Client, Raw) {
    let mut client = Client::open(at, true);
    client.send(&connect(5, client_id, 2, 60, properties));
    let ack = client.read();
    assert_eq!((ack.first, ack.body[1]), (0x20, 0), "{ack:?}");
    (client, ack)
}

/// [MQTT-3.3.2-7], [MQTT-3.3.2-11]
#[test]
fn aliases_go_out_within_the_clients_maximum_and_end_with_the_connection() {
    let (_backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    let (mut publisher, _) = Client::connect(at, true, "p", true);
    for _ in 0..2 {
        let (mut s, _) = connect_with(at, "s", &[0x22, 0, 1]);
        s.subscribe(1, "topic/#", 1);
        let topic_and_alias = |raw: &Raw| {
            let n = usize::from(u16::from_be_bytes([raw.body[0], raw.body[1]]));
            let at = 2 + n + if raw.first & 6 == 0 { 0 } else { 2 };
            let topic = String::from_utf8(raw.body[2..2 + n].to_vec()).unwrap();
            let alias = (raw.body[at] > 0).then(|| {
                assert_eq!(raw.body[at..at + 2], [3, 0x23]);
                u16::from_be_bytes([raw.body[at + 2], raw.body[at + 3]])
            });
            (topic, alias)
        };
        for (n, (topic, want)) in [
            ("topic/one", ("topic/one", Some(1))),
            ("topic/one", ("", Some(1))),
            ("topic/two", ("topic/two", Some(1))),
            ("topic/two", ("", Some(1))),
            ("topic/one", ("topic/one", Some(1))),
        ]
        .into_iter()
        .enumerate()
        {
            publisher.publish(topic, 1, n as u16 + 1, b"x");
            publisher.expect(0x40, &[0, n as u8 + 1]);
            assert_eq!(topic_and_alias(&s.read()), (want.0.to_owned(), want.1));
        }
        s.send(&[0xE0, 0]);
        s.expect_closed();
    }
    server.stop();
}

/// [MQTT-3.14.2-3], [MQTT-3.2.2-19], [MQTT-3.1.2-29]: words only where they are wanted and fit.
#[test]
fn words_are_left_out_where_they_do_not_fit_and_the_answer_is_not() {
    let (_backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    let refused = |properties: &[u8]| {
        let (mut client, _) = connect_with(at, "c", properties);
        client.publish("$SYS/x", 1, 7, b"x");
        client.expect(0x40, &[0, 7, 0x87]);
        let why = client.why.take();
        client.send(&packet(0x30, b"\x00\x03a/#\x00x"));
        client.expect(0xE0, &[0x90]);
        client.expect_closed();
        (why, client.why.take())
    };
    let (why, bye) = refused(&[]);
    assert!(why.unwrap().contains("publish") && bye.unwrap().contains("wildcard"));
    let (why, bye) = refused(&[0x17, 0]);
    assert!(why.is_none() && bye.is_some(), "Request Problem Information 0");
    assert_eq!(refused(&[0x27, 0, 0, 0, 30]), (None, None), "Maximum Packet Size 30");
    let mut old = Client::open(at, false);
    old.send(&connect(4, "", 0, 60, &[]));
    old.expect(0x20, &[0, 2]);
    old.expect_closed();
    server.stop();
}

/// [MQTT-3.2.2-9]
#[test]
fn what_is_switched_off_is_told_and_refused() {
    let options = MqttOptions {
        qos_max: QoS::AtLeastOnce,
        retain_available: false,
        wildcard_available: false,
        shared_available: false,
        subscription_identifiers_available: false,
        response_topic_prefix: "replies/".to_owned(),
        ..MqttOptions::default()
    };
    let (_backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    let (_client, ack) = connect_with(at, "c", &[0x19, 1]);
    for property in [&[0x24, 1][..], &[0x25, 0], &[0x28, 0], &[0x29, 0], &[0x2A, 0]] {
        assert!(ack.body.windows(2).any(|w| w == property), "{property:02x?} is not in {ack:02x?}");
    }
    assert!(ack.body.ends_with(&[0x2A, 0]) && ack.body.windows(8).any(|w| w == b"replies/"));
    let subscribe = |filter: &str, identifier: &[u8]| {
        packet(0x82, &[&[0, 1, identifier.len() as u8], identifier, &string(filter)[..], &[2]].concat())
    };
    for (bytes, reason) in [
        (packet(0x34, b"\x00\x01a\x00\x01\x00x"), 0x9B),
        (packet(0x31, b"\x00\x01a\x00x"), 0x9A),
        (subscribe("a/#", &[]), 0xA2),
        (subscribe("a", &[0x0B, 1]), 0xA1),
    ] {
        let (mut client, _) = connect_with(at, "d", &[]);
        client.send(&bytes);
        client.expect(0xE0, &[reason]);
        client.expect_closed();
    }
    let (mut client, _) = connect_with(at, "d", &[]);
    client.send(&subscribe("a", &[]));
    client.expect(0x90, &[0, 1, 0, 1]);
    let (mut old, _) = Client::connect(at, false, "old", true);
    old.send(&packet(0x82, &[&[0, 1][..], &string("a/#"), &[1], &string("a"), &[2]].concat()));
    old.expect(0x90, &[0, 1, 0x80, 1]);
    old.send(&packet(0x31, b"\x00\x01ax"));
    old.expect_closed();
    server.stop();
}

/// Properties go through unaltered and in order, and an expiry of 0 is over at once. [MQTT-3.3.2-4], [MQTT-3.3.2-5],
/// [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-18], [MQTT-3.3.2-20]
#[test]
fn properties_arrive_as_they_were_sent() {
    let (_backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    let (mut s, _) = connect_with(at, "s", &[]);
    s.subscribe(1, "t", 2);
    let (mut p, _) = Client::connect(at, true, "p", true);
    let mut properties = vec![1, 1, 3];
    properties.extend(string("text/plain"));
    properties.push(8);
    properties.extend(string("reply/to"));
    properties.extend([9, 0, 3, 0xFF, 0, 0xFE]);
    for (key, value) in [("b", "2"), ("a", "1"), ("b", "2"), ("", "")] {
        properties.push(0x26);
        properties.extend(string(key));
        properties.extend(string(value));
    }
    let publish = |id: u8, properties: &[u8]| {
        packet(0x34, &[&string("t")[..], &[0, id, properties.len() as u8], properties, b"x"].concat())
    };
    p.send(&publish(1, &[2, 0, 0, 0, 0]));
    p.expect(0x50, &[0, 1]);
    p.send(&publish(2, &properties));
    p.expect(0x50, &[0, 2]);
    let got = s.read();
    assert_eq!(got.first, 0x34);
    let at = 2 + 1 + 2; // topic, identifier
    assert_eq!(usize::from(got.body[at]), properties.len());
    assert_eq!(got.body[at + 1..at + 1 + properties.len()], properties);
    assert_eq!(server.stats().expired, 1, "the one that was over at once");
    server.stop();
}

#[test]
fn a_client_above_its_rate_is_slowed_down_and_loses_nothing() {
    let options = MqttOptions { publish_rate_max: 50, ..MqttOptions::default() };
    let (backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    let mut fast = Client::open(at, true);
    fast.send(&connect(5, "fast", 2, 1, &[])); // keep alive of a second: not being read must not count
    assert_eq!(fast.read().first, 0x20);
    let (mut other, _) = Client::connect(at, true, "other", true);
    let started = Instant::now();
    let bytes: Vec<u8> = (1..=150).flat_map(|id| fast.publish_bytes("t", 1, id, b"x")).collect();
    fast.send(&bytes);
    other.ping();
    for id in 1..=150_u16 {
        fast.expect(0x40, &[&id.to_be_bytes()[..], &[0x10]].concat());
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1_900), "50 at once, and then 50 a second: {took:?}");
    fast.ping();
    assert!(server.stats().throttled > 0);
    // What it sent before it closed counts, too.
    let bytes: Vec<u8> = (1..=100).flat_map(|id| fast.publish_bytes("t", 1, id, b"x")).collect();
    fast.send(&bytes);
    drop(fast);
    backend.wait("all were published", |log| log.published.len() == 250);
    server.stop();
}

/// [MQTT-4.7.3-3]
#[test]
fn topics_have_so_many_levels_as_configured() {
    let options = MqttOptions { topic_levels_max: 3, ..MqttOptions::default() };
    let (_backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    let (mut client, _) = connect_with(at, "c", &[]);
    let filters = [&string("a/b/c/#")[..], &[0], &string("a/b/#"), &[0]].concat();
    client.send(&packet(0x82, &[&[0, 1, 0], &filters[..]].concat()));
    client.expect(0x90, &[0, 1, 0, 0x8F, 0]);
    client.publish("a/b/c", 1, 1, b"x");
    let both = [client.read().first, client.read().first];
    assert!(both.contains(&0x30) && both.contains(&0x40), "{both:02x?}");
    client.publish("a/b/c/d", 1, 2, b"x");
    client.expect(0xE0, &[0x90]);
    client.expect_closed();
    server.stop();
}
