//! The bytes of every command in the log and of every kind of row, against committed fixtures.
//!
//! A difference means that an older log or database is not read any more: append a variant or raise the format
//! version instead (docs/FORMAT.md). `QUORATE_BLESS=1` writes the fixtures anew, for what is really new.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use quorate_store::access::{AclAction, AclRule, Permission, ScramVerifier, User, Who};
use quorate_store::codec;
use quorate_store::command::{Ack, AckKind, Batch, Close, Command, Connect, NodeInfo, NodeStarted, Origin, Publish};
use quorate_store::command::{
    QueueFullPolicy, SessionRef, Setting, Settle, ShareStrategy, Subscribe, SubscribeOptions, Will,
};
use quorate_store::ids::{BatchSeq, ClusterTime, Epoch, Incarnation, NodeId, Position, QoS, QueueSeq, SessionId};
use quorate_store::message::MessageProperties;
use quorate_store::rows::key::RowKind;

use testkit::Rig;
use testkit::commands::{
    connect, filter, keyed, options, packet_id, payload, publish, publish2, retain, subscribe, topic, will,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        write!(text, "{b:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"))
}

/// The fixture `name`, which must be `now`; or, when blessed, becomes it.
fn golden(name: &str, now: &str) -> String {
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path(name), now).unwrap();
    }
    let kept = std::fs::read_to_string(path(name))
        .unwrap_or_else(|e| panic!("{}: {e}; is it new? QUORATE_BLESS=1 writes it", path(name).display()));
    assert_eq!(kept, now, "the bytes of {name} have changed");
    kept
}

fn from() -> SessionRef {
    SessionRef { session: SessionId(Position::new(3, 1)), epoch: Epoch(Position::new(300, 2)) }
}

fn info() -> NodeInfo {
    NodeInfo {
        name: "a".into(),
        mqtt: "127.0.0.1:1883".into(),
        peer: "127.0.0.1:7400".into(),
        admin: "127.0.0.1:7480".into(),
    }
}

fn properties() -> MessageProperties {
    MessageProperties {
        is_utf8: Some(true),
        content_type: Some("text/plain".into()),
        response_topic: Some("answers/here".into()),
        correlation_data: Some(vec![0, 255]),
        user: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
    }
}

fn user() -> User {
    let scram = ScramVerifier { salt: vec![9; 16], iterations: 15_000, stored_key: [7; 32], server_key: [8; 32] };
    User { name: "ann".into(), password_hash: Some("$argon2id$x".into()), scram: Some(scram), is_superuser: true }
}

fn rule(who: Who) -> AclRule {
    AclRule {
        number: 300,
        permission: Permission::Deny,
        who,
        action: AclAction::Subscribe,
        filters: vec!["plant/%u/#".into(), "x".into()],
        qos_max: QoS::AtLeastOnce,
        retain: Some(true),
    }
}

