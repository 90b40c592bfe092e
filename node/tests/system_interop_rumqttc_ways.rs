//! rumqttc over TLS, WebSocket and secure WebSocket, and as members of a shared group, in both versions; its node is
//! killed in the middle each time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;
mod rumqttc_testkit;
mod testkit;

use std::collections::{BTreeMap, BTreeSet};
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
/// What is published last.
const END: &str = "end";

/// How a client comes in.
struct Way {
    name: &'static str,
    transport: Transport,
    port: u16,
}

impl Way {
    async fn client(&self, system: &System, place: usize, version: Version, role: &str) -> Client {
        let id = format!("{role}-{}", self.name);
        Client::start(system.relay_to(self.port, place), &self.transport, version, &id, None).await.0
    }
}

/// A publish of each QoS, then the leader, which both clients are on, dies while 200 of QoS 2 are on their way.
async fn goes_on_over(way: &Way, system: &mut System, version: Version) {
    let leader = system.leader();
    let topic = format!("in/{}", way.name);
    let mut publisher = way.client(system, leader, version, "publisher").await;
    let mut subscriber = way.client(system, leader, version, "subscriber").await;
    subscriber.subscribe(&topic, 2).await;
    for qos in 0..3 {
        publisher.publish(&topic, qos, false, "each").await;
        assert_eq!(subscriber.messages(1).await, [("each".to_owned(), false)], "{}", way.name);
        if qos > 0 {
            publisher.acknowledged(1).await;
        }
    }
    let (handle, to) = (publisher.handle.clone(), topic.clone());
    let publishing = tokio::spawn(async move {
        for n in 0..MANY {
            handle.publish(&to, 2, false, n.to_string()).await;
        }
    });
    publisher.acknowledged(BURST).await;
    system.kill(leader);
    let reconnects = publisher.acknowledged(MANY - BURST).await;
    assert!(reconnects > 0, "{}: all was acknowledged before the node died", way.name);
    publishing.await.unwrap();
    publisher.publish(&topic, 2, false, END).await;
    // rumqttc sends again in the order of identifiers, not of publishing: each once, in whatever order.
    let mut got = subscriber.messages(MANY + 1).await;
    assert_eq!(got.pop(), Some((END.to_owned(), false)), "{}: something came twice", way.name);
    got.sort_by_key(|(number, _)| number.parse::<usize>().unwrap());
    assert!(got.iter().map(|(number, _)| number).eq(&numbers()), "{}: {got:?}", way.name);
    system.restart(leader);
    system.wait_whole();
}

fn numbers() -> Vec<String> {
    (0..MANY).map(|n| n.to_string()).collect()
}

async fn goes_on_over_every_way(version: Version) {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let query = authority.query("server");
    let listeners = [
        format!("tls://0.0.0.0:{TLS_PORT}?name=secure&{query}"),
        format!("ws://0.0.0.0:{WS_PORT}?name=web"),
        format!("wss://0.0.0.0:{WSS_PORT}?name=secure-web&{query}"),
    ];
    let mut system = three_machines_with(&[("listeners", &listeners.join(","))]);
    let trusting = |tls| TlsConfiguration::Rustls(Arc::new(authority.client(&[tls], None)));
    let ways = [
        ("TLS 1.2", Transport::tls_with_config(trusting(&TLS12)), TLS_PORT),
        ("TLS 1.3", Transport::tls_with_config(trusting(&TLS13)), TLS_PORT),
        ("WebSocket", Transport::ws(), WS_PORT),
        ("WebSocket over TLS 1.3", Transport::wss_with_config(trusting(&TLS13)), WSS_PORT),
    ];
    for (name, transport, port) in ways {
        goes_on_over(&Way { name, transport, port }, &mut system, version).await;
    }
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_goes_on_over_tls_and_websocket_when_its_node_dies_on_3_1_1() {
    goes_on_over_every_way(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_goes_on_over_tls_and_websocket_when_its_node_dies_on_5() {
    goes_on_over_every_way(Version::V5).await;
}

/// Three members, each on a node of its own; the node of one of them and of the publisher is killed. How often each
/// number came, to whomever.
async fn a_group_loses_a_node(version: Version, qos: u8) -> BTreeMap<String, usize> {
    let mut system = three_nodes();
    let leader = system.leader();
    let mut members = Vec::new();
    for place in 0..3 {
        let mut member = Client::new(&system, place, version, &format!("member-{place}")).await;
        member.subscribe("$share/group/in/#", qos).await;
        member.subscribe(END, qos).await;
        members.push(member);
    }
    let mut publisher = Client::new(&system, leader, version, "publisher").await;
    let handle = publisher.handle.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..MANY {
            handle.publish("in/many", qos, false, n.to_string()).await;
        }
    });
    publisher.acknowledged(BURST).await;
    system.kill(leader);
    let reconnects = publisher.acknowledged(MANY - BURST).await;
    assert!(reconnects > 0, "all was acknowledged before the node died");
    publishing.await.unwrap();
    // To every member, behind all that counts.
    publisher.publish(END, qos, false, END).await;
    let mut got: BTreeMap<String, usize> = BTreeMap::new();
    let (mut serving, mut ended) = (BTreeSet::new(), BTreeSet::new());
    eventually("each message is with a member", RECOVERY, || {
        for (place, member) in members.iter_mut().enumerate() {
            while let Some((payload, _)) = member.message_now() {
                if payload == END {
                    ended.insert(place);
                } else {
                    serving.insert(place);
                    *got.entry(payload).or_default() += 1;
                }
            }
        }
        (got.len() == MANY && ended.len() == 3).then_some(())
    })
    .await;
    assert_eq!(serving.len(), 3, "not all members had their part: {serving:?}");
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
    got
}

/// At QoS 1 the publisher and a member may each have one thing more than once; nothing is lost, which is waited for.
async fn a_group_loses_no_message(version: Version) {
    a_group_loses_a_node(version, 1).await;
}

async fn a_group_gets_each_message_once(version: Version) {
    let twice: Vec<_> = a_group_loses_a_node(version, 2).await.into_iter().filter(|(_, times)| *times > 1).collect();
    assert_eq!(twice, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_group_of_rumqttc_loses_a_node_and_no_message_on_3_1_1() {
    a_group_loses_no_message(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_group_of_rumqttc_loses_a_node_and_no_message_on_5() {
    a_group_loses_no_message(Version::V5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_group_of_rumqttc_gets_each_message_once_at_qos_2_when_a_node_dies_on_3_1_1() {
    a_group_gets_each_message_once(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_group_of_rumqttc_gets_each_message_once_at_qos_2_when_a_node_dies_on_5() {
    a_group_gets_each_message_once(Version::V5).await;
}
