//! Clients: each a publisher and a subscriber that keeps its half of the session, whatever happens to its connection,
//! and writes down what it saw.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate::mqtt::packet::{Connect, Outgoing, Packet, Publish, Subscribe};
use quorate::mqtt::reason::Reason;
use quorate_jepsen::history::{Delivered, History, MessageName, Sent};
use quorate_store::codec::Payload;
use quorate_store::command::SubscribeOptions;
use quorate_store::ids::{PacketId, QoS};
use quorate_store::topic::{TopicFilter, TopicName};

use crate::net::Host;
use crate::world::{after, below, between, note, one_in};
use crate::{clock, invariants, node};

/// Messages that a client has on their way.
const IN_FLIGHT_MAX: usize = 8;
/// Without an answer for so long a client breaks its connection.
const PATIENCE: Duration = Duration::from_secs(9);
const SUBSCRIBE_ID: u16 = 60_000;

/// One connection of one client to one life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) client: u32,
    pub(crate) connection: u32,
    pub(crate) host: Host,
    pub(crate) life: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away,
    Connecting,
    Open,
}

#[derive(Clone, Debug)]
struct Out {
    /// Place in `sent`.
    at: usize,
    topic: u64,
    qos: QoS,
    /// PUBREC came.
    is_released: bool,
}

struct Client {
    id: u32,
    state: State,
    link: Option<Link>,
    connection: u32,
    /// It has had a CONNACK: its session is there.
    has_session: bool,
    is_subscribed: bool,
    /// In the order of first sending.
    out: Vec<(u16, Out)>,
    received_qos2: BTreeSet<u16>,
    sent: Vec<Sent>,
    delivered: Vec<Delivered>,
    /// Since when it waits for an answer.
    waits_since_ns: Option<u64>,
    /// When the next packet in each direction may arrive at the earliest.
    arrivals: [u64; 2],
}

#[derive(Default)]
struct Clients {
    all: Vec<Client>,
    /// They publish.
    are_on: bool,
    /// Time of a packet between client and node.
    travel: (Duration, Duration),
}

thread_local! {
    static CLIENTS: RefCell<Clients> = RefCell::default();
}

fn with<T>(f: impl FnOnce(&mut Clients) -> T) -> T {
    CLIENTS.with_borrow_mut(f)
}

/// So many clients, none of which is connected.
pub(crate) fn begin(count: u32, travel: (Duration, Duration)) {
    let client = |id| Client {
        id,
        state: State::Away,
        link: None,
        connection: 0,
        has_session: false,
        is_subscribed: false,
        out: Vec::new(),
        received_qos2: BTreeSet::new(),
        sent: Vec::new(),
        delivered: Vec::new(),
        waits_since_ns: None,
        arrivals: [0; 2],
    };
    with(|clients| *clients = Clients { all: (0..count).map(client).collect(), are_on: false, travel });
    for id in 0..count {
        after(Duration::from_millis(10), move || live(id));
    }
}

/// From now on they publish, or not any more.
pub(crate) fn set_publishing(are_on: bool) {
    with(|clients| clients.are_on = are_on);
}

/// Whether all are subscribed.
pub(crate) fn are_subscribed() -> bool {
    with(|clients| clients.all.iter().all(|c| c.is_subscribed))
}

/// Who still waits for something, in words; none: all that was published is acknowledged and has arrived everywhere.
pub(crate) fn unfinished() -> Option<String> {
    with(|clients| {
        let names = clients.all.iter().flat_map(|c| &c.sent).filter(|s| s.acknowledged).map(|s| s.message);
        let acknowledged: BTreeSet<MessageName> = names.collect();
        for client in &clients.all {
            if client.state != State::Open {
                return Some(format!("client {} is not connected", client.id));
            }
            if let Some((id, out)) = client.out.first() {
                let name = client.sent.get(out.at).map(|s| s.message.to_string());
                return Some(format!("client {} has no answer for its message {name:?}, identifier {id}", client.id));
            }
            if !client.received_qos2.is_empty() {
                return Some(format!("client {} waits for PUBREL of {:?}", client.id, client.received_qos2));
            }
            let seen: BTreeSet<MessageName> = client.delivered.iter().map(|d| d.message).collect();
            if let Some(missing) = acknowledged.difference(&seen).next() {
                return Some(format!("client {} has not got message {missing}", client.id));
            }
        }
        None
    })
}

/// What all of them saw.
pub(crate) fn history() -> History {
    with(|clients| History {
        sent: clients.all.iter().flat_map(|c| c.sent.iter().copied()).collect(),
        delivered: clients.all.iter().flat_map(|c| c.delivered.iter().copied()).collect(),
        subscribers: clients.all.iter().map(|c| c.id).collect(),
    })
}

/// The node of these connections is gone: clients notice when `delay` has passed.
pub(crate) fn lose(links: Vec<Link>, delay: Duration) {
    for link in links {
        after(delay, move || closed(link));
    }
}

