//! How the parts of the proposal path are put together, in two steps: what the apply thread and Raft need
//! before they run, and the tasks that need them running.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_store::command::{Command, NodeInfo, Publish};
use quorate_store::effect::Outcome;
use quorate_store::ids::{ClusterTime, Incarnation, NodeId};
use tokio::sync::watch;

use super::{DirectTable, Directs, LeaderLinks, ProposeError, Proposer, StreamObserver, StreamStats, run_stream};
use crate::apply::ApplyHandle;
use crate::clock::{ClusterClock, run_ticker};
use crate::consensus::{Consensus, StampClock as _};
use crate::effects::NodeEffects;
use crate::incarnation::{StartTable, run_incarnations};
use crate::leader_intake::{Asks, LeaderDesk, LeaderIntake};
use crate::liveness::{Attendance, run_attendance, run_pings};
use crate::options::{Limits, Timings};
use crate::peer::{PeerPool, PeerService};
use crate::qos0::Qos0Router;
use crate::read_index::{ReadError, linearizable};
use crate::tasks::Tasks;

/// For a direct command to be applied here.
const DIRECT_PATIENCE: Duration = Duration::from_millis(10_000);
/// For a linearizable read.
const READ_PATIENCE: Duration = Duration::from_millis(5000);

/// What exists before Raft runs: give [`Self::clock`] to the consensus handle and [`Self::observer`] to the
/// apply thread, then [`Self::run`].
pub(crate) struct StreamSeed {
    node: NodeId,
    limits: Limits,
    proposer: Proposer,
    clock: Arc<ClusterClock>,
    directs: Arc<DirectTable>,
    starts: Arc<StartTable>,
    front: Arc<dyn NodeEffects>,
}

impl StreamSeed {
    /// Of `node`, whose clients `front` serves.
    pub(crate) fn new(node: NodeId, limits: Limits, jump_max: Duration, front: Arc<dyn NodeEffects>) -> Self {
        Self {
            node,
            limits,
            proposer: Proposer::new(node, &limits, Arc::new(StreamStats::default())),
            clock: Arc::new(ClusterClock::new(jump_max)),
            directs: Arc::new(DirectTable::default()),
            starts: Arc::new(StartTable::default()),
            front,
        }
    }

    /// Stamps proposals.
    pub(crate) fn clock(&self) -> Arc<ClusterClock> {
        self.clock.clone()
    }

    /// For the apply thread, before the first entry is applied.
    pub(crate) fn observer(&self) -> StreamObserver {
        let (directs, starts) = (self.directs.clone(), self.starts.clone());
        StreamObserver::new(&self.proposer, directs, starts, self.clock.clone(), self.front.clone())
    }

    /// Starts the tasks among `tasks`. Must be called within a tokio runtime.
    pub(crate) fn run(
        self,
        raft: &Consensus,
        pool: PeerPool,
        apply: ApplyHandle,
        info: NodeInfo,
        timings: Timings,
        tasks: &Tasks,
    ) -> StreamSide {
        let Self { node, limits, proposer, clock, directs, starts, front } = self;
        let stats = proposer.stats().clone();
        let incarnation = || proposer.incarnation_watch();
        clock.observe(raft.applied_watch().borrow().time);
        let attendance = Arc::new(Attendance::new(timings.node_timeout));
        let desk =
            LeaderDesk::new(raft.clone(), clock.clone(), attendance.clone(), timings.quorum_grace, stats.clone());
        let desk = Arc::new(desk);
        let (asks, courier) = Asks::new(desk.clone(), pool.clone());
        let directs = Directs::new(directs, asks.clone(), stats.clone());
        let qos0 =
            Qos0Router::new(apply.clone(), pool.clone(), front, incarnation(), limits.qos0_bytes_max, stats.clone());
        let (quorum, has_quorum) = watch::channel(false);
        let links = Arc::new(LeaderLinks::new(raft.clone(), pool, stats.clone()));

        tasks.spawn("questions", courier);
        tasks.spawn("proposals", run_stream(proposer.shared().clone(), links, raft.leader_watch()));
        tasks.spawn("incarnations", run_incarnations(node, info, starts, asks.clone(), incarnation()));
        tasks.spawn("ticks", run_ticker(raft.clone(), apply.needs(), directs.clone(), stats.clone()));
        let pinging = run_pings(
            desk.clone(),
            asks.clone(),
            clock.clone(),
            incarnation(),
            quorum,
            timings.quorum_grace,
            stats.clone(),
        );
        tasks.spawn("pings", pinging);
        let attending = run_attendance(desk.clone(), attendance, clock.clone(), apply, directs.clone(), stats);
        tasks.spawn("attendance", attending);
        StreamSide { proposer, clock, asks, directs, qos0, desk, has_quorum }
    }
}

/// The running proposal path of this node.
pub(crate) struct StreamSide {
    proposer: Proposer,
    clock: Arc<ClusterClock>,
    asks: Asks<Consensus>,
    directs: Directs<Consensus>,
    qos0: Qos0Router,
    desk: Arc<LeaderDesk<Consensus>>,
    has_quorum: watch::Receiver<bool>,
}

impl StreamSide {
    /// What the peer listener must serve.
    pub(crate) fn services(&self) -> Vec<Arc<dyn PeerService>> {
        vec![Arc::new(LeaderIntake::new(self.desk.clone())), Arc::new(self.qos0.clone())]
    }

    /// Routes QoS 0 messages.
    pub(crate) fn qos0(&self) -> &Qos0Router {
        &self.qos0
    }

    /// Takes commands of clients.
    pub(crate) fn proposer(&self) -> &Proposer {
        &self.proposer
    }

    /// Cluster time now, as far as this node knows.
    pub(crate) fn cluster_time(&self) -> ClusterTime {
        self.clock.now()
    }

    /// Whether that is live: before it is, at a cold start, it may be as old as the outage.
    pub(crate) fn has_time(&self) -> bool {
        self.clock.is_live()
    }

    /// This node's incarnation, and each change of it.
    pub(crate) fn incarnation(&self) -> watch::Receiver<Option<Incarnation>> {
        self.proposer.incarnation_watch()
    }

    /// Whether this node stands with a majority, and each change of it.
    pub(crate) fn has_quorum(&self) -> watch::Receiver<bool> {
        self.has_quorum.clone()
    }

    /// Proposes an idempotent command and waits until it is applied here.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub(crate) fn propose_direct(
        &self,
        command: Command,
    ) -> impl Future<Output = Result<Outcome, ProposeError>> + Send + use<> {
        let directs = self.directs.clone();
        async move { directs.propose(command, DIRECT_PATIENCE).await }
    }

    /// Waits until this node's applied state reflects everything acknowledged before this call; the applied
    /// index it has reached.
    ///
    /// # Errors
    /// [`ReadError`].
    pub(crate) fn linearizable(&self) -> impl Future<Output = Result<u64, ReadError>> + Send + use<> {
        let asks = self.asks.clone();
        async move { linearizable(&asks, READ_PATIENCE).await }
    }

    /// Sends a QoS 0 message without RETAIN to all who subscribe now. Best effort.
    pub(crate) fn route_qos0(&self, publish: Publish) {
        self.qos0.route(publish);
    }

    /// The same to this node's own clients only.
    pub(crate) fn route_here(&self, publishes: Vec<Publish>) {
        self.qos0.publish_here(publishes);
    }
}
