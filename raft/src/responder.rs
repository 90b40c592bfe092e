//! How the core tells that it did not take a proposal.
//!
//! Successful proposals are seen in the applied log and nowhere else, so this responder carries one bit:
//! dropped or not. It replaces openraft's channel-based default on the hot path.

use openraft::OptionalSend;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;

use crate::types::{LogId, Types};

/// See the module. `T` is what openraft would answer.
pub struct WriteResponder<T> {
    answer: Box<dyn FnOnce(T) + Send>,
}

impl WriteResponder<ClientWriteResult<Types>> {
    /// Calls `done` once, from the core or the apply path: must never block. The argument: this proposal
    /// was refused, or discarded on a change of leader (it may or may not be committed then).
    pub(crate) fn new(done: impl FnOnce(bool) + Send + 'static) -> Self {
        Self { answer: Box::new(move |result| done(result.is_err())) }
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for WriteResponder<T> {
    fn on_commit(&mut self, _: LogId) {}

    fn on_complete(self, result: T) {
        (self.answer)(result);
    }
}
