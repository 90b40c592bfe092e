//! A session's queue: rows are appended, settled, and make room for others.
//!
//! A row leaves the queue at PUBACK, PUBCOMP or a negative PUBREC, or with its session. A row that may have
//! been sent (below `sent_until`, or in the window) leaves in no other way, else its packet identifier would
//! come back while the client still holds it.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::command::{Ack, AckKind, SessionRef, Settle};
use crate::effect::{Delivery, Effect, EffectSink, Outcome};
use crate::ids::{Position, QoS, QueueSeq, SessionId};
use crate::message::{Message, SharedMessage};
use crate::rows::key::{self, RowKind};
use crate::rows::value::{NumberRow, QueueRow, Value as _};
use crate::rows::{RowRead as _, RowStore, RowsError};

use super::window::WindowRow;
use super::{Machine, MachineError};

/// Bytes charged for a queue row beside its message's row. With it the formula is version 1: changing it
/// changes outcomes, so it takes a new format version.
const ROW_CHARGE: u32 = 64;
/// Rows looked at to make room for one message.
const ROOM_ROWS: usize = 256;

/// A message on its way into queues, its row encoded once.
pub(super) struct Outgoing {
    pub(super) message: SharedMessage,
    pub(super) row: Bytes,
}

impl Outgoing {
    pub(super) fn new(message: Message) -> Result<Self, MachineError> {
        let row = message.to_bytes()?;
        Ok(Self { message: Arc::new(message), row })
    }

    pub(super) fn charge(&self) -> u32 {
        ROW_CHARGE.saturating_add(u32::try_from(self.row.len()).unwrap_or(u32::MAX))
    }
}

/// How one session gets a message.
pub(super) struct Addressed {
    pub(super) session: SessionId,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) identifiers: Arc<[u32]>,
}

impl<S: RowStore> Machine<S> {
    /// Writes the message's row and one queue row for each recipient, which must have room.
    pub(super) fn enqueue(
        &mut self,
        outgoing: &Outgoing,
        recipients: &[Addressed],
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        if recipients.is_empty() {
            return Ok(());
        }
        let position = outgoing.message.position;
        self.rows.put_new(key::of_position(RowKind::Message, position).into(), outgoing.row.clone());
        if recipients.len() > 1 {
            let references = NumberRow(recipients.len() as u64).to_bytes()?;
            self.rows.put_new(key::of_position(RowKind::References, position).into(), references);
        }
        for to in recipients {
            let row = QueueRow {
                qos: to.qos,
                retain: to.retain,
                released: false,
                is_shared: recipients.len() > 1,
                position,
                charge: outgoing.charge(),
                identifiers: to.identifiers.clone(),
            };
            let Some(counters) = self.sessions.counters_mut(to.session) else { continue };
            let seq = counters.next_seq;
            counters.next_seq = seq.next();
            counters.rows += 1;
            counters.bytes += u64::from(row.charge);
            self.rows.put_new(key::queue(to.session, seq).into(), row.to_bytes()?);
            if let Some(session) = self.sessions.get_mut(to.session)
                && let Some(window) = &mut session.window
            {
                window.append(WindowRow::of(seq, &row), session.row.receive_maximum);
            }
            self.deliver(to, Some(seq), &outgoing.message, fx);
        }
        Ok(())
    }

    /// Tells the session's node, if there is one.
    pub(super) fn deliver(
        &mut self,
        to: &Addressed,
        seq: Option<QueueSeq>,
        message: &SharedMessage,
        fx: &mut dyn EffectSink,
    ) {
        let Some(session) = self.sessions.get(to.session) else { return };
        let Some(owner) = self.open_owner(session.row.owner).filter(|owner| fx.wants(*owner)) else { return };
        let delivery = Delivery {
            to: SessionRef { session: to.session, epoch: session.row.epoch },
            seq,
            qos: to.qos,
            retain: to.retain,
            identifiers: to.identifiers.clone(),
            message: message.clone(),
        };
        self.pending.push(Effect::Deliver { owner, delivery });
    }

    /// Acknowledgements of a session's connection of today.
    pub(super) fn settle(&mut self, settle: &Settle) -> Result<Outcome, MachineError> {
        for ack in &settle.acks {
            self.settle_one(settle.from.session, *ack)?;
        }
        Ok(Outcome::Done)
    }

    fn settle_one(&mut self, id: SessionId, ack: Ack) -> Result<(), MachineError> {
        let Some(row) = self.queued(id, ack.seq)? else { return Ok(()) };
        match (ack.kind, row.qos, row.released) {
            (AckKind::Puback, QoS::AtLeastOnce, _)
            | (AckKind::PubrecRefused, QoS::ExactlyOnce, false)
            | (AckKind::Pubcomp, QoS::ExactlyOnce, true) => self.remove_queued(id, &row),
            (AckKind::Pubrec, QoS::ExactlyOnce, false) => self.mark_released(id, ack.seq),
            // Repeats, and answers that do not fit the row: the session machine has dealt with the client.
            _ => Ok(()),
        }
    }

    /// A row of a connected session, from the window's copy when it is there.
    fn queued(&mut self, id: SessionId, seq: QueueSeq) -> Result<Option<WindowRow>, MachineError> {
        self.fill_window(id)?;
        let Some(session) = self.sessions.get(id) else { return Ok(None) };
        match &session.window {
            Some(window) if seq < window.loaded_until() => return Ok(window.get(seq)),
            // After a resume with a smaller Receive Maximum an owed PUBREL lies behind the window.
            _ if seq < session.counters.next_seq => {}
            _ => return Ok(None),
        }
        let key = key::queue(id, seq);
        let row = self.rows.get(key.as_bytes())?;
        row.map(|bytes| Ok(WindowRow::of(seq, &QueueRow::read(key.as_bytes(), &bytes)?))).transpose()
    }

