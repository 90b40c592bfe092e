//! rumqttc over TLS, WebSocket and secure WebSocket, and as members of a shared group, in both versions; its node is
//! killed in the middle each time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;
mod rumqttc_testkit;
mod testkit;

use std::collections::BTreeMap;
use std::sync::Arc;

use mqtt_testkit::secure::Authority;
use quorate_jepsen::wire::Version;
use rumqttc::{TlsConfiguration, Transport};
use rumqttc_testkit::{BURST, Client};
use rustls::version::{TLS12, TLS13};
use testkit::{RECOVERY, System, eventually, three_machines_with, three_nodes};

const TLS_PORT: u16 = 8883;
const WS_PORT: u16 = 8083;
const WSS_PORT: u16 = 8084;
/// Publishes of a test, of which [`BURST`] are in flight at a time.
const MANY: usize = 2_000;

fn numbers(count: usize) -> Vec<(String, bool)> {
    (0..count).map(|n| (n.to_string(), false)).collect()
}

fn sorted(mut messages: Vec<(String, bool)>) -> Vec<(String, bool)> {
    // rumqttc sends again in the order of identifiers, not of publishing: each once, in whatever order.
    messages.sort_by_key(|(number, _)| number.parse::<usize>().unwrap());
    messages
}

async fn client(system: &System, way: &(Transport, u16), place: usize, version: Version, id: &str) -> Client {
    Client::start(system.relay_to(way.1, place), &way.0, version, id, None).await.0
}

/// A QoS 2 exchange of each kind, then the leader, which both clients are on, dies while 200 are on their way.
async fn goes_on_over(system: &mut System, way: &(Transport, u16), version: Version) {
    let leader = system.leader();
    let name = format!("{}-{version:?}", way.1);
    let topic = format!("in/{name}");
    let mut publisher = client(system, way, leader, version, &format!("publisher-{name}")).await;
    let mut subscriber = client(system, way, (leader + 1) % 3, version, &format!("subscriber-{name}")).await;
    subscriber.subscribe(&topic, 2).await;
    for qos in 0..3 {
        publisher.publish(&topic, qos, false, "each").await;
        assert_eq!(subscriber.messages(1).await, [("each".to_owned(), false)]);
        if qos > 0 {
            publisher.acknowledged(1).await;
        }
    }
    let handle = publisher.handle.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..MANY {
            handle.publish(&topic, 2, false, n.to_string()).await;
        }
    });
    publisher.acknowledged(BURST).await;
    system.kill(leader);
    let reconnects = publisher.acknowledged(MANY - BURST).await;
    assert!(reconnects > 0, "all was acknowledged before the node died");
    publishing.await.unwrap();
    assert_eq!(sorted(subscriber.messages(MANY).await), numbers(MANY));
    system.restart(leader);
    system.wait_whole();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_goes_on_over_tls_and_websocket_when_its_node_dies() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let query = authority.query("server");
    let listeners = format!(
        "tls://0.0.0.0:{TLS_PORT}?name=secure&{query},ws://0.0.0.0:{WS_PORT}?name=web,wss://0.0.0.0:{WSS_PORT}?name=secure-web&{query}"
    );
    let mut system = three_machines_with(&[("listeners", &listeners)]);
    let trusting = |tls| TlsConfiguration::Rustls(Arc::new(authority.client(&[tls], None)));
    let ways = [
        (Transport::tls_with_config(trusting(&TLS12)), TLS_PORT),
        (Transport::tls_with_config(trusting(&TLS13)), TLS_PORT),
        (Transport::ws(), WS_PORT),
        (Transport::wss_with_config(trusting(&TLS13)), WSS_PORT),
    ];
    for (number, way) in ways.iter().enumerate() {
        let version = if number % 2 == 0 { Version::V5 } else { Version::V4 };
        goes_on_over(&mut system, way, version).await;
    }
    system.assert_same_digest();
}

/// Three members, each on a node of its own, one of which is killed: each message once, at one of them.
async fn a_group_loses_a_node(version: Version) {
    let mut system = three_nodes();
    let leader = system.leader();
    let mut members = Vec::new();
    for place in 0..3 {
        let mut member = Client::new(&system, place, version, &format!("member-{place}")).await;
        member.subscribe("$share/group/in/#", 2).await;
        members.push(member);
    }
    let mut publisher = Client::new(&system, (leader + 1) % 3, version, "publisher").await;
    let handle = publisher.handle.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..MANY {
            handle.publish("in/many", 1, false, n.to_string()).await;
        }
    });
    publisher.acknowledged(BURST).await;
    system.kill(leader);
    publisher.acknowledged(MANY - BURST).await;
    publishing.await.unwrap();
    // The publisher's node lives, so each was published once; what a member had at the node that died may come again to
    // another.
    let mut got: BTreeMap<String, usize> = BTreeMap::new();
    let mut serving: BTreeMap<usize, usize> = BTreeMap::new();
    eventually("each message is with a member", RECOVERY, || {
        for (place, member) in members.iter_mut().enumerate() {
            while let Some((payload, _)) = member.message_now() {
                *got.entry(payload).or_default() += 1;
                *serving.entry(place).or_insert(0) += 1;
            }
        }
        (got.len() == MANY).then_some(())
    })
    .await;
    assert_eq!(serving.len(), 3, "all members had their part: {serving:?}");
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_group_of_rumqttc_loses_a_node_and_no_message_on_3_1_1() {
    a_group_loses_a_node(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_group_of_rumqttc_loses_a_node_and_no_message_on_5() {
    a_group_loses_a_node(Version::V5).await;
}
