//! Cluster time on this node.
//!
//! Cluster time is milliseconds since 1970 as the cluster sees them: the leader stamps each proposal, apply
//! takes `max(previous, stamp)`. Every node carries on from the latest it has seen with its monotonic clock,
//! so a new leader goes on where the old one stopped, and time never runs backwards.
//!
//! Wall clocks enter once, at a cold start: the whole cluster was down, nobody has live time, and the log's
//! last stamp is as old as the outage. A node has *live* time when it led with live time, or was answered by
//! a leader that has it. A leader without live time looks at what the nodes tell with their pings: if one
//! has live time it takes that; if all voters have answered and none has, or after a second a majority (itself
//! among them), it takes the larger of the last stamp and the lower median of their wall clocks. Until then it
//! takes no batches of clients: what they published would get its deadline by the old time, and the jump would
//! expire it at once. It never looks at a wall clock again after that.
//!
//! A jump above `cold_start_jump_max` is not taken by itself: a majority may have wrong clocks, and what expires
//! is gone. Then time carries on from the last stamp, which can only delay what is due, with an alarm, until all
//! voters have reported and their clocks agree; an operator who knows better raises the bound.

mod ticker;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_store::ids::{ClusterTime, NodeId};
use tracing::{info, warn};

pub(crate) use ticker::run_ticker;

use crate::consensus::StampClock;
use crate::leader_intake::ClockReport;
use crate::proposer::lock;

/// How long a leader without live time waits for the voters that have not reported, one of which may have it.
const REPORTS_PATIENCE: Duration = Duration::from_millis(1000);
/// Wall clocks this far from each other agree.
const WALLS_AGREE: Duration = Duration::from_secs(60);
/// How long a jump that was taken is told of.
const JUMP_SHOWN: Duration = Duration::from_secs(3600);
/// Nodes whose reports are kept; far more than a cluster has voters.
const REPORTS_MAX: usize = 1024;

/// This machine's wall clock, milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What an operator should know of cluster time, as the leader does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockAlarm {
    /// At a cold start the wall clocks of a majority were this far ahead: nothing expires by them until all voters are
    /// here and agree, or `cold_start_jump_max` is raised.
    Held {
        /// By how much time would jump.
        jump: Duration,
    },
    /// Time has jumped this far, within the last hour, because the clocks of all voters agreed.
    Jumped {
        /// By how much.
        jump: Duration,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    state: Mutex<ClockState>,
    /// Read for each batch.
    is_live: AtomicBool,
}

/// What the clock knows. Times come in from outside, so that it can be tested.
#[derive(Debug)]
struct ClockState {
    time: ClusterTime,
    at: Instant,
    is_live: bool,
    jump_max: Duration,
    /// Of other nodes, while this one looks at wall clocks.
    reports: HashMap<NodeId, (ClockReport, Instant)>,
    /// Leads without live time: in which term, and since when.
    leads_since: Option<(u64, Instant)>,
    /// Leads, in this term, with a time that the wall clocks are far ahead of.
    held_in: Option<u64>,
    /// By how much, when that was found; and a far jump that was taken, and when.
    held_jump: Duration,
    jumped: Option<(Duration, Instant)>,
}

/// A leader that looks whether it can have live time.
#[derive(Clone, Copy, Debug)]
struct Leader<'a> {
    me: NodeId,
    term: u64,
    voters: &'a [NodeId],
    wall_ms: u64,
}

/// What a leader without live time did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// Too few nodes have reported.
    NotYet,
    /// Took over another node's live time.
    Adopted,
    /// Carries on from the last stamp: the wall clocks are too far ahead.
    Held {
        /// By how much time would jump.
        jump: Duration,
    },
    /// Took the wall clocks.
    Wall {
        /// By how much time jumped.
        jump: Duration,
        /// There was no cluster time before: a new cluster.
        is_first: bool,
    },
}

impl ClockState {
    fn new(now: Instant, jump_max: Duration) -> Self {
        Self {
            time: ClusterTime::default(),
            at: now,
            is_live: false,
            jump_max,
            reports: HashMap::new(),
            leads_since: None,
            held_in: None,
            held_jump: Duration::ZERO,
            jumped: None,
        }
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
        self.held_in = None;
    }

    /// Whether what other nodes tell of their clocks is of any use.
    fn listens(&self) -> bool {
        !self.is_live || self.held_in.is_some()
    }

