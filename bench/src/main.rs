//! `quorate-bench`: load on real brokers over sockets, and the figures of docs/PERFORMANCE.md.
//!
//! It knows nothing of the broker's inside. One thread, one buffer for each connection and a codec that copies
//! nothing, because it usually shares the machine with the brokers that it measures.

mod connection;
mod failover;
mod fleet;
mod histogram;
mod idle;
mod machine;
mod offline;
mod publisher;
mod shared;
mod subscriber;
mod suite;
mod throughput;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use quorate_jepsen::harness::HarnessError;
use quorate_jepsen::wire::WireError;
use serde::Serialize;
use thiserror::Error;

use fleet::{Fleet, FleetArgs};

/// Why there are no figures.
#[derive(Debug, Error)]
enum BenchError {
    /// A socket or a file.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A broker ended the connection.
    #[error("{at} closed the connection")]
    Closed {
        /// Which.
        at: SocketAddr,
    },
    /// A broker did not answer.
    #[error("{at} sends no {what}")]
    Silent {
        /// Which.
        at: SocketAddr,
        /// What was waited for.
        what: &'static str,
    },
    /// A broker refused, or sent something unexpected.
    #[error("{at} answered {answer}")]
    Refused {
        /// Which.
        at: SocketAddr,
        /// What it sent.
        answer: String,
    },
    /// What a broker sent cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The brokers could not be handled.
    #[error(transparent)]
    Harness(#[from] HarnessError),
    /// A run did not end.
    #[error("stuck: {0}")]
    Stuck(&'static str),
    /// A client's task failed.
    #[error("a client's task failed")]
    Task,
    /// Only brokers that this program started are killed.
    #[error("this needs brokers that quorate-bench starts itself: leave --mqtt out")]
    NotOurs,
    /// A broker took more memory than it may.
    #[error("{report}a broker took {peak} MiB, at most {bound} were allowed")]
    Memory {
        /// Most that one took.
        peak: u64,
        /// The bound.
        bound: u64,
        /// All the same.
        report: String,
    },
    /// An idle connection took more memory than it may.
    #[error("{report}an idle connection takes {bytes} bytes, at most {bound} were allowed")]
    Connection {
        /// What one took.
        bytes: u64,
        /// The bound.
        bound: u64,
        /// All the same.
        report: String,
    },
    /// The report could not be written.
    #[error("writing the report: {0}")]
    Json(#[from] serde_json::Error),
}

impl BenchError {
    fn io(what: &str) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Io { what, source }
    }
}

/// Load on MQTT brokers.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Cli {
    /// Figures as JSON on standard output, instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Messages a second, latencies, processor time for each message.
    Throughput(throughput::LoadArgs),
    /// As `throughput`, with one publisher that waits for each acknowledgement.
    Latency(throughput::LoadArgs),
    /// How long clients wait when the leader is killed or goes silent.
    Failover(failover::FailoverArgs),
    /// Queues messages for a session that is away, then lets it drain them.
    Offline(offline::OfflineArgs),
    /// Memory that a connection takes on which nothing is said.
    Idle(idle::IdleArgs),
    /// Everything of docs/PERFORMANCE.md, one after the other.
    Suite(suite::SuiteArgs),
    /// Starts the brokers and keeps them until the end of standard input, for other load generators.
    Cluster,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("starting the runtime"))
        .and_then(|runtime| runtime.block_on(run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("quorate-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), BenchError> {
    // The brokers inherit it.
    if let Command::Idle(args) = &cli.command {
        idle::raise_descriptors(args)?;
    }
    let mut fleet = Fleet::open(&cli.fleet)?;
    match cli.command {
        Command::Throughput(load) => {
            let report = throughput::run(&fleet, &load).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Latency(load) => {
            let load = throughput::LoadArgs { publishers: 1, subscribers: 1, window: 1, ..load };
            let report = throughput::run(&fleet, &load).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Failover(args) => {
            let report = failover::run(&mut fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Offline(args) => {
            let report = offline::run(&fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Idle(args) => {
            let report = idle::run(&fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Suite(args) => {
            let report = suite::run(&mut fleet, &args, cli.json).await?;
            show(cli.json, &report, "")
        }
        Command::Cluster => keep(&fleet),
    }
}

fn show(json: bool, report: &impl Serialize, table: &str) -> Result<(), BenchError> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else if !table.is_empty() {
        println!("{table}");
    }
    Ok(())
}

fn keep(fleet: &Fleet) -> Result<(), BenchError> {
    let join = |list: &[String]| list.join(",");
    let mqtt: Vec<String> = fleet.mqtt.iter().map(SocketAddr::to_string).collect();
    let pids: Vec<String> = fleet.pids.iter().map(u32::to_string).collect();
    println!("--mqtt {} --pids {}", join(&mqtt), join(&pids));
    println!("end standard input (Ctrl-D) to stop them");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map_err(BenchError::io("standard input"))?;
    Ok(())
}
