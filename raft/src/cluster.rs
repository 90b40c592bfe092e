//! A node of the cluster: the handle that the rest of the binary holds.
//!
//! Cheap to clone. It owns the tasks and hands out the parts; how they are put together stands in
//! [`crate::start`].

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use quorate_store::access::Access;
use quorate_store::command::{Command, Publish};
use quorate_store::effect::{Outcome, ShareSummary};
use quorate_store::ids::{ClusterTime, NodeId};
use quorate_store::log::LogStats;
use quorate_store::machine::Totals;
use quorate_store::rows::RowsReader;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::apply::ApplyHandle;
use crate::consensus::{AppliedView, Consensus, LeaderView};
use crate::execution::Execution;
use crate::identity::{ClusterId, DataDir};
use crate::join::{self, JoinError, JoinGrant, JoinRequest};
use crate::membership::{Members, MembershipError};
use crate::peer::{PeerPool, Purpose};
use crate::proposer::{ProposeError, Proposer, StreamSide, StreamStats};
use crate::read_index::ReadError;
use crate::status::ClusterStatus;
use crate::tasks::Tasks;
use crate::types::Member;

/// For an admission, a change of leader included.
const ADMIT_PATIENCE: Duration = Duration::from_secs(8);
/// Between two attempts at an admission.
const ADMIT_PAUSE: Duration = Duration::from_millis(100);

/// A node of the cluster. See the module.
#[derive(Clone)]
pub struct Cluster(pub(crate) Arc<Node>);

/// What a [`Cluster`] shares.
pub(crate) struct Node {
    pub(crate) consensus: Consensus,
    pub(crate) apply: ApplyHandle,
    pub(crate) stream: StreamSide,
    pub(crate) members: Members,
    pub(crate) pool: PeerPool,
    pub(crate) status: watch::Receiver<ClusterStatus>,
    pub(crate) log_stats: Arc<LogStats>,
    pub(crate) peer_address: String,
    pub(crate) tasks: Tasks,
    /// Ends the log's writer thread and the copying of rows; taken by the first shutdown.
    pub(crate) close_files: Mutex<Option<BoxFuture<'static, ()>>>,
    pub(crate) data_dir: DataDir,
    pub(crate) execution: Execution,
}

impl Cluster {
    /// Takes commands of clients.
    #[must_use]
    pub fn proposer(&self) -> &Proposer {
        self.0.stream.proposer()
    }

    /// Reads applied rows. Ask each time: an installed snapshot comes with other rows.
    #[must_use]
    pub fn rows(&self) -> RowsReader {
        self.0.apply.reader()
    }

