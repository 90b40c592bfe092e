//! A client that keeps its word: one client identifier over many connections, in blocking calls of one thread.
//!
//! It keeps its own half of the session (publishes in flight, QoS 2 identifiers received), resends after a reconnect
//! under the same packet identifier with DUP=1, and writes down every step *before* it does it. It trusts nobody: each
//! wait has a bound, after which the outcome is *info* and the connection is broken off.

mod conn;
mod identity;
mod receive;
mod session;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use conn::{Conn, Over};
pub(crate) use identity::Identity;
use session::{Session, State};
pub(crate) use sweep::{knock, sweep};

use crate::history::MessageName;
use crate::history::event::{self, Answer, Call, Closing, Connection, OpId, What};
use crate::history::record::Recorder;
use crate::rng::Rng;
use crate::wire::property::{self, Property, Value};
use crate::wire::{Ack, AckKind, Packet, Publish, Version, encode};

/// Reconnecting waits so long at first, twice as long each time, and at most so long.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
const KEEP_ALIVE_S: u16 = 10;
/// A client that has said nothing for so long asks whether anybody is there.
const PING_AFTER: Duration = Duration::from_secs(2);
/// Broken connections whose end is still watched after a takeover.
const GHOSTS_MAX: usize = 8;

/// Nodes that clients may connect to, by name: the nemesis may change them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory(Arc<RwLock<Vec<(String, SocketAddr)>>>);

impl Directory {
    pub(crate) fn set(&self, nodes: Vec<(String, SocketAddr)>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    fn pick(&self, rng: &mut Rng, but_not: Option<&str>) -> Option<(String, SocketAddr)> {
        let nodes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<_> = nodes.iter().filter(|(name, _)| Some(name.as_str()) != but_not).cloned().collect();
        rng.pick(if others.is_empty() { &nodes } else { &others }).cloned()
    }
}

/// What a client is.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) version: Version,
    /// Session Expiry Interval; 0: Clean Start each time.
    pub(crate) expiry_s: u32,
    pub(crate) receive_maximum: u16,
    /// In so many of a hundred rounds, answers to deliveries wait for the next round.
    pub(crate) hold_percent: u64,
    /// How long the broker may take to answer anything.
    pub(crate) answer_max: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            version: Version::V5,
            expiry_s: 3_600,
            receive_maximum: 32,
            hold_percent: 10,
            answer_max: Duration::from_secs(5),
        }
    }
}

/// What a SUBSCRIBE, UNSUBSCRIBE or a read waits for.
#[derive(Debug)]
struct Asked {
    packet_id: u16,
    op: Option<OpId>,
    is_subscribe: bool,
    code: Option<u8>,
}

/// The client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: event::Client,
    pub(crate) rng: Rng,
    pub(crate) manner: Manner,
    /// The will of the next CONNECT.
    pub(crate) will: Option<event::Will>,
    /// When the last delivery came.
    pub(crate) delivered_at: Option<Instant>,
    /// How many have come.
    pub(crate) delivered: u64,
    identity: Identity,
    recorder: Recorder,
    directory: Directory,
    session: Session,
    conn: Option<Conn>,
    /// Connections that a takeover left behind: the broker must end them.
    ghosts: VecDeque<Conn>,
    connections: u32,
    last_node: Option<String>,
    back_off: Duration,
    /// Answers that were held back. Nothing else is owed on the connection.
    owed: VecDeque<Ack>,
    asked: Option<Asked>,
    /// Of which topic a retained value is wanted, and what came.
    wanted: Option<(String, Option<MessageName>)>,
    /// The broker has answered nothing since, with publishes open.
    waiting_since: Option<Instant>,
    seq: u64,
}

impl Client {
    pub(crate) fn new(
        id: u32,
        seed: u64,
        manner: Manner,
        recorder: Recorder,
        directory: Directory,
        identity: Identity,
    ) -> Self {
        Self {
            id: event::Client(id),
            rng: Rng::of(seed, u64::from(id)),
            manner,
            will: None,
            delivered_at: None,
            delivered: 0,
            identity,
            recorder,
            directory,
            session: Session::default(),
            conn: None,
            ghosts: VecDeque::new(),
            connections: 0,
            last_node: None,
            back_off: BACK_OFF.0,
            owed: VecDeque::new(),
            asked: None,
            wanted: None,
            waiting_since: None,
            seq: 0,
        }
    }

    pub(crate) const fn is_connected(&self) -> bool {
        self.conn.is_some()
    }

    /// Publishes that are not finished.
    pub(crate) fn open(&self) -> usize {
        self.session.open()
    }

    /// QoS 2 deliveries that are not finished.
    pub(crate) fn unreleased(&self) -> usize {
        self.session.received.len()
    }

