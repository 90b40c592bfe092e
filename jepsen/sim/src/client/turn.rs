//! What a client does of itself.

use std::time::Duration;

use quorate::mqtt::packet::{Packet, Subscribe};
use quorate::mqtt::reason::Reason;
use quorate_jepsen::history::event::{Answer, Call, Closing, What};
use quorate_jepsen::history::{MessageName, Sent};
use quorate_store::command::SubscribeOptions;
use quorate_store::ids::QoS;
use quorate_store::topic::TopicFilter;

use super::{
    Asked, Client, Link, Out, Phase, Question, State, break_connection, closed, connect, identifier, to_node, travel,
    with, with_client,
};
use crate::world::{after, below, between, note, one_in, one_of};
use crate::{clock, history, node};

/// Without an answer for so long a client breaks its connection.
const PATIENCE: Duration = Duration::from_secs(9);
/// So long at most a reader stays subscribed when it has its value: what comes live then must go on where that ends.
const LINGER_MS_MAX: u64 = 800;
/// So long after SUBACK a retained message is waited for; silence means that there is none, if all is well.
const READ_MAX: Duration = Duration::from_secs(4);

/// What a turn comes to.
enum Deed {
    Nothing,
    Connect,
    Break,
    TakeOver,
    Goodbye(Reason),
    Send(Vec<Packet>),
}

/// A turn of a client's life, and the next one later.
pub(super) fn live(id: u32) {
    after(between(Duration::from_millis(20), Duration::from_millis(250)), move || live(id));
    let phase = with(|clients| clients.phase);
    let Some((link, deed)) = with_client(id, |client| (client.link, client.deed(phase))) else { return };
    match (deed, link) {
        (Deed::Connect, _) => connect(id, None),
        (Deed::Break, _) => {
            break_connection(id);
            stay_away(id);
        }
        (Deed::TakeOver, Some(link)) => take_over(link),
        (Deed::Goodbye(reason), Some(link)) => goodbye(link, reason),
        (Deed::Send(packets), Some(link)) => packets.into_iter().for_each(|packet| to_node(link, packet)),
        (Deed::Nothing | Deed::TakeOver | Deed::Goodbye(_) | Deed::Send(_), _) => {}
    }
}

fn stay_away(id: u32) {
    with_client(id, |client| {
        let (least, most) = client.habits.away_ms;
        let away = between(Duration::from_millis(least), Duration::from_millis(most));
        client.away_until_ns = clock::now_ns() + away.as_nanos() as u64;
    });
}

/// Connects to another node, as a client does that believes its connection dead.
fn take_over(link: Link) {
    with_client(link.client, |client| {
        note!("client {} leaves connection {} as it stands", client.id, link.connection);
        client.left();
        client.ghosts.push(link);
        client.link = None;
        client.waits_since_ns = None;
        client.state = State::Away;
    });
    connect(link.client, if one_in(4) { None } else { Some(link.host) });
}

/// DISCONNECT.
fn goodbye(link: Link, reason: Reason) {
    with_client(link.client, |client| {
        note!("client {} says goodbye on connection {}, {}", client.id, link.connection, reason.0);
        let op = history::op();
        let (connection, with_will) = (link.number(), reason == Reason::DISCONNECT_WITH_WILL);
        client.record(What::Invoke { op, call: Call::Disconnect { connection, with_will } });
        client.record(What::Ok { op, answer: Answer::Sent });
    });
    to_node(link, Packet::Disconnect { reason, expiry_s: None });
    closed(link, Closing::Disconnected);
    let delay = travel(link, 1);
    after(delay, move || node::with_front(link.host, link.life, move |front| front.socket_closed(link)));
    stay_away(link.client);
}

