//! A second witness: the positions that the broker says, replayed. The other checks stand without it.
//!
//! A position is the place of a message in the one log, and so the order in which everything happened. If that is true,
//! a model that does one thing after the other, in that order, must have seen what clients saw:
//! - A message has one position, the same in its acknowledgement and at everybody; no two messages have one.
//! - A publish that began after another was acknowledged has a later position (the log is linearizable), and so have
//!   the later ones of a publisher's stream.
//! - To each client the first deliveries on a topic come in the order of positions (guarantee 5).
//! - Between two of them, and while it was certainly subscribed, it has all that stands between them in the log, also
//!   what only others know to be published (guarantees 2 and 6).
//! - A read of a retained value is at the newest position of those that were acknowledged, or read, before it began, or
//!   at a newer one (guarantee 7).
//! - Who finds a retained value by a subscription and stays has all that was written after it: there is no gap between
//!   what was retained and what comes live (guarantee 7).

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::index::{Arrival, Change, ClientAt, MessageAt, Outcome, Subscribing, TextAt};
use crate::history::read::Line;

use super::run::{Freshness, Run, Stream};
use super::verdict::{Found, Guarantee, Kind, Violation};

/// Of each message that is certainly published once.
type Positions = HashMap<MessageAt, u64>;

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let positions = positions(run, found);
    found.figures.positions = positions.len();
    if positions.is_empty() {
        return;
    }
    real_time(run, &positions, found);
    streams(run, &positions, found);
    subscribers(run, &positions, found);
    registers(run, &positions, found);
    gaps(run, &positions, found);
}

fn bad(run: &Run<'_>, guarantee: Guarantee, kind: Kind, message: MessageAt, what: String) -> Violation {
    run.violation(guarantee, kind, None, Some(message), what)
}

fn positions(run: &Run<'_>, found: &mut Found) -> Positions {
    // What an acknowledgement of a repeated key says is the position of the first.
    let mut under_key: HashMap<TextAt, usize> = HashMap::new();
    for key in run.index.messages.iter().filter_map(|m| m.key) {
        *under_key.entry(key).or_default() += 1;
    }
    let is_alone = |message: MessageAt| run.index.messages[message].key.is_none_or(|key| under_key[&key] == 1);
    let acknowledged = run
        .index
        .publishes
        .iter()
        .filter(|publish| is_alone(publish.message))
        .filter_map(|publish| Some((publish.message, publish.position?, publish.span.ended)));
    let arrived = run.index.arrivals.iter().filter_map(|a| Some((a.message?, a.position?, a.line)));
    let mut positions: HashMap<MessageAt, (u64, Line)> = HashMap::new();
    let mut taken: HashMap<u64, (MessageAt, Line)> = HashMap::new();
    for (message, position, line) in acknowledged.chain(arrived) {
        let (owner, before) = *taken.entry(position).or_insert((message, line));
        if owner != message {
            let what = format!("is at {position}, where {} is", run.name(owner));
            let mut bad = bad(run, Guarantee::Order, Kind::Contradiction, message, what);
            bad.lines.extend([before, line]);
            found.violations.push(bad);
        }
        if run.effects[message].times != 1 {
            continue;
        }
        let (first, before) = *positions.entry(message).or_insert((position, line));
        if first != position {
            let what = format!("is at {first} and at {position}");
            let mut bad = bad(run, Guarantee::Order, Kind::Contradiction, message, what);
            bad.lines.extend([before, line]);
            found.violations.push(bad);
        }
    }
    positions.into_iter().map(|(message, (position, _))| (message, position)).collect()
}

/// For a line, the highest of all values that were known before it.
struct Floor(Vec<(Line, u64, MessageAt)>);

impl Floor {
    fn new(mut known: Vec<(Line, u64, MessageAt)>) -> Self {
        known.sort_unstable();
        let mut highest = (0, 0);
        for (_, position, message) in &mut known {
            highest = highest.max((*position, *message));
            (*position, *message) = highest;
        }
        Self(known)
    }

    fn before(&self, line: Line) -> Option<(u64, MessageAt)> {
        let count = self.0.partition_point(|(known, ..)| *known < line);
        self.0.get(count.checked_sub(1)?).map(|(_, position, message)| (*position, *message))
    }
}

fn acknowledged<'a>(run: &'a Run<'_>, positions: &'a Positions) -> impl Iterator<Item = (Line, u64, MessageAt)> + 'a {
    positions
        .iter()
        .filter(|(message, _)| run.effects[**message].is_acknowledged)
        .map(|(&message, &position)| (run.effects[message].by, position, message))
}