/// One of each variant, every field with something in it. The match below does not compile when one is missing.
fn commands() -> Vec<Command> {
    let wanted =
        SubscribeOptions { qos: QoS::ExactlyOnce, no_local: true, retain_as_published: true, retain_handling: 2 };
    let bequest = Will {
        delay_s: 30,
        topic: topic("wills/c"),
        qos: QoS::ExactlyOnce,
        retain: true,
        properties: Some(Box::new(properties())),
        expiry_s: Some(60),
        payload: payload("gone"),
    };
    let ack = |seq, kind| Ack { seq: QueueSeq(seq), position: Position::new(1 << 30, 5), kind };
    vec![
        Command::Connect(Connect {
            client_id: "client".into(),
            clean_start: true,
            expiry_s: u32::MAX,
            receive_maximum: 65_535,
            will: Some(bequest),
            deadline: ClusterTime(1_700_000_000_000),
            user: Some("user".into()),
        }),
        Command::Close(Close { from: from(), drop_will: true, expiry_s: Some(0), sent_until: QueueSeq(70_000) }),
        Command::Publish(Publish {
            from: Some(from()),
            packet_id: Some(packet_id(65_535)),
            qos: QoS::ExactlyOnce,
            retain: true,
            topic: topic("a/b/c"),
            properties: Some(Box::new(properties())),
            expiry_s: Some(3600),
            payload: payload("payload, outside the body"),
        }),
        Command::Release { from: from(), packet_id: packet_id(1) },
        Command::Settle(Settle {
            from: from(),
            acks: vec![
                ack(0, AckKind::Puback),
                ack(250, AckKind::Pubrec),
                ack(251, AckKind::PubrecRefused),
                ack(70_000, AckKind::Pubcomp),
            ],
        }),
        Command::Subscribe(Subscribe {
            from: from(),
            identifier: Some(268_435_455),
            filters: vec![(filter("a/+/#"), wanted), (filter("b"), options(0))],
        }),
        Command::Unsubscribe { from: from(), filters: vec![filter("a/+/#"), filter("b")] },
        Command::NodeStarted(NodeStarted {
            node: NodeId(3),
            nonce: u128::MAX - 1,
            replaces: Some(Incarnation(Position::new(98, 0))),
            wall_ms: 1_700_000_000_000,
            info: info(),
        }),
        Command::NodeLost { incarnation: Incarnation(Position::new(99, 0)), term: 7 },
        Command::Tick,
        Command::AllocateNode { token: 1 << 100, info: info() },
        Command::RemoveNode { node: NodeId(300) },
        Command::Set(Setting::QueueBytesMax(1 << 40)),
        Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::Reject)),
        Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)),
        Command::Set(Setting::SessionExpiryMax(604_800)),
        Command::Set(Setting::IdempotencyKeysMax(1_000_000)),
        Command::Set(Setting::IdempotencyWindow(86_400)),
        Command::Set(Setting::DelayMax(4_294_967)),
        Command::Set(Setting::DelayedBytesMax(1 << 28)),
        Command::Set(Setting::SubscriptionsMax(65_536)),
        Command::EndSession { session: from().session },
        Command::PutUser(Box::new(user())),
        Command::DeleteUser { name: "ann".into() },
        Command::PutAclRule(Box::new(rule(Who::User("ann".into())))),
        Command::PutAclRule(Box::new(AclRule { retain: None, filters: vec![], ..rule(Who::Client("c".into())) })),
        Command::DeleteAclRule { number: 300 },
        Command::Set(Setting::AclOtherwise(Permission::Deny)),
        Command::SetShareStrategy { share: "g".into(), filter: filter("a/#"), strategy: ShareStrategy::MostRoom },
        Command::SetShareStrategy { share: "g".into(), filter: filter("a/#"), strategy: ShareStrategy::RoundRobin },
        Command::SetShareStrategy { share: "g".into(), filter: filter("a/#"), strategy: ShareStrategy::StickyTopic },
        Command::SetShareStrategy { share: "g".into(), filter: filter("a/#"), strategy: ShareStrategy::Local },
    ]
}

