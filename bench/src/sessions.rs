//! Sessions of clients that are away: how fast they are stored, what they take of memory, and how long a node that
//! was killed takes to start on them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_jepsen::wire::Version;
use quorate_jepsen::wire::encode::Connect;
use serde::Serialize;

use crate::connection::client;
use crate::fleet::Fleet;
use crate::histogram::{Histogram, Quantiles};
use crate::machine::Pages;
use crate::{BenchError, idle, light, nodes};

/// Longest boot.
const BOOT_MAX: Duration = Duration::from_secs(600);
/// Longest wait of a client for its session on the node that was started again.
const RESUME_MAX: Duration = Duration::from_secs(60);
/// How many sessions are looked for there.
const RESUMED: u32 = 100;
/// Longer than any run.
const EXPIRY_S: u32 = 86_400;

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct SessionsArgs {
    /// Sessions to store.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Clients that connect at a time.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) clients: u16,
    /// The node that they connect to, from 0; without it to all in turn.
    #[arg(long)]
    pub(crate) to: Option<usize>,
    /// Leaves out the kill and the start.
    #[arg(long)]
    pub(crate) no_boot: bool,
    /// Fails when a broker has more than so many MiB resident with all sessions stored, or after its start.
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib_max: Option<f64>,
    /// Fails when the node that was killed took longer than this to be ready.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_boot")]
    pub(crate) boot_s_max: Option<f64>,
}

/// A follower was killed and started again.
#[derive(Clone, Debug, Serialize)]
struct Boot {
    /// From the start of its process until it welcomed clients.
    ready_s: f64,
    /// And until the first client had its session on it.
    resumed_s: Option<f64>,
    /// Sessions that were looked for on it.
    looked_for: u32,
    /// Of them not there.
    lost: u64,
    /// Its memory then.
    memory: Pages,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    count: u32,
    clients: u16,
    seconds: f64,
    /// CONNECT, SUBSCRIBE and DISCONNECT of so many sessions a second.
    per_s: f64,
    /// Of one client, until its SUBACK.
    stored: Quantiles,
    before: Vec<Pages>,
    after: Vec<Pages>,
    boot: Option<Boot>,
}

/// Clean Start 0, as of a device that goes on with what it had. (So written 3.1.1's one flag means the same.)
fn connect(number: u32) -> Connect {
    Connect { expiry_s: EXPIRY_S, ..client(Version::V5, &format!("bench-session-{number}"), true, false) }
}

/// One client comes, subscribes and goes; how long it waited in all.
async fn store(at: SocketAddr, version: Version, number: u32) -> Result<u64, BenchError> {
    let start = Instant::now();
    let (mut stream, is_present) = light::open(at, version, &connect(number)).await?;
    if is_present {
        let answer = format!("Session Present to a client it never saw, bench-session-{number}");
        return Err(BenchError::Refused { at, answer });
    }
    light::subscribe(&mut stream, version, 1, &[format!("sessions/{number}/inbox")]).await?;
    let waited = start.elapsed();
    light::close(stream, version).await?;
    Ok(waited.as_nanos() as u64)
}

/// Stores, looks, kills, starts.
pub(crate) async fn run(fleet: &mut Fleet, args: &SessionsArgs) -> Result<Report, BenchError> {
    let version = fleet.version(false);
    let is_booting = !args.no_boot && fleet.cluster.is_some();
    if is_booting {
        // Rather now than when all are stored.
        nodes::follower(fleet).await?;
    }
    let before = idle::steady(fleet).await?;
    let targets = match args.to {
        Some(place) => vec![fleet.at(place)?],
        None => fleet.mqtt.clone(),
    };
    let start = Instant::now();
    let waits = light::each(0..args.count, usize::from(args.clients), |number| {
        let at = targets.get(number as usize % targets.len().max(1)).copied();
        async move { store(at.ok_or(BenchError::NotOurs)?, version, number).await }
    });
    let waits = waits.await?;
    let seconds = start.elapsed().as_secs_f64();
    let mut stored = Histogram::default();
    waits.iter().for_each(|ns| stored.record(*ns));
    let after = idle::steady(fleet).await?;
    let boot = if is_booting { Some(boot(fleet, args, version).await?) } else { None };
    let per_s = f64::from(args.count) / seconds;
    let report = Report {
        count: args.count,
        clients: args.clients,
        seconds,
        per_s,
        stored: stored.quantiles(),
        before,
        after,
        boot,
    };
    report.held_to(args)
}

