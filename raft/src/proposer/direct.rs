//! Direct commands: those that are idempotent by themselves and go outside the stream.
//!
//! Owns the nonces whose outcome somebody here waits for. A direct command is sent to the leader again and
//! again, under the same nonce, until this node's own log shows it applied or its deadline passes; the first
//! application seen here answers it. It knows nothing of the stream, so it works before there is an
//! incarnation and while the stream stands still.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_store::codec::{self, CodecError, Payload};
use quorate_store::command::{Batch, Command, Origin};
use quorate_store::effect::Outcome;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::link::Backoff;
use super::{StreamStats, lock};
use crate::consensus::{Appended, pause_unless_dropped};
use crate::leader_intake::{Ask, AskError, Asks, Leadership, may_be_direct};

/// Direct commands of this node that wait for their outcome.
const WAITING_MAX: usize = 1024;
/// For the leader's answer that it has enqueued the command.
const ENQUEUE_PATIENCE: Duration = Duration::from_millis(1000);
/// For the command to be applied here, before it is sent again.
const APPLY_PATIENCE: Duration = Duration::from_millis(1000);

/// Why there is no outcome of a direct command.
#[derive(Debug, Error)]
pub enum ProposeError {
    /// It was not seen applied here in time. It may be applied yet.
    #[error(
        "no outcome within {} ms, after {attempts} attempts{}; the command may still be applied: repeating it does no \
         harm, but see first whether the cluster has a leader and this node keeps up (quorate cluster status)",
        waited.as_millis(), last.as_ref().map(|e| format!(" (the last: {e})")).unwrap_or_default()
    )]
    TimedOut {
        /// How long it was tried.
        waited: Duration,
        /// How often it was sent, or tried to.
        attempts: u32,
        /// What kept the last attempt from the leader, if anything.
        last: Option<String>,
    },
    /// Too many wait already.
    #[error("{WAITING_MAX} direct commands of this node wait for their outcome; try again later")]
    Busy,
    /// It belongs in a session's stream, where a repeat is recognised.
    #[error("this command is not idempotent: submit it to the proposer")]
    NotIdempotent,
    /// It cannot be encoded.
    #[error("the command cannot be encoded: {0}")]
    Encode(#[from] CodecError),
    /// This node is shutting down.
    #[error("this node is shutting down; ask another")]
    Stopped,
}

/// The nonces that are waited for.
#[derive(Debug, Default)]
pub(crate) struct DirectTable(Mutex<HashMap<u128, oneshot::Sender<Outcome>>>);

impl DirectTable {
    /// From now on the outcome of `nonce` is kept for the returned receiver; dropping it ends that.
    pub(crate) fn register(self: &Arc<Self>, nonce: u128) -> Result<DirectWait, ProposeError> {
        let (tell, outcome) = oneshot::channel();
        let mut table = lock(&self.0);
        if table.len() >= WAITING_MAX {
            return Err(ProposeError::Busy);
        }
        table.insert(nonce, tell);
        Ok(DirectWait { table: self.clone(), nonce, outcome })
    }

    /// Whoever waits for `nonce`; not twice.
    pub(crate) fn take(&self, nonce: u128) -> Option<oneshot::Sender<Outcome>> {
        lock(&self.0).remove(&nonce)
    }
}

/// One nonce that is waited for.
#[derive(Debug)]
pub(crate) struct DirectWait {
    table: Arc<DirectTable>,
    nonce: u128,
    outcome: oneshot::Receiver<Outcome>,
}

#[cfg(test)]
impl DirectWait {
    pub(crate) fn try_outcome(&mut self) -> Option<Outcome> {
        self.outcome.try_recv().ok()
    }
}

impl Drop for DirectWait {
    fn drop(&mut self) {
        lock(&self.table.0).remove(&self.nonce);
    }
}

/// Proposes direct commands. Cheap to clone.
pub(crate) struct Directs<L> {
    table: Arc<DirectTable>,
    asks: Asks<L>,
    stats: Arc<StreamStats>,
}

impl<L> Clone for Directs<L> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), asks: self.asks.clone(), stats: self.stats.clone() }
    }
}

impl<L: Leadership> Directs<L> {
    pub(crate) fn new(table: Arc<DirectTable>, asks: Asks<L>, stats: Arc<StreamStats>) -> Self {
        Self { table, asks, stats }
    }

    /// Proposes `command` under a new nonce and waits until it is applied here.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub(crate) async fn propose(&self, command: Command, within: Duration) -> Result<Outcome, ProposeError> {
        if !may_be_direct(&command) {
            return Err(ProposeError::NotIdempotent);
        }
        let nonce = rand::random();
        let batch = encode_direct(nonce, command)?;
        let mut wait = self.table.register(nonce)?;
        let started = Instant::now();
        let (mut attempts, mut last) = (0, None);
        let mut leader = self.asks.raft().leader_watch();
        let mut backoff = Backoff::default();
        let repeat = async {
            loop {
                let view = *leader.borrow_and_update();
                attempts += 1;
                self.stats.direct_sent.inc();
                let asked = Ask::Direct(Payload(batch.clone()));
                let pause = match self.asks.ask(asked, ENQUEUE_PATIENCE).await {
                    Ok(_) => {
                        last = None;
                        backoff.reset();
                        APPLY_PATIENCE
                    }
                    Err(error) => {
                        debug!(%error, "a direct command did not reach a leader");
                        if let AskError::Malformed { .. } = error {
                            sleep(APPLY_PATIENCE).await;
                        }
                        last = Some(error.to_string());
                        backoff.next()
                    }
                };
                if pause_unless_dropped(&mut leader, view, pause).await.is_err() {
                    return;
                }
            }
        };
        let done = timeout(within, async {
            tokio::select! {
                biased;
                outcome = &mut wait.outcome => outcome.map_err(|_| ProposeError::Stopped),
                () = repeat => Err(ProposeError::Stopped),
            }
        });
        match done.await {
            Ok(done) => done,
            Err(_) => Err(ProposeError::TimedOut { waited: started.elapsed(), attempts, last }),
        }
    }

    /// On the leader: appends `command` here, once, and waits until it is applied here or `within` has passed.
    /// `None` when it was not appended, or not seen applied in time or before this leader dropped something.
    pub(crate) async fn append_here(&self, command: Command, within: Duration) -> Option<Outcome> {
        let nonce = rand::random();
        let batch = encode_direct(nonce, command).ok()?;
        let mut wait = self.table.register(nonce).ok()?;
        let mut leader = self.asks.raft().leader_watch();
        let view = *leader.borrow_and_update();
        self.asks.raft().append(batch, Appended::Direct).await.ok()?;
        tokio::select! {
            biased;
            outcome = &mut wait.outcome => outcome.ok(),
            _ = pause_unless_dropped(&mut leader, view, within) => None,
        }
    }
}

/// One direct command, encoded.
///
/// # Errors
/// When it is too long.
pub(crate) fn encode_direct(nonce: u128, command: Command) -> Result<Bytes, CodecError> {
    codec::encode(&Batch { origin: Origin::Direct { nonce }, commands: vec![command] })
}