fn real_time(run: &Run<'_>, positions: &Positions, found: &mut Found) {
    let floor = Floor::new(acknowledged(run, positions).collect());
    for (&message, &position) in positions {
        if let Some((before, other)) = floor.before(run.effects[message].from)
            && before > position
        {
            let what = format!("is at {position}, and {}, acknowledged before it began, at {before}", run.name(other));
            let mut bad = bad(run, Guarantee::Order, Kind::Contradiction, message, what);
            bad.lines.push(run.effects[other].by);
            found.violations.push(bad);
        }
    }
}

fn streams(run: &Run<'_>, positions: &Positions, found: &mut Found) {
    let mut latest: HashMap<Stream, (u64, MessageAt)> = HashMap::new();
    let mut known: Vec<(MessageAt, u64)> = positions.iter().map(|(&message, &position)| (message, position)).collect();
    known.sort_unstable();
    for (message, position) in known.into_iter().filter(|(message, _)| run.index.messages[*message].qos > 0) {
        let Some(stream) = run.stream_of(message) else { continue };
        let (before, other) = latest.insert(stream, (position, message)).unwrap_or((0, message));
        if before > position && run.is_before(other, message) {
            let what =
                format!("is at {position}, and {}, which its publisher sent before it, at {before}", run.name(other));
            found.violations.push(bad(run, Guarantee::Order, Kind::Reordered, message, what));
        }
    }
}

fn subscribers(run: &Run<'_>, positions: &Positions, found: &mut Found) {
    // All that is known to be on a topic, in the order of the log.
    let mut logs: BTreeMap<TextAt, Vec<(u64, MessageAt)>> = BTreeMap::new();
    for (&message, &position) in positions {
        let m = &run.index.messages[message];
        if m.qos > 0 && m.expiry_s.is_none() && run.stream_of(message).is_some() {
            logs.entry(m.topic).or_default().push((position, message));
        }
    }
    logs.values_mut().for_each(|log| log.sort_unstable());
    let told: HashSet<_> = found.violations.iter().map(|bad| (bad.client, bad.message, bad.kind)).collect();
    for client in 0..run.index.clients.len() {
        let mut by_topic: BTreeMap<TextAt, Vec<(u64, MessageAt, Line)>> = BTreeMap::new();
        let firsts = run.firsts(client);
        // What came to a connection that may have been the owner has come.
        let arrivals = run.index.arrivals.iter().filter(|a| a.client == client);
        let seen: HashSet<MessageAt> =
            arrivals.filter(|a| run.freshness(a) != Freshness::Stale).filter_map(|a| a.message).collect();
        for (message, at) in firsts {
            let m = &run.index.messages[message];
            if let (Some(&position), true) = (positions.get(&message), run.stream_of(message).is_some()) {
                let line = run.index.arrivals[at].line;
                by_topic.entry(m.topic).or_default().push((position, message, line));
            }
        }
        for (topic, firsts) in by_topic {
            let Some(log) = logs.get(&topic) else { continue };
            for pair in firsts.windows(2) {
                let name = Some(run.client(client));
                if let Some(mut bad) = disorder(run, pair) {
                    bad.client = name;
                    found.violations.push(bad);
                    continue;
                }
                let holes = holes(run, client, pair, log).filter(|message| !seen.contains(message));
                for message in holes.filter(|&m| !told.contains(&(name, Some(run.name(m)), Kind::Lost))) {
                    let what = format!("stands in the log between {} and {}, and never came", pair[0].0, pair[1].0);
                    let mut bad = bad(run, Guarantee::NoAcknowledgedLoss, Kind::Lost, message, what);
                    bad.client = name;
                    bad.lines.extend([pair[0].2, pair[1].2]);
                    found.violations.push(bad);
                }
            }
        }
    }
}

fn disorder(run: &Run<'_>, pair: &[(u64, MessageAt, Line)]) -> Option<Violation> {
    let ((before, _, first), (position, message, second)) = (pair[0], pair[1]);
    (before > position).then(|| {
        let what = format!("came first at {position} after what is at {before}");
        let mut bad = bad(run, Guarantee::Order, Kind::Reordered, message, what);
        bad.lines.extend([first, second]);
        bad
    })
}

/// What stands in the log between two that a client has seen in a row, if it was subscribed from the one to the other.
fn holes<'a>(
    run: &Run<'_>,
    client: ClientAt,
    pair: &[(u64, MessageAt, Line)],
    log: &'a [(u64, MessageAt)],
) -> impl Iterator<Item = MessageAt> + 'a {
    let ((from, first, _), (to, _, line)) = (pair[0], pair[1]);
    let between = log.partition_point(|(position, _)| *position <= from)..log.partition_point(|(p, _)| *p < to);
    let between = log.get(between).unwrap_or_default();
    let is_subscribed = !between.is_empty() && run.is_subscribed(client, first, line);
    between.iter().filter(move |_| is_subscribed).map(|(_, message)| *message)
}

