//! Guarantee 9, a will is published exactly once when due, never when not.
//!
//! **Certainly due**: its CONNACK was seen, no DISCONNECT without will was begun on it, and the connection is over, with
//! delay 0; or its session ended with a CONNACK of Session Present 0; or nobody asked for the session again until delay
//! and [`Expectations::will_late_ns_max`] had passed since the end of the connection, without the time in which nobody was
//! served ([`super::outage`]). Then it arrives at everyone who
//! was certainly subscribed from when its connection was still alive to the end, and is connected in a drained history.
//!
//! **Certainly not due**: its CONNECT was refused; or the connection was alive after the will had arrived; or, with a
//! delay, the session was resumed before the delay can have passed; or a DISCONNECT without will was sent while no fault
//! was near, so that the broker must have read it.
//!
//! Everything else may or may not be published. Nothing is published twice: at QoS 1 it has one packet identifier with
//! each receiver, at QoS 2 it is new once ([`super::repeats`], [`super::exactly_once`]).
//!
//! [`Expectations::will_late_ns_max`]: super::verdict::Expectations::will_late_ns_max

use std::collections::HashMap;

use crate::history::event::What;
use crate::history::index::{ClientAt, ConnAt, MessageAt, Outcome};
use crate::history::read::Line;

use super::run::{Freshness, Run};
use super::verdict::{Found, Guarantee, Kind};

/// What the broker reads and commits of a DISCONNECT when nothing is wrong.
const QUIET_NS: u64 = 10_000_000_000;

/// Why a will must not be published.
enum NotDue {
    Refused,
    Resumed,
    Disconnected,
}

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let mut seen: HashMap<MessageAt, Vec<(ClientAt, Line)>> = HashMap::new();
    for arrival in run.index.arrivals.iter().filter(|a| run.freshness(a) != Freshness::Stale) {
        if let Some(message) = arrival.message {
            seen.entry(message).or_default().push((arrival.client, arrival.line));
        }
    }
    let faults = faults(run);
    for (at, conn) in run.index.conns.iter().enumerate() {
        let Some((message, _)) = conn.will else { continue };
        let arrivals = seen.get(&message).map_or(&[][..], Vec::as_slice);
        let due = due(run, at);
        if due.is_some() {
            found.figures.wills_due += 1;
            must_arrive(run, message, conn.alive_after, arrivals, found);
        }
        let Some(&(client, line)) = arrivals.first() else { continue };
        let reason = match not_due(run, at, &faults) {
            _ if line < conn.alive_after => Some("arrived while its connection was alive"),
            Some(NotDue::Refused) => Some("arrived and its CONNECT was refused"),
            Some(NotDue::Resumed) => Some("arrived and its session was resumed before its delay"),
            Some(NotDue::Disconnected) => Some("arrived and its client had sent DISCONNECT"),
            None => None,
        };
        if let Some(reason) = reason {
            let what = reason.to_owned();
            let mut bad = run.violation(Guarantee::Wills, Kind::Unwanted, Some(client), Some(message), what);
            bad.lines.extend([conn.alive_after, line]);
            bad.lines.extend(conn.closed.map(|(line, _)| line));
            found.violations.push(bad);
        }
    }
}

/// It was not published before its connection was alive for the last time.
fn must_arrive(run: &Run<'_>, message: MessageAt, from: Line, arrivals: &[(ClientAt, Line)], found: &mut Found) {
    let m = &run.index.messages[message];
    if !run.is_drained() || m.qos == 0 {
        return;
    }
    for &client in run.routes(m.topic).into_iter().flat_map(|routes| routes.keys()) {
        let is_owed = run.attached[client].is_some() && run.is_subscribed_to(client, m.topic, from, Line::NEVER);
        if is_owed && !arrivals.iter().any(|(receiver, _)| *receiver == client) {
            let what = "was due and never arrived".to_owned();
            found.violations.push(run.violation(Guarantee::Wills, Kind::Lost, Some(client), Some(message), what));
        }
    }
}

