//! What a resumed session gets, and how: identifiers, DUP, Receive Maximum, order, and rows that may have been sent
//! (guarantees 3 and 4).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_jepsen::wire::property::{self, Property, Value};
use quorate_jepsen::wire::{AckKind, Packet, Publish, Version};
use testkit::raw::{self, Raw, number, publish};
use testkit::{SOON, eventually, nodes, three_nodes};

fn limited(id: &str, clean: bool, receive_maximum: u16) -> raw::Connect {
    raw::Connect { receive_maximum, ..raw::client(id, clean) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_resumed_session_keeps_its_packet_identifiers_and_dup_tells_what_was_sent() {
    let mut system = three_nodes();
    let (mut client, _) = Raw::connect(system.mqtt(0), Version::V5, &limited("resumed", true, 10)).await;
    client.subscribe("resumed/#", 1).await;
    system.publish_numbers(2, "resumed/x", 1, 0..15).await;
    let mut sent = BTreeMap::new();
    for _ in 0..10 {
        let p = client.expect_publish().await;
        assert!(!p.dup);
        sent.insert(number(&p), p.id);
    }
    client.expect_nothing().await;
    drop(client);

    let (mut client, is_present) = Raw::connect(system.mqtt(1), Version::V5, &limited("resumed", false, 100)).await;
    assert!(is_present);
    for wanted in 0..15 {
        let p = client.expect_publish().await;
        assert_eq!(number(&p), wanted, "in order");
        assert_eq!(p.dup, wanted < 10, "DUP exactly where it was sent before: {p:?}");
        if let Some(id) = sent.get(&wanted) {
            assert_eq!(p.id, *id, "the same identifier");
        }
        client.ack(AckKind::Puback, p.id).await;
    }
    client.expect_nothing().await;
    // A PUBACK that was committed is never followed by a redelivery.
    system.publish_numbers(2, "resumed/x", 1, 15..16).await;
    client.receive_through("15", false).await;
    client.disconnect().await;
    system.resume(0, Version::V5, "resumed").await.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_resumed_with_a_smaller_receive_maximum_gets_its_pubrels_first_and_no_more_than_it_allows() {
    let mut system = three_nodes();
    let (mut client, _) = Raw::connect(system.mqtt(0), Version::V5, &limited("smaller", true, 10)).await;
    client.subscribe("smaller/#", 2).await;
    system.publish_numbers(2, "smaller/x", 2, 0..15).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(client.expect_publish().await.id);
    }
    // Three exchanges get as far as PUBREL.
    for id in &ids[..3] {
        client.ack(AckKind::Pubrec, *id).await;
        client.expect_ack(AckKind::Pubrel, *id).await;
    }
    drop(client);

    let (mut client, _) = Raw::connect(system.mqtt(1), Version::V5, &limited("smaller", false, 2)).await;
    for id in &ids[..3] {
        client.expect_ack(AckKind::Pubrel, *id).await;
    }
    let mut outstanding = BTreeSet::new();
    let mut got = Vec::new();
    for id in &ids[..3] {
        client.ack(AckKind::Pubcomp, *id).await;
    }
    while got.len() < 12 {
        match client.next().await {
            Packet::Publish(p) => {
                outstanding.insert(p.id);
                assert!(outstanding.len() <= 2, "more than its Receive Maximum: {outstanding:?}");
                assert_eq!(p.dup, number(&p) < 10, "{p:?}");
                got.push(number(&p));
                client.ack(AckKind::Pubrec, p.id).await;
            }
            Packet::Ack(ack) if ack.kind == AckKind::Pubrel => {
                outstanding.remove(&ack.id);
                client.ack(AckKind::Pubcomp, ack.id).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, (3..15).collect::<Vec<_>>());
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_living_node_did_not_send_comes_without_dup_though_the_window_had_room() {
    let mut system = three_nodes();
    let (mut client, _) = Raw::connect(system.mqtt(0), Version::V5, &limited("roomy", true, 10)).await;
    client.subscribe("roomy/#", 1).await;
    system.publish_numbers(2, "roomy/x", 1, 0..3).await;
    for wanted in 0..3 {
        assert_eq!(number(&client.expect_publish().await), wanted);
    }
    drop(client);
    // What the node said of the end is committed before what it says afterwards.
    let gone = || (system.metric(0, "quorate_mqtt_connections") == 0).then_some(());
    eventually("the connection is over", SOON, gone).await;
    system.publish_numbers(0, "elsewhere", 1, 0..1).await;
    system.publish_numbers(2, "roomy/x", 1, 3..7).await;
    let (mut client, is_present) = Raw::connect(system.mqtt(1), Version::V5, &limited("roomy", false, 100)).await;
    assert!(is_present);
    for wanted in 0..7 {
        let p = client.expect_publish().await;
        assert_eq!((number(&p), p.dup), (wanted, wanted < 3));
        client.ack(AckKind::Puback, p.id).await;
    }
    client.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_died_may_have_sent_its_window_so_all_of_it_has_dup() {
    let mut system = three_nodes();
    let (mut client, _) = Raw::connect(system.mqtt(0), Version::V5, &limited("window", true, 5)).await;
    client.subscribe("window/#", 1).await;
    system.publish_numbers(2, "window/x", 1, 0..8).await;
    for wanted in 0..5 {
        assert_eq!(number(&client.expect_publish().await), wanted);
    }
    system.kill(0);
    drop(client);
    let (mut client, is_present) = Raw::connect(system.mqtt(1), Version::V5, &limited("window", false, 100)).await;
    assert!(is_present);
    for wanted in 0..8 {
        let p = client.expect_publish().await;
        assert_eq!((number(&p), p.dup), (wanted, wanted < 5));
        client.ack(AckKind::Puback, p.id).await;
    }
    system.restart(0);
    system.wait_whole();
    system.assert_same_digest();
}

/// A row that may have been sent goes only by its completion or the end of its session.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_row_that_may_have_been_sent_survives_expiry_and_drop_oldest() {
    let mut system = nodes(3, &[("bootstrap_queue_bytes_max", "20000"), ("bootstrap_queue_full", "drop-oldest")]);
    let (mut client, _) = Raw::connect(system.mqtt(0), Version::V5, &limited("sent", true, 3)).await;
    client.subscribe("sent/#", 1).await;
    let mut publisher = system.connect(2, Version::V5, "publisher").await;
    for number in 0..6 {
        let expiry = Property { id: property::MESSAGE_EXPIRY, value: Value::U32(1) };
        let id = publisher.fresh_id();
        let expiring = Publish { properties: vec![expiry], ..publish("sent/x", 1, id, false, &number.to_string()) };
        publisher.publish(&expiring).await;
        publisher.expect_ack(AckKind::Puback, id).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.expect_publish().await.id);
    }
    // The expiry passes: nothing else happens here for longer than it.
    client.expect_silence(Duration::from_secs(3)).await;
    drop(client);
    // More than the queue holds; every one is acknowledged, the oldest that were not sent make room.
    let filling = "z".repeat(1000);
    for _ in 0..40 {
        publisher.publish_through("sent/y", 1, &filling).await;
    }
    let (mut client, is_present) = Raw::connect(system.mqtt(1), Version::V5, &limited("sent", false, 1000)).await;
    assert!(is_present);
    for (number, id) in ids.iter().enumerate() {
        let p = client.expect_message(&number.to_string(), true).await;
        assert_eq!(p.id, *id);
        client.ack(AckKind::Puback, p.id).await;
    }
    // What was never sent is expired (3, 4, 5) or dropped; what is left of the filling comes as new.
    let mut left = 0;
    while let Ok(packet) = client.next_within(Duration::from_secs(2)).await {
        let Some(Packet::Publish(p)) = packet else { panic!("{packet:?}") };
        assert_eq!((p.topic.as_str(), p.dup), ("sent/y", false), "{p:?}");
        client.ack(AckKind::Puback, p.id).await;
        left += 1;
    }
    assert!((1..40).contains(&left), "{left} of 40");
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_offline_session_gets_everything_in_order_on_whichever_node() {
    let mut system = three_nodes();
    let mut client = system.connect(0, Version::V4, "away").await;
    client.subscribe("away/#", 1).await;
    client.disconnect().await;
    system.publish_numbers(1, "away/x", 1, 0..3000).await;
    let mut client = system.resume(2, Version::V4, "away").await;
    for wanted in 0..3000 {
        let p = client.expect_publish().await;
        assert_eq!((number(&p), p.dup), (wanted, false));
        client.ack(AckKind::Puback, p.id).await;
    }
    client.expect_nothing().await;
    system.assert_same_digest();
}
