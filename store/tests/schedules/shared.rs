//! Shared and exclusive subscriptions: one member gets a message, another only when the first's connection ended
//! without having settled it (guarantee 10), and nothing waits while somebody could have it.

use quorate_store::command::{AckKind, Command, Connect, Publish, QueueFullPolicy, SessionRef, Setting};
use quorate_store::command::{ShareStrategy, Subscribe};
use quorate_store::effect::{Granted, Outcome, ShareSummary};
use quorate_store::ids::{Position, QoS};
use quorate_store::message::Message;
use quorate_store::rows::key::RowKind;

use crate::testkit::commands::{
    close, connect, disconnect, filter, options, payload, publish, publish2, retain, settle, subscribe, topic,
    transient, unsubscribe,
};
use crate::testkit::replica::{Then, replay};
use crate::testkit::{Happened, Rig};

const SHARED: &str = "$share/g/t/#";

/// A member of `$share/g/t/#` at QoS `q` with a Receive Maximum.
fn member(rig: &mut Rig, node: u64, client_id: &str, q: u8, receive_maximum: u16) -> SessionRef {
    let from = rig.connect(node, Connect { receive_maximum, ..connect(client_id) }).session;
    join(rig, node, from, q);
    from
}

fn join(rig: &mut Rig, node: u64, from: SessionRef, q: u8) {
    let Outcome::Subscribed(granted) = rig.one(node, subscribe(from, q, SHARED)) else { panic!("not answered") };
    assert_eq!(granted[0].unwrap().qos, QoS::from_u8(q).unwrap());
}

fn messages(rig: &mut Rig, node: u64, q: u8, texts: &[&str]) -> Happened {
    rig.batch(node, texts.iter().map(|text| Command::Publish(publish(None, q, "t/x", text))).collect())
}

fn share(rig: &Rig) -> ShareSummary {
    let shares = rig.machine.shares();
    assert_eq!(shares.len(), 1, "{shares:?}");
    shares[0].clone()
}

fn set_strategy(rig: &mut Rig, strategy: ShareStrategy) {
    let command = Command::SetShareStrategy { share: "g".into(), filter: filter("t/#"), strategy };
    assert_eq!(rig.direct(command).outcome(), Outcome::Done);
}

/// However the log is cut, and whatever a replica has read: the same rows.
fn same_on_every_replica(rig: &Rig) {
    for cuts in [&[Then::Reopen][..], &[Then::GoOn, Then::GoOn, Then::Reopen], &[Then::Flush, Then::GoOn, Then::Crash]]
    {
        let (rows, _) = replay(&rig.log, cuts);
        assert!(rows == *rig.machine.store(), "a replica differs that does {cuts:?}");
    }
}

/// [MQTT-4.8.2-3]: each member gets a part, and each at its own QoS.
#[test]
fn each_message_goes_to_one_member_and_the_load_is_shared() {
    let mut rig = Rig::with_nodes(2);
    let (a, b) = (member(&mut rig, 1, "a", 1, 10), member(&mut rig, 2, "b", 2, 10));
    let happened = messages(&mut rig, 1, 2, &["1", "2", "3", "4"]);
    assert_eq!((happened.sent(a.session).len(), happened.sent(b.session).len()), (2, 2));
    let mut all = [rig.queued(a.session), rig.queued(b.session)].concat();
    all.sort();
    assert_eq!(all, ["1", "2", "3", "4"]);
    assert!(rig.queue(a.session).iter().all(|row| row.qos == QoS::AtLeastOnce));
    assert!(rig.queue(b.session).iter().all(|row| row.qos == QoS::ExactlyOnce));
    assert_eq!(rig.count(RowKind::References), 0, "one row points to each message");
    same_on_every_replica(&rig);
}

#[test]
fn a_session_may_have_a_filter_its_part_of_a_group_and_another_group_side_by_side() {
    let mut rig = Rig::with_nodes(1);
    let a = member(&mut rig, 1, "a", 1, 10);
    rig.one(1, subscribe(a, 1, "t/#"));
    rig.one(1, subscribe(a, 2, "$share/h/t/+"));
    messages(&mut rig, 1, 2, &["m"]);
    let qos: Vec<_> = rig.queue(a.session).iter().map(|row| row.qos as u8).collect();
    assert_eq!(qos, [1, 1, 2], "its own copy, and one of each group");
    rig.settle(1, a, AckKind::Puback, &[0, 1]);
    rig.settle(1, a, AckKind::Pubrec, &[2]);
    rig.settle(1, a, AckKind::Pubcomp, &[2]);
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::References)), (0, 0));
}

