//! The lives of this node: commits its start, and starts it over when the cluster has given it up.
//!
//! Owns the nonce of the start that is on its way. A start is one `NodeStarted` under one nonce, sent to
//! whoever leads until this node's own log shows it applied; that opens the stream and lets clients in. When
//! the incarnation is closed, or a snapshot jumped over what it owed, the next start has a new nonce: an
//! incarnation is never taken up again. It never decides that an incarnation is over; the log does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_store::codec::Payload;
use quorate_store::command::{Command, NodeInfo, NodeStarted};
use quorate_store::ids::{Incarnation, NodeId};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, error, info};

use crate::clock::wall_ms;
use crate::leader_intake::{Ask, Asks, Leadership};
use crate::proposer::{encode_direct, lock};

/// For the leader's answer that it has enqueued the start.
const ENQUEUE_PATIENCE: Duration = Duration::from_millis(1000);
/// For the start to be applied here, before it is sent again. Longer each time: a node that comes back after
/// long applies for long, and more copies of its start do not help.
const APPLY_PATIENCE: Duration = Duration::from_millis(500);
const APPLY_DOUBLINGS_MAX: u32 = 4;
/// After a leader could not be asked.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How this node's lives go, as the apply thread tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lives {
    /// Incarnations, and starts on their way, that are over.
    over: u64,
    /// The cluster does not take this node's start: it was removed.
    removed: bool,
}

/// The start that is on its way. Shared with the apply thread.
#[derive(Debug)]
pub(crate) struct StartTable {
    nonce: Mutex<Option<u128>>,
    lives: watch::Sender<Lives>,
}

impl Default for StartTable {
    fn default() -> Self {
        Self { nonce: Mutex::new(None), lives: watch::Sender::new(Lives::default()) }
    }
}

impl StartTable {
    /// Whether this is the start that is waited for. True at most once for a nonce.
    pub(crate) fn take(&self, nonce: u128) -> bool {
        let mut expected = lock(&self.nonce);
        let is_it = *expected == Some(nonce);
        if is_it {
            *expected = None;
        }
        is_it
    }

    /// The incarnation is over, and so is any start that is on its way.
    pub(crate) fn closed(&self) {
        lock(&self.nonce).take();
        self.lives.send_modify(|lives| lives.over += 1);
    }

    /// The start was applied, and refused.
    pub(crate) fn refused(&self) {
        self.lives.send_modify(|lives| lives.removed = true);
    }

    /// From now on, `nonce` is the start that is waited for.
    pub(crate) fn expect(&self, nonce: u128) {
        *lock(&self.nonce) = Some(nonce);
    }

    #[cfg(test)]
    pub(crate) fn is_expecting(&self, nonce: u128) -> bool {
        *lock(&self.nonce) == Some(nonce)
    }
}

/// Starts this node, and starts it over, for as long as it runs.
pub(crate) async fn run_incarnations<L: Leadership>(
    node: NodeId,
    info: NodeInfo,
    starts: Arc<StartTable>,
    asks: Asks<L>,
    incarnation: watch::Receiver<Option<Incarnation>>,
) {
    let mut lives = starts.lives.subscribe();
    loop {
        // Looked at before the start, so that no end is missed.
        let before = *lives.borrow_and_update();
        if before.removed {
            error!(%node, "this node was removed from the cluster: it takes no clients; wipe its data directory and join it as a new node");
            return;
        }
        let nonce = rand::random();
        starts.expect(nonce);
        let started = NodeStarted { node, nonce, wall_ms: wall_ms(), info: info.clone() };
        let is_over = tokio::select! {
            biased;
            changed = lives.wait_for(|now| *now != before) => {
                if changed.is_err() {
                    return;
                }
                true
            }
            started = start(nonce, started, &asks, incarnation.clone()) => {
                if !started {
                    return;
                }
                false
            }
        };
        if !is_over && lives.wait_for(|now| *now != before).await.is_err() {
            return;
        }
        info!(%node, "this node starts over");
    }
}

/// Sends the start until it is applied here. `false` when this node shuts down, or cannot say it.
async fn start<L: Leadership>(
    nonce: u128,
    started: NodeStarted,
    asks: &Asks<L>,
    mut incarnation: watch::Receiver<Option<Incarnation>>,
) -> bool {
    let batch = match encode_direct(nonce, Command::NodeStarted(started)) {
        Ok(batch) => batch,
        Err(error) => {
            error!(%error, "this node's name and addresses cannot be encoded");
            return false;
        }
    };
    let mut leader = asks.raft().leader_watch();
    let mut repeats = 0;
    loop {
        let view = *leader.borrow_and_update();
        let pause = match asks.ask(Ask::Direct(Payload(batch.clone())), ENQUEUE_PATIENCE).await {
            Ok(_) => {
                let patience = APPLY_PATIENCE * (1 << repeats);
                repeats = (repeats + 1).min(APPLY_DOUBLINGS_MAX);
                patience
            }
            Err(error) => {
                debug!(%error, "this node's start did not reach a leader");
                RETRY_PAUSE
            }
        };
        tokio::select! {
            applied = incarnation.wait_for(Option::is_some) => return applied.is_ok(),
            changed = leader.wait_for(|now| (now.leader, now.term) != (view.leader, view.term)) => {
                if changed.is_err() {
                    return false;
                }
            }
            () = sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_taken_once_and_not_after_it_was_given_up() {
        let starts = StartTable::default();
        assert!(!starts.take(7));
        starts.expect(7);
        assert!(!starts.take(8));
        assert!(starts.take(7));
        assert!(!starts.take(7), "a second application of the same start opens nothing");
        starts.expect(9);
        starts.closed();
        assert!(!starts.take(9), "a start that a snapshot may have jumped over is never taken up");
    }
}
