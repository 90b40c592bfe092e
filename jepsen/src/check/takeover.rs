//! Guarantee 8, one owner for each client identifier.
//!
//! - **Epochs are linear.** Ownership is a register: each CONNECT writes it once, each operation that was accepted on a
//!   connection reads it. Zones decide ([`super::zones`]): what was invoked on a connection after the CONNACK of a later
//!   one is not accepted, and of two that were opened at once only one goes on.
//! - **Nothing is settled past it.** No PUBREL answers a PUBREC that was sent on a connection after the CONNACK of a later
//!   one.
//! - **Session Present is exact**: 0 with Clean Start, 0 when no CONNECT can have made the session or the one before
//!   certainly left none (Session Expiry 0), 1 when every CONNECT that can have been the one before left a session
//!   which cannot have expired.
//! - **The older connection ends**: 0x8E only where another CONNECT can have taken it over; and at the end of a drained
//!   history a client has one connection.
//!
//! A CONNECT without an answer may take effect until its deadline ([`super::verdict::Expectations`]).

use std::collections::HashMap;

use crate::history::event::{Closing, Step};
use crate::history::index::{ClientAt, ConnAt, Inbound, Outcome};
use crate::history::read::Line;

use super::run::{Freshness, Run};
use super::verdict::{Found, Guarantee, Kind, Violation};
use super::zones::{Cluster, Conflict, conflicts};

const SESSION_TAKEN_OVER: u8 = 0x8E;

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    owners(run, found);
    for client in 0..run.index.clients.len() {
        settled_past(run, client, found);
        present(run, client, found);
        ended(run, client, found);
    }
}

fn bad(run: &Run<'_>, client: ClientAt, kind: Kind, what: String, lines: Vec<Line>) -> Violation {
    Violation {
        guarantee: Guarantee::OneOwner,
        kind,
        client: Some(run.client(client)),
        message: None,
        what,
        lines: lines.into_iter().filter(|line| *line != Line::NEVER && *line != Line::START).collect(),
    }
}

fn owners(run: &Run<'_>, found: &mut Found) {
    let conns = &run.index.conns;
    let mut proofs: Vec<Vec<(Line, Line, ConnAt)>> = vec![Vec::new(); run.index.clients.len()];
    for proof in &run.index.proofs {
        proofs[proof.client].push((proof.invoked, proof.ended, proof.conn));
    }
    for (client, life) in run.index.clients.iter().enumerate() {
        let mut places: HashMap<ConnAt, usize> = HashMap::new();
        let (mut clusters, mut opened) = (Vec::new(), Vec::new());
        for &at in &life.conns {
            let span = conns[at].span;
            if span.outcome == Outcome::Ok {
                places.insert(at, clusters.len());
                clusters.push(Cluster::write(span.invoked, span.ended, true));
                opened.push(at);
            }
        }
        for &(invoked, ended, conn) in &proofs[client] {
            if let Some(&place) = places.get(&conn) {
                clusters[place].read(invoked, ended);
            }
        }
        for conflict in conflicts(&clusters) {
            let (Conflict::ReadBeforeWritten(a) | Conflict::Overwritten(a, _)) = conflict;
            let b = if let Conflict::Overwritten(_, b) = conflict { b } else { a };
            let (old, new) = (&conns[opened[a]], &conns[opened[b]]);
            let what =
                format!("connection {} was the owner before and after connection {}", old.number.0, new.number.0);
            let lines = vec![old.span.ended, new.span.invoked, new.span.ended, old.alive_after, new.alive_after];
            found.violations.push(bad(run, client, Kind::Stale, what, lines));
        }
    }
}

fn settled_past(run: &Run<'_>, client: ClientAt, found: &mut Found) {
    let mut received: HashMap<(ConnAt, u16), Line> = HashMap::new();
    for inbound in &run.index.clients[client].inbound {
        match *inbound {
            Inbound::Settled(line, conn, id, Step::Received) => drop(received.insert((conn, id), line)),
            Inbound::Released(line, conn, id) => {
                let Some(&asked) = received.get(&(conn, id)) else { continue };
                if run.freshness_at(conn, asked) == Freshness::Stale {
                    let what = format!("a PUBREC for {id} was heard on a connection that was nobody's");
                    let lines = vec![run.places[conn].fence, asked, line];
                    found.violations.push(bad(run, client, Kind::Stale, what, lines));
                }
            }
            _ => {}
        }
    }
}

/// What the CONNECTs that may have been the one before left behind.
#[derive(Clone, Copy, Default)]
struct Left {
    a_session: bool,
    none: bool,
}

