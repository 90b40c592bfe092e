//! Guarantee 4, idempotency keys: of all messages that were published under one key one is published, once.
//!
//! - No two of them are seen, live, by anybody.
//! - Acknowledgements of them that say a position all say that of the one.
//!
//! All publishers of a history count as one user, and a history as shorter than the window of keys.

use std::collections::BTreeMap;

use crate::history::index::{MessageAt, TextAt};
use crate::history::read::Line;

use super::run::Run;
use super::verdict::{Found, Guarantee, Kind};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let mut seen: BTreeMap<TextAt, (MessageAt, Line)> = BTreeMap::new();
    for arrival in run.index.arrivals.iter().filter(|arrival| !arrival.retain) {
        let Some(message) = arrival.message else { continue };
        let Some(key) = run.index.messages[message].key else { continue };
        let (first, line) = *seen.entry(key).or_insert((message, arrival.line));
        if first != message {
            let what = format!("has the idempotency key of {}, which was published", run.name(first));
            let client = Some(arrival.client);
            let mut bad = run.violation(Guarantee::AtLeastOnce, Kind::Duplicated, client, Some(message), what);
            bad.lines.extend([line, arrival.line]);
            found.violations.push(bad);
        }
    }
    let mut positions: BTreeMap<TextAt, (u64, Line)> = BTreeMap::new();
    for publish in &run.index.publishes {
        let m = &run.index.messages[publish.message];
        let (Some(key), Some(position)) = (m.key, publish.position) else { continue };
        let (first, line) = *positions.entry(key).or_insert((position, publish.span.ended));
        if first != position {
            let what = format!("was acknowledged at {position}, and another under its idempotency key at {first}");
            let mut bad = run.violation(Guarantee::AtLeastOnce, Kind::Contradiction, None, Some(publish.message), what);
            bad.lines.push(line);
            found.violations.push(bad);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::Guarantee::AtLeastOnce;

    #[test]
    fn one_of_a_key_arrives_and_no_other() {
        let mut h = History::new();
        h.connect(1, 1).connect(2, 1).subscribe(2, 1, "a", 1);
        h.publish_keyed(1, 1, 0, "a", "k", 7).publish_keyed(1, 1, 1, "a", "k", 7);
        h.deliver(2, 1, (1, 0), "a", 1, 1).settle(2, 1, 1);
        assert_eq!(broken(h.drain()), []);
        h.deliver(2, 1, (1, 1), "a", 1, 2).settle(2, 1, 2);
        assert_eq!(broken(&h), [(AtLeastOnce, Some(1))]);
    }

    #[test]
    fn all_of_a_key_have_the_position_of_the_one() {
        let mut h = History::new();
        h.connect(1, 1).publish_keyed(1, 1, 0, "a", "k", 7).publish_keyed(1, 1, 1, "a", "k", 8).drain();
        assert!(broken(&h).contains(&(AtLeastOnce, Some(1))));
    }
}
