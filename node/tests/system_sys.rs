//! `$SYS` on real nodes: values at once and again and again, each node's own, alarms, and subscriptions that survive
//! their node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::collections::BTreeMap;
use std::time::Instant;

use quorate_jepsen::harness::ClusterView;
use quorate_jepsen::wire::{Packet, Publish, Version, encode};
use testkit::raw::{Raw, client};
use testkit::{RECOVERY, SOON, System, eventually, nodes};

const EVERY_SECOND: [(&str, &str); 1] = [("sys_interval_s", "1")];

fn text(publish: &Publish) -> String {
    String::from_utf8(publish.payload.clone()).unwrap()
}

/// Subscribes, whatever comes before the SUBACK.
async fn subscribe(client: &mut Raw, filters: &[(&str, u8)]) {
    let id = client.fresh_id();
    client.send(|out, version| encode::subscribe(out, version, id, filters)).await;
    while !matches!(client.next().await, Packet::SubAck { .. }) {}
}

/// Reads until `wanted` says yes.
async fn until(client: &mut Raw, what: &str, mut wanted: impl FnMut(&Publish) -> bool) -> Publish {
    let end = Instant::now() + RECOVERY;
    while Instant::now() < end {
        if let Packet::Publish(publish) = client.next().await
            && wanted(&publish)
        {
            return publish;
        }
    }
    panic!("{what} never came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_subscriber_gets_every_value_at_once_and_then_live_ones() {
    let system = nodes(1, &EVERY_SECOND);
    let at = system.mqtt(0);
    let (mut publisher, _) = Raw::connect(at, Version::V4, &client("publisher", true)).await;
    publisher.publish_through("some/topic", 1, "payload").await;
    let (mut watcher, _) = Raw::connect(at, Version::V5, &client("watcher", true)).await;
    subscribe(&mut watcher, &[("$SYS/broker/publish/messages/received", 0)]).await;
    // The values of the last second; a later one has it.
    let is_one = |p: &Publish| text(p) == "1";
    until(&mut watcher, "the count of publishes", is_one).await;

    let (mut all, _) = Raw::connect(at, Version::V4, &client("all", true)).await;
    subscribe(&mut all, &[("$SYS/#", 1)]).await;
    let mut retained = BTreeMap::new();
    let live = until(&mut all, "a live value", |publish| {
        if publish.retain {
            retained.insert(publish.topic.clone(), text(publish));
        }
        !publish.retain && publish.topic == "$SYS/broker/uptime"
    })
    .await;
    assert!(text(&live).ends_with(" seconds"), "{live:?}");
    for name in [
        "$SYS/broker/version",
        "$SYS/broker/uptime",
        "$SYS/broker/clients/connected",
        "$SYS/broker/clients/total",
        "$SYS/broker/clients/disconnected",
        "$SYS/broker/clients/expired",
        "$SYS/broker/clients/maximum",
        "$SYS/broker/messages/received",
        "$SYS/broker/messages/sent",
        "$SYS/broker/publish/messages/sent",
        "$SYS/broker/publish/messages/dropped",
        "$SYS/broker/publish/bytes/received",
        "$SYS/broker/bytes/received",
        "$SYS/broker/bytes/sent",
        "$SYS/broker/subscriptions/count",
        "$SYS/broker/messages/stored",
        "$SYS/broker/retained messages/count",
        "$SYS/broker/load/messages/received/1min",
        "$SYS/brokers",
        "$SYS/brokers/1/version",
        "$SYS/brokers/1/uptime",
        "$SYS/brokers/1/datetime",
        "$SYS/brokers/1/sysdescr",
        "$SYS/brokers/1/stats/connections/count",
        "$SYS/brokers/1/metrics/messages/qos1/received",
        "$SYS/cluster/leader",
        "$SYS/cluster/term",
        "$SYS/cluster/applied",
        "$SYS/cluster/nodes/1/state",
        "$SYS/cluster/nodes/1/lag",
    ] {
        assert!(retained.contains_key(name), "{name} is not among {:?}", retained.keys());
    }
    assert_eq!(retained["$SYS/cluster/leader"], "1");
    assert_eq!(retained["$SYS/cluster/nodes/1/state"], "leader");
    assert_eq!(retained["$SYS/brokers"], "1");
    assert_eq!(retained["$SYS/broker/publish/bytes/received"], "7");
    assert!(retained["$SYS/broker/clients/connected"].parse::<u64>().unwrap() >= 2);

    let (mut wild, _) = Raw::connect(at, Version::V4, &client("wild", true)).await;
    wild.subscribe("#", 0).await;
    until(&mut all, "another round", |p| p.topic == "$SYS/broker/uptime").await;
    wild.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_an_interval_there_is_no_sys() {
    let system = nodes(1, &[("sys_interval_s", "0")]);
    let at = system.mqtt(0);
    let (mut watcher, _) = Raw::connect(at, Version::V4, &client("watcher", true)).await;
    subscribe(&mut watcher, &[("$SYS/#", 0)]).await;
    let (other, _) = Raw::connect(at, Version::V4, &client("other", true)).await;
    other.disconnect().await;
    watcher.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_subscription_survives_its_node_and_an_alarm_names_it() {
    let mut system = nodes(3, &EVERY_SECOND);
    let (victim, other) = {
        let follower = system.follower();
        (follower, (0..3).find(|place| *place != follower).unwrap())
    };
    let (mut moving, _) = Raw::connect(system.mqtt(victim), Version::V5, &client("moving", false)).await;
    subscribe(&mut moving, &[("$SYS/broker/uptime", 0x20), ("$SYS/cluster/nodes/+/state", 0x20)]).await;
    let (mut watcher, _) = Raw::connect(system.mqtt(other), Version::V5, &client("watcher", true)).await;
    subscribe(&mut watcher, &[("$SYS/brokers/+/alarms/+", 0), ("$SYS/brokers/+/clients/+/connected", 0)]).await;
    until(&mut moving, "a value of its own node", |p| p.topic == "$SYS/broker/uptime").await;
    // A client of another node is announced here, too.
    let (_client, _) = Raw::connect(system.mqtt(victim), Version::V4, &client("elsewhere", true)).await;
    until(&mut watcher, "the announcement", |p| p.topic.ends_with("/clients/elsewhere/connected")).await;

    system.kill(victim);
    let alarm = until(&mut watcher, "the alarm", |p| p.topic.ends_with("/alarms/activate")).await;
    let alarm: serde_json::Value = serde_json::from_slice(&alarm.payload).unwrap();
    let lost = alarm["name"].as_str().unwrap().strip_prefix("node_lost_").expect("a lost node").to_owned();
    let (mut moving, present) = Raw::connect(system.mqtt(other), Version::V5, &client("moving", false)).await;
    assert!(present);
    let state = format!("$SYS/cluster/nodes/{lost}/state");
    until(&mut moving, "the state of the lost node", |p| p.topic == state && text(p) == "lost").await;
    // Who comes later hears of the alarm, too.
    let (mut late, _) = Raw::connect(system.mqtt(other), Version::V4, &client("late", true)).await;
    subscribe(&mut late, &[("$SYS/brokers/+/alarms/activate", 0)]).await;
    let shown = tokio::time::timeout(SOON, late.expect_publish()).await.unwrap();
    assert!(shown.retain && text(&shown).contains(&format!("node_lost_{lost}")), "{shown:?}");

    system.restart(victim);
    until(&mut watcher, "the end of the alarm", |p| {
        p.topic.ends_with("/alarms/deactivate") && text(p).contains(&format!("node_lost_{lost}"))
    })
    .await;
}

/// Names of the alarms that a node shows over REST; none while it does not answer.
fn shown_over_rest(system: &System, place: usize) -> Vec<String> {
    let view = ClusterView::of(system.admin(place));
    view.map(|view| view.alarms.into_iter().map(|alarm| alarm.name).collect()).unwrap_or_default()
}

/// Whether it says that this alarm begins, or is over.
fn says(publish: &Publish, what: &str, name: &str) -> bool {
    let is_named = |alarm: serde_json::Value| alarm["name"].as_str() == Some(name);
    publish.topic.ends_with(&format!("/alarms/{what}")) && serde_json::from_slice(&publish.payload).is_ok_and(is_named)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_queue_over_half_of_its_bound_is_named_until_its_client_has_read() {
    const NAME: &str = "queue_over_half/away";
    const MESSAGES: usize = 12;
    let mut system = nodes(2, &[("sys_interval_s", "1"), ("bootstrap_queue_bytes_max", "20000")]);
    let mut away = system.connect(0, Version::V5, "away").await;
    away.subscribe("to/it", 1).await;
    away.disconnect().await;
    let (mut watcher, _) = Raw::connect(system.mqtt(1), Version::V5, &client("watcher", true)).await;
    subscribe(&mut watcher, &[("$SYS/brokers/+/alarms/+", 0)]).await;
    let mut publisher = system.connect(0, Version::V5, "publisher").await;
    let large = "x".repeat(1000);
    for _ in 0..MESSAGES {
        publisher.publish_through("to/it", 1, &large).await;
    }
    // Each node tells of it; what this one shows to who comes later it has told.
    let activate = format!("$SYS/brokers/{}/alarms/activate", system.id(1));
    let alarm = until(&mut watcher, "the alarm", |p| p.topic == activate && says(p, "activate", NAME)).await;
    assert!(text(&alarm).contains("of 20000 bytes"), "{alarm:?}");
    for place in 0..2 {
        let is_shown = || shown_over_rest(&system, place).contains(&NAME.to_owned()).then_some(());
        eventually("the alarm over REST", SOON, is_shown).await;
    }
    // Who comes later hears of it, too.
    let mut late = system.connect(1, Version::V5, "late").await;
    subscribe(&mut late, &[(&activate, 0)]).await;
    until(&mut late, "the alarm for who comes later", |p| p.retain && says(p, "activate", NAME)).await;

    let mut away = system.resume(1, Version::V5, "away").await;
    for _ in 0..MESSAGES {
        away.receive_through(&large, false).await;
    }
    until(&mut watcher, "the end of the alarm", |p| says(p, "deactivate", NAME)).await;
    for place in 0..2 {
        let is_over = || (!shown_over_rest(&system, place).contains(&NAME.to_owned())).then_some(());
        eventually("the end of the alarm over REST", SOON, is_over).await;
    }
}

/// With a bound of 0 any cold start is a jump that is not taken before all voters are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clock_that_is_held_at_a_cold_start_is_an_alarm_until_all_voters_are_there() {
    let mut system = nodes(3, &[("sys_interval_s", "1"), ("cold_start_jump_s_max", "0")]);
    (0..3).for_each(|place| system.kill(place));
    (0..2).for_each(|place| system.restart(place));
    let held = || (0..2).find(|place| shown_over_rest(&system, *place).contains(&"clock_held".to_owned()));
    let leader = eventually("the alarm", RECOVERY, held).await;
    let mut watcher = system.connect(leader, Version::V5, "watcher").await;
    subscribe(&mut watcher, &[("$SYS/brokers/+/alarms/+", 0)]).await;
    until(&mut watcher, "the alarm", |p| says(p, "activate", "clock_held")).await;
    system.restart(2);
    until(&mut watcher, "the end of the alarm", |p| says(p, "deactivate", "clock_held")).await;
    let jumped = || shown_over_rest(&system, leader).contains(&"clock_jumped".to_owned()).then_some(());
    eventually("what became of it", SOON, jumped).await;
}