/// Its invoke, its answer, the position of its value, and the value.
type Read = (Line, Line, u64, Option<MessageAt>);

fn registers(run: &Run<'_>, positions: &Positions, found: &mut Found) {
    let mut known: BTreeMap<TextAt, Vec<(Line, u64, MessageAt)>> = BTreeMap::new();
    for (line, position, message) in acknowledged(run, positions) {
        let m = &run.index.messages[message];
        if m.retain {
            known.entry(m.topic).or_default().push((line, position, message));
        }
    }
    let mut reads: BTreeMap<TextAt, Vec<Read>> = BTreeMap::new();
    for read in run.index.subscribing.iter().filter(|r| r.change == Change::Read && r.span.outcome == Outcome::Ok) {
        let message = read.value.and_then(|name| run.index.message(name));
        let position = match (read.value, message) {
            (None, _) => 0,
            (Some(_), Some(message)) if positions.contains_key(&message) => positions[&message],
            _ => continue,
        };
        reads.entry(read.filter).or_default().push((read.span.invoked, read.span.ended, position, message));
        if let Some(message) = message {
            known.entry(read.filter).or_default().push((read.span.ended, position, message));
        }
    }
    for (topic, reads) in reads {
        let floor = Floor::new(known.remove(&topic).unwrap_or_default());
        for (invoked, ended, position, message) in reads {
            let Some((newest, other)) = floor.before(invoked).filter(|(newest, _)| *newest > position) else {
                continue;
            };
            let value = message.map_or("nothing".to_owned(), |message| run.name(message).to_string());
            let what = format!(
                "on {}: {value} was read when {}, at {newest}, had been acknowledged or read",
                run.index.text(topic),
                run.name(other)
            );
            let mut bad = bad(run, Guarantee::Retained, Kind::Stale, other, what);
            bad.lines.extend([invoked, ended]);
            found.violations.push(bad);
        }
    }
}

