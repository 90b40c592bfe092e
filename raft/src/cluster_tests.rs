//! Nodes from within: what cannot be brought about, or seen, from outside.

use std::sync::Mutex;

use openraft::entry::RaftEntry;
use openraft::{EntryPayload, RaftSnapshotBuilder as _};
use quorate_store::command::NodeInfo;
use quorate_store::log::{LogEngine, LogOptions, LogRecord, RocksLog};
use quorate_store::machine::Machine;
use quorate_store::rows::RowsOptions;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::encoding::{encode_log_id, encode_vote};
use crate::entry::LogEntry;
use crate::execution::Execution;
use crate::identity::Identity;
use crate::join::{Admission, ControlService};
use crate::membership::first_members;
use crate::options::{FatalHook, RaftOptions, Start};
use crate::peer::{AddressBook, LocalPeer, PeerListener, PeerService, Tcp};
use crate::proposer::testkit::FakeFront;
use crate::snapshots::{SnapshotData, Snapshots};
use crate::start::StartError;
use crate::state_machine::StateMachine;
use crate::types::{LogId, Membership, Payload, Vote};

const SOON: Duration = Duration::from_secs(60);

/// Options of a node in `dir`, and what was fatal.
fn options(dir: &TempDir, start: Start) -> (RaftOptions, watch::Receiver<Vec<String>>) {
    let mut options = RaftOptions::new(dir.path().join("data"), "127.0.0.1:0".into(), NodeInfo::default(), start);
    options.log_engine = small();
    let (fatal, seen) = watch::channel(Vec::new());
    options.on_fatal =
        FatalHook(Arc::new(move |why| fatal.send_modify(|seen: &mut Vec<String>| seen.push(why.to_owned()))));
    (options, seen)
}

fn small() -> LogOptions {
    LogOptions { write_buffer_bytes: 1 << 20, recycled_wals: 0, ..LogOptions::default() }
}

