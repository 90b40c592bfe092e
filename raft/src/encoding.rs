//! openraft's values as they stand in the log database, in rows and in snapshots: mirror structs of ours,
//! encoded by `store::codec`, so that a change in openraft never changes bytes on disk.
//!
//! Golden fixtures (`raft/tests/golden`) hold them fast; docs/FORMAT.md describes them. Enum variants are
//! only ever appended.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use bytes::Bytes;
use openraft::EntryPayload;
use quorate_store::codec::{self, CodecError, Enveloped, Kind, Payload as Raw, PayloadSource};
use quorate_store::ids::ClusterTime;
use thiserror::Error;

use crate::types::{LogId, Member, Membership, Payload, Proposal, StoredMembership, Vote};

/// Why an encoded value of openraft's was refused.
#[derive(Debug, Error)]
pub(crate) enum EncodingError {
    /// The bytes.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The membership breaks Raft's own rules.
    #[error("a membership that cannot be: {0}")]
    Membership(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogIdBody {
    term: u64,
    index: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VoteBody {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct MemberBody {
    node: u64,
    peer: String,
    stays_learner: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipBody {
    /// One set of voters; two while a change is under way (joint consensus).
    voters: Vec<Vec<u64>>,
    members: Vec<MemberBody>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredMembershipBody {
    log_id: Option<LogIdBody>,
    membership: MembershipBody,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
struct EntryBody {
    log_id: LogIdBody,
    what: EntryWhat,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
enum EntryWhat {
    Blank,
    Batch { stamp: u64, batch: Raw },
    Membership(MembershipBody),
}

impl Enveloped for EntryBody {
    const KIND: Kind = Kind::Raft;

    fn payloads(&self, f: &mut dyn FnMut(&Raw)) {
        if let EntryWhat::Batch { batch, .. } = &self.what {
            f(batch);
        }
    }
}

/// A record without payloads.
macro_rules! records {
    ($($name:ty),*) => {$(
        impl Enveloped for $name {
            const KIND: Kind = Kind::Raft;
            fn payloads(&self, _: &mut dyn FnMut(&Raw)) {}
        }
    )*};
}
records!(LogIdBody, VoteBody, StoredMembershipBody);

impl From<&LogId> for LogIdBody {
    fn from(id: &LogId) -> Self {
        Self { term: *id.leader_id, index: id.index }
    }
}

impl From<LogIdBody> for LogId {
    fn from(body: LogIdBody) -> Self {
        LogId::new_term_index(body.term, body.index)
    }
}

impl From<&Vote> for VoteBody {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteBody> for Vote {
    fn from(body: VoteBody) -> Self {
        if body.committed { Vote::new_committed(body.term, body.node) } else { Vote::new(body.term, body.node) }
    }
}

impl From<&Membership> for MembershipBody {
    fn from(membership: &Membership) -> Self {
        Self {
            voters: membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect(),
            members: membership
                .nodes()
                .map(|(node, m)| MemberBody { node: *node, peer: m.peer.clone(), stays_learner: m.stays_learner })
                .collect(),
        }
    }
}

impl TryFrom<MembershipBody> for Membership {
    type Error = EncodingError;

    fn try_from(body: MembershipBody) -> Result<Self, EncodingError> {
        let voters: Vec<BTreeSet<u64>> = body.voters.into_iter().map(|set| set.into_iter().collect()).collect();
        let members: BTreeMap<u64, Member> = body
            .members
            .into_iter()
            .map(|m| (m.node, Member { peer: m.peer, stays_learner: m.stays_learner }))
            .collect();
        Membership::new(voters, members).map_err(|e| EncodingError::Membership(e.to_string()))
    }
}

impl From<&StoredMembership> for StoredMembershipBody {
    fn from(stored: &StoredMembership) -> Self {
        Self { log_id: stored.log_id().as_ref().map(Into::into), membership: stored.membership().into() }
    }
}

impl TryFrom<StoredMembershipBody> for StoredMembership {
    type Error = EncodingError;

    fn try_from(body: StoredMembershipBody) -> Result<Self, EncodingError> {
        Ok(StoredMembership::new(body.log_id.map(Into::into), body.membership.try_into()?))
    }
}

/// The log record of an entry.
pub(crate) fn encode_entry(log_id: &LogId, payload: &Payload) -> Result<Bytes, CodecError> {
    let what = match payload {
        EntryPayload::Blank => EntryWhat::Blank,
        EntryPayload::Normal(p) => EntryWhat::Batch { stamp: p.stamp.0, batch: Raw(p.bytes.clone()) },
        EntryPayload::Membership(m) => EntryWhat::Membership(m.into()),
    };
    codec::encode(&EntryBody { log_id: log_id.into(), what })
}

/// What a log record says; a batch stays a slice of it.
pub(crate) fn decode_entry(record: &Bytes) -> Result<(LogId, Payload), EncodingError> {
    let EntryBody { log_id, what } = codec::decode(record)?;
    let payload = match what {
        EntryWhat::Blank => EntryPayload::Blank,
        EntryWhat::Batch { stamp, batch } => {
            EntryPayload::Normal(Proposal { stamp: ClusterTime(stamp), bytes: batch.0 })
        }
        EntryWhat::Membership(body) => EntryPayload::Membership(body.try_into()?),
    };
    Ok((log_id.into(), payload))
}

pub(crate) fn encode_vote(vote: &Vote) -> Result<Bytes, CodecError> {
    codec::encode(&VoteBody::from(vote))
}

pub(crate) fn decode_vote(bytes: &Bytes) -> Result<Vote, EncodingError> {
    Ok(codec::decode::<VoteBody>(bytes)?.into())
}

pub(crate) fn encode_log_id(id: &LogId) -> Result<Bytes, CodecError> {
    codec::encode(&LogIdBody::from(id))
}

pub(crate) fn decode_log_id(bytes: &Bytes) -> Result<LogId, EncodingError> {
    Ok(codec::decode::<LogIdBody>(bytes)?.into())
}

pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Result<Bytes, CodecError> {
    codec::encode(&StoredMembershipBody::from(stored))
}

pub(crate) fn decode_stored_membership(bytes: &Bytes) -> Result<StoredMembership, EncodingError> {
    codec::decode::<StoredMembershipBody>(bytes)?.try_into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "encoding_tests.rs"]
mod tests;
