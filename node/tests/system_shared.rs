//! Shared and exclusive subscriptions on real processes: one member gets a message, and another only when the first's
//! connection ended without having settled it, also when that was a node's death (guarantee 10).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use quorate_jepsen::wire::encode;
use quorate_jepsen::wire::{AckKind, Packet, Publish, Version};
use testkit::raw::{self, Raw, number};
use testkit::{RECOVERY, SOON, System, eventually, three_nodes};

const JOBS: &str = "$share/workers/jobs/#";

async fn member(system: &System, place: usize, id: &str, qos: u8, receive_maximum: u16) -> Raw {
    let connect = raw::Connect { receive_maximum, ..raw::client(id, true) };
    let (mut client, _) = Raw::connect(system.mqtt(place), Version::V5, &connect).await;
    client.subscribe(JOBS, qos).await;
    client
}

/// Reason codes of a SUBACK.
async fn ask(client: &mut Raw, filter: &str) -> Vec<u8> {
    let id = client.fresh_id();
    client.send(|out, version| encode::subscribe(out, version, id, &[(filter, 1)])).await;
    match client.next().await {
        Packet::SubAck { id: got, codes } if got == id => codes,
        other => panic!("SUBSCRIBE to {filter} got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_member_on_a_dead_node_had_not_settled_goes_to_another_once() {
    let mut system = three_nodes();
    let mut a = member(&system, 0, "a", 1, 10).await;
    let mut b = member(&system, 1, "b", 1, 10).await;
    system.publish_numbers(2, "jobs/x", 1, 0..30).await;
    let (mut with_a, mut with_b) = (BTreeSet::new(), Vec::new());
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(a.expect_publish().await);
        with_b.push(b.expect_publish().await);
    }
    // More would be above their Receive Maximum: the rest waits.
    a.expect_nothing().await;
    b.expect_nothing().await;
    for publish in &held[..3] {
        a.settle(publish).await;
        with_a.insert(number(publish));
    }
    // That they are settled is committed: others come in their places.
    for _ in 0..3 {
        a.expect_publish().await;
    }
    system.kill(0);
    drop(a);
    let mut got = BTreeMap::new();
    let mut note = |publish: &Publish| {
        assert!(!publish.dup, "it is new to this member: {publish:?}");
        *got.entry(number(publish)).or_insert(0) += 1;
        got.len()
    };
    for publish in &with_b {
        note(publish);
        b.settle(publish).await;
    }
    loop {
        let publish = b.expect_publish().await;
        b.settle(&publish).await;
        if note(&publish) == 27 {
            break;
        }
    }
    b.expect_nothing().await;
    assert!(got.values().all(|times| *times == 1), "{got:?}");
    assert!(with_a.iter().all(|number| !got.contains_key(number)), "what was settled goes to nobody else");
    system.restart(0);
    system.wait_whole();
    system.assert_same_digest();
}

/// [MQTT-4.8.2-5]: a QoS 2 exchange that began is completed with its session, wherever that resumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_qos_2_exchange_stays_with_its_session_when_the_node_dies() {
    let mut system = three_nodes();
    let mut a = member(&system, 0, "a", 2, 10).await;
    system.publish_numbers(2, "jobs/x", 2, 0..3).await;
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(a.expect_publish().await);
    }
    a.ack(AckKind::Pubrec, sent[0].id).await;
    a.expect_ack(AckKind::Pubrel, sent[0].id).await;
    system.kill(0);
    drop(a);
    let mut b = member(&system, 1, "b", 2, 10).await;
    system.wait_lost(0);
    system.publish_numbers(2, "jobs/x", 2, 3..4).await;
    b.receive_through("3", false).await;
    b.expect_nothing().await;
    let mut a = system.resume(2, Version::V5, "a").await;
    a.expect_ack(AckKind::Pubrel, sent[0].id).await;
    a.ack(AckKind::Pubcomp, sent[0].id).await;
    for before in &sent[1..] {
        let again = a.expect_publish().await;
        assert_eq!((again.dup, again.id, &again.payload), (true, before.id, &before.payload));
    }
    for before in &sent[1..] {
        a.settle(before).await;
    }
    a.expect_nothing().await;
    b.expect_nothing().await;
    system.restart(0);
    system.wait_whole();
    system.assert_same_digest();
}

/// Who got a number, and on which node.
type Got = Arc<Mutex<Vec<(u32, usize)>>>;

/// A member that settles what it gets, until it is told to stop or its node is gone.
fn work(mut client: Raw, place: usize, got: Got) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(Some(packet)) = client.next_within(RECOVERY).await {
            let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
            if publish.topic == "stop" {
                return;
            }
            assert!(!publish.dup);
            got.lock().unwrap().push((number(&publish), place));
            client.ack(AckKind::Puback, publish.id).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_no_message_is_lost_and_only_the_dead_nodes_are_given_again() {
    const MESSAGES: u32 = 1000;
    let mut system = three_nodes();
    let got = Got::default();
    let mut workers = Vec::new();
    for n in 0..6 {
        let mut client = member(&system, n % 3, &format!("worker{n}"), 1, 5).await;
        client.subscribe("stop", 0).await;
        workers.push(work(client, n % 3, got.clone()));
    }
    let mut publisher = system.connect(2, Version::V5, "publisher").await;
    for number in 0..MESSAGES {
        if number == MESSAGES / 2 {
            system.kill(0);
        }
        publisher.publish_through("jobs/x", 1, &number.to_string()).await;
    }
    let all = || {
        let numbers: BTreeSet<u32> = got.lock().unwrap().iter().map(|(number, _)| *number).collect();
        (numbers.len() == MESSAGES as usize).then_some(())
    };
    eventually("every message comes to a member", SOON, all).await;
    publisher.publish_through("stop", 1, "stop").await;
    for worker in workers {
        worker.await.unwrap();
    }
    let mut living: BTreeMap<u32, usize> = BTreeMap::new();
    for (number, place) in got.lock().unwrap().iter() {
        *living.entry(*number).or_default() += usize::from(*place != 0);
    }
    let twice: Vec<_> = living.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "two members whose connections lived got {twice:?}");
    let by_place = |p| got.lock().unwrap().iter().filter(|(_, place)| *place == p).count();
    println!("by node: {} {} {}", by_place(0), by_place(1), by_place(2));
    assert!(by_place(0) > 0 && by_place(1) > 0 && by_place(2) > 0, "the load is shared");
    system.restart(0);
    system.wait_whole();
    system.assert_same_digest();
}

