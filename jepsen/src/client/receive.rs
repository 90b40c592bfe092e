//! What a client does with what comes.

use std::time::{Duration, Instant};

use super::conn::{Arrived, Over};
use super::session::Progress;
use super::{Client, PING_AFTER};
use crate::history::MessageName;
use crate::history::event::{Answer, Closing, Delivery, Step, What};
use crate::wire::{Ack, AckKind, Packet, Publish, encode};

/// How long one read waits, so that everything else has its turn.
const READ: Duration = Duration::from_millis(20);
/// Packets between two rounds of answers.
const ROUND_MAX: usize = 64;

impl Client {
    /// Reads and answers for so long, connected or not.
    pub(crate) fn pump(&mut self, bound: Duration) {
        let end = Instant::now() + bound;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.is_connected() {
                self.look(left.min(READ));
            } else {
                std::thread::sleep(left.min(READ));
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// One look at the connection, its answers and its limits.
    pub(super) fn look(&mut self, bound: Duration) {
        self.watch_ghosts();
        // Never one more than is handled: a packet that was read and thrown away looks like a loss of the broker's.
        let mut wait = bound;
        for _ in 0..ROUND_MAX {
            let Some(conn) = self.conn.as_mut() else { return };
            match conn.read(wait) {
                Ok(Some(arrived)) => self.arrived(arrived),
                Ok(None) => break,
                Err(Over::Lost) => return self.ended(Closing::Lost),
                Err(Over::Nonsense(what)) => {
                    self.note(&format!("what came is no MQTT: {what}"));
                    return self.ended(Closing::Broken);
                }
            }
            wait = Duration::ZERO;
        }
        self.settle();
        self.keep_alive();
    }

    fn arrived(&mut self, arrived: Arrived) {
        match arrived.packet {
            Packet::Publish(publish) => self.delivered(&publish, arrived.position),
            Packet::Ack(ack) if ack.kind == AckKind::Pubrel => self.released(ack),
            Packet::Ack(ack) => self.acknowledged(ack, arrived.position),
            Packet::SubAck { id, codes } => self.answered(id, true, codes.first().copied().unwrap_or(0x80)),
            Packet::UnsubAck { id, codes } => self.answered(id, false, codes.first().copied().unwrap_or(0)),
            Packet::PingResp => {}
            Packet::Disconnect { code, .. } => self.ended(Closing::Told { code }),
            other @ (Packet::ConnAck { .. } | Packet::Auth { .. }) => {
                self.note(&format!("unexpected {other:?}"));
                self.ended(Closing::Broken);
            }
        }
    }

    fn delivered(&mut self, publish: &Publish, position: Option<u64>) {
        let Some(connection) = self.conn.as_ref().map(|c| c.id) else { return };
        let Some(message) = MessageName::parse(&publish.payload) else {
            self.note(&format!("a message on {} that nobody sent: {:?}", publish.topic, publish.payload));
            return self.ended(Closing::Broken);
        };
        let repeated = publish.qos == 2 && !self.session.received.insert(publish.id);
        self.record(What::Deliver(Delivery {
            connection,
            message,
            topic: publish.topic.clone(),
            qos: publish.qos,
            dup: publish.dup,
            retain: publish.retain,
            packet_id: publish.id,
            repeated,
            position,
        }));
        self.delivered_at = Some(Instant::now());
        self.delivered += 1;
        if let Some((topic, wanted)) = &mut self.wanted
            && publish.retain
            && *topic == publish.topic
        {
            wanted.get_or_insert(message);
        }
        match publish.qos {
            1 => self.owed.push_back(Ack { kind: AckKind::Puback, id: publish.id, code: 0 }),
            2 => self.owed.push_back(Ack { kind: AckKind::Pubrec, id: publish.id, code: 0 }),
            _ => {}
        }
    }

    fn released(&mut self, ack: Ack) {
        let Some(connection) = self.conn.as_ref().map(|c| c.id) else { return };
        self.record(What::Released { connection, packet_id: ack.id });
        self.session.received.remove(&ack.id);
        self.owed.push_back(Ack { kind: AckKind::Pubcomp, id: ack.id, code: 0 });
    }

    fn acknowledged(&mut self, ack: Ack, position: Option<u64>) {
        match self.session.acknowledged(ack) {
            Progress::Taken(op) => {
                self.record(What::Ok { op, answer: Answer::Published { code: ack.code, position } });
            }
            Progress::Refused { op, resent: false } => self.record(What::Fail { op, code: Some(ack.code) }),
            Progress::Refused { op, resent: true } => {
                self.record(What::Info { op, why: format!("a resend was refused with {:#04x}", ack.code) });
            }
            Progress::Known => {}
            Progress::Unknown => self.note(&format!("{:?} of {}, which nothing waits for", ack.kind, ack.id)),
        }
        self.waiting_since = (self.open() > 0).then(Instant::now);
        if ack.kind == AckKind::Pubrec && ack.code < 0x80 {
            let mut bytes = Vec::new();
            encode::ack(&mut bytes, Ack { kind: AckKind::Pubrel, id: ack.id, code: 0 });
            self.send(&bytes);
        }
    }

    fn answered(&mut self, packet_id: u16, is_subscribe: bool, code: u8) {
        match &mut self.asked {
            Some(asked) if (asked.packet_id, asked.is_subscribe) == (packet_id, is_subscribe) => {
                asked.code = Some(code);
                let Some(op) = asked.op.take() else { return };
                self.record(match (code >= 0x80, is_subscribe) {
                    (true, _) => What::Fail { op, code: Some(code) },
                    (false, true) => What::Ok { op, answer: Answer::Subscribed { code } },
                    (false, false) => What::Ok { op, answer: Answer::Unsubscribed { code } },
                });
            }
            _ => self.note(&format!("SUBACK or UNSUBACK of {packet_id}, which nothing waits for")),
        }
    }

    /// Answers what came, or holds the answers back for a round, so that connections end with some of them owed.
    fn settle(&mut self) {
        if self.owed.is_empty() || self.rng.chance(self.manner.hold_percent) {
            return;
        }
        let Some(connection) = self.conn.as_ref().map(|c| c.id) else { return };
        let mut bytes = Vec::new();
        for ack in std::mem::take(&mut self.owed) {
            let step = match ack.kind {
                AckKind::Puback => Step::Ack,
                AckKind::Pubrec => Step::Received,
                AckKind::Pubcomp | AckKind::Pubrel => Step::Complete,
            };
            self.record(What::Settle { connection, packet_id: ack.id, step });
            encode::ack(&mut bytes, ack);
        }
        self.send(&bytes);
    }

    /// Asks a silent broker whether it is there, and leaves one that does not answer.
    fn keep_alive(&mut self) {
        let Some(conn) = self.conn.as_ref() else { return };
        let (spoke, heard) = (conn.spoke.elapsed(), conn.heard.elapsed());
        let is_late = self.waiting_since.is_some_and(|since| since.elapsed() > self.manner.answer_max);
        if is_late || heard > PING_AFTER + self.manner.answer_max {
            return self.ended(Closing::Broken);
        }
        if spoke > PING_AFTER || (heard > PING_AFTER && spoke > PING_AFTER / 2) {
            let mut bytes = Vec::new();
            encode::ping(&mut bytes);
            self.send(&bytes);
        }
    }

    /// Connections that were taken over: nothing is answered on them; how they end is written down.
    fn watch_ghosts(&mut self) {
        for mut ghost in std::mem::take(&mut self.ghosts) {
            let how = loop {
                match ghost.read(Duration::ZERO) {
                    Ok(Some(Arrived { packet: Packet::Disconnect { code, .. }, .. })) => {
                        break Some(Closing::Told { code });
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(_) => break Some(Closing::Lost),
                }
            };
            match how {
                Some(how) => {
                    ghost.shut();
                    self.record(What::Closed { connection: ghost.id, how });
                }
                None => self.ghosts.push_back(ghost),
            }
        }
    }
}
