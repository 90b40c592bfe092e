//! Clients: each keeps its half of its session, whatever happens to its connections, and writes down what it saw and
//! did, before it does it. What it does is its [`Habits`]; [`turn`] is when, [`receive`] what it makes of what comes.

mod habits;
mod receive;
mod register;
mod turn;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate::mqtt::packet::{Connect, Outgoing, Packet, Publish};
use quorate_jepsen::history::event::{Call, Closing, Connection, OpId, What};
use quorate_jepsen::history::{Delivered, History, MessageName, Sent, event};
use quorate_store::codec::Payload;
use quorate_store::command::Will;
use quorate_store::ids::{PacketId, QoS};
use quorate_store::topic::TopicName;

use crate::net::Host;
use crate::world::{after, below, between, note, one_in};
use crate::{clock, history, node};
use habits::Habits;
use register::Registers;

/// Publishers of wills are named apart from those of messages: their order is another.
const WILL_NAMES: u32 = 1_000;

/// One connection of one client to one life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) client: u32,
    pub(crate) connection: u32,
    pub(crate) host: Host,
    pub(crate) life: u64,
}

impl Link {
    fn number(self) -> Connection {
        Connection(self.connection)
    }
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// All connect and subscribe.
    #[default]
    Setup,
    /// They do what they are there for.
    Load,
    /// They finish what they have begun, and read what is left.
    Drain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away,
    Connecting,
    Open,
}

/// A PUBLISH that is not finished.
#[derive(Clone, Debug)]
struct Out {
    message: MessageName,
    topic: String,
    qos: QoS,
    retain: bool,
    /// It takes the retained message away; no history names it.
    is_empty: bool,
    expiry_s: Option<u32>,
    op: Option<OpId>,
    /// Place in `sent`.
    at: Option<usize>,
    /// PUBREC came.
    is_released: bool,
    /// It went out on more than one connection: a refusal of the last says nothing of the others.
    is_resent: bool,
}

/// What a SUBSCRIBE, an UNSUBSCRIBE or a read waits for.
#[derive(Clone, Debug)]
struct Asked {
    id: u16,
    op: Option<OpId>,
    what: Question,
    since_ns: u64,
}

#[derive(Clone, Debug)]
enum Question {
    Subscribe,
    Unsubscribe,
    /// The retained message of a topic; whether SUBACK came, and what came.
    Read {
        topic: String,
        is_granted: bool,
        found: Option<Option<MessageName>>,
    },
    /// The subscription that was made to read is ended.
    EndRead,
}

/// An answer to a delivery.
#[derive(Clone, Debug)]
struct Owed {
    packet: Packet,
    id: u16,
    /// None: the delivery is not in the history either.
    step: Option<event::Step>,
}

struct Client {
    id: u32,
    habits: Habits,
    state: State,
    link: Option<Link>,
    /// The CONNECT that is not answered.
    connecting: Option<OpId>,
    /// Connections that were left for another while they stood.
    ghosts: Vec<Link>,
    connection: u32,
    /// It has had a CONNACK, and its session can not have ended since.
    has_session: bool,
    is_subscribed: bool,
    /// A CONNECT with Clean Start went out, and none was answered since: nobody knows whether the session is gone, so
    /// the next has it too.
    is_cleaning: bool,
    asked: Option<Asked>,
    /// The topic of a read that is answered, and how long its subscription stands on.
    lingers: Option<(String, u64)>,
    /// In the order of first sending.
    out: Vec<(u16, Out)>,
    last_id: u16,
    received_qos2: BTreeSet<u16>,
    owed: Vec<Owed>,
    seq: u64,
    wills: u64,
    /// Of those in the core.
    sent: Vec<Sent>,
    delivered: Vec<Delivered>,
    deliveries: usize,
    /// Since when it waits for an answer.
    waits_since_ns: Option<u64>,
    away_until_ns: u64,
    /// What it reads when all is over.
    reads_left: Vec<String>,
    /// When the next packet in each direction of each connection may arrive at the earliest.
    arrivals: BTreeMap<u32, [u64; 2]>,
}

