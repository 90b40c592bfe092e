//! Nodes that agree: one, three, after the death of the leader, after a snapshot, while members change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod testkit;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_raft::{Cluster, ClusterId, LogRetention, MembershipError, RaftOptions, Start, StartError};
use quorate_store::command::{Command, Setting};
use quorate_store::effect::Outcome;
use quorate_store::ids::NodeId;
use testkit::{TestNode, all_vote, assert_same_rows, eventually, join_request, leader, options, three};

/// Snapshots and purges at once.
const SHORT: LogRetention = LogRetention {
    snapshot_log_bytes: 16 << 10,
    snapshot_interval: Duration::from_secs(3600),
    keep_bytes: 0,
    keep_entries: 20,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_bootstraps_applies_and_comes_back() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    assert_eq!(a.id(), NodeId(1));
    let first = a.serves().await;
    a.publish(0..100).await;
    assert_eq!(a.cluster.propose_direct(Command::Set(Setting::QueueBytesMax(5))).await.unwrap(), Outcome::Done);
    let read = a.cluster.linearizable().await.unwrap();
    assert!(read <= a.applied());
    let cluster = a.cluster.cluster_id();

    let a = a.shutdown().await.restart().await;
    assert_eq!((a.id(), a.cluster.cluster_id()), (NodeId(1), cluster));
    assert!(a.serves().await > first, "another life is another incarnation");
    assert!((0..100).all(|n| a.has(a.id(), n)));

    let a = a.crash().await.restart().await;
    a.serves().await;
    assert!((0..100).all(|n| a.has(a.id(), n)));
    a.publish(100..200).await;
    eventually("the status shows the leader", async || {
        let status = a.cluster.status().borrow().clone();
        (status.leader == Some(NodeId(1)) && status.has_quorum && status.incarnation.is_some()).then_some(())
    })
    .await;
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_and_leadership_moves_when_asked() {
    let [a, b, c] = three(LogRetention::default()).await;
    let nodes = [&a, &b, &c];
    for node in nodes {
        node.publish(0..50).await;
    }
    assert_same_rows(&nodes).await;
    assert!(nodes.iter().all(|n| n.cluster.cluster_id() == a.cluster.cluster_id()));

    // A read on any node sees what was acknowledged on another.
    b.publish(50..51).await;
    c.cluster.linearizable().await.unwrap();
    assert!(c.has(b.id(), 50));

    let first = leader(&nodes).await;
    let follower = nodes.into_iter().find(|n| n.id() != first.id()).unwrap();
    let refused = follower.cluster.transfer(None).await.unwrap_err();
    let MembershipError::NotLeader { leader: Some(named), admin: Some(admin) } = refused else { panic!("{refused}") };
    assert_eq!((named, admin), (first.id(), first.options.info.admin.clone()));
    first.cluster.transfer(Some(follower.id())).await.unwrap();
    assert_eq!(leader(&nodes).await.id(), follower.id());
    assert!(matches!(follower.cluster.transfer(Some(NodeId(77))).await, Err(MembershipError::UnknownNode(_))));
    for node in nodes {
        node.publish(100..120).await;
    }
    // A graceful end of the leader hands over first.
    let term = follower.cluster.leader().borrow().term;
    follower.cluster.shutdown().await;
    let rest: Vec<_> = nodes.into_iter().filter(|n| n.id() != follower.id()).collect();
    let next = leader(&rest).await;
    assert!(next.cluster.leader().borrow().term > term);
    next.publish(200..220).await;
    assert_same_rows(&rest).await;
    for node in nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_dies_another_is_elected_and_nothing_acknowledged_is_lost() {
    let [a, b, c] = three(LogRetention::default()).await;
    let mut nodes = vec![a, b, c];
    let mut acknowledged = Vec::new();
    for round in 0..3_u64 {
        let old = leader(&nodes.iter().collect::<Vec<_>>()).await.id();
        let at = nodes.iter().position(|n| n.id() == old).unwrap();
        let numbers = round * 1000..round * 1000 + 400;
        let submitted: Vec<_> = nodes
            .iter()
            .map(|n| (n.id(), numbers.clone().map(|number| n.submit(number)).collect::<Vec<_>>()))
            .collect();
        // It dies in the middle of that.
        let dying = nodes.remove(at);
        let rest: Vec<_> = nodes.iter().collect();
        let (dead, new) = tokio::join!(dying.crash(), async { leader(&rest).await.id() });
        assert_ne!(new, old);
        // What the survivors' clients had in flight comes through.
        for (publisher, tickets) in &submitted {
            let Some(node) = nodes.iter().find(|n| n.id() == *publisher) else { continue };
            for ticket in tickets {
                eventually("what was in flight is acknowledged", async || node.recorder.outcome(*ticket)).await;
                acknowledged.push((*publisher, ticket.request));
            }
        }
        let back = dead.restart().await;
        back.serves().await;
        nodes.push(back);
    }
    let all: Vec<_> = nodes.iter().collect();
    assert_same_rows(&all).await;
    for node in &nodes {
        assert!(acknowledged.iter().all(|(publisher, number)| node.has(*publisher, *number)));
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_die_and_come_back_with_everything() {
    let [a, b, c] = three(SHORT).await;
    for node in [&a, &b, &c] {
        node.publish(0..300).await;
    }
    let dead = [a.crash().await, b.crash().await, c.crash().await];
    let mut nodes = Vec::new();
    // In order: an address that is taken by a neighbour's outgoing connection meanwhile would only cost time.
    let starting: Vec<_> = dead.into_iter().map(|d| tokio::spawn(d.restart())).collect();
    for node in starting {
        nodes.push(node.await.unwrap());
    }
    let all: Vec<_> = nodes.iter().collect();
    for node in &all {
        node.serves().await;
    }
    assert_same_rows(&all).await;
    for node in &all {
        for publisher in [1, 2, 3] {
            assert!((0..300).all(|number| node.has(NodeId(publisher), number)));
        }
        node.publish(1000..1010).await;
    }
    for node in &all {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_gets_a_snapshot_when_the_log_is_purged() {
    let [a, b, c] = three(SHORT).await;
    a.publish(0..50).await;
    let away_at = c.applied();
    let away = c.crash().await;
    // Enough that what it lacks is purged.
    for round in 0..10 {
        a.publish(100 + round * 100..200 + round * 100).await;
    }
    let more = AtomicU64::new(50_000);
    eventually("the log is purged beyond what the follower has", async || {
        a.publish([more.fetch_add(1, Ordering::Relaxed)]).await;
        let purged = |n: &TestNode| n.cluster.status().borrow().purged.is_some_and(|p| p > away_at + 10);
        (purged(&a) && purged(&b)).then_some(())
    })
    .await;

    let c = away.restart().await;
    c.serves().await;
    assert_same_rows(&[&a, &b, &c]).await;
    assert!((0..50).chain(100..1100).all(|number| c.has(a.id(), number)));
    eventually("it is seen to have come by a snapshot", async || {
        c.cluster.status().borrow().snapshot.is_some_and(|s| s > away_at).then_some(())
    })
    .await;
    c.publish(0..50).await;

    // What was installed survives.
    let c = c.crash().await.restart().await;
    c.serves().await;
    assert_same_rows(&[&a, &b, &c]).await;
    for node in [a, b, c] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_refused_by_another_cluster_and_in_another_ones_directory() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    let x = TestNode::start("x", Start::Bootstrap).await;
    assert_ne!(a.cluster.cluster_id(), x.cluster.cluster_id());
    a.serves().await;
    x.serves().await;

    // The leader of a dials x for a learner of its own: x says that it is another cluster's.
    let grant = a.cluster.admit(join_request(77, x.cluster.peer_address(), false)).await.unwrap();
    let refused = a.cluster.promote(grant.node).await;
    assert!(matches!(refused, Err(MembershipError::NotCaughtUp { behind: None, .. })), "{refused:?}");
    x.publish(0..10).await;
    assert_eq!(x.cluster.status().borrow().nodes.len(), 1);

    let in_use = Cluster::start(x.options.clone(), x.recorder.clone()).await.unwrap_err();
    assert!(in_use.to_string().contains("in use by another quorate process"), "{in_use}");

    let cluster_id = a.cluster.cluster_id();
    let x = x.shutdown().await;
    let start = Start::Join { node_id: NodeId(2), cluster_id, token: 5 };
    let foreign = Cluster::start(RaftOptions { start, ..x.options.clone() }, a.recorder.clone()).await.unwrap_err();
    assert!(matches!(foreign, StartError::Identity(_)), "{foreign}");
    assert!(foreign.to_string().contains("use an empty directory"), "{foreign}");

    // The port is taken.
    let (mut taken, _) = options(x.dir.path(), "y", Start::Restart);
    taken.data_dir = x.options.data_dir.clone();
    taken.peer_listen = a.cluster.peer_address().to_owned();
    let taken = Cluster::start(taken, a.recorder.clone()).await.unwrap_err();
    assert!(matches!(taken, StartError::Listen { .. }), "{taken}");
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_log_or_never_had_an_identity_does_not_start() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    a.publish(0..10).await;
    let recorder = a.recorder.clone();
    let dead = a.shutdown().await;
    let data = dead.options.data_dir.clone();
    eventually("the data directory says that there is a log", async || {
        std::fs::read_to_string(data.join("node.json")).unwrap().contains("\"has_log\": true").then_some(())
    })
    .await;
    std::fs::rename(data.join("log"), data.join("log.gone")).unwrap();
    let lost = Cluster::start(dead.options.clone(), recorder.clone()).await.unwrap_err();
    assert!(matches!(lost, StartError::LogLost { node: NodeId(1), .. }), "{lost}");
    std::fs::remove_dir_all(data.join("log")).unwrap();
    std::fs::rename(data.join("log.gone"), data.join("log")).unwrap();
    let a = dead.restart().await;
    a.serves().await;
    assert!((0..10).all(|n| a.has(a.id(), n)));
    a.shutdown().await;

    let empty = tempfile::tempdir().unwrap();
    let (never, _) = options(empty.path(), "n", Start::Restart);
    let never = Cluster::start(never, recorder.clone()).await.unwrap_err();
    assert!(never.to_string().contains("--bootstrap"), "{never}");
    let (mut timings, _) = options(empty.path(), "n", Start::Bootstrap);
    timings.timings.heartbeat = Duration::from_millis(500);
    let timings = Cluster::start(timings, recorder).await.unwrap_err();
    assert!(matches!(timings, StartError::Timings(_)), "{timings}");
    let _ = ClusterId::random();
}

/// Copies a folder of files.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_ahead_of_the_log_become_a_snapshot_that_others_can_be_served_from() {
    let [a, b, c] = three(LogRetention::default()).await;
    a.publish(0..50).await;
    let c = c.shutdown().await;
    let log = c.options.data_dir.join("log");
    copy(&log, &log.with_file_name("log.old"));
    let c = c.restart().await;
    c.serves().await;
    a.publish(50..200).await;
    assert_same_rows(&[&a, &b, &c]).await;
    let index = c.applied();
    // As if a power cut had taken the end of the log but not the rows, which were flushed.
    let c = c.shutdown().await;
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(log.with_file_name("log.old"), &log).unwrap();
    let c = c.restart().await;
    c.serves().await;
    eventually("a snapshot of its rows is there", async || {
        c.cluster.status().borrow().snapshot.is_some_and(|s| s >= index).then_some(())
    })
    .await;
    assert_same_rows(&[&a, &b, &c]).await;

    // As the leader it has no log before that, and serves a newcomer all the same.
    leader(&[&a, &b, &c]).await.cluster.transfer(Some(c.id())).await.unwrap();
    let d = TestNode::join("d", &c, LogRetention::default()).await;
    d.serves().await;
    all_vote(&[&a, &b, &c, &d]).await;
    assert_same_rows(&[&a, &b, &c, &d]).await;
    assert!((0..200).all(|number| d.has(a.id(), number)));
    for node in [a, b, c, d] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_rows_are_gone_goes_on_from_its_snapshot_and_without_one_says_so() {
    let a = TestNode::start_with("a", Start::Bootstrap, SHORT).await;
    a.serves().await;
    let more = AtomicU64::new(0);
    eventually("the log is purged", async || {
        let first = more.fetch_add(100, Ordering::Relaxed);
        a.publish(first..first + 100).await;
        a.cluster.status().borrow().purged.is_some_and(|p| p > 0).then_some(())
    })
    .await;
    let recorder = a.recorder.clone();
    let dead = a.shutdown().await;
    let data = dead.options.data_dir.clone();
    std::fs::remove_dir_all(data.join("rows")).unwrap();
    let a = dead.restart().await;
    a.serves().await;
    assert!((0..more.into_inner()).all(|n| a.has(a.id(), n)));

    let dead = a.shutdown().await;
    std::fs::remove_dir_all(data.join("rows")).unwrap();
    std::fs::remove_dir_all(data.join("snapshots")).unwrap();
    let lost = Cluster::start(dead.options.clone(), recorder).await.unwrap_err();
    assert!(matches!(lost, StartError::StateLost { node: NodeId(1), applied: 0, .. }), "{lost}");
    assert!(lost.to_string().contains("empty data directory"), "{lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_at_another_address_is_found() {
    let [a, b, c] = three(LogRetention::default()).await;
    let moving = leader(&[&a, &b, &c]).await.id();
    let (moving, rest): (Vec<_>, Vec<_>) = [a, b, c].into_iter().partition(|n| n.id() == moving);
    let [moving] = <[TestNode; 1]>::try_from(moving).ok().unwrap();
    let before = moving.cluster.peer_address().to_owned();
    let mut dead = moving.crash().await;
    dead.options.peer_listen = "127.0.0.1:0".into();
    let rest: Vec<_> = rest.iter().collect();
    leader(&rest).await.publish(0..50).await;
    let moved = dead.restart().await;
    assert_ne!(moved.cluster.peer_address(), before);
    moved.serves().await;
    moved.publish(0..50).await;
    let all: Vec<_> = rest.into_iter().chain([&moved]).collect();
    assert_same_rows(&all).await;
    for node in all {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}
