//! A delayed publish is published exactly once when due, in order, whatever dies (guarantee 9's sister).

use quorate_store::command::{Batch, Close, Command, Connect, Origin, Publish, QueueFullPolicy, SessionRef, Setting};
use quorate_store::command::{Subscribe, SubscribeOptions};
use quorate_store::effect::{AllEffects, Outcome};
use quorate_store::ids::{ClusterTime, Position};
use quorate_store::machine::{EntryContext, Machine};
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{
    close, connect, filter, keyed, options, publish, publish2, release, subscribe, transient,
};
use crate::testkit::counting::CountingRows;
use crate::testkit::replica::{Then, replay};
use crate::testkit::{Rig, text};

/// Three nodes, and a durable subscriber of `t/#` on the third.
fn rig() -> (Rig, SessionRef) {
    let mut rig = Rig::with_nodes(3);
    let s = rig.subscriber(3, "s", 2, "t/#");
    (rig, s)
}

fn accepted(rig: &mut Rig, node: u64, publish: Publish) -> Position {
    match rig.publish(node, publish).outcome() {
        Outcome::Published { position, matched: true } => position,
        other => panic!("not accepted: {other:?}"),
    }
}

#[test]
fn a_delayed_publish_comes_when_it_is_due_and_once() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let accepted_at = accepted(&mut rig, 1, publish(p, 1, "$delayed/10/t/a", "later"));
    assert!(rig.machine.has_deadlines());
    rig.pass_ms(9_999);
    assert!(rig.queued(s.session).is_empty());
    assert_eq!(rig.count(RowKind::Delayed), 1);
    let happened = rig.pass_ms(1);
    assert_eq!(happened.sent(s.session), ["later"]);
    let row = &rig.queue(s.session)[0];
    assert_eq!((row.message.topic.as_str(), row.retain), ("t/a", false));
    assert!(row.message.position > accepted_at, "published now, by a position of its own");
    assert_eq!(row.message.published_at, ClusterTime(rig.now));
    rig.pass_ms(100_000);
    assert_eq!(rig.queued(s.session), ["later"]);
    assert_eq!(rig.count(RowKind::Delayed), 0);
    assert_eq!(rig.machine.delayed(), (0, 0));
    assert!(!rig.machine.has_deadlines() && !rig.machine.has_continuations());
}

#[test]
fn nothing_that_dies_meanwhile_cancels_or_doubles_it() {
    let (mut rig, s) = rig();
    let p = rig.connect(1, transient("p")).session;
    accepted(&mut rig, 1, publish(p, 1, "$delayed/10/t/a", "one"));
    // Its session ends, its node is lost, and everything starts anew.
    rig.batch(1, vec![Command::Close(close(p, 0))]);
    rig.lose(1);
    rig.lose(3);
    rig.reopen();
    assert_eq!(rig.machine.delayed().0, 1);
    assert!(rig.machine.has_deadlines());
    // All of the cluster was away for half an hour.
    rig.start(2);
    rig.pass_ms(1_800_000);
    rig.reopen();
    rig.pass_ms(1000);
    assert_eq!(rig.queued(s.session), ["one"]);
    for cuts in [vec![Then::Reopen], vec![Then::GoOn, Then::Flush, Then::Crash], vec![Then::Crash]] {
        let (rows, _) = replay(&rig.log, &cuts);
        assert!(rows == *rig.machine.store(), "{cuts:?}");
    }
}

#[test]
fn what_is_due_comes_in_order_of_its_time_and_then_of_its_publish() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let batch = |texts: &[(u32, &str)]| {
        texts.iter().map(|(s, text)| Command::Publish(publish(p, 1, &format!("$delayed/{s}/t/{text}"), text))).collect()
    };
    rig.batch(1, batch(&[(3, "d"), (1, "a"), (3, "e"), (2, "b")]));
    rig.now += 1000;
    rig.batch(1, batch(&[(2, "f"), (1, "c")]));
    rig.pass_ms(60_000);
    assert_eq!(rig.queued(s.session), ["a", "b", "c", "d", "e", "f"]);
    rig.batch(1, batch(&[(0, "at once"), (1, "after it")]));
    assert_eq!(rig.queued(s.session).len(), 7, "no delay is none");
    rig.pass_ms(1000);
    assert_eq!(rig.queued(s.session)[6..], ["at once", "after it"]);
}

#[test]
fn who_subscribes_by_then_gets_it_and_who_has_left_does_not() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t/a", "later"));
    let new = rig.subscriber(2, "new", 1, "t/a");
    // To its literal topic nothing ever comes.
    let literal = rig.subscriber(2, "literal", 1, "$delayed/#");
    rig.one(3, crate::testkit::commands::unsubscribe(s, "t/#"));
    rig.pass_ms(5_000);
    assert_eq!(rig.queued(new.session), ["later"]);
    assert!(rig.queued(s.session).is_empty() && rig.queued(literal.session).is_empty());
}

