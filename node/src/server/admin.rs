//! The administration over the running cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_http_admin::{
    AccessChange, AdminError, AlarmView, ClusterAdmin, ClusterView, Digest, Health, JoinRequest, Joined, LeaderAddress,
    ListenerSample, LogSample, MqttSample, NodeState, NodeView, Role, ShareView, Stages, Transferred,
};
use quorate_raft::{Cluster, ClusterStatus, JoinError, MembershipError, NodeRole, NodeStatus, ProposeError};
use quorate_store::access::Access;
use quorate_store::command::{Command, NodeInfo, Setting, ShareStrategy};
use quorate_store::effect::{Outcome, ShareSummary};
use quorate_store::ids::NodeId;
use quorate_store::log::SYNC_US_BOUNDS;
use quorate_store::topic::TopicFilter;

use crate::mqtt::listen::ListenerSnapshot;
use crate::mqtt::stats::StatsSnapshot;
use crate::sys::alarms_due;

/// How long an answer waits until the status shows what it is about.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// [`ClusterAdmin`] over a running cluster.
#[derive(Clone)]
pub(crate) struct NodeAdmin {
    cluster: Cluster,
    is_stopping: Arc<AtomicBool>,
}

impl NodeAdmin {
    /// Over `cluster`; not ready any more once `is_stopping`.
    pub(crate) fn new(cluster: Cluster, is_stopping: Arc<AtomicBool>) -> Self {
        Self { cluster, is_stopping }
    }

    fn status(&self) -> ClusterStatus {
        self.cluster.status().borrow().clone()
    }

    /// Waits until the status shows a change that is done, so that the answer does, too.
    async fn shown(&self, node: NodeId, is_shown: impl Fn(Option<NodeRole>) -> bool) {
        let mut status = self.cluster.status();
        let shown = status.wait_for(|status| is_shown(status.nodes.iter().find(|n| n.id == node).map(|n| n.role)));
        // A status that comes late only makes the answer stale.
        let _ = tokio::time::timeout(SHOWN_TIMEOUT, shown).await;
    }

    fn error(&self, error: MembershipError) -> AdminError {
        let text = error.to_string();
        match error {
            MembershipError::NotLeader { leader, admin } => {
                let status = self.status();
                let leader = leader.or(status.leader).filter(|leader| *leader != status.node);
                let known =
                    |id: NodeId| status.nodes.iter().find(|node| node.id == id).map(|node| node.info.admin.clone());
                AdminError::NotLeader(leader.and_then(|id| {
                    let admin = admin.or_else(|| known(id)).filter(|admin| !admin.is_empty())?;
                    Some(LeaderAddress { id: id.0, admin })
                }))
            }
            MembershipError::UnknownNode(node) => AdminError::UnknownNode(node.0),
            MembershipError::InProgress
            | MembershipError::NotCaughtUp { .. }
            | MembershipError::LastVoter(_)
            | MembershipError::Refused(_) => AdminError::Conflict(text),
            MembershipError::NotTransferred | MembershipError::Unknown => AdminError::Unavailable(text),
            MembershipError::Stopped => AdminError::Internal(text),
        }
    }
}

/// A status in the shape of the interface.
fn view(status: &ClusterStatus) -> ClusterView {
    let nodes = status.nodes.iter().map(|node| NodeView {
        id: node.id.0,
        name: node.info.name.clone(),
        role: match node.role {
            NodeRole::Leader => Role::Leader,
            NodeRole::Follower => Role::Follower,
            NodeRole::Learner => Role::Learner,
        },
        state: if node.is_up { NodeState::Up } else { NodeState::Lost },
        mqtt: node.info.mqtt.clone(),
        peer: node.info.peer.clone(),
        admin: node.info.admin.clone(),
        applied: node.applied.unwrap_or(0),
    });
    ClusterView {
        cluster_id: status.cluster.to_string(),
        // Whom no majority backs does not lead, whatever it or this node still believes.
        leader: status.leader.filter(|_| status.has_quorum).map(|leader| leader.0),
        term: status.term,
        commit: status.commit,
        nodes: nodes.collect(),
        alarms: alarms_due(status).into_iter().map(|(name, message)| AlarmView { name, message }).collect(),
    }
}

impl ClusterAdmin for NodeAdmin {
    fn node_id(&self) -> u64 {
        self.cluster.node_id().0
    }

