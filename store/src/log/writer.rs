//! The queue and the one thread that writes: group commit.
//!
//! It owns the order of everything that reaches the log's disk. Callers push operations under one lock; the
//! writer takes all that is queued (bounded by bytes), hands it to its [`Disk`] as one synced write in the same
//! order, and only then calls the waiters, in order. While it is at the disk, callers push and read freely.
//!
//! It never retries, never reorders, and never lets an unsynced write stand between two synced ones: purges and
//! committed marks wait for a synced write to ride on, because what tells a torn end from damage at open relies on
//! at most one unsynced write.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::{Disk, DiskReader};
use super::tail::OpNumber;
use super::{Done, LogError, LogOptions, LogRecord, LogStats, OnFatal, SkipSync};

use super::engine::State;
use crate::seeded_bug::{SeededBug, is_seeded};

/// What is queued. Ranges are already checked against the state of the log.
pub(super) enum Op {
    Append { records: Vec<LogRecord>, bytes: usize, begins: bool, done: Done },
    Vote { vote: Bytes, done: Done },
    Truncate { from: u64, done: Done },
    Purge { from: u64, to: u64, log_id: Bytes },
    Committed(Bytes),
}

impl Op {
    /// Bytes that it keeps in memory, as far as they count.
    pub(super) const fn bytes(&self) -> usize {
        match self {
            Self::Append { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    /// Whether somebody waits for it to be on disk.
    const fn is_waited_for(&self) -> bool {
        matches!(self, Self::Append { .. } | Self::Vote { .. } | Self::Truncate { .. })
    }
}

/// What the handles, the readers and the writer share.
pub(super) struct Core<R> {
    pub(super) dir: PathBuf,
    pub(super) options: LogOptions,
    pub(super) reader: R,
    pub(super) state: Mutex<State>,
    /// Something was queued, or the log was closed.
    pub(super) queued: Condvar,
    /// The queue has room again.
    pub(super) room: Condvar,
    pub(super) unflushed: AtomicUsize,
    pub(super) stats: Arc<LogStats>,
}

impl<R: DiskReader> Core<R> {
    /// The lock is only ever held for a few memory operations; a panic of another holder changes nothing
    /// about the state, which is whole between statements.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer thread.
pub(super) struct Writer<D: Disk> {
    core: Arc<Core<D::Reader>>,
    on_fatal: OnFatal,
    disk: D,
    /// Purge and committed mark that wait for a synced write, in order, at most one of each.
    lazy: Vec<Op>,
    /// Since when they wait.
    lazy_since: Option<Instant>,
}

/// What one turn brought: operations in order, and the number of the last one.
struct Drained {
    ops: Vec<Op>,
    last: OpNumber,
}

/// What a batch holds besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Contents {
    ops: u64,
    records: u64,
    bytes: u64,
    sync: bool,
}

impl<D: Disk> Writer<D> {
    pub(super) fn new(core: Arc<Core<D::Reader>>, on_fatal: OnFatal, disk: D) -> Self {
        Self { core, on_fatal, disk, lazy: Vec::new(), lazy_since: None }
    }

    /// Writes until the log is closed and its queue is empty, or until the first failure. A waiter that
    /// panics ends the log like a failed write: nobody would be called any more.
    pub(super) fn run(mut self) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work())).is_err() {
            self.fail(&LogError::WriterEnded, Vec::new());
        }
    }

    fn work(&mut self) {
        while let Some(drained) = self.next() {
            let (mut ops, last) = (drained.ops, drained.last);
            let due = ops.is_empty() || ops.iter().any(Op::is_waited_for);
            if !due {
                ops.into_iter().for_each(|op| self.postpone(op));
                continue;
            }
            let mut all = std::mem::take(&mut self.lazy);
            self.lazy_since = None;
            all.append(&mut ops);
            let contents = self.contents(&all);
            #[expect(clippy::disallowed_methods, reason = "how long the disk takes, for metrics only")]
            let began = Instant::now();
            if let Err(error) = self.disk.write(&all, contents.sync) {
                self.fail(&error, all);
                return;
            }
            self.core.stats.synced(began.elapsed(), contents.ops, contents.records, contents.bytes);
            self.release(all, last);
        }
    }

