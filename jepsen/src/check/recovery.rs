//! Guarantee 13, available with a majority: how long nobody, and one client, was served; and whether enough happened at
//! all for a verdict.
//!
//! *Unavailable* is the longest time between two acknowledgements in a row, from the first to the first after the drain
//! has begun: to anybody, and to each client, for whom it begins when it asks again. *Recovery* is the time from a
//! client's first operation after a fault, or after its end, until one that was invoked since is accepted. Both are
//! measured; only [`Expectations::unavailable_ns_max`] makes a promise of them.
//!
//! [`Expectations::unavailable_ns_max`]: super::verdict::Expectations::unavailable_ns_max

use std::collections::BTreeSet;

use crate::history::event::What;
use crate::history::index::{ClientAt, Outcome, Span};
use crate::history::read::Line;

use super::run::Run;
use super::verdict::{Found, Guarantee, Kind, Violation};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    count(run, found);
    times(run, found);
    enough(run, found);
}

fn spans<'a>(run: &'a Run<'_>) -> impl Iterator<Item = Span> + 'a {
    let index = run.index;
    let connects = index.conns.iter().map(|conn| conn.span);
    let changes = index.subscribing.iter().map(|change| change.span);
    index.publishes.iter().map(|publish| publish.span).chain(connects).chain(changes)
}

fn count(run: &Run<'_>, found: &mut Found) {
    let n = &mut found.figures;
    n.events = run.index.events.len();
    n.delivered = run.index.arrivals.len();
    for span in spans(run) {
        match span.outcome {
            Outcome::Ok => n.acknowledged += 1,
            Outcome::Fail => n.failed += 1,
            Outcome::Info => n.unknown += 1,
        }
    }
    n.published = run.effects.iter().filter(|effect| effect.is_acknowledged).count();
    let mut leader: Option<(&str, u64)> = None;
    let mut fired: BTreeSet<&str> = BTreeSet::new();
    for event in &run.index.events {
        match &event.what {
            What::Leader { node, term } => {
                n.leader_changes += usize::from(leader.is_some_and(|leader| leader != (node.as_str(), *term)));
                leader = Some((node, *term));
            }
            What::Fault { nemesis, .. } => {
                n.faults += 1;
                fired.insert(nemesis);
            }
            What::NotInstalled { nemesis, why } => {
                found.remarks.push(format!("nemesis {nemesis} could not do what it wanted: {why}"));
            }
            _ => {}
        }
    }
    for nemesis in run.expectations.nemeses.iter().filter(|nemesis| !fired.contains(nemesis.as_str())) {
        found.unknown.push(format!("nemesis {nemesis} never fired"));
    }
}

/// A gap: how long, and the lines around it.
type Gap = (u64, Line, Line);

fn widest(run: &Run<'_>, accepted: &[(Line, Line)]) -> Gap {
    let gap = |pair: &[(Line, Line)]| {
        let (from, to) = (pair[0].0, pair[1].0);
        (run.index.at_ns(to) - run.index.at_ns(from), from, to)
    };
    accepted.windows(2).map(gap).max().unwrap_or((0, Line::START, Line::START))
}

/// When each client asked for anything, in order.
fn asks(run: &Run<'_>) -> Vec<Vec<Line>> {
    let index = run.index;
    let publishes = index.publishes.iter().map(|publish| (publish.client, publish.span.invoked));
    let connects = index.conns.iter().map(|conn| (conn.client, conn.span.invoked));
    let changes = index.subscribing.iter().map(|change| (change.client, change.span.invoked));
    let mut asks: Vec<Vec<Line>> = vec![Vec::new(); index.clients.len()];
    for (client, line) in publishes.chain(connects).chain(changes) {
        asks[client].push(line);
    }
    asks.iter_mut().for_each(|lines| lines.sort_unstable());
    asks
}

/// The first time that a client asked at or after a line.
fn asked_after(asks: &[Line], line: Line) -> Option<Line> {
    asks.get(asks.partition_point(|ask| *ask < line)).copied()
}

