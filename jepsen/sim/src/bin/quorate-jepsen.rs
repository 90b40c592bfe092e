//! `quorate-jepsen sim`: many seeds, each in a process of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, Parser, ValueEnum as _};
use quorate_jepsen::history::event::Event;
use quorate_sim::{Bug, Options, run};
use quorate_store::seeded_bug::SeededBug;
use serde::{Deserialize, Serialize};

/// The proof of Quorate's guarantees.
#[derive(Debug, Parser)]
enum Command {
    /// Three nodes on virtual time, with faults by chance. Exit status: 0 all promises kept, 1 one broken, 2 no verdict.
    Sim(Arguments),
}

#[derive(Debug, Args)]
struct Arguments {
    /// Seeds, `A..B` without B.
    #[arg(long, value_parser = seeds, default_value = "0..100")]
    seeds: (u64, u64),
    /// Runs each seed twice and compares what happened.
    #[arg(long)]
    check: bool,
    /// Processes at a time; one for each processor.
    #[arg(long)]
    jobs: Option<usize>,
    /// Breaks something on purpose.
    #[arg(long, value_parser = broken)]
    bug: Option<Broken>,
    /// Goes on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Runs one seed and prints all that happens.
    #[arg(long)]
    trace: Option<u64>,
    /// Writes what clients saw to this file, one event a line: with `--trace`.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Writes what all seeds came to into this file, as docs/PROOF.md is made from.
    #[arg(long)]
    summary: Option<PathBuf>,
    /// Faults, by their numbers, that do not come.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<u32>,
    /// Runs one seed in this process.
    #[arg(long, hide = true)]
    one: Option<u64>,
}

/// What is broken on purpose: the simulated disk, or the broker, in a build with the feature `seeded-bugs`.
#[derive(Clone, Debug)]
struct Broken {
    name: String,
    disk: Option<Bug>,
}

/// What the simulated disk does in place of the real log's writer, which is not in a simulation.
const STAND_INS: [(SeededBug, Bug); 2] =
    [(SeededBug::LogSyncOff, Bug::UnsyncedAppend), (SeededBug::VoteUnsynced, Bug::UnsyncedVote)];

/// Puts a seeded bug into this process, and so into all its nodes.
#[cfg(feature = "seeded-bugs")]
fn seed(bug: SeededBug) -> bool {
    quorate_store::seeded_bug::seed(bug)
}

/// An ordinary build has none.
#[cfg(not(feature = "seeded-bugs"))]
fn seed(_: SeededBug) -> bool {
    false
}

fn broken(name: &str) -> Result<Broken, String> {
    let broken = |disk| Broken { name: name.to_owned(), disk };
    if let Ok(bug) = Bug::from_str(name, false) {
        return Ok(broken(Some(bug)));
    }
    let stands_in = |bug| STAND_INS.iter().find(|(its, _)| *its == bug).map(|(_, disk)| *disk);
    match SeededBug::named(name) {
        Some(bug) if seed(bug) => Ok(broken(stands_in(bug))),
        Some(_) => Err("only a build with the feature `seeded-bugs` has it".to_owned()),
        None => Err(format!("there is none of that name; those of the disk: {}", disk_bugs().join(", "))),
    }
}

fn disk_bugs() -> Vec<String> {
    Bug::value_variants().iter().filter_map(Bug::to_possible_value).map(|value| value.get_name().to_owned()).collect()
}

/// What a seed's process says in its last line, and its parent reads.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    virtual_s: f64,
    trace_lines: u64,
    trace_hash: u64,
    terms: usize,
    acknowledged: usize,
    delivered: usize,
    faults: usize,
    threads: usize,
    events: usize,
    retained_reads: usize,
    wills_due: usize,
    positions: usize,
    violation: Option<String>,
}

/// A simulation in a process has this one and the one that waits for it.
const THREADS: usize = 2;
/// Fewer publishes acknowledged for each seed, on average, and the seeds say nothing.
const ACKNOWLEDGED_MIN: usize = 100;
/// Seeds between two words of how far it is.
const SEEDS_PER_WORD: u64 = 250;
/// Lines of a failed seed's trace that are shown.
const LINES_SHOWN: usize = 40;

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("write A..B")?;
    let number = |part: &str| part.parse::<u64>().map_err(|e| format!("{part}: {e}"));
    Ok((number(from)?, number(to)?))
}

