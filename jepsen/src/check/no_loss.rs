//! Guarantee 2, no acknowledged loss (and the first half of guarantee 6, SUBACK before PUBLISH means delivery).
//!
//! A message at QoS 1 or 2 whose PUBACK or PUBREC was seen must have arrived at every client that
//! - was certainly subscribed above QoS 0, by a filter of its own, from before the PUBLISH was invoked until it was
//!   acknowledged (nothing that may have ended the subscription or the session between, or since the SUBSCRIBE), and
//! - still has that session, and is connected, at the end of a history that was drained; or has seen, in the same
//!   session, a later message of the same publisher, topic and QoS: what is missing before that one will never come.
//!
//! A loss is told as the prefix, middle or suffix of the publisher's messages to that client: a prefix smells of a
//! subscription, a suffix of a log that was cut off, a middle of a hole. The node that acknowledged is named.
//! Of several messages under one idempotency key one must arrive. A message with an expiry need not.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::index::{ClientAt, ConnAt, MessageAt, Outcome, TextAt};
use crate::history::read::Line;

use super::run::{Freshness, Run, Stream};
use super::verdict::{Found, Guarantee, Kind};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    if !run.is_drained() && run.expectations.drained {
        found.unknown.push("the history was not drained: what has not arrived may be on its way".to_owned());
    }
    let seen = seen(run);
    let keys = keys(run);
    let mut wanted: BTreeMap<(ClientAt, ClientAt), Vec<(MessageAt, bool)>> = BTreeMap::new();
    for (message, m) in run.index.messages.iter().enumerate() {
        let effect = run.effects[message];
        if !effect.is_acknowledged || m.expiry_s.is_some() {
            continue;
        }
        let Some(publisher) = run.index.publishes_of(message).next().map(|publish| publish.client) else { continue };
        let same_key = m.key.and_then(|key| keys.get(&key)).filter(|all| all.len() > 1);
        for &client in run.routes(m.topic).into_iter().flat_map(|routes| routes.keys()) {
            if !run.is_subscribed(client, message, effect.by) {
                continue;
            }
            let has_come = |m: MessageAt| seen.contains_key(&(client, m));
            let came = match same_key {
                None => has_come(message),
                Some(all) => {
                    has_come(message)
                        || all.iter().any(|&other| has_come(other) || !run.is_subscribed(client, other, effect.by))
                }
            };
            wanted.entry((client, publisher)).or_default().push((message, came));
        }
    }
    let later = LaterSeen::new(run, &seen);
    for ((client, _), messages) in wanted {
        for (place, &(message, came)) in messages.iter().enumerate() {
            if came {
                continue;
            }
            let hole = later.after(run, client, message);
            if !is_owed_at_the_end(run, client, message) && hole.is_none() {
                continue;
            }
            let part = part(&messages, place);
            let node = acknowledging_node(run, message);
            let what = format!("acknowledged by {node} and never arrived; {part} of what its publisher sent there");
            let mut violation =
                run.violation(Guarantee::NoAcknowledgedLoss, Kind::Lost, Some(client), Some(message), what);
            violation.lines.extend(hole);
            found.violations.push(violation);
        }
    }
}

/// First line at which each client saw each message, on a connection that may have been the owner.
fn seen(run: &Run<'_>) -> HashMap<(ClientAt, MessageAt), Line> {
    let mut seen = HashMap::new();
    for arrival in &run.index.arrivals {
        if let Some(message) = arrival.message
            && run.freshness(arrival) != Freshness::Stale
        {
            seen.entry((arrival.client, message)).or_insert(arrival.line);
        }
    }
    seen
}

fn keys(run: &Run<'_>) -> HashMap<TextAt, Vec<MessageAt>> {
    let mut keys: HashMap<TextAt, Vec<MessageAt>> = HashMap::new();
    for (message, m) in run.index.messages.iter().enumerate() {
        if let Some(key) = m.key {
            keys.entry(key).or_default().push(message);
        }
    }
    keys
}

