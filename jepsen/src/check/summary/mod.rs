//! The six checks of a summary ([`History`]): without times and connections of publishers, for tests that keep no events.

mod agreement;
mod exactly_once;
mod no_loss;
mod order;
mod phantom;
mod repeats;

use std::fmt;

use crate::history::{History, MessageName};

/// How many violations of a kind a report spells out.
const SPELLED_OUT_MAX: usize = 10;

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// To whom.
    pub subscriber: u32,
    /// With which message.
    pub message: MessageName,
    /// What was wrong.
    pub what: String,
}

/// What a history says.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Publishes that were acknowledged.
    pub acknowledged: usize,
    /// Deliveries.
    pub delivered: usize,
    /// QoS 1 deliveries beyond the first of their message, all of them allowed ones.
    pub repeated: usize,
    /// Acknowledged and not delivered (guarantee 2).
    pub lost: Vec<Violation>,
    /// QoS 2 delivered more than once (guarantee 3).
    pub duplicated: Vec<Violation>,
    /// QoS 1 repeated where it may not be (guarantee 4).
    pub badly_repeated: Vec<Violation>,
    /// First deliveries of one publisher out of its order (guarantee 5).
    pub out_of_order: Vec<Violation>,
    /// Two subscribers that saw two orders (guarantee 5).
    pub disagreed: Vec<Violation>,
    /// Delivered and never sent.
    pub phantom: Vec<Violation>,
}

impl Verdict {
    /// The violations by kind.
    #[must_use]
    pub fn kinds(&self) -> [(&'static str, &[Violation]); 6] {
        [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("badly repeated", &self.badly_repeated),
            ("out of order", &self.out_of_order),
            ("disagreed", &self.disagreed),
            ("phantom", &self.phantom),
        ]
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.kinds().iter().all(|(_, violations)| violations.is_empty())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged, {} delivered, {} allowed QoS 1 repeats",
            self.acknowledged, self.delivered, self.repeated
        )?;
        for (kind, violations) in self.kinds() {
            write!(f, ", {} {kind}", violations.len())?;
        }
        for (kind, violations) in self.kinds() {
            for v in violations.iter().take(SPELLED_OUT_MAX) {
                write!(f, "\n  {kind}: subscriber {}, message {}: {}", v.subscriber, v.message, v.what)?;
            }
        }
        Ok(())
    }
}

/// Holds a history against every invariant.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let (repeated, badly_repeated) = repeats::check(history);
    Verdict {
        acknowledged: history.sent.iter().filter(|s| s.acknowledged).count(),
        delivered: history.delivered.len(),
        repeated,
        lost: no_loss::check(history),
        duplicated: exactly_once::check(history),
        badly_repeated,
        out_of_order: order::check(history),
        disagreed: agreement::check(history),
        phantom: phantom::check(history),
    }
}

#[cfg(test)]
pub(crate) mod testkit {
    use crate::history::{Delivered, History, MessageName, Sent};

    pub(crate) fn name(publisher: u32, seq: u64) -> MessageName {
        MessageName { publisher, seq }
    }

    pub(crate) fn sent(qos: u8, seqs: &[u64]) -> Vec<Sent> {
        seqs.iter().map(|&seq| Sent { message: name(0, seq), qos, times: 1, acknowledged: true }).collect()
    }

    /// Deliveries to subscriber 0 on one connection, each under an identifier of its own.
    pub(crate) fn delivered(qos: u8, seqs: &[u64]) -> Vec<Delivered> {
        (1..)
            .zip(seqs)
            .map(|(packet_id, &seq)| Delivered {
                subscriber: 0,
                connection: 0,
                message: name(0, seq),
                qos,
                dup: false,
                packet_id,
            })
            .collect()
    }

    pub(crate) fn history(qos: u8, out: &[u64], seen: &[u64]) -> History {
        History { sent: sent(qos, out), delivered: delivered(qos, seen), subscribers: vec![0] }
    }
}

#[cfg(test)]
mod tests {
    use super::testkit::history;
    use super::*;

    #[test]
    fn a_good_history_is_clean_and_a_bad_one_says_why() {
        assert!(check(&history(2, &[0, 1, 2], &[0, 1, 2])).is_clean());
        let verdict = check(&history(2, &[0, 1, 2], &[0, 2, 2]));
        assert!(!verdict.is_clean());
        assert!(verdict.to_string().contains("lost: subscriber 0, message 0/1"), "{verdict}");
    }
}
