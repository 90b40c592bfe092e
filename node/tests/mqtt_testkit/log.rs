//! A log and its state machine in memory: as little of `store::machine` as a front end can see, written
//! independently of it. Commands are applied when the test says so, in order, and give the same outcomes
//! and effects. It checks what a front end owes it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quorate_raft::{AppliedRun, NodeEvent, Submission, Ticket};
use quorate_store::command::{AckKind, Command, Connect, Publish, SessionRef, SubscribeOptions};
use quorate_store::effect::{Connected, Delivery, Granted, KickReason, Outcome};
use quorate_store::ids::{ClusterTime, Epoch, PacketId, Position, QoS, QueueSeq, SessionId};
use quorate_store::message::{Message, SharedMessage};
use quorate_store::rows::{QueuePage, QueuedRow};
use quorate_store::topic::TopicFilter;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) qos: QoS,
    pub(crate) message: SharedMessage,
    pub(crate) identifiers: Arc<[u32]>,
    pub(crate) released: bool,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) epoch: Epoch,
    pub(crate) connected: bool,
    pub(crate) durable: bool,
    pub(crate) receive_maximum: u16,
    pub(crate) filters: Vec<(TopicFilter, SubscribeOptions, Option<u32>)>,
    pub(crate) rows: BTreeMap<QueueSeq, Row>,
    pub(crate) next_seq: QueueSeq,
    pub(crate) sent_until: QueueSeq,
    pub(crate) inbound_qos2: BTreeSet<PacketId>,
    pub(crate) will_due: u32,
}

impl Session {
    fn me(&self) -> SessionRef {
        SessionRef { session: self.id, epoch: self.epoch }
    }
}

#[derive(Debug, Default)]
pub(crate) struct FakeLog {
    pub(crate) index: u64,
    pub(crate) time: ClusterTime,
    pub(crate) sessions: BTreeMap<String, Session>,
    waiting: VecDeque<Submission>,
    /// Rows of one session above which a publish is refused.
    pub(crate) rows_max: Option<usize>,
    /// Everything that was published through the log.
    pub(crate) published: Vec<SharedMessage>,
    /// Each Close that was applied.
    pub(crate) closes: u32,
}

