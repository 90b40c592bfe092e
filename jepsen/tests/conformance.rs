//! `docs/CONFORMANCE.md` is what the tests say it is, and says something about every statement.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use quorate_jepsen::conformance::{Conformance, PAGE};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn every_normative_statement_has_a_test_or_a_reason() {
    let conformance = Conformance::load(root()).unwrap();
    assert!(conformance.statements.len() > 300);
    assert!(conformance.problems().is_empty(), "{}", conformance.problems().join("\n"));
}

#[test]
fn the_page_is_what_the_tests_say() {
    let conformance = Conformance::load(root()).unwrap();
    let committed = std::fs::read_to_string(root().join(PAGE)).unwrap();
    let fresh = conformance.page(&Conformance::results_of_page(&committed));
    let differing = fresh.lines().zip(committed.lines()).find(|(fresh, committed)| fresh != committed);
    assert!(fresh == committed, "`make conformance` writes {PAGE} anew; first difference: {differing:#?}");
    assert!(!committed.contains("**failed**"), "{PAGE} shows a test that fails");
}