/// Connections of the client that were asked for after this one's CONNACK, in order.
fn later<'a>(run: &'a Run<'_>, at: ConnAt) -> impl Iterator<Item = ConnAt> + 'a {
    let conns = &run.index.conns;
    let all = &run.index.clients[conns[at].client].conns;
    let from = all.partition_point(|&other| conns[other].span.invoked < conns[at].span.ended);
    all[from..].iter().copied().filter(move |&other| conns[other].span.outcome != Outcome::Fail)
}

/// The line from which on it is certainly due, if it is.
fn due(run: &Run<'_>, at: ConnAt) -> Option<Line> {
    let conns = &run.index.conns;
    let conn = &conns[at];
    let (_, delay_s) = conn.will?;
    if conn.span.outcome != Outcome::Ok || conn.disconnect.is_some_and(|(_, with_will)| !with_will) {
        return None;
    }
    // With another CONNECT at the same time nobody knows which will is whose.
    if run.is_contested(at) {
        return None;
    }
    let Some((over, _)) = conn.closed else {
        return run.places[at].next.filter(|_| delay_s == 0).map(|next| conns[next].span.ended);
    };
    let end_ns = run.index.at_ns(Line::NEVER);
    let (over_ns, late_ns_max) = (run.index.at_ns(over), run.expectations.will_late_ns_max);
    let late_ns = run.outages.after(over_ns, late_ns_max);
    // The broker may take a while to see that a connection is over.
    if delay_s == 0 {
        return (late_ns <= end_ns || run.places[at].next.is_some()).then_some(over);
    }
    let delay_ns = u64::from(delay_s).saturating_mul(1_000_000_000);
    let due_ns = run.outages.after(over_ns, late_ns_max.saturating_add(delay_ns));
    match later(run, at).next() {
        None => (due_ns <= end_ns).then_some(over),
        Some(next) if run.index.at_ns(conns[next].span.invoked) > due_ns => Some(over),
        Some(next) => {
            let next = &conns[next];
            let has_ended = next.span.outcome == Outcome::Ok && !next.present;
            has_ended.then_some(next.span.ended)
        }
    }
}

fn not_due(run: &Run<'_>, at: ConnAt, faults: &[(u64, u64)]) -> Option<NotDue> {
    let conn = &run.index.conns[at];
    let (_, delay_s) = conn.will?;
    match conn.span.outcome {
        Outcome::Fail => return Some(NotDue::Refused),
        Outcome::Info => return None,
        Outcome::Ok => {}
    }
    if run.is_contested(at) {
        return None;
    }
    if let Some((line, false)) = conn.disconnect
        && conn.closed.is_some()
        && run.places[at].fence > line
    {
        let at_ns = run.index.at_ns(line);
        let (from, to) = (at_ns.saturating_sub(QUIET_NS), at_ns.saturating_add(QUIET_NS));
        let begun = faults.partition_point(|(begin, _)| *begin <= to);
        let is_quiet = begun.checked_sub(1).is_none_or(|last| faults[last].1 < from);
        return is_quiet.then_some(NotDue::Disconnected);
    }
    let next = later(run, at).next().map(|next| &run.index.conns[next])?;
    let resumed_ns = run.index.at_ns(next.span.ended);
    let alive_ns = run.index.at_ns(conn.alive_after);
    let delay_ns = u64::from(delay_s).saturating_mul(900_000_000).saturating_sub(1_000_000_000);
    let is_resumed = next.span.outcome == Outcome::Ok && next.present && delay_s > 0;
    let expires_ns = u64::from(conn.expiry_s).saturating_mul(900_000_000).saturating_sub(1_000_000_000);
    (is_resumed && resumed_ns < alive_ns.saturating_add(delay_ns.min(expires_ns))).then_some(NotDue::Resumed)
}

