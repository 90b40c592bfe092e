//! One worker thread's connections: slots, the mailbox, and carrying out what session machines decide.
//!
//! Everything here is `!Send` and lives on one ntex worker. A slot has a generation, so that an outcome
//! that comes late never reaches the next connection in the same slot. The mailbox is drained run by run;
//! what one run means for one connection is handled in one go and written with one encode.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use quorate_raft::Submission;
use quorate_store::access::Access;
use quorate_store::command::{Close, Command};
use quorate_store::effect::Outcome;
use quorate_store::ids::ClusterTime;
use tokio::sync::{mpsc, oneshot, watch};

use super::auth::Authenticator;
use super::backend::{Backend, Quorum};
use super::conn::Conn;
use super::effects::{Address, Mailbox, ToWorker, What, WorkerRun};
use super::listen::Bounds;
use super::options::{DRAIN_STEP, DRAIN_STEP_CLIENTS, DRAIN_STEPS_MAX, MqttOptions};
use super::reason::Reason;
use super::session::{CLOSE_REQUEST, Ending, Now, Output, Request, Session};
use super::stats;
use super::sys::SysBoard;

/// Messages taken out of the mailbox at once.
const MAILBOX_TURN: usize = 64;
/// Events handled before the sockets get their turn: a run may have a hundred thousand.
const EVENTS_PER_TURN_MAX: usize = 1024;

/// What all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Arc<MqttOptions>,
    pub(super) authenticator: Arc<dyn Authenticator>,
    /// Bounds of the node on connections.
    pub(super) bounds: Bounds,
    /// How many of those beyond the rate are told so.
    pub(super) told: Bounds,
    /// Sockets that are kept to be told that they are not served.
    pub(super) refusals: AtomicUsize,
    pub(super) board: Arc<SysBoard>,
    /// See [`super::effects::FrontEffects`].
    pub(super) incarnation: Arc<AtomicU64>,
}

/// Why new clients are not taken at the moment.
#[derive(Clone, Debug)]
struct SendAway {
    reason: Reason,
    server_reference: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Rc<Conn>>,
}

/// Commands that the proposer had no room for, in order.
#[derive(Debug)]
enum Waiting {
    /// Those of a connection, in its stash.
    Conn(Rc<Conn>),
    /// One of a connection that is gone.
    Lone(Box<Submission>),
}

/// Lets a line through once a second.
#[derive(Debug, Default)]
struct Sparse {
    next_ms: Cell<u64>,
    missed: Cell<u64>,
}

impl Sparse {
    /// How many were not let through since the last, if this one is.
    fn turn(&self, now_ms: u64) -> Option<u64> {
        if now_ms < self.next_ms.get() {
            self.missed.set(self.missed.get() + 1);
            return None;
        }
        self.next_ms.set(now_ms + 1000);
        Some(self.missed.take())
    }
}

/// See the module.
pub(super) struct Worker {
    id: u16,
    pub(super) shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
    pub(super) mailbox: Mailbox,
    quorum: watch::Receiver<Quorum>,
    /// Who may do what; replaced as soon as it changes.
    access: RefCell<Arc<Access>>,
    access_changes: RefCell<watch::Receiver<Arc<Access>>>,
    told: Sparse,
    slots: RefCell<Slots>,
    /// Lent to one input after the other.
    output: Cell<Option<Box<Output>>>,
    /// Empty between two uses.
    submissions: Cell<VecDeque<Submission>>,
    started: Instant,
    applied: Cell<u64>,
    /// Asked for once a millisecond: all workers ask the same clock.
    cluster_time: Cell<(u64, ClusterTime)>,
    waiting: RefCell<VecDeque<Waiting>>,
    waits_for_room: Cell<bool>,
    draining: RefCell<Option<SendAway>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(id: u16, shared: Arc<Shared>, backend: Arc<dyn Backend>, mailbox: Mailbox) -> Rc<Self> {
        let quorum = backend.quorum();
        let mut access_changes = backend.access();
        let access = access_changes.borrow_and_update().clone();
        Rc::new(Self {
            id,
            shared,
            mailbox,
            quorum,
            access: RefCell::new(access),
            access_changes: RefCell::new(access_changes),
            told: Sparse::default(),
            backend,
            slots: RefCell::default(),
            output: Cell::new(None),
            submissions: Cell::default(),
            started: Instant::now(),
            applied: Cell::new(0),
            cluster_time: Cell::new((u64::MAX, ClusterTime(0))),
            waiting: RefCell::default(),
            waits_for_room: Cell::new(false),
            draining: RefCell::default(),
        })
    }

