//! A publish with an idempotency key is published once for each user, whatever died in between (guarantee 4).

use quorate_store::command::{Close, Command, Connect, QueueFullPolicy, SessionRef, Setting};
use quorate_store::effect::{AllEffects, Outcome};
use quorate_store::ids::{ClusterTime, Position};
use quorate_store::machine::{EntryContext, Machine};
use quorate_store::rows::key::RowKind;

use crate::testkit::Rig;
use crate::testkit::commands::{
    close, connect, keyed, packet_id, publish, publish2, release, retain, subscribe, transient,
};
use crate::testkit::counting::CountingRows;
use crate::testkit::replica::{Then, replay};

fn published(rig: &mut Rig, node: u64, publish: quorate_store::command::Publish) -> Position {
    match rig.publish(node, publish).outcome() {
        Outcome::Published { position, .. } => position,
        other => panic!("not published: {other:?}"),
    }
}

fn repeated(rig: &mut Rig, node: u64, publish: quorate_store::command::Publish) -> Position {
    let happened = rig.publish(node, publish);
    match happened.outcome() {
        Outcome::Repeated { position } => position,
        other => panic!("published again: {other:?}"),
    }
}

/// Three nodes, and a durable subscriber of `t/#` on the third.
fn rig() -> (Rig, SessionRef) {
    let mut rig = Rig::with_nodes(3);
    let s = rig.subscriber(3, "s", 2, "t/#");
    (rig, s)
}

fn user(name: &str, client_id: &str) -> Connect {
    Connect { user: Some(name.to_owned()), ..connect(client_id) }
}

#[test]
fn a_key_is_published_once_however_its_publisher_comes_back() {
    let (mut rig, s) = rig();
    let p = rig.connect(1, user("u", "p")).session;
    let first = published(&mut rig, 1, keyed("k", publish(p, 1, "t/a", "one")));
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish(p, 1, "t/a", "one"))), first, "on the same connection");
    let p = rig.connect(1, user("u", "p")).session;
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish(p, 1, "t/a", "one"))), first, "on another connection");
    // Its node dies, and it begins anew: another session, another client identifier, another node.
    rig.lose(1);
    rig.direct(Command::EndSession { session: p.session });
    let q = rig.connect(2, Connect { clean_start: true, ..user("u", "q") }).session;
    assert_eq!(repeated(&mut rig, 2, keyed("k", publish(q, 1, "t/a", "one"))), first, "from another session");
    rig.reopen();
    assert_eq!(repeated(&mut rig, 2, keyed("k", publish(q, 1, "t/a", "one"))), first, "after a restart");
    assert_eq!(rig.queued(s.session), ["one"]);
    assert_eq!(rig.queue(s.session)[0].message.position, first);
    assert_eq!(rig.queue(s.session)[0].message.properties.as_ref().unwrap().user[0].1, "k", "forwarded unaltered");
}

#[test]
fn each_user_has_keys_of_its_own_and_anonymous_clients_are_one() {
    let (mut rig, s) = rig();
    let [u, v] = [rig.connect(1, user("u", "c1")).session, rig.connect(1, user("v", "c2")).session];
    let [a, b] = [rig.publisher(1, "c3"), rig.publisher(2, "c4")];
    published(&mut rig, 1, keyed("k", publish(u, 1, "t", "u")));
    published(&mut rig, 1, keyed("k", publish(v, 1, "t", "v")));
    let first = published(&mut rig, 1, keyed("k", publish(a, 1, "t", "anonymous")));
    assert_eq!(repeated(&mut rig, 2, keyed("k", publish(b, 1, "t", "also anonymous"))), first);
    assert_eq!(repeated(&mut rig, 2, keyed("k", publish(None, 1, "t", "administrator"))), first);
    // Who resumes a session that was nobody's publishes under its own name.
    let c = rig.connect(1, user("v", "c3")).session;
    repeated(&mut rig, 1, keyed("k", publish(c, 1, "t", "v again")));
    assert_eq!(rig.queued(s.session), ["u", "v", "anonymous"]);
}