impl Client {
    fn deed(&mut self, phase: Phase) -> Deed {
        let now = clock::now_ns();
        if self.waits_since_ns.is_some_and(|since| now - since > PATIENCE.as_nanos() as u64) {
            return Deed::Break;
        }
        let is_leaving = phase == Phase::Drain && self.habits.leaves;
        match self.state {
            State::Away if is_leaving || now < self.away_until_ns => return Deed::Nothing,
            State::Away => return Deed::Connect,
            // Some do not wait for CONNACK.
            State::Connecting if phase == Phase::Load && below(1_000) < self.habits.breaks_permille => {
                return Deed::Break;
            }
            State::Connecting => return Deed::Nothing,
            State::Open if is_leaving && one_in(2) => return Deed::Break,
            State::Open if is_leaving => return Deed::Goodbye(Reason::SUCCESS),
            State::Open => {}
        }
        if phase == Phase::Load {
            let luck = below(1_000);
            let (breaks, goodbyes) = (self.habits.breaks_permille, self.habits.goodbyes_permille);
            if luck < breaks {
                return Deed::Break;
            } else if luck < breaks + goodbyes {
                let with_will = one_in(3);
                return Deed::Goodbye(if with_will { Reason::DISCONNECT_WITH_WILL } else { Reason::SUCCESS });
            } else if luck < breaks + goodbyes + self.habits.takeovers_permille {
                return Deed::TakeOver;
            }
        }
        let Some(link) = self.link else { return Deed::Nothing };
        let mut packets = self.settle(link, phase);
        if let Some(asked) = self.asked.clone() {
            if let Question::Read { is_granted: true, .. } = asked.what
                && now - asked.since_ns > READ_MAX.as_nanos() as u64
            {
                if phase != Phase::Drain {
                    // It may yet come, and must not be taken for the answer to the next.
                    return Deed::Break;
                }
                packets.extend(self.read_is_over(link, None));
            }
        } else if let Some((topic, until_ns)) = self.lingers.clone() {
            if now >= until_ns || phase == Phase::Drain {
                packets.push(self.end_read(&topic));
            }
        } else if let Some((filter, qos)) = self.habits.filter.clone()
            && !self.is_subscribed
            && (!self.habits.churns || phase == Phase::Load)
        {
            if !self.habits.churns || one_in(6) {
                packets.push(self.subscribe(link, &filter, qos));
            }
        } else if let Some((filter, _)) = self.habits.filter.clone()
            && self.habits.churns
            && phase == Phase::Load
            && one_in(6)
        {
            packets.push(self.unsubscribe(link, &filter));
        } else if let Some(topic) = self.next_read(phase) {
            packets.push(self.read(link, &topic));
        }
        if phase == Phase::Load {
            packets.extend(self.publish(link));
        }
        Deed::Send(packets)
    }

    /// Answers what came, or holds the answers back for a turn, so that connections end with some of them owed.
    fn settle(&mut self, link: Link, phase: Phase) -> Vec<Packet> {
        if phase != Phase::Drain && below(100) < self.habits.hold_percent {
            return Vec::new();
        }
        let owed = std::mem::take(&mut self.owed);
        owed.into_iter().map(|owed| self.answer(link, owed)).collect()
    }

    fn next_read(&mut self, phase: Phase) -> Option<String> {
        match phase {
            Phase::Setup => None,
            Phase::Load if one_in(2) => None,
            Phase::Load => self.habits.reads.get(below(self.habits.reads.len() as u64) as usize).cloned(),
            // What was written last is there before anybody is asked for it.
            Phase::Drain => self.reads_left.pop(),
        }
    }

    fn ask(&mut self, op: Option<quorate_jepsen::history::event::OpId>, what: Question) -> u16 {
        let id = self.free_id();
        self.asked = Some(Asked { id, op, what, since_ns: clock::now_ns() });
        self.waits_since_ns.get_or_insert_with(clock::now_ns);
        id
    }

    fn subscribe(&mut self, link: Link, filter: &str, qos: QoS) -> Packet {
        let (op, connection) = (history::op(), link.number());
        note!("client {} subscribes to {filter}", self.id);
        let call = Call::Subscribe { connection, filter: filter.to_owned(), qos: qos as u8 };
        self.record(What::Invoke { op, call });
        let id = self.ask(Some(op), Question::Subscribe);
        subscribe_packet(id, filter, qos)
    }

    fn unsubscribe(&mut self, link: Link, filter: &str) -> Packet {
        let (op, connection) = (history::op(), link.number());
        note!("client {} unsubscribes from {filter}", self.id);
        self.record(What::Invoke { op, call: Call::Unsubscribe { connection, filter: filter.to_owned() } });
        // Until UNSUBACK it may be either.
        self.is_subscribed = false;
        let id = self.ask(Some(op), Question::Unsubscribe);
        unsubscribe_packet(id, filter)
    }