impl FakeLog {
    pub(crate) fn submit(&mut self, submission: Submission) {
        self.waiting.push_back(submission);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// All connections of the node are over.
    pub(crate) fn end_all(&mut self) {
        let names: Vec<String> = self.sessions.keys().cloned().collect();
        names.iter().for_each(|name| self.lose(name));
    }

    /// Cluster time goes on to `to`.
    pub(crate) fn advance(&mut self, to: ClusterTime) {
        self.time = self.time.max(to);
    }

    /// The node that proposed is gone, and with it what had no number.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Applies up to `n` waiting commands as one entry; a run even when there was none.
    pub(crate) fn apply(&mut self, n: usize) -> AppliedRun {
        self.index += 1;
        self.time.0 += 1;
        let mut events = Vec::new();
        for number in 0..n {
            let Some(Submission { command, ticket, withdrawn, .. }) = self.waiting.pop_front() else { break };
            if withdrawn.is_some_and(|w| w.load(Ordering::Acquire)) {
                continue;
            }
            let position = Position::new(self.index, number as u32);
            let outcome = self.command(position, command, &mut events);
            events.push(NodeEvent::Outcome { ticket, outcome });
        }
        AppliedRun { index: self.index, time: self.time, events }
    }

    fn session(&mut self, from: SessionRef) -> Option<&mut Session> {
        self.sessions.values_mut().find(|s| s.me() == from && s.connected)
    }

    fn command(&mut self, position: Position, command: Command, events: &mut Vec<NodeEvent>) -> Outcome {
        match command {
            Command::Connect(connect) => self.connect(position, connect, events),
            Command::Close(close) => {
                let Some(session) = self.session(close.from) else { return Outcome::Fenced };
                session.connected = false;
                session.sent_until = session.sent_until.max(close.sent_until);
                session.will_due += u32::from(!close.drop_will);
                assert!(close.sent_until <= session.next_seq || !session.durable, "sent what never was");
                if !session.durable {
                    let id = session.id;
                    self.sessions.retain(|_, s| s.id != id);
                }
                self.closes += 1;
                Outcome::Done
            }
            Command::Publish(publish) => self.publish(position, &publish, events),
            Command::Release { from, packet_id } => match self.session(from) {
                Some(session) => Outcome::Released { known: session.inbound_qos2.remove(&packet_id) },
                None => Outcome::Fenced,
            },
            Command::Settle(settle) => {
                let Some(session) = self.session(settle.from) else { return Outcome::Fenced };
                for ack in settle.acks {
                    let Some(row) = session.rows.get_mut(&ack.seq) else { continue };
                    assert_eq!(row.message.position, ack.position, "an acknowledgement names another message");
                    match ack.kind {
                        AckKind::Pubrec => {
                            assert_eq!(row.qos, QoS::ExactlyOnce);
                            assert!(!row.released, "released twice");
                            row.released = true;
                        }
                        AckKind::Pubcomp => {
                            assert!(row.released, "completed before released");
                            session.rows.remove(&ack.seq);
                        }
                        AckKind::Puback | AckKind::PubrecRefused => {
                            session.rows.remove(&ack.seq);
                        }
                    }
                }
                Outcome::Done
            }
            Command::Subscribe(subscribe) => {
                let Some(session) = self.session(subscribe.from) else { return Outcome::Fenced };
                let mut granted = Vec::new();
                for (filter, options) in subscribe.filters {
                    let before = session.filters.len();
                    session.filters.retain(|(f, _, _)| *f != filter);
                    granted.push(Ok(Granted { qos: options.qos, is_new: session.filters.len() == before }));
                    session.filters.push((filter, options, subscribe.identifier));
                }
                Outcome::Subscribed(granted)
            }
            Command::Unsubscribe { from, filters } => {
                let Some(session) = self.session(from) else { return Outcome::Fenced };
                let existed = filters.iter().map(|filter| {
                    let before = session.filters.len();
                    session.filters.retain(|(f, _, _)| f != filter);
                    session.filters.len() < before
                });
                Outcome::Unsubscribed(existed.collect())
            }
            other => panic!("a front end does not send {other:?}"),
        }
    }

    fn connect(&mut self, position: Position, connect: Connect, events: &mut Vec<NodeEvent>) -> Outcome {
        assert!(!connect.client_id.is_empty());
        if self.time > connect.deadline {
            return Outcome::ConnectExpired;
        }
        if let Some(old) = self.sessions.get_mut(&connect.client_id)
            && old.connected
        {
            old.connected = false;
            old.sent_until = old.sent_until.max(window_end(old));
            events.push(NodeEvent::Kick { from: old.me(), reason: KickReason::TakenOver });
        }
        let keep = self.sessions.get(&connect.client_id).is_some_and(|s| s.durable) && !connect.clean_start;
        if !keep {
            self.sessions.remove(&connect.client_id);
        }
        let session = self.sessions.entry(connect.client_id).or_insert_with(|| Session {
            id: SessionId(position),
            epoch: Epoch(position),
            connected: true,
            durable: connect.expiry_s > 0,
            receive_maximum: connect.receive_maximum,
            filters: Vec::new(),
            rows: BTreeMap::new(),
            next_seq: QueueSeq(0),
            sent_until: QueueSeq(0),
            inbound_qos2: BTreeSet::new(),
            will_due: 0,
        });
        session.epoch = Epoch(position);
        session.connected = true;
        session.receive_maximum = connect.receive_maximum;
        Outcome::Connected(Connected {
            session: session.me(),
            present: keep,
            expiry_s: connect.expiry_s,
            durable: session.durable,
            queue_head: session.rows.keys().next().copied().unwrap_or(session.next_seq),
            sent_until: session.sent_until,
            queue_tail: session.next_seq,
            inbound_qos2: session.inbound_qos2.iter().copied().collect(),
        })
    }

    /// Publishes from nowhere, as the administration does.
    pub(crate) fn inject(&mut self, publish: &Publish) -> AppliedRun {
        self.index += 1;
        self.time.0 += 1;
        let mut events = Vec::new();
        self.publish(Position::new(self.index, 0), publish, &mut events);
        AppliedRun { index: self.index, time: self.time, events }
    }

    fn publish(&mut self, position: Position, publish: &Publish, events: &mut Vec<NodeEvent>) -> Outcome {
        if let Some(from) = publish.from {
            let Some(session) = self.session(from) else { return Outcome::Fenced };
            if let Some(id) = publish.packet_id
                && session.inbound_qos2.contains(&id)
            {
                return Outcome::AlreadyRecorded;
            }
        }
        let rows_max = self.rows_max.unwrap_or(usize::MAX);
        let matches = |s: &Session| s.filters.iter().any(|(f, _, _)| f.matches(&publish.topic));
        if publish.qos > QoS::AtMostOnce && self.sessions.values().any(|s| matches(s) && s.rows.len() >= rows_max) {
            return Outcome::QueueFull;
        }
        if let (Some(from), Some(id)) = (publish.from, publish.packet_id)
            && let Some(session) = self.session(from)
        {
            session.inbound_qos2.insert(id);
        }
        let message = self.message(position, publish);
        self.published.push(message.clone());
        let matched = self.route(&message, events);
        Outcome::Published { position, matched }
    }

    fn message(&self, position: Position, publish: &Publish) -> SharedMessage {
        Arc::new(Message {
            position,
            topic: publish.topic.clone(),
            qos: publish.qos,
            retain: publish.retain,
            published_at: self.time,
            expires_at: publish.expiry_s.map(|s| self.time.plus_secs(s)),
            properties: publish.properties.clone(),
            payload: publish.payload.clone(),
        })
    }

    /// QoS 0 past the log.
    pub(crate) fn route_qos0(&mut self, publish: &Publish) -> AppliedRun {
        let message = self.message(Position::ZERO, publish);
        let mut events = Vec::new();
        self.route(&message, &mut events);
        AppliedRun { index: self.index, time: self.time, events }
    }

    fn route(&mut self, message: &SharedMessage, events: &mut Vec<NodeEvent>) -> bool {
        let mut matched = false;
        for session in self.sessions.values_mut() {
            let of: Vec<_> = session.filters.iter().filter(|(f, _, _)| f.matches(&message.topic)).collect();
            let Some(max) = of.iter().map(|(_, o, _)| o.qos).max() else { continue };
            matched = true;
            let qos = max.min(message.qos);
            let identifiers: Arc<[u32]> = of.iter().filter_map(|(_, _, id)| *id).collect();
            let mut seq = None;
            if qos > QoS::AtMostOnce && session.durable {
                seq = Some(session.next_seq);
                let row = Row { qos, message: message.clone(), identifiers: identifiers.clone(), released: false };
                session.rows.insert(session.next_seq, row);
                session.next_seq = session.next_seq.next();
            }
            if session.connected {
                let to = session.me();
                let message = message.clone();
                events.push(NodeEvent::Deliver(Delivery { to, seq, qos, retain: false, identifiers, message }));
            }
        }
        matched
    }

    /// Drops the oldest row of a session that was certainly not sent, as expiry and drop-oldest do.
    pub(crate) fn withdraw(&mut self, client_id: &str) -> Option<(QueueSeq, AppliedRun)> {
        let session = self.sessions.get_mut(client_id)?;
        let end = window_end(session);
        let seq = *session.rows.range(end..).next()?.0;
        session.rows.remove(&seq);
        let from = session.me();
        let events = if session.connected { vec![NodeEvent::Withdraw { from, seq }] } else { Vec::new() };
        self.index += 1;
        Some((seq, AppliedRun { index: self.index, time: self.time, events }))
    }

    /// The node of a session is lost: nobody closed its connections.
    pub(crate) fn lose(&mut self, client_id: &str) {
        if let Some(session) = self.sessions.get_mut(client_id) {
            session.connected = false;
            session.sent_until = session.sent_until.max(window_end(session));
        }
    }

    pub(crate) fn page(&self, session: SessionId, from: QueueSeq, rows_max: usize, bytes_max: usize) -> QueuePage {
        let mut page = QueuePage { rows: Vec::new(), next: from, end: true };
        let Some(session) = self.sessions.values().find(|s| s.id == session) else { return page };
        let mut bytes = 0;
        for (seq, row) in session.rows.range(from..) {
            if page.rows.len() >= rows_max || bytes >= bytes_max {
                page.end = false;
                break;
            }
            bytes += row.message.payload.len();
            page.next = seq.next();
            page.rows.push(QueuedRow {
                seq: *seq,
                qos: row.qos,
                retain: false,
                released: row.released,
                identifiers: row.identifiers.clone(),
                message: row.message.clone(),
            });
        }
        page
    }
}

/// Where a connection can have sent to that nobody closed: the end of the window.
fn window_end(session: &Session) -> QueueSeq {
    let last = session.rows.keys().take(usize::from(session.receive_maximum)).next_back();
    last.map_or(session.next_seq, |seq| seq.next()).max(session.sent_until)
}

/// A ticket for tests that drive one session machine.
pub(crate) fn ticket(request: u64) -> Ticket {
    Ticket { worker: 0, slot: 0, generation: 0, request }
}