    pub(super) fn now(&self) -> Now {
        let mono_ms = self.started.elapsed().as_millis() as u64;
        let (at_ms, mut cluster) = self.cluster_time.get();
        if at_ms != mono_ms {
            cluster = self.backend.cluster_time();
            self.cluster_time.set((mono_ms, cluster));
        }
        Now { mono_ms, cluster, applied: self.applied.get() }
    }

    /// This node's incarnation, `None` while it has none.
    pub(super) fn incarnation(&self) -> Option<u64> {
        Some(self.shared.incarnation.load(Ordering::Acquire)).filter(|i| *i != 0)
    }

    /// Why a new client is not taken now, if so.
    pub(super) fn unavailable(&self) -> Option<(Reason, Option<Arc<str>>)> {
        if let Some(away) = &*self.draining.borrow() {
            return Some((away.reason, away.server_reference.clone()));
        }
        let can_commit = self.quorum.borrow().has && self.backend.has_time();
        (!can_commit).then_some((Reason::SERVER_UNAVAILABLE, None))
    }

    /// Who may do what, as of now: whoever was told that a change is made finds it made.
    pub(super) fn access(&self) -> Ref<'_, Arc<Access>> {
        let mut changes = self.access_changes.borrow_mut();
        if changes.has_changed().unwrap_or(false) {
            *self.access.borrow_mut() = changes.borrow_and_update().clone();
        }
        self.access.borrow()
    }

    /// Tells what may happen often, once a second at most, with how often it was not told in between.
    pub(super) fn tell_sparsely(&self, tell: impl FnOnce(u64)) {
        if let Some(more) = self.told.turn(self.now().mono_ms) {
            tell(more);
        }
    }

    /// Users have changed: clients whose user is not what it was go now.
    fn check_identities(&self) {
        for conn in self.all() {
            self.drive(&conn, |session, _, out| session.check_identity(out));
        }
    }

    /// Enters a connection into a free slot.
    pub(super) fn enter(&self, make: impl FnOnce(Address) -> Rc<Conn>) -> Rc<Conn> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or(slots.all.len() as u32);
        if slots.all.len() <= slot as usize {
            slots.all.resize_with(slot as usize + 1, Slot::default);
        }
        let mut address = Address { worker: self.id, slot, generation: 0 };
        let Some(entry) = slots.all.get_mut(slot as usize) else { return make(address) };
        entry.generation = entry.generation.wrapping_add(1);
        address.generation = entry.generation;
        let conn = make(address);
        entry.conn = Some(conn.clone());
        conn
    }

    /// Takes a connection out of its slot.
    pub(super) fn leave(&self, conn: &Conn) {
        let mut slots = self.slots.borrow_mut();
        let slot = conn.address.slot;
        if let Some(entry) = slots.all.get_mut(slot as usize)
            && entry.generation == conn.address.generation
            && entry.conn.take().is_some()
        {
            slots.free.push(slot);
        }
    }

    fn conn(&self, address: Address) -> Option<Rc<Conn>> {
        let slots = self.slots.borrow();
        let entry = slots.all.get(address.slot as usize)?;
        entry.conn.as_ref().filter(|_| entry.generation == address.generation).cloned()
    }

    /// Passes inputs to a connection's machine and carries out what it decides.
    pub(super) fn drive(&self, conn: &Rc<Conn>, inputs: impl FnOnce(&mut Session, Now, &mut Output)) {
        let mut out = self.borrow_output();
        out.room = conn.write_room(self.shared.options.outbound_bytes_max);
        let now = self.now();
        {
            let mut session = conn.session.borrow_mut();
            inputs(&mut session, now, &mut out);
            if let (false, Some(me)) = (out.sys.is_empty(), session.me()) {
                for ask in std::mem::take(&mut out.sys) {
                    for delivery in self.shared.board.deliveries(me, &ask) {
                        session.deliver(delivery, now, &mut out);
                    }
                }
            }
            session.finish(now, &mut out);
        }
        self.carry_out_and_return(conn, out);
    }

    /// The output that all inputs share, for its buffers; an empty one when it is lent already.
    pub(super) fn borrow_output(&self) -> Box<Output> {
        let mut out = self.output.take().unwrap_or_default();
        let access = self.access();
        if !Arc::ptr_eq(&out.access, &access) {
            out.access = access.clone();
        }
        out
    }

    /// Carries out what a machine decided, and gives the output back.
    pub(super) fn carry_out_and_return(&self, conn: &Rc<Conn>, mut out: Box<Output>) {
        self.carry_out(conn, &mut out);
        self.output.set(Some(out));
    }

    fn carry_out(&self, conn: &Rc<Conn>, out: &mut Output) {
        let stats = &self.mailbox.stats;
        if out.counts.accepted > 0 {
            conn.connected();
            self.announce(conn, None);
        }
        let counts = std::mem::take(&mut out.counts);
        stats.add(&counts);
        if counts.denied_publishes + counts.denied_subscriptions > 0 {
            self.tell_sparsely(|more| {
                let session = conn.session.borrow();
                let (client_id, user) = (session.client_id(), session.user());
                let (publishes, subscriptions) = (counts.denied_publishes, counts.denied_subscriptions);
                tracing::warn!(
                    client_id,
                    user,
                    publishes,
                    subscriptions,
                    more,
                    "refused by the rules; topics at level debug"
                );
            });
        }
        let outbound_bytes_max = self.shared.options.outbound_bytes_max;
        let complete = out.packets.is_empty() || conn.write(&mut out.packets, outbound_bytes_max, stats);
        for publish in out.qos0.drain(..) {
            self.backend.route_qos0(publish);
        }
        if !out.commands.is_empty() {
            self.submit(conn, &mut out.commands, std::mem::take(&mut out.acks_can_wait));
        }
        if let (Some(wanted), Some(me)) = (out.page.take(), conn.session.borrow().me()) {
            stats::add(&stats.pages, 1);
            let (tx, address) = (self.mailbox.tx.clone(), conn.address);
            let reply = move |page: Result<_, super::backend::PageError>| {
                let page = page.map_err(|error| tracing::error!(%error, "a client's queue cannot be read"));
                let _ = tx.send(ToWorker::Page(address, page));
            };
            self.backend.request_page(me.session, wanted, Box::new(reply));
        }
        if let Some(reason) = out.closed.take() {
            stats.closed(reason);
            self.announce(conn, Some(reason));
            conn.close();
        } else if !complete {
            conn.close();
        } else {
            conn.nudge(outbound_bytes_max);
        }
    }

    /// Says under `$SYS` that a client was connected, or that it is gone and why.
    fn announce(&self, conn: &Conn, gone: Option<Reason>) {
        let Some(facts) = &conn.facts else { return };
        let session = conn.session.borrow();
        let (board, client_id) = (&self.shared.board, session.client_id());
        let announcement = match gone {
            None => facts.connected(board, client_id),
            Some(reason) if session.me().is_some() => {
                facts.disconnected(board, client_id, reason, session.said_goodbye())
            }
            Some(_) => None, // it never was connected
        };
        if let Some(publish) = announcement {
            self.backend.route_qos0(publish);
        }
    }

    fn submit(&self, conn: &Rc<Conn>, commands: &mut Vec<(Request, Command)>, acks_can_wait: bool) {
        let mut submissions = self.submissions.take();
        submissions.extend(commands.drain(..).map(|(request, command)| {
            let withdrawn = matches!(command, Command::Connect(_)).then(|| conn.connecting());
            let can_wait = acks_can_wait && matches!(command, Command::Settle(_));
            Submission { command, ticket: conn.address.ticket(request), withdrawn, can_wait }
        }));
        let mut stash = conn.stash.borrow_mut();
        if stash.is_empty() {
            self.backend.submit_many(&mut submissions);
            if !submissions.is_empty() {
                stats::add(&self.mailbox.stats.busy, 1);
                self.waiting.borrow_mut().push_back(Waiting::Conn(conn.clone()));
            }
        }
        stash.extend(submissions.drain(..).map(Box::new)); // in order
        self.submissions.set(submissions);
    }

    /// Submits what waits, in order, until the proposer is full again. Whether all of it went.
    fn submit_waiting(&self) -> bool {
        loop {
            let Some(next) = self.waiting.borrow_mut().pop_front() else { return true };
            let refused = match next {
                Waiting::Lone(submission) => self.backend.submit(*submission).err().map(Waiting::Lone),
                Waiting::Conn(conn) => {
                    let mut stash = conn.stash.borrow_mut();
                    let mut refused = false;
                    while let Some(submission) = stash.pop_front() {
                        if let Err(back) = self.backend.submit(*submission) {
                            stash.push_front(back);
                            refused = true;
                            break;
                        }
                    }
                    drop(stash);
                    conn.nudge(self.shared.options.outbound_bytes_max);
                    refused.then_some(Waiting::Conn(conn))
                }
            };
            if let Some(refused) = refused {
                self.waiting.borrow_mut().push_front(refused);
                return false;
            }
        }
    }

    /// Sees to it that somebody waits for room in the proposer while commands wait.
    pub(super) fn await_room(self: &Rc<Self>) {
        if self.waiting.borrow().is_empty() || self.waits_for_room.replace(true) {
            return;
        }
        let worker = self.clone();
        ntex::rt::spawn(async move {
            loop {
                worker.backend.room().await;
                if worker.submit_waiting() {
                    break;
                }
            }
            worker.waits_for_room.set(false);
        });
    }

    /// Serves the mailbox until the front end is gone.
    pub(super) async fn serve_mailbox(self: Rc<Self>, mut rx: mpsc::UnboundedReceiver<ToWorker>) {
        let mut quorum = self.quorum.clone();
        let mut access = self.backend.access();
        access.mark_changed();
        let mut checked = Arc::<Access>::default();
        let (mut watching, mut watching_access) = (true, true);
        let mut messages = Vec::with_capacity(MAILBOX_TURN);
        let mut handled = 0;
        loop {
            tokio::select! {
                taken = rx.recv_many(&mut messages, MAILBOX_TURN) => {
                    if taken == 0 {
                        return;
                    }
                    for message in messages.drain(..) {
                        self.take(message, &mut handled).await;
                    }
                }
                changed = quorum.changed(), if watching => {
                    watching = changed.is_ok();
                    let now = quorum.borrow_and_update().clone();
                    if !now.has {
                        self.lost_quorum(&now);
                    }
                }
                changed = access.changed(), if watching_access => {
                    watching_access = changed.is_ok();
                    let before = std::mem::replace(&mut checked, access.borrow_and_update().clone());
                    if before.users != checked.users {
                        self.check_identities();
                    }
                }
            }
            self.await_room();
        }
    }

    async fn take(self: &Rc<Self>, message: ToWorker, handled: &mut usize) {
        match message {
            ToWorker::Run(run) => self.take_run(run, handled).await,
            ToWorker::Page(address, page) => {
                if let Some(conn) = self.conn(address) {
                    self.drive(&conn, |session, _, out| session.page(page, out));
                }
            }
            ToWorker::IncarnationOver(incarnation) => {
                let server_reference = self.quorum.borrow().elsewhere.clone();
                self.end_all(|conn| {
                    let server_reference = server_reference.clone();
                    (conn.incarnation == incarnation).then_some(Ending::IncarnationOver { server_reference })
                });
            }
            ToWorker::Drain { reason, server_reference, done } => self.drain(reason, server_reference, done),
        }
    }

    /// Hands the events of a run over, in order. `handled` counts them since the sockets had their turn.
    async fn take_run(self: &Rc<Self>, run: WorkerRun, handled: &mut usize) {
        self.applied.set(self.applied.get().max(run.index));
        let mut events = run.events.into_iter().peekable();
        while let Some((address, what)) = events.next() {
            *handled += 1;
            // One that is over may still have its slot: it takes nothing, and its CONNECT may be applied now.
            if let Some(conn) = self.conn(address).filter(|conn| !conn.session.borrow().is_over()) {
                self.drive(&conn, |session, now, out| {
                    take_event(session, what, now, out);
                    while *handled < EVENTS_PER_TURN_MAX
                        && let Some((_, what)) = events.next_if(|(next, _)| *next == address)
                    {
                        *handled += 1;
                        take_event(session, what, now, out);
                    }
                });
            } else {
                self.take_for_nobody(address, what);
            }
            if *handled >= EVENTS_PER_TURN_MAX {
                *handled = 0;
                self.await_room();
                tokio::task::yield_now().await;
            }
        }
        self.mailbox.bytes.fetch_sub(run.bytes, Ordering::Relaxed);
    }

    /// An event for a connection that is gone. A session that it opened is closed again.
    fn take_for_nobody(&self, address: Address, what: What) {
        let What::Outcome(_, Outcome::Connected(connected)) = what else { return };
        tracing::debug!(session = %connected.session.session, "a CONNECT was applied after its socket closed");
        let close =
            Close { from: connected.session, drop_will: false, expiry_s: None, sent_until: connected.sent_until };
        let ticket = address.ticket(CLOSE_REQUEST);
        let submission = Submission { command: Command::Close(close), ticket, withdrawn: None, can_wait: false };
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            waiting.push_back(Waiting::Lone(Box::new(submission)));
        } else if let Err(back) = self.backend.submit(submission) {
            waiting.push_back(Waiting::Lone(back));
        }
    }

    fn lost_quorum(&self, quorum: &Quorum) {
        tracing::warn!(worker = self.id, elsewhere = quorum.elsewhere.as_deref(), "no quorum: clients are sent away");
        self.end_all(|conn| {
            let reason = if conn.session.borrow().is_connecting() {
                Reason::SERVER_UNAVAILABLE
            } else if quorum.elsewhere.is_some() {
                Reason::USE_ANOTHER_SERVER
            } else {
                Reason::SERVER_BUSY
            };
            Some(Ending::Redirect { reason, server_reference: quorum.elsewhere.clone() })
        });
    }

    fn all(&self) -> Vec<Rc<Conn>> {
        self.slots.borrow().all.iter().filter_map(|slot| slot.conn.clone()).collect()
    }

    fn end_all(&self, ending: impl Fn(&Conn) -> Option<Ending>) {
        for conn in self.all() {
            if let Some(ending) = ending(&conn) {
                self.drive(&conn, |session, _, out| session.end(ending, out));
            }
        }
    }

    fn drain(self: &Rc<Self>, reason: Reason, server_reference: Option<Arc<str>>, done: oneshot::Sender<()>) {
        let away = SendAway { reason, server_reference };
        *self.draining.borrow_mut() = Some(away.clone());
        let worker = self.clone();
        ntex::rt::spawn(async move {
            let all = worker.all();
            let step = DRAIN_STEP_CLIENTS.max(all.len().div_ceil(DRAIN_STEPS_MAX));
            for some in all.chunks(step) {
                for conn in some {
                    let ending =
                        Ending::Redirect { reason: away.reason, server_reference: away.server_reference.clone() };
                    worker.drive(conn, |session, _, out| session.end(ending, out));
                }
                worker.await_room();
                tokio::time::sleep(DRAIN_STEP).await;
            }
            let _ = done.send(());
        });
    }
}

fn take_event(session: &mut Session, what: What, now: Now, out: &mut Output) {
    match what {
        What::Outcome(request, outcome) => session.outcome(request, outcome, now, out),
        What::Deliver(delivery, _waits) => session.deliver(delivery, now, out),
        What::Note(behind) => {
            if let Some(seq) = behind.take_noted() {
                session.note(seq);
            }
        }
        What::Overflow => {
            out.counts.transient_overflows += 1;
            session.end(Ending::Error(Reason::QUOTA_EXCEEDED), out);
        }
        What::Withdraw(seq) => session.withdraw(seq),
        What::Kick(reason) => session.end(Ending::Kicked(reason), out),
    }
}
