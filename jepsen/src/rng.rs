//! Random numbers from a seed: what was chosen once is chosen again.

/// A small generator (xorshift64*).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Another generator, of its own for `who`: what one draws changes nothing for the others.
    #[must_use]
    pub const fn of(seed: u64, who: u64) -> Self {
        let mut rng = Self::new(seed ^ who.wrapping_add(1).wrapping_mul(0xD134_2543_DE82_EF95));
        // Neighbouring seeds begin alike.
        let mut round = 0;
        while round < 8 {
            rng.draw();
            round += 1;
        }
        rng
    }

    /// Any number.
    pub const fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`, which is not 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    /// True in so many of a hundred cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A number of `from..=to`.
    pub const fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let at = self.below((of.len() as u64).max(1));
        of.get(usize::try_from(at).unwrap_or_default())
    }

    /// In any order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            let at = usize::try_from(self.below(end as u64 + 1)).unwrap_or_default();
            list.swap(end, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        let draw = |seed, who| {
            let mut rng = Rng::of(seed, who);
            [rng.below(1 << 20), rng.below(1 << 20), rng.below(1 << 20)]
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut list: Vec<u32> = (0..20).collect();
        Rng::new(7).shuffle(&mut list);
        assert_ne!(list, (0..20).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..20).collect::<Vec<_>>());
    }
}
