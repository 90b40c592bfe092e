//! From the apply thread to the workers: who has which session, and what each worker is told of a run.
//!
//! Owns the registry from a session's connection to its worker and slot. It is touched on the apply thread
//! only, in log order, so it always agrees with the log: CONNECT enters, takeover and close leave. One
//! message goes to each worker that a run concerns. Nothing here blocks: a worker that is behind gets rows
//! only as numbers, to be paged, loses QoS 0, and its transient sessions overflow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ntex::util::HashMap;
use quorate_raft::{AppliedRun, NodeEffects, NodeEvent, Ticket};
use quorate_store::command::SessionRef;
use quorate_store::effect::{Delivery, KickReason, Outcome};
use quorate_store::ids::{Incarnation, QoS, QueueSeq};
use quorate_store::rows::QueuePage;
use tokio::sync::{mpsc, oneshot};

use super::options::DELIVERY_OVERHEAD_BYTES;
use super::reason::Reason;
use super::session::{CLOSE_REQUEST, Request};
use super::stats::{self, Stats};

/// A slot of a worker, in one of its uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) worker: u16,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Address {
    pub(super) fn ticket(self, request: Request) -> Ticket {
        Ticket { worker: self.worker, slot: self.slot, generation: self.generation, request }
    }
}

impl From<Ticket> for Address {
    fn from(t: Ticket) -> Self {
        Self { worker: t.worker, slot: t.slot, generation: t.generation }
    }
}

/// What a connection is told.
#[derive(Debug)]
pub(super) enum What {
    Outcome(Request, Outcome),
    Deliver(Delivery),
    /// A row exists; its message was left out.
    Note(QueueSeq),
    /// A delivery to a transient session was lost.
    Overflow,
    Kick(KickReason),
}

/// What one applied run means for one worker.
#[derive(Debug)]
pub(super) struct WorkerRun {
    pub(super) index: u64,
    pub(super) events: Vec<(Address, What)>,
    /// What the deliveries are charged.
    pub(super) bytes: usize,
}

/// A message to a worker.
#[derive(Debug)]
pub(super) enum ToWorker {
    Run(WorkerRun),
    Page(Address, Result<QueuePage, ()>),
    /// This incarnation of the node is closed, and with it the connections that began in it.
    IncarnationOver(u64),
    /// Send the clients away, a few at a time; `done` when none is left.
    Drain {
        reason: Reason,
        server_reference: Option<Arc<str>>,
        done: oneshot::Sender<()>,
    },
}

/// The way to one worker.
#[derive(Clone, Debug)]
pub(super) struct Mailbox {
    pub(super) tx: mpsc::UnboundedSender<ToWorker>,
    /// Bytes of deliveries on their way.
    pub(super) bytes: Arc<AtomicUsize>,
    pub(super) stats: Arc<Stats>,
}

/// Sessions that are connected to this node.
#[derive(Debug, Default)]
struct Registry {
    addresses: HashMap<SessionRef, Address>,
    sessions: HashMap<Address, SessionRef>,
}

impl Registry {
    fn enter(&mut self, session: SessionRef, address: Address) {
        self.addresses.insert(session, address);
        self.sessions.insert(address, session);
    }

    fn leave(&mut self, session: SessionRef) -> Option<Address> {
        let address = self.addresses.remove(&session)?;
        self.sessions.remove(&address);
        Some(address)
    }

    fn leave_address(&mut self, address: Address) {
        if let Some(session) = self.sessions.remove(&address) {
            self.addresses.remove(&session);
        }
    }
}

/// The front end's [`NodeEffects`].
#[derive(Debug)]
pub(super) struct FrontEffects {
    mailboxes: Vec<Mailbox>,
    mailbox_bytes_max: usize,
    /// Locked by the apply thread only; the lock is what makes it `Sync`.
    registry: Mutex<Registry>,
    /// This node's incarnation in its packed form, 0 while it has none and no command would be answered.
    incarnation: Arc<AtomicU64>,
}

impl FrontEffects {
    pub(super) fn new(mailboxes: Vec<Mailbox>, mailbox_bytes_max: usize, incarnation: Arc<AtomicU64>) -> Self {
        Self { mailboxes, mailbox_bytes_max, registry: Mutex::default(), incarnation }
    }

    /// A delivery as the worker gets it: whole, or what is left of it when the worker is behind.
    fn delivery(mailbox: &Mailbox, bytes_max: usize, run_bytes: &mut usize, delivery: Delivery) -> Option<What> {
        if mailbox.bytes.load(Ordering::Relaxed) + *run_bytes < bytes_max {
            *run_bytes += delivery.message.payload.len() + DELIVERY_OVERHEAD_BYTES;
            return Some(What::Deliver(delivery));
        }
        match (delivery.qos, delivery.seq) {
            (QoS::AtMostOnce, _) => {
                stats::add(&mailbox.stats.qos0_dropped, 1);
                None
            }
            (_, Some(seq)) => {
                stats::add(&mailbox.stats.mailbox_degraded, 1);
                Some(What::Note(seq))
            }
            (_, None) => Some(What::Overflow),
        }
    }
}

