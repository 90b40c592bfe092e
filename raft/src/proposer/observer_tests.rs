use futures_util::FutureExt as _;
use quorate_store::effect::{Delivery, KickReason};
use quorate_store::ids::{BatchSeq, NodeId};

use super::*;
use crate::options::Limits;
use crate::proposer::testkit::{FakeFront, Told, connection, incarnation, publish, settle, submission};
use crate::proposer::{Step, StreamStats, Submission};

struct Fixture {
    proposer: Proposer,
    front: Arc<FakeFront>,
    starts: Arc<StartTable>,
    directs: Arc<DirectTable>,
    observer: StreamObserver,
}

fn fixture() -> Fixture {
    let proposer = Proposer::new(NodeId(1), &Limits::default(), Arc::new(StreamStats::default()));
    let (front, starts) = (Arc::new(FakeFront::default()), Arc::new(StartTable::default()));
    let (directs, clock) = (Arc::new(DirectTable::default()), Arc::new(ClusterClock::new(std::time::Duration::MAX)));
    let observer = StreamObserver::new(&proposer, directs.clone(), starts.clone(), clock, front.clone());
    Fixture { proposer, front, starts, directs, observer }
}

fn started(n: u64) -> Effect {
    Effect::DirectApplied { nonce: n.into(), outcomes: vec![Outcome::NodeStarted(incarnation(n))] }
}

fn closed(n: u64) -> Effect {
    Effect::IncarnationClosed { incarnation: incarnation(n), node: NodeId(1) }
}

impl Fixture {
    /// Starts incarnation `n`, with one command in flight as batch 1.
    fn with_one_in_flight(n: u64) -> Self {
        let mut f = fixture();
        f.starts.expect(n.into());
        f.observer.effect(started(n));
        f.observer.committed(AppliedView::default());
        f.proposer.submit(submission(7, publish(7))).unwrap();
        f.proposer.shared().with_stream(|s| s.connected(Instant::now()));
        while !matches!(f.proposer.shared().step(Instant::now()), Step::Wait { .. }) {}
        assert_eq!(f.proposer.depth(), (0, 1));
        assert_eq!(f.front.take(), [Told::Started(incarnation(n))]);
        f
    }
}

fn applied(n: u64, seq: u64) -> Effect {
    Effect::Applied { incarnation: incarnation(n), seq: BatchSeq(seq), outcomes: vec![Outcome::Done] }
}

#[test]
fn nothing_is_told_before_the_rows_of_the_run_are_readable() {
    let mut f = Fixture::with_one_in_flight(3);
    f.observer.effect(applied(3, 1));
    assert_eq!(f.front.take(), []);
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [Told::Outcome(7, Outcome::Done)]);
}

#[test]
fn what_was_applied_before_the_closure_is_answered_and_nothing_after() {
    let mut f = Fixture::with_one_in_flight(3);
    f.observer.effect(applied(3, 1));
    f.observer.effect(closed(3));
    assert!(!f.observer.wants(incarnation(3)));
    assert!(f.proposer.submit(submission(8, publish(8))).is_err(), "nothing is taken from the closure on");
    f.observer.effect(Effect::Kick { owner: incarnation(3), from: connection(1, 1), reason: KickReason::TakenOver });
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [Told::Outcome(7, Outcome::Done), Told::Closed(incarnation(3))]);
}

#[test]
fn an_incarnation_that_is_closed_in_the_run_that_starts_it_takes_no_commands() {
    let mut f = fixture();
    f.starts.expect(4);
    f.observer.effect(started(4));
    assert!(f.observer.wants(incarnation(4)), "what comes later in the same run is wanted");
    f.observer.effect(closed(4));
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [Told::Started(incarnation(4)), Told::Closed(incarnation(4))]);
    assert!(f.proposer.submit(submission(1, publish(1))).is_err());
    f.observer.effect(started(4));
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [], "a repeat of the start does not revive it");
}

