//! One socket: reads packets into its session machine, writes what comes out, watches both directions.
//!
//! Owns the socket, the codec and the machine of one connection, and the commands that the proposer had no
//! room for. Reading stops while the proposer is full, while too many requests are open, and while the
//! client does not read what it is sent; sending from the queue stops while the write buffer is full.
//! However the connection ends, also by a panic, its slot is left, its session is closed in the log, and
//! a CONNECT that is still waiting is withdrawn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ntex::io::{Decoded, Io, IoBoxed, IoRef, IoStatusUpdate};
use ntex::time::Seconds;
use ntex::util::Either;
use quorate_raft::Submission;

use super::auth::Identity;
use super::authenticate::authenticate;
use super::detect::Detect;
use super::effects::Address;
use super::listen::{self, Arrival, Client, Listener};
use super::options::PACKETS_PER_TURN_MAX;
use super::packet::{ConnAck, Connect, Outgoing, Packet, Version};
use super::reason::Reason;
use super::session::{Admission, Ending, Session};
use super::stats::{self, Stats};
use super::strict::{self, Reject};
use super::sys::ClientFacts;
use super::wire::{self, Wire};
use super::worker::Worker;

/// A connection in its slot.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) address: Address,
    /// Incarnation of this node in which it began.
    pub(super) incarnation: u64,
    pub(super) session: RefCell<Session>,
    /// Commands that the proposer had no room for, in order.
    pub(super) stash: RefCell<VecDeque<Box<Submission>>>,
    /// While its CONNECT is not applied: set when the socket is gone before.
    withdrawn: RefCell<Option<Arc<AtomicBool>>>,
    /// For its announcement under `$SYS`.
    pub(super) facts: Option<Box<ClientFacts>>,
    io: IoRef,
    /// TLS or a WebSocket is between MQTT and the socket.
    has_layers: bool,
    version: Version,
    /// The socket's task waits for something other than the socket.
    paused: Cell<bool>,
    /// Bytes ever put into the write buffer.
    written_bytes: Cell<u64>,
    /// The PUBLISH that may have gone beyond the bound of the write buffer: one does, whatever its size.
    overshoot_bytes: Cell<usize>,
}

impl Conn {
    /// Bytes that the write buffer still takes.
    pub(super) fn write_room(&self, bytes_max: usize) -> usize {
        bytes_max.saturating_sub(self.buffered())
    }

    fn buffered(&self) -> usize {
        let ready = self.io.with_write_dst_buf(|buffer| buffer.len());
        if !self.has_layers {
            return ready;
        }
        // What TLS and WebSocket have not taken yet.
        ready + self.io.with_buf(|layer| layer.with_write_buffers(|waiting, _| waiting.len())).unwrap_or(0)
    }

    /// Encodes packets into the write buffer; ntex sends them when this turn of the worker is over. False
    /// when an answer that is owed is above the client's Maximum Packet Size: it cannot go on without it.
    pub(super) fn write(&self, packets: &mut Vec<Outgoing>, outbound_bytes_max: usize, stats: &Stats) -> bool {
        let session = self.session.borrow();
        let bytes_max = session.packet_bytes_max();
        let mut complete = true;
        stats::add(&stats.packets_out, packets.len() as u64);
        let written = self.io.with_write_buf(|buffer| {
            let before = buffer.len();
            if before < outbound_bytes_max {
                self.overshoot_bytes.set(0);
            }
            for packet in packets.drain(..) {
                if matches!(packet, Outgoing::Publish(_)) {
                    // The machine has weighed it.
                    let start = buffer.len();
                    wire::encode(self.version, &packet, buffer);
                    let bytes = buffer.len() - start;
                    self.overshoot_bytes.set(self.overshoot_bytes.get().max(bytes));
                } else if wire::encoded_len(self.version, &packet) <= bytes_max {
                    // Words are left out where they do not fit, before the answer is.
                    let fits = |why: &&str| wire::encoded_len_with(self.version, &packet, Some(why)) <= bytes_max;
                    let why = session.reason_string(&packet).filter(fits);
                    wire::encode_with(self.version, &packet, why, buffer);
                } else {
                    stats::add(&stats.too_large, 1);
                    complete &= matches!(packet, Outgoing::Disconnect(..));
                }
            }
            buffer.len() - before
        });
        packets.clear();
        // A socket that is closing takes nothing more; its end is noticed by its task.
        let written = written.unwrap_or(0) as u64;
        self.written_bytes.set(self.written_bytes.get() + written);
        stats::add(&stats.bytes_out, written);
        complete
    }