    /// The cluster as this node sees it, and each change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ClusterStatus> {
        self.0.status.clone()
    }

    /// Who leads, and each change.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<LeaderView> {
        self.0.consensus.leader_watch()
    }

    /// What is applied here, and each change.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedView> {
        self.0.apply.view()
    }

    /// Users and rules as applied here, and each change. Who has seen a change acknowledged on this node sees it here.
    #[must_use]
    pub fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.0.apply.access()
    }

    /// This node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.0.consensus.node_id()
    }

    /// This cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.0.consensus.cluster_id()
    }

    /// Where the peer port is, as other nodes are told.
    #[must_use]
    pub fn peer_address(&self) -> &str {
        &self.0.peer_address
    }

    /// Cluster time now, as far as this node knows: for deadlines that go into commands.
    #[must_use]
    pub fn cluster_time(&self) -> ClusterTime {
        self.0.stream.cluster_time()
    }

    /// Whether cluster time has started since a cold start of the cluster. Before it has, a deadline of now may have
    /// passed in a moment: time goes on from the log's last stamp, and then jumps.
    #[must_use]
    pub fn has_time(&self) -> bool {
        self.0.stream.has_time()
    }

    /// Counters of the log on disk.
    #[must_use]
    pub fn log_stats(&self) -> &Arc<LogStats> {
        &self.0.log_stats
    }

    /// Counters of the proposal stream.
    #[must_use]
    pub fn stream_stats(&self) -> &Arc<StreamStats> {
        self.0.stream.proposer().stats()
    }

    /// Waits until this node's applied state reflects everything that was acknowledged before this call.
    ///
    /// # Errors
    /// [`ReadError`] when no majority can be asked in time, or this node is far behind.
    pub async fn linearizable(&self) -> Result<u64, ReadError> {
        self.0.stream.linearizable().await
    }

    /// Proposes an idempotent command and waits until it is applied here.
    ///
    /// # Errors
    /// [`ProposeError`]; after a timeout it may still be applied.
    pub async fn propose_direct(&self, command: Command) -> Result<Outcome, ProposeError> {
        self.0.stream.propose_direct(command).await
    }

    /// Routes a QoS 0 publish to whoever subscribes now; best effort, never blocks.
    pub fn route_qos0(&self, publish: Publish) {
        self.0.stream.route_qos0(publish);
    }

    /// Publishes messages at QoS 0 to this node's own clients only; best effort, never blocks.
    pub fn route_here(&self, publishes: Vec<Publish>) {
        self.0.stream.route_here(publishes);
    }

    /// How many sessions and subscriptions there are in the cluster, as applied here; zeroes once it has stopped.
    pub async fn totals(&self) -> Totals {
        self.0.apply.with_machine(|machine| machine.totals()).await.unwrap_or_default()
    }

    /// Groups of shared subscriptions, as applied here; none once it has stopped.
    pub async fn shares(&self) -> Vec<ShareSummary> {
        self.0.apply.with_machine(|machine| machine.shares()).await.unwrap_or_default()
    }

    /// Hash of all rows here, with the applied index it belongs to: equal on all nodes at the same index. A
    /// full scan, beside the apply thread.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub async fn digest(&self) -> Result<(u64, u64), String> {
        let rows = self.rows();
        let digest = self.0.execution.blocking(move || rows.digest());
        digest.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    /// Admits a machine to the cluster, as a learner that is promoted when it has caught up, unless it is to
    /// stay one. Works on any node; a repeat with the same token answers the same.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn admit(&self, request: JoinRequest) -> Result<JoinGrant, JoinError> {
        self.admit_request(request, false).await
    }

    /// Makes an allocated node a learner that is promoted when it has caught up. Leader only.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn add_learner(&self, node: NodeId, peer: &str) -> Result<(), MembershipError> {
        let member = Member { peer: peer.to_owned(), stays_learner: false };
        self.named(self.0.members.add_learner(node, member)).await
    }

    /// Makes a learner a voter. Leader only.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn promote(&self, node: NodeId) -> Result<(), MembershipError> {
        self.named(self.0.members.promote(node)).await
    }

    /// Makes a voter a learner that stays one. Leader only; a leader that demotes itself hands over
    /// leadership and answers [`MembershipError::NotLeader`]: repeat it there.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn demote(&self, node: NodeId) -> Result<(), MembershipError> {
        self.named(self.0.members.demote(node)).await
    }

    /// Removes a node for good: its incarnation is closed and its id never returns. Leader only; a leader
    /// that removes itself hands over leadership and answers [`MembershipError::NotLeader`]: repeat it there.
    ///
    /// # Errors
    /// [`MembershipError`]; repeating it does no harm.
    pub async fn remove(&self, node: NodeId) -> Result<(), MembershipError> {
        self.named(self.0.members.remove(node)).await?;
        match self.propose_direct(Command::RemoveNode { node }).await {
            Ok(_) => Ok(()),
            Err(error) => {
                warn!(%node, %error, "the node left the membership, but the state does not know yet");
                Err(MembershipError::Unknown)
            }
        }
    }

    /// Hands leadership to `to`, or to the most up-to-date other voter. Leader only.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn transfer(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        self.named(self.0.members.transfer(to)).await
    }

    /// Fills in where the leader's administration is.
    async fn named(&self, change: impl Future<Output = Result<(), MembershipError>>) -> Result<(), MembershipError> {
        let leader = match change.await {
            Err(MembershipError::NotLeader { leader, .. }) => leader,
            other => return other,
        };
        let nodes = self.0.apply.with_machine(|machine| machine.nodes()).await.unwrap_or_default();
        let admin = nodes.into_iter().find(|n| Some(n.id) == leader).map(|n| n.info.admin);
        Err(MembershipError::NotLeader { leader, admin: admin.filter(|a| !a.is_empty()) })
    }

    /// Hands over leadership if this node leads, ends all tasks, flushes the rows. A second call does
    /// nothing.
    pub async fn shutdown(&self) {
        let Some(close_files) = self.0.close_files.lock().await.take() else { return };
        if self.0.consensus.leader_watch().borrow().is_self {
            match self.0.members.transfer(None).await {
                Ok(()) | Err(MembershipError::LastVoter(_)) => {}
                Err(error) => warn!(%error, "leadership was not handed over before the end"),
            }
        }
        self.0.tasks.end().await;
        if let Err(error) = self.0.consensus.raft().shutdown().await {
            warn!(%error, "Raft did not end cleanly");
        }
        if let Err(error) = self.0.apply.stop().await {
            warn!(%error, "the rows were not flushed; the log is replayed at the next start");
        }
        close_files.await;
        info!(node = %self.node_id(), "this node has stopped");
    }
}

