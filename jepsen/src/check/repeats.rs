//! Guarantee 4, QoS 1 at least once and at most once more for each broken connection; and what DUP and packet
//! identifiers mean at QoS 1 and 2.
//!
//! No client can know that its PUBACK was committed: nothing answers it. What can be known:
//! - Within a connection nothing comes twice under one identifier. Under one identifier a message comes again only on a
//!   later connection and with DUP=1.
//! - DUP=1 says that it may have been sent on an earlier connection of the session: so not in a new session, and not
//!   of a message that was published after the CONNACK of this connection.
//! - A message has no more identifiers than times it was published (a shared group gives it a new one each time).
//! - An identifier is taken until its receiver has settled it: no other message has it before that, on this connection
//!   or, in the same session, on a later one. (A shared QoS 1 message goes back to its group with the connection.)
//! - When an identifier brings another message, its former one was settled and committed: it never comes again under
//!   it.
//! - What was received and not settled comes again, if the session goes on until the end of a drained history.

use std::collections::{HashMap, HashSet};

use crate::history::event::Step;
use crate::history::index::{Arrival, ClientAt, ConnAt, Inbound, MessageAt, Origin};
use crate::history::read::Line;

use super::run::{Freshness, Run};
use super::verdict::{Found, Guarantee, Kind, Violation};

#[derive(Clone, Copy)]
struct Held {
    message: MessageAt,
    conn: ConnAt,
    line: Line,
    qos: u8,
    is_settled: bool,
    is_direct: bool,
}

struct Receiver<'a, 'b> {
    run: &'a Run<'b>,
    client: ClientAt,
    held: HashMap<u16, Held>,
    /// Where each copy came last: by message, identifier and session.
    copies: HashMap<(MessageAt, u16, u32), (ConnAt, Line)>,
    identifiers: HashMap<MessageAt, HashSet<u16>>,
    /// Settled for certain: another message had their identifier since.
    gone: HashSet<(MessageAt, u16, u32)>,
}

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    for client in 0..run.index.clients.len() {
        let mut receiver = Receiver {
            run,
            client,
            held: HashMap::new(),
            copies: HashMap::new(),
            identifiers: HashMap::new(),
            gone: HashSet::new(),
        };
        for inbound in &run.index.clients[client].inbound {
            match *inbound {
                Inbound::Arrived(at) => receiver.arrived(&run.index.arrivals[at], found),
                Inbound::Settled(line, conn, id, step) => receiver.settled(line, conn, id, step),
                Inbound::Released(..) => {}
            }
        }
        receiver.end(found);
    }
}

impl Receiver<'_, '_> {
    fn bad(&self, message: MessageAt, kind: Kind, what: String, lines: &[Line]) -> Violation {
        let mut bad = self.run.violation(Guarantee::AtLeastOnce, kind, Some(self.client), Some(message), what);
        bad.lines.extend_from_slice(lines);
        bad
    }

    fn arrived(&mut self, arrival: &Arrival, found: &mut Found) {
        let run = self.run;
        let Some(message) = arrival.message else { return };
        if arrival.qos == 0 {
            if arrival.dup {
                let what = "at QoS 0 with DUP=1".to_owned();
                found.violations.push(self.bad(message, Kind::BadlyRepeated, what, &[arrival.line]));
            }
            return;
        }
        if run.freshness(arrival) != Freshness::Fresh {
            return;
        }
        let id = arrival.packet_id;
        if let Some(reason) = self.reason_against_dup(arrival, message) {
            found.violations.push(self.bad(message, Kind::BadlyRepeated, reason, &[arrival.line]));
        }
        self.hold(arrival, message, found);
        let life = run.places[arrival.conn].life;
        // A retained message comes with each SUBSCRIBE, one that was published twice is two, and a shared one that
        // went back is new: in a new session they may have an identifier of the former.
        let is_one = !arrival.retain && run.effects[message].times <= 1 && run.is_direct(arrival);
        let in_life = if is_one { 0 } else { life };
        if self.gone.contains(&(message, id, life)) {
            let what = format!("was settled, another message had its identifier {id}, and it came again under it");
            found.violations.push(self.bad(message, Kind::BadlyRepeated, what, &[arrival.line]));
        }
        if let Some((before, line)) = self.copies.insert((message, id, in_life), (arrival.conn, arrival.line)) {
            let what = if before == arrival.conn {
                Some(format!("came twice under identifier {id} on one connection"))
            } else if !arrival.dup {
                Some(format!("came again under identifier {id} with DUP=0"))
            } else {
                None
            };
            match what {
                Some(what) => {
                    let lines = [line, arrival.line];
                    found.violations.push(self.bad(message, Kind::BadlyRepeated, what, &lines));
                }
                None if arrival.qos == 1 => found.figures.repeats += 1,
                None => {}
            }
        }
        if arrival.qos == 1 && !arrival.retain && run.is_direct(arrival) {
            let identifiers = self.identifiers.entry(message).or_default();
            let published = run.effects[message].times;
            if identifiers.insert(id) && identifiers.len() > published.max(1) {
                let what = format!("was published {published} times and came as {} messages", identifiers.len());
                found.violations.push(self.bad(message, Kind::Duplicated, what, &[arrival.line]));
            }
        }
    }

    fn reason_against_dup(&self, arrival: &Arrival, message: MessageAt) -> Option<String> {
        let conn = &self.run.index.conns[arrival.conn];
        if !arrival.dup {
            return None;
        }
        if !conn.present {
            return Some("has DUP=1 in a new session".to_owned());
        }
        let m = &self.run.index.messages[message];
        let is_new = matches!(m.origin, Origin::Publishes(_)) && self.run.effects[message].from > conn.span.ended;
        is_new.then(|| "has DUP=1 on the connection on which it must have come first".to_owned())
    }

