//! A session's queue: rows are appended and settled.
//!
//! A row leaves the queue at PUBACK, PUBCOMP or a negative PUBREC, or with its session. A row that may have
//! been sent (below `sent_until`, or in the window) leaves in no other way, else its packet identifier would
//! come back while the client still holds it. What may go to make room is for [`super::room`] to say.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::command::{Ack, AckKind, SessionRef, Settle};
use crate::effect::{Delivery, Effect, EffectSink, Outcome};
use crate::ids::{Epoch, Incarnation, Position, QoS, QueueSeq, SessionId, ShareId};
use crate::message::SharedMessage;
use crate::rows::key::{self, RowKind};
use crate::rows::share::WaitingRow;
use crate::rows::value::{Given, QueueRow};
use crate::rows::{RowRead as _, RowStore, RowValue};
use crate::seeded_bug::{SeededBug, is_seeded};

use super::window::WindowRow;
use super::{Machine, MachineError};

/// Bytes charged for a queue row beside its message's row. With it the formula is version 1: changing it
/// changes outcomes, so it takes a new format version.
const ROW_CHARGE: u32 = 64;
/// A message on its way into queues, and its row.
pub(super) struct Outgoing {
    pub(super) message: SharedMessage,
    pub(super) row: RowValue,
}

impl Outgoing {
    pub(super) fn new(message: SharedMessage) -> Result<Self, MachineError> {
        let row = RowValue::message(message.clone())?;
        Ok(Self { message, row })
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
    /// The shared group that gives it.
    pub(super) given: Option<Given>,
}

/// Room that is found already, for a message that is about to be queued.
#[derive(Clone, Copy)]
pub(super) struct Reserved<'a> {
    /// For whom, in order of session.
    pub(super) queued: &'a [Addressed],
    /// How much for each.
    pub(super) charge: u32,
}

impl Reserved<'_> {
    /// Nothing is.
    pub(super) const NONE: Self = Reserved { queued: &[], charge: 0 };

    /// Bytes in the queue of `session`.
    pub(super) fn of(&self, session: SessionId) -> u64 {
        let has_some = self.queued.binary_search_by_key(&session, |to| to.session).is_ok();
        if has_some { self.charge.into() } else { 0 }
    }
}

impl<S: RowStore> Machine<S> {
    /// Writes the message's row and one queue row for each recipient, which must have room, and each shared group in
    /// which it waits.
    pub(super) fn enqueue(
        &mut self,
        outgoing: &Outgoing,
        recipients: &[Addressed],
        waits: &[ShareId],
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let count = recipients.len() + waits.len();
        if count == 0 {
            return Ok(());
        }
        let message = &outgoing.message;
        self.rows.put_new(key::of_position(RowKind::Message, message.position), outgoing.row.clone());
        if count > 1 {
            self.references.begin(message.position, count);
        }
        for to in recipients {
            self.append_queued(to, message, outgoing.charge(), count > 1, fx)?;
        }
        for share in waits {
            let row = WaitingRow {
                qos: message.qos,
                retain: message.retain,
                is_shared: count > 1,
                charge: outgoing.charge(),
                expires_at: message.expires_at,
            };
            self.push_waiting(*share, message.position, row)?;
        }
        Ok(())
    }

    /// Appends a row for a message that has its row.
    pub(super) fn append_queued(
        &mut self,
        to: &Addressed,
        message: &SharedMessage,
        charge: u32,
        is_shared: bool,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let row = QueueRow {
            qos: to.qos,
            retain: to.retain,
            released: false,
            is_shared,
            position: message.position,
            charge,
            expires_at: message.expires_at,
            given: to.given,
            identifiers: to.identifiers.clone(),
        };
        let Some(session) = self.sessions.with_counters_mut(to.session) else { return Ok(()) };
        let counters = &mut session.counters;
        let seq = counters.next_seq;
        counters.next_seq = seq.next();
        counters.rows += 1;
        counters.bytes += u64::from(row.charge);
        counters.expiring += u64::from(row.expires_at.is_some());
        counters.shared += u64::from(row.given.is_some());
        if let Some(window) = &mut session.window {
            window.append(WindowRow::of(seq, &row), session.row.receive_maximum);
        }
        if row.given.is_some() {
            session.membership().rows.insert(seq);
        }
        let (owner, epoch) = (session.row.owner, session.row.epoch);
        self.rows.put_new(key::queue(to.session, seq), row.to_value());
        self.deliver_to(owner, epoch, to, Some(seq), message, fx);
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
        if let Some(session) = self.sessions.get(to.session) {
            self.deliver_to(session.row.owner, session.row.epoch, to, seq, message, fx);
        }
    }

