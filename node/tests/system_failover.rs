//! Processes are killed under load: nothing acknowledged is lost, QoS 2 arrives exactly once, order holds, and all
//! nodes have the same rows afterwards (guarantees 1 to 5, 12 and 13).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::history::History;
use testkit::load::Load;
use testkit::{System, three_nodes};

/// Unacknowledged publishes of one publisher: enough that every phase is populated when something dies.
const WINDOW: usize = 10;
/// Acknowledgements of each publisher that show that the cluster serves again.
const SERVED: usize = 200;

/// Who is killed.
#[derive(Clone, Copy)]
enum Victim {
    Leader,
    Follower,
}

async fn killed_under_load(qos: u8, victim: Victim) {
    let mut system = three_nodes();
    let mut load = Load::start(&system, qos, WINDOW).await;
    let place = match victim {
        Victim::Leader => system.leader(),
        Victim::Follower => system.follower(),
    };
    println!("killing {} with {} publishes waiting", system.cluster.nodes[place].name, load.waiting());
    system.kill(place);
    // Also the publishers that were on the dead node: they are served elsewhere.
    load.wait_acknowledged(SERVED).await;
    system.restart(place);
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    judge(&mut system, &load.finish().await);
}

fn judge(system: &mut System, history: &History) {
    system.assert_clean(history);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_leader_killed_under_qos_1_load_loses_nothing() {
    killed_under_load(1, Victim::Leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_leader_killed_under_qos_2_load_loses_and_doubles_nothing() {
    killed_under_load(2, Victim::Leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_killed_under_qos_1_load_loses_nothing() {
    killed_under_load(1, Victim::Follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_killed_under_qos_2_load_loses_and_doubles_nothing() {
    killed_under_load(2, Victim::Follower).await;
}

async fn all_killed_under_load(qos: u8) {
    let mut system = three_nodes();
    let mut load = Load::start(&system, qos, WINDOW).await;
    println!("killing all with {} publishes waiting", load.waiting());
    for place in 0..3 {
        system.kill(place);
    }
    for place in 0..3 {
        system.restart(place);
    }
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    judge(&mut system, &load.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_nodes_killed_at_once_under_qos_1_load_lose_nothing() {
    all_killed_under_load(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_nodes_killed_at_once_under_qos_2_load_lose_and_double_nothing() {
    all_killed_under_load(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leaders_killed_one_after_the_other_lose_nothing() {
    let mut system = three_nodes();
    let mut load = Load::start(&system, 2, WINDOW).await;
    for _ in 0..3 {
        let leader = system.leader();
        system.kill(leader);
        load.wait_acknowledged(SERVED / 2).await;
        system.restart(leader);
        system.wait_whole();
    }
    judge(&mut system, &load.finish().await);
}
