//! Holds a recorded history against the checkers of [`crate::check`].
//!
//! Those look at publishers and subscribers of one filter. So the history is taken apart by filter, and each part is
//! checked by itself. What a part cannot be held to is left out: shared groups and reads of retained messages are not
//! judged here, and wills come when they are due, not in the order of their CONNECTs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use crate::check::{self, Verdict};
use crate::history::event::{Answer, Call, Client, Event, OpId, What};
use crate::history::{Delivered, History, Sent};

/// What a history is worth.
#[derive(Debug, Default)]
pub struct Judgement {
    /// By filter.
    pub parts: Vec<(String, Verdict)>,
    /// What nodes said at the end, when they did not say the same.
    pub digests: Vec<String>,
    /// Faults that were made.
    pub faults: usize,
    /// Nemeses that could not be installed, and why.
    pub not_installed: BTreeSet<String>,
    /// Operations by outcome: ok, fail, info, and without any.
    pub outcomes: [usize; 4],
}

impl Judgement {
    /// Whether every promise that was checked was kept.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.digests.is_empty() && self.parts.iter().all(|(_, verdict)| verdict.is_clean())
    }

    /// Publishes that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.parts.iter().map(|(_, verdict)| verdict.acknowledged).sum()
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ok, fail, info, open] = self.outcomes;
        writeln!(f, "operations: {ok} ok, {fail} fail, {info} info, {open} without an end; {} faults", self.faults)?;
        for why in &self.not_installed {
            writeln!(f, "not installed: {why}")?;
        }
        for (filter, verdict) in &self.parts {
            writeln!(f, "{filter}: {verdict}")?;
        }
        for digest in &self.digests {
            writeln!(f, "rows differ: {digest}")?;
        }
        Ok(())
    }
}

/// Judges the history in a file.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn judge_file(path: &Path) -> io::Result<Judgement> {
    let mut events = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(File::open(path)?).lines()) {
        let event =
            serde_json::from_str(&line?).map_err(|e| io::Error::other(format!("{}:{number}: {e}", path.display())))?;
        events.push(event);
    }
    Ok(judge(&events))
}

/// Judges a history.
#[must_use]
pub fn judge(events: &[Event]) -> Judgement {
    let mut judgement = Judgement::default();
    let mut digests: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut open: BTreeSet<OpId> = BTreeSet::new();
    let [mut ok, mut fail, mut info] = [0; 3];
    for event in events {
        match &event.what {
            What::Fault { .. } => judgement.faults += 1,
            What::NotInstalled { nemesis, why } => {
                judgement.not_installed.insert(format!("{nemesis}: {why}"));
            }
            What::Digest { applied, digest, .. } => {
                digests.entry(*applied).or_default().insert(digest.clone());
            }
            What::Invoke { op, .. } => drop(open.insert(*op)),
            What::Ok { op, .. } => ok += usize::from(open.remove(op)),
            What::Fail { op, .. } => fail += usize::from(open.remove(op)),
            What::Info { op, .. } => info += usize::from(open.remove(op)),
            _ => {}
        }
    }
    judgement.outcomes = [ok, fail, info, open.len()];
    let differ = digests.into_iter().filter(|(_, said)| said.len() > 1);
    judgement.digests = differ.map(|(applied, said)| format!("at {applied}: {said:?}")).collect();
    for filter in filters(events) {
        let part = Part::of(events, &filter);
        let mut verdict = check::check(&part.history(events));
        if part.has_wills {
            verdict.out_of_order.clear();
        }
        judgement.parts.push((filter, verdict));
    }
    judgement
}

/// The filters that are subscribed to, without those of shared groups.
fn filters(events: &[Event]) -> BTreeSet<String> {
    let of = |event: &Event| match &event.what {
        What::Invoke { call: Call::Subscribe { filter, .. }, .. } => Some(filter.clone()),
        _ => None,
    };
    events.iter().filter_map(of).filter(|filter| !filter.starts_with("$share/")).collect()
}

fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for part in filter.split('/') {
        if part == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if part == "+" || part == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// What concerns one filter.
struct Part<'a> {
    filter: &'a str,
    sent: Vec<Sent>,
    by_op: BTreeMap<OpId, usize>,
    subscribing: BTreeSet<OpId>,
    /// Subscribed before the first publish, and to the end.
    must: BTreeSet<Client>,
    /// Subscribed at some time.
    may: BTreeSet<Client>,
    has_wills: bool,
}

impl<'a> Part<'a> {
    fn of(events: &[Event], filter: &'a str) -> Self {
        let mut part = Self {
            filter,
            sent: Vec::new(),
            by_op: BTreeMap::new(),
            subscribing: BTreeSet::new(),
            must: BTreeSet::new(),
            may: BTreeSet::new(),
            has_wills: false,
        };
        for event in events {
            if let Some(client) = event.client {
                part.event(client, &event.what);
            }
        }
        part
    }

