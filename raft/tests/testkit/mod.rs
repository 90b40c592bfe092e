//! Nodes in one process, over loopback TCP and real files.
#![allow(dead_code, unreachable_pub)]

pub mod clients;

use std::collections::HashMap;
use std::future::Future;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use quorate_raft::{
    AppliedRun, Cluster, FatalHook, JoinRequest, LogRetention, NodeEffects, NodeEvent, RaftOptions, Start, StartError,
    Submission, Ticket,
};
use quorate_store::codec::Payload;
use quorate_store::command::{Command, NodeInfo, Publish};
use quorate_store::effect::{Delivery, Outcome};
use quorate_store::ids::{Incarnation, NodeId, QoS};
use quorate_store::log::LogOptions;
use quorate_store::rows::{RowRead, key};
use quorate_store::topic::TopicName;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Generous: the machines that run these tests are slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Remembers what a node's front end is told.
pub struct Recorder {
    outcomes: Mutex<HashMap<Ticket, Outcome>>,
    /// Tickets that were answered more than once.
    doubled: AtomicU64,
    deliveries: Mutex<Vec<Delivery>>,
    incarnation: watch::Sender<Option<Incarnation>>,
    closed: AtomicU64,
}

impl Recorder {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            outcomes: Mutex::default(),
            doubled: AtomicU64::new(0),
            deliveries: Mutex::default(),
            incarnation: watch::Sender::new(None),
            closed: AtomicU64::new(0),
        })
    }

    pub fn outcome(&self, ticket: Ticket) -> Option<Outcome> {
        self.outcomes.lock().unwrap().get(&ticket).cloned()
    }

    pub fn outcomes(&self) -> HashMap<Ticket, Outcome> {
        self.outcomes.lock().unwrap().clone()
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }

    pub fn incarnations_closed(&self) -> u64 {
        self.closed.load(Ordering::SeqCst)
    }
}

impl NodeEffects for Recorder {
    fn applied(&self, run: AppliedRun) {
        for event in run.events {
            match event {
                NodeEvent::Outcome { ticket, outcome } => {
                    if self.outcomes.lock().unwrap().insert(ticket, outcome).is_some() {
                        self.doubled.fetch_add(1, Ordering::SeqCst);
                    }
                }
                NodeEvent::Deliver(delivery) => self.deliveries.lock().unwrap().push(delivery),
                NodeEvent::Withdraw { .. } | NodeEvent::Kick { .. } => {}
            }
        }
    }

    fn incarnation_started(&self, incarnation: Incarnation) {
        self.incarnation.send_replace(Some(incarnation));
    }

    fn incarnation_closed(&self, _: Incarnation) {
        self.closed.fetch_add(1, Ordering::SeqCst);
        self.incarnation.send_replace(None);
    }
}

/// A node that has ended, threads and all, when this is dropped: one whose database is closed while the process exits
/// ends it with SIGABRT ("pthread lock: Invalid argument").
pub struct Running(Cluster);

impl Deref for Running {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (cluster, (done, is_done)) = (self.0.clone(), mpsc::channel());
        // The runtime of the test goes on meanwhile: all of them have several threads.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(cluster.crash());
            drop(cluster);
            let _ = done.send(());
        });
        // A test that has failed says why before it says that this hangs.
        let ended = is_done.recv_timeout(PATIENCE);
        assert!(ended.is_ok() || thread::panicking(), "a node does not end");
    }
}

/// A running node, and the folder that outlives it.
pub struct TestNode {
    pub cluster: Running,
    pub recorder: Arc<Recorder>,
    pub options: RaftOptions,
    pub fatal: Arc<Mutex<Vec<String>>>,
    pub dir: Arc<TempDir>,
    requests: AtomicU64,
}

/// Options with small files, that remember what is fatal.
pub fn options(dir: &Path, name: &str, start: Start) -> (RaftOptions, Arc<Mutex<Vec<String>>>) {
    let info = NodeInfo { name: name.into(), admin: format!("admin-of-{name}"), ..NodeInfo::default() };
    let mut options = RaftOptions::new(dir.join("data"), "127.0.0.1:0".into(), info, start);
    options.log_engine = LogOptions { write_buffer_bytes: 4 << 20, recycled_wals: 0, ..LogOptions::default() };
    let fatal = Arc::new(Mutex::new(Vec::new()));
    let remember = fatal.clone();
    options.on_fatal = FatalHook(Arc::new(move |why| remember.lock().unwrap().push(why.to_owned())));
    (options, fatal)
}

