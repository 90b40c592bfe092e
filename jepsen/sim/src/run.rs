//! One seed: a cluster forms, clients work, faults come; then all heals, and everything that was promised must be there.

use std::time::Duration;

use quorate_jepsen::check::check;
use quorate_raft::LogRetention;

use crate::disk::Unsynced;
use crate::faults::{self, Plan};
use crate::world::{below, between, note, one_in};
use crate::{client, clock, invariants, net, node, world};

/// Clients of a run.
pub(crate) const CLIENTS: u32 = 4;
const HOSTS: u64 = 3;
/// For the cluster to form and all clients to be subscribed.
const FORM_MAX: Duration = Duration::from_secs(60);
/// For all that is owed, once all is well: node_timeout, elections, a day's worth of patience.
const LIVENESS_MAX: Duration = Duration::from_secs(90);
/// Events after which a run is taken to be stuck at one moment.
const STEPS_AT_ONCE_MAX: u32 = 100_000;

/// What a run is told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seed of all chance.
    pub seed: u64,
    /// Keeps the trace for reading.
    pub keeps_trace: bool,
    /// Something that is broken on purpose.
    pub bug: Option<Bug>,
    /// Faults, by their numbers, that do not come.
    pub skipped: Vec<u32>,
}

/// Something that is broken on purpose: runs must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// Votes are reported before they are synced.
    UnsyncedVote,
    /// Entries are reported before they are synced.
    UnsyncedAppend,
    /// Truncations are reported before they are synced.
    UnsyncedTruncate,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The first broken promise.
    pub violation: Option<String>,
    /// Virtual time.
    pub virtual_s: f64,
    /// Lines of the trace, and their hash.
    pub trace_lines: u64,
    /// As above.
    pub trace_hash: u64,
    /// The trace, if it was kept.
    pub trace: Vec<String>,
    /// Terms that had a leader.
    pub terms: usize,
    /// Publishes that were acknowledged.
    pub acknowledged: usize,
    /// Deliveries.
    pub delivered: usize,
    /// Faults that were planned.
    pub faults: usize,
    /// Threads of the process: more than one is no simulation.
    pub threads: usize,
}

/// Runs one seed. Once in a process: what is global must not reach from one seed to the next.
#[must_use]
pub fn run(options: &Options) -> Report {
    let dir = tempfile::Builder::new().prefix("quorate-sim-").tempdir_in(scratch()).expect("a folder for the rows");
    world::begin(options.seed, options.keeps_trace);
    invariants::begin();
    net::begin(net::some_weather());
    let bug = |which| options.bug == Some(which);
    let unsynced = Unsynced {
        votes: bug(Bug::UnsyncedVote),
        appends: bug(Bug::UnsyncedAppend),
        truncations: bug(Bug::UnsyncedTruncate),
    };
    node::begin(HOSTS, dir.path(), retention(), unsynced);
    for host in 1..=HOSTS {
        world::after(Duration::from_millis(host * 5), move || node::start(host));
    }
    let mut faults = 0;
    let violation = lifecycle(&options.skipped, &mut faults);
    let (trace_lines, trace_hash) = world::digest();
    let history = client::history();
    let report = Report {
        violation,
        virtual_s: clock::now_ns() as f64 / 1e9,
        trace_lines,
        trace_hash,
        trace: world::take_trace(),
        terms: invariants::terms(),
        acknowledged: history.sent.iter().filter(|s| s.acknowledged).count(),
        delivered: history.delivered.len(),
        faults,
        threads: std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count),
    };
    for host in node::hosts() {
        node::kill(host, true);
    }
    report
}

fn scratch() -> std::path::PathBuf {
    let memory = std::path::PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Small logs and frequent snapshots in some runs, so that nodes that were away need them.
fn retention() -> LogRetention {
    if one_in(2) {
        return LogRetention::default();
    }
    LogRetention {
        snapshot_log_bytes: 2_000 + below(30_000),
        snapshot_interval: between(Duration::from_secs(1), Duration::from_secs(20)),
        keep_bytes: below(20_000),
        keep_entries: 10 + below(200),
    }
}

fn lifecycle(skipped: &[u32], faults: &mut usize) -> Option<String> {
    let travel = (Duration::from_micros(100), Duration::from_millis(1 + below(20)));
    client::begin(CLIENTS, travel);
    if !go_on(FORM_MAX, client::are_subscribed) {
        return invariants::violation().or_else(|| Some("liveness: the cluster did not form in time".to_owned()));
    }
    note!("the safety phase begins");
    client::set_publishing(true);
    let length = between(Duration::from_secs(20), Duration::from_secs(60));
    let ends = clock::now_ns() + length.as_nanos() as u64;
    let plan = Plan::some(length);
    *faults = plan.len();
    plan.run(skipped);
    let is_over = move || clock::now_ns() >= ends;
    if !go_on(Duration::from_secs(120), is_over) {
        return invariants::violation().or_else(|| Some("the simulation stopped".to_owned()));
    }
    // What struck last may last for a while.
    faults::heal();
    let settled = clock::now_ns() + Duration::from_secs(16).as_nanos() as u64;
    go_on(Duration::from_secs(17), move || clock::now_ns() >= settled);
    faults::heal();
    client::set_publishing(false);
    note!("the liveness phase begins");
    if !go_on(LIVENESS_MAX, || client::unfinished().is_none()) {
        return invariants::violation().or_else(|| client::unfinished().map(|what| format!("liveness: {what}")));
    }
    invariants::look();
    let verdict = check(&client::history());
    invariants::violation().or_else(|| (!verdict.is_clean()).then(|| verdict.to_string()))
}

/// Lets time pass until `is_reached`, at most for `most`. False: it was not, or a promise is broken.
fn go_on(most: Duration, is_reached: impl Fn() -> bool) -> bool {
    let limit = clock::now_ns() + most.as_nanos() as u64;
    let mut at_once = 0;
    loop {
        let mut happened = false;
        while let Some(action) = world::take_due() {
            action();
            happened = true;
        }
        let mut hosts = node::running();
        if hosts.len() > 1 {
            let by = below(hosts.len() as u64) as usize;
            hosts.rotate_left(by);
        }
        for host in hosts {
            node::run(host);
        }
        if happened {
            invariants::look();
        }
        if invariants::violation().is_some() {
            return false;
        }
        if is_reached() {
            return true;
        }
        let now = clock::now_ns();
        let next = world::next_event_ns().into_iter().chain(node::next_timer_ns()).min();
        match next {
            Some(next) if next <= now => at_once += 1,
            Some(next) => {
                at_once = 0;
                clock::advance_to(next);
            }
            None => return false,
        }
        if at_once > STEPS_AT_ONCE_MAX {
            invariants::violated("time passes", "the world is stuck at one moment");
        }
        if clock::now_ns() > limit {
            return false;
        }
    }
}
