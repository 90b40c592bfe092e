//! CONNECT, the end of a connection, the end of a session.
//!
//! One CONNECT is one command: applying it decides who owns the session, whatever clients and nodes believe
//! meanwhile. A session whose owner's incarnation was closed is *detached* when it is touched first, or by
//! [`super::timers`]; detaching only notes what is due (will, expiry), so that one thing never sets off an
//! unbounded chain of others.

use std::sync::Arc;

use crate::command::{Close, Connect, SessionRef};
use crate::effect::{Connected, Effect, EffectSink, KickReason, Outcome};
use crate::ids::{Epoch, Incarnation, Position, QueueSeq, SessionId};
use crate::rows::key::{self, RowKind};
use crate::rows::value::{SessionRow, Value as _, WillRow};
use crate::rows::{RowRead as _, RowStore};
use crate::seeded_bug::{SeededBug, is_seeded};

use super::continuations::{Continuation, Sweep};
use super::state::{Deadline, DeadlineKind, Session};
use super::window::{LOAD_ROWS, Window};
use super::{Machine, MachineError};

/// CONNACK reason code: Not authorized.
const NOT_AUTHORIZED: u8 = 0x87;

/// How a connection ended.
struct Ending {
    drop_will: bool,
    expiry_s: Option<u32>,
    sent_until: QueueSeq,
}

impl<S: RowStore> Machine<S> {
    pub(super) fn connect(
        &mut self,
        origin: Incarnation,
        position: Position,
        connect: &Connect,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        if connect.deadline < self.applied.time && !is_seeded(SeededBug::GhostConnectApplied) {
            return Ok(Outcome::ConnectExpired);
        }
        if let Some(old) = self.sessions.by_client(&connect.client_id) {
            // What waits in a session is its user's, whoever calls itself by the same client identifier.
            let belongs_to_another = self.sessions.get(old).is_some_and(|session| {
                self.lives(session) && session.row.user.is_some() && session.row.user != connect.user
            });
            if belongs_to_another {
                return Ok(Outcome::Refused(NOT_AUTHORIZED));
            }
            self.leave(old, KickReason::TakenOver, fx)?;
        }
        let kept = self.sessions.by_client(&connect.client_id);
        let kept = match kept {
            Some(old) if connect.clean_start => {
                self.end_session(old, fx)?;
                None
            }
            kept => kept,
        };
        let expiry_s = connect.expiry_s.min(self.settings.session_expiry_s_max);
        let id = kept.unwrap_or(SessionId(position));
        let epoch = Epoch(position);
        match self.sessions.get_mut(id) {
            Some(session) => {
                session.row.epoch = epoch;
                session.row.expiry_s = expiry_s;
                session.row.receive_maximum = connect.receive_maximum.max(1);
                session.row.user.clone_from(&connect.user);
                let will = session.will.take();
                if let Some(at) = session.row.expires_at.take() {
                    self.deadlines.remove(&Deadline { at, kind: DeadlineKind::Expiry, session: id });
                }
                // The client is back before the Will Delay Interval has passed [MQTT-3.1.3-9].
                if let Some(due) = will {
                    self.forget_will(id, due);
                }
            }
            None => {
                let row = SessionRow {
                    client_id: Arc::from(connect.client_id.as_str()),
                    epoch,
                    owner: None,
                    expiry_s,
                    receive_maximum: connect.receive_maximum.max(1),
                    durable: expiry_s > 0,
                    sent_until: QueueSeq(0),
                    expires_at: None,
                    user: connect.user.clone(),
                };
                self.sessions.insert(id, Session::new(row));
            }
        }
        self.sessions.set_owner(id, Some(origin));
        if let Some(session) = self.sessions.get(id) {
            self.shares.note_room(id, session.membership.as_deref());
        }
        if let Some(will) = &connect.will {
            let row = WillRow { due_at: None, will: will.clone() };
            self.rows.put(key::of_session(RowKind::Will, id), row.to_bytes()?);
            if let Some(session) = self.sessions.get_mut(id) {
                session.will = Some(None);
            }
        }
        self.put_session(id)?;
        let Some(session) = self.sessions.get(id) else { return Ok(Outcome::Fenced) };
        Ok(Outcome::Connected(Connected {
            session: SessionRef { session: id, epoch },
            present: kept.is_some() || (!connect.clean_start && is_seeded(SeededBug::SessionPresentGuessed)),
            expiry_s,
            durable: session.row.durable,
            queue_head: session.counters.head,
            sent_until: session.row.sent_until,
            queue_tail: session.counters.next_seq,
            inbound_qos2: session.inbound.iter().copied().collect(),
        }))
    }