    fn mark_released(&mut self, id: SessionId, seq: QueueSeq) -> Result<(), MachineError> {
        let key = key::queue(id, seq);
        if let Some(bytes) = self.rows.get(key.as_bytes())? {
            let mut row = QueueRow::read(key.as_bytes(), &bytes)?;
            row.released = true;
            self.rows.put(key.into(), row.to_bytes()?);
        }
        if let Some(window) = self.sessions.get_mut(id).and_then(|s| s.window.as_mut()) {
            window.set_released(seq);
        }
        Ok(())
    }

    fn remove_queued(&mut self, id: SessionId, row: &WindowRow) -> Result<(), MachineError> {
        self.rows.delete(key::queue(id, row.seq).into());
        self.release_message(row.position, row.is_shared)?;
        if let Some(window) = self.sessions.get_mut(id).and_then(|s| s.window.as_mut()) {
            window.remove(row.seq);
        }
        if let Some(counters) = self.sessions.counters_mut(id) {
            counters.rows = counters.rows.saturating_sub(1);
            counters.bytes = counters.bytes.saturating_sub(u64::from(row.charge));
            if counters.rows == 0 {
                counters.head = counters.next_seq;
            } else if counters.head == row.seq {
                let from = row.seq.next();
                let head = self.first_queued(id, from)?;
                if let Some(counters) = self.sessions.counters_mut(id) {
                    counters.head = head;
                }
            }
        }
        Ok(())
    }

    /// The first row at or after `from`, which exists. Whether a window's copy is loaded may differ between
    /// replicas; what it says may not.
    fn first_queued(&self, id: SessionId, from: QueueSeq) -> Result<QueueSeq, MachineError> {
        let Some(session) = self.sessions.get(id) else { return Ok(from) };
        if let Some(first) = session.window.as_ref().and_then(|window| window.first()) {
            return Ok(first);
        }
        let (rows, until) = self.read_queue(id, from, session.counters.next_seq, 1)?;
        Ok(rows.first().map_or(until, |row| row.seq))
    }

    /// One queue row less points to the message; the last takes it along.
    pub(super) fn release_message(&mut self, position: Position, is_shared: bool) -> Result<(), MachineError> {
        if is_shared {
            let key = key::of_position(RowKind::References, position);
            if let Some(bytes) = self.rows.get(key.as_bytes())? {
                let NumberRow(references) = NumberRow::read(key.as_bytes(), &bytes)?;
                if references > 1 {
                    self.rows.put(key.into(), NumberRow(references - 1).to_bytes()?);
                    return Ok(());
                }
                self.rows.delete(key.into());
            }
        }
        self.rows.delete(key::of_position(RowKind::Message, position).into());
        Ok(())
    }

    /// Whether the session has room for `charge` bytes, after expired messages that were certainly not sent
    /// have gone, and with `drop_oldest` after others have, too.
    pub(super) fn make_room(&mut self, id: SessionId, charge: u32, drop_oldest: bool) -> Result<bool, MachineError> {
        let bytes_max = self.settings.queue_bytes_max;
        let has_room = |machine: &Self| {
            machine.sessions.get(id).is_some_and(|s| s.counters.bytes + u64::from(charge) <= bytes_max)
        };
        if has_room(self) {
            return Ok(true);
        }
        let Some(session) = self.sessions.get(id) else { return Ok(false) };
        let connected = session.row.owner.is_some();
        let mut from = session.row.sent_until;
        let until = session.counters.next_seq;
        if connected {
            from = from.max(self.window_end(id)?);
        }
        let (rows, _) = self.read_queue(id, from, until, ROOM_ROWS)?;
        for row in rows {
            let expired = self.is_expired(row.position)?;
            if expired || drop_oldest {
                self.remove_queued(id, &row)?;
                if let Some(counters) = self.sessions.counters_mut(id).filter(|_| !expired) {
                    counters.dropped += 1;
                }
            }
            if has_room(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_expired(&self, position: Position) -> Result<bool, MachineError> {
        let key = key::of_position(RowKind::Message, position);
        let Some(bytes) = self.rows.get(key.as_bytes())? else { return Ok(true) };
        let message = Message::read(key.as_bytes(), &bytes)?;
        Ok(message.expires_at.is_some_and(|at| at <= self.applied.time))
    }

    /// Up to `most` rows of `from <= seq < until`, and the first sequence number not looked at.
    pub(super) fn read_queue(
        &self,
        id: SessionId,
        from: QueueSeq,
        until: QueueSeq,
        most: usize,
    ) -> Result<(Vec<WindowRow>, QueueSeq), MachineError> {
        let mut rows = Vec::new();
        let mut failed = None;
        self.rows.scan(key::queue(id, from).as_bytes(), key::queue(id, until).as_bytes(), &mut |k, v| {
            let row = QueueRow::read(k, &Bytes::copy_from_slice(v));
            match (key::rest_u64(k, 8), row) {
                (Some(seq), Ok(row)) => rows.push(WindowRow::of(QueueSeq(seq), &row)),
                (_, Err(e)) => failed = Some(e),
                (None, _) => failed = Some(RowsError::Damaged { key: key::describe(k), reason: "short key".into() }),
            }
            if failed.is_some() || rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(e) = failed {
            return Err(e.into());
        }
        let next = match rows.last() {
            Some(last) if rows.len() >= most => last.seq.next(),
            _ => until,
        };
        Ok((rows, next))
    }
}
