//! rumqttc, a client that we did not write, in both versions that it speaks; `interop/` has the others.
//!
//! Its sessions under faults at QoS 1 and 2 on 3.1.1 are in `system_guarantees` and `system_takeover`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::time::Duration;

use quorate_jepsen::harness::Relay;
use quorate_jepsen::wire::Version;
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5 as packets5};
use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, QoS, v5};
use testkit::{RECOVERY, System, nodes};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const MIB: usize = 1 << 20;
/// Publishes that are handed over at once.
const BURST: usize = 200;
/// Publishes of which [`BURST`] are in flight at a time.
const MANY: usize = 3_000;
/// Pause before a reconnect.
const RETRY: Duration = Duration::from_millis(20);

/// What both versions tell.
#[derive(Debug, PartialEq)]
enum Seen {
    Connected { present: bool },
    Subscribed,
    Acknowledged,
    Message { payload: Vec<u8>, retain: bool },
}

#[derive(Clone)]
enum Handle {
    V4(AsyncClient),
    V5(v5::AsyncClient),
}

/// One client behind a relay, which takes it to the next node whenever its connection ends.
struct Client {
    handle: Handle,
    seen: mpsc::UnboundedReceiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn quality(qos: u8) -> (QoS, QoS5) {
    match qos {
        0 => (QoS::AtMostOnce, QoS5::AtMostOnce),
        1 => (QoS::AtLeastOnce, QoS5::AtLeastOnce),
        _ => (QoS::ExactlyOnce, QoS5::ExactlyOnce),
    }
}

impl Handle {
    async fn publish(&self, topic: &str, qos: u8, retain: bool, payload: impl Into<Vec<u8>>) {
        let (v4, v5) = quality(qos);
        match self {
            Self::V4(client) => client.publish(topic, v4, retain, payload).await.unwrap(),
            Self::V5(client) => client.publish(topic, v5, retain, payload.into()).await.unwrap(),
        }
    }
}

impl Client {
    /// Connects; `will` is a topic.
    async fn start(relay: Relay, version: Version, id: &str, will: Option<&str>) -> (Self, bool) {
        let (tell, seen) = mpsc::unbounded_channel();
        let (host, port) = (relay.at().ip().to_string(), relay.at().port());
        let (handle, task) = match version {
            Version::V4 => {
                let mut options = MqttOptions::new(id, host, port);
                options.set_clean_session(false).set_max_packet_size(2 * MIB, 2 * MIB).set_inflight(BURST as u16);
                if let Some(topic) = will {
                    options.set_last_will(LastWill::new(topic, "will", QoS::AtLeastOnce, false));
                }
                let (client, events) = AsyncClient::new(options, BURST);
                (Handle::V4(client), tokio::spawn(run_v4(relay, events, tell)))
            }
            Version::V5 => {
                let mut options = v5::MqttOptions::new(id, host, port);
                options.set_clean_start(false).set_session_expiry_interval(Some(3600));
                options.set_max_packet_size(Some(2 * MIB as u32)).set_outgoing_inflight_upper_limit(BURST as u16);
                if let Some(topic) = will {
                    options.set_last_will(packets5::LastWill::new(topic, "will", QoS5::AtLeastOnce, false, None));
                }
                let (client, events) = v5::AsyncClient::new(options, BURST);
                (Handle::V5(client), tokio::spawn(run_v5(relay, events, tell)))
            }
        };
        let mut client = Self { handle, seen, task };
        let Seen::Connected { present } = client.next().await else { panic!("no CONNACK first") };
        (client, present)
    }

    async fn new(system: &System, place: usize, version: Version, id: &str) -> Self {
        Self::start(system.relay(place), version, id, None).await.0
    }

    async fn next(&mut self) -> Seen {
        tokio::time::timeout(RECOVERY, self.seen.recv()).await.expect("something happens").expect("it runs")
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) {
        match &self.handle {
            Handle::V4(client) => client.subscribe(filter, quality(qos).0).await.unwrap(),
            Handle::V5(client) => client.subscribe(filter, quality(qos).1).await.unwrap(),
        }
        assert_eq!(self.next().await, Seen::Subscribed);
    }

    async fn publish(&self, topic: &str, qos: u8, retain: bool, payload: impl Into<Vec<u8>>) {
        self.handle.publish(topic, qos, retain, payload).await;
    }