    fn record(&self, what: What) {
        self.recorder.record(Some(self.id), what);
    }

    pub(crate) fn note(&self, remark: &str) {
        self.recorder.note(&format!("client {}: {remark}", self.id.0));
    }

    /// A connection, if one can be had by `end`.
    pub(crate) fn ensure_connected(&mut self, end: Instant) -> bool {
        while self.conn.is_none() {
            if self.connect(false) {
                break;
            }
            if Instant::now() >= end {
                return false;
            }
            let jitter = self.rng.between(50, 150);
            std::thread::sleep(self.back_off * u32::try_from(jitter).unwrap_or(100) / 100);
            self.back_off = (self.back_off * 2).min(BACK_OFF.1);
        }
        true
    }

    /// Connects to a node, chosen by the seed. `clean`: the session is thrown away.
    pub(crate) fn connect(&mut self, clean: bool) -> bool {
        // Often another than the last, but not always: both must work.
        let avoid = if self.rng.chance(70) { self.last_node.clone() } else { None };
        let Some((node, at)) = self.directory.pick(&mut self.rng, avoid.as_deref()) else { return false };
        let clean = clean || self.manner.expiry_s == 0;
        let Ok(mut conn) = Conn::open(at, &node, self.manner.version, self.manner.answer_max / 2) else { return false };
        self.last_node = Some(node.clone());
        self.connections += 1;
        conn.id = Connection(self.connections);
        if clean {
            self.lose_session("Clean Start");
        }
        let op = self.recorder.op();
        if let Some(will) = &mut self.will {
            will.topic = self.identity.topic(&will.topic);
        }
        let connect = encode::Connect {
            client_id: self.identity.client_id(self.id.0),
            clean,
            keep_alive_s: KEEP_ALIVE_S,
            expiry_s: self.manner.expiry_s,
            receive_maximum: self.manner.receive_maximum,
            will: self.will.as_ref().map(|w| encode::Will {
                topic: w.topic.clone(),
                payload: w.message.payload(""),
                qos: w.qos,
                retain: false,
                delay_s: w.delay_s,
            }),
        };
        let mut bytes = Vec::new();
        encode::connect_as(&mut bytes, self.manner.version, &connect, self.identity.login.as_ref());
        let (connection, expiry_s, will) = (conn.id, self.manner.expiry_s, self.will.take());
        let call = Call::Connect { connection, node, clean_start: clean, expiry_s, will };
        self.record(What::Invoke { op, call });
        let end = Instant::now() + self.manner.answer_max;
        let answer = match conn.send(&bytes) {
            Ok(()) => conn.read(end.saturating_duration_since(Instant::now())),
            Err(_) => Err(Over::Lost),
        };
        let (why, how) = match answer {
            Ok(Some(arrived)) => match arrived.packet {
                Packet::ConnAck { present, code: 0, .. } => {
                    self.record(What::Ok { op, answer: Answer::Connected { present } });
                    self.back_off = BACK_OFF.0;
                    return self.welcomed(conn, present);
                }
                Packet::ConnAck { code, .. } => {
                    self.record(What::Fail { op, code: Some(code) });
                    self.record(What::Closed { connection, how: Closing::Broken });
                    conn.shut();
                    return false;
                }
                other => {
                    self.note(&format!("instead of CONNACK came {other:?}"));
                    ("no CONNACK".to_owned(), Closing::Broken)
                }
            },
            Ok(None) => ("no answer".to_owned(), Closing::Broken),
            Err(Over::Lost) => ("connection lost".to_owned(), Closing::Lost),
            Err(Over::Nonsense(what)) => {
                self.note(&format!("instead of CONNACK: {what}"));
                (what, Closing::Broken)
            }
        };
        conn.shut();
        self.record(What::Info { op, why });
        self.record(What::Closed { connection, how });
        false
    }

    /// After CONNACK: what is open goes out again. Whether the connection survived that.
    fn welcomed(&mut self, conn: Conn, present: bool) -> bool {
        if !present {
            self.lose_session("the session is gone");
        }
        let connection = conn.id;
        self.conn = Some(conn);
        let version = self.manner.version;
        for outgoing in self.session.again() {
            let mut bytes = Vec::new();
            match outgoing.state {
                State::Sent => {
                    self.record(What::Again { op: outgoing.op, connection });
                    encode::publish(&mut bytes, version, &outgoing.publish);
                }
                // Its operation has ended with PUBREC.
                State::Released => {
                    encode::ack(&mut bytes, Ack { kind: AckKind::Pubrel, id: outgoing.publish.id, code: 0 });
                }
            }
            if !self.send(&bytes) {
                return false;
            }
        }
        self.waiting_since = (self.open() > 0).then(Instant::now);
        true
    }

