//! Latencies in buckets that are at most 3 % wide, so that a run keeps every sample in a few kilobytes.

use serde::Serialize;

/// Buckets to each power of two.
const SUB: u32 = 32;
const SUB_BITS: u32 = SUB.trailing_zeros();

/// Counts of nanosecond values.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

/// What is reported of one, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Quantiles {
    /// Samples.
    pub(crate) count: u64,
    /// Median.
    pub(crate) p50_us: f64,
    /// 99 in 100 are at most this.
    pub(crate) p99_us: f64,
    /// 999 in 1000 are at most this.
    pub(crate) p999_us: f64,
    /// The largest.
    pub(crate) max_us: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; (64 * SUB) as usize], total: 0, max: 0 }
    }
}

/// Values below 64 have a bucket each; above, the bucket is the power of two and the five bits after the first.
fn bucket(value: u64) -> usize {
    let shift = (63 - (value | u64::from(SUB)).leading_zeros()) - SUB_BITS;
    (u64::from(shift * SUB) + (value >> shift)) as usize
}

/// Largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let (bucket, sub) = (bucket as u64, u64::from(SUB));
    if bucket < 2 * sub {
        return bucket;
    }
    let shift = bucket / sub - 1;
    ((bucket % sub + sub) << shift) + (1 << shift) - 1
}

impl Histogram {
    /// One more sample.
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        if let Some(count) = self.counts.get_mut(bucket(nanoseconds)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// The value that a share `q` of all samples does not exceed.
    pub(crate) fn quantile(&self, q: f64) -> u64 {
        let wanted = ((self.total as f64) * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper(at).min(self.max);
            }
        }
        self.max
    }

    /// The usual ones.
    pub(crate) fn quantiles(&self) -> Quantiles {
        let us = |ns: u64| ns as f64 / 1000.0;
        Quantiles {
            count: self.total,
            p50_us: us(self.quantile(0.5)),
            p99_us: us(self.quantile(0.99)),
            p999_us: us(self.quantile(0.999)),
            max_us: us(self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        for value in (0..5_000_u64).chain([1 << 20, (1 << 33) + 12_345, u64::MAX >> 1]) {
            let top = upper(bucket(value));
            assert!(top >= value && (top - value) as f64 <= value as f64 * 0.04, "{value} in a bucket up to {top}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let mut h = Histogram::default();
        (1..=1000).for_each(|v| h.record(v * 1000));
        let q = h.quantiles();
        assert!((q.p50_us - 500.0).abs() < 20.0 && (q.p99_us - 990.0).abs() < 35.0, "{q:?}");
        assert!((q.max_us - 1000.0).abs() < f64::EPSILON && q.count == 1000);
    }
}
