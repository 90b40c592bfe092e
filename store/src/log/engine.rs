//! The handle of a log, whatever its engine, and the state of the log as callers see it.
//!
//! The state runs ahead of the disk: it counts what is queued. Every operation checks itself against it,
//! changes it and is queued under one lock, so the order of the queue is the order of the state.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};

use bytes::Bytes;

use super::disk::{Disk, DiskReader, Logged};
use super::tail::{OpNumber, Tail};
use super::writer::{Core, Op, Writer, refuse};
use super::{Done, LogEngine, LogError, LogOptions, LogRecord, LogState, LogStats, OnFatal};

/// The log as callers see it, and the queue to the writer.
pub(super) struct State {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<(u64, Bytes)>,
    pub(super) last: Option<u64>,
    /// Index of the first record of a log that was never purged; it may begin above 0.
    pub(super) begin: u64,
    pub(super) tail: Tail,
    /// Grows with every truncation: a reader that was at the disk meanwhile starts over.
    pub(super) truncations: u64,
    pub(super) queue: VecDeque<Op>,
    pub(super) queue_bytes: usize,
    /// Operations ever queued.
    pub(super) ops_queued: OpNumber,
    pub(super) closed: bool,
    pub(super) failed: Option<LogError>,
}

impl State {
    fn new(logged: Logged, options: &LogOptions) -> Self {
        let Logged { state: LogState { vote, committed, purged, last }, begin } = logged;
        let next = last.or(purged.as_ref().map(|(index, _)| *index)).map_or(0, |index| index + 1);
        Self {
            vote,
            committed,
            purged,
            last,
            begin,
            tail: Tail::new(next, options.tail_bytes_max),
            truncations: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            ops_queued: 0,
            closed: false,
            failed: None,
        }
    }

    /// Index up to which the log is purged.
    pub(super) fn purged_to(&self) -> Option<u64> {
        self.purged.as_ref().map(|(index, _)| *index)
    }

    /// The index of the first record, there or to come.
    pub(super) fn first(&self) -> u64 {
        self.purged_to().map_or(self.begin, |purged| purged.saturating_add(1))
    }

    /// The index that the next record must have; `None` when any will do, because the log never held one.
    fn next(&self) -> Option<u64> {
        self.last.or(self.purged_to()).map(|index| index.saturating_add(1))
    }

    fn push(&mut self, op: Op) {
        self.queue_bytes += op.bytes();
        self.ops_queued += 1;
        self.queue.push_back(op);
    }
}

/// The last clone to go closes the log: what is queued is written, the writer thread ends, the files close.
struct Handle<R: DiskReader> {
    core: Arc<Core<R>>,
    on_fatal: OnFatal,
    writer: Option<JoinHandle<()>>,
    writer_id: ThreadId,
}

impl<R: DiskReader> Drop for Handle<R> {
    fn drop(&mut self) {
        self.core.lock().closed = true;
        self.core.queued.notify_all();
        // A waiter may hold the last clone; the writer must not wait for itself.
        if std::thread::current().id() != self.writer_id
            && let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(dir = %self.core.dir.display(), "the log's writer thread panicked");
        }
    }
}

/// A Raft log over what `R` reads. Clones share it; when the last one goes, what is queued is written and the files
/// are closed (which waits for the disk).
pub(super) struct Log<R: DiskReader> {
    handle: Arc<Handle<R>>,
}

impl<R: DiskReader> Clone for Log<R> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<R: DiskReader> fmt::Debug for Log<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("dir", &self.handle.core.dir).finish_non_exhaustive()
    }
}