#[test]
fn a_message_waits_until_a_member_has_room_and_in_its_order() {
    let mut rig = Rig::with_nodes(2);
    let a = member(&mut rig, 1, "a", 1, 2);
    messages(&mut rig, 2, 1, &["1", "2", "3", "4", "5"]);
    assert_eq!(rig.queued(a.session), ["1", "2"], "not more than its Receive Maximum");
    assert_eq!(share(&rig).waiting, 3);
    rig.settle(1, a, AckKind::Puback, &[1]);
    assert_eq!(rig.queued(a.session), ["1", "3"]);
    // A newcomer takes what waits, the oldest first, and what comes later goes behind it.
    let b = rig.connect(2, Connect { receive_maximum: 1, ..connect("b") }).session;
    rig.batch(2, vec![subscribe(b, 1, SHARED), Command::Publish(publish(None, 1, "t/x", "6"))]);
    assert_eq!(rig.queued(b.session), ["4"]);
    rig.settle(2, b, AckKind::Puback, &[0]);
    assert_eq!(rig.queued(b.session), ["5"]);
    rig.settle(2, b, AckKind::Puback, &[1]);
    assert_eq!(rig.queued(b.session), ["6"]);
    assert_eq!((share(&rig).waiting, share(&rig).waiting_bytes), (0, 0));
    same_on_every_replica(&rig);
}

#[test]
fn with_nobody_connected_messages_wait_for_the_first_who_comes() {
    let mut rig = Rig::with_nodes(2);
    let a = member(&mut rig, 1, "a", 1, 10);
    let b = member(&mut rig, 2, "b", 1, 10);
    rig.batch(1, vec![Command::Close(close(a, 0))]);
    rig.batch(2, vec![Command::Close(close(b, 0))]);
    let happened = messages(&mut rig, 1, 1, &["1", "2"]);
    let Outcome::Published { matched, .. } = happened.outcomes()[0] else { panic!("{happened:?}") };
    assert!(matched);
    assert!(rig.queued(a.session).is_empty() && rig.queued(b.session).is_empty());
    let b = rig.connect(1, connect("b"));
    assert!(b.present);
    assert_eq!(rig.queued(b.session.session), ["1", "2"]);
    same_on_every_replica(&rig);
}

/// What is unsettled when a connection ends goes to another member, in the old order, before what waits already.
#[test]
fn what_a_member_has_not_settled_goes_to_another_when_its_connection_ends() {
    for how in 0..3 {
        let mut rig = Rig::with_nodes(2);
        let a = member(&mut rig, 1, "a", 1, 3);
        messages(&mut rig, 2, 1, &["1", "2", "3", "4"]);
        rig.settle(1, a, AckKind::Puback, &[1]);
        assert_eq!(rig.queued(a.session), ["1", "3", "4"]);
        messages(&mut rig, 2, 1, &["5"]);
        let b = member(&mut rig, 2, "b", 1, 1);
        assert_eq!(rig.queued(b.session), ["5"]);
        messages(&mut rig, 2, 1, &["6"]);
        match how {
            // Its node says what it sent, the node is lost, another client takes over and starts clean.
            0 => drop(rig.batch(1, vec![Command::Close(close(a, 3))])),
            1 => drop(rig.lose(1)),
            _ => drop(rig.connect(2, Connect { clean_start: true, ..connect("a") })),
        }
        assert!(rig.queued(a.session).is_empty(), "QoS 1 returns");
        let mut got = Vec::new();
        while let Some(row) = rig.queue(b.session).into_iter().next() {
            got.push(crate::testkit::text(&row.message.payload));
            rig.one(2, settle(b, AckKind::Puback, [&row]));
        }
        assert_eq!(got, ["5", "1", "3", "4", "6"], "{how}");
        assert_eq!(rig.count(RowKind::Message), 0);
        same_on_every_replica(&rig);
    }
}

/// [MQTT-4.8.2-4], [MQTT-4.8.2-5]: a QoS 2 message that may have been sent is completed with its session, or ends with
/// it; one that was certainly not sent goes to another.
#[test]
fn a_qos_2_message_that_may_have_been_sent_stays_with_its_session() {
    let mut rig = Rig::with_nodes(2);
    let a = member(&mut rig, 1, "a", 2, 10);
    messages(&mut rig, 2, 2, &["released", "sent", "not sent"]);
    rig.settle(1, a, AckKind::Pubrec, &[0]);
    rig.batch(1, vec![Command::Close(close(a, 2))]);
    assert_eq!(rig.queued(a.session), ["released", "sent"]);
    let b = member(&mut rig, 2, "b", 2, 10);
    assert_eq!(rig.queued(b.session), ["not sent"]);
    let again = rig.connect(2, connect("a"));
    assert!(again.present && again.sent_until.0 == 2 && again.queue_head.0 == 0);
    let a = again.session;
    rig.settle(2, a, AckKind::Pubcomp, &[0]);
    rig.settle(2, a, AckKind::Pubrec, &[1]);
    rig.settle(2, a, AckKind::Pubcomp, &[1]);
    assert!(rig.queued(a.session).is_empty());
    // Of a node that was lost, all of the window may have been sent.
    messages(&mut rig, 2, 2, &["x", "y"]);
    let before = [rig.queued(a.session), rig.queued(b.session)];
    rig.lose(2);
    assert_eq!([rig.queued(a.session), rig.queued(b.session)], before);
    rig.direct(Command::EndSession { session: a.session });
    rig.direct(Command::EndSession { session: b.session });
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::Queue), rig.count(RowKind::ShareQueue)), (0, 0, 0));
    same_on_every_replica(&rig);
}