fn times(run: &Run<'_>, found: &mut Found) {
    let until = run.index.drain.unwrap_or(Line::NEVER);
    let mut all: Vec<(Line, Line)> = Vec::new();
    let mut by_client: Vec<Vec<(Line, Line)>> = vec![Vec::new(); run.index.clients.len()];
    for proof in &run.index.proofs {
        // One after the drain has begun ends an outage that had not ended before.
        for accepted in [&mut all, &mut by_client[proof.client]] {
            if accepted.last().is_none_or(|(ended, _)| *ended < until) {
                accepted.push((proof.ended, proof.invoked));
            }
        }
    }
    let gap = widest(run, &all);
    found.figures.unavailable_ns_max = gap.0;
    let asks = asks(run);
    let of_client = |(client, accepted): (ClientAt, &Vec<(Line, Line)>)| {
        let waited = accepted.windows(2).filter_map(|pair| {
            let asked = asked_after(&asks[client], pair[0].0)?;
            Some(run.index.at_ns(pair[1].0).saturating_sub(run.index.at_ns(asked)))
        });
        waited.max().unwrap_or(0)
    };
    found.figures.client_unavailable_ns_max = by_client.iter().enumerate().map(of_client).max().unwrap_or(0);
    let is_turn = |what: &What| matches!(what, What::Fault { .. } | What::Healed { .. });
    let turns: Vec<Line> = (1..)
        .map(Line)
        .zip(&run.index.events)
        .filter(|(_, event)| is_turn(&event.what))
        .map(|(line, _)| line)
        .collect();
    let mut took: Vec<u64> = Vec::new();
    for (client, accepted) in by_client.iter().enumerate() {
        // The earliest answer to what was invoked at or after each.
        let mut by_invoke: Vec<(Line, Line)> = accepted.iter().map(|&(ended, invoked)| (invoked, ended)).collect();
        by_invoke.sort_unstable();
        let mut earliest = Line::NEVER;
        for (_, ended) in by_invoke.iter_mut().rev() {
            earliest = earliest.min(*ended);
            *ended = earliest;
        }
        for &turn in turns.iter().filter(|turn| **turn < until) {
            let Some(asked) = asked_after(&asks[client], turn) else { continue };
            let next = by_invoke.partition_point(|(invoked, _)| *invoked < asked);
            if let Some((_, ended)) = by_invoke.get(next) {
                took.push(run.index.at_ns(*ended).saturating_sub(run.index.at_ns(asked)));
            }
        }
    }
    took.sort_unstable();
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
    found.figures.recovery_ns_p50 = at(50).copied().unwrap_or(0);
    found.figures.recovery_ns_p99 = at(99).copied().unwrap_or(0);
    if let Some(bound) = run.expectations.unavailable_ns_max.filter(|&bound| gap.0 > bound) {
        found.violations.push(Violation {
            guarantee: Guarantee::Available,
            kind: Kind::Slow,
            client: None,
            message: None,
            what: format!("nobody was served for {} ms, at most {} ms", gap.0 / 1_000_000, bound / 1_000_000),
            lines: vec![gap.1, gap.2],
        });
    }
}

fn enough(run: &Run<'_>, found: &mut Found) {
    let (n, wanted) = (&found.figures, run.expectations);
    if n.acknowledged < wanted.acknowledged_min {
        found.unknown.push(format!("{} operations were acknowledged, not {}", n.acknowledged, wanted.acknowledged_min));
    }
    if n.leader_changes < wanted.leader_changes_min {
        let (had, min) = (n.leader_changes, wanted.leader_changes_min);
        found.unknown.push(format!("the leader changed {had} times, not {min}"));
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::History;
    use crate::check::verdict::{Expectations, Guarantee, Verdict};

    fn faulty() -> History {
        let mut h = History::new();
        h.connect(1, 1).leader("n1", 1).fault(1, "kill").wait_s(2).healed(1).leader("n2", 2);
        h.publish(1, 1, 0, "a", 1).drain();
        h
    }

    #[test]
    fn what_was_asked_for_must_have_happened() {
        let full = Expectations {
            acknowledged_min: 2,
            leader_changes_min: 1,
            nemeses: vec!["kill".to_owned()],
            ..Expectations::default()
        };
        assert_eq!(faulty().report_with(&full).verdict, Verdict::Pass);
        for wanted in [
            Expectations { acknowledged_min: 3, ..full.clone() },
            Expectations { leader_changes_min: 2, ..full.clone() },
            Expectations { nemeses: vec!["pause".to_owned()], ..full.clone() },
        ] {
            let report = faulty().report_with(&wanted);
            assert!(matches!(&report.verdict, Verdict::Unknown(reasons) if reasons.len() == 1), "{report}");
            assert_eq!(report.verdict.exit_code(), 2);
        }
        let mut h = History::new();
        h.connect(1, 1);
        assert_eq!(h.report_with(&Expectations::default()).verdict.exit_code(), 2, "not drained");
    }

    #[test]
    fn a_nemesis_that_could_not_is_told() {
        let mut h = faulty();
        h.not_installed("disk", "no fuse");
        assert!(h.report_with(&Expectations::default()).to_string().contains("no fuse"));
    }

    #[test]
    fn the_pause_is_measured_and_held_to_its_bound() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).fault(1, "kill");
        let op = h.publish_open(1, 1, 0, "a", 1);
        h.wait_s(2).puback(1, op).healed(1).wait_s(5).publish(2, 1, 0, "a", 1).drain();
        let figures = h.report().figures;
        assert!(figures.unavailable_ns_max >= 5_000_000_000, "{figures:?}");
        let waited = [figures.client_unavailable_ns_max, figures.recovery_ns_p99];
        let of_who_asked = 2_000_000_000..3_000_000_000;
        assert!(waited.iter().all(|ns| of_who_asked.contains(ns)), "nobody waits who asks for nothing: {figures:?}");
        assert!(figures.recovery_ns_p50 <= figures.recovery_ns_p99);
        let strict = Expectations { unavailable_ns_max: Some(1_000_000_000), ..Expectations::default() };
        let report = faulty().report_with(&strict);
        assert_eq!(report.verdict.exit_code(), 1);
        assert!(matches!(&report.verdict, Verdict::Violation(v) if v[0].guarantee == Guarantee::Available));
    }
}
