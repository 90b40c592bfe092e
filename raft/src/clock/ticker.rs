//! Ticks: the leader appends one each second while anything waits for time to pass, and one after the other
//! while the state machine has work that is too large for one entry.
//!
//! It owns nothing. Ticks are direct and idempotent; at most one is on its way.

use std::sync::Arc;
use std::time::Duration;

use quorate_store::command::Command;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::apply::Needs;
use crate::leader_intake::Leadership;
use crate::proposer::{Directs, StreamStats};

/// Between two ticks while there are deadlines.
const TICK_INTERVAL: Duration = Duration::from_millis(1000);
/// For a tick to be applied, before the next is tried.
const TICK_PATIENCE: Duration = Duration::from_millis(1000);
/// After a tick that was not appended.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Ticks for as long as it runs, whenever this node leads.
pub(crate) async fn run_ticker<L: Leadership>(
    raft: L,
    mut needs: watch::Receiver<Needs>,
    directs: Directs<L>,
    stats: Arc<StreamStats>,
) {
    let (mut leader, mut applied) = (raft.leader_watch(), raft.applied_watch());
    let mut due = Instant::now() + TICK_INTERVAL;
    loop {
        if leader.wait_for(|view| view.is_self).await.is_err() {
            return;
        }
        let before = applied.borrow().index;
        let need = *needs.borrow_and_update();
        if need.work || (need.time && Instant::now() >= due) {
            due = Instant::now() + TICK_INTERVAL;
            stats.ticks.inc();
            if directs.append_here(Command::Tick, TICK_PATIENCE).await.is_none() {
                sleep(RETRY_PAUSE).await;
            } else if applied.wait_for(|now| now.index > before).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = needs.changed() => if changed.is_err() { return },
            changed = leader.changed() => if changed.is_err() { return },
            () = sleep_until(due), if need.time => {}
        }
    }
}