    fn view(&self) -> ClusterView {
        view(&self.cluster.status().borrow())
    }

    fn health(&self) -> Health {
        let status = self.status();
        let not_ready = if self.is_stopping.load(Ordering::Acquire) {
            Some("this node is stopping")
        } else if !status.has_quorum {
            Some("no leader that a majority backs is known here")
        } else if status.incarnation.is_none() {
            Some("this node's start is not committed yet")
        } else if !self.cluster.has_time() {
            Some("cluster time has not started yet: too few nodes have told of their clocks")
        } else {
            None
        };
        // One that lost its majority takes itself for the leader until it hears of another.
        let is_leader = self.cluster.leader().borrow().is_self && status.has_quorum;
        Health { not_ready: not_ready.map(str::to_owned), is_leader }
    }

    async fn join(&self, request: JoinRequest) -> Result<Joined, AdminError> {
        let cluster_id = self.status().cluster.to_string();
        if let Some(want) = request.cluster_id.filter(|want| *want != cluster_id) {
            return Err(AdminError::WrongCluster { have: cluster_id, want });
        }
        let token = u128::from_str_radix(&request.token, 16)
            .map_err(|_| AdminError::Conflict("the token is up to 32 hexadecimal digits".to_owned()))?;
        let JoinRequest { name, mqtt, peer, admin, learner, .. } = request;
        let info = NodeInfo { name, mqtt, peer, admin };
        let request = quorate_raft::JoinRequest { token, info, stays_learner: learner };
        match self.cluster.admit(request).await {
            Ok(grant) => Ok(Joined { id: grant.node.0, cluster_id: grant.cluster.to_string() }),
            Err(error @ JoinError::NoLeader(_)) => Err(AdminError::Unavailable(error.to_string())),
            Err(error @ JoinError::Refused(_)) => Err(AdminError::Conflict(error.to_string())),
        }
    }

    async fn promote(&self, node: u64) -> Result<(), AdminError> {
        self.cluster.promote(NodeId(node)).await.map_err(|error| self.error(error))?;
        self.shown(NodeId(node), |role| role.is_some_and(|role| role != NodeRole::Learner)).await;
        Ok(())
    }

    async fn demote(&self, node: u64) -> Result<(), AdminError> {
        self.cluster.demote(NodeId(node)).await.map_err(|error| self.error(error))?;
        self.shown(NodeId(node), |role| role == Some(NodeRole::Learner)).await;
        Ok(())
    }

    async fn remove(&self, node: u64) -> Result<(), AdminError> {
        self.cluster.remove(NodeId(node)).await.map_err(|error| self.error(error))?;
        self.shown(NodeId(node), |role| role.is_none()).await;
        Ok(())
    }

    async fn transfer(&self, to: Option<u64>) -> Result<Transferred, AdminError> {
        let is_heir = |n: &NodeStatus| Some(n.id.0) == to && n.role == NodeRole::Learner;
        if self.status().nodes.iter().any(is_heir) {
            return Err(AdminError::Conflict("a learner cannot lead: promote it first".to_owned()));
        }
        self.cluster.transfer(to.map(NodeId)).await.map_err(|error| self.error(error))?;
        let leader = self.cluster.leader().borrow().leader;
        match leader {
            Some(leader) => Ok(Transferred { leader: leader.0 }),
            None => Err(AdminError::Unavailable(
                "leadership was handed over, but who leads now is not known yet".to_owned(),
            )),
        }
    }

    async fn digest(&self) -> Result<Digest, AdminError> {
        let (applied, digest) = self.cluster.digest().await.map_err(AdminError::Internal)?;
        Ok(Digest { node: self.node_id(), applied, digest: format!("{digest:016x}") })
    }

    fn access(&self) -> Arc<Access> {
        self.cluster.access().borrow().clone()
    }

    async fn fresh_access(&self) -> Result<Arc<Access>, AdminError> {
        self.cluster.linearizable().await.map_err(|error| AdminError::Unavailable(error.to_string()))?;
        Ok(self.access())
    }

