//! The leader's side: takes the other nodes' batches and answers their questions.
//!
//! Every node serves these connections, because any may lead; one that does not says so and hangs up. It
//! owns nothing but the connections: batches go into Raft in the order in which they came, the first one
//! that is not taken ends the connection, and what is behind it on that connection is never appended, so
//! a sender begins again exactly where it stopped. It never looks for outcomes and never buffers: when
//! Raft takes no more, the connection is not read.

mod asks;
mod frames;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_store::codec;
use quorate_store::command::{Batch, Command, Origin};
use quorate_store::ids::NodeId;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, warn};

pub(crate) use asks::{AskError, Asks};
pub(crate) use frames::{Answer, Ask, ClockReport, Question, Refused, Reply, kind};

use crate::clock::ClusterClock;
use crate::consensus::{AppendRefused, Appended, AppliedView, Consensus, LeaderView, ReadIndexError};
use crate::liveness::Attendance;
use crate::peer::{PeerConn, PeerReceiver, PeerSender, PeerService, Purpose};
use crate::proposer::StreamStats;

/// How long a direct command waits for a leader that takes none just now, before its sender is told.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
/// Between two attempts at a batch of a stream.
const TURN_PAUSE: Duration = Duration::from_millis(5);
/// Questions of one connection that are being answered.
const QUESTIONS_MAX: usize = 128;

/// What this crate's streams need of Raft: [`Consensus`], or a model of it in tests.
pub(crate) trait Leadership: Clone + Send + Sync + 'static {
    /// This node.
    fn node_id(&self) -> NodeId;
    /// Enqueues an encoded batch, in the order of the calls. An error means that nothing was appended.
    fn append(&self, bytes: Bytes, what: Appended) -> impl Future<Output = Result<(), AppendRefused>> + Send;
    /// Who leads.
    fn leader_watch(&self) -> watch::Receiver<LeaderView>;
    /// What is applied here.
    fn applied_watch(&self) -> watch::Receiver<AppliedView>;
    /// On the leader: when a majority last acknowledged it.
    fn quorum_acked_at(&self) -> Option<Instant>;
    /// Elsewhere: when the leader last sent anything.
    fn leader_heard_at(&self) -> Option<Instant>;
    /// The voters of the membership in force.
    fn voters(&self) -> Vec<NodeId>;
    /// Whether this node is in the membership in force.
    fn is_member(&self, node: NodeId) -> bool;
    /// On the leader: ReadIndex.
    fn read_index(&self) -> impl Future<Output = Result<u64, ReadIndexError>> + Send;
}

impl Leadership for Consensus {
    fn node_id(&self) -> NodeId {
        Self::node_id(self)
    }

    async fn append(&self, bytes: Bytes, what: Appended) -> Result<(), AppendRefused> {
        Self::append(self, bytes, what).await
    }

    fn leader_watch(&self) -> watch::Receiver<LeaderView> {
        Self::leader_watch(self)
    }

    fn applied_watch(&self) -> watch::Receiver<AppliedView> {
        Self::applied_watch(self)
    }

    fn quorum_acked_at(&self) -> Option<Instant> {
        Self::quorum_acked_at(self)
    }

    fn leader_heard_at(&self) -> Option<Instant> {
        Self::leader_heard_at(self)
    }

    fn is_member(&self, node: NodeId) -> bool {
        Self::is_member(self, node)
    }

    fn voters(&self) -> Vec<NodeId> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().map(NodeId).collect()
    }

    async fn read_index(&self) -> Result<u64, ReadIndexError> {
        Self::read_index(self).await
    }
}

