//! Guarantee 5, second half: all subscribers see one order. Of what two subscribers both saw, first deliveries come
//! in the same order at both.

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{History, MessageName};

fn firsts(history: &History, subscriber: u32) -> Vec<MessageName> {
    let mut seen = std::collections::BTreeSet::new();
    history.to(subscriber).map(|d| d.message).filter(|m| seen.insert(*m)).collect()
}

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut disagreed = Vec::new();
    let subscribers = history.all_subscribers();
    let orders: Vec<(u32, Vec<MessageName>)> = subscribers.iter().map(|&s| (s, firsts(history, s))).collect();
    // Every pair: what one subscriber missed must not hide a disagreement of two others.
    for (i, (_, reference)) in orders.iter().enumerate() {
        let place: BTreeMap<MessageName, usize> = reference.iter().enumerate().map(|(at, m)| (*m, at)).collect();
        for (subscriber, order) in orders.iter().skip(i + 1) {
            let mut latest: Option<(usize, MessageName)> = None;
            for message in order {
                let Some(&at) = place.get(message) else { continue };
                match latest {
                    Some((before, other)) if at < before => disagreed.push(Violation {
                        subscriber: *subscriber,
                        message: *message,
                        what: format!("came after {other}, at another subscriber before it"),
                    }),
                    _ => latest = Some((at, *message)),
                }
            }
        }
    }
    disagreed
}

#[cfg(test)]
mod tests {
    use super::super::testkit::{delivered, history, name};
    use super::check;

    #[test]
    fn two_orders_are_found() {
        let mut h = history(1, &[0, 1, 2], &[0, 1, 2]);
        for mut d in delivered(1, &[0, 2, 1]) {
            d.subscriber = 1;
            h.delivered.push(d);
        }
        let found: Vec<_> = check(&h).iter().map(|v| v.message).collect();
        assert_eq!(found, [name(0, 1)]);
    }

    #[test]
    fn what_only_one_saw_does_not_matter() {
        let mut h = history(1, &[0, 1, 2], &[0, 1, 2]);
        for mut d in delivered(1, &[1]) {
            d.subscriber = 1;
            h.delivered.push(d);
        }
        assert!(check(&h).is_empty());
    }
}
