//! Histories in a few words, for tests of the checkers.

pub(crate) mod broker;

use super::verdict::{Expectations, Guarantee, Report, Verdict};
use crate::history::MessageName;
use crate::history::event::{Answer, Call, Client, Closing, Connection, Delivery, Event, OpId, Step, What, Will};

/// A generator that is the same everywhere (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`, which is above 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What a CONNECT asks, beside the usual.
pub(crate) struct Connect {
    pub(crate) clean_start: bool,
    pub(crate) expiry_s: u32,
    pub(crate) will: Option<Will>,
}

/// Guarantees that are broken, each with the number of the message.
pub(crate) fn broken(history: &History) -> Vec<(Guarantee, Option<u64>)> {
    match history.report().verdict {
        Verdict::Violation(all) => all.iter().map(|bad| (bad.guarantee, bad.message.map(|m| m.seq))).collect(),
        Verdict::Pass | Verdict::Unknown(_) => Vec::new(),
    }
}

/// One event after the other, a millisecond apart.
#[derive(Clone, Default)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    at_ns: u64,
    ops: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn report(&self) -> Report {
        self.report_with(&Expectations::default())
    }

    pub(crate) fn report_with(&self, expectations: &Expectations) -> Report {
        crate::check::check_events(self.events.iter().cloned(), expectations).unwrap()
    }

    pub(crate) const fn name((publisher, seq): (u32, u64)) -> MessageName {
        MessageName { publisher, seq }
    }

    pub(crate) fn push(&mut self, client: Option<u32>, what: What) -> &mut Self {
        self.at_ns += 1_000_000;
        self.events.push(Event { at_ns: self.at_ns, client: client.map(Client), what });
        self
    }

    pub(crate) fn wait_s(&mut self, seconds: u64) -> &mut Self {
        self.at_ns += seconds * 1_000_000_000;
        self
    }

    pub(crate) fn open(&mut self, client: u32, call: Call) -> OpId {
        let op = OpId(self.ops);
        self.ops += 1;
        self.push(Some(client), What::Invoke { op, call });
        op
    }

    pub(crate) fn ok(&mut self, client: u32, op: OpId, answer: Answer) -> &mut Self {
        self.push(Some(client), What::Ok { op, answer })
    }

    pub(crate) fn info(&mut self, client: u32, op: OpId) -> &mut Self {
        self.push(Some(client), What::Info { op, why: "no answer".to_owned() })
    }

    pub(crate) fn fail(&mut self, client: u32, op: OpId) -> &mut Self {
        self.push(Some(client), What::Fail { op, code: Some(0x97) })
    }

    pub(crate) fn connect_open(&mut self, client: u32, connection: u32, clean_start: bool, expiry_s: u32) -> OpId {
        self.connect_as(client, connection, Connect { clean_start, expiry_s, will: None })
    }

    pub(crate) fn connect_as(&mut self, client: u32, connection: u32, asked: Connect) -> OpId {
        let Connect { clean_start, expiry_s, will } = asked;
        let node = format!("n{connection}");
        let connection = Connection(connection);
        self.open(client, Call::Connect { connection, node, clean_start, expiry_s, will })
    }

    pub(crate) fn connack(&mut self, client: u32, op: OpId, present: bool) -> &mut Self {
        self.ok(client, op, Answer::Connected { present })
    }

    /// A session of its own, for a minute.
    pub(crate) fn connect(&mut self, client: u32, connection: u32) -> &mut Self {
        self.connect_with(client, connection, |_| {})
    }

    pub(crate) fn connect_with(
        &mut self,
        client: u32,
        connection: u32,
        change: impl FnOnce(&mut Connect),
    ) -> &mut Self {
        let mut asked = Connect { clean_start: false, expiry_s: 60, will: None };
        change(&mut asked);
        let op = self.connect_as(client, connection, asked);
        self.connack(client, op, false)
    }

    pub(crate) fn resume(&mut self, client: u32, connection: u32) -> &mut Self {
        let op = self.connect_open(client, connection, false, 60);
        self.connack(client, op, true)
    }

    fn closed(&mut self, client: u32, connection: u32, how: Closing) -> &mut Self {
        self.push(Some(client), What::Closed { connection: Connection(connection), how })
    }

    pub(crate) fn lost(&mut self, client: u32, connection: u32) -> &mut Self {
        self.closed(client, connection, Closing::Lost)
    }

    pub(crate) fn told(&mut self, client: u32, connection: u32, code: u8) -> &mut Self {
        self.closed(client, connection, Closing::Told { code })
    }

    pub(crate) fn disconnect(&mut self, client: u32, connection: u32, with_will: bool) -> &mut Self {
        let op = self.open(client, Call::Disconnect { connection: Connection(connection), with_will });
        self.ok(client, op, Answer::Sent).closed(client, connection, Closing::Disconnected)
    }

    pub(crate) fn subscribe(&mut self, client: u32, connection: u32, filter: &str, qos: u8) -> &mut Self {
        let connection = Connection(connection);
        let op = self.open(client, Call::Subscribe { connection, filter: filter.to_owned(), qos });
        self.ok(client, op, Answer::Subscribed { code: qos })
    }

    pub(crate) fn unsubscribe_open(&mut self, client: u32, connection: u32, filter: &str) -> OpId {
        let connection = Connection(connection);
        self.open(client, Call::Unsubscribe { connection, filter: filter.to_owned() })
    }

    pub(crate) fn unsuback(&mut self, client: u32, op: OpId) -> &mut Self {
        self.ok(client, op, Answer::Unsubscribed { code: 0 })
    }

    pub(crate) fn unsubscribe(&mut self, client: u32, connection: u32, filter: &str) -> &mut Self {
        let op = self.unsubscribe_open(client, connection, filter);
        self.unsuback(client, op)
    }

    pub(crate) fn read_open(&mut self, client: u32, connection: u32, topic: &str) -> OpId {
        let connection = Connection(connection);
        self.open(client, Call::ReadRetained { connection, topic: topic.to_owned() })
    }

    pub(crate) fn found(&mut self, client: u32, op: OpId, value: Option<(u32, u64)>) -> &mut Self {
        self.ok(client, op, Answer::Retained { message: value.map(Self::name) })
    }

    pub(crate) fn read(&mut self, client: u32, connection: u32, topic: &str, value: Option<(u32, u64)>) -> &mut Self {
        let op = self.read_open(client, connection, topic);
        self.found(client, op, value)
    }

    fn publish_as(
        &mut self,
        client: u32,
        connection: u32,
        seq: u64,
        topic: &str,
        (qos, retain, key): (u8, bool, Option<&str>),
    ) -> OpId {
        let call = Call::Publish {
            connection: Connection(connection),
            message: Self::name((client, seq)),
            topic: topic.to_owned(),
            qos,
            retain,
            packet_id: u16::from(qos > 0),
            key: key.map(str::to_owned),
            expiry_s: None,
        };
        self.open(client, call)
    }

    /// With its acknowledgement.
    pub(crate) fn publish_expiring(
        &mut self,
        client: u32,
        connection: u32,
        seq: u64,
        topic: &str,
        qos: u8,
        expiry: u32,
    ) -> &mut Self {
        let op = self.publish_open(client, connection, seq, topic, qos);
        self.expires_after(expiry).puback(client, op)
    }

    /// For so many seconds a client publishes once in each, on its first connection, and is served or is not.
    pub(crate) fn busy(&mut self, client: u32, seconds: u64, is_served: bool) -> &mut Self {
        for seq in 0..seconds {
            let op = self.wait_s(1).publish_open(client, 1, seq, "busy", 1);
            if is_served {
                self.puback(client, op)
            } else {
                self.fail(client, op)
            };
        }
        self
    }

    /// A PUBLISH goes out once more, on a later connection.
    pub(crate) fn resent(&mut self, client: u32, op: OpId, connection: u32) -> &mut Self {
        self.push(Some(client), What::Again { op, connection: Connection(connection) })
    }

    /// The PUBLISH that was begun last has this Message Expiry Interval.
    pub(crate) fn expires_after(&mut self, seconds: u32) -> &mut Self {
        let last = self.events.last_mut();
        if let Some(Event { what: What::Invoke { call: Call::Publish { expiry_s, .. }, .. }, .. }) = last {
            *expiry_s = Some(seconds);
        }
        self
    }

    pub(crate) fn publish_open(&mut self, client: u32, connection: u32, seq: u64, topic: &str, qos: u8) -> OpId {
        self.publish_as(client, connection, seq, topic, (qos, false, None))
    }

    pub(crate) fn puback(&mut self, client: u32, op: OpId) -> &mut Self {
        self.ok(client, op, Answer::Published { code: 0, position: None })
    }

    pub(crate) fn puback_at(&mut self, client: u32, op: OpId, position: u64) -> &mut Self {
        self.ok(client, op, Answer::Published { code: 0, position: Some(position) })
    }

    /// With its acknowledgement.
    pub(crate) fn publish(&mut self, client: u32, connection: u32, seq: u64, topic: &str, qos: u8) -> &mut Self {
        let op = self.publish_open(client, connection, seq, topic, qos);
        if qos == 0 { self.ok(client, op, Answer::Sent) } else { self.puback(client, op) }
    }

    pub(crate) fn publish_at(
        &mut self,
        client: u32,
        connection: u32,
        seq: u64,
        topic: &str,
        qos: u8,
        position: u64,
    ) -> &mut Self {
        let op = self.publish_open(client, connection, seq, topic, qos);
        self.puback_at(client, op, position)
    }

    pub(crate) fn publish_keyed(
        &mut self,
        client: u32,
        connection: u32,
        seq: u64,
        topic: &str,
        key: &str,
        position: u64,
    ) -> &mut Self {
        let op = self.publish_as(client, connection, seq, topic, (1, false, Some(key)));
        self.puback_at(client, op, position)
    }

    pub(crate) fn publish_info(&mut self, client: u32, connection: u32, seq: u64, topic: &str, qos: u8) -> &mut Self {
        let op = self.publish_open(client, connection, seq, topic, qos);
        self.info(client, op)
    }

    pub(crate) fn retain_open(&mut self, client: u32, connection: u32, seq: u64, topic: &str, qos: u8) -> OpId {
        self.publish_as(client, connection, seq, topic, (qos, true, None))
    }

    pub(crate) fn retain(&mut self, client: u32, connection: u32, seq: u64, topic: &str, qos: u8) -> &mut Self {
        let op = self.retain_open(client, connection, seq, topic, qos);
        self.puback(client, op)
    }

    fn delivery(&mut self, client: u32, delivery: Delivery) -> &mut Self {
        self.push(Some(client), What::Deliver(delivery))
    }

    fn arriving(connection: u32, name: (u32, u64), topic: &str, qos: u8, packet_id: u16) -> Delivery {
        Delivery {
            connection: Connection(connection),
            message: Self::name(name),
            topic: topic.to_owned(),
            qos,
            dup: false,
            retain: false,
            packet_id,
            repeated: false,
            position: None,
        }
    }

    pub(crate) fn deliver(
        &mut self,
        client: u32,
        connection: u32,
        name: (u32, u64),
        topic: &str,
        qos: u8,
        packet_id: u16,
    ) -> &mut Self {
        self.delivery(client, Self::arriving(connection, name, topic, qos, packet_id))
    }

    /// With DUP=1; at QoS 2 as one whose identifier is received.
    pub(crate) fn again(
        &mut self,
        client: u32,
        connection: u32,
        name: (u32, u64),
        topic: &str,
        qos: u8,
        packet_id: u16,
    ) -> &mut Self {
        let delivery = Self::arriving(connection, name, topic, qos, packet_id);
        self.delivery(client, Delivery { dup: true, repeated: qos == 2, ..delivery })
    }

    pub(crate) fn deliver_at(
        &mut self,
        client: u32,
        connection: u32,
        name: (u32, u64),
        topic: &str,
        qos: u8,
        packet_id: u16,
        position: u64,
    ) -> &mut Self {
        let delivery = Self::arriving(connection, name, topic, qos, packet_id);
        self.delivery(client, Delivery { position: Some(position), ..delivery })
    }

    fn step(&mut self, client: u32, connection: u32, packet_id: u16, step: Step) -> &mut Self {
        self.push(Some(client), What::Settle { connection: Connection(connection), packet_id, step })
    }

    /// PUBACK.
    pub(crate) fn settle(&mut self, client: u32, connection: u32, packet_id: u16) -> &mut Self {
        self.step(client, connection, packet_id, Step::Ack)
    }

    pub(crate) fn received(&mut self, client: u32, connection: u32, packet_id: u16) -> &mut Self {
        self.step(client, connection, packet_id, Step::Received)
    }

    pub(crate) fn completed(&mut self, client: u32, connection: u32, packet_id: u16) -> &mut Self {
        self.step(client, connection, packet_id, Step::Complete)
    }

    pub(crate) fn released(&mut self, client: u32, connection: u32, packet_id: u16) -> &mut Self {
        self.push(Some(client), What::Released { connection: Connection(connection), packet_id })
    }

    /// The whole answer that a delivery of this QoS gets.
    pub(crate) fn answer(&mut self, client: u32, connection: u32, packet_id: u16, qos: u8) -> &mut Self {
        match qos {
            0 => self,
            1 => self.settle(client, connection, packet_id),
            _ => self
                .received(client, connection, packet_id)
                .released(client, connection, packet_id)
                .completed(client, connection, packet_id),
        }
    }

    pub(crate) fn drain(&mut self) -> &mut Self {
        self.push(None, What::Drain)
    }

    pub(crate) fn leader(&mut self, node: &str, term: u64) -> &mut Self {
        self.push(None, What::Leader { node: node.to_owned(), term })
    }

    pub(crate) fn fault(&mut self, number: u32, nemesis: &str) -> &mut Self {
        let (nemesis, nodes, what) = (nemesis.to_owned(), Vec::new(), String::new());
        self.push(None, What::Fault { number, nemesis, nodes, what })
    }

    pub(crate) fn healed(&mut self, number: u32) -> &mut Self {
        self.push(None, What::Healed { number })
    }

    pub(crate) fn not_installed(&mut self, nemesis: &str, why: &str) -> &mut Self {
        self.push(None, What::NotInstalled { nemesis: nemesis.to_owned(), why: why.to_owned() })
    }

    pub(crate) fn digest(&mut self, node: &str, applied: u64, digest: &str) -> &mut Self {
        self.push(None, What::Digest { node: node.to_owned(), applied, digest: digest.to_owned() })
    }
}
