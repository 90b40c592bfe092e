//! What a node is started with. Nothing here changes the outcome of a command.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_store::command::NodeInfo;
use quorate_store::ids::NodeId;
use quorate_store::log::LogOptions;
use quorate_store::rows::RowsOptions;

use crate::execution::Execution;
use crate::identity::ClusterId;
use crate::peer::{PeerTls, PeerTransport, Tcp};

/// How the node comes to its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From its data directory.
    Restart,
    /// As node 1 of a new cluster. On a data directory that has an identity: as [`Self::Restart`].
    Bootstrap,
    /// As the node that the cluster has admitted under `token` (see [`crate::Cluster::admit`]). On the data
    /// directory of that very node: as [`Self::Restart`].
    Join {
        /// Allocated by the log.
        node_id: NodeId,
        /// The cluster.
        cluster_id: ClusterId,
        /// What it was allocated for ([`crate::identity::DataDir::join_token`]).
        token: u128,
    },
    /// Asks the nodes at these peer addresses, one after the other, until one admits it.
    JoinPeers {
        /// Peer addresses.
        peers: Vec<String>,
        /// Not promoted to voter when it has caught up.
        stays_learner: bool,
    },
}

/// Raft's timings. The disk's fsync must be well below the heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// An election begins after this long without a leader, at the earliest.
    pub election_min: Duration,
    /// At the latest; also the leader's lease for voters.
    pub election_max: Duration,
    /// An incarnation that the leader has not heard of for this long is declared lost.
    pub node_timeout: Duration,
    /// A node without a leader that a majority backs for this long turns its clients away. Less than
    /// `node_timeout`.
    pub quorum_grace: Duration,
    /// After an outage of the whole cluster, its time jumps by at most this without all voters' clocks agreeing.
    pub cold_start_jump_max: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(800),
            election_max: Duration::from_millis(1200),
            node_timeout: Duration::from_millis(4000),
            // Above the longest timed election (twice the longest election timeout): else a leader that vanishes
            // costs the clients of all nodes their connections, at the very moment at which they are served again.
            quorum_grace: Duration::from_millis(3500),
            cold_start_jump_max: Duration::from_secs(24 * 3600),
        }
    }
}

/// How much log is kept, and when snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRetention {
    /// A snapshot is taken when this much log was applied since the last.
    pub snapshot_log_bytes: u64,
    /// A snapshot is taken at least this often, while there is anything new.
    pub snapshot_interval: Duration,
    /// Bytes of log that are kept before the snapshot, so that a follower that was away needs no snapshot.
    pub keep_bytes: u64,
    /// Entries that are kept before the snapshot, at most.
    pub keep_entries: u64,
}

impl Default for LogRetention {
    fn default() -> Self {
        Self {
            snapshot_log_bytes: 256 << 20,
            snapshot_interval: Duration::from_secs(600),
            keep_bytes: 256 << 20,
            keep_entries: 1_000_000,
        }
    }
}

/// Bounds of this node's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Proposer: bytes of commands that wait to be cut into a batch.
    pub waiting_bytes_max: usize,
    /// Proposer: commands that wait to be cut into a batch.
    pub waiting_commands_max: usize,
    /// Proposer: commands of one batch.
    pub batch_commands_max: usize,
    /// Proposer: bytes of one batch (one command may be longer).
    pub batch_bytes_max: usize,
    /// Proposer: batches on their way.
    pub batches_in_flight_max: usize,
    /// Proposer: how long commands that can wait ([`crate::Submission::can_wait`]) wait for others to go with.
    pub patience: Duration,
    /// Leader: bytes of log that wait for the disk, above which proposals are refused.
    pub unflushed_bytes_max: usize,
    /// QoS 0: bytes that wait for a peer, above which publishes to it are dropped and counted.
    pub qos0_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting_bytes_max: 16 << 20,
            waiting_commands_max: 65_536,
            batch_commands_max: 64,
            batch_bytes_max: 64 << 10,
            batches_in_flight_max: 64,
            patience: Duration::from_millis(5),
            unflushed_bytes_max: 64 << 20,
            qos0_bytes_max: 8 << 20,
        }
    }
}

/// Exit status of a process that cannot go on: the disk failed, or a file or entry is damaged.
pub const FATAL_EXIT_STATUS: i32 = 70;

/// What is called once when this node cannot go on: it must end the process (or, in tests, remember). It is
/// called from the thread that noticed, before anybody who waits is told.
#[derive(Clone)]
pub struct FatalHook(pub Arc<dyn Fn(&str) + Send + Sync>);

impl Default for FatalHook {
    fn default() -> Self {
        Self(Arc::new(|why| {
            tracing::error!(why, "this node cannot go on");
            std::process::exit(FATAL_EXIT_STATUS);
        }))
    }
}

impl fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FatalHook")
    }
}

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// Data directory.
    pub data_dir: PathBuf,
    /// Where the peer port listens, `host:port`.
    pub peer_listen: String,
    /// Its name and addresses, as others are told. An empty or `:0` peer address becomes the one listened at.
    pub info: NodeInfo,
    /// How it comes to its identity.
    pub start: Start,
    /// Raft's timings.
    pub timings: Timings,
    /// How much log is kept.
    pub log: LogRetention,
    /// Bounds.
    pub limits: Limits,
    /// How nodes reach each other.
    pub transport: Arc<dyn PeerTransport>,
    /// On which threads blocking work runs.
    pub execution: Execution,
    /// The log's engine and its sizes.
    pub log_engine: LogOptions,
    /// Sizes of the row database.
    pub rows: RowsOptions,
    /// What happens when this node cannot go on.
    pub on_fatal: FatalHook,
}

impl RaftOptions {
    /// Mutual TLS between nodes.
    #[must_use]
    pub fn with_tls(self, tls: PeerTls) -> Self {
        Self { transport: Tcp::transport(Some(tls)), ..self }
    }

    /// With defaults for all but these.
    #[must_use]
    pub fn new(data_dir: PathBuf, peer_listen: String, info: NodeInfo, start: Start) -> Self {
        Self {
            data_dir,
            peer_listen,
            info,
            start,
            timings: Timings::default(),
            log: LogRetention::default(),
            limits: Limits::default(),
            transport: Tcp::transport(None),
            execution: Execution::default(),
            log_engine: LogOptions::default(),
            rows: RowsOptions::default(),
            on_fatal: FatalHook::default(),
        }
    }
}
