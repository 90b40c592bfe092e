//! `$SYS` in the front end: values for who subscribes, announcements of clients, nothing for wildcards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, Raw, packet, string};
use quorate::mqtt::MqttOptions;
use quorate::mqtt::sys::value;
use quorate_store::ids::NodeId;
use quorate_store::topic::TopicName;

fn topic(raw: &Raw) -> String {
    let n = usize::from(u16::from_be_bytes([raw.body[0], raw.body[1]]));
    String::from_utf8(raw.body[2..2 + n].to_vec()).unwrap()
}

fn subscribe(filter: &str, options: u8) -> Vec<u8> {
    packet(0x82, &[&[0, 1, 0][..], &string(filter), &[options]].concat())
}

/// [MQTT-4.7.2-1]: wildcards at the first level do not match.
#[test]
fn who_subscribes_gets_the_values_at_once_behind_the_suback() {
    let (backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    let show = |names: &[&str]| {
        let values = names.iter().map(|name| value(TopicName::new(name).unwrap(), format!("of {name}")));
        backend.board.show(values.collect());
    };
    show(&["$SYS/broker/version", "$SYS/broker/uptime", "$SYS/cluster/term"]);
    let (mut client, _) = Client::connect(at, true, "c", true);
    client.send(&subscribe("$SYS/broker/#", 1));
    client.expect(0x90, &[0, 1, 0, 1]);
    for name in ["$SYS/broker/version", "$SYS/broker/uptime"] {
        let got = client.read();
        assert_eq!((got.first, topic(&got).as_str()), (0x31, name), "QoS 0 and RETAIN");
        assert_eq!(got.publish(true).1, format!("of {name}").into_bytes());
    }
    // Retain Handling 1 brings them for a subscription that is new, and for no other; 0 for each.
    client.send(&subscribe("$SYS/+/version", 0x10));
    client.expect(0x90, &[0, 1, 0, 0]);
    let got = client.read();
    assert_eq!((got.first, topic(&got).as_str()), (0x31, "$SYS/broker/version"));
    client.send(&subscribe("$SYS/+/version", 0x10));
    client.expect(0x90, &[0, 1, 0, 0]);
    client.ping(); // nothing came before
    client.send(&subscribe("$SYS/+/version", 0));
    client.expect(0x90, &[0, 1, 0, 0]);
    let got = client.read();
    assert_eq!((got.first, topic(&got).as_str()), (0x31, "$SYS/broker/version"));
    for (filter, options) in [("#", 0), ("+/broker/version", 0), ("$SYS/+/version", 0x10), ("$SYS/broker/uptime", 0x20)]
    {
        client.send(&subscribe(filter, options));
        client.expect(0x90, &[0, 1, 0, 0]);
        client.ping(); // nothing came before
    }
    show(&["$SYS/broker/uptime"]);
    let (mut old, _) = Client::connect(at, false, "old", true);
    old.subscribe(1, "$SYS/+/uptime", 0);
    let got = old.read();
    assert_eq!((got.first, topic(&got).as_str()), (0x31, "$SYS/broker/uptime"));
    server.stop();
}

#[test]
fn clients_that_come_and_go_are_announced_with_their_reason() {
    let (backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    backend.board.announce_as(NodeId(7));
    let (mut watcher, _) = Client::connect(at, false, "watcher", true);
    watcher.subscribe(1, "$SYS/brokers/7/clients/+/+", 0);
    let mut said = |name: &str| {
        let got = watcher.read();
        let (_, payload) = got.publish(false);
        assert_eq!(topic(&got), format!("$SYS/brokers/7/clients/{name}"));
        serde_json::from_slice::<serde_json::Value>(&payload).unwrap()
    };
    let (mut one, _) = Client::connect(at, true, "one", false);
    let facts = said("one/connected");
    assert_eq!((&facts["clientid"], &facts["proto_ver"], &facts["keepalive"]), (&"one".into(), &5.into(), &60.into()));
    assert_eq!((&facts["ipaddress"], &facts["expiry_interval"]), (&"127.0.0.1".into(), &1000.into()));
    one.send(&[0xE0, 0]);
    assert_eq!(said("one/disconnected")["reason"], "normal");
    let (two, _) = Client::connect(at, false, "two", true);
    said("two/connected");
    drop(two);
    assert_eq!(said("two/disconnected")["reason"], "tcp_closed");
    let (_first, _) = Client::connect(at, false, "three", true);
    said("three/connected");
    let (_second, _) = Client::connect(at, false, "three", true);
    let both = [watcher.read(), watcher.read()].map(|got| topic(&got));
    assert!(both.contains(&"$SYS/brokers/7/clients/three/disconnected".to_owned()), "{both:?}");
    assert!(both.contains(&"$SYS/brokers/7/clients/three/connected".to_owned()), "{both:?}");
    // One whose identifier makes no topic is served, and not announced.
    let (mut odd, _) = Client::connect(at, false, "a/#", true);
    odd.ping();
    drop(odd);
    watcher.ping();
    server.stop();
}

#[test]
fn nothing_is_announced_when_it_is_switched_off() {
    let options = MqttOptions { sys_client_events: false, ..MqttOptions::default() };
    let (backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    backend.board.announce_as(NodeId(7));
    let (mut watcher, _) = Client::connect(at, false, "watcher", true);
    watcher.subscribe(1, "$SYS/#", 0);
    let (mut one, _) = Client::connect(at, false, "one", true);
    one.ping();
    watcher.ping();
    server.stop();
}
