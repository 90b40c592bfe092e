//! [`Backend`] over the real cluster.
//!
//! Passes everything on; what it adds is a bound on how many pages are read at once, and the front end's view
//! of the quorum.

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_raft::{Cluster, ClusterStatus, Submission};
use quorate_store::command::Publish;
use quorate_store::ids::{ClusterTime, SessionId};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::backend::{Backend, PageError, PageReply, Quorum, Room};
use super::session::PageWanted;

/// Fewest pages read at the same time; above it, one for each processor.
const READERS_MIN: usize = 2;

/// See the module.
#[derive(Debug)]
pub struct ClusterBackend {
    cluster: Cluster,
    runtime: Handle,
    readers: Arc<Semaphore>,
    quorum: watch::Receiver<Quorum>,
}

impl ClusterBackend {
    /// Over `cluster`. Must be called within a tokio runtime, on which pages are read.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        let mut status = cluster.status();
        let (tx, quorum) = watch::channel(quorum_of(&status.borrow_and_update()));
        let runtime = Handle::current();
        runtime.spawn(async move {
            loop {
                tokio::select! {
                    changed = status.changed() => if changed.is_err() { return },
                    () = tx.closed() => return,
                }
                let now = quorum_of(&status.borrow_and_update());
                tx.send_if_modified(|quorum| {
                    let changed = *quorum != now;
                    *quorum = now;
                    changed
                });
            }
        });
        let readers = std::thread::available_parallelism().map_or(READERS_MIN, |n| n.get().max(READERS_MIN));
        Self { cluster, runtime, readers: Arc::new(Semaphore::new(readers)), quorum }
    }
}

/// Where clients go that this node cannot serve: every other node that the log does not call lost, whether
/// this one reaches it or not. It may be this one that is cut off.
fn quorum_of(status: &ClusterStatus) -> Quorum {
    let others = status.nodes.iter().filter(|n| n.id != status.node && n.is_up && !n.info.mqtt.is_empty());
    let addresses: Vec<&str> = others.map(|n| n.info.mqtt.as_str()).collect();
    let elsewhere = (!addresses.is_empty()).then(|| Arc::from(addresses.join(" ")));
    Quorum { has: status.has_quorum, elsewhere }
}

impl Backend for ClusterBackend {
    fn submit(&self, submission: Submission) -> Result<(), Box<Submission>> {
        self.cluster.proposer().submit(submission).map_err(|busy| busy.submission)
    }

    fn submit_many(&self, submissions: &mut VecDeque<Submission>) {
        self.cluster.proposer().submit_many(submissions);
    }

    fn room(&self) -> Room<'_> {
        Box::pin(self.cluster.proposer().room())
    }

    fn quorum(&self) -> watch::Receiver<Quorum> {
        self.quorum.clone()
    }

    fn access(&self) -> watch::Receiver<Arc<quorate_store::access::Access>> {
        self.cluster.access()
    }

    fn cluster_time(&self) -> ClusterTime {
        self.cluster.cluster_time()
    }

    fn has_time(&self) -> bool {
        self.cluster.has_time()
    }

    fn route_qos0(&self, publish: Publish) {
        self.cluster.route_qos0(publish);
    }

    fn request_page(&self, session: SessionId, wanted: PageWanted, reply: PageReply) {
        let (cluster, readers) = (self.cluster.clone(), self.readers.clone());
        self.runtime.spawn(async move {
            // Closed never: the semaphore lives as long as this task.
            let _permit = readers.acquire().await;
            let read = tokio::task::spawn_blocking(move || {
                let page = cluster.rows().queue_page(session, wanted.from, wanted.rows_max, wanted.bytes_max);
                reply(page.map_err(|error| PageError { session, reason: error.to_string() }));
            });
            if let Err(error) = read.await {
                tracing::error!(%error, %session, "reading a page of a queue panicked");
            }
        });
    }
}