/// A packet from a node sets out.
pub(crate) fn send(link: Link, packet: Outgoing) {
    let delay = travel(link, 0);
    after(delay, move || receive(link, packet));
}

/// The node closes the connection, behind what it sent.
pub(crate) fn end(link: Link) {
    let delay = travel(link, 0);
    after(delay, move || closed(link));
}

/// How long the next packet takes; none overtakes another.
fn travel(link: Link, direction: usize) -> Duration {
    let now = clock::now_ns();
    let (least, most) = with(|clients| clients.travel);
    let at = now + between(least, most).as_nanos() as u64;
    let at = with(|clients| {
        let Some(client) = clients.all.get_mut(link.client as usize) else { return at };
        let earliest = &mut client.arrivals[direction];
        *earliest = at.max(*earliest);
        *earliest
    });
    Duration::from_nanos(at - now)
}

fn to_node(link: Link, packet: Packet) {
    let delay = travel(link, 1);
    after(delay, move || node::with_front(link.host, link.life, move |front| front.packet(link, packet)));
}

fn closed(link: Link) {
    with(|clients| {
        if let Some(client) = clients.all.get_mut(link.client as usize)
            && client.link == Some(link)
        {
            note!("client {} lost connection {}", client.id, link.connection);
            client.state = State::Away;
            client.link = None;
            client.waits_since_ns = None;
        }
    });
}

/// Breaks a client's connection; the node hears of it a little later, or the client connects elsewhere before that.
pub(crate) fn break_connection(id: u32) {
    let link = with(|clients| clients.all.get(id as usize).and_then(|c| c.link));
    if let Some(link) = link {
        closed(link);
        let delay = if one_in(2) { travel(link, 1) } else { between(Duration::ZERO, Duration::from_secs(3)) };
        after(delay, move || node::with_front(link.host, link.life, move |front| front.socket_closed(link)));
    }
}

/// A turn of a client's life, and the next one later.
fn live(id: u32) {
    after(between(Duration::from_millis(20), Duration::from_millis(250)), move || live(id));
    let now = clock::now_ns();
    let (state, is_stuck) = with(|clients| {
        let Some(client) = clients.all.get(id as usize) else { return (State::Away, false) };
        let waits = client.waits_since_ns.is_some_and(|since| now - since > PATIENCE.as_nanos() as u64);
        (client.state, waits)
    });
    match state {
        _ if is_stuck => break_connection(id),
        State::Away => connect(id),
        State::Connecting => {}
        State::Open => publish(id),
    }
}

fn connect(id: u32) {
    let Some((host, life)) = node::some_front() else { return };
    let link = with(|clients| {
        let client = clients.all.get_mut(id as usize)?;
        client.connection += 1;
        let link = Link { client: id, connection: client.connection, host, life };
        client.link = Some(link);
        client.state = State::Connecting;
        client.waits_since_ns = Some(clock::now_ns());
        client.arrivals = [0; 2];
        Some(link)
    });
    let Some(link) = link else { return };
    note!("client {id} connects to node {host}, connection {}", link.connection);
    let connect = Connect {
        client_id: format!("c{id}"),
        clean_start: false,
        keep_alive_s: 0,
        expiry_s: Some(86_400),
        receive_maximum: 10,
        packet_bytes_max: None,
        auth: None,
        wants_problems: false,
        topic_alias_max: 0,
        wants_response_information: false,
        username: None,
        password: None,
        will: None,
    };
    let delay = travel(link, 1);
    after(delay, move || node::with_front(host, life, move |front| front.connect(link, connect)));
}

fn identifier(id: u16) -> PacketId {
    PacketId::new(id).expect("identifiers are not 0")
}

fn publish_packet(sent: &Sent, id: u16, out: &Out, dup: bool) -> Packet {
    Packet::Publish(Publish {
        dup,
        qos: out.qos,
        retain: false,
        id: Some(identifier(id)),
        topic: Some(TopicName::new(&format!("t/{}", out.topic)).expect("a topic")),
        alias: None,
        expiry_s: None,
        properties: None,
        payload: Payload(Bytes::from(sent.message.payload("x"))),
    })
}

