//! Processes that stand still and come back: the schedules that lose or double messages in a careless build.
//!
//! SIGSTOP is what a long pause of a machine or the loss of its network looks like to the others; afterwards the node
//! still holds batches, acknowledgements and clients of a time that is over (guarantees 1 to 4, 8, 12).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::time::Duration;

use quorate_jepsen::wire::{AckKind, Packet, Version};
use testkit::load::Load;
use testkit::publisher::PublisherPlan;
use testkit::raw::{self, Raw, publish};
use testkit::{RECOVERY, SHORT_LOG, SOON, environment, eventually, nodes, three_nodes};

const WINDOW: usize = 10;
const SERVED: usize = 200;
/// A keep alive that never ends a connection within a test: the client stays with a node that stands still.
const PATIENT: Duration = Duration::from_secs(600);

async fn frozen_until_lost(qos: u8, is_leader: bool) {
    let mut system = three_nodes();
    let mut load = Load::start(&system, qos, WINDOW).await;
    let place = if is_leader { system.leader() } else { system.follower() };
    // These stay connected to the frozen node and see what it says when it comes back.
    for number in 100..103 {
        let plan = PublisherPlan { number, qos, window: WINDOW, first_node: place, keep_alive: PATIENT };
        load.add_publisher(&system, plan);
    }
    load.wait_acknowledged(SERVED).await;
    println!("freezing {} with {} publishes waiting", system.cluster.nodes[place].name, load.waiting());
    system.freeze(place);
    system.wait_lost(place);
    load.wait_acknowledged_of(usize::from(place == 0), SERVED).await;
    system.thaw(place);
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_declared_lost_that_comes_back_with_qos_1_batches_in_its_hand_doubles_nothing() {
    frozen_until_lost(1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_declared_lost_that_comes_back_with_qos_2_batches_in_its_hand_doubles_nothing() {
    frozen_until_lost(2, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_stood_still_and_comes_back_deposed_loses_and_doubles_nothing() {
    frozen_until_lost(2, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_minority_acknowledges_nothing_and_sends_its_clients_away() {
    let mut system = three_nodes();
    let mut client = system.connect(0, Version::V5, "minority").await;
    client.publish_through("minority/x", 1, "with a majority").await;
    system.freeze(1);
    system.freeze(2);
    client.publish(&publish("minority/x", 1, 77, false, "without")).await;
    // It may not be acknowledged; when `quorum_grace` is over the client is sent away.
    client.expect_sent_away_unanswered().await;
    let refused = Raw::open(system.mqtt(0), Version::V5, &raw::client("minority", false)).await.1;
    assert!(matches!(refused, Some(Packet::ConnAck { code: 0x88, .. })), "{refused:?}");
    let refused = Raw::open(system.mqtt(0), Version::V4, &raw::client("minority-4", false)).await.1;
    assert!(matches!(refused, Some(Packet::ConnAck { code: 3, .. })), "{refused:?}");
    system.thaw(1);
    system.thaw(2);
    system.wait_whole();
    let mut client = system.resume(0, Version::V5, "minority").await;
    client.publish_through("minority/x", 1, "with a majority again").await;
    system.assert_same_digest();
}

/// The client asks a node that has no quorum, gives up, and connects elsewhere; later the first node comes back to
/// its senses and must not undo that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connect_stuck_on_a_node_without_quorum_never_undoes_a_later_one() {
    let mut system = three_nodes();
    let stuck = system.leader();
    let (second, third) = ((stuck + 1) % 3, (stuck + 2) % 3);
    system.connect(stuck, Version::V5, "wanderer").await.subscribe("wanderer/#", 1).await;

    system.freeze(second);
    system.freeze(third);
    let asked = Raw::send_connect(system.mqtt(stuck), Version::V5, &raw::client("wanderer", false)).await;
    system.wait_uncommitted(stuck, 1).await;
    system.freeze(stuck);
    drop(asked);
    system.thaw(second);
    system.thaw(third);
    system.wait_lost(stuck);
    let mut client = system.resume(second, Version::V5, "wanderer").await;
    client.publish_through("elsewhere", 1, "served by the majority").await;

    system.thaw(stuck);
    system.wait_whole();
    let mut publisher = system.connect(stuck, Version::V5, "publisher").await;
    publisher.publish_through("wanderer/x", 1, "still there").await;
    client.receive_through("still there", false).await;
    client.expect_nothing().await;
    system.assert_same_digest();
}

/// As above, but the first node is back before anybody declares it lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connect_of_a_short_pause_never_undoes_a_later_one() {
    let mut system = three_nodes();
    let stuck = system.leader();
    let (second, third) = ((stuck + 1) % 3, (stuck + 2) % 3);
    system.connect(stuck, Version::V5, "wanderer").await.subscribe("wanderer/#", 1).await;
    system.freeze(second);
    system.freeze(third);
    let asked = Raw::send_connect(system.mqtt(stuck), Version::V5, &raw::client("wanderer", false)).await;
    system.wait_uncommitted(stuck, 1).await;
    // The client gives up while the node can see it.
    drop(asked);
    system.thaw(second);
    system.thaw(third);
    system.wait_whole();
    let mut client = eventually_resumed(&system, second).await;
    let mut publisher = system.connect(third, Version::V5, "publisher").await;
    for number in 0..20 {
        let payload = number.to_string();
        publisher.publish_through("wanderer/x", 1, &payload).await;
        client.receive_through(&payload, false).await;
    }
    client.expect_nothing().await;
    system.assert_same_digest();
}

/// A node that has just found its quorum again may refuse for a moment (0x88).
async fn eventually_resumed(system: &testkit::System, place: usize) -> Raw {
    let end = tokio::time::Instant::now() + RECOVERY;
    loop {
        match Raw::open(system.mqtt(place), Version::V5, &raw::client("wanderer", false)).await {
            (client, Some(Packet::ConnAck { code: 0, present: true, .. })) => return client,
            (_, Some(Packet::ConnAck { code: 0x88, .. })) if tokio::time::Instant::now() < end => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

/// While a node stands still the others purge the log beyond it; when it wakes, running, with publishes that it owes
/// acknowledgements for, a snapshot is installed on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_installed_on_a_running_node_that_owes_acknowledgements_answers_for_none_of_them() {
    let mut system = nodes(3, &SHORT_LOG);
    let place = system.follower();
    let mut load = Load::start(&system, 1, WINDOW).await;
    for number in 100..103 {
        let plan = PublisherPlan { number, qos: 1, window: WINDOW, first_node: place, keep_alive: PATIENT };
        load.add_publisher(&system, plan);
    }
    load.wait_acknowledged(50).await;
    system.freeze(place);
    system.wait_lost(place);
    let leader = system.leader();
    let snapshots = system.cluster.nodes[leader].data_dir.join("snapshots");
    let before = testkit::newest_snapshot(&snapshots);
    // Twice: the log is purged up to a snapshot that is older than the newest.
    for _ in 0..2 {
        let last = testkit::newest_snapshot(&snapshots).max(before);
        eventually("a newer snapshot on the leader", RECOVERY, || {
            (testkit::newest_snapshot(&snapshots) > last).then_some(())
        })
        .await;
    }
    system.thaw(place);
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
    assert!(system.snapshots_installed(place) > 0, "it caught up without a snapshot");
}

/// Every value that changes an outcome is replicated: a node with another configuration file computes the same rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_with_different_configuration_files_have_the_same_outcomes() {
    let mut system = nodes(2, &[("bootstrap_queue_bytes_max", "200000"), ("bootstrap_session_expiry_s_max", "1000")]);
    system.cluster.set_env(environment(&[
        ("bootstrap_queue_bytes_max", "10000"),
        ("bootstrap_queue_full", "drop-oldest"),
        ("bootstrap_session_expiry_s_max", "5"),
        ("receive_maximum", "7"),
        ("inflight_max", "3"),
        ("rows_cache_bytes", "1000000"),
    ]));
    let odd = system.cluster.add_node().unwrap();
    for (place, id) in [(0, "offline-0"), (odd, "offline-odd")] {
        let mut client = system.connect(place, Version::V5, id).await;
        client.subscribe("both/#", 1).await;
        client.disconnect().await;
    }
    // Until the queues are full: refused on every node alike, by whichever it comes in.
    let payload = "y".repeat(1000);
    for place in [0, odd] {
        let mut publisher = system.connect(place, Version::V5, &format!("filler-{place}")).await;
        let refused = async {
            for _ in 0..1000 {
                let id = publisher.fresh_id();
                publisher.publish(&publish("both/x", 1, id, false, &payload)).await;
                match publisher.next().await {
                    Packet::Ack(ack) if ack.kind == AckKind::Puback && ack.code == 0x97 => return true,
                    Packet::Ack(ack) if ack.kind == AckKind::Puback && ack.code < 0x80 => {}
                    other => panic!("{other:?}"),
                }
            }
            false
        };
        assert!(tokio::time::timeout(SOON, refused).await.unwrap(), "the queue never fills on node {place}");
    }
    system.assert_same_digest();
    for (place, id) in [(odd, "offline-0"), (0, "offline-odd")] {
        let mut client = system.resume(place, Version::V5, id).await;
        client.receive_through(&payload, false).await;
    }
    system.assert_same_digest();
}
