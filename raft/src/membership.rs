//! Who is a member: adding, promoting, demoting, removing, and handing over leadership.
//!
//! A new node is a learner first and a voter when it has caught up, so that a slow disk or a wrong address
//! never costs a majority. Voters change by joint consensus, one change at a time. Node ids come from the
//! log and are never used again. All of it runs on the leader; others say who that is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, ForwardReason, RaftError};
use quorate_store::ids::NodeId;
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::consensus::Consensus;
use crate::types::{Member, Membership, StoredMembership, Types};

/// A learner this many entries behind, or less, has caught up.
const CAUGHT_UP_ENTRIES: u64 = 1000;
/// Between two looks at the members.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Looks in a row at which the log waits for the disk, before leadership is handed over.
const OVERLOADED_LOOKS_MAX: u32 = 10;
/// Looks in a row at which nothing was applied although something is committed, before leadership is handed over.
const STALLED_LOOKS_MAX: u32 = 25;
/// For a membership change to be committed.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Before a leader that no majority has answered yet tries again.
const LEASE_PAUSE: Duration = Duration::from_millis(10);
/// A learner that did not answer for this long is not promoted, a voter not made the leader.
const SILENCE_MAX: Duration = Duration::from_millis(1000);

/// Why the membership was not changed, or is not known to be.
#[derive(Clone, Debug, Error)]
pub enum MembershipError {
    /// Ask the leader. Nothing was changed.
    #[error("only the leader changes the membership{}", .leader.map(|l| format!("; that is node {l}")).unwrap_or_else(|| "; there is none just now, try again".into()))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
        /// Its administration address, if known.
        admin: Option<String>,
    },
    /// One change at a time. Nothing was changed.
    #[error("another membership change is under way; try again when it is done")]
    InProgress,
    /// No member has this id. Nothing was changed.
    #[error("node {0} is not a member")]
    UnknownNode(NodeId),
    /// A learner that lags must not become a voter: the others would wait for it. Nothing was changed.
    #[error("node {node} has not caught up ({}); try again when it has", .behind.map(|n| format!("{n} entries behind")).unwrap_or_else(|| "it does not answer".into()))]
    NotCaughtUp {
        /// Which.
        node: NodeId,
        /// Entries it lags behind, if it answers.
        behind: Option<u64>,
    },
    /// The last voter cannot go. Nothing was changed.
    #[error("node {0} is the only voter; promote another node first")]
    LastVoter(NodeId),
    /// Leadership did not move in time.
    #[error("leadership was not taken over in time; it stays, or another node was elected")]
    NotTransferred,
    /// The outcome is unknown: leadership was lost meanwhile. Look at the membership, then repeat.
    #[error("leadership was lost during the change; look at the members and repeat it if need be")]
    Unknown,
    /// openraft refuses. Nothing was changed.
    #[error("the change is not possible: {0}")]
    Refused(String),
    /// Raft has stopped on this node.
    #[error("Raft has stopped on this node")]
    Stopped,
}

/// Changes the membership. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Members {
    consensus: Consensus,
    one_at_a_time: std::sync::Arc<tokio::sync::Mutex<()>>,
    transfer_timeout: Duration,
}

impl Members {
    /// `transfer_timeout`: how long a transfer of leadership may take.
    pub(crate) fn new(consensus: Consensus, transfer_timeout: Duration) -> Self {
        Self { consensus, one_at_a_time: std::sync::Arc::default(), transfer_timeout }
    }

    /// The membership in force, committed or not.
    pub(crate) fn current(&self) -> std::sync::Arc<StoredMembership> {
        let metrics = self.consensus.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.clone()
    }

