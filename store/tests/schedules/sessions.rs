//! Who owns a session, and whether it is there (guarantee 8).

use quorate_store::command::{Batch, Close, Command, Connect, Origin, SessionRef};
use quorate_store::effect::{Effect, KickReason, Outcome};
use quorate_store::ids::{ClusterTime, QueueSeq};
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{
    close, connect, disconnect, granted_new, publish, publish2, release, subscribe, transient, unsubscribe, will,
};
use crate::testkit::{Happened, Rig};

fn kick_of(happened: &Happened) -> Vec<(SessionRef, KickReason)> {
    let kick = |e: &Effect| match e {
        Effect::Kick { from, reason, .. } => Some((*from, *reason)),
        _ => None,
    };
    happened.0.iter().filter_map(kick).collect()
}

#[test]
fn a_connect_after_its_deadline_is_refused() {
    let mut rig = Rig::with_nodes(2);
    let owner = rig.connect(1, connect("c")).session;
    let deadline = ClusterTime(rig.now + 500);
    rig.now += 501;
    let late = Connect { deadline, clean_start: true, ..connect("c") };
    let happened = rig.batch(2, vec![Command::Connect(late)]);
    assert_eq!(happened.outcome(), Outcome::ConnectExpired);
    assert!(happened.kicks().is_empty());
    // The connection that it would have taken over is as it was.
    assert_eq!(rig.one(1, subscribe(owner, 1, "t")), granted_new(1));
}

#[test]
fn a_connect_at_its_deadline_is_in_time() {
    let mut rig = Rig::with_nodes(1);
    let now = ClusterTime(rig.now);
    rig.connect(1, Connect { deadline: now, ..connect("c") });
    // A leader whose clock is behind does not make a late one timely.
    rig.pass_ms(10);
    rig.now -= 10;
    let late = Connect { deadline: now, ..connect("d") };
    assert_eq!(rig.one(1, Command::Connect(late)), Outcome::ConnectExpired);
}

#[test]
fn session_present_is_exact() {
    let mut rig = Rig::with_nodes(2);
    let expiring = |s| Connect { expiry_s: s, ..connect("c") };
    assert!(!rig.connect(1, expiring(2)).present, "the first");
    assert!(rig.connect(2, expiring(2)).present, "taken over");
    let c = rig.connect(1, expiring(2)).session;
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.now += 1999;
    assert!(rig.connect(2, expiring(2)).present, "one millisecond before it expires");
    rig.start(2);
    // The next entry is the CONNECT itself: nothing has removed the session yet.
    rig.now += 2000;
    assert!(!rig.connect(1, expiring(2)).present, "at the moment when it expires");
    assert!(!rig.connect(1, Connect { clean_start: true, ..expiring(2) }).present, "Clean Start");
    let c = rig.connect(1, expiring(2));
    assert!(c.present);
    rig.direct(Command::EndSession { session: c.session.session });
    assert!(!rig.connect(1, expiring(0)).present, "ended by an operator");
    assert!(!rig.connect(1, expiring(0)).present, "its connection was its life");
    let c = rig.connect(1, expiring(60)).session;
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(0), ..disconnect(c, 0) })]);
    assert!(!rig.connect(1, expiring(60)).present, "ended by DISCONNECT");
    let c = rig.connect(1, expiring(60)).session;
    rig.batch(1, vec![Command::Close(disconnect(c, 0))]);
    rig.reopen();
    assert!(rig.connect(2, expiring(60)).present, "after a restart");
    assert_eq!(rig.count(RowKind::Session), 1);
}

#[test]
fn a_disconnect_changes_the_expiry_from_then_on() {
    let mut rig = Rig::with_nodes(1);
    let c = rig.connect(1, Connect { expiry_s: 1, ..connect("c") }).session;
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(10), ..disconnect(c, 0) })]);
    rig.pass_ms(9_999);
    assert!(rig.connect(1, connect("c")).present);
    // What ends with its connection cannot be made to last by DISCONNECT (§3.1.2.11.2).
    let t = rig.connect(1, transient("t")).session;
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(10), ..disconnect(t, 0) })]);
    assert!(!rig.connect(1, connect("t")).present);
}

#[test]
fn a_session_of_all_ones_outlives_everything() {
    let mut rig = Rig::with_nodes(1);
    rig.direct(Command::Set(quorate_store::command::Setting::SessionExpiryMax(u32::MAX)));
    let c = rig.connect(1, Connect { expiry_s: u32::MAX, ..connect("c") }).session;
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    assert!(!rig.machine.has_deadlines(), "nothing to tick for");
    rig.pass_ms(1000 * u64::from(u32::MAX) + 1);
    assert!(rig.connect(1, connect("c")).present);
}