    /// Bytes ever taken out of the write buffer by the socket.
    fn sent_bytes(&self) -> u64 {
        self.written_bytes.get().saturating_sub(self.buffered() as u64)
    }

    /// Whether its task may read another packet.
    fn reads(&self, outbound_bytes_max: usize) -> bool {
        self.session.borrow().wants_packets() && self.stash.borrow().is_empty() && !self.is_flooded(outbound_bytes_max)
    }

    /// Whether it has to read before more is read from it. Deliveries stop at the bound, or at the one that goes
    /// beyond it; answers to what is read may go further, but not without end.
    fn is_flooded(&self, outbound_bytes_max: usize) -> bool {
        let bound = outbound_bytes_max.saturating_mul(2).saturating_add(self.overshoot_bytes.get());
        !self.io.is_closed() && self.buffered() >= bound
    }

    /// Wakes the socket's task when it waits for what may have changed.
    pub(super) fn nudge(&self, outbound_bytes_max: usize) {
        let stuck = self.session.borrow().is_blocked() && !self.io.is_wr_backpressure();
        // Each applied run comes here: a task that still may not read sleeps on.
        if stuck || (self.paused.get() && self.reads(outbound_bytes_max)) {
            self.io.notify_dispatcher();
        }
    }

    /// Its CONNECT goes out: what says whether it was withdrawn meanwhile.
    pub(super) fn connecting(&self) -> Arc<AtomicBool> {
        let withdrawn = Arc::new(AtomicBool::new(false));
        self.withdrawn.replace(Some(withdrawn.clone()));
        withdrawn
    }

    /// Its CONNECT was applied.
    pub(super) fn connected(&self) {
        self.withdrawn.take();
    }

    /// A CONNECT that still waits is for nobody.
    fn withdraw(&self) {
        if let Some(withdrawn) = self.withdrawn.take() {
            withdrawn.store(true, Ordering::Release);
        }
    }

    /// Sends what is buffered, then closes the socket. A CONNECT that still waits is for nobody.
    pub(super) fn close(&self) {
        self.withdraw();
        self.io.close();
        self.io.notify_dispatcher();
    }
}

/// Leaves the slot whatever happens.
struct Guard {
    worker: Rc<Worker>,
    conn: Rc<Conn>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.conn.withdraw();
        self.worker.drive(&self.conn, |session, _, out| session.end(Ending::SocketClosed, out));
        self.worker.leave(&self.conn);
        self.worker.await_room();
    }
}

/// Serves one socket from its first byte to its last.
pub(super) fn serve(io: Io, worker: Rc<Worker>, listener: Arc<Listener>) -> impl Future<Output = ()> {
    // In a box of its own, because an idle connection needs no room for what it took to come so far.
    let opening = Box::pin(open(io, worker, listener));
    async move {
        let Some(open) = opening.await else { return };
        run(&open).await;
        drop(open.guard);
        let _ = open.io.shutdown().await;
    }
}

/// A socket whose CONNECT was passed on, or refused.
struct Open {
    guard: Guard,
    io: IoBoxed,
    wire: Wire,
    /// Counts it to the end.
    _arrival: Arrival,
}

/// From an accepted socket to a connection in its slot. `None` when it came to nothing.
async fn open(io: Io, worker: Rc<Worker>, listener: Arc<Listener>) -> Option<Open> {
    let mut arrival = Arrival::new(worker.clone(), listener)?;
    // Asked for while the socket is fresh: one that its client has closed again does not know it any more, and
    // what was sent before may still count.
    let peer = io.query::<ntex::io::types::PeerAddr>().get().map(|addr| addr.0);
    io.start_timer(seconds(worker.shared.options.connect_timeout.as_millis() as u64));
    let is_plain = arrival.listener.options.is_plain();
    let (io, client) = if is_plain {
        if !arrival.enter(peer.map(|peer| peer.ip())) {
            return None;
        }
        (IoBoxed::from(io), Client { peer, is_unknown: false, certificate_user: None })
    } else {
        // In a box of its own: what plain TCP does not need takes no room there.
        Box::pin(listen::unwrap(io, peer, &mut arrival)).await?
    };
    let greeting = if is_plain {
        greet(&io, &worker).await
    } else {
        // A layer may write before the CONNECT (PONG), and one who does not read it would not hear ntex's timer.
        let timeout = worker.shared.options.connect_timeout;
        tokio::time::timeout(timeout, Box::pin(greet(&io, &worker))).await.ok().flatten()
    };
    let Some((version, wire, connect)) = greeting else {
        let _ = io.shutdown().await;
        return None;
    };
    io.stop_timer();
    let Some(identity) = authenticate(&io, &wire, &client, &arrival, &worker, &connect).await else {
        let _ = io.shutdown().await;
        return None;
    };
    let conn = admit(&io, &client, &arrival, &worker, version, *connect, identity);
    let guard = Guard { worker, conn };
    guard.worker.await_room();
    Some(Open { guard, io, wire, _arrival: arrival })
}

