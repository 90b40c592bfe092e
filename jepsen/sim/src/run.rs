//! One seed: a cluster forms, clients work, faults come; then all heals, and everything that was promised must be there.

use std::time::Duration;

use quorate_jepsen::check::verdict::{Expectations, Figures, Verdict};
use quorate_jepsen::check::{check, check_events};
use quorate_jepsen::history::event::{Event, What};
use quorate_raft::LogRetention;

use crate::client::Phase;
use crate::disk::Unsynced;
use crate::faults::{self, Plan};
use crate::world::{below, between, note, one_in};
use crate::{client, clock, history, invariants, net, node, world};

const HOSTS: u64 = 3;
/// For the cluster to form and all clients to be subscribed.
const FORM_MAX: Duration = Duration::from_secs(60);
/// For all that is owed, once all is well: node_timeout, elections, a day's worth of patience.
const LIVENESS_MAX: Duration = Duration::from_secs(90);
/// Without a delivery for so long everything has been read.
const QUIET: Duration = Duration::from_secs(8);
/// How much later than its delay a will may be published while faults come: a blackout of 14 s and what comes after it.
const WILL_LATE_MAX: Duration = Duration::from_secs(40);
/// After this a CONNECT that nobody answered has no effect: its node was stopped for 12 s before it read it, and it may
/// be committed for 10 s then.
const CONNECT_FORGOTTEN: Duration = Duration::from_secs(25);
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
    /// What the checkers of histories counted.
    pub figures: Figures,
    /// What clients saw.
    pub history: Vec<Event>,
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
    history::begin();
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
    let (history, summary) = (history::take(), client::summary());
    let (figures, broken) = judge(&history, violation.is_none());
    let violation = match (violation, broken) {
        (Some(first), Some(broken)) => Some(format!("{first}\n{broken}")),
        (first, broken) => first.or(broken),
    };
    let (trace_lines, trace_hash) = world::digest();
    let report = Report {
        violation,
        virtual_s: clock::now_ns() as f64 / 1e9,
        trace_lines,
        trace_hash,
        trace: world::take_trace(),
        terms: invariants::terms(),
        acknowledged: summary.sent.iter().filter(|s| s.acknowledged).count(),
        delivered: client::deliveries(),
        figures,
        history,
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
    client::begin(travel);
    if !go_on(FORM_MAX, client::are_subscribed) {
        return invariants::violation().or_else(|| Some("liveness: the cluster did not form in time".to_owned()));
    }
    note!("the safety phase begins");
    client::enter(Phase::Load);
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
    history::record(None, What::Drain);
    client::enter(Phase::Drain);
    note!("the liveness phase begins");
    if !go_on(LIVENESS_MAX, || client::unfinished().is_none()) {
        return invariants::violation().or_else(|| client::unfinished().map(|what| format!("liveness: {what}")));
    }
    // Nothing more comes; and wills of those that left are due, if they are.
    let quiet = if client::have_wills() { WILL_LATE_MAX + QUIET } else { QUIET };
    let limit = clock::now_ns() + (quiet * 4).as_nanos() as u64;
    go_on(quiet * 4, move || client::are_quiet_for(quiet) || clock::now_ns() >= limit);
    if let (None, Some(what)) = (invariants::violation(), client::unfinished()) {
        return Some(format!("it does not last: {what}"));
    }
    invariants::look();
    digests();
    let verdict = check(&client::summary());
    invariants::violation().or_else(|| (!verdict.is_clean()).then(|| verdict.to_string()))
}

/// All nodes' rows by a full scan, written down.
fn digests() {
    for host in node::running() {
        if let Some(Ok((applied, digest))) = node::look(host, |cluster| cluster.rows().digest()) {
            let (node, digest) = (format!("n{host}"), format!("{digest:016x}"));
            history::record(None, What::Digest { node, applied, digest });
        }
    }
}

/// What the checkers of histories say: a broken promise, if there is one.
fn judge(events: &[Event], is_whole: bool) -> (Figures, Option<String>) {
    let expectations = Expectations {
        acknowledged_min: 0,
        drained: is_whole,
        connect_deadline_ns: CONNECT_FORGOTTEN.as_nanos() as u64,
        will_late_ns_max: WILL_LATE_MAX.as_nanos() as u64,
        ..Expectations::default()
    };
    // Of a run that was broken off nothing can be said to be lost.
    let events = events.iter().filter(|event| is_whole || event.what != What::Drain);
    match check_events(events.cloned(), &expectations) {
        Ok(report) => {
            let violation = matches!(report.verdict, Verdict::Violation(_)).then(|| report.to_string());
            (report.figures, violation)
        }
        Err(error) => (Figures::default(), Some(format!("the history is none: {error}"))),
    }
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
