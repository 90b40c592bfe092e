//! rumqttc, a client that we did not write, in both versions that it speaks; `interop/` has the others.
//!
//! Over TLS and WebSocket, and in a shared group: `system_interop_rumqttc_ways`. Its sessions under faults at QoS 1 and
//! 2 on 3.1.1 are in `system_guarantees` and `system_takeover`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod rumqttc_testkit;
mod testkit;

use quorate_jepsen::wire::Version;
use rumqttc::Transport;
use rumqttc_testkit::{BURST, Client, MIB};
use testkit::{System, nodes};

/// Publishes of which [`BURST`] are in flight at a time.
const MANY: usize = 3_000;

fn three_nodes_for_large_packets() -> System {
    nodes(3, &[("packet_bytes_max", "2097152")])
}

fn numbers(count: usize) -> Vec<(String, bool)> {
    (0..count).map(|n| (n.to_string(), false)).collect()
}

/// What every client can do while nothing happens to the nodes.
async fn all_that_it_knows(version: Version) {
    let mut system = three_nodes_for_large_packets();
    let mut publisher = Client::new(&system, 0, version, "publisher").await;
    let mut subscriber = Client::new(&system, 1, version, "subscriber").await;
    subscriber.subscribe("in/#", 2).await;
    for qos in 0..3 {
        publisher.publish("in/each", qos, false, "each").await;
        assert_eq!(subscriber.messages(1).await, [("each".to_owned(), false)]);
        if qos > 0 {
            publisher.acknowledged(1).await;
        }
    }
    for n in 0..BURST {
        publisher.publish("in/burst", 2, false, n.to_string()).await;
    }
    publisher.acknowledged(BURST).await;
    assert_eq!(subscriber.messages(BURST).await, numbers(BURST));

    let large = "0123456789abcdef".repeat(MIB / 16);
    publisher.publish("in/large", 2, false, large.as_bytes()).await;
    publisher.acknowledged(1).await;
    assert!(subscriber.messages(1).await == [(large, false)], "1 MiB came otherwise than it was sent");

    publisher.publish("retained", 1, true, "kept").await;
    publisher.acknowledged(1).await;
    let mut late = Client::new(&system, 2, version, "late").await;
    late.subscribe("retained", 1).await;
    assert_eq!(late.messages(1).await, [("kept".to_owned(), true)]);

    let (mourned, _) = Client::start(system.relay(2), &Transport::Tcp, version, "mourned", Some("in/will")).await;
    drop(mourned);
    assert_eq!(subscriber.messages(1).await, [("will".to_owned(), false)]);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_finds_all_that_it_knows_on_3_1_1() {
    all_that_it_knows(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_finds_all_that_it_knows_on_5() {
    all_that_it_knows(Version::V5).await;
}

/// The leader dies while 200 QoS 2 publishes are on their way to it; a survivor has the subscriber, because rumqttc
/// itself forgets what it has received when it reconnects.
async fn publishes_in_flight_outlive_their_node(version: Version) {
    let mut system = three_nodes_for_large_packets();
    let leader = system.leader();
    let mut subscriber = Client::new(&system, (leader + 1) % 3, version, "subscriber").await;
    subscriber.subscribe("in/#", 2).await;
    let mut publisher = Client::new(&system, leader, version, "publisher").await;
    publisher.publish("in/retained", 1, true, "kept").await;
    publisher.acknowledged(1).await;
    assert_eq!(subscriber.messages(1).await, [("kept".to_owned(), false)]);
    let handle = publisher.handle.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..MANY {
            handle.publish("in/many", 2, false, n.to_string()).await;
        }
    });
    publisher.acknowledged(BURST).await;
    system.kill(leader);
    let reconnects = publisher.acknowledged(MANY - BURST).await;
    assert!(reconnects > 0, "all was acknowledged before the node died");
    publishing.await.unwrap();
    // rumqttc sends again in the order of identifiers, not of publishing: each once, in whatever order.
    let mut got = subscriber.messages(MANY).await;
    got.sort_by_key(|(number, _)| number.parse::<usize>().unwrap());
    assert_eq!(got, numbers(MANY));
    publisher.publish("in/end", 2, false, "end").await;
    assert_eq!(subscriber.messages(1).await, [("end".to_owned(), false)]);

    let mut late = Client::new(&system, (leader + 2) % 3, version, "late").await;
    late.subscribe("in/retained", 1).await;
    assert_eq!(late.messages(1).await, [("kept".to_owned(), true)]);
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_publishes_200_in_flight_at_qos_2_once_when_its_node_dies_on_3_1_1() {
    publishes_in_flight_outlive_their_node(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_publishes_200_in_flight_at_qos_2_once_when_its_node_dies_on_5() {
    publishes_in_flight_outlive_their_node(Version::V5).await;
}

/// Its session, its subscription, a payload of 1 MiB on its way and a will, all on the node that dies.
async fn a_session_outlives_its_node(version: Version) {
    let mut system = three_nodes_for_large_packets();
    let leader = system.leader();
    let mut watcher = Client::new(&system, (leader + 1) % 3, version, "watcher").await;
    watcher.subscribe("will", 1).await;
    let mut subscriber = Client::new(&system, leader, version, "subscriber").await;
    subscriber.subscribe("in/#", 1).await;
    let mut publisher = Client::new(&system, leader, version, "publisher").await;
    let (mourned, _) = Client::start(system.relay(leader), &Transport::Tcp, version, "mourned", Some("will")).await;
    let large = "0123456789abcdef".repeat(MIB / 16);
    publisher.publish("in/large", 2, false, large.as_bytes()).await;
    // Both die at a time: its will is published once, whichever is noticed first.
    drop(mourned);
    system.kill(leader);
    publisher.acknowledged(1).await;
    assert!(subscriber.messages(1).await == [(large, false)], "1 MiB came otherwise than it was sent");
    assert_eq!(watcher.messages(1).await, [("will".to_owned(), false)]);
    publisher.publish("will", 1, false, "end").await;
    assert_eq!(watcher.messages(1).await, [("end".to_owned(), false)]);
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_of_rumqttc_outlives_its_node_on_3_1_1() {
    a_session_outlives_its_node(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_of_rumqttc_outlives_its_node_on_5() {
    a_session_outlives_its_node(Version::V5).await;
}
