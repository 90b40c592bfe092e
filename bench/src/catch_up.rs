//! A node that was away for so long that the others no longer have the log it needs: it is sent a snapshot with a
//! backlog in it, beside a steady load.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::backlog::BacklogArgs;
use crate::beside::{self, Beside, End, Lap};
use crate::fleet::Fleet;
use crate::{BenchError, nodes};

/// Longest catching up.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// Nodes say how far they are ten times a second: one that reaches what the leader had so long ago is not behind.
const LAG_MAX: Duration = Duration::from_millis(300);
/// How many times the kept log must be queued, so that what the node needs is surely purged.
const PURGED_TIMES: u64 = 4;

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct CatchUpArgs {
    #[command(flatten)]
    pub(crate) queue: BacklogArgs,
    /// MiB of log after which nodes take a snapshot, and that they keep behind it.
    #[arg(long, default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) log_keep_mib: u64,
    /// Publishes a second of the steady load; without it one after the other, each when the last is acknowledged.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Seconds of steady load before, and again with the node away.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Fails when catching up took longer than this, from the start of the node's process.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) caught_up_s_max: Option<f64>,
}

/// A snapshot that a node sent, as its log says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Sent {
    bytes: u64,
    /// From the offer until it was installed on the other side.
    seconds: f64,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    messages: u64,
    payload_bytes: usize,
    log_keep_mib: u64,
    /// Messages a second while they were queued, with the node away.
    queued_per_s: f64,
    /// From the start of its process until it had applied what the leader had.
    caught_up_s: f64,
    /// And until it welcomed clients.
    ready_s: f64,
    /// Snapshots that were sent to it.
    snapshots: Vec<Sent>,
    /// The steady load with all nodes up.
    before: Lap,
    /// With the node away.
    away: Lap,
    /// From its start until it had caught up.
    during: Lap,
    beside: End,
    /// Messages a second while the session got its backlog on the node that had caught up.
    drained_per_s: f64,
    delivered: u64,
    repeated: u64,
}

