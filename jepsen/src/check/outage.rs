//! Times in which nobody was served though somebody asked: deadlines of the cluster do not run then for a checker,
//! because nothing can be committed. A history in which nobody asks has none.

use crate::history::index::{Index, Outcome};

/// Shorter ones are an election.
const LEAST_NS: u64 = 5_000_000_000;

/// Nodes that are all started anew serve nobody for longer: they elect, and ask each other for the time.
const COLD_START_NS: u64 = 300_000_000;

/// See the module.
pub(super) struct Outages {
    /// From and to, in order.
    long: Vec<(u64, u64)>,
    /// In which all nodes may have started anew.
    cold: Vec<(u64, u64)>,
}

impl Outages {
    pub(super) fn of(index: &Index) -> Self {
        let mut accepted: Vec<u64> = index.proofs.iter().map(|proof| index.at_ns(proof.ended)).collect();
        accepted.push(index.events.last().map_or(0, |event| event.at_ns));
        accepted.sort_unstable();
        let publishes = index.publishes.iter().map(|publish| publish.span);
        let connects = index.conns.iter().map(|conn| conn.span);
        let changes = index.subscribing.iter().map(|change| change.span);
        let refused = publishes.chain(connects).chain(changes).filter(|span| span.outcome != Outcome::Ok);
        let mut refused: Vec<u64> = refused.map(|span| index.at_ns(span.invoked)).collect();
        refused.sort_unstable();
        let was_asked = |from: u64, to: u64| {
            let first = refused.partition_point(|at| *at <= from);
            refused.get(first).is_some_and(|at| *at < to)
        };
        let gaps = || accepted.windows(2).map(|pair| (pair[0], pair[1]));
        Self {
            long: gaps().filter(|&(from, to)| to - from >= LEAST_NS && was_asked(from, to)).collect(),
            cold: gaps().filter(|&(from, to)| to - from >= COLD_START_NS).collect(),
        }
    }

    /// Whether all nodes may have started anew between these, so that time is what their wall clocks say since.
    pub(super) fn may_be_cold(&self, from: u64, to: u64) -> bool {
        let first = self.cold.partition_point(|(_, end)| *end <= from);
        self.cold.get(first).is_some_and(|(begin, _)| *begin < to)
    }

    /// When so much time has passed since `from`, without the outages.
    pub(super) fn after(&self, from: u64, time: u64) -> u64 {
        let mut due = from.saturating_add(time);
        for &(begin, end) in self.long.iter().filter(|(_, end)| *end > from) {
            if begin >= due {
                break;
            }
            due = due.saturating_add(end - begin.max(from));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_on_the_way_do_not_count() {
        let outages = Outages { long: vec![(10, 20), (30, 50), (90, 99)], cold: Vec::new() };
        assert_eq!(outages.after(0, 10), 10);
        assert_eq!(outages.after(0, 11), 21);
        assert_eq!(outages.after(5, 20), 55, "two of them");
        assert_eq!(outages.after(15, 1), 21, "it began in one");
        assert_eq!(outages.after(60, 10), 70);
    }

    #[test]
    fn all_nodes_may_have_started_where_nobody_was_served() {
        let outages = Outages { long: Vec::new(), cold: vec![(10, 20), (30, 50)] };
        for (from, to, may) in
            [(0, 10, false), (0, 11, true), (19, 25, true), (20, 30, false), (45, 46, true), (50, 99, false)]
        {
            assert_eq!(outages.may_be_cold(from, to), may, "{from} to {to}");
        }
    }
}
