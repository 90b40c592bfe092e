//! The session machine against a log in memory and a client that keeps account: whatever the order of
//! commits, pages, acknowledgements, full write buffers and broken connections, what a client may rely on
//! holds at every step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mqtt_testkit::log::FakeLog;
use proptest::prelude::*;
use quorate::mqtt::MqttOptions;
use quorate::mqtt::auth::Identity;
use quorate::mqtt::packet::{Connect, Outgoing, Packet, Publish, Version};
use quorate::mqtt::reason::Reason;
use quorate::mqtt::session::{Admission, CLOSE_REQUEST, Ending, Now, Output, PageWanted, Session};
use quorate_raft::{AppliedRun, NodeEvent, Submission, Ticket};
use quorate_store::codec::Payload;
use quorate_store::command::{self, SubscribeOptions};
use quorate_store::ids::{PacketId, QoS, QueueSeq};
use quorate_store::rows::QueuePage;
use quorate_store::topic::{TopicFilter, TopicName};

const CLIENT: &str = "c";

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Others publish so many messages for the client.
    Inject(QoS, u8),
    /// So many of the oldest messages that were not sent expire, or make room.
    Withdraw(u8),
    /// The log applies so many commands.
    Apply(u8),
    /// The node hands over so many applied runs.
    HandOver(u8),
    /// The page that was asked for is read.
    ReadPage,
    /// The page that was asked for arrives, as it was read, then or now.
    Page,
    /// The client sends one of the acknowledgements that it owes.
    Acknowledge(u8),
    /// The client sends several at once.
    AcknowledgeMany(u8),
    /// The client publishes.
    Publish(QoS),
    /// The client sends a PUBREL that it owes.
    Release,
    /// The write buffer has so much room from now on.
    Room(u16),
    /// The connection breaks, with or without its node; the client comes back with this Receive Maximum.
    Break { node_lost: bool, receive_maximum: u16 },
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (qos(), 1..12_u8).prop_map(|(q, n)| Act::Inject(q, n)),
        2 => (1..6_u8).prop_map(Act::Withdraw),
        6 => (1..8_u8).prop_map(Act::Apply),
        6 => (1..4_u8).prop_map(Act::HandOver),
        3 => Just(Act::ReadPage),
        3 => Just(Act::Page),
        6 => any::<u8>().prop_map(Act::Acknowledge),
        3 => (1..20_u8).prop_map(Act::AcknowledgeMany),
        3 => prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)].prop_map(Act::Publish),
        2 => Just(Act::Release),
        1 => prop_oneof![Just(0), Just(30), Just(60_000)].prop_map(Act::Room),
        1 => (any::<bool>(), 1..12_u16).prop_map(|(node_lost, receive_maximum)| Act::Break { node_lost, receive_maximum }),
    ]
}

/// What the client has not finished with, of what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owes {
    PubAck,
    PubRec,
    /// PUBREC was sent, PUBREL has not come.
    Nothing,
    PubComp,
}

struct World {
    log: FakeLog,
    options: Arc<MqttOptions>,
    session: Session,
    connection: u32,
    out: Output,
    room: usize,
    runs: VecDeque<AppliedRun>,
    page: Option<PageWanted>,
    page_read: Option<QueuePage>,
    applied: u64,
    clock: u64,

    receive_maximum: u16,
    /// By packet identifier, on this connection.
    in_flight: BTreeMap<PacketId, Owes>,
    /// Those of them whose PUBLISH came on this connection: they count for Receive Maximum.
    published_here: BTreeSet<PacketId>,
    /// QoS 2 identifiers that the client holds, over all connections.
    held: BTreeSet<PacketId>,
    /// How often each message arrived at the application.
    arrived: HashMap<u32, u32>,
    /// On this connection, in order.
    seen_here: Vec<u32>,
    /// Owed PUBRELs when this connection began.
    owed: BTreeSet<PacketId>,
    sent_until: QueueSeq,
    numbers: Vec<(u32, QoS, QueueSeq)>,
    /// Rows that went before they were sent.
    withdrawn: BTreeSet<QueueSeq>,

