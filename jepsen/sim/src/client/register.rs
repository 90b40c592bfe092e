//! Retained messages that one client writes and empties again, as registers (guarantee 7). The checkers of histories
//! tell values by their names, and an empty message has none: so these are held here.

use std::collections::BTreeMap;

use quorate_jepsen::history::MessageName;

use crate::{clock, invariants};

struct Write {
    value: Option<MessageName>,
    is_acknowledged: bool,
}

/// What was written to each topic, in order: its writer waits for each answer.
#[derive(Default)]
pub(super) struct Registers(BTreeMap<String, Vec<(u64, Write)>>);

impl Registers {
    pub(super) fn write(&mut self, topic: &str, value: Option<MessageName>) {
        let write = Write { value, is_acknowledged: false };
        self.0.entry(topic.to_owned()).or_default().push((u64::MAX, write));
    }

    /// The latest write is acknowledged.
    pub(super) fn acknowledged(&mut self, topic: &str) {
        if let Some((at, write)) = self.0.get_mut(topic).and_then(|writes| writes.last_mut()) {
            write.is_acknowledged = true;
            *at = (*at).min(clock::now_ns());
        }
    }

    /// A read that began then found this now: the newest that was acknowledged before, or one after it.
    pub(super) fn read(&self, topic: &str, began_ns: u64, found: Option<MessageName>) {
        let Some(writes) = self.0.get(topic) else { return };
        let newest = writes.iter().rposition(|(at, write)| write.is_acknowledged && *at <= began_ns);
        let was_empty = newest.is_none() && found.is_none();
        let possible = writes.iter().skip(newest.unwrap_or(0)).map(|(_, write)| write.value);
        if !was_empty && !possible.clone().any(|value| value == found) {
            let possible: Vec<_> = possible.collect();
            let how = format!("on {topic}: {found:?} was read, and may be {possible:?}");
            invariants::violated("retained is a linearizable register (guarantee 7)", &how);
        }
    }
}
