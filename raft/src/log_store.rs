//! openraft's log storage over any [`LogEngine`].
//!
//! It translates: entries to records, votes and log ids to bytes, and the engine's callbacks to openraft's.
//! All order and durability are the engine's; nothing here waits for the disk except vote and truncation,
//! which openraft must not go on without. Entries are encoded here, once (see [`crate::entry`]).

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use quorate_store::log::{LogEngine, LogError, LogRecord};
use quorate_store::seeded_bug::{SeededBug, is_seeded};
use tokio::sync::oneshot;

use crate::encoding;
use crate::entry::LogEntry;
use crate::types::{LogId, Types, Vote};

/// Bytes of one read for replication or apply (one entry may be longer).
const READ_BYTES_MAX: usize = 1 << 20;
/// Between two savings of the committed index.
const COMMITTED_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of log between two samples of [`LogSizes`].
const SAMPLE_BYTES: u64 = 256 << 10;
/// Samples kept: beyond that, neighbours are merged.
const SAMPLES_MAX: usize = 4096;
/// Records that are read at start to estimate how long the others are.
const ESTIMATE_RECORDS: u64 = 64;

/// See the module.
#[derive(Clone)]
pub(crate) struct LogStore<E> {
    engine: E,
    vote: Arc<Mutex<Option<Vote>>>,
    sizes: LogSizes,
    /// When the committed index was last saved through this handle: openraft's core has one.
    committed_saved: Option<Instant>,
}

fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl<E: LogEngine> LogStore<E> {
    /// Over an open engine.
    ///
    /// # Errors
    /// When the stored vote does not decode.
    pub(crate) fn new(engine: E) -> io::Result<Self> {
        let state = engine.state();
        let vote = state.vote.as_ref().map(encoding::decode_vote).transpose().map_err(io_error)?;
        let sizes = LogSizes::default();
        let first = state.purged.as_ref().map_or(0, |(index, _)| index + 1);
        if let Some(last) = state.last {
            sizes.seed(first, last, average_bytes(&engine, first, last)?);
        }
        Ok(Self { engine, vote: Arc::new(Mutex::new(vote)), sizes, committed_saved: None })
    }

    /// How long the log is, for retention.
    pub(crate) fn sizes(&self) -> &LogSizes {
        &self.sizes
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &E {
        &self.engine
    }

    /// Log id of the last entry, or of the last purged one.
    pub(crate) fn last_log_id(&self) -> io::Result<Option<LogId>> {
        let state = self.engine.state();
        let purged = state.purged.map(|(_, id)| encoding::decode_log_id(&id)).transpose().map_err(io_error)?;
        let Some(last) = state.last else { return Ok(purged) };
        let records = self.engine.read(last, last + 1, READ_BYTES_MAX).map_err(io_error)?;
        let record =
            records.into_iter().next().ok_or_else(|| io::Error::other(format!("log record {last} is missing")))?;
        Ok(Some(LogEntry::from_record(record.bytes).map_err(io_error)?.log_id()))
    }

    /// Log id of the entry at `index`, if it is in the log.
    pub(crate) fn log_id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        let state = self.engine.state();
        let first = state.purged.map_or(0, |(purged, _)| purged + 1);
        if state.last.is_none_or(|last| index > last) || index < first {
            return Ok(None);
        }
        Ok(self.read(index, index + 1, READ_BYTES_MAX)?.first().map(RaftEntry::log_id))
    }

    /// Log id up to which this node knows its log to be committed, as last saved.
    pub(crate) fn committed(&self) -> io::Result<Option<LogId>> {
        self.engine.state().committed.as_ref().map(encoding::decode_log_id).transpose().map_err(io_error)
    }

    /// Removes the entries from `from` on; returns when that is on disk.
    pub(crate) async fn truncate_from(&self, from: u64) -> io::Result<()> {
        self.sizes.truncated(from);
        self.durable(|engine, done| engine.truncate_from(from, done)).await
    }

    fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        if from >= to_exclusive {
            return Ok(Vec::new());
        }
        let records = self.engine.read(from, to_exclusive, bytes_max).map_err(io_error)?;
        records.into_iter().map(|r| LogEntry::from_record(r.bytes).map_err(io_error)).collect()
    }

    /// Queues something at the engine and waits until it is on disk.
    async fn durable(&self, queue: impl FnOnce(&E, quorate_store::log::Done)) -> io::Result<()> {
        let (done, on_disk) = oneshot::channel();
        let done = Box::new(move |result: Result<(), LogError>| {
            let _ = done.send(result);
        });
        queue(&self.engine, done);
        on_disk.await.map_err(|_| io::Error::other("the log writer is gone"))?.map_err(io_error)
    }
}

