//! Guarantee 3, QoS 2 exactly once ([`super::no_loss`] holds that it arrives at all).
//!
//! - A QoS 2 message is new to each client at most as often as it was published: once, or once more for each sending
//!   in a new session of its publisher. A client that also is in a shared group may get it once more for each group.
//!   Nor has it more packet identifiers than that, whatever its receiver made of them.
//! - PUBREL says that PUBREC is committed: after it the message never comes again under that identifier.
//! - A PUBLISH under an identifier that was received and not released is the same message, and has DUP=1.

use std::collections::{BTreeMap, HashMap};

use crate::history::event::Step;
use crate::history::index::{ClientAt, Inbound, MessageAt};
use crate::history::read::Line;

use super::run::{Freshness, Run};
use super::verdict::{Found, Guarantee, Kind};

/// What a client knows of a packet identifier.
#[derive(Clone, Copy)]
enum Identifier {
    Received(MessageAt, Line, u32),
    Released(MessageAt, Line, u32),
}

/// Deliveries of a message that count.
#[derive(Default)]
struct Seen {
    /// New for the receiver.
    new: Vec<Line>,
    /// The first under each identifier.
    identifiers: Vec<(u16, Line)>,
}

impl Seen {
    fn take(&mut self, id: u16, repeated: bool, line: Line) {
        if !repeated {
            self.new.push(line);
        }
        if self.identifiers.iter().all(|(known, _)| *known != id) {
            self.identifiers.push((id, line));
        }
    }
}

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    for client in 0..run.index.clients.len() {
        check_client(run, client, found);
    }
}

fn check_client(run: &Run<'_>, client: ClientAt, found: &mut Found) {
    let mut identifiers: HashMap<u16, Identifier> = HashMap::new();
    let mut seen: BTreeMap<MessageAt, Seen> = BTreeMap::new();
    let bad = |message: MessageAt, kind, what: String, lines: &[Line]| {
        let mut violation = run.violation(Guarantee::ExactlyOnce, kind, Some(client), Some(message), what);
        violation.lines.extend_from_slice(lines);
        violation
    };
    for inbound in &run.index.clients[client].inbound {
        match *inbound {
            Inbound::Arrived(at) => {
                let arrival = &run.index.arrivals[at];
                let (Some(message), 2) = (arrival.message, arrival.qos) else { continue };
                if run.freshness(arrival) != Freshness::Fresh {
                    continue;
                }
                let life = run.places[arrival.conn].life;
                let id = arrival.packet_id;
                match identifiers.get(&id) {
                    Some(&Identifier::Released(before, line, in_life)) if before == message && in_life == life => {
                        let what = format!("came again under identifier {id} after its PUBREL");
                        found.violations.push(bad(message, Kind::Duplicated, what, &[line, arrival.line]));
                    }
                    Some(&Identifier::Received(before, line, in_life)) if in_life == life && before != message => {
                        let what = format!("came under identifier {id}, which {} had", run.name(before));
                        found.violations.push(bad(message, Kind::BadlyRepeated, what, &[line, arrival.line]));
                    }
                    Some(&Identifier::Received(_, line, in_life)) if in_life == life && !arrival.dup => {
                        let what = format!("came again under identifier {id} with DUP=0");
                        found.violations.push(bad(message, Kind::BadlyRepeated, what, &[line, arrival.line]));
                    }
                    _ => {}
                }
                if arrival.repeated {
                    found.figures.repeats += 1;
                }
                if !arrival.retain {
                    seen.entry(message).or_default().take(id, arrival.repeated, arrival.line);
                }
                identifiers.insert(id, Identifier::Received(message, arrival.line, life));
            }
            Inbound::Released(line, conn, id) if run.freshness_at(conn, line) == Freshness::Fresh => {
                if let Some(&Identifier::Received(message, _, life)) = identifiers.get(&id)
                    && life == run.places[conn].life
                {
                    identifiers.insert(id, Identifier::Released(message, line, life));
                }
            }
            // A QoS 1 message may have the identifier next.
            Inbound::Settled(_, _, id, Step::Ack) => drop(identifiers.remove(&id)),
            Inbound::Released(..) | Inbound::Settled(..) => {}
        }
    }
    for (message, Seen { new, identifiers }) in seen {
        let groups = run.routes_to(client, run.index.messages[message].topic).map_or(0, |routes| routes.shared.len());
        let allowed = run.effects[message].times + groups;
        if new.len() > allowed.max(1) {
            let what = format!("is new for its receiver {} times and was published {allowed} times", new.len());
            found.violations.push(bad(message, Kind::Duplicated, what, &new));
        } else if identifiers.len() > allowed.max(1) {
            let what = format!("came under {} identifiers and was published {allowed} times", identifiers.len());
            let lines: Vec<Line> = identifiers.iter().map(|(_, line)| *line).collect();
            found.violations.push(bad(message, Kind::Duplicated, what, &lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::ExactlyOnce;

    fn subscribed() -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 2).publish(1, 1, 0, "a", 2);
        h.deliver(2, 1, (1, 0), "a", 2, 1);
        h
    }

    #[test]
    fn a_repeat_under_its_identifier_is_fine_until_pubrel() {
        let mut h = subscribed();
        h.lost(2, 1).resume(2, 2).again(2, 2, (1, 0), "a", 2, 1).received(2, 2, 1).released(2, 2, 1).completed(2, 2, 1);
        assert_eq!(broken(h.drain()), []);
    }

    #[test]
    fn a_second_time_is_found() {
        let mut h = subscribed();
        h.received(2, 1, 1).released(2, 1, 1).completed(2, 1, 1).deliver(2, 1, (1, 0), "a", 2, 2);
        assert_eq!(broken(h.drain()), [(ExactlyOnce, Some(0))]);
    }

    #[test]
    fn after_pubrel_it_does_not_come_again() {
        let mut h = subscribed();
        h.received(2, 1, 1).released(2, 1, 1).lost(2, 1).resume(2, 2).again(2, 2, (1, 0), "a", 2, 1);
        assert!(broken(h.drain()).contains(&(ExactlyOnce, Some(0))));
    }

    #[test]
    fn an_identifier_that_is_held_takes_no_other_message() {
        let mut h = subscribed();
        h.publish(1, 1, 1, "a", 2).received(2, 1, 1).lost(2, 1).resume(2, 2).again(2, 2, (1, 1), "a", 2, 1);
        assert!(broken(h.drain()).contains(&(ExactlyOnce, Some(1))));
    }

    #[test]
    fn another_identifier_is_another_message_whatever_the_receiver_makes_of_the_first() {
        for is_again in [false, true] {
            let mut h = History::new();
            h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 2).publish(1, 1, 0, "a", 2).resume(2, 2);
            // What comes to a connection that is nobody's does not count, but its receiver knows the identifier.
            h.deliver(2, 1, (1, 0), "a", 2, 1).told(2, 1, 0x8E).again(2, 2, (1, 0), "a", 2, 1).answer(2, 2, 1, 2);
            if is_again {
                h.deliver(2, 2, (1, 0), "a", 2, 2).answer(2, 2, 2, 2);
            }
            let wanted: &[_] = if is_again { &[(ExactlyOnce, Some(0))] } else { &[] };
            assert_eq!(broken(h.drain()), wanted);
        }
    }
}
