//! Deliveries to a transient session that are not rows: this memory is their queue.
//!
//! Their acknowledgements are not logged. Beside them a transient session may have rows, of shared groups, whose packet
//! identifiers are fixed; those here are taken as far from them as can be, and never one that is in flight.

use std::collections::{BTreeMap, VecDeque};

use quorate_store::effect::Delivery;
use quorate_store::ids::{PacketId, QoS};

use super::outbox::Broken;
use super::{Now, Output};
use crate::mqtt::options::DELIVERY_OVERHEAD_BYTES;
use crate::mqtt::packet::{Delivered, Outgoing};
use crate::mqtt::reason::Reason;

/// Half of all identifiers.
const FAR: u16 = 32_768;

/// What a client owes for a message of its in-memory queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owes {
    /// PUBACK.
    Ack,
    /// PUBREC.
    Receipt,
    /// PUBCOMP.
    Completion,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    waiting: VecDeque<Delivery>,
    bytes: usize,
    in_flight: BTreeMap<PacketId, Owes>,
    last_id: Option<PacketId>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, in_flight: BTreeMap::new(), last_id: None }
    }

    pub(super) fn queue(&mut self, delivery: Delivery, bytes_max: usize, out: &mut Output) -> Result<(), Broken> {
        if self.bytes >= bytes_max {
            out.counts.transient_overflows += 1;
            return Err(Broken(Reason::QUOTA_EXCEEDED));
        }
        self.bytes += bytes_of(&delivery);
        self.waiting.push_back(delivery);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether the identifier is in use here.
    pub(super) fn has(&self, id: PacketId) -> bool {
        self.in_flight.contains_key(&id)
    }

    /// Takes out the next to send; none when it has expired. `row` is the identifier of the next row, and `is_row` says
    /// which are those of rows in flight.
    pub(super) fn next(
        &mut self,
        row: PacketId,
        is_row: impl Fn(PacketId) -> bool,
        now: Now,
        out: &mut Output,
    ) -> Option<Delivered> {
        let delivery = self.waiting.pop_front()?;
        self.bytes = self.bytes.saturating_sub(bytes_of(&delivery));
        let Some(expiry_s) = super::outbox::expiry_left(&delivery.message, now) else {
            out.counts.expired += 1;
            return None;
        };
        let id = self.next_id(row, is_row);
        let Delivery { qos, retain, identifiers, message, .. } = delivery;
        Some(Delivered { dup: false, qos, retain, id: Some(id), expiry_s, identifiers, alias: None, message })
    }

    /// What [`Self::next`] took out is on its way.
    pub(super) fn sent(&mut self, delivered: &Delivered) {
        let Some(id) = delivered.id else { return };
        self.last_id = Some(id);
        self.in_flight.insert(id, if delivered.qos == QoS::ExactlyOnce { Owes::Receipt } else { Owes::Ack });
    }

    /// The next identifier that is free; rows come to it as late as can be.
    fn next_id(&self, row: PacketId, is_row: impl Fn(PacketId) -> bool) -> PacketId {
        let mut id = self.last_id.map_or(row.plus(FAR), PacketId::next);
        let is_free = |id| !self.has(id) && !is_row(id);
        let is_near = |id: PacketId| (u32::from(id.get()) + 65_535 - u32::from(row.get())) % 65_535 < u32::from(FAR);
        if is_near(id) {
            id = row.plus(FAR);
        }
        while !is_free(id) && !is_near(id) {
            id = id.next();
        }
        // Half of all are in flight: any other. There is one, because the window is smaller.
        while !is_free(id) {
            id = id.next();
        }
        id
    }

    /// PUBACK for an identifier that is in use here.
    pub(super) fn puback(&mut self, id: PacketId) -> Result<(), Broken> {
        match self.in_flight.get(&id) {
            Some(Owes::Ack) => {
                self.in_flight.remove(&id);
                Ok(())
            }
            _ => Err(Broken(Reason::PROTOCOL_ERROR)),
        }
    }

    /// PUBREC, likewise.
    pub(super) fn pubrec(&mut self, id: PacketId, reason: Reason, out: &mut Output) -> Result<(), Broken> {
        match self.in_flight.get_mut(&id) {
            Some(Owes::Ack) => return Err(Broken(Reason::PROTOCOL_ERROR)),
            Some(Owes::Receipt) if reason.is_failure() => drop(self.in_flight.remove(&id)),
            Some(owes) => {
                *owes = Owes::Completion;
                out.packets.push(Outgoing::PubRel(id, Reason::SUCCESS));
            }
            None => {}
        }
        Ok(())
    }

    /// PUBCOMP, likewise. False when nobody waited for it.
    pub(super) fn pubcomp(&mut self, id: PacketId) -> bool {
        let is_due = self.in_flight.get(&id) == Some(&Owes::Completion);
        if is_due {
            self.in_flight.remove(&id);
        }
        is_due
    }
}

fn bytes_of(delivery: &Delivery) -> usize {
    delivery.message.charge_bytes() + DELIVERY_OVERHEAD_BYTES
}
