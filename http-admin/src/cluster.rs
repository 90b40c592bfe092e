//! What the administration needs of a cluster: a narrow trait, so that the routes are tested on a fake,
//! and the JSON that scripts rely on.

use std::future::Future;
use std::sync::Arc;

use axum::http::StatusCode;
use quorate_store::access::{Access, AccessError, AclRule, Permission, User};
use quorate_store::command::ShareStrategy;
use quorate_store::topic::TopicFilter;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::problem::Problem;
use crate::shares::ShareView;

/// `GET /api/v1/cluster`, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The cluster's identity, made at bootstrap.
    pub cluster_id: String,
    /// The leader, when one is known.
    pub leader: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// Highest committed log index that this node knows of.
    pub commit: u64,
    /// The members, by id.
    pub nodes: Vec<NodeView>,
    /// What an operator should look at, by name.
    #[serde(default)]
    pub alarms: Vec<AlarmView>,
}

impl ClusterView {
    /// The node `id`.
    #[must_use]
    pub fn node(&self, id: u64) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Ids of the nodes that vote, in order.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        self.nodes.iter().filter(|node| node.role != Role::Learner).map(|node| node.id).collect()
    }
}

/// Something that an operator should look at: the same as `$SYS/brokers/{id}/alarms/activate` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmView {
    /// Its name, for as long as it is on.
    pub name: String,
    /// What is wrong, for people.
    pub message: String,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id, never reused.
    pub id: u64,
    /// Its name, for people.
    pub name: String,
    /// What it does in Raft.
    pub role: Role,
    /// Whether it is heard of.
    pub state: NodeState,
    /// Where MQTT clients reach it.
    pub mqtt: String,
    /// Where the other nodes reach it.
    pub peer: String,
    /// Where its administration is.
    pub admin: String,
    /// Log index that it has applied, as far as is known here.
    pub applied: u64,
}

/// What a member does in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Follower,
    /// It only receives the log.
    Learner,
}

/// Whether a member is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers, and its clients are its own.
    Up,
    /// It was silent for `node_timeout`: its clients' sessions are free for others.
    Lost,
}

/// `POST /api/v1/cluster/nodes`: a machine that wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Up to 32 hexadecimal digits, chosen by the joiner and kept: a repeat gets the same id.
    pub token: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Where MQTT clients will reach it.
    pub mqtt: String,
    /// Where the other nodes will reach it.
    pub peer: String,
    /// Where its administration will be.
    pub admin: String,
    /// It stays a learner; else it becomes a voter by itself once it has caught up.
    #[serde(default)]
    pub learner: bool,
    /// The cluster that the joiner means, when it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
}

/// The answer to a [`JoinRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The id that the log gave to this token.
    pub id: u64,
    /// The cluster's identity, for the joiner's data directory.
    pub cluster_id: String,
}

/// `POST /api/v1/cluster/leader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// The new leader; without it, the voter that is most up to date.
    #[serde(default)]
    pub to: Option<u64>,
}

/// Who leads after a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    /// The leader now.
    pub leader: u64,
}

/// `GET /api/v1/cluster/digest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The node that answers.
    pub node: u64,
    /// Log index up to which it had applied.
    pub applied: u64,
    /// Digest of all replicated rows at that index, 16 hexadecimal digits.
    pub digest: String,
}

/// What a node says of itself to load balancers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Why MQTT clients should go elsewhere now; `None` when they are welcome.
    pub not_ready: Option<String>,
    /// Whether this node leads.
    pub is_leader: bool,
}

/// Where the leader's administration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderAddress {
    /// Its id.
    pub id: u64,
    /// `host:port`.
    pub admin: String,
}