/// [MQTT-4.8.2-6]
#[test]
fn a_negative_acknowledgement_discards_the_message() {
    let mut rig = Rig::with_nodes(1);
    let (a, b) = (member(&mut rig, 1, "a", 2, 1), member(&mut rig, 1, "b", 2, 1));
    messages(&mut rig, 1, 2, &["m", "n"]);
    rig.settle(1, a, AckKind::PubrecRefused, &[0]);
    assert_eq!((rig.queued(a.session).len(), rig.queued(b.session).len(), share(&rig).waiting), (0, 1, 0));
    assert_eq!(rig.count(RowKind::Message), 1);
}

#[test]
fn a_transient_member_has_rows_and_its_end_gives_them_back() {
    let mut rig = Rig::with_nodes(2);
    for how in 0..3 {
        let name = format!("t{how}");
        let t = rig.connect(1, Connect { receive_maximum: 2, ..transient(&name) }).session;
        join(&mut rig, 1, t, 1);
        let happened = messages(&mut rig, 2, 1, &["1", "2", "3"]);
        assert!(happened.to(t.session).iter().all(|d| d.seq.is_some()), "they are logged");
        assert_eq!(rig.queued(t.session), ["1", "2"]);
        let b = member(&mut rig, 2, "b", 1, 10);
        assert_eq!(rig.queued(b.session), ["3"]);
        match how {
            0 => drop(rig.batch(1, vec![Command::Close(disconnect(t, 1))])),
            1 => drop(rig.connect(2, transient(&name))),
            _ => drop(rig.lose(1)),
        }
        assert_eq!(rig.queued(b.session), ["3", "1", "2"], "{how}");
        rig.direct(Command::EndSession { session: b.session });
        same_on_every_replica(&rig);
    }
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::Share)), (0, 0));
}

/// A transient session's QoS 2 rows were perhaps sent when its node was lost: nobody else gets them.
#[test]
fn a_qos_2_message_of_a_transient_member_whose_node_is_lost_goes_to_nobody_else() {
    let mut rig = Rig::with_nodes(2);
    let t = rig.connect(1, transient("t")).session;
    join(&mut rig, 1, t, 2);
    let b = member(&mut rig, 2, "b", 2, 1);
    messages(&mut rig, 2, 2, &["1", "2", "3"]);
    let with_b = rig.queued(b.session);
    rig.lose(1);
    assert_eq!((rig.queued(b.session), share(&rig).waiting), (with_b, 0));
    same_on_every_replica(&rig);
}

#[test]
fn a_group_ends_with_its_last_member_and_with_it_what_waits() {
    let mut rig = Rig::with_nodes(1);
    let a = member(&mut rig, 1, "a", 1, 1);
    let first = share(&rig).share;
    let texts: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    messages(&mut rig, 1, 1, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(share(&rig).waiting, 499);
    assert_eq!(rig.one(1, unsubscribe(a, SHARED)), Outcome::Unsubscribed(vec![true]));
    assert_eq!(rig.one(1, unsubscribe(a, SHARED)), Outcome::Unsubscribed(vec![false]));
    assert!(rig.machine.shares().is_empty());
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::ShareQueue)), (1, 0));
    // What is in flight stays with the session, also when the group's name is used again.
    join(&mut rig, 1, a, 1);
    assert_ne!(share(&rig).share, first);
    rig.batch(1, vec![Command::Close(close(a, 1))]);
    assert_eq!((rig.queued(a.session), share(&rig).waiting), (vec!["0".to_owned()], 0));
    same_on_every_replica(&rig);
}

