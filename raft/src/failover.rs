//! A leader's process that dies is noticed at once.
//!
//! A timed election waits out the leader's lease, a second or more. But when the leader's Raft connection
//! to this node is reset, and dialing it is refused (or reaches a process that was started later), its
//! process is certainly gone, and so is its lease. Then the survivors need not wait: the most up-to-date
//! one hands the dead leader's leadership to itself (`handle_transfer_leader` from the current vote).
//!
//! This steps over the lease and never over the votes: a majority still has to grant the term, so it is
//! safe whatever is wrong about the suspicion, and reads go by ReadIndex, never by lease. It is tried once
//! a term, staggered, and never on a node that does not know the dead node as the leader of its term. A
//! machine or a network that vanishes is left to the timed election.

use std::io;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use quorate_store::ids::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::consensus::{Consensus, LeaderView};
use crate::peer::Purpose;
use crate::raft_link::RaftLinks;
use crate::raft_service::PeerGone;
use crate::types::{LogId, Types, Vote};
use crate::wire::Call;

/// Longest wait for the other survivors to say how far their logs are.
const PROGRESS_TIMEOUT: Duration = Duration::from_millis(50);
/// What a survivor waits for each one that is ahead of it.
const STAGGER: Duration = Duration::from_millis(150);

/// Dials of a leader that drops new connections.
const DIALS_MAX: u32 = 20;
/// Between two of them.
const DIAL_PAUSE: Duration = Duration::from_millis(5);

fn is_dropped(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// See the module.
pub(crate) struct Failover {
    consensus: Consensus,
    links: RaftLinks,
    gone: mpsc::Receiver<PeerGone>,
}

impl Failover {
    /// `gone` is fed by [`crate::raft_service`].
    pub(crate) fn new(consensus: Consensus, links: RaftLinks, gone: mpsc::Receiver<PeerGone>) -> Self {
        Self { consensus, links, gone }
    }

    /// Runs until Raft stops.
    pub(crate) async fn run(mut self) {
        let mut tried_term = 0;
        while let Some(gone) = self.gone.recv().await {
            let view = *self.consensus.leader_watch().borrow();
            if view.leader != Some(gone.node) || view.is_self || tried_term == view.term {
                continue;
            }
            if !self.is_dead(gone).await {
                continue;
            }
            tried_term = view.term;
            self.succeed(gone.node, view).await;
        }
    }

    async fn is_dead(&self, gone: PeerGone) -> bool {
        for _ in 0..DIALS_MAX {
            match self.links.pool().dial(gone.node, Purpose::Raft).await {
                Ok(conn) if conn.peer_boot() != gone.boot => {
                    info!(leader = %gone.node, "the leader's process was restarted");
                    return true;
                }
                Ok(_) => return false,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let known = self.links.pool().has_reached(gone.node);
                    if !known {
                        debug!(leader = %gone.node, "the leader's address refuses, but was never seen to work: no conclusion");
                    }
                    return known;
                }
                // A dying process's listener may take a connection into its backlog and drop it: ask again.
                Err(error) if is_dropped(&error) => {
                    debug!(leader = %gone.node, %error, "the leader dropped a new connection, dialing again");
                    sleep(DIAL_PAUSE).await;
                }
                Err(error) => {
                    debug!(leader = %gone.node, %error, "the leader cannot be reached, but it may be alive");
                    return false;
                }
            }
        }
        false
    }

    /// Takes the dead leader's place, unless a survivor that is ahead does so first.
    async fn succeed(&self, dead: NodeId, view: LeaderView) {
        let own = self.consensus.node_id();
        let (vote, last, voters) = {
            let metrics = self.consensus.raft().metrics();
            let metrics = metrics.borrow_watched();
            let last = self.consensus.last_log_id();
            (metrics.vote, last, metrics.membership_config.voter_ids().map(NodeId).collect::<Vec<_>>())
        };
        let is_dead_leaders_vote = vote == Vote::new_committed(view.term, dead.0);
        if !voters.contains(&own) || !is_dead_leaders_vote {
            return;
        }
        let ahead = self.survivors_ahead(dead, &voters, last).await;
        if ahead > 0 && self.leader_changes_within(view, STAGGER * ahead).await {
            return;
        }
        info!(%dead, term = view.term, ahead, "the leader's process is gone: standing for election at once");
        let request = TransferLeaderRequest::<Types>::new(vote, own.0, last);
        match self.consensus.raft().handle_transfer_leader(request).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => info!(%refused, "fast failover gave way"),
            Err(fatal) => warn!(%fatal, "fast failover: Raft has stopped on this node"),
        }
    }

    /// How many survivors should go first: those with a longer log, and of equal ones those with a higher id.
    async fn survivors_ahead(&self, dead: NodeId, voters: &[NodeId], last: Option<LogId>) -> u32 {
        let own = self.consensus.node_id();
        let mut asked = JoinSet::new();
        for peer in voters.iter().copied().filter(|v| *v != own && *v != dead) {
            let link = self.links.to(peer);
            asked.spawn(async move { (peer, link.call(Call::Progress, PROGRESS_TIMEOUT).await) });
        }
        let mut ahead = 0;
        while let Some(answer) = asked.join_next().await {
            let Ok((peer, Ok(answer))) = answer else { continue };
            let Some((theirs, _)) = answer.into_progress() else { continue };
            if (theirs, peer) > (last, own) {
                ahead += 1;
            }
        }
        ahead
    }

    async fn leader_changes_within(&self, view: LeaderView, wait: Duration) -> bool {
        let mut watch = self.consensus.leader_watch();
        let changed = watch.wait_for(|now| now.term != view.term || now.leader != view.leader);
        timeout(wait, changed).await.is_ok()
    }
}
