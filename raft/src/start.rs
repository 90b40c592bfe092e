//! Starting a node: identity, files, Raft, and everything around it, in the only order that is safe.
//!
//! Files are opened and checked before any peer hears of this node; Raft is built over them before the peer
//! port answers; it runs only when everything that its entries concern is in place.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Config, SnapshotPolicy};
use quorate_store::ids::NodeId;
use quorate_store::log::{EngineKind, LogEngine, LogError, LogOptions, OnFatal, RocksLog, SegmentLog};
use quorate_store::machine::{Machine, MachineError};
use quorate_store::seeded_bug::{SeededBug, is_seeded};
use thiserror::Error;
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::apply::ApplyHandle;
use crate::cluster::{Cluster, Node};
use crate::consensus::{Consensus, ConsensusParts, Raft};
use crate::effects::NodeEffects;
use crate::execution::Execution;
use crate::failover::Failover;
use crate::identity::{ClusterId, DataDir, Identity, IdentityError};
use crate::join::{Admission, ControlService, JoinError, JoinRequest, join_through};
use crate::liveness::PING_INTERVAL;
use crate::log_store::LogStore;
use crate::membership::{Members, first_members};
use crate::network::Networks;
use crate::options::{RaftOptions, Start, Timings};
use crate::peer::{AddressBook, LocalPeer, PeerListener, PeerPool};
use crate::proposer::StreamSeed;
use crate::raft_link::RaftLinks;
use crate::raft_service::RaftService;
use crate::retention::run_retention;
use crate::snapshot_transfer::SnapshotService;
use crate::snapshots::Snapshots;
use crate::state_machine::StateMachine;
use crate::status::StatusTask;
use crate::tasks::Tasks;
use crate::types::LogId;

