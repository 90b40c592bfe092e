//! Guarantee 3: a QoS 2 message is delivered at most once to each subscriber, whatever broke ([`super::no_loss`]
//! holds the other half).

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{History, MessageName};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut duplicated = Vec::new();
    for subscriber in history.all_subscribers() {
        let mut times: BTreeMap<MessageName, usize> = BTreeMap::new();
        for d in history.to(subscriber).filter(|d| d.qos == 2) {
            *times.entry(d.message).or_default() += 1;
        }
        duplicated.extend(times.into_iter().filter(|&(_, n)| n > 1).map(|(message, n)| Violation {
            subscriber,
            message,
            what: format!("QoS 2 arrived {n} times"),
        }));
    }
    duplicated
}

#[cfg(test)]
mod tests {
    use super::super::testkit::history;
    use super::check;

    #[test]
    fn a_second_delivery_is_found_at_qos_2_only() {
        assert_eq!(check(&history(2, &[0, 1], &[0, 1, 0])).len(), 1);
        assert!(check(&history(1, &[0, 1], &[0, 1, 0])).is_empty());
    }
}