fn average_bytes<E: LogEngine>(engine: &E, first: u64, last: u64) -> io::Result<u64> {
    let step = ((last - first) / ESTIMATE_RECORDS).max(1);
    let (mut bytes, mut records) = (0, 0);
    for index in (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        for record in engine.read(index, index + 1, READ_BYTES_MAX).map_err(io_error)? {
            bytes += record.bytes.len() as u64;
            records += 1;
        }
    }
    Ok(bytes / records.max(1))
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to_exclusive = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    (from, to_exclusive)
}

impl<E: LogEngine> RaftLogReader<Types> for LogStore<E> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        let (from, to_exclusive) = bounds(&range);
        self.read(from, to_exclusive, usize::MAX)
    }

    /// Chunk by chunk, so that a node that has much to apply does not hold it all in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<LogEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to_exclusive) = bounds(&range);
        let this = self.clone();
        let chunks = stream::try_unfold(from, move |from| {
            let read = this.read(from, to_exclusive, READ_BYTES_MAX);
            async move {
                let entries = read?;
                let next = entries.last().map(|e| e.index() + 1);
                Ok::<_, io::Error>(next.map(|next| (entries, next)))
            }
        });
        // Flattened by hand: an error must come out as an item, and end the stream.
        stream::unfold((Box::pin(chunks), VecDeque::new()), |(mut chunks, mut ready)| async move {
            use futures_util::TryStreamExt as _;
            loop {
                if let Some(entry) = ready.pop_front() {
                    return Some((Ok(entry), (chunks, ready)));
                }
                match chunks.try_next().await {
                    Ok(Some(entries)) => ready.extend(entries),
                    Ok(None) => return None,
                    Err(error) => return Some((Err(error), (chunks, ready))),
                }
            }
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(*self.vote.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        let entries = self.read(start, end, READ_BYTES_MAX)?;
        // Purged at the front meanwhile: what is left would leave a hole behind the entry before `start`.
        // openraft takes nothing for a heartbeat and looks again.
        let follow = entries.first().is_some_and(|first| first.index() == start);
        Ok(if follow { entries } else { Vec::new() })
    }
}

impl<E: LogEngine> RaftLogStorage<Types> for LogStore<E> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let purged = self.engine.state().purged;
        let last_purged_log_id = purged.map(|(_, id)| encoding::decode_log_id(&id)).transpose().map_err(io_error)?;
        Ok(LogState { last_purged_log_id, last_log_id: self.last_log_id()? })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = encoding::encode_vote(vote).map_err(io_error)?;
        self.durable(|engine, done| engine.save_vote(bytes, done)).await?;
        *self.vote.lock().unwrap_or_else(PoisonError::into_inner) = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(id) = committed else { return Ok(()) };
        let now = Instant::now();
        // Once per commit would be once per batch, and all that an older one costs is that a start applies a little
        // less of the log before it hears from a leader.
        if self.committed_saved.is_none_or(|at| now.saturating_duration_since(at) >= COMMITTED_INTERVAL) {
            self.committed_saved = Some(now);
            self.engine.save_committed(encoding::encode_log_id(&id).map_err(io_error)?);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.committed()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries
            .into_iter()
            .map(|entry| Ok(LogRecord { index: entry.index(), bytes: entry.record()? }))
            .collect::<Result<Vec<_>, quorate_store::codec::CodecError>>()
            .map_err(io_error)?;
        self.sizes.appended(&records);
        if is_seeded(SeededBug::AppendReportedEarly) {
            callback.io_completed(Ok(()));
            self.engine.append(records, Box::new(|_| ()));
            return Ok(());
        }
        self.engine.append(records, Box::new(move |result| callback.io_completed(result.map_err(io_error))));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.truncate_from(from).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let is_greedy = is_seeded(SeededBug::LogPurgedPastFlushedRows);
        let log_id = if is_greedy { self.committed()?.map_or(log_id, |c| c.max(log_id)) } else { log_id };
        self.sizes.purged(log_id.index);
        self.engine.purge_to(log_id.index, encoding::encode_log_id(&log_id).map_err(io_error)?);
        Ok(())
    }
}