async fn start(options: RaftOptions) -> Result<Cluster, StartError> {
    Cluster::start(options, Arc::new(FakeFront::default())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raft_core_that_panics_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (options, mut fatal) = options(&dir, Start::Bootstrap);
    let node = start(options).await.unwrap();
    node.0.consensus.raft().external_request(|_| panic!("as a test")).await.unwrap();
    let seen = timeout(SOON, fatal.wait_for(|seen| !seen.is_empty())).await.unwrap().unwrap().clone();
    assert!(seen.iter().any(|why| why.contains("Raft has stopped")), "{seen:?}");
    node.crash().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shuts_down_is_not_fatal() {
    for crash in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (options, fatal) = options(&dir, Start::Bootstrap);
        let node = start(options).await.unwrap();
        if crash {
            node.crash().await
        } else {
            node.shutdown().await
        }
        drop(node);
        assert_eq!(*fatal.borrow(), Vec::<String>::new());
    }
}

/// Says to everybody that it is node 1.
struct EverybodyIsFirst;

impl Admission for EverybodyIsFirst {
    fn admit(&self, _: JoinRequest, _: bool) -> BoxFuture<'_, Result<JoinGrant, JoinError>> {
        Box::pin(async { Ok(JoinGrant { cluster: ClusterId(7), node: NodeId(1) }) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_joins_is_never_node_1_and_makes_no_cluster() {
    let listener = PeerListener::bind("127.0.0.1:0", &*Tcp::transport(None)).await.unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    let local = LocalPeer { cluster: ClusterId(7), node: NodeId(1), boot: 5, address: "".into() };
    let admission: Arc<dyn PeerService> = Arc::new(ControlService::new(Arc::new(EverybodyIsFirst)));
    tokio::spawn(listener.run(local, AddressBook::default(), vec![admission]));
    for how in [
        Start::JoinPeers { peers: vec![peer], stays_learner: false },
        Start::Join { node_id: NodeId(1), cluster_id: ClusterId(7), token: 5 },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (options, _) = options(&dir, how);
        let refused = start(options.clone()).await.unwrap_err();
        assert!(matches!(refused, StartError::Join(JoinError::Refused(_))), "{refused}");
        let restart = RaftOptions { start: Start::Restart, ..options };
        assert!(matches!(start(restart).await, Err(StartError::NoIdentity(_))), "it has taken no name");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_was_promoted_is_one_that_stays_no_more() {
    let (first_dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(options(&first_dir, Start::Bootstrap).0).await.unwrap();
    let peers = vec![first.peer_address().to_owned()];
    let joining = async {
        loop {
            // Until the first node has made the cluster.
            let (options, _) = options(&other_dir, Start::JoinPeers { peers: peers.clone(), stays_learner: true });
            if let Ok(node) = start(options).await {
                return node;
            }
        }
    };
    let other = timeout(SOON, joining).await.unwrap();
    let mark = || first.0.members.current().membership().get_node(&other.node_id().0).map(|m| m.stays_learner);
    assert_eq!(mark(), Some(true));
    let promoting = async { while first.promote(other.node_id()).await.is_err() {} };
    timeout(SOON, promoting).await.unwrap();
    // A leader that finishes a removal of this voter would take the mark for one of a demotion.
    assert_eq!(mark(), Some(false));
    timeout(SOON, async { while first.demote(other.node_id()).await.is_err() {} }).await.unwrap();
    assert_eq!(mark(), Some(true));
    other.crash().await;
    first.crash().await;
}

fn entry(term: u64, index: u64) -> LogEntry {
    let payload: Payload = match index {
        0 => {
            let members = first_members(NodeId(1), "127.0.0.1:9".into());
            EntryPayload::Membership(Membership::new(vec![[1].into()], members).unwrap())
        }
        _ => EntryPayload::Blank,
    };
    LogEntry::new(LogId::new_term_index(term, index), payload)
}

/// Entries 0 to `fork` are the same for all; then `term` goes on to `last`.
fn log(fork: u64, term: u64, last: u64) -> Vec<LogEntry> {
    (0..=last)
        .map(|index| {
            entry(
                if index == 0 {
                    0
                } else if index <= fork {
                    3
                } else {
                    term
                },
                index,
            )
        })
        .collect()
}

/// A deposed leader with a tail of its own (3, 61..120) has received a snapshot (5, 100) and died before the tail
/// was taken out of its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_died_between_receiving_a_snapshot_and_installing_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let (options, fatal) = options(&dir, Start::Restart);
    let data = DataDir::open(&options.data_dir).unwrap();
    let identity = Identity { cluster: ClusterId(7), node: NodeId(2), token: 5 };
    data.claim(identity).unwrap();
    data.mark_log(identity).unwrap();
    drop(data);

    let elsewhere = tempfile::tempdir().unwrap();
    let (snapshots, rows) = Snapshots::open(elsewhere.path(), &RowsOptions::default()).unwrap();
    let apply = ApplyHandle::start(Machine::open(rows).unwrap(), AddressBook::default(), Execution::default()).unwrap();
    let _stops = crate::apply::StopsApply(apply.clone());
    apply.run(log(60, 5, 100).into_iter().map(|entry| (entry, None)).collect()).await.unwrap();
    let mut machine = StateMachine::new(apply, snapshots, Execution::default());
    let built = openraft::storage::RaftStateMachine::get_snapshot_builder(&mut machine).await.build_snapshot().await;
    let SnapshotData(snapshot) = built.unwrap().snapshot;

    let engine = RocksLog::open(options.data_dir.join("log"), small(), Arc::new(|error| panic!("{error}"))).unwrap();
    let records = log(60, 3, 120).into_iter().map(|e| LogRecord { index: e.index(), bytes: e.record().unwrap() });
    let (done, on_disk) = std::sync::mpsc::channel();
    engine.append(records.collect(), Box::new(move |result| done.send(result).unwrap()));
    on_disk.recv().unwrap().unwrap();
    engine.save_committed(encode_log_id(&LogId::new_term_index(3, 60)).unwrap());
    let (done, on_disk) = std::sync::mpsc::channel();
    engine.save_vote(encode_vote(&Vote::new_committed(5, 1)).unwrap(), Box::new(move |r| done.send(r).unwrap()));
    on_disk.recv().unwrap().unwrap();
    drop(engine);
    let (snapshots, rows) = Snapshots::open(&options.data_dir, &RowsOptions::default()).unwrap();
    snapshots.take_over(&snapshot).unwrap();
    drop((snapshots, rows));

    let node = start(options).await.unwrap();
    assert_eq!(node.applied().borrow().index, 100);
    let told = node.0.consensus.raft().wait(Some(SOON)).metrics(|m| m.last_log_index.is_some(), "told").await.unwrap();
    assert_eq!((told.last_log_index, told.purged.map(|id| id.index)), (Some(100), Some(100)), "its own tail is gone");
    node.crash().await;
    assert_eq!(*fatal.borrow(), Vec::<String>::new());
}

#[test]
fn while_rows_are_copied_for_a_snapshot_none_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (snapshots, rows) = Snapshots::open(dir.path(), &RowsOptions::default()).unwrap();
    let reader = rows.reader();
    let asked = Mutex::new(false);
    let built = snapshots.build(|| {
        // An installation would wait here before it removes anything, and this gets the rows that it leaves.
        assert!(snapshots.is_busy());
        *asked.lock().unwrap() = true;
        Some(reader)
    });
    built.unwrap();
    assert!(*asked.lock().unwrap() && !snapshots.is_busy());
    snapshots.clean_up().unwrap();
}
