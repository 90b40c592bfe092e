//! What people and the front end are told of the cluster: who leads, who is a member and how far, whether a
//! majority backs the leader.
//!
//! One task looks at Raft, the machine and the peers a few times a second and replaces the value of a watch
//! channel. It only reads, and nothing waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_store::command::NodeInfo;
use quorate_store::effect::QueuesOverHalf;
use quorate_store::ids::{ClusterTime, Incarnation, NodeId};
use quorate_store::machine::NodeSummary;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::apply::{ApplyHandle, NodeMachine};
use crate::clock::{ClockAlarm, ClusterClock};
use crate::consensus::Consensus;
use crate::identity::ClusterId;
use crate::raft_link::RaftLinks;
use crate::wire::Call;

/// Between two looks at this node.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Looks between two rounds of asking the other nodes.
const LOOKS_PER_ROUND: u32 = 5;
/// Sessions over half of their queue's byte bound that are told of by name.
pub const QUEUES_NAMED_MAX: usize = 16;
/// Longest wait for a peer's answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// What a node is in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// The leader.
    Leader,
    /// A voter that does not lead.
    Follower,
    /// No voter.
    Learner,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Name and addresses; only the peer address is known before its first start is committed.
    pub info: NodeInfo,
    /// What it is.
    pub role: NodeRole,
    /// Its incarnation is open: the log does not say that it is lost.
    pub is_up: bool,
    /// It answers this node now.
    pub is_reachable: bool,
    /// What it has applied, as it last said.
    pub applied: Option<u64>,
}

/// The cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Term.
    pub term: u64,
    /// Committed log index, as known here.
    pub commit: u64,
    /// Applied here.
    pub applied: u64,
    /// Cluster time of what is applied here.
    pub time: ClusterTime,
    /// Last log index that a snapshot here covers.
    pub snapshot: Option<u64>,
    /// Last log index that is purged here.
    pub purged: Option<u64>,
    /// Members, in order of id.
    pub nodes: Vec<NodeStatus>,
    /// A majority backed the leader within `quorum_grace`. While false, clients are turned away.
    pub has_quorum: bool,
    /// This node's incarnation, while it has one.
    pub incarnation: Option<Incarnation>,
    /// Sessions whose queue is over half of its byte bound, [`QUEUES_NAMED_MAX`] of them by name.
    pub queues: Arc<QueuesOverHalf>,
    /// On the leader: what is to be known of cluster time.
    pub clock_alarm: Option<ClockAlarm>,
}

impl ClusterStatus {
    fn unknown(cluster: ClusterId, node: NodeId) -> Self {
        Self {
            cluster,
            node,
            leader: None,
            term: 0,
            commit: 0,
            applied: 0,
            time: ClusterTime(0),
            snapshot: None,
            purged: None,
            nodes: Vec::new(),
            has_quorum: false,
            incarnation: None,
            queues: Arc::default(),
            clock_alarm: None,
        }
    }
}

/// See the module.
pub(crate) struct StatusTask {
    consensus: Consensus,
    apply: ApplyHandle,
    links: RaftLinks,
    clock: Arc<ClusterClock>,
    incarnation: watch::Receiver<Option<Incarnation>>,
    has_quorum: watch::Receiver<bool>,
    status: watch::Sender<ClusterStatus>,
    summaries: BTreeMap<NodeId, NodeSummary>,
    queues: Arc<QueuesOverHalf>,
    /// What each peer last said; gone when it does not answer.
    answers: BTreeMap<NodeId, u64>,
    said: BTreeMap<NodeId, u64>,
}

impl StatusTask {
    pub(crate) fn new(
        consensus: Consensus,
        apply: ApplyHandle,
        links: RaftLinks,
        clock: Arc<ClusterClock>,
        incarnation: watch::Receiver<Option<Incarnation>>,
        has_quorum: watch::Receiver<bool>,
    ) -> (Self, watch::Receiver<ClusterStatus>) {
        let unknown = ClusterStatus::unknown(consensus.cluster_id(), consensus.node_id());
        let (status, receiver) = watch::channel(unknown);
        let task = Self {
            consensus,
            apply,
            links,
            clock,
            incarnation,
            has_quorum,
            status,
            summaries: BTreeMap::new(),
            queues: Arc::default(),
            answers: BTreeMap::new(),
            said: BTreeMap::new(),
        };
        (task, receiver)
    }

