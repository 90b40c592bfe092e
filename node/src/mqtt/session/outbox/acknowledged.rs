//! What the client says of what it was sent: from its packet to our Settle, and from the Settle's outcome to the window.

use quorate_store::command::{Ack, AckKind};
use quorate_store::ids::{PacketId, QoS};

use super::{Broken, IDENTIFIERS, InFlight, Outbox, Phase, id_of};
use crate::mqtt::packet::Outgoing;
use crate::mqtt::reason::Reason;
use crate::mqtt::session::Output;

impl Outbox {
    /// PUBACK.
    pub(in super::super) fn puback(&mut self, id: PacketId, out: &mut Output) -> Result<(), Broken> {
        if let Some(memory) = self.memory_of(id) {
            return memory.puback(id);
        }
        let Some(i) = self.find(id) else {
            out.counts.unknown_acks += 1;
            return Ok(());
        };
        match self.in_flight.get(i) {
            Some(InFlight { qos: QoS::ExactlyOnce, .. }) => Err(Broken(Reason::PROTOCOL_ERROR)),
            Some(InFlight { phase: Phase::Sent, .. }) => {
                self.settle(i, AckKind::Puback);
                Ok(())
            }
            _ => Ok(()), // again: its row is on its way out
        }
    }

    /// PUBREC.
    pub(in super::super) fn pubrec(&mut self, id: PacketId, reason: Reason, out: &mut Output) -> Result<(), Broken> {
        if let Some(memory) = self.memory_of(id) {
            return memory.pubrec(id, reason, out);
        }
        let Some(i) = self.find(id) else {
            out.counts.unknown_acks += 1;
            // A row that is still to be resent: its exchange begins again with our PUBLISH. A PUBREL before it
            // would end the exchange for the client, and the PUBLISH would be a second message.
            if !reason.is_failure() && !self.is_to_be_resent(id) {
                out.packets.push(Outgoing::PubRel(id, Reason::PACKET_IDENTIFIER_NOT_FOUND));
            }
            return Ok(());
        };
        match self.in_flight.get(i) {
            Some(InFlight { qos: QoS::AtLeastOnce, .. }) => return Err(Broken(Reason::PROTOCOL_ERROR)),
            Some(InFlight { phase: Phase::Sent, .. }) => {
                let kind = if reason.is_failure() { AckKind::PubrecRefused } else { AckKind::Pubrec };
                self.settle(i, kind);
            }
            Some(InFlight { phase: Phase::Released, .. }) => out.packets.push(Outgoing::PubRel(id, Reason::SUCCESS)),
            _ => {}
        }
        Ok(())
    }

    /// Whether `id` is that of a row that an earlier connection may have sent, and this one has not come to.
    fn is_to_be_resent(&self, id: PacketId) -> bool {
        let distance = (u64::from(id.get()) + IDENTIFIERS - u64::from(self.id_of(self.cursor).get())) % IDENTIFIERS;
        self.cursor.0 + distance < self.sent_until.0
    }

    /// PUBCOMP.
    pub(in super::super) fn pubcomp(&mut self, id: PacketId, out: &mut Output) {
        if let Some(memory) = self.memory_of(id) {
            out.counts.unknown_acks += u64::from(!memory.pubcomp(id));
            return;
        }
        match self.find(id) {
            Some(i) if self.in_flight.get(i).is_some_and(|f| f.phase == Phase::Released) => {
                self.settle(i, AckKind::Pubcomp);
            }
            _ => out.counts.unknown_acks += 1,
        }
    }

    fn settle(&mut self, i: usize, kind: AckKind) {
        let Some(entry) = self.in_flight.get_mut(i) else { return };
        entry.phase = Phase::Settling(kind);
        self.acks.push(Ack { seq: entry.seq, position: entry.position, kind });
    }

    /// Whether nothing waits for the acknowledgements that were gathered: no PUBREL of ours, no later row, and there is
    /// room in the window for what may come.
    pub(in super::super) fn acks_can_wait(&self) -> bool {
        self.in_flight.len() * 2 <= self.window
            && self.skipped.is_none()
            && self.ready.is_empty()
            && self.fetched >= self.tail
            && self.acks.iter().all(|ack| ack.kind != AckKind::Pubrec)
    }

    /// Acknowledgements to propose: at most `max` of those that were gathered, in order.
    pub(in super::super) fn take_acks(&mut self, max: usize) -> Option<Vec<Ack>> {
        if self.acks.is_empty() {
            return None;
        }
        let rest = if self.acks.len() > max { self.acks.split_off(max) } else { Vec::new() };
        let acks = std::mem::replace(&mut self.acks, rest);
        self.settling.extend(&acks);
        Some(acks)
    }

    /// Our next `count` acknowledgements were applied: the window moves.
    pub(in super::super) fn settled(&mut self, count: usize, out: &mut Output) {
        for _ in 0..count {
            let Some(ack) = self.settling.pop_front() else { return };
            self.apply(ack, out);
        }
    }

    fn apply(&mut self, ack: Ack, out: &mut Output) {
        // In order: with the last that was passed over all are gone.
        self.skipped = self.skipped.filter(|skipped| *skipped != ack.seq);
        let Some(i) = self.find_seq(ack.seq) else { return };
        if ack.kind == AckKind::Pubrec {
            if let Some(entry) = self.in_flight.get_mut(i) {
                entry.phase = Phase::Released;
                out.packets.push(Outgoing::PubRel(id_of(self.first, ack.seq), Reason::SUCCESS));
            }
            return;
        }
        self.in_flight.remove(i);
        if i < self.passed {
            self.passed -= 1;
        }
    }
}
