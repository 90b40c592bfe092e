//! The proposal stream of one incarnation: numbers, order, and what is sent again. Sans-IO.
//!
//! Owns the batches that have a number and were not yet seen applied, with the tickets that wait for them.
//! A batch leaves only when this node's own log shows it applied, or with the whole incarnation; until then
//! its number, its bytes and its place never change, so sending it again is always harmless: the state
//! machine applies only the next number, ignores those it has seen and refuses gaps.
//! It never touches a socket, a clock or the machine: times come in, bytes and outcomes go out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_store::codec;
use quorate_store::command::{Batch, Origin};
use quorate_store::effect::Outcome;
use quorate_store::ids::{BatchSeq, Incarnation, NodeId};
use quorate_store::seeded_bug::{SeededBug, is_seeded};
use thiserror::Error;

use super::waiting::Waiter;
use crate::effects::Ticket;

/// A stream without progress doubles its patience at most this often.
const STALL_DOUBLINGS_MAX: u32 = 3;
/// Below so many batches in flight the next one goes whatever is in it.
const EAGER_BATCHES: usize = 4;

/// Bounds of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    /// Batches in flight.
    pub(crate) batches_max: usize,
    /// Bytes of them (one batch may be longer).
    pub(crate) bytes_max: usize,
    /// Commands of one batch.
    pub(crate) batch_commands_max: usize,
    /// Bytes of one batch (one command may be longer).
    pub(crate) batch_bytes_max: usize,
    /// Without progress for this long, everything is sent again over a new connection.
    pub(crate) resend_after: Duration,
}

/// What the log says of this stream cannot be: something that this node owed an answer for was jumped over.
/// The incarnation is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum StreamBroken {
    /// Another batch was applied than the oldest in flight.
    #[error("batch {applied:?} was applied where {oldest:?} is the oldest in flight")]
    OutOfTurn {
        /// Applied.
        applied: BatchSeq,
        /// Expected here.
        oldest: Option<BatchSeq>,
    },
    /// The machine misses another batch than the oldest in flight.
    #[error("the state machine misses batch {expected:?} where {oldest:?} is the oldest in flight")]
    ForeignGap {
        /// Missed there.
        expected: BatchSeq,
        /// Expected here.
        oldest: Option<BatchSeq>,
    },
    /// Another number of outcomes than of commands.
    #[error("batch {seq:?} has {commands} commands and {outcomes} outcomes")]
    Outcomes {
        /// Which batch.
        seq: BatchSeq,
        /// Its commands.
        commands: u32,
        /// Its outcomes.
        outcomes: usize,
    },
}

/// A batch that has its number.
#[derive(Debug)]
struct InFlight {
    seq: BatchSeq,
    bytes: Bytes,
    commands: u32,
    waiters: Vec<Waiter>,
}

/// What goes down the link next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// This batch; `again` when it was sent before.
    Send {
        /// Encoded.
        bytes: Bytes,
        /// Not for the first time.
        again: bool,
    },
    /// Everything with a number is sent: a new batch may be cut, under this number.
    Cut(Origin),
    /// Nothing, until something is applied, submitted or connected.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ProposalStream {
    node: NodeId,
    incarnation: Incarnation,
    limits: StreamLimits,
    /// Number of the next batch to be cut.
    next: BatchSeq,
    /// Numbered and not seen applied, consecutive.
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// How many of these have gone down the present link; `None` without one.
    sent: Option<usize>,
    /// Below this, batches have been sent at least once.
    sent_once: BatchSeq,
    /// The gap for which everything was sent again on the present link. The refused batches behind the gap
    /// tell of it once each; only the first may have that effect.
    gap_answered: Option<BatchSeq>,
    /// Since when the oldest batch has been waiting without progress.
    waiting_since: Instant,
    stalls: u32,
}

impl ProposalStream {
    /// A stream that begins at 1.
    pub(crate) fn new(node: NodeId, incarnation: Incarnation, limits: StreamLimits, now: Instant) -> Self {
        Self {
            node,
            incarnation,
            limits,
            next: BatchSeq(1),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            sent: None,
            sent_once: BatchSeq(1),
            gap_answered: None,
            waiting_since: now,
            stalls: 0,
        }
    }

    /// A new link to a leader is open: everything in flight goes down it, in order.
    pub(crate) fn connected(&mut self, now: Instant) {
        if is_seeded(SeededBug::RetryProposedAsNew) {
            self.number_anew();
        }
        self.sent = Some(if is_seeded(SeededBug::GapApplied) { self.sent_before() } else { 0 });
        self.gap_answered = None;
        self.waiting_since = now;
    }

    /// For [`SeededBug::GapApplied`]: how many of those in flight went down an earlier link.
    fn sent_before(&self) -> usize {
        self.in_flight.iter().filter(|batch| batch.seq < self.sent_once).count()
    }

    /// For [`SeededBug::RetryProposedAsNew`]: what was sent, and may have been appended, goes on under other numbers.
    fn number_anew(&mut self) {
        for batch in self.in_flight.iter_mut().filter(|batch| batch.seq < self.sent_once) {
            let Ok(Batch { commands, .. }) = codec::decode(&batch.bytes) else { continue };
            let origin = Origin::Stream { node: self.node, incarnation: self.incarnation, seq: self.next };
            let Ok(bytes) = codec::encode(&Batch { origin, commands }) else { continue };
            (batch.seq, batch.bytes) = (self.next, bytes);
            self.next = BatchSeq(self.next.0 + 1);
        }
    }

