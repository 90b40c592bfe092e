//! The bytes of openraft's values on disk and on the wire.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use quorate_store::ids::ClusterTime;

use super::*;
use crate::entry::LogEntry;
use crate::golden::{frame, golden};
use crate::wire::{
    Answer, AnswerBody, AppendBody, AppendedBody, Call, CallBody, StreamBody, TransferRefused, VoteAnswer, VoteCall,
};

fn id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

fn membership() -> Membership {
    let member = |peer: &str, stays_learner| Member { peer: peer.into(), stays_learner };
    let members = BTreeMap::from([
        (1, member("a:7400", false)),
        (2, member("b:7400", false)),
        (3, member("c:7400", false)),
        (400, member("d:7400", true)),
    ]);
    Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 2, 3])], members).unwrap()
}

fn entries() -> [(&'static str, Payload); 3] {
    let proposal = Proposal { stamp: ClusterTime(1_700_000_000_123), bytes: Bytes::from_static(b"an encoded batch") };
    [
        ("entry-blank", EntryPayload::Blank),
        ("entry-batch", EntryPayload::Normal(proposal)),
        ("entry-membership", EntryPayload::Membership(membership())),
    ]
}

#[test]
fn entries_keep_their_bytes_and_are_encoded_once() {
    for (index, (name, payload)) in (4711..).zip(entries()) {
        let entry = LogEntry::new(id(7, index), payload);
        let record = entry.record().unwrap();
        let stored = golden(name, &record);
        let read = LogEntry::from_record(stored.clone()).unwrap();
        assert_eq!(read, entry);
        assert_eq!(read.record().unwrap().as_ptr(), stored.as_ptr(), "what was read is not encoded again");
        if let EntryPayload::Normal(proposal) = read.payload() {
            let within = stored.as_ptr_range().contains(&proposal.bytes.as_ptr());
            assert!(within, "the batch is a slice of the record");
        }
    }
}

#[test]
fn votes_log_ids_and_memberships_keep_their_bytes() {
    for (name, vote) in [("vote", Vote::new(7, 3)), ("vote-committed", Vote::new_committed(8, 300))] {
        assert_eq!(decode_vote(&golden(name, &encode_vote(&vote).unwrap())).unwrap(), vote);
    }
    let log_id = id(7, 1 << 40);
    assert_eq!(decode_log_id(&golden("log-id", &encode_log_id(&log_id).unwrap())).unwrap(), log_id);
    for (name, stored) in [
        ("membership", StoredMembership::new(Some(id(7, 42)), membership())),
        ("membership-none", StoredMembership::default()),
    ] {
        let bytes = golden(name, &encode_stored_membership(&stored).unwrap());
        assert_eq!(decode_stored_membership(&bytes).unwrap(), stored);
    }
}

#[test]
fn frames_between_peers_keep_their_bytes() {
    let entries = (43..).zip(entries()).map(|(index, (_, payload))| LogEntry::new(id(7, index), payload)).collect();
    let request = openraft::raft::AppendEntriesRequest::<crate::types::Types> {
        vote: Vote::new_committed(7, 1),
        prev_log_id: Some(id(6, 42)),
        entries,
        leader_commit: Some(id(6, 41)),
    };
    let read = frame("frame-append", &AppendBody::new(9, &request).unwrap()).into_request().unwrap();
    assert_eq!(
        (read.vote, read.prev_log_id, read.leader_commit),
        (request.vote, request.prev_log_id, request.leader_commit)
    );
    assert_eq!(read.entries, request.entries);

    frame("frame-stream", &StreamBody { stream: 9 });
    use openraft::raft::StreamAppendError::{Conflict, HigherVote};
    for (name, result) in [
        ("frame-appended", Ok(Some(id(7, 45)))),
        ("frame-appended-conflict", Err(Conflict(id(6, 42)))),
        ("frame-appended-vote", Err(HigherVote(Vote::new(8, 2)))),
    ] {
        assert_eq!(frame(name, &AppendedBody::new(9, &result)).into_result(), result);
    }

    let mut vote = openraft::raft::VoteRequest::new(Vote::new(8, 2), Some(id(7, 45)));
    vote.leadership_transfer = true;
    frame("frame-vote", &CallBody { id: 1, call: Call::Vote(VoteCall::from(&vote)) });
    frame("frame-pre-vote", &CallBody { id: 2, call: Call::PreVote(VoteCall::from(&vote)) });
    let transfer = openraft::raft::TransferLeaderRequest::new(Vote::new_committed(7, 1), 2, Some(id(7, 45)));
    frame("frame-transfer", &CallBody { id: 3, call: Call::transfer(&transfer) });
    frame("frame-progress", &CallBody { id: 4, call: Call::Progress });

    let granted = openraft::raft::VoteResponse::new(Vote::new(8, 2), Some(id(7, 45)), true);
    frame("frame-voted", &AnswerBody { id: 1, answer: Answer::Vote(VoteAnswer::from(&granted)) });
    frame("frame-transferred", &AnswerBody { id: 3, answer: Answer::Transfer(None) });
    let refused = openraft::raft::TransferLeaderError::LogNotFlushed { expected: Some(id(7, 45)), actual: None };
    let answer = Answer::Transfer(Some(TransferRefused::new(&refused)));
    frame("frame-transfer-refused", &AnswerBody { id: 3, answer });
    let answer = Answer::progress(&Vote::new_committed(7, 1), Some(&id(7, 45)), 44);
    frame("frame-progressed", &AnswerBody { id: 4, answer });
    frame("frame-stopped", &AnswerBody { id: 5, answer: Answer::Stopped });
}

#[test]
fn a_membership_that_cannot_be_is_refused() {
    let body = MembershipBody { voters: vec![vec![1, 2]], members: Vec::new() };
    assert!(matches!(Membership::try_from(body), Err(EncodingError::Membership(_))));
    assert!(LogEntry::from_record(Bytes::from_static(b"not a record")).is_err());
}
