//! Pages of a session's queue: what the outbox asks for, and what it remembers until the page comes.

use quorate_store::ids::QueueSeq;

/// Rows that went while a page is read and are remembered one by one.
const WITHDRAWN_ROWS_MAX: usize = 1024;

/// A page that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) from: QueueSeq,
    /// What the tail was then: an `end` speaks of rows below it.
    pub(super) tail: QueueSeq,
    /// Rows that went meanwhile: the page may have been read before.
    pub(super) withdrawn: Vec<QueueSeq>,
    /// From here on what went is not remembered one by one: these rows are read again.
    pub(super) until: QueueSeq,
}

impl Asked {
    pub(super) fn withdraw(&mut self, seq: QueueSeq) {
        if seq < self.from {
            return;
        }
        if self.withdrawn.len() < WITHDRAWN_ROWS_MAX {
            self.withdrawn.push(seq);
        } else {
            self.until = self.until.min(seq);
        }
    }
}

/// A page of the queue, please.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageWanted {
    /// First row.
    pub from: QueueSeq,
    /// Most rows.
    pub rows_max: usize,
    /// Bytes of messages after which the page ends.
    pub bytes_max: usize,
}
