use super::*;

const MS: Duration = Duration::from_millis(1);

fn report(time: u64, is_live: bool, wall_ms: u64) -> ClockReport {
    ClockReport { time: ClusterTime(time), is_live, wall_ms }
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

#[test]
fn time_carries_on_from_the_latest_seen_and_never_runs_backwards() {
    let start = Instant::now();
    let mut clock = ClockState::new(start);
    clock.observe(ClusterTime(1000), start);
    assert_eq!(clock.now(start + 500 * MS), ClusterTime(1500));
    clock.observe(ClusterTime(1200), start + 500 * MS);
    assert_eq!(clock.now(start + 500 * MS), ClusterTime(1500), "an older stamp does not set it back");
    clock.observe(ClusterTime(9000), start + 600 * MS);
    assert_eq!(clock.now(start + 700 * MS), ClusterTime(9100));
}

#[test]
fn a_leader_without_live_time_takes_it_from_any_node_that_has_it() {
    let start = Instant::now();
    let mut clock = ClockState::new(start);
    clock.observe(ClusterTime(1000), start);
    clock.reports.insert(NodeId(2), (report(900, false, 10_000_000), start));
    clock.reports.insert(NodeId(3), (report(5000, true, 20_000_000), start));
    let settled = clock.settle(NodeId(1), &nodes(&[1, 2, 3]), 30_000_000, start + 10 * MS);
    assert_eq!(settled, Settled::Adopted, "a running cluster's time beats all wall clocks");
    assert_eq!(clock.now(start + 10 * MS), ClusterTime(5010));
    assert!(clock.is_live);
}

#[test]
fn after_an_outage_the_lower_median_of_a_majoritys_wall_clocks_counts() {
    let start = Instant::now();
    let mut clock = ClockState::new(start);
    clock.observe(ClusterTime(1000), start);
    let voters = nodes(&[1, 2, 3]);
    assert_eq!(clock.settle(NodeId(1), &voters, 90_000, start), Settled::NotYet, "one of three is no majority");
    clock.reports.insert(NodeId(9), (report(0, false, 99_000_000), start));
    assert_eq!(clock.settle(NodeId(1), &voters, 90_000, start), Settled::NotYet, "a learner is no voter");
    clock.reports.insert(NodeId(2), (report(900, false, 50_000), start));
    let settled = clock.settle(NodeId(1), &voters, 90_100, start + 100 * MS);
    assert_eq!(settled, Settled::Wall { jump: Duration::from_millis(50_100 - 1100), is_first: false });
    assert_eq!(clock.now(start + 100 * MS), ClusterTime(50_100), "the lower of two, aged since it was heard");
}

#[test]
fn wall_clocks_that_are_behind_never_set_time_back() {
    let start = Instant::now();
    let mut clock = ClockState::new(start);
    clock.observe(ClusterTime(1_000_000), start);
    clock.reports.insert(NodeId(2), (report(0, false, 400), start));
    clock.reports.insert(NodeId(3), (report(0, false, 500), start));
    let settled = clock.settle(NodeId(1), &nodes(&[1, 2, 3]), 600, start + MS);
    assert_eq!(settled, Settled::Wall { jump: Duration::ZERO, is_first: false });
    assert_eq!(clock.now(start + MS), ClusterTime(1_000_001));
}

#[test]
fn a_new_cluster_of_one_node_starts_from_its_own_wall_clock() {
    let start = Instant::now();
    let mut clock = ClockState::new(start);
    let settled = clock.settle(NodeId(1), &nodes(&[1]), 1_700_000_000_000, start);
    assert!(matches!(settled, Settled::Wall { is_first: true, .. }));
    assert_eq!(clock.now(start), ClusterTime(1_700_000_000_000));
}

#[test]
fn live_time_passes_from_leader_to_follower() {
    let (leader, follower) = (ClusterClock::new(), ClusterClock::new());
    follower.leader_says(leader.report());
    assert!(!follower.report().is_live, "a leader without live time gives none");
    leader.settle(NodeId(1), &nodes(&[1]));
    follower.leader_says(leader.report());
    assert!(follower.report().is_live);
    assert!(follower.now().0 > 1_600_000_000_000);
    follower.heard(NodeId(3), report(u64::MAX, true, u64::MAX));
    follower.settle(NodeId(2), &nodes(&[2]));
    assert!(follower.now().0 < u64::MAX / 2, "who has live time listens to nobody else");
}
