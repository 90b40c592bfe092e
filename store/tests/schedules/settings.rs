//! What decides an outcome stands in the log (guarantee 12).

use quorate_store::command::{Close, Command, Connect, QueueFullPolicy, Setting, Subscribe};
use quorate_store::effect::Outcome;

use crate::testkit::Rig;
use crate::testkit::commands::{close, connect, filter, options, publish};
use crate::testkit::replica::{Then, replay};

/// Two nodes that were started with different configuration files can differ in nothing: a machine is opened
/// from rows alone, and a setting holds from its entry on, on every replica.
#[test]
fn outcome_determining_settings_come_from_the_log_only() {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(2, "s", 1, "t");
    let p = rig.publisher(1, "p");
    let text = "x".repeat(100);
    let send = |rig: &mut Rig| rig.publish(1, publish(p, 1, "t", &text)).outcome();
    assert!(matches!(send(&mut rig), Outcome::Published { .. }));
    rig.direct(Command::Set(Setting::QueueBytesMax(300)));
    assert_eq!(send(&mut rig), Outcome::QueueFull);
    rig.reopen();
    assert_eq!(send(&mut rig), Outcome::QueueFull, "a setting survives a restart");
    rig.direct(Command::Set(Setting::QueueBytesMax(10_000)));
    assert!(matches!(send(&mut rig), Outcome::Published { .. }));
    assert_eq!(rig.queue(s.session).len(), 2);
    let (rows, _) = replay(&rig.log, &[Then::GoOn, Then::Reopen]);
    assert!(rows == *rig.machine.store());
}

#[test]
fn the_largest_expiry_binds_connect_and_disconnect() {
    let mut rig = Rig::with_nodes(1);
    assert_eq!(rig.connect(1, Connect { expiry_s: u32::MAX, ..connect("c") }).expiry_s, 7 * 24 * 3600);
    rig.direct(Command::Set(Setting::SessionExpiryMax(5)));
    let c = rig.connect(1, Connect { expiry_s: u32::MAX, ..connect("c") });
    assert_eq!(c.expiry_s, 5);
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(u32::MAX), ..close(c.session, 0) })]);
    rig.pass_ms(5000);
    assert!(!rig.connect(1, connect("c")).present);
}

#[test]
fn a_largest_expiry_of_zero_makes_every_new_session_transient() {
    let mut rig = Rig::with_nodes(1);
    rig.direct(Command::Set(Setting::SessionExpiryMax(0)));
    let c = rig.connect(1, connect("c"));
    assert_eq!((c.expiry_s, c.durable), (0, false));
    assert!(!rig.connect(1, connect("c")).present);
}

#[test]
fn time_never_goes_back() {
    let mut rig = Rig::with_nodes(1);
    rig.pass_ms(60_000);
    let now = rig.now;
    rig.now -= 50_000;
    // A new leader, whose clock is behind.
    rig.term += 1;
    let c = rig.connect(1, Connect { expiry_s: 10, ..connect("c") }).session;
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    assert_eq!(rig.machine.applied().time.0, now);
    assert_eq!(rig.machine.sessions()[0].expires_at.map(|at| at.0), Some(now + 10_000));
}

#[test]
fn the_policy_holds_from_its_entry_on() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 1, "t");
    rig.batch(1, vec![Command::Close(close(s, 0))]);
    let send = |rig: &mut Rig, text: &str| rig.publish(1, publish(None, 1, "t", text)).outcome();
    send(&mut rig, "1");
    let bytes = rig.machine.sessions()[0].queued_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    assert_eq!(send(&mut rig, "2"), Outcome::QueueFull);
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)));
    assert!(matches!(send(&mut rig, "3"), Outcome::Published { .. }));
    assert_eq!(rig.queued(s.session), ["3"]);
}

