//! A subscriber on rumqttc, a client that we did not write, behind a relay that moves it on whenever its connection ends.
//!
//! rumqttc 0.25 forgets on a reconnect which QoS 2 identifiers it has received and then takes the broker's PUBREL for
//! an error, for ever. MQTT wants it to remember ([MQTT-4.1.0-1]); through its own public state it is reminded.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_jepsen::harness::Relay;
use quorate_jepsen::history::{Delivered, MessageName};
use rumqttc::{AsyncClient, Event, EventLoop, Packet, Publish, QoS};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::publisher::{RETRY, options, quality, seen};
use super::{RECOVERY, System};

/// A running subscriber.
pub(crate) struct Subscriber {
    number: u32,
    distinct: watch::Receiver<BTreeSet<MessageName>>,
    stop: mpsc::Sender<()>,
    task: JoinHandle<Vec<Delivered>>,
}

impl Subscriber {
    /// Its client identifier.
    pub(crate) fn client_id(number: u32) -> String {
        format!("subscriber-{number}")
    }

    /// Starts one and waits until it is subscribed.
    pub(crate) async fn start(system: &System, number: u32, filter: &str, qos: u8, first_node: usize) -> Self {
        let relay = system.relay(first_node);
        let (stop, stopped) = mpsc::channel(1);
        let (tell, distinct) = watch::channel(BTreeSet::new());
        let (ready, mut subscribed) = watch::channel(false);
        let task = tokio::spawn(run(relay, number, filter.to_owned(), qos, stopped, tell, ready));
        let waited = tokio::time::timeout(RECOVERY, subscribed.wait_for(|is_ready| *is_ready)).await;
        waited.unwrap_or_else(|_| panic!("subscriber {number} has no SUBACK")).unwrap();
        Self { number, distinct, stop, task }
    }

    /// Waits until it has had all of `wanted`, and then hands its account over. What never comes is not waited for
    /// any longer when nothing new has come for a while: the verdict shows it as lost.
    pub(crate) async fn finish(mut self, wanted: &BTreeSet<MessageName>) -> Vec<Delivered> {
        let patience = Duration::from_secs(20);
        let has_all = |seen: &BTreeSet<MessageName>| seen.len() >= wanted.len() && seen.is_superset(wanted);
        while !has_all(&self.distinct.borrow_and_update()) {
            if tokio::time::timeout(patience, self.distinct.changed()).await.is_err() {
                println!("subscriber {} has had nothing new for {patience:?}", self.number);
                break;
            }
        }
        self.stop.send(()).await.ok();
        tokio::time::timeout(RECOVERY, self.task).await.expect("the subscriber ends").unwrap()
    }
}

struct Account {
    number: u32,
    connection: u32,
    delivered: Vec<Delivered>,
    /// QoS 2 identifiers received and not released: a PUBLISH under one of them is no delivery.
    unreleased: BTreeSet<u16>,
    /// QoS 2 identifiers ever received.
    received: BTreeSet<u16>,
}

impl Account {
    fn publish(&mut self, publish: &Publish) -> Option<MessageName> {
        if publish.qos == QoS::ExactlyOnce {
            self.received.insert(publish.pkid);
            if !self.unreleased.insert(publish.pkid) {
                return None;
            }
        }
        let message = MessageName::parse(&publish.payload)?;
        self.delivered.push(Delivered {
            subscriber: self.number,
            connection: self.connection,
            message,
            qos: publish.qos as u8,
            dup: publish.dup,
            packet_id: publish.pkid,
        });
        Some(message)
    }
}

async fn run(
    relay: Relay,
    number: u32,
    filter: String,
    qos: u8,
    mut stopped: mpsc::Receiver<()>,
    tell: watch::Sender<BTreeSet<MessageName>>,
    ready: watch::Sender<bool>,
) -> Vec<Delivered> {
    let id = Subscriber::client_id(number);
    let (client, mut events) = AsyncClient::new(options(&id, &relay, Duration::from_secs(2)), 8);
    let mut account = Account {
        number,
        connection: 0,
        delivered: Vec::new(),
        unreleased: BTreeSet::new(),
        received: BTreeSet::new(),
    };
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let polled = tokio::select! {
            polled = events.poll() => polled,
            _ = stopped.recv() => return account.delivered,
        };
        let is_broken = polled.is_err();
        for event in seen(polled, &mut events) {
            match event {
                Event::Incoming(Packet::ConnAck(connack)) => {
                    let is_first = account.connection == 0;
                    assert!(is_first || connack.session_present, "subscriber {number} lost its session");
                    account.connection += 1;
                    // Until there is a SUBACK, each connection asks for it again.
                    if !*ready.borrow() {
                        client.try_subscribe(&filter, quality(qos)).unwrap();
                    }
                }
                Event::Incoming(Packet::SubAck(_)) => {
                    ready.send_replace(true);
                }
                Event::Incoming(Packet::Publish(publish)) => {
                    if let Some(message) = account.publish(&publish) {
                        tell.send_modify(|distinct| {
                            distinct.insert(message);
                        });
                    }
                }
                Event::Incoming(Packet::PubRel(release)) => {
                    account.unreleased.remove(&release.pkid);
                }
                _ => {}
            }
        }
        if is_broken {
            remind(&mut events, &account.received);
            retry.tick().await;
        }
    }
}

/// Makes rumqttc expect a PUBREL for each of these again.
pub(crate) fn remind(events: &mut EventLoop, identifiers: &BTreeSet<u16>) {
    let shown = events.state.events.len();
    for pkid in identifiers {
        let mut publish = Publish::new("reminder", QoS::ExactlyOnce, Vec::new());
        publish.pkid = *pkid;
        events.state.handle_incoming_packet(Packet::Publish(publish)).unwrap();
    }
    events.state.events.truncate(shown);
}
