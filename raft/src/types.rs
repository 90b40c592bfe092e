//! openraft's type configuration: what a log entry, a node and a vote are for us.
//!
//! Owns the names under which the rest of the crate uses openraft's generic types. It never holds state.
//! `leader_id_std` is plain Raft: at most one leader a term, so a log id is `(term, index)`.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use quorate_store::ids::ClusterTime;

use crate::entry::LogEntry;

/// What the leader appends: a batch as its proposer encoded it, with the leader's stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Cluster time as the leader sees it when it takes the proposal; apply takes `max(previous, stamp)`.
    pub stamp: ClusterTime,
    /// The encoded [`quorate_store::command::Batch`]: encoded once, by the node that cut it.
    pub bytes: Bytes,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.bytes.len())
    }
}

/// A member as the membership entry names it. Its address here is where it joined from; the address it
/// has now is in its `NodeStarted` (see [`crate::peer::AddressBook`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Peer address.
    pub peer: String,
    /// A learner that is not promoted by itself when it has caught up.
    pub stays_learner: bool,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer)
    }
}

/// The one Raft group's types. (openraft's macro cannot name a responder.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Proposal;
    type R = ();
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposal, u64, Member>;
    type Entry = LogEntry;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = crate::responder::WriteResponder<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type Payload = openraft::alias::PayloadOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<Types, crate::snapshots::SnapshotData>;
pub(crate) type LogTerm = openraft::alias::CommittedLeaderIdOf<Types>;
