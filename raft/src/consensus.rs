//! The rest of the crate's handle on Raft: append, who leads, what is applied, ReadIndex.
//!
//! Cheap to clone. It wraps openraft so that little else names openraft's API, turns its errors into the
//! two answers that matter (*certainly not appended* and *unknown*), and publishes openraft's metrics as
//! small values that are replaced, never borrowed for long. It never waits for a commit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use openraft::raft::linearizable_read::LinearizerOption;
use quorate_store::ids::{ClusterTime, NodeId};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::identity::ClusterId;
use crate::responder::WriteResponder;
use crate::state_machine::StateMachine;
use crate::types::{LogId, Proposal, Types};

/// After the core refused a proposal, [`Consensus::append`] refuses for this long, so that resending is
/// never a busy loop.
const REFUSAL_PAUSE: Duration = Duration::from_millis(5);

/// openraft's handle.
pub(crate) type Raft = openraft::Raft<Types, StateMachine>;

/// Who leads, as this node knows. Replaced only when one of these changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderView {
    /// The leader of `term`, once known.
    pub leader: Option<NodeId>,
    /// This node's current term.
    pub term: u64,
    /// This node leads: it takes proposals.
    pub is_self: bool,
    /// Counts proposals that were enqueued here and then certainly or possibly dropped (leadership lost or
    /// being handed over, lease expired): whoever waits for one resends.
    pub refusals: u64,
}

/// Waits for `pause`; less long when what was sent to the leader of `before` may have been dropped: another
/// leads, or this node does and has dropped something. Take `before` before you send.
///
/// # Errors
/// This node is shutting down.
pub(crate) async fn pause_unless_dropped(
    leader: &mut watch::Receiver<LeaderView>,
    before: LeaderView,
    pause: Duration,
) -> Result<(), watch::error::RecvError> {
    timeout(pause, leader.wait_for(|now| *now != before)).await.map_or(Ok(()), |changed| changed.map(|_| ()))
}

/// What this node has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedView {
    /// Last applied log index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Cluster time after it.
    pub time: ClusterTime,
    /// The machine has deadlines: the leader appends a Tick each second.
    pub has_deadlines: bool,
    /// The machine has continuations: the leader appends a Tick at once.
    pub has_continuations: bool,
}

/// Stamps proposals. Implemented by [`crate::clock`]; called for each append, must never block.
pub(crate) trait StampClock: Send + Sync + 'static {
    /// Cluster time now.
    fn stamp(&self) -> ClusterTime;
    /// It goes on from a running cluster's, or from wall clocks. Before, batches of clients are not stamped: what
    /// is due would be by a time that is about to jump.
    fn is_live(&self) -> bool;
}

/// What a batch that is to be appended is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// The next of a node's stream.
    Stream,
    /// Outside the streams: goes without live time, too, because time becomes live only when nodes have started.
    Direct,
}

/// Why [`Consensus::append`] did not append. In every one of these cases nothing was appended.
#[derive(Clone, Debug, Error)]
pub(crate) enum AppendRefused {
    /// Another node leads, or none.
    #[error("this node does not lead{}", .leader.map(|l| format!("; node {l} does")).unwrap_or_default())]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// The disk is behind: more unflushed log bytes than the bound. Try again shortly.
    #[error("{unflushed_bytes} bytes of the log wait for the disk")]
    Overloaded {
        /// Bytes that wait.
        unflushed_bytes: usize,
    },
    /// The core has just refused a proposal (no majority in contact, or leadership being handed over), or there is
    /// no cluster time yet. Try again in a few milliseconds.
    #[error("this leader takes no proposals just now")]
    Paused,
    /// Raft has stopped on this node (shutdown, or a fatal storage error).
    #[error("Raft has stopped on this node")]
    Stopped,
}

/// Why ReadIndex gave no index.
#[derive(Clone, Debug, Error)]
pub(crate) enum ReadIndexError {
    /// Ask the leader.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// No majority confirmed this leader in time. Try again.
    #[error("no majority confirmed this leader in time")]
    NoQuorum,
    /// Raft has stopped on this node.
    #[error("Raft has stopped on this node")]
    Stopped,
}

/// openraft's instants are of its runtime; ours are the standard library's.
fn std_instant(at: &impl openraft::async_runtime::Instant) -> Option<Instant> {
    Instant::now().checked_sub(at.elapsed())
}

