use quorate_store::codec;
use quorate_store::command::{Batch, NodeInfo};

use super::*;
use crate::identity::ClusterId;
use crate::leader_intake::LeaderIntake;
use crate::peer::{AddressBook, LocalPeer, PeerListener, PeerPool, PeerService, Tcp};
use crate::proposer::DirectTable;
use crate::proposer::testkit::{FakeRaft, incarnation};

const SOON: Duration = Duration::from_secs(30);

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
        attendance.leads(1, start + ms(at), LOOK_INTERVAL);
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
    attendance.leads(2, start + ms(5950), LOOK_INTERVAL);
    assert_eq!(attendance.silent(ME, &nodes, start + ms(6900)).len(), 0);
}

#[test]
fn a_leader_that_waited_for_its_own_entry_was_not_asleep() {
    let (attendance, start) = (Attendance::new(TIMEOUT), Instant::now());
    let nodes = [up(2, 20)];
    assert_eq!(look(&attendance, &nodes, start, 0, 3000), [2]);
    // Its NodeLost was dropped: it waited a second, in vain.
    let late = start + ms(3000) + LOST_PATIENCE + LOOK_INTERVAL;
    attendance.leads(1, late, LOOK_INTERVAL + LOST_PATIENCE);
    assert_eq!(attendance.silent(ME, &nodes, late).len(), 1, "it tries again at once");
    // Longer than that is sleep.
    let late = late + ms(20) + LOST_PATIENCE + ASLEEP + LOOK_INTERVAL;
    attendance.leads(1, late, LOOK_INTERVAL + LOST_PATIENCE);
    assert_eq!(attendance.silent(ME, &nodes, late).len(), 0);
}

fn local(node: u64) -> LocalPeer {
    LocalPeer { cluster: ClusterId(1), node: NodeId(node), boot: node, address: "".into() }
}

fn desk(raft: &FakeRaft, attendance: &Arc<Attendance>, grace: Duration) -> Arc<LeaderDesk<FakeRaft>> {
    let clock = Arc::new(ClusterClock::new(Duration::MAX));
    Arc::new(LeaderDesk::new(raft.clone(), clock, attendance.clone(), grace, Arc::default()))
}

/// Fails every second time.
struct EverySecond(std::sync::atomic::AtomicUsize);

impl ListNodes for EverySecond {
    async fn list(&self) -> Option<Vec<NodeSummary>> {
        let number = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        number.is_multiple_of(2).then(|| vec![up(1, 10), up(2, 20)])
    }
}

#[tokio::test]
async fn a_look_at_which_the_nodes_cannot_be_listed_forgets_nobody() {
    let cluster = FakeRaft::cluster(&[1, 2]);
    FakeRaft::elect(&cluster, 1, 1);
    let attendance = Arc::new(Attendance::new(ms(400)));
    let desk = desk(&cluster[0], &attendance, Duration::from_secs(3600));
    let pool = PeerPool::new(local(1), AddressBook::default(), Tcp::transport(None));
    let (asks, _courier) = Asks::new(desk.clone(), pool);
    let directs = Directs::new(Arc::new(DirectTable::default()), asks, Arc::default());
    let clock = Arc::new(ClusterClock::new(Duration::MAX));
    let nodes = EverySecond(0.into());
    let attending = run_attendance(desk, attendance, clock, nodes, directs, Arc::default());
    let mut log = cluster[0].log();
    let lost = log.wait_for(|log| !log.is_empty());
    let log = tokio::select! {
        () = attending => panic!("it ended"),
        log = timeout(SOON, lost) => log.unwrap().unwrap().clone(),
    };
    let batch: Batch = codec::decode(log.first().unwrap()).unwrap();
    assert_eq!(batch.commands, [Command::NodeLost { incarnation: incarnation(20), term: 1 }]);
}

#[tokio::test]
async fn a_node_has_a_quorum_while_the_leader_knows_it_and_reaches_it() {
    let grace = ms(600);
    let cluster = FakeRaft::cluster(&[1, 2]);
    let attendance = Arc::new(Attendance::new(TIMEOUT));
    let listener = PeerListener::bind("127.0.0.1:0", &*Tcp::transport(None)).await.unwrap();
    let addresses = AddressBook::default();
    addresses.set_nodes([(NodeId(1), listener.local_addr().unwrap().to_string())].into());
    let leader: Arc<dyn PeerService> = Arc::new(LeaderIntake::new(desk(&cluster[0], &attendance, grace)));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(listener.run(local(1), AddressBook::default(), vec![leader]));
    let own = desk(&cluster[1], &attendance, grace);
    let (asks, courier) = Asks::new(own.clone(), PeerPool::new(local(2), addresses, Tcp::transport(None)));
    tasks.spawn(courier);
    let (quorum, mut has_quorum) = watch::channel(false);
    let (_, lives) = watch::channel(None);
    let clock = Arc::new(ClusterClock::new(Duration::MAX));
    tasks.spawn(run_pings(own, asks, clock, lives, quorum, grace, Arc::default()));
    // As if it heard of it, and a majority of the leader, all the time.
    let ever = Instant::now().checked_add(Duration::from_secs(3600));
    cluster[1].set_heard(ever);
    FakeRaft::elect(&cluster, 1, 1);
    cluster[0].set_acked(ever);
    timeout(SOON, has_quorum.wait_for(|has| *has)).await.unwrap().unwrap();
    // Pings go on and are answered, but nothing comes from the leader any more.
    cluster[1].set_heard(None);
    timeout(SOON, has_quorum.wait_for(|has| !*has)).await.unwrap().unwrap();
    cluster[1].set_heard(ever);
    timeout(SOON, has_quorum.wait_for(|has| *has)).await.unwrap().unwrap();
    // Removed, and not told.
    cluster[0].remove(NodeId(2));
    timeout(SOON, has_quorum.wait_for(|has| !*has)).await.unwrap().unwrap();
}

#[test]
fn a_change_of_leader_alone_takes_no_quorum_away() {
    let (grace, start) = (ms(3500), Instant::now());
    let at = |n: u64| start + ms(n);
    let follows = |heard: u64| Seen { leads: false, is_proven: false, heard_at: Some(at(heard)) };
    let elected = Seen { leads: true, is_proven: false, heard_at: Some(at(1000)) };
    let leads = Seen { is_proven: true, ..elected };

    let mut backing = Backing::default();
    assert!(!backing.holds(follows(0), grace, at(0)), "no leader has said anything of a majority");
    assert!(!backing.holds(elected, grace, at(0)), "elected, and never backed");
    backing.confirmed(Some(at(1000)));
    assert!(backing.holds(follows(1000), grace, at(1100)));
    // The leader is gone. It is elected, and no majority has answered it yet.
    assert!(backing.holds(elected, grace, at(4499)));
    assert!(!backing.holds(elected, grace, at(4500)), "no majority answers within the grace");
    assert!(backing.holds(leads, grace, at(9000)));
    backing.confirmed(Some(at(9000)));
    // Deposed, and not told anything by the new leader.
    assert!(backing.holds(follows(1000), grace, at(12_499)));
    assert!(!backing.holds(follows(1000), grace, at(12_500)));
    // What is confirmed late, or again, is no newer for it.
    backing.confirmed(Some(at(8000)));
    backing.confirmed(None);
    assert!(!backing.holds(follows(12_500), grace, at(12_500)));
}
