//! Raft's messages as they go over a [`crate::peer::Purpose::Raft`] connection.
//!
//! ```text
//! kind
//!  10  Append     caller -> server   one AppendEntries request of a stream; entries are payloads
//!  11  AppendEnd  caller -> server   no more requests of this stream
//!  12  Appended   server -> caller   the answer to the next request of the stream
//!  13  AppendGone server -> caller   the server ended the stream
//!  20  Call       caller -> server   vote, pre-vote, transfer of leadership, progress
//!  21  Answer     server -> caller
//! ```
//!
//! A stream is named by the caller; many run at once on a connection (replication, and each heartbeat).

use bincode::{Decode, Encode};
use quorate_store::codec::{Enveloped, Kind, Payload, PayloadSource};

use crate::encoding::{EncodingError, LogIdBody, VoteBody};
use crate::entry::LogEntry;
use crate::types::{LogId, Types, Vote};

pub(crate) const KIND_APPEND: u8 = 10;
pub(crate) const KIND_APPEND_END: u8 = 11;
pub(crate) const KIND_APPENDED: u8 = 12;
pub(crate) const KIND_APPEND_GONE: u8 = 13;
pub(crate) const KIND_CALL: u8 = 20;
pub(crate) const KIND_ANSWER: u8 = 21;

type AppendEntriesRequest = openraft::raft::AppendEntriesRequest<Types>;
type StreamAppendResult = openraft::raft::StreamAppendResult<Types>;
type VoteRequest = openraft::raft::VoteRequest<Types>;
type VoteResponse = openraft::raft::VoteResponse<Types>;
type TransferLeaderRequest = openraft::raft::TransferLeaderRequest<Types>;

/// One AppendEntries request.
#[derive(Debug, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub(crate) struct AppendBody {
    pub(crate) stream: u64,
    vote: VoteBody,
    prev: Option<LogIdBody>,
    commit: Option<LogIdBody>,
    /// Encoded entries, as they stand in the log.
    entries: Vec<Payload>,
}

/// Names a stream: end, or gone.
#[derive(Debug, Encode, Decode)]
pub(crate) struct StreamBody {
    pub(crate) stream: u64,
}

/// The answer to one AppendEntries request.
#[derive(Debug, Encode, Decode)]
pub(crate) struct AppendedBody {
    pub(crate) stream: u64,
    result: Appended,
}

#[derive(Debug, Encode, Decode)]
enum Appended {
    Matched(Option<LogIdBody>),
    Conflict(LogIdBody),
    HigherVote(VoteBody),
}

/// Something that is asked once.
#[derive(Debug, Encode, Decode)]
pub(crate) struct CallBody {
    pub(crate) id: u64,
    pub(crate) call: Call,
}

#[derive(Debug, Encode, Decode)]
pub(crate) enum Call {
    Vote(VoteCall),
    PreVote(VoteCall),
    Transfer {
        from: VoteBody,
        to: u64,
        last: Option<LogIdBody>,
    },
    /// How far is your log (failover: the most up-to-date node goes first)?
    Progress,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct VoteCall {
    vote: VoteBody,
    last: Option<LogIdBody>,
    leadership_transfer: bool,
}

/// What came of a call.
#[derive(Debug, Encode, Decode)]
pub(crate) struct AnswerBody {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

#[derive(Debug, Encode, Decode)]
pub(crate) enum Answer {
    Vote(VoteAnswer),
    /// `None`: accepted; else why not.
    Transfer(Option<TransferRefused>),
    Progress {
        vote: VoteBody,
        last: Option<LogIdBody>,
        applied: u64,
    },
    /// Raft does not run there.
    Stopped,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct VoteAnswer {
    vote: VoteBody,
    granted: bool,
    last: Option<LogIdBody>,
}

#[derive(Debug, Encode, Decode)]
pub(crate) enum TransferRefused {
    VoteChanged { expected: VoteBody, actual: VoteBody },
    LogNotFlushed { expected: Option<LogIdBody>, actual: Option<LogIdBody> },
}

impl Enveloped for AppendBody {
    const KIND: Kind = Kind::Frame;

    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        self.entries.iter().for_each(f);
    }
}

macro_rules! frames {
    ($($name:ty),*) => {$(
        impl Enveloped for $name {
            const KIND: Kind = Kind::Frame;
            fn payloads(&self, _: &mut dyn FnMut(&Payload)) {}
        }
    )*};
}
frames!(StreamBody, AppendedBody, CallBody, AnswerBody);

fn log_id(body: Option<LogIdBody>) -> Option<LogId> {
    body.map(Into::into)
}

fn log_id_body(id: Option<&LogId>) -> Option<LogIdBody> {
    id.map(Into::into)
}

impl AppendBody {
    pub(crate) fn new(stream: u64, request: &AppendEntriesRequest) -> Result<Self, EncodingError> {
        let entries = request.entries.iter().map(|e| e.record().map(Payload)).collect::<Result<_, _>>()?;
        Ok(Self {
            stream,
            vote: (&request.vote).into(),
            prev: log_id_body(request.prev_log_id.as_ref()),
            commit: log_id_body(request.leader_commit.as_ref()),
            entries,
        })
    }

