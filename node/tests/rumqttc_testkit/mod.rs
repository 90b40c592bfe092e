//! rumqttc, a client that we did not write, in both versions that it speaks and over every transport that it has.

#![allow(dead_code)]

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use quorate_jepsen::harness::Relay;
use quorate_jepsen::wire::Version;
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5 as packets5};
use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, QoS, Transport, v5};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::testkit::subscriber::remind;
use crate::testkit::{RECOVERY, System};

pub(crate) const MIB: usize = 1 << 20;
/// Publishes that are handed over at once.
pub(crate) const BURST: usize = 200;
/// Pause before a reconnect.
const RETRY: Duration = Duration::from_millis(20);

/// What both versions tell.
#[derive(Debug, PartialEq)]
pub(crate) enum Seen {
    Connected { present: bool },
    Subscribed,
    Acknowledged,
    Message { payload: Vec<u8>, retain: bool },
}

#[derive(Clone)]
pub(crate) enum Handle {
    V4(AsyncClient),
    V5(v5::AsyncClient),
}

/// One client behind a relay, which takes it to the next node whenever its connection ends.
pub(crate) struct Client {
    pub(crate) handle: Handle,
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
    pub(crate) async fn publish(&self, topic: &str, qos: u8, retain: bool, payload: impl Into<Vec<u8>>) {
        let (v4, v5) = quality(qos);
        match self {
            Self::V4(client) => client.publish(topic, v4, retain, payload).await.unwrap(),
            Self::V5(client) => client.publish(topic, v5, retain, payload.into()).await.unwrap(),
        }
    }
}

