//! The leader's ticks: what waits for time, or for more entries, comes about on a cluster where nothing else happens;
//! where nothing waits, nothing is appended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod testkit;

use std::time::Duration;

use quorate_raft::{LogRetention, Start};
use quorate_store::codec::Payload;
use quorate_store::command::Will;
use quorate_store::ids::QoS;
use quorate_store::rows::{RowRead, key};
use quorate_store::topic::TopicName;
use testkit::clients::{close, connect, subscribe};
use testkit::{TestNode, eventually, three};

/// Guarantee 9: a will is published when it is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_will_and_the_end_of_a_session_come_due_on_an_idle_cluster() {
    let nodes = three(LogRetention::default()).await;
    let [a, b, _] = &nodes;
    let watcher = connect(a, "watcher", 0, None).await;
    subscribe(a, watcher, "wills/#", QoS::AtLeastOnce).await;
    let will = Will {
        delay_s: 1,
        topic: TopicName::new("wills/1").unwrap(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: None,
        expiry_s: None,
        payload: Payload("gone".into()),
    };
    let session = connect(b, "client", 3, Some(will)).await;
    close(b, session).await;
    let session = key::of_session(key::RowKind::Session, session.session);
    let is_there = |node: &TestNode| node.cluster.rows().get(session.as_bytes()).unwrap().is_some();
    assert!(nodes.iter().all(is_there), "it outlives its connection");
    // From here on nobody does anything.
    eventually("the will is published", async || {
        a.recorder.deliveries().iter().any(|d| &*d.message.payload == b"gone").then_some(())
    })
    .await;
    eventually("the session has ended", async || nodes.iter().all(|n| !is_there(n)).then_some(())).await;
    let idle = async || nodes.iter().all(|n| !n.cluster.applied().borrow().has_deadlines).then_some(());
    eventually("nothing waits any more", idle).await;
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscribe_over_many_retained_topics_completes_without_other_traffic() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    a.publish(0..1000).await;
    let session = connect(&a, "client", 0, None).await;
    subscribe(&a, session, "t/#", QoS::AtMostOnce).await;
    eventually("all retained messages came", async || (a.recorder.deliveries().len() >= 1000).then_some(())).await;
    assert_eq!(a.recorder.deliveries().len(), 1000);
    eventually("no work is left", async || (!a.cluster.applied().borrow().has_continuations).then_some(())).await;
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_deadlines_nothing_is_appended() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    a.publish(0..10).await;
    let view = *a.cluster.applied().borrow();
    assert!(!view.has_deadlines && !view.has_continuations);
    let ticks = a.cluster.stream_stats().ticks.get();
    // Longer than two ticks take.
    let appended = async {
        let mut applied = a.cluster.applied();
        applied.wait_for(|now| now.index > view.index).await.map(|now| now.index).unwrap()
    };
    let appended = tokio::time::timeout(Duration::from_millis(2500), appended).await;
    assert!(appended.is_err(), "{appended:?} after {}", view.index);
    assert_eq!(a.cluster.stream_stats().ticks.get(), ticks);
    a.shutdown().await;
}