    /// Waits for operations and takes what there is, up to the bound of bytes. Empty when what was postponed
    /// is due; `None` at the end.
    fn next(&self) -> Option<Drained> {
        let core = &self.core;
        let mut state = core.lock();
        while state.queue.is_empty() {
            if state.closed {
                // What was postponed is still written.
                return (!self.lazy.is_empty()).then(|| Drained { ops: Vec::new(), last: state.ops_queued });
            }
            state = match self.lazy_since {
                None => core.queued.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let longest = Duration::from_millis(core.options.lazy_ms_max);
                    let Some(left) = longest.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                        return Some(Drained { ops: Vec::new(), last: state.ops_queued });
                    };
                    core.queued.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let mut bytes = 0;
        let mut take = 0;
        for op in &state.queue {
            bytes += op.bytes();
            take += 1;
            if bytes >= core.options.drain_bytes_max {
                break;
            }
        }
        let ops: Vec<Op> = state.queue.drain(..take).collect();
        state.queue_bytes -= bytes;
        let last = state.ops_queued - state.queue.len() as u64;
        drop(state);
        core.room.notify_all();
        Some(Drained { ops, last })
    }

    /// Keeps a purge or a committed mark for the next synced write; a later one stands for an earlier one.
    fn postpone(&mut self, op: Op) {
        #[expect(clippy::disallowed_methods, reason = "bounds how long a purge waits; replicas do not see it")]
        self.lazy_since.get_or_insert_with(Instant::now);
        let same = self.lazy.iter_mut().find(|kept| std::mem::discriminant(*kept) == std::mem::discriminant(&op));
        match (same, op) {
            (Some(Op::Purge { to, log_id, .. }), Op::Purge { to: later, log_id: its, .. }) => {
                *to = later;
                *log_id = its;
            }
            (Some(kept), op) => *kept = op,
            (None, op) => self.lazy.push(op),
        }
    }

    /// What `ops` are made of, and whether they are synced (always, but for the tests that must see the loss).
    fn contents(&self, ops: &[Op]) -> Contents {
        let mut contents = Contents::default();
        let mut unsynced = 0;
        for op in ops {
            let skipped = match op {
                Op::Append { records, bytes, .. } => {
                    contents.records += records.len() as u64;
                    contents.bytes += *bytes as u64;
                    SkipSync::Append
                }
                Op::Vote { .. } => SkipSync::Vote,
                Op::Truncate { .. } => SkipSync::Truncate,
                Op::Purge { .. } | Op::Committed(_) => continue,
            };
            contents.ops += 1;
            let is_seeded = skipped == SkipSync::Vote && is_seeded(SeededBug::VoteUnsynced);
            unsynced += u64::from(skipped == self.core.options.skip_sync || is_seeded);
        }
        let is_left_out = unsynced > 0 && unsynced == contents.ops;
        contents.sync = !is_left_out && !is_seeded(SeededBug::LogSyncOff);
        contents
    }

    /// The operations up to `last` are on disk: lets go of them and calls the waiters, in order.
    fn release(&self, ops: Vec<Op>, last: OpNumber) {
        let evicted = self.core.lock().tail.flushed(last);
        drop(evicted);
        for op in ops {
            match op {
                Op::Append { records, bytes, done, .. } => {
                    drop(records);
                    self.core.unflushed.fetch_sub(bytes, Relaxed);
                    done(Ok(()));
                }
                Op::Vote { done, .. } | Op::Truncate { done, .. } => done(Ok(())),
                Op::Purge { .. } | Op::Committed(_) => {}
            }
        }
    }

    /// The end: the process is told first, then every waiter; nothing is written any more.
    fn fail(&self, error: &LogError, ops: Vec<Op>) {
        tracing::error!(dir = %self.core.dir.display(), %error, "the log failed");
        let queued = {
            let mut state = self.core.lock();
            state.failed.get_or_insert_with(|| error.clone());
            state.queue_bytes = 0;
            std::mem::take(&mut state.queue)
        };
        self.core.room.notify_all();
        (self.on_fatal)(error);
        for op in ops.into_iter().chain(queued) {
            refuse(op, error);
        }
    }
}

/// Tells the waiter of `op` that it will not happen.
pub(super) fn refuse(op: Op, error: &LogError) {
    match op {
        Op::Append { done, .. } | Op::Vote { done, .. } | Op::Truncate { done, .. } => done(Err(error.clone())),
        Op::Purge { .. } | Op::Committed(_) => {}
    }
}