impl<R: DiskReader> Log<R> {
    /// Starts the writer thread over an opened disk.
    pub(super) fn start<D: Disk<Reader = R>>(
        dir: &Path,
        options: LogOptions,
        on_fatal: OnFatal,
        (disk, reader, logged): (D, R, Logged),
    ) -> Result<Self, LogError> {
        let state = State::new(logged, &options);
        tracing::info!(dir = %dir.display(), last = state.last, purged = state.purged_to(), "log opened");
        let core = Arc::new(Core {
            state: Mutex::new(state),
            options,
            reader,
            queued: Condvar::new(),
            room: Condvar::new(),
            unflushed: AtomicUsize::new(0),
            stats: Arc::new(LogStats::default()),
            dir: dir.to_path_buf(),
        });
        let writer = Writer::new(Arc::clone(&core), Arc::clone(&on_fatal), disk);
        let writer = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(LogError::io("starting the writer thread of", dir))?;
        let writer_id = writer.thread().id();
        Ok(Self { handle: Arc::new(Handle { core, on_fatal, writer: Some(writer), writer_id }) })
    }

    /// Queues what `change` makes of the state, or ends the log with its error. What `change` frees is
    /// returned by it and dropped outside the lock.
    fn submit<F>(&self, refused: Option<Op>, change: impl FnOnce(&mut State, Option<Op>) -> Change<F>) {
        let core = &self.handle.core;
        let mut state = self.wait_for_room(core.lock());
        if let Some(error) = state.failed.clone().or(state.closed.then_some(LogError::Closed)) {
            drop(state);
            if let Some(op) = refused {
                refuse(op, &error);
            }
            return;
        }
        let changed = change(&mut state, refused);
        if let Change::Misused(_, error) = &changed {
            state.failed = Some(error.clone());
        }
        drop(state);
        match changed {
            Change::Queued(freed) => {
                core.queued.notify_one();
                drop(freed);
            }
            Change::Nothing => {}
            Change::Misused(op, error) => {
                tracing::error!(dir = %core.dir.display(), %error, "the log was misused");
                (self.handle.on_fatal)(&error);
                refuse(op, &error);
            }
        }
    }

