//! The figures of docs/PERFORMANCE.md, one after the other on the same three nodes.

use clap::Args;
use serde::Serialize;

use crate::backlog::BacklogArgs;
use crate::failover::{self, FailoverArgs, How};
use crate::fleet::Fleet;
use crate::offline::{self, OfflineArgs};
use crate::restart::{self, RestartArgs};
use crate::throughput::{self, LoadArgs};
use crate::{BenchError, machine};

/// How much of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct SuiteArgs {
    /// Measured seconds of each load.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Messages for the session that is away.
    #[arg(long, default_value_t = 1_000_000)]
    offline_messages: u64,
    /// How often the leader is killed, and how often it goes silent.
    #[arg(long, default_value_t = 3)]
    failovers: usize,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    loads: Vec<throughput::Report>,
    offline: offline::Report,
    failovers: Vec<failover::Report>,
    restart: restart::Report,
}

fn load(seconds: f64, qos: u8, clients: usize, window: u16) -> LoadArgs {
    LoadArgs {
        publishers: clients,
        subscribers: clients,
        broadcast: false,
        shared: false,
        window,
        qos,
        bytes: 256,
        rate: None,
        seconds,
        warmup: 3.0,
        transient: false,
        v4: false,
        publish_to: 0,
        subscribe_to: 1,
    }
}

/// Runs all; without JSON each table is shown when it is there.
pub(crate) async fn run(fleet: &mut Fleet, args: &SuiteArgs, json: bool) -> Result<Report, BenchError> {
    let show = |text: String| {
        if !json {
            println!("{text}")
        }
    };
    let machine = machine::describe();
    show(machine.clone() + "\n");
    let mut loads = Vec::new();
    for (qos, clients, window) in [(1, 1, 1), (2, 1, 1), (1, 10, 100), (2, 10, 100), (0, 10, 100)] {
        let report = throughput::run(fleet, &load(args.seconds, qos, clients, window)).await?;
        show(report.table());
        loads.push(report);
    }
    let away = OfflineArgs {
        queue: BacklogArgs { messages: args.offline_messages, bytes: 256, publishers: 10, window: 200 },
        memory_mib_max: None,
        beside: false,
        boot: false,
        boot_s_max: None,
        v4: false,
    };
    let offline = offline::run(fleet, &away).await?;
    show(offline.table());
    let mut failovers = Vec::new();
    let cuts: &[How] = if fleet.has_machines() { &[How::Cut, How::CutPeers] } else { &[] };
    for how in [How::Kill, How::Freeze].into_iter().chain(cuts.iter().copied()) {
        let experiment =
            FailoverArgs { how, rounds: args.failovers, publishers: 2, window: 4, bytes: 256, after: 10.0 };
        let report = failover::run(fleet, &experiment).await?;
        show(report.table());
        failovers.push(report);
    }
    let all = RestartArgs { publishers: 10, window: 100, bytes: 256, before: 10.0, after: 5.0, outage_s_max: None };
    let restart = restart::run(fleet, &all).await?;
    show(restart.table());
    Ok(Report { machine, loads, offline, failovers, restart })
}
