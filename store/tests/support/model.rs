//! The log as a vector: what the engine must agree with, and the operations that tests drive both with.

use bytes::Bytes;
use quorate_store::log::{LogEngine, LogRecord, LogState};

use super::Rng;

/// One operation, relative to what is in the log then.
#[derive(Clone, Debug)]
pub enum Step {
    /// Appends this many records of about this many bytes.
    Append { count: u64, bytes: usize },
    /// Removes this many records from the end, as far as there are.
    Truncate { count: u64 },
    /// Saves a vote.
    Vote,
    /// Purges this many records from the front; more than there are moves the log on.
    Purge { count: u64 },
    /// Saves a committed mark.
    Committed,
}

/// What must be in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub purged: Option<(u64, Bytes)>,
    pub records: Vec<LogRecord>,
    /// Counts everything that was ever written, so that no two records are alike.
    writes: u64,
}

/// A step, made absolute: what both the model and the engine are told.
#[derive(Clone, Debug)]
pub enum Change {
    Append(Vec<LogRecord>),
    Truncate(u64),
    Vote(Bytes),
    Purge(u64, Bytes),
    Committed(Bytes),
    Nothing,
}

impl Model {
    /// The index that the next record gets.
    pub fn next(&self) -> u64 {
        let last = self.records.last().map(|r| r.index).or(self.purged.as_ref().map(|p| p.0));
        last.map_or(0, |index| index + 1)
    }

    /// What `step` means now.
    pub fn resolve(&mut self, step: &Step) -> Change {
        self.writes += 1;
        let mark = |name: &str, n: u64| Bytes::from(format!("{name} {n}"));
        match step {
            Step::Append { count, bytes } => {
                let first = self.next();
                let mut rng = Rng::new(self.writes);
                let records = (first..first + count).map(|index| {
                    let mut body = format!("record {index}, write {}: ", self.writes).into_bytes();
                    while body.len() < *bytes {
                        body.extend_from_slice(&rng.draw().to_le_bytes());
                    }
                    LogRecord { index, bytes: body.into() }
                });
                Change::Append(records.collect())
            }
            Step::Truncate { count } => match self.records.len() as u64 {
                0 => Change::Nothing,
                len => Change::Truncate(self.records[0].index + len - (*count).min(len)),
            },
            Step::Vote => Change::Vote(mark("vote", self.writes)),
            Step::Purge { count: 0 } => Change::Nothing,
            Step::Purge { count } => {
                let from = self.records.first().map_or(self.next(), |r| r.index);
                Change::Purge(from + count - 1, mark("log id", self.writes))
            }
            Step::Committed => Change::Committed(mark("committed", self.writes)),
        }
    }

    /// Does it.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Append(records) => self.records.extend(records.iter().cloned()),
            Change::Truncate(from) => self.records.retain(|r| r.index < *from),
            Change::Vote(vote) => self.vote = Some(vote.clone()),
            Change::Purge(index, id) => {
                self.records.retain(|r| r.index > *index);
                self.purged = Some((*index, id.clone()));
            }
            Change::Committed(committed) => self.committed = Some(committed.clone()),
            Change::Nothing => {}
        }
    }

    pub fn state(&self) -> LogState {
        LogState {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged.clone(),
            last: self.records.last().map(|r| r.index),
        }
    }

    /// What is in an opened log.
    pub fn of(log: &impl LogEngine) -> Self {
        let LogState { vote, committed, purged, .. } = log.state();
        Self { vote, committed, purged, records: log.read(0, u64::MAX, usize::MAX).unwrap(), writes: 0 }
    }
}

/// Tells the engine; `done` is called for what is waited for, and returned for what is not.
pub fn tell(log: &impl LogEngine, change: Change, done: quorate_store::log::Done) -> Option<quorate_store::log::Done> {
    match change {
        Change::Append(records) => log.append(records, done),
        Change::Truncate(from) => log.truncate_from(from, done),
        Change::Vote(vote) => log.save_vote(vote, done),
        Change::Purge(index, id) => {
            log.purge_to(index, id);
            return Some(done);
        }
        Change::Committed(committed) => {
            log.save_committed(committed);
            return Some(done);
        }
        Change::Nothing => return Some(done),
    }
    None
}
