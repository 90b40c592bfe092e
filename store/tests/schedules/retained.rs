//! Retained messages: a linearizable register per topic, read at the SUBSCRIBE's position (guarantee 7).

use std::collections::BTreeMap;

use quorate_store::command::{Close, Command, Publish, SessionRef, Subscribe, SubscribeOptions};
use quorate_store::effect::{Delivery, Outcome};
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{close, connect, filter, options, publish, retain, subscribe, transient, unsubscribe};
use crate::testkit::{Happened, Rig, text};

/// More topics than one entry looks at.
const MANY: usize = 1000;

fn many_topics() -> Rig {
    let mut rig = Rig::with_nodes(3);
    for chunk in (0..MANY).collect::<Vec<_>>().chunks(100) {
        let commands = chunk.iter().map(|n| Command::Publish(retain(None, &format!("r/{n:04}"), "old")));
        let batch = rig.next_batch(3, commands.collect());
        rig.append(batch);
    }
    rig
}

/// What a new session on `node` is shown of `topic`.
fn read(rig: &mut Rig, node: u64, topic: &str) -> Option<String> {
    let reader = rig.connect(node, transient("reader")).session;
    let sent = rig.batch(node, vec![subscribe(reader, 2, topic)]).to(reader.session);
    assert!(sent.len() <= 1 && sent.iter().all(|d| d.retain), "{sent:?}");
    sent.first().map(|d| text(&d.message.payload))
}

#[test]
fn retained_is_a_register() {
    let mut rig = Rig::with_nodes(3);
    assert_eq!(read(&mut rig, 1, "t"), None);
    for (node, value) in [(1, "a"), (2, "b"), (3, "c"), (1, ""), (2, "d")] {
        rig.publish(node, retain(None, "t", value));
        for reader in 1..=3 {
            let want = (!value.is_empty()).then(|| value.to_owned());
            assert_eq!(read(&mut rig, reader, "t"), want, "from node {reader}");
        }
        rig.reopen();
    }
    // What is not retained changes nothing; QoS 0 with RETAIN does [MQTT-3.3.1-5].
    rig.publish(1, publish(None, 2, "t", "live"));
    assert_eq!(read(&mut rig, 1, "t").as_deref(), Some("d"));
    rig.publish(1, Publish { retain: true, ..publish(None, 0, "t", "q0") });
    assert_eq!(read(&mut rig, 1, "t").as_deref(), Some("q0"));
    rig.publish(1, Publish { retain: true, ..publish(None, 0, "t", "") });
    assert_eq!(read(&mut rig, 1, "t"), None);
    assert_eq!(rig.count(RowKind::Retained), 0);
}

#[test]
fn a_retained_value_that_has_expired_is_not_shown() {
    let mut rig = Rig::with_nodes(1);
    rig.publish(1, Publish { expiry_s: Some(2), ..retain(None, "t", "v") });
    rig.pass_ms(1_999);
    assert_eq!(read(&mut rig, 1, "t").as_deref(), Some("v"));
    rig.pass_ms(1);
    assert_eq!(read(&mut rig, 1, "t"), None);
    assert_eq!(read(&mut rig, 1, "#"), None);
}

/// A publisher that puts an expiry on retained messages of ever new topics must not fill the disk.
#[test]
fn a_retained_value_that_has_expired_takes_no_room() {
    let mut rig = Rig::with_nodes(1);
    for n in 0..300 {
        rig.publish(1, Publish { expiry_s: Some(1), ..retain(None, &format!("once/{n}"), "v") });
    }
    rig.pass_ms(10_000);
    for _ in 0..10 {
        rig.pass_ms(1_000);
    }
    assert_eq!(rig.count(RowKind::Retained), 0);
}