    fn event(&mut self, client: Client, what: &What) {
        match what {
            What::Invoke { op, call } => self.invoke(client, *op, call),
            What::Again { op, .. } => {
                if let Some(sent) = self.sent_by(*op) {
                    sent.times += 1;
                }
            }
            What::Ok { op, answer: Answer::Published { .. } } => {
                if let Some(sent) = self.sent_by(*op) {
                    sent.acknowledged = true;
                }
            }
            What::Ok { op, answer: Answer::Subscribed { .. } }
                if self.sent.is_empty() && self.subscribing.contains(op) =>
            {
                self.must.insert(client);
            }
            _ => {}
        }
    }

    fn invoke(&mut self, client: Client, op: OpId, call: &Call) {
        match call {
            Call::Publish { message, topic, qos, .. } if matches(self.filter, topic) => {
                self.by_op.insert(op, self.sent.len());
                self.sent.push(Sent { message: *message, qos: *qos, times: 1, acknowledged: false });
            }
            Call::Connect { clean_start, will, .. } => {
                if *clean_start {
                    self.must.remove(&client);
                }
                if let Some(will) = will.as_ref().filter(|will| matches(self.filter, &will.topic)) {
                    self.has_wills = true;
                    self.sent.push(Sent { message: will.message, qos: will.qos, times: 1, acknowledged: false });
                }
            }
            Call::Subscribe { filter, .. } if filter == self.filter => {
                self.subscribing.insert(op);
                self.may.insert(client);
            }
            Call::Unsubscribe { filter, .. } if filter == self.filter => drop(self.must.remove(&client)),
            _ => {}
        }
    }

    fn sent_by(&mut self, op: OpId) -> Option<&mut Sent> {
        self.by_op.get(&op).and_then(|at| self.sent.get_mut(*at))
    }

    fn history(&self, events: &[Event]) -> History {
        let of = |event: &Event| match (&event.client, &event.what) {
            (Some(client), What::Deliver(d))
                if self.may.contains(client) && matches(self.filter, &d.topic) && !d.repeated =>
            {
                Some(Delivered {
                    subscriber: client.0,
                    connection: d.connection.0,
                    message: d.message,
                    qos: d.qos,
                    dup: d.dup,
                    packet_id: d.packet_id,
                })
            }
            _ => None,
        };
        let delivered = events.iter().filter_map(of).collect();
        let subscribers = self.must.iter().map(|client| client.0).collect();
        History { sent: self.sent.clone(), delivered, subscribers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::MessageName;
    use crate::history::event::{Connection, Delivery};

    fn event(client: u32, what: What) -> Event {
        Event { at_ns: 0, client: Some(Client(client)), what }
    }

    fn publish(op: u64, topic: &str) -> Event {
        let call = Call::Publish {
            connection: Connection(1),
            message: MessageName { publisher: 1, seq: op },
            topic: topic.into(),
            qos: 1,
            retain: false,
            packet_id: 1,
            key: None,
        };
        event(1, What::Invoke { op: OpId(op), call })
    }

    fn subscribed(op: u64) -> [Event; 2] {
        let call = Call::Subscribe { connection: Connection(1), filter: "a/#".into(), qos: 1 };
        let answer = Answer::Subscribed { code: 1 };
        [event(2, What::Invoke { op: OpId(op), call }), event(2, What::Ok { op: OpId(op), answer })]
    }

    fn delivered(seq: u64, packet_id: u16) -> Event {
        let delivery = Delivery {
            connection: Connection(1),
            message: MessageName { publisher: 1, seq },
            topic: "a/b".into(),
            qos: 1,
            dup: false,
            retain: false,
            packet_id,
            repeated: false,
            position: None,
        };
        event(2, What::Deliver(delivery))
    }

    fn taken(op: u64) -> Event {
        event(1, What::Ok { op: OpId(op), answer: Answer::Published { code: 0, position: None } })
    }

    #[test]
    fn what_was_acknowledged_must_arrive_at_who_was_subscribed_before() {
        let mut events = subscribed(1).to_vec();
        events.extend([publish(2, "a/b"), taken(2), publish(3, "b"), taken(3)]);
        let judgement = judge(&events);
        assert_eq!((judgement.acknowledged(), judgement.is_clean()), (1, false), "{judgement}");
        events.push(delivered(2, 1));
        assert!(judge(&events).is_clean());
        events.push(delivered(2, 2));
        assert!(!judge(&events).is_clean(), "once more than it was sent");
        let again = What::Again { op: OpId(2), connection: Connection(2) };
        events.insert(4, event(1, again));
        assert!(judge(&events).is_clean());
    }

    #[test]
    fn who_subscribed_later_need_not_get_everything() {
        let mut events = vec![publish(2, "a/b"), taken(2)];
        events.extend(subscribed(1));
        assert!(judge(&events).is_clean());
    }

    #[test]
    fn nodes_that_say_different_things_of_the_same_index_are_found() {
        let digest = |node: &str, digest: &str| Event {
            at_ns: 0,
            client: None,
            what: What::Digest { node: node.into(), applied: 7, digest: digest.into() },
        };
        assert!(judge(&[digest("n1", "x"), digest("n2", "x")]).is_clean());
        assert!(!judge(&[digest("n1", "x"), digest("n2", "y")]).is_clean());
    }
}