/// What was written after the value that a subscription found and before what came live to it, and never came.
fn gaps(run: &Run<'_>, positions: &Positions, found: &mut Found) {
    let mut writes: BTreeMap<TextAt, Vec<(u64, MessageAt)>> = BTreeMap::new();
    for (&message, &position) in positions {
        let m = &run.index.messages[message];
        if m.retain && m.qos > 0 && m.expiry_s.is_none() {
            writes.entry(m.topic).or_default().push((position, message));
        }
    }
    writes.values_mut().for_each(|writes| writes.sort_unstable());
    let mut live: HashMap<(ClientAt, TextAt), Vec<&Arrival>> = HashMap::new();
    for arrival in run.index.arrivals.iter().filter(|a| !a.retain) {
        live.entry((arrival.client, arrival.topic)).or_default().push(arrival);
    }
    let is_read = |read: &&Subscribing| read.change == Change::Read;
    // To who subscribes in other ways, too, what comes live may come by those.
    let others: HashSet<ClientAt> = run.index.subscribing.iter().filter(|r| !is_read(r)).map(|r| r.client).collect();
    let reads = || run.index.subscribing.iter().filter(is_read).filter(|read| !others.contains(&read.client));
    let mut begun: HashMap<(ClientAt, TextAt), Vec<Line>> = HashMap::new();
    for read in reads() {
        begun.entry((read.client, read.filter)).or_default().push(read.span.invoked);
    }
    begun.values_mut().for_each(|lines| lines.sort_unstable());
    for read in reads().filter(|read| read.span.outcome == Outcome::Ok) {
        let value = read.value.and_then(|name| run.index.message(name));
        let Some((from, value)) = value.and_then(|value| Some((*positions.get(&value)?, value))) else { continue };
        let (Some(writes), Some(live)) = (writes.get(&read.filter), live.get(&(read.client, read.filter))) else {
            continue;
        };
        let begun = &begun[&(read.client, read.filter)];
        let next = begun.get(begun.partition_point(|line| *line <= read.span.invoked));
        let is_its = |a: &&&Arrival| a.conn == read.conn && next.is_none_or(|next| a.line < *next);
        let since = live.partition_point(|a| a.line < read.span.invoked);
        // What an earlier subscription left on the way stands before the value that this one found.
        let came: BTreeMap<u64, Line> = live[since..]
            .iter()
            .take_while(is_its)
            .filter_map(|a| Some((*positions.get(&a.message?)?, a.line)))
            .filter(|(position, _)| *position > from)
            .collect();
        let Some((&to, &line)) = came.last_key_value() else { continue };
        let after = writes.partition_point(|(position, _)| *position <= from);
        let between = writes[after..].iter().take_while(|(position, _)| *position < to);
        for &(position, message) in between.filter(|(position, _)| !came.contains_key(position)) {
            let what = format!(
                "stands in the log at {position}, after {}, which a subscription found, and before what came live to \
                 it at {to}; it never came",
                run.name(value)
            );
            let mut bad = bad(run, Guarantee::Retained, Kind::Lost, message, what);
            bad.client = Some(run.client(read.client));
            bad.lines.extend([read.span.invoked, line]);
            found.violations.push(bad);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::{NoAcknowledgedLoss, Order, Retained};

    fn connected() -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).connect(3, 1).subscribe(2, 1, "a", 1).subscribe(3, 1, "a", 1);
        h
    }

    #[test]
    fn the_log_explains_a_good_history() {
        let mut h = connected();
        for seq in 0..3_u16 {
            let position = 100 + u64::from(seq);
            h.publish_at(1, 1, seq.into(), "a", 1, position);
            for client in [2, 3] {
                h.deliver_at(client, 1, (1, seq.into()), "a", 1, seq + 1, position).settle(client, 1, seq + 1);
            }
        }
        assert_eq!(broken(h.drain()), []);
        assert_eq!(h.report().figures.positions, 3);
    }

    #[test]
    fn a_message_has_one_place_and_a_place_one_message() {
        let mut h = connected();
        h.publish_at(1, 1, 0, "b", 1, 7).publish_at(1, 1, 1, "b", 1, 7);
        assert!(broken(h.drain()).contains(&(Order, Some(1))));
        let mut h = connected();
        h.publish_at(1, 1, 0, "a", 1, 7);
        h.deliver_at(2, 1, (1, 0), "a", 1, 1, 7).settle(2, 1, 1);
        h.deliver_at(3, 1, (1, 0), "a", 1, 1, 8).settle(3, 1, 1);
        assert_eq!(broken(h.drain()), [(Order, Some(0))]);
    }

    #[test]
    fn what_began_later_stands_later() {
        let mut h = connected();
        h.publish_at(1, 1, 0, "b", 1, 8).publish_at(2, 1, 0, "c", 1, 7);
        assert_eq!(broken(h.drain()), [(Order, Some(0))]);
    }

    #[test]
    fn what_others_know_to_be_published_is_missed() {
        let mut h = connected();
        h.publish_at(1, 1, 0, "a", 1, 7);
        let unknown = h.publish_open(1, 1, 1, "a", 1);
        h.info(1, unknown).publish_at(1, 1, 2, "a", 1, 9);
        for (seq, position, clients) in [(0, 7, &[2, 3][..]), (1, 8, &[2]), (2, 9, &[2, 3])] {
            for &client in clients {
                let id = u16::try_from(seq).unwrap() + 1;
                h.deliver_at(client, 1, (1, seq), "a", 1, id, position).settle(client, 1, id);
            }
        }
        assert_eq!(broken(h.drain()), [(NoAcknowledgedLoss, Some(1))]);
    }
    #[test]
    fn between_the_retained_value_and_what_comes_live_there_is_no_gap() {
        // Each stands at 10 more than its number.
        let retain = |h: &mut History, seq: u64| {
            let op = h.retain_open(1, 1, seq, "r", 1);
            h.puback_at(1, op, 10 + seq);
        };
        let history = |found: u64| {
            let mut h = History::new();
            h.connect(1, 1).connect(2, 1);
            (0..2).for_each(|seq| retain(&mut h, seq));
            let op = h.read_open(2, 1, "r");
            (2..4).for_each(|seq| retain(&mut h, seq));
            h.found(2, op, Some((1, found)));
            h.deliver_at(2, 1, (1, 3), "r", 1, 1, 13).settle(2, 1, 1);
            h
        };
        // It was subscribed after 12, or before it: then 12 came, too.
        assert_eq!(broken(history(2).drain()), []);
        assert_eq!(broken(history(1).drain()), [(Retained, Some(2))]);
        let mut h = history(2);
        // What comes after the next read says nothing of the one before.
        retain(&mut h, 4);
        h.read(2, 1, "r", Some((1, 4)));
        retain(&mut h, 5);
        h.deliver_at(2, 1, (1, 5), "r", 1, 2, 15).settle(2, 1, 2);
        assert_eq!(broken(h.drain()), []);
    }
}
