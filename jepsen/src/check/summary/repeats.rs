//! Guarantee 4: a QoS 1 message is repeated only for a reason that can be named.
//!
//! - A delivery with DUP=0 is a message of its own: there are no more of them than the publisher sent it.
//! - A delivery with DUP=1 has the packet identifier of an earlier delivery of the same message and comes on a later
//!   connection than it; or its earlier sending was lost with a connection, and nobody saw it.
//! - On one connection no delivery comes twice.
//!
//! The subscriber must be one that cannot have lost count itself (it kept its history over its restarts).

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{Delivered, History, MessageName};

/// The number of allowed repeats, and those that are not.
pub(super) fn check(history: &History) -> (usize, Vec<Violation>) {
    let times: BTreeMap<MessageName, u32> = history.sent.iter().map(|s| (s.message, s.times)).collect();
    let (mut repeated, mut bad) = (0, Vec::new());
    for subscriber in history.all_subscribers() {
        let mut by_message: BTreeMap<MessageName, Vec<&Delivered>> = BTreeMap::new();
        for d in history.to(subscriber).filter(|d| d.qos == 1) {
            by_message.entry(d.message).or_default().push(d);
        }
        for (message, deliveries) in by_message {
            repeated += deliveries.len() - 1;
            let sent = times.get(&message).copied().unwrap_or(0) as usize;
            let reasons = reasons_against(&deliveries, sent);
            bad.extend(reasons.into_iter().map(|what| Violation { subscriber, message, what }));
        }
    }
    (repeated, bad)
}

fn reasons_against(deliveries: &[&Delivered], sent: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    // Copies of the message, by the packet identifier under which each goes out for ever.
    let mut copies: BTreeMap<u16, u32> = BTreeMap::new();
    for d in deliveries {
        match (copies.insert(d.packet_id, d.connection), d.dup) {
            (Some(before), _) if before == d.connection => {
                reasons.push(format!("repeated under identifier {} on connection {}", d.packet_id, d.connection));
            }
            (Some(_), false) => {
                reasons.push(format!("repeated with DUP=0 under identifier {}", d.packet_id));
            }
            _ => {}
        }
    }
    if copies.len() > sent {
        reasons.push(format!("sent {sent} times and arrived as {} messages", copies.len()));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::testkit::history;
    use super::check;

    #[test]
    fn a_resend_of_the_publisher_allows_a_second_message() {
        let mut h = history(1, &[0], &[0, 0]);
        assert_eq!(check(&h).1.len(), 1);
        h.sent[0].times = 2;
        assert_eq!(check(&h), (1, vec![]));
    }

    #[test]
    fn a_repeat_needs_dup_the_same_identifier_and_a_later_connection() {
        let mut h = history(1, &[0], &[0, 0]);
        h.delivered[1].packet_id = 1;
        assert_eq!(check(&h).1.len(), 1, "the same connection");
        h.delivered[1].connection = 1;
        assert_eq!(check(&h).1.len(), 1, "DUP=0");
        h.delivered[1].dup = true;
        assert_eq!(check(&h), (1, vec![]));
        h.delivered[1].packet_id = 7;
        assert_eq!(check(&h).1.len(), 1, "another identifier");
    }
}