/// When each fault began, and when the last of those that began until then was over.
fn faults(run: &Run<'_>) -> Vec<(u64, u64)> {
    let mut open: HashMap<u32, usize> = HashMap::new();
    let mut faults: Vec<(u64, u64)> = Vec::new();
    for event in &run.index.events {
        match &event.what {
            What::Fault { number, .. } => {
                open.insert(*number, faults.len());
                faults.push((event.at_ns, u64::MAX));
            }
            What::Healed { number } => {
                if let Some(at) = open.remove(number) {
                    faults[at].1 = event.at_ns;
                }
            }
            _ => {}
        }
    }
    let mut last = 0;
    for (_, end) in &mut faults {
        last = last.max(*end);
        *end = last;
    }
    faults
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Wills;
    use crate::history::event::Will;

    /// An observer, and a client whose will is message 9/0.
    fn with_will(delay_s: u32) -> History {
        let mut h = History::new();
        h.connect(2, 1).subscribe(2, 1, "w", 1);
        h.connect_with(1, 1, |c| {
            let message = History::name((9, 0));
            c.will = Some(Will { message, topic: "w".to_owned(), qos: 1, delay_s });
        });
        h
    }

    fn comes(h: &mut History) -> &mut History {
        h.deliver(2, 1, (9, 0), "w", 1, 1).settle(2, 1, 1)
    }

    #[test]
    fn a_will_comes_once_when_its_connection_breaks() {
        let mut h = with_will(0);
        comes(h.lost(1, 1).wait_s(20)).drain();
        assert_eq!(broken(&h), []);
        let mut h = with_will(0);
        h.lost(1, 1).wait_s(20).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
        let mut h = with_will(0);
        comes(h.lost(1, 1).wait_s(20)).deliver(2, 1, (9, 0), "w", 1, 2).settle(2, 1, 2).drain();
        assert_eq!(broken(&h).len(), 1, "twice");
    }

    #[test]
    fn not_while_its_connection_lives() {
        let mut h = with_will(0);
        comes(&mut h).publish(1, 1, 0, "a", 1).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
    }

    #[test]
    fn not_after_disconnect_unless_a_fault_was_near() {
        let mut h = with_will(0);
        comes(h.disconnect(1, 1, false).wait_s(20)).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
        let mut h = with_will(0);
        comes(h.fault(1, "kill").disconnect(1, 1, false).wait_s(20)).healed(1).drain();
        assert_eq!(broken(&h), []);
    }

    #[test]
    fn disconnect_with_will_is_no_way_out() {
        let mut h = with_will(0);
        h.disconnect(1, 1, true).wait_s(20).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
    }

    #[test]
    fn who_comes_back_before_the_delay_leaves_none() {
        let mut h = with_will(10);
        comes(h.lost(1, 1).resume(1, 2).wait_s(60)).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
        let mut h = with_will(10);
        h.lost(1, 1).resume(1, 2).wait_s(60).drain();
        assert_eq!(broken(&h), []);
        let mut h = with_will(10);
        h.lost(1, 1).wait_s(60).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))], "nobody came back");
    }

    /// Its session is resumed after longer than its delay; meanwhile another client is served, or is not.
    #[test]
    fn it_is_not_due_while_nobody_is_served() {
        for is_outage in [true, false] {
            let mut h = with_will(3);
            h.lost(1, 1);
            h.busy(2, 40, !is_outage);
            h.resume(1, 2).drain();
            let wanted: &[_] = if is_outage { &[] } else { &[(Wills, Some(0))] };
            assert_eq!(broken(&h), wanted);
        }
    }

    #[test]
    fn a_clean_start_makes_it_due() {
        let mut h = with_will(10);
        h.lost(1, 1).connect_with(1, 2, |c| c.clean_start = true).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
    }

    #[test]
    fn a_takeover_is_an_end_without_disconnect() {
        let mut h = with_will(0);
        h.resume(1, 2).told(1, 1, 0x8E).drain();
        assert_eq!(broken(&h), [(Wills, Some(0))]);
    }

    #[test]
    fn it_is_owed_to_who_subscribed_while_its_connection_was_still_alive() {
        for is_alive in [false, true] {
            let mut h = History::new();
            h.connect_with(1, 1, |c| {
                let message = History::name((9, 0));
                c.will = Some(Will { message, topic: "w".to_owned(), qos: 1, delay_s: 0 });
            });
            h.connect(2, 1).subscribe(2, 1, "w", 1);
            if is_alive {
                h.publish(1, 1, 0, "a", 1);
            }
            h.lost(1, 1).wait_s(20).drain();
            let wanted: &[_] = if is_alive { &[(Wills, Some(0))] } else { &[] };
            assert_eq!(broken(&h), wanted);
        }
    }
}