    /// Waits for so many acknowledgements; how often it was connected anew meanwhile, always to its session.
    async fn acknowledged(&mut self, count: usize) -> usize {
        let (mut left, mut reconnects) = (count, 0);
        while left > 0 {
            match self.next().await {
                Seen::Acknowledged => left -= 1,
                Seen::Connected { present } => {
                    assert!(present, "the session is gone");
                    reconnects += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        reconnects
    }

    /// The next messages' payloads as text, and whether they were retained.
    async fn messages(&mut self, count: usize) -> Vec<(String, bool)> {
        let mut messages = Vec::new();
        while messages.len() < count {
            match self.next().await {
                Seen::Message { payload, retain } => messages.push((String::from_utf8(payload).unwrap(), retain)),
                Seen::Connected { present } => assert!(present, "the session is gone"),
                other => panic!("{other:?}"),
            }
        }
        messages
    }
}

async fn run_v4(_relay: Relay, mut events: rumqttc::EventLoop, tell: mpsc::UnboundedSender<Seen>) {
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let seen = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => Seen::Connected { present: connack.session_present },
            Ok(Event::Incoming(Packet::SubAck(suback))) => {
                let is_refused = |code: &rumqttc::SubscribeReasonCode| *code == rumqttc::SubscribeReasonCode::Failure;
                assert!(!suback.return_codes.iter().any(is_refused), "{suback:?}");
                Seen::Subscribed
            }
            Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Seen::Acknowledged,
            Ok(Event::Incoming(Packet::Publish(p))) => Seen::Message { payload: p.payload.to_vec(), retain: p.retain },
            Ok(_) => continue,
            Err(_) => {
                retry.tick().await;
                continue;
            }
        };
        if tell.send(seen).is_err() {
            return;
        }
    }
}

async fn run_v5(_relay: Relay, mut events: v5::EventLoop, tell: mpsc::UnboundedSender<Seen>) {
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let seen = match events.poll().await {
            Ok(v5::Event::Incoming(packets5::Packet::ConnAck(connack))) => {
                Seen::Connected { present: connack.session_present }
            }
            Ok(v5::Event::Incoming(packets5::Packet::SubAck(suback))) => {
                let is_granted =
                    |code: &packets5::SubscribeReasonCode| matches!(code, packets5::SubscribeReasonCode::Success(_));
                assert!(suback.return_codes.iter().all(is_granted), "{suback:?}");
                Seen::Subscribed
            }
            Ok(v5::Event::Incoming(packets5::Packet::PubAck(_) | packets5::Packet::PubComp(_))) => Seen::Acknowledged,
            Ok(v5::Event::Incoming(packets5::Packet::Publish(p))) => {
                Seen::Message { payload: p.payload.to_vec(), retain: p.retain }
            }
            Ok(_) => continue,
            Err(_) => {
                retry.tick().await;
                continue;
            }
        };
        if tell.send(seen).is_err() {
            return;
        }
    }
}

fn three_nodes_for_large_packets() -> System {
    nodes(3, &[("packet_bytes_max", "2097152")])
}

fn numbers(count: usize) -> Vec<(String, bool)> {
    (0..count).map(|n| (n.to_string(), false)).collect()
}

/// What every client can do while nothing happens to the nodes.
async fn all_that_it_knows(version: Version) {
    let mut system = three_nodes_for_large_packets();
    let mut publisher = Client::new(&system, 0, version, "publisher").await;
    let mut subscriber = Client::new(&system, 1, version, "subscriber").await;
    subscriber.subscribe("in/#", 2).await;
    for qos in 0..3 {
        publisher.publish("in/each", qos, false, "each").await;
        assert_eq!(subscriber.messages(1).await, [("each".to_owned(), false)]);
        if qos > 0 {
            publisher.acknowledged(1).await;
        }
    }
    for n in 0..BURST {
        publisher.publish("in/burst", 2, false, n.to_string()).await;
    }
    publisher.acknowledged(BURST).await;
    assert_eq!(subscriber.messages(BURST).await, numbers(BURST));

    let large = "0123456789abcdef".repeat(MIB / 16);
    publisher.publish("in/large", 2, false, large.as_bytes()).await;
    publisher.acknowledged(1).await;
    assert!(subscriber.messages(1).await == [(large, false)], "1 MiB came otherwise than it was sent");

    publisher.publish("retained", 1, true, "kept").await;
    publisher.acknowledged(1).await;
    let mut late = Client::new(&system, 2, version, "late").await;
    late.subscribe("retained", 1).await;
    assert_eq!(late.messages(1).await, [("kept".to_owned(), true)]);

    let (mourned, _) = Client::start(system.relay(2), version, "mourned", Some("in/will")).await;
    drop(mourned);
    assert_eq!(subscriber.messages(1).await, [("will".to_owned(), false)]);
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_finds_all_that_it_knows_on_3_1_1() {
    all_that_it_knows(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_finds_all_that_it_knows_on_5() {
    all_that_it_knows(Version::V5).await;
}

/// The leader dies while 200 QoS 2 publishes are on their way to it; a survivor has the subscriber, because rumqttc
/// itself forgets what it has received when it reconnects.
async fn publishes_in_flight_outlive_their_node(version: Version) {
    let mut system = three_nodes_for_large_packets();
    let leader = system.leader();
    let mut subscriber = Client::new(&system, (leader + 1) % 3, version, "subscriber").await;
    subscriber.subscribe("in/#", 2).await;
    let mut publisher = Client::new(&system, leader, version, "publisher").await;
    publisher.publish("in/retained", 1, true, "kept").await;
    publisher.acknowledged(1).await;
    assert_eq!(subscriber.messages(1).await, [("kept".to_owned(), false)]);
    let handle = publisher.handle.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..MANY {
            handle.publish("in/many", 2, false, n.to_string()).await;
        }
    });
    publisher.acknowledged(BURST).await;
    system.kill(leader);
    let reconnects = publisher.acknowledged(MANY - BURST).await;
    assert!(reconnects > 0, "all was acknowledged before the node died");
    publishing.await.unwrap();
    // rumqttc sends again in the order of identifiers, not of publishing: each once, in whatever order.
    let mut got = subscriber.messages(MANY).await;
    got.sort_by_key(|(number, _)| number.parse::<usize>().unwrap());
    assert_eq!(got, numbers(MANY));
    publisher.publish("in/end", 2, false, "end").await;
    assert_eq!(subscriber.messages(1).await, [("end".to_owned(), false)]);

    let mut late = Client::new(&system, (leader + 2) % 3, version, "late").await;
    late.subscribe("in/retained", 1).await;
    assert_eq!(late.messages(1).await, [("kept".to_owned(), true)]);
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_publishes_200_in_flight_at_qos_2_once_when_its_node_dies_on_3_1_1() {
    publishes_in_flight_outlive_their_node(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rumqttc_publishes_200_in_flight_at_qos_2_once_when_its_node_dies_on_5() {
    publishes_in_flight_outlive_their_node(Version::V5).await;
}

/// Its session, its subscription, a payload of 1 MiB on its way and a will, all on the node that dies.
async fn a_session_outlives_its_node(version: Version) {
    let mut system = three_nodes_for_large_packets();
    let leader = system.leader();
    let mut watcher = Client::new(&system, (leader + 1) % 3, version, "watcher").await;
    watcher.subscribe("will", 1).await;
    let mut subscriber = Client::new(&system, leader, version, "subscriber").await;
    subscriber.subscribe("in/#", 1).await;
    let mut publisher = Client::new(&system, leader, version, "publisher").await;
    let (mourned, _) = Client::start(system.relay(leader), version, "mourned", Some("will")).await;
    let large = "0123456789abcdef".repeat(MIB / 16);
    publisher.publish("in/large", 2, false, large.as_bytes()).await;
    // Both die at a time: its will is published once, whichever is noticed first.
    drop(mourned);
    system.kill(leader);
    publisher.acknowledged(1).await;
    assert!(subscriber.messages(1).await == [(large, false)], "1 MiB came otherwise than it was sent");
    assert_eq!(watcher.messages(1).await, [("will".to_owned(), false)]);
    publisher.publish("will", 1, false, "end").await;
    assert_eq!(watcher.messages(1).await, [("end".to_owned(), false)]);
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_of_rumqttc_outlives_its_node_on_3_1_1() {
    a_session_outlives_its_node(Version::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_of_rumqttc_outlives_its_node_on_5() {
    a_session_outlives_its_node(Version::V5).await;
}
