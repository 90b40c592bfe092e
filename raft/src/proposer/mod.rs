//! The proposer: takes commands from the front end and carries them, in one ordered and deduplicated
//! stream per incarnation, to whoever leads.
//!
//! Owns what waits ([`waiting`]), what has a number ([`stream`]), the direct commands that wait for their
//! outcome ([`direct`]), and the one task that sends ([`driver`]). Outcomes come from this node's own log
//! only, on the apply thread ([`observer`]), never from a reply: a lost reply, a dead leader or a retry
//! changes nothing. It never gives a second number to what has one, and never answers for a batch that it
//! did not see applied: when the incarnation is closed, all of that is forgotten and its clients are told.

mod direct;
mod driver;
mod link;
mod observer;
mod start;
mod stats;
mod stream;
mod waiting;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_store::command::{Batch, Origin};
use quorate_store::ids::{Incarnation, NodeId};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

pub use direct::ProposeError;
pub(crate) use direct::{DirectTable, Directs, encode_direct};
pub(crate) use driver::run_stream;
pub(crate) use link::LeaderLinks;
pub(crate) use observer::StreamObserver;
pub(crate) use start::{StreamSeed, StreamSide};
pub use stats::{Counter, StreamStats};
use stream::{Next, ProposalStream, StreamLimits};
pub use waiting::Submission;
use waiting::{Demand, Waiting};

use crate::options::Limits;
use crate::peer::FRAME_BODY_BYTES_MAX;

/// Bytes of batches in flight: what one leader change sends again.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// Longest batch: one frame to a peer, with something to spare.
const BATCH_FRAME_BYTES_MAX: usize = FRAME_BODY_BYTES_MAX - (1 << 10);
/// Without anything applied for this long, the stream is sent again over a new connection to another node. The
/// last resort: what is lost is told of otherwise, and a leader whose disk is behind is not helped by all of it
/// once more. Below what a client waits.
const RESEND_AFTER: Duration = Duration::from_millis(3000);

/// The command was not taken, because as much waits as may, or because this node has no incarnation now.
#[derive(Debug, Error)]
#[error("this node takes no more commands now; wait for Proposer::room and submit it again")]
pub struct Busy {
    /// The command, to submit again.
    pub submission: Box<Submission>,
}

/// Takes commands from the front end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proposer {
    shared: Arc<Shared>,
}

impl Proposer {
    /// Of `node`, without an incarnation yet: it is busy until it has one.
    pub(crate) fn new(node: NodeId, limits: &Limits, stats: Arc<StreamStats>) -> Self {
        let limits = Limits { batch_commands_max: limits.batch_commands_max.max(1), ..*limits };
        let (incarnation, _) = watch::channel(None);
        Self {
            shared: Arc::new(Shared {
                node,
                stream_limits: StreamLimits {
                    batches_max: limits.batches_in_flight_max.max(1),
                    bytes_max: IN_FLIGHT_BYTES_MAX,
                    batch_commands_max: limits.batch_commands_max,
                    batch_bytes_max: limits.batch_bytes_max,
                    resend_after: RESEND_AFTER,
                },
                waiting: Mutex::new(None),
                waiting_commands_max: limits.waiting_commands_max,
                waiting_bytes_max: limits.waiting_bytes_max,
                patience: limits.patience,
                waiting_commands: AtomicUsize::new(0),
                presses: AtomicBool::new(false),
                stream: Mutex::new(None),
                incarnation,
                wake: Notify::new(),
                room: Notify::new(),
                stats,
            }),
        }
    }

    /// Takes a command; its outcome comes to its ticket from the log. Never blocks.
    ///
    /// # Errors
    /// [`Busy`] gives the command back.
    pub fn submit(&self, submission: Submission) -> Result<(), Busy> {
        self.shared.submit(submission)
    }

    /// Takes commands from the front, in order, until none is left or no more are taken: what is left then is to
    /// be submitted again, as after [`Busy`]. One lock and one wake-up, however many there are. Never blocks.
    pub fn submit_many(&self, submissions: &mut VecDeque<Submission>) {
        self.shared.submit_many(submissions);
    }

    /// Resolves when [`Self::submit`] would work again. Cancel-safe.
    pub async fn room(&self) {
        loop {
            let notified = self.shared.room.notified();
            tokio::pin!(notified);
            // Listening before looking, so that no notification falls between.
            notified.as_mut().enable();
            if lock(&self.shared.waiting).as_ref().is_some_and(Waiting::has_room) {
                return;
            }
            notified.await;
        }
    }