#[test]
fn taking_over_a_transient_session_ends_it() {
    let mut rig = Rig::with_nodes(2);
    let observer = rig.subscriber(2, "o", 1, "w");
    let old = Connect { will: Some(will("w", "gone", 100)), clean_start: false, ..transient("c") };
    let old = rig.connect(1, old).session;
    rig.one(1, subscribe(old, 1, "t"));
    rig.one(1, Command::Publish(publish2(old, 7, "x", "recorded")));
    let happened = rig.batch(2, vec![Command::Connect(connect("c"))]);
    let new = happened.connected();
    assert!(!new.present);
    assert_ne!(new.session.session, old.session);
    assert!(new.inbound_qos2.is_empty());
    assert_eq!(kick_of(&happened), [(old, KickReason::TakenOver)]);
    assert_eq!(rig.queued(observer.session), ["gone"], "its end makes the will due, whatever its delay");
    rig.publish(2, publish(new.session, 1, "t", "not subscribed"));
    assert!(rig.queued(new.session.session).is_empty());
    assert_eq!(rig.count(RowKind::Inbound), 0);
}

#[test]
fn a_connection_that_was_taken_over_is_fenced_in_all_it_says() {
    let mut rig = Rig::with_nodes(2);
    let old = rig.subscriber(1, "c", 1, "t");
    rig.one(1, Command::Publish(publish2(old, 7, "x", "recorded")));
    rig.publish(1, publish(old, 1, "t", "queued"));
    let new = rig.connect(2, connect("c")).session;
    assert_eq!((new.session, new.epoch == old.epoch), (old.session, false));
    let before = rig.rows_without_index();
    let rows = rig.queue(old.session);
    for command in [
        Command::Publish(publish(old, 1, "t", "ghost")),
        Command::Publish(publish2(old, 8, "t", "ghost")),
        release(old, 7),
        subscribe(old, 1, "#"),
        unsubscribe(old, "t"),
        crate::testkit::commands::settle(old, quorate_store::command::AckKind::Puback, &rows),
        Command::Close(close(old, 1)),
        Command::Close(Close { expiry_s: Some(0), ..close(old, 1) }),
    ] {
        // Both from the node that had it and from the one that has it.
        for node in [1, 2] {
            assert_eq!(rig.one(node, command.clone()), Outcome::Fenced, "{command:?}");
        }
    }
    let is_stream = |key: &[u8]| key[2] == RowKind::Dedup as u8;
    let rest = |rows: Vec<(Vec<u8>, Vec<u8>)>| rows.into_iter().filter(|(k, _)| !is_stream(k)).collect::<Vec<_>>();
    assert_eq!(rest(rig.rows_without_index()), rest(before));
    assert_eq!(rig.one(2, release(new, 7)), Outcome::Released { known: true });
}

#[test]
fn a_connection_that_was_closed_is_fenced_too() {
    let mut rig = Rig::with_nodes(1);
    let c = rig.subscriber(1, "c", 1, "t");
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    for command in [Command::Publish(publish(c, 1, "t", "x")), release(c, 1), Command::Close(disconnect(c, 0))] {
        assert_eq!(rig.one(1, command), Outcome::Fenced);
    }
}

