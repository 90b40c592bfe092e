//! A delayed publish is published once when it is due, whatever dies meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::time::{Duration, Instant};

use quorate_jepsen::wire::{AckKind, Publish, Version};
use testkit::raw::publish;
use testkit::{SOON, eventually, nodes, three_nodes};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_delayed_publish_comes_once_and_in_order_also_when_all_nodes_die_before_it_is_due() {
    let mut system = three_nodes();
    let mut subscriber = system.connect(0, Version::V5, "subscriber").await;
    subscriber.subscribe("later/#", 2).await;
    let mut publisher = system.connect(1, Version::V5, "publisher").await;
    let began = Instant::now();
    publisher.publish_through("$delayed/12/later/t", 2, "third").await;
    publisher.publish_through("$delayed/10/later/t", 1, "first").await;
    publisher.publish_through("$delayed/10/later/t", 1, "second").await;
    let retained = Publish { retain: true, ..publish("$delayed/11/later/kept", 1, 99, false, "kept") };
    publisher.publish(&retained).await;
    publisher.expect_ack(AckKind::Puback, 99).await;
    // Its publisher is gone, with its session.
    publisher.disconnect().await;
    let ended = testkit::raw::Connect { expiry_s: 0, ..testkit::raw::client("publisher", true) };
    testkit::raw::Raw::connect(system.mqtt(1), Version::V5, &ended).await.0.disconnect().await;
    subscriber.expect_nothing().await;
    drop(subscriber);
    for place in 0..3 {
        system.kill(place);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "the machine is too slow for this test: it was due before");
    for place in 0..3 {
        system.restart(place);
    }
    system.wait_whole();
    let mut subscriber = system.resume(2, Version::V5, "subscriber").await;
    for payload in ["first", "second", "kept", "third"] {
        // DUP: what was due before its node started again may have been sent by the life that was lost.
        let publish = subscriber.expect_publish().await;
        assert_eq!(String::from_utf8_lossy(&publish.payload), payload);
        subscriber.settle(&publish).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(11));
    subscriber.expect_nothing().await;
    let mut late = system.connect(1, Version::V5, "late").await;
    late.subscribe("later/#", 1).await;
    let kept = late.receive_through("kept", false).await;
    assert!(kept.retain && kept.topic == "later/kept");
    late.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_death_of_the_leader_delays_nothing_and_doubles_nothing() {
    let mut system = three_nodes();
    let leader = system.leader();
    let other = system.follower();
    let mut subscriber = system.connect(other, Version::V5, "subscriber").await;
    subscriber.subscribe("later/#", 1).await;
    let mut publisher = system.connect(leader, Version::V4, "publisher").await;
    let count = 100;
    for n in 0..count {
        publisher.publish_through(&format!("$delayed/{}/later/t", 3 + n / 50), 1, &format!("m{n}")).await;
    }
    publisher.publish_through("$delayed/3/later/zero", 0, "zero").await;
    publisher.publish_through("now", 1, "behind it, so it is in the log").await;
    system.kill(leader);
    let mut got = Vec::new();
    for _ in 0..=count {
        let publish = subscriber.expect_publish().await;
        subscriber.settle(&publish).await;
        got.push(String::from_utf8(publish.payload).unwrap());
    }
    let zero = got.iter().position(|payload| payload == "zero").expect("QoS 0 comes, too");
    got.remove(zero);
    assert_eq!(got, (0..count).map(|n| format!("m{n}")).collect::<Vec<_>>());
    subscriber.expect_nothing().await;
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_delayed_is_refused() {
    let settings = [("bootstrap_delay_s_max", "10"), ("bootstrap_delayed_bytes_max", "1000")];
    let system = nodes(1, &settings);
    let has_settings = || system.cluster.nodes[0].log().contains("DelayedBytesMax").then_some(());
    eventually("the settings of the cluster are committed", SOON, has_settings).await;
    let mut client = system.connect(0, Version::V5, "client").await;
    let large = "x".repeat(1000);
    for (n, topic, payload, code) in [
        (1, "$delayed/11/t", "above the maximum", 0x97),
        (2, "$delayed/10/t", large.as_str(), 0x97),
        (3, "$delayed/ten/t", "no number", 0x90),
        (4, "$delayed/10/", "no topic", 0x90),
        (5, "$delayed/10/t", "in order", 0),
    ] {
        client.publish(&publish(topic, 1, n, false, payload)).await;
        assert_eq!(client.expect_ack_at(AckKind::Puback, n).await, (code, None), "{topic}");
    }
    // 3.1.1 has no way to say no.
    let mut old = system.connect(0, Version::V4, "old").await;
    old.publish(&publish("$delayed/11/t", 1, 1, false, "above the maximum")).await;
    assert_eq!(old.expect_end().await, None);
}
