//! Cursors over retained messages, and other work that entries go on with: bounded, fair, and never a poison for the
//! replicas (guarantees 7, 11 and 12).

use quorate_store::command::{Command, SessionRef, Subscribe, SubscribeOptions};
use quorate_store::effect::Outcome;
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{close, connect, filter, options, publish, retain, subscribe, topic, transient};
use crate::testkit::{Rig, text};

/// Filters that one SUBSCRIBE may have, and cursors that one session may have.
const MOST: usize = 1024;

/// More retained topics than one entry looks at.
fn with_retained(count: usize) -> Rig {
    let mut rig = Rig::with_nodes(2);
    for chunk in (0..count).collect::<Vec<_>>().chunks(100) {
        rig.batch(2, chunk.iter().map(|n| Command::Publish(retain(None, &format!("r/{n:04}"), "old"))).collect());
    }
    rig
}

fn subscribe_to(from: SessionRef, filters: impl IntoIterator<Item = String>) -> Command {
    let filters = filters.into_iter().map(|f| (filter(&f), options(1))).collect();
    Command::Subscribe(Subscribe { from, identifier: None, filters })
}

fn answers(outcome: &Outcome) -> (usize, usize) {
    let Outcome::Subscribed(answers) = outcome else { panic!("{outcome:?}") };
    (answers.iter().filter(|a| a.is_ok()).count(), answers.iter().filter(|a| **a == Err(0x97)).count())
}

/// Each copy for a cursor once took a position of its own, of which an entry has a million.
#[test]
fn no_entry_runs_out_of_positions_whatever_was_subscribed_to() {
    let mut rig = Rig::with_nodes(1);
    rig.publish(1, retain(None, "t", "v"));
    let s = rig.connect(1, transient("s")).session;
    let many = || std::iter::repeat_n("#".to_owned(), 262_000);
    for _ in 0..5 {
        rig.batch_undrained(1, vec![subscribe_to(s, many())]);
    }
    let happened = rig.batch_undrained(1, vec![Command::Publish(retain(None, "t", "w"))]);
    assert!(matches!(happened.outcome(), Outcome::Published { .. }));
}

#[test]
fn a_batch_of_more_commands_than_an_entry_has_positions_for_is_answered() {
    let mut rig = Rig::with_nodes(1);
    let most = 1 << 18;
    let happened = rig.batch(1, vec![Command::Publish(publish(None, 0, "t", "")); most + 2]);
    let outcomes = happened.outcomes();
    assert!(matches!(outcomes[most - 1], Outcome::Published { .. }));
    assert_eq!(outcomes[most..], [Outcome::Void, Outcome::Void]);
}

#[test]
fn a_retained_value_that_is_replaced_is_copied_once_for_all_cursors_that_owe_it() {
    let mut rig = with_retained(1000);
    let sessions: Vec<SessionRef> = (0..40).map(|n| rig.connect(1, connect(&format!("s{n}"))).session).collect();
    let other = rig.connect(1, transient("transient")).session;
    let commands = sessions.iter().chain([&other]).map(|s| subscribe(*s, 1, "r/+")).collect();
    let mut happened = rig.batch_undrained(1, commands);
    let before = rig.count(RowKind::Message);
    happened.0.extend(rig.batch_undrained(2, vec![Command::Publish(retain(None, "r/0999", "new"))]).0);
    // What the timers bring in that entry are other topics, a message each.
    assert!(rig.count(RowKind::Message) <= before + 2 + 128);
    happened.0.extend(rig.drain().0);
    for s in sessions {
        let rows = rig.queue(s.session);
        let of_topic: Vec<_> = rows.iter().filter(|row| row.message.topic == topic("r/0999")).collect();
        assert_eq!(of_topic.iter().map(|row| text(&row.message.payload)).collect::<Vec<_>>(), ["old", "new"]);
        assert!(of_topic[0].retain && !of_topic[1].retain);
        assert_eq!(rows.len(), 1001);
    }
    assert_eq!(happened.sent(other.session).iter().filter(|text| *text == "new").count(), 1);
    assert_eq!(rig.count(RowKind::ContinuationMark) + rig.count(RowKind::Continuation), 0);
}

#[test]
fn a_subscribe_takes_the_place_of_what_an_earlier_one_of_its_filter_owes() {
    let mut rig = with_retained(1000);
    let s = rig.connect(1, connect("s")).session;
    for _ in 0..20 {
        rig.batch_undrained(1, vec![subscribe(s, 1, "r/+")]);
        assert_eq!(rig.count(RowKind::Continuation), 1);
    }
    rig.drain();
    let mut topics: Vec<_> = rig.queue(s.session).iter().map(|row| row.message.topic.to_string()).collect();
    let len = topics.len();
    topics.sort();
    topics.dedup();
    assert_eq!(topics.len(), 1000);
    assert!(len < 20 * 1000, "{len} rows");
}

#[test]
fn a_subscribe_that_brings_nothing_leaves_what_an_earlier_one_owes() {
    let mut rig = with_retained(1000);
    let s = rig.connect(1, connect("s")).session;
    rig.batch_undrained(1, vec![subscribe(s, 1, "r/+")]);
    for retain_handling in [1, 2] {
        let filters = vec![(filter("r/+"), SubscribeOptions { retain_handling, ..options(1) })];
        rig.batch_undrained(1, vec![Command::Subscribe(Subscribe { from: s, identifier: None, filters })]);
    }
    rig.drain();
    assert_eq!(rig.queue(s.session).len(), 1000, "the first was acknowledged");
}