/// Appends the next batch of a stream. While the leader takes nothing (its disk is behind, or it has no time or
/// majority yet), it waits: whoever sends is not read, which holds it back without making it send anything twice.
/// Until `view` changes: then something before this batch may have been dropped, and nothing may follow it.
/// `Ok` means *unknown*, an error means that nothing was appended.
pub(crate) async fn append_in_turn(
    raft: &impl Leadership,
    batch: Bytes,
    view: &mut watch::Receiver<LeaderView>,
) -> Result<(), Refused> {
    loop {
        match raft.append(batch.clone(), Appended::Stream).await {
            Ok(()) => return Ok(()),
            Err(AppendRefused::NotLeader { leader }) => return Err(Refused::NotLeader { leader }),
            Err(AppendRefused::Stopped) => return Err(Refused::Stopped),
            Err(AppendRefused::Overloaded { .. } | AppendRefused::Paused) => {}
        }
        tokio::select! {
            changed = view.changed() => {
                return Err(if changed.is_ok() { not_leader(*view.borrow_and_update()) } else { Refused::Stopped });
            }
            () = sleep(TURN_PAUSE) => {}
        }
    }
}

/// Appends a direct batch, waiting a little while the leader takes nothing just now. `Ok` means *unknown*, an
/// error means that nothing was appended.
pub(crate) async fn append_patiently(raft: &impl Leadership, batch: Bytes) -> Result<(), Refused> {
    let mut deadline = None;
    loop {
        match raft.append(batch.clone(), Appended::Direct).await {
            Ok(()) => return Ok(()),
            Err(AppendRefused::NotLeader { leader }) => return Err(Refused::NotLeader { leader }),
            Err(AppendRefused::Stopped) => return Err(Refused::Stopped),
            Err(AppendRefused::Overloaded { .. } | AppendRefused::Paused) => {
                if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) {
                    return Err(Refused::Busy);
                }
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Answers questions, from this node's own tasks and from other nodes.
pub(crate) struct LeaderDesk<L> {
    raft: L,
    clock: Arc<ClusterClock>,
    attendance: Arc<Attendance>,
    quorum_grace: Duration,
    stats: Arc<StreamStats>,
}

impl<L: Leadership> LeaderDesk<L> {
    pub(crate) fn new(
        raft: L,
        clock: Arc<ClusterClock>,
        attendance: Arc<Attendance>,
        quorum_grace: Duration,
        stats: Arc<StreamStats>,
    ) -> Self {
        Self { raft, clock, attendance, quorum_grace, stats }
    }

    pub(crate) fn raft(&self) -> &L {
        &self.raft
    }

    /// Answers one question of `from`.
    pub(crate) async fn answer(&self, from: NodeId, ask: Ask) -> Reply {
        match ask {
            Ask::Ping { incarnation, clock } => {
                let view = *self.raft.leader_watch().borrow();
                if !view.is_self {
                    return Reply::Refused(Refused::NotLeader { leader: view.leader });
                }
                // One that was removed may not know it: nobody tells it any more.
                let is_member = self.raft.is_member(from);
                if is_member {
                    self.attendance.heard(from, incarnation, Instant::now());
                    self.clock.heard(from, clock);
                }
                let age_ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                let quorum_age_ms = self.quorum_age().filter(|_| is_member).map(age_ms);
                Reply::Pong { quorum_age_ms, clock: self.clock.report() }
            }
            Ask::Direct(batch) => {
                if let Err(why) = check_batch(&batch.0, None) {
                    self.stats.intake_malformed.inc();
                    warn!(%from, why, "a direct command was refused");
                    return Reply::Refused(Refused::Malformed);
                }
                match append_patiently(&self.raft, batch.0).await {
                    Ok(()) => Reply::Enqueued,
                    Err(refused) => Reply::Refused(refused),
                }
            }
            Ask::ReadIndex => match self.raft.read_index().await {
                Ok(index) => Reply::ReadIndex(index),
                Err(ReadIndexError::NotLeader { leader }) => Reply::Refused(Refused::NotLeader { leader }),
                Err(ReadIndexError::NoQuorum) => Reply::NoQuorum,
                Err(ReadIndexError::Stopped) => Reply::Refused(Refused::Stopped),
            },
        }
    }

    /// Whether a majority backed this node, which leads, within `quorum_grace`.
    pub(crate) fn has_quorum(&self) -> bool {
        self.quorum_age().is_some()
    }

    /// How long ago that was.
    fn quorum_age(&self) -> Option<Duration> {
        Some(self.raft.quorum_acked_at()?.elapsed()).filter(|age| *age < self.quorum_grace)
    }
}

/// Serves the connections of purpose `Proposals`.
pub(crate) struct LeaderIntake<L> {
    desk: Arc<LeaderDesk<L>>,
}

impl<L: Leadership> LeaderIntake<L> {
    pub(crate) fn new(desk: Arc<LeaderDesk<L>>) -> Self {
        Self { desk }
    }

    async fn serve_one(&self, from: NodeId, conn: PeerConn) {
        let stats = &self.desk.stats;
        // Before the first batch: from here on, whatever Raft drops ends the connection.
        let mut view = self.desk.raft.leader_watch();
        view.mark_unchanged();
        let (mut sender, mut receiver) = conn.into_split();
        let refused = match receiver.recv().await {
            Ok(Some(frame)) if frame.kind == kind::QUESTION => {
                self.answer_all(from, frame.body, receiver, sender).await;
                return;
            }
            Ok(Some(frame)) if frame.kind == kind::BATCH => {
                self.take_batches(from, frame.body, &mut receiver, &mut view).await
            }
            Ok(Some(frame)) => {
                warn!(%from, kind = frame.kind, "a frame that this build does not know on a connection for proposals");
                Some(Refused::Malformed)
            }
            Ok(None) => None,
            Err(error) => {
                debug!(%from, %error, "a connection for proposals broke");
                None
            }
        };
        let Some(refused) = refused else { return };
        match refused {
            Refused::Busy => stats.intake_busy.inc(),
            Refused::Malformed => stats.intake_malformed.inc(),
            Refused::NotLeader { .. } | Refused::Stopped => stats.intake_refused.inc(),
        }
        debug!(%from, ?refused, "batches of a node are refused");
        if let Ok(body) = codec::encode(&refused) {
            // If the sender is gone, it knows already.
            let _ = sender.send(kind::REFUSED, body).await;
            let _ = sender.shutdown().await;
        }
    }

    /// Appends what comes, in order, until something is not taken or the connection ends (`None`).
    async fn take_batches(
        &self,
        from: NodeId,
        first: Bytes,
        receiver: &mut PeerReceiver,
        view: &mut watch::Receiver<LeaderView>,
    ) -> Option<Refused> {
        let mut batch = first;
        loop {
            if let Err(why) = check_batch(&batch, Some(from)) {
                warn!(%from, why, "a batch was refused");
                return Some(Refused::Malformed);
            }
            // Something that was enqueued may have been dropped: what follows it would only leave a gap.
            if view.has_changed().unwrap_or(true) {
                return Some(not_leader(*view.borrow_and_update()));
            }
            if let Err(refused) = append_in_turn(&self.desk.raft, batch, view).await {
                return Some(refused);
            }
            self.desk.stats.intake_batches.inc();
            let frame = match receiver.try_recv() {
                Ok(Some(frame)) => Ok(Some(frame)),
                Ok(None) => tokio::select! {
                    frame = receiver.recv() => frame,
                    changed = view.changed() => {
                        return Some(if changed.is_ok() { not_leader(*view.borrow()) } else { Refused::Stopped });
                    }
                },
                Err(error) => Err(error),
            };
            batch = match frame {
                Ok(Some(frame)) if frame.kind == kind::BATCH => frame.body,
                Ok(Some(frame)) => {
                    warn!(%from, kind = frame.kind, "a frame that does not belong on a connection for batches");
                    return Some(Refused::Malformed);
                }
                Ok(None) => return None,
                Err(error) => {
                    debug!(%from, %error, "a connection for batches broke");
                    return None;
                }
            };
        }
    }

    /// Answers questions, several at a time: a read that waits for a majority holds up no ping.
    async fn answer_all(&self, from: NodeId, first: Bytes, mut receiver: PeerReceiver, mut sender: PeerSender) {
        let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
        let (answers, mut to_send) = mpsc::channel::<Answer>(QUESTIONS_MAX);
        let send = async {
            while let Some(answer) = to_send.recv().await {
                let Ok(body) = codec::encode(&answer) else { continue };
                let sent = async {
                    sender.send(kind::ANSWER, body).await?;
                    sender.flush().await
                };
                if sent.await.is_err() {
                    break;
                }
            }
        };
        let read = async {
            let mut body = first;
            loop {
                let question = match codec::decode::<Question>(&body) {
                    Ok(question) => question,
                    Err(error) => {
                        self.desk.stats.intake_malformed.inc();
                        warn!(%from, %error, "a question that does not decode");
                        break;
                    }
                };
                // Not reading is the back-pressure.
                let Ok(place) = places.clone().acquire_owned().await else { break };
                let (desk, answers) = (self.desk.clone(), answers.clone());
                tokio::spawn(async move {
                    let _place = place;
                    let reply = desk.answer(from, question.ask).await;
                    let _ = answers.send(Answer { number: question.number, reply }).await;
                });
                body = match receiver.recv().await {
                    Ok(Some(frame)) if frame.kind == kind::QUESTION => frame.body,
                    Ok(_) | Err(_) => break,
                };
            }
        };
        tokio::select! {
            () = send => {}
            () = read => {}
        }
    }
}

impl<L: Leadership> PeerService for LeaderIntake<L> {
    fn purpose(&self) -> Purpose {
        Purpose::Proposals
    }

    fn serve(self: Arc<Self>, from: NodeId, conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.serve_one(from, conn).await })
    }
}

fn not_leader(view: LeaderView) -> Refused {
    if view.is_self { Refused::Busy } else { Refused::NotLeader { leader: view.leader } }
}

/// Whether a batch may be appended. An entry that cannot be read would stop every node, so the leader reads
/// it first; and a stream is its own node's alone.
fn check_batch(bytes: &Bytes, from: Option<NodeId>) -> Result<(), &'static str> {
    let batch: Batch = codec::decode(bytes).map_err(|_| "it does not decode: is the sender of a newer version?")?;
    match (batch.origin, from) {
        (Origin::Stream { node, .. }, Some(from)) if node == from => Ok(()),
        (Origin::Stream { .. }, _) => Err("it belongs to the stream of another node"),
        (Origin::Direct { .. }, Some(_)) => Err("a direct command among the batches of a stream"),
        (Origin::Direct { .. }, None) if batch.commands.iter().all(may_be_direct) => Ok(()),
        (Origin::Direct { .. }, None) => Err("a command that is not idempotent was sent as direct"),
    }
}

/// Whether a repeat of this command does no harm, so that it needs no number.
pub(crate) fn may_be_direct(command: &Command) -> bool {
    match command {
        Command::NodeStarted(_)
        | Command::NodeLost { .. }
        | Command::Tick
        | Command::AllocateNode { .. }
        | Command::RemoveNode { .. }
        | Command::Set(_)
        | Command::EndSession { .. }
        | Command::PutUser(_)
        | Command::DeleteUser { .. }
        | Command::PutAclRule(_)
        | Command::DeleteAclRule { .. }
        | Command::SetShareStrategy { .. } => true,
        Command::Connect(_)
        | Command::Close(_)
        | Command::Publish(_)
        | Command::Release { .. }
        | Command::Settle(_)
        | Command::Subscribe(_)
        | Command::Unsubscribe { .. } => false,
    }
}

#[cfg(test)]
mod tests;