/// The leader ticks each second while this is true: it must be, and it must not be for ever.
#[test]
fn ticks_are_asked_for_while_something_waits_for_time() {
    let mut rig = Rig::with_nodes(1);
    assert!(!rig.machine.has_deadlines());
    let c = rig.connect(1, Connect { expiry_s: 5, ..connect("c") }).session;
    assert!(!rig.machine.has_deadlines(), "a connected session waits for nothing");
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    assert!(rig.machine.has_deadlines());
    rig.reopen();
    assert!(rig.machine.has_deadlines());
    rig.pass_ms(5_000);
    assert!(!rig.machine.has_deadlines() && !rig.machine.has_continuations());
    assert!(rig.machine.sessions().is_empty());
}

/// One more is refused, a repeat of one that is there is not, and what goes makes room.
#[test]
fn a_session_has_so_many_subscriptions_as_the_setting_says() {
    let mut rig = Rig::with_nodes(1);
    rig.direct(Command::Set(Setting::SubscriptionsMax(2)));
    let (c, other) = (rig.connect(1, connect("c")).session, rig.connect(1, connect("other")).session);
    let subscribe = |rig: &mut Rig, from, filters: &[&str]| {
        let filters = filters.iter().map(|f| (filter(f), options(1))).collect();
        let command = Command::Subscribe(Subscribe { from, identifier: None, filters });
        match rig.batch(1, vec![command]).outcome() {
            Outcome::Subscribed(answers) => answers.into_iter().map(|a| a.err()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(subscribe(&mut rig, c, &["a", "b", "c", "a"]), [None, None, Some(0x97), None]);
    assert_eq!(subscribe(&mut rig, other, &["c"]), [None], "each session has its own");
    assert_eq!(rig.machine.totals().subscriptions, 3);
    rig.reopen();
    assert_eq!(subscribe(&mut rig, c, &["c", "b"]), [Some(0x97), None], "also after a restart");
    rig.batch(1, vec![Command::Unsubscribe { from: c, filters: vec![filter("a")] }]);
    assert_eq!(subscribe(&mut rig, c, &["c"]), [None]);
    // A smaller bound takes nothing away.
    rig.direct(Command::Set(Setting::SubscriptionsMax(1)));
    assert_eq!(subscribe(&mut rig, c, &["b", "d"]), [None, Some(0x97)]);
    let totals = rig.machine.totals();
    assert_eq!((totals.sessions, totals.connected, totals.subscriptions), (2, 2, 3));
    let (rows, _) = replay(&rig.log, &[Then::GoOn, Then::Reopen]);
    assert!(rows == *rig.machine.store());
}

/// What people are shown: counted as things come and go, and counted again from the rows after a restart.
#[test]
fn the_totals_are_those_of_the_rows() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 1, "t/#");
    rig.batch(1, vec![Command::Close(close(s, 0))]);
    let t = rig.connect(1, Connect { expiry_s: 0, ..connect("transient") }).session;
    for (topic, text) in [("t/1", "a"), ("t/2", "b"), ("t/1", "c"), ("t/3", "d")] {
        let retained = quorate_store::command::Publish { retain: true, ..publish(None, 1, topic, text) };
        rig.batch(1, vec![Command::Publish(retained)]);
    }
    let gone = quorate_store::command::Publish { retain: true, ..publish(None, 1, "t/2", "") };
    rig.batch(1, vec![Command::Publish(gone)]);
    let totals = |rig: &Rig| {
        let t = rig.machine.totals();
        (t.sessions, t.connected, t.subscriptions, t.queued, t.retained)
    };
    assert_eq!(totals(&rig), (2, 1, 1, 5, 2));
    rig.reopen();
    assert_eq!(totals(&rig), (2, 1, 1, 5, 2));
    rig.batch(1, vec![Command::Close(close(t, 0))]);
    rig.direct(Command::EndSession { session: s.session });
    rig.pass_ms(1000);
    assert_eq!(totals(&rig), (0, 0, 0, 0, 2));
    let c = rig.connect(1, Connect { expiry_s: 5, ..connect("c") }).session;
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.pass_ms(5000);
    assert_eq!((totals(&rig).0, rig.machine.totals().expired), (0, 1));
}
