//! Links that go dead: nodes that are alive, and that nobody hears (guarantees 1 to 4, 8, 12 and 13).
//!
//! Unlike a process that stands still, a node behind a dead link goes on: a leader believes for a while that it leads,
//! and its clients are still there. Each node has a network namespace of its own, so this needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use quorate_jepsen::harness::Link;
use quorate_jepsen::wire::Version;
use testkit::load::Load;
use testkit::raw::publish;
use testkit::three_machines;

const WINDOW: usize = 10;
const SERVED: usize = 200;
const BOTH: [Link; 2] = [Link::Peers, Link::Clients];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_cut_off_from_its_peers_acknowledges_nothing_more_and_sends_its_clients_to_the_others() {
    let mut system = three_machines();
    let mut load = Load::start(&system, 2, WINDOW).await;
    let cut = system.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != cut).collect();
    let mut client = system.connect(cut, Version::V5, "still-there").await;
    client.publish_through("before", 1, "with a majority").await;

    system.cut(cut, &[Link::Peers]);
    client.publish(&publish("behind", 1, 77, false, "to a leader without followers")).await;
    client.expect_sent_away_unanswered().await;
    let new = system.wait_leader_among(&others);
    assert_ne!(new, cut);
    load.wait_acknowledged(SERVED).await;

    system.heal(cut, &[Link::Peers]);
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}

async fn machine_vanishes(qos: u8, is_leader: bool) {
    let mut system = three_machines();
    let mut load = Load::start(&system, qos, WINDOW).await;
    let cut = if is_leader { system.leader() } else { system.follower() };
    let others: Vec<usize> = (0..3).filter(|place| *place != cut).collect();
    system.cut(cut, &BOTH);
    system.wait_leader_among(&others);
    // Also the publishers that were on it: they are served elsewhere.
    load.wait_acknowledged(SERVED).await;
    system.heal(cut, &BOTH);
    system.wait_whole();
    load.wait_acknowledged(SERVED).await;
    let history = load.finish().await;
    system.assert_clean(&history);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_vanishes_from_the_network_and_returns_loses_and_doubles_nothing_at_qos_1() {
    machine_vanishes(1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_vanishes_from_the_network_and_returns_loses_and_doubles_nothing_at_qos_2() {
    machine_vanishes(2, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_that_vanishes_from_the_network_and_returns_loses_and_doubles_nothing() {
    machine_vanishes(2, false).await;
}