fn present(run: &Run<'_>, client: ClientAt, found: &mut Found) {
    let conns = &run.index.conns;
    let all = &run.index.clients[client].conns;
    // Of those whose CONNACK came before a line, the one that was invoked last.
    let mut opened: Vec<ConnAt> = all.iter().copied().filter(|&at| conns[at].span.outcome == Outcome::Ok).collect();
    opened.sort_by_key(|&at| conns[at].span.ended);
    let mut newest: Vec<ConnAt> = Vec::with_capacity(opened.len());
    for &at in &opened {
        let before = newest.last().copied().filter(|&b| conns[b].span.invoked > conns[at].span.invoked);
        newest.push(before.unwrap_or(at));
    }
    for (place, &at) in opened.iter().enumerate() {
        let conn = &conns[at];
        let certain = opened.partition_point(|&other| conns[other].span.ended < conn.span.invoked);
        let before = certain.checked_sub(1).map(|i| newest[i]);
        let since = before.map_or(Line::START, |b| conns[b].span.invoked);
        // Itself, and those that may stand between it and this one.
        let until = all.partition_point(|&other| conns[other].span.invoked < conn.span.ended);
        let candidates = (0..until).rev().take_while(|&i| run.reach[all[i]] > since).map(|i| all[i]).filter(|&other| {
            other != at && conns[other].span.outcome != Outcome::Fail && run.connected_by(other) > since
        });
        let mut left = Left { none: before.is_none(), ..Left::default() };
        for candidate in candidates {
            match run.may_have_expired(candidate, conn.span.ended) {
                Some(_) if conns[candidate].expiry_s == 0 => left.none = true,
                Some(_) => left = Left { a_session: true, none: true },
                None => left.a_session = true,
            }
        }
        let is_wrong = match conn.present {
            true => conn.clean_start || !left.a_session,
            false => !conn.clean_start && !left.none,
        };
        if is_wrong {
            let what = format!(
                "connection {} (the {}. to be answered) has Session Present {}",
                conn.number.0,
                place + 1,
                u8::from(conn.present)
            );
            let before = before.map_or(Line::NEVER, |b| conns[b].span.ended);
            let lines = vec![before, conn.span.invoked, conn.span.ended];
            found.violations.push(bad(run, client, Kind::Contradiction, what, lines));
        }
    }
}

