//! How fast one client may publish: a bucket of tokens for messages and one for bytes.
//!
//! A bucket holds what one second brings. A publish that finds too little is taken all the same and leaves a debt;
//! while there is one, nothing more is read from the client, so nothing is lost and the client feels it as a slow
//! link. Without a limit nothing is kept.

/// Micro-tokens of a token: buckets fill each millisecond, also at one message a second.
const MICRO: i64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Tokens a second, as many as it holds.
    rate: i64,
    micro: i64,
    filled_ms: u64,
}

impl Bucket {
    fn new(rate: u32, now_ms: u64) -> Option<Self> {
        let rate = i64::from(rate);
        (rate > 0).then_some(Self { rate, micro: rate * MICRO, filled_ms: now_ms })
    }

    /// Takes `tokens`; in how many milliseconds the debt is paid that this leaves, 0 without.
    fn take(&mut self, tokens: usize, now_ms: u64) -> u64 {
        // What is brought in one millisecond, in micro-tokens, is the rate times a thousand.
        let per_ms = self.rate * (MICRO / 1000);
        let passed_ms = now_ms.saturating_sub(self.filled_ms).min(i64::MAX as u64) as i64;
        let brought = passed_ms.saturating_mul(per_ms);
        self.filled_ms = now_ms;
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(MICRO);
        self.micro = self.micro.saturating_add(brought).min(self.rate * MICRO).saturating_sub(tokens);
        if self.micro >= 0 { 0 } else { self.micro.unsigned_abs().div_ceil(per_ms.unsigned_abs()) }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rate {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Rate {
    /// `None` without a limit; 0 is none.
    pub(super) fn new(messages_max: u32, bytes_max: u32, now_ms: u64) -> Option<Box<Self>> {
        let rate = Self { messages: Bucket::new(messages_max, now_ms), bytes: Bucket::new(bytes_max, now_ms) };
        (rate.messages.is_some() || rate.bytes.is_some()).then(|| Box::new(rate))
    }

    /// A publish of so many bytes was taken: for how many milliseconds nothing more is read.
    pub(super) fn took(&mut self, bytes: usize, now_ms: u64) -> u64 {
        let messages_ms = self.messages.as_mut().map_or(0, |bucket| bucket.take(1, now_ms));
        let bytes_ms = self.bytes.as_mut().map_or(0, |bucket| bucket.take(bytes, now_ms));
        messages_ms.max(bytes_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_a_burst_and_then_it_is_the_rate() {
        let mut rate = Rate::new(10, 0, 1_000).expect("a limit");
        let waits: Vec<u64> = (0..12).map(|_| rate.took(1_000_000, 1_000)).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 200]);
        assert_eq!(rate.took(0, 1_300), 0, "the debt of two and one more are paid");
        assert_eq!(rate.took(0, 1_300), 100);
        assert_eq!(rate.took(0, 100_000), 0);
        let again = (0..10).filter(|_| rate.took(0, 100_000) == 0).count();
        assert_eq!(again, 9, "what is not used in a second is gone");
    }

    #[test]
    fn bytes_count_too_and_a_large_packet_waits_for_its_size() {
        let mut rate = Rate::new(0, 1_000, 0).expect("a limit");
        assert_eq!(rate.took(5_000, 0), 4_000);
        assert_eq!(rate.took(1, 4_000), 1);
        assert!(Rate::new(0, 0, 0).is_none());
        let mut slow = Rate::new(1, u32::MAX, 0).expect("a limit");
        slow.took(usize::MAX, u64::MAX); // no overflow
    }
}
