//! Guarantee 5, first half: to each subscriber the first deliveries of one publisher's messages of one QoS come in
//! the order in which they were sent. (A repeat may come later than its first delivery; that is no disorder.)

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::history::{History, MessageName};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut disorder = Vec::new();
    for subscriber in history.all_subscribers() {
        let mut seen: BTreeSet<MessageName> = BTreeSet::new();
        let mut latest: BTreeMap<(u32, u8), u64> = BTreeMap::new();
        for d in history.to(subscriber) {
            if !seen.insert(d.message) {
                continue;
            }
            let latest = latest.entry((d.message.publisher, d.qos)).or_insert(d.message.seq);
            if d.message.seq < *latest {
                let what = format!("first delivered after {} of the same publisher", *latest);
                disorder.push(Violation { subscriber, message: d.message, what });
            }
            *latest = d.message.seq.max(*latest);
        }
    }
    disorder
}

#[cfg(test)]
mod tests {
    use super::super::testkit::{history, name};
    use super::check;

    #[test]
    fn a_late_first_delivery_is_found_and_a_repeat_is_not() {
        assert!(check(&history(1, &[0, 1, 2], &[0, 1, 0, 2, 1])).is_empty());
        let found: Vec<_> = check(&history(1, &[0, 1, 2], &[0, 2, 1])).iter().map(|v| v.message).collect();
        assert_eq!(found, [name(0, 1)]);
    }

    #[test]
    fn each_publisher_and_each_qos_has_its_own_order() {
        let mut h = history(1, &[0, 1], &[1, 0]);
        h.delivered[1].qos = 2;
        assert!(check(&h).is_empty());
    }
}
