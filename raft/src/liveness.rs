//! Who is alive: every node pings the leader, the leader gives up who is silent, and every node knows
//! whether it stands with a majority.
//!
//! A ping takes the way that proposals take, from the node to the leader, so who cannot propose cannot ping.
//! The leader commits `NodeLost` for an incarnation from whose node it has heard nothing for `node_timeout`,
//! counted at the earliest from when it began to lead, and carrying its term, so that it is void once another
//! leads. It never gives up itself, and nobody while it has no majority or has just been asleep itself: what
//! it did not hear then says nothing about the others. A node has a quorum while it leads with a majority within
//! `quorum_grace`, or the leader that answers its pings does and sends it the log, too, and for as long after
//! that if the leader changes; that it is less than `node_timeout` makes a node send its clients away before the
//! others take over their sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_store::command::Command;
use quorate_store::effect::Outcome;
use quorate_store::ids::{Incarnation, NodeId};
use quorate_store::machine::NodeSummary;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::apply::ApplyHandle;
use crate::clock::ClusterClock;
use crate::leader_intake::{Ask, Asks, LeaderDesk, Leadership, Reply};
use crate::proposer::{Directs, StreamStats, lock};

/// Between two pings.
pub(crate) const PING_INTERVAL: Duration = Duration::from_millis(200);
/// Between two pings while this node's leader is unknown or does not answer.
const PING_RETRY: Duration = Duration::from_millis(100);
/// For the answer to a ping.
const PING_PATIENCE: Duration = Duration::from_millis(500);
/// How often the leader looks for silent nodes, and each node at its quorum.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A leader that looks this much too late, beside what it had to wait for, has been asleep.
const ASLEEP: Duration = Duration::from_millis(1000);
/// For a `NodeLost` to be applied here, before it is tried again.
const LOST_PATIENCE: Duration = Duration::from_millis(1000);
/// For the apply thread to list the nodes.
const NODES_PATIENCE: Duration = Duration::from_millis(1000);

/// Whom the leader has heard of, and when.
#[derive(Debug)]
pub(crate) struct Attendance {
    roll: Mutex<Roll>,
    node_timeout: Duration,
}

#[derive(Debug, Default)]
struct Roll {
    /// Since when silence counts; `None` while this node does not lead.
    since: Option<Instant>,
    term: u64,
    heard: HashMap<NodeId, Heard>,
    /// When the leader first saw an incarnation open.
    seen: HashMap<Incarnation, Instant>,
    looked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    /// As the node says; `None` while it is starting.
    incarnation: Option<Incarnation>,
}

impl Attendance {
    pub(crate) fn new(node_timeout: Duration) -> Self {
        Self { roll: Mutex::new(Roll::default()), node_timeout }
    }

    /// A ping of `node`.
    pub(crate) fn heard(&self, node: NodeId, incarnation: Option<Incarnation>, now: Instant) {
        lock(&self.roll).heard.insert(node, Heard { at: now, incarnation });
    }

    /// This node leads in `term`, with a majority. Silence before the first call in that term, and while this
    /// node was asleep, does not count. `busy`: what this node may have waited for since the last call.
    fn leads(&self, term: u64, now: Instant, busy: Duration) {
        let mut roll = lock(&self.roll);
        let asleep = roll.looked.is_some_and(|at| now.saturating_duration_since(at) > busy + ASLEEP);
        if roll.since.is_none() || roll.term != term || asleep {
            roll.since = Some(now);
            roll.term = term;
            roll.seen.clear();
        }
        roll.looked = Some(now);
    }

    /// This node does not lead, or without a majority.
    fn leads_not(&self) {
        let mut roll = lock(&self.roll);
        roll.since = None;
        roll.seen.clear();
    }

    /// The open incarnations that have been silent for too long, and since when.
    fn silent(&self, me: NodeId, nodes: &[NodeSummary], now: Instant) -> Vec<(NodeId, Incarnation, Duration)> {
        let mut roll = lock(&self.roll);
        let Some(since) = roll.since else { return Vec::new() };
        roll.heard.retain(|node, _| nodes.iter().any(|n| n.id == *node));
        let open = |n: &NodeSummary| n.incarnation.filter(|_| n.up && n.id != me).map(|i| (n.id, i));
        let open: Vec<_> = nodes.iter().filter_map(open).collect();
        roll.seen.retain(|incarnation, _| open.iter().any(|(_, i)| i == incarnation));
        let mut silent = Vec::new();
        for (node, incarnation) in open {
            let seen = *roll.seen.entry(incarnation).or_insert(now);
            // A node that is starting says nothing of its incarnation: its start is on its way, or not yet
            // applied there. One that names another is not heard of for this one.
            let heard = roll.heard.get(&node).filter(|h| h.incarnation.is_none_or(|i| i == incarnation));
            let from = heard.map_or(since, |h| h.at).max(since).max(seen);
            let silence = now.saturating_duration_since(from);
            if silence >= self.node_timeout {
                silent.push((node, incarnation, silence));
            }
        }
        silent
    }
}