#[test]
fn its_own_client_does_not_get_it_by_a_no_local_subscription_not_even_in_another_session() {
    let mut rig = Rig::with_nodes(1);
    let no_local = SubscribeOptions { no_local: true, ..options(1) };
    let subscribe = |from| Subscribe { from, identifier: None, filters: vec![(filter("t"), no_local)] };
    let p = rig.connect(1, transient("p")).session;
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t", "mine"));
    rig.batch(1, vec![Command::Close(close(p, 0))]);
    let p = rig.connect(1, connect("p")).session;
    let other = rig.connect(1, connect("other")).session;
    rig.batch(1, vec![Command::Subscribe(subscribe(p)), Command::Subscribe(subscribe(other))]);
    rig.pass_ms(5_000);
    assert!(rig.queued(p.session).is_empty());
    assert_eq!(rig.queued(other.session), ["mine"]);
}

#[test]
fn retain_is_honoured_when_it_is_due() {
    let mut rig = Rig::with_nodes(1);
    let p = rig.publisher(1, "p");
    rig.publish(1, Publish { retain: true, ..publish(p, 1, "t", "now") });
    accepted(&mut rig, 1, Publish { retain: true, ..publish(p, 1, "$delayed/5/t", "later") });
    let early = rig.subscriber(1, "early", 1, "t");
    assert_eq!(rig.queued(early.session), ["now"]);
    rig.pass_ms(5_000);
    let late = rig.subscriber(1, "late", 1, "t");
    assert_eq!(rig.queued(late.session), ["later"]);
    assert!(rig.queue(late.session)[0].retain);
    assert_eq!(rig.queued(early.session), ["now", "later"]);
    // An empty payload clears.
    accepted(&mut rig, 1, Publish { retain: true, ..publish(p, 1, "$delayed/5/t", "") });
    rig.pass_ms(5_000);
    assert_eq!(rig.count(RowKind::Retained), 0);
}

/// By the position of its PUBLISH it would be older than the SUBSCRIBE, and come twice.
#[test]
fn a_retained_one_is_newer_than_a_subscribe_that_came_meanwhile() {
    let mut rig = Rig::with_nodes(2);
    for chunk in (0..1000).collect::<Vec<_>>().chunks(100) {
        let values = chunk
            .iter()
            .map(|n| Command::Publish(Publish { retain: true, ..publish(None, 1, &format!("r/{n:04}"), "old") }));
        rig.batch(2, values.collect());
    }
    accepted(&mut rig, 2, Publish { retain: true, ..publish(None, 1, "$delayed/1/r/0999", "later") });
    let s = rig.connect(1, connect("s")).session;
    rig.batch_undrained(1, vec![subscribe(s, 1, "r/+")]);
    rig.now += 1000;
    rig.direct_undrained(Command::Tick);
    rig.drain();
    let rows = rig.queue(s.session);
    let of_topic: Vec<_> = rows.iter().filter(|row| row.message.topic.as_str() == "r/0999").collect();
    assert_eq!(of_topic.iter().map(|row| text(&row.message.payload)).collect::<Vec<_>>(), ["old", "later"]);
    assert_eq!(rows.len(), 1001);
}

#[test]
fn its_expiry_counts_from_its_publication() {
    let (mut rig, s) = rig();
    rig.batch(3, vec![Command::Close(close(s, 0))]);
    let p = rig.publisher(1, "p");
    accepted(&mut rig, 1, Publish { expiry_s: Some(2), ..publish(p, 1, "$delayed/10/t/a", "later") });
    // It was due while nobody was there; its time begins now.
    rig.pass_ms(60_000);
    let row = &rig.queue(s.session)[0];
    assert_eq!(row.message.expires_at, Some(ClusterTime(rig.now + 2_000)));
}

#[test]
fn it_is_acknowledged_like_any_publish_and_has_one_identifier_and_one_key() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let first = accepted(&mut rig, 1, keyed("k", publish2(p, 7, "$delayed/5/t/a", "one")));
    assert_eq!(rig.count(RowKind::Inbound), 1);
    let again = rig.publish(1, keyed("k", publish2(p, 8, "$delayed/5/t/a", "one")));
    assert_eq!(again.outcome(), Outcome::Repeated { position: first });
    assert_eq!(rig.one(1, release(p, 7)), Outcome::Released { known: true });
    assert_eq!(rig.publish(1, publish2(p, 8, "$delayed/5/t/a", "one")).outcome(), Outcome::AlreadyRecorded);
    rig.pass_ms(5_000);
    assert_eq!(rig.queued(s.session), ["one"]);
    assert_eq!(
        rig.publish(1, keyed("k", publish(p, 1, "t/a", "one"))).outcome(),
        Outcome::Repeated { position: first }
    );
    // QoS 0 waits in the log, too.
    accepted(&mut rig, 1, publish(p, 0, "$delayed/5/t/a", "zero"));
    rig.reopen();
    assert_eq!(rig.pass_ms(5_000).sent(s.session), ["zero"]);
}