pub(crate) fn main() -> ExitCode {
    let Command::Sim(arguments) = Command::parse();
    if let Some(seed) = arguments.one.or(arguments.trace) {
        return one(seed, &arguments);
    }
    many(&arguments)
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let keeps_trace = arguments.trace.is_some();
    if keeps_trace {
        tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stderr).init();
    }
    let options = Options {
        seed,
        keeps_trace,
        bug: arguments.bug.as_ref().and_then(|bug| bug.disk),
        skipped: arguments.skip.clone(),
    };
    let Ok(report) = std::thread::spawn(move || run(&options)).join() else { return ExitCode::from(3) };
    let line = Line {
        virtual_s: report.virtual_s,
        trace_lines: report.trace_lines,
        trace_hash: report.trace_hash,
        terms: report.terms,
        acknowledged: report.acknowledged,
        delivered: report.delivered,
        faults: report.faults,
        threads: report.threads,
        events: report.figures.events,
        retained_reads: report.figures.retained_reads,
        wills_due: report.figures.wills_due,
        positions: report.figures.positions,
        violation: report.violation,
    };
    if let Some(path) = &arguments.history
        && let Err(error) = write_history(path, report.history)
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::from(2);
    }
    let mut out = std::io::stdout().lock();
    for line in &report.trace {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out, "{}", serde_json::to_string(&line).unwrap_or_default());
    ExitCode::from(u8::from(line.violation.is_some()))
}

fn write_history(path: &Path, events: Vec<Event>) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for event in events {
        writeln!(file, "{}", serde_json::to_string(&event)?)?;
    }
    file.flush()
}