/// Its fixture. Adding a variant breaks this match on purpose: give it a fixture above.
fn name(command: &Command) -> &'static str {
    match command {
        Command::Connect(_) => "command_connect",
        Command::Close(_) => "command_close",
        Command::Publish(_) => "command_publish",
        Command::Release { .. } => "command_release",
        Command::Settle(_) => "command_settle",
        Command::Subscribe(_) => "command_subscribe",
        Command::Unsubscribe { .. } => "command_unsubscribe",
        Command::NodeStarted(_) => "command_node_started",
        Command::NodeLost { .. } => "command_node_lost",
        Command::Tick => "command_tick",
        Command::AllocateNode { .. } => "command_allocate_node",
        Command::RemoveNode { .. } => "command_remove_node",
        Command::Set(Setting::QueueBytesMax(_)) => "command_set_queue_bytes_max",
        Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::Reject)) => "command_set_policy_reject",
        Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)) => "command_set_policy_drop_oldest",
        Command::Set(Setting::SessionExpiryMax(_)) => "command_set_session_expiry_max",
        Command::Set(Setting::IdempotencyKeysMax(_)) => "command_set_idempotency_keys_max",
        Command::Set(Setting::IdempotencyWindow(_)) => "command_set_idempotency_window",
        Command::Set(Setting::DelayMax(_)) => "command_set_delay_max",
        Command::Set(Setting::DelayedBytesMax(_)) => "command_set_delayed_bytes_max",
        Command::Set(Setting::SubscriptionsMax(_)) => "command_set_subscriptions_max",
        Command::EndSession { .. } => "command_end_session",
        Command::PutUser(_) => "command_put_user",
        Command::DeleteUser { .. } => "command_delete_user",
        Command::PutAclRule(rule) if rule.filters.is_empty() => "command_put_acl_rule_for_all_topics",
        Command::PutAclRule(_) => "command_put_acl_rule",
        Command::DeleteAclRule { .. } => "command_delete_acl_rule",
        Command::Set(Setting::AclOtherwise(_)) => "command_set_acl_otherwise",
        Command::SetShareStrategy { strategy, .. } => match strategy {
            ShareStrategy::MostRoom => "command_share_most_room",
            ShareStrategy::RoundRobin => "command_share_round_robin",
            ShareStrategy::StickyTopic => "command_share_sticky_topic",
            ShareStrategy::Local => "command_share_local",
        },
    }
}

#[test]
fn commands_are_encoded_as_they_always_were() {
    for command in commands() {
        let name = name(&command);
        let batch = Batch { origin: Origin::Direct { nonce: 5 }, commands: vec![command] };
        let kept = golden(name, &format!("{}\n", hex(&codec::encode(&batch).unwrap())));
        let decoded: Batch = codec::decode(&Bytes::from(unhex(&kept))).unwrap();
        assert_eq!(decoded, batch, "{name} is read as it was written");
    }
}

#[test]
fn a_batch_of_a_stream_is_encoded_as_it_always_was() {
    let origin =
        Origin::Stream { node: NodeId(2), incarnation: Incarnation(Position::new(17, 0)), seq: BatchSeq(1 << 33) };
    // Several payloads: they stand behind the body, in its order.
    let commands = vec![
        Command::Publish(publish(from(), 1, "t", "first")),
        Command::Connect(Connect { will: Some(will("w", "second", 0)), ..connect("c") }),
        Command::Publish(publish(None, 0, "t", "")),
        Command::Publish(publish2(from(), 2, "t", "third")),
    ];
    let batch = Batch { origin, commands };
    let kept = golden("batch_stream", &format!("{}\n", hex(&codec::encode(&batch).unwrap())));
    let decoded: Batch = codec::decode(&Bytes::from(unhex(&kept))).unwrap();
    assert_eq!(decoded, batch);
    let Command::Publish(last) = &decoded.commands[3] else { panic!("{decoded:?}") };
    assert_eq!(last.payload.to_vec(), b"third");
}

#[test]
fn a_fixture_that_is_damaged_in_one_place_is_refused_or_read_as_something_else() {
    for command in commands() {
        let batch = Batch { origin: Origin::Direct { nonce: 5 }, commands: vec![command] };
        let whole = codec::encode(&batch).unwrap();
        for cut in 0..whole.len() {
            assert!(codec::decode::<Batch>(&whole.slice(..cut)).is_err(), "cut at {cut}");
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert!(codec::decode::<Batch>(&Bytes::from(longer)).is_err());
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.to_vec();
                flipped[at] ^= 1 << bit;
                // No panic, whatever it is; never the same.
                if let Ok(other) = codec::decode::<Batch>(&Bytes::from(flipped)) {
                    assert_ne!(other, batch, "bit {bit} of byte {at}");
                }
            }
        }
    }
}

#[test]
fn bytes_that_belong_to_no_payload_are_refused() {
    let command = Command::Publish(publish(None, 1, "t", "payload"));
    let whole = codec::encode(&Batch { origin: Origin::Direct { nonce: 5 }, commands: vec![command] }).unwrap();
    let mut longer = whole.to_vec();
    longer.push(b'!');
    // The length of the payload area, little endian.
    longer[6] += 1;
    assert!(codec::decode::<Batch>(&Bytes::from(longer)).is_err());
}

