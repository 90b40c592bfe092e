//! A publish with an idempotency key is published once, whatever dies before its publisher knows (guarantee 4).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::wire::{AckKind, Packet, Publish, Version};
use testkit::raw::{Raw, keyed, publish};
use testkit::{SOON, System, eventually, nodes, three_nodes};

/// Publishes until some node acknowledges, from a new client on the next node each time; the position in the
/// acknowledgement.
async fn publish_until_acknowledged(system: &System, places: &[usize], name: &str, what: &Publish) -> String {
    for attempt in 0..50 {
        let place = places[attempt % places.len()];
        let at = system.mqtt(place);
        let connect = testkit::raw::client(&format!("{name}-{attempt}"), true);
        let (mut client, Some(Packet::ConnAck { code: 0, .. })) = Raw::open(at, Version::V5, &connect).await else {
            continue;
        };
        client.publish(what).await;
        let kind = if what.qos == 2 { AckKind::Pubrec } else { AckKind::Puback };
        let Some((code, position)) = client.ack_at_or_close(kind, what.id).await else { continue };
        assert!(code < 0x80, "{code:#x}");
        if what.qos == 2 {
            client.ack(AckKind::Pubrel, what.id).await;
            client.expect_ack(AckKind::Pubcomp, what.id).await;
        }
        client.disconnect().await;
        return position.expect("the acknowledgement of a publish with a key tells its position");
    }
    panic!("no node acknowledges {what:?}");
}

/// Nothing but `want` has come to the subscriber, in this order; all of it is settled in the log. What had been
/// published before this would stand before the SUBACK.
async fn expect_exactly(subscriber: &mut Raw, want: &[&str]) {
    for payload in want {
        subscriber.receive_through(payload, false).await;
    }
    subscriber.subscribe("barrier", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_publisher_that_never_heard_of_its_puback_publishes_again_elsewhere_and_is_told_the_same_position() {
    let mut system = three_nodes();
    let leader = system.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    let mut subscriber = system.connect(others[0], Version::V5, "subscriber").await;
    subscriber.subscribe("once/#", 2).await;
    let mut first = Vec::new();
    for (n, qos) in [(0, 1), (1, 2), (2, 0)] {
        let what = keyed(&format!("key-{n}"), publish("once/t", qos, u16::from(qos > 0), false, &format!("m{n}")));
        // From a client of the leader's, whose connection breaks as soon as the message has arrived.
        let mut publisher = system.connect(leader, Version::V5, &format!("publisher-{n}")).await;
        publisher.publish(&what).await;
        subscriber.receive_through(&format!("m{n}"), false).await;
        drop(publisher);
        first.push(what);
    }
    system.kill(leader);
    let mut positions = Vec::new();
    for (n, what) in first.iter().enumerate() {
        let again = Publish { qos: what.qos.max(1), id: 1, ..what.clone() };
        positions.push(publish_until_acknowledged(&system, &others, &format!("again-{n}"), &again).await);
    }
    expect_exactly(&mut subscriber, &[]).await;
    // A new key is a new message.
    let last = keyed("key-3", publish("once/t", 1, 1, false, "m3"));
    let position = publish_until_acknowledged(&system, &others, "new", &last).await;
    expect_exactly(&mut subscriber, &["m3"]).await;
    assert!(!positions.contains(&position));
    // All nodes die; and the window is still there.
    for place in &others {
        system.kill(*place);
    }
    for place in 0..3 {
        system.restart(place);
    }
    system.wait_whole();
    let mut subscriber = system.resume(leader, Version::V5, "subscriber").await;
    for (n, what) in first.iter().enumerate() {
        let again = Publish { qos: 2, id: 7, ..what.clone() };
        let position = publish_until_acknowledged(&system, &[0, 1, 2], &format!("after-{n}"), &again).await;
        assert_eq!(position, positions[n], "{what:?}");
    }
    let again = publish_until_acknowledged(&system, &[0, 1, 2], "after-new", &last).await;
    assert_eq!(again, position);
    expect_exactly(&mut subscriber, &[]).await;
    system.assert_same_digest();
}

/// The leader dies at any moment between PUBLISH and PUBACK: committed or not, the same key is published once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishes_in_the_hand_of_a_leader_that_is_killed_are_published_once_each() {
    let mut system = three_nodes();
    let leader = system.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    let mut subscriber = system.connect(others[0], Version::V5, "subscriber").await;
    subscriber.subscribe("once/#", 1).await;
    let mut publisher = system.connect(leader, Version::V5, "publisher").await;
    let count = 60;
    let message = |n: u16| keyed(&format!("key-{n}"), publish("once/t", 1, n + 1, false, &format!("m{n}")));
    for n in 0..count {
        publisher.publish(&message(n)).await;
    }
    // Some are acknowledged, some committed, some neither.
    let (_, known) = publisher.expect_ack_at(AckKind::Puback, 1).await;
    system.kill(leader);
    drop(publisher);
    let mut positions = Vec::new();
    for n in 0..count {
        let name = format!("again-{n}");
        positions.push(publish_until_acknowledged(&system, &others, &name, &message(n)).await);
    }
    assert_eq!(known.as_ref(), positions.first());
    let mut got = Vec::new();
    for _ in 0..count {
        let publish = subscriber.expect_publish().await;
        subscriber.settle(&publish).await;
        got.push(String::from_utf8(publish.payload).unwrap());
    }
    assert_eq!(got, (0..count).map(|n| format!("m{n}")).collect::<Vec<_>>());
    expect_exactly(&mut subscriber, &[]).await;
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_window_is_what_the_cluster_was_bootstrapped_with() {
    let mut system = nodes(1, &[("bootstrap_idempotency_keys_max", "2")]);
    let has_settings = || system.cluster.nodes[0].log().contains("IdempotencyKeysMax").then_some(());
    eventually("the settings of the cluster are committed", SOON, has_settings).await;
    let mut subscriber = system.connect(0, Version::V5, "subscriber").await;
    subscriber.subscribe("once/#", 1).await;
    let mut publisher = system.connect(0, Version::V5, "publisher").await;
    let mut publish_keyed = async |n: u16, key: &str, payload: &str| {
        publisher.publish(&keyed(key, publish("once/t", 1, n, false, payload))).await;
        publisher.expect_ack_at(AckKind::Puback, n).await
    };
    let (_, first) = publish_keyed(1, "a", "1").await;
    publish_keyed(2, "b", "2").await;
    assert_eq!(publish_keyed(3, "a", "3").await, (0, first.clone()));
    publish_keyed(4, "c", "4").await;
    // The third key has put the first out.
    let (_, again) = publish_keyed(5, "a", "5").await;
    assert_ne!(again, first);
    // What is no key is refused and publishes nothing.
    assert_eq!(publish_keyed(6, "", "6").await, (0x83, None));
    expect_exactly(&mut subscriber, &["1", "2", "4", "5"]).await;
    system.assert_same_digest();
}