/// Runs a seed in a process of its own.
fn ask(
    seed: u64,
    arguments: &Arguments,
    skip: &[u32],
    traces: bool,
    history: Option<&Path>,
) -> Result<(Line, Vec<String>), String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = process::Command::new(exe);
    command.arg("sim").args([if traces { "--trace" } else { "--one" }, &seed.to_string()]);
    if !skip.is_empty() {
        command.args(["--skip", &numbers(skip)]);
    }
    if let Some(path) = history {
        command.arg("--history").arg(path);
    }
    if let Some(bug) = &arguments.bug {
        command.args(["--bug", &bug.name]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let failed = || format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let last = lines.pop().ok_or_else(failed)?;
    Ok((serde_json::from_str(&last).map_err(|_| failed())?, lines))
}

fn numbers(skip: &[u32]) -> String {
    skip.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[derive(Default)]
struct Totals {
    ran: u64,
    virtual_s: f64,
    acknowledged: usize,
    delivered: usize,
    terms: usize,
    faults: usize,
    violations: u64,
    events: usize,
    retained_reads: usize,
    wills_due: usize,
    positions: usize,
}

fn many(arguments: &Arguments) -> ExitCode {
    let (from, to) = arguments.seeds;
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (next, totals, started) = (AtomicU64::new(from), Mutex::new(Totals::default()), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    if !take(seed, arguments, &totals) && !arguments.keep_going {
                        return next.store(to, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_default();
    let real_s = started.elapsed().as_secs_f64();
    let (acknowledged, terms, ran) = (totals.acknowledged, totals.terms, totals.ran as usize);
    println!(
        "{} seeds in {real_s:.0} s ({:.0} an hour), {:.2} simulated hours ({:.0} an hour): {} faults, {} terms, \
         {} publishes acknowledged, {} deliveries, {} violations",
        totals.ran,
        totals.ran as f64 * 3600.0 / real_s,
        totals.virtual_s / 3600.0,
        totals.virtual_s / real_s,
        totals.faults,
        totals.terms,
        totals.acknowledged,
        totals.delivered,
        totals.violations
    );
    println!(
        "histories: {} events, {} places in the log, {} reads of retained messages, {} wills that were due",
        totals.events, totals.positions, totals.retained_reads, totals.wills_due
    );
    if let Some(path) = &arguments.summary
        && let Err(error) = summarise(path, arguments, &totals, real_s)
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::from(2);
    }
    if totals.violations > 0 {
        return ExitCode::from(1);
    }
    // Runs in which nothing happened prove nothing.
    if acknowledged < ran * ACKNOWLEDGED_MIN || terms < ran {
        println!("no verdict: too few publishes were acknowledged, or too few leaders elected, for {ran} seeds");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

/// As `quorate-faults report` reads it.
fn summarise(path: &Path, arguments: &Arguments, totals: &Totals, real_s: f64) -> std::io::Result<()> {
    let (from, to) = arguments.seeds;
    let check = if arguments.check { " --check" } else { "" };
    let summary = serde_json::json!({
        "seeds": totals.ran,
        "violations": totals.violations,
        "hours": real_s / 3600.0,
        "simulated_hours": totals.virtual_s / 3600.0,
        "acknowledged": totals.acknowledged,
        "delivered": totals.delivered,
        "faults": totals.faults,
        "command": format!("quorate-jepsen sim --seeds {from}..{to}{check}"),
    });
    std::fs::write(path, serde_json::to_string_pretty(&summary)? + "\n")
}

/// Runs a seed; false: a promise was broken, which it has told.
fn take(seed: u64, arguments: &Arguments, totals: &Mutex<Totals>) -> bool {
    let first = ask(seed, arguments, &arguments.skip, false, None);
    let mut violation = None;
    if arguments.check {
        let second = ask(seed, arguments, &arguments.skip, false, None);
        if first != second {
            violation = Some(differs(seed, arguments));
        }
    }
    match &first {
        Ok((line, _)) if line.threads > THREADS => {
            violation.get_or_insert(format!("the simulation has {} threads, not {THREADS}", line.threads));
        }
        Ok((line, _)) => violation = violation.or(line.violation.clone()),
        Err(error) => violation = Some(format!("the process failed: {error}")),
    }
    if let (Ok((line, _)), Ok(mut totals)) = (&first, totals.lock()) {
        totals.ran += 1;
        totals.virtual_s += line.virtual_s;
        totals.acknowledged += line.acknowledged;
        totals.delivered += line.delivered;
        totals.terms += line.terms;
        totals.faults += line.faults;
        totals.events += line.events;
        totals.retained_reads += line.retained_reads;
        totals.wills_due += line.wills_due;
        totals.positions += line.positions;
        totals.violations += u64::from(violation.is_some());
        if totals.ran % SEEDS_PER_WORD == 0 {
            eprintln!("{} seeds, {} violations so far", totals.ran, totals.violations);
        }
    }
    let Some(violation) = violation else { return true };
    let faults = first.map_or(0, |(line, _)| line.faults);
    tell(seed, arguments, &violation, faults);
    false
}

/// Where two runs of a seed part.
fn differs(seed: u64, arguments: &Arguments) -> String {
    let trace = || ask(seed, arguments, &arguments.skip, true, None).map(|(_, lines)| lines).unwrap_or_default();
    let (first, second) = (trace(), trace());
    let parted = first.iter().zip(&second).position(|(a, b)| a != b).unwrap_or(first.len().min(second.len()));
    format!("two runs differ from line {parted} on:\n  {:?}\n  {:?}", first.get(parted), second.get(parted))
}

/// Leaves out what is not needed to break the promise, and shows what is left.
fn tell(seed: u64, arguments: &Arguments, violation: &str, faults: usize) {
    let skip = shrink(seed, arguments, faults);
    // A judgement of the history is told in full for what is left of the faults.
    let first = violation.lines().next().unwrap_or_default();
    // A build with bugs on purpose has another name.
    let name = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let name = name.unwrap_or_else(|| "quorate-jepsen".to_owned());
    let mut report = format!("seed {seed}: {first}\n  repeat with: {name} sim --trace {seed}");
    if !skip.is_empty() {
        report += &format!(" --skip {}", numbers(&skip));
    }
    if let Some(bug) = &arguments.bug {
        report += &format!(" --bug {}", bug.name);
    }
    report += &format!("\n  {} of {faults} faults are enough:", faults - skip.len());
    let history = std::env::temp_dir().join(format!("quorate-sim-{seed}.jsonl"));
    if let Ok((line, lines)) = ask(seed, arguments, &skip, true, Some(&history)) {
        let tells = |line: &&String| ["fault ", "node ", "loses", "VIOLATED"].iter().any(|word| line.contains(word));
        let is_dull = |line: &&String| [" applied ", "client "].iter().any(|word| line.contains(word));
        let told: Vec<&String> = lines.iter().filter(tells).filter(|line| !is_dull(line)).collect();
        for line in told.iter().skip(told.len().saturating_sub(LINES_SHOWN)) {
            report += &format!("\n  {line}");
        }
        report += &format!("\n  what clients saw then: {}", history.display());
        report += &format!("\n  and what is wrong with it: {}", line.violation.unwrap_or_default());
    }
    println!("{report}");
}

/// Faults that can be left out together, found by halves and then quarters and so on (Zeller's delta debugging).
fn shrink(seed: u64, arguments: &Arguments, faults: usize) -> Vec<u32> {
    let mut skip = arguments.skip.clone();
    let mut size = faults.div_ceil(2);
    while size > 0 {
        let left: Vec<u32> = (1..=faults as u32).filter(|n| !skip.contains(n)).collect();
        for some in left.chunks(size) {
            let tried: Vec<u32> = skip.iter().chain(some).copied().collect();
            if ask(seed, arguments, &tried, false, None).is_ok_and(|(line, _)| line.violation.is_some()) {
                skip = tried;
            }
        }
        size /= 2;
    }
    skip.sort_unstable();
    skip
}
