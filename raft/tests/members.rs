//! Who is a member: coming, going, and what a node does that is none any more or is not reached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod testkit;

use quorate_raft::{JoinError, LogRetention, MembershipError, NodeRole, Start};
use quorate_store::ids::NodeId;
use testkit::{Proxy, TestNode, all_vote, assert_same_rows, eventually, join_request, leader, three};

fn role(node: &TestNode, of: NodeId) -> Option<NodeRole> {
    node.cluster.status().borrow().nodes.iter().find(|n| n.id == of).map(|n| n.role)
}

/// Waits until `node` says that it stands with a majority, or not.
async fn has_quorum(node: &TestNode, has: bool) {
    eventually("it knows where it stands", async || (node.cluster.status().borrow().has_quorum == has).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_one_change_at_a_time() {
    let [a, b, c] = three(LogRetention::default()).await;
    let first = leader(&[&a, &b, &c]).await;
    let peers = vec![b.cluster.peer_address().to_owned()];
    let d = TestNode::start("d", Start::JoinPeers { peers, stays_learner: true }).await;
    assert_eq!(d.id(), NodeId(4));
    d.serves().await;
    d.publish(0..20).await;
    eventually("it is a learner", async || (role(first, d.id()) == Some(NodeRole::Learner)).then_some(())).await;
    has_quorum(&d, true).await;

    assert!(matches!(first.cluster.promote(NodeId(9)).await, Err(MembershipError::UnknownNode(NodeId(9)))));
    let (one, other) = tokio::join!(first.cluster.promote(d.id()), first.cluster.promote(d.id()));
    assert!(one.is_ok(), "{one:?}");
    assert!(matches!(other, Err(MembershipError::InProgress)), "{other:?}");
    all_vote(&[&a, &b, &c, &d]).await;

    first.cluster.demote(d.id()).await.unwrap();
    eventually("it is a learner again", async || (role(first, d.id()) == Some(NodeRole::Learner)).then_some(())).await;
    // And stays one: it is not promoted by itself any more.
    first.cluster.demote(d.id()).await.unwrap();
    first.cluster.remove(d.id()).await.unwrap();
    eventually("it is gone", async || role(first, d.id()).is_none().then_some(())).await;
    first.cluster.remove(d.id()).await.unwrap();
    // The leader sends it nothing any more, not even that it is gone.
    has_quorum(&d, false).await;
    d.cluster.crash().await;

    // A wiped machine is another node.
    let e = TestNode::join("e", &a, LogRetention::default()).await;
    assert_eq!(e.id(), NodeId(5));
    e.serves().await;
    all_vote(&[&a, &b, &c, &e]).await;

    // A leader that is to go hands over first.
    let leaving = leader(&[&a, &b, &c, &e]).await;
    let rest: Vec<_> = [&a, &b, &c, &e].into_iter().filter(|n| n.id() != leaving.id()).collect();
    let told = leaving.cluster.remove(leaving.id()).await;
    assert!(matches!(told, Err(MembershipError::NotLeader { .. })), "{told:?}");
    let new = leader(&rest).await;
    new.cluster.remove(leaving.id()).await.unwrap();
    leaving.cluster.crash().await;
    all_vote(&rest).await;
    for node in &rest {
        node.publish(500..510).await;
    }
    assert_same_rows(&rest).await;
    for node in rest {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_stays_and_a_silent_learner_is_not_promoted() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    for gone in [a.cluster.remove(a.id()).await, a.cluster.demote(a.id()).await] {
        assert!(matches!(gone, Err(MembershipError::LastVoter(NodeId(1)))), "{gone:?}");
    }
    assert!(matches!(a.cluster.transfer(None).await, Err(MembershipError::LastVoter(_))));
    // Nobody listens there.
    let grant = a.cluster.admit(join_request(77, "127.0.0.1:9", false)).await.unwrap();
    assert_eq!(a.cluster.admit(join_request(77, "127.0.0.1:9", false)).await.unwrap(), grant, "the same token");
    let other = a.cluster.admit(join_request(78, "127.0.0.1:9", true)).await.unwrap();
    assert_eq!((grant.node, other.node), (NodeId(2), NodeId(3)));
    let refused = a.cluster.promote(grant.node).await;
    assert!(matches!(refused, Err(MembershipError::NotCaughtUp { node: NodeId(2), .. })), "{refused:?}");
    assert!(matches!(a.cluster.admit(join_request(79, "", false)).await, Err(JoinError::Refused(_))));
    a.publish(0..10).await;
    a.cluster.remove(grant.node).await.unwrap();
    a.shutdown().await;
}

/// The connections of a node that was removed, or that the leader does not reach, still work in its direction: it
/// must not hold its clients by answering their pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_removed_turns_its_clients_away() {
    let nodes = three(LogRetention::default()).await;
    let all: Vec<&TestNode> = nodes.iter().collect();
    let leads = leader(&all).await;
    let removed = all.iter().copied().find(|n| n.id() != leads.id()).unwrap();
    has_quorum(removed, true).await;
    leads.cluster.remove(removed.id()).await.unwrap();
    has_quorum(removed, false).await;
    let rest: Vec<&TestNode> = all.into_iter().filter(|n| n.id() != removed.id()).collect();
    all_vote(&rest).await;
    leads.publish(0..10).await;
    assert_same_rows(&rest).await;
    for node in &nodes {
        node.assert_sound();
        node.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_leader_does_not_reach_turns_its_clients_away_until_it_does() {
    let a = TestNode::start("a", Start::Bootstrap).await;
    a.serves().await;
    let proxy = Proxy::start().await;
    let b = TestNode::join_behind("b", &a, &proxy).await;
    let c = TestNode::join("c", &a, LogRetention::default()).await;
    all_vote(&[&a, &b, &c]).await;
    let leads = leader(&[&a, &b, &c]).await;
    if leads.id() == b.id() {
        leads.cluster.transfer(Some(a.id())).await.unwrap();
    }
    b.serves().await;
    has_quorum(&b, true).await;
    // Nobody reaches it any more, but it reaches everybody, and they answer.
    proxy.cut();
    has_quorum(&b, false).await;
    proxy.heal();
    has_quorum(&b, true).await;
    b.serves().await;
    b.publish(0..10).await;
    assert_same_rows(&[&a, &b, &c]).await;
    for node in [a, b, c] {
        node.shutdown().await;
    }
}