#[test]
fn of_qos_2_a_repeat_records_its_packet_identifier_and_publishes_nothing() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let first = published(&mut rig, 1, keyed("k", publish2(p, 7, "t", "one")));
    // PUBREC was lost: the same packet again, and then its release.
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish2(p, 7, "t", "one"))), first);
    assert_eq!(rig.count(RowKind::Inbound), 1);
    assert_eq!(rig.one(1, release(p, 7)), Outcome::Released { known: true });
    // A new attempt under another identifier, with a handshake of its own.
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish2(p, 8, "t", "one"))), first);
    assert_eq!(rig.connect(1, connect("p")).inbound_qos2, [packet_id(8)]);
    let p = rig.connect(1, connect("p")).session;
    assert_eq!(rig.one(1, release(p, 8)), Outcome::Released { known: true });
    assert_eq!(rig.one(1, release(p, 8)), Outcome::Released { known: false });
    // Across qualities of service, too.
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish(p, 1, "t", "one"))), first);
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish(p, 0, "t", "one"))), first);
    assert_eq!(rig.queued(s.session), ["one"]);
}

#[test]
fn a_key_is_forgotten_after_its_time_and_not_before() {
    let (mut rig, s) = rig();
    rig.direct(Command::Set(Setting::IdempotencyWindow(60)));
    let p = rig.publisher(1, "p");
    let first = published(&mut rig, 1, keyed("k", publish(p, 1, "t", "one")));
    rig.now += 59_999;
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish(p, 1, "t", "one"))), first);
    rig.now += 1;
    // In the very entry that brings the time, before anything is removed.
    let second = published(&mut rig, 1, keyed("k", publish(p, 1, "t", "two")));
    assert_ne!(second, first);
    rig.now += 59_999;
    assert_eq!(repeated(&mut rig, 1, keyed("k", publish(p, 1, "t", "three"))), second, "its time counts from then");
    assert_eq!(rig.queued(s.session), ["one", "two"]);
    rig.pass_ms(1);
    assert_eq!(rig.count(RowKind::Idempotency) + rig.count(RowKind::IdempotencyOrder), 0);
    assert!(!rig.machine.has_deadlines(), "nothing waits for a key to become old");
}

#[test]
fn the_oldest_keys_go_first_when_there_are_too_many() {
    let (mut rig, _) = rig();
    rig.direct(Command::Set(Setting::IdempotencyKeysMax(3)));
    let p = rig.publisher(1, "p");
    let first: Vec<Position> =
        (0..5).map(|n| published(&mut rig, 1, keyed(&format!("k{n}"), publish(p, 1, "t", "x")))).collect();
    for (n, position) in first.iter().enumerate().skip(2) {
        assert_eq!(repeated(&mut rig, 1, keyed(&format!("k{n}"), publish(p, 1, "t", "x"))), *position);
    }
    assert_eq!(rig.count(RowKind::Idempotency), 3);
    published(&mut rig, 1, keyed("k1", publish(p, 1, "t", "x")));
    // A repeat does not make a key younger: k2 was the oldest.
    published(&mut rig, 1, keyed("k2", publish(p, 1, "t", "x")));
    assert_eq!(repeated(&mut rig, 1, keyed("k4", publish(p, 1, "t", "x"))), first[4]);
    assert_eq!((rig.count(RowKind::Idempotency), rig.count(RowKind::IdempotencyOrder)), (3, 3));
    rig.direct(Command::Set(Setting::IdempotencyKeysMax(0)));
    assert_eq!((rig.count(RowKind::Idempotency), rig.count(RowKind::IdempotencyOrder)), (0, 0));
    published(&mut rig, 1, keyed("k4", publish(p, 1, "t", "x")));
    published(&mut rig, 1, keyed("k4", publish(p, 1, "t", "x")));
    assert_eq!(rig.count(RowKind::Idempotency), 0, "0 remembers none");
}

