//! Guarantee 2: what was acknowledged arrives at everyone who was subscribed before it was sent.

use std::collections::BTreeSet;

use super::Violation;
use crate::history::{History, MessageName};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut lost = Vec::new();
    for &subscriber in &history.subscribers {
        let seen: BTreeSet<MessageName> = history.to(subscriber).map(|d| d.message).collect();
        lost.extend(history.sent.iter().filter(|s| s.acknowledged && !seen.contains(&s.message)).map(|s| Violation {
            subscriber,
            message: s.message,
            what: format!("QoS {} was acknowledged and never arrived", s.qos),
        }));
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::super::testkit::{history, name};
    use super::check;

    #[test]
    fn only_the_acknowledged_must_arrive() {
        let mut h = history(1, &[0, 1, 2], &[1]);
        h.sent[0].acknowledged = false;
        let lost: Vec<_> = check(&h).iter().map(|v| v.message).collect();
        assert_eq!(lost, [name(0, 2)]);
    }

    #[test]
    fn each_subscriber_counts() {
        let mut h = history(1, &[0], &[0]);
        h.subscribers.push(1);
        assert_eq!(check(&h).len(), 1);
    }
}