    fn lose_session(&mut self, why: &str) {
        for op in self.session.forget() {
            self.record(What::Info { op, why: why.to_owned() });
        }
        self.waiting_since = None;
    }

    /// Sends; a connection that does not take it is over.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = self.conn.as_mut().is_some_and(|conn| conn.send(bytes).is_ok());
        if !sent {
            self.ended(Closing::Lost);
        }
        sent
    }

    /// The connection is over, in this way.
    fn ended(&mut self, how: Closing) {
        let Some(conn) = self.conn.take() else { return };
        conn.shut();
        self.left();
        self.record(What::Closed { connection: conn.id, how });
    }

    /// What hung on the connection alone is open for ever.
    fn left(&mut self) {
        self.owed.clear();
        if let Some(Asked { op: Some(op), .. }) = self.asked.take() {
            self.record(What::Info { op, why: "connection lost".to_owned() });
        }
    }

    /// Ends the connection without a word: the broker publishes the will.
    pub(crate) fn break_off(&mut self) {
        self.ended(Closing::Broken);
    }

    /// DISCONNECT.
    pub(crate) fn disconnect(&mut self, with_will: bool) {
        let Some(conn) = self.conn.as_ref() else { return };
        let (op, connection) = (self.recorder.op(), conn.id);
        self.record(What::Invoke { op, call: Call::Disconnect { connection, with_will } });
        let mut bytes = Vec::new();
        let code = if with_will { 0x04 } else { 0 };
        encode::disconnect(&mut bytes, self.manner.version, code, None);
        if self.send(&bytes) {
            self.record(What::Ok { op, answer: Answer::Sent });
            self.ended(Closing::Disconnected);
        } else {
            self.record(What::Info { op, why: "connection lost".to_owned() });
        }
    }

    /// Connects a second time while the first connection stands, as a client does that believes it dead.
    pub(crate) fn take_over(&mut self) -> bool {
        if let Some(conn) = self.conn.take() {
            self.left();
            self.ghosts.push_back(conn);
            if self.ghosts.len() > GHOSTS_MAX
                && let Some(oldest) = self.ghosts.pop_front()
            {
                oldest.shut();
                self.record(What::Closed { connection: oldest.id, how: Closing::Broken });
            }
        }
        self.connect(false)
    }

    /// Publishes at QoS 1 or 2 without waiting for the answer. The message, if there was a connection.
    pub(crate) fn publish(&mut self, topic: &str, qos: u8, retain: bool) -> Option<MessageName> {
        self.publish_with(Extras::default(), topic, qos, retain)
    }

    /// The same with what 5.0 has beside; a client of 3.1.1 leaves it out.
    pub(crate) fn publish_with(&mut self, extras: Extras, topic: &str, qos: u8, retain: bool) -> Option<MessageName> {
        let Extras { key, expiry_s } = if self.manner.version == Version::V5 { extras } else { Extras::default() };
        let connection = self.conn.as_ref()?.id;
        let message = MessageName { publisher: self.id.0, seq: self.seq };
        self.seq += 1;
        let (op, packet_id) = (self.recorder.op(), self.session.id());
        let topic = self.identity.topic(topic);
        let publish = Publish {
            dup: false,
            qos,
            retain,
            topic: topic.clone(),
            id: packet_id,
            properties: key.iter().map(|key| idempotency_key(key)).chain(expiry_s.map(expiry)).collect(),
            payload: message.payload(""),
        };
        let mut bytes = Vec::new();
        encode::publish(&mut bytes, self.manner.version, &publish);
        let call = Call::Publish { connection, message, topic, qos, retain, packet_id, key, expiry_s };
        self.record(What::Invoke { op, call });
        self.session.begin(op, publish);
        self.waiting_since.get_or_insert_with(Instant::now);
        self.send(&bytes);
        Some(message)
    }

    /// SUBSCRIBE with one filter, waited for. Whether it was granted.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: u8) -> bool {
        let Some(connection) = self.conn.as_ref().map(|c| c.id) else { return false };
        let filter = &self.identity.filter(filter);
        let (op, packet_id) = (self.recorder.op(), self.session.id());
        self.record(What::Invoke { op, call: Call::Subscribe { connection, filter: filter.to_owned(), qos } });
        let mut bytes = Vec::new();
        encode::subscribe(&mut bytes, self.manner.version, packet_id, &[(filter, qos)]);
        self.asked = Some(Asked { packet_id, op: Some(op), is_subscribe: true, code: None });
        self.send(&bytes) && self.wait_answer().is_some_and(|code| code < 0x80)
    }

    /// UNSUBSCRIBE of one filter, waited for. Whether it was accepted.
    pub(crate) fn unsubscribe(&mut self, filter: &str) -> bool {
        let Some(connection) = self.conn.as_ref().map(|c| c.id) else { return false };
        let filter = &self.identity.filter(filter);
        let (op, packet_id) = (self.recorder.op(), self.session.id());
        self.record(What::Invoke { op, call: Call::Unsubscribe { connection, filter: filter.to_owned() } });
        let mut bytes = Vec::new();
        encode::unsubscribe(&mut bytes, self.manner.version, packet_id, &[filter]);
        self.asked = Some(Asked { packet_id, op: Some(op), is_subscribe: false, code: None });
        self.send(&bytes) && self.wait_answer().is_some_and(|code| code < 0x80)
    }

    /// The retained value of a topic. `is_quiet`: no fault is about, so that silence means that there is none. Its
    /// subscription stands on for `linger`: what comes live then must go on where the value ends.
    pub(crate) fn read_retained(&mut self, topic: &str, is_quiet: bool, linger: Duration) {
        let Some(connection) = self.conn.as_ref().map(|c| c.id) else { return };
        let topic = &self.identity.topic(topic);
        let (op, packet_id) = (self.recorder.op(), self.session.id());
        self.record(What::Invoke { op, call: Call::ReadRetained { connection, topic: topic.to_owned() } });
        let mut bytes = Vec::new();
        encode::subscribe(&mut bytes, self.manner.version, packet_id, &[(topic, 1)]);
        self.asked = Some(Asked { packet_id, op: None, is_subscribe: true, code: None });
        self.wanted = Some((topic.to_owned(), None));
        let is_subscribed = self.send(&bytes) && self.wait_answer().is_some_and(|code| code < 0x80);
        let found = if is_subscribed { self.wait_wanted() } else { None };
        let is_silent = is_subscribed && self.is_connected() && is_quiet;
        self.wanted = None;
        self.record(match found {
            Some(message) => What::Ok { op, answer: Answer::Retained { message: Some(message) } },
            None if is_silent => What::Ok { op, answer: Answer::Retained { message: None } },
            None => What::Info { op, why: "no retained message came".to_owned() },
        });
        if found.is_some() {
            self.pump(linger);
        }
        if self.is_connected() {
            let (packet_id, mut bytes) = (self.session.id(), Vec::new());
            encode::unsubscribe(&mut bytes, self.manner.version, packet_id, &[topic]);
            self.asked = Some(Asked { packet_id, op: None, is_subscribe: false, code: None });
            if self.send(&bytes) {
                self.wait_answer();
            }
        }
    }

    /// Reads until the wanted retained message is there.
    fn wait_wanted(&mut self) -> Option<MessageName> {
        let end = Instant::now() + self.manner.answer_max;
        loop {
            let found = self.wanted.as_ref().and_then(|(_, message)| *message);
            if found.is_some() || !self.is_connected() || Instant::now() >= end {
                return found;
            }
            self.look(Duration::from_millis(20));
        }
    }

    /// Reads until SUBACK or UNSUBACK is there; a broker that does not answer is left.
    fn wait_answer(&mut self) -> Option<u8> {
        let end = Instant::now() + self.manner.answer_max;
        while self.is_connected() {
            if let Some(code) = self.asked.as_ref().and_then(|asked| asked.code) {
                self.asked = None;
                return Some(code);
            }
            if Instant::now() >= end {
                self.ended(Closing::Broken);
            }
            self.look(Duration::from_millis(50));
        }
        None
    }

    /// It is over: what is open stays open for ever. So does the connection of a session that lasts: a history in which
    /// nobody is connected at the end says of nothing that it should have come. (One that ends with its connection gives
    /// back what it holds, which others may still be seen to get.)
    pub(crate) fn give_up(&mut self) {
        if self.manner.expiry_s == 0 {
            self.disconnect(false);
        } else if let Some(conn) = self.conn.take() {
            conn.shut();
        }
        self.left();
        for op in self.session.forget() {
            self.record(What::Info { op, why: "given up".to_owned() });
        }
        for ghost in std::mem::take(&mut self.ghosts) {
            ghost.shut();
            self.note(&format!("connection {} was taken over and never ended by {}", ghost.id.0, ghost.node));
            self.record(What::Closed { connection: ghost.id, how: Closing::Broken });
        }
    }
}

/// What a PUBLISH of 5.0 may have beside.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    /// Idempotency key.
    pub(crate) key: Option<String>,
    /// Message Expiry Interval, seconds.
    pub(crate) expiry_s: Option<u32>,
}

fn expiry(seconds: u32) -> Property {
    Property { id: property::MESSAGE_EXPIRY, value: Value::U32(seconds) }
}

fn idempotency_key(key: &str) -> Property {
    Property { id: property::USER, value: Value::Pair("idempotency-key".to_owned(), key.to_owned()) }
}