fn ended(run: &Run<'_>, client: ClientAt, found: &mut Found) {
    let conns = &run.index.conns;
    let all = &run.index.clients[client].conns;
    let mut open = Vec::new();
    for (place, &at) in all.iter().enumerate() {
        let conn = &conns[at];
        if conn.span.outcome != Outcome::Ok {
            continue;
        }
        match conn.closed {
            Some((line, Closing::Told { code: SESSION_TAKEN_OVER })) => {
                let later = all[place + 1..].iter().take_while(|&&other| conns[other].span.invoked < line);
                let is_later = later.copied().any(|other| conns[other].span.outcome != Outcome::Fail);
                let is_earlier = place.checked_sub(1).is_some_and(|i| run.reach[all[i]] > conn.span.invoked);
                if !is_later && !is_earlier {
                    let what = format!("connection {} was told 0x8E and nobody took it over", conn.number.0);
                    found.violations.push(bad(run, client, Kind::Contradiction, what, vec![conn.span.ended, line]));
                }
            }
            Some(_) => {}
            None => open.push(at),
        }
    }
    if run.is_drained() && open.len() > 1 {
        let what = format!("{} connections are open at the end", open.len());
        let lines = open.iter().map(|&at| conns[at].span.ended).collect();
        found.violations.push(bad(run, client, Kind::Contradiction, what, lines));
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::OneOwner;

    fn taken_over() -> History {
        let mut h = History::new();
        h.connect(1, 1).resume(1, 2);
        h
    }

    #[test]
    fn nothing_of_the_old_connection_is_accepted() {
        let mut h = taken_over();
        h.told(1, 1, 0x8E).publish(1, 2, 0, "a", 1);
        assert_eq!(broken(h.drain()), []);
        let mut h = taken_over();
        h.publish(1, 1, 0, "a", 1).told(1, 1, 0x8E);
        assert_eq!(broken(h.drain()), [(OneOwner, None)]);
    }

    #[test]
    fn what_was_invoked_before_may_be_answered_after() {
        let mut h = History::new();
        h.connect(1, 1);
        let op = h.publish_open(1, 1, 0, "a", 1);
        h.resume(1, 2).puback(1, op).told(1, 1, 0x8E);
        assert_eq!(broken(h.drain()), []);
    }

    #[test]
    fn of_two_at_once_one_goes_on() {
        let both = |goes_on: &[u32]| {
            let mut h = History::new();
            let first = h.connect_open(1, 1, false, 60);
            let second = h.connect_open(1, 2, false, 60);
            h.connack(1, first, true).connack(1, second, false);
            for (seq, connection) in (0..).zip(goes_on) {
                h.publish(1, *connection, seq, "a", 1);
            }
            h.told(1, if goes_on.last() == Some(&1) { 2 } else { 1 }, 0x8E);
            h.drain();
            broken(&h)
        };
        assert_eq!(both(&[1, 1]), []);
        assert_eq!(both(&[2]), []);
        assert_eq!(both(&[1, 2, 1]), [(OneOwner, None)]);
        assert_eq!(both(&[2, 1]), [(OneOwner, None)]);
    }

    /// Seed 327 of the simulator: a total outage, after which two wall clocks of three were seconds ahead.
    #[test]
    fn by_a_wrong_wall_clock_a_session_may_have_expired() {
        let outcome = |nemesis: &str, expiry_s: u32, nobody_is_served_s: u64| {
            let mut h = History::new();
            let op = h.connect_open(1, 1, false, expiry_s);
            h.connack(1, op, false).lost(1, 1).fault(1, nemesis).wait_s(nobody_is_served_s).healed(1);
            let op = h.connect_open(1, 2, false, expiry_s);
            h.connack(1, op, false);
            broken(h.drain())
        };
        assert_eq!(outcome("Clock", 60, 1), []);
        assert_eq!(outcome("clock-jump", 60, 1), []);
        assert_eq!(outcome("Clock", 60, 0), [(OneOwner, None)], "not all nodes can have started anew");
        assert_eq!(outcome("Blackout", 60, 1), [(OneOwner, None)]);
        assert_eq!(outcome("Clock", u32::MAX, 1), [(OneOwner, None)], "it never expires");
    }

    #[test]
    fn session_present_is_exact() {
        let second = |expiry_s: u32, clean_start: bool, present: bool| {
            let mut h = History::new();
            let op = h.connect_open(1, 1, false, expiry_s);
            h.connack(1, op, false).lost(1, 1);
            let op = h.connect_open(1, 2, clean_start, 60);
            h.connack(1, op, present);
            broken(h.drain())
        };
        for (expiry_s, clean_start, right) in [(60, false, true), (60, true, false), (0, false, false)] {
            assert_eq!(second(expiry_s, clean_start, right), []);
            assert_eq!(second(expiry_s, clean_start, !right), [(OneOwner, None)]);
        }
        let mut h = History::new();
        let op = h.connect_open(1, 1, false, 60);
        h.connack(1, op, true);
        assert_eq!(broken(h.drain()), [(OneOwner, None)], "nobody was there before");
    }

    /// It stood in the log of a leader that could commit nothing, and took the session when somebody could.
    #[test]
    fn a_connect_that_nobody_answered_is_not_forgotten_in_an_outage() {
        for is_outage in [true, false] {
            let mut h = History::new();
            h.connect(1, 1).connect(2, 1);
            let op = h.connect_open(1, 2, false, 60);
            h.info(1, op).lost(1, 1).busy(2, 40, !is_outage).resume(1, 3).told(1, 3, 0x8E).drain();
            let wanted: &[_] = if is_outage { &[] } else { &[(OneOwner, None)] };
            assert_eq!(broken(&h), wanted);
        }
    }

    #[test]
    fn a_connect_that_nobody_answered_may_have_happened() {
        for present in [true, false] {
            let mut h = History::new();
            let op = h.connect_open(1, 1, false, 60);
            h.info(1, op);
            let op = h.connect_open(1, 2, false, 60);
            h.connack(1, op, present);
            assert_eq!(broken(h.drain()), []);
        }
    }

    #[test]
    fn a_session_may_expire() {
        for present in [true, false] {
            let mut h = History::new();
            let op = h.connect_open(1, 1, false, 5);
            h.connack(1, op, false).lost(1, 1).wait_s(5);
            let op = h.connect_open(1, 2, false, 5);
            h.connack(1, op, present);
            assert_eq!(broken(h.drain()), []);
        }
    }

    #[test]
    fn taken_over_needs_somebody_who_did() {
        let mut h = History::new();
        h.connect(1, 1).told(1, 1, 0x8E);
        assert_eq!(broken(h.drain()), [(OneOwner, None)]);
    }

    #[test]
    fn pubrel_does_not_answer_the_old_connection() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(1, 1, "a", 2).publish(2, 1, 0, "a", 2);
        h.deliver(1, 1, (2, 0), "a", 2, 1).resume(1, 2).received(1, 1, 1).released(1, 1, 1).told(1, 1, 0x8E);
        h.again(1, 2, (2, 0), "a", 2, 1).received(1, 2, 1);
        assert_eq!(broken(h.drain()), [(OneOwner, None)]);
    }

    #[test]
    fn at_the_end_there_is_one_connection() {
        assert_eq!(broken(taken_over().drain()), [(OneOwner, None)]);
    }
}
