//! One run: a cluster, a workload, a nemesis, a history, a verdict.

mod probe;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::check::verdict::Expectations;
use crate::client::{Directory, Identity};
use crate::harness::{ClusterOptions, DigestView};
use crate::history::event::What;
use crate::history::record::Recorder;
use crate::nemesis::{self, Equipment, Need, Schedule, World};
use crate::outcome::{ACKNOWLEDGED_MIN, Report};
use crate::report::plot;
use crate::workload::{self, stage::Stage};

pub use crate::outcome::Outcome;
pub use probe::list;

/// Longest time for all nodes to have applied the same entries at the end.
const SAME_MAX: Duration = Duration::from_secs(60);
/// With these keys a node takes a snapshot about every hundred entries and keeps little log behind it.
const SHORT_LOG: [(&str, &str); 4] = [
    ("QUORATE_SNAPSHOT_LOG_BYTES", "16384"),
    ("QUORATE_SNAPSHOT_INTERVAL_MS", "1000"),
    ("QUORATE_LOG_KEEP_BYTES", "4096"),
    ("QUORATE_LOG_KEEP_ENTRIES_MAX", "100"),
];

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker.
    pub broker: PathBuf,
    /// Names of workloads, with commas between.
    pub workload: String,
    /// Names of nemeses, with commas between; a pair has a `+`.
    pub nemesis: String,
    /// How long the load lasts, without setup and drain.
    pub time: Duration,
    /// How long a round of faults takes, at least and at most.
    pub round: (Duration, Duration),
    /// Where all choices come from.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// Where everything goes; what an earlier run left there is removed.
    pub out: PathBuf,
    /// Program whose command `disk` serves the disks that forget.
    pub disk_server: PathBuf,
    /// How to run it once more.
    pub command: String,
}

/// Runs it. The verdict is in `verdict.txt` of its folder, and printed.
///
/// # Errors
/// When that folder cannot be written.
pub fn run(options: &Options) -> io::Result<Outcome> {
    let nodes = options.out.join("nodes");
    if nodes.exists() {
        fs::remove_dir_all(&nodes)?;
    }
    fs::create_dir_all(&nodes)?;
    let recorder = Recorder::create(&options.out.join("history.jsonl"))?;
    let report = perform(options, &recorder);
    let about = json!({
        "seed": options.seed,
        "workload": options.workload,
        "nemesis": options.nemesis,
        "time_s": options.time.as_secs(),
        "nodes": options.nodes,
        "broker": version_of(&options.broker),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    });
    if report.outcome == Outcome::Pass {
        remove_data(&nodes);
    }
    let title = format!("{} under {}, seed {}", options.workload, options.nemesis, options.seed);
    let outcome = report.publish(&options.out, &recorder, about, &options.command)?;
    draw(&options.out, &title);
    Ok(outcome)
}

/// The picture is for the eye: a run without one is as good.
fn draw(out: &Path, title: &str) {
    let drawn = fs::read_to_string(out.join("history.jsonl")).map_err(Into::into).and_then(|history| {
        let events = history.lines().filter_map(|line| serde_json::from_str(line).ok());
        plot::draw(events, title, &out.join("plot.svg"))
    });
    if let Err(e) = drawn {
        eprintln!("no plot: {e}");
    }
}

/// The data of nodes that did well is of no use and takes hundreds of megabytes; their logs stay.
fn remove_data(nodes: &Path) {
    for entry in fs::read_dir(nodes).into_iter().flatten().flatten() {
        if entry.path().is_dir()
            && let Err(e) = fs::remove_dir_all(entry.path())
        {
            eprintln!("removing {}: {e}", entry.path().display());
        }
    }
}

fn version_of(broker: &Path) -> String {
    let said = Command::new(broker).arg("--version").output();
    said.map_or_else(|e| e.to_string(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn perform(options: &Options, recorder: &Recorder) -> Report {
    let (parts, choices) = match (workload::parts(&options.workload), nemesis::parse(&options.nemesis)) {
        (Ok(parts), Ok(choices)) => (parts, choices),
        (Err(e), _) | (_, Err(e)) => return Report::unknown(e),
    };
    let needs = |need| choices.iter().any(|choice| choice.needs(need));
    let equipment = Equipment {
        disk_server: needs(Need::Disks).then(|| options.disk_server.clone()),
        faketime: if needs(Need::Clocks) { nemesis::faketime() } else { None },
        relays: needs(Need::Relays).then(Default::default),
    };
    let short_log = SHORT_LOG.iter().filter(|_| needs(Need::ShortLog));
    let cluster = ClusterOptions {
        binary: options.broker.clone(),
        dir: options.out.join("nodes"),
        nodes: options.nodes,
        env: short_log.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        machines: true,
    };
    eprintln!("starting {} nodes", options.nodes);
    let directory = Directory::default();
    let world = World::start(cluster, equipment, options.seed, recorder.clone(), directory.clone());
    let mut world = match world {
        Ok(world) => world,
        Err(e) => return Report::unknown(format!("the cluster did not start: {e}")),
    };
    let stage = match Stage::start(parts, options.seed, recorder, &directory, &Identity::default()) {
        Ok(stage) => stage,
        Err(e) => return Report::unknown(format!("without any fault: {e}")),
    };
    let has_choices = !choices.is_empty();
    eprintln!("load and faults for {:?}", options.time);
    stage.load();
    Schedule::new(choices, options.round).run(&mut world, options.time);
    eprintln!("all faults healed; draining");
    let mut broken = Vec::new();
    if let Err(e) = world.recover() {
        broken.push(format!("the cluster did not recover: {e}"));
    }
    recorder.record(None, What::Drain);
    broken.extend(stage.drain().into_iter().map(|stuck| format!("stuck: {stuck}")));
    digests(&mut world, recorder, &mut broken);
    drop(world);
    Report::of(&options.out, recorder, &expected(recorder, has_choices), &broken)
}

/// All nodes' rows by a full scan, written down.
fn digests(world: &mut World, recorder: &Recorder, broken: &mut Vec<String>) {
    if let Err(e) = world.cluster.wait_same_digest(SAME_MAX) {
        broken.push(format!("the nodes' rows: {e}"));
    }
    for place in world.cluster.awake() {
        let Ok(node) = world.cluster.node(place) else { continue };
        if let Ok(DigestView { applied, digest }) = DigestView::of(node.at.admin) {
            recorder.record(None, What::Digest { node: node.name.clone(), applied, digest });
        }
    }
}

/// What a run must have had to count: a fault, if any was asked for, and the rows of two nodes at least.
fn expected(recorder: &Recorder, has_choices: bool) -> Expectations {
    let is_quiet = has_choices && recorder.faults().is_empty();
    let nemeses = if is_quiet { vec!["of any kind".to_owned()] } else { Vec::new() };
    Expectations { acknowledged_min: ACKNOWLEDGED_MIN, digests_min: 2, nemeses, ..Expectations::default() }
}
