//! How it is agreed: openraft over `quorate-store`, and everything between the nodes.
//!
//! A node's front end submits commands to [`Proposer`], reads applied rows, and is told through
//! [`NodeEffects`] what the log says about its clients. Behind that: one Raft group (every frame carries a
//! group id), its log and state machine adapters, the peer network, membership, snapshots, node liveness,
//! cluster time and linearizable reads.
//!
//! | file | what it does |
//! |---|---|
//! | `types`, `entry`, `encoding` | openraft's types, and their bytes on disk |
//! | `log_store`, `state_machine`, `apply`, `snapshots` | openraft's storage over `store`; the apply thread |
//! | `peer` | framed connections between nodes |
//! | `network`, `wire`, `raft_link`, `raft_service`, `snapshot_transfer` | Raft's messages over them |
//! | `consensus` | what the rest of the crate sees of Raft |
//! | `membership`, `join`, `failover`, `status` | who is a member, who leads next, what people are told |
//! | `proposer`, `leader_intake` | one ordered, deduplicated stream of batches per node to the leader |
//! | `clock`, `incarnation`, `liveness`, `read_index`, `qos0` | cluster time, node lives, reads, QoS 0 |

mod apply;
mod clock;
mod cluster;
mod consensus;
mod effects;
mod encoding;
mod entry;
mod execution;
mod failover;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod golden;
pub mod identity;
mod incarnation;
mod join;
mod leader_intake;
mod liveness;
pub mod log_record;
mod log_store;
mod membership;
mod network;
mod options;
mod peer;
mod proposer;
mod qos0;
mod raft_link;
mod raft_service;
mod read_index;
mod responder;
mod retention;
mod snapshot_transfer;
mod snapshots;
mod start;
mod state_machine;
mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod storage_suite_tests;
mod tasks;
mod types;
mod wire;

pub use clock::ClockAlarm;
pub use cluster::Cluster;
pub use consensus::{AppliedView, LeaderView};
pub use effects::{AppliedRun, NodeEffects, NodeEvent, Ticket};
pub use execution::Execution;
pub use identity::ClusterId;
pub use join::{JoinError, JoinGrant, JoinRequest};
pub use membership::MembershipError;
pub use options::{FATAL_EXIT_STATUS, FatalHook, Limits, LogRetention, RaftOptions, Start, Timings};
pub use peer::{Caller, PeerAcceptor, PeerStream, PeerTls, PeerTransport, Purpose};
pub use proposer::{Busy, Counter, ProposeError, Proposer, StreamStats, Submission};
pub use read_index::ReadError;
pub use start::StartError;
pub use status::{ClusterStatus, NodeRole, NodeStatus, QUEUES_NAMED_MAX};