    /// Makes `node` a learner, if it is no member yet.
    pub(crate) async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), MembershipError> {
        let _one = self.begin()?;
        if self.current().membership().get_node(&node.0).is_some() {
            return Ok(());
        }
        info!(%node, peer = %member.peer, "membership: adding a learner");
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node.0, member)])), true).await
    }

    /// Makes the learner `node` a voter.
    pub(crate) async fn promote(&self, node: NodeId) -> Result<(), MembershipError> {
        let _one = self.begin()?;
        let current = self.current();
        let Some(member) = current.membership().get_node(&node.0) else {
            return Err(MembershipError::UnknownNode(node));
        };
        if current.voter_ids().any(|v| v == node.0) && current.get_joint_config().len() == 1 {
            return Ok(());
        }
        match self.lag(node) {
            Some(behind) if behind <= CAUGHT_UP_ENTRIES => {}
            behind => return Err(MembershipError::NotCaughtUp { node, behind }),
        }
        info!(%node, "membership: promoting a learner to voter");
        // Without the mark of one that stays a learner: on a voter it means that it is being demoted.
        let member = Member { stays_learner: false, ..member.clone() };
        let unmark = ChangeMembers::SetNodes(BTreeMap::from([(node.0, member)]));
        let join = ChangeMembers::AddVoterIds(BTreeSet::from([node.0]));
        self.change(ChangeMembers::Batch(vec![unmark, join]), true).await
    }

    /// Makes the voter `node` a learner that stays one. A leader hands over leadership first and says
    /// [`MembershipError::NotLeader`], so that the caller asks the new one.
    pub(crate) async fn demote(&self, node: NodeId) -> Result<(), MembershipError> {
        let _one = self.begin()?;
        let current = self.current();
        let Some(member) = current.membership().get_node(&node.0) else {
            return Err(MembershipError::UnknownNode(node));
        };
        if !current.voter_ids().any(|v| v == node.0) {
            return Ok(());
        }
        self.leave_leadership_first(node, current.membership()).await?;
        info!(%node, "membership: demoting a voter to learner");
        // With the mark, so that it is not promoted again by itself.
        let stays = Member { stays_learner: true, ..member.clone() };
        let mark = ChangeMembers::SetNodes(BTreeMap::from([(node.0, stays)]));
        let leave = ChangeMembers::RemoveVoters(BTreeSet::from([node.0]));
        self.change(ChangeMembers::Batch(vec![mark, leave]), true).await
    }

    /// Removes `node` from the membership. A leader hands over leadership first and says
    /// [`MembershipError::NotLeader`], so that the caller asks the new one. No member: nothing to do.
    pub(crate) async fn remove(&self, node: NodeId) -> Result<(), MembershipError> {
        let _one = self.begin()?;
        let current = self.current();
        if current.membership().get_node(&node.0).is_none() {
            return Ok(());
        }
        if current.voter_ids().any(|v| v == node.0) {
            self.leave_leadership_first(node, current.membership()).await?;
            info!(%node, "membership: removing a voter");
            return self.change(ChangeMembers::RemoveVoters(BTreeSet::from([node.0])), false).await;
        }
        info!(%node, "membership: removing a learner");
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node.0])), true).await
    }

    async fn leave_leadership_first(&self, node: NodeId, current: &Membership) -> Result<(), MembershipError> {
        if current.voter_ids().all(|v| v == node.0) {
            return Err(MembershipError::LastVoter(node));
        }
        if node != self.consensus.node_id() {
            return Ok(());
        }
        self.transfer_leadership(None).await?;
        Err(self.not_leader())
    }

    /// Hands leadership to `to`, or to the most up-to-date other voter; returns when it has moved.
    pub(crate) async fn transfer(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        let _one = self.begin()?;
        self.transfer_leadership(to).await
    }

    async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        let own = self.consensus.node_id();
        if to == Some(own) {
            return Ok(());
        }
        let best = {
            let metrics = self.consensus.raft().metrics();
            let metrics = metrics.borrow_watched();
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            let silence = |node: &u64| Some((*metrics.heartbeat.as_ref()?.get(node)?)?.into_inner().elapsed());
            let progress = metrics.replication.as_ref().into_iter().flatten();
            let others = progress.filter(|(node, _)| **node != own.0 && voters.contains(node));
            match to {
                Some(to) if !voters.contains(&to.0) => return Err(MembershipError::UnknownNode(to)),
                Some(to) => to,
                None if voters.iter().all(|v| *v == own.0) => return Err(MembershipError::LastVoter(own)),
                None => match heir(others.map(|(node, matched)| (*node, *matched, silence(node)))) {
                    Some(node) => NodeId(node),
                    None => return Err(MembershipError::NotTransferred),
                },
            }
        };
        let mut watch = self.consensus.leader_watch();
        let term = watch.borrow().term;
        info!(to = %best, "handing over leadership");
        self.consensus.raft().trigger().transfer_leader(best.0).await.map_err(|_| MembershipError::Stopped)?;
        let moved = watch.wait_for(|view| view.term > term && view.leader.is_some());
        let moved = timeout(self.transfer_timeout, moved).await;
        match moved {
            Ok(Ok(view)) if view.leader != Some(own) => Ok(()),
            Ok(Ok(_)) | Err(_) => Err(MembershipError::NotTransferred),
            Ok(Err(_)) => Err(MembershipError::Stopped),
        }
    }

    fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, MembershipError> {
        if !self.consensus.leader_watch().borrow().is_self {
            return Err(self.not_leader());
        }
        self.one_at_a_time.try_lock().map_err(|_| MembershipError::InProgress)
    }

    fn not_leader(&self) -> MembershipError {
        let leader = self.consensus.leader_watch().borrow().leader;
        MembershipError::NotLeader { leader, admin: None }
    }

    async fn change(&self, change: ChangeMembers<u64, Member>, retain: bool) -> Result<(), MembershipError> {
        let changing = async {
            loop {
                match self.consensus.raft().change_membership(change.clone(), retain).await {
                    Ok(_) => return Ok(()),
                    Err(RaftError::Fatal(_)) => return Err(MembershipError::Stopped),
                    Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))
                        if forward.reason == ForwardReason::LeaseExpired =>
                    {
                        // Leads, but no majority has answered yet, as after each election.
                        sleep(LEASE_PAUSE).await;
                    }
                    Err(RaftError::APIError(error)) => return Err(self.refusal(error)),
                }
            }
        };
        // What was begun may be committed yet; then the next look at the membership finishes it.
        timeout(CHANGE_TIMEOUT, changing).await.unwrap_or(Err(MembershipError::Unknown))
    }

    fn refusal(&self, error: ClientWriteError<Types>) -> MembershipError {
        match error {
            ClientWriteError::ForwardToLeader(forward) => {
                let leader = forward.leader_id.map(NodeId).filter(|leader| *leader != self.consensus.node_id());
                MembershipError::NotLeader { leader, admin: None }
            }
            ClientWriteError::LogEntryDiscarded(_) => MembershipError::Unknown,
            ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
            ) => MembershipError::InProgress,
            other => MembershipError::Refused(other.to_string()),
        }
    }

    /// A leader that died between the two steps of a change of voters leaves the membership joint: finishes
    /// that.
    async fn finish_change(&self) {
        let (current, committed) = {
            let metrics = self.consensus.raft().server_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.membership_config.clone(), metrics.committed_membership_config.clone())
        };
        let [.., before, target] = current.get_joint_config().as_slice() else { return };
        let Ok(_one) = self.begin() else { return };
        if current.log_id() != committed.log_id() {
            return;
        }
        info!(?before, ?target, "membership: finishing a change that another leader began");
        // Who was to be demoted is marked; who is not goes.
        let stays = |node: &u64| current.get_node(node).is_some_and(|member| member.stays_learner);
        let retain = before.difference(target).all(stays);
        if let Err(error) = self.change(ChangeMembers::ReplaceAllVoters(target.clone()), retain).await {
            debug!(%error, "membership: the change is not finished yet");
        }
    }

    /// Entries that `node` lags behind this leader's log; `None` if it did not answer lately.
    fn lag(&self, node: NodeId) -> Option<u64> {
        let metrics = self.consensus.raft().metrics();
        let metrics = metrics.borrow_watched();
        let matched = (*metrics.replication.as_ref()?.get(&node.0)?)?;
        let heard = (*metrics.heartbeat.as_ref()?.get(&node.0)?)?.into_inner();
        if heard.elapsed() > SILENCE_MAX {
            return None;
        }
        Some(metrics.last_log_index.unwrap_or_default().saturating_sub(matched.index))
    }

    /// On the leader: finishes what another began, makes voters of learners that have caught up and are not to
    /// stay learners, hands over leadership when the disk here does not keep up. Runs until aborted.
    pub(crate) async fn look_after(self) {
        let mut tick = interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut overloaded = 0;
        let mut apply = ApplyWatch::default();
        loop {
            tick.tick().await;
            if !self.consensus.leader_watch().borrow().is_self {
                (overloaded, apply) = (0, ApplyWatch::default());
                continue;
            }
            overloaded = if self.consensus.overload().is_some() { overloaded + 1 } else { 0 };
            let stalled = apply.is_stalled(self.consensus.committed_index(), self.consensus.applied_index());
            if overloaded >= OVERLOADED_LOOKS_MAX || stalled {
                warn!(
                    log_is_behind = overloaded > 0,
                    apply_stands_still = stalled,
                    "this leader's disk does not keep up: handing over leadership"
                );
                (overloaded, apply) = (0, ApplyWatch::default());
                if let Err(error) = self.transfer(None).await {
                    debug!(%error, "leadership was not handed over");
                }
                continue;
            }
            self.finish_change().await;
            let current = self.current();
            let voters: BTreeSet<u64> = current.voter_ids().collect();
            let waits = current
                .nodes()
                .filter(|(node, member)| !voters.contains(node) && !member.stays_learner)
                .map(|(node, _)| NodeId(*node))
                .find(|node| self.lag(*node).is_some_and(|behind| behind <= CAUGHT_UP_ENTRIES));
            if let Some(node) = waits
                && let Err(error) = self.promote(node).await
            {
                debug!(%node, %error, "membership: a learner was not promoted yet");
            }
        }
    }

    /// Tells of the members and where they joined from, at first and whenever that changes. Runs until Raft stops.
    pub(crate) async fn tell(self, tell: impl Fn(BTreeMap<NodeId, String>) + Send) {
        let mut metrics = self.consensus.raft().server_metrics();
        loop {
            let membership = metrics.borrow_watched().membership_config.clone();
            tell(membership.nodes().map(|(node, m)| (NodeId(*node), m.peer.clone())).collect());
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Who leads next: of the others that answered lately, the one with the longest log. Each comes with what it has
/// and how long it has been silent.
fn heir<L: Ord>(others: impl Iterator<Item = (u64, L, Option<Duration>)>) -> Option<u64> {
    let alive = others.filter(|(.., silence)| silence.is_some_and(|s| s <= SILENCE_MAX));
    alive.max_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0))).map(|(node, ..)| node)
}