/// On the leader: settles cluster time and gives up who is silent. Runs on every node.
pub(crate) async fn run_attendance<L: Leadership>(
    desk: Arc<LeaderDesk<L>>,
    attendance: Arc<Attendance>,
    clock: Arc<ClusterClock>,
    nodes: impl ListNodes,
    directs: Directs<L>,
    stats: Arc<StreamStats>,
) {
    let raft = desk.raft().clone();
    let mut leader = raft.leader_watch();
    let me = raft.node_id();
    // Of the look before: waiting for others is no sleep.
    let mut busy = Duration::ZERO;
    loop {
        let view = *leader.borrow_and_update();
        if !view.is_self {
            attendance.leads_not();
            if leader.wait_for(|view| view.is_self).await.is_err() {
                return;
            }
            continue;
        }
        if desk.has_quorum() {
            clock.settle(me, view.term, &raft.voters());
            // Judged by now, so that a pause of this node during what follows is nobody's silence.
            let now = Instant::now();
            attendance.leads(view.term, now, busy);
            busy = LOOK_INTERVAL;
            let listed = nodes.list().await;
            busy += now.elapsed().min(NODES_PATIENCE);
            // Without a list nothing is known of anybody, neither silence nor life.
            for (node, incarnation, silence) in
                listed.map(|nodes| attendance.silent(me, &nodes, now)).unwrap_or_default()
            {
                warn!(%node, %incarnation, silent_ms = silence.as_millis() as u64, "a node is silent: it is declared lost");
                let lost = Command::NodeLost { incarnation, term: view.term };
                let appending = Instant::now();
                if let Some(Outcome::Done) = directs.append_here(lost, LOST_PATIENCE).await {
                    stats.nodes_declared_lost.inc();
                }
                busy += appending.elapsed().min(LOST_PATIENCE);
            }
        } else {
            attendance.leads_not();
        }
        tokio::select! {
            changed = leader.wait_for(|now| (now.is_self, now.term) != (view.is_self, view.term)) => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Lists the nodes as the state machine has them.
pub(crate) trait ListNodes: Send + Sync + 'static {
    /// `None` when they cannot be had just now.
    fn list(&self) -> impl Future<Output = Option<Vec<NodeSummary>>> + Send;
}

impl ListNodes for ApplyHandle {
    async fn list(&self) -> Option<Vec<NodeSummary>> {
        let nodes = self.with_machine(|machine| machine.nodes());
        timeout(NODES_PATIENCE, nodes).await.ok()?.ok()
    }
}

/// When a majority last stood behind this node, as far as it knows.
#[derive(Debug, Default)]
struct Backing {
    /// When a majority backed the leader that answered a ping, this node itself too.
    confirmed_at: Option<Instant>,
    /// When this node last led with a majority.
    led_at: Option<Instant>,
}

/// What a node sees when it looks at its quorum.
#[derive(Clone, Copy, Debug)]
struct Seen {
    leads: bool,
    /// It leads, and a majority has answered it within `quorum_grace`.
    is_proven: bool,
    /// When a leader last sent it anything.
    heard_at: Option<Instant>,
}

impl Backing {
    fn confirmed(&mut self, at: Option<Instant>) {
        self.confirmed_at = self.confirmed_at.max(at);
    }

    /// Whether this node stands with a majority. A change of leader alone takes nothing from it: who has just been
    /// elected was backed through the leader before it, until a majority answers, and who has just been deposed has
    /// not been told anything by the next one yet.
    fn holds(&mut self, seen: Seen, grace: Duration, now: Instant) -> bool {
        let is_fresh = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < grace);
        if seen.is_proven {
            self.led_at = Some(now);
        }
        let is_confirmed = is_fresh(self.confirmed_at);
        // Both ways: who asks a leader that cannot reach it, or does not know it any more, gets answers but no log.
        seen.is_proven || is_confirmed && (seen.leads || is_fresh(seen.heard_at.max(self.led_at)))
    }
}

/// Pings the leader for as long as it runs, and keeps `has_quorum`.
pub(crate) async fn run_pings<L: Leadership>(
    desk: Arc<LeaderDesk<L>>,
    asks: Asks<L>,
    clock: Arc<ClusterClock>,
    incarnation: watch::Receiver<Option<Incarnation>>,
    quorum: watch::Sender<bool>,
    quorum_grace: Duration,
    stats: Arc<StreamStats>,
) {
    let backing = Mutex::new(Backing::default());
    let ping = async {
        let mut leader = asks.raft().leader_watch();
        loop {
            let view = *leader.borrow_and_update();
            let asked_at = Instant::now();
            let ask = Ask::Ping { incarnation: *incarnation.borrow(), clock: clock.report() };
            let pause = match asks.ask(ask, PING_PATIENCE).await {
                Ok(Reply::Pong { quorum_age_ms, clock: report }) => {
                    if !view.is_self {
                        clock.leader_says(report);
                    }
                    // The leader looked at some time after the question, so its majority is no older than this.
                    let backed_at = quorum_age_ms.and_then(|ms| asked_at.checked_sub(Duration::from_millis(ms)));
                    lock(&backing).confirmed(backed_at);
                    PING_INTERVAL
                }
                Ok(_) => PING_RETRY,
                Err(error) => {
                    debug!(%error, "a ping to the leader was not answered");
                    PING_RETRY
                }
            };
            tokio::select! {
                changed = leader.wait_for(|now| (now.leader, now.term) != (view.leader, view.term)) => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(pause) => {}
            }
        }
    };
    let watch_quorum = async {
        loop {
            let leads = asks.raft().leader_watch().borrow().is_self;
            let seen = Seen { leads, is_proven: leads && desk.has_quorum(), heard_at: desk.raft().leader_heard_at() };
            let has_quorum = lock(&backing).holds(seen, quorum_grace, Instant::now());
            let changed = quorum.send_if_modified(|had| std::mem::replace(had, has_quorum) != has_quorum);
            if changed && has_quorum {
                info!("this node stands with a majority");
            } else if changed {
                stats.quorum_lost.inc();
                warn!(
                    grace_ms = quorum_grace.as_millis() as u64,
                    "this node has no leader that a majority backs: clients are turned away"
                );
            }
            sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = ping => {}
        () = watch_quorum => {}
    }
    quorum.send_replace(false);
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
