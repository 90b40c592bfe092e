//! What clients may do, on real sockets over a log in memory: what the rules refuse is refused with the right code and
//! reaches nobody, and a change of the rules counts from the next packet on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::sync::Arc;

use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, packet, string};
use quorate::mqtt::options::DenyAction;
use quorate::mqtt::{MqttOptions, MqttServer};
use quorate_store::access::{AclAction, AclRule, Permission, Who};
use quorate_store::ids::QoS;

fn rule(number: u32, permission: Permission, action: AclAction, filters: &[&str]) -> AclRule {
    let filters = filters.iter().map(|f| (*f).to_owned()).collect();
    AclRule { number, permission, who: Who::All, action, filters, qos_max: QoS::ExactlyOnce, retain: None }
}

fn set(backend: &FakeBackend, rules: impl IntoIterator<Item = AclRule>) {
    backend.change_access(|access| access.rules = rules.into_iter().collect());
}

/// A server on which `secret/#` is denied.
fn start(options: &MqttOptions) -> (Arc<FakeBackend>, MqttServer) {
    let (backend, server) = FakeBackend::start(options);
    set(&backend, [rule(1, Permission::Deny, AclAction::All, &["secret/#"])]);
    (backend, server)
}

/// Publishes with QoS 1 and 5.0; the reason of PUBACK.
fn publish1(client: &mut Client, topic: &str) -> u8 {
    client.publish(topic, 1, 7, b"x");
    let ack = client.read();
    assert_eq!((ack.first, &ack.body[..2]), (0x40, &[0, 7][..]));
    ack.body.get(2).copied().unwrap_or(0)
}

/// Subscribes with QoS 2; the codes of SUBACK.
fn subscribe(client: &mut Client, filters: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 9];
    if client.v5 {
        body.push(0);
    }
    for filter in filters {
        body.extend_from_slice(&string(filter));
        body.push(2);
    }
    client.send(&packet(0x82, &body));
    let ack = client.read();
    assert_eq!(ack.first, 0x90);
    ack.body[if client.v5 { 3 } else { 2 }..].to_vec()
}

#[test]
fn what_is_refused_is_told_and_reaches_nobody() {
    let (backend, server) = start(&MqttOptions::default());
    let at = server.local_addr();
    let (mut reader, _) = Client::connect(at, true, "reader", true);
    assert_eq!(subscribe(&mut reader, &["open", "secret/a", "secret/+", "#", "+/a"]), [2, 0x87, 0x87, 0x87, 0x87]);
    let (mut old, _) = Client::connect(at, false, "old", true);
    assert_eq!(subscribe(&mut old, &["open", "secret/a"]), [2, 0x80]);

    let (mut writer, _) = Client::connect(at, true, "writer", true);
    writer.publish("secret/a", 0, 0, b"x");
    assert_eq!(publish1(&mut writer, "secret/a"), 0x87);
    writer.publish("secret/a", 2, 8, b"x");
    writer.expect(0x50, &[0, 8, 0x87]);
    assert_eq!(publish1(&mut writer, "open"), 0);
    for client in [&mut reader, &mut old] {
        let v5 = client.v5;
        assert_eq!(client.read().publish(v5).1, b"x");
        client.ping();
    }
    let stats = server.stats();
    assert_eq!(stats.denied_subscriptions, 5);
    assert_eq!(stats.denied_publishes, 3);
    drop(backend);
}

/// [MQTT-3.3.5-2 v3.1.1]
#[test]
fn an_older_client_is_disconnected_or_answered_as_the_node_is_configured() {
    let (_backend, server) = start(&MqttOptions::default());
    let (mut old, _) = Client::connect(server.local_addr(), false, "old", true);
    old.publish("secret/a", 1, 7, b"x");
    old.expect_closed();

    let (_backend, server) = start(&MqttOptions { acl_deny_action: DenyAction::Ignore, ..MqttOptions::default() });
    let (mut old, _) = Client::connect(server.local_addr(), false, "old", true);
    old.publish("secret/a", 1, 7, b"x");
    old.expect(0x40, &[0, 7]);
    old.publish("secret/a", 2, 8, b"x");
    old.expect(0x50, &[0, 8]);
    old.ack(0x62, 8);
    old.expect(0x70, &[0, 8]);
    old.ping();
}

#[test]
fn a_change_counts_for_clients_that_are_connected() {
    let (backend, server) = start(&MqttOptions::default());
    let (mut client, _) = Client::connect(server.local_addr(), true, "c", true);
    assert_eq!(publish1(&mut client, "open") & 0x80, 0);
    let (mut before, _) = Client::connect(server.local_addr(), true, "before", true);
    assert_eq!(subscribe(&mut before, &["later"]), [2]);
    set(&backend, [rule(1, Permission::Deny, AclAction::All, &["open", "later"])]);
    assert_eq!(publish1(&mut client, "open"), 0x87);
    assert_eq!(publish1(&mut client, "secret/a") & 0x80, 0);
    assert_eq!(subscribe(&mut client, &["later", "hers/#"]), [0x87, 2]);
    backend.change_access(|access| access.otherwise = Permission::Deny);
    assert_eq!(publish1(&mut client, "else"), 0x87);
    backend.change_access(|access| *access = quorate_store::access::Access::default());
    assert_eq!(publish1(&mut client, "later") & 0x80, 0);
    // A subscription from before lasts until its client subscribes again.
    assert_eq!(before.read().publish(true).1, b"x");
}

#[test]
fn a_will_that_may_not_be_published_keeps_its_client_out() {
    let (_backend, server) = start(&MqttOptions::default());
    for (level, refused) in [(5_u8, 0x87), (4, 5)] {
        for (topic, code) in [("secret/will", refused), ("open", 0)] {
            let mut body = string("MQTT");
            body.extend_from_slice(&[level, 0x06, 0, 60]);
            if level == 5 {
                body.push(0);
            }
            body.extend_from_slice(&string("will"));
            if level == 5 {
                body.push(0);
            }
            body.extend_from_slice(&string(topic));
            body.extend_from_slice(&string("x"));
            let mut client = Client::open(server.local_addr(), level == 5);
            client.send(&packet(0x10, &body));
            assert_eq!(client.read().body[1], code, "{topic} in version {level}");
        }
    }
}

#[test]
fn a_rule_names_the_client_and_limits_its_qos() {
    let (backend, server) = start(&MqttOptions::default());
    let own = AclRule { qos_max: QoS::AtLeastOnce, ..rule(1, Permission::Allow, AclAction::All, &["clients/%c/#"]) };
    set(&backend, [own]);
    backend.change_access(|access| access.otherwise = Permission::Deny);
    let (mut client, _) = Client::connect(server.local_addr(), true, "me", true);
    assert_eq!(publish1(&mut client, "clients/you/x"), 0x87);
    assert_eq!(publish1(&mut client, "clients/me/x") & 0x80, 0);
    client.publish("clients/me/x", 2, 8, b"x");
    client.expect(0x50, &[0, 8, 0x87]);
    assert_eq!(subscribe(&mut client, &["clients/me/+", "clients/+/x"]), [1, 0x87]);
}