#[test]
fn a_snapshot_over_a_running_node_ends_its_incarnation_and_answers_nothing() {
    let mut f = Fixture::with_one_in_flight(3);
    f.starts.expect(9);
    f.observer.installed(AppliedView::default());
    assert_eq!(f.front.take(), [Told::Closed(incarnation(3))]);
    assert_eq!(f.proposer.depth(), (0, 0));
    f.observer.effect(started(9));
    f.observer.effect(applied(3, 1));
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [], "neither the old stream nor a start that may have been jumped over");
}

#[test]
fn a_log_that_does_not_fit_the_stream_ends_the_incarnation() {
    let mut f = Fixture::with_one_in_flight(3);
    f.observer.effect(applied(3, 2));
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [Told::Closed(incarnation(3))]);
    assert_eq!(f.proposer.incarnation(), None);
}

#[test]
fn only_this_incarnations_deliveries_reach_the_front_end() {
    let mut f = Fixture::with_one_in_flight(3);
    for owner in [2, 3] {
        let message = quorate_store::message::Message {
            position: quorate_store::ids::Position::ZERO,
            topic: quorate_store::topic::TopicName::new("t").unwrap(),
            qos: quorate_store::ids::QoS::AtMostOnce,
            retain: false,
            published_at: quorate_store::ids::ClusterTime(0),
            expires_at: None,
            properties: None,
            payload: quorate_store::codec::Payload::default(),
        };
        let delivery = Delivery {
            to: connection(1, 1),
            seq: None,
            qos: quorate_store::ids::QoS::AtMostOnce,
            retain: false,
            identifiers: Arc::new([]),
            message: Arc::new(message),
        };
        f.observer.effect(Effect::Deliver { owner: incarnation(owner), delivery });
    }
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), [Told::Other]);
}

#[test]
fn a_direct_command_is_answered_once_by_its_first_application() {
    let mut f = fixture();
    let mut wait = f.directs.register(5).unwrap();
    let done = |outcome| Effect::DirectApplied { nonce: 5, outcomes: vec![outcome] };
    f.observer.effect(done(Outcome::NodeAllocated(NodeId(4))));
    assert!(wait.try_outcome().is_none(), "not before the rows are readable");
    f.observer.effect(done(Outcome::Done));
    f.observer.committed(AppliedView::default());
    assert_eq!(wait.try_outcome(), Some(Outcome::NodeAllocated(NodeId(4))));
}

#[test]
fn a_refused_start_is_no_incarnation() {
    let mut f = fixture();
    f.starts.expect(6);
    f.observer.effect(Effect::DirectApplied { nonce: 6, outcomes: vec![Outcome::Void] });
    f.observer.committed(AppliedView::default());
    assert_eq!(f.front.take(), []);
    assert_eq!(f.proposer.incarnation(), None);
}

/// What could wait, has waited, and finds no slot: the next slot that is free is its, whatever else happens.
#[test]
fn what_has_waited_for_company_goes_when_a_slot_is_free() {
    let mut f = Fixture::with_one_in_flight(3);
    let (mut now, shared) = (Instant::now(), f.proposer.shared().clone());
    let steps = |now| while !matches!(shared.step(now), Step::Wait { .. }) {};
    for id in 8..11 {
        f.proposer.submit(submission(id, publish(id))).unwrap();
        steps(now);
    }
    assert_eq!(f.proposer.depth(), (0, 4));
    for id in 11..13 {
        let patient = Submission { can_wait: true, ..submission(id, settle(connection(1, 1), id)) };
        f.proposer.submit(patient).unwrap();
        steps(now);
    }
    now += std::time::Duration::from_secs(1);
    steps(now);
    assert_eq!(f.proposer.depth(), (2, 4), "four are in flight: it wants more company");
    let is_woken = || shared.wake.notified().now_or_never().is_some();
    is_woken(); // by what was submitted
    assert!(!is_woken());
    f.observer.effect(applied(3, 1));
    f.observer.committed(AppliedView::default());
    assert!(is_woken());
    steps(now);
    assert_eq!(f.proposer.depth(), (0, 4));
}
