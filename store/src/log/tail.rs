//! The newest records in memory: readable from the moment of `append`, evicted only when flushed.
//!
//! It owns the bytes of the records that replication and apply read most, bounded by bytes. It never evicts
//! a record that is not on disk, because nobody could read it then.

use std::collections::VecDeque;

use bytes::Bytes;

use super::LogRecord;

/// Number of an operation in the queue, from 1. Flushing follows it.
pub(super) type OpNumber = u64;

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    op: OpNumber,
}

/// Consecutive records at the end of the log.
#[derive(Debug)]
pub(super) struct Tail {
    /// Index of the first record here; with none here, the index that comes next.
    first: u64,
    kept: VecDeque<Kept>,
    bytes: usize,
    bytes_max: usize,
    /// Operations up to this one are on disk.
    flushed: OpNumber,
}

impl Tail {
    pub(super) fn new(next: u64, bytes_max: usize) -> Self {
        Self { first: next, kept: VecDeque::new(), bytes: 0, bytes_max, flushed: 0 }
    }

    /// Index of the first record here; records below it are on disk.
    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    /// Bytes held.
    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends one record. Only an empty tail may be moved to another index.
    pub(super) fn push(&mut self, index: u64, bytes: Bytes, op: OpNumber) {
        if self.kept.is_empty() {
            self.first = index;
        }
        debug_assert_eq!(index, self.first + self.kept.len() as u64, "the tail is consecutive");
        self.bytes += bytes.len();
        self.kept.push_back(Kept { bytes, op });
    }

    /// Operations up to `op` are on disk: evicts down to the bound. Returns what was evicted, so that it is
    /// freed outside the lock.
    #[must_use]
    pub(super) fn flushed(&mut self, op: OpNumber) -> Vec<Bytes> {
        self.flushed = op;
        let mut out = Vec::new();
        while self.bytes > self.bytes_max && self.kept.front().is_some_and(|k| k.op <= op) {
            out.extend(self.pop_front());
        }
        out
    }

    /// Removes the records from `index` on.
    #[must_use]
    pub(super) fn truncate_from(&mut self, index: u64) -> Vec<Bytes> {
        let keep = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let gone = if keep < self.kept.len() { self.kept.split_off(keep) } else { VecDeque::new() };
        self.bytes -= gone.iter().map(|k| k.bytes.len()).sum::<usize>();
        if self.kept.is_empty() {
            self.first = self.first.min(index);
        }
        gone.into_iter().map(|k| k.bytes).collect()
    }

    /// Removes the records up to `index`, inclusive.
    #[must_use]
    pub(super) fn purge_to(&mut self, index: u64) -> Vec<Bytes> {
        let mut out = Vec::new();
        while self.first <= index {
            match self.pop_front() {
                Some(bytes) => out.push(bytes),
                None => self.first = index.saturating_add(1),
            }
        }
        out
    }

    fn pop_front(&mut self) -> Option<Bytes> {
        let kept = self.kept.pop_front()?;
        self.bytes -= kept.bytes.len();
        self.first += 1;
        Some(kept.bytes)
    }

    /// Adds the records from `from` (at or above [`Self::first`]) up to `to_exclusive` to `out`, while
    /// `bytes_left` lasts; one in any case when `out` is empty.
    pub(super) fn read(&self, from: u64, to_exclusive: u64, bytes_left: &mut usize, out: &mut Vec<LogRecord>) {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let count = usize::try_from(to_exclusive.saturating_sub(from)).unwrap_or(usize::MAX);
        for (index, kept) in (from..).zip(self.kept.iter().skip(skip).take(count)) {
            if kept.bytes.len() > *bytes_left && !out.is_empty() {
                *bytes_left = 0;
                return;
            }
            *bytes_left = bytes_left.saturating_sub(kept.bytes.len());
            out.push(LogRecord { index, bytes: kept.bytes.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes_max: usize) -> Tail {
        let mut tail = Tail::new(1, bytes_max);
        for i in 1..=4 {
            tail.push(i, Bytes::from(vec![i as u8; 10]), i);
        }
        tail
    }

    fn indices(tail: &Tail, from: u64, to: u64, bytes: usize) -> Vec<u64> {
        let mut out = Vec::new();
        tail.read(from, to, &mut { bytes }, &mut out);
        out.iter().map(|r| r.index).collect()
    }

    #[test]
    fn what_is_not_flushed_is_never_evicted() {
        let mut tail = filled(0);
        assert!(tail.flushed(0).is_empty());
        assert_eq!(tail.flushed(2).len(), 2);
        assert_eq!((tail.first(), tail.bytes()), (3, 20));
        assert_eq!(indices(&tail, 3, 9, 99), [3, 4]);
    }

    #[test]
    fn a_flush_of_truncated_records_does_not_count_for_their_successors() {
        let mut tail = filled(0);
        assert_eq!(tail.truncate_from(3).len(), 2);
        tail.push(3, Bytes::from_static(b"new"), 6);
        assert_eq!(tail.flushed(4).len(), 2);
        assert_eq!(indices(&tail, 3, 9, 99), [3], "operation 6 is not flushed");
        assert_eq!(tail.flushed(6).len(), 1);
        assert_eq!(tail.first(), 4);
    }

    #[test]
    fn reads_are_bounded_by_bytes_but_give_one_record() {
        let tail = filled(100);
        assert_eq!(indices(&tail, 1, 9, 25), [1, 2]);
        assert_eq!(indices(&tail, 2, 9, 0), [2]);
        assert_eq!(indices(&tail, 2, 3, 99), [2]);
        assert!(indices(&tail, 5, 9, 99).is_empty());
    }

    #[test]
    fn purging_beyond_the_end_moves_the_beginning() {
        let mut tail = filled(100);
        assert_eq!(tail.purge_to(2).len(), 2);
        assert_eq!(tail.first(), 3);
        assert_eq!(tail.purge_to(9).len(), 2);
        assert_eq!((tail.first(), tail.bytes()), (10, 0));
    }
}
