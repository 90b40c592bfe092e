//! One MQTT connection as a machine without I/O: packets, outcomes of commands, deliveries, pages and ticks
//! go in; packets to send, commands to propose and page requests come out.
//!
//! It holds every rule between a client and its session that is not in the log: what is acknowledged and
//! when (only what was applied, in the order in which it came), the window in both directions, topic
//! aliases, keep alive, the order of things on resume, and how a connection ends. It has no socket, no
//! clock, no thread and no codec; whoever drives it ([`super::conn`], the tests, the simulator) passes the
//! time in with each input and carries out what [`Output`] says.
//!
//! After a group of inputs the driver calls [`Session::finish`] once: acknowledgements that arrived together
//! leave as one Settle, and the next page is asked for.

mod access;
mod aliases;
mod close;
mod connect;
mod inbound;
mod memory;
mod offer;
mod outbox;
mod paging;
mod rate;
mod requests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use quorate_store::access::Access;
use quorate_store::command::{Command, SessionRef, Settle};
use quorate_store::effect::{Delivery, Outcome};
use quorate_store::ids::{ClusterTime, PacketId, QoS, QueueSeq};
use quorate_store::rows::QueuePage;
use quorate_store::topic::TopicName;

use super::explain;
use super::options::{HELD_BYTES_MAX, MqttOptions, REQUESTS_MAX, SETTLE_ACKS_MAX};
use super::packet::{Outgoing, Packet, Publish, Version};
use super::reason::Reason;
use super::strict::Reject;
use super::sys::SysAsk;
pub use close::Ending;
pub use connect::Admission;
use outbox::{Link, Outbox};
pub use paging::PageWanted;
use rate::Rate;
use requests::{Pending, Wait};

/// The time, as the driver sees it when it passes an input in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Monotonic milliseconds of this node.
    pub mono_ms: u64,
    /// Estimate of cluster time.
    pub cluster: ClusterTime,
    /// Last log index applied on this node: nothing beyond it may be acknowledged.
    pub applied: u64,
}

/// Number of a request of one connection; a [`quorate_raft::Ticket`] carries it.
pub type Request = u64;

/// The request number of a [`Command::Close`]: its outcome is for the registry, no session waits for it.
pub const CLOSE_REQUEST: Request = Request::MAX;

/// What the driver carries out after an input. Reused from input to input.
#[derive(Debug, Default)]
pub struct Output {
    /// To send, in order.
    pub packets: Vec<Outgoing>,
    /// To propose, in order.
    pub commands: Vec<(Request, Command)>,
    /// The acknowledgements among `commands` can wait for other commands to go with.
    pub acks_can_wait: bool,
    /// QoS 0 publishes to route past the log.
    pub qos0: Vec<quorate_store::command::Publish>,
    /// Subscriptions to `$SYS` that were granted: their values go out behind `packets`.
    pub sys: Vec<SysAsk>,
    /// A page of the session's queue to read.
    pub page: Option<PageWanted>,
    /// The connection is over: send `packets`, then close the socket. The reason is for statistics.
    pub closed: Option<Reason>,
    /// Bytes that the write buffer still takes. The driver sets it before each input.
    pub room: usize,
    /// Who may do what, as this node knows it now. The driver sets it before each input.
    pub access: Arc<Access>,
    /// What to count.
    pub counts: Counts,
}

/// What happened, to be added to [`super::stats::Stats`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Publishes taken, by QoS.
    pub publishes_in: [u64; 3],
    /// Publishes sent, by QoS.
    pub publishes_out: [u64; 3],
    /// Payload bytes of publishes taken.
    pub publish_bytes_in: u64,
    /// Payload bytes of publishes sent.
    pub publish_bytes_out: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Deliveries that had expired.
    pub expired: u64,
    /// Deliveries above the client's Maximum Packet Size.
    pub too_large: u64,
    /// QoS 0 deliveries dropped because the client does not read.
    pub qos0_dropped: u64,
    /// Transient sessions whose queue overflowed.
    pub transient_overflows: u64,
    /// Publishes refused by a full queue.
    pub queue_full: u64,
    /// Publishes that were not taken for another reason.
    pub refused: u64,
    /// Times a client published too fast and was not read for a while.
    pub throttled: u64,
    /// PUBACK, PUBREC, PUBCOMP that answered nothing.
    pub unknown_acks: u64,
    /// Publishes that the rules refused.
    pub denied_publishes: u64,
    /// Subscriptions that the rules refused.
    pub denied_subscriptions: u64,
    /// Acknowledgements that were about to leave before their commit was applied: always 0.
    pub acks_before_commit: u64,
}

impl Counts {
    fn publish_in(&mut self, qos: QoS, bytes: usize) {
        bump(&mut self.publishes_in, qos);
        self.publish_bytes_in += bytes as u64;
    }

