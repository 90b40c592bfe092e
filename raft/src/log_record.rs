//! What stands in a log record and in a saved vote, for whoever reads a log from outside: the simulator, which holds
//! what it sees of a run against what the log says.

use bytes::Bytes;
use openraft::EntryPayload;
use quorate_store::codec::{self, CodecError};
use quorate_store::command::Batch;
use quorate_store::ids::{ClusterTime, NodeId};
use thiserror::Error;

use crate::encoding::{self, EncodingError};

/// Why bytes of a log were refused.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct RecordError(#[from] EncodingError);

impl From<CodecError> for RecordError {
    fn from(error: CodecError) -> Self {
        Self(error.into())
    }
}

/// A log record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordView {
    /// Log index.
    pub index: u64,
    /// Term of the leader that appended it.
    pub term: u64,
    /// What was proposed, with the leader's stamp; none in a blank entry and in a change of members.
    pub batch: Option<(ClusterTime, Batch)>,
}

/// A saved vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteView {
    /// Term.
    pub term: u64,
    /// For whom.
    pub node: NodeId,
    /// Not a vote any more, but the leader of that term as its follower knows it.
    pub is_of_leader: bool,
}

/// Reads a log record.
///
/// # Errors
/// When it does not decode.
pub fn read_record(record: &Bytes) -> Result<RecordView, RecordError> {
    let (id, payload) = encoding::decode_entry(record)?;
    let batch = match payload {
        EntryPayload::Normal(proposal) => Some((proposal.stamp, codec::decode(&proposal.bytes)?)),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    };
    Ok(RecordView { index: id.index, term: *id.leader_id, batch })
}

/// Reads a saved vote.
///
/// # Errors
/// When it does not decode.
pub fn read_vote(vote: &Bytes) -> Result<VoteView, RecordError> {
    let vote = encoding::decode_vote(vote)?;
    Ok(VoteView { term: vote.leader_id.term, node: NodeId(vote.leader_id.voted_for), is_of_leader: vote.committed })
}
