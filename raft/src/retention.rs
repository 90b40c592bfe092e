//! When snapshots are taken and how far the log is purged.
//!
//! By bytes and time: openraft's own policy counts entries, which say nothing of either. The log before a
//! snapshot is kept for a while, so that a follower that was away needs no snapshot; nothing after the last
//! flushed snapshot is ever purged, because the rows fall back to it when the power fails.

use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::consensus::Consensus;
use crate::log_store::LogSizes;
use crate::options::LogRetention;

/// Between two looks at the log.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A snapshot that was triggered and has not shown up after this long is triggered again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(120);

/// Runs until Raft stops.
pub(crate) async fn run_retention(consensus: Consensus, sizes: LogSizes, retention: LogRetention) {
    let mut tick = interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut since, mut triggered) = (Instant::now(), None::<Instant>);
    let mut last_snapshot = None;
    loop {
        tick.tick().await;
        let (applied, snapshot, purged) = {
            let metrics = consensus.raft().data_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_applied, metrics.snapshot, metrics.purged)
        };
        if snapshot != last_snapshot {
            last_snapshot = snapshot;
            since = Instant::now();
            triggered = None;
        }
        let Some(applied) = applied else { continue };
        let covered = snapshot.map(|id| id.index);
        let log_bytes = sizes.bytes_after(covered.unwrap_or(0)).saturating_sub(sizes.bytes_after(applied.index));
        let due = log_bytes >= retention.snapshot_log_bytes || since.elapsed() >= retention.snapshot_interval;
        let waiting = triggered.is_some_and(|at| at.elapsed() < SNAPSHOT_PATIENCE);
        if due && !waiting && Some(applied.index) > covered {
            debug!(index = applied.index, log_bytes, "taking a snapshot");
            triggered = Some(Instant::now());
            if consensus.raft().trigger().snapshot().await.is_err() {
                return;
            }
        }
        let cut = sizes.purge_to(retention.keep_bytes, retention.keep_entries).min(covered);
        if let Some(cut) = cut
            && Some(cut) > purged.map(|id| id.index)
            && consensus.raft().trigger().purge_log(cut).await.is_err()
        {
            return;
        }
    }
}
