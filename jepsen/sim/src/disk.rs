//! A disk with a Raft log on it, which outlives the node: what is synced and what is not are kept apart.
//!
//! As on the real one (`store/src/log/writer.rs`): one writer takes all that is queued into one write and one sync, in
//! order; purges and committed marks ride along. What is queued is lost when the process dies; a write that is not
//! synced survives the process, mostly, and is lost with the power, mostly. A write is there whole or not at all: the
//! real log drops a torn end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_store::log::{Done, LogEngine, LogError, LogRecord, LogState, LogStats};

use xxhash_rust::xxh3::xxh3_64;

use crate::net::Host;
use crate::world::{after, between, note, one_in};

/// Longest wait of a purge or a committed mark for a write to ride on.
const LAZY_MAX: Duration = Duration::from_millis(100);

/// A sync that is left out on purpose: the checks must notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsynced {
    pub(crate) votes: bool,
    pub(crate) appends: bool,
    pub(crate) truncations: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Vote(Bytes),
    Committed(Bytes),
    Append(Vec<LogRecord>),
    Truncate(u64),
    Purge(u64, Bytes),
}

/// What stands in a log.
#[derive(Clone, Debug, Default)]
struct Content {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    records: BTreeMap<u64, Bytes>,
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Vote(vote) => self.vote = Some(vote.clone()),
            Change::Committed(committed) => self.committed = Some(committed.clone()),
            Change::Append(records) => self.records.extend(records.iter().map(|r| (r.index, r.bytes.clone()))),
            Change::Truncate(from) => drop(self.records.split_off(from)),
            Change::Purge(to, id) => {
                self.records = self.records.split_off(&(to + 1));
                if self.purged.as_ref().is_none_or(|(purged, _)| purged < to) {
                    self.purged = Some((*to, id.clone()));
                }
            }
        }
    }

    /// Index that an append must have next, if that is known.
    fn next(&self) -> Option<u64> {
        let last = self.records.last_key_value().map(|(index, _)| *index);
        last.or(self.purged.as_ref().map(|(purged, _)| *purged)).map(|last| last + 1)
    }
}

struct Disk {
    host: Host,
    /// How long a sync takes, from and to.
    sync: (Duration, Duration),
    unsynced: Unsynced,
    /// What a power cut leaves for certain.
    synced: Content,
    /// Written and not synced, oldest first.
    written: VecDeque<Change>,
    /// What the process sees.
    live: Content,
    queued: VecDeque<(Change, Option<Done>)>,
    queued_bytes: usize,
    is_writing: bool,
    /// Counts processes: what an earlier one began is nobody's any more.
    life: u64,
    appended: u64,
    /// Votes that the process was told are safe, since somebody asked last.
    promised: Vec<Bytes>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Disk>>);

impl SimDisk {
    pub(crate) fn new(host: Host, unsynced: Unsynced) -> Self {
        let sync = (Duration::from_micros(200), Duration::from_millis(3));
        Self(Arc::new(Mutex::new(Disk {
            host,
            sync,
            unsynced,
            synced: Content::default(),
            written: VecDeque::new(),
            live: Content::default(),
            queued: VecDeque::new(),
            queued_bytes: 0,
            is_writing: false,
            life: 0,
            appended: 0,
            promised: Vec::new(),
        })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long syncs take from now on.
    pub(crate) fn set_sync(&self, least: Duration, most: Duration) {
        self.disk().sync = (least, most);
    }

    /// Index and hash of each record up to `last`.
    pub(crate) fn records_until(&self, last: u64) -> Vec<(u64, u64)> {
        let disk = self.disk();
        disk.live.records.range(..=last).map(|(index, bytes)| (*index, xxh3_64(bytes))).collect()
    }

    /// Votes that the process was told are safe, since the last call.
    pub(crate) fn take_promised(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.disk().promised)
    }

    /// A record.
    pub(crate) fn bytes_of(&self, index: u64) -> Option<Bytes> {
        self.disk().live.records.get(&index).cloned()
    }

    /// Hash of a record.
    pub(crate) fn record(&self, index: u64) -> Option<u64> {
        self.disk().live.records.get(&index).map(|bytes| xxh3_64(bytes))
    }

    /// Index up to which a snapshot stands for the records.
    pub(crate) fn purged(&self) -> u64 {
        self.disk().live.purged.as_ref().map_or(0, |(index, _)| *index)
    }

    /// Highest index that stands in the log.
    pub(crate) fn last(&self) -> u64 {
        self.disk().live.next().map_or(0, |next| next - 1)
    }

    /// Whether a record is synced, or a snapshot stands for it.
    pub(crate) fn is_durable(&self, index: u64) -> bool {
        let disk = self.disk();
        let is_purged = disk.synced.purged.as_ref().is_some_and(|(purged, _)| *purged >= index);
        is_purged || disk.synced.records.contains_key(&index)
    }

    /// The process is gone, or the power: what is not certain is decided.
    pub(crate) fn lose(&self, power: bool) {
        let mut disk = self.disk();
        disk.life += 1;
        let queued = disk.queued.len();
        disk.queued.clear();
        disk.queued_bytes = 0;
        disk.is_writing = false;
        let written = disk.written.len();
        let mut kept = 0;
        // Without a cut the system has them all; with it, as many as had reached the disk.
        while let Some(change) = disk.written.pop_front() {
            if power && one_in(2) {
                break;
            }
            disk.synced.apply(&change);
            kept += 1;
        }
        disk.written.clear();
        disk.live = disk.synced.clone();
        let (host, next) = (disk.host, disk.live.next());
        note!(
            "disk {host} loses {queued} queued and {} of {written} written changes; the log goes on at {next:?}",
            written - kept
        );
    }

    /// Opens the log for a new process.
    pub(crate) fn open(&self) -> SimLog {
        let disk = self.disk();
        SimLog { disk: self.clone(), life: disk.life, stats: Arc::default() }
    }
}

/// The log of one process on a [`SimDisk`].
#[derive(Clone)]
pub(crate) struct SimLog {
    disk: SimDisk,
    life: u64,
    stats: Arc<LogStats>,
}

impl SimLog {
    fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.disk.disk())
    }

