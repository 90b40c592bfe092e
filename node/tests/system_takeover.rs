//! One owner for each client identifier, across nodes (guarantee 8).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::wire::{AckKind, Packet, Version};
use testkit::load::Load;
use testkit::raw::{self, Raw, publish};
use testkit::subscriber::Subscriber;
use testkit::three_nodes;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_takeover_on_another_node_ends_the_old_connection_and_keeps_the_session() {
    let mut system = three_nodes();
    let mut old = system.connect(0, Version::V5, "moving").await;
    old.subscribe("moving/#", 2).await;
    let mut publisher = system.connect(2, Version::V5, "publisher").await;
    publisher.publish_through("moving/1", 1, "one").await;
    let first = old.expect_message("one", false).await;

    let mut new = system.resume(1, Version::V5, "moving").await;
    assert_eq!(old.expect_end().await, Some(0x8e), "the old connection is told why");
    // Unsettled, so it comes again, as what it is: the same row.
    let again = new.expect_message("one", true).await;
    assert_eq!((again.id, again.qos), (first.id, 1));
    new.ack(AckKind::Puback, again.id).await;
    publisher.publish_through("moving/2", 2, "two").await;
    new.receive_through("two", false).await;
    new.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_3_1_1_client_is_taken_over_as_well() {
    let mut system = three_nodes();
    let mut old = system.connect(0, Version::V4, "moving").await;
    old.subscribe("moving/#", 1).await;
    let mut new = system.resume(1, Version::V4, "moving").await;
    assert_eq!(old.expect_end().await, None);
    let mut publisher = system.connect(0, Version::V4, "publisher").await;
    publisher.publish_through("moving/1", 1, "one").await;
    new.receive_through("one", false).await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_taken_over_again_and_again_gets_every_qos_2_message_once() {
    let mut system = three_nodes();
    system.connect(0, Version::V5, "moving").await.subscribe("moving/#", 2).await;
    let at = system.mqtt(2);
    let count = 300;
    let publishing = tokio::spawn(async move {
        let (mut publisher, _) = Raw::connect(at, Version::V5, &raw::client("publisher", true)).await;
        for number in 0..count {
            publisher.publish_through("moving/x", 2, &number.to_string()).await;
        }
    });
    let (mut got, mut unreleased) = (Vec::new(), std::collections::BTreeSet::new());
    let mut turn = 0;
    let mut held: Option<Raw> = None;
    while got.len() < count {
        let mut client = system.resume(turn % 3, Version::V5, "moving").await;
        turn += 1;
        // The connection before is still open when this one takes over.
        drop(held.take());
        let mut taken = 0;
        while taken < 7 && got.len() < count {
            match client.next().await {
                Packet::Publish(p) => {
                    if unreleased.insert(p.id) {
                        got.push(String::from_utf8(p.payload.clone()).unwrap().parse::<usize>().unwrap());
                        taken += 1;
                    }
                    client.ack(AckKind::Pubrec, p.id).await;
                }
                Packet::Ack(ack) if ack.kind == AckKind::Pubrel => {
                    unreleased.remove(&ack.id);
                    client.ack(AckKind::Pubcomp, ack.id).await;
                }
                other => panic!("{other:?}"),
            }
        }
        held = Some(client);
    }
    publishing.await.unwrap();
    assert_eq!(got, (0..count).collect::<Vec<_>>());
    system.assert_same_digest();
}

/// Clients that we did not write lose their sessions to somebody on another node, again and again under load, and take
/// them back on a third.
async fn sessions_of_rumqttc_are_taken_over_under_load(qos: u8) {
    let mut system = three_nodes();
    let mut load = Load::start(&system, qos, 10).await;
    for round in 0..6_usize {
        let victim = Subscriber::client_id((round % 3) as u32);
        let thief = system.resume((round + 1) % 3, Version::V4, &victim).await;
        load.wait_acknowledged(20).await;
        drop(thief);
        load.wait_acknowledged(20).await;
    }
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_of_rumqttc_taken_over_across_nodes_lose_nothing_at_qos_1() {
    sessions_of_rumqttc_are_taken_over_under_load(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_of_rumqttc_taken_over_across_nodes_lose_and_double_nothing_at_qos_2() {
    sessions_of_rumqttc_are_taken_over_under_load(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn session_present_is_exact_and_clean_start_ends_the_session() {
    let mut system = three_nodes();
    let (mut client, is_present) = Raw::connect(system.mqtt(0), Version::V5, &raw::client("exact", false)).await;
    assert!(!is_present);
    client.subscribe("exact/#", 1).await;
    client.disconnect().await;
    let (client, is_present) = Raw::connect(system.mqtt(1), Version::V5, &raw::client("exact", false)).await;
    assert!(is_present);
    client.disconnect().await;
    let (client, is_present) = Raw::connect(system.mqtt(2), Version::V5, &raw::client("exact", true)).await;
    assert!(!is_present);
    client.disconnect().await;
    // Its subscription went with the session.
    let mut client = system.resume(0, Version::V5, "exact").await;
    let mut publisher = system.connect(1, Version::V5, "publisher").await;
    publisher.publish_through("exact/1", 1, "for nobody").await;
    client.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transient_session_ends_with_its_connection() {
    let mut system = three_nodes();
    let transient = raw::Connect { expiry_s: 0, ..raw::client("brief", false) };
    let (mut old, _) = Raw::connect(system.mqtt(0), Version::V5, &transient).await;
    old.subscribe("brief/#", 1).await;
    let mut publisher = system.connect(2, Version::V5, "publisher").await;
    publisher.publish_through("brief/1", 1, "one").await;
    old.receive_through("one", false).await;
    // Taken over, it ends; the new one begins empty.
    let (mut new, is_present) = Raw::connect(system.mqtt(1), Version::V5, &transient).await;
    assert!(!is_present);
    assert_eq!(old.expect_end().await, Some(0x8e));
    publisher.publish_through("brief/2", 1, "two").await;
    new.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_publish_of_a_fenced_connection_is_never_acknowledged() {
    let mut system = three_nodes();
    let mut watcher = system.connect(2, Version::V5, "watcher").await;
    watcher.subscribe("fenced/#", 1).await;
    let mut old = system.connect(0, Version::V5, "moving").await;
    let new = system.resume(1, Version::V5, "moving").await;
    // The old node may not know yet; what it takes now is of an older epoch.
    old.publish(&publish("fenced/x", 1, 9, false, "late")).await;
    let mut acknowledged = false;
    while let Some(packet) = old.next_or_close().await {
        acknowledged |= matches!(packet, Packet::Ack(_));
    }
    assert!(!acknowledged);
    let mut publisher = system.connect(1, Version::V5, "publisher").await;
    publisher.publish_through("fenced/x", 1, "of another").await;
    watcher.receive_through("of another", false).await;
    drop(new);
    system.assert_same_digest();
}
