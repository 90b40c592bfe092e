//! The proposal path of real nodes: exact retries, incarnations, liveness, cluster time, QoS 0.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod testkit;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_raft::{LogRetention, ProposeError, Start, Ticket};
use quorate_store::codec::Payload;
use quorate_store::command::{Command, Publish};
use quorate_store::effect::Outcome;
use quorate_store::ids::{Position, QoS};
use quorate_store::topic::TopicName;
use testkit::clients::{connect, subscribe};
use testkit::{TestNode, assert_same_rows, eventually, leader, three};

fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn position(outcome: &Outcome) -> Position {
    match outcome {
        Outcome::Published { position, .. } => *position,
        other => panic!("{other:?}"),
    }
}

fn qos0(topic: &str, payload: &'static [u8]) -> Publish {
    Publish {
        from: None,
        packet_id: None,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: TopicName::new(topic).unwrap(),
        properties: None,
        expiry_s: None,
        payload: Payload(payload.into()),
    }
}

/// Guarantees 2 and 5: whatever leadership does, each command is applied once and in its node's order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_leadership_moves_each_command_is_answered_once_and_in_order() {
    let nodes = three(LogRetention::default()).await;
    let all: Vec<&TestNode> = nodes.iter().collect();
    let mut tickets: Vec<Vec<Ticket>> = vec![Vec::new(); nodes.len()];
    for round in 0..6 {
        for number in round * 200..(round + 1) * 200 {
            for (node, tickets) in nodes.iter().zip(&mut tickets) {
                tickets.push(node.submit(number));
            }
        }
        // In the middle of it; it may have moved by itself.
        let _ = leader(&all).await.cluster.transfer(None).await;
    }
    for (node, tickets) in nodes.iter().zip(&tickets) {
        let mut last = Position::ZERO;
        for ticket in tickets {
            let outcome = eventually("a command is answered", async || node.recorder.outcome(*ticket)).await;
            assert!(position(&outcome) > last, "ticket {ticket:?} at {outcome:?} is not after {last}");
            last = position(&outcome);
        }
        assert_eq!(node.recorder.incarnations_closed(), 0);
    }
    assert_same_rows(&all).await;
    for node in &nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

/// The schedule: a node declared lost that is alive and comes back with a batch in its hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_declared_lost_with_batches_in_its_hand_starts_over_and_none_is_applied_later() {
    let nodes = three(LogRetention::default()).await;
    let all: Vec<&TestNode> = nodes.iter().collect();
    let leads = leader(&all).await;
    let alive = all.iter().copied().find(|n| n.id() != leads.id()).unwrap();
    let incarnation = alive.serves().await;
    let term = leads.cluster.leader().borrow().term;

    let void = Command::NodeLost { incarnation, term: term - 1 };
    assert_eq!(leads.cluster.propose_direct(void).await.unwrap(), Outcome::Void, "of another term");
    alive.publish(0..10).await;

    let mut tickets: Vec<Ticket> = (10..400).map(|number| alive.submit(number)).collect();
    let lost = leads.cluster.propose_direct(Command::NodeLost { incarnation, term });
    let lost = tokio::spawn(lost_outcome(lost.await));
    for number in 400..800 {
        let ticket = alive.submit(number);
        // Else it waited for the next incarnation, and is of that one.
        if alive.cluster.proposer().incarnation() != Some(incarnation) {
            break;
        }
        tickets.push(ticket);
        tokio::task::yield_now().await;
    }
    assert_eq!(lost.await.unwrap(), Outcome::Done);
    let closed = || async { (alive.recorder.incarnations_closed() == 1).then_some(()) };
    eventually("it sees that it was declared lost", closed).await;
    let next = eventually("it starts over", async || {
        alive.cluster.proposer().incarnation().filter(|next| *next > incarnation)
    })
    .await;
    for ticket in &tickets {
        if let Some(outcome) = alive.recorder.outcome(*ticket) {
            assert!(position(&outcome) < next.0, "applied after the closure");
            assert!(alive.has(alive.id(), ticket.request), "acknowledged, but not there");
        }
    }
    let unanswered: Vec<Ticket> = tickets.into_iter().filter(|t| alive.recorder.outcome(*t).is_none()).collect();
    alive.publish(1000..1100).await;
    let late = unanswered.iter().find(|ticket| alive.recorder.outcome(**ticket).is_some());
    assert_eq!(late, None, "nothing old is answered by the new incarnation");
    assert_same_rows(&all).await;
    for node in &nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

/// A declaration that a deposed leader made, and that reached the log under the next one, judges nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_lost_retried_by_a_deposed_leader_is_void() {
    let nodes = three(LogRetention::default()).await;
    let all: Vec<&TestNode> = nodes.iter().collect();
    let deposed = leader(&all).await;
    let alive = all.iter().copied().find(|n| n.id() != deposed.id()).unwrap();
    let incarnation = alive.serves().await;
    alive.publish(0..10).await;
    let term = deposed.cluster.leader().borrow().term;
    deposed.cluster.transfer(None).await.unwrap();
    // It goes on trying, as it would with an entry whose fate it does not know; the next leader appends it.
    let retried = Command::NodeLost { incarnation, term };
    assert_eq!(deposed.cluster.propose_direct(retried).await.unwrap(), Outcome::Void);
    assert!(leader(&all).await.cluster.leader().borrow().term > term);
    alive.publish(10..20).await;
    assert_same_rows(&all).await;
    assert_eq!(alive.cluster.proposer().incarnation(), Some(incarnation), "it is open");
    assert!(all.iter().all(|n| n.recorder.incarnations_closed() == 0));
    for node in &nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

