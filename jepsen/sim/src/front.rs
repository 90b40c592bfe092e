//! A node's front end without sockets: the real session machines (`quorate::mqtt::session`), driven as the workers of
//! the real one drive them (`node/src/mqtt/worker.rs`), with packets instead of bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate::mqtt::MqttOptions;
use quorate::mqtt::auth::Identity;
use quorate::mqtt::packet::{Connect, Packet, Version};
use quorate::mqtt::reason::Reason;
use quorate::mqtt::session::{Admission, CLOSE_REQUEST, Ending, Now, Output, Session};
use quorate_raft::{AppliedRun, Cluster, NodeEffects, NodeEvent, Submission, Ticket};
use quorate_store::command::{Close, Command, SessionRef};
use quorate_store::effect::Outcome;
use quorate_store::ids::Incarnation;

use crate::client::{self, Link};
use crate::net::Host;
use crate::world::{after, between, note};
use crate::{clock, invariants, node};

/// Between two attempts to propose what the proposer had no room for.
const AGAIN: Duration = Duration::from_millis(5);
/// Bytes that a client's socket takes at once.
const ROOM_BYTES: usize = 256 << 10;

struct Conn {
    link: Link,
    session: Session,
    incarnation: Incarnation,
    withdrawn: Arc<AtomicBool>,
}

/// See the module.
pub(crate) struct Front {
    host: Host,
    life: u64,
    cluster: Cluster,
    options: Arc<MqttOptions>,
    conns: BTreeMap<u32, Conn>,
    slots: u32,
    applied: u64,
    incarnation: Option<Incarnation>,
    waiting: VecDeque<Submission>,
}

/// Hands what the apply thread says to the front end of its node, at once and in order.
pub(crate) struct Effects {
    pub(crate) host: Host,
    pub(crate) life: u64,
}

impl Effects {
    fn tell(&self, what: impl FnOnce(&mut Front) + 'static) {
        let (host, life) = (self.host, self.life);
        after(Duration::ZERO, move || node::with_front(host, life, what));
    }
}

impl NodeEffects for Effects {
    fn applied(&self, run: AppliedRun) {
        note!("node {} applied {}, {} events", self.host, run.index, run.events.len());
        self.tell(move |front| front.take_run(run));
    }

    fn incarnation_started(&self, incarnation: Incarnation) {
        note!("node {} has incarnation {incarnation}", self.host);
        self.tell(move |front| front.incarnation = Some(incarnation));
    }

    fn incarnation_closed(&self, incarnation: Incarnation) {
        note!("node {} lost incarnation {incarnation}", self.host);
        self.tell(move |front| {
            front.incarnation = None;
            front.waiting.clear();
            let over = |conn: &Conn| conn.incarnation == incarnation;
            front.end_all(over, &Ending::IncarnationOver { server_reference: None });
        });
    }
}

impl Front {
    pub(crate) fn new(host: Host, life: u64, cluster: Cluster) -> Self {
        let options = Arc::new(MqttOptions { allow_anonymous: true, ..MqttOptions::default() });
        Self {
            host,
            life,
            cluster,
            options,
            conns: BTreeMap::new(),
            slots: 0,
            applied: 0,
            incarnation: None,
            waiting: VecDeque::new(),
        }
    }

    /// The node.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// An incarnation that began before the front end was there.
    pub(crate) fn take_over_incarnation(&mut self) {
        self.incarnation = self.incarnation.or(self.cluster.proposer().incarnation());
    }

    /// Whose connections are open here.
    pub(crate) fn links(&self) -> Vec<Link> {
        self.conns.values().map(|conn| conn.link).collect()
    }

    fn now(&self) -> Now {
        Now { mono_ms: clock::now_ns() / 1_000_000, cluster: self.cluster.cluster_time(), applied: self.applied }
    }

    fn output(&self) -> Output {
        Output { room: ROOM_BYTES, access: self.cluster.access().borrow().clone(), ..Output::default() }
    }

    /// A client's CONNECT arrives.
    pub(crate) fn connect(&mut self, link: Link, connect: Connect) {
        let can_commit = self.cluster.status().borrow().has_quorum && self.cluster.has_time();
        let incarnation = self.incarnation.filter(|_| can_commit);
        let admission = match incarnation {
            Some(_) => Admission::Granted(Identity::default()),
            None => Admission::Refused { reason: Reason::SERVER_UNAVAILABLE, server_reference: None },
        };
        let (now, mut out) = (self.now(), self.output());
        let session =
            Session::connect(self.options.clone(), Version::V5, connect, admission, String::new, now, &mut out);
        self.slots += 1;
        let slot = self.slots;
        let incarnation = incarnation.unwrap_or(Incarnation(quorate_store::ids::Position::from_u64(0)));
        self.conns.insert(slot, Conn { link, session, incarnation, withdrawn: Arc::default() });
        self.carry_out(slot, out);
    }

    fn slot_of(&self, link: Link) -> Option<u32> {
        self.conns.iter().find(|(_, conn)| conn.link == link).map(|(slot, _)| *slot)
    }

    /// A client's packet arrives.
    pub(crate) fn packet(&mut self, link: Link, packet: Packet) {
        if let Some(slot) = self.slot_of(link) {
            self.drive(slot, |session, now, out| session.packet(packet, now, out));
        }
    }

