mod offers;
mod outgoing;
mod rules;
mod wishes;

use std::sync::Arc;

use bytes::Bytes;
use quorate_store::codec::Payload;
use quorate_store::command::{AckKind, Close, SubscribeOptions, Will};
use quorate_store::effect::{Connected, Granted, KickReason};
use quorate_store::ids::{Epoch, Position, SessionId};
use quorate_store::message::{Message, SharedMessage};
use quorate_store::rows::QueuedRow;
use quorate_store::topic::TopicFilter;

use super::*;
use crate::mqtt::auth::Identity;
use crate::mqtt::packet::{Connect, Subscribe};

const NOW: Now = Now { mono_ms: 1000, cluster: ClusterTime(50_000), applied: 100 };

fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

fn hello(version: Version) -> Connect {
    Connect {
        client_id: "c".into(),
        clean_start: false,
        keep_alive_s: 10,
        expiry_s: version.is_v5().then_some(300),
        receive_maximum: 10,
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

fn me() -> SessionRef {
    SessionRef { session: SessionId(Position::new(5, 0)), epoch: Epoch(Position::new(7, 0)) }
}

fn found() -> Connected {
    Connected {
        session: me(),
        present: true,
        expiry_s: 300,
        durable: true,
        queue_head: QueueSeq(0),
        sent_until: QueueSeq(0),
        queue_tail: QueueSeq(0),
        inbound_qos2: Vec::new(),
    }
}

/// A machine and what it said last.
struct Rig {
    session: Session,
    out: Output,
}

impl Rig {
    fn connecting(version: Version, connect: Connect, options: MqttOptions) -> Self {
        let mut out = Output { room: 1 << 20, ..Output::default() };
        let session = Session::connect(
            Arc::new(options),
            version,
            connect,
            Admission::Granted(Identity::default()),
            || "fresh".into(),
            NOW,
            &mut out,
        );
        Self { session, out }
    }

    fn open_with(version: Version, connected: Connected) -> Self {
        let mut rig = Self::connecting(version, hello(version), MqttOptions::default());
        assert!(matches!(rig.take_commands()[..], [Command::Connect(_)]));
        rig.outcome(0, Outcome::Connected(connected));
        assert!(matches!(rig.take_packets()[..], [Outgoing::ConnAck(_)]));
        rig
    }

    fn open(version: Version) -> Self {
        Self::open_with(version, found())
    }

    fn drive(&mut self, inputs: impl FnOnce(&mut Session, &mut Output)) {
        inputs(&mut self.session, &mut self.out);
        self.session.finish(NOW, &mut self.out);
    }

    fn packet(&mut self, packet: Packet) {
        self.drive(|session, out| session.packet(packet, NOW, out));
    }

    fn outcome(&mut self, request: Request, outcome: Outcome) {
        self.drive(|session, out| session.outcome(request, outcome, NOW, out));
    }

    fn deliver(&mut self, seq: Option<u64>, qos: QoS, message: SharedMessage) {
        let delivery =
            Delivery { to: me(), seq: seq.map(QueueSeq), qos, retain: false, identifiers: Arc::from([]), message };
        self.drive(|session, out| session.deliver(delivery, NOW, out));
    }

    fn take_packets(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.out.packets)
    }

    /// Short for packets: letter, identifier, reason.
    fn said(&mut self) -> Vec<(&'static str, u16, u8)> {
        let packets = self.take_packets().into_iter().map(|packet| match packet {
            Outgoing::ConnAck(ack) => ("connack", 0, ack.reason.0),
            Outgoing::Publish(d) => (if d.dup { "dup" } else { "publish" }, d.id.map_or(0, PacketId::get), 0),
            Outgoing::PubAck(id, r) => ("puback", id.get(), r.0),
            Outgoing::PubRec(id, r) => ("pubrec", id.get(), r.0),
            Outgoing::PubAckAt(id, r, _) => ("puback at", id.get(), r.0),
            Outgoing::PubRecAt(id, r, _) => ("pubrec at", id.get(), r.0),
            Outgoing::PubRel(id, r) => ("pubrel", id.get(), r.0),
            Outgoing::PubComp(id, r) => ("pubcomp", id.get(), r.0),
            Outgoing::SubAck(id, rs) => ("suback", id.get(), rs.last().map_or(0, |r| r.0)),
            Outgoing::UnsubAck(id, rs) => ("unsuback", id.get(), rs.last().map_or(0, |r| r.0)),
            Outgoing::PingResp => ("pingresp", 0, 0),
            Outgoing::Auth(r, _) => ("auth", 0, r.0),
            Outgoing::Disconnect(r, _) => ("disconnect", 0, r.0),
        });
        packets.collect()
    }

    fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.out.commands).into_iter().map(|(_, command)| command).collect()
    }

    fn take_acks(&mut self) -> Vec<(u64, AckKind)> {
        let acks = self.take_commands().into_iter().flat_map(|command| match command {
            Command::Settle(settle) => settle.acks,
            other => panic!("{other:?}"),
        });
        acks.map(|ack| (ack.seq.0, ack.kind)).collect()
    }

    fn close(&mut self) -> Close {
        match self.take_commands().pop() {
            Some(Command::Close(close)) => close,
            other => panic!("{other:?}"),
        }
    }
}