    fn hold(&mut self, arrival: &Arrival, message: MessageAt, found: &mut Found) {
        let (run, id) = (self.run, arrival.packet_id);
        let is_direct = run.is_direct(arrival);
        let held =
            Held { message, conn: arrival.conn, line: arrival.line, qos: arrival.qos, is_settled: false, is_direct };
        let Some(before) = self.held.insert(id, held) else { return };
        let is_same_session = run.places[before.conn].life == run.places[arrival.conn].life;
        if before.message == message || !is_same_session {
            return;
        }
        if before.is_settled {
            self.gone.insert((before.message, id, run.places[arrival.conn].life));
        } else if before.conn == arrival.conn || before.is_direct {
            let what = format!("has identifier {id}, which {} has and nobody settled", run.name(before.message));
            found.violations.push(self.bad(message, Kind::BadlyRepeated, what, &[before.line, arrival.line]));
        }
    }

    fn settled(&mut self, line: Line, conn: ConnAt, id: u16, step: Step) {
        // What is answered on a connection that is nobody's is not heard.
        if self.run.freshness_at(conn, line) == Freshness::Stale {
            return;
        }
        if let Some(held) = self.held.get_mut(&id) {
            // A PUBREC that has not been followed by PUBREL leaves the identifier taken; but from then on it is the
            // PUBREL that is sent again.
            held.is_settled |= match step {
                Step::Ack => held.qos == 1,
                Step::Received => held.qos == 2,
                Step::Complete => true,
            };
        }
    }

    fn end(&self, found: &mut Found) {
        let run = self.run;
        let Some(last) = run.attached[self.client].filter(|_| run.is_drained()) else { return };
        let mut held: Vec<&Held> = self.held.values().collect();
        held.sort_unstable_by_key(|held| held.line);
        for held in held {
            let goes_on = run.places[held.conn].life == run.places[last].life && held.conn != last;
            if goes_on && !held.is_settled && held.is_direct {
                let what = "was not settled, its session went on, and it did not come again".to_owned();
                found.violations.push(self.bad(held.message, Kind::Lost, what, &[held.line]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::AtLeastOnce;

    fn delivered() -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1);
        h.publish(1, 1, 0, "a", 1).deliver(2, 1, (1, 0), "a", 1, 1);
        h
    }

    /// Seed 372 of the simulator, when it had this wrong.
    #[test]
    fn a_session_that_a_connect_without_an_answer_made_owes_nothing_of_the_one_that_had_expired() {
        let outcome = |away_s: u64, is_answered_by_nobody: bool| {
            let mut h = History::new();
            let op = h.connect_open(2, 1, false, 5);
            h.connect(1, 1).connack(2, op, false).subscribe(2, 1, "a", 1);
            h.publish(1, 1, 0, "a", 1).deliver(2, 1, (1, 0), "a", 1, 1).lost(2, 1).wait_s(away_s);
            if is_answered_by_nobody {
                let op = h.connect_open(2, 2, false, 5);
                h.info(2, op).lost(2, 2);
            }
            let op = h.connect_open(2, 3, false, 5);
            h.connack(2, op, true);
            broken(h.drain())
        };
        assert_eq!(outcome(6, true), []);
        assert_eq!(outcome(6, false), [(AtLeastOnce, Some(0))], "Session Present says that it was the first one");
        assert_eq!(outcome(1, true), [(AtLeastOnce, Some(0))], "it cannot have expired");
    }

    #[test]
    fn a_repeat_has_dup_and_a_later_connection() {
        let mut h = delivered();
        h.lost(2, 1).resume(2, 2).again(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1);
        assert_eq!(broken(h.drain()), []);
        let mut h = delivered();
        h.again(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert!(broken(h.drain()).contains(&(AtLeastOnce, Some(0))), "on the same connection");
        let mut h = delivered();
        h.lost(2, 1).resume(2, 2).deliver(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1);
        assert_eq!(broken(h.drain()), [(AtLeastOnce, Some(0))], "DUP=0");
    }

    #[test]
    fn a_second_identifier_needs_a_second_sending() {
        let mut h = delivered();
        h.settle(2, 1, 1).deliver(2, 1, (1, 0), "a", 1, 2).settle(2, 1, 2);
        assert_eq!(broken(h.drain()), [(AtLeastOnce, Some(0))]);
    }

    #[test]
    fn dup_needs_an_earlier_connection_that_may_have_had_it() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1).publish(1, 1, 0, "a", 1);
        h.again(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), [(AtLeastOnce, Some(0))], "a new session");
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1).lost(2, 1).resume(2, 2).publish(1, 1, 0, "a", 1);
        h.again(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1);
        assert_eq!(broken(h.drain()), [(AtLeastOnce, Some(0))], "published since");
    }

    #[test]
    fn an_identifier_is_taken_until_it_is_settled() {
        let mut h = delivered();
        h.publish(1, 1, 1, "a", 1).deliver(2, 1, (1, 1), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), [(AtLeastOnce, Some(1))]);
    }

    #[test]
    fn what_was_settled_and_gave_its_identifier_away_is_gone() {
        let mut h = delivered();
        h.settle(2, 1, 1).publish(1, 1, 1, "a", 1).deliver(2, 1, (1, 1), "a", 1, 1).settle(2, 1, 1);
        h.lost(2, 1).resume(2, 2).again(2, 2, (1, 0), "a", 1, 1).settle(2, 2, 1);
        assert!(broken(h.drain()).contains(&(AtLeastOnce, Some(0))));
    }

    #[test]
    fn what_was_not_settled_comes_again() {
        let mut h = delivered();
        h.lost(2, 1).resume(2, 2);
        assert_eq!(broken(h.drain()), [(AtLeastOnce, Some(0))]);
    }
}