    async fn change_access(&self, change: AccessChange) -> Result<bool, AdminError> {
        let command = match change {
            AccessChange::PutUser(user) => Command::PutUser(Box::new(user)),
            AccessChange::DeleteUser(name) => Command::DeleteUser { name },
            AccessChange::PutRule(rule) => Command::PutAclRule(Box::new(rule)),
            AccessChange::DeleteRule(number) => Command::DeleteAclRule { number },
            AccessChange::Otherwise(permission) => Command::Set(Setting::AclOtherwise(permission)),
        };
        match self.cluster.propose_direct(command).await {
            Ok(Outcome::Done) => Ok(true),
            Ok(Outcome::Void) => Ok(false),
            Ok(Outcome::AccessRefused(error)) => Err(AdminError::Access(error)),
            other => Err(not_done(other)),
        }
    }

    async fn shares(&self) -> Result<Vec<ShareView>, AdminError> {
        let view = |share: ShareSummary| ShareView {
            name: share.name,
            filter: share.filter,
            strategy: share.strategy.into(),
            members: share.members.len() as u64,
            waiting_messages: share.waiting,
            waiting_bytes: share.waiting_bytes,
            dropped_messages: share.dropped,
        };
        Ok(self.cluster.shares().await.into_iter().map(view).collect())
    }

    async fn set_share_strategy(
        &self,
        share: String,
        filter: TopicFilter,
        strategy: ShareStrategy,
    ) -> Result<(), AdminError> {
        match self.cluster.propose_direct(Command::SetShareStrategy { share, filter, strategy }).await {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::LimitReached) => Err(AdminError::Conflict(
                "as many groups as can be have a strategy of their own: give some the default, most-room, again"
                    .to_owned(),
            )),
            other => Err(not_done(other)),
        }
    }
}

/// Why a command was not carried out, or is not known to be.
fn not_done(answer: Result<Outcome, ProposeError>) -> AdminError {
    match answer {
        Ok(other) => AdminError::Internal(format!("the state machine answered {other:?}")),
        Err(error @ (ProposeError::NotIdempotent | ProposeError::Encode(_))) => AdminError::Internal(error.to_string()),
        Err(error) => AdminError::Unavailable(error.to_string()),
    }
}

/// The front end's counters in the shape of the metrics.
pub(crate) fn sample(stats: &StatsSnapshot, listeners: Vec<ListenerSnapshot>) -> MqttSample {
    let listeners = listeners.into_iter().map(|listener| ListenerSample {
        name: listener.name,
        connections: listener.connections,
        connections_total: listener.connections_total,
        refused: listener.refused,
        failed: listener.failed,
    });
    MqttSample {
        listeners: listeners.collect(),
        connections: stats.connections,
        connections_total: stats.connections_total,
        accepted: stats.accepted,
        received: stats.publishes_in,
        sent: stats.publishes_out,
        bytes_received: stats.bytes_in,
        bytes_sent: stats.bytes_out,
        closed: stats.closed.iter().map(|(reason, count)| (reason.0, *count)).collect(),
        expired: stats.expired,
        too_large: stats.too_large,
        qos0_dropped: stats.qos0_dropped,
        transient_overflows: stats.transient_overflows,
        queue_full: stats.queue_full,
        refused: stats.refused,
        throttled: stats.throttled,
        unknown_acks: stats.unknown_acks,
        mailbox_degraded: stats.mailbox_degraded,
        pages: stats.pages,
        proposer_busy: stats.busy,
        authenticated: stats.authenticated.clone(),
        auth_failures: stats.auth_failures.clone(),
        denied_publishes: stats.denied_publishes,
        denied_subscriptions: stats.denied_subscriptions,
        acks_before_commit: stats.acks_before_commit,
    }
}

/// The way through the log in the shape of the metrics.
pub(crate) fn stages(cluster: &Cluster) -> Stages {
    let (waiting, in_flight) = cluster.proposer().depth();
    let log = cluster.log_stats();
    let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
    let bounds = SYNC_US_BOUNDS.iter().map(|us| seconds(*us)).chain([f64::INFINITY]);
    Stages {
        waiting_commands: waiting as u64,
        batches_in_flight: in_flight as u64,
        proposals: cluster.stream_stats().snapshot(),
        log: LogSample {
            sync_buckets: bounds.zip(log.sync_us_buckets.iter().map(|count| count.load(Ordering::Relaxed))).collect(),
            sync_seconds: seconds(log.sync_us_sum.load(Ordering::Relaxed)),
            records: log.records.load(Ordering::Relaxed),
            record_bytes: log.record_bytes.load(Ordering::Relaxed),
            waits: log.waits.load(Ordering::Relaxed),
        },
    }
}