/// The node that bootstraps a cluster.
const FIRST_NODE: NodeId = NodeId(1);
/// Ends of Raft connections that wait for [`Failover`].
const PEERS_GONE_MAX: usize = 64;
/// Between two looks whether the log holds anything yet.
const LOG_MARK_INTERVAL: Duration = Duration::from_millis(50);
/// Commands of openraft's core that wait for the apply thread. When that many do, the core waits, too, and answers
/// neither heartbeats nor votes: a disk that stalls under the rows must not cost leadership at once.
const APPLY_COMMANDS_MAX: u64 = 65_536;
/// Folder of the log in the data directory.
const LOG_DIR: &str = "log";

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It was never bootstrapped or joined.
    #[error("data directory {} belongs to no cluster yet: start with --bootstrap for a new cluster, or with --join for an existing one", .0.display())]
    NoIdentity(PathBuf),
    /// The cluster did not admit it.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The peer port.
    #[error("the peer port cannot listen at {address}: {error}; is another process using it?")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log was there once and is not any more.
    #[error(
        "the log in {} is gone, so this node may have forgotten votes and entries that it acknowledged: remove node {node} from the cluster and let it join again on an empty data directory",
        path.display()
    )]
    LogLost {
        /// Where it was.
        path: PathBuf,
        /// This node.
        node: NodeId,
    },
    /// The log was purged because the state had what was in it, and the state has not.
    #[error(
        "the state in {} ends at log entry {applied}, but the log begins behind entry {purged}: files of the state are missing or were put back from elsewhere; remove node {node} from the cluster and let it join again on an empty data directory",
        path.display()
    )]
    StateLost {
        /// Data directory.
        path: PathBuf,
        /// This node.
        node: NodeId,
        /// Last entry in the state.
        applied: u64,
        /// Last entry that is not in the log any more.
        purged: u64,
    },
    /// Rows or snapshots.
    #[error("the state in {} cannot be used: {error}", path.display())]
    State {
        /// Data directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The state machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Timings that cannot work.
    #[error("the Raft timings cannot work: {0}")]
    Timings(String),
    /// openraft refuses to start on what it finds.
    #[error("Raft does not start on what is in {}: {why}", path.display())]
    Raft {
        /// Data directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The files of a node, open and consistent with each other.
struct Files<E> {
    log: LogStore<E>,
    apply: ApplyHandle,
    snapshots: Snapshots,
}

impl Cluster {
    /// Starts a node. `effects` is told what the log says about its clients.
    ///
    /// # Errors
    /// [`StartError`] says what, why and what to do; nothing is left running.
    pub async fn start(options: RaftOptions, effects: Arc<dyn NodeEffects>) -> Result<Self, StartError> {
        match options.log_engine.engine {
            EngineKind::RocksDb => Self::start_with(options, effects, RocksLog::open).await,
            EngineKind::Segments => Self::start_with(options, effects, SegmentLog::open).await,
        }
    }

    /// Starts a node whose log is what `open_log` opens.
    ///
    /// # Errors
    /// [`StartError`] says what, why and what to do; nothing is left running.
    pub async fn start_with<E: LogEngine>(
        options: RaftOptions,
        effects: Arc<dyn NodeEffects>,
        open_log: impl FnOnce(PathBuf, LogOptions, OnFatal) -> Result<E, LogError> + Send + 'static,
    ) -> Result<Self, StartError> {
        check_timings(&options.timings)?;
        let data_dir = DataDir::open(&options.data_dir)?;
        let known = data_dir.identity()?;
        let listener = PeerListener::bind(&options.peer_listen, &*options.transport)
            .await
            .map_err(|error| StartError::Listen { address: options.peer_listen.clone(), error })?;
        let mut info = options.info.clone();
        info.peer = peer_address(&info.peer, &listener)?;
        let options = RaftOptions { info, ..options };

        let identity = match known {
            Some(identity) => check_start(&data_dir, identity, &options.start)?,
            None => acquire_identity(&data_dir, &options).await?,
        };
        info!(node = %identity.node, cluster = %identity.cluster, "starting");
        let local = LocalPeer {
            cluster: identity.cluster,
            node: identity.node,
            boot: rand::random(),
            address: options.info.peer.as_str().into(),
        };
        let addresses = AddressBook::default();
        let files = open_files(&data_dir, identity, &options, addresses.clone(), open_log).await?;
        let pool = PeerPool::new(local.clone(), addresses, options.transport.clone());
        assemble(data_dir, options, identity, local, listener, pool, files, effects).await
    }
}

fn check_timings(timings: &Timings) -> Result<(), StartError> {
    let Timings { heartbeat, election_min, election_max, node_timeout, quorum_grace, .. } = *timings;
    let rules = [
        (heartbeat.is_zero(), "the heartbeat interval is 0"),
        (heartbeat * 2 >= election_min, "the election timeout must be more than two heartbeats"),
        (election_min >= election_max, "the smallest election timeout must be below the largest"),
        (quorum_grace >= node_timeout, "quorum_grace must be below node_timeout"),
        (
            quorum_grace <= PING_INTERVAL + heartbeat * 2,
            "quorum_grace must be above a ping (every 200 ms) and two heartbeats",
        ),
    ];
    match rules.iter().find(|(broken, _)| *broken) {
        Some((_, rule)) => Err(StartError::Timings((*rule).to_owned())),
        None => Ok(()),
    }
}

/// What others are told: the configured address, or, without a port, the one that is listened at.
fn peer_address(configured: &str, listener: &PeerListener) -> Result<String, StartError> {
    let bound = listener.local_addr().map_err(|error| StartError::Listen { address: configured.into(), error })?;
    Ok(match configured.strip_suffix(":0") {
        Some(host) => format!("{host}:{}", bound.port()),
        None if configured.is_empty() => bound.to_string(),
        None => configured.to_owned(),
    })
}

/// A data directory that has an identity goes on as what it is.
fn check_start(data_dir: &DataDir, identity: Identity, start: &Start) -> Result<Identity, StartError> {
    if let Start::Join { node_id, cluster_id, token } = *start {
        data_dir.claim(Identity { cluster: cluster_id, node: node_id, token })?;
    }
    Ok(identity)
}

async fn acquire_identity(data_dir: &DataDir, options: &RaftOptions) -> Result<Identity, StartError> {
    let identity = match &options.start {
        Start::Restart => return Err(StartError::NoIdentity(data_dir.path().to_owned())),
        Start::Bootstrap => Identity { cluster: ClusterId::random(), node: FIRST_NODE, token: data_dir.join_token()? },
        Start::Join { node_id, cluster_id, token } => Identity { cluster: *cluster_id, node: *node_id, token: *token },
        Start::JoinPeers { peers, stays_learner } => {
            let token = data_dir.join_token()?;
            let request = JoinRequest { token, info: options.info.clone(), stays_learner: *stays_learner };
            let grant = join_through(peers, &request, &*options.transport).await?;
            Identity { cluster: grant.cluster, node: grant.node, token }
        }
    };
    // Node 1 made the cluster. Whoever is told that it is node 1, too, would make another one under its name.
    if identity.node == FIRST_NODE && options.start != Start::Bootstrap {
        let why = format!("it says that this is node {FIRST_NODE}, which is the node that made it; try again");
        return Err(JoinError::Refused(why).into());
    }
    data_dir.claim(identity)?;
    Ok(identity)
}

async fn open_files<E: LogEngine>(
    data_dir: &DataDir,
    identity: Identity,
    options: &RaftOptions,
    addresses: AddressBook,
    open_log: impl FnOnce(PathBuf, LogOptions, OnFatal) -> Result<E, LogError> + Send + 'static,
) -> Result<Files<E>, StartError> {
    let path = data_dir.path().to_owned();
    let state_error = |error: io::Error| StartError::State { path: path.clone(), error };
    let has_log = data_dir.has_log()?;
    let (dir, its_options) = (path.clone(), options.clone());
    let open = move || open_files_blocking(&dir, identity, has_log, &its_options, addresses, open_log);
    let files = options.execution.blocking(open).await.map_err(|panic| state_error(io::Error::other(panic)))??;
    let Files { log, apply, snapshots } = &files;

    // openraft may apply what this disk has not flushed yet (a majority of others had), so after a power cut
    // the rows can be ahead of the log. It then purges the log up to the rows, and what is purged must be in
    // a snapshot, or followers could never be served.
    let (applied, last) = (apply.state().log_id, log.last_log_id().map_err(state_error)?);
    let snapshot = snapshots.current().map_err(state_error)?.and_then(|(meta, _)| meta.last_log_id);
    let in_files = applied.max(snapshot).map_or(0, |id| id.index);
    let purged = log.engine().state().purged.map(|(purged, _)| purged);
    if let Some(purged) = purged.filter(|purged| *purged > in_files) {
        return Err(StartError::StateLost { path, node: identity.node, applied: in_files, purged });
    }
    if let Some(snapshot) = snapshot.filter(|snapshot| Some(*snapshot) > applied) {
        drop_conflicting_tail(log, snapshot, applied).await.map_err(state_error)?;
    }
    if applied > last && !is_seeded(SeededBug::RowsAheadOfLog) {
        warn!(?applied, ?last, "the rows are ahead of the log: taking a snapshot of them first");
        let (snapshots, apply) = (snapshots.clone(), apply.clone());
        let built = options.execution.blocking(move || snapshots.build(|| Some(apply.reader()))).await;
        built.map_err(|panic| state_error(io::Error::other(panic)))?.map_err(state_error)?;
    }
    Ok(files)
}

fn open_files_blocking<E: LogEngine>(
    path: &Path,
    identity: Identity,
    has_log: bool,
    options: &RaftOptions,
    addresses: AddressBook,
    open_log: impl FnOnce(PathBuf, LogOptions, OnFatal) -> Result<E, LogError>,
) -> Result<Files<E>, StartError> {
    let state_error = |error: io::Error| StartError::State { path: path.to_owned(), error };
    let log_dir = path.join(LOG_DIR);
    let on_fatal = options.on_fatal.clone();
    let on_log_fatal = Arc::new(move |error: &LogError| on_fatal.0(&error.to_string()));
    let engine = open_log(log_dir.clone(), options.log_engine.clone(), on_log_fatal)?;
    let state = engine.state();
    if has_log && state.vote.is_none() && state.last.is_none() && state.purged.is_none() {
        return Err(StartError::LogLost { path: log_dir, node: identity.node });
    }
    let log = LogStore::new(engine).map_err(state_error)?;
    let (snapshots, rows) = Snapshots::open(path, &options.rows).map_err(state_error)?;
    let machine = Machine::open(rows)?;
    let apply = ApplyHandle::start(machine, addresses, options.execution);
    let apply = apply.map_err(|e| state_error(io::Error::other(e)))?;
    Ok(Files { log, apply, snapshots })
}

/// A received snapshot is published before openraft takes out of the log what contradicts it. When the process
/// dies between the two, openraft installs the snapshot at the next start and then finds a log that goes on behind
/// it in an older term: it would refuse to start for ever. So the step that was missed is taken here, exactly as
/// openraft takes it: everything after what is known to be committed goes. The entries up to the snapshot are in
/// it, and those behind it follow an entry that was never committed.
async fn drop_conflicting_tail<E: LogEngine>(
    log: &LogStore<E>,
    snapshot: LogId,
    applied: Option<LogId>,
) -> io::Result<()> {
    let Some(there) = log.log_id_at(snapshot.index)?.filter(|there| *there != snapshot) else { return Ok(()) };
    let committed = log.committed()?.max(applied);
    let from = committed.map_or(0, |id| id.index + 1).min(snapshot.index);
    warn!(%snapshot, %there, from, "the end of the log contradicts a snapshot that was received: it is removed");
    log.truncate_from(from).await
}

fn raft_config(identity: Identity, timings: &Timings) -> Config {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: identity.cluster.to_string(),
        heartbeat_interval: ms(timings.heartbeat),
        election_timeout_min: ms(timings.election_min),
        election_timeout_max: ms(timings.election_max),
        // By bytes and time, see `retention`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // Bounded by bytes, see `log_store`.
        max_payload_entries: 4096,
        state_machine_channel_size: Some(APPLY_COMMANDS_MAX),
        enable_pre_vote: Some(true),
        // A restored leader could answer reads from rows that fell back.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

#[allow(clippy::too_many_arguments, clippy::too_many_lines)]
async fn assemble<E: LogEngine>(
    data_dir: DataDir,
    options: RaftOptions,
    identity: Identity,
    local: LocalPeer,
    listener: PeerListener,
    pool: PeerPool,
    files: Files<E>,
    effects: Arc<dyn NodeEffects>,
) -> Result<Cluster, StartError> {
    let Files { log, apply, snapshots } = files;
    let raft_error = |why: String| StartError::Raft { path: options.data_dir.clone(), why };
    let timings = options.timings;
    let tasks = Tasks::new(options.on_fatal.clone());

    // Raft, not running yet.
    let config = raft_config(identity, &timings).validate().map_err(|e| StartError::Timings(e.to_string()))?;
    let links = RaftLinks::new(pool.clone(), (timings.election_max * 2).max(Duration::from_secs(2)));
    let machine = StateMachine::new(apply.clone(), snapshots.clone(), options.execution);
    let networks = Networks::new(links.clone(), options.execution);
    let raft = Raft::build(identity.node.0, Arc::new(config), networks, log.clone(), machine)
        .await
        .map_err(|e| raft_error(e.to_string()))?;
    let engine = Arc::new(std::sync::Mutex::new(Some(log.engine().clone())));
    let unflushed = engine.clone();
    let consensus = Consensus::new(ConsensusParts {
        node: identity.node,
        cluster: identity.cluster,
        raft: raft.clone(),
        unflushed_bytes: Box::new(move || {
            let engine = unflushed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            engine.as_ref().map_or(0, LogEngine::unflushed_bytes)
        }),
        unflushed_bytes_max: options.limits.unflushed_bytes_max,
        applied: apply.view(),
        lease: timings.election_max,
    });

    // This node's stream of commands, and its part as a leader.
    let seed = StreamSeed::new(identity.node, options.limits, timings.cold_start_jump_max, effects);
    let clock = seed.clock();
    consensus.set_clock(clock.clone());
    apply.observe(Box::new(seed.observer()));
    let stream = seed.run(&consensus, pool.clone(), apply.clone(), options.info.clone(), timings, &tasks);
    let members = Members::new(consensus.clone(), timings.election_max * 2);
    let (incarnation, has_quorum) = (stream.incarnation(), stream.has_quorum());
    let (status_task, status) =
        StatusTask::new(consensus.clone(), apply.clone(), links.clone(), clock, incarnation, has_quorum);

    let (closing, execution) = (snapshots.clone(), options.execution);
    let close_files = Box::pin(async move {
        let engine = engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let close = move || {
            closing.close();
            // The last clone waits for the disk.
            drop(engine);
        };
        let _ = execution.blocking(close).await;
    });
    let mut services = stream.services();
    let cluster = Cluster(Arc::new(Node {
        consensus: consensus.clone(),
        apply,
        stream,
        members: members.clone(),
        pool: pool.clone(),
        status,
        log_stats: log.engine().stats(),
        peer_address: options.info.peer.clone(),
        tasks,
        close_files: Mutex::new(Some(close_files)),
        data_dir,
        execution,
    }));

    // Others may speak to it now.
    let (gone, peers_gone) = mpsc::channel(PEERS_GONE_MAX);
    let admission: Arc<dyn Admission> = Arc::new(WeakCluster(Arc::downgrade(&cluster.0)));
    services.push(Arc::new(RaftService::new(consensus.clone(), gone)));
    services.push(Arc::new(SnapshotService::new(consensus.clone(), snapshots, options.execution)));
    services.push(Arc::new(ControlService::new(admission)));
    let tasks = &cluster.0.tasks;
    tasks.spawn("peer port", listener.run(local, pool.addresses().clone(), services));
    raft.run();
    tasks.spawn("leader view", consensus.clone().run_view());
    let (known, known_links, known_qos0) = (pool.clone(), links.clone(), cluster.0.stream.qos0().clone());
    let tell = move |members: BTreeMap<NodeId, String>| {
        let is_member = |node: NodeId| members.contains_key(&node);
        known_links.retain(is_member);
        known_qos0.retain_peers(is_member);
        known.set_members(members);
    };
    tasks.spawn("members known", members.clone().tell(tell));
    tasks.spawn("failover", Failover::new(consensus.clone(), links, peers_gone).run());
    tasks.spawn("retention", run_retention(consensus.clone(), log.sizes().clone(), options.log));
    tasks.spawn("members", members.look_after());
    tasks.spawn("status", status_task.run());
    tasks.spawn("raft watch", watch_raft(consensus, options.on_fatal.clone()));

    // Also when a first start was cut short before this. No node that joined has this id.
    if identity.node == FIRST_NODE && !cluster.0.data_dir.has_log()? {
        bootstrap(&raft, &options).await?;
    }
    tasks.spawn("log mark", mark_log(Arc::downgrade(&cluster.0), identity, log, execution));
    Ok(cluster)
}

/// Node 1 alone; a repeat is a no-op.
async fn bootstrap(raft: &Raft, options: &RaftOptions) -> Result<(), StartError> {
    let error = |why: String| StartError::Raft { path: options.data_dir.clone(), why };
    if raft.is_initialized().await.map_err(|e| error(e.to_string()))? {
        return Ok(());
    }
    info!("bootstrapping a new cluster with this node alone");
    raft.initialize(first_members(FIRST_NODE, options.info.peer.clone())).await.map_err(|e| error(e.to_string()))
}

/// Notes in the data directory that there is a log now, as soon as it holds anything.
async fn mark_log<E: LogEngine>(node: Weak<Node>, identity: Identity, log: LogStore<E>, execution: Execution) {
    loop {
        let state = log.engine().state();
        if state.vote.is_some() || state.last.is_some() {
            break;
        }
        sleep(LOG_MARK_INTERVAL).await;
    }
    drop(log);
    let marked = execution.blocking(move || node.upgrade().map(|node| node.data_dir.mark_log(identity)));
    if let Ok(Some(Err(error))) = marked.await {
        warn!(%error, "the data directory could not be marked");
    }
}

/// Raft that ends by itself is fatal. A shutdown ends this task first.
async fn watch_raft(consensus: Consensus, on_fatal: crate::options::FatalHook) {
    let mut metrics = consensus.raft().server_metrics();
    while metrics.changed().await.is_ok() {}
    let metrics = consensus.raft().metrics();
    let state = metrics.borrow_watched().running_state.clone();
    // A core that panicked had no time to say why: then the state is still good.
    let why = state.err().map_or_else(|| "its core has panicked".into(), |fatal| fatal.to_string());
    on_fatal.0(&format!("Raft has stopped: {why}"));
}

/// The peer port must not keep a node alive that everyone else has dropped.
struct WeakCluster(Weak<Node>);

impl Admission for WeakCluster {
    fn admit(
        &self,
        request: JoinRequest,
        passed_on: bool,
    ) -> futures_util::future::BoxFuture<'_, Result<crate::join::JoinGrant, JoinError>> {
        Box::pin(async move {
            match self.0.upgrade() {
                Some(node) => Cluster(node).admit_request(request, passed_on).await,
                None => Err(JoinError::NoLeader("this node is stopping".into())),
            }
        })
    }
}