#[test]
fn a_repeat_does_not_change_the_retained_message() {
    let (mut rig, _) = rig();
    let p = rig.publisher(1, "p");
    published(&mut rig, 1, keyed("k", retain(p, "r", "first")));
    published(&mut rig, 1, retain(p, "r", "second"));
    repeated(&mut rig, 1, keyed("k", retain(p, "r", "first")));
    let o = rig.connect(2, connect("o")).session;
    assert_eq!(rig.batch(2, vec![subscribe(o, 1, "r")]).sent(o.session), ["second"]);
}

#[test]
fn a_message_that_has_expired_meanwhile_is_not_published_again() {
    let (mut rig, s) = rig();
    rig.batch(3, vec![Command::Close(close(s, 0))]);
    let p = rig.publisher(1, "p");
    let short = || quorate_store::command::Publish { expiry_s: Some(1), ..publish(None, 1, "t", "short") };
    let mine = |p| quorate_store::command::Publish { from: Some(p), ..short() };
    let first = published(&mut rig, 1, keyed("k", mine(p)));
    rig.pass_ms(5_000);
    assert_eq!(repeated(&mut rig, 1, keyed("k", mine(p))), first);
    assert_eq!(
        rig.queue(s.session).iter().filter(|row| row.message.position == first).count(),
        rig.queue(s.session).len()
    );
}

#[test]
fn what_is_refused_for_want_of_room_does_not_use_up_its_key() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    rig.direct(Command::Set(Setting::QueueBytesMax(10)));
    let attempt = |id| keyed("k", publish2(p, id, "t", "one"));
    assert_eq!(rig.publish(1, attempt(1)).outcome(), Outcome::QueueFull);
    assert_eq!(rig.count(RowKind::Idempotency) + rig.count(RowKind::Inbound), 0);
    rig.direct(Command::Set(Setting::QueueBytesMax(1 << 20)));
    let first = published(&mut rig, 1, attempt(1));
    // And when the queue is full again, a repeat is acknowledged all the same: it takes no room.
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::Reject)));
    rig.direct(Command::Set(Setting::QueueBytesMax(10)));
    assert_eq!(repeated(&mut rig, 1, attempt(2)), first);
    assert_eq!(rig.queued(s.session), ["one"]);
}

#[test]
fn a_fenced_publish_does_not_use_up_its_key() {
    let (mut rig, s) = rig();
    let old = rig.publisher(1, "p");
    let new = rig.publisher(2, "p");
    assert_eq!(rig.publish(1, keyed("k", publish(old, 1, "t", "late"))).outcome(), Outcome::Fenced);
    published(&mut rig, 2, keyed("k", publish(new, 1, "t", "one")));
    assert_eq!(rig.queued(s.session), ["one"]);
}

#[test]
fn a_key_that_is_none_is_refused() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let mut two = keyed("k", publish(p, 1, "t", "x"));
    two.properties.as_mut().unwrap().user.push(("idempotency-key".into(), "l".into()));
    for publish in [keyed("", publish(p, 1, "t", "x")), keyed(&"x".repeat(257), publish(p, 1, "t", "x")), two] {
        assert_eq!(rig.publish(1, publish).outcome(), Outcome::Refused(0x83));
    }
    assert!(rig.queued(s.session).is_empty());
    assert_eq!(rig.count(RowKind::Idempotency), 0);
}

#[test]
fn a_key_given_twice_in_one_batch_is_published_once() {
    let (mut rig, s) = rig();
    let p = rig.publisher(1, "p");
    let one = Command::Publish(keyed("k", publish(p, 1, "t", "one")));
    let outcomes = rig.batch(1, vec![one.clone(), one]).outcomes();
    let Outcome::Published { position, .. } = outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(outcomes[1], Outcome::Repeated { position });
    assert_eq!(rig.queued(s.session), ["one"]);
}