fn granted(qos: QoS) -> Granted {
    Granted { qos, is_new: true }
}

fn message(expires_at: Option<u64>) -> SharedMessage {
    Arc::new(Message {
        position: Position::new(20, 1),
        topic: TopicName::new("t").unwrap(),
        qos: QoS::ExactlyOnce,
        retain: false,
        published_at: ClusterTime(0),
        expires_at: expires_at.map(ClusterTime),
        properties: None,
        payload: Payload(Bytes::from_static(b"payload")),
    })
}

fn publish(qos: QoS, n: u16) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        id: PacketId::new(n),
        topic: Some(TopicName::new("t").unwrap()),
        alias: None,
        expiry_s: None,
        properties: None,
        payload: Payload::default(),
    }
}

fn published(matched: bool) -> Outcome {
    Outcome::Published { position: Position::new(100, 0), matched }
}

#[test]
fn connect_says_what_the_log_needs() {
    let mut rig = Rig::connecting(Version::V311, hello(Version::V311), MqttOptions::default());
    let [Command::Connect(connect)] = &rig.take_commands()[..] else { panic!() };
    assert_eq!((connect.expiry_s, connect.receive_maximum), (u32::MAX, 10));
    assert_eq!(connect.deadline, ClusterTime(60_000));
    let clean = Connect { clean_start: true, client_id: String::new(), ..hello(Version::V311) };
    let mut rig = Rig::connecting(Version::V311, clean, MqttOptions::default());
    let [Command::Connect(connect)] = &rig.take_commands()[..] else { panic!() };
    assert_eq!((connect.expiry_s, connect.client_id.as_str()), (0, "fresh"));
}

#[test]
fn connack_tells_what_differs_from_what_was_asked_for() {
    let options = MqttOptions { keep_alive_s_max: 5, ..MqttOptions::default() };
    let mut rig = Rig::connecting(Version::V5, Connect { client_id: String::new(), ..hello(Version::V5) }, options);
    rig.outcome(0, Outcome::Connected(Connected { expiry_s: 100, ..found() }));
    let [Outgoing::ConnAck(ack)] = &rig.take_packets()[..] else { panic!() };
    let granted = ack.granted.as_ref().unwrap();
    assert!(ack.session_present);
    assert_eq!(
        (granted.expiry_s, granted.keep_alive_s, granted.client_id.as_deref()),
        (Some(100), Some(5), Some("fresh"))
    );
    // And keeps to it: one and a half times 5 seconds.
    assert_eq!(rig.session.deadline_ms(), Some(NOW.mono_ms + 7500));

    let mut rig = Rig::connecting(Version::V31, hello(Version::V31), MqttOptions::default());
    rig.outcome(0, Outcome::Connected(found()));
    let [Outgoing::ConnAck(ack)] = &rig.take_packets()[..] else { panic!() };
    assert!(!ack.session_present, "3.1 has no such flag");
}

#[test]
fn a_connect_can_be_refused_before_and_after_the_log() {
    let nameless = |clean_start| Connect { client_id: String::new(), clean_start, ..hello(Version::V311) };
    for (version, connect, reason) in [(Version::V311, nameless(false), 0x85), (Version::V31, nameless(true), 0x85)] {
        let mut rig = Rig::connecting(version, connect, MqttOptions::default());
        assert_eq!(rig.said(), [("connack", 0, reason)]);
        assert!(rig.session.is_over() && rig.take_commands().is_empty() && rig.out.closed.is_some());
    }
    let mut rig = Rig::connecting(Version::V5, hello(Version::V5), MqttOptions::default());
    rig.outcome(0, Outcome::ConnectExpired);
    assert_eq!(rig.said(), [("connack", 0, 0x88)]);
}

