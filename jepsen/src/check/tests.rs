//! Random histories of a right broker pass, and of one that breaks a promise do not.

use super::testkit::History;
use super::testkit::broker::{World, run};
use super::verdict::Verdict;

mod mutations;
mod scale;

const SEEDS: u64 = 1500;

fn pass(world: World) {
    for seed in 0..SEEDS {
        let history = run(world, seed);
        let report = history.report();
        assert_eq!(report.verdict, Verdict::Pass, "seed {seed}:\n{report}\n{}", text(&history));
    }
}

fn text(history: &History) -> String {
    let lines = (1..).zip(&history.events).map(|(n, event)| format!("{n} {}", serde_json::to_string(event).unwrap()));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_right_broker_passes_when_nothing_breaks() {
    pass(World::CALM);
}

#[test]
fn a_right_broker_passes_under_faults_and_takeovers() {
    pass(World::FAULTY);
}

#[test]
fn a_right_broker_passes_when_subscriptions_and_sessions_come_and_go() {
    pass(World::WILD);
}