#[derive(Default)]
struct Clients {
    all: Vec<Client>,
    phase: Phase,
    /// Time of a packet between client and node.
    travel: (Duration, Duration),
    /// When the last delivery came to anybody.
    delivered_ns: u64,
    registers: Registers,
}

thread_local! {
    static CLIENTS: RefCell<Clients> = RefCell::default();
}

fn with<T>(f: impl FnOnce(&mut Clients) -> T) -> T {
    CLIENTS.with_borrow_mut(f)
}

fn with_client<T>(id: u32, f: impl FnOnce(&mut Client) -> T) -> Option<T> {
    with(|clients| clients.all.get_mut(id as usize).map(f))
}

/// Clients with habits by chance, none of which is connected.
pub(crate) fn begin(travel: (Duration, Duration)) {
    let all: Vec<Client> = (0..).zip(habits::some()).map(|(id, habits)| Client::new(id, habits)).collect();
    let count = all.len() as u32;
    with(|clients| *clients = Clients { all, travel, ..Clients::default() });
    for id in 0..count {
        after(Duration::from_millis(10), move || turn::live(id));
    }
}

/// How many there are.
pub(crate) fn count() -> u32 {
    with(|clients| clients.all.len() as u32)
}

/// The next phase begins.
pub(crate) fn enter(phase: Phase) {
    with(|clients| {
        clients.phase = phase;
        if phase == Phase::Drain {
            clients.delivered_ns = clock::now_ns();
            for client in &mut clients.all {
                client.reads_left = client.habits.reads.clone();
                client.habits.hold_percent = 0;
            }
        }
    });
}

/// Whether all are subscribed that are to be.
pub(crate) fn are_subscribed() -> bool {
    with(|clients| clients.all.iter().all(|c| c.is_subscribed || c.habits.churns || c.habits.filter.is_none()))
}

/// Whether nothing has come to anybody for so long, or since the load ended.
pub(crate) fn are_quiet_for(time: Duration) -> bool {
    with(|clients| clock::now_ns() - clients.delivered_ns >= time.as_nanos() as u64)
}

/// Whether anybody leaves wills.
pub(crate) fn have_wills() -> bool {
    with(|clients| clients.all.iter().any(|client| client.habits.will.is_some()))
}

/// Deliveries to all.
pub(crate) fn deliveries() -> usize {
    with(|clients| clients.all.iter().map(|client| client.deliveries).sum())
}

/// Who still waits for something, in words; none: all that was published is acknowledged and has arrived everywhere.
pub(crate) fn unfinished() -> Option<String> {
    with(|clients| {
        let names = clients.all.iter().flat_map(|c| &c.sent).filter(|s| s.acknowledged).map(|s| s.message);
        let acknowledged: BTreeSet<MessageName> = names.collect();
        clients.all.iter().find_map(|client| client.unfinished(&acknowledged))
    })
}

/// What the core saw.
pub(crate) fn summary() -> History {
    with(|clients| {
        let core = || clients.all.iter().filter(|c| c.habits.is_core);
        History {
            sent: core().flat_map(|c| c.sent.iter().copied()).collect(),
            delivered: core().flat_map(|c| c.delivered.iter().copied()).collect(),
            subscribers: core().map(|c| c.id).collect(),
        }
    })
}

/// The node of these connections is gone: clients notice when `delay` has passed.
pub(crate) fn lose(links: Vec<Link>, delay: Duration) {
    for link in links {
        after(delay, move || closed(link, Closing::Lost));
    }
}

/// A packet from a node sets out.
pub(crate) fn send(link: Link, packet: Outgoing) {
    let delay = travel(link, 0);
    after(delay, move || receive::receive(link, packet));
}

/// The node closes the connection, behind what it sent.
pub(crate) fn end(link: Link) {
    let delay = travel(link, 0);
    after(delay, move || closed(link, Closing::Lost));
}

/// Breaks a client's connection; the node hears of it a little later, or the client connects elsewhere before that.
pub(crate) fn break_connection(id: u32) {
    if let Some(link) = with_client(id, |client| client.link).flatten() {
        closed(link, Closing::Broken);
        let delay = if one_in(2) { travel(link, 1) } else { between(Duration::ZERO, Duration::from_secs(3)) };
        let delay = delay.max(travel(link, 1));
        after(delay, move || node::with_front(link.host, link.life, move |front| front.socket_closed(link)));
    }
}

