//! What the front end needs of the log, as a trait: [`super::cluster`] implements it over
//! `quorate_raft::Cluster`, tests over a log in memory.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use quorate_raft::Submission;
use quorate_store::access::Access;
use quorate_store::command::Publish;
use quorate_store::ids::{ClusterTime, SessionId};
use quorate_store::rows::QueuePage;
use thiserror::Error;
use tokio::sync::watch;

use super::session::PageWanted;

/// A page could not be read; the node is about to stop, because a damaged row stops it.
#[derive(Debug, Error)]
#[error("a page of the queue of session {session} could not be read: {reason}")]
pub struct PageError {
    /// Whose.
    pub session: SessionId,
    /// What the row store said.
    pub reason: String,
}

/// Takes the answer to [`Backend::request_page`], on any thread.
pub type PageReply = Box<dyn FnOnce(Result<QueuePage, PageError>) + Send>;

/// Resolves when [`Backend::submit`] would take commands again.
pub type Room<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Whether this node can commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// A leader with a majority behind it is known here.
    pub has: bool,
    /// MQTT addresses of the other nodes, for clients that are sent away; separated by spaces.
    pub elsewhere: Option<Arc<str>>,
}

/// The log, as a front end uses it. Nothing here blocks.
pub trait Backend: Send + Sync + 'static {
    /// Proposes a command on this node's one ordered stream. Its outcome arrives at
    /// [`quorate_raft::NodeEffects`] when it is applied here, in the order of submission.
    ///
    /// # Errors
    /// Gives the submission back when the proposer is full: wait for [`Backend::room`].
    fn submit(&self, submission: Submission) -> Result<(), Box<Submission>>;

    /// [`Backend::submit`] for as many as are taken, from the front and in order: what is left was refused.
    fn submit_many(&self, submissions: &mut VecDeque<Submission>) {
        while let Some(submission) = submissions.pop_front() {
            if let Err(back) = self.submit(submission) {
                return submissions.push_front(*back);
            }
        }
    }

    /// Waits until [`Backend::submit`] would take commands again.
    fn room(&self) -> Room<'_>;

    /// Whether this node can commit, now and whenever that changes.
    fn quorum(&self) -> watch::Receiver<Quorum>;

    /// Who may do what, now and whenever that changes.
    fn access(&self) -> watch::Receiver<Arc<Access>>;

    /// Estimate of cluster time, from the last applied stamp on.
    fn cluster_time(&self) -> ClusterTime;

    /// Whether cluster time has started. Before it has, the deadline of a CONNECT may pass before it is committed.
    fn has_time(&self) -> bool;

    /// Routes a QoS 0 publish past the log, best effort.
    fn route_qos0(&self, publish: Publish);

    /// Reads a page of a session's queue off this thread and passes it to `reply`. The rows of every run
    /// that [`quorate_raft::NodeEffects`] has been told of are visible to it.
    fn request_page(&self, session: SessionId, wanted: PageWanted, reply: PageReply);
}