#[test]
fn what_is_in_flight_at_unsubscribe_is_settled_or_goes_to_another_member() {
    let mut rig = Rig::with_nodes(1);
    let (a, b) = (member(&mut rig, 1, "a", 1, 10), member(&mut rig, 1, "b", 1, 10));
    messages(&mut rig, 1, 1, &["1", "2", "3", "4"]);
    let with_a = rig.queued(a.session);
    rig.one(1, unsubscribe(a, SHARED));
    assert_eq!(rig.queued(a.session), with_a);
    rig.settle(1, a, AckKind::Puback, &[0]);
    rig.batch(1, vec![Command::Close(close(a, 2))]);
    assert!(rig.queued(a.session).is_empty());
    assert_eq!(rig.queued(b.session).len(), 3);
}

/// No message is sent in vain to a group of sessions that have all ended.
#[test]
fn a_group_whose_sessions_have_ended_matches_nothing() {
    let mut rig = Rig::with_nodes(1);
    let a = member(&mut rig, 1, "a", 1, 1);
    rig.batch(1, vec![Command::Close(quorate_store::command::Close { expiry_s: Some(5), ..close(a, 0) })]);
    rig.now += 5_000;
    let outcome = rig.publish(1, publish(None, 1, "t/x", "m")).outcome();
    assert!(matches!(outcome, Outcome::Published { matched: false, .. }), "{outcome:?}");
    assert!(rig.machine.shares().is_empty());
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::ShareQueue)), (0, 0));
}

/// A member gets QoS 0 at most once, and nothing waits for it.
#[test]
fn a_message_or_a_member_of_qos_0_takes_no_row() {
    let mut rig = Rig::with_nodes(1);
    let a = member(&mut rig, 1, "a", 0, 1);
    let happened = messages(&mut rig, 1, 1, &["1", "2"]);
    let sent: Vec<_> = happened.to(a.session).iter().map(|d| (d.seq, d.qos)).collect();
    assert_eq!(sent, [(None, QoS::AtMostOnce); 2]);
    rig.batch(1, vec![Command::Close(close(a, 0))]);
    messages(&mut rig, 1, 0, &["lost"]);
    messages(&mut rig, 1, 1, &["waits", "waits too"]);
    assert_eq!(share(&rig).waiting, 2);
    let happened = rig.batch(1, vec![Command::Connect(connect("a"))]);
    assert_eq!(happened.sent(a.session), ["waits", "waits too"]);
    assert_eq!((rig.count(RowKind::Message), rig.count(RowKind::ShareQueue), rig.count(RowKind::Queue)), (0, 0, 0));
}

#[test]
fn retained_messages_are_not_for_a_group_and_retain_as_published_is_each_members_own() {
    let mut rig = Rig::with_nodes(1);
    rig.publish(1, retain(None, "t/x", "kept"));
    let a = rig.connect(1, connect("a")).session;
    let wanted = quorate_store::command::SubscribeOptions { retain_as_published: true, ..options(1) };
    let happened = rig.batch(
        1,
        vec![Command::Subscribe(Subscribe { from: a, identifier: Some(7), filters: vec![(filter(SHARED), wanted)] })],
    );
    assert!(happened.to(a.session).is_empty());
    let happened = rig.publish(1, retain(None, "t/x", "new"));
    let [d] = happened.to(a.session).try_into().unwrap();
    assert!(d.retain && d.identifiers.as_ref() == [7]);
    // It returns with what the message is, and goes out as the next member wants it.
    rig.batch(1, vec![Command::Close(close(a, 1))]);
    let b = member(&mut rig, 1, "b", 2, 10);
    let row = &rig.queue(b.session)[0];
    assert!(!row.retain && row.identifiers.is_empty());
}

#[test]
fn a_message_takes_its_own_qos_along_when_it_returns() {
    let mut rig = Rig::with_nodes(1);
    let a = member(&mut rig, 1, "a", 1, 10);
    let p = rig.publisher(1, "p");
    rig.publish(1, publish2(p, 1, "t/x", "m"));
    assert_eq!(rig.queue(a.session)[0].qos, QoS::AtLeastOnce);
    rig.batch(1, vec![Command::Close(close(a, 1))]);
    let b = member(&mut rig, 1, "b", 2, 10);
    assert_eq!(rig.queue(b.session)[0].qos, QoS::ExactlyOnce);
}

