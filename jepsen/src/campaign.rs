//! Many runs, over the whole matrix of workloads and nemeses, some at a time. Each is a process of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::rng::Rng;
use crate::workload;

/// Sets of nemeses that rotate within a run; `a+b` is a pair, because the hardest bugs came in pairs elsewhere.
const NEMESES: [&str; 15] = [
    "kill,pause,restart",
    "halves,ring,bridge,isolate",
    "one-way,loss,leader-from-peers,leader-from-clients",
    "delay,loss,isolate",
    "power-loss,torn-tail",
    "eio,enospc,slow-fsync",
    "bit-flip,truncate,stale-restore,disk-lost",
    "clock-jump,clock-drift,rolling-restart",
    "add-node,remove-leader,replace-wiped,transfer",
    "snapshots,kill,power-loss",
    "snapshots,isolate,disk-lost",
    "halves+kill,isolate+kill",
    "pause+power-loss,slow-fsync+kill",
    "add-node+halves,remove-leader+loss",
    "kill,pause,isolate,power-loss,slow-fsync,restart,loss",
];

/// What fits into CI: every workload at least once, and a nemesis of each kind.
const BRIEF: [(&str, &str); 6] = [
    ("mixed", "kill,pause,restart"),
    ("mixed,offline", "power-loss,torn-tail,snapshots"),
    ("mixed", "halves,isolate,one-way,delay"),
    ("queue,exactly-once,subscriptions", "add-node,remove-leader,disk-lost"),
    ("takeover,shared,wills,retained", "eio,slow-fsync,clock-jump"),
    ("mixed", "pause+power-loss,halves+kill"),
];

/// A run of the matrix.
#[derive(Clone, Debug)]
struct Cell {
    workload: String,
    nemesis: String,
    seed: u64,
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Options {
    /// This program.
    pub(crate) program: PathBuf,
    /// The broker.
    pub(crate) broker: PathBuf,
    /// Load of all runs together; none: what fits into CI.
    pub(crate) total: Option<Duration>,
    /// Load of one run.
    pub(crate) time: Duration,
    /// How many at a time.
    pub(crate) lanes: usize,
    pub(crate) seed: u64,
    pub(crate) out: PathBuf,
}

fn plan(options: &Options) -> Vec<Cell> {
    let Some(total) = options.total else {
        let cells = (options.seed..).zip(BRIEF);
        return cells.map(|(seed, (w, n))| Cell { workload: w.into(), nemesis: n.into(), seed }).collect();
    };
    let mut rng = Rng::of(options.seed, 0);
    let runs = total.as_secs().div_ceil(options.time.as_secs().max(1));
    let mut deck = Vec::new();
    let mut cells = Vec::new();
    for seed in (options.seed..).take(usize::try_from(runs).unwrap_or(usize::MAX)) {
        if deck.is_empty() {
            deck = workload::ALL.iter().flat_map(|w| NEMESES.map(|nemesis| (w.name, nemesis))).collect();
            rng.shuffle(&mut deck);
        }
        let Some((workload, nemesis)) = deck.pop() else { break };
        cells.push(Cell { workload: workload.into(), nemesis: nemesis.into(), seed });
    }
    cells
}

/// Exit status of a run, and how many runs had it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) violated: usize,
    pub(crate) unknown: usize,
}

impl Tally {
    fn count(&mut self, code: Option<i32>) -> &'static str {
        let (counter, word) = match code {
            Some(0) => (&mut self.passed, "pass"),
            Some(1) => (&mut self.violated, "VIOLATION"),
            _ => (&mut self.unknown, "UNKNOWN"),
        };
        *counter += 1;
        word
    }
}

/// Runs all of them. A violation does not end the campaign: what the others find is wanted too.
///
/// # Errors
/// When the folder cannot be written or this program not be started.
pub(crate) fn run(options: &Options) -> io::Result<Tally> {
    fs::create_dir_all(&options.out)?;
    let cells = plan(options);
    let (next, tally, begin) = (AtomicUsize::new(0), Mutex::new(Tally::default()), Instant::now());
    std::thread::scope(|scope| {
        let lane = || -> io::Result<()> {
            while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                let dir = options.out.join(format!("run-{}", cell.seed));
                let code = one(options, cell, &dir)?;
                let mut tally = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let word = tally.count(code);
                let done = tally.passed + tally.violated + tally.unknown;
                println!(
                    "{done}/{} {word}: {} under {}, seed {} ({} s since the first)",
                    cells.len(),
                    cell.workload,
                    cell.nemesis,
                    cell.seed,
                    begin.elapsed().as_secs()
                );
                if word != "pass" {
                    println!("{}", fs::read_to_string(dir.join("verdict.txt")).unwrap_or_default());
                }
            }
            Ok(())
        };
        let lanes: Vec<_> = (0..options.lanes.max(1)).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| match lane.join() {
            Ok(ended) => ended,
            Err(_) => Err(io::Error::other("a lane of the campaign panicked")),
        })
    })?;
    Ok(tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn one(options: &Options, cell: &Cell, dir: &Path) -> io::Result<Option<i32>> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    let said = fs::File::create(dir.join("harness.log"))?;
    let status = Command::new(&options.program)
        .args(["run", "--workload", &cell.workload, "--nemesis", &cell.nemesis])
        .args(["--seed", &cell.seed.to_string(), "--time", &options.time.as_secs().to_string(), "--out"])
        .arg(dir)
        .env("JEPSEN_BROKER", &options.broker)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .status()?;
    // Histories of good runs are a gigabyte an hour; the figures and the plot of each stay.
    let history = dir.join("history.jsonl");
    if status.success() && history.exists() {
        fs::remove_file(history)?;
    }
    Ok(status.code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis;

    fn options(total: Option<u64>) -> Options {
        Options {
            program: PathBuf::new(),
            broker: PathBuf::new(),
            total: total.map(Duration::from_secs),
            time: Duration::from_secs(60),
            lanes: 1,
            seed: 5,
            out: PathBuf::new(),
        }
    }

    #[test]
    fn every_cell_has_its_turn_and_names_what_there_is() {
        let cells = plan(&options(Some(60 * (9 * 15))));
        assert_eq!(cells.len(), 9 * 15);
        let distinct: std::collections::BTreeSet<_> = cells.iter().map(|c| (&c.workload, &c.nemesis)).collect();
        assert_eq!(distinct.len(), 9 * 15);
        for cell in cells.iter().chain(&plan(&options(None))) {
            nemesis::parse(&cell.nemesis).unwrap();
            for name in cell.workload.split(',') {
                assert!(workload::ALL.iter().any(|workload| workload.name == name), "{name}");
            }
        }
        let again = plan(&options(Some(60 * (9 * 15))));
        assert!(cells.iter().zip(&again).all(|(a, b)| (&a.workload, &a.nemesis) == (&b.workload, &b.nemesis)));
    }

    #[test]
    fn the_brief_one_has_every_workload() {
        let names: Vec<&str> = BRIEF.iter().flat_map(|(workload, _)| workload.split(',')).collect();
        assert!(workload::ALL.iter().all(|w| names.contains(&w.name)), "{names:?}");
    }
}