/// A 3.1.1 client with Clean Session: what it gets of a group is logged, all else is not, and both come to it side by
/// side; what it has not settled goes to another when it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transient_member_has_its_part_beside_its_own_subscriptions() {
    let mut system = three_nodes();
    let (mut t, _) = Raw::connect(system.mqtt(0), Version::V4, &raw::client("t", true)).await;
    t.subscribe(JOBS, 1).await;
    t.subscribe("news", 2).await;
    // As long as `t` has more room, it gets all.
    let mut b = member(&system, 2, "b", 1, 1).await;
    system.publish_numbers(1, "jobs/x", 1, 0..3).await;
    system.publish_numbers(1, "news", 2, 10..13).await;
    let mut got = BTreeMap::new();
    for _ in 0..6 {
        let publish = t.expect_publish().await;
        assert!(got.insert(publish.id, publish.clone()).is_none(), "an identifier is in use twice: {publish:?}");
    }
    let by_number: BTreeMap<u32, Publish> = got.into_values().map(|p| (number(&p), p)).collect();
    assert_eq!(by_number.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 10, 11, 12]);
    for settled in [1, 11] {
        t.settle(&by_number[&settled]).await;
    }
    // Behind the acknowledgements in the log: they are committed.
    t.publish_through("elsewhere", 1, "x").await;
    drop(t);
    b.receive_through("0", false).await;
    b.receive_through("2", false).await;
    b.expect_nothing().await;
    // QoS 0 goes past the log, to one of them.
    let mut c = member(&system, 1, "c", 1, 10).await;
    system.publish_numbers(0, "jobs/x", 0, 20..30).await;
    let mut counts = [0, 0];
    for _ in 0..10 {
        let publish = tokio::select! {
            publish = b.expect_publish() => { counts[0] += 1; publish }
            publish = c.expect_publish() => { counts[1] += 1; publish }
        };
        assert_eq!(publish.qos, 0);
    }
    assert_eq!(counts, [5, 5], "in turn");
    b.expect_nothing().await;
    c.expect_nothing().await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_exclusive_subscription_is_one_sessions_on_all_nodes() {
    let mut system = three_nodes();
    let mut a = system.connect(0, Version::V5, "a").await;
    let mut b = system.connect(1, Version::V5, "b").await;
    let mut old = system.connect(2, Version::V4, "old").await;
    assert_eq!(ask(&mut a, "$exclusive/valve/+").await, [1]);
    assert_eq!(ask(&mut b, "$exclusive/valve/+").await, [0x97]);
    assert_eq!(ask(&mut old, "$exclusive/valve/+").await, [0x80]);
    for bad in ["$share/g", "$share//a", "$share/+/a", "$exclusive/$share/g/a"] {
        assert_eq!(ask(&mut a, bad).await, [0x8f], "{bad}");
        assert_eq!(ask(&mut old, bad).await, [0x80], "{bad}");
    }
    // A connection that broke does not free it, nor does a node's death.
    drop(a);
    system.kill(0);
    system.wait_lost(0);
    assert_eq!(ask(&mut b, "$exclusive/valve/+").await, [0x97]);
    system.publish_numbers(1, "valve/1", 1, 0..1).await;
    let mut a = system.resume(2, Version::V5, "a").await;
    let publish = a.expect_message("0", false).await;
    assert_eq!(publish.topic, "valve/1");
    a.settle(&publish).await;
    a.unsubscribe("$exclusive/valve/+").await;
    assert_eq!(ask(&mut b, "$exclusive/valve/+").await, [1]);
    system.restart(0);
    system.wait_whole();
    system.assert_same_digest();
}

/// `quorate share …` at a node; what it prints.
fn share(system: &System, place: usize, arguments: &[&str]) -> String {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("share")
        .args(arguments)
        .args(["--admin", &format!("http://{}", system.admin(place))])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_strategy_set_at_any_node_holds_at_once_and_is_listed_at_all() {
    let mut system = three_nodes();
    let follower = system.follower();
    let set = share(&system, follower, &["strategy", "workers", "jobs/#", "sticky"]);
    assert_eq!(set, "$share/workers/jobs/#: sticky\n");
    let mut a = member(&system, 0, "a", 1, 100).await;
    let mut b = member(&system, 1, "b", 1, 100).await;
    system.publish_numbers(2, "jobs/one", 1, 0..10).await;
    // All ten go to one of the two.
    let (mut sticky, mut other, first) = tokio::select! {
        first = a.expect_publish() => (a, b, first),
        first = b.expect_publish() => (b, a, first),
    };
    assert_eq!(number(&first), 0);
    sticky.settle(&first).await;
    for n in 1..10 {
        sticky.receive_through(&n.to_string(), false).await;
    }
    other.expect_nothing().await;
    for place in 0..3 {
        let list = share(&system, place, &["list"]);
        assert!(list.contains("$share/workers/jobs/#") && list.contains("sticky") && list.contains('2'), "{list}");
    }
    system.assert_same_digest();
}
