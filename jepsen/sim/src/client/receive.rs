//! What a client makes of what comes.

use quorate::mqtt::packet::{Delivered as Arrived, Outgoing, Packet};
use quorate::mqtt::reason::Reason;
use quorate_jepsen::history::event::{Answer, Closing, Delivery, Step, What};
use quorate_jepsen::history::{Delivered, MessageName};
use quorate_store::ids::{PacketId, Position, QoS};

use super::{Client, Link, Owed, Question, State, closed, identifier, to_node, with, with_client};
use crate::world::note;
use crate::{clock, history, invariants};

/// A packet arrives at its client.
pub(super) fn receive(link: Link, packet: Outgoing) {
    if let Outgoing::Disconnect(reason, _) = &packet {
        return closed(link, Closing::Told { code: reason.0 });
    }
    if let Outgoing::Publish(_) = &packet {
        with(|clients| clients.delivered_ns = clock::now_ns());
    }
    let answers = with_client(link.client, |client| {
        // Nothing is answered on a connection that was left.
        if client.link == Some(link) { client.take(link, packet) } else { Answers::default() }
    });
    let Some(answers) = answers else { return };
    if let Some(topic) = answers.written {
        with(|clients| clients.registers.acknowledged(&topic));
    }
    if let Some(message) = answers.taken {
        invariants::acknowledged(message);
    }
    for answer in answers.packets {
        to_node(link, answer);
    }
    if answers.is_refused {
        closed(link, Closing::Broken);
    }
}

/// What follows from a packet.
#[derive(Default)]
struct Answers {
    packets: Vec<Packet>,
    /// A register whose latest write is acknowledged.
    written: Option<String>,
    /// What the broker says that it has.
    taken: Option<MessageName>,
    /// There is no connection.
    is_refused: bool,
}

impl From<Option<Packet>> for Answers {
    fn from(packet: Option<Packet>) -> Self {
        Self { packets: packet.into_iter().collect(), ..Self::default() }
    }
}

impl Client {
    fn take(&mut self, link: Link, packet: Outgoing) -> Answers {
        match packet {
            Outgoing::ConnAck(ack) => self.connected(link, ack.reason, ack.session_present),
            Outgoing::SubAck(id, reasons) => self.granted(link, id, &reasons).into(),
            Outgoing::UnsubAck(id, reasons) => self.granted(link, id, &reasons).into(),
            Outgoing::PubAck(id, reason) | Outgoing::PubAckAt(id, reason, _) => {
                self.acknowledged(id.get(), reason, true)
            }
            Outgoing::PubRec(id, reason) | Outgoing::PubRecAt(id, reason, _) => {
                self.acknowledged(id.get(), reason, reason.is_failure())
            }
            Outgoing::PubComp(id, _) => {
                self.out.retain(|(used, _)| *used != id.get());
                self.answered();
                Answers::default()
            }
            Outgoing::PubRel(id, _) => {
                self.record(What::Released { connection: link.number(), packet_id: id.get() });
                self.received_qos2.remove(&id.get());
                self.owe(link, Packet::PubComp { id }, id.get(), Some(Step::Complete)).into()
            }
            Outgoing::Publish(arrived) => self.delivered(link, &arrived),
            Outgoing::PingResp | Outgoing::Auth(..) | Outgoing::Disconnect(..) => Answers::default(),
        }
    }

    fn connected(&mut self, link: Link, reason: Reason, present: bool) -> Answers {
        let Some(op) = self.connecting.take() else { return Answers::default() };
        if reason != Reason::SUCCESS {
            note!("client {} is refused with {:#04x}", self.id, reason.0);
            self.record(What::Fail { op, code: Some(reason.0) });
            return Answers { is_refused: true, ..Answers::default() };
        }
        note!("client {} is connected, session present {present}", self.id);
        self.record(What::Ok { op, answer: Answer::Connected { present } });
        if self.has_session && !present {
            invariants::violated("session present is exact (guarantee 8)", &format!("client {}", self.id));
        }
        if !present {
            self.lose_session("the session is gone");
        }
        // A session that does not expire is there the next time.
        self.has_session = self.habits.expiry_s >= 86_400;
        self.state = State::Open;
        self.is_cleaning = false;
        self.waits_since_ns = None;
        Answers { packets: self.resume(link), ..Answers::default() }
    }

    /// What goes out first on a new connection [MQTT-4.4.0-1].
    fn resume(&mut self, link: Link) -> Vec<Packet> {
        let mut packets = Vec::new();
        for (id, out) in &mut self.out {
            if out.is_released {
                packets.push(Packet::PubRel { id: identifier(*id) });
                continue;
            }
            out.is_resent = true;
            if let Some(op) = out.op {
                history::record(Some(self.id), What::Again { op, connection: link.number() });
            }
            if let Some(sent) = out.at.and_then(|at| self.sent.get_mut(at)) {
                sent.times += 1;
            }
            packets.push(out.packet(*id, true));
        }
        if !packets.is_empty() {
            self.waits_since_ns = Some(clock::now_ns());
        }
        packets
    }

    pub(super) fn answered(&mut self) {
        self.waits_since_ns = (!self.out.is_empty() || self.asked.is_some()).then(clock::now_ns);
    }