fn publish(id: u32) {
    let (is_second, topic) = (one_in(2), below(3));
    let what = with(|clients| {
        let are_on = clients.are_on;
        let client = clients.all.get_mut(id as usize)?;
        let link = client.link?;
        if !client.is_subscribed || !are_on || client.out.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let free = (1..).find(|n| client.out.iter().all(|(used, _)| used != n))?;
        let qos = if is_second { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
        let message = MessageName { publisher: id, seq: client.sent.len() as u64 };
        let sent = Sent { message, qos: qos as u8, times: 1, acknowledged: false };
        let out = Out { at: client.sent.len(), topic, qos, is_released: false };
        client.sent.push(sent);
        client.out.push((free, out.clone()));
        client.waits_since_ns.get_or_insert_with(clock::now_ns);
        note!("client {id} publishes {message} at {}", qos as u8);
        Some((link, publish_packet(&sent, free, &out, false)))
    });
    if let Some((link, packet)) = what {
        to_node(link, packet);
    }
}

/// A packet arrives at its client.
fn receive(link: Link, packet: Outgoing) {
    let answers = with(|clients| {
        let Some(client) = clients.all.get_mut(link.client as usize) else { return Vec::new() };
        if client.link != Some(link) {
            return Vec::new();
        }
        client.take(link, packet)
    });
    for answer in answers {
        to_node(link, answer);
    }
}

impl Client {
    fn take(&mut self, link: Link, packet: Outgoing) -> Vec<Packet> {
        match packet {
            Outgoing::ConnAck(ack) if ack.reason == Reason::SUCCESS => {
                note!("client {} is connected, session present {}", self.id, ack.session_present);
                if self.has_session && !ack.session_present {
                    invariants::violated("session present is exact (guarantee 8)", &format!("client {}", self.id));
                }
                self.has_session = true;
                self.state = State::Open;
                self.waits_since_ns = None;
                self.resume()
            }
            Outgoing::ConnAck(_) | Outgoing::Disconnect(..) => Vec::new(),
            Outgoing::SubAck(..) => {
                self.is_subscribed = true;
                self.answered();
                Vec::new()
            }
            Outgoing::PubAck(id, reason) | Outgoing::PubAckAt(id, reason, _) => {
                self.acknowledged(id.get(), reason, true);
                Vec::new()
            }
            Outgoing::PubRec(id, reason) | Outgoing::PubRecAt(id, reason, _) => {
                if self.acknowledged(id.get(), reason, reason.is_failure()) {
                    vec![Packet::PubRel { id }]
                } else {
                    Vec::new()
                }
            }
            Outgoing::PubComp(id, _) => {
                self.out.retain(|(used, _)| *used != id.get());
                self.answered();
                Vec::new()
            }
            Outgoing::PubRel(id, _) => {
                self.received_qos2.remove(&id.get());
                vec![Packet::PubComp { id }]
            }
            Outgoing::Publish(delivery) => {
                let Some(message) = MessageName::parse(&delivery.message.payload.0) else { return Vec::new() };
                let id = delivery.id.map_or(0, PacketId::get);
                let is_new = delivery.qos != QoS::ExactlyOnce || self.received_qos2.insert(id);
                note!("client {} gets {message} as {id}, dup {}, new {is_new}", self.id, delivery.dup);
                if is_new {
                    self.delivered.push(Delivered {
                        subscriber: self.id,
                        connection: link.connection,
                        message,
                        qos: delivery.qos as u8,
                        dup: delivery.dup,
                        packet_id: id,
                    });
                }
                let Some(id) = delivery.id else { return Vec::new() };
                let reason = Reason::SUCCESS;
                vec![match delivery.qos {
                    QoS::ExactlyOnce => Packet::PubRec { id, reason },
                    _ => Packet::PubAck { id, reason },
                }]
            }
            _ => Vec::new(),
        }
    }

    fn answered(&mut self) {
        self.waits_since_ns = (!self.out.is_empty()).then(clock::now_ns);
    }

    /// PUBACK or PUBREC. Whether it answers anything.
    fn acknowledged(&mut self, id: u16, reason: Reason, is_over: bool) -> bool {
        let Some(place) = self.out.iter().position(|(used, _)| *used == id) else { return false };
        let Some((_, out)) = self.out.get_mut(place) else { return false };
        out.is_released = true;
        if let (false, Some(sent)) = (reason.is_failure(), self.sent.get_mut(out.at)) {
            sent.acknowledged = true;
        }
        if is_over {
            self.out.remove(place);
        }
        self.answered();
        true
    }

    /// What goes out first on a new connection [MQTT-4.4.0-1].
    fn resume(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        if !self.is_subscribed {
            let filter = TopicFilter::new("t/#").expect("a filter");
            let options = SubscribeOptions {
                qos: QoS::ExactlyOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: 0,
            };
            let id = identifier(SUBSCRIBE_ID);
            packets.push(Packet::Subscribe(Subscribe { id, identifier: None, filters: vec![Ok((filter, options))] }));
        }
        let mut resent: BTreeMap<usize, ()> = BTreeMap::new();
        for (id, out) in &self.out {
            packets.push(if out.is_released {
                Packet::PubRel { id: identifier(*id) }
            } else {
                resent.insert(out.at, ());
                let Some(sent) = self.sent.get(out.at) else { continue };
                publish_packet(sent, *id, out, true)
            });
        }
        for (at, ()) in resent {
            if let Some(sent) = self.sent.get_mut(at) {
                sent.times += 1;
            }
        }
        if !packets.is_empty() {
            self.waits_since_ns = Some(clock::now_ns());
        }
        packets
    }
}
