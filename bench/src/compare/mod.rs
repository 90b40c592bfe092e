//! Several brokers under the same loads, in turn: repetition by repetition and load by load, so that a slow minute of
//! the machine meets all of them, each time on new nodes with empty disks.
//!
//! What fails is a result too: it is written down as it was said, and the next one begins.

pub(crate) mod chart;
mod page;
mod scenario;
pub(crate) mod summary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::fleet::{Fleet, FleetArgs};
use crate::peer::{Description, Peer};
use crate::{BenchError, machine};
use scenario::{Figures, Scenario};

/// The comparison.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct CompareArgs {
    /// How often each broker gets each load.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Measured seconds of each load.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Which brokers.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "quorate,rabbitmq,nats,mosquitto")]
    peers: Vec<Contender>,
    /// Which loads.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scenario::ALL)]
    scenarios: Vec<Scenario>,
    /// Where compare.json, compare.md and the pictures go.
    #[arg(long, value_name = "DIR", default_value = "compare")]
    out: PathBuf,
    /// Messages for the session that is away.
    #[arg(long, default_value_t = 200_000)]
    offline_messages: u64,
    /// Connections on which nothing is said.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=28_000))]
    idle_connections: u32,
}

impl CompareArgs {
    /// Connections at a time: what brokers and clients need descriptors for.
    pub(crate) const fn connections(&self) -> u32 {
        self.idle_connections
    }
}

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Contender {
    Quorate,
    Rabbitmq,
    Nats,
    Mosquitto,
}

impl Contender {
    const fn peer(self) -> Option<Peer> {
        match self {
            Self::Quorate => None,
            Self::Rabbitmq => Some(Peer::Rabbitmq),
            Self::Nats => Some(Peer::Nats),
            Self::Mosquitto => Some(Peer::Mosquitto),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Quorate => "Quorate",
            Self::Rabbitmq => "RabbitMQ",
            Self::Nats => "NATS",
            Self::Mosquitto => "Mosquitto",
        }
    }
}

/// How one load on one broker ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// With these figures, and the whole report of the experiment.
    Measured { figures: Figures, report: serde_json::Value },
    /// Without: what was said.
    Failed(String),
    /// It does not have what would be measured.
    Lacking(String),
}

/// One load on one broker.
#[derive(Clone, Debug, Serialize)]
struct Measurement {
    contender: Contender,
    scenario: Scenario,
    repetition: u32,
    /// From the start of the nodes to their end.
    took_s: f64,
    outcome: Outcome,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    arguments: CompareArgs,
    /// Of those that ever started.
    contenders: Vec<(Contender, Description)>,
    measurements: Vec<Measurement>,
}

/// Measures all; what is there so far is written after each.
pub(crate) async fn run(fleet: &FleetArgs, args: &CompareArgs) -> Result<Report, BenchError> {
    if fleet.is_elsewhere() || fleet.peer.is_some() {
        return Err(BenchError::Chosen);
    }
    std::fs::create_dir_all(&args.out).map_err(BenchError::io(&args.out.display().to_string()))?;
    let mut report = Report {
        machine: machine::describe(),
        arguments: args.clone(),
        contenders: Vec::new(),
        measurements: Vec::new(),
    };
    let all = args.repetitions as usize * args.scenarios.len() * args.peers.len();
    for repetition in 1..=args.repetitions {
        for scenario in args.scenarios.iter().copied() {
            for contender in args.peers.iter().copied() {
                let number = report.measurements.len() + 1;
                eprintln!("\n[{number}/{all}] {}: {}, repetition {repetition}", contender.name(), scenario.title());
                let start = Instant::now();
                let outcome = measure(fleet, args, contender, scenario, &mut report.contenders).await;
                eprintln!("{}", page::line(scenario, &outcome));
                let took_s = start.elapsed().as_secs_f64();
                report.measurements.push(Measurement { contender, scenario, repetition, took_s, outcome });
                report.write(&args.out)?;
            }
        }
    }
    Ok(report)
}

async fn measure(
    fleet: &FleetArgs,
    args: &CompareArgs,
    contender: Contender,
    scenario: Scenario,
    described: &mut Vec<(Contender, Description)>,
) -> Outcome {
    let lacks = contender.peer().and_then(Peer::lacks_qos2).filter(|_| scenario == Scenario::ExactlyOnce);
    if let Some(why) = lacks {
        return Outcome::Lacking(why.to_owned());
    }
    let attempt = async {
        let mut fleet = Fleet::open(&fleet.of(contender.peer()))?;
        if described.iter().all(|(of, _)| *of != contender) {
            described.extend(fleet.description()?.map(|description| (contender, description)));
        }
        let bound = scenario.bound(args);
        tokio::time::timeout(bound, scenario.run(&mut fleet, args)).await.map_err(|_| BenchError::Endless(bound))?
    };
    match attempt.await {
        Ok((figures, report)) => Outcome::Measured { figures, report },
        Err(e) => Outcome::Failed(e.to_string()),
    }
}

impl Report {
    fn write(&self, dir: &Path) -> Result<(), BenchError> {
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(BenchError::io(&path.display().to_string()))
        };
        write("compare.json", serde_json::to_string_pretty(self)?)?;
        write("compare.md", page::page(self))?;
        for (name, picture) in chart::pictures(self) {
            write(name, picture)?;
        }
        Ok(())
    }

    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        page::page(self)
    }

    /// Values of one figure over all repetitions that have it.
    fn values(&self, contender: Contender, scenario: Scenario, figure: &str) -> Vec<f64> {
        let of = self.measurements.iter().filter(|m| m.contender == contender && m.scenario == scenario);
        of.filter_map(|m| match &m.outcome {
            Outcome::Measured { figures, .. } => figures.get(figure).copied(),
            _ => None,
        })
        .collect()
    }
}
