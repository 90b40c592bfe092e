//! When a client was certainly subscribed, certainly not, or perhaps, as far as its history tells.
//!
//! A SUBSCRIBE took effect between its invoke and its SUBACK; without one at any time until a later connection of the
//! client was acknowledged, or never. The same for UNSUBSCRIBE and for whatever ends the session.

use crate::history::index::{ClientAt, TextAt};
use crate::history::read::Line;

/// For a bound, the largest value among the entries whose key is below it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stairs(Vec<(Line, Line)>);

impl Stairs {
    pub(super) fn new(mut entries: Vec<(Line, Line)>) -> Self {
        entries.sort_unstable();
        let mut highest = Line::START;
        for (_, value) in &mut entries {
            highest = highest.max(*value);
            *value = highest;
        }
        Self(entries)
    }

    pub(super) fn below(&self, bound: Line) -> Option<Line> {
        let count = self.0.partition_point(|(key, _)| *key < bound);
        Some(self.0.get(count.checked_sub(1)?)?.1)
    }
}

/// A SUBSCRIBE that may have had an effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) invoked: Line,
    /// Its effect was not later than this.
    pub(super) by: Line,
    /// Whether it certainly had one.
    pub(super) is_certain: bool,
    /// Bits of the QoS that it may have: 1 << QoS.
    pub(super) qos: u8,
}

/// What may have ended a subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Not before this.
    pub(super) from: Line,
    /// Not later than this.
    pub(super) by: Line,
    /// Whether it certainly did.
    pub(super) is_certain: bool,
}

/// One client's subscription by one filter.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    pub(super) client: ClientAt,
    pub(super) filter: TextAt,
    pub(super) is_shared: bool,
    starts: Vec<Start>,
    /// Latest effect of all starts up to each.
    reach: Vec<Line>,
    /// For each QoS the latest effect of the starts that may have it.
    by_qos: [Stairs; 3],
    certain_starts: Stairs,
    ends: Stairs,
    certain_ends: Stairs,
}

impl Timeline {
    pub(super) fn new(client: ClientAt, filter: TextAt, is_shared: bool, mut starts: Vec<Start>, ends: &[End]) -> Self {
        starts.sort_unstable_by_key(|start| start.invoked);
        let mut highest = Line::START;
        let reach = starts
            .iter()
            .map(|start| {
                highest = highest.max(start.by);
                highest
            })
            .collect();
        let certain = starts.iter().filter(|start| start.is_certain);
        let by_qos = [0b001, 0b010, 0b100].map(|bit| {
            let with = starts.iter().filter(|start| start.qos & bit != 0);
            Stairs::new(with.map(|start| (start.invoked, start.by)).collect())
        });
        Self {
            client,
            filter,
            is_shared,
            certain_starts: Stairs::new(certain.map(|start| (start.by, start.invoked)).collect()),
            ends: Stairs::new(ends.iter().map(|end| (end.from, end.by)).collect()),
            certain_ends: Stairs::new(ends.iter().filter(|e| e.is_certain).map(|e| (e.by, e.from)).collect()),
            starts,
            reach,
            by_qos,
        }
    }

    /// Subscribed at every moment between the two, whatever happened when it may have.
    pub(super) fn is_certain(&self, from: Line, to: Line) -> bool {
        let Some(start) = self.certain_starts.below(from) else { return false };
        self.ends.below(to).is_none_or(|end| end < start)
    }

    /// Not subscribed at any moment between the two.
    pub(super) fn is_absent(&self, from: Line, to: Line) -> bool {
        let count = self.starts.partition_point(|start| start.invoked < to);
        let Some(reach) = count.checked_sub(1).and_then(|at| self.reach.get(at)) else { return true };
        self.certain_ends.below(from).is_some_and(|end| *reach < end)
    }

    /// Bits of the QoS that it may have had between the two, if it was subscribed.
    pub(super) fn qos(&self, from: Line, to: Line) -> u8 {
        let newest = self.certain_starts.below(from).unwrap_or(Line::START);
        let may_be = |stairs: &Stairs| stairs.below(to).is_some_and(|by| by >= newest);
        self.by_qos.iter().rev().fold(0, |bits, stairs| bits << 1 | u8::from(may_be(stairs)))
    }

    /// Whether a SUBSCRIBE had begun before this.
    pub(super) fn has_begun(&self, by: Line) -> bool {
        self.starts.first().is_some_and(|start| start.invoked < by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(starts: &[(u32, u32, bool)], ends: &[(u32, u32, bool)]) -> Timeline {
        let starts = starts.iter().map(|&(invoked, by, is_certain)| Start {
            invoked: Line(invoked),
            by: Line(by),
            is_certain,
            qos: if is_certain { 0b10 } else { 0b100 },
        });
        let ends: Vec<End> =
            ends.iter().map(|&(from, by, is_certain)| End { from: Line(from), by: Line(by), is_certain }).collect();
        Timeline::new(0, 0, false, starts.collect(), &ends)
    }

    #[test]
    fn certain_from_suback_until_what_may_have_ended_it_begins() {
        let t = line(&[(10, 20, true)], &[(30, 40, true)]);
        assert!(!t.is_certain(Line(15), Line(25)) && !t.is_absent(Line(15), Line(25)));
        assert!(t.is_certain(Line(21), Line(29)));
        assert!(!t.is_certain(Line(21), Line(31)));
        assert!(t.is_absent(Line(41), Line(50)) && t.is_absent(Line(1), Line(9)));
        assert!(!t.is_absent(Line(39), Line(50)));
    }

    #[test]
    fn a_second_subscribe_makes_it_certain_again_only_after_all_that_may_have_ended_it() {
        let t = line(&[(10, 20, true), (35, 50, true)], &[(30, 40, true)]);
        assert!(!t.is_certain(Line(51), Line(60)), "the end may be the later of the two");
        assert!(!t.is_absent(Line(51), Line(60)));
        let t = line(&[(10, 20, true), (41, 50, true)], &[(30, 40, true)]);
        assert!(t.is_certain(Line(51), Line(60)));
    }

    #[test]
    fn what_nobody_knows_makes_nothing_certain() {
        let t = line(&[(10, u32::MAX, false)], &[(30, 40, true)]);
        assert!(!t.is_certain(Line(20), Line(25)) && !t.is_absent(Line(50), Line(60)));
        let t = line(&[(10, 20, true)], &[(30, u32::MAX, false)]);
        assert!(!t.is_certain(Line(50), Line(60)) && !t.is_absent(Line(50), Line(60)));
    }

    #[test]
    fn the_newest_certain_subscribe_decides_the_qos() {
        let t = line(&[(10, 20, true), (30, 40, false)], &[]);
        assert_eq!(t.qos(Line(21), Line(29)), 0b10);
        assert_eq!(t.qos(Line(21), Line(35)), 0b110);
    }
}
