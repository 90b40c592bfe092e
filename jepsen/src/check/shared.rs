//! Guarantee 10, a shared message goes to exactly one member of its group, and to another only when the connection of
//! the first ended without settling it.
//!
//! Judged are deliveries that can only be the group's: to a client with one shared filter, and none of its own, for the
//! topic. A message that may have been published twice is left out.
//! - Of two deliveries of a message one was on a connection that was over when the other was made: another connection,
//!   on which nothing was accepted that was invoked after the other arrived, and which is not open at the end of a
//!   drained history. From a member that has seen it at QoS 2 it goes to no other, and from one at QoS 0 to nobody.
//! - For another member a QoS 1 message is new: DUP=0.
//! - An acknowledged message has come to somebody, and one who had it has settled it or has that connection still, if a
//!   member was certainly there from before the message to the end of a drained history, at which it is connected.
//!   (With a member at QoS 0, or for QoS 2 with one whose session may have ended, it may be gone.)

use std::collections::{BTreeMap, HashMap};

use crate::history::event::Step;
use crate::history::index::{Arrival, ConnAt, Inbound, MessageAt, TextAt};
use crate::history::read::Line;

use super::run::{Freshness, Run, TimelineAt};
use super::verdict::{Found, Guarantee, Kind, Violation};

struct Group {
    members: Vec<TimelineAt>,
    /// Deliveries of each message that can only be the group's.
    arrivals: HashMap<MessageAt, Vec<Arrival>>,
}

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let mut groups: BTreeMap<TextAt, Group> = BTreeMap::new();
    for (at, timeline) in run.timelines.iter().enumerate().filter(|(_, timeline)| timeline.is_shared) {
        let group =
            groups.entry(timeline.filter).or_insert_with(|| Group { members: vec![], arrivals: HashMap::new() });
        group.members.push(at);
    }
    if groups.is_empty() {
        return;
    }
    // Whoever else has seen a message: then it is not lost for certain.
    let mut elsewhere: HashMap<MessageAt, usize> = HashMap::new();
    for arrival in run.index.arrivals.iter().filter(|a| !a.retain && run.freshness(a) != Freshness::Stale) {
        let Some(message) = arrival.message else { continue };
        let Some(routes) = run.routes_to(arrival.client, arrival.topic) else { continue };
        match (routes.direct.as_slice(), routes.shared.as_slice()) {
            ([], [only]) => {
                if let Some(group) = groups.get_mut(&run.timelines[*only].filter) {
                    group.arrivals.entry(message).or_default().push(*arrival);
                }
            }
            (_, []) => {}
            _ => *elsewhere.entry(message).or_default() += 1,
        }
    }
    let settled = settled(run);
    for group in groups.values() {
        for (&message, arrivals) in &group.arrivals {
            if run.effects[message].times == 1 {
                pairs(run, message, arrivals, found);
            }
        }
        if run.is_drained() {
            owed(run, group, &elsewhere, &settled, found);
        }
    }
}

/// Last line at which each identifier was settled on each connection.
fn settled(run: &Run<'_>) -> HashMap<(ConnAt, u16), Line> {
    let mut settled = HashMap::new();
    for client in &run.index.clients {
        for inbound in &client.inbound {
            if let Inbound::Settled(line, conn, id, Step::Ack | Step::Received) = *inbound
                && run.freshness_at(conn, line) != Freshness::Stale
            {
                settled.insert((conn, id), line);
            }
        }
    }
    settled
}

fn bad(run: &Run<'_>, message: MessageAt, kind: Kind, what: String, arrivals: &[&Arrival]) -> Violation {
    let client = arrivals.last().map(|arrival| arrival.client);
    let mut bad = run.violation(Guarantee::Shared, kind, client, Some(message), what);
    for arrival in arrivals {
        bad.lines.push(arrival.line);
        bad.lines.extend(run.index.conns[arrival.conn].closed.map(|(line, _)| line));
    }
    bad
}

/// Whether the group may have taken the message back from the one delivery before it made the other. Two clients read
/// at their own pace: the lines of the deliveries do not say which was sent first.
fn may_precede(run: &Run<'_>, first: &Arrival, second: &Arrival) -> bool {
    let conn = &run.index.conns[first.conn];
    let is_open = run.is_drained() && conn.closed.is_none() && run.places[first.conn].next.is_none();
    let goes_back = first.qos == 1 || (first.qos == 2 && first.client == second.client);
    goes_back && first.conn != second.conn && !is_open && conn.alive_after < second.line
}

fn pairs(run: &Run<'_>, message: MessageAt, arrivals: &[Arrival], found: &mut Found) {
    let all = arrivals.iter().enumerate().flat_map(|(at, b)| arrivals[..at].iter().map(move |a| (a, b)));
    for (a, b) in all {
        let other = run.client(a.client).0;
        let what = if a.conn == b.conn {
            "came twice on one connection".to_owned()
        } else if a.client != b.client && b.qos == 1 && b.dup {
            format!("came to another member than client {other} with DUP=1")
        } else if may_precede(run, a, b) || may_precede(run, b, a) {
            continue;
        } else {
            format!("was with client {other} at QoS {}, from which it did not come back", a.qos)
        };
        found.violations.push(bad(run, message, Kind::Duplicated, what, &[a, b]));
        return;
    }
}

