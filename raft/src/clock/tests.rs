use super::*;

const MS: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: u64 = 24 * 3600 * 1000;

fn report(time: u64, is_live: bool, wall_ms: u64) -> ClockReport {
    ClockReport { time: ClusterTime(time), is_live, wall_ms }
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// Node 1's clock, at time 1000.
fn clock(start: Instant) -> ClockState {
    let mut clock = ClockState::new(start, DAY);
    clock.observe(ClusterTime(1000), start);
    clock
}

/// Node 1 leads in `term` and looks.
fn settle(clock: &mut ClockState, term: u64, voters: &[u64], wall_ms: u64, now: Instant) -> Settled {
    clock.settle(Leader { me: NodeId(1), term, voters: &nodes(voters), wall_ms }, now)
}

#[test]
fn time_carries_on_from_the_latest_seen_and_never_runs_backwards() {
    let start = Instant::now();
    let mut clock = clock(start);
    assert_eq!(clock.now(start + 500 * MS), ClusterTime(1500));
    clock.observe(ClusterTime(1200), start + 500 * MS);
    assert_eq!(clock.now(start + 500 * MS), ClusterTime(1500), "an older stamp does not set it back");
    clock.observe(ClusterTime(9000), start + 600 * MS);
    assert_eq!(clock.now(start + 700 * MS), ClusterTime(9100));
}

#[test]
fn a_leader_without_live_time_takes_it_from_any_node_that_has_it() {
    let start = Instant::now();
    let mut clock = clock(start);
    clock.reports.insert(NodeId(2), (report(900, false, 10_000_000), start));
    clock.reports.insert(NodeId(3), (report(5000, true, 20_000_000), start));
    let settled = settle(&mut clock, 1, &[1, 2, 3], 30_000_000, start + 10 * MS);
    assert_eq!(settled, Settled::Adopted, "a running cluster's time beats all wall clocks");
    assert_eq!(clock.now(start + 10 * MS), ClusterTime(5010));
    assert!(clock.is_live);
}

#[test]
fn after_an_outage_the_lower_median_of_a_majoritys_wall_clocks_counts() {
    let start = Instant::now();
    let mut clock = clock(start);
    let voters = [1, 2, 3];
    assert_eq!(settle(&mut clock, 1, &voters, 90_000, start), Settled::NotYet, "one of three is no majority");
    clock.reports.insert(NodeId(9), (report(0, false, 99_000_000), start));
    assert_eq!(settle(&mut clock, 1, &voters, 90_000, start), Settled::NotYet, "a learner is no voter");
    clock.reports.insert(NodeId(2), (report(900, false, 50_000), start));
    let late = start + REPORTS_PATIENCE;
    let settled = settle(&mut clock, 1, &voters, 91_000, late);
    assert_eq!(settled, Settled::Wall { jump: Duration::from_millis(51_000 - 2000), is_first: false });
    assert_eq!(clock.now(late), ClusterTime(51_000), "the lower of two, aged since it was heard");
}

#[test]
fn a_majority_waits_a_second_for_the_voter_that_may_have_live_time() {
    let start = Instant::now();
    let mut clock = clock(start);
    clock.reports.insert(NodeId(2), (report(900, false, 50_000), start));
    // A lead of another term is another wait.
    for (term, at) in [(1, 0), (1, 900), (2, 950), (2, 1900)] {
        assert_eq!(settle(&mut clock, term, &[1, 2, 3], 90_000, start + at * MS), Settled::NotYet);
        assert!(!clock.is_live, "no batch of a client is taken meanwhile");
    }
    clock.reports.insert(NodeId(3), (report(5000, true, 20_000_000), start + 1900 * MS));
    assert_eq!(settle(&mut clock, 2, &[1, 2, 3], 90_000, start + 1900 * MS), Settled::Adopted);
    assert_eq!(clock.now(start + 1900 * MS), ClusterTime(5000));
}

#[test]
fn when_all_voters_have_reported_nobody_waits() {
    let start = Instant::now();
    let mut clock = clock(start);
    clock.reports.insert(NodeId(2), (report(900, false, 50_000), start));
    clock.reports.insert(NodeId(3), (report(900, false, 60_000), start));
    assert!(matches!(settle(&mut clock, 1, &[1, 2, 3], 90_000, start), Settled::Wall { .. }));
}

#[test]
fn a_long_jump_waits_until_all_voters_agree_and_nothing_expires_by_it_before() {
    let start = Instant::now();
    let mut clock = clock(start);
    let (wrong, late) = (40 * DAY_MS, start + REPORTS_PATIENCE);
    clock.reports.insert(NodeId(2), (report(900, false, wrong), start));
    assert_eq!(settle(&mut clock, 1, &[1, 2, 3], wrong, start), Settled::NotYet);
    assert_eq!(clock.alarm(late), None);
    assert!(matches!(settle(&mut clock, 1, &[1, 2, 3], wrong, late), Settled::Held { jump } if jump > 39 * DAY));
    assert!(matches!(clock.alarm(late), Some(ClockAlarm::Held { jump }) if jump > 39 * DAY), "{:?}", clock.alarm(late));
    assert!(clock.is_live, "clients are served");
    assert_eq!(clock.now(late), ClusterTime(2000), "by the time that goes on from where it stopped");
    assert_eq!(settle(&mut clock, 1, &[1, 2, 3], wrong, late), Settled::NotYet, "one alarm is enough");
    // The third is of another opinion.
    clock.reports.insert(NodeId(3), (report(900, false, 70_000), late));
    assert_eq!(settle(&mut clock, 1, &[1, 2, 3], wrong + 1000, late), Settled::NotYet);
    assert_eq!(clock.now(late), ClusterTime(2000));
    // It was wrong, and is set.
    clock.reports.insert(NodeId(3), (report(900, false, wrong + 2000), late));
    assert!(matches!(settle(&mut clock, 1, &[1, 2, 3], wrong + 1000, late), Settled::Wall { .. }));
    assert_eq!(clock.now(late), ClusterTime(wrong + 1000));
    assert!(!clock.listens());
    // Time has jumped, and that is told for a while.
    assert!(
        matches!(clock.alarm(late), Some(ClockAlarm::Jumped { jump }) if jump > 39 * DAY),
        "{:?}",
        clock.alarm(late)
    );
    assert_eq!(clock.alarm(late + JUMP_SHOWN), None);
}

#[test]
fn time_that_was_held_goes_on_when_another_has_led() {
    let start = Instant::now();
    let mut clock = clock(start);
    clock.reports.insert(NodeId(2), (report(900, false, 40 * DAY_MS), start));
    settle(&mut clock, 1, &[1, 2, 3], 40 * DAY_MS, start);
    settle(&mut clock, 1, &[1, 2, 3], 40 * DAY_MS, start + REPORTS_PATIENCE);
    assert!(clock.listens());
    clock.reports.insert(NodeId(3), (report(900, false, 40 * DAY_MS), start));
    assert_eq!(settle(&mut clock, 3, &[1, 2, 3], 40 * DAY_MS, start + 2 * REPORTS_PATIENCE), Settled::NotYet);
    assert!(!clock.listens() && clock.is_live);
    assert_eq!(clock.alarm(start + 2 * REPORTS_PATIENCE), None, "nor is it told of any more");
}

#[test]
fn wall_clocks_that_are_behind_never_set_time_back() {
    let start = Instant::now();
    let mut clock = ClockState::new(start, DAY);
    clock.observe(ClusterTime(1_000_000), start);
    clock.reports.insert(NodeId(2), (report(0, false, 400), start));
    clock.reports.insert(NodeId(3), (report(0, false, 500), start));
    let settled = settle(&mut clock, 1, &[1, 2, 3], 600, start + MS);
    assert_eq!(settled, Settled::Wall { jump: Duration::ZERO, is_first: false });
    assert_eq!(clock.now(start + MS), ClusterTime(1_000_001));
}

#[test]
fn a_new_cluster_of_one_node_starts_from_its_own_wall_clock() {
    let start = Instant::now();
    let mut clock = ClockState::new(start, DAY);
    let settled = settle(&mut clock, 1, &[1], 1_700_000_000_000, start);
    assert!(matches!(settled, Settled::Wall { is_first: true, .. }));
    assert_eq!(clock.now(start), ClusterTime(1_700_000_000_000));
}

#[test]
fn live_time_passes_from_leader_to_follower() {
    let (leader, follower) = (ClusterClock::new(DAY), ClusterClock::new(DAY));
    follower.leader_says(leader.report());
    assert!(!follower.report().is_live, "a leader without live time gives none");
    assert!(!leader.is_live());
    leader.settle(NodeId(1), 1, &nodes(&[1]));
    assert!(leader.is_live());
    follower.leader_says(leader.report());
    assert!(follower.report().is_live && follower.is_live());
    assert!(follower.now().0 > 1_600_000_000_000);
    follower.heard(NodeId(3), report(u64::MAX, true, u64::MAX));
    follower.settle(NodeId(2), 1, &nodes(&[2]));
    assert!(follower.now().0 < u64::MAX / 2, "who has live time listens to nobody else");
}