async fn lost_outcome(outcome: Result<Outcome, ProposeError>) -> Outcome {
    outcome.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_declares_a_silent_node_lost_and_no_other() {
    let [a, b, c] = three(LogRetention::default()).await;
    let lead = leader(&[&a, &b, &c]).await.id();
    let mut nodes = vec![a, b, c];
    let silent = nodes.remove(nodes.iter().position(|n| n.id() != lead).unwrap());
    let died = Instant::now();
    let dead = silent.crash().await;
    let all: Vec<&TestNode> = nodes.iter().collect();
    let leads = leader(&all).await;
    let lost = async || (leads.cluster.stream_stats().nodes_declared_lost.get() > 0).then_some(());
    eventually("the silent node is declared lost", lost).await;
    assert!(died.elapsed() >= Duration::from_millis(2400), "not before its time: pings come each half second");
    assert!(all.iter().all(|n| n.recorder.incarnations_closed() == 0), "who pings is not declared lost");
    leads.publish(0..10).await;
    let back = dead.restart().await;
    back.serves().await;
    back.publish(0..10).await;
    nodes.push(back);
    assert_eq!(nodes.iter().map(|n| n.cluster.stream_stats().nodes_declared_lost.get()).sum::<u64>(), 1);
    for node in &nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

/// Guarantee 1, second half: a minority acknowledges nothing, and knows that it is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_knows_it_and_recovers_by_itself() {
    let [a, b, c] = three(LogRetention::default()).await;
    a.publish(0..10).await;
    let has_quorum = |node: &TestNode| node.cluster.status().borrow().has_quorum;
    eventually("there is a quorum", async || has_quorum(&a).then_some(())).await;
    let (b, c) = (b.crash().await, c.crash().await);
    let gone = Instant::now();
    eventually("the last node sees that it is alone", async || (!has_quorum(&a)).then_some(())).await;
    assert!(gone.elapsed() < Duration::from_secs(20));
    let ticket = a.submit(10);
    let error = a.cluster.linearizable().await.unwrap_err().to_string();
    assert!(error.contains("majority"), "{error}");
    assert_eq!(a.recorder.outcome(ticket), None, "nothing is acknowledged by a minority");
    let b = b.restart().await;
    eventually("there is a quorum again", async || (has_quorum(&a) && has_quorum(&b)).then_some(())).await;
    let outcome = eventually("the command comes through", async || a.recorder.outcome(ticket)).await;
    position(&outcome);
    assert!(a.cluster.linearizable().await.is_ok());
    drop(c);
    for node in [a, b] {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_time_starts_from_the_wall_clock_and_goes_on_over_restarts_and_leaders() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    a.publish(0..1).await;
    let near_wall = |time: u64| time.abs_diff(wall_ms()) < 10_000;
    let before = a.cluster.applied().borrow().time;
    assert!(near_wall(before.0), "{before:?}");
    let b = TestNode::join("b", &a, LogRetention::default()).await;
    let c = TestNode::join("c", &a, LogRetention::default()).await;
    testkit::all_vote(&[&a, &b, &c]).await;
    let mut nodes = vec![a, b, c];
    for round in 0..2 {
        let mut dead = Vec::new();
        for node in nodes {
            dead.push(node.crash().await);
        }
        nodes = Vec::new();
        for node in dead {
            nodes.push(node.restart().await);
        }
        for node in &nodes {
            node.serves().await;
            node.publish(round * 10 + 10..round * 10 + 15).await;
        }
        eventually("every node has the time again", async || {
            nodes.iter().all(|n| near_wall(n.cluster.cluster_time().0)).then_some(())
        })
        .await;
        assert!(nodes.iter().all(|n| n.cluster.applied().borrow().time >= before));
    }
    for node in nodes {
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qos_0_message_reaches_subscribers_on_every_node_without_an_entry() {
    let nodes = three(LogRetention::default()).await;
    let mut sessions = Vec::new();
    for node in &nodes {
        let session = connect(node, &format!("client of {}", node.id()), 0, None).await;
        subscribe(node, session, "room/+", QoS::AtLeastOnce).await;
        sessions.push(session);
    }
    assert_same_rows(&nodes.iter().collect::<Vec<_>>()).await;
    let index = nodes[0].applied();
    for publisher in &nodes {
        publisher.cluster.route_qos0(qos0("room/1", b"hello"));
        publisher.cluster.route_qos0(qos0("elsewhere", b"nobody"));
    }
    for (node, session) in nodes.iter().zip(&sessions) {
        let came = async || (node.recorder.deliveries().len() >= 3).then(|| node.recorder.deliveries());
        for delivery in eventually("three messages came", came).await {
            assert_eq!((delivery.to, delivery.qos, delivery.seq), (*session, QoS::AtMostOnce, None));
            assert_eq!(&*delivery.message.payload, b"hello");
        }
    }
    assert_eq!(nodes[0].applied(), index, "nothing went through the log");
    for node in nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_idempotent_is_not_proposed_outside_the_stream() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    let publish = a.cluster.propose_direct(Command::Publish(qos0("a", b""))).await;
    assert!(matches!(publish, Err(ProposeError::NotIdempotent)));
    a.cluster.shutdown().await;
}