/// How long the next packet takes; none overtakes another.
fn travel(link: Link, direction: usize) -> Duration {
    let now = clock::now_ns();
    let (least, most) = with(|clients| clients.travel);
    let at = now + between(least, most).as_nanos() as u64;
    let at = with_client(link.client, |client| {
        let earliest = &mut client.arrivals.entry(link.connection).or_default()[direction];
        *earliest = at.max(*earliest);
        *earliest
    });
    Duration::from_nanos(at.unwrap_or(now) - now)
}

fn to_node(link: Link, packet: Packet) {
    let delay = travel(link, 1);
    after(delay, move || node::with_front(link.host, link.life, move |front| front.packet(link, packet)));
}

fn closed(link: Link, how: Closing) {
    with_client(link.client, |client| {
        if client.link == Some(link) {
            note!("client {} lost connection {}: {how:?}", client.id, link.connection);
            if let Some(op) = client.connecting.take() {
                client.record(What::Info { op, why: "no answer".to_owned() });
            }
            client.left();
            client.state = State::Away;
            client.link = None;
            client.waits_since_ns = None;
        } else if let Some(at) = client.ghosts.iter().position(|ghost| *ghost == link) {
            note!("client {} is rid of connection {}: {how:?}", client.id, link.connection);
            client.ghosts.remove(at);
        } else {
            return;
        }
        client.record(What::Closed { connection: link.number(), how });
    });
}

/// Connects to a node, or tries to.
fn connect(id: u32, but_not: Option<Host>) {
    let Some((host, life)) = node::some_front(but_not) else { return };
    let connect = with_client(id, |client| {
        client.connection += 1;
        let link = Link { client: id, connection: client.connection, host, life };
        client.link = Some(link);
        client.state = State::Connecting;
        client.waits_since_ns = Some(clock::now_ns());
        let latest = link.connection;
        client.arrivals.retain(|connection, _| connection + 16 > latest);
        (link, client.connect(link))
    });
    let Some((link, connect)) = connect else { return };
    let delay = travel(link, 1);
    after(delay, move || node::with_front(host, life, move |front| front.connect(link, connect)));
}

fn identifier(id: u16) -> PacketId {
    PacketId::new(id).expect("identifiers are not 0")
}

fn topic_name(topic: &str) -> TopicName {
    TopicName::new(topic).expect("a topic")
}

impl Out {
    fn packet(&self, id: u16, dup: bool) -> Packet {
        let payload = if self.is_empty { Vec::new() } else { self.message.payload("x") };
        Packet::Publish(Publish {
            dup,
            qos: self.qos,
            retain: self.retain,
            id: (self.qos != QoS::AtMostOnce).then(|| identifier(id)),
            topic: Some(topic_name(&self.topic)),
            alias: None,
            expiry_s: self.expiry_s,
            properties: None,
            payload: Payload(Bytes::from(payload)),
        })
    }
}

impl Client {
    fn new(id: u32, habits: Habits) -> Self {
        Self {
            id,
            habits,
            state: State::Away,
            link: None,
            connecting: None,
            ghosts: Vec::new(),
            connection: 0,
            has_session: false,
            is_subscribed: false,
            is_cleaning: false,
            asked: None,
            lingers: None,
            out: Vec::new(),
            last_id: 0,
            received_qos2: BTreeSet::new(),
            owed: Vec::new(),
            seq: 0,
            wills: 0,
            sent: Vec::new(),
            delivered: Vec::new(),
            deliveries: 0,
            waits_since_ns: None,
            away_until_ns: 0,
            reads_left: Vec::new(),
            arrivals: BTreeMap::new(),
        }
    }

    fn record(&self, what: What) {
        history::record(Some(self.id), what);
    }