#[test]
fn a_full_group_refuses_a_publish_for_all_before_any_row_is_written() {
    let mut rig = Rig::with_nodes(1);
    let s = rig.subscriber(1, "s", 1, "t/#");
    let a = member(&mut rig, 1, "a", 1, 1);
    messages(&mut rig, 1, 1, &["1", "2"]);
    rig.settle(1, s, AckKind::Puback, &[0, 1]);
    let bytes = share(&rig).waiting_bytes;
    rig.direct(Command::Set(Setting::QueueBytesMax(bytes)));
    let before = rig.rows_without_index();
    assert_eq!(rig.publish(1, publish(None, 1, "t/x", "3")).outcome(), Outcome::QueueFull);
    let dedup = |rows: Vec<(Vec<u8>, Vec<u8>)>| {
        rows.into_iter().filter(|(k, _)| k[2] != RowKind::Dedup as u8).collect::<Vec<_>>()
    };
    assert_eq!(dedup(rig.rows_without_index()), dedup(before), "not for `s` either");
    // A will cannot be refused: the group's copy is dropped, and counted.
    rig.connect(1, Connect { will: Some(crate::testkit::commands::will("t/x", "w", 0)), ..connect("w") });
    rig.connect(1, connect("w"));
    assert_eq!((rig.queued(s.session), share(&rig).dropped), (vec!["w".to_owned()], 1));
    rig.direct(Command::Set(Setting::QueueFullPolicy(QueueFullPolicy::DropOldest)));
    rig.settle(1, s, AckKind::Puback, &[2]);
    messages(&mut rig, 1, 1, &["4"]);
    assert_eq!((share(&rig).waiting, share(&rig).dropped), (1, 2), "the oldest goes");
    rig.settle(1, a, AckKind::Puback, &[0]);
    assert_eq!(rig.queued(a.session), ["4"]);
    same_on_every_replica(&rig);
}

#[test]
fn what_has_expired_in_a_group_makes_room_and_is_given_to_nobody() {
    let mut rig = Rig::with_nodes(1);
    let a = member(&mut rig, 1, "a", 1, 1);
    messages(&mut rig, 1, 1, &["1"]);
    let expiring = |text: &str| Publish { expiry_s: Some(1), ..publish(None, 1, "t/x", text) };
    rig.publish(1, expiring("2"));
    rig.publish(1, expiring("3"));
    rig.direct(Command::Set(Setting::QueueBytesMax(share(&rig).waiting_bytes)));
    assert_eq!(rig.publish(1, expiring("4")).outcome(), Outcome::QueueFull);
    rig.now += 2_000;
    assert!(matches!(rig.publish(1, expiring("5")).outcome(), Outcome::Published { .. }));
    assert_eq!((share(&rig).waiting, share(&rig).dropped), (1, 0));
    rig.now += 2_000;
    rig.settle(1, a, AckKind::Puback, &[0]);
    assert_eq!((rig.queued(a.session).len(), share(&rig).waiting, rig.count(RowKind::Message)), (0, 0, 0));
    same_on_every_replica(&rig);
}

/// The end of one connection returns a bounded number of rows, however large its Receive Maximum is; many groups and
/// long queues are served by and by, without anything else happening.
#[test]
fn nothing_is_stranded_however_much_waits() {
    let mut rig = Rig::with_nodes(2);
    let a = rig.connect(1, Connect { receive_maximum: 65_535, ..connect("a") }).session;
    for n in 0..40 {
        rig.one(1, subscribe(a, 1, &format!("$share/g{n}/t/#")));
    }
    let flood = |n: usize| Command::Publish(publish(None, 1, "t/x", &n.to_string()));
    rig.batch(2, (0..50).map(flood).collect());
    assert_eq!(rig.queue(a.session).len(), 512, "of shared groups");
    let waiting = |rig: &Rig| rig.machine.shares().iter().map(|s| s.waiting).sum::<u64>();
    assert_eq!(waiting(&rig), 50 * 40 - 512);
    rig.batch(1, vec![Command::Close(close(a, 512))]);
    assert_eq!((rig.queue(a.session).len(), waiting(&rig)), (0, 2000));
    let a = rig.connect(2, Connect { receive_maximum: 65_535, ..connect("a") }).session;
    assert_eq!(rig.queue(a.session).len(), 512, "at once");
    let mut served = 0;
    while let rows = rig.queue(a.session)
        && !rows.is_empty()
    {
        served += rows.len();
        rig.one(2, settle(a, AckKind::Puback, &rows));
    }
    assert_eq!((served, waiting(&rig), rig.count(RowKind::Message)), (2000, 0, 0));
    same_on_every_replica(&rig);
}

/// A member that is in several groups is served by all of them in turn.
#[test]
fn no_group_of_a_busy_member_starves() {
    let mut rig = Rig::with_nodes(1);
    let a = rig.connect(1, Connect { receive_maximum: 1, ..connect("a") }).session;
    for n in 0..3 {
        rig.one(1, subscribe(a, 1, &format!("$share/g/{n}")));
    }
    for n in [0, 0, 0, 0, 1, 1, 1, 2, 2] {
        rig.publish(1, publish(None, 1, &n.to_string(), "m"));
    }
    let mut served = Vec::new();
    while let Some(row) = rig.queue(a.session).into_iter().next() {
        served.push(row.message.topic.as_str().to_owned());
        rig.one(1, settle(a, AckKind::Puback, [&row]));
    }
    assert_eq!(served, ["0", "0", "1", "2", "0", "1", "2", "0", "1"]);
}

