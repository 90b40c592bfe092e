//! Nodes come, go and come back while traffic runs (guarantees 2, 3, 5, 12, 13).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::harness::http;
use quorate_jepsen::wire::{Packet, Version, property};
use testkit::load::Load;
use testkit::{RECOVERY, SHORT_LOG, eventually, newest_snapshot, nodes, three_nodes};

const WINDOW: usize = 10;
const SERVED: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wiped_node_joins_again_under_a_new_id_while_traffic_runs() {
    let mut system = three_nodes();
    let mut load = Load::start(&system, 2, WINDOW).await;
    let place = system.follower();
    let (old_id, old_name) = (system.id(place), system.cluster.nodes[place].name.clone());
    system.kill(place);
    std::fs::remove_dir_all(&system.cluster.nodes[place].data_dir).unwrap();
    load.wait_acknowledged(SERVED).await;
    let leader = system.leader();
    let removed = http::request(system.admin(leader), "DELETE", &format!("/api/v1/cluster/nodes/{old_id}"), None);
    let removed = removed.unwrap();
    assert!((200..300).contains(&removed.status), "{removed:?}");
    let new = system.cluster.add_node().unwrap();
    let new_id = system.id(new);
    assert!(new_id > old_id && new_id > 3, "ids are never used again: {old_id} then {new_id}");
    let view = system.cluster.wait_view("the old node is gone", RECOVERY, |v| v.node(&old_name).is_none());
    println!("{:?}", view.unwrap());
    load.wait_acknowledged(SERVED).await;
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_that_was_away_long_enough_to_need_a_snapshot_catches_up() {
    let mut system = nodes(3, &SHORT_LOG);
    let mut load = Load::start(&system, 1, WINDOW).await;
    let place = system.follower();
    system.kill(place);
    let leader = system.leader();
    let snapshots = system.cluster.nodes[leader].data_dir.join("snapshots");
    // Several, so that the log is purged well beyond where the follower stopped.
    for _ in 0..3 {
        let last = newest_snapshot(&snapshots);
        eventually("a newer snapshot on the leader", RECOVERY, || (newest_snapshot(&snapshots) > last).then_some(()))
            .await;
    }
    system.restart(place);
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
    assert!(system.snapshots_installed(place) > 0, "it caught up without a snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leadership_moves_on_request_and_on_a_graceful_stop() {
    let mut system = three_nodes();
    let mut load = Load::start(&system, 2, WINDOW).await;
    let leader = system.leader();
    let target = (leader + 1) % 3;
    let body = format!("{{\"to\":{}}}", system.id(target));
    // Any node takes the request.
    let asked = http::request(system.admin((leader + 2) % 3), "POST", "/api/v1/cluster/leader", Some(&body)).unwrap();
    assert!((200..300).contains(&asked.status), "{asked:?}");
    let name = system.cluster.nodes[target].name.clone();
    let view = system.cluster.wait_view("the target leads", RECOVERY, |v| v.leader_name() == Some(&name));
    println!("{:?}", view.unwrap());
    load.wait_acknowledged(SERVED).await;
    let status = system.cluster.nodes[target].terminate(RECOVERY).unwrap();
    assert!(status.success(), "a graceful stop exits 0: {status:?}");
    load.wait_acknowledged(SERVED).await;
    system.restart(target);
    system.wait_whole();
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}

/// SIGTERM on the leader: leadership moves, clients are told where to go, and nothing is left to be closed by others.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_is_stopped_hands_over_and_tells_its_clients_where_to_go() {
    let mut system = three_nodes();
    let leader = system.leader();
    let mut idle = system.connect(leader, Version::V5, "idle").await;
    idle.subscribe("idle/#", 1).await;
    let mut idle_4 = system.connect(leader, Version::V4, "idle-4").await;
    idle_4.subscribe("idle/#", 1).await;
    let others: Vec<_> = (0..3).filter(|place| *place != leader).collect();
    let elsewhere: Vec<_> = others.iter().map(|place| system.mqtt(*place).to_string()).collect();

    let node = &mut system.cluster.nodes[leader];
    let status = tokio::task::block_in_place(|| node.terminate(RECOVERY)).unwrap();
    assert!(status.success(), "a graceful stop exits 0: {status:?}");
    let Packet::Disconnect { code, properties } = idle.next().await else { panic!("closed without a word") };
    assert!(matches!(code, 0x9c | 0x9d), "{code:#x}");
    let reference = properties.iter().find(|p| p.id == property::SERVER_REFERENCE).map(|p| p.value.clone());
    let Some(property::Value::Text(reference)) = reference else { panic!("no Server Reference: {properties:?}") };
    assert!(reference.split(' ').all(|to| elsewhere.iter().any(|other| other == to)), "{reference}");
    assert_eq!(idle.next_or_close().await, None);
    assert_eq!(idle_4.next_or_close().await, None);
    assert!(system.cluster.nodes[leader].log().contains("leadership handed over"));

    // Nobody had to declare it lost: its clients' ends were committed before its own, so nothing comes with DUP.
    let mut publisher = system.connect(others[0], Version::V5, "publisher").await;
    publisher.publish_through("idle/x", 1, "after the stop").await;
    let mut back = system.resume(others[1], Version::V5, "idle").await;
    back.receive_through("after the stop", false).await;
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_node_can_be_stopped_and_started_in_turn_under_load() {
    let mut system = three_nodes();
    let mut load = Load::start(&system, 1, WINDOW).await;
    for place in 0..3 {
        let status = system.cluster.nodes[place].terminate(RECOVERY).unwrap();
        assert!(status.success(), "{status:?}");
        load.wait_acknowledged(SERVED / 2).await;
        system.restart(place);
        system.wait_whole();
    }
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}
