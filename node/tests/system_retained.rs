//! Many retained messages under one wildcard: brought by a cursor that survives the node (guarantees 7 and 11).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::collections::BTreeMap;

use quorate_jepsen::harness::ClusterView;
use quorate_jepsen::wire::{AckKind, Publish, Version};
use testkit::raw::{Raw, publish};
use testkit::{SOON, System, eventually, three_nodes};

const TOPICS: usize = 20_000;
/// Sessions that subscribe until one is found half-way.
const ATTEMPTS: usize = 10;
/// Looks in a row at a commit index that stands. They take twice as long as a node takes to show a new one.
const SAME_LOOKS: usize = 10;
/// Publishes without waiting: below the broker's Receive Maximum.
const WINDOW: usize = 1000;
/// Topics that one entry looks at for a cursor.
const STEP: u64 = 128;

fn name(number: usize) -> String {
    format!("many/{number:05}")
}

async fn publish_all(client: &mut Raw, messages: &[Publish]) {
    for chunk in messages.chunks(WINDOW) {
        let mut ids = Vec::new();
        for message in chunk {
            let id = u16::try_from(ids.len() + 1).unwrap();
            client.publish(&Publish { id, ..message.clone() }).await;
            ids.push(id);
        }
        for id in ids {
            client.expect_ack(AckKind::Puback, id).await;
        }
    }
}

fn committed(system: &System, place: usize) -> u64 {
    ClusterView::of(system.admin(place)).unwrap().commit
}

/// Where a node's commit index stands, once it does: nobody publishes, or the followers are frozen.
async fn committed_at_rest(system: &System, leader: usize) -> u64 {
    let (mut last, mut same) = (0, 0);
    eventually("a commit index that stands", SOON, || {
        let now = committed(system, leader);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same >= SAME_LOOKS).then_some(now)
    })
    .await
}

/// A session whose cursor is half-way: it cannot go on, because the followers are frozen.
struct HalfWay {
    leader: usize,
    followers: Vec<usize>,
    subscriber: Raw,
    /// Its Client Identifier.
    name: String,
    /// Connected to the first of the followers.
    publisher: Raw,
}

/// Subscribes on the leader and stops the followers right behind the SUBACK, until a cursor is caught on its way.
async fn half_way(system: &mut System) -> HalfWay {
    for attempt in 0..ATTEMPTS {
        let leader = system.leader();
        let followers: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
        let publisher = system.connect(followers[0], Version::V5, "publisher").await;
        let name = format!("subscriber{attempt}");
        let mut subscriber = system.connect(leader, Version::V5, &name).await;
        let before = committed_at_rest(system, leader).await;
        // Retain As Published: a live message says so, too.
        subscriber.subscribe("many/#", 1 | 0x08).await;
        followers.iter().for_each(|place| system.freeze(*place));
        // One entry brings one step at most, and the SUBSCRIBE is among them: the SUBACK said so.
        let steps = committed_at_rest(system, leader).await - before;
        println!("attempt {attempt}: the cursor made {steps} steps at most");
        assert!(steps > 0, "the SUBSCRIBE is committed");
        if steps * STEP < TOPICS as u64 {
            return HalfWay { leader, followers, subscriber, name, publisher };
        }
        followers.iter().for_each(|place| system.thaw(*place));
        system.wait_whole();
    }
    panic!("a cursor was never caught half-way in {ATTEMPTS} attempts");
}

/// What came for each topic: payload and RETAIN, each message once, in order.
#[derive(Default)]
struct Account(BTreeMap<String, Vec<(String, bool)>>);

impl Account {
    fn messages(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    fn note(&mut self, publish: &Publish) {
        let payload = String::from_utf8_lossy(&publish.payload).into_owned();
        let came = self.0.entry(publish.topic.clone()).or_default();
        // A row that was not settled on an earlier connection comes again, as what it is.
        match came.iter().find(|(known, _)| *known == payload) {
            Some(known) => assert!(publish.dup && known.1 == publish.retain, "came twice: {publish:?}"),
            None => came.push((payload, publish.retain)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_resumed_after_its_node_died_gets_every_retained_value_before_any_live_message_of_its_topic() {
    let mut system = three_nodes();
    let leader = system.leader();
    let mut publisher = system.connect(leader, Version::V5, "publisher").await;
    let message =
        |number: usize, payload: &str, retain| Publish { retain, ..publish(&name(number), 1, 0, false, payload) };
    let values: Vec<Publish> = (0..TOPICS).map(|number| message(number, "old", true)).collect();
    publish_all(&mut publisher, &values).await;

    let HalfWay { leader, followers, mut subscriber, name: client_id, mut publisher } = half_way(&mut system).await;
    let mut account = Account::default();
    let first = subscriber.expect_publish().await;
    account.note(&first);
    // Live messages while the cursor is on its way: of a topic that it has not come to, mostly.
    let live: Vec<Publish> = (0..TOPICS).step_by(97).map(|n| message(n, "live", false)).collect();
    let new: Vec<Publish> = (50..TOPICS).step_by(97).map(|n| message(n, "new", true)).collect();
    for (number, message) in live.iter().chain(&new).enumerate() {
        publisher.publish(&Publish { id: number as u16 + 1, ..message.clone() }).await;
    }
    system.kill(leader);
    followers.iter().for_each(|place| system.thaw(*place));
    drop(subscriber);
    for id in 1..=live.len() + new.len() {
        publisher.expect_ack(AckKind::Puback, u16::try_from(id).unwrap()).await;
    }

    let mut subscriber = system.resume(followers[1], Version::V5, &client_id).await;
    let wanted = |number: usize| match number % 97 {
        0 => vec![("old".to_owned(), true), ("live".to_owned(), false)],
        50 => vec![("old".to_owned(), true), ("new".to_owned(), true)],
        _ => vec![("old".to_owned(), true)],
    };
    let messages: usize = (0..TOPICS).map(|number| wanted(number).len()).sum();
    while account.messages() < messages {
        let publish = subscriber.expect_publish().await;
        subscriber.settle(&publish).await;
        account.note(&publish);
    }
    subscriber.expect_nothing().await;
    for number in 0..TOPICS {
        assert_eq!(account.0[&name(number)], wanted(number), "{}", name(number));
    }
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}
