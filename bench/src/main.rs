//! `quorate-bench`: load on real brokers over sockets, and the figures of docs/PERFORMANCE.md.
//!
//! It knows nothing of the broker's inside. One thread, one buffer for each connection and a codec that copies
//! nothing, because it usually shares the machine with the brokers that it measures.

mod backlog;
mod beside;
mod catch_up;
mod compare;
mod connection;
mod failover;
mod fleet;
mod growth;
mod histogram;
mod idle;
mod light;
mod machine;
mod nodes;
mod offline;
mod peer;
mod publisher;
mod restart;
mod seen;
mod sessions;
mod shared;
mod stubborn;
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
    #[error("this needs nodes of Quorate that quorate-bench starts itself: leave --mqtt and --peer out")]
    NotOurs,
    /// A peer's program is not there.
    #[error("{name} is neither in {dir} nor installed: run `make peers`")]
    NoPeer {
        /// Which program.
        name: String,
        /// Where it was looked for.
        dir: String,
    },
    /// A peer's process has ended.
    #[error("{name} has ended ({status}); the end of its log:\n{log}")]
    PeerEnded {
        /// Which.
        name: String,
        /// How.
        status: std::process::ExitStatus,
        /// Its last lines.
        log: String,
    },
    /// Something does not come about in time.
    #[error("not within {bound:?}: {what}; last seen: {last}")]
    NotWithin {
        /// What was waited for.
        what: String,
        /// For how long.
        bound: std::time::Duration,
        /// What was there instead.
        last: String,
    },
    /// `compare` chooses the brokers.
    #[error("compare starts the brokers itself: name them by --peers, and leave --peer and --mqtt out")]
    Chosen,
    /// An experiment does not end.
    #[error("not at its end within {0:?}")]
    Endless(std::time::Duration),
    /// QoS 2 cannot be measured.
    #[error("no QoS 2: {0}")]
    NoQos2(&'static str),
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
    /// Something took more than it may.
    #[error("{report}{what}: {value:.2} {unit}, at most {bound} {unit} were allowed")]
    Above {
        /// What.
        what: &'static str,
        /// Of both figures.
        unit: &'static str,
        /// What it took.
        value: f64,
        /// The bound.
        bound: f64,
        /// All the same.
        report: String,
    },
    /// What was promised is not there.
    #[error("{report}lost: {count} {what}")]
    Lost {
        /// What of.
        what: &'static str,
        /// How many.
        count: u64,
        /// All the same.
        report: String,
    },
    /// The arguments do not bring about what is to be measured.
    #[error("{0}")]
    Pointless(&'static str),
    /// The report could not be written.
    #[error("writing the report: {0}")]
    Json(#[from] serde_json::Error),
}

impl BenchError {
    fn io(what: &str) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Io { what, source }
    }

    /// Whether something took more than a bound that was given.
    fn above(
        (what, unit): (&'static str, &'static str),
        value: f64,
        bound: Option<f64>,
        report: impl FnOnce() -> String,
    ) -> Result<(), Self> {
        match bound.filter(|bound| value > *bound) {
            Some(bound) => Err(Self::Above { what, unit, value, bound, report: report() }),
            None => Ok(()),
        }
    }

    /// Whether something is lost.
    fn lost(what: &'static str, count: u64, report: impl FnOnce() -> String) -> Result<(), Self> {
        if count == 0 { Ok(()) } else { Err(Self::Lost { what, count, report: report() }) }
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
    /// Stores sessions of clients that are away, and starts a node on them.
    Sessions(sessions::SessionsArgs),
    /// All nodes are killed under load and started again.
    Restart(restart::RestartArgs),
    /// A node that was away needs a snapshot, and gets it beside load.
    CatchUp(catch_up::CatchUpArgs),
    /// Processor time a message as clients, subscriptions, payloads and nodes grow.
    Growth(growth::GrowthArgs),
    /// Everything of docs/PERFORMANCE.md, one after the other.
    Suite(suite::SuiteArgs),
    /// Other brokers and Quorate under the same loads.
    Compare(compare::CompareArgs),
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
        idle::raise_descriptors(args.connections)?;
    }
    if let Command::Compare(args) = &cli.command {
        idle::raise_descriptors(args.connections())?;
        let report = compare::run(&cli.fleet, args).await?;
        return show(cli.json, &report, &report.table());
    }
    if let Command::Growth(args) = &cli.command {
        idle::raise_descriptors(args.connections())?;
        let report = growth::run(&cli.fleet, args).await?;
        return show(cli.json, &report, &report.table());
    }
    let configured = match &cli.command {
        Command::CatchUp(args) => cli.fleet.with_env(&args.env()?),
        _ => cli.fleet.clone(),
    };
    let mut fleet = Fleet::open(&configured)?;
    let result = measure(cli, &mut fleet).await;
    if result.is_err() {
        fleet.keep_logs();
    }
    result
}

async fn measure(cli: Cli, fleet: &mut Fleet) -> Result<(), BenchError> {
    match cli.command {
        Command::Throughput(load) => {
            let report = throughput::run(fleet, &load).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Latency(load) => {
            let load = throughput::LoadArgs { publishers: 1, subscribers: 1, window: 1, ..load };
            let report = throughput::run(fleet, &load).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Failover(args) => {
            let report = failover::run(fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Offline(args) => {
            let report = offline::run(fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Idle(args) => {
            let report = idle::run(fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Sessions(args) => {
            let report = sessions::run(fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Restart(args) => {
            let report = restart::run(fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::CatchUp(args) => {
            let report = catch_up::run(fleet, &args).await?;
            show(cli.json, &report, &report.table())
        }
        Command::Suite(args) => {
            let report = suite::run(fleet, &args, cli.json).await?;
            show(cli.json, &report, "")
        }
        Command::Compare(_) | Command::Growth(_) | Command::Cluster => keep(fleet),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn brokers_are_chosen_before_or_after_the_command() {
        Cli::command().debug_assert();
        let after = Cli::try_parse_from(["quorate-bench", "suite", "--broker", "quorate", "--machines"]).unwrap();
        assert!(after.fleet.machines);
        let before = Cli::try_parse_from(["quorate-bench", "--peer", "nats", "latency"]).unwrap();
        assert_eq!(before.fleet.peer, Some(peer::Peer::Nats));
        let both = ["quorate-bench", "--peer", "nats", "--mqtt", "127.0.0.1:1883", "latency"];
        assert!(Cli::try_parse_from(both).is_err());
    }
}