impl CatchUpArgs {
    /// What the nodes are configured with.
    pub(crate) fn env(&self) -> Result<[(&'static str, String); 2], BenchError> {
        let bytes = self.log_keep_mib << 20;
        if self.queue.messages.saturating_mul(self.queue.bytes as u64) < bytes.saturating_mul(PURGED_TIMES) {
            return Err(BenchError::Pointless(
                "so few messages would stay in the log, and no snapshot be needed: more --messages, or less --log-keep-mib",
            ));
        }
        let bytes = bytes.to_string();
        Ok([("QUORATE_SNAPSHOT_LOG_BYTES", bytes.clone()), ("QUORATE_LOG_KEEP_BYTES", bytes)])
    }
}

/// Queues with a node away, starts it, waits.
pub(crate) async fn run(fleet: &mut Fleet, args: &CatchUpArgs) -> Result<Report, BenchError> {
    LocalSet::new().run_until(run_local(fleet, args)).await
}

async fn run_local(fleet: &mut Fleet, args: &CatchUpArgs) -> Result<Report, BenchError> {
    let victim = nodes::follower(fleet).await?;
    let (first, second) = (fleet.at(victim + 1)?, fleet.at(victim + 2)?);
    // Rows are compressed: a snapshot of messages that are all alike would be a small one.
    let backlog = args.queue.backlog("bench-catch-up", fleet.version(false), true);
    backlog.leave(first).await?;
    let plan = beside::Plan {
        publish_to: first,
        subscribe_to: if second == fleet.at(victim)? { first } else { second },
        version: backlog.version,
        rate: args.rate,
        payload_bytes: args.queue.bytes,
    };
    let pair = Beside::start(plan).await?;
    let part = Duration::from_secs_f64(args.seconds);
    tokio::time::sleep(part).await;
    let before = pair.lap().await?;

    nodes::kill(fleet, victim)?;
    let queued_per_s = backlog.queue(first).await?;
    // What it saw of the queueing is another experiment.
    pair.lap().await?;
    tokio::time::sleep(part).await;
    let away = pair.lap().await?;

    let leader = nodes::leader(fleet).await?;
    let logs: Vec<usize> = fleet.own()?.nodes.iter().map(|node| node.log().len()).collect();
    let leader_admin = fleet.own()?.node(leader)?.at.admin;
    let name = fleet.own()?.node(victim)?.name.clone();
    let (started, admin) = nodes::start(fleet, victim)?;
    caught_up(leader_admin, admin, &name).await?;
    let caught_up_s = started.elapsed().as_secs_f64();
    let during = pair.lap().await?;
    nodes::ready(admin, CATCH_UP_MAX).await?;
    let ready_s = started.elapsed().as_secs_f64();
    let beside = pair.end().await?;
    let said = fleet.own()?.nodes.iter().zip(&logs);
    let snapshots: Vec<Sent> =
        said.flat_map(|(node, from)| sent(node.log().get(*from..).unwrap_or_default())).collect();
    let drained = backlog.drain(fleet.at(victim)?).await?;
    let report = Report {
        messages: args.queue.messages,
        payload_bytes: args.queue.bytes,
        log_keep_mib: args.log_keep_mib,
        queued_per_s,
        caught_up_s,
        ready_s,
        snapshots,
        before,
        away,
        during,
        beside,
        drained_per_s: drained.per_s,
        delivered: drained.delivered,
        repeated: drained.repeated,
    };
    report.held_to(args)
}

/// Waits until a node has applied what the leader had a moment before.
async fn caught_up(leader: SocketAddr, node: SocketAddr, name: &str) -> Result<(), BenchError> {
    let end = Instant::now() + CATCH_UP_MAX;
    loop {
        let commit = nodes::wait_for("the leader says how far it is", CATCH_UP_MAX, || nodes::view(leader));
        let commit = commit.await?.commit;
        let since = Instant::now();
        let left = end.saturating_duration_since(since);
        nodes::wait_for("the node has applied what the leader had", left, || async move {
            let applied = nodes::view(node).await?.node(name).and_then(|node| node.applied);
            if applied >= Some(commit) { Ok(()) } else { Err(format!("{applied:?} of {commit}")) }
        })
        .await?;
        if since.elapsed() <= LAG_MAX {
            return Ok(());
        }
    }
}

/// The snapshots that a node's log tells of as sent.
fn sent(log: &str) -> Vec<Sent> {
    let mut sent = Vec::new();
    let mut offered = None;
    for line in log.lines() {
        if line.contains(" sending a snapshot ") {
            let bytes = line.split(" bytes=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            offered = second_of_day(line).zip(bytes);
        } else if line.contains(" snapshot sent ")
            && let Some(((start, bytes), end)) = offered.take().zip(second_of_day(line))
        {
            sent.push(Sent { bytes, seconds: (end - start).rem_euclid(86_400.0) });
        }
    }
    sent
}

/// Of a line that begins with a time such as `2026-11-27T12:11:31.123456Z`.
fn second_of_day(line: &str) -> Option<f64> {
    let time = line.split_whitespace().next()?.split('T').nth(1)?.trim_end_matches('Z');
    let mut parts = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some((hours * 60.0 + minutes) * 60.0 + seconds)
}

impl Report {
    fn held_to(self, args: &CatchUpArgs) -> Result<Self, BenchError> {
        let table = || self.table();
        BenchError::lost("queued messages", self.messages.saturating_sub(self.delivered - self.repeated), table)?;
        BenchError::lost("messages of the steady load", self.beside.missing, table)?;
        BenchError::above(("catching up", "s"), self.caught_up_s, args.caught_up_s_max, table)?;
        Ok(self)
    }

    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "a follower catches up with {} queued messages of {} bytes; {} MiB of log are kept\n\
             \x20 queued with it away {:>8.0} /s\n\
             \x20 it had caught up {:.2} s after its start, and was ready after {:.2} s\n",
            self.messages, self.payload_bytes, self.log_keep_mib, self.queued_per_s, self.caught_up_s, self.ready_s
        );
        if self.snapshots.is_empty() {
            text += "  no snapshot was sent to it: the log was enough\n";
        }
        for Sent { bytes, seconds } in &self.snapshots {
            let mib = *bytes as f64 / (1 << 20) as f64;
            text += &format!(
                "  a snapshot of {mib:.1} MiB was sent and installed in {seconds:.2} s, {:.1} MiB/s\n",
                mib / seconds.max(f64::EPSILON)
            );
        }
        text += "the steady load, one publisher and one subscriber\n";
        text += &beside::line("all nodes up", &self.before);
        text += &beside::line("the node away", &self.away);
        text += &beside::line("the node catching up", &self.during);
        let End { acknowledged, missing, repeated } = self.beside;
        text += &format!("  acknowledged {acknowledged}, missing {missing}, repeated {repeated}\n");
        text += &format!(
            "the session that was away got its messages on the node that had caught up, {:.0}/s: {} of {}, repeated {}\n",
            self.drained_per_s, self.delivered, self.messages, self.repeated
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_log_says_of_snapshots_is_read() {
        let log = "2026-11-27T23:59:59.500000Z  INFO sending a snapshot to=3 snapshot=2-9-71 bytes=1048576\n\
                   2026-11-27T23:59:59.700000Z  INFO something else bytes=9\n\
                   2026-11-28T00:00:01.000000Z  INFO snapshot sent to=3 snapshot=2-9-71\n\
                   2026-11-28T00:00:02.000000Z  INFO sending a snapshot to=3 snapshot=2-9-99 bytes=5\n";
        assert_eq!(sent(log), [Sent { bytes: 1_048_576, seconds: 1.5 }]);
        assert_eq!(second_of_day("nonsense"), None);
    }
}
