//! Clients of a node, as its front end would speak for them.

use quorate_raft::{Submission, Ticket};
use quorate_store::command::{Close, Command, Connect, SessionRef, Subscribe, SubscribeOptions, Will};
use quorate_store::effect::{Granted, Outcome};
use quorate_store::ids::{ClusterTime, QoS, QueueSeq};
use quorate_store::topic::TopicFilter;

use super::{TestNode, eventually};

/// Submits `command` to the stream of `node` and waits for its outcome.
pub async fn outcome_of(node: &TestNode, command: Command) -> Outcome {
    let ticket = Ticket { worker: 1, slot: 0, generation: 0, request: node.next_request() };
    node.cluster.proposer().submit(Submission { command, ticket, withdrawn: None, can_wait: false }).unwrap();
    eventually("a command has its outcome", async || node.recorder.outcome(ticket)).await
}

/// Connects a client to `node`.
pub async fn connect(node: &TestNode, client_id: &str, expiry_s: u32, will: Option<Will>) -> SessionRef {
    let connect = Connect {
        client_id: client_id.into(),
        clean_start: true,
        expiry_s,
        receive_maximum: 10,
        will,
        deadline: ClusterTime(u64::MAX),
        user: None,
    };
    match outcome_of(node, Command::Connect(connect)).await {
        Outcome::Connected(connected) => connected.session,
        other => panic!("not connected: {other:?}"),
    }
}

/// Subscribes a client of `node` to `filter`.
pub async fn subscribe(node: &TestNode, from: SessionRef, filter: &str, qos: QoS) {
    let options = SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: 0 };
    let filters = vec![(TopicFilter::new(filter).unwrap(), options)];
    let subscribed = outcome_of(node, Command::Subscribe(Subscribe { from, identifier: None, filters })).await;
    assert_eq!(subscribed, Outcome::Subscribed(vec![Ok(Granted { qos, is_new: true })]));
}

/// The connection of a client of `node` breaks.
pub async fn close(node: &TestNode, from: SessionRef) {
    let close = Close { from, drop_will: false, expiry_s: None, sent_until: QueueSeq(0) };
    assert_eq!(outcome_of(node, Command::Close(close)).await, Outcome::Done);
}