struct Shared {
    node: NodeId,
    cluster: ClusterId,
    raft: Raft,
    clock: OnceLock<Arc<dyn StampClock>>,
    /// Bytes of log that wait for the disk; the engine's own count, read through a closure so that this
    /// handle does not depend on which engine it is.
    unflushed_bytes: Box<dyn Fn() -> usize + Send + Sync>,
    unflushed_bytes_max: usize,
    view: watch::Sender<LeaderView>,
    applied: watch::Receiver<AppliedView>,
    started: Instant,
    /// Milliseconds since `started` until which appends are refused.
    paused_until_ms: AtomicU64,
    /// The newest term in which a majority has answered this leader: before, openraft drops what it is given.
    proven_term: AtomicU64,
    /// Milliseconds since `started` at which a leader last sent anything, plus one; 0: never.
    appended_ms: AtomicU64,
    lease: Duration,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Consensus(Arc<Shared>);

/// What [`Consensus::new`] is made of.
pub(crate) struct ConsensusParts {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) raft: Raft,
    pub(crate) unflushed_bytes: Box<dyn Fn() -> usize + Send + Sync>,
    pub(crate) unflushed_bytes_max: usize,
    pub(crate) applied: watch::Receiver<AppliedView>,
    /// How long a majority's acknowledgement counts (the maximum election timeout).
    pub(crate) lease: Duration,
}

impl Consensus {
    /// Over a running (or built) Raft.
    pub(crate) fn new(parts: ConsensusParts) -> Self {
        let ConsensusParts { node, cluster, raft, unflushed_bytes, unflushed_bytes_max, applied, lease } = parts;
        Self(Arc::new(Shared {
            node,
            cluster,
            raft,
            clock: OnceLock::new(),
            unflushed_bytes,
            unflushed_bytes_max,
            view: watch::Sender::new(LeaderView::default()),
            applied,
            started: Instant::now(),
            paused_until_ms: AtomicU64::new(0),
            proven_term: AtomicU64::new(0),
            appended_ms: AtomicU64::new(0),
            lease,
        }))
    }

    /// Gives it the clock that stamps. Before that, nothing is appended. A second call is ignored.
    pub(crate) fn set_clock(&self, clock: Arc<dyn StampClock>) {
        let _ = self.0.clock.set(clock);
    }

    /// This node.
    pub(crate) fn node_id(&self) -> NodeId {
        self.0.node
    }

    /// This cluster.
    pub(crate) fn cluster_id(&self) -> ClusterId {
        self.0.cluster
    }

    /// openraft's handle, for membership, network and status.
    pub(crate) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// Stamps an encoded batch and enqueues it for append, in the order of the calls; it does not wait
    /// for the disk, the commit or apply. `Ok` means *unknown*: the core may still drop it. The outcome is
    /// seen in this node's own applied log, or not at all; whenever an enqueued batch was dropped,
    /// [`LeaderView`] changes afterwards (its term, or `refusals`).
    pub(crate) async fn append(&self, bytes: Bytes, what: Appended) -> Result<(), AppendRefused> {
        let shared = &self.0;
        let view = *shared.view.borrow();
        if !view.is_self {
            return Err(AppendRefused::NotLeader { leader: view.leader });
        }
        if self.now_ms() < shared.paused_until_ms.load(Ordering::Relaxed) || !self.is_proven(view.term) {
            return Err(AppendRefused::Paused);
        }
        if let Some(unflushed_bytes) = self.overload() {
            return Err(AppendRefused::Overloaded { unflushed_bytes });
        }
        let Some(clock) = shared.clock.get() else { return Err(AppendRefused::Paused) };
        if what == Appended::Stream && !clock.is_live() {
            return Err(AppendRefused::Paused);
        }
        let proposal = Proposal { stamp: clock.stamp(), bytes };
        // Weak: the core must not keep itself alive through what waits in it.
        let this = Arc::downgrade(&self.0);
        let responder = WriteResponder::new(move |dropped| {
            if dropped && let Some(shared) = this.upgrade() {
                Self(shared).refused();
            }
        });
        shared.raft.client_write_ff(proposal, Some(responder)).await.map_err(|_| AppendRefused::Stopped)
    }

    /// Bytes of log that wait for this node's disk, when they are above the bound.
    pub(crate) fn overload(&self) -> Option<usize> {
        Some((self.0.unflushed_bytes)()).filter(|bytes| *bytes > self.0.unflushed_bytes_max)
    }

    /// Whether a majority has answered this leader in `term`. Until then openraft drops proposals (its lease
    /// is not valid yet), so that what was enqueued right after an election would have to be sent again.
    fn is_proven(&self, term: u64) -> bool {
        let proven = &self.0.proven_term;
        if proven.load(Ordering::Relaxed) == term {
            return true;
        }
        let is_proven = self.quorum_acked_at().is_some_and(|at| at.elapsed() < self.0.lease);
        if is_proven {
            proven.store(term, Ordering::Relaxed);
        }
        is_proven
    }

