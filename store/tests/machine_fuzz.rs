//! Entries that no honest node would propose.
//!
//! Whatever can be decoded can be applied: an entry that stopped one replica would stop all of them, for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use proptest::prelude::*;
use quorate_store::access::{AclAction, AclRule, Permission, User, Who};
use quorate_store::command::{Ack, AckKind, Batch, Close, Command, Connect, NodeInfo, NodeStarted, Origin, Publish};
use quorate_store::command::{
    QueueFullPolicy, SessionRef, Setting, Settle, ShareStrategy, Subscribe, SubscribeOptions, Will,
};
use quorate_store::effect::Outcome;
use quorate_store::ids::{
    BatchSeq, ClusterTime, Epoch, Incarnation, NodeId, PacketId, Position, QoS, QueueSeq, SessionId,
};
use quorate_store::machine::EntryContext;
use quorate_store::message::MessageProperties;
use quorate_store::topic::{TopicFilter, TopicName};

use testkit::commands::{filter, payload, topic};
use testkit::replica::{Then, Wanting, replay};
use testkit::{Rig, cases};

/// Small ones are the entries of the test itself; the others are beyond all there is.
fn position() -> impl Strategy<Value = Position> {
    prop_oneof![
        8 => (4..30_u64, 0..3_u32).prop_map(|(index, number)| Position::new(index, number)),
        1 => any::<u64>().prop_map(Position::from_u64),
    ]
}

/// One of the two nodes' first incarnations, or anything.
fn incarnation() -> impl Strategy<Value = Incarnation> {
    prop_oneof![
        3 => Just(Incarnation(Position::new(1, 0))),
        3 => Just(Incarnation(Position::new(3, 0))),
        1 => position().prop_map(Incarnation),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..6_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn seconds() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..4_u32, 1 => any::<u32>(), 1 => Just(u32::MAX)]
}

fn from() -> impl Strategy<Value = SessionRef> {
    let same = position().prop_map(|p| SessionRef { session: SessionId(p), epoch: Epoch(p) });
    let other = (position(), position())
        .prop_map(|(session, epoch)| SessionRef { session: SessionId(session), epoch: Epoch(epoch) });
    prop_oneof![4 => same, 1 => other]
}

fn qos() -> impl Strategy<Value = QoS> {
    (0..3_u8).prop_map(|q| QoS::from_u8(q).unwrap())
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..4_u16).prop_map(|id| PacketId::new(id).unwrap())
}

fn any_topic() -> impl Strategy<Value = TopicName> {
    let delayed = ["$delayed/2/a", "$delayed/0/a/b", "$delayed/4294967295/a", "$delayed/x/a", "$delayed/1/"];
    let others = prop_oneof![Just("a"), Just("a/b"), Just("/"), Just("$a"), Just("a//b")];
    prop_oneof![4 => others, 1 => prop::sample::select(delayed.to_vec())].prop_map(topic)
}

fn any_filter() -> impl Strategy<Value = TopicFilter> {
    let texts = [
        "a",
        "a/b",
        "#",
        "+",
        "+/#",
        "a/#",
        "/",
        "$a",
        "$share/g/a",
        "$share/g/#",
        "$share/h/a",
        "$share",
        "$share/",
        "$share/g",
        "$share/+/a",
        "$exclusive/a",
        "$exclusive/#",
        "$exclusive/",
        "+/+/b",
    ];
    prop::sample::select(texts.to_vec()).prop_map(filter)
}

fn will() -> impl Strategy<Value = Will> {
    (seconds(), any_topic(), qos(), any::<bool>(), prop::option::of(seconds())).prop_map(
        |(delay_s, topic, qos, retain, expiry_s)| Will {
            delay_s,
            topic,
            qos,
            retain,
            properties: None,
            expiry_s,
            payload: payload("w"),
        },
    )
}

fn connect() -> impl Strategy<Value = Command> {
    let client = prop_oneof![Just("c"), Just("d"), Just("")];
    (client, any::<bool>(), seconds(), any::<u16>(), prop::option::of(will()), number()).prop_map(
        |(client, clean_start, expiry_s, receive_maximum, will, deadline)| {
            Command::Connect(Connect {
                client_id: client.to_owned(),
                clean_start,
                expiry_s,
                receive_maximum,
                will,
                user: (receive_maximum % 2 == 0).then(|| client.to_owned()),
                deadline: ClusterTime(if deadline < 6 { u64::MAX } else { deadline }),
            })
        },
    )
}

/// Idempotency keys: few, empty, too long, and two at once.
fn properties() -> impl Strategy<Value = Option<Box<MessageProperties>>> {
    let key = prop_oneof![4 => Just("k".to_owned()), 2 => Just("l".to_owned()), 1 => Just(String::new()), 1 => Just("x".repeat(257))];
    let keys = prop_oneof![4 => Just(0), 4 => Just(1_usize), 1 => Just(2)]
        .prop_flat_map(move |count| prop::collection::vec(key.clone(), count));
    keys.prop_map(|keys| {
        let user: Vec<_> = keys.into_iter().map(|key| ("idempotency-key".to_owned(), key)).collect();
        (!user.is_empty()).then(|| Box::new(MessageProperties { user, ..Default::default() }))
    })
}