#[test]
fn retain_handling_and_retain_as_published() {
    let mut rig = Rig::with_nodes(1);
    rig.publish(1, retain(None, "t", "v"));
    let s = rig.connect(1, connect("s")).session;
    let ask = |retain_handling, retain_as_published| {
        let options = SubscribeOptions { retain_handling, retain_as_published, ..options(1) };
        Command::Subscribe(Subscribe { from: s, identifier: Some(7), filters: vec![(filter("t"), options)] })
    };
    for (handling, want) in [(2, 0), (1, 0), (0, 1), (1, 0)] {
        assert_eq!(rig.batch(1, vec![ask(handling, false)]).to(s.session).len(), want, "retain handling {handling}");
    }
    rig.one(1, unsubscribe(s, "t"));
    let sent = rig.batch(1, vec![ask(1, true)]).to(s.session);
    assert_eq!(sent.len(), 1, "1: the subscription is new");
    assert_eq!(sent[0].identifiers.to_vec(), [7]);
    assert!(rig.publish(1, retain(None, "t", "live")).to(s.session)[0].retain, "as published");
    rig.one(1, ask(2, false));
    assert!(!rig.publish(1, retain(None, "t", "live")).to(s.session)[0].retain, "a live message");
}

/// Sent to a session, by topic: payload and RETAIN, in order.
fn by_topic(sent: &[Delivery]) -> BTreeMap<String, Vec<(String, bool)>> {
    let mut topics: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
    for d in sent {
        topics.entry(d.message.topic.to_string()).or_default().push((text(&d.message.payload), d.retain));
    }
    topics
}

/// Subscribes to `r/+` without letting the cursor get to its end.
fn subscribe_to_many(rig: &mut Rig, node: u64, s: SessionRef) -> Happened {
    let happened = rig.batch_undrained(node, vec![subscribe(s, 1, "r/+")]);
    assert!(rig.machine.has_continuations(), "{MANY} topics are too many for one entry");
    happened
}

#[test]
fn a_retained_value_newer_than_the_subscribe_is_skipped() {
    for durable in [true, false] {
        let mut rig = many_topics();
        let s = rig.connect(1, if durable { connect("s") } else { transient("s") }).session;
        let mut happened = subscribe_to_many(&mut rig, 1, s);
        // In reach of the cursor and beyond: replaced, cleared, live only, and a topic that is new.
        let commands = vec![
            Command::Publish(retain(None, "r/0001", "new")),
            Command::Publish(retain(None, "r/0900", "new")),
            Command::Publish(retain(None, "r/0901", "")),
            Command::Publish(publish(None, 1, "r/0902", "live")),
            Command::Publish(retain(None, "r/9999", "new")),
            Command::Publish(retain(None, "r/0900", "newer")),
        ];
        happened.0.extend(rig.batch_undrained(2, commands).0);
        rig.reopen();
        happened.0.extend(rig.drain().0);
        let topics = by_topic(&happened.to(s.session));
        assert_eq!(topics.len(), MANY + 1);
        let old = ("old".to_owned(), true);
        let live = |text: &str| (text.to_owned(), false);
        for (topic, got) in topics {
            let want = match topic.as_str() {
                "r/0001" => vec![old.clone(), live("new")],
                "r/0900" => vec![old.clone(), live("new"), live("newer")],
                "r/0901" => vec![old.clone(), live("")],
                "r/0902" => vec![old.clone(), live("live")],
                "r/9999" => vec![live("new")],
                _ => vec![old.clone()],
            };
            assert_eq!(got, want, "{topic}");
        }
        assert_eq!(rig.count(RowKind::Continuation) + rig.count(RowKind::ContinuationMark), 0);
    }
}

#[test]
fn a_subscribe_and_a_publish_in_one_batch_are_in_its_order() {
    let mut rig = many_topics();
    let s = rig.connect(1, connect("s")).session;
    let commands = vec![
        Command::Publish(retain(None, "r/0950", "before")),
        subscribe(s, 1, "r/+"),
        Command::Publish(retain(None, "r/0951", "after")),
        Command::Publish(retain(None, "r/0950", "after")),
    ];
    let sent = rig.batch(1, commands).to(s.session);
    let topics = by_topic(&sent);
    assert_eq!(topics["r/0950"], [("before".to_owned(), true), ("after".to_owned(), false)]);
    assert_eq!(topics["r/0951"], [("old".to_owned(), true), ("after".to_owned(), false)]);
    assert_eq!(topics.len(), MANY);
}