#[test]
fn a_strategy_says_who_gets_a_message() {
    let mut rig = Rig::with_nodes(2);
    // Kept also while there is no such group.
    set_strategy(&mut rig, ShareStrategy::Local);
    let (a, b) = (member(&mut rig, 1, "a", 1, 10), member(&mut rig, 2, "b", 1, 3));
    let lengths = |rig: &Rig| (rig.queue(a.session).len(), rig.queue(b.session).len());
    messages(&mut rig, 2, 1, &["1", "2"]);
    assert_eq!(lengths(&rig), (0, 2), "those who are near");
    messages(&mut rig, 2, 1, &["3", "4"]);
    assert_eq!(lengths(&rig), (1, 3), "and the others when those have no room");
    assert_eq!(share(&rig).strategy, ShareStrategy::Local);
    rig.settle(2, b, AckKind::Puback, &[0, 1, 2]);
    rig.settle(1, a, AckKind::Puback, &[0]);

    set_strategy(&mut rig, ShareStrategy::RoundRobin);
    messages(&mut rig, 2, 1, &["1", "2", "3", "4"]);
    assert_eq!(lengths(&rig), (2, 2));
    rig.settle(2, b, AckKind::Puback, &[3, 4]);

    set_strategy(&mut rig, ShareStrategy::MostRoom);
    messages(&mut rig, 2, 1, &["1", "2", "3", "4"]);
    assert_eq!(lengths(&rig), (6, 0), "8 to 4 of room, against 3");
    rig.settle(1, a, AckKind::Puback, &[1, 2, 3, 4, 5, 6]);

    set_strategy(&mut rig, ShareStrategy::StickyTopic);
    let mut favourites = std::collections::BTreeSet::new();
    for n in 0..20 {
        let to = format!("t/{n}");
        let got = |happened: &Happened| (happened.to(a.session).len(), happened.to(b.session).len());
        let first = got(&rig.publish(1, publish(None, 1, &to, "m")));
        assert_eq!(got(&rig.publish(2, publish(None, 1, &to, "m"))), first);
        favourites.insert(first);
        for (node, s) in [(1, a), (2, b)] {
            let rows = rig.queue(s.session);
            rig.one(node, settle(s, AckKind::Puback, &rows));
        }
    }
    assert_eq!(favourites.len(), 2, "both are somebody's favourite");
    same_on_every_replica(&rig);
    // The default is forgotten, and a name that is none changes nothing.
    set_strategy(&mut rig, ShareStrategy::MostRoom);
    assert_eq!(rig.count(RowKind::ShareStrategy), 0);
    let bad = Command::SetShareStrategy { share: "+".into(), filter: filter("t"), strategy: ShareStrategy::Local };
    assert_eq!(rig.direct(bad).outcome(), Outcome::Void);
}

#[test]
fn strategies_and_groups_of_a_session_are_bounded() {
    let mut rig = Rig::with_nodes(1);
    for n in 0..=4096 {
        let strategy = ShareStrategy::RoundRobin;
        let command = Command::SetShareStrategy { share: format!("g{n}"), filter: filter("t"), strategy };
        let want = if n < 4096 { Outcome::Done } else { Outcome::LimitReached };
        assert_eq!(rig.direct_undrained(command).outcome(), want, "{n}");
    }
    let a = rig.connect(1, connect("a")).session;
    let filters: Vec<_> = (0..1000).map(|n| (filter(&format!("$share/g{n}/t")), options(1))).collect();
    rig.one(1, Command::Subscribe(Subscribe { from: a, identifier: None, filters }));
    let filters: Vec<_> = (1000..1100).map(|n| (filter(&format!("$share/g{n}/t")), options(1))).collect();
    let outcome = rig.one(1, Command::Subscribe(Subscribe { from: a, identifier: None, filters }));
    let Outcome::Subscribed(granted) = outcome else { panic!("{outcome:?}") };
    assert!(granted[23].is_ok() && granted[24] == Err(0x97), "{granted:?}");
    rig.direct(Command::EndSession { session: a.session });
    assert_eq!((rig.count(RowKind::Share), rig.count(RowKind::Subscription)), (0, 0));
}

