//! Users and rules reach the front end of each node: at once where the change was answered, soon elsewhere, and by a
//! snapshot, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod testkit;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_raft::LogRetention;
use quorate_store::access::{AclAction, AclRule, Permission, User, Who};
use quorate_store::command::Command;
use quorate_store::effect::Outcome;
use quorate_store::ids::QoS;
use testkit::{TestNode, eventually, three};

fn put_user(n: u32) -> Command {
    let name = format!("u{n}");
    Command::PutUser(Box::new(User { name, password_hash: None, scram: None, is_superuser: false }))
}

fn put_rule(number: u32) -> Command {
    Command::PutAclRule(Box::new(AclRule {
        number,
        permission: Permission::Deny,
        who: Who::All,
        action: AclAction::All,
        filters: vec!["a/#".into()],
        qos_max: QoS::ExactlyOnce,
        retain: None,
    }))
}

async fn propose(node: &TestNode, command: Command) {
    assert_eq!(node.cluster.propose_direct(command).await.unwrap(), Outcome::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_the_answer_to_a_change_finds_it_on_that_node_and_soon_on_all() {
    let nodes = three(LogRetention::default()).await;
    let mut views: Vec<_> = nodes.iter().map(|node| node.cluster.access()).collect();
    for n in 0..60 {
        let at = n as usize % 3;
        propose(&nodes[at], put_user(n)).await;
        assert!(views[at].borrow().users.get(&format!("u{n}")).is_some(), "user {n} is not there yet");
        propose(&nodes[at], put_rule(n)).await;
        assert!(views[at].borrow().rules.get(n).is_some(), "rule {n} is not there yet");
    }
    for view in &mut views {
        let whole = view.wait_for(|access| access.users.len() == 60 && access.rules.len() == 60);
        tokio::time::timeout(Duration::from_secs(30), whole).await.unwrap().unwrap();
        view.mark_unchanged();
    }
    // What changes no user or rule wakes nobody who waits for one that does.
    nodes[0].publish(0..50).await;
    propose(&nodes[0], put_user(7)).await;
    assert!(!views[0].has_changed().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_gets_a_snapshot_judges_by_the_rules_in_it() {
    let short = LogRetention {
        snapshot_log_bytes: 16 << 10,
        snapshot_interval: Duration::from_secs(3600),
        keep_bytes: 0,
        keep_entries: 20,
    };
    let [a, b, c] = three(short).await;
    let away_at = c.applied();
    let away = c.crash().await;
    propose(&a, put_user(1)).await;
    propose(&a, put_rule(1)).await;
    let more = AtomicU64::new(0);
    eventually("the log is purged beyond what the follower has", async || {
        let first = more.fetch_add(100, Ordering::Relaxed);
        a.publish(first..first + 100).await;
        let purged = |n: &TestNode| n.cluster.status().borrow().purged.is_some_and(|p| p > away_at + 10);
        (purged(&a) && purged(&b)).then_some(())
    })
    .await;
    let c = away.restart().await;
    let mut view = c.cluster.access();
    let whole = view.wait_for(|access| access.rules.get(1).is_some() && access.users.get("u1").is_some());
    tokio::time::timeout(Duration::from_secs(60), whole).await.unwrap().unwrap();
    eventually("it is seen to have come by a snapshot", async || {
        c.cluster.status().borrow().snapshot.is_some_and(|s| s > away_at).then_some(())
    })
    .await;
}