    /// What the client's own packets are to be answered with, in order.
    answers: VecDeque<(u8, PacketId)>,
    next_id: u16,
    releases: VecDeque<PacketId>,
}

fn connect_packet(receive_maximum: u16) -> Connect {
    Connect {
        client_id: CLIENT.into(),
        clean_start: false,
        keep_alive_s: 0,
        expiry_s: Some(1000),
        receive_maximum,
        packet_bytes_max: None,
        auth: None,
        wants_problems: true,
        topic_alias_max: 0,
        wants_response_information: false,
        username: None,
        password: None,
        will: None,
    }
}

impl World {
    fn new(receive_maximum: u16) -> Self {
        // Small bounds, so that every one of them is met.
        let options = Arc::new(MqttOptions {
            page_rows_max: 5,
            page_bytes_max: 200,
            receive_maximum: 8,
            inflight_max: 10,
            ..MqttOptions::default()
        });
        let mut out = Output::default();
        let connect = connect_packet(receive_maximum);
        let session = Session::connect(
            options.clone(),
            Version::V5,
            connect,
            Admission::Granted(Identity::default()),
            String::new,
            Now::default(),
            &mut out,
        );
        let mut world = Self {
            log: FakeLog::default(),
            options,
            session,
            connection: 0,
            out: Output::default(),
            room: 60_000,
            runs: VecDeque::new(),
            page: None,
            page_read: None,
            applied: 0,
            clock: 0,
            receive_maximum: receive_maximum.min(10),
            in_flight: BTreeMap::new(),
            published_here: BTreeSet::new(),
            held: BTreeSet::new(),
            arrived: HashMap::new(),
            seen_here: Vec::new(),
            owed: BTreeSet::new(),
            sent_until: QueueSeq(0),
            numbers: Vec::new(),
            withdrawn: BTreeSet::new(),
            answers: VecDeque::new(),
            next_id: 0,
            releases: VecDeque::new(),
        };
        world.carry_out(&mut out);
        world.settle_connect();
        let options =
            SubscribeOptions { qos: QoS::ExactlyOnce, no_local: true, retain_as_published: false, retain_handling: 0 };
        let filter = TopicFilter::new("t").unwrap();
        world.log.sessions.get_mut(CLIENT).unwrap().filters.push((filter, options, Some(7)));
        world
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.clock, cluster: self.log.time, applied: self.applied }
    }

    fn drive(&mut self, inputs: impl FnOnce(&mut Session, Now, &mut Output)) {
        let mut out = std::mem::take(&mut self.out);
        out.room = self.room;
        let now = self.now();
        inputs(&mut self.session, now, &mut out);
        self.session.finish(now, &mut out);
        self.carry_out(&mut out);
        self.out = out;
    }

    fn carry_out(&mut self, out: &mut Output) {
        for packet in std::mem::take(&mut out.packets) {
            self.client(packet);
        }
        for (request, command) in std::mem::take(&mut out.commands) {
            let ticket = Ticket { worker: 0, slot: 0, generation: self.connection, request };
            self.log.submit(Submission { command, ticket, withdrawn: None, can_wait: false });
        }
        for publish in std::mem::take(&mut out.qos0) {
            assert!(!publish.retain && publish.qos == QoS::AtMostOnce);
        }
        if let Some(page) = out.page.take() {
            assert!(self.page.replace(page).is_none(), "two pages asked for at once");
        }
        assert_eq!(std::mem::take(&mut out.counts).acks_before_commit, 0);
        assert_eq!(out.closed.take(), None, "closed for no reason");
    }

    /// The client is sent a packet.
    fn client(&mut self, packet: Outgoing) {
        match packet {
            Outgoing::ConnAck(ack) => {
                assert_eq!(ack.reason, Reason::SUCCESS);
                assert_eq!(ack.session_present, self.connection > 0);
            }
            Outgoing::Publish(d) => {
                assert!(self.owed.is_empty(), "a PUBLISH before the owed PUBRELs {:?}", self.owed);
                let number = u32::from_be_bytes(d.message.payload[..].try_into().unwrap());
                let (_, qos, seq) = self.numbers[number as usize];
                let id = d.id.unwrap();
                assert_eq!((d.qos, id), (qos, seq.packet_id()));
                assert_eq!(d.dup, seq < self.sent_until, "DUP of {seq}, sent until {}", self.sent_until);
                assert_eq!(&*d.identifiers, &[7]);
                assert!(self.seen_here.last().is_none_or(|last| *last < number), "out of order or repeated");
                self.seen_here.push(number);
                let owes = if qos == QoS::ExactlyOnce { Owes::PubRec } else { Owes::PubAck };
                assert_eq!(self.in_flight.insert(id, owes), None, "identifier {id:?} is in flight");
                // What was published on earlier connections, and only its PUBREL resent, does not count.
                self.published_here.insert(id);
                let open = self.published_here.len();
                assert!(open <= usize::from(self.receive_maximum), "{open} in flight");
                if qos == QoS::AtLeastOnce {
                    let n = self.arrived.entry(number).or_default();
                    *n += 1;
                    assert!(*n == 1 || d.dup, "a repeat without DUP");
                } else if self.held.insert(id) {
                    *self.arrived.entry(number).or_default() += 1;
                }
            }
            Outgoing::PubRel(id, reason) => {
                assert_eq!(reason, Reason::SUCCESS);
                self.held.remove(&id);
                let before = self.in_flight.insert(id, Owes::PubComp);
                let owed = self.owed.remove(&id);
                assert!(owed || before == Some(Owes::Nothing), "a PUBREL that nothing asked for: {before:?}");
            }
            Outgoing::PubAck(id, _) => assert_eq!(self.answers.pop_front(), Some((4, id))),
            Outgoing::PubRec(id, _) => {
                assert_eq!(self.answers.pop_front(), Some((5, id)));
                self.releases.push_back(id);
            }
            Outgoing::PubComp(id, reason) => {
                assert_eq!(reason, Reason::SUCCESS);
                assert_eq!(self.answers.pop_front(), Some((7, id)));
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn acknowledge(&mut self, choice: usize) -> Option<Packet> {
        let owing: Vec<PacketId> =
            self.in_flight.iter().filter(|(_, o)| **o != Owes::Nothing).map(|(id, _)| *id).collect();
        let id = *owing.get(choice % owing.len().max(1))?;
        let reason = Reason::SUCCESS;
        Some(match self.in_flight[&id] {
            Owes::PubAck => {
                self.in_flight.remove(&id);
                self.published_here.remove(&id);
                Packet::PubAck { id, reason }
            }
            Owes::PubRec => {
                self.in_flight.insert(id, Owes::Nothing);
                Packet::PubRec { id, reason }
            }
            Owes::PubComp => {
                self.in_flight.remove(&id);
                self.published_here.remove(&id);
                Packet::PubComp { id }
            }
            Owes::Nothing => return None,
        })
    }

    fn hand_over(&mut self) {
        let Some(run) = self.runs.pop_front() else { return };
        self.applied = self.applied.max(run.index);
        let (me, connection) = (self.session.me(), self.connection);
        let mut accepted = me;
        self.drive(|session, now, out| {
            for event in run.events {
                match event {
                    NodeEvent::Outcome { ticket, outcome }
                        if ticket.generation == connection && ticket.request != CLOSE_REQUEST =>
                    {
                        session.outcome(ticket.request, outcome, now, out);
                        accepted = session.me();
                    }
                    NodeEvent::Withdraw { from, seq } if Some(from) == accepted => session.withdraw(seq),
                    NodeEvent::Deliver(d) if Some(d.to) == accepted => session.deliver(d, now, out),
                    _ => {}
                }
            }
        });
    }

    fn apply(&mut self, n: usize) {
        let run = self.log.apply(n);
        self.runs.push_back(run);
    }

    /// Until the connection is open.
    fn settle_connect(&mut self) {
        while self.session.is_connecting() {
            self.apply(self.log.waiting().max(1));
            while !self.runs.is_empty() {
                self.hand_over();
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Inject(qos, n) => {
                for _ in 0..n {
                    let number = self.numbers.len() as u32;
                    let seq = self.log.sessions[CLIENT].next_seq;
                    self.numbers.push((number, qos, seq));
                    let run = self.log.inject(&command::Publish {
                        from: None,
                        packet_id: None,
                        qos,
                        retain: false,
                        topic: TopicName::new("t").unwrap(),
                        properties: None,
                        expiry_s: None,
                        payload: Payload(Bytes::copy_from_slice(&number.to_be_bytes())),
                    });
                    self.runs.push_back(run);
                }
            }
            Act::Withdraw(n) => {
                for _ in 0..n {
                    let Some((seq, run)) = self.log.withdraw(CLIENT) else { return };
                    self.withdrawn.insert(seq);
                    self.runs.push_back(run);
                }
            }
            Act::Apply(n) => self.apply(usize::from(n)),
            Act::HandOver(n) => (0..n).for_each(|_| self.hand_over()),
            Act::ReadPage => {
                if let (Some(wanted), Some(me), None) = (self.page, self.session.me(), &self.page_read) {
                    self.page_read = Some(self.log.page(me.session, wanted.from, wanted.rows_max, wanted.bytes_max));
                }
            }
            Act::Page => {
                self.act(Act::ReadPage);
                if let Some(page) = self.page_read.take() {
                    self.page = None;
                    self.drive(|session, _, out| session.page(Ok(page), out));
                }
            }
            Act::Acknowledge(choice) => {
                if let Some(packet) = self.acknowledge(usize::from(choice)) {
                    self.drive(|session, now, out| session.packet(packet, now, out));
                }
            }
            Act::AcknowledgeMany(n) => {
                let packets: Vec<Packet> = (0..n).filter_map(|_| self.acknowledge(0)).collect();
                let waiting = self.log.waiting();
                self.drive(|session, now, out| {
                    for packet in packets {
                        session.packet(packet, now, out);
                    }
                });
                assert!(self.log.waiting() <= waiting + 1, "acknowledgements of one read are one command");
            }
            Act::Publish(qos) => self.publish(qos),
            Act::Release => {
                if let Some(id) = self.releases.pop_front() {
                    self.answers.push_back((7, id));
                    self.drive(|session, now, out| session.packet(Packet::PubRel { id }, now, out));
                }
            }
            Act::Room(room) => {
                self.room = usize::from(room);
                if self.room > 0 && self.session.is_blocked() {
                    self.drive(|session, _, _| session.writable());
                }
            }
            Act::Break { node_lost, receive_maximum } => self.break_connection(node_lost, receive_maximum),
        }
    }

    fn publish(&mut self, qos: QoS) {
        // What waits for its answer, or for its PUBREL, counts for our Receive Maximum.
        if self.session.is_connecting() || self.answers.len() + self.releases.len() >= 8 {
            return;
        }
        let mut id = None;
        if qos > QoS::AtMostOnce {
            self.next_id = self.next_id % 60_000 + 1;
            id = PacketId::new(self.next_id);
            self.answers.push_back((if qos == QoS::ExactlyOnce { 5 } else { 4 }, id.unwrap()));
        }
        let packet = Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            id,
            topic: Some(TopicName::new("elsewhere").unwrap()),
            alias: None,
            expiry_s: None,
            properties: None,
            payload: Payload::default(),
        });
        self.drive(|session, now, out| session.packet(packet, now, out));
    }

    fn break_connection(&mut self, node_lost: bool, receive_maximum: u16) {
        if self.session.is_connecting() {
            return;
        }
        if node_lost {
            let _ = self.log.apply(0);
            self.log = {
                let mut log = std::mem::take(&mut self.log);
                log.forget_waiting();
                log.lose(CLIENT);
                log
            };
        } else {
            let mut out = Output::default();
            self.session.end(Ending::SocketClosed, &mut out);
            out.closed = None;
            self.carry_out(&mut out);
            // The close and what was proposed before it.
            let n = self.log.waiting();
            let _ = self.log.apply(n);
        }
        self.runs.clear();
        self.page = None;
        self.page_read = None;
        self.in_flight.clear();
        self.published_here.clear();
        self.answers.clear();
        self.releases.clear();
        self.seen_here.clear();
        self.connection += 1;
        let session = &self.log.sessions[CLIENT];
        self.sent_until = session.sent_until;
        self.owed = session.rows.iter().filter(|(_, r)| r.released).map(|(seq, _)| seq.packet_id()).collect();
        self.receive_maximum = receive_maximum.min(10);
        // PUBRELs are owed whatever the new Receive Maximum is.
        let mut out = Output::default();
        let connect = connect_packet(receive_maximum);
        let now = self.now();
        self.session = Session::connect(
            self.options.clone(),
            Version::V5,
            connect,
            Admission::Granted(Identity::default()),
            String::new,
            now,
            &mut out,
        );
        self.carry_out(&mut out);
    }

    /// Lets everything come to its end.
    fn quiesce(&mut self) {
        self.act(Act::Room(60_000));
        for _ in 0..10_000 {
            self.act(Act::Apply(u8::MAX));
            while !self.runs.is_empty() {
                self.hand_over();
            }
            self.act(Act::Page);
            self.act(Act::AcknowledgeMany(u8::MAX));
            self.act(Act::Release);
            let rows = self.log.sessions[CLIENT].rows.len();
            if rows == 0 && self.log.waiting() == 0 && self.answers.is_empty() && self.releases.is_empty() {
                return;
            }
        }
        panic!("stuck with {} rows: {:?}", self.log.sessions[CLIENT].rows.len(), self.session);
    }
}

fn run(receive_maximum: u16, acts: Vec<Act>) -> World {
    let mut world = World::new(receive_maximum);
    for act in acts {
        world.act(act);
    }
    world.quiesce();
    for (number, qos, seq) in &world.numbers {
        let n = world.arrived.get(number).copied().unwrap_or(0);
        match qos {
            _ if world.withdrawn.contains(seq) => assert_eq!(n, 0, "message {number} was gone"),
            QoS::ExactlyOnce => assert_eq!(n, 1, "message {number}"),
            _ => assert!(n >= 1, "message {number} is lost"),
        }
    }
    world
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(2000),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_order_window_identifiers_and_dup_are_right(
        receive_maximum in 1..12_u16,
        acts in proptest::collection::vec(act(), 1..120),
    ) {
        run(receive_maximum, acts);
    }
}

#[test]
fn a_backlog_is_paged_through_a_window_of_one() {
    let mut acts = vec![Act::Break { node_lost: false, receive_maximum: 1 }];
    acts.extend((0..20).map(|_| Act::Inject(QoS::ExactlyOnce, 11)));
    run(1, acts);
}

#[test]
fn identifiers_wrap_without_ever_being_in_flight_twice() {
    let mut world = World::new(10);
    // One exchange stays open while more rows than there are identifiers go by.
    world.act(Act::Inject(QoS::AtLeastOnce, 1));
    world.hand_over();
    for _ in 0..66_000_u32 {
        world.act(Act::Inject(QoS::AtLeastOnce, 1));
        while !world.runs.is_empty() {
            world.hand_over();
        }
        let first = PacketId::new(1).unwrap();
        let newest = world.in_flight.keys().copied().find(|id| *id != first);
        if let Some(id) = newest {
            world.in_flight.remove(&id);
            world.published_here.remove(&id);
            world.drive(|session, now, out| session.packet(Packet::PubAck { id, reason: Reason::SUCCESS }, now, out));
            world.act(Act::Apply(1));
        }
        world.act(Act::Page);
    }
    assert_eq!(world.seen_here.len(), 65_534, "row 65,534 would be identifier 65,535 spans later: it waits");
    world.quiesce();
}
