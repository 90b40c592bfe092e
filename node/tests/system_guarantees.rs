//! Subscriptions, retained messages and wills over several nodes (guarantees 6, 7, 9).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::time::Duration;

use quorate_jepsen::harness::http;
use quorate_jepsen::wire::{AckKind, Publish, Version};
use testkit::raw::{self, Raw, Will, publish};
use testkit::three_nodes;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_subscription_holds_on_every_node_from_suback_to_unsuback() {
    let mut system = three_nodes();
    let mut subscriber = system.connect(0, Version::V5, "subscriber").await;
    let mut publishers = Vec::new();
    for place in 0..3 {
        publishers.push(system.connect(place, Version::V5, &format!("publisher-{place}")).await);
    }
    for round in 0..30_usize {
        let payload = format!("round {round}");
        let filter = if round % 2 == 0 { "linear/+" } else { "linear/x" };
        subscriber.subscribe(filter, (1 + round % 2) as u8).await;
        publishers[round % 3].publish_through("linear/x", 2, &payload).await;
        subscriber.receive_through(&payload, false).await;
        subscriber.unsubscribe(filter).await;
        publishers[(round + 1) % 3].publish_through("linear/x", 2, "for nobody").await;
        subscriber.expect_nothing().await;
    }
    system.assert_same_digest();
}

async fn retain(client: &mut Raw, topic: &str, payload: &str) {
    let id = client.fresh_id();
    client.publish(&Publish { retain: true, ..publish(topic, 1, id, false, payload) }).await;
    client.expect_ack(AckKind::Puback, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_retained_message_is_the_same_from_every_node_as_soon_as_it_is_acknowledged() {
    let mut system = three_nodes();
    let mut writers = Vec::new();
    for place in 0..3 {
        writers.push(system.connect(place, Version::V5, &format!("writer-{place}")).await);
    }
    for round in 0..15_usize {
        let payload = format!("value {round}");
        retain(&mut writers[round % 3], "register/x", &payload).await;
        let reader_at = (round + 1 + round / 3) % 3;
        let mut reader = system.connect(reader_at, Version::V5, "reader").await;
        reader.subscribe("register/#", 1).await;
        let got = reader.receive_through(&payload, false).await;
        assert!(got.retain, "sent because of the subscription");
        reader.expect_nothing().await;
        reader.disconnect().await;
    }
    retain(&mut writers[0], "register/x", "").await;
    let mut reader = system.connect(1, Version::V5, "reader").await;
    reader.subscribe("register/#", 1).await;
    reader.expect_nothing().await;
    system.assert_same_digest();
}

fn with_will(id: &str, delay_s: u32) -> raw::Connect {
    let will = Will { topic: format!("wills/{id}"), payload: id.into(), qos: 2, retain: false, delay_s };
    raw::Connect { will: Some(will), ..raw::client(id, true) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_will_is_published_once_when_its_connection_breaks_and_never_after_a_disconnect() {
    let mut system = three_nodes();
    let mut watcher = system.connect(2, Version::V5, "watcher").await;
    watcher.subscribe("wills/#", 2).await;
    let broken = Raw::connect(system.mqtt(0), Version::V5, &with_will("broken", 0)).await.0;
    let ended = Raw::connect(system.mqtt(0), Version::V5, &with_will("ended", 0)).await.0;
    let back_in_time = Raw::connect(system.mqtt(0), Version::V5, &with_will("back", 3)).await.0;
    ended.disconnect().await;
    drop(back_in_time);
    drop(broken);
    watcher.receive_through("broken", false).await;
    let back = system.resume(1, Version::V5, "back").await;
    watcher.expect_silence(Duration::from_secs(5)).await;
    drop(back);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wills_of_a_node_that_died_are_published_once() {
    let mut system = three_nodes();
    let mut watcher = system.connect(1, Version::V5, "watcher").await;
    watcher.subscribe("wills/#", 1).await;
    let victim = 0;
    let mut clients = Vec::new();
    for number in 0..20 {
        let connect = with_will(&format!("client-{number}"), 0);
        clients.push(Raw::connect(system.mqtt(victim), Version::V5, &connect).await.0);
    }
    system.kill(victim);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let will = watcher.expect_publish().await;
        watcher.settle(&will).await;
        assert!(seen.insert(will.payload.clone()), "twice: {will:?}");
    }
    system.restart(victim);
    system.wait_whole();
    watcher.expect_silence(Duration::from_secs(2)).await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wills_are_published_once_after_all_nodes_died_at_once() {
    let mut system = three_nodes();
    let mut watcher = system.connect(1, Version::V5, "watcher").await;
    watcher.subscribe("wills/#", 2).await;
    let client = Raw::connect(system.mqtt(0), Version::V5, &with_will("powerless", 0)).await.0;
    for place in 0..3 {
        system.kill(place);
    }
    drop((client, watcher));
    for place in 0..3 {
        system.restart(place);
    }
    system.wait_whole();
    let mut watcher = system.resume(2, Version::V5, "watcher").await;
    // DUP says that it may have been sent before: it was due before the watcher's own node was known to be gone.
    let will = watcher.expect_publish().await;
    assert_eq!(will.payload, b"powerless");
    watcher.settle(&will).await;
    watcher.expect_silence(Duration::from_secs(5)).await;
    system.assert_same_digest();
}

/// Time passes in the log only: with nobody else there, the leader has to let it pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_delayed_will_and_the_end_of_a_session_fall_due_on_an_idle_cluster() {
    let mut system = three_nodes();
    let mut watcher = system.connect(2, Version::V5, "watcher").await;
    watcher.subscribe("wills/#", 2).await;
    let brief = raw::Connect { expiry_s: 1, ..raw::client("brief", true) };
    drop(Raw::connect(system.mqtt(0), Version::V5, &with_will("late", 1)).await);
    drop(Raw::connect(system.mqtt(0), Version::V5, &brief).await);
    watcher.receive_through("late", false).await;

    // Also by another leader than the one that saw it begin.
    drop(Raw::connect(system.mqtt(2), Version::V5, &with_will("later", 4)).await);
    let leader = system.leader();
    if leader != 2 {
        system.kill(leader);
    } else {
        let to = format!("{{\"to\":{}}}", system.id(0));
        let moved = http::request(system.admin(2), "POST", "/api/v1/cluster/leader", Some(&to)).unwrap();
        assert_eq!(moved.status, 200, "{moved:?}");
    }
    watcher.receive_through("later", false).await;
    let (client, is_present) = Raw::connect(system.mqtt(2), Version::V5, &raw::client("brief", false)).await;
    assert!(!is_present, "its Session Expiry Interval has passed");
    drop(client);
    if leader != 2 {
        system.restart(leader);
        system.wait_whole();
    }
    system.assert_same_digest();
}
