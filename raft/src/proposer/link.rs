//! One ordered way for batches to a leader: straight into this node's own Raft, or over a peer connection.
//!
//! A link is opened for one leader, used by the sending task alone, and thrown away at the first doubt: the
//! stream then begins again on another, from the oldest batch that it has not seen applied. Batches that
//! were sent down a link arrive in order, up to where it broke. Nothing here knows what a batch holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quorate_store::codec;
use quorate_store::ids::NodeId;
use tokio::sync::{oneshot, watch};
use tracing::debug;

use super::stats::StreamStats;
use crate::consensus::LeaderView;
use crate::leader_intake::{Leadership, Refused, append_in_turn, kind};
use crate::peer::{PeerPool, PeerReceiver, PeerSender, Purpose};

/// Why a link is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// The other side does not lead; it may know who does.
    NotLeader {
        /// Who leads, as it believes.
        leader: Option<NodeId>,
    },
    /// The leader takes nothing just now, or has dropped something.
    Busy,
    /// It could not be opened, or it broke.
    Broken(String),
    /// Another leader, another term, or another incarnation here.
    Superseded,
    /// Nothing was applied for too long.
    Stalled,
}

/// Sends batches, in order.
pub(crate) trait LinkSender: Send {
    /// Queues one batch. Dropping the future breaks the link.
    fn send(&mut self, batch: Bytes) -> BoxFuture<'_, Result<(), LinkEnd>>;
    /// Sends what is queued.
    fn flush(&mut self) -> BoxFuture<'_, Result<(), LinkEnd>>;
}

/// An open link.
pub(crate) struct Link {
    /// Its sending half.
    pub(crate) sender: Box<dyn LinkSender>,
    /// Resolves when the other side ends it.
    pub(crate) ended: oneshot::Receiver<LinkEnd>,
    /// Nothing can be lost on it without a word: silence is no reason to give it up.
    pub(crate) is_local: bool,
}

/// Opens links.
pub(crate) trait LinkFactory: Send + Sync + 'static {
    /// To `leader`.
    fn open(&self, leader: NodeId) -> BoxFuture<'_, Result<Link, LinkEnd>>;
}

/// Links to this cluster's nodes.
pub(crate) struct LeaderLinks<L> {
    local: L,
    pool: PeerPool,
    stats: Arc<StreamStats>,
}

impl<L: Leadership> LeaderLinks<L> {
    pub(crate) fn new(local: L, pool: PeerPool, stats: Arc<StreamStats>) -> Self {
        Self { local, pool, stats }
    }
}

impl<L: Leadership> LinkFactory for LeaderLinks<L> {
    fn open(&self, leader: NodeId) -> BoxFuture<'_, Result<Link, LinkEnd>> {
        Box::pin(async move {
            let (end, ended) = oneshot::channel();
            let is_local = leader == self.local.node_id();
            let sender: Box<dyn LinkSender> = if is_local {
                // From before the first batch: whatever of this link is dropped ends it.
                let mut view = self.local.leader_watch();
                let refusals = view.borrow_and_update().refusals;
                let watching = tokio::spawn(watch_refusals(refusals, view.clone(), end));
                Box::new(LocalSender { raft: self.local.clone(), view, watching })
            } else {
                let broken = |error: std::io::Error| LinkEnd::Broken(format!("node {leader}: {error}"));
                let conn = self.pool.dial(leader, Purpose::Proposals).await.map_err(broken)?;
                let (sender, receiver) = conn.into_split();
                let reader = tokio::spawn(watch_replies(receiver, end));
                Box::new(RemoteSender { sender, reader })
            };
            self.stats.links.inc();
            Ok(Link { sender, ended, is_local })
        })
    }
}

/// Into this node's own Raft.
struct LocalSender<L> {
    raft: L,
    view: watch::Receiver<LeaderView>,
    watching: tokio::task::JoinHandle<()>,
}

impl<L> Drop for LocalSender<L> {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// A batch that was enqueued here and dropped leaves no gap when nothing is appended behind it: only this
/// tells of it.
async fn watch_refusals(before: u64, mut view: watch::Receiver<LeaderView>, end: oneshot::Sender<LinkEnd>) {
    let end_of_raft = || LinkEnd::Broken("Raft has stopped here".into());
    let reason = view.wait_for(|now| now.refusals != before).await.map_or_else(|_| end_of_raft(), |_| LinkEnd::Busy);
    // The sending task may have given the link up already.
    let _ = end.send(reason);
}

impl<L: Leadership> LinkSender for LocalSender<L> {
    fn send(&mut self, batch: Bytes) -> BoxFuture<'_, Result<(), LinkEnd>> {
        Box::pin(async move { append_in_turn(&self.raft, batch, &mut self.view).await.map_err(end_of) })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), LinkEnd>> {
        Box::pin(async { Ok(()) })
    }
}

/// Over a peer connection, whose other half is read by a task of its own.
struct RemoteSender {
    sender: PeerSender,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for RemoteSender {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl LinkSender for RemoteSender {
    fn send(&mut self, batch: Bytes) -> BoxFuture<'_, Result<(), LinkEnd>> {
        Box::pin(async move { self.sender.send(kind::BATCH, batch).await.map_err(|e| LinkEnd::Broken(e.to_string())) })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), LinkEnd>> {
        Box::pin(async move { self.sender.flush().await.map_err(|e| LinkEnd::Broken(e.to_string())) })
    }
}

/// The leader says nothing while all is well: the first frame is a refusal, and the last.
async fn watch_replies(mut receiver: PeerReceiver, end: oneshot::Sender<LinkEnd>) {
    let reason = match receiver.recv().await {
        Ok(Some(frame)) if frame.kind == kind::REFUSED => match codec::decode::<Refused>(&frame.body) {
            Ok(refused) => end_of(refused),
            Err(error) => LinkEnd::Broken(format!("a refusal that does not decode: {error}")),
        },
        Ok(Some(frame)) => LinkEnd::Broken(format!("a frame of kind {} on a connection for batches", frame.kind)),
        Ok(None) => LinkEnd::Broken("closed by the other side".into()),
        Err(error) => LinkEnd::Broken(error.to_string()),
    };
    debug!(?reason, "a connection for batches ends");
    // The sending task may have given the link up already.
    let _ = end.send(reason);
}

fn end_of(refused: Refused) -> LinkEnd {
    match refused {
        Refused::NotLeader { leader } => LinkEnd::NotLeader { leader },
        Refused::Busy => LinkEnd::Busy,
        Refused::Malformed => LinkEnd::Broken("the leader cannot read what this node sends: upgrade it".into()),
        Refused::Stopped => LinkEnd::Broken("Raft has stopped there".into()),
    }
}

/// Pauses between attempts that fail one after the other.
#[derive(Debug, Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(10);
    const DOUBLINGS_MAX: u32 = 5;

    /// The next pause, longer than the one before.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = Self::FIRST * (1 << self.0.min(Self::DOUBLINGS_MAX));
        self.0 = self.0.saturating_add(1);
        pause
    }

    /// All is well again.
    pub(crate) fn reset(&mut self) {
        self.0 = 0;
    }
}
