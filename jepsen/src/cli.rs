//! The command line of the fault harness. Exit status: 0 all promises kept, 1 one broken, 2 no verdict.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::check::verdict::Expectations;
use crate::run::{self, Options};
use crate::{campaign, check, disk, report};

/// A run has so many rounds of faults at least, however short it is.
const ROUNDS_MIN: u64 = 4;
/// A round that is shorter than this shows nothing.
const ROUND_S_MIN: u64 = 5;

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Faults {
    /// Real nodes under a workload and faults. Exit status: 0 all promises kept, 1 one broken, 2 no verdict.
    Run(Run),
    /// Many runs over workloads and nemeses. Exit status: 1 when any has a violation, 2 when any has no verdict
    Campaign(Campaign),
    /// Write docs/PROOF.md from what runs left behind
    Report(Report),
    /// Show workloads and nemeses, and what can be installed here
    List,
    /// Judge a history that was written down before
    Check {
        /// `history.jsonl` of a run
        file: PathBuf,
    },
    /// Serve a disk that forgets what was not synced, as told over a socket
    #[command(hide = true)]
    Disk {
        /// The socket
        control: PathBuf,
        /// Where it is mounted
        mountpoint: PathBuf,
    },
}

/// A run.
#[derive(Debug, Args)]
pub struct Run {
    /// Workloads, with commas between
    #[arg(long, default_value = "queue")]
    workload: String,
    /// Nemeses, with commas between; `a+b` is a pair; `none`; `all`
    #[arg(long, default_value = "kill")]
    nemesis: String,
    /// Seconds of load under faults; setup and drain come on top
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Where all choices come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Shortest and longest round of faults, in seconds; a quarter of the time at most
    #[arg(long, num_args = 2, default_values_t = [20, 30])]
    round: Vec<u64>,
    /// Folder for the history, the logs and the verdict
    #[arg(long)]
    out: PathBuf,
    /// The broker; by default the one beside this program
    #[arg(long, env = "JEPSEN_BROKER")]
    broker: Option<PathBuf>,
}

/// Many runs.
#[derive(Debug, Args)]
pub struct Campaign {
    /// Hours of load of all runs together; without it what fits into CI
    #[arg(long)]
    hours: Option<f64>,
    /// Seconds of load of each run
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Runs at a time
    #[arg(long, default_value_t = 2)]
    lanes: usize,
    /// Seed of the first; each has its own
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for a folder of each
    #[arg(long)]
    out: PathBuf,
    /// The broker; by default the one beside this program
    #[arg(long, env = "JEPSEN_BROKER")]
    broker: Option<PathBuf>,
}

/// The page.
#[derive(Debug, Args)]
pub struct Report {
    /// Folders of runs, or of campaigns
    runs: Vec<PathBuf>,
    /// Forget the runs that the page told of before
    #[arg(long)]
    fresh: bool,
    /// Folder of the documentation
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
}

impl Faults {
    /// Does it.
    #[must_use]
    pub fn perform(self) -> ExitCode {
        let ended = match self {
            Self::Run(arguments) => start(&arguments),
            Self::Campaign(arguments) => campaign(&arguments),
            Self::Report(Report { runs, fresh, docs }) => {
                report::write(&report::Places { runs, is_fresh: fresh, docs: docs.clone() }).map(|runs| {
                    println!("{} tells of {runs} runs", docs.join("PROOF.md").display());
                    ExitCode::SUCCESS
                })
            }
            Self::List => {
                print!("{}", run::list());
                Ok(ExitCode::SUCCESS)
            }
            Self::Check { file } => {
                let report = check::check_file(&file, &Expectations::default());
                report.map_err(|e| std::io::Error::other(e.to_string())).map(|report| {
                    print!("{report}");
                    ExitCode::from(report.verdict.exit_code())
                })
            }
            Self::Disk { control, mountpoint } => disk::serve(&control, &mountpoint).map(|()| ExitCode::SUCCESS),
        };
        ended.unwrap_or_else(|e| {
            eprintln!("quorate-faults: {e}");
            ExitCode::from(2)
        })
    }
}

fn campaign(arguments: &Campaign) -> std::io::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let broker = arguments.broker.clone().unwrap_or_else(|| program.with_file_name("quorate"));
    let total = match arguments.hours {
        None => None,
        Some(hours) => Some(Duration::try_from_secs_f64(hours * 3600.0).map_err(std::io::Error::other)?),
    };
    let tally = campaign::run(&campaign::Options {
        program,
        broker,
        total,
        time: Duration::from_secs(arguments.time),
        lanes: arguments.lanes,
        seed: arguments.seed,
        out: std::path::absolute(&arguments.out)?,
    })?;
    println!("{} passed, {} with a violation, {} without a verdict", tally.passed, tally.violated, tally.unknown);
    Ok(match tally {
        campaign::Tally { violated: 1.., .. } => ExitCode::FAILURE,
        campaign::Tally { unknown: 1.., .. } => ExitCode::from(2),
        _ => ExitCode::SUCCESS,
    })
}

fn start(arguments: &Run) -> std::io::Result<ExitCode> {
    let this = std::env::current_exe()?;
    let broker = arguments.broker.clone().unwrap_or_else(|| this.with_file_name("quorate"));
    let round = |seconds: Option<&u64>| {
        let most = (arguments.time / ROUNDS_MIN).max(ROUND_S_MIN);
        Duration::from_secs(seconds.copied().unwrap_or(most).min(most))
    };
    let (from, to) = (round(arguments.round.first()), round(arguments.round.get(1)));
    let options = Options {
        broker,
        workload: arguments.workload.clone(),
        nemesis: arguments.nemesis.clone(),
        time: Duration::from_secs(arguments.time),
        round: (from, to.max(from)),
        seed: arguments.seed,
        nodes: arguments.nodes,
        out: std::path::absolute(&arguments.out)?,
        disk_server: this,
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    Ok(ExitCode::from(run::run(&options)?.exit_code()))
}
