use quorate_store::command::NodeInfo;

use super::*;
use crate::proposer::testkit::incarnation;

const TIMEOUT: Duration = Duration::from_millis(3000);
const ME: NodeId = NodeId(1);
const NOBODY: [u64; 0] = [];

fn up(id: u64, n: u64) -> NodeSummary {
    NodeSummary { id: NodeId(id), info: NodeInfo::default(), incarnation: Some(incarnation(n)), up: true, wall_ms: 0 }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Looks every 100 ms from `from` to `to`, as the leader does; what was silent at the end.
fn look(attendance: &Attendance, nodes: &[NodeSummary], start: Instant, from: u64, to: u64) -> Vec<u64> {
    let mut silent = Vec::new();
    for at in (from..=to).step_by(100) {
        attendance.leads(1, start + ms(at));
        silent = attendance.silent(ME, nodes, start + ms(at));
    }
    silent.into_iter().map(|(node, ..)| node.0).collect()
}

#[test]
fn silence_counts_from_the_last_ping_or_from_the_beginning_of_the_lead() {
    let (attendance, start) = (Attendance::new(TIMEOUT), Instant::now());
    let nodes = [up(1, 10), up(2, 20), up(3, 30)];
    attendance.heard(NodeId(3), Some(incarnation(30)), start);
    assert_eq!(
        look(&attendance, &nodes, start + ms(5000), 0, 2900),
        NOBODY,
        "what it heard before it led is no silence"
    );
    attendance.heard(NodeId(2), Some(incarnation(20)), start + ms(7900));
    assert_eq!(look(&attendance, &nodes, start + ms(5000), 2900, 3000), [3], "never itself");
    assert_eq!(look(&attendance, &nodes, start + ms(5000), 3100, 5900), [2, 3]);
}

#[test]
fn a_ping_of_another_incarnation_is_no_sign_of_this_one_but_a_starting_node_is() {
    let (attendance, start) = (Attendance::new(TIMEOUT), Instant::now());
    let nodes = [up(2, 20), up(3, 30)];
    for at in (0..=3000).step_by(500) {
        attendance.heard(NodeId(2), Some(incarnation(19)), start + ms(at));
        attendance.heard(NodeId(3), None, start + ms(at));
    }
    assert_eq!(look(&attendance, &nodes, start, 0, 3000), [2]);
}

#[test]
fn a_new_incarnation_has_the_whole_timeout() {
    let (attendance, start) = (Attendance::new(TIMEOUT), Instant::now());
    assert_eq!(look(&attendance, &[up(2, 20)], start, 0, 2900), NOBODY);
    assert_eq!(look(&attendance, &[up(2, 21)], start, 3000, 5900), NOBODY);
    assert_eq!(look(&attendance, &[up(2, 21)], start, 6000, 6000), [2]);
    let down = NodeSummary { up: false, ..up(2, 21) };
    assert_eq!(look(&attendance, &[down], start, 6100, 6100), NOBODY, "what is closed is not closed again");
}

#[test]
fn a_leader_that_slept_judges_nobody_by_it() {
    let (attendance, start) = (Attendance::new(TIMEOUT), Instant::now());
    let nodes = [up(2, 20)];
    assert_eq!(look(&attendance, &nodes, start, 0, 500), NOBODY);
    assert_eq!(look(&attendance, &nodes, start, 9000, 11_900), NOBODY, "asleep from 0.5 s to 9 s");
    assert_eq!(look(&attendance, &nodes, start, 12_000, 12_000), [2]);
}

#[test]
fn a_leader_that_had_no_majority_or_leads_again_begins_anew() {
    let (attendance, start) = (Attendance::new(TIMEOUT), Instant::now());
    let nodes = [up(2, 20)];
    assert_eq!(look(&attendance, &nodes, start, 0, 2900), NOBODY);
    attendance.leads_not();
    assert_eq!(attendance.silent(ME, &nodes, start + ms(20_000)).len(), 0);
    assert_eq!(look(&attendance, &nodes, start, 3000, 5900), NOBODY);
    attendance.leads(2, start + ms(5950));
    assert_eq!(attendance.silent(ME, &nodes, start + ms(6900)).len(), 0);
}