    fn deliver_to(
        &mut self,
        owner: Option<Incarnation>,
        epoch: Epoch,
        to: &Addressed,
        seq: Option<QueueSeq>,
        message: &SharedMessage,
        fx: &mut dyn EffectSink,
    ) {
        let Some(owner) = self.open_owner(owner).filter(|owner| fx.wants(*owner)) else { return };
        let delivery = Delivery {
            to: SessionRef { session: to.session, epoch },
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
            // Also a negative answer settles, and gives the message of a shared group to nobody else [MQTT-4.8.2-6].
            (AckKind::Puback, QoS::AtLeastOnce, _)
            | (AckKind::PubrecRefused, QoS::ExactlyOnce, false)
            | (AckKind::Pubcomp, QoS::ExactlyOnce, true) => {
                self.share_budget += 1;
                self.remove_queued(id, &row)
            }
            (AckKind::Pubrec, QoS::ExactlyOnce, false) => self.mark_released(id, &row),
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
        row.map(|bytes| Ok(WindowRow::read(key.as_bytes(), &bytes)?)).transpose()
    }

    fn mark_released(&mut self, id: SessionId, row: &WindowRow) -> Result<(), MachineError> {
        let key = key::queue(id, row.seq);
        let released = match row.unidentified() {
            Some(row) => Some(QueueRow { released: true, ..row }.to_value()),
            // Its identifiers are in the row only.
            None => self.rows.get(key.as_bytes())?.map(|bytes| QueueRow::released(&bytes).into()),
        };
        if let Some(released) = released.filter(|_| !is_seeded(SeededBug::PubrelStateNotPersisted)) {
            self.rows.put(key, released);
        }
        if let Some(window) = self.sessions.get_mut(id).and_then(|s| s.window.as_mut()) {
            window.set_released(row.seq);
        }
        Ok(())
    }

    pub(super) fn remove_queued(&mut self, id: SessionId, row: &WindowRow) -> Result<(), MachineError> {
        self.rows.delete(key::queue(id, row.seq));
        self.release_message(row.position, row.is_shared)?;
        if let Some(window) = self.sessions.get_mut(id).and_then(|s| s.window.as_mut()) {
            window.remove(row.seq);
        }
        let was_head = self.sessions.get(id).is_some_and(|s| s.counters.head == row.seq);
        self.uncount_queued(id, row);
        if was_head {
            self.advance_head(id, row.seq.next())?;
        }
        if let Some(session) = self.sessions.get(id) {
            self.shares.note_room(id, session.membership.as_deref());
        }
        Ok(())
    }

    /// A row less in the counters.
    pub(super) fn uncount_queued(&mut self, id: SessionId, row: &WindowRow) {
        let Some(session) = self.sessions.with_counters_mut(id) else { return };
        let counters = &mut session.counters;
        counters.rows = counters.rows.saturating_sub(1);
        counters.bytes = counters.bytes.saturating_sub(u64::from(row.charge));
        counters.expiring = counters.expiring.saturating_sub(u64::from(row.expires_at.is_some()));
        if row.given.is_some() {
            counters.shared = counters.shared.saturating_sub(1);
            if let Some(membership) = &mut session.membership {
                membership.rows.remove(&row.seq);
            }
        }
        if counters.rows == 0 {
            counters.head = counters.next_seq;
        }
    }

    /// The first row is gone, and there is none before `from`.
    pub(super) fn advance_head(&mut self, id: SessionId, from: QueueSeq) -> Result<(), MachineError> {
        if self.sessions.get(id).is_some_and(|s| s.counters.rows > 0) {
            let head = self.first_queued(id, from)?;
            if let Some(counters) = self.sessions.counters_mut(id) {
                counters.head = head;
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
        if !is_shared || self.references.release(position, &mut self.rows)? {
            self.rows.delete(key::of_position(RowKind::Message, position));
        }
        Ok(())
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
        self.scan_queue(id, from, until, &mut |row| {
            rows.push(row);
            if rows.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let next = match rows.last() {
            Some(last) if rows.len() >= most => last.seq.next(),
            _ => until,
        };
        Ok((rows, next))
    }

    /// Calls `f` with the rows of `from <= seq < until`, in order, until it breaks.
    pub(super) fn scan_queue(
        &self,
        id: SessionId,
        from: QueueSeq,
        until: QueueSeq,
        f: &mut dyn FnMut(WindowRow) -> ControlFlow<()>,
    ) -> Result<(), MachineError> {
        let mut failed = None;
        self.rows.scan(key::queue(id, from).as_bytes(), key::queue(id, until).as_bytes(), &mut |k, v| {
            match WindowRow::read(k, v) {
                Ok(row) => f(row),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(()), |e| Err(e.into()))
    }
}
