//! Linearizable reads on any node.
//!
//! The leader lets a majority confirm that it leads and names an index (ReadIndex, Raft §6.4, never the
//! lease); a node that has applied that index shows everything that was acknowledged before the read began.
//! This module asks, waits until this node has applied, and gives up after a deadline. It reads nothing.

use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::consensus::LeaderView;
use crate::leader_intake::{Ask, AskError, Asks, Leadership, Reply};

/// For one leader's answer, which waits for a round of heartbeats.
const ASK_PATIENCE: Duration = Duration::from_millis(1500);
/// After a leader had no majority, or none is known.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why a linearizable read is not possible now. Nothing was read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// No leader could prove in time that a majority backs it.
    #[error("no linearizable read within {} ms: {why}; is a majority of the nodes up (quorate cluster status)? A read that may be stale is still possible", waited.as_millis())]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt said.
        why: String,
    },
    /// The leader named an index that this node did not apply in time.
    #[error(
        "this node has applied index {applied} and needs {needed} for a linearizable read: it is behind; ask another node, or later"
    )]
    Behind {
        /// Applied here.
        applied: u64,
        /// Named by the leader.
        needed: u64,
    },
    /// This node is shutting down.
    #[error("this node is shutting down; ask another")]
    Stopped,
}

/// Waits until this node's applied state reflects everything that was acknowledged before this call; the
/// applied index it has reached.
///
/// # Errors
/// [`ReadError`] after `within`.
pub(crate) async fn linearizable<L: Leadership>(asks: &Asks<L>, within: Duration) -> Result<u64, ReadError> {
    let started = Instant::now();
    let mut leader = asks.raft().leader_watch();
    let mut why = String::from("no leader is known");
    let needed = timeout(within, async {
        loop {
            let view = *leader.borrow_and_update();
            match asks.ask(Ask::ReadIndex, ASK_PATIENCE).await {
                Ok(Reply::ReadIndex(index)) => return Ok(index),
                Ok(_) => why = "the leader has no majority".into(),
                Err(AskError::Stopped { asked }) if asked == asks.node_id() => return Err(ReadError::Stopped),
                Err(error) => why = error.to_string(),
            }
            pause(&mut leader, view).await.map_err(|_| ReadError::Stopped)?;
        }
    });
    let needed = match needed.await {
        Ok(needed) => needed?,
        Err(_) => return Err(ReadError::NoLeader { waited: started.elapsed(), why }),
    };
    let mut applied = asks.raft().applied_watch();
    let left = within.saturating_sub(started.elapsed());
    let reached = timeout(left, applied.wait_for(|view| view.index >= needed)).await.map(|r| r.map(|view| view.index));
    match reached {
        Ok(Ok(index)) => Ok(index),
        Ok(Err(_)) => Err(ReadError::Stopped),
        Err(_) => Err(ReadError::Behind { applied: asks.raft().applied_watch().borrow().index, needed }),
    }
}

/// A little while, less when the leader changes.
async fn pause(leader: &mut watch::Receiver<LeaderView>, before: LeaderView) -> Result<(), watch::error::RecvError> {
    tokio::select! {
        changed = leader.wait_for(|now| (now.leader, now.term) != (before.leader, before.term)) => changed.map(|_| ()),
        () = sleep(RETRY_PAUSE) => Ok(()),
    }
}
