//! A publisher on rumqttc, a client that we did not write, behind a relay that moves it on whenever its connection ends.
//!
//! What rumqttc 0.25 does on a resumed session is mended from outside where MQTT wants it otherwise: after a second
//! break it would resend out of order ([MQTT-4.6.0-1]), so its pending packets are put back in the order of sending.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_jepsen::harness::Relay;
use quorate_jepsen::history::{MessageName, Sent};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS, Request};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{RECOVERY, System};

/// Packet identifiers before rumqttc begins again at 1: far above any window, so that it never waits for one.
const IDENTIFIERS: u16 = 60_000;
/// Pause before a reconnect.
pub(super) const RETRY: Duration = Duration::from_millis(20);
/// What makes a payload about 256 bytes long.
const PADDING: usize = 240;

/// What a publisher does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublisherPlan {
    /// Its number.
    pub(crate) number: u32,
    /// QoS of its publishes.
    pub(crate) qos: u8,
    /// How many may be unacknowledged.
    pub(crate) window: usize,
    /// The node that it begins on.
    pub(crate) first_node: usize,
    /// Keep alive; a node that stands still is noticed after twice as long.
    pub(crate) keep_alive: Duration,
}

/// How far a publisher is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Acknowledged (PUBACK, PUBREC).
    pub(crate) acknowledged: usize,
    /// Sent and waiting for PUBACK or PUBREC.
    pub(crate) waiting: usize,
    /// Connections so far.
    pub(crate) connections: u32,
}

/// A running publisher.
pub(crate) struct Publisher {
    progress: watch::Receiver<Progress>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<Sent>>,
    number: u32,
}

pub(super) fn options(id: &str, relay: &Relay, keep_alive: Duration) -> MqttOptions {
    let mut options = MqttOptions::new(id, relay.at().ip().to_string(), relay.at().port());
    options.set_clean_session(false).set_keep_alive(keep_alive).set_inflight(IDENTIFIERS);
    options
}

pub(super) fn quality(qos: u8) -> QoS {
    if qos == 1 { QoS::AtLeastOnce } else { QoS::ExactlyOnce }
}

impl Publisher {
    /// Starts one that publishes to `topic` without end.
    pub(crate) fn start(system: &System, topic: &str, plan: PublisherPlan) -> Self {
        let relay = system.relay(plan.first_node);
        let (stop, stopped) = watch::channel(false);
        let (tell, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(run(relay, topic.to_owned(), plan, stopped, tell));
        Self { progress, stop, task, number: plan.number }
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until `more` publishes more than now are acknowledged.
    pub(crate) async fn wait_acknowledged(&mut self, more: usize) {
        let wanted = self.progress().acknowledged + more;
        let waiting = self.progress.wait_for(|progress| progress.acknowledged >= wanted);
        if tokio::time::timeout(RECOVERY, waiting).await.is_ok_and(|waited| waited.is_ok()) {
            return;
        }
        panic!("publisher {} stays at {:?}, wanted {wanted}", self.number, self.progress());
    }

    /// Stops publishing, waits until all is acknowledged, and hands its account over.
    pub(crate) async fn finish(self) -> Vec<Sent> {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(RECOVERY, self.task).await;
        let state = *self.progress.borrow();
        ended.unwrap_or_else(|_| panic!("publisher {} does not finish: {state:?}", self.number)).unwrap()
    }
}

/// What is known of each publish.
struct Account {
    plan: PublisherPlan,
    sent: Vec<Sent>,
    /// Which publish each identifier in flight stands for; rumqttc gives them out in the order of publishing.
    identifiers: BTreeMap<u16, usize>,
    next_unidentified: usize,
    in_flight: usize,
    progress: Progress,
}

impl Account {
    fn handed_over(&mut self, pkid: u16) {
        let next = &mut self.next_unidentified;
        let at = *self.identifiers.entry(pkid).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        self.sent[at].times += 1;
    }

    fn acknowledged(&mut self, pkid: u16) {
        let sent = &mut self.sent[self.identifiers[&pkid]];
        if !sent.acknowledged {
            sent.acknowledged = true;
            self.progress.acknowledged += 1;
        }
    }

    fn settled(&mut self, pkid: u16) {
        // A PUBREL that was resent after its PUBCOMP was lost is answered once more than it was asked.
        if self.identifiers.remove(&pkid).is_some() {
            self.in_flight -= 1;
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Outgoing(Outgoing::Publish(pkid)) => self.handed_over(*pkid),
            Event::Incoming(Packet::PubAck(ack)) => {
                self.acknowledged(ack.pkid);
                self.settled(ack.pkid);
            }
            Event::Incoming(Packet::PubRec(ack)) => self.acknowledged(ack.pkid),
            Event::Incoming(Packet::PubComp(ack)) => self.settled(ack.pkid),
            Event::Incoming(Packet::ConnAck(connack)) => {
                let is_first = self.progress.connections == 0;
                assert!(is_first || connack.session_present, "publisher {} lost its session", self.plan.number);
                self.progress.connections += 1;
            }
            _ => {}
        }
    }
}

async fn run(
    relay: Relay,
    topic: String,
    plan: PublisherPlan,
    stopped: watch::Receiver<bool>,
    tell: watch::Sender<Progress>,
) -> Vec<Sent> {
    let id = format!("publisher-{}", plan.number);
    let (client, mut events) = AsyncClient::new(options(&id, &relay, plan.keep_alive), plan.window + 8);
    let mut account = Account {
        plan,
        sent: Vec::new(),
        identifiers: BTreeMap::new(),
        next_unidentified: 0,
        in_flight: 0,
        progress: Progress::default(),
    };
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let is_over = *stopped.borrow();
        while !is_over && account.in_flight < plan.window {
            let message = MessageName { publisher: plan.number, seq: account.sent.len() as u64 };
            client.try_publish(&topic, quality(plan.qos), false, message.payload(&"x".repeat(PADDING))).unwrap();
            account.sent.push(Sent { message, qos: plan.qos, times: 0, acknowledged: false });
            account.in_flight += 1;
        }
        if is_over && account.in_flight == 0 {
            drop(client.try_disconnect());
            // The DISCONNECT goes out with this; an error is as good an end.
            drop(events.poll().await);
            return account.sent;
        }
        let polled = events.poll().await;
        let is_broken = polled.is_err();
        for event in seen(polled, &mut events) {
            account.take(&event);
        }
        if is_broken {
            in_order(&mut events);
            retry.tick().await;
        }
        account.progress.waiting = account.sent.len() - account.progress.acknowledged;
        tell.send_replace(account.progress);
    }
}

/// What a poll shows. When the connection has broken, rumqttc still holds events of it, which it would show only
/// behind the CONNACK of the next one: they are taken now, so that they belong to the connection that they came on.
pub(super) fn seen(polled: Result<Event, ConnectionError>, events: &mut EventLoop) -> Vec<Event> {
    match polled {
        Ok(event) => vec![event],
        Err(_) => events.state.events.drain(..).collect(),
    }
}

/// PUBRELs, then publishes in the order of sending, which their payloads tell.
fn in_order(events: &mut EventLoop) {
    events.pending.make_contiguous().sort_by_key(|request| match request {
        Request::Publish(publish) => MessageName::parse(&publish.payload).map(|message| message.seq),
        _ => None,
    });
}