    /// A connection is over, says its node.
    pub(super) fn close(&mut self, close: &Close) -> Result<Outcome, MachineError> {
        let ending = Ending { drop_will: close.drop_will, expiry_s: close.expiry_s, sent_until: close.sent_until };
        self.detach(close.from.session, &ending)?;
        Ok(Outcome::Done)
    }

    /// An operator ends a session.
    pub(super) fn end_by_operator(
        &mut self,
        session: SessionId,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        if self.sessions.get(session).is_none() {
            return Ok(Outcome::Void);
        }
        self.leave(session, KickReason::Administrative, fx)?;
        self.end_session(session, fx)?;
        Ok(Outcome::Done)
    }

    /// Takes a session from whoever has it, and does what is due of it now: afterwards it is disconnected,
    /// or gone.
    fn leave(&mut self, id: SessionId, reason: KickReason, fx: &mut dyn EffectSink) -> Result<(), MachineError> {
        if let Some(session) = self.sessions.get(id)
            && let Some(owner) = session.row.owner
        {
            let from = SessionRef { session: id, epoch: session.row.epoch };
            let is_told = fx.wants(owner) && !is_seeded(SeededBug::TakeoverWithoutKick);
            if self.streams.contains_key(&owner) && is_told {
                self.pending.push(Effect::Kick { owner, from, reason });
            }
            let sent_until = self.window_end(id)?;
            self.detach(id, &Ending { drop_will: false, expiry_s: None, sent_until })?;
        }
        let now = self.applied.time;
        if let Some(due) = self.sessions.get(id).and_then(|s| s.will).flatten().filter(|due| *due <= now) {
            self.publish_will(id, Some(due), fx)?;
        }
        if self.sessions.get(id).is_some_and(|s| !s.is_live(now)) {
            self.end_session(id, fx)?;
        }
        Ok(())
    }

    /// Detaches a session whose owner's incarnation is closed. What may have been sent is not known exactly:
    /// the whole window.
    pub(super) fn detach_orphan(&mut self, id: SessionId) -> Result<(), MachineError> {
        let Some(session) = self.sessions.get(id) else { return Ok(()) };
        if session.row.owner.is_some() && self.open_owner(session.row.owner).is_none() {
            let sent_until = self.window_end(id)?;
            let drop_will = is_seeded(SeededBug::WillLostWithItsNode);
            self.detach(id, &Ending { drop_will, expiry_s: None, sent_until })?;
        }
        Ok(())
    }

    /// Ends the connection in the state; publishes nothing and ends no session, only notes when that is due.
    fn detach(&mut self, id: SessionId, ending: &Ending) -> Result<(), MachineError> {
        self.sessions.set_owner(id, None);
        let (now, expiry_s_max) = (self.applied.time, self.settings.session_expiry_s_max);
        let Some(session) = self.sessions.get_mut(id) else { return Ok(()) };
        // [MQTT-3.1.2-11.2]: an interval of 0 cannot become another one at DISCONNECT.
        if let Some(expiry_s) = ending.expiry_s.filter(|_| session.row.expiry_s > 0) {
            session.row.expiry_s = expiry_s.min(expiry_s_max);
        }
        let expiry_s = session.row.expiry_s;
        // An interval of all ones never passes [MQTT-3.1.2.11.2].
        let expires_at = (expiry_s != u32::MAX).then(|| now.plus_secs(expiry_s));
        session.row.expires_at = expires_at;
        session.row.sent_until = session.row.sent_until.max(ending.sent_until).min(session.counters.next_seq);
        let has_will = session.will.is_some();
        if let Some(at) = expires_at {
            self.deadlines.insert(Deadline { at, kind: DeadlineKind::Expiry, session: id });
        }
        self.put_session(id)?;
        self.return_to_shares(id)?;
        if has_will && ending.drop_will {
            self.forget_will(id, None);
        } else if has_will {
            let key = key::of_session(RowKind::Will, id);
            if let Some(bytes) = self.rows.get(key.as_bytes())? {
                let mut row = WillRow::read(key.as_bytes(), &bytes)?;
                // Whichever comes first: its delay or the end of the session [MQTT-3.1.3-9].
                let due = now.plus_secs(row.will.delay_s.min(expiry_s));
                row.due_at = Some(due);
                self.rows.put(key, row.to_bytes()?);
                self.deadlines.insert(Deadline { at: due, kind: DeadlineKind::Will, session: id });
                if let Some(session) = self.sessions.get_mut(id) {
                    session.will = Some(Some(due));
                }
            }
        }
        Ok(())
    }