#[test]
fn of_more_filters_than_a_packet_may_have_each_is_answered() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.connect(1, connect("s")).session;
    let names = |range: std::ops::Range<usize>| range.map(|n| format!("f/{n}"));
    assert_eq!(answers(&rig.one(1, subscribe_to(s, names(0..2000)))), (MOST, 2000 - MOST));
    assert_eq!(rig.count(RowKind::Subscription), MOST);
    let all = Command::Unsubscribe { from: s, filters: names(0..2000).map(|f| filter(&f)).collect() };
    let Outcome::Unsubscribed(existed) = rig.one(1, all) else { panic!("not unsubscribed") };
    assert_eq!(existed, (0..2000).map(|n| n < MOST).collect::<Vec<_>>());
    assert_eq!(rig.count(RowKind::Subscription), 0);
}

#[test]
fn a_session_has_a_bounded_number_of_cursors() {
    let mut rig = with_retained(1000);
    let s = rig.connect(1, connect("s")).session;
    let wide = |range: std::ops::Range<usize>| range.map(|n| format!("+/+/{n}/#"));
    // The first takes all that this entry may look at; and so does it for the second.
    let commands = vec![subscribe(s, 1, "r/+"), subscribe_to(s, wide(0..MOST)), subscribe_to(s, wide(MOST..MOST + 9))];
    let happened = rig.batch_undrained(1, commands);
    let outcomes = happened.outcomes();
    assert_eq!(answers(&outcomes[1]), (MOST - 1, 1));
    assert_eq!(answers(&outcomes[2]), (0, 9));
    assert_eq!(rig.count(RowKind::Subscription), MOST, "what is refused is not subscribed to");
    // The cursor that is replaced makes room for itself.
    assert_eq!(answers(&rig.batch_undrained(1, vec![subscribe(s, 1, "r/+")]).outcome()), (1, 0));
    rig.drain();
    assert_eq!(answers(&rig.one(1, subscribe_to(s, wide(MOST..MOST + 9)))), (9, 0));
    assert_eq!(rig.count(RowKind::Continuation) + rig.count(RowKind::ContinuationMark), 0);
}

#[test]
fn a_new_cursor_goes_on_beside_the_sweep_of_a_long_queue() {
    for restarts in [false, true] {
        let mut rig = with_retained(1000);
        let s = rig.subscriber(1, "s", 1, "t");
        let flood = vec![Command::Publish(publish(None, 1, "t", "x")); 1000];
        for _ in 0..30 {
            rig.batch(2, flood.clone());
        }
        rig.direct_undrained(Command::EndSession { session: s.session });
        let new = rig.connect_undrained(1, connect("new"));
        rig.batch_undrained(1, vec![subscribe(new, 1, "r/+")]);
        for _ in 0..40 {
            rig.direct_undrained(Command::Tick);
            if restarts {
                rig.reopen();
            }
        }
        assert_eq!(rig.queue(new.session).len(), 1000, "restarts: {restarts}");
        assert!(rig.count(RowKind::Queue) > 10_000, "the sweep is far from its end");
        rig.drain();
        assert_eq!(rig.count(RowKind::Queue), 1000);
    }
}

/// What has nothing left to do costs something, too.
#[test]
fn cursors_of_sessions_that_ended_are_removed_by_and_by() {
    let mut rig = with_retained(1000);
    let clients = 600;
    let sessions: Vec<SessionRef> = (0..clients).map(|n| rig.connect(1, connect(&format!("s{n}"))).session).collect();
    rig.batch_undrained(1, sessions.iter().map(|s| subscribe(*s, 1, "r/+")).collect());
    let ends = sessions.iter().map(|s| Command::EndSession { session: s.session }).collect();
    rig.batch_undrained(2, ends);
    let left = rig.count(RowKind::Continuation);
    // Each session leaves a sweep and a cursor.
    assert!(left > clients + 300, "{left} of {} are left", 2 * clients);
    rig.drain();
    assert_eq!(rig.count(RowKind::Continuation) + rig.count(RowKind::Queue), 0);
}

/// Work in progress is the same on a replica that starts in the middle of it.
#[test]
fn continuations_go_on_in_the_same_order_after_a_restart() {
    use crate::testkit::replica::{Then, replay};
    let mut rig = with_retained(600);
    let sessions: Vec<SessionRef> = (0..9).map(|n| rig.connect(1, connect(&format!("s{n}"))).session).collect();
    for s in &sessions {
        rig.batch_undrained(1, vec![subscribe(*s, 1, "r/+"), subscribe(*s, 1, "r/#")]);
    }
    rig.batch_undrained(2, vec![Command::Publish(publish(None, 1, "r/0500", "live"))]);
    rig.batch_undrained(1, vec![Command::Close(close(sessions[3], 0))]);
    rig.direct_undrained(Command::EndSession { session: sessions[5].session });
    rig.drain();
    for cuts in [vec![Then::Reopen], vec![Then::GoOn, Then::Flush, Then::Commit, Then::Crash, Then::GoOn]] {
        let (rows, _) = replay(&rig.log, &cuts);
        assert!(rows == *rig.machine.store(), "{cuts:?}");
    }
}