    fn refused(&self) {
        let until = self.now_ms() + REFUSAL_PAUSE.as_millis() as u64;
        self.0.paused_until_ms.store(until, Ordering::Relaxed);
        self.0.view.send_modify(|view| view.refusals += 1);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Who leads.
    pub(crate) fn leader_watch(&self) -> watch::Receiver<LeaderView> {
        self.0.view.subscribe()
    }

    /// What is applied here; replaced after each run.
    pub(crate) fn applied_watch(&self) -> watch::Receiver<AppliedView> {
        self.0.applied.clone()
    }

    /// On the leader: when a majority last acknowledged it. `None` elsewhere, and before that.
    pub(crate) fn quorum_acked_at(&self) -> Option<Instant> {
        if !self.0.view.borrow().is_self {
            return None;
        }
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        if voters.next() == Some(self.0.node.0) && voters.next().is_none() {
            return Some(Instant::now());
        }
        metrics.last_quorum_acked.and_then(|at| std_instant(&at.into_inner()))
    }

    /// A leader of `term` has sent entries or a heartbeat.
    pub(crate) fn leader_appended(&self, term: u64) {
        // One that was deposed says nothing of who leads now.
        if term >= self.0.view.borrow().term {
            self.0.appended_ms.store(self.now_ms().saturating_add(1), Ordering::Relaxed);
        }
    }

    /// When the leader last sent anything to this node, which does not lead.
    pub(crate) fn leader_heard_at(&self) -> Option<Instant> {
        let ms = self.0.appended_ms.load(Ordering::Relaxed).checked_sub(1)?;
        self.0.started.checked_add(Duration::from_millis(ms))
    }

    /// Whether `node` is in the membership in force.
    pub(crate) fn is_member(&self, node: NodeId) -> bool {
        let metrics = self.0.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&node.0).is_some()
    }

    /// Leader only: an index such that a state that has applied it reflects everything acknowledged
    /// before this call (ReadIndex, Raft §6.4: a majority confirms the leader meanwhile). Never by lease.
    pub(crate) async fn read_index(&self) -> Result<u64, ReadIndexError> {
        let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(self.0.lease);
        match self.0.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadIndexError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadIndexError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadIndexError::Stopped),
        }
    }

    /// Last index that this node knows to be committed.
    pub(crate) fn committed_index(&self) -> u64 {
        let metrics = self.0.raft.data_metrics();
        metrics.borrow_watched().local_committed.map_or(0, |id| id.index)
    }

    /// Last index that is applied here.
    pub(crate) fn applied_index(&self) -> u64 {
        self.0.applied.borrow().index
    }

    /// Log id of this node's last entry.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        let metrics = self.0.raft.data_metrics();
        metrics.borrow_watched().last_log
    }

    /// Keeps [`Self::leader_watch`] up to date until Raft stops. Spawned once by [`crate::Cluster`].
    pub(crate) async fn run_view(self) {
        let mut server = self.0.raft.server_metrics();
        loop {
            let (leader, term, is_self) = {
                let metrics = server.borrow_watched();
                let is_self = metrics.state.is_leader();
                (metrics.current_leader, metrics.vote.leader_id.term, is_self)
            };
            self.0.view.send_if_modified(|view| {
                let new = LeaderView { leader: leader.map(NodeId), term, is_self, refusals: view.refusals };
                let changed = new != *view;
                *view = new;
                changed
            });
            if server.changed().await.is_err() {
                break;
            }
        }
        self.0.view.send_modify(|view| *view = LeaderView { leader: None, is_self: false, ..*view });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_an_outcome_is_told_that_what_was_sent_was_dropped() {
        let leads = LeaderView { leader: Some(NodeId(1)), term: 3, is_self: true, refusals: 7 };
        let (view, mut watch) = watch::channel(leads);
        let long = Duration::from_secs(3600);
        for now in [LeaderView { refusals: 8, ..leads }, LeaderView { term: 4, ..leads }] {
            // Also when it was told before the wait began.
            view.send_replace(now);
            let told = timeout(Duration::from_secs(20), pause_unless_dropped(&mut watch, leads, long));
            told.await.unwrap().unwrap();
        }
        let now = *view.borrow();
        pause_unless_dropped(&mut watch, now, Duration::from_millis(1)).await.unwrap();
        drop(view);
        assert!(pause_unless_dropped(&mut watch, now, long).await.is_err(), "this node shuts down");
    }
}