async fn boot(fleet: &mut Fleet, args: &SessionsArgs, version: Version) -> Result<Boot, BenchError> {
    let victim = nodes::follower(fleet).await?;
    nodes::kill(fleet, victim)?;
    let (started, admin) = nodes::start(fleet, victim)?;
    nodes::ready(admin, BOOT_MAX).await?;
    let ready_s = started.elapsed().as_secs_f64();
    let at = fleet.at(victim)?;
    let looked_for = args.count.min(RESUMED);
    // Spread over all that were stored.
    let numbers = (0..looked_for).map(|n| (u64::from(n) * u64::from(args.count) / u64::from(looked_for)) as u32);
    let (mut lost, mut resumed_s) = (0, None);
    for number in numbers {
        let opened = nodes::wait_for("a stored session answers", RESUME_MAX, || async move {
            light::open(at, version, &connect(number)).await.map_err(|e| e.to_string())
        });
        let (stream, is_present) = opened.await?;
        if is_present {
            resumed_s.get_or_insert_with(|| started.elapsed().as_secs_f64());
        } else {
            lost += 1;
        }
        light::close(stream, version).await?;
    }
    let memory = idle::steady(fleet).await?.get(victim).copied().unwrap_or_default();
    Ok(Boot { ready_s, resumed_s, looked_for, lost, memory })
}

impl Report {
    fn held_to(self, args: &SessionsArgs) -> Result<Self, BenchError> {
        let table = || self.table();
        let resident = self.after.iter().chain(self.boot.as_ref().map(|boot| &boot.memory));
        let most = resident.map(|pages| pages.resident_bytes).max().unwrap_or_default();
        BenchError::lost("stored sessions", self.boot.as_ref().map_or(0, |boot| boot.lost), table)?;
        BenchError::above(("a broker's memory", "MiB"), mib(most), args.memory_mib_max, table)?;
        let ready_s = self.boot.as_ref().map_or(0.0, |boot| boot.ready_s);
        BenchError::above(("the boot of the node", "s"), ready_s, args.boot_s_max, table)?;
        Ok(self)
    }

    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{} sessions of clients that are away, one subscription each, {} clients at a time\n\
             \x20 stored {:>8.0} /s in {:.1} s   CONNECT to SUBACK p50 {:.2} ms, p99 {:.2} ms\n",
            self.count,
            self.clients,
            self.per_s,
            self.seconds,
            self.stored.p50_us / 1e3,
            self.stored.p99_us / 1e3
        );
        for (place, (before, after)) in self.before.iter().zip(&self.after).enumerate() {
            let grown = after.anonymous_bytes.saturating_sub(before.anonymous_bytes);
            text += &format!(
                "  node {place}   anonymous {:>7.1} -> {:>7.1} MiB   resident {:>7.1} -> {:>7.1} MiB   {} bytes a session\n",
                mib(before.anonymous_bytes),
                mib(after.anonymous_bytes),
                mib(before.resident_bytes),
                mib(after.resident_bytes),
                grown / u64::from(self.count.max(1))
            );
        }
        if let Some(boot) = &self.boot {
            text += &format!(
                "  a follower that was killed: ready {:.2} s after its start, a session on it after {:.2} s; \
                 {} looked for, {} lost; anonymous {:.1} MiB, resident {:.1} MiB\n",
                boot.ready_s,
                boot.resumed_s.unwrap_or(f64::NAN),
                boot.looked_for,
                boot.lost,
                mib(boot.memory.anonymous_bytes),
                mib(boot.memory.resident_bytes)
            );
        }
        text
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