#[test]
fn a_connect_that_may_yet_be_committed_is_not_refused() {
    let late = |rig: &mut Rig| {
        let now = Now { mono_ms: NOW.mono_ms + 10_000, ..NOW };
        rig.session.tick(now, &mut rig.out);
    };
    let sent_away = |rig: &mut Rig| {
        let ending = Ending::Redirect { reason: Reason::SERVER_UNAVAILABLE, server_reference: None };
        rig.session.end(ending, &mut rig.out);
    };
    let without_incarnation = |rig: &mut Rig| {
        rig.session.end(Ending::IncarnationOver { server_reference: None }, &mut rig.out);
    };
    let ways: [&dyn Fn(&mut Rig); 3] = [&late, &sent_away, &without_incarnation];
    for end in ways {
        let mut rig = Rig::connecting(Version::V5, hello(Version::V5), MqttOptions::default());
        end(&mut rig);
        assert_eq!(rig.said(), []);
        assert!(rig.session.is_over() && rig.out.closed.is_some());
    }
}

#[test]
fn acknowledgements_leave_in_order_and_only_after_the_outcome() {
    let mut rig = Rig::open_with(Version::V5, Connected { present: false, ..found() });
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 1)));
    rig.packet(Packet::Publish(publish(QoS::ExactlyOnce, 2)));
    rig.packet(Packet::Publish(publish(QoS::ExactlyOnce, 2)));
    rig.packet(Packet::PubRel { id: id(9) });
    // Refused without the log, and still in its turn.
    let refused = Subscribe { id: id(3), identifier: None, filters: vec![Err(Reason(0x9E))] };
    rig.packet(Packet::Subscribe(refused));
    rig.packet(Packet::PingReq);
    assert_eq!(rig.said(), [("pingresp", 0, 0)]);
    rig.outcome(1, published(false));
    rig.outcome(2, published(true));
    assert_eq!(rig.said(), [("puback", 1, 0x10), ("pubrec", 2, 0)]);
    rig.outcome(3, Outcome::AlreadyRecorded);
    assert_eq!(rig.said(), [("pubrec", 2, 0)]);
    rig.outcome(4, Outcome::Released { known: false });
    assert_eq!(rig.said(), [("pubcomp", 9, 0x92), ("suback", 3, 0x9E)]);
}

#[test]
fn a_pubrel_that_is_sent_again_in_a_resumed_session_is_no_mistake_of_the_client() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::PubRel { id: id(9) });
    rig.outcome(1, Outcome::Released { known: false });
    assert_eq!(rig.said(), [("pubcomp", 9, 0)]);
}

#[test]
fn what_is_not_applied_is_not_acknowledged_whatever_claims_so() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 1)));
    rig.outcome(1, Outcome::Published { position: Position::new(101, 0), matched: true });
    assert_eq!(rig.said(), [("disconnect", 0, 0x83)]);
    assert_eq!(rig.out.counts.acks_before_commit, 1);

    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 1)));
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 2)));
    rig.outcome(2, published(true));
    assert_eq!(rig.said(), [("disconnect", 0, 0x83)]);
    assert_eq!(rig.out.counts.acks_before_commit, 1);
}

#[test]
fn a_full_queue_is_a_reason_in_5_0_and_the_end_in_3_1_1() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(publish(QoS::ExactlyOnce, 1)));
    rig.outcome(1, Outcome::QueueFull);
    assert_eq!(rig.said(), [("pubrec", 1, 0x97)]);
    let mut rig = Rig::open(Version::V311);
    rig.packet(Packet::Publish(publish(QoS::ExactlyOnce, 1)));
    rig.outcome(1, Outcome::QueueFull);
    assert!(rig.session.is_over() && rig.out.closed == Some(Reason::QUOTA_EXCEEDED));
}

#[test]
fn qos_0_goes_past_the_log_unless_it_would_overtake() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (1, 0));
    rig.packet(Packet::Publish(Publish { retain: true, ..publish(QoS::AtMostOnce, 0) }));
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (1, 2), "it follows the retained one through the log");
    rig.outcome(1, published(true));
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (1, 3));
    rig.outcome(2, published(true));
    rig.outcome(3, published(true));
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (2, 3));
    assert!(rig.said().is_empty());
}

/// [MQTT-3.3.2-9], [MQTT-3.3.2-12]
#[test]
fn topic_aliases() {
    let aliased = |topic: Option<&str>, alias| Publish {
        topic: topic.map(|t| TopicName::new(t).unwrap()),
        alias: Some(alias),
        ..publish(QoS::AtMostOnce, 0)
    };
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(aliased(Some("one"), 64)));
    rig.packet(Packet::Publish(aliased(None, 64)));
    rig.packet(Packet::Publish(aliased(Some("two"), 64)));
    rig.packet(Packet::Publish(aliased(None, 64)));
    let topics: Vec<_> = rig.out.qos0.iter().map(|p| p.topic.as_str()).collect();
    assert_eq!(topics, ["one", "one", "two", "two"]);
    rig.packet(Packet::Publish(aliased(None, 63)));
    assert_eq!(rig.said(), [("disconnect", 0, 0x82)]);
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(aliased(Some("one"), 65)));
    assert_eq!(rig.said(), [("disconnect", 0, 0x94)]);
}