fn seconds(ms: u64) -> Seconds {
    Seconds(u16::try_from(ms.div_ceil(1000)).unwrap_or(u16::MAX).max(1))
}

/// Reads the CONNECT. Whatever else comes is answered, if there is an answer, and `None`.
async fn greet(io: &IoBoxed, worker: &Worker) -> Option<(Version, Wire, Box<Connect>)> {
    let version = match io.recv(&Detect).await {
        Ok(version) => version?,
        Err(Either::Left(error)) => {
            tracing::debug!(%error, "not served");
            if let Some(answer) = error.answer() {
                let _ = io.encode_slice(answer);
            }
            worker.mailbox.stats.closed(error.reason());
            return None;
        }
        Err(Either::Right(_)) => return None,
    };
    let options = &worker.shared.options;
    let wire = Wire::new(version, options.packet_bytes_max).with_topic_levels_max(options.topic_levels_max);
    let reject = match io.recv(&wire).await {
        Ok(Some(Packet::Connect(connect))) => return Some((version, wire, connect)),
        Ok(Some(_)) => Reject::protocol("the first packet is no CONNECT [MQTT-3.1.0-1]"),
        Err(Either::Left(reject)) => reject,
        Ok(None) | Err(Either::Right(_)) => return None,
    };
    tracing::debug!(%reject, "a CONNECT was refused");
    worker.mailbox.stats.closed(reject.reason);
    let refusal = ConnAck { session_present: false, reason: reject.reason, granted: None, server_reference: None };
    let refusal = Outgoing::ConnAck(Box::new(refusal));
    let _ = io.with_write_buf(|buffer| wire::encode_with(version, &refusal, Some(reject.what), buffer));
    None
}

/// Enters the connection into a slot and passes its CONNECT on, or refuses it.
fn admit(
    io: &IoBoxed,
    client: &Client,
    arrival: &Arrival,
    worker: &Rc<Worker>,
    version: Version,
    connect: Connect,
    identity: Result<Identity, Reason>,
) -> Rc<Conn> {
    let refused = |reason, server_reference| Admission::Refused { reason, server_reference };
    // Read once, before anything is proposed: whoever begins in an incarnation is told when that one ends.
    let incarnation = worker.incarnation();
    let listener = &arrival.listener.options;
    let admission = if let Some(refusal) = arrival.refusal() {
        refused(refusal.reason(), None)
    } else if let Some((reason, server_reference)) = worker.unavailable() {
        refused(reason, server_reference)
    } else {
        match identity {
            Err(reason) => refused(reason, None),
            Ok(_) if incarnation.is_none() => refused(Reason::SERVER_UNAVAILABLE, None),
            Ok(identity) => Admission::Granted(identity),
        }
    };
    tracing::debug!(client_id = connect.client_id, peer = ?client.peer, %listener, ?version, ?admission, "CONNECT");
    let options = worker.shared.options.clone();
    let facts = options.sys_client_events.then(|| ClientFacts::of(&connect, version, client.peer));
    let mut out = worker.borrow_output();
    let session = Session::connect(options, version, connect, admission, fresh_id, worker.now(), &mut out);
    let conn = worker.enter(|address| {
        Rc::new(Conn {
            address,
            incarnation: incarnation.unwrap_or(0),
            session: RefCell::new(session),
            stash: RefCell::default(),
            withdrawn: RefCell::default(),
            facts,
            io: io.get_ref(),
            has_layers: !listener.is_plain(),
            version,
            paused: Cell::new(false),
            written_bytes: Cell::new(0),
            overshoot_bytes: Cell::new(0),
        })
    });
    worker.carry_out_and_return(&conn, out);
    conn
}

