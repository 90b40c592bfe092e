//! Nodes come, go and come back while traffic runs (guarantees 2, 3, 5, 12, 13).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::harness::http;
use testkit::load::Load;
use testkit::{RECOVERY, eventually, newest_snapshot, nodes, three_nodes};

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
    let mut system = nodes(3, &[("snapshot_log_bytes", "1048576")]);
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
    let log = system.cluster.nodes[place].log();
    assert!(log.contains("snapshot"), "it caught up without a snapshot:\n{log}");
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