impl Client {
    /// Connects; `will` is a topic.
    pub(crate) async fn start(
        relay: Relay,
        way: &Transport,
        version: Version,
        id: &str,
        will: Option<&str>,
    ) -> (Self, bool) {
        let (tell, seen) = mpsc::unbounded_channel();
        let port = relay.at().port();
        let host = match way {
            Transport::Ws => format!("ws://{}/mqtt", relay.at()),
            Transport::Wss(_) => format!("wss://{}/mqtt", relay.at()),
            _ => relay.at().ip().to_string(),
        };
        let (handle, task) = match version {
            Version::V4 => {
                let mut options = MqttOptions::new(id, host, port);
                options.set_transport(way.clone());
                options.set_clean_session(false).set_max_packet_size(2 * MIB, 2 * MIB).set_inflight(BURST as u16);
                if let Some(topic) = will {
                    options.set_last_will(LastWill::new(topic, "will", QoS::AtLeastOnce, false));
                }
                let (client, events) = AsyncClient::new(options, BURST);
                (Handle::V4(client), tokio::spawn(run_v4(relay, events, tell)))
            }
            Version::V5 => {
                let mut options = v5::MqttOptions::new(id, host, port);
                options.set_transport(way.clone());
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

    pub(crate) async fn new(system: &System, place: usize, version: Version, id: &str) -> Self {
        Self::start(system.relay(place), &Transport::Tcp, version, id, None).await.0
    }

    pub(crate) async fn next(&mut self) -> Seen {
        tokio::time::timeout(RECOVERY, self.seen.recv()).await.expect("something happens").expect("it runs")
    }

    pub(crate) async fn subscribe(&mut self, filter: &str, qos: u8) {
        match &self.handle {
            Handle::V4(client) => client.subscribe(filter, quality(qos).0).await.unwrap(),
            Handle::V5(client) => client.subscribe(filter, quality(qos).1).await.unwrap(),
        }
        assert_eq!(self.next().await, Seen::Subscribed);
    }

    pub(crate) async fn publish(&self, topic: &str, qos: u8, retain: bool, payload: impl Into<Vec<u8>>) {
        self.handle.publish(topic, qos, retain, payload).await;
    }

    /// Waits for so many acknowledgements; how often it was connected anew meanwhile, always to its session.
    pub(crate) async fn acknowledged(&mut self, count: usize) -> usize {
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

    /// A message that has come already, if any.
    pub(crate) fn message_now(&mut self) -> Option<(String, bool)> {
        loop {
            match self.seen.try_recv().ok()? {
                Seen::Message { payload, retain } => return Some((String::from_utf8(payload).unwrap(), retain)),
                Seen::Connected { present } => assert!(present, "the session is gone"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next messages' payloads as text, and whether they were retained.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<(String, bool)> {
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

/// QoS 2 identifiers, which rumqttc forgets on a reconnect: it would take the PUBREL for an error, for ever. MQTT wants
/// them remembered ([MQTT-4.1.0-1]), so it is reminded through its own public state.
#[derive(Default)]
struct Memory {
    ever: BTreeSet<u16>,
    /// Under one of these a PUBLISH is no delivery.
    unreleased: BTreeSet<u16>,
}

impl Memory {
    fn is_delivery(&mut self, qos: u8, identifier: u16) -> bool {
        if qos == 2 {
            self.ever.insert(identifier);
        }
        qos != 2 || self.unreleased.insert(identifier)
    }

    fn v4(&mut self, event: Event) -> Option<Seen> {
        let Event::Incoming(packet) = event else { return None };
        Some(match packet {
            Packet::ConnAck(connack) => Seen::Connected { present: connack.session_present },
            Packet::SubAck(suback) => {
                let is_refused = |code: &rumqttc::SubscribeReasonCode| *code == rumqttc::SubscribeReasonCode::Failure;
                assert!(!suback.return_codes.iter().any(is_refused), "{suback:?}");
                Seen::Subscribed
            }
            Packet::PubAck(_) | Packet::PubComp(_) => Seen::Acknowledged,
            Packet::Publish(p) if self.is_delivery(p.qos as u8, p.pkid) => {
                Seen::Message { payload: p.payload.to_vec(), retain: p.retain }
            }
            Packet::PubRel(release) => {
                self.unreleased.remove(&release.pkid);
                return None;
            }
            _ => return None,
        })
    }

    fn v5(&mut self, event: v5::Event) -> Option<Seen> {
        let v5::Event::Incoming(packet) = event else { return None };
        Some(match packet {
            packets5::Packet::ConnAck(connack) => Seen::Connected { present: connack.session_present },
            packets5::Packet::SubAck(suback) => {
                let is_granted =
                    |code: &packets5::SubscribeReasonCode| matches!(code, packets5::SubscribeReasonCode::Success(_));
                assert!(suback.return_codes.iter().all(is_granted), "{suback:?}");
                Seen::Subscribed
            }
            packets5::Packet::PubAck(_) | packets5::Packet::PubComp(_) => Seen::Acknowledged,
            packets5::Packet::Publish(p) if self.is_delivery(p.qos as u8, p.pkid) => {
                Seen::Message { payload: p.payload.to_vec(), retain: p.retain }
            }
            packets5::Packet::PubRel(release) => {
                self.unreleased.remove(&release.pkid);
                return None;
            }
            _ => return None,
        })
    }

    fn remind_v5(&self, events: &mut v5::EventLoop) {
        for pkid in &self.ever {
            let mut publish = packets5::Publish::new("reminder", QoS5::ExactlyOnce, Vec::new(), None);
            publish.pkid = *pkid;
            events.state.handle_incoming_packet(packets5::Packet::Publish(publish)).unwrap();
        }
        events.state.events.clear();
    }
}

async fn run_v4(_relay: Relay, mut events: rumqttc::EventLoop, tell: mpsc::UnboundedSender<Seen>) {
    let (mut retry, mut memory) = (tokio::time::interval(RETRY), Memory::default());
    loop {
        let polled = events.poll().await;
        let is_broken = polled.is_err();
        // What came before the break is told all the same.
        let left = if is_broken { std::mem::take(&mut events.state.events) } else { VecDeque::new() };
        for event in polled.into_iter().chain(left) {
            if memory.v4(event).is_some_and(|seen| tell.send(seen).is_err()) {
                return;
            }
        }
        if is_broken {
            remind(&mut events, &memory.ever);
            retry.tick().await;
        }
    }
}

async fn run_v5(_relay: Relay, mut events: v5::EventLoop, tell: mpsc::UnboundedSender<Seen>) {
    let (mut retry, mut memory) = (tokio::time::interval(RETRY), Memory::default());
    loop {
        let polled = events.poll().await;
        let is_broken = polled.is_err();
        let left = if is_broken { std::mem::take(&mut events.state.events) } else { VecDeque::new() };
        for event in polled.into_iter().chain(left) {
            if memory.v5(event).is_some_and(|seen| tell.send(seen).is_err()) {
                return;
            }
        }
        if is_broken {
            memory.remind_v5(&mut events);
            retry.tick().await;
        }
    }
}
