//! Messages queued for a session that is away: how fast they go in, what they cost in memory, how fast they come out.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::backlog::BacklogArgs;
use crate::beside::{self, Beside, End, Lap};
use crate::connection::end_session;
use crate::fleet::Fleet;
use crate::machine::Memory;
use crate::{BenchError, machine, nodes};

/// How long the clients beside are alone first.
const BESIDE_ALONE: Duration = Duration::from_secs(5);
/// Longest boot with everything queued.
const BOOT_MAX: Duration = Duration::from_secs(300);

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct OfflineArgs {
    #[command(flatten)]
    pub(crate) queue: BacklogArgs,
    /// Fails when a broker's memory was ever above so many MiB.
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib_max: Option<u64>,
    /// Another pair of clients meanwhile, on a topic of its own: what they see of it.
    #[arg(long)]
    pub(crate) beside: bool,
    /// A follower is killed (SIGKILL) and started again with everything queued.
    #[arg(long)]
    pub(crate) boot: bool,
    /// Fails when that follower took longer than this to be ready.
    #[arg(long, value_name = "SECONDS", requires = "boot")]
    pub(crate) boot_s_max: Option<f64>,
    /// MQTT 3.1.1 instead of 5.0.
    #[arg(long)]
    pub(crate) v4: bool,
}

/// What the clients beside saw.
#[derive(Clone, Debug, Default, Serialize)]
struct BesideReport {
    /// Alone.
    before: Lap,
    /// While messages were queued.
    filling: Lap,
    /// While a follower was killed and came back.
    booting: Option<Lap>,
    /// While the session got them.
    draining: Lap,
    end: End,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    messages: u64,
    payload_bytes: usize,
    /// Messages a second while they were queued.
    pub(crate) queued_per_s: f64,
    /// Memory of each broker with all of them queued.
    queued_memory: Vec<Memory>,
    /// From the start of the follower's process until it welcomed clients, with all of them queued.
    boot_s: Option<f64>,
    /// Messages a second while the session got them, on another node than it left.
    pub(crate) drained_per_s: f64,
    /// Memory of each broker after that.
    drained_memory: Vec<Memory>,
    pub(crate) delivered: u64,
    pub(crate) repeated: u64,
    pub(crate) skipped: u64,
    beside: Option<BesideReport>,
}

/// Queues and drains.
pub(crate) async fn run(fleet: &mut Fleet, args: &OfflineArgs) -> Result<Report, BenchError> {
    LocalSet::new().run_until(run_local(fleet, args)).await
}

async fn run_local(fleet: &mut Fleet, args: &OfflineArgs) -> Result<Report, BenchError> {
    let backlog = args.queue.backlog("bench-offline", fleet.version(args.v4), false);
    // Only one that is not to be killed has clients beside.
    let victim = if args.boot { Some(nodes::follower(fleet).await?) } else { None };
    let first = victim.map_or(0, |victim| victim + 1);
    backlog.leave(fleet.at(first + 1)?).await?;
    let mut beside = None;
    if args.beside {
        let plan = beside::Plan {
            publish_to: fleet.at(first)?,
            subscribe_to: fleet.at(first + 1)?,
            version: backlog.version,
            rate: None,
            payload_bytes: args.queue.bytes,
        };
        let pair = Beside::start(plan).await?;
        tokio::time::sleep(BESIDE_ALONE).await;
        let parts = BesideReport { before: pair.lap().await?, ..BesideReport::default() };
        beside = Some((pair, parts));
    }
    let queued_per_s = backlog.queue(fleet.at(first)?).await?;
    if let Some((pair, parts)) = &mut beside {
        parts.filling = pair.lap().await?;
    }
    let queued_memory = memories(fleet)?;
    let mut boot_s = None;
    if let Some(victim) = victim {
        nodes::kill(fleet, victim)?;
        let (started, admin) = nodes::start(fleet, victim)?;
        nodes::ready(admin, BOOT_MAX).await?;
        boot_s = Some(started.elapsed().as_secs_f64());
        if let Some((pair, parts)) = &mut beside {
            parts.booting = Some(pair.lap().await?);
        }
    }
    let drained = backlog.drain(fleet.at(first + 2)?).await?;
    let mut beside_report = None;
    if let Some((pair, mut parts)) = beside {
        parts.draining = pair.lap().await?;
        parts.end = pair.end().await?;
        beside_report = Some(parts);
    }
    let report = Report {
        messages: args.queue.messages,
        payload_bytes: args.queue.bytes,
        queued_per_s,
        queued_memory,
        boot_s,
        drained_per_s: drained.per_s,
        drained_memory: memories(fleet)?,
        delivered: drained.delivered,
        repeated: drained.repeated,
        skipped: drained.skipped,
        beside: beside_report,
    };
    end_session(fleet.at(0)?, backlog.version, backlog.client).await?;
    report.held_to(args)
}

fn memories(fleet: &Fleet) -> Result<Vec<Memory>, BenchError> {
    fleet.pids.iter().map(|pid| machine::memory(*pid)).collect()
}

impl Report {
    fn held_to(self, args: &OfflineArgs) -> Result<Self, BenchError> {
        let peak = self.queued_memory.iter().chain(&self.drained_memory).map(|m| m.peak_mib).max().unwrap_or_default();
        if let Some(bound) = args.memory_mib_max.filter(|max| peak > *max) {
            return Err(BenchError::Memory { peak, bound, report: self.table() });
        }
        let boot = self.boot_s.unwrap_or_default();
        BenchError::above(("the follower's boot", "s"), boot, args.boot_s_max, || self.table())?;
        Ok(self)
    }

    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let memory = |list: &[Memory]| {
            let shown: Vec<String> = list.iter().map(|m| format!("{} (peak {})", m.resident_mib, m.peak_mib)).collect();
            shown.join(", ")
        };
        let mut text = format!(
            "{} messages of {} bytes for one session that is away\n\
             \x20 queued  {:>10.0} /s   memory of the brokers in MiB: {}\n\
             \x20 drained {:>10.0} /s   memory of the brokers in MiB: {}\n\
             \x20 delivered {}, repeated {}, skipped {}\n",
            self.messages,
            self.payload_bytes,
            self.queued_per_s,
            memory(&self.queued_memory),
            self.drained_per_s,
            memory(&self.drained_memory),
            self.delivered,
            self.repeated,
            self.skipped
        );
        if let Some(boot_s) = self.boot_s {
            text += &format!(
                "  a follower that was killed with everything queued was ready {boot_s:.2} s after its start\n"
            );
        }
        if let Some(parts) = &self.beside {
            text += "another pair of clients, one publish at a time\n";
            text += &beside::line("before", &parts.before);
            text += &beside::line("while the queue filled", &parts.filling);
            if let Some(lap) = &parts.booting {
                text += &beside::line("while the follower came back", lap);
            }
            text += &beside::line("while the queue drained", &parts.draining);
            let End { acknowledged, missing, repeated } = parts.end;
            text += &format!("  acknowledged {acknowledged}, missing {missing}, repeated {repeated}\n");
        }
        text
    }
}
