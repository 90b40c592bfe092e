//! The sending task over real loopback connections: leaders that change, swallow and refuse.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_store::ids::NodeId;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::testkit::{Entry, FakeFront, FakeRaft, ModelMachine, Mood, NODE, Told, observe, publish, submission};
use super::super::{DirectTable, LeaderLinks, Proposer, StreamObserver, StreamStats};
use super::run_stream;
use crate::apply::ApplyObserver;
use crate::clock::ClusterClock;
use crate::consensus::{AppendRefused, AppliedView};
use crate::identity::ClusterId;
use crate::incarnation::StartTable;
use crate::leader_intake::{LeaderDesk, LeaderIntake};
use crate::liveness::Attendance;
use crate::options::Limits;
use crate::peer::{AddressBook, LocalPeer, PeerListener, PeerPool, PeerService, Tcp};

const SOON: Duration = Duration::from_secs(30);

/// Three nodes that share a log; the proposer of node 1 is the real one, and so is everything between it and
/// the log.
struct Cluster {
    rafts: Vec<FakeRaft>,
    proposer: Proposer,
    front: Arc<FakeFront>,
    applied: tokio::sync::watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

fn local(node: u64) -> LocalPeer {
    LocalPeer { cluster: ClusterId(1), node: NodeId(node), boot: node, address: "".into() }
}

impl Cluster {
    async fn start() -> Self {
        let rafts = FakeRaft::cluster(&[1, 2, 3]);
        let addresses = AddressBook::default();
        let mut nodes = std::collections::BTreeMap::new();
        let mut tasks = JoinSet::new();
        for (raft, node) in rafts.iter().zip(1..) {
            let listener = PeerListener::bind("127.0.0.1:0", &*Tcp::transport(None)).await.unwrap();
            nodes.insert(NodeId(node), listener.local_addr().unwrap().to_string());
            let attendance = Arc::new(Attendance::new(Duration::from_secs(3)));
            let (clock, stats) = (Arc::new(ClusterClock::new(Duration::MAX)), Arc::default());
            let desk = LeaderDesk::new(raft.clone(), clock, attendance, Duration::from_secs(2), stats);
            let service: Arc<dyn PeerService> = Arc::new(LeaderIntake::new(Arc::new(desk)));
            tasks.spawn(listener.run(local(node), AddressBook::default(), vec![service]));
        }
        addresses.set_nodes(nodes);
        let stats = Arc::new(StreamStats::default());
        let proposer = Proposer::new(NODE, &Limits::default(), stats.clone());
        let (front, starts) = (Arc::new(FakeFront::default()), Arc::new(StartTable::default()));
        let clock = Arc::new(ClusterClock::new(Duration::MAX));
        let directs = Arc::new(DirectTable::default());
        let mut observer = StreamObserver::new(&proposer, directs, starts.clone(), clock, front.clone());
        starts.expect(1);
        let (progress, applied) = tokio::sync::watch::channel(0);
        let mut log = rafts[0].log();
        tasks.spawn(async move {
            let mut machine = ModelMachine::default();
            observe(&mut observer, machine.apply(1, &Entry::Start(1)));
            observer.committed(AppliedView::default());
            let mut done = 0;
            while log.changed().await.is_ok() {
                let new: Vec<Bytes> = log.borrow_and_update()[done..].to_vec();
                for batch in new {
                    done += 1;
                    observe(&mut observer, machine.apply(done as u64 + 1, &Entry::Batch(batch)));
                }
                observer.committed(AppliedView::default());
                progress.send_replace(done);
            }
        });
        let links = Arc::new(LeaderLinks::new(
            rafts[0].clone(),
            PeerPool::new(local(1), addresses, Tcp::transport(None)),
            stats,
        ));
        let leader = crate::leader_intake::Leadership::leader_watch(&rafts[0]);
        tasks.spawn(run_stream(proposer.shared().clone(), links, leader));
        timeout(SOON, proposer.room()).await.unwrap();
        Self { rafts, proposer, front, applied, _tasks: tasks }
    }

    async fn submit(&self, ids: std::ops::Range<u64>) {
        for id in ids {
            let mut next = submission(id, publish(id));
            while let Err(busy) = self.proposer.submit(next) {
                next = *busy.submission;
                timeout(SOON, self.proposer.room()).await.unwrap();
            }
        }
    }

