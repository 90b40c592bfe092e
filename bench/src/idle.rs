//! What a connection costs while nothing but a ping is said on it: memory of the brokers before and after many clients connect.
//!
//! All sockets are on one node; the sessions are on all of them. So the other nodes' growth is what a session costs,
//! and the first one's growth beyond that is what its connection costs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_jepsen::wire::{Packet, Version, encode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::net::TcpStream;

use crate::connection::client;
use crate::fleet::Fleet;
use crate::machine::{self, Pages};
use crate::{BenchError, connection, light};

/// Descriptors beside the sockets: files of the databases, links between nodes.
const DESCRIPTORS: u64 = 2_000;
/// Memory is steady when so many looks in a row found the same.
const STEADY_LOOKS: usize = 5;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Longest wait for it to be steady.
const STEADY_MAX: Duration = Duration::from_secs(60);

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct IdleArgs {
    /// Connections to open, all to the first node.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=28_000))]
    pub(crate) connections: u32,
    /// Subscriptions of each session, each to a filter of its own.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=100))]
    pub(crate) subscriptions: u16,
    /// Clients that connect and subscribe at a time: the more, the more of them share an entry of the log and its fsync.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4_096))]
    pub(crate) at_once: u16,
    /// Sessions that end with their connections, instead of persistent ones.
    #[arg(long)]
    pub(crate) transient: bool,
    /// MQTT 3.1.1 instead of 5.0.
    #[arg(long)]
    pub(crate) v4: bool,
    /// Fails when a connection costs more bytes than this, its session included.
    #[arg(long, value_name = "BYTES")]
    pub(crate) bytes_max: Option<u64>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    connections: u32,
    subscriptions: u16,
    /// Seconds until the last was connected.
    pub(crate) connected_s: f64,
    /// Of each broker, the one with the sockets first.
    before: Vec<Pages>,
    after: Vec<Pages>,
    /// Growth of the first node's anonymous memory: connection and session.
    pub(crate) bytes_per_connection: u64,
    /// Mean growth of the others' anonymous memory: the session alone.
    pub(crate) bytes_per_session: u64,
}

/// Lets this process, and the brokers that it starts, have so many files and sockets open.
pub(crate) fn raise_descriptors(connections: u32) -> Result<(), BenchError> {
    let wanted = u64::from(connections) + DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
        let raised = Rlimit { current: Some(limit.maximum.map_or(wanted, |most| most.max(wanted))), maximum };
        setrlimit(Resource::Nofile, raised).map_err(|e| {
            BenchError::io(&format!("{wanted} open files (ulimit -n; as root, or `ulimit -Hn` first)"))(e.into())
        })?;
    }
    Ok(())
}

/// Connects, waits, compares.
pub(crate) async fn run(fleet: &Fleet, args: &IdleArgs) -> Result<Report, BenchError> {
    let at = fleet.at(0)?;
    let version = fleet.version(args.v4);
    // What only the first client ever costs is not its successors' doing.
    for place in 0..fleet.mqtt.len() {
        let one = client(version, "bench-idle-first", false, true);
        connection::Connection::open(fleet.at(place)?, version, &one).await?.0.close().await?;
    }
    let before = steady(fleet).await?;
    let start = Instant::now();
    let mut open = light::each(0..args.connections, usize::from(args.at_once), |number| {
        connect(at, version, number, args.clone())
    })
    .await?;
    let connected_s = start.elapsed().as_secs_f64();
    // As idle clients do; what a connection keeps after it was used counts too.
    let mut ping = Vec::new();
    encode::ping(&mut ping);
    for stream in &mut open {
        match light::ask(stream, version, &ping, "PINGRESP").await? {
            Packet::PingResp => {}
            other => return Err(BenchError::Refused { at, answer: format!("{other:?}") }),
        }
    }
    let after = steady(fleet).await?;
    let lost = open.iter().filter(|stream| light::is_closed(stream)).count();
    if lost > 0 {
        return Err(BenchError::Refused { at, answer: format!("the end of {lost} idle connections") });
    }
    let growth = |place: usize| match (before.get(place), after.get(place)) {
        (Some(before), Some(after)) => after.anonymous_bytes.saturating_sub(before.anonymous_bytes),
        _ => 0,
    };
    let others = (1..after.len()).map(growth).sum::<u64>() / (after.len().max(2) as u64 - 1);
    let report = Report {
        connections: args.connections,
        subscriptions: args.subscriptions,
        connected_s,
        bytes_per_connection: growth(0) / u64::from(args.connections),
        bytes_per_session: others / u64::from(args.connections),
        before,
        after,
    };
    match args.bytes_max.filter(|max| report.bytes_per_connection > *max) {
        Some(bound) => {
            Err(BenchError::Connection { bytes: report.bytes_per_connection, bound, report: report.table() })
        }
        None => Ok(report),
    }
}

async fn connect(at: SocketAddr, version: Version, number: u32, args: IdleArgs) -> Result<TcpStream, BenchError> {
    let id = format!("bench-idle-{number}");
    let (mut stream, _) = light::open(at, version, &client(version, &id, !args.transient, args.transient)).await?;
    for n in 0..args.subscriptions {
        light::subscribe(&mut stream, version, n + 1, &[format!("idle/{number}/{n}")]).await?;
    }
    Ok(stream)
}

/// Memory of the brokers, when it does not change any more.
pub(crate) async fn steady(fleet: &Fleet) -> Result<Vec<Pages>, BenchError> {
    let look = || fleet.nodes().iter().map(|pid| machine::pages(*pid)).collect::<Result<Vec<_>, _>>();
    let (start, mut last, mut same) = (Instant::now(), look()?, 0);
    while same < STEADY_LOOKS && start.elapsed() < STEADY_MAX {
        tokio::time::sleep(LOOK).await;
        let now = look()?;
        let is_near = |(a, b): (&Pages, &Pages)| a.anonymous_bytes.abs_diff(b.anonymous_bytes) <= 64 * 1024;
        same = if now.iter().zip(&last).all(is_near) { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

impl Report {
    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        let mut lines = format!(
            "{} idle connections with {} subscriptions each, in {:.2} s: {:.0}/s\n",
            self.connections,
            self.subscriptions,
            self.connected_s,
            f64::from(self.connections) / self.connected_s.max(f64::EPSILON)
        );
        for (place, (before, after)) in self.before.iter().zip(&self.after).enumerate() {
            lines.push_str(&format!(
                "  {:<20} anonymous {:>7.1} -> {:>7.1} MiB   resident {:>7.1} -> {:>7.1} MiB\n",
                if place == 0 { "node with the sockets" } else { "another node" },
                mib(before.anonymous_bytes),
                mib(after.anonymous_bytes),
                mib(before.resident_bytes),
                mib(after.resident_bytes)
            ));
        }
        lines
            + &format!(
                "  {} bytes a connection and its session; {} of them the session, as on the other nodes\n",
                self.bytes_per_connection, self.bytes_per_session
            )
    }
}