    /// A client's socket is gone.
    pub(crate) fn socket_closed(&mut self, link: Link) {
        if let Some(slot) = self.slot_of(link) {
            if let Some(conn) = self.conns.get(&slot) {
                conn.withdrawn.store(true, Ordering::Release);
            }
            self.drive(slot, |session, _, out| session.end(Ending::SocketClosed, out));
            self.conns.remove(&slot);
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        for slot in self.conns.keys().copied().collect::<Vec<_>>() {
            self.drive(slot, Session::tick);
        }
        if !self.cluster.status().borrow().has_quorum {
            let away = Ending::Redirect { reason: Reason::SERVER_BUSY, server_reference: None };
            self.end_all(|_| true, &away);
        }
    }

    fn end_all(&mut self, which: impl Fn(&Conn) -> bool, ending: &Ending) {
        let slots: Vec<u32> = self.conns.iter().filter(|(_, conn)| which(conn)).map(|(slot, _)| *slot).collect();
        for slot in slots {
            self.drive(slot, |session, _, out| session.end(ending.clone(), out));
        }
    }

    fn take_run(&mut self, run: AppliedRun) {
        invariants::told(self.host, &run);
        self.applied = self.applied.max(run.index);
        for event in run.events {
            match event {
                NodeEvent::Outcome { ticket, outcome } => self.outcome(ticket, outcome),
                NodeEvent::Deliver(delivery) => {
                    let to = delivery.to;
                    self.drive_session(to, |session, now, out| session.deliver(delivery, now, out));
                }
                NodeEvent::Withdraw { from, seq } => self.drive_session(from, |session, _, _| session.withdraw(seq)),
                NodeEvent::Kick { from, reason } => {
                    self.drive_session(from, |session, _, out| session.end(Ending::Kicked(reason), out));
                }
            }
        }
    }

    fn outcome(&mut self, ticket: Ticket, outcome: Outcome) {
        if self.conns.contains_key(&ticket.slot) {
            self.drive(ticket.slot, |session, now, out| session.outcome(ticket.request, outcome, now, out));
        } else if let Outcome::Connected(connected) = outcome {
            // Applied for a socket that is gone.
            let close =
                Close { from: connected.session, drop_will: false, expiry_s: None, sent_until: connected.sent_until };
            let ticket = Ticket { request: CLOSE_REQUEST, ..ticket };
            self.submit(Submission { command: Command::Close(close), ticket, withdrawn: None, can_wait: false });
        }
    }

    fn drive_session(&mut self, of: SessionRef, inputs: impl FnOnce(&mut Session, Now, &mut Output)) {
        let slot = self.conns.iter().find(|(_, conn)| conn.session.me() == Some(of)).map(|(slot, _)| *slot);
        if let Some(slot) = slot {
            self.drive(slot, inputs);
        }
    }

    fn drive(&mut self, slot: u32, inputs: impl FnOnce(&mut Session, Now, &mut Output)) {
        let (now, mut out) = (self.now(), self.output());
        let Some(conn) = self.conns.get_mut(&slot) else { return };
        inputs(&mut conn.session, now, &mut out);
        conn.session.finish(now, &mut out);
        self.carry_out(slot, out);
    }

    fn carry_out(&mut self, slot: u32, out: Output) {
        let Some(conn) = self.conns.get(&slot) else { return };
        let (link, withdrawn, me) = (conn.link, conn.withdrawn.clone(), conn.session.me());
        if out.counts.acks_before_commit > 0 {
            invariants::violated("durable before acknowledged (guarantee 1)", &format!("on node {}", self.host));
        }
        for packet in out.packets {
            client::send(link, packet);
        }
        for publish in out.qos0 {
            self.cluster.route_qos0(publish);
        }
        for (request, command) in out.commands {
            let ticket = Ticket { worker: 0, slot, generation: 0, request };
            let withdrawn = matches!(command, Command::Connect(_)).then(|| withdrawn.clone());
            let can_wait = out.acks_can_wait && matches!(command, Command::Settle(_));
            self.submit(Submission { command, ticket, withdrawn, can_wait });
        }
        if let (Some(wanted), Some(me)) = (out.page, me) {
            let (host, life) = (self.host, self.life);
            after(between(Duration::ZERO, Duration::from_millis(3)), move || {
                node::with_front(host, life, move |front| {
                    let rows = front.cluster.rows();
                    let page = rows.queue_page(me.session, wanted.from, wanted.rows_max, wanted.bytes_max);
                    front.drive(slot, |session, _, out| session.page(page.map_err(|_| ()), out));
                });
            });
        }
        if out.closed.is_some() {
            self.conns.remove(&slot);
            client::end(link);
        }
    }

    fn submit(&mut self, submission: Submission) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(submission);
        } else if let Err(busy) = self.cluster.proposer().submit(submission) {
            self.waiting.push_back(*busy.submission);
            self.try_again();
        }
    }

    fn try_again(&self) {
        let (host, life) = (self.host, self.life);
        after(AGAIN, move || {
            node::with_front(host, life, |front| {
                while let Some(submission) = front.waiting.pop_front() {
                    if let Err(busy) = front.cluster.proposer().submit(submission) {
                        front.waiting.push_front(*busy.submission);
                        return front.try_again();
                    }
                }
            });
        });
    }
}
