//! Which messages of one publisher: a bit for each number, from 0.

/// A set of numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    words: Vec<u64>,
    count: u64,
}

impl Seen {
    /// Puts one in; whether it was not there.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        match self.words.get_mut(word) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.count += 1;
                true
            }
            _ => false,
        }
    }

    /// How many are in it.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// How many of this are not in `other`.
    pub(crate) fn missing_in(&self, other: &Self) -> u64 {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter().zip(others).map(|(word, other)| u64::from((word & !other).count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_and_not_delivered_is_counted() {
        let (mut acknowledged, mut delivered) = (Seen::default(), Seen::default());
        for number in [0, 1, 63, 64, 200] {
            assert!(acknowledged.insert(number));
        }
        assert!(delivered.insert(1) && delivered.insert(64) && delivered.insert(5));
        assert!(!delivered.insert(64), "the second time is a repetition");
        assert_eq!((acknowledged.count(), delivered.count()), (5, 3));
        assert_eq!(acknowledged.missing_in(&delivered), 3);
        assert_eq!(delivered.missing_in(&acknowledged), 1);
        assert_eq!(Seen::default().missing_in(&acknowledged), 0);
    }
}
