//! A log entry in memory: openraft's view of it, and the bytes it is stored and sent as.
//!
//! An entry is encoded once, when the leader appends it. From then on the encoded record travels with it:
//! what a follower receives is what it writes, and what replication reads is what it sends.

use std::fmt;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::{RaftEntry, RaftPayload};
use quorate_store::codec::CodecError;

use crate::encoding::{self, EncodingError};
use crate::types::{LogId, LogTerm, Membership, Payload};

/// See the module.
#[derive(Clone)]
pub struct LogEntry {
    log_id: LogId,
    payload: Payload,
    /// This very entry, encoded; `None` until someone needs it.
    record: Option<Bytes>,
}

impl LogEntry {
    /// From an encoded record; the batch stays a slice of it.
    ///
    /// # Errors
    /// When the record does not decode.
    pub(crate) fn from_record(record: Bytes) -> Result<Self, EncodingError> {
        let (log_id, payload) = encoding::decode_entry(&record)?;
        Ok(Self { log_id, payload, record: Some(record) })
    }

    /// The encoded record.
    ///
    /// # Errors
    /// When it is longer than an envelope can be.
    pub(crate) fn record(&self) -> Result<Bytes, CodecError> {
        match &self.record {
            Some(record) => Ok(record.clone()),
            None => encoding::encode_entry(&self.log_id, &self.payload),
        }
    }

    /// What it says.
    pub(crate) fn payload(&self) -> &Payload {
        &self.payload
    }
}

impl RaftEntry for LogEntry {
    type CommittedLeaderId = LogTerm;
    type Payload = Payload;

    fn new(log_id: LogId, payload: Payload) -> Self {
        Self { log_id, payload, record: None }
    }

    fn log_id_parts(&self) -> (&LogTerm, u64) {
        (&self.log_id.leader_id, self.log_id.index)
    }

    fn set_log_id(&mut self, new: LogId) {
        self.log_id = new;
        self.record = None;
    }

    fn get_membership(&self) -> Option<Membership> {
        self.payload.get_membership()
    }
}

impl PartialEq for LogEntry {
    fn eq(&self, other: &Self) -> bool {
        self.log_id == other.log_id && self.payload == other.payload
    }
}

impl fmt::Debug for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.log_id)?;
        match &self.payload {
            EntryPayload::Blank => f.write_str("blank"),
            EntryPayload::Normal(proposal) => write!(f, "{proposal}"),
            EntryPayload::Membership(membership) => write!(f, "{membership}"),
        }
    }
}