/// A history that leaves rows of every kind behind.
fn history() -> Rig {
    let mut rig = Rig::with_nodes(2);
    rig.direct(Command::Set(Setting::QueueBytesMax(1 << 20)));
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)));
    // In one entry, so that they moved no position of what was here before them.
    let commands = vec![
        Command::Set(Setting::SessionExpiryMax(100_000)),
        Command::PutUser(Box::new(user())),
        Command::PutAclRule(Box::new(rule(Who::Anonymous))),
    ];
    rig.append(Batch { origin: Origin::Direct { nonce: 0 }, commands });
    let s = rig.subscriber(1, "s", 2, "t/#");
    let bequest = Will { properties: Some(Box::new(properties())), ..will("w", "gone", 100) };
    let waiting = rig.connect(1, Connect { will: Some(bequest), ..connect("waiting") }).session;
    rig.batch(1, vec![Command::Close(testkit::commands::close(waiting, 0))]);
    let last_words = Some(will("w", "not yet", 0));
    let o = rig.connect(2, Connect { will: last_words, user: Some("user".into()), ..connect("o") }).session;
    let identified = Subscribe { from: o, identifier: Some(300), filters: vec![(filter("t/+"), options(1))] };
    rig.one(2, Command::Subscribe(identified));
    rig.one(2, Command::Publish(publish2(o, 77, "t/x", "shared by two")));
    rig.one(2, Command::Publish(Publish { expiry_s: Some(60), retain: true, ..publish(o, 1, "t/x/y", "for one") }));
    rig.settle(1, s, AckKind::Pubrec, &[0]);
    let doomed = rig.subscriber(2, "doomed", 1, "d");
    let flood = (0..300).map(|n| Command::Publish(publish(None, 1, "d", &n.to_string())));
    rig.batch(2, flood.collect());
    let values = (0..1000).map(|n| Command::Publish(retain(None, &format!("r/{n:04}"), "v")));
    rig.batch(2, values.collect());
    // In one entry: a cursor that does not come to its end, a mark of it, and a session that is swept.
    let last = vec![
        subscribe(o, 1, "r/+"),
        Command::Publish(publish(None, 1, "r/0900", "live")),
        Command::Close(Close { expiry_s: Some(0), ..testkit::commands::close(doomed, 0) }),
        Command::Publish(keyed("key", publish(o, 1, "nobody", "once"))),
        Command::Publish(keyed("key", publish(None, 1, "nobody", "of another"))),
        Command::Publish(Publish { expiry_s: Some(60), retain: true, ..publish(o, 2, "$delayed/3600/t/x", "later") }),
    ];
    rig.batch_undrained(2, last);
    rig.machine
        .note(
            quorate_store::machine::EntryContext { index: rig.next_index(), term: 2, stamp: ClusterTime(0) },
            Some(b"membership"),
        )
        .unwrap();
    rig.machine.commit_run().unwrap();
    rig
}

/// A history of shared and exclusive subscriptions.
fn history_of_shares() -> Rig {
    let mut rig = Rig::with_nodes(2);
    let sticky = ShareStrategy::StickyTopic;
    rig.direct(Command::SetShareStrategy { share: "g".into(), filter: filter("t"), strategy: sticky });
    let member = rig.connect(1, Connect { receive_maximum: 2, ..connect("member") }).session;
    rig.one(1, subscribe(member, 2, "$share/g/t"));
    rig.one(1, subscribe(member, 1, "$exclusive/e/+"));
    rig.one(1, subscribe(member, 1, "u"));
    // The second of its groups to be served.
    rig.one(1, subscribe(member, 1, "$share/h/u"));
    let publishes = ["t", "u", "u", "t"].map(|to| Command::Publish(retain(None, to, "m")));
    rig.batch(2, publishes.to_vec());
    let expiring = Publish { expiry_s: Some(60), ..publish(None, 2, "t", "expires") };
    rig.batch(2, vec![Command::Publish(expiring)]);
    let s = rig.queue(member.session).first().unwrap().seq.0;
    rig.settle(1, member, AckKind::Puback, &[s]);
    // In one entry: a group ends in which so many wait that they are swept by and by.
    let doomed = rig.connect(1, connect("doomed")).session;
    rig.one(1, subscribe(doomed, 1, "$share/d/d"));
    rig.batch(1, vec![Command::Close(testkit::commands::close(doomed, 0))]);
    let flood = (0..300).map(|n| Command::Publish(publish(None, 1, "d", &n.to_string())));
    rig.batch(2, flood.collect());
    rig.batch_undrained(2, vec![Command::EndSession { session: doomed.session }]);
    rig
}