    /// An identifier that nothing uses.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id % 60_000 + 1;
            if self.out.iter().all(|(used, _)| *used != self.last_id) {
                return self.last_id;
            }
        }
    }

    fn connect(&mut self, link: Link) -> Connect {
        let is_clean = self.habits.expiry_s == 0 || below(100) < self.habits.clean_percent;
        let clean_start = is_clean || self.is_cleaning;
        self.is_cleaning = clean_start;
        if clean_start {
            self.lose_session("Clean Start");
        }
        let message = MessageName { publisher: WILL_NAMES + self.id, seq: self.wills };
        let will = self.habits.will.clone().map(|(topic, qos)| {
            self.wills += 1;
            let delay_s = if one_in(2) { 0 } else { 1 + below(4) as u32 };
            event::Will { message, topic, qos: qos as u8, delay_s }
        });
        note!(
            "client {} connects to node {}, connection {}, clean {clean_start}{}",
            self.id,
            link.host,
            link.connection,
            will.as_ref().map_or(String::new(), |will| format!(", will {} after {} s", will.message, will.delay_s))
        );
        let connect = Connect {
            client_id: format!("c{}", self.id),
            clean_start,
            keep_alive_s: 0,
            expiry_s: Some(self.habits.expiry_s),
            receive_maximum: self.habits.receive_maximum,
            packet_bytes_max: None,
            auth: None,
            wants_problems: false,
            topic_alias_max: 0,
            wants_response_information: false,
            username: None,
            password: None,
            will: will.as_ref().zip(self.habits.will.as_ref()).map(|(will, (_, qos))| Will {
                delay_s: will.delay_s,
                topic: topic_name(&will.topic),
                qos: *qos,
                retain: false,
                properties: None,
                expiry_s: None,
                payload: Payload(Bytes::from(will.message.payload("x"))),
            }),
        };
        let op = history::op();
        self.connecting = Some(op);
        let (connection, node) = (link.number(), format!("n{}", link.host));
        let expiry_s = self.habits.expiry_s;
        self.record(What::Invoke { op, call: Call::Connect { connection, node, clean_start, expiry_s, will } });
        connect
    }

    /// What hung on the connection alone is open for ever.
    fn left(&mut self) {
        self.owed.clear();
        self.lingers = None;
        if let Some(Asked { op: Some(op), .. }) = self.asked.take() {
            self.record(What::Info { op, why: "connection lost".to_owned() });
        }
    }

    /// Nothing is left of the session.
    fn lose_session(&mut self, why: &str) {
        self.received_qos2.clear();
        self.is_subscribed = false;
        self.has_session = false;
        for (_, out) in std::mem::take(&mut self.out) {
            if let Some(op) = out.op.filter(|_| !out.is_released) {
                self.record(What::Info { op, why: why.to_owned() });
            }
        }
    }

    fn unfinished(&self, acknowledged: &BTreeSet<MessageName>) -> Option<String> {
        let id = self.id;
        if let Some(ghost) = self.ghosts.first() {
            return Some(format!("connection {} of client {id}, taken over, is open", ghost.connection));
        }
        if self.habits.leaves {
            return (self.state != State::Away).then(|| format!("client {id} has not left"));
        }
        if self.state != State::Open {
            return Some(format!("client {id} is not connected"));
        }
        if let Some((used, out)) = self.out.first() {
            return Some(format!("client {id} has no answer for its message {}, identifier {used}", out.message));
        }
        if let Some(asked) = &self.asked {
            return Some(format!("client {id} waits for {:?}", asked.what));
        }
        if let Some((topic, _)) = &self.lingers {
            return Some(format!("client {id} still listens to {topic}"));
        }
        if let Some(topic) = self.reads_left.first() {
            return Some(format!("client {id} has not read {topic}"));
        }
        if self.habits.filter.is_some() && !self.habits.churns && !self.is_subscribed {
            return Some(format!("client {id} is not subscribed"));
        }
        if !self.received_qos2.is_empty() || !self.owed.is_empty() {
            return Some(format!("client {id} waits for PUBREL of {:?}", self.received_qos2));
        }
        if !self.habits.is_core {
            return None;
        }
        let seen: BTreeSet<MessageName> = self.delivered.iter().map(|d| d.message).collect();
        let missing = acknowledged.difference(&seen).next()?;
        Some(format!("client {id} has not got message {missing}"))
    }
}