fn publish() -> impl Strategy<Value = Command> {
    let id = prop::option::of(packet_id());
    let expiry_s = prop::option::of(seconds());
    (prop::option::of(from()), id, qos(), any::<bool>(), any_topic(), expiry_s, 0..3_usize, properties()).prop_map(
        |(from, packet_id, qos, retain, topic, expiry_s, len, properties)| {
            Command::Publish(Publish {
                from,
                packet_id,
                qos,
                retain,
                topic,
                properties,
                expiry_s,
                payload: payload(&"xyz"[..len]),
            })
        },
    )
}

fn settle() -> impl Strategy<Value = Command> {
    let kind =
        prop_oneof![Just(AckKind::Puback), Just(AckKind::Pubrec), Just(AckKind::PubrecRefused), Just(AckKind::Pubcomp)];
    let ack = (number(), position(), kind).prop_map(|(seq, position, kind)| Ack { seq: QueueSeq(seq), position, kind });
    (from(), prop::collection::vec(ack, 0..6)).prop_map(|(from, acks)| Command::Settle(Settle { from, acks }))
}

fn subscribe() -> impl Strategy<Value = Command> {
    let options = (qos(), any::<bool>(), any::<bool>(), any::<u8>()).prop_map(
        |(qos, no_local, retain_as_published, retain_handling)| SubscribeOptions {
            qos,
            no_local,
            retain_as_published,
            retain_handling,
        },
    );
    let filters = prop::collection::vec((any_filter(), options), 0..4);
    (from(), prop::option::of(any::<u32>()), filters)
        .prop_map(|(from, identifier, filters)| Command::Subscribe(Subscribe { from, identifier, filters }))
}

fn setting() -> impl Strategy<Value = Setting> {
    prop_oneof![
        prop_oneof![Just(0), 50..1000_u64, Just(u64::MAX)].prop_map(Setting::QueueBytesMax),
        Just(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)),
        Just(Setting::QueueFullPolicy(QueueFullPolicy::Reject)),
        seconds().prop_map(Setting::SessionExpiryMax),
        seconds().prop_map(Setting::DelayMax),
        prop_oneof![Just(0), 50..1000_u64, Just(u64::MAX)].prop_map(Setting::DelayedBytesMax),
        number().prop_map(Setting::IdempotencyKeysMax),
        seconds().prop_map(Setting::IdempotencyWindow),
        prop_oneof![Just(Permission::Allow), Just(Permission::Deny)].prop_map(Setting::AclOtherwise),
    ]
}

/// Names and filters that no front end would take, among others.
fn access() -> impl Strategy<Value = Command> {
    let name = || prop_oneof![2 => Just("ann".to_owned()), 1 => ".{0,3}", 1 => Just("x".repeat(300))];
    let user = (name(), prop::option::of(".{0,4}"), any::<bool>()).prop_map(|(name, password_hash, is_superuser)| {
        Command::PutUser(Box::new(User { name, password_hash, scram: None, is_superuser }))
    });
    let filters = prop::collection::vec(prop_oneof![Just("a/%u".to_owned()), "[a/+#%\\x00]{0,4}"], 0..70);
    let who =
        prop_oneof![Just(Who::All), Just(Who::Anonymous), name().prop_map(Who::User), name().prop_map(Who::Client)];
    let rule = (0..4_u32, filters, who, qos()).prop_map(|(number, filters, who, qos_max)| {
        let (permission, action) = (Permission::Deny, AclAction::All);
        Command::PutAclRule(Box::new(AclRule { number, permission, who, action, filters, qos_max, retain: None }))
    });
    prop_oneof![
        2 => user,
        1 => name().prop_map(|name| Command::DeleteUser { name }),
        2 => rule,
        1 => (0..4_u32).prop_map(|number| Command::DeleteAclRule { number }),
    ]
}

fn strategy() -> impl Strategy<Value = Command> {
    let strategy = prop_oneof![
        Just(ShareStrategy::MostRoom),
        Just(ShareStrategy::RoundRobin),
        Just(ShareStrategy::StickyTopic),
        Just(ShareStrategy::Local)
    ];
    (prop_oneof![3 => Just("g"), 1 => Just(""), 1 => Just("+")], any_filter(), strategy)
        .prop_map(|(share, filter, strategy)| Command::SetShareStrategy { share: share.to_owned(), filter, strategy })
}