/// A client identifier that nobody has, and nobody can guess to take the session over.
fn fresh_id() -> String {
    format!("auto-{:032x}", rand::random::<u128>())
}

/// Runs the connection until it is over.
fn run(open: &Open) -> impl Future<Output = ()> + '_ {
    let mut watch = Watch::default();
    poll_fn(move |cx| {
        let Open { guard: Guard { worker, conn }, io, wire, .. } = open;
        loop {
            match turn(io, wire, conn, worker, &mut watch, cx) {
                Turn::Again => {}
                Turn::Wait => {
                    worker.await_room();
                    return Poll::Pending;
                }
                Turn::WaitForConnect(wait) => {
                    worker.await_room();
                    let last_call = watch.last_call.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                    ready!(last_call.as_mut().poll(cx));
                    return Poll::Ready(());
                }
                Turn::Over => {
                    worker.await_room();
                    return Poll::Ready(());
                }
            }
        }
    })
}

enum Turn {
    Again,
    Wait,
    /// The client is gone, and what it left counts if its CONNECT is applied within this time.
    WaitForConnect(Duration),
    Over,
}

/// What the socket's task remembers to know whether its client lives.
#[derive(Debug, Default)]
struct Watch {
    /// When the timer fires.
    armed_ms: Option<u64>,
    /// How much had come of the packet that is on its way in.
    partial_bytes: usize,
    /// How much the client had taken when its keep alive was due the last time.
    sent_bytes: u64,
    /// While the client publishes too fast: ntex's timer counts whole seconds.
    throttle: Option<Pin<Box<tokio::time::Sleep>>>,
    /// ntex's timer is not told of once the socket is closed, and what is said then may still count.
    last_call: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Watch {
    /// A packet that takes long to come is a sign of life by each piece.
    fn saw_partial(&mut self, bytes: usize) -> bool {
        bytes > std::mem::replace(&mut self.partial_bytes, bytes)
    }

    /// Sleeps while the client publishes too fast. Whether that is over, and it is to be read again.
    fn slept(&mut self, conn: &Conn, now_ms: u64, cx: &mut Context<'_>) -> bool {
        let Some(until_ms) = conn.session.borrow().throttled_until_ms() else {
            self.throttle = None;
            return false;
        };
        let wait = Duration::from_millis(until_ms.saturating_sub(now_ms));
        let throttle = self.throttle.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        let is_over = throttle.as_mut().poll(cx).is_ready();
        if is_over {
            self.throttle = None;
        }
        is_over
    }

    /// The keep alive is due: whether what the client sent may lie unread because of us, or because it is still
    /// taking what it was sent.
    fn excuses(&mut self, conn: &Conn, outbound_bytes_max: usize) -> bool {
        let sent = conn.sent_bytes();
        let takes = sent > std::mem::replace(&mut self.sent_bytes, sent);
        !conn.stash.borrow().is_empty() || (takes && conn.is_flooded(outbound_bytes_max))
    }
}

/// One turn of the socket's task: status, writes, reads, and then time: what lies in the read buffer since a
/// pause of this node was said before the pause ended.
fn turn(
    io: &IoBoxed,
    wire: &Wire,
    conn: &Rc<Conn>,
    worker: &Rc<Worker>,
    watch: &mut Watch,
    cx: &mut Context<'_>,
) -> Turn {
    io.poll_dispatch(cx);
    let (mut gone, mut due) = (false, false);
    match io.poll_status_update(cx) {
        Poll::Ready(IoStatusUpdate::PeerGone(_)) => gone = true,
        Poll::Ready(IoStatusUpdate::KeepAlive) => {
            watch.armed_ms = None;
            due = true;
        }
        Poll::Ready(IoStatusUpdate::WriteBackpressure) | Poll::Pending => {}
    }
    if conn.session.borrow().is_blocked() && !io.is_wr_backpressure() && !gone {
        worker.drive(conn, |session, _, _| session.writable());
    }
    let read = read(io, wire, conn, worker);
    if matches!(read, Read::Drained) && watch.saw_partial(wire.partial_bytes()) {
        conn.session.borrow_mut().heard(worker.now());
    }
    if due {
        tick(conn, worker, watch);
    }
    if conn.session.borrow().is_over() {
        return Turn::Over;
    }
    if watch.slept(conn, worker.now().mono_ms, cx) {
        worker.drive(conn, |session, now, out| session.tick(now, out));
        return Turn::Again;
    }
    conn.paused.set(matches!(read, Read::Paused));
    match read {
        Read::More => {
            cx.waker().wake_by_ref(); // after the others
            return Turn::Wait;
        }
        // What a client sent before it closed still counts: its DISCONNECT may be behind what waits.
        Read::Paused if gone && !conn.session.borrow().is_connecting() => return Turn::Wait,
        // Also before it was connected, when it said goodbye. Without that it has given up, and may be
        // connected elsewhere by now: its CONNECT must not come through any more.
        Read::Paused if gone && says_goodbye(io, worker.shared.options.packet_bytes_max) => {
            let left_ms = conn.session.borrow().deadline_ms().map(|at| at.saturating_sub(worker.now().mono_ms));
            return left_ms.map_or(Turn::Over, |ms| Turn::WaitForConnect(Duration::from_millis(ms)));
        }
        Read::Paused | Read::Drained if gone => return Turn::Over,
        Read::Paused => {}
        Read::Drained => match io.poll_read_ready(cx) {
            Poll::Pending => {}
            Poll::Ready(_) => return Turn::Again,
        },
    }
    arm(io, conn, worker, &mut watch.armed_ms);
    Turn::Wait
}

/// The timer has fired.
fn tick(conn: &Rc<Conn>, worker: &Rc<Worker>, watch: &mut Watch) {
    let now_ms = worker.now().mono_ms;
    let due = conn.session.borrow().deadline_ms().is_some_and(|at| at <= now_ms);
    if due && watch.excuses(conn, worker.shared.options.outbound_bytes_max) {
        conn.session.borrow_mut().heard(worker.now());
    }
    worker.drive(conn, |session, now, out| session.tick(now, out));
}

/// Whether a DISCONNECT is among the whole packets that lie unread.
pub(super) fn says_goodbye(io: &IoBoxed, packet_bytes_max: u32) -> bool {
    const DISCONNECT: u8 = 14;
    io.with_read_buf(|buffer| {
        let mut rest = &buffer[..];
        while let Ok(Some(frame)) = strict::frame(rest, packet_bytes_max) {
            if frame.first >> 4 == DISCONNECT {
                return true;
            }
            rest = rest.get(frame.total..).unwrap_or_default();
        }
        false
    })
}

enum Read {
    /// There may be another packet: it is the others' turn.
    More,
    /// There is no whole packet.
    Drained,
    /// Nothing is read for now.
    Paused,
}

fn read(io: &IoBoxed, wire: &Wire, conn: &Rc<Conn>, worker: &Rc<Worker>) -> Read {
    let outbound_bytes_max = worker.shared.options.outbound_bytes_max;
    if !conn.reads(outbound_bytes_max) {
        return Read::Paused;
    }
    let mut next = io.decode_item(wire);
    if matches!(&next, Ok(decoded) if decoded.item.is_none()) {
        return Read::Drained;
    }
    let (mut read, mut consumed, mut packets) = (Read::More, 0, 0);
    worker.drive(conn, |session, now, out| {
        loop {
            match next {
                Ok(Decoded { item: Some(packet), consumed: n, .. }) => {
                    consumed += n;
                    session.packet(packet, now, out);
                }
                Ok(Decoded { item: None, .. }) => {
                    read = Read::Drained;
                    return;
                }
                Err(reject) => {
                    tracing::debug!(%reject, "a packet was refused");
                    session.reject(reject, out);
                }
            }
            packets += 1;
            if !session.wants_packets() {
                read = Read::Paused;
                return;
            }
            if packets == PACKETS_PER_TURN_MAX {
                return;
            }
            next = io.decode_item(wire);
        }
    });
    stats::add(&worker.mailbox.stats.bytes_in, consumed as u64);
    stats::add(&worker.mailbox.stats.packets_in, packets as u64);
    read
}

/// Sets the timer for the machine's next deadline, unless it fires early enough anyway.
fn arm(io: &IoBoxed, conn: &Conn, worker: &Worker, armed_ms: &mut Option<u64>) {
    let Some(deadline) = conn.session.borrow().deadline_ms() else { return };
    if armed_ms.is_none_or(|armed| deadline < armed) {
        let now = worker.now().mono_ms;
        let wait = seconds(deadline.saturating_sub(now));
        *armed_ms = Some(now + u64::from(wait.0) * 1000);
        io.start_timer(wait);
    }
}