    /// PUBACK or PUBREC.
    fn acknowledged(&mut self, id: u16, reason: Reason, is_over: bool) -> Answers {
        let Some(place) = self.out.iter().position(|(used, _)| *used == id) else { return Answers::default() };
        let Some((_, out)) = self.out.get_mut(place) else { return Answers::default() };
        let (op, was_released) = (out.op, out.is_released);
        out.is_released = true;
        let out = out.clone();
        if let (false, Some(sent)) = (reason.is_failure(), out.at.and_then(|at| self.sent.get_mut(at))) {
            sent.acknowledged = true;
        }
        if let Some(op) = op.filter(|_| !was_released) {
            self.record(if !reason.is_failure() {
                What::Ok { op, answer: Answer::Published { code: reason.0, position: None } }
            } else if out.is_resent {
                What::Info { op, why: format!("a resend was refused with {:#04x}", reason.0) }
            } else {
                What::Fail { op, code: Some(reason.0) }
            });
        }
        if is_over {
            self.out.remove(place);
        }
        self.answered();
        let is_taken = !reason.is_failure() && !out.is_empty && !was_released;
        let taken = is_taken.then_some(out.message);
        let written = (self.habits.empties && !reason.is_failure()).then(|| out.topic.clone());
        let packets = if is_over { Vec::new() } else { vec![Packet::PubRel { id: identifier(id) }] };
        Answers { packets, written, taken, is_refused: false }
    }

    /// SUBACK or UNSUBACK.
    fn granted(&mut self, link: Link, id: PacketId, reasons: &[Reason]) -> Option<Packet> {
        let asked = self.asked.as_mut().filter(|asked| asked.id == id.get())?;
        let reason = reasons.first().copied().unwrap_or(Reason::UNSPECIFIED_ERROR);
        if reason.is_failure() {
            note!("client {} is refused {:?} with {:#04x}", self.id, asked.what, reason.0);
        }
        let code = reason.0;
        let answer = match &mut asked.what {
            Question::Read { is_granted, found, .. } if !reason.is_failure() => {
                *is_granted = true;
                let found = *found;
                return found.and_then(|found| self.read_is_over(link, found));
            }
            Question::Subscribe => Answer::Subscribed { code },
            Question::Unsubscribe | Question::EndRead | Question::Read { .. } => Answer::Unsubscribed { code },
        };
        let asked = self.asked.take()?;
        if let Some(op) = asked.op {
            let is_failure = reason.is_failure();
            self.record(if is_failure { What::Fail { op, code: Some(code) } } else { What::Ok { op, answer } });
        }
        if let Question::Subscribe = asked.what {
            self.is_subscribed = !reason.is_failure();
        }
        self.answered();
        None
    }

    fn delivered(&mut self, link: Link, arrived: &Arrived) -> Answers {
        self.deliveries += 1;
        let id = arrived.id.map_or(0, PacketId::get);
        let (topic, payload) = (arrived.message.topic.as_str(), &arrived.message.payload.0);
        let is_new = arrived.qos != QoS::ExactlyOnce || self.received_qos2.insert(id);
        let name = MessageName::parse(payload);
        note!("client {} gets {name:?} as {id}, dup {}, new {is_new}", self.id, arrived.dup);
        if let Some(message) = name {
            // QoS 0 may go past the log; a retained message stands where its SUBSCRIBE does.
            let is_placed = arrived.message.qos != QoS::AtMostOnce && !arrived.retain;
            let position = Some(arrived.message.position).filter(|_| is_placed);
            self.record(What::Deliver(Delivery {
                connection: link.number(),
                message,
                topic: topic.to_owned(),
                qos: arrived.qos as u8,
                dup: arrived.dup,
                retain: arrived.retain,
                packet_id: id,
                repeated: !is_new,
                position: position.filter(|at| *at != Position::ZERO).map(Position::as_u64),
            }));
            if is_new && self.habits.is_core && arrived.message.qos != QoS::AtMostOnce {
                self.delivered.push(Delivered {
                    subscriber: self.id,
                    connection: link.connection,
                    message,
                    qos: arrived.qos as u8,
                    dup: arrived.dup,
                    packet_id: id,
                });
            }
        } else if !payload.is_empty() {
            invariants::violated("nothing from nowhere", &format!("client {} got {payload:?} on {topic}", self.id));
        }
        let mut packets = Vec::new();
        if let Some(id) = arrived.id {
            let reason = Reason::SUCCESS;
            let (packet, step) = match arrived.qos {
                QoS::ExactlyOnce => (Packet::PubRec { id, reason }, Step::Received),
                _ => (Packet::PubAck { id, reason }, Step::Ack),
            };
            packets.extend(self.owe(link, packet, id.get(), name.map(|_| step)));
        }
        if let Some(asked) = &mut self.asked
            && let Question::Read { topic: wanted, is_granted, found } = &mut asked.what
            && arrived.retain
            && wanted == topic
        {
            let value = *found.get_or_insert(name);
            if *is_granted {
                packets.extend(self.read_is_over(link, value));
            }
        }
        Answers { packets, ..Answers::default() }
    }

    /// An answer, at once or with a later turn.
    fn owe(&mut self, link: Link, packet: Packet, id: u16, step: Option<Step>) -> Option<Packet> {
        let owed = Owed { packet, id, step };
        if self.habits.hold_percent > 0 {
            self.owed.push(owed);
            return None;
        }
        Some(self.answer(link, owed))
    }

    pub(super) fn answer(&mut self, link: Link, Owed { packet, id, step }: Owed) -> Packet {
        if let Some(step) = step {
            self.record(What::Settle { connection: link.number(), packet_id: id, step });
        }
        packet
    }
}