/// A user is known by the session, also when that is transient and gone by now.
#[test]
fn the_end_of_a_session_forgets_no_key() {
    let (mut rig, s) = rig();
    let p = rig.connect(1, Connect { user: Some("u".into()), ..transient("p") }).session;
    let first = published(&mut rig, 1, keyed("k", publish(p, 1, "t", "one")));
    rig.batch(1, vec![Command::Close(Close { expiry_s: None, ..close(p, 0) })]);
    let p = rig.connect(2, Connect { user: Some("u".into()), ..transient("p") }).session;
    assert_eq!(repeated(&mut rig, 2, keyed("k", publish(p, 1, "t", "one"))), first);
    assert_eq!(rig.queued(s.session), ["one"]);
}

/// The cost of a key does not grow with how many there are, nor with how many were; and when many are to go at once
/// they go by and by.
#[test]
fn keys_cost_a_bounded_number_of_rows_each_however_many_there_are() {
    let mut rig = Rig::with_nodes(1);
    let max = 2_000;
    rig.direct(Command::Set(Setting::IdempotencyKeysMax(max)));
    let p = rig.publisher(1, "p");
    let rows = CountingRows::new(rig.machine.store().clone());
    let counter = rows.counter();
    let mut machine = Machine::open(rows).unwrap();
    let apply = |machine: &mut Machine<CountingRows>, now: u64, batch| {
        let entry = EntryContext { index: machine.applied().index + 1, term: 1, stamp: ClusterTime(now) };
        counter.reset();
        machine.apply(entry, &batch, &mut AllEffects::default()).unwrap();
        machine.commit_run().unwrap();
        counter.touched()
    };
    for n in 0..6_000 {
        let batch = rig.next_batch(1, vec![Command::Publish(keyed(&format!("k{n}"), publish(p, 1, "nobody", "x")))]);
        let touched = apply(&mut machine, rig.now, batch);
        assert!(touched < 100, "key {n} touches {touched} rows");
    }
    let count = |machine: &Machine<CountingRows>, kind: RowKind| {
        machine.store().rows().iter().filter(|(key, _)| key[2] == kind as u8).count()
    };
    assert_eq!(count(&machine, RowKind::Idempotency), max as usize);
    // All of them are too old at once: later entries remove them, a step each, and none looks over what is gone.
    for n in 0..20 {
        let batch = rig.next_batch(1, vec![Command::Publish(publish(p, 1, "nobody", "x"))]);
        let touched = apply(&mut machine, rig.now + 100_000_000, batch);
        assert!(touched < 500, "entry {n} touches {touched} rows");
    }
    assert_eq!(count(&machine, RowKind::Idempotency) + count(&machine, RowKind::IdempotencyOrder), 0);
}

/// Lowering the bound leaves more to remove than one entry does.
#[test]
fn a_lowered_bound_is_reached_without_anybody_publishing() {
    let mut rig = Rig::with_nodes(1);
    let p = rig.publisher(1, "p");
    for n in 0..10 {
        let publishes = (0..100).map(|m| Command::Publish(keyed(&format!("k{n}-{m}"), publish(p, 1, "nobody", "x"))));
        rig.batch(1, publishes.collect());
    }
    rig.direct_undrained(Command::Set(Setting::IdempotencyKeysMax(10)));
    assert!(rig.machine.has_continuations());
    rig.reopen();
    rig.drain();
    assert_eq!(rig.count(RowKind::Idempotency), 10);
    repeated(&mut rig, 1, keyed("k9-90", publish(p, 1, "nobody", "x")));
    let (rows, _) = replay(&rig.log, &[Then::GoOn, Then::Flush, Then::Crash, Then::Reopen]);
    assert!(rows == *rig.machine.store());
}