/// [MQTT-4.8.2-1], [MQTT-4.8.2-2]
#[test]
fn a_share_name_that_is_none_is_refused() {
    let mut rig = Rig::with_nodes(1);
    let a = rig.connect(1, connect("a")).session;
    for bad in ["$share/g", "$share//a", "$share/+/a", "$share/g/", "$exclusive/", "$exclusive/$share/g/a"] {
        assert_eq!(rig.one(1, subscribe(a, 1, bad)), Outcome::Subscribed(vec![Err(0x8f)]), "{bad}");
    }
    assert_eq!((rig.count(RowKind::Share), rig.count(RowKind::Subscription)), (0, 0));
}

#[test]
fn a_qos_0_message_past_the_log_goes_to_one_connected_member() {
    let mut rig = Rig::with_nodes(2);
    let (a, b) = (member(&mut rig, 1, "a", 1, 10), member(&mut rig, 2, "b", 1, 10));
    let away = member(&mut rig, 2, "away", 1, 10);
    rig.batch(2, vec![Command::Close(close(away, 0))]);
    let s = rig.subscriber(1, "s", 0, "t/#");
    let message = std::sync::Arc::new(Message {
        position: Position::ZERO,
        topic: topic("t/x"),
        qos: QoS::AtMostOnce,
        retain: false,
        published_at: quorate_store::ids::ClusterTime(0),
        expires_at: None,
        properties: None,
        payload: payload("m"),
    });
    let route = |rig: &Rig| {
        let mut to = Vec::new();
        rig.machine.match_qos0(None, &message.topic, &message, &mut |_, d| to.push(d.to));
        assert_eq!(to.len(), 2, "the plain subscriber, and one member: {to:?}");
        assert_eq!(to[0], s);
        to[1]
    };
    let got = [route(&rig), route(&rig), route(&rig)];
    assert!(got[0] != got[1] && got[0] == got[2], "in turn: {got:?}");
    assert!(got.iter().all(|to| [a, b].contains(to)));
    set_strategy(&mut rig, ShareStrategy::StickyTopic);
    assert_eq!(route(&rig), route(&rig));
    set_strategy(&mut rig, ShareStrategy::Local);
    let from_b = |rig: &Rig| {
        let mut to = Vec::new();
        rig.machine.match_qos0(Some(b.session), &message.topic, &message, &mut |_, d| to.push(d.to));
        to[1]
    };
    assert_eq!([from_b(&rig), from_b(&rig)], [b, b], "who is near");
    rig.batch(2, vec![Command::Close(close(b, 0))]);
    assert_eq!(from_b(&rig), a, "or who there is");
}

/// A search that ends with the first who has all the room that there can be passes nobody over who is nearer.
#[test]
fn of_idle_members_the_next_in_turn_is_served_or_who_is_near() {
    let mut rig = Rig::with_nodes(2);
    let all: Vec<_> = (0..6).map(|n| member(&mut rig, 1 + n % 2, &n.to_string(), 1, 1024)).collect();
    let served = |rig: &mut Rig, node| {
        let happened = messages(rig, node, 1, &["m"]);
        let at = all.iter().position(|s| !rig.queue(s.session).is_empty()).unwrap();
        assert_eq!(happened.to(all[at].session).len(), 1);
        let rows = rig.queue(all[at].session);
        rig.one(1 + at as u64 % 2, settle(all[at], AckKind::Puback, &rows));
        at
    };
    let in_turn: Vec<_> = (0..8).map(|_| served(&mut rig, 2)).collect();
    assert_eq!(in_turn, [0, 1, 2, 3, 4, 5, 0, 1]);
    set_strategy(&mut rig, ShareStrategy::Local);
    let near: Vec<_> = (0..4).map(|_| served(&mut rig, 2)).collect();
    assert_eq!(near, [3, 5, 1, 3], "on the node of the publisher");
    rig.reopen();
    assert_eq!([served(&mut rig, 1), served(&mut rig, 2)], [4, 5], "after a restart, too");
    same_on_every_replica(&rig);
}