    /// Bounds memory when the disk has fallen far behind. The leader refuses proposals long before.
    fn wait_for_room<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Core { options, room, stats, .. } = &*self.handle.core;
        let mut waited = false;
        while (state.queue_bytes >= options.queue_bytes_max || state.queue.len() >= options.queue_ops_max)
            && state.failed.is_none()
            && !state.closed
            && std::thread::current().id() != self.handle.writer_id
        {
            if !std::mem::replace(&mut waited, true) {
                stats.waits.fetch_add(1, Relaxed);
            }
            state = room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

/// What an operation did to the state.
enum Change<F> {
    /// It is queued; `F` is freed outside the lock.
    Queued(F),
    /// There is nothing to do.
    Nothing,
    /// It is a bug of the caller's.
    Misused(Op, LogError),
}

impl<R: DiskReader> LogEngine for Log<R> {
    fn stats(&self) -> Arc<LogStats> {
        Arc::clone(&self.handle.core.stats)
    }

    fn state(&self) -> LogState {
        let state = self.handle.core.lock();
        LogState {
            vote: state.vote.clone(),
            committed: state.committed.clone(),
            purged: state.purged.clone(),
            last: state.last,
        }
    }

    fn append(&self, records: Vec<LogRecord>, done: Done) {
        let bytes = records.iter().map(|r| r.bytes.len()).sum();
        let core = &self.handle.core;
        let op = Op::Append { records, bytes, begins: false, done };
        self.submit(Some(op), |state, op| {
            let Some(Op::Append { records, bytes, done, .. }) = op else { return Change::Nothing };
            let begins = state.next().is_none();
            let first = state.next().or(records.first().map(|r| r.index)).unwrap_or(0);
            let number = state.ops_queued + 1;
            let gap = (first..).zip(&records).find(|(expected, record)| *expected != record.index);
            if let Some((expected, record)) = gap {
                let error = LogError::NotConsecutive { expected, found: record.index };
                return Change::Misused(Op::Append { records, bytes, begins, done }, error);
            }
            if begins {
                state.begin = first;
            }
            for record in &records {
                state.tail.push(record.index, record.bytes.clone(), number);
                state.last = Some(record.index);
            }
            core.unflushed.fetch_add(bytes, Relaxed);
            state.push(Op::Append { records, bytes, begins, done });
            Change::Queued(())
        });
    }

    fn save_vote(&self, vote: Bytes, done: Done) {
        self.submit(Some(Op::Vote { vote, done }), |state, op| {
            let Some(Op::Vote { vote, done }) = op else { return Change::Nothing };
            let former = state.vote.replace(vote.clone());
            state.push(Op::Vote { vote, done });
            Change::Queued(former)
        });
    }

    fn truncate_from(&self, index: u64, done: Done) {
        self.submit(Some(Op::Truncate { from: index, done }), |state, op| {
            let Some(op) = op else { return Change::Nothing };
            if let Some(purged) = state.purged_to().filter(|purged| *purged >= index) {
                return Change::Misused(op, LogError::TruncatesPurged { index, purged });
            }
            let mut freed = Vec::new();
            if state.last.is_some_and(|last| last >= index) {
                freed = state.tail.truncate_from(index);
                state.truncations += 1;
                let first = state.first();
                state.last = index.checked_sub(1).filter(|last| *last >= first);
            }
            state.push(op);
            Change::Queued(freed)
        });
    }

    fn purge_to(&self, index: u64, log_id: Bytes) {
        self.submit(None, |state, _| {
            let from = state.purged_to().map_or(0, |purged| purged.saturating_add(1));
            if index < from {
                return Change::Nothing;
            }
            let freed = state.tail.purge_to(index);
            state.last = state.last.filter(|last| *last > index);
            state.purged = Some((index, log_id.clone()));
            state.push(Op::Purge { from, to: index, log_id });
            Change::Queued(freed)
        });
    }

    fn save_committed(&self, committed: Bytes) {
        self.submit(None, |state, _| {
            let former = state.committed.replace(committed.clone());
            state.push(Op::Committed(committed));
            Change::Queued(former)
        });
    }

    fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> Result<Vec<LogRecord>, LogError> {
        super::read::read(&self.handle.core, from, to_exclusive, bytes_max)
    }

    fn unflushed_bytes(&self) -> usize {
        self.handle.core.unflushed.load(Relaxed)
    }

    fn poisoned(&self) -> Option<LogError> {
        self.handle.core.lock().failed.clone()
    }
}

/// Makes the newtype around a [`Log`] an engine.
macro_rules! impl_log_engine {
    ($name:ident) => {
        impl $crate::log::LogEngine for $name {
            fn state(&self) -> $crate::log::LogState {
                self.0.state()
            }

            fn append(&self, records: Vec<$crate::log::LogRecord>, done: $crate::log::Done) {
                self.0.append(records, done);
            }

            fn save_vote(&self, vote: bytes::Bytes, done: $crate::log::Done) {
                self.0.save_vote(vote, done);
            }

            fn truncate_from(&self, index: u64, done: $crate::log::Done) {
                self.0.truncate_from(index, done);
            }

            fn purge_to(&self, index: u64, log_id: bytes::Bytes) {
                self.0.purge_to(index, log_id);
            }

            fn save_committed(&self, committed: bytes::Bytes) {
                self.0.save_committed(committed);
            }

            fn read(
                &self,
                from: u64,
                to_exclusive: u64,
                bytes_max: usize,
            ) -> Result<Vec<$crate::log::LogRecord>, $crate::log::LogError> {
                self.0.read(from, to_exclusive, bytes_max)
            }

            fn unflushed_bytes(&self) -> usize {
                self.0.unflushed_bytes()
            }

            fn stats(&self) -> std::sync::Arc<$crate::log::LogStats> {
                self.0.stats()
            }

            fn poisoned(&self) -> Option<$crate::log::LogError> {
                self.0.poisoned()
            }
        }
    };
}
pub(super) use impl_log_engine;
