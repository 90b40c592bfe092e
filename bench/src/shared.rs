//! What all clients of a run share: its clock, its phase and its counts. One thread, so cells and no locks.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use tokio::sync::watch;

use crate::histogram::{Histogram, Quantiles};

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Clients connect.
    Opening,
    /// Load, not counted yet.
    Warmup,
    /// Load, counted.
    Measured,
    /// Nothing new is published.
    Over,
}

/// What the payload of a message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// On the run's clock.
    pub(crate) sent_ns: u64,
    /// Number of the publisher.
    pub(crate) publisher: u32,
    /// Number of its message, from 0.
    pub(crate) seq: u64,
}

impl Stamp {
    /// Its length.
    pub(crate) const BYTES: usize = 20;

    /// As in a payload.
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (sent, rest) = bytes.split_at_mut(8);
        let (publisher, seq) = rest.split_at_mut(4);
        sent.copy_from_slice(&self.sent_ns.to_le_bytes());
        publisher.copy_from_slice(&self.publisher.to_le_bytes());
        seq.copy_from_slice(&self.seq.to_le_bytes());
        bytes
    }

    /// From a payload.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (sent, rest) = payload.split_first_chunk()?;
        let (publisher, rest) = rest.split_first_chunk()?;
        let (seq, _) = rest.split_first_chunk()?;
        Some(Self {
            sent_ns: u64::from_le_bytes(*sent),
            publisher: u32::from_le_bytes(*publisher),
            seq: u64::from_le_bytes(*seq),
        })
    }
}

/// Counts of the measured part of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Publishes that were acknowledged (QoS 0: written).
    pub(crate) acknowledged: u64,
    /// Messages that subscribers got.
    pub(crate) delivered: u64,
}

/// See the module.
pub(crate) struct Shared {
    origin: Instant,
    /// For those who look at each message.
    phase: Cell<Phase>,
    /// For those who wait.
    phase_watch: watch::Sender<Phase>,
    publishers_ready: watch::Sender<usize>,
    measured: Cell<Counts>,
    all: Cell<Counts>,
    refused: Cell<u64>,
    repeated: Cell<u64>,
    skipped: Cell<u64>,
    acks: RefCell<Histogram>,
    end_to_end: RefCell<Histogram>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            phase: Cell::new(Phase::Opening),
            phase_watch: watch::Sender::new(Phase::Opening),
            publishers_ready: watch::Sender::new(0),
            measured: Cell::default(),
            all: Cell::default(),
            refused: Cell::default(),
            repeated: Cell::default(),
            skipped: Cell::default(),
            acks: RefCell::default(),
            end_to_end: RefCell::default(),
        }
    }
}

impl Shared {
    /// The run's clock; never 0.
    pub(crate) fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64 + 1
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.phase_watch.send_replace(phase);
    }

    /// Waits until the load may begin.
    pub(crate) async fn started(&self) {
        // The sender lives in `self`, so this cannot fail.
        drop(self.phase_watch.subscribe().wait_for(|phase| *phase > Phase::Opening).await);
    }

    pub(crate) fn publisher_ready(&self) {
        self.publishers_ready.send_modify(|ready| *ready += 1);
    }

    /// Waits until so many publishers are connected.
    pub(crate) async fn publishers_ready(&self, publishers: usize) {
        drop(self.publishers_ready.subscribe().wait_for(|ready| *ready >= publishers).await);
    }

    /// One publish is acknowledged, after so long.
    pub(crate) fn acknowledged(&self, after_ns: Option<u64>) {
        let is_measured = self.count(|counts| counts.acknowledged += 1);
        if let (true, Some(ns)) = (is_measured, after_ns) {
            self.acks.borrow_mut().record(ns);
        }
    }

    /// One message is delivered, so long after it was sent.
    pub(crate) fn delivered(&self, after_ns: u64) {
        if self.count(|counts| counts.delivered += 1) {
            self.end_to_end.borrow_mut().record(after_ns);
        }
    }

    fn count(&self, change: impl Fn(&mut Counts)) -> bool {
        let is_measured = self.phase() == Phase::Measured;
        let measured = is_measured.then_some(&self.measured);
        for cell in std::iter::once(&self.all).chain(measured) {
            let mut counts = cell.get();
            change(&mut counts);
            cell.set(counts);
        }
        is_measured
    }

    pub(crate) fn refused(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    pub(crate) fn odd(&self, repeated: u64, skipped: u64) {
        self.repeated.set(self.repeated.get() + repeated);
        self.skipped.set(self.skipped.get() + skipped);
    }

    /// Counts of the measured part.
    pub(crate) fn measured(&self) -> Counts {
        self.measured.get()
    }

    /// Counts of the whole run.
    pub(crate) fn all(&self) -> Counts {
        self.all.get()
    }

    /// Publishes refused with a reason code, deliveries beyond the first, numbers that a subscriber never saw.
    pub(crate) fn oddities(&self) -> (u64, u64, u64) {
        (self.refused.get(), self.repeated.get(), self.skipped.get())
    }

    /// From PUBLISH to PUBACK or PUBCOMP.
    pub(crate) fn ack_quantiles(&self) -> Quantiles {
        self.acks.borrow().quantiles()
    }

    /// From PUBLISH to PUBACK and to delivery, since this was last asked.
    pub(crate) fn lap(&self) -> (Quantiles, Quantiles) {
        (self.acks.take().quantiles(), self.end_to_end.take().quantiles())
    }

    /// From PUBLISH to delivery.
    pub(crate) fn end_to_end_quantiles(&self) -> Quantiles {
        self.end_to_end.borrow().quantiles()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back() {
        let stamp = Stamp { sent_ns: 1 << 40, publisher: 7, seq: 99 };
        assert_eq!(Stamp::parse(&stamp.to_bytes()), Some(stamp));
        assert_eq!(Stamp::parse(&[0; 19]), None);
    }
}