fn is_owed_at_the_end(run: &Run<'_>, client: ClientAt, message: MessageAt) -> bool {
    run.is_drained() && run.attached[client].is_some() && run.is_subscribed(client, message, Line::NEVER)
}

fn part(messages: &[(MessageAt, bool)], place: usize) -> &'static str {
    let (before, after) = messages.split_at(place);
    match (before.iter().any(|(_, came)| *came), after.iter().any(|(_, came)| *came)) {
        (false, false) => "the whole",
        (false, true) => "a prefix",
        (true, false) => "a suffix",
        (true, true) => "the middle",
    }
}

fn acknowledging_node<'a>(run: &Run<'a>, message: MessageAt) -> &'a str {
    let accepted = run.index.publishes_of(message).find(|publish| publish.span.outcome == Outcome::Ok);
    let conn: Option<ConnAt> = accepted.and_then(|publish| publish.sendings.last()).map(|(_, conn)| *conn);
    conn.map_or("nobody", |conn| run.index.text(run.index.conns[conn].node))
}

/// For a client and a stream, what has come of it, and when.
struct LaterSeen {
    /// For each client and stream what came, with the line of its first delivery, in the order of publishing.
    streams: HashMap<(ClientAt, Stream), Vec<(MessageAt, Line)>>,
}

impl LaterSeen {
    fn new(run: &Run<'_>, seen: &HashMap<(ClientAt, MessageAt), Line>) -> Self {
        let mut streams: HashMap<(ClientAt, Stream), Vec<(MessageAt, Line)>> = HashMap::new();
        let firsts: HashSet<(ClientAt, MessageAt)> = (0..run.index.clients.len())
            .flat_map(|client| run.firsts(client).into_iter().map(move |(message, _)| (client, message)))
            .collect();
        for (client, message) in firsts {
            if let (Some(stream), Some(&line)) = (run.stream_of(message), seen.get(&(client, message))) {
                streams.entry((client, stream)).or_default().push((message, line));
            }
        }
        for places in streams.values_mut() {
            places.sort_unstable();
        }
        Self { streams }
    }

    /// Where the client saw the next of the stream that it has seen, in the session that it must have had for this one.
    fn after(&self, run: &Run<'_>, client: ClientAt, message: MessageAt) -> Option<Line> {
        let stream = run.stream_of(message)?;
        let places = self.streams.get(&(client, stream))?;
        let next = places.partition_point(|(place, _)| *place <= message);
        let (_, line) = *places.get(next).filter(|(later, _)| run.is_before(message, *later))?;
        run.is_subscribed(client, message, line).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::NoAcknowledgedLoss;

    fn subscribed() -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a/+", 1);
        h
    }

    #[test]
    fn a_connect_without_an_answer_may_have_made_a_new_session_after_the_expiry() {
        let outcome = |is_answered_by_nobody: bool| {
            let mut h = History::new();
            let op = h.connect_open(2, 1, false, 5);
            h.connect(1, 1).connack(2, op, false).subscribe(2, 1, "a", 1).lost(2, 1).wait_s(6);
            if is_answered_by_nobody {
                let op = h.connect_open(2, 2, false, 5);
                h.info(2, op).lost(2, 2);
            }
            h.publish(1, 1, 0, "a", 1);
            let op = h.connect_open(2, 3, false, 5);
            h.connack(2, op, true);
            broken(h.drain())
        };
        assert_eq!(outcome(true), []);
        assert_eq!(outcome(false), [(NoAcknowledgedLoss, Some(0))], "Session Present says that it was the first one");
    }

    #[test]
    fn what_was_acknowledged_and_arrived_is_fine() {
        let mut h = subscribed();
        h.publish(1, 1, 0, "a/x", 1).deliver(2, 1, (1, 0), "a/x", 1, 1).settle(2, 1, 1).drain();
        assert_eq!(broken(&h), []);
    }

