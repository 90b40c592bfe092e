//! Counters of the log, for metrics and `doctor`: plain atomics, written by the writer thread alone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds, in microseconds, of the buckets of [`LogStats::sync_us_buckets`]; the last bucket has none.
pub const SYNC_US_BOUNDS: [u64; 14] =
    [50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000];

/// What the writer thread has done since the start.
#[derive(Debug, Default)]
pub struct LogStats {
    /// Synced writes.
    pub syncs: AtomicU64,
    /// Time spent in them, microseconds in all.
    pub sync_us_sum: AtomicU64,
    /// The last one.
    pub sync_us_last: AtomicU64,
    /// The longest one.
    pub sync_us_max: AtomicU64,
    /// How many took up to [`SYNC_US_BOUNDS`] (not cumulative).
    pub sync_us_buckets: [AtomicU64; SYNC_US_BOUNDS.len() + 1],
    /// Operations (appends, votes, truncations) made durable.
    pub ops: AtomicU64,
    /// Records appended.
    pub records: AtomicU64,
    /// Bytes of them.
    pub record_bytes: AtomicU64,
    /// Records in the last synced write.
    pub records_per_sync_last: AtomicU64,
    /// Most records in one synced write.
    pub records_per_sync_max: AtomicU64,
    /// Times that a caller had to wait because the queue was full.
    pub waits: AtomicU64,
}

impl LogStats {
    /// One synced write is done.
    pub(super) fn synced(&self, took: Duration, ops: u64, records: u64, bytes: u64) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_us_sum.fetch_add(us, Relaxed);
        self.sync_us_last.store(us, Relaxed);
        self.sync_us_max.fetch_max(us, Relaxed);
        let bucket = SYNC_US_BOUNDS.partition_point(|bound| *bound < us);
        if let Some(count) = self.sync_us_buckets.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.ops.fetch_add(ops, Relaxed);
        self.records.fetch_add(records, Relaxed);
        self.record_bytes.fetch_add(bytes, Relaxed);
        self.records_per_sync_last.store(records, Relaxed);
        self.records_per_sync_max.fetch_max(records, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_falls_into_the_bucket_that_holds_it() {
        let stats = LogStats::default();
        for us in [1, 50, 51, 1_000_000, 1_000_001] {
            stats.synced(Duration::from_micros(us), 1, 2, 3);
        }
        let count = |i: usize| stats.sync_us_buckets[i].load(Relaxed);
        assert_eq!((count(0), count(1), count(13), count(14)), (2, 1, 1, 1));
        assert_eq!(stats.sync_us_max.load(Relaxed), 1_000_001);
        assert_eq!(stats.records.load(Relaxed), 10);
    }
}