#[test]
fn rows_of_shares_are_encoded_as_they_always_were() {
    let rig = history_of_shares();
    let kinds = [
        (RowKind::Counters, 3, "counters"),
        (RowKind::Queue, 5, "queue"),
        (RowKind::Continuation, 14, "continuation"),
        (RowKind::Share, 16, "share"),
        (RowKind::ShareQueue, 17, "queue_of_share"),
        (RowKind::Exclusive, 21, "exclusive"),
        (RowKind::ShareStrategy, 24, "strategy"),
    ];
    for (kind, ordinal, name) in kinds {
        assert_eq!(kind as usize, ordinal, "ordinals are on disk");
        let of_kind = rig.machine.store().iter().filter(|(key, _)| key[2] == kind as u8);
        let lines: Vec<String> = of_kind.take(4).map(|(key, value)| format!("{} {}\n", hex(key), hex(value))).collect();
        assert!(!lines.is_empty(), "the history leaves no row of kind {name}");
        golden(&format!("row_share_{name}"), &lines.concat());
    }
    testkit::replica::reopened(&rig.machine);
}

#[test]
fn rows_are_encoded_as_they_always_were() {
    let rig = history();
    let kinds = [
        (RowKind::Meta, "meta"),
        (RowKind::Session, "session"),
        (RowKind::Counters, "counters"),
        (RowKind::Subscription, "subscription"),
        (RowKind::Queue, "queue"),
        (RowKind::Message, "message"),
        (RowKind::References, "references"),
        (RowKind::Inbound, "inbound"),
        (RowKind::Retained, "retained"),
        (RowKind::Will, "will"),
        (RowKind::Node, "node"),
        (RowKind::Dedup, "dedup"),
        (RowKind::Setting, "setting"),
        (RowKind::Continuation, "continuation"),
        (RowKind::ContinuationMark, "continuation_mark"),
        (RowKind::Idempotency, "idempotency"),
        (RowKind::IdempotencyOrder, "idempotency_order"),
        (RowKind::Delayed, "delayed"),
        (RowKind::User, "user"),
        (RowKind::AclRule, "acl_rule"),
    ];
    let ordinals: Vec<u8> = kinds.iter().map(|(kind, _)| *kind as u8).collect();
    assert_eq!(ordinals, (1..=15).chain(18..=20).chain([22, 23]).collect::<Vec<u8>>(), "ordinals are on disk");
    for (kind, name) in kinds {
        let of_kind = rig.machine.store().iter().filter(|(key, _)| key[2] == kind as u8);
        let lines: Vec<String> = of_kind.take(4).map(|(key, value)| format!("{} {}\n", hex(key), hex(value))).collect();
        assert!(!lines.is_empty(), "the history leaves no row of kind {name}");
        golden(&format!("row_{name}"), &lines.concat());
    }
    let known = |key: &[u8]| kinds.iter().any(|(kind, _)| key[2] == *kind as u8);
    assert!(rig.machine.store().iter().all(|(key, _)| known(key)), "a row of a kind that is not listed here");
}

/// A database of today's fixtures opens; so will it with tomorrow's code.
#[test]
fn rows_of_the_history_are_read_as_they_were_written() {
    let rig = history();
    testkit::replica::reopened(&rig.machine);
}