fn command() -> impl Strategy<Value = Command> {
    let close = (from(), any::<bool>(), prop::option::of(seconds()), number()).prop_map(
        |(from, drop_will, expiry_s, until)| {
            Command::Close(Close { from, drop_will, expiry_s, sent_until: QueueSeq(until) })
        },
    );
    let started = (0..6_u64, number(), prop::option::of(incarnation())).prop_map(|(node, nonce, replaces)| {
        let (node, nonce) = (NodeId(node), u128::from(nonce));
        Command::NodeStarted(NodeStarted { node, nonce, replaces, wall_ms: u64::MAX, info: NodeInfo::default() })
    });
    let filters = prop::collection::vec(any_filter(), 0..3);
    prop_oneof![
        6 => connect(),
        2 => close,
        8 => publish(),
        2 => (from(), packet_id()).prop_map(|(from, packet_id)| Command::Release { from, packet_id }),
        4 => settle(),
        4 => subscribe(),
        1 => (from(), filters).prop_map(|(from, filters)| Command::Unsubscribe { from, filters }),
        1 => started,
        1 => (incarnation(), 0..3_u64).prop_map(|(incarnation, term)| Command::NodeLost { incarnation, term }),
        1 => Just(Command::Tick),
        1 => number().prop_map(|n| Command::AllocateNode { token: n.into(), info: NodeInfo::default() }),
        1 => number().prop_map(|n| Command::RemoveNode { node: NodeId(n) }),
        1 => setting().prop_map(Command::Set),
        1 => access(),
        1 => position().prop_map(|p| Command::EndSession { session: SessionId(p) }),
        1 => strategy(),
    ]
}

/// A batch: of a node's stream, where it is the next or a repeat, or direct; its commands; how much later it is.
type Proposed = (Option<(u64, bool)>, Vec<Command>, u64);

/// Batches, where most of a stream are the next; and stamps that jump.
fn history() -> impl Strategy<Value = Vec<Proposed>> {
    let origin = prop_oneof![
        6 => (1..3_u64).prop_map(|node| Some((node, true))),
        1 => (1..4_u64).prop_map(|node| Some((node, false))),
        2 => Just(None),
    ];
    let stamp = prop_oneof![8 => 0..3000_u64, 1 => Just(10_000_000)];
    prop::collection::vec((origin, prop::collection::vec(command(), 0..8), stamp), 1..40)
}

/// A log of such entries.
fn log(history: Vec<Proposed>) -> Rig {
    let mut rig = Rig::with_nodes(2);
    let first = [Incarnation(Position::new(2, 0)), Incarnation(Position::new(4, 0))];
    let mut seqs = [0_u64; 2];
    for (nonce, (origin, commands, stamp)) in history.into_iter().enumerate() {
        let origin = match origin {
            None => Origin::Direct { nonce: nonce as u128 },
            Some((node, is_next)) => {
                let n = (node as usize - 1) % 2;
                if is_next {
                    seqs[n] += 1;
                }
                Origin::Stream { node: NodeId(node), incarnation: first[n], seq: BatchSeq(seqs[n]) }
            }
        };
        rig.now = rig.now.max(1_000_000) + stamp;
        rig.append(Batch { origin, commands });
    }
    rig.drain();
    rig
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn whatever_is_decoded_is_applied_and_the_same_on_every_replica(history in history()) {
        let rig = log(history);
        let (rows, _) = replay(&rig.log, &[Then::GoOn, Then::Flush, Then::GoOn, Then::GoOn, Then::Crash, Then::Reopen]);
        prop_assert!(rows == *rig.machine.store());
    }
}

/// Ids are allocated by the log: what it has not given out does not start, and a wrong one does not use up the
/// rest.
#[test]
fn a_node_whose_id_was_never_allocated_does_not_start() {
    let mut rig = Rig::with_nodes(2);
    for id in [u64::MAX, 1 << 40, 4] {
        let started = rig.node_started(id, 9);
        assert_eq!(rig.direct(Command::NodeStarted(started)).outcome(), Outcome::Void, "{id}");
    }
    rig.allocate(3);
}

/// The first node of all bootstraps itself.
#[test]
fn the_first_node_starts_without_an_allocation() {
    let mut rig = Rig::new();
    rig.start(1);
    rig.publisher(1, "p");
    rig.allocate(2);
}

/// A SUBSCRIBE may name one filter many times, and each time the retained messages come. One entry has a
/// million positions for them.
#[test]
fn a_subscribe_that_asks_for_a_million_retained_messages_stops_nobody() {
    let mut rig = Rig::with_nodes(1);
    let values = (0..200).map(|n| Command::Publish(testkit::commands::retain(None, &format!("r/{n:03}"), "v")));
    let batch = rig.next_batch(1, values.collect());
    rig.append(batch);
    let s = rig.connect(1, testkit::commands::transient("s")).session;
    let filters = vec![(filter("#"), testkit::commands::options(0)); 9_000];
    let batch = rig.next_batch(1, vec![Command::Subscribe(Subscribe { from: s, identifier: None, filters })]);
    let context = EntryContext { index: rig.next_index(), term: 1, stamp: ClusterTime(rig.now) };
    let applied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut effects = Wanting::new(None);
        rig.machine.apply(context, &batch, &mut effects).is_ok()
    }));
    assert!(matches!(applied, Ok(true)), "36 kB from one client stop every replica, and again after a restart");
}