impl TestNode {
    pub async fn start(name: &str, start: Start) -> Self {
        Self::start_with(name, start, LogRetention::default()).await
    }

    pub async fn start_with(name: &str, start: Start, log: LogRetention) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (options, fatal) = options(dir.path(), name, start);
        Self::open(RaftOptions { log, ..options }, fatal, dir).await.unwrap()
    }

    async fn open(
        mut options: RaftOptions,
        fatal: Arc<Mutex<Vec<String>>>,
        dir: Arc<TempDir>,
    ) -> Result<Self, StartError> {
        let recorder = Recorder::new();
        let cluster = Cluster::start(options.clone(), recorder.clone()).await?;
        // It keeps its address.
        options.peer_listen = cluster.peer_address().to_owned();
        options.start = Start::Restart;
        Ok(Self { cluster: Running(cluster), recorder, options, fatal, dir, requests: AtomicU64::new(0) })
    }

    /// Joins through `peer` and is promoted.
    pub async fn join(name: &str, peer: &TestNode, log: LogRetention) -> Self {
        let peers = vec![peer.cluster.peer_address().to_owned()];
        Self::start_with(name, Start::JoinPeers { peers, stays_learner: false }, log).await
    }

    /// Joins through `peer`; the others reach it only over `proxy`.
    pub async fn join_behind(name: &str, peer: &TestNode, proxy: &Proxy) -> Self {
        let peers = vec![peer.cluster.peer_address().to_owned()];
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (mut options, fatal) = options(dir.path(), name, Start::JoinPeers { peers, stays_learner: false });
        options.peer_listen = proxy.behind.clone();
        options.info.peer = proxy.address.clone();
        Self::open(options, fatal, dir).await.unwrap()
    }

    pub fn id(&self) -> NodeId {
        self.cluster.node_id()
    }

    /// Ends it as a process dies; what stays is the folder.
    pub async fn crash(self) -> DeadNode {
        self.cluster.crash().await;
        self.assert_sound();
        DeadNode { options: self.options, fatal: self.fatal, dir: self.dir }
    }

    pub async fn shutdown(self) -> DeadNode {
        self.cluster.shutdown().await;
        self.assert_sound();
        DeadNode { options: self.options, fatal: self.fatal, dir: self.dir }
    }

    pub fn assert_sound(&self) {
        assert_eq!(*self.fatal.lock().unwrap(), Vec::<String>::new());
        assert_eq!(self.recorder.doubled.load(Ordering::SeqCst), 0, "a ticket was answered twice");
    }

    /// Waits until this node has an incarnation, and so takes commands.
    pub async fn serves(&self) -> Incarnation {
        let mut incarnation = self.recorder.incarnation.subscribe();
        let open = timeout(PATIENCE, incarnation.wait_for(Option::is_some)).await;
        open.expect("no incarnation in time").unwrap().unwrap()
    }

    /// A number that no other request of this node's clients has.
    pub fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn leads(&self) -> bool {
        self.cluster.leader().borrow().is_self
    }

    /// Submits a retained message to this node's stream.
    pub fn submit(&self, number: u64) -> Ticket {
        let ticket = Ticket { worker: 0, slot: 0, generation: 0, request: number };
        let publish = Publish {
            from: None,
            packet_id: None,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: TopicName::new(&topic(self.id(), number)).unwrap(),
            properties: None,
            expiry_s: None,
            payload: Payload(vec![7; 200].into()),
        };
        let mut submission =
            Submission { command: Command::Publish(publish), ticket, withdrawn: None, can_wait: false };
        while let Err(busy) = self.cluster.proposer().submit(submission) {
            submission = *busy.submission;
            std::thread::yield_now();
        }
        ticket
    }

    /// Submits messages `numbers` and waits until each is acknowledged.
    pub async fn publish(&self, numbers: impl IntoIterator<Item = u64>) {
        let tickets: Vec<_> = numbers.into_iter().map(|number| self.submit(number)).collect();
        for ticket in tickets {
            let published = async || self.recorder.outcome(ticket);
            let outcome = eventually("a message is acknowledged", published).await;
            assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
        }
    }

    /// Whether the message `number` of `publisher` is in this node's rows.
    pub fn has(&self, publisher: NodeId, number: u64) -> bool {
        let key = key::retained(&topic(publisher, number));
        self.cluster.rows().get(key.as_bytes()).unwrap().is_some()
    }

    pub fn applied(&self) -> u64 {
        self.cluster.applied().borrow().index
    }
}

