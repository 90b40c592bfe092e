//! Cluster time on this node.
//!
//! Cluster time is milliseconds since 1970 as the cluster sees them: the leader stamps each proposal, apply
//! takes `max(previous, stamp)`. Every node carries on from the latest it has seen with its monotonic clock,
//! so a new leader goes on where the old one stopped, and time never runs backwards.
//!
//! Wall clocks enter once, at a cold start: the whole cluster was down, nobody has live time, and the log's
//! last stamp is as old as the outage. A node has *live* time when it led with live time, or was answered by
//! a leader that has it. A leader without live time looks at what the nodes tell with their pings: if one
//! has live time it takes that; if a majority of the voters (itself among them) has answered and none has,
//! it takes the larger of the last stamp and the lower median of their wall clocks. Until then it carries on
//! from the last stamp, which can only delay what is due. A jump of more than a day is logged as an alarm.
//! It never looks at a wall clock again after that.
//!
//! Simple for now: after the alarm, what is due by the new time expires; holding that back until an operator
//! or a second majority agrees is not built yet.

mod ticker;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_store::ids::{ClusterTime, NodeId};
use tracing::{info, warn};

pub(crate) use ticker::run_ticker;

use crate::consensus::StampClock;
use crate::leader_intake::ClockReport;
use crate::proposer::lock;

/// A jump of cluster time at a cold start that is worth an alarm.
const JUMP_ALARM: Duration = Duration::from_secs(24 * 3600);
/// Nodes whose reports are kept; far more than a cluster has voters.
const REPORTS_MAX: usize = 1024;

/// This machine's wall clock, milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    state: Mutex<ClockState>,
}

/// What the clock knows. Times come in from outside, so that it can be tested.
#[derive(Debug)]
struct ClockState {
    time: ClusterTime,
    at: Instant,
    is_live: bool,
    /// Of other nodes, while this one has no live time.
    reports: HashMap<NodeId, (ClockReport, Instant)>,
}

/// What a leader without live time did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// Too few nodes have reported.
    NotYet,
    /// Took over another node's live time.
    Adopted,
    /// Took the wall clocks.
    Wall {
        /// By how much time jumped.
        jump: Duration,
        /// There was no cluster time before: a new cluster.
        is_first: bool,
    },
}

impl ClockState {
    fn new(now: Instant) -> Self {
        Self { time: ClusterTime::default(), at: now, is_live: false, reports: HashMap::new() }
    }

    fn now(&self, now: Instant) -> ClusterTime {
        let elapsed = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        ClusterTime(self.time.0.saturating_add(elapsed))
    }

    fn observe(&mut self, time: ClusterTime, now: Instant) {
        if time > self.now(now) {
            self.time = time;
            self.at = now;
        }
    }

    fn adopt(&mut self, time: ClusterTime, now: Instant) {
        self.observe(time, now);
        self.is_live = true;
        self.reports.clear();
    }

    /// On a leader without live time. `own` is this node's report.
    fn settle(&mut self, me: NodeId, voters: &[NodeId], own_wall_ms: u64, now: Instant) -> Settled {
        if let Some(time) =
            self.reports.values().filter(|(r, _)| r.is_live).map(|(r, at)| aged(r.time.0, *at, now)).max()
        {
            self.adopt(ClusterTime(time), now);
            return Settled::Adopted;
        }
        let wall = |voter: &NodeId| {
            if *voter == me {
                return Some(own_wall_ms);
            }
            self.reports.get(voter).map(|(r, at)| aged(r.wall_ms, *at, now))
        };
        let mut walls: Vec<u64> = voters.iter().filter_map(wall).collect();
        if walls.len() <= voters.len() / 2 {
            return Settled::NotYet;
        }
        walls.sort_unstable();
        let Some(median) = walls.get((walls.len() - 1) / 2).copied() else { return Settled::NotYet };
        let before = self.now(now);
        let is_first = self.time == ClusterTime::default();
        self.adopt(ClusterTime(median), now);
        Settled::Wall { jump: Duration::from_millis(self.now(now).0 - before.0), is_first }
    }
}

/// What a clock that showed `ms` at `at` shows now.
fn aged(ms: u64, at: Instant, now: Instant) -> u64 {
    ms.saturating_add(u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX))
}

impl ClusterClock {
    /// Knows nothing yet.
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(ClockState::new(Instant::now())) }
    }

    /// Cluster time now, as far as this node knows: for deadlines that the front end puts into commands.
    pub(crate) fn now(&self) -> ClusterTime {
        lock(&self.state).now(Instant::now())
    }

    /// The log shows that cluster time has come to this.
    pub(crate) fn observe(&self, time: ClusterTime) {
        lock(&self.state).observe(time, Instant::now());
    }

    /// What this node tells of its clock.
    pub(crate) fn report(&self) -> ClockReport {
        let state = lock(&self.state);
        ClockReport { time: state.now(Instant::now()), is_live: state.is_live, wall_ms: wall_ms() }
    }

    /// The leader tells of its clock.
    pub(crate) fn leader_says(&self, report: ClockReport) {
        let mut state = lock(&self.state);
        if report.is_live {
            state.adopt(report.time, Instant::now());
        } else {
            state.observe(report.time, Instant::now());
        }
    }

    /// On the leader: another node tells of its clock.
    pub(crate) fn heard(&self, from: NodeId, report: ClockReport) {
        let mut state = lock(&self.state);
        if !state.is_live && (state.reports.len() < REPORTS_MAX || state.reports.contains_key(&from)) {
            state.reports.insert(from, (report, Instant::now()));
        }
    }

    /// On the leader, every now and then: looks whether it can have live time. Cheap once it has.
    pub(crate) fn settle(&self, me: NodeId, voters: &[NodeId]) {
        let settled = {
            let mut state = lock(&self.state);
            if state.is_live {
                return;
            }
            state.settle(me, voters, wall_ms(), Instant::now())
        };
        match settled {
            Settled::NotYet => {}
            Settled::Adopted => info!("cluster time goes on from a node that was running"),
            Settled::Wall { jump, is_first } if !is_first && jump > JUMP_ALARM => {
                warn!(
                    jump_s = jump.as_secs(),
                    "alarm: cluster time jumps by more than a day at this cold start; was the cluster down for so long, \
                     or are the clocks of a majority wrong?"
                );
            }
            Settled::Wall { jump, .. } => {
                info!(jump_ms = jump.as_millis() as u64, "cluster time starts from the wall clocks of a majority")
            }
        }
    }
}

impl StampClock for ClusterClock {
    fn stamp(&self) -> ClusterTime {
        self.now()
    }
}

#[cfg(test)]
mod tests;