    fn read(&mut self, link: Link, topic: &str) -> Packet {
        let (op, connection) = (history::op(), link.number());
        note!("client {} reads {topic}", self.id);
        self.record(What::Invoke { op, call: Call::ReadRetained { connection, topic: topic.to_owned() } });
        let topic = topic.to_owned();
        let id = self.ask(Some(op), Question::Read { topic: topic.clone(), is_granted: false, found: None });
        subscribe_packet(id, &topic, QoS::AtLeastOnce)
    }

    /// The read found this, or nothing: its subscription is ended, at once or later.
    pub(super) fn read_is_over(&mut self, link: Link, found: Option<MessageName>) -> Option<Packet> {
        let Asked { op: Some(op), what: Question::Read { topic, .. }, since_ns, .. } = self.asked.take()? else {
            return None;
        };
        note!("client {} finds {found:?} on {topic} on node {}", self.id, link.host);
        let is_emptied = topic.starts_with("e/");
        self.record(if is_emptied {
            // An empty message has no name: see `register`.
            What::Info { op, why: "held by the simulator".to_owned() }
        } else {
            What::Ok { op, answer: Answer::Retained { message: found } }
        });
        if is_emptied {
            after(Duration::ZERO, {
                let topic = topic.clone();
                move || with(|clients| clients.registers.read(&topic, since_ns, found))
            });
        }
        self.answered();
        if found.is_some() && one_in(2) {
            self.lingers = Some((topic, clock::now_ns() + below(LINGER_MS_MAX) * 1_000_000));
            return None;
        }
        Some(self.end_read(&topic))
    }

    fn end_read(&mut self, topic: &str) -> Packet {
        self.lingers = None;
        let id = self.ask(None, Question::EndRead);
        unsubscribe_packet(id, topic)
    }

    fn publish(&mut self, link: Link) -> Option<Packet> {
        let is_ready = self.is_subscribed || self.habits.churns || self.habits.filter.is_none();
        if self.habits.topics.is_empty() || !is_ready || self.out.len() >= self.habits.window || one_in(4) {
            return None;
        }
        let topic = self.habits.topics.get(below(self.habits.topics.len() as u64) as usize)?.clone();
        let qos = one_of(&self.habits.qos)?;
        let id = if qos == QoS::AtMostOnce { 0 } else { self.free_id() };
        let message = MessageName { publisher: self.id, seq: self.seq };
        self.seq += 1;
        let (retain, is_empty) = (self.habits.retains, self.habits.empties && one_in(3));
        note!("client {} publishes {message} on {topic} at {} as {id}, empty {is_empty}", self.id, qos as u8);
        if self.habits.empties {
            let (topic, value) = (topic.clone(), (!is_empty).then_some(message));
            after(Duration::ZERO, move || with(|clients| clients.registers.write(&topic, value)));
        }
        let is_expiring = self.habits.expiring_percent > 0 && below(100) < self.habits.expiring_percent;
        let expiry_s = is_expiring.then(|| 1 + below(3) as u32);
        let op = (!is_empty).then(history::op);
        if let Some(op) = op {
            let (connection, topic) = (link.number(), topic.clone());
            let (qos, key) = (qos as u8, None);
            let call = Call::Publish { connection, message, topic, qos, retain, packet_id: id, key, expiry_s };
            self.record(What::Invoke { op, call });
        }
        let mut out =
            Out { message, topic, qos, retain, is_empty, expiry_s, op, at: None, is_released: false, is_resent: false };
        if qos == QoS::AtMostOnce {
            if let Some(op) = op {
                self.record(What::Ok { op, answer: Answer::Sent });
            }
            return Some(out.packet(id, false));
        }
        if self.habits.is_core {
            out.at = Some(self.sent.len());
            self.sent.push(Sent { message, qos: qos as u8, times: 1, acknowledged: false });
        }
        let packet = out.packet(id, false);
        self.out.push((id, out));
        self.waits_since_ns.get_or_insert_with(clock::now_ns);
        Some(packet)
    }
}

fn subscribe_packet(id: u16, filter: &str, qos: QoS) -> Packet {
    let options = SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: 0 };
    let filter = TopicFilter::new(filter).expect("a filter");
    Packet::Subscribe(Subscribe { id: identifier(id), identifier: None, filters: vec![Ok((filter, options))] })
}

fn unsubscribe_packet(id: u16, filter: &str) -> Packet {
    let filter = TopicFilter::new(filter).expect("a filter");
    Packet::Unsubscribe { id: identifier(id), filters: vec![Ok(filter)] }
}
