//! From the apply thread to the workers: who has which session, and what each worker is told of a run.
//!
//! Owns the registry from a session's connection to its worker and slot. It is touched on the apply thread
//! only, in log order, so it always agrees with the log: CONNECT enters, takeover and close leave. One
//! message goes to each worker that a run concerns. Nothing here blocks, and what waits for a worker is bounded:
//! one that is behind gets rows only as numbers, to be paged, and loses QoS 0; a transient session has its own
//! bound then, so that it overflows by what waits for itself and not by what waits for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ntex::util::HashMap;
use quorate_raft::{AppliedRun, NodeEffects, NodeEvent, Ticket};
use quorate_store::command::SessionRef;
use quorate_store::effect::{Delivery, KickReason, Outcome};
use quorate_store::ids::{Incarnation, QoS, QueueSeq};
use quorate_store::message::SharedMessage;
use quorate_store::rows::QueuePage;
use tokio::sync::{mpsc, oneshot};

use super::options::{DELIVERY_OVERHEAD_BYTES, MqttOptions};
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
    Deliver(Delivery, Option<Waits>),
    /// Rows exist; their messages were left out.
    Note(Arc<Behind>),
    /// A delivery to a transient session was lost.
    Overflow,
    /// A row that was not sent is gone.
    Withdraw(QueueSeq),
    Kick(KickReason),
}

/// What a worker that is behind has not handled yet of one session.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Charged for deliveries to a transient session.
    bytes: AtomicUsize,
    /// Rows below exist; 0 when the worker was told of all of them.
    tail: AtomicU64,
}

impl Behind {
    /// Row `seq` exists. Whether the worker has to be told: else it finds it with what it has not handled yet.
    fn note(&self, seq: QueueSeq) -> bool {
        self.tail.fetch_max(seq.next().0, Ordering::AcqRel) == 0
    }

    /// The last row that the worker was not told of.
    pub(super) fn take_noted(&self) -> Option<QueueSeq> {
        self.tail.swap(0, Ordering::AcqRel).checked_sub(1).map(QueueSeq)
    }
}

/// Keeps a delivery charged to its session until it is handled, or thrown away.
#[derive(Debug)]
pub(super) struct Waits {
    behind: Arc<Behind>,
    bytes: usize,
}