fn topic(publisher: NodeId, number: u64) -> String {
    format!("t/{publisher}/{number}")
}

/// A node that does not run.
pub struct DeadNode {
    pub options: RaftOptions,
    pub fatal: Arc<Mutex<Vec<String>>>,
    pub dir: Arc<TempDir>,
}

impl DeadNode {
    /// Starts it again. Its files may still be being closed.
    pub async fn restart(self) -> TestNode {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match TestNode::open(self.options.clone(), self.fatal.clone(), self.dir.clone()).await {
                Ok(node) => return node,
                Err(error) => {
                    assert!(Instant::now() < deadline, "{error}");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Three voters; the first leads unless something went slowly.
pub async fn three(log: LogRetention) -> [TestNode; 3] {
    let a = TestNode::start_with("a", Start::Bootstrap, log).await;
    a.serves().await;
    let b = TestNode::join("b", &a, log).await;
    let c = TestNode::join("c", &b, log).await;
    for node in [&a, &b, &c] {
        node.serves().await;
    }
    all_vote(&[&a, &b, &c]).await;
    [a, b, c]
}

/// Waits until every node of `nodes` knows all of them as voters.
pub async fn all_vote(nodes: &[&TestNode]) {
    for node in nodes {
        let voters = async || {
            let status = node.cluster.status().borrow().clone();
            let learner = |n: &quorate_raft::NodeStatus| n.role == quorate_raft::NodeRole::Learner;
            (status.nodes.len() == nodes.len() && !status.nodes.iter().any(learner)).then_some(())
        };
        eventually("all nodes are voters", voters).await;
    }
}

/// The node that leads, as it itself says.
pub async fn leader<'a>(nodes: &[&'a TestNode]) -> &'a TestNode {
    eventually("there is a leader", async || nodes.iter().copied().find(|n| n.cluster.leader().borrow().is_self)).await
}

/// All nodes have the same rows.
pub async fn assert_same_rows(nodes: &[&TestNode]) {
    eventually("all nodes have the same rows at the same index", async || {
        let mut seen = Vec::new();
        for node in nodes {
            seen.push(node.cluster.digest().await.unwrap());
        }
        let at_same_index = seen.iter().all(|(index, _)| Some(*index) == seen.first().map(|(i, _)| *i));
        if at_same_index {
            assert!(seen.iter().all(|digest| Some(digest) == seen.first()), "replicas differ: {seen:?}");
        }
        at_same_index.then_some(())
    })
    .await;
}

/// A request of a node that is not there.
pub fn join_request(token: u128, peer: &str, stays_learner: bool) -> JoinRequest {
    let info = NodeInfo { name: "joiner".into(), peer: peer.into(), ..NodeInfo::default() };
    JoinRequest { token, info, stays_learner }
}

/// A way to one node that can be cut: what is open breaks, what is new hangs.
pub struct Proxy {
    /// Where the others go.
    pub address: String,
    /// Where the node listens.
    pub behind: String,
    is_open: watch::Sender<bool>,
}

impl Proxy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // A port that is free now.
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let is_open = watch::Sender::new(true);
        let (open, to) = (is_open.clone(), behind.clone());
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (mut open, to) = (open.subscribe(), to.clone());
                tokio::spawn(async move {
                    if open.wait_for(|open| *open).await.is_err() {
                        return;
                    }
                    let Ok(mut there) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut there) => {}
                        _ = open.wait_for(|open| !*open) => {}
                    }
                });
            }
        });
        Self { address, behind, is_open }
    }

    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub fn heal(&self) {
        self.is_open.send_replace(true);
    }
}
