//! A quick hash for what nobody outside chooses.

use std::hash::Hasher;

/// Hashes ids, which are positions in the log: nobody outside chooses them. Both halves of the product count, because
/// positions of different entries often differ in their upper bits only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        /// The golden ratio: odd, and without a pattern in its bits.
        const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15;
        let product = u128::from(self.0 ^ n) * MULTIPLIER;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
