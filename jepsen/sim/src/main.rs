//! `quorate-sim`: many seeds, each in a process of its own.

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use quorate_sim::{Bug, Options, run};

/// Three nodes on virtual time, with faults by chance. Exit status: 0 all promises kept, 1 one broken.
#[derive(Debug, Parser)]
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
    #[arg(long, value_enum)]
    bug: Option<Bug>,
    /// Goes on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Runs one seed in this process and prints its trace.
    #[arg(long)]
    trace: Option<u64>,
    /// Runs one seed in this process.
    #[arg(long, hide = true)]
    one: Option<u64>,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("write A..B")?;
    let number = |part: &str| part.parse::<u64>().map_err(|e| format!("{part}: {e}"));
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.one.or(arguments.trace) {
        return one(seed, arguments.trace.is_some(), arguments.bug);
    }
    many(&arguments)
}

fn one(seed: u64, keeps_trace: bool, bug: Option<Bug>) -> ExitCode {
    if keeps_trace {
        tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stderr).init();
    }
    let worker = std::thread::spawn(move || run(Options { seed, keeps_trace, bug }));
    let Ok(report) = worker.join() else { return ExitCode::from(3) };
    let mut out = std::io::stdout().lock();
    for line in &report.trace {
        let _ = writeln!(out, "{line}");
    }
    let threads = report.threads;
    let _ = writeln!(
        out,
        "{:.1} {} {:016x} {} {} {} {threads} {}",
        report.virtual_s,
        report.trace_lines,
        report.trace_hash,
        report.terms,
        report.acknowledged,
        report.delivered,
        report.violation.as_deref().unwrap_or("-").replace('\n', " | ")
    );
    ExitCode::from(u8::from(report.violation.is_some()))
}

#[derive(Default)]
struct Totals {
    virtual_s: f64,
    acknowledged: u64,
    delivered: u64,
    terms: u64,
    violations: Vec<(u64, String)>,
}

/// The last line of a seed's process.
fn ask(seed: u64, bug: Option<Bug>) -> Result<String, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(exe);
    command.args(["--one", &seed.to_string()]);
    if let Some(bug) = bug.and_then(|bug| clap::ValueEnum::to_possible_value(&bug)) {
        command.args(["--bug", bug.get_name()]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().last() {
        Some(line) => Ok(line.to_owned()),
        None => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
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
                    take(seed, arguments, &totals);
                    let has_violation = totals.lock().is_ok_and(|t| !t.violations.is_empty());
                    if has_violation && !arguments.keep_going {
                        return next.store(to, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_default();
    let real_s = started.elapsed().as_secs_f64();
    let ran = next.into_inner().min(to) - from;
    println!(
        "{ran} seeds in {real_s:.0} s ({:.0} an hour): {:.2} simulated hours ({:.1} an hour), {} terms, {} acknowledged, {} delivered, {} violations",
        ran as f64 * 3600.0 / real_s,
        totals.virtual_s / 3600.0,
        totals.virtual_s / real_s,
        totals.terms,
        totals.acknowledged,
        totals.delivered,
        totals.violations.len()
    );
    ExitCode::from(u8::from(!totals.violations.is_empty()))
}

fn take(seed: u64, arguments: &Arguments, totals: &Mutex<Totals>) {
    let first = ask(seed, arguments.bug);
    let mut violation = None;
    if arguments.check {
        let second = ask(seed, arguments.bug);
        if first != second {
            violation = Some(format!("not deterministic:\n  {first:?}\n  {second:?}"));
        }
    }
    let Ok(mut totals) = totals.lock() else { return };
    match first {
        Ok(line) => {
            let mut fields = line.splitn(8, ' ');
            let mut number = || fields.next().and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
            totals.virtual_s += number();
            let _lines = number();
            let _hash = fields.next();
            let mut count = || fields.next().and_then(|f| f.parse::<u64>().ok()).unwrap_or_default();
            totals.terms += count();
            totals.acknowledged += count();
            totals.delivered += count();
            if count() > 2 {
                violation.get_or_insert("the simulation has threads of its own".to_owned());
            }
            if let Some(found) = fields.next().filter(|found| *found != "-") {
                violation.get_or_insert(found.to_owned());
            }
        }
        Err(error) => violation = Some(format!("the process failed: {error}")),
    }
    if let Some(violation) = violation {
        println!("seed {seed}: {violation}\n  quorate-sim --trace {seed}");
        totals.violations.push((seed, violation));
    }
}