#[test]
fn of_two_connects_in_one_batch_the_second_has_the_session() {
    let mut rig = Rig::with_nodes(1);
    let happened = rig.batch(1, vec![Command::Connect(connect("c")), Command::Connect(connect("c"))]);
    let outcomes = happened.outcomes();
    let [Outcome::Connected(first), Outcome::Connected(second)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert!(!first.present && second.present);
    assert_eq!(first.session.session, second.session.session);
    assert!(first.session.epoch < second.session.epoch);
    assert_eq!(kick_of(&happened), [(first.session, KickReason::TakenOver)]);
    // The kick names the first connection and comes after its CONNACK.
    let applied = happened.0.iter().position(|e| matches!(e, Effect::Applied { .. }));
    let kick = happened.0.iter().position(|e| matches!(e, Effect::Kick { .. }));
    assert!(applied < kick, "{happened:?}");
}

#[test]
fn a_connection_hears_its_connack_before_its_first_message() {
    let mut rig = Rig::with_nodes(1);
    let c = rig.subscriber(1, "c", 1, "t");
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    let happened =
        rig.batch(1, vec![Command::Connect(connect("c")), Command::Publish(publish(None, 1, "t", "at once"))]);
    let applied = happened.0.iter().position(|e| matches!(e, Effect::Applied { .. }));
    let sent = happened.0.iter().position(|e| matches!(e, Effect::Deliver { .. }));
    assert!(applied.is_some() && applied < sent, "{happened:?}");
    let Some(Outcome::Connected(connected)) = happened.outcomes().first().cloned() else { panic!("{happened:?}") };
    assert_eq!(connected.queue_tail, QueueSeq(0), "the message came after");
    assert_eq!(happened.to(c.session)[0].to, connected.session);
}

#[test]
fn a_session_that_was_durable_logs_its_rows_to_its_end() {
    let mut rig = Rig::with_nodes(1);
    let c = rig.subscriber(1, "c", 1, "t");
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.publish(1, publish(None, 1, "t", "queued"));
    let c = rig.connect(1, Connect { expiry_s: 0, ..connect("c") });
    assert!(c.present && c.durable, "it has rows: its acknowledgements are logged");
    assert_eq!(rig.queued(c.session.session), ["queued"]);
    // It ends with this connection all the same.
    rig.batch(1, vec![Command::Close(close(c.session, 1))]);
    assert!(!rig.connect(1, connect("c")).present);
    assert_eq!(rig.count(RowKind::Queue), 0);
}

#[test]
fn sessions_of_a_lost_node_are_resumed_elsewhere_at_once() {
    let mut rig = Rig::with_nodes(2);
    for n in 0..2000 {
        rig.subscriber(1, &format!("c{n}"), 1, "t");
    }
    rig.connect(1, transient("short"));
    let (incarnation, term) = (rig.incarnation(1), rig.term);
    let lost = Command::NodeLost { incarnation, term };
    rig.append(Batch { origin: Origin::Direct { nonce: 1 }, commands: vec![lost] });
    assert!(rig.machine.has_continuations(), "not all are closed yet");
    // The last ones, before any tick has come to them.
    let batch = rig.batch_undrained(2, vec![Command::Connect(connect("c1999")), Command::Connect(transient("short"))]);
    let outcomes = batch.outcomes();
    let [Outcome::Connected(resumed), Outcome::Connected(short)] = outcomes.as_slice() else { panic!("{batch:?}") };
    assert!(resumed.present && !short.present);
    assert!(batch.kicks().is_empty(), "there is nobody left to kick");
    rig.drain();
    let connected = rig.machine.sessions().iter().filter(|s| s.owner.is_some()).count();
    assert_eq!(connected, 2, "the continuation did not disconnect whom it found resumed");
}

/// What waits in a session is its user's: nobody else takes it over, ends it or resumes it by its client identifier.
#[test]
fn a_session_is_its_users_until_it_ends() {
    let mut rig = Rig::with_nodes(2);
    let of = |user: Option<&str>, clean_start| Connect {
        user: user.map(str::to_owned),
        clean_start,
        expiry_s: 60,
        ..connect("c")
    };
    let ann = rig.connect(1, of(Some("ann"), true)).session;
    rig.one(1, subscribe(ann, 1, "t"));
    for clean_start in [false, true] {
        for user in [Some("bob"), None] {
            let happened = rig.batch(2, vec![Command::Connect(of(user, clean_start))]);
            assert_eq!(happened.outcome(), Outcome::Refused(0x87), "{user:?}");
            assert!(kick_of(&happened).is_empty(), "the connection that there is goes on");
        }
    }
    rig.batch(2, vec![Command::Publish(publish(None, 1, "t", "m"))]);
    rig.one(1, Command::Close(close(ann, 0)));
    assert_eq!(rig.one(2, Command::Connect(of(Some("bob"), false))), Outcome::Refused(0x87));
    let back = rig.connect(2, of(Some("ann"), false));
    assert!(back.present);
    assert_eq!(rig.queued(back.session.session), ["m"]);
    // After its end the identifier is free.
    rig.one(2, Command::Close(close(back.session, 0)));
    rig.pass_ms(61_000);
    assert!(!rig.connect(1, of(Some("bob"), false)).present);
}

/// Users that come later take over what their clients had without one.
#[test]
fn a_session_of_an_anonymous_client_becomes_its_users() {
    let mut rig = Rig::with_nodes(1);
    rig.connect(1, connect("c"));
    let ann = Connect { user: Some("ann".into()), clean_start: false, ..connect("c") };
    assert!(rig.connect(1, ann.clone()).present);
    assert_eq!(rig.one(1, Command::Connect(connect("c"))), Outcome::Refused(0x87));
    assert!(rig.connect(1, ann).present);
}
