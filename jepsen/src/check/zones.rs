//! Whether a register whose values are each written once is linearizable, in `n log n` (Gibbons and Korach, "Testing
//! Shared Memories", 1997).
//!
//! The operations of one value are its cluster: its write and all reads of it. With `f` the earliest end and `s` the
//! latest begin in it, the value must be there from `f` to `s` if `f < s` (a forward zone); else one moment between `s`
//! and `f` is enough for it (a backward zone). The history is linearizable exactly if no read ends before its write
//! begins, no two forward zones overlap, and no backward zone lies within a forward one.
//!
//! A write of which nobody knows: without a read of it, it need not have happened; with one it has, and may have until
//! the last line at which it may have. Such a write ends there.

use crate::history::read::Line;

/// A value with all that is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster {
    /// Begin of its write.
    pub(super) written: Line,
    /// Earliest end of any of its operations, and latest begin.
    pub(super) first_end: Line,
    pub(super) last_begin: Line,
    /// Earliest end of its reads.
    first_read: Line,
    /// Whether its write certainly happened, or was read.
    happened: bool,
}

/// Two clusters of which not both can be right, by their places; or one that is read before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    ReadBeforeWritten(usize),
    /// The one ends, comes back after the other and so was overwritten by it.
    Overwritten(usize, usize),
}

impl Cluster {
    /// A write, with the last line at which it may have happened.
    pub(super) const fn write(begin: Line, by: Line, is_certain: bool) -> Self {
        Self { written: begin, first_end: by, last_begin: begin, first_read: Line::NEVER, happened: is_certain }
    }

    /// What is there before everything.
    pub(super) const fn initial() -> Self {
        Self::write(Line::START, Line::START, false)
    }

    /// A read of it.
    pub(super) fn read(&mut self, begin: Line, end: Line) {
        self.happened = true;
        self.first_read = self.first_read.min(end);
        self.first_end = self.first_end.min(end);
        self.last_begin = self.last_begin.max(begin);
    }

    const fn is_forward(&self) -> bool {
        self.first_end.0 < self.last_begin.0
    }
}

/// Every conflict that the zones show, each cluster at most once as the one that came back.
pub(super) fn conflicts(clusters: &[Cluster]) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (at, cluster) in clusters.iter().enumerate().filter(|(_, cluster)| cluster.happened) {
        if cluster.first_read < cluster.written {
            conflicts.push(Conflict::ReadBeforeWritten(at));
        } else if cluster.is_forward() {
            forward.push((cluster.first_end, cluster.last_begin, at));
        } else {
            backward.push((cluster.last_begin, cluster.first_end, at));
        }
    }
    forward.sort_unstable();
    // Where several overlap, the one that reaches furthest is held against the next.
    let mut furthest: Option<(Line, Line, usize)> = None;
    let mut reach: Vec<(Line, Line, usize)> = Vec::with_capacity(forward.len());
    for zone in forward {
        match furthest {
            Some((_, to, at)) if zone.0 < to => conflicts.push(Conflict::Overwritten(at, zone.2)),
            _ => {}
        }
        if furthest.is_none_or(|(_, to, _)| zone.1 > to) {
            furthest = Some(zone);
        }
        reach.extend(furthest.map(|(_, to, at)| (zone.0, to, at)));
    }
    for (from, to, at) in backward {
        let before = reach.partition_point(|zone| zone.0 < from);
        if let Some((_, reaches, other)) = before.checked_sub(1).and_then(|at| reach.get(at))
            && *reaches > to
        {
            conflicts.push(Conflict::Overwritten(*other, at));
        }
    }
    conflicts
}

#[cfg(test)]
#[path = "zones/tests.rs"]
mod tests;