    /// Runs until aborted.
    pub(crate) async fn run(mut self) {
        let mut tick = interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leader = self.consensus.leader_watch();
        let mut has_quorum = self.has_quorum.clone();
        let mut looks = 0;
        let mut asked: JoinSet<(NodeId, Option<u64>)> = JoinSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if looks % LOOKS_PER_ROUND == 0 && asked.is_empty() {
                        self.begin_round(&mut asked).await;
                    }
                    looks = looks.wrapping_add(1);
                }
                changed = leader.changed() => if changed.is_err() { return },
                changed = has_quorum.changed() => if changed.is_err() { return },
                Some(answer) = asked.join_next() => {
                    if let Ok((node, applied)) = answer {
                        match applied {
                            Some(applied) => {
                                self.answers.insert(node, applied);
                                self.said.insert(node, applied);
                            }
                            None => { self.answers.remove(&node); }
                        }
                    }
                }
            }
            let look = self.look();
            self.status.send_if_modified(|status| {
                let changed = *status != look;
                *status = look;
                changed
            });
        }
    }

    /// Asks the machine for the nodes and for queues that fill, and the peers how far they are.
    async fn begin_round(&mut self, asked: &mut JoinSet<(NodeId, Option<u64>)>) {
        let look = |machine: &mut NodeMachine| (machine.nodes(), machine.queues_over_half(QUEUES_NAMED_MAX));
        if let Ok((nodes, queues)) = self.apply.with_machine(look).await {
            self.summaries = nodes.into_iter().map(|n| (n.id, n)).collect();
            if *self.queues != queues {
                self.queues = Arc::new(queues);
            }
        }
        let own = self.consensus.node_id();
        for peer in self.members().0.into_keys().filter(|peer| *peer != own) {
            let link = self.links.to(peer);
            asked.spawn(async move {
                let answer = link.call(Call::Progress, ASK_TIMEOUT).await.ok();
                (peer, answer.and_then(|a| Some(a.into_progress()?.1)))
            });
        }
    }

    /// Peer addresses of the members, and which are voters.
    fn members(&self) -> (BTreeMap<NodeId, String>, BTreeSet<NodeId>) {
        let metrics = self.consensus.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let members = membership.nodes().map(|(id, m)| (NodeId(*id), m.peer.clone())).collect();
        (members, membership.voter_ids().map(NodeId).collect())
    }

    fn look(&self) -> ClusterStatus {
        let view = *self.consensus.leader_watch().borrow();
        let applied = *self.apply.view().borrow();
        let (members, voters) = self.members();
        let (commit, snapshot, purged) = {
            let metrics = self.consensus.raft().data_metrics();
            let metrics = metrics.borrow_watched();
            let index = |id: Option<crate::types::LogId>| id.map(|id| id.index);
            (metrics.cluster_committed, index(metrics.snapshot), index(metrics.purged))
        };
        let own = self.consensus.node_id();
        let nodes = members.into_iter().map(|(id, peer)| {
            let summary = self.summaries.get(&id);
            let role = match (Some(id) == view.leader, voters.contains(&id)) {
                (true, _) => NodeRole::Leader,
                (false, true) => NodeRole::Follower,
                (false, false) => NodeRole::Learner,
            };
            NodeStatus {
                id,
                info: summary.map_or_else(|| NodeInfo { peer, ..NodeInfo::default() }, |s| s.info.clone()),
                role,
                is_up: summary.is_some_and(|s| s.up),
                is_reachable: id == own || self.answers.contains_key(&id),
                applied: if id == own { Some(applied.index) } else { self.said.get(&id).copied() },
            }
        });
        ClusterStatus {
            cluster: self.consensus.cluster_id(),
            node: own,
            leader: view.leader,
            term: view.term,
            commit: commit.map_or(0, |id| id.index).max(applied.index),
            applied: applied.index,
            time: applied.time,
            snapshot,
            purged,
            nodes: nodes.collect(),
            has_quorum: *self.has_quorum.borrow(),
            incarnation: *self.incarnation.borrow(),
            queues: self.queues.clone(),
            clock_alarm: self.clock.alarm(),
        }
    }
}
