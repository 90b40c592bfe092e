//! The administration over the running cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_http_admin::{
    AdminError, ClusterAdmin, ClusterView, Digest, Health, JoinRequest, Joined, LeaderAddress, MqttSample, NodeState,
    NodeView, Role, Transferred,
};
use quorate_raft::{Cluster, ClusterStatus, JoinError, MembershipError, NodeRole};
use quorate_store::command::NodeInfo;
use quorate_store::ids::NodeId;

use crate::mqtt::stats::StatsSnapshot;

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
        leader: status.leader.map(|leader| leader.0),
        term: status.term,
        commit: status.commit,
        nodes: nodes.collect(),
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
        } else {
            None
        };
        Health { not_ready: not_ready.map(str::to_owned), is_leader: self.cluster.leader().borrow().is_self }
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
}

/// The front end's counters in the shape of the metrics.
pub(crate) fn sample(stats: &StatsSnapshot) -> MqttSample {
    MqttSample {
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
        unknown_acks: stats.unknown_acks,
        proposer_busy: stats.busy,
        acks_before_commit: stats.acks_before_commit,
    }
}