#[test]
fn subscriptions_are_answered_filter_by_filter() {
    let options =
        SubscribeOptions { qos: QoS::ExactlyOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
    let filter = |f: &str| TopicFilter::new(f).unwrap();
    let mut rig = Rig::open(Version::V5);
    let filters = vec![Ok((filter("a"), options)), Err(Reason(0x8F)), Ok((filter("b"), options))];
    rig.packet(Packet::Subscribe(Subscribe { id: id(1), identifier: Some(5), filters }));
    let [Command::Subscribe(subscribe)] = &rig.take_commands()[..] else { panic!() };
    assert_eq!((subscribe.filters.len(), subscribe.identifier), (2, Some(5)));
    rig.outcome(1, Outcome::Subscribed(vec![Ok(granted(QoS::ExactlyOnce)), Err(0x97)]));
    let [Outgoing::SubAck(_, reasons)] = &rig.take_packets()[..] else { panic!() };
    assert_eq!(reasons[..], [Reason(2), Reason(0x8F), Reason(0x97)]);
    let filters = vec![Ok(filter("a")), Err(Reason(0x8F)), Ok(filter("b"))];
    rig.packet(Packet::Unsubscribe { id: id(2), filters });
    rig.outcome(2, Outcome::Unsubscribed(vec![true, false]));
    let [Outgoing::UnsubAck(_, reasons)] = &rig.take_packets()[..] else { panic!() };
    assert_eq!(reasons[..], [Reason(0), Reason(0x8F), Reason(0x11)]);
}

#[test]
fn how_a_connection_ends_and_what_the_log_is_told() {
    // The cursor is exact, also where an earlier connection had come further.
    let mut rig = Rig::open(Version::V5);
    rig.deliver(Some(0), QoS::AtLeastOnce, message(None));
    rig.drive(|session, out| session.packet(Packet::PubAck { id: id(1), reason: Reason::SUCCESS }, NOW, out));
    rig.drive(|session, out| session.end(Ending::SocketClosed, out));
    assert_eq!(rig.take_commands().len(), 2, "the acknowledgement, then the close");
    let mut rig = Rig::open(Version::V5);
    rig.drive(|session, out| session.end(Ending::SocketClosed, out));
    let close = rig.close();
    assert_eq!((close.from, close.drop_will, close.sent_until), (me(), false, QueueSeq(0)));
    let mut rig =
        Rig::open_with(Version::V5, Connected { sent_until: QueueSeq(9), queue_tail: QueueSeq(9), ..found() });
    rig.drive(|session, out| session.end(Ending::SocketClosed, out));
    assert_eq!(rig.close().sent_until, QueueSeq(9));

    for (reason, expiry_s, drop_will) in [(0x00, Some(5), true), (0x04, None, false), (0x80, None, false)] {
        let mut rig = Rig::open(Version::V5);
        rig.packet(Packet::Disconnect { reason: Reason(reason), expiry_s });
        let close = rig.close();
        assert_eq!((close.drop_will, close.expiry_s), (drop_will, expiry_s));
        assert!(rig.said().is_empty() && rig.out.closed.is_some());
    }
    let mut rig =
        Rig::connecting(Version::V5, Connect { expiry_s: Some(0), ..hello(Version::V5) }, MqttOptions::default());
    rig.outcome(0, Outcome::Connected(Connected { durable: false, expiry_s: 0, ..found() }));
    rig.take_packets();
    rig.packet(Packet::Disconnect { reason: Reason::SUCCESS, expiry_s: Some(1) });
    assert_eq!(rig.said(), [("disconnect", 0, 0x82)]);

    // The log said it first: nothing more is proposed.
    for (ending, reason) in [
        (Ending::Kicked(KickReason::TakenOver), 0x8E),
        (Ending::Kicked(KickReason::Administrative), 0x98),
        (Ending::Fenced, 0x8E),
        (Ending::IncarnationOver { server_reference: None }, 0x89),
        (Ending::IncarnationOver { server_reference: Some("b".into()) }, 0x9C),
    ] {
        let mut rig = Rig::open(Version::V5);
        rig.deliver(Some(0), QoS::AtLeastOnce, message(None));
        rig.take_packets();
        rig.drive(|session, out| {
            session.packet(Packet::PubAck { id: id(1), reason: Reason::SUCCESS }, NOW, out);
            session.end(ending, out);
        });
        assert_eq!(rig.said(), [("disconnect", 0, reason)]);
        assert!(rig.take_commands().is_empty());
        rig.outcome(1, Outcome::Done);
        rig.packet(Packet::PingReq);
        rig.deliver(Some(1), QoS::AtLeastOnce, message(None));
        assert!(rig.said().is_empty(), "over is over");
    }
}

/// [MQTT-3.1.2-22], and [MQTT-3.1.2-24 v3.1.1]
#[test]
fn keep_alive_is_one_and_a_half_times_and_any_packet_counts() {
    let mut rig = Rig::open(Version::V5);
    let at = |ms| Now { mono_ms: NOW.mono_ms + ms, ..NOW };
    rig.session.tick(at(14_999), &mut rig.out);
    rig.session.packet(Packet::PingReq, at(14_999), &mut rig.out);
    rig.session.tick(at(29_998), &mut rig.out);
    assert!(!rig.session.is_over());
    rig.session.tick(at(29_999), &mut rig.out);
    assert_eq!(rig.said(), [("pingresp", 0, 0), ("disconnect", 0, 0x8D)]);
    let mut rig =
        Rig::connecting(Version::V5, Connect { keep_alive_s: 0, ..hello(Version::V5) }, MqttOptions::default());
    rig.outcome(0, Outcome::Connected(found()));
    assert_eq!(rig.session.deadline_ms(), None);
}

#[test]
fn a_will_travels_with_connect() {
    let will = Will {
        delay_s: 3,
        topic: TopicName::new("w").unwrap(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: None,
        expiry_s: Some(0),
        payload: Payload::default(),
    };
    let connect = Connect { will: Some(will.clone()), ..hello(Version::V5) };
    let mut rig = Rig::connecting(Version::V5, connect, MqttOptions::default());
    let [Command::Connect(connect)] = &rig.take_commands()[..] else { panic!() };
    assert_eq!(connect.will.as_ref(), Some(&will));
}

#[test]
fn filters_above_the_limit_are_refused_one_by_one() {
    let options = MqttOptions { subscribe_filters_max: 2, ..MqttOptions::default() };
    let open = |version| {
        let mut rig = Rig::connecting(version, hello(version), options.clone());
        rig.take_commands();
        rig.outcome(0, Outcome::Connected(found()));
        rig.take_packets();
        rig
    };
    let filter = |f: &str| TopicFilter::new(f).unwrap();
    let asked =
        SubscribeOptions { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
    let filters =
        || vec![Ok((filter("a"), asked)), Err(Reason(0x8F)), Ok((filter("b"), asked)), Ok((filter("c"), asked))];
    let mut rig = open(Version::V5);
    rig.packet(Packet::Subscribe(Subscribe { id: id(1), identifier: None, filters: filters() }));
    let [Command::Subscribe(subscribe)] = &rig.take_commands()[..] else { panic!() };
    assert_eq!(subscribe.filters.len(), 2);
    rig.outcome(1, Outcome::Subscribed(vec![Ok(granted(QoS::AtLeastOnce)); 2]));
    let [Outgoing::SubAck(_, reasons)] = &rig.take_packets()[..] else { panic!() };
    assert_eq!(reasons[..], [Reason(1), Reason(0x8F), Reason(1), Reason(0x97)]);

    // UNSUBACK has no such reason, and that of 3.1.1 has none at all: it would say that all are gone.
    let filters = || vec![Ok(filter("a")), Ok(filter("b")), Ok(filter("c"))];
    rig.packet(Packet::Unsubscribe { id: id(2), filters: filters() });
    let [Command::Unsubscribe { filters: taken, .. }] = &rig.take_commands()[..] else { panic!() };
    assert_eq!(taken.len(), 2);
    rig.outcome(2, Outcome::Unsubscribed(vec![true, true]));
    let [Outgoing::UnsubAck(_, reasons)] = &rig.take_packets()[..] else { panic!() };
    assert_eq!(reasons[..], [Reason(0), Reason(0), Reason(0x83)]);
    let mut rig = open(Version::V311);
    rig.packet(Packet::Unsubscribe { id: id(2), filters: filters() });
    assert!(rig.session.is_over() && rig.out.closed == Some(Reason::QUOTA_EXCEEDED));
    assert!(matches!(rig.take_commands()[..], [Command::Close(_)]));
}