#[test]
fn the_cursor_of_a_durable_session_survives_its_node_and_its_connection() {
    for how in ["node lost", "taken over", "closed", "replica restarted"] {
        let mut rig = many_topics();
        let s = rig.connect(1, connect("s")).session;
        subscribe_to_many(&mut rig, 1, s);
        match how {
            "node lost" => {
                let (incarnation, term) = (rig.incarnation(1), rig.term);
                rig.direct(Command::NodeLost { incarnation, term });
            }
            "closed" => {
                rig.batch_undrained(1, vec![Command::Close(close(s, 0))]);
            }
            "taken over" => {
                rig.batch_undrained(2, vec![Command::Connect(connect("s"))]);
            }
            _ => rig.reopen(),
        }
        rig.drain();
        let again = rig.connect(2, connect("s"));
        assert!(again.present);
        let mut topics: BTreeMap<String, usize> = BTreeMap::new();
        for row in rig.queue(s.session) {
            *topics.entry(row.message.topic.to_string()).or_default() += 1;
        }
        assert_eq!(topics.len(), MANY, "{how}: SUBACK was sent, so each retained message is owed");
        assert!(topics.values().all(|times| *times == 1), "{how}");
    }
}

#[test]
fn the_cursor_of_a_session_that_ends_ends_with_it() {
    let mut rig = many_topics();
    let s = rig.connect(1, connect("s")).session;
    subscribe_to_many(&mut rig, 1, s);
    rig.batch_undrained(2, vec![Command::Publish(retain(None, "r/0900", "new"))]);
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(0), ..close(s, 0) })]);
    for kind in [RowKind::Continuation, RowKind::ContinuationMark, RowKind::Queue, RowKind::Message] {
        assert_eq!(rig.count(kind), 0, "{kind:?}");
    }
}

#[test]
fn an_unsubscribe_ends_the_cursor_and_leaves_nothing_behind() {
    let mut rig = many_topics();
    let s = rig.connect(1, connect("s")).session;
    subscribe_to_many(&mut rig, 1, s);
    rig.batch_undrained(2, vec![Command::Publish(retain(None, "r/0900", "new"))]);
    let before = rig.queue(s.session).len();
    assert_eq!(rig.one(1, unsubscribe(s, "r/+")), Outcome::Unsubscribed(vec![true]));
    rig.drain();
    assert_eq!(rig.queue(s.session).len(), before, "UNSUBACK, then nothing");
    assert_eq!(rig.count(RowKind::Continuation), 0);
    assert_eq!(rig.count(RowKind::ContinuationMark), 0, "marks of the cursor");
}

/// No Local keeps a client's own messages from it, not the value that stood there when it subscribed.
#[test]
fn an_own_publish_does_not_hide_the_value_that_was_subscribed_to() {
    let mut rig = many_topics();
    let s = rig.connect(1, connect("s")).session;
    let no_local = SubscribeOptions { no_local: true, ..options(1) };
    let filters = vec![(filter("r/+"), no_local)];
    let ask = Command::Subscribe(Subscribe { from: s, identifier: None, filters });
    let mut happened = rig.batch_undrained(1, vec![ask]);
    assert!(rig.machine.has_continuations());
    happened.0.extend(rig.batch_undrained(1, vec![Command::Publish(retain(s, "r/0900", "mine"))]).0);
    happened.0.extend(rig.drain().0);
    let topics = by_topic(&happened.to(s.session));
    assert_eq!(topics.get("r/0900").cloned().unwrap_or_default(), [("old".to_owned(), true)]);
}

#[test]
fn two_subscriptions_that_overlap_bring_each_its_own() {
    let mut rig = many_topics();
    let s = rig.connect(1, connect("s")).session;
    let mut happened = rig.batch_undrained(1, vec![subscribe(s, 1, "r/+"), subscribe(s, 1, "r/#")]);
    happened.0.extend(rig.batch_undrained(2, vec![Command::Publish(publish(None, 1, "r/0990", "live"))]).0);
    happened.0.extend(rig.drain().0);
    let topics = by_topic(&happened.to(s.session));
    let old = ("old".to_owned(), true);
    assert_eq!(topics["r/0990"], [old.clone(), old.clone(), ("live".to_owned(), false)]);
    assert_eq!(topics["r/0001"], [old.clone(), old]);
}