fn owed(
    run: &Run<'_>,
    group: &Group,
    elsewhere: &HashMap<MessageAt, usize>,
    settled: &HashMap<(ConnAt, u16), Line>,
    found: &mut Found,
) {
    let Some(&first) = group.members.first() else { return };
    for (message, m) in run.index.messages.iter().enumerate() {
        let effect = run.effects[message];
        let matches = || run.routes(m.topic).is_some_and(|to| to.values().any(|r| r.shared.contains(&first)));
        let need_not_come = m.expiry_s.is_some() || elsewhere.contains_key(&message);
        if !effect.is_acknowledged || effect.times != 1 || need_not_come || !matches() {
            continue;
        }
        let is_there = |at: TimelineAt| {
            let timeline = &run.timelines[at];
            timeline.is_certain(effect.from, Line::NEVER) && run.attached[timeline.client].is_some()
        };
        let possible: Vec<TimelineAt> = group
            .members
            .iter()
            .copied()
            .filter(|&at| !run.timelines[at].is_absent(effect.from, Line::NEVER))
            .collect();
        let qos = possible.iter().fold(0, |bits, &at| bits | run.timelines[at].qos(effect.from, Line::NEVER));
        let may_be_exact = m.qos == 2 && qos & 0b100 != 0;
        let all_are_there = || possible.iter().all(|&at| is_there(at));
        let one_is_there = || possible.iter().any(|&at| is_there(at));
        if qos & 1 != 0 || !one_is_there() || (may_be_exact && !all_are_there()) {
            continue;
        }
        let arrivals = group.arrivals.get(&message).map_or(&[][..], Vec::as_slice);
        let is_done = |arrival: &Arrival| {
            let answered = settled.get(&(arrival.conn, arrival.packet_id));
            let is_held = run.attached[arrival.client] == Some(arrival.conn);
            arrival.qos == 0 || is_held || answered.is_some_and(|line| *line > arrival.line)
        };
        let what = match arrivals.last() {
            None => "was acknowledged and came to no member",
            Some(_) if arrivals.iter().any(is_done) => continue,
            Some(_) => "was settled by no member that had it, and came to no other",
        };
        let arrivals: Vec<&Arrival> = arrivals.iter().collect();
        found.violations.push(bad(run, message, Kind::Lost, what.to_owned(), &arrivals));
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Shared;

    /// Members 2 and 3, and one message.
    fn group(qos: u8) -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).connect(3, 1);
        h.subscribe(2, 1, "$share/g/a", qos).subscribe(3, 1, "$share/g/a", qos).publish(1, 1, 0, "a", qos);
        h
    }

    #[test]
    fn one_member_has_it() {
        let mut h = group(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), []);
        let mut h = group(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1).deliver(3, 1, (1, 0), "a", 1, 1).settle(3, 1, 1);
        assert_eq!(broken(h.drain()), [(Shared, Some(0))]);
    }

    #[test]
    fn another_has_it_when_the_connection_of_the_first_is_over() {
        let mut h = group(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).lost(2, 1).deliver(3, 1, (1, 0), "a", 1, 1).settle(3, 1, 1);
        assert_eq!(broken(h.drain()), []);
        let mut h = group(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).deliver(3, 1, (1, 0), "a", 1, 1).settle(3, 1, 1);
        h.publish(2, 1, 0, "b", 1).lost(2, 1);
        assert_eq!(broken(h.drain()), [(Shared, Some(0))], "it was alive after that");
    }

    #[test]
    fn qos_2_stays_with_its_member() {
        let mut h = group(2);
        h.deliver(2, 1, (1, 0), "a", 2, 1).lost(2, 1).deliver(3, 1, (1, 0), "a", 2, 1).received(3, 1, 1);
        assert_eq!(broken(h.drain()), [(Shared, Some(0))]);
    }

    #[test]
    fn what_nobody_had_or_nobody_settled_is_lost() {
        assert_eq!(broken(group(1).drain()), [(Shared, Some(0))]);
        let mut h = group(1);
        h.deliver(2, 1, (1, 0), "a", 1, 1).lost(2, 1);
        assert_eq!(broken(h.drain()), [(Shared, Some(0))]);
    }

    #[test]
    fn for_another_it_is_new() {
        let mut h = group(1);
        h.lost(3, 1).resume(3, 2).deliver(2, 1, (1, 0), "a", 1, 1).lost(2, 1);
        h.again(3, 2, (1, 0), "a", 1, 1).settle(3, 2, 1);
        assert!(broken(h.drain()).contains(&(Shared, Some(0))));
    }

    #[test]
    fn what_another_had_in_between_does_not_hide_that_two_have_it() {
        let mut h = group(1);
        // Client 3 reads on its first connection what came back from it, and went to client 2, which keeps it.
        h.deliver(2, 1, (1, 0), "a", 1, 1).deliver(3, 1, (1, 0), "a", 1, 1).lost(3, 1);
        h.resume(3, 2).deliver(3, 2, (1, 0), "a", 1, 2).settle(3, 2, 2);
        assert_eq!(broken(h.drain()), [(Shared, Some(0))]);
    }
}