/// `$exclusive/f` is one session's until it unsubscribes or ends; not until it disconnects.
#[test]
fn an_exclusive_subscription_is_granted_to_one_session_at_a_time() {
    let mut rig = Rig::with_nodes(2);
    let ask = |rig: &mut Rig, node, from| rig.one(node, subscribe(from, 1, "$exclusive/e/+"));
    let granted = |is_new| Outcome::Subscribed(vec![Ok(Granted { qos: QoS::AtLeastOnce, is_new })]);
    let held = Outcome::Subscribed(vec![Err(0x97)]);
    let (a, b) = (rig.connect(1, connect("a")).session, rig.connect(2, connect("b")).session);
    rig.publish(1, retain(None, "e/x", "kept"));
    let happened = rig.batch(1, vec![subscribe(a, 1, "$exclusive/e/+")]);
    assert_eq!((happened.outcome(), happened.sent(a.session)), (granted(true), vec!["kept".to_owned()]));
    assert_eq!(ask(&mut rig, 1, a), granted(false), "again");
    assert_eq!(ask(&mut rig, 2, b), held);
    rig.batch(1, vec![Command::Close(close(a, 10))]);
    assert_eq!(ask(&mut rig, 2, b), held, "it is only away");
    rig.reopen();
    assert_eq!(ask(&mut rig, 2, b), held, "after a restart, too");
    rig.publish(1, publish(None, 1, "e/x", "m"));
    assert_eq!(rig.queue(a.session).last().unwrap().message.topic.as_str(), "e/x");
    let a = rig.connect(1, connect("a")).session;
    assert_eq!(rig.one(1, unsubscribe(a, "$exclusive/e/+")), Outcome::Unsubscribed(vec![true]));
    assert_eq!(ask(&mut rig, 2, b), granted(true));
    assert_eq!(ask(&mut rig, 1, a), held);
    // Free at the moment the session ends, not when its rows are swept.
    rig.batch_undrained(2, vec![Command::EndSession { session: b.session }]);
    assert_eq!(ask(&mut rig, 1, a), granted(true));
    rig.drain();
    assert_eq!((rig.count(RowKind::Exclusive), rig.count(RowKind::Subscription)), (1, 1));
    rig.publish(1, publish(None, 1, "e/x", "n"));
    assert_eq!(rig.queued(a.session).last().unwrap(), "n");
    rig.direct(Command::EndSession { session: a.session });
    assert_eq!(rig.count(RowKind::Exclusive), 0);
    same_on_every_replica(&rig);
}

/// A session that has a filter in both ways gets each message once, and loses neither by leaving the other.
#[test]
fn an_exclusive_and_a_plain_subscription_of_one_filter_are_two() {
    let mut rig = Rig::with_nodes(1);
    let a = rig.subscriber(1, "a", 1, "e");
    rig.one(1, subscribe(a, 2, "$exclusive/e"));
    rig.publish(1, publish(None, 2, "e", "1"));
    assert_eq!(rig.queue(a.session).iter().map(|r| r.qos).collect::<Vec<_>>(), [QoS::ExactlyOnce]);
    rig.one(1, unsubscribe(a, "e"));
    rig.publish(1, publish(None, 2, "e", "2"));
    rig.one(1, unsubscribe(a, "$exclusive/e"));
    rig.publish(1, publish(None, 2, "e", "3"));
    assert_eq!(rig.queued(a.session), ["1", "2"]);
}

/// A delayed message is one message of a group like all others, when it is due.
#[test]
fn a_delayed_message_goes_to_one_member_or_waits_for_one() {
    let mut rig = Rig::with_nodes(1);
    let (a, b) = (member(&mut rig, 1, "a", 1, 1), member(&mut rig, 1, "b", 1, 1));
    let delayed = |text: &str| Command::Publish(publish(None, 1, "$delayed/5/t/x", text));
    rig.batch(1, vec![delayed("1"), delayed("2"), delayed("3")]);
    rig.pass_ms(5_000);
    let mut got = [rig.queued(a.session), rig.queued(b.session)].concat();
    got.sort();
    assert_eq!((got, share(&rig).waiting), (vec!["1".to_owned(), "2".to_owned()], 1));
    rig.settle(1, b, AckKind::Puback, &[0]);
    assert_eq!(rig.queued(b.session), ["3"]);
    same_on_every_replica(&rig);
}

/// Packet identifiers bound how far a window reaches beyond its first row: what is given beyond would wait for that row.
#[test]
fn a_member_with_one_slow_message_gets_none_that_it_could_not_be_sent() {
    const SPAN: u64 = 65_534;
    let mut rig = Rig::with_nodes(2);
    let a = member(&mut rig, 1, "a", 1, 10);
    messages(&mut rig, 2, 1, &["slow"]);
    for first in (1..SPAN).step_by(8) {
        let some: Vec<u64> = (first..SPAN.min(first + 8)).collect();
        messages(&mut rig, 2, 1, &vec!["quick"; some.len()]);
        rig.settle(1, a, AckKind::Puback, &some);
    }
    assert_eq!(rig.queued(a.session), ["slow"]);
    let b = member(&mut rig, 2, "b", 1, 10);
    messages(&mut rig, 2, 1, &["1", "2", "3"]);
    assert_eq!(rig.queued(b.session), ["1", "2", "3"], "whoever can be sent it gets it");
    rig.settle(1, a, AckKind::Puback, &[0]);
    messages(&mut rig, 2, 1, &["4"]);
    assert_eq!(rig.queued(a.session), ["4"]);
}