/// Why an operation was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdminError {
    /// Only the leader can; nothing was done.
    #[error("this node does not lead")]
    NotLeader(Option<LeaderAddress>),
    /// There is no such member.
    #[error("the cluster has no node {0}; `quorate cluster status` lists them")]
    UnknownNode(u64),
    /// The request is for another cluster.
    #[error(
        "this is cluster {have}, not {want}: check the admin address, or start the node on an empty data directory"
    )]
    WrongCluster {
        /// This cluster.
        have: String,
        /// The one that was meant.
        want: String,
    },
    /// The cluster's state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// Not done, or not known to be done, in time.
    #[error("{0}")]
    Unavailable(String),
    /// The node itself failed.
    #[error("{0}")]
    Internal(String),
    /// A user or a rule is beyond a bound.
    #[error("{0}")]
    Access(AccessError),
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        let detail = error.to_string();
        match error {
            AdminError::NotLeader(None) => Self::unavailable(
                "no-leader",
                "The cluster has no leader",
                "no leader is known here: without a majority of voters nothing can change; retry after an election, or bring voters back",
            ),
            AdminError::NotLeader(Some(leader)) => Self::unavailable(
                "leader-moved",
                "Leadership moved meanwhile",
                format!("node {} at {} leads now; retry", leader.id, leader.admin),
            ),
            AdminError::UnknownNode(_) => Self::new(StatusCode::NOT_FOUND, "unknown-node", "No such node", detail),
            AdminError::WrongCluster { .. } => {
                Self::new(StatusCode::CONFLICT, "wrong-cluster", "Another cluster", detail)
            }
            AdminError::Conflict(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", "The cluster's state forbids this", detail)
            }
            AdminError::Access(AccessError::TooManyUsers | AccessError::TooManyRules) => {
                Self::new(StatusCode::CONFLICT, "limit", "A limit is reached", detail)
            }
            AdminError::Access(_) => Self::bad_request(detail),
            AdminError::Unavailable(_) => Self::unavailable("unavailable", "Not now", detail),
            AdminError::Internal(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "This node failed", detail)
            }
        }
    }
}

/// A change of users or rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessChange {
    /// Adds or replaces a user.
    PutUser(User),
    /// Removes a user.
    DeleteUser(String),
    /// Adds or replaces a rule.
    PutRule(AclRule),
    /// Removes a rule.
    DeleteRule(u32),
    /// Sets what holds when no rule fits.
    Otherwise(Permission),
}

/// A future that the routes can await on any thread.
macro_rules! answers {
    ($ok:ty) => { impl Future<Output = Result<$ok, AdminError>> + Send };
}

/// What the administration needs of a cluster. Implemented over `quorate_raft::Cluster` by the node.
pub trait ClusterAdmin: Clone + Send + Sync + 'static {
    /// This node's id.
    fn node_id(&self) -> u64;
    /// The cluster as this node sees it; never blocks.
    fn view(&self) -> ClusterView;
    /// Whether clients are welcome, and who leads; never blocks.
    fn health(&self) -> Health;
    /// Allocates an id for a joiner (the same for the same token) and adds it as a learner. Leader only.
    fn join(&self, request: JoinRequest) -> answers!(Joined);
    /// Learner to voter, once it has caught up. Leader only.
    fn promote(&self, node: u64) -> answers!(());
    /// Voter to learner. Leader only.
    fn demote(&self, node: u64) -> answers!(());
    /// Out of the membership for good. Leader only.
    fn remove(&self, node: u64) -> answers!(());
    /// Hands leadership over. Leader only.
    fn transfer(&self, to: Option<u64>) -> answers!(Transferred);
    /// Scans all rows of this node.
    fn digest(&self) -> answers!(Digest);
    /// Users and rules as applied here; never blocks.
    fn access(&self) -> Arc<Access>;
    /// The same, with all that was acknowledged anywhere before this call.
    fn fresh_access(&self) -> answers!(Arc<Access>);
    /// Carries out a change of users or rules, on any node. Whether there was what it removes.
    fn change_access(&self, change: AccessChange) -> answers!(bool);
    /// Groups of shared subscriptions as applied here.
    fn shares(&self) -> answers!(Vec<ShareView>);
    /// Sets how the members of a group are chosen, on any node.
    fn set_share_strategy(&self, share: String, filter: TopicFilter, strategy: ShareStrategy) -> answers!(());
}