    #[test]
    fn a_loss_is_told_by_its_place_and_its_node() {
        for (missing, part) in [(0, "a prefix"), (1, "the middle"), (2, "a suffix")] {
            let mut h = subscribed();
            for seq in 0..3 {
                h.publish(1, 1, seq, "a/x", 1);
            }
            for seq in (0..3).filter(|seq| *seq != missing) {
                let id = u16::try_from(seq).unwrap() + 1;
                h.deliver(2, 1, (1, seq), "a/x", 1, id).settle(2, 1, id);
            }
            h.drain();
            assert_eq!(broken(&h), [(NoAcknowledgedLoss, Some(missing))]);
            let report = h.report().to_string();
            assert!(report.contains(part) && report.contains("acknowledged by n1"), "{report}");
        }
    }

    #[test]
    fn only_the_acknowledged_must_arrive() {
        let mut h = subscribed();
        h.publish_info(1, 1, 0, "a/x", 1).publish(1, 1, 1, "b", 1).publish(1, 1, 2, "a/x", 0).drain();
        assert_eq!(broken(&h), []);
    }

    #[test]
    fn nothing_is_owed_to_a_session_that_may_have_ended_or_that_is_not_connected() {
        let mut h = subscribed();
        h.publish(1, 1, 0, "a/x", 1).lost(2, 1).drain();
        assert_eq!(broken(&h), []);
        let mut h = subscribed();
        h.publish(1, 1, 0, "a/x", 1).lost(2, 1);
        h.connect_with(2, 2, |c| c.clean_start = true).drain();
        assert_eq!(broken(&h), []);
    }

    #[test]
    fn a_session_that_is_resumed_is_owed_all() {
        let mut h = subscribed();
        h.publish(1, 1, 0, "a/x", 1).lost(2, 1).resume(2, 2).drain();
        assert_eq!(broken(&h), [(NoAcknowledgedLoss, Some(0))]);
    }

    #[test]
    fn a_hole_is_found_without_the_end() {
        let mut h = subscribed();
        h.publish(1, 1, 0, "a/x", 1).publish(1, 1, 1, "a/x", 1);
        h.deliver(2, 1, (1, 1), "a/x", 1, 1).settle(2, 1, 1).lost(2, 1).drain();
        assert_eq!(broken(&h), [(NoAcknowledgedLoss, Some(0))]);
    }

    #[test]
    fn what_comes_only_to_a_connection_that_is_nobodys_has_not_come() {
        let mut h = subscribed();
        h.publish(1, 1, 0, "a/x", 1).resume(2, 2).deliver(2, 1, (1, 0), "a/x", 1, 1).told(2, 1, 0x8E).drain();
        assert_eq!(broken(&h), [(NoAcknowledgedLoss, Some(0))]);
    }

    #[test]
    fn of_two_connections_that_were_opened_at_once_the_one_that_goes_on_is_owed_all() {
        for goes_on in [false, true] {
            let mut h = subscribed();
            h.lost(2, 1);
            let (one, other) = (h.connect_open(2, 2, false, 60), h.connect_open(2, 3, false, 60));
            h.connack(2, one, true).connack(2, other, true);
            if goes_on {
                h.subscribe(2, 2, "b", 1);
            }
            h.told(2, 3, 0x8E).publish(1, 1, 0, "a/x", 1).drain();
            let wanted: &[_] = if goes_on { &[(NoAcknowledgedLoss, Some(0))] } else { &[] };
            assert_eq!(broken(&h), wanted, "without a proof nobody knows which of the two it is");
        }
    }

    #[test]
    fn who_reads_a_retained_value_gives_up_the_subscription() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1).read(2, 1, "a", None).publish(1, 1, 0, "a", 1).drain();
        assert_eq!(broken(&h), []);
    }
}
