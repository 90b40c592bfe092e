//! Guarantee 7, retained is a linearizable register for each topic.
//!
//! A write is a PUBLISH with RETAIN, a read a `read_retained`, from whichever nodes; before the first write there is
//! nothing. Each value is written once, so zones decide ([`super::zones`]). A write that nobody acknowledged (or at
//! QoS 0) may take effect until a later connection of its client is acknowledged, or never.
//!
//! A message that its publisher may have published twice (QoS 1, sent again, without idempotency key) is two writes of
//! one value: it and its reads are left out, which cannot make a good register a bad one.

use std::collections::{BTreeMap, HashMap};

use crate::history::index::{Change, MessageAt, Outcome, Subscribing, TextAt};
use crate::history::read::Line;

use super::run::Run;
use super::verdict::{Found, Guarantee, Kind, Violation};
use super::zones::{Cluster, Conflict, conflicts};

/// A register: its first value is nothing.
struct Register {
    clusters: Vec<Cluster>,
    messages: Vec<Option<MessageAt>>,
    places: HashMap<MessageAt, usize>,
}

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let mut registers: BTreeMap<TextAt, Register> = BTreeMap::new();
    for (message, m) in run.index.messages.iter().enumerate().filter(|(_, m)| m.retain) {
        let effect = run.effects[message];
        if effect.from == Line::NEVER {
            continue;
        }
        let register = registers.entry(m.topic).or_insert_with(Register::new);
        if effect.times == 1 {
            register.places.insert(message, register.clusters.len());
            register.clusters.push(Cluster::write(effect.from, effect.by, effect.is_acknowledged));
            register.messages.push(Some(message));
        }
    }
    for read in &run.index.subscribing {
        if read.change != Change::Read || read.span.outcome != Outcome::Ok {
            continue;
        }
        let register = registers.entry(read.filter).or_insert_with(Register::new);
        match read.value {
            None => register.clusters[0].read(read.span.invoked, read.span.ended),
            Some(name) => {
                let message = run.index.message(name);
                let Some(message) = message.filter(|&m| is_retained_on(run, m, read.filter)) else {
                    found.violations.push(from_nowhere(run, read));
                    continue;
                };
                let Some(&place) = register.places.get(&message) else { continue };
                register.clusters[place].read(read.span.invoked, read.span.ended);
            }
        }
        found.figures.retained_reads += 1;
    }
    for (topic, register) in registers {
        for conflict in conflicts(&register.clusters) {
            found.violations.push(register.describe(run, topic, conflict));
        }
    }
}

fn is_retained_on(run: &Run<'_>, message: MessageAt, topic: TextAt) -> bool {
    let m = &run.index.messages[message];
    m.retain && m.topic == topic && run.effects[message].from != Line::NEVER
}

fn from_nowhere(run: &Run<'_>, read: &Subscribing) -> Violation {
    let what = format!("was read from {}, where nobody retained it", run.index.text(read.filter));
    let message = read.value.and_then(|name| run.index.message(name));
    let mut bad = run.violation(Guarantee::Retained, Kind::Unwanted, Some(read.client), message, what);
    bad.message = read.value;
    bad.lines.extend([read.span.invoked, read.span.ended]);
    bad
}

impl Register {
    fn new() -> Self {
        Self { clusters: vec![Cluster::initial()], messages: vec![None], places: HashMap::new() }
    }

    fn describe(&self, run: &Run<'_>, topic: TextAt, conflict: Conflict) -> Violation {
        let name = |place: usize| match self.messages.get(place).copied().flatten() {
            Some(message) => run.name(message).to_string(),
            None => "nothing".to_owned(),
        };
        let (place, what, lines) = match conflict {
            Conflict::ReadBeforeWritten(place) => {
                (place, format!("{} was read before it was published", name(place)), vec![])
            }
            Conflict::Overwritten(old, new) => {
                let lines = [old, new].map(|place| self.clusters[place]);
                let lines = lines.iter().flat_map(|c| [c.written, c.first_end, c.last_begin]).collect();
                let (old_name, new_name) = (name(old), name(new));
                (old, format!("{old_name} was read when {new_name} had taken its place, or was yet to be there"), lines)
            }
        };
        let what = format!("on {}: {what}", run.index.text(topic));
        let message = self.messages.get(place).copied().flatten();
        let mut bad = run.violation(Guarantee::Retained, Kind::Stale, None, message, what);
        bad.lines.extend(lines.into_iter().filter(|line| *line != Line::START && *line != Line::NEVER));
        bad.lines.sort_unstable();
        bad.lines.dedup();
        bad
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::Retained;

    fn connected() -> History {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1);
        h
    }

    #[test]
    fn the_newest_value_is_read_everywhere() {
        let mut h = connected();
        h.read(2, 1, "r", None).retain(1, 1, 0, "r", 1).read(2, 1, "r", Some((1, 0)));
        h.retain(1, 1, 1, "r", 1).read(2, 1, "r", Some((1, 1)));
        assert_eq!(broken(h.drain()), []);
    }

    #[test]
    fn an_old_value_and_nothing_are_stale() {
        let mut h = connected();
        h.retain(1, 1, 0, "r", 1).retain(1, 1, 1, "r", 1).read(2, 1, "r", Some((1, 0)));
        assert_eq!(broken(h.drain()), [(Retained, Some(0))]);
        let mut h = connected();
        h.retain(1, 1, 0, "r", 1).read(2, 1, "r", None);
        assert_eq!(broken(h.drain()), [(Retained, None)]);
    }

    #[test]
    fn a_value_does_not_come_back() {
        let mut h = connected();
        let op = h.retain_open(1, 1, 0, "r", 1);
        h.read(2, 1, "r", Some((1, 0))).read(2, 1, "r", None).puback(1, op);
        assert_eq!(broken(h.drain()), [(Retained, None)]);
    }

    #[test]
    fn what_nobody_acknowledged_may_be_there_late_or_never_but_not_after_its_client_came_back() {
        let mut h = connected();
        let op = h.retain_open(1, 1, 0, "r", 1);
        h.info(1, op).read(2, 1, "r", None).read(2, 1, "r", Some((1, 0)));
        assert_eq!(broken(h.drain()), []);
        let mut h = connected();
        let op = h.retain_open(1, 1, 0, "r", 1);
        h.info(1, op).lost(1, 1).resume(1, 2).read(2, 1, "r", None).read(2, 1, "r", Some((1, 0)));
        assert_eq!(broken(h.drain()).len(), 1);
    }

    #[test]
    fn what_nobody_retained_is_not_read() {
        let mut h = connected();
        h.publish(1, 1, 0, "r", 1).read(2, 1, "r", Some((1, 0)));
        assert_eq!(broken(h.drain()), [(Retained, Some(0))]);
    }
}