    /// Waits until all commands below `count` are answered; they are, once each and in order.
    async fn answered(&mut self, count: u64) {
        let all = async {
            loop {
                self.applied.borrow_and_update();
                let told: Vec<u64> = self.front.seen().iter().filter_map(id_of).collect();
                if told.len() as u64 >= count {
                    assert_eq!(told, (0..count).collect::<Vec<_>>());
                    return;
                }
                self.applied.changed().await.unwrap();
            }
        };
        timeout(SOON, all).await.unwrap();
    }
}

fn id_of(told: &Told) -> Option<u64> {
    match told {
        Told::Outcome(id, _) => Some(*id),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_reach_a_leader_here_and_elsewhere_and_follow_it() {
    let mut cluster = Cluster::start().await;
    FakeRaft::elect(&cluster.rafts, 2, 1);
    cluster.submit(0..500).await;
    cluster.answered(500).await;
    FakeRaft::elect(&cluster.rafts, 1, 2);
    cluster.submit(500..1000).await;
    cluster.answered(1000).await;
    FakeRaft::elect(&cluster.rafts, 3, 3);
    cluster.submit(1000..1500).await;
    cluster.answered(1500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dying_leader_swallowed_is_sent_to_the_next() {
    let mut cluster = Cluster::start().await;
    for (term, (leader, next)) in (1..).zip([(2, 3), (3, 1), (1, 2), (2, 3)]) {
        let first = (term - 1) * 300;
        cluster.rafts[next as usize - 1].set_mood(Mood::Takes);
        FakeRaft::elect(&cluster.rafts, leader, 2 * term);
        cluster.submit(first..first + 100).await;
        cluster.rafts[leader as usize - 1].set_mood(Mood::Swallows);
        cluster.submit(first + 100..first + 300).await;
        FakeRaft::elect(&cluster.rafts, next, 2 * term + 1);
        cluster.answered(first + 300).await;
        cluster.rafts[leader as usize - 1].set_mood(Mood::Takes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_swallows_without_a_word_is_found_out_by_the_gap_or_by_silence() {
    let mut cluster = Cluster::start().await;
    FakeRaft::elect(&cluster.rafts, 2, 1);
    cluster.submit(0..10).await;
    cluster.answered(10).await;
    // The second time a single batch, with nothing behind it.
    for (first, count, behind) in [(10, 10, 10), (30, 1, 0)] {
        let mut swallowed = cluster.rafts[1].swallowed();
        let before = *swallowed.borrow();
        cluster.rafts[1].set_mood(Mood::Swallows);
        cluster.submit(first..first + count).await;
        timeout(SOON, swallowed.wait_for(|n| *n > before)).await.unwrap().unwrap();
        // Nobody says so.
        cluster.rafts[1].set_mood(Mood::Takes);
        cluster.submit(first + count..first + count + behind).await;
        cluster.answered(first + count + behind).await;
    }
    let stats = cluster.proposer.stats();
    assert!(stats.resent.get() > 0);
    assert!(stats.stalls.get() > 0, "where nothing follows, only silence tells");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_takes_nothing_for_a_while_is_waited_for_and_gets_each_batch_once() {
    // Here and elsewhere; each the first leader, so that no batch is on its way to a former one.
    for leader in [1, 2] {
        let mut cluster = Cluster::start().await;
        let raft = cluster.rafts[leader - 1].clone();
        let mut refused = raft.refused();
        raft.set_mood(Mood::Refuses(AppendRefused::Overloaded { unflushed_bytes: 1 << 30 }));
        FakeRaft::elect(&cluster.rafts, leader as u64, 1);
        cluster.submit(0..50).await;
        // Longer than a direct command would wait.
        timeout(SOON, refused.wait_for(|n| *n > 100)).await.unwrap().unwrap();
        raft.set_mood(Mood::Takes);
        cluster.answered(50).await;
        let stats = cluster.proposer.stats();
        assert_eq!((stats.resent.get(), stats.links_lost.get(), stats.stalls.get()), (0, 0, 0), "leader {leader}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_node_as_leader_took_and_dropped_is_sent_again_at_once() {
    let mut cluster = Cluster::start().await;
    let local = cluster.rafts[0].clone();
    let mut swallowed = local.swallowed();
    local.set_mood(Mood::Swallows);
    FakeRaft::elect(&cluster.rafts, 1, 1);
    cluster.submit(0..20).await;
    timeout(SOON, swallowed.wait_for(|n| *n > 0)).await.unwrap().unwrap();
    // Nothing is appended behind it, so no gap tells.
    local.set_mood(Mood::Takes);
    local.tell_refusal();
    cluster.answered(20).await;
    assert_eq!(cluster.proposer.stats().stalls.get(), 0, "it was not silence that told");
    assert!(cluster.proposer.stats().resent.get() > 0);
}
