//! Nothing arrives that nobody sent.

use std::collections::BTreeSet;

use super::Violation;
use crate::history::{History, MessageName};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let sent: BTreeSet<MessageName> = history.sent.iter().map(|s| s.message).collect();
    let unsent = history.delivered.iter().filter(|d| !sent.contains(&d.message));
    unsent
        .map(|d| Violation { subscriber: d.subscriber, message: d.message, what: "was never sent".to_owned() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testkit::history;
    use super::check;

    #[test]
    fn what_nobody_sent_is_found() {
        assert_eq!(check(&history(1, &[0], &[0, 1])).len(), 1);
        assert!(check(&history(1, &[0, 1], &[0])).is_empty());
    }
}