    /// The link is gone: nothing is cut or sent until there is another.
    pub(crate) fn disconnected(&mut self) {
        self.sent = None;
        self.gap_answered = None;
    }

    /// What goes down the link next. `waiting_commands` and `waiting_bytes` are there to be cut.
    ///
    /// The more batches are in flight, the more commands the next one wants: a lone command goes at once,
    /// and under load the number of batches and their size grow alike, without a timer. Whatever waits
    /// for company goes at the latest when all before it are applied.
    pub(crate) fn next(&mut self, waiting_commands: usize, waiting_bytes: usize, now: Instant) -> Next {
        let Some(sent) = self.sent else { return Next::Nothing };
        if let Some(batch) = self.in_flight.get(sent) {
            if sent == 0 {
                self.waiting_since = now;
            }
            self.sent = Some(sent + 1);
            let again = batch.seq < self.sent_once;
            self.sent_once = self.sent_once.max(BatchSeq(batch.seq.0 + 1));
            return Next::Send { bytes: batch.bytes.clone(), again };
        }
        let in_flight = self.in_flight.len();
        let wanted = if in_flight < EAGER_BATCHES { 1 } else { in_flight.min(self.limits.batch_commands_max) };
        let slot = in_flight < self.limits.batches_max && self.in_flight_bytes < self.limits.bytes_max;
        if slot
            && waiting_commands > 0
            && (waiting_commands >= wanted || waiting_bytes >= self.limits.batch_bytes_max / 2)
        {
            return Next::Cut(Origin::Stream { node: self.node, incarnation: self.incarnation, seq: self.next });
        }
        Next::Nothing
    }

    /// The batch that was cut under the number of [`Next::Cut`]. From here on it has that number for good.
    /// `false`, and nothing kept, when that is not the next number of this stream (it was replaced meanwhile).
    pub(crate) fn number(&mut self, origin: Origin, bytes: Bytes, commands: usize, waiters: Vec<Waiter>) -> bool {
        let expected = Origin::Stream { node: self.node, incarnation: self.incarnation, seq: self.next };
        if origin != expected {
            return false;
        }
        self.in_flight_bytes += bytes.len();
        self.in_flight.push_back(InFlight { seq: self.next, bytes, commands: commands as u32, waiters });
        self.next = BatchSeq(self.next.0 + 1);
        true
    }

    /// This node's log shows a batch applied: its tickets are told, in the order of submission.
    pub(crate) fn applied(
        &mut self,
        seq: BatchSeq,
        outcomes: &[Outcome],
        now: Instant,
        tell: &mut dyn FnMut(Ticket, Outcome),
    ) -> Result<(), StreamBroken> {
        let oldest = self.in_flight.front().map(|b| b.seq);
        if oldest != Some(seq) {
            return Err(StreamBroken::OutOfTurn { applied: seq, oldest });
        }
        let Some(batch) = self.in_flight.pop_front() else { return Ok(()) };
        self.in_flight_bytes -= batch.bytes.len();
        // It may have been applied before it was sent again on this link.
        self.sent = self.sent.map(|n| n.saturating_sub(1));
        self.waiting_since = now;
        self.stalls = 0;
        if batch.commands as usize != outcomes.len() {
            return Err(StreamBroken::Outcomes { seq, commands: batch.commands, outcomes: outcomes.len() });
        }
        for waiter in batch.waiters {
            if let Some(outcome) = outcomes.get(waiter.command as usize) {
                tell(waiter.ticket, outcome.clone());
            }
        }
        Ok(())
    }

    /// This node's log shows that the machine refused a batch, because `expected` is missing. Whether
    /// everything is now sent again from there.
    pub(crate) fn gap(&mut self, expected: BatchSeq) -> Result<bool, StreamBroken> {
        let oldest = self.in_flight.front().map(|b| b.seq);
        if oldest != Some(expected) {
            return Err(StreamBroken::ForeignGap { expected, oldest });
        }
        // Without a link everything is sent again anyway.
        if self.sent.is_none_or(|n| n == 0) || self.gap_answered == Some(expected) {
            return Ok(false);
        }
        self.gap_answered = Some(expected);
        self.sent = Some(0);
        Ok(true)
    }

    /// When [`Self::stalled`] should be asked; `None` while nothing that was sent waits.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waits = self.sent.is_some_and(|n| n > 0) && !self.in_flight.is_empty();
        waits.then(|| self.waiting_since + self.limits.resend_after * (1 << self.stalls.min(STALL_DOUBLINGS_MAX)))
    }

    /// Whether the oldest batch has waited for too long, with no progress at all: then the link is given up
    /// and everything is sent again over another. Patience doubles with each time in a row, so that an
    /// overloaded cluster is not loaded further.
    pub(crate) fn stalled(&mut self, now: Instant) -> bool {
        let stalled = self.deadline().is_some_and(|d| d <= now);
        if stalled {
            self.stalls += 1;
        }
        stalled
    }

    /// Batches in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Who waits, in order: for [`SeededBug::SnapshotReleasesAcknowledgements`].
    pub(crate) fn tickets(&self) -> Vec<Ticket> {
        self.in_flight.iter().flat_map(|b| &b.waiters).map(|waiter| waiter.ticket).collect()
    }

    /// Tickets that wait for batches in flight.
    pub(crate) fn waiters(&self) -> usize {
        self.in_flight.iter().map(|b| b.waiters.len()).sum()
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
