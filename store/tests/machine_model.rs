//! The machine against the reference model, over random histories of a cluster.
//!
//! Holds guarantees 1 to 4 and 6 to 9 of the DESIGN at the level of the replicated state, and 12: the same
//! log gives the same rows, however it is cut into runs and whatever crashes in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod model;
mod testkit;

use model::driver::Driver;
use model::ops::{Op, ops, ops_over_long_full_queues, ops_over_long_queues};
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use testkit::cases;
use testkit::replica::{Then, replay, replay_wanting};

/// Plays `ops`, until machine and model part.
fn play(ops: &[Op], is_bounded: bool) -> (Driver, Result<(), String>) {
    let mut driver = Driver::new(2, is_bounded);
    for op in ops {
        if let Err(why) = driver.play(op) {
            return (driver, Err(format!("{op:?}: {why}")));
        }
    }
    let verdict = driver.check_rest();
    (driver, verdict)
}

fn cuts() -> impl Strategy<Value = Vec<Then>> {
    let then = prop_oneof![
        4 => Just(Then::GoOn),
        3 => Just(Then::Commit),
        1 => Just(Then::Reopen),
        1 => Just(Then::Flush),
        1 => Just(Then::Crash),
    ];
    prop::collection::vec(then, 1..40)
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn the_machine_does_what_the_model_says(ops in ops(120)) {
        let (_, verdict) = play(&ops, false);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }

    #[test]
    fn with_long_queues_the_machine_does_what_the_model_says(ops in ops_over_long_queues()) {
        let (_, verdict) = play(&ops, false);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }

    #[test]
    fn at_the_bound_of_a_queue_the_machine_does_what_the_model_says(ops in ops(120)) {
        let (_, verdict) = play(&ops, true);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }

    #[test]
    fn with_long_queues_at_their_bound_the_machine_does_what_the_model_says(ops in ops_over_long_full_queues()) {
        let (_, verdict) = play(&ops, true);
        prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
    }

    /// Effects for others are not even built; the state must not notice.
    #[test]
    fn what_a_node_wants_to_hear_changes_nothing_but_what_it_hears(ops in ops(120), whom in any::<u8>()) {
        let (driver, _) = play(&ops, false);
        let lives: Vec<_> = driver.model.lives.keys().copied().collect();
        let whom = lives.get(usize::from(whom) % (lives.len() + 1)).copied();
        let (rows, heard, there_is) = replay_wanting(&driver.rig.log, whom);
        prop_assert!(rows == *driver.rig.machine.store());
        prop_assert_eq!(heard, there_is);
    }

    #[test]
    fn the_same_log_gives_the_same_rows_and_effects_however_it_is_cut(
        ops in ops(120),
        cuts in cuts(),
        is_bounded: bool,
    ) {
        let (driver, _) = play(&ops, is_bounded);
        same_however_it_is_cut(&driver, &cuts)?;
    }

    #[test]
    fn what_a_replica_has_read_of_a_long_full_queue_changes_no_row(
        ops in ops_over_long_full_queues(),
        cuts in cuts(),
    ) {
        let (driver, _) = play(&ops, true);
        same_however_it_is_cut(&driver, &cuts)?;
    }
}

fn same_however_it_is_cut(driver: &Driver, cuts: &[Then]) -> Result<(), TestCaseError> {
    let log = &driver.rig.log;
    let (rows, told) = replay(log, &[]);
    prop_assert!(rows == *driver.rig.machine.store(), "a replica that applies entry by entry differs");
    let (other_rows, other_told) = replay(log, cuts);
    for (index, (one, other)) in told.iter().zip(&other_told).enumerate() {
        prop_assert_eq!(one, other, "effects of entry {}", index + 1);
    }
    prop_assert_eq!(differences(&rows, &other_rows), Vec::<String>::new());
    Ok(())
}

#[test]
fn random_histories_of_full_queues_reach_what_they_are_for() {
    let mut runner = TestRunner::new_with_rng(cases(1), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for _ in 0..100 {
        let history = ops_over_long_full_queues().new_tree(&mut runner).unwrap().current();
        for (place, times) in play(&history, true).0.reached {
            *reached.entry(place).or_default() += times;
        }
    }
    println!("{reached:#?}");
    for place in ["queue full", "withdrawn", "resumed with rows to send again", "kick", "incarnation closed"] {
        let times = reached.get(place).copied().unwrap_or(0);
        assert!(times >= 20, "{place}: {times} times in 100 histories");
    }
}

/// A generator that never gets to the point proves nothing.
#[test]
fn random_histories_reach_what_they_are_for() {
    let mut runner = TestRunner::new_with_rng(cases(1), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for _ in 0..300 {
        let history = ops(120).new_tree(&mut runner).unwrap().current();
        for (place, times) in play(&history, false).0.reached {
            *reached.entry(place).or_default() += times;
        }
    }
    println!("{reached:#?}");
    for place in [
        "resumed with a PUBREL owed",
        "resumed with rows to send again",
        "resumed with rows to send first",
        "resumed with inbound QoS 2",
        "CONNECT too late",
        "QoS 2 repeated",
        "key repeated",
        "refused",
        "delayed",
        "released",
        "fenced",
        "void",
        "gap",
        "kick",
        "incarnation closed",
        "will",
        "retained",
        "sent without a row",
        "sent from a row",
        "ignored",
        "given by a group",
        "given by a group at QoS 0",
        "waits in a group",
        "returned to a group",
        "exclusive refused",
    ] {
        let times = reached.get(place).copied().unwrap_or(0);
        assert!(times >= 20, "{place}: {times} times in 300 histories");
    }
}

/// Keys that differ, in hex.
fn differences(one: &quorate_store::rows::MemRows, other: &quorate_store::rows::MemRows) -> Vec<String> {
    let left: BTreeMap<_, _> = one.iter().collect();
    let right: BTreeMap<_, _> = other.iter().collect();
    let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).copied().collect();
    keys.into_iter()
        .filter(|key| left.get(key) != right.get(key))
        .map(|key| format!("{key:02x?}: {:02x?} | {:02x?}", left.get(key), right.get(key)))
        .collect()
}