    pub(crate) fn into_request(self) -> Result<AppendEntriesRequest, EncodingError> {
        let entries = self.entries.into_iter().map(|e| LogEntry::from_record(e.0)).collect::<Result<_, _>>()?;
        Ok(AppendEntriesRequest {
            vote: self.vote.into(),
            prev_log_id: log_id(self.prev),
            entries,
            leader_commit: log_id(self.commit),
        })
    }
}

impl AppendedBody {
    pub(crate) fn new(stream: u64, result: &StreamAppendResult) -> Self {
        use openraft::raft::StreamAppendError::{Conflict, HigherVote};
        let result = match result {
            Ok(matched) => Appended::Matched(log_id_body(matched.as_ref())),
            Err(Conflict(at)) => Appended::Conflict(at.into()),
            Err(HigherVote(vote)) => Appended::HigherVote(vote.into()),
        };
        Self { stream, result }
    }

    pub(crate) fn into_result(self) -> StreamAppendResult {
        use openraft::raft::StreamAppendError::{Conflict, HigherVote};
        match self.result {
            Appended::Matched(matched) => Ok(log_id(matched)),
            Appended::Conflict(at) => Err(Conflict(at.into())),
            Appended::HigherVote(vote) => Err(HigherVote(vote.into())),
        }
    }
}

impl From<&VoteRequest> for VoteCall {
    fn from(r: &VoteRequest) -> Self {
        Self {
            vote: (&r.vote).into(),
            last: log_id_body(r.last_log_id.as_ref()),
            leadership_transfer: r.leadership_transfer,
        }
    }
}

impl From<VoteCall> for VoteRequest {
    fn from(c: VoteCall) -> Self {
        let mut request = VoteRequest::new(c.vote.into(), log_id(c.last));
        request.leadership_transfer = c.leadership_transfer;
        request
    }
}

impl From<&VoteResponse> for VoteAnswer {
    fn from(r: &VoteResponse) -> Self {
        Self { vote: (&r.vote).into(), granted: r.vote_granted, last: log_id_body(r.last_log_id.as_ref()) }
    }
}

impl From<VoteAnswer> for VoteResponse {
    fn from(a: VoteAnswer) -> Self {
        VoteResponse::new(Vote::from(a.vote), log_id(a.last), a.granted)
    }
}

impl Call {
    pub(crate) fn transfer(request: &TransferLeaderRequest) -> Self {
        Self::Transfer {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: log_id_body(request.last_log_id()),
        }
    }
}

impl TransferRefused {
    pub(crate) fn new(error: &openraft::raft::TransferLeaderError<Types>) -> Self {
        use openraft::raft::TransferLeaderError as E;
        match error {
            E::VoteChanged { expected, actual } => {
                Self::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            E::LogNotFlushed { expected, actual } => {
                Self::LogNotFlushed { expected: log_id_body(expected.as_ref()), actual: log_id_body(actual.as_ref()) }
            }
        }
    }

    pub(crate) fn into_error(self) -> openraft::raft::TransferLeaderError<Types> {
        use openraft::raft::TransferLeaderError as E;
        match self {
            Self::VoteChanged { expected, actual } => {
                E::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Self::LogNotFlushed { expected, actual } => {
                E::LogNotFlushed { expected: log_id(expected), actual: log_id(actual) }
            }
        }
    }
}

pub(crate) fn transfer_request(from: VoteBody, to: u64, last: Option<LogIdBody>) -> TransferLeaderRequest {
    TransferLeaderRequest::new(from.into(), to, log_id(last))
}

impl Answer {
    pub(crate) fn progress(vote: &Vote, last: Option<&LogId>, applied: u64) -> Self {
        Self::Progress { vote: vote.into(), last: log_id_body(last), applied }
    }

    /// Last log id and applied index.
    pub(crate) fn into_progress(self) -> Option<(Option<LogId>, u64)> {
        match self {
            Self::Progress { last, applied, .. } => Some((log_id(last), applied)),
            _ => None,
        }
    }
}
