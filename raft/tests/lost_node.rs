//! A node with many connected sessions is lost (guarantees 9 and 13): their wills are published, each once, by entry
//! after entry, while the others go on. How long a PUBACK waits meanwhile is printed, and measured in docs/PERFORMANCE.md;
//! that each entry does a bounded part of it is held by `store/tests/schedules/bounded.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod testkit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_raft::{LogRetention, Submission, Ticket};
use quorate_store::codec::Payload;
use quorate_store::command::{Command, Connect, SessionRef, Subscribe, SubscribeOptions, Will};
use quorate_store::effect::{Granted, Outcome};
use quorate_store::ids::{ClusterTime, QoS};
use quorate_store::topic::{TopicFilter, TopicName};
use testkit::{TestNode, all_vote, assert_same_rows, eventually, leader, three};

const SESSIONS: u64 = 100_000;
/// Commands that wait for their outcome at a time.
const WINDOW: u64 = 2000;

fn submit(node: &TestNode, request: u64, command: Command) -> Ticket {
    let ticket = Ticket { worker: 1, slot: 0, generation: 0, request };
    let mut submission = Submission { command, ticket, withdrawn: None, can_wait: false };
    while let Err(busy) = node.cluster.proposer().submit(submission) {
        submission = *busy.submission;
        std::thread::yield_now();
    }
    ticket
}

async fn outcome(node: &TestNode, ticket: Ticket) -> Outcome {
    eventually("a command is applied", async || node.recorder.outcome(ticket)).await
}

fn connect(client_id: &str, will: Option<Will>) -> Command {
    let deadline = ClusterTime(u64::MAX);
    let client_id = client_id.to_owned();
    let user = None;
    Command::Connect(Connect {
        client_id,
        clean_start: true,
        expiry_s: 3600,
        receive_maximum: 10,
        will,
        deadline,
        user,
    })
}

fn will(number: u64) -> Will {
    Will {
        delay_s: 0,
        topic: TopicName::new(&format!("wills/{number}")).unwrap(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: None,
        expiry_s: None,
        payload: Payload(number.to_be_bytes().to_vec().into()),
    }
}

/// A session on `node` that gets all wills.
async fn watcher(node: &TestNode) -> SessionRef {
    let connected = outcome(node, submit(node, u64::MAX - 1, connect("watcher", None))).await;
    let Outcome::Connected(connected) = connected else { panic!("{connected:?}") };
    let options =
        SubscribeOptions { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
    let filters = vec![(TopicFilter::new("wills/#").unwrap(), options)];
    let subscribe = Subscribe { from: connected.session, identifier: None, filters };
    let answer = outcome(node, submit(node, u64::MAX - 2, Command::Subscribe(subscribe))).await;
    assert_eq!(answer, Outcome::Subscribed(vec![Ok(Granted { qos: QoS::AtLeastOnce, is_new: true })]));
    connected.session
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_wills_of_a_lost_node_with_100_000_sessions_come_once_each_while_the_others_go_on() {
    let [a, b, c] = three(LogRetention::default()).await;
    all_vote(&[&a, &b, &c]).await;
    let first = leader(&[&a, &b, &c]).await;
    if first.id() == c.id() {
        first.cluster.transfer(Some(a.id())).await.unwrap();
        eventually("another leads", async || b.cluster.leader().borrow().leader.filter(|l| *l != c.id())).await;
    }
    watcher(&a).await;
    for number in 0..SESSIONS {
        submit(&c, number, connect(&format!("client-{number}"), Some(will(number))));
        if number % WINDOW == WINDOW - 1 {
            let last = Ticket { worker: 1, slot: 0, generation: 0, request: number };
            assert!(matches!(outcome(&c, last).await, Outcome::Connected(_)));
        }
    }
    let (led_by, term) = (b.cluster.leader().borrow().leader, b.cluster.leader().borrow().term);

    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let publishing = async {
        let (mut number, mut longest) = (0, Duration::ZERO);
        while !over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let ticket = a.submit(number);
            outcome(&a, ticket).await;
            longest = longest.max(asked.elapsed());
            number += 1;
        }
        (number, longest)
    };
    let losing = async {
        let dead = c.crash().await;
        eventually("all wills have come", async || (a.recorder.deliveries().len() as u64 >= SESSIONS).then_some(()))
            .await;
        is_over.store(true, Ordering::Relaxed);
        dead
    };
    let ((published, longest), dead) = tokio::join!(publishing, losing);
    println!("{published} publishes meanwhile, the longest waited {longest:?} for its acknowledgement");

    let view = *b.cluster.leader().borrow();
    assert_eq!((view.leader, view.term), (led_by, term), "losing a follower is no reason for an election");
    for node in [&a, &b] {
        assert_eq!(node.recorder.incarnations_closed(), 0, "a survivor was given up");
    }
    let wills: Vec<Vec<u8>> = a.recorder.deliveries().iter().map(|d| d.message.payload.to_vec()).collect();
    let once: BTreeSet<&Vec<u8>> = wills.iter().collect();
    assert_eq!((wills.len() as u64, once.len() as u64), (SESSIONS, SESSIONS), "each will once");
    let c = dead.restart().await;
    c.serves().await;
    assert_same_rows(&[&a, &b, &c]).await;
    assert_eq!(a.recorder.deliveries().len() as u64, SESSIONS, "and never again");
    for node in [a, b, c] {
        node.shutdown().await;
    }
}