    /// This node's incarnation, while it has one.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        *self.shared.incarnation.borrow()
    }

    /// Commands that wait for a number, and batches in flight.
    #[must_use]
    pub fn depth(&self) -> (usize, usize) {
        let in_flight = lock(&self.shared.stream).as_ref().map_or(0, ProposalStream::in_flight);
        (self.shared.waiting_commands.load(Ordering::Relaxed), in_flight)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<StreamStats> {
        &self.shared.stats
    }

    /// This node's incarnation, and each change of it.
    pub(crate) fn incarnation_watch(&self) -> watch::Receiver<Option<Incarnation>> {
        self.shared.incarnation.subscribe()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// What the front end's workers, the sending task and the apply thread share. Each lock is held for a few
/// instructions; none while another is.
#[derive(Debug)]
pub(crate) struct Shared {
    node: NodeId,
    stream_limits: StreamLimits,
    waiting_commands_max: usize,
    waiting_bytes_max: usize,
    patience: Duration,
    /// `None` without an incarnation: nothing is taken.
    waiting: Mutex<Option<Waiting>>,
    /// How many wait: a hint, read without the lock.
    waiting_commands: AtomicUsize,
    /// Whether something of it cannot wait: likewise.
    presses: AtomicBool,
    /// `None` without an incarnation.
    stream: Mutex<Option<ProposalStream>>,
    incarnation: watch::Sender<Option<Incarnation>>,
    /// The sending task has something to look at.
    wake: Notify,
    /// There is room again.
    room: Notify,
    stats: Arc<StreamStats>,
}

/// What the sending task does next.
#[derive(Debug)]
enum Step {
    /// Send this.
    Send(bytes::Bytes),
    /// Ask again: something was cut, or thrown away.
    Again,
    /// Wait for something to happen.
    Wait {
        /// At most until then: the stream may have stalled.
        stalls: Option<Instant>,
        /// At most until then: what can wait has waited.
        patient_until: Option<Instant>,
    },
}

impl Shared {
    fn submit(&self, submission: Submission) -> Result<(), Busy> {
        let taken = {
            let mut waiting = lock(&self.waiting);
            match waiting.as_mut() {
                None => Err(Box::new(submission)),
                Some(open) => {
                    let is_first = open.len() == 0;
                    open.submit(submission).map(|()| self.show(open) || is_first)
                }
            }
        };
        let wakes = taken.map_err(|submission| {
            self.stats.busy.inc();
            Busy { submission }
        })?;
        self.stats.submitted.inc();
        if wakes {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// What can be read of `waiting` without its lock; whether it presses.
    fn show(&self, waiting: &Waiting) -> bool {
        self.waiting_commands.store(waiting.len(), Ordering::Release);
        self.presses.store(waiting.presses(), Ordering::Release);
        waiting.presses()
    }

    fn submit_many(&self, submissions: &mut VecDeque<Submission>) {
        let (mut taken, mut wakes) = (0, false);
        if let Some(open) = lock(&self.waiting).as_mut() {
            let is_first = open.len() == 0;
            while let Some(submission) = submissions.pop_front() {
                if let Err(back) = open.submit(submission) {
                    submissions.push_front(*back);
                    break;
                }
                taken += 1;
            }
            wakes = self.show(open) || is_first;
        }
        if !submissions.is_empty() {
            self.stats.busy.inc();
        }
        self.stats.submitted.add(taken);
        if taken > 0 && wakes {
            self.wake.notify_one();
        }
    }

    /// Opens the stream of a new incarnation. Called when its `NodeStarted` is applied here.
    fn open(&self, incarnation: Incarnation, now: Instant) {
        *lock(&self.stream) = Some(ProposalStream::new(self.node, incarnation, self.stream_limits, now));
        *lock(&self.waiting) = Some(Waiting::new(incarnation, self.waiting_commands_max, self.waiting_bytes_max));
        self.stats.incarnations_started.inc();
        info!(%incarnation, "this node has an incarnation: it takes commands");
        self.incarnation.send_replace(Some(incarnation));
        self.room.notify_waiters();
    }

    /// Forgets everything that waits and everything in flight. Nothing of it will be answered.
    fn close(&self, incarnation: Incarnation) {
        // First the queue, so that nothing is cut for the stream after it is gone.
        let waiting = lock(&self.waiting).take().map_or(0, |mut w| w.clear());
        self.waiting_commands.store(0, Ordering::Release);
        self.presses.store(false, Ordering::Release);
        let in_flight = lock(&self.stream).take().map_or(0, |s| s.waiters());
        self.stats.abandoned.add((waiting + in_flight) as u64);
        self.stats.incarnations_closed.inc();
        warn!(%incarnation, waiting, in_flight, "this node's incarnation is closed: its clients are disconnected, it starts over");
        self.incarnation.send_replace(None);
        self.wake.notify_one();
    }

    /// Called by the sending task, over and over while it has a link.
    fn step(&self, now: Instant) -> Step {
        let Demand { commands, bytes, patient_until } =
            lock(&self.waiting).as_mut().map_or_else(Demand::default, |waiting| {
                let demand = waiting.demand(now, self.patience);
                // Before the stream is looked at: whoever frees a slot after that sees what waits for it.
                self.show(waiting);
                demand
            });
        let (next, stalls) = {
            let mut stream = lock(&self.stream);
            let Some(stream) = stream.as_mut() else { return Step::Wait { stalls: None, patient_until: None } };
            (stream.next(commands, bytes, now), stream.deadline())
        };
        match next {
            Next::Send { bytes, again } => {
                if again {
                    self.stats.resent.inc();
                }
                Step::Send(bytes)
            }
            Next::Cut(origin) => {
                self.cut(origin);
                Step::Again
            }
            Next::Nothing => Step::Wait { stalls, patient_until },
        }
    }

    /// Cuts one batch under `origin`. Encoding holds no lock.
    fn cut(&self, origin: Origin) {
        let limits = &self.stream_limits;
        let (cut, has_room) = {
            let mut waiting = lock(&self.waiting);
            // The queue of another incarnation is another stream's.
            let same = |w: &&mut Waiting| matches!(origin, Origin::Stream { incarnation, .. } if incarnation == w.incarnation());
            let Some(waiting) = waiting.as_mut().filter(same) else { return };
            let cut = waiting.cut(limits.batch_commands_max, limits.batch_bytes_max);
            self.show(waiting);
            (cut, waiting.has_room())
        };
        if has_room {
            self.room.notify_waiters();
        }
        self.stats.withdrawn.add(cut.withdrawn);
        self.stats.merged.add(cut.merged);
        if cut.commands.is_empty() {
            return;
        }
        let commands = cut.commands.len();
        let bytes = match quorate_store::codec::encode(&Batch { origin, commands: cut.commands }) {
            Ok(bytes) if bytes.len() <= BATCH_FRAME_BYTES_MAX => bytes,
            Ok(bytes) => {
                return self.unencodable(commands, &format!("{} bytes, at most {BATCH_FRAME_BYTES_MAX}", bytes.len()));
            }
            Err(error) => return self.unencodable(commands, &error),
        };
        self.stats.batches.inc();
        self.stats.batch_commands.add(commands as u64);
        self.stats.batch_bytes.add(bytes.len() as u64);
        let waiters = cut.waiters.len() as u64;
        // Not taken when the incarnation was closed in between: then the commands are gone with it.
        if !self.with_stream(|s| s.number(origin, bytes, commands, cut.waiters)).unwrap_or(false) {
            self.stats.abandoned.add(waiters);
        }
    }

    /// The front end's packet limit forbids this. The commands have no number yet, so dropping them breaks
    /// no promise; their connections wait in vain until they are closed.
    fn unencodable(&self, commands: usize, why: &dyn std::fmt::Display) {
        self.stats.unencodable.add(commands as u64);
        error!(commands, %why, "commands were dropped, because they cannot be encoded: lower the MQTT packet limit");
    }

    /// Runs `f` on the stream, if there is one.
    fn with_stream<T>(&self, f: impl FnOnce(&mut ProposalStream) -> T) -> Option<T> {
        lock(&self.stream).as_mut().map(f)
    }

    /// Something was applied: wakes the sending task if anything waits for the free slot, and not for others to go with.
    fn slot_is_free(&self) {
        if self.presses.load(Ordering::Acquire) {
            self.wake.notify_one();
        }
    }
}

/// A lock that outlives a panic elsewhere: what it guards is changed in steps that cannot fail halfway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;