    /// On a leader without live time, or one that holds it.
    fn settle(&mut self, leader: Leader<'_>, now: Instant) -> Settled {
        let Leader { me, term, voters, wall_ms: own_wall_ms } = leader;
        if self.held_in.is_some_and(|held| held != term) {
            // Others have led meanwhile, and their time is what it is.
            self.held_in = None;
            self.reports.clear();
            return Settled::NotYet;
        }
        if let Some(time) =
            self.reports.values().filter(|(r, _)| r.is_live).map(|(r, at)| aged(r.time.0, *at, now)).max()
            && !self.is_live
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
        let since = match self.leads_since {
            Some((of, since)) if of == term => since,
            _ => now,
        };
        self.leads_since = Some((term, since));
        let all = walls.len() == voters.len();
        let waited = now.saturating_duration_since(since) >= REPORTS_PATIENCE;
        if walls.len() <= voters.len() / 2 || !(all || waited) {
            return Settled::NotYet;
        }
        walls.sort_unstable();
        let Some(median) = walls.get((walls.len() - 1) / 2).copied() else { return Settled::NotYet };
        let before = self.now(now);
        let is_first = self.time == ClusterTime::default();
        let jump = Duration::from_millis(median.saturating_sub(before.0));
        let apart = walls.last().zip(walls.first()).map_or(0, |(last, first)| last - first);
        let agree = all && Duration::from_millis(apart) <= WALLS_AGREE;
        if jump > self.jump_max && !is_first && !agree {
            let is_new = self.held_in.replace(term).is_none();
            self.is_live = true;
            if is_new {
                self.held_jump = jump;
            }
            return if is_new { Settled::Held { jump } } else { Settled::NotYet };
        }
        self.adopt(ClusterTime(median), now);
        if jump > self.jump_max && !is_first {
            self.jumped = Some((jump, now));
        }
        Settled::Wall { jump, is_first }
    }

    fn alarm(&self, now: Instant) -> Option<ClockAlarm> {
        if self.held_in.is_some() {
            return Some(ClockAlarm::Held { jump: self.held_jump });
        }
        let recent = self.jumped.filter(|(_, at)| now.saturating_duration_since(*at) < JUMP_SHOWN);
        recent.map(|(jump, _)| ClockAlarm::Jumped { jump })
    }
}

/// What a clock that showed `ms` at `at` shows now.
fn aged(ms: u64, at: Instant, now: Instant) -> u64 {
    ms.saturating_add(u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX))
}

impl ClusterClock {
    /// Knows nothing yet. At a cold start it jumps by at most `jump_max` without more agreement.
    pub(crate) fn new(jump_max: Duration) -> Self {
        Self { state: Mutex::new(ClockState::new(Instant::now(), jump_max)), is_live: AtomicBool::new(false) }
    }

    /// Changes the state, and shows whether time is live.
    fn with<T>(&self, f: impl FnOnce(&mut ClockState) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        self.is_live.store(state.is_live, Ordering::Release);
        result
    }

    /// Cluster time now, as far as this node knows: for deadlines that the front end puts into commands.
    pub(crate) fn now(&self) -> ClusterTime {
        lock(&self.state).now(Instant::now())
    }

    /// The log shows that cluster time has come to this.
    pub(crate) fn observe(&self, time: ClusterTime) {
        lock(&self.state).observe(time, Instant::now());
    }

    /// What an operator should know of it, if anything. Only who leads knows.
    pub(crate) fn alarm(&self) -> Option<ClockAlarm> {
        lock(&self.state).alarm(Instant::now())
    }

    /// What this node tells of its clock.
    pub(crate) fn report(&self) -> ClockReport {
        let state = lock(&self.state);
        ClockReport { time: state.now(Instant::now()), is_live: state.is_live, wall_ms: wall_ms() }
    }

    /// The leader tells of its clock.
    pub(crate) fn leader_says(&self, report: ClockReport) {
        self.with(|state| {
            if report.is_live {
                state.adopt(report.time, Instant::now());
            } else {
                state.observe(report.time, Instant::now());
            }
        });
    }

    /// On the leader: another node tells of its clock.
    pub(crate) fn heard(&self, from: NodeId, report: ClockReport) {
        let mut state = lock(&self.state);
        if state.listens() && (state.reports.len() < REPORTS_MAX || state.reports.contains_key(&from)) {
            state.reports.insert(from, (report, Instant::now()));
        }
    }

    /// On the leader of `term`, every now and then: looks whether it can have live time. Cheap once it has.
    pub(crate) fn settle(&self, me: NodeId, term: u64, voters: &[NodeId]) {
        let settled = self.with(|state| {
            if !state.listens() {
                return Settled::NotYet;
            }
            state.settle(Leader { me, term, voters, wall_ms: wall_ms() }, Instant::now())
        });
        match settled {
            Settled::NotYet => {}
            Settled::Adopted => info!("cluster time goes on from a node that was running"),
            Settled::Held { jump } => warn!(
                jump_s = jump.as_secs(),
                "alarm: at this cold start the wall clocks of a majority are far ahead of cluster time. Nothing expires \
                 by them: time goes on from where it stopped, until all voters are here and their clocks agree. If the \
                 cluster was down for so long, raise cold_start_jump_s_max and restart all nodes; else set their clocks"
            ),
            Settled::Wall { jump, is_first } if !is_first && jump > lock(&self.state).jump_max => warn!(
                jump_s = jump.as_secs(),
                "alarm: cluster time jumps far at this cold start, as the clocks of all voters agree"
            ),
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

    fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