/// Whether the apply thread of this leader stands still. One that is slow is left alone: the next leader would
/// hardly be faster.
#[derive(Debug, Default)]
struct ApplyWatch {
    applied: u64,
    looks: u32,
}

impl ApplyWatch {
    fn is_stalled(&mut self, committed: u64, applied: u64) -> bool {
        let stands = applied < committed && applied == self.applied;
        self.looks = if stands { self.looks + 1 } else { 0 };
        self.applied = applied;
        self.looks >= STALLED_LOOKS_MAX
    }
}

/// The members of a cluster that consists of one node.
pub(crate) fn first_members(node: NodeId, peer: String) -> BTreeMap<u64, Member> {
    BTreeMap::from([(node.0, Member { peer, stays_learner: false })])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heir_is_the_most_up_to_date_of_those_that_answer() {
        let (now, long_ago) = (Some(Duration::ZERO), Some(SILENCE_MAX * 2));
        assert_eq!(heir([(2, 50, now), (3, 50, now)].into_iter()), Some(3));
        assert_eq!(heir([(2, 51, now), (3, 50, now)].into_iter()), Some(2));
        assert_eq!(heir([(2, 50, now), (3, 50, long_ago)].into_iter()), Some(2), "a dead one inherits nothing");
        assert_eq!(heir([(2, 50, None), (3, 50, long_ago)].into_iter()), None);
    }

    #[test]
    fn an_apply_thread_that_stands_still_costs_leadership_and_a_slow_one_does_not() {
        let mut watch = ApplyWatch::default();
        for look in 0..u64::from(STALLED_LOOKS_MAX) * 3 {
            assert!(!watch.is_stalled(1_000_000 + look, look), "slow");
        }
        for look in 0..u64::from(STALLED_LOOKS_MAX) * 3 {
            assert!(!watch.is_stalled(7, 7), "idle, look {look}");
        }
        let looks = (1..).find(|_| watch.is_stalled(8, 7));
        assert_eq!(looks, Some(STALLED_LOOKS_MAX));
    }
}