impl Waits {
    fn new(behind: &Arc<Behind>, bytes: usize) -> Self {
        behind.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { behind: behind.clone(), bytes }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.behind.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What one applied run means for one worker.
#[derive(Debug)]
pub(super) struct WorkerRun {
    pub(super) index: u64,
    pub(super) events: Vec<(Address, What)>,
    /// What the worker's mailbox is charged for it.
    pub(super) bytes: usize,
}

/// A run on its way to a worker.
#[derive(Debug)]
struct Part {
    run: WorkerRun,
    /// The message that was charged last: its further deliveries share it.
    charged: Option<SharedMessage>,
}

impl Part {
    fn new(index: u64, events: usize) -> Self {
        Self { run: WorkerRun { index, events: Vec::with_capacity(events), bytes: 0 }, charged: None }
    }

    /// A message is charged once, whatever its fan-out: its deliveries share it.
    fn charge(&mut self, message: &SharedMessage) {
        self.run.bytes += DELIVERY_OVERHEAD_BYTES;
        if !self.charged.as_ref().is_some_and(|charged| Arc::ptr_eq(charged, message)) {
            self.run.bytes += message.charge_bytes();
            self.charged = Some(message.clone());
        }
    }
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

/// A run as it is divided among the workers.
struct Parts<'a> {
    mailboxes: &'a [Mailbox],
    parts: Vec<Option<Part>>,
    index: u64,
    /// Events that a part has room for: they are large, and moved each time that there is not enough.
    share: usize,
}

impl<'a> Parts<'a> {
    fn new(mailboxes: &'a [Mailbox], index: u64, events: usize) -> Self {
        let mut parts = Vec::new();
        parts.resize_with(mailboxes.len(), || None);
        Self { mailboxes, parts, index, share: events.div_ceil(mailboxes.len().max(1)) }
    }

    fn of(&mut self, address: Address) -> Option<(&'a Mailbox, &mut Part)> {
        let worker = usize::from(address.worker);
        let part = self.parts.get_mut(worker)?.get_or_insert_with(|| Part::new(self.index, self.share));
        Some((self.mailboxes.get(worker)?, part))
    }
}

/// Where a session is connected.
#[derive(Debug)]
struct Entry {
    address: Address,
    /// Since its worker was behind for the first time.
    behind: Option<Arc<Behind>>,
    /// A delivery was lost: it will be disconnected, and is sent nothing more.
    overflowed: bool,
}

/// Sessions that are connected to this node.
#[derive(Debug, Default)]
struct Registry {
    entries: HashMap<SessionRef, Entry>,
    sessions: HashMap<Address, SessionRef>,
}

impl Registry {
    fn enter(&mut self, session: SessionRef, address: Address) {
        self.entries.insert(session, Entry { address, behind: None, overflowed: false });
        self.sessions.insert(address, session);
    }

    fn leave(&mut self, session: SessionRef) -> Option<Address> {
        let address = self.entries.remove(&session)?.address;
        self.sessions.remove(&address);
        Some(address)
    }

    fn leave_address(&mut self, address: Address) {
        if let Some(session) = self.sessions.remove(&address) {
            self.entries.remove(&session);
        }
    }
}

/// The front end's [`NodeEffects`].
#[derive(Debug)]
pub(super) struct FrontEffects {
    mailboxes: Vec<Mailbox>,
    mailbox_bytes_max: usize,
    transient_queue_bytes_max: usize,
    /// Locked by the apply thread only; the lock is what makes it `Sync`.
    registry: Mutex<Registry>,
    /// This node's incarnation in its packed form, 0 while it has none and no command would be answered.
    incarnation: Arc<AtomicU64>,
}

impl FrontEffects {
    pub(super) fn new(mailboxes: Vec<Mailbox>, options: &MqttOptions, incarnation: Arc<AtomicU64>) -> Self {
        Self {
            mailboxes,
            mailbox_bytes_max: options.mailbox_bytes_max,
            transient_queue_bytes_max: options.transient_queue_bytes_max,
            registry: Mutex::default(),
            incarnation,
        }
    }

    /// A delivery as the worker gets it: whole, or what is left of it when the worker is behind.
    fn delivery(&self, mailbox: &Mailbox, part: &mut Part, entry: &mut Entry, delivery: Delivery) -> Option<What> {
        if entry.overflowed {
            return None;
        }
        if mailbox.bytes.load(Ordering::Relaxed) + part.run.bytes < self.mailbox_bytes_max {
            part.charge(&delivery.message);
            return Some(What::Deliver(delivery, None));
        }
        match (delivery.qos, delivery.seq) {
            (QoS::AtMostOnce, _) => {
                stats::add(&mailbox.stats.qos0_dropped, 1);
                None
            }
            (_, Some(seq)) => {
                stats::add(&mailbox.stats.mailbox_degraded, 1);
                let behind = entry.behind.get_or_insert_default();
                behind.note(seq).then(|| What::Note(behind.clone()))
            }
            (_, None) => {
                let behind = entry.behind.get_or_insert_default();
                if behind.bytes.load(Ordering::Relaxed) >= self.transient_queue_bytes_max {
                    entry.overflowed = true;
                    return Some(What::Overflow);
                }
                part.charge(&delivery.message);
                let waits = Waits::new(behind, delivery.message.charge_bytes() + DELIVERY_OVERHEAD_BYTES);
                Some(What::Deliver(delivery, Some(waits)))
            }
        }
    }

    /// What an event means here, put into the part of the worker that it concerns. `None` when it concerns nobody.
    fn tell(&self, event: NodeEvent, registry: &mut Registry, parts: &mut Parts<'_>) -> Option<()> {
        match event {
            NodeEvent::Outcome { ticket, outcome } => {
                let address = Address::from(ticket);
                if ticket.request == CLOSE_REQUEST {
                    registry.leave_address(address);
                    return None;
                }
                if let Outcome::Connected(connected) = &outcome {
                    registry.enter(connected.session, address);
                }
                parts.of(address)?.1.run.events.push((address, What::Outcome(ticket.request, outcome)));
            }
            NodeEvent::Deliver(delivery) => {
                let entry = registry.entries.get_mut(&delivery.to)?; // else closed here meanwhile
                let (mailbox, part) = parts.of(entry.address)?;
                if let Some(what) = self.delivery(mailbox, part, entry, delivery) {
                    part.run.events.push((entry.address, what));
                }
            }
            NodeEvent::Withdraw { from, seq } => {
                let address = registry.entries.get(&from)?.address;
                let (_, part) = parts.of(address)?;
                part.run.bytes += DELIVERY_OVERHEAD_BYTES;
                part.run.events.push((address, What::Withdraw(seq)));
            }
            NodeEvent::Kick { from, reason } => {
                let address = registry.leave(from)?;
                parts.of(address)?.1.run.events.push((address, What::Kick(reason)));
            }
        }
        Some(())
    }
}

impl NodeEffects for FrontEffects {
    fn applied(&self, run: AppliedRun) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Parts::new(&self.mailboxes, run.index, run.events.len());
        for event in run.events {
            let _ = self.tell(event, &mut registry, &mut parts);
        }
        for (mailbox, part) in self.mailboxes.iter().zip(parts.parts) {
            if let Some(Part { run, .. }) = part.filter(|part| !part.run.events.is_empty()) {
                mailbox.bytes.fetch_add(run.bytes, Ordering::Relaxed);
                // A worker that is gone has no connections.
                let _ = mailbox.tx.send(ToWorker::Run(run));
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
    use quorate_store::message::{Message, MessageProperties};
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

    fn message(payload_bytes: usize) -> Arc<Message> {
        Arc::new(Message {
            position: Position::new(9, 0),
            topic: TopicName::new("t").unwrap(),
            qos: QoS::AtLeastOnce,
            retain: false,
            published_at: ClusterTime(0),
            expires_at: None,
            properties: None,
            payload: Payload(Bytes::from(vec![0; payload_bytes])),
        })
    }

    fn delivery(n: u64, seq: Option<u64>, qos: QoS) -> NodeEvent {
        shared(n, seq, qos, message(1000))
    }

    fn shared(n: u64, seq: Option<u64>, qos: QoS, message: Arc<Message>) -> NodeEvent {
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
            Self::with(&MqttOptions { mailbox_bytes_max, ..MqttOptions::default() })
        }

        fn with(options: &MqttOptions) -> Self {
            let (mailboxes, inboxes) = (0..2)
                .map(|_| {
                    let (tx, rx) = mpsc::unbounded_channel();
                    (Mailbox { tx, bytes: Arc::default(), stats: Arc::default() }, rx)
                })
                .unzip();
            let effects = FrontEffects::new(mailboxes, options, Arc::default());
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
                            What::Deliver(..) => "deliver".to_owned(),
                            What::Note(behind) => {
                                behind.take_noted().map_or_else(String::new, |seq| format!("note {seq}"))
                            }
                            What::Overflow => "overflow".to_owned(),
                            What::Withdraw(seq) => format!("withdraw {seq}"),
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
        // All rows in one, at the first; a transient delivery is charged to its session instead.
        let first = ["outcome 0", "deliver", "deliver", "note 2", "deliver", "outcome 1"];
        let second = ["deliver", "outcome 1"];
        assert_eq!(rig.told(), [&first[..], &second[..]].concat());
    }

    #[test]
    fn a_fan_out_is_charged_its_payload_once() {
        let mut rig = Rig::new(10_000);
        rig.apply(vec![outcome(HERE, 0, connected(1))]);
        rig.told();
        // Far more than the bound if each were charged the payload; QoS 0 and 1, transient and not.
        let message = message(5_000);
        let to_all = |seq, qos| (0..10).map(move |n| (n + seq, qos));
        let events = to_all(0, QoS::AtMostOnce).chain(to_all(10, QoS::AtLeastOnce));
        rig.apply(events.map(|(_, qos)| shared(1, None, qos, message.clone())).collect());
        assert_eq!(rig.told(), ["deliver"; 20]);
        assert_eq!(rig.effects.mailboxes[1].stats.qos0_dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn properties_are_charged_too() {
        let mut rig = Rig::new(10_000);
        rig.apply(vec![outcome(HERE, 0, connected(1))]);
        rig.told();
        let large = || {
            let mut message = Arc::unwrap_or_clone(message(0));
            let user = vec![("name".to_owned(), "v".repeat(60)); 100];
            message.properties = Some(Box::new(MessageProperties { user, ..MessageProperties::default() }));
            Arc::new(message)
        };
        rig.apply((0..4).map(|_| shared(1, None, QoS::AtMostOnce, large())).collect());
        assert!(rig.told().len() < 4, "four messages of 6 kB of properties and more are below 10 kB");
    }

    #[test]
    fn a_transient_session_overflows_only_by_what_it_has_waiting_itself() {
        let options =
            MqttOptions { mailbox_bytes_max: 5_000, transient_queue_bytes_max: 3_000, ..MqttOptions::default() };
        let mut rig = Rig::with(&options);
        rig.apply(vec![outcome(HERE, 0, connected(1))]);
        // The worker is far behind, because of others.
        rig.effects.mailboxes[1].bytes.store(1 << 30, Ordering::Relaxed);
        rig.apply(vec![delivery(1, None, QoS::AtLeastOnce), delivery(1, None, QoS::AtLeastOnce)]);
        assert_eq!(rig.told(), ["outcome 0", "deliver", "deliver"]);
        // What was handled counts no more.
        rig.apply(vec![delivery(1, None, QoS::AtLeastOnce), delivery(1, None, QoS::AtLeastOnce)]);
        assert_eq!(rig.told(), ["deliver", "deliver"]);
        // It overflows by itself, once, and is sent nothing more.
        rig.apply((0..10).map(|_| delivery(1, None, QoS::AtLeastOnce)).collect());
        rig.apply(vec![delivery(1, None, QoS::AtLeastOnce), delivery(1, None, QoS::AtMostOnce)]);
        assert_eq!(rig.told(), ["deliver", "deliver", "deliver", "overflow"]);
    }

    #[test]
    fn a_worker_that_is_behind_is_told_of_all_rows_of_a_session_at_once() {
        let mut rig = Rig::new(0);
        rig.apply(vec![outcome(HERE, 0, connected(1))]);
        rig.told();
        for seq in 0..3 {
            rig.apply(vec![
                delivery(1, Some(2 * seq), QoS::AtLeastOnce),
                outcome(HERE, seq, Outcome::Done),
                delivery(1, Some(2 * seq + 1), QoS::AtLeastOnce),
            ]);
        }
        assert_eq!(rig.told(), ["note 5", "outcome 0", "outcome 1", "outcome 2"]);
        rig.apply(vec![delivery(1, Some(6), QoS::AtLeastOnce)]);
        assert_eq!(rig.told(), ["note 6"]);
    }

    #[test]
    fn a_row_that_is_gone_is_withdrawn_from_whoever_has_the_session() {
        let mut rig = Rig::new(0);
        let withdraw = |n, seq| NodeEvent::Withdraw { from: session(n), seq: QueueSeq(seq) };
        rig.apply(vec![outcome(HERE, 0, connected(1)), withdraw(1, 7), withdraw(2, 8)]);
        assert_eq!(rig.told(), ["outcome 0", "withdraw 7"]);
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
