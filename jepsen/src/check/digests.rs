//! Guarantee 12, replicas agree: nodes that say the same applied index say the same digest.

use std::collections::BTreeMap;

use crate::history::event::What;
use crate::history::read::Line;

use super::run::Run;
use super::verdict::{Found, Guarantee, Kind, Violation};

pub(super) fn check(run: &Run<'_>, found: &mut Found) {
    let mut said: BTreeMap<u64, Vec<(&str, &str, Line)>> = BTreeMap::new();
    for (line, event) in (1..).map(Line).zip(&run.index.events) {
        if let What::Digest { node, applied, digest } = &event.what {
            said.entry(*applied).or_default().push((node, digest, line));
        }
    }
    let mut compared = 0;
    for (applied, all) in said {
        let mut nodes: Vec<&str> = all.iter().map(|(node, ..)| *node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        compared = compared.max(nodes.len());
        let Some(((first, digest, line), rest)) = all.split_first() else { continue };
        for (node, other, at) in rest.iter().filter(|(_, other, _)| other != digest) {
            found.violations.push(Violation {
                guarantee: Guarantee::ReplicasAgree,
                kind: Kind::Contradiction,
                client: None,
                message: None,
                what: format!("at {applied} node {first} has digest {digest} and node {node} has {other}"),
                lines: vec![*line, *at],
            });
        }
    }
    if compared < run.expectations.digests_min {
        let wanted = run.expectations.digests_min;
        found.unknown.push(format!("digests of {compared} nodes at one applied index were compared, not {wanted}"));
    }
}

#[cfg(test)]
mod tests {
    use crate::check::testkit::{History, broken};
    use crate::check::verdict::{Expectations, Guarantee::ReplicasAgree};

    #[test]
    fn the_same_index_has_the_same_digest() {
        let mut h = History::new();
        h.connect(1, 1).drain().digest("n1", 7, "a").digest("n2", 7, "a").digest("n3", 6, "b");
        assert_eq!(broken(&h), []);
        h.digest("n3", 7, "b");
        assert_eq!(broken(&h), [(ReplicasAgree, None)]);
    }

    #[test]
    fn digests_that_are_asked_for_and_not_there_make_no_pass() {
        let mut h = History::new();
        h.connect(1, 1).drain().digest("n1", 7, "a").digest("n2", 8, "a");
        let wanted = Expectations { digests_min: 2, ..Expectations::default() };
        assert_eq!(h.report_with(&wanted).verdict.exit_code(), 2);
    }
}