#[test]
fn a_topic_that_names_no_delay_and_a_delay_above_the_maximum_are_refused() {
    let (mut rig, _) = rig();
    let p = rig.publisher(1, "p");
    for bad in ["$delayed/x/t", "$delayed/5", "$delayed/5/", "$delayed/5/$delayed/5/t"] {
        assert_eq!(rig.publish(1, publish(p, 1, bad, "x")).outcome(), Outcome::Refused(0x90), "{bad}");
    }
    assert_eq!(rig.publish(1, publish2(p, 1, "$delayed/4294968/t", "x")).outcome(), Outcome::Refused(0x97));
    accepted(&mut rig, 1, publish(p, 1, "$delayed/4294967/t", "x"));
    rig.direct(Command::Set(Setting::DelayMax(5)));
    rig.reopen();
    assert_eq!(rig.publish(1, publish(p, 1, "$delayed/6/t", "x")).outcome(), Outcome::Refused(0x97));
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t", "x"));
    assert_eq!((rig.count(RowKind::Delayed), rig.count(RowKind::Inbound)), (2, 0));
}

#[test]
fn what_waits_is_bounded_in_bytes_and_makes_room_when_it_is_published() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t/a", "one"));
    let (_, one) = rig.machine.delayed();
    rig.direct(Command::Set(Setting::DelayedBytesMax(2 * one)));
    let attempt = |text| keyed("k", publish2(p, 1, "$delayed/5/t/a", text));
    assert_eq!(rig.publish(1, attempt("too long for what is left of the room")).outcome(), Outcome::QueueFull);
    assert_eq!(rig.count(RowKind::Inbound) + rig.count(RowKind::Idempotency), 0, "nothing of it was written");
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t/a", "two"));
    assert_eq!(rig.machine.delayed(), (2, 2 * one));
    assert_eq!(rig.publish(1, publish(p, 1, "$delayed/5/t/a", "")).outcome(), Outcome::QueueFull);
    rig.reopen();
    assert_eq!(rig.machine.delayed(), (2, 2 * one));
    rig.pass_ms(5_000);
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t/a", "one"));
    assert_eq!(rig.queued(s.session), ["one", "two"]);
}

/// When it is due nobody can be refused any more.
#[test]
fn a_full_queue_loses_its_copy_and_the_others_get_theirs() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let other = rig.subscriber(2, "other", 1, "t/a");
    rig.publish(1, publish(p, 1, "t/b", &"x".repeat(1000)));
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t/a", "later"));
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::Reject)));
    rig.direct(Command::Set(Setting::QueueBytesMax(500)));
    rig.pass_ms(5_000);
    assert_eq!(rig.queued(other.session), ["later"]);
    assert_eq!(rig.queue(s.session).len(), 1);
    assert_eq!(rig.count(RowKind::Delayed), 0);
}

#[test]
fn an_operator_who_ends_the_publishers_session_cancels_nothing() {
    let (mut rig, s) = rig();
    let p = rig.connect(1, Connect { expiry_s: 1, ..connect("p") }).session;
    accepted(&mut rig, 1, publish(p, 1, "$delayed/5/t/a", "later"));
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(0), ..close(p, 0) })]);
    rig.direct(Command::EndSession { session: p.session });
    rig.pass_ms(5_000);
    assert_eq!(rig.queued(s.session), ["later"]);
}

/// 10,000 that are due at once, and none is looked for among those that are gone.
#[test]
fn many_that_are_due_at_once_touch_a_bounded_number_of_rows_per_entry() {
    let (mut rig, s) = rig();
    for chunk in 0..10 {
        let later = (0..1000).map(|n| {
            Command::Publish(publish(None, 1, &format!("$delayed/{}/t/{chunk}", 5 + n % 3), &format!("{chunk}-{n}")))
        });
        rig.batch(2, later.collect());
    }
    let rows = CountingRows::new(rig.machine.store().clone());
    let counter = rows.counter();
    let mut machine = Machine::open(rows).unwrap();
    let mut entries = 0;
    while machine.delayed().0 > 0 {
        entries += 1;
        assert!(entries < 1000, "it does not end");
        let batch = Batch { origin: Origin::Direct { nonce: 1 }, commands: vec![Command::Tick] };
        let index = machine.applied().index + 1;
        let entry = EntryContext { index, term: 1, stamp: ClusterTime(rig.now + 60_000) };
        counter.reset();
        machine.apply(entry, &batch, &mut AllEffects::default()).unwrap();
        machine.commit_run().unwrap();
        assert!(counter.touched() < 2_000, "entry {entries} touches {} rows", counter.touched());
        assert_eq!(machine.delayed().0 > 0, machine.has_continuations());
    }
    assert!(entries > 50, "{entries} entries");
    assert_eq!(machine.sessions().iter().find(|one| one.session == s.session).unwrap().queued, 10_000);
}

/// One entry publishes so many bytes, whatever one row has.
#[test]
fn large_ones_that_are_due_at_once_are_published_a_few_per_entry() {
    let (mut rig, s) = rig();
    let large = "x".repeat(1 << 20);
    for _ in 0..20 {
        accepted(&mut rig, 1, publish(None, 1, "$delayed/5/t/a", &large));
    }
    rig.now += 5_000;
    rig.direct_undrained(Command::Tick);
    let first = rig.queue(s.session).len();
    assert!((1..=6).contains(&first), "{first} of 20 in one entry");
    rig.drain();
    assert_eq!(rig.queue(s.session).len(), 20);
}