impl NodeEffects for FrontEffects {
    fn applied(&self, run: AppliedRun) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts: Vec<Option<WorkerRun>> = Vec::new();
        parts.resize_with(self.mailboxes.len(), || None);
        for event in run.events {
            let (address, event) = match event {
                NodeEvent::Outcome { ticket, outcome } => {
                    let address = Address::from(ticket);
                    if ticket.request == CLOSE_REQUEST {
                        registry.leave_address(address);
                        continue;
                    }
                    if let Outcome::Connected(connected) = &outcome {
                        registry.enter(connected.session, address);
                    }
                    (address, NodeEvent::Outcome { ticket, outcome })
                }
                NodeEvent::Deliver(delivery) => match registry.addresses.get(&delivery.to) {
                    Some(address) => (*address, NodeEvent::Deliver(delivery)),
                    None => continue, // closed here meanwhile
                },
                NodeEvent::Kick { from, reason } => match registry.leave(from) {
                    Some(address) => (address, NodeEvent::Kick { from, reason }),
                    None => continue,
                },
            };
            let worker = usize::from(address.worker);
            let (Some(mailbox), Some(part)) = (self.mailboxes.get(worker), parts.get_mut(worker)) else { continue };
            let part = part.get_or_insert_with(|| WorkerRun { index: run.index, events: Vec::new(), bytes: 0 });
            let what = match event {
                NodeEvent::Outcome { ticket, outcome } => Some(What::Outcome(ticket.request, outcome)),
                NodeEvent::Deliver(d) => Self::delivery(mailbox, self.mailbox_bytes_max, &mut part.bytes, d),
                NodeEvent::Kick { reason, .. } => Some(What::Kick(reason)),
            };
            part.events.extend(what.map(|what| (address, what)));
        }
        for (mailbox, part) in self.mailboxes.iter().zip(parts) {
            if let Some(part) = part {
                mailbox.bytes.fetch_add(part.bytes, Ordering::Relaxed);
                // A worker that is gone has no connections.
                let _ = mailbox.tx.send(ToWorker::Run(part));
            }
        }
    }

    fn incarnation_started(&self, incarnation: Incarnation) {
        tracing::info!(%incarnation, "clients may connect");
        self.incarnation.store(incarnation.0.as_u64(), Ordering::Release);
    }

    fn incarnation_closed(&self, incarnation: Incarnation) {
        tracing::warn!(%incarnation, "this node's incarnation is closed: its clients are disconnected");
        // Before the message: a CONNECT that saw the old value is in its slot when the message is handled.
        self.incarnation.store(0, Ordering::Release);
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = Registry::default();
        for mailbox in &self.mailboxes {
            let _ = mailbox.tx.send(ToWorker::IncarnationOver(incarnation.0.as_u64()));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use bytes::Bytes;
    use quorate_store::codec::Payload;
    use quorate_store::effect::Connected;
    use quorate_store::ids::{ClusterTime, Epoch, Position, SessionId};
    use quorate_store::message::Message;
    use quorate_store::topic::TopicName;

    use super::*;

    const HERE: Address = Address { worker: 1, slot: 5, generation: 2 };

    fn session(n: u64) -> SessionRef {
        SessionRef { session: SessionId(Position::new(1, 0)), epoch: Epoch(Position::new(n, 0)) }
    }

    fn connected(n: u64) -> Outcome {
        Outcome::Connected(Connected {
            session: session(n),
            present: false,
            expiry_s: 1,
            durable: true,
            queue_head: QueueSeq(0),
            sent_until: QueueSeq(0),
            queue_tail: QueueSeq(0),
            inbound_qos2: Vec::new(),
        })
    }

    fn outcome(address: Address, request: Request, outcome: Outcome) -> NodeEvent {
        NodeEvent::Outcome { ticket: address.ticket(request), outcome }
    }

    fn delivery(n: u64, seq: Option<u64>, qos: QoS) -> NodeEvent {
        let message = Arc::new(Message {
            position: Position::new(9, 0),
            topic: TopicName::new("t").unwrap(),
            qos,
            retain: false,
            published_at: ClusterTime(0),
            expires_at: None,
            properties: None,
            payload: Payload(Bytes::from(vec![0; 1000])),
        });
        let seq = seq.map(QueueSeq);
        NodeEvent::Deliver(Delivery { to: session(n), seq, qos, retain: false, identifiers: Arc::from([]), message })
    }

    struct Rig {
        effects: FrontEffects,
        inboxes: Vec<mpsc::UnboundedReceiver<ToWorker>>,
        index: u64,
    }

    impl Rig {
        fn new(mailbox_bytes_max: usize) -> Self {
            let (mailboxes, inboxes) = (0..2)
                .map(|_| {
                    let (tx, rx) = mpsc::unbounded_channel();
                    (Mailbox { tx, bytes: Arc::default(), stats: Arc::default() }, rx)
                })
                .unzip();
            let effects = FrontEffects::new(mailboxes, mailbox_bytes_max, Arc::default());
            Self { effects, inboxes, index: 0 }
        }

        fn apply(&mut self, events: Vec<NodeEvent>) {
            self.index += 1;
            self.effects.applied(AppliedRun { index: self.index, time: ClusterTime(0), events });
        }

        /// What the second worker was told since, in short.
        fn told(&mut self) -> Vec<String> {
            let mut told = Vec::new();
            for (worker, inbox) in self.inboxes.iter_mut().enumerate() {
                while let Ok(message) = inbox.try_recv() {
                    assert_eq!(worker, 1);
                    let ToWorker::Run(run) = message else { panic!("{message:?}") };
                    told.extend(run.events.into_iter().map(|(address, what)| {
                        assert_eq!(address, HERE);
                        match what {
                            What::Outcome(request, _) => format!("outcome {request}"),
                            What::Deliver(_) => "deliver".to_owned(),
                            What::Note(seq) => format!("note {seq}"),
                            What::Overflow => "overflow".to_owned(),
                            What::Kick(reason) => format!("kick {reason:?}"),
                        }
                    }));
                }
            }
            told
        }
    }

    #[test]
    fn deliveries_find_the_connection_from_connect_to_takeover() {
        let mut rig = Rig::new(usize::MAX);
        rig.apply(vec![delivery(1, None, QoS::AtMostOnce)]);
        assert!(rig.told().is_empty());
        rig.apply(vec![
            outcome(HERE, 0, connected(1)),
            delivery(1, Some(0), QoS::AtLeastOnce),
            delivery(2, None, QoS::AtMostOnce),
        ]);
        assert_eq!(rig.told(), ["outcome 0", "deliver"]);
        // Taken over by a connection of another node: the epoch is another.
        rig.apply(vec![NodeEvent::Kick { from: session(1), reason: KickReason::TakenOver }]);
        rig.apply(vec![delivery(1, Some(1), QoS::AtLeastOnce), delivery(2, Some(1), QoS::AtLeastOnce)]);
        rig.apply(vec![NodeEvent::Kick { from: session(1), reason: KickReason::TakenOver }]);
        assert_eq!(rig.told(), ["kick TakenOver"]);
    }

    #[test]
    fn a_close_is_for_the_registry_only_and_a_later_use_of_the_slot_is_not_touched() {
        let mut rig = Rig::new(usize::MAX);
        let before = Address { generation: 1, ..HERE };
        rig.apply(vec![outcome(before, 0, connected(1))]);
        let _ = rig.inboxes.iter_mut().map(|i| i.try_recv()).collect::<Vec<_>>();
        rig.apply(vec![outcome(HERE, 0, connected(2)), outcome(before, CLOSE_REQUEST, Outcome::Done)]);
        rig.apply(vec![delivery(1, None, QoS::AtMostOnce), delivery(2, None, QoS::AtMostOnce)]);
        assert_eq!(rig.told(), ["outcome 0", "deliver"]);
        rig.apply(vec![outcome(HERE, CLOSE_REQUEST, Outcome::Fenced), delivery(2, None, QoS::AtMostOnce)]);
        assert!(rig.told().is_empty());
    }

    #[test]
    fn a_worker_that_is_behind_gets_numbers_instead_of_messages() {
        let mut rig = Rig::new(1500);
        rig.apply(vec![outcome(HERE, 0, connected(1))]);
        let five = |rig: &mut Rig| {
            rig.apply(vec![
                delivery(1, Some(0), QoS::AtLeastOnce),
                delivery(1, Some(1), QoS::AtLeastOnce),
                delivery(1, Some(2), QoS::AtLeastOnce),
                delivery(1, None, QoS::AtMostOnce),
                delivery(1, None, QoS::AtLeastOnce),
                outcome(HERE, 1, Outcome::Done),
            ]);
        };
        five(&mut rig);
        five(&mut rig);
        let first = ["outcome 0", "deliver", "deliver", "note 2", "overflow", "outcome 1"];
        let second = ["note 0", "note 1", "note 2", "overflow", "outcome 1"];
        assert_eq!(rig.told(), [&first[..], &second[..]].concat());
    }

    #[test]
    fn a_closed_incarnation_forgets_everybody() {
        let mut rig = Rig::new(usize::MAX);
        let incarnation = Incarnation(Position::new(3, 0));
        rig.effects.incarnation_started(incarnation);
        assert_eq!(rig.effects.incarnation.load(Ordering::Relaxed), incarnation.0.as_u64());
        rig.apply(vec![outcome(HERE, 0, connected(1))]);
        rig.told();
        rig.effects.incarnation_closed(incarnation);
        assert_eq!(rig.effects.incarnation.load(Ordering::Relaxed), 0);
        rig.apply(vec![delivery(1, None, QoS::AtMostOnce)]);
        for inbox in &mut rig.inboxes {
            assert!(matches!(inbox.try_recv(), Ok(ToWorker::IncarnationOver(_))));
            assert!(inbox.try_recv().is_err());
        }
    }
}