    /// Removes a will row, due at `due` or not yet.
    pub(super) fn forget_will(&mut self, id: SessionId, due: Option<crate::ids::ClusterTime>) {
        self.rows.delete(key::of_session(RowKind::Will, id));
        if let Some(at) = due {
            self.deadlines.remove(&Deadline { at, kind: DeadlineKind::Will, session: id });
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.will = None;
        }
    }

    /// Ends a session that is disconnected. A will that waits is published [MQTT-3.1.2-8]; the session's rows
    /// are swept by later entries.
    pub(super) fn end_session(&mut self, id: SessionId, fx: &mut dyn EffectSink) -> Result<(), MachineError> {
        if let Some(due) = self.sessions.get(id).and_then(|s| s.will) {
            self.publish_will(id, due, fx)?;
        }
        self.leave_all_shares(id)?;
        let Some(session) = self.sessions.remove(id) else { return Ok(()) };
        if let Some(at) = session.row.expires_at {
            self.deadlines.remove(&Deadline { at, kind: DeadlineKind::Expiry, session: id });
        }
        self.rows.delete(key::of_session(RowKind::Session, id));
        self.rows.delete(key::of_session(RowKind::Counters, id));
        if session.subscriptions > 0 || session.counters.rows > 0 || !session.inbound.is_empty() {
            self.put_continuation(id.0, Continuation::Sweep(Sweep::new(id, session.counters.head)))?;
        }
        Ok(())
    }

    /// Writes the session's row.
    pub(super) fn put_session(&mut self, id: SessionId) -> Result<(), MachineError> {
        if let Some(session) = self.sessions.get(id) {
            self.rows.put(key::of_session(RowKind::Session, id), session.row.to_bytes()?);
        }
        Ok(())
    }

    /// First row that is certainly not in the window of a connected session, and was not on an earlier
    /// connection.
    pub(super) fn window_end(&mut self, id: SessionId) -> Result<QueueSeq, MachineError> {
        self.fill_window(id)?;
        let Some(session) = self.sessions.get(id) else { return Ok(QueueSeq(0)) };
        let end = match &session.window {
            Some(window) => window.end(session.row.receive_maximum, session.counters.next_seq),
            None => QueueSeq(0),
        };
        Ok(end.max(session.row.sent_until))
    }

    /// Makes the copy of a connected session's window complete. A transient session has rows of shared groups only.
    pub(super) fn fill_window(&mut self, id: SessionId) -> Result<(), MachineError> {
        loop {
            let Some(session) = self.sessions.get_mut(id) else { return Ok(()) };
            // What is loaded may differ between replicas: whether there ever was a row does not.
            let has_rows = session.row.durable || session.counters.next_seq > QueueSeq(0);
            if session.row.owner.is_none() || !has_rows {
                return Ok(());
            }
            let (next_seq, receive_maximum) = (session.counters.next_seq, session.row.receive_maximum);
            let head = session.counters.head;
            let window = session.window.get_or_insert_with(|| Box::new(Window::new(head)));
            if !window.is_short(receive_maximum, next_seq) {
                return Ok(());
            }
            // Below the head there is nothing but what was deleted.
            let from = window.loaded_until().max(head);
            let (rows, until) = self.read_queue(id, from, next_seq, LOAD_ROWS)?;
            if let Some(window) = self.sessions.get_mut(id).and_then(|s| s.window.as_mut()) {
                window.load(rows, until);
            }
        }
    }
}