    /// Queues a change; one with `done` is synced.
    fn queue(&self, change: Change, done: Option<Done>) {
        let is_current = self.with(|disk| disk.life == self.life);
        if !is_current {
            return;
        }
        let lazy = done.is_none();
        let begins = self.with(|disk| {
            disk.live.apply(&change);
            if let Change::Append(records) = &change {
                let bytes: usize = records.iter().map(|r| r.bytes.len()).sum();
                disk.queued_bytes += bytes;
                disk.appended += records.len() as u64;
            }
            disk.queued.push_back((change, done));
            !std::mem::replace(&mut disk.is_writing, true)
        });
        if begins {
            let log = self.clone();
            after(if lazy { LAZY_MAX } else { Duration::ZERO }, move || log.write());
        }
    }

    /// One write and one sync of all that is queued.
    fn write(&self) {
        let taken = self.with(|disk| {
            if disk.life != self.life {
                return None;
            }
            let taken: Vec<_> = disk.queued.drain(..).collect();
            disk.written.extend(taken.iter().map(|(change, _)| change.clone()));
            Some((taken, between(disk.sync.0, disk.sync.1)))
        });
        let Some((taken, time)) = taken else { return };
        let log = self.clone();
        after(time, move || log.synced(taken));
    }

    fn synced(&self, taken: Vec<(Change, Option<Done>)>) {
        let again = self.with(|disk| {
            if disk.life != self.life {
                return None;
            }
            let skips = |change: &Change| match change {
                Change::Vote(_) => disk.unsynced.votes,
                Change::Append(_) => disk.unsynced.appends,
                Change::Truncate(_) => disk.unsynced.truncations,
                Change::Committed(_) | Change::Purge(..) => false,
            };
            // A sync takes all that was written before it.
            let syncs = taken.is_empty() || !taken.iter().all(|(change, done)| done.is_none() || skips(change));
            if syncs {
                while let Some(change) = disk.written.pop_front() {
                    disk.synced.apply(&change);
                }
            }
            for (change, _) in &taken {
                match change {
                    Change::Append(records) => {
                        disk.queued_bytes -= records.iter().map(|r| r.bytes.len()).sum::<usize>();
                    }
                    Change::Vote(vote) => disk.promised.push(vote.clone()),
                    Change::Committed(_) | Change::Truncate(_) | Change::Purge(..) => {}
                }
            }
            note!("disk {} syncs {} changes, {} records", disk.host, taken.len(), disk.appended);
            disk.is_writing = !disk.queued.is_empty();
            Some(disk.is_writing)
        });
        let Some(again) = again else { return };
        for done in taken.into_iter().filter_map(|(_, done)| done) {
            done(Ok(()));
        }
        if again {
            self.write();
        }
    }
}

impl LogEngine for SimLog {
    fn state(&self) -> LogState {
        self.with(|disk| LogState {
            vote: disk.live.vote.clone(),
            committed: disk.live.committed.clone(),
            purged: disk.live.purged.clone(),
            last: disk.live.records.last_key_value().map(|(index, _)| *index),
        })
    }

    fn append(&self, records: Vec<LogRecord>, done: Done) {
        let first = records.first().map(|r| r.index);
        let next = self.with(|disk| disk.live.next());
        assert!(next.is_none_or(|next| first.is_none_or(|first| first == next)), "{first:?} does not follow: {next:?}");
        self.queue(Change::Append(records), Some(done));
    }

    fn save_vote(&self, vote: Bytes, done: Done) {
        self.queue(Change::Vote(vote), Some(done));
    }

    fn truncate_from(&self, index: u64, done: Done) {
        self.queue(Change::Truncate(index), Some(done));
    }

    fn purge_to(&self, index: u64, log_id: Bytes) {
        self.queue(Change::Purge(index, log_id), None);
    }

    fn save_committed(&self, committed: Bytes) {
        self.queue(Change::Committed(committed), None);
    }

    fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> Result<Vec<LogRecord>, LogError> {
        let mut bytes = 0;
        Ok(self.with(|disk| {
            let range = disk.live.records.range(from..to_exclusive.max(from));
            let records = range.map(|(index, bytes)| LogRecord { index: *index, bytes: bytes.clone() });
            let fits = |record: &LogRecord| {
                let is_first = bytes == 0;
                bytes += record.bytes.len();
                is_first || bytes <= bytes_max
            };
            records.take_while(fits).collect()
        }))
    }

    fn unflushed_bytes(&self) -> usize {
        self.with(|disk| disk.queued_bytes)
    }

    fn stats(&self) -> Arc<LogStats> {
        self.stats.clone()
    }

    fn poisoned(&self) -> Option<LogError> {
        None
    }
}