/// Where in the log how many bytes stand: samples of (index, bytes up to and including it), for deciding
/// when to take a snapshot and how far to purge. Exact for what this process appended, estimated for what
/// it found.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogSizes(Arc<Mutex<Samples>>);

#[derive(Debug, Default)]
struct Samples {
    /// Ascending in both.
    at: VecDeque<(u64, u64)>,
    last: u64,
    bytes: u64,
}

impl LogSizes {
    fn seed(&self, first: u64, last: u64, average: u64) {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = last - first + 1;
        let step = (entries / ESTIMATE_RECORDS).max(1);
        for index in (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            s.at.push_back((index, (index - first) * average));
        }
        s.last = last;
        s.bytes = entries * average;
    }

    fn appended(&self, records: &[LogRecord]) {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            s.last = record.index;
            s.bytes += record.bytes.len() as u64;
            let bytes = s.bytes;
            if s.at.back().is_none_or(|(_, b)| bytes - b >= SAMPLE_BYTES) {
                s.at.push_back((record.index, bytes));
            }
        }
        if s.at.len() > SAMPLES_MAX {
            let mut keep = false;
            s.at.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    fn truncated(&self, from: u64) {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while s.at.back().is_some_and(|(index, _)| *index >= from) {
            s.at.pop_back();
        }
        s.bytes = s.at.back().map_or(0, |(_, bytes)| *bytes);
        s.last = from.saturating_sub(1);
    }

    fn purged(&self, to: u64) {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One sample at or before the cut stays, as the base of what follows.
        while s.at.get(1).is_some_and(|(index, _)| *index <= to) {
            s.at.pop_front();
        }
    }

    /// Bytes of the entries after `index`, as well as is known.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        let s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = s.at.iter().rev().find(|(i, _)| *i <= index).or(s.at.front());
        s.bytes - before.map_or(s.bytes, |(_, bytes)| *bytes)
    }

    /// The highest index up to which the log can be purged so that at least `keep_bytes` remain, or at
    /// least `keep_entries` if that is less.
    pub(crate) fn purge_to(&self, keep_bytes: u64, keep_entries: u64) -> Option<u64> {
        let s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let by_bytes = s.at.iter().rev().find(|(_, bytes)| s.bytes - bytes >= keep_bytes).map(|(index, _)| *index);
        by_bytes.max(s.last.checked_sub(keep_entries))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(index: u64, len: usize) -> LogRecord {
        LogRecord { index, bytes: Bytes::from(vec![0; len]) }
    }

    #[test]
    fn the_log_is_cut_where_enough_bytes_or_entries_remain() {
        let sizes = LogSizes::default();
        assert_eq!(sizes.purge_to(0, 0), Some(0));
        for index in 1..=1000 {
            sizes.appended(&[record(index, 128 << 10)]);
        }
        let cut = sizes.purge_to(10 << 20, u64::MAX).unwrap_or_default();
        assert!((915..=920).contains(&cut), "{cut}");
        assert!(sizes.bytes_after(cut) >= 10 << 20);
        assert_eq!(sizes.purge_to(1 << 40, u64::MAX), None);
        assert_eq!(sizes.purge_to(1 << 40, 100), Some(900));
        sizes.purged(900);
        sizes.truncated(951);
        let cut = sizes.purge_to(1 << 20, u64::MAX).unwrap_or_default();
        assert!((938..=943).contains(&cut), "{cut}");
        assert_eq!(sizes.bytes_after(950), 0);
    }

    #[test]
    fn samples_are_bounded() {
        let sizes = LogSizes::default();
        for index in 0..20_000 {
            sizes.appended(&[record(index, 256 << 10)]);
        }
        assert!(sizes.0.lock().unwrap_or_else(PoisonError::into_inner).at.len() <= SAMPLES_MAX);
    }
}
