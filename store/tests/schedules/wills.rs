//! A will is published exactly once when due, never when not, whatever dies (guarantee 9).

use quorate_store::command::{Close, Command, Connect, SessionRef, Will};
use quorate_store::rows::key::RowKind;

use crate::testkit::Rig;
use crate::testkit::commands::{close, connect, disconnect, subscribe, transient, will};

/// Three nodes; an observer of `w` on node 3, and `c` on node 1 with a will of this delay.
fn with_will(delay_s: u32, expiry_s: u32) -> (Rig, SessionRef, SessionRef) {
    let mut rig = Rig::with_nodes(3);
    let observer = rig.subscriber(3, "o", 1, "w");
    let c = rig.connect(1, Connect { expiry_s, will: Some(will("w", "gone", delay_s)), ..connect("c") }).session;
    (rig, observer, c)
}

#[test]
fn a_will_fires_once_after_its_delay_also_when_the_node_is_lost() {
    let (mut rig, o, _) = with_will(10, 60);
    rig.pass_ms(1000);
    rig.lose(1);
    rig.pass_ms(9_999);
    assert!(rig.queued(o.session).is_empty(), "not before its delay");
    rig.pass_ms(1);
    assert_eq!(rig.queued(o.session), ["gone"]);
    rig.lose(1);
    rig.start(1);
    rig.pass_ms(100_000);
    assert_eq!(rig.queued(o.session), ["gone"], "once");
    assert_eq!(rig.count(RowKind::Will), 0);
}

#[test]
fn a_will_fires_once_when_its_node_starts_over() {
    let (mut rig, o, _) = with_will(0, 60);
    rig.start(1);
    assert_eq!(rig.queued(o.session), ["gone"]);
    rig.pass_ms(100_000);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn a_will_fires_when_its_node_is_removed() {
    let (mut rig, o, _) = with_will(0, 60);
    rig.direct(Command::RemoveNode { node: quorate_store::ids::NodeId(1) });
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn a_will_that_waits_fires_once_after_the_whole_cluster_lost_power() {
    let (mut rig, o, c) = with_will(10, 60);
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.reopen();
    for node in 1..=3 {
        rig.start(node);
    }
    assert!(rig.queued(o.session).is_empty());
    assert!(rig.machine.has_deadlines());
    rig.pass_ms(10_000);
    assert_eq!(rig.queued(o.session), ["gone"]);
    rig.reopen();
    rig.pass_ms(10_000);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn a_will_waits_no_longer_than_its_session() {
    let (mut rig, o, c) = with_will(100, 2);
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.pass_ms(1_999);
    assert!(rig.queued(o.session).is_empty());
    rig.pass_ms(1);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn the_will_of_a_transient_session_does_not_wait() {
    let mut rig = Rig::with_nodes(2);
    let o = rig.subscriber(2, "o", 1, "w");
    let c = rig.connect(1, Connect { will: Some(will("w", "gone", 100)), ..transient("c") }).session;
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn a_client_that_comes_back_in_time_leaves_no_will() {
    let (mut rig, o, c) = with_will(10, 60);
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.now += 9_999;
    assert!(rig.connect(2, connect("c")).present);
    rig.pass_ms(100_000);
    assert!(rig.queued(o.session).is_empty());
    assert_eq!(rig.count(RowKind::Will), 0);
}

#[test]
fn a_client_that_comes_back_as_its_will_falls_due_is_too_late() {
    let (mut rig, o, c) = with_will(10, 60);
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.now += 10_000;
    // The CONNECT itself is the entry that brings the time.
    assert!(rig.connect(2, connect("c")).present);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn a_will_is_dropped_by_a_normal_disconnect_only() {
    let (mut rig, o, c) = with_will(0, 60);
    rig.batch(1, vec![Command::Close(disconnect(c, 0))]);
    rig.pass_ms(100_000);
    assert!(rig.queued(o.session).is_empty());
    let (mut rig, o, c) = with_will(0, 60);
    // DISCONNECT with Will Message (0x04) that also ends the session.
    rig.batch(1, vec![Command::Close(Close { expiry_s: Some(0), ..close(c, 0) })]);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

/// MQTT 5.0 section 3.1.4: the will of a connection that is taken over is sent when its delay is 0 or when its
/// session ends, and only then.
#[test]
fn a_takeover_publishes_the_will_by_the_rules() {
    let (mut rig, o, _) = with_will(0, 60);
    rig.connect(2, connect("c"));
    assert_eq!(rig.queued(o.session), ["gone"], "no delay");
    let (mut rig, o, _) = with_will(10, 60);
    rig.connect(2, connect("c"));
    rig.pass_ms(100_000);
    assert!(rig.queued(o.session).is_empty(), "a delay, and the session goes on");
    let (mut rig, o, _) = with_will(10, 60);
    rig.connect(2, Connect { clean_start: true, ..connect("c") });
    assert_eq!(rig.queued(o.session), ["gone"], "a delay, but the session has ended");
}

#[test]
fn a_clean_start_publishes_the_will_that_waits() {
    let (mut rig, o, c) = with_will(10, 60);
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    rig.connect(1, Connect { clean_start: true, ..connect("c") });
    assert_eq!(rig.queued(o.session), ["gone"]);
    rig.pass_ms(100_000);
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn an_operator_who_ends_a_session_makes_its_will_due() {
    let (mut rig, o, c) = with_will(10, 60);
    rig.direct(Command::EndSession { session: c.session });
    assert_eq!(rig.queued(o.session), ["gone"]);
}

#[test]
fn each_connection_has_its_own_will() {
    let (mut rig, o, _) = with_will(10, 60);
    let second = Will { delay_s: 0, ..will("w", "second", 0) };
    let c = rig.connect(2, Connect { will: Some(second), ..connect("c") }).session;
    rig.batch(2, vec![Command::Close(close(c, 0))]);
    rig.pass_ms(100_000);
    assert_eq!(rig.queued(o.session), ["second"]);
    let c = rig.connect(2, connect("c")).session;
    rig.batch(2, vec![Command::Close(close(c, 0))]);
    rig.pass_ms(100_000);
    assert_eq!(rig.queued(o.session), ["second"]);
}

#[test]
fn a_will_may_be_retained() {
    let mut rig = Rig::with_nodes(1);
    let offline = Will { retain: true, ..will("state/c", "offline", 0) };
    let c = rig.connect(1, Connect { will: Some(offline), ..connect("c") }).session;
    rig.batch(1, vec![Command::Close(close(c, 0))]);
    let o = rig.connect(1, connect("o")).session;
    let sent = rig.batch(1, vec![subscribe(o, 1, "state/+")]).to(o.session);
    assert_eq!(sent.len(), 1);
    assert!(sent[0].retain);
    assert_eq!(rig.queued(o.session), ["offline"]);
}

#[test]
fn wills_of_a_lost_node_fire_once_each_however_the_ticks_fall() {
    let mut rig = Rig::with_nodes(2);
    let o = rig.subscriber(2, "o", 1, "w/+");
    let clients = 1000;
    for n in 0..clients {
        let w = will(&format!("w/{n}"), &n.to_string(), n % 3);
        rig.connect(1, Connect { will: Some(w), expiry_s: 1 + n % 5, ..connect(&format!("c{n}")) });
    }
    rig.lose(1);
    rig.reopen();
    for _ in 0..40 {
        rig.pass_ms(250);
        rig.reopen();
    }
    let mut fired = rig.queued(o.session);
    fired.sort_by_key(|n| n.parse::<u32>().unwrap());
    assert_eq!(fired, (0..clients).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(rig.count(RowKind::Session), 1, "all but the observer have expired");
}
