//! What several repetitions say together.

/// The middle one, and the ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    count: usize,
}

impl Spread {
    /// Of these; none of none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted.first().copied()?, sorted.last().copied()?);
        let (low, high) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*low, *high), min, max, count: sorted.len() })
    }

    /// `12 (10–15)`; only the value when there was one, or all were alike.
    pub(crate) fn shown(self, decimals: usize) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(|value| number(value, decimals));
        if self.count == 1 || min == max { median } else { format!("{median} ({min}–{max})") }
    }
}

/// With commas between thousands.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let whole = digits.split('.').next().unwrap_or_default();
    let mut shown = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && place < whole.len() && (whole.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[]), None);
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
    }

    #[test]
    fn a_spread_shows_its_ends_only_when_they_differ() {
        assert_eq!(Spread::of(&[10.0, 12.0, 50_000.0]).unwrap().shown(0), "12 (10–50,000)");
        assert_eq!(Spread::of(&[1.25]).unwrap().shown(1), "1.2");
        assert_eq!(Spread::of(&[0.0, 0.0]).unwrap().shown(0), "0");
    }

    #[test]
    fn numbers_have_commas_between_thousands() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(999.96, 1), "1,000.0");
        assert_eq!(number(-1234.0, 0), "-1,234");
        assert_eq!(number(12.0, 0), "12");
    }
}