    fn publish_out(&mut self, qos: QoS, bytes: usize) {
        bump(&mut self.publishes_out, qos);
        self.publish_bytes_out += bytes as u64;
    }
}

fn bump(counters: &mut [u64; 3], qos: QoS) {
    if let Some(counter) = counters.get_mut(qos as usize) {
        *counter += 1;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The CONNECT is on its way through the log.
    Connecting,
    /// CONNACK was sent.
    Open,
    /// Nothing counts any more.
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    options: Arc<MqttOptions>,
    version: Version,
    state: State,
    /// Set by [`Outcome::Connected`].
    me: Option<SessionRef>,
    /// The session was there before this connection.
    is_resumed: bool,
    greeting: connect::Greeting,
    principal: access::Principal,
    /// When a CONNECT that is not applied is given up.
    connect_by_ms: u64,
    /// One and a half times the keep alive; 0 for none.
    keep_alive_ms: u64,
    heard_ms: u64,
    /// Maximum Packet Size of the client.
    packet_bytes_max: usize,
    /// Reason Strings and user properties on any packet [MQTT-3.1.2-29].
    wants_problems: bool,
    /// It ended by the client's DISCONNECT.
    said_goodbye: bool,
    /// What was wrong with the bytes that ended the connection.
    what: Option<&'static str>,
    /// How fast it may publish.
    rate: Option<Box<Rate>>,
    /// It publishes too fast: nothing is read before this.
    throttled_until_ms: Option<u64>,
    next_request: Request,
    pending: VecDeque<Pending>,
    /// Logged QoS 0 publishes that are not applied: later ones follow them through the log.
    logged_qos0: usize,
    /// QoS 1 publishes before their PUBACK.
    unanswered_qos1: usize,
    /// QoS 2 publishes before their PUBREC.
    unanswered_qos2: usize,
    /// QoS 2 identifiers of this connection between PUBLISH and PUBCOMP; they count for Receive Maximum.
    inbound_qos2: BTreeSet<PacketId>,
    /// Publishes of a 3.1.1 client that wait for room in the window.
    held: VecDeque<Publish>,
    held_bytes: usize,
    aliases: BTreeMap<u16, TopicName>,
    outbox: Outbox,
}

impl Session {
    /// Version that the client speaks.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The session and epoch, once the CONNECT is applied.
    #[must_use]
    pub fn me(&self) -> Option<SessionRef> {
        self.me
    }

    /// Whether the client ended the connection with DISCONNECT.
    #[must_use]
    pub fn said_goodbye(&self) -> bool {
        self.said_goodbye
    }

    /// Whether nothing that comes counts any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether the CONNECT is not applied yet.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// Maximum Packet Size of the client.
    #[must_use]
    pub fn packet_bytes_max(&self) -> usize {
        self.packet_bytes_max
    }

    /// Whether another packet may be read. Acknowledgements and pings are read also while the inbound
    /// window is full; only too many open requests, or too much that is held, stop reading.
    #[must_use]
    pub fn wants_packets(&self) -> bool {
        self.state == State::Open
            && self.pending.len() < REQUESTS_MAX
            && self.held_bytes < HELD_BYTES_MAX
            && self.throttled_until_ms.is_none()
    }

    /// While the client publishes too fast: when it is read again, if [`Session::tick`] is called then.
    #[must_use]
    pub fn throttled_until_ms(&self) -> Option<u64> {
        self.throttled_until_ms.filter(|_| self.state == State::Open)
    }

    /// The Reason String that goes with `packet`, if the client wants one [MQTT-3.1.2-29].
    #[must_use]
    pub fn reason_string(&self, packet: &Outgoing) -> Option<&'static str> {
        let is_always_told = explain::is_always_told(packet);
        if !self.version.is_v5() || (!self.wants_problems && !is_always_told) {
            return None;
        }
        self.what.filter(|_| is_always_told).or_else(|| explain::reason_string(packet))
    }

    /// Whether there is something to send and the write buffer was full.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.state == State::Open && self.outbox.is_blocked()
    }

    /// When [`Session::tick`] is needed, in [`Now::mono_ms`].
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.state {
            State::Connecting => Some(self.connect_by_ms),
            State::Open => {
                let keep_alive = (self.keep_alive_ms > 0).then(|| self.heard_ms.saturating_add(self.keep_alive_ms));
                keep_alive.into_iter().chain(self.throttled_until_ms).chain(self.principal.until_ms()).min()
            }
            State::Over => None,
        }
    }

    /// A packet came.
    pub fn packet(&mut self, packet: Packet, now: Now, out: &mut Output) {
        if self.state != State::Open {
            return;
        }
        self.heard_ms = now.mono_ms;
        match packet {
            Packet::Publish(publish) => {
                self.meter(&publish, now, out);
                self.publish(publish, out);
            }
            Packet::PubAck { id, .. } => {
                let result = self.outbox.puback(id, out);
                self.broken(result, out);
            }
            Packet::PubRec { id, reason } => {
                let result = self.outbox.pubrec(id, reason, out);
                self.broken(result, out);
            }
            Packet::PubComp { id } => self.outbox.pubcomp(id, out),
            Packet::PubRel { id } => self.release(id, out),
            Packet::Subscribe(subscribe) => self.subscribe(subscribe, out),
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, filters, out),
            Packet::PingReq => out.packets.push(Outgoing::PingResp),
            Packet::Disconnect { reason, expiry_s } => self.disconnect(reason, expiry_s, out),
            Packet::Auth(auth) => self.authenticate_again(auth, out),
            // A second CONNECT [MQTT-3.1.0-2].
            Packet::Connect(_) => self.end(Ending::Error(Reason::PROTOCOL_ERROR), out),
        }
    }

    /// The client lives, although no packet came: one is on its way, or lies unread because of us.
    pub fn heard(&mut self, now: Now) {
        if self.state == State::Open {
            self.heard_ms = now.mono_ms;
        }
    }

    /// Bytes came that are no packet.
    pub fn reject(&mut self, reject: Reject, out: &mut Output) {
        self.what = Some(reject.what);
        self.end(Ending::Error(reject.reason), out);
    }

    /// A message for the client.
    pub fn deliver(&mut self, delivery: Delivery, now: Now, out: &mut Output) {
        if self.state != State::Open {
            return;
        }
        let link = link(self.version, self.packet_bytes_max, &self.options);
        let result = self.outbox.deliver(delivery, link, now, out);
        self.outbox.pump(link, now, out);
        self.broken(result, out);
    }

    /// There is a row `seq` in the queue; it was not handed over.
    pub fn note(&mut self, seq: QueueSeq) {
        self.outbox.note(seq);
    }

    /// Row `seq` was not sent and is gone.
    pub fn withdraw(&mut self, seq: QueueSeq) {
        self.outbox.withdraw(seq);
    }

    /// The page that was asked for; `Err` when it could not be read.
    pub fn page(&mut self, page: Result<QueuePage, ()>, out: &mut Output) {
        match page {
            _ if self.state != State::Open => {}
            Ok(page) => self.outbox.page(page, &self.options, out),
            Err(()) => self.end(Ending::Error(Reason::IMPLEMENTATION_SPECIFIC_ERROR), out),
        }
    }

    /// The write buffer has room again.
    pub fn writable(&mut self) {
        self.outbox.unblock();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now, out: &mut Output) {
        if self.deadline_ms().is_none_or(|deadline| now.mono_ms < deadline) {
            return;
        }
        if self.throttled_until_ms.is_some_and(|until| until <= now.mono_ms) {
            self.throttled_until_ms = None;
            self.heard_ms = now.mono_ms; // what it sent meanwhile lies unread
            return;
        }
        match self.state {
            State::Connecting => self.end(Ending::Error(Reason::SERVER_UNAVAILABLE), out),
            State::Open if self.principal.until_ms().is_some_and(|until| until <= now.mono_ms) => {
                self.end(Ending::Error(Reason::NOT_AUTHORIZED), out);
            }
            // What it sent may lie unread because of us.
            State::Open if !self.wants_packets() => self.heard_ms = now.mono_ms,
            State::Open => self.end(Ending::Error(Reason::KEEP_ALIVE_TIMEOUT), out),
            State::Over => {}
        }
    }

    /// The end of a group of inputs: sends what is ready, proposes gathered acknowledgements as one command,
    /// and asks for the next page.
    pub fn finish(&mut self, now: Now, out: &mut Output) {
        if self.state != State::Open {
            return;
        }
        let link = link(self.version, self.packet_bytes_max, &self.options);
        self.outbox.pump(link, now, out);
        self.propose_acks(out);
        if out.page.is_none() {
            out.page = self.outbox.want_page(&self.options);
        }
    }

    fn propose_acks(&mut self, out: &mut Output) {
        let Some(from) = self.me else { return };
        out.acks_can_wait = self.outbox.acks_can_wait();
        while let Some(acks) = self.outbox.take_acks(SETTLE_ACKS_MAX) {
            let wait = Wait::Settle(acks.len());
            self.propose(wait, Command::Settle(Settle { from, acks }), out);
        }
    }

    fn broken(&mut self, result: Result<(), outbox::Broken>, out: &mut Output) {
        if let Err(outbox::Broken(reason)) = result {
            self.end(Ending::Error(reason), out);
        }
    }

    /// What became of request `request`.
    pub fn outcome(&mut self, request: Request, outcome: Outcome, now: Now, out: &mut Output) {
        if self.state != State::Over {
            self.answer(request, outcome, now, out);
        }
    }
}

fn link(version: Version, packet_bytes_max: usize, options: &MqttOptions) -> Link<'_> {
    Link { version, packet_bytes_max, options }
}
