//! A fake cluster and a client for the tests of the routes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use quorate_store::access::Access;
use quorate_store::command::ShareStrategy;
use quorate_store::topic::TopicFilter;

use crate::cluster::{
    AccessChange, AdminError, ClusterAdmin, ClusterView, Digest, Health, JoinRequest, Joined, LeaderAddress, NodeState,
    NodeView, Role, Transferred,
};
use crate::shares::{ShareView, Strategy};
use crate::{AdminServer, Forwarder, Limits, ListenerSample, LogSample, Metrics, MqttSample, Stages, router};

/// A view with these voters (the first leads) and learners, all up.
pub(crate) fn view(voters: &[u64], learners: &[u64]) -> ClusterView {
    let node = |id: &u64, role| NodeView {
        id: *id,
        name: format!("n{id}"),
        role,
        state: NodeState::Up,
        mqtt: format!("127.0.0.1:{}", 1882 + id),
        peer: format!("127.0.0.1:{}", 7400 + id),
        admin: format!("127.0.0.1:{}", 7480 + id),
        applied: 120,
    };
    let mut nodes: Vec<_> = voters.iter().map(|id| node(id, Role::Follower)).collect();
    if let Some(first) = nodes.first_mut() {
        first.role = Role::Leader;
    }
    nodes.extend(learners.iter().map(|id| node(id, Role::Learner)));
    ClusterView {
        cluster_id: "c0ffee".to_owned(),
        leader: voters.first().copied(),
        term: 3,
        commit: 120,
        nodes,
        alarms: Vec::new(),
    }
}

/// What the fake does when asked to change something.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Do,
    Fail(AdminError),
    /// Reads are answered.
    FailChanges(AdminError),
    Hang,
}

/// A cluster that records what it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub(crate) node: u64,
    pub(crate) view: ClusterView,
    pub(crate) answer: Answer,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) access: Arc<Mutex<Arc<Access>>>,
}

impl Fake {
    pub(crate) fn leader() -> Self {
        Self {
            node: 1,
            view: view(&[1, 2, 3], &[4]),
            answer: Answer::Do,
            asked: Arc::default(),
            access: Arc::default(),
        }
    }

    pub(crate) fn follower_of(leader: LeaderAddress) -> Self {
        Self { node: 2, answer: Answer::Fail(AdminError::NotLeader(Some(leader))), ..Self::leader() }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    async fn take(&self, what: String) -> Result<(), AdminError> {
        self.asked.lock().unwrap().push(what);
        match &self.answer {
            Answer::Do => Ok(()),
            Answer::Fail(error) | Answer::FailChanges(error) => Err(error.clone()),
            Answer::Hang => std::future::pending().await,
        }
    }
}

impl ClusterAdmin for Fake {
    fn node_id(&self) -> u64 {
        self.node
    }
    fn view(&self) -> ClusterView {
        self.view.clone()
    }
    fn health(&self) -> Health {
        let not_ready = matches!(self.answer, Answer::Fail(_)).then(|| "no quorum".to_owned());
        Health { not_ready, is_leader: self.view.leader == Some(self.node) }
    }
    async fn join(&self, request: JoinRequest) -> Result<Joined, AdminError> {
        self.take(format!("join {}", request.token)).await?;
        Ok(Joined { id: 5, cluster_id: self.view.cluster_id.clone() })
    }
    async fn promote(&self, node: u64) -> Result<(), AdminError> {
        self.take(format!("promote {node}")).await
    }
    async fn demote(&self, node: u64) -> Result<(), AdminError> {
        self.take(format!("demote {node}")).await
    }
    async fn remove(&self, node: u64) -> Result<(), AdminError> {
        self.take(format!("remove {node}")).await
    }
    async fn transfer(&self, to: Option<u64>) -> Result<Transferred, AdminError> {
        self.take(format!("transfer {to:?}")).await?;
        Ok(Transferred { leader: to.unwrap_or(2) })
    }
    async fn digest(&self) -> Result<Digest, AdminError> {
        self.take("digest".to_owned()).await?;
        Ok(Digest { node: self.node, applied: 120, digest: "00000000000000ff".to_owned() })
    }
    fn access(&self) -> Arc<Access> {
        self.access.lock().unwrap().clone()
    }
    async fn fresh_access(&self) -> Result<Arc<Access>, AdminError> {
        match &self.answer {
            Answer::Fail(error) => Err(error.clone()),
            _ => Ok(self.access()),
        }
    }
    async fn change_access(&self, change: AccessChange) -> Result<bool, AdminError> {
        self.take(format!("{change:?}")).await?;
        let mut access = self.access.lock().unwrap();
        let access = Arc::make_mut(&mut access);
        Ok(match change {
            AccessChange::PutUser(user) => {
                access.users.insert(user.name.clone(), user);
                true
            }
            AccessChange::DeleteUser(name) => access.users.remove(&name).is_some(),
            AccessChange::PutRule(rule) => {
                access.rules.insert(rule);
                true
            }
            AccessChange::DeleteRule(number) => access.rules.remove(number),
            AccessChange::Otherwise(permission) => {
                access.otherwise = permission;
                true
            }
        })
    }
    async fn shares(&self) -> Result<Vec<ShareView>, AdminError> {
        self.take("shares".to_owned()).await?;
        Ok(vec![ShareView {
            name: "g".to_owned(),
            filter: "a/#".to_owned(),
            strategy: Strategy::RoundRobin,
            members: 2,
            waiting_messages: 3,
            waiting_bytes: 300,
            dropped_messages: 0,
        }])
    }
    async fn set_share_strategy(
        &self,
        share: String,
        filter: TopicFilter,
        strategy: ShareStrategy,
    ) -> Result<(), AdminError> {
        self.take(format!("{share} {filter} {strategy:?}")).await
    }
}

/// Small limits.
pub(crate) const LIMITS: Limits = Limits { body_bytes_max: 1024, timeout: Duration::from_secs(2), requests_max: 2 };

fn sample() -> MqttSample {
    let listeners = vec![ListenerSample {
        name: "tls://0.0.0.0:8883".to_owned(),
        connections: 5,
        connections_total: 9,
        refused: vec![("rate", 3)],
        failed: vec![("tls", 2)],
    }];
    MqttSample { connections: 7, received: [1, 2, 3], closed: vec![(0x8e, 4)], listeners, ..MqttSample::default() }
}

fn stages() -> Stages {
    let log = LogSample { sync_buckets: vec![(0.001, 4), (f64::INFINITY, 5)], ..LogSample::default() };
    Stages { batches_in_flight: 3, proposals: vec![("gaps", "Gaps.", 2)], log, ..Stages::default() }
}

/// The routes over `fake`.
pub(crate) fn routes(fake: &Fake) -> Router {
    let forwarder = Forwarder::new(fake.node, Duration::from_secs(5)).unwrap();
    router(fake.clone(), forwarder, Arc::new(Metrics::new(Arc::new(sample), Arc::new(stages))), LIMITS)
}

/// The routes over `fake` on a port of their own.
pub(crate) async fn serve(fake: &Fake) -> AdminServer {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    AdminServer::start(listener, routes(fake)).unwrap()
}
