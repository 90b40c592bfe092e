//! The lives of this node: commits its start, and starts it over when the cluster has given it up.
//!
//! Owns the nonce of the start that is on its way. A start is one `NodeStarted` under one nonce, sent to
//! whoever leads until this node's own log shows it applied; that opens the stream and lets clients in. When
//! the incarnation is closed, or a snapshot jumped over what it owed, the next start has a new nonce: an
//! incarnation is never taken up again. Each start names the life that it follows, so that one which arrives
//! late closes nothing. It never decides that an incarnation is over; the log does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_store::codec::Payload;
use quorate_store::command::{Command, NodeInfo, NodeStarted};
use quorate_store::ids::{Incarnation, NodeId};
use tokio::sync::watch;
use tracing::{debug, error};

use crate::clock::wall_ms;
use crate::consensus::pause_unless_dropped;
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

/// What is known of this node's starts.
#[derive(Debug, Default)]
struct Starts {
    /// Of the one that is on its way.
    nonce: Option<u128>,
    /// The latest life, as the log has told it since this process began; the first start learns it by being
    /// refused.
    latest: Option<Incarnation>,
}

/// The start that is on its way. Shared with the apply thread.
#[derive(Debug)]
pub(crate) struct StartTable {
    starts: Mutex<Starts>,
    lives: watch::Sender<Lives>,
}

impl Default for StartTable {
    fn default() -> Self {
        Self { starts: Mutex::default(), lives: watch::Sender::new(Lives::default()) }
    }
}

impl StartTable {
    /// Whether this is the start that is waited for. True at most once for a nonce.
    pub(crate) fn take(&self, nonce: u128) -> bool {
        self.with(|starts| {
            let is_it = starts.nonce == Some(nonce);
            if is_it {
                starts.nonce = None;
            }
            is_it
        })
    }

    /// The start was applied, and this is the life that began.
    pub(crate) fn started(&self, incarnation: Incarnation) {
        self.with(|starts| starts.latest = Some(incarnation));
    }

    /// The start was applied, and refused because `latest` is the life that it must follow: the next one will.
    pub(crate) fn outdated(&self, latest: Option<Incarnation>) {
        self.with(|starts| starts.latest = latest);
        self.over();
    }

    /// The incarnation is over, and so is any start that is on its way.
    pub(crate) fn closed(&self) {
        self.with(|starts| starts.nonce = None);
        self.over();
    }

    fn over(&self) {
        self.lives.send_modify(|lives| lives.over += 1);
    }

    fn with<T>(&self, f: impl FnOnce(&mut Starts) -> T) -> T {
        f(&mut lock(&self.starts))
    }

    /// The start was applied, and refused for good.
    pub(crate) fn refused(&self) {
        self.lives.send_modify(|lives| lives.removed = true);
    }

    /// From now on, `nonce` is the start that is waited for. Returns the life that it has to follow.
    pub(crate) fn expect(&self, nonce: u128) -> Option<Incarnation> {
        self.with(|starts| {
            starts.nonce = Some(nonce);
            starts.latest
        })
    }

    #[cfg(test)]
    pub(crate) fn is_expecting(&self, nonce: u128) -> bool {
        self.with(|starts| starts.nonce == Some(nonce))
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
        let replaces = starts.expect(nonce);
        let started = NodeStarted { node, nonce, replaces, wall_ms: wall_ms(), info: info.clone() };
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
        debug!(%node, "this node starts anew");
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
            waited = pause_unless_dropped(&mut leader, view, pause) => if waited.is_err() { return false },
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_store::ids::Position;

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

    #[test]
    fn a_start_follows_the_life_that_the_log_has_told_of() {
        let (starts, life) = (StartTable::default(), |n| Incarnation(Position::new(n, 0)));
        let lives = starts.lives.subscribe();
        assert_eq!(starts.expect(1), None);
        assert!(starts.take(1));
        starts.outdated(Some(life(4)));
        assert!(lives.has_changed().unwrap(), "another start is due");
        assert_eq!(starts.expect(2), Some(life(4)));
        starts.started(life(9));
        assert_eq!(starts.expect(3), Some(life(9)));
    }
}