impl Cluster {
    /// Ends everything at once, as the death of the process would: nothing is handed over or flushed on
    /// purpose. For tests.
    #[doc(hidden)]
    pub async fn crash(&self) {
        let Some(close_files) = self.0.close_files.lock().await.take() else { return };
        self.0.tasks.end().await;
        let _ = self.0.consensus.raft().shutdown().await;
        // Its thread would hold the rows open for a while, and end a test process that exits meanwhile with SIGABRT.
        let _ = self.0.apply.crash().await;
        close_files.await;
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", &self.node_id()).field("cluster", &self.cluster_id()).finish()
    }
}

/// Why one attempt at an admission failed.
enum Attempt {
    /// Worth another.
    Again(String),
    Refused(JoinError),
}

impl Cluster {
    async fn try_admit(&self, request: &JoinRequest, passed_on: bool) -> Result<JoinGrant, Attempt> {
        let view = *self.0.consensus.leader_watch().borrow();
        match view.leader {
            _ if view.is_self => self.admit_here(request).await,
            None => Err(Attempt::Again("there is no leader just now".into())),
            Some(leader) if passed_on => Err(Attempt::Refused(JoinError::NoLeader(format!(
                "node {} does not lead; node {leader} does",
                self.node_id()
            )))),
            Some(leader) => {
                let again = |e: std::io::Error| Attempt::Again(format!("leader {leader}: {e}"));
                let mut conn = self.0.pool.dial(leader, Purpose::Control).await.map_err(again)?;
                match join::ask(&mut conn, request, true).await {
                    Err(JoinError::NoLeader(why)) => Err(Attempt::Again(why)),
                    other => other.map_err(Attempt::Refused),
                }
            }
        }
    }

    async fn admit_here(&self, request: &JoinRequest) -> Result<JoinGrant, Attempt> {
        let allocate = Command::AllocateNode { token: request.token, info: request.info.clone() };
        let node = match self.propose_direct(allocate).await {
            Ok(Outcome::NodeAllocated(node)) if node != self.node_id() => node,
            Ok(Outcome::NodeAllocated(_)) => {
                let why = "it joins with the token of this very node: is its data directory a copy?";
                return Err(Attempt::Refused(JoinError::Refused(why.into())));
            }
            // Ids are given out from the moment at which the bootstrapping node has the first.
            Ok(_) => return Err(Attempt::Again("the cluster is just being made".into())),
            Err(error) => return Err(Attempt::Again(error.to_string())),
        };
        let member = Member { peer: request.info.peer.clone(), stays_learner: request.stays_learner };
        match self.0.members.add_learner(node, member).await {
            Ok(()) => {
                info!(%node, name = %request.info.name, peer = %request.info.peer, "a node was admitted");
                Ok(JoinGrant { cluster: self.cluster_id(), node })
            }
            Err(error) => Err(Attempt::Again(error.to_string())),
        }
    }
}

impl Cluster {
    /// See [`crate::join::Admission`].
    pub(crate) async fn admit_request(&self, request: JoinRequest, passed_on: bool) -> Result<JoinGrant, JoinError> {
        if request.info.peer.is_empty() {
            return Err(JoinError::Refused("it names no peer address; give it one with --peer".into()));
        }
        let deadline = Instant::now() + ADMIT_PATIENCE;
        loop {
            match self.try_admit(&request, passed_on).await {
                Ok(grant) => return Ok(grant),
                Err(Attempt::Refused(error)) => return Err(error),
                Err(Attempt::Again(why)) if Instant::now() >= deadline => return Err(JoinError::NoLeader(why)),
                Err(Attempt::Again(_)) => sleep(ADMIT_PAUSE).await,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
#[path = "cluster_tests.rs"]
mod tests;
