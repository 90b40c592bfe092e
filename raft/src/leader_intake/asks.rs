//! Asking the leader: questions from this node's tasks, answered here when this node leads, else over one
//! connection to the leader.
//!
//! Owns that connection and the numbers of the questions on it. It never repeats a question: whoever asks
//! knows whether that makes sense.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_store::codec;
use quorate_store::ids::NodeId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::{Answer, Ask, LeaderDesk, Leadership, Question, Refused, Reply, kind};
use crate::consensus::LeaderView;
use crate::peer::{PeerPool, PeerReceiver, PeerSender, Purpose};
use crate::proposer::lock;

/// Questions that wait to be sent.
const QUEUE_MAX: usize = 256;
/// Questions on the connection that wait for their answer.
const UNANSWERED_MAX: usize = 1024;
/// A leader that takes nothing for so long is dialed anew.
const SEND_PATIENCE: Duration = Duration::from_millis(1500);
/// A connection on which nothing comes for so long while an answer is due is thrown away. Pings are answered at
/// once, so it is not the leader that is slow: the connection is of before the network broke and healed, and what
/// is sent down it waits for TCP's next attempt.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// Why there is no answer. The question may have been received.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum AskError {
    /// Nobody leads, as far as this node knows.
    #[error("no leader is known")]
    NoLeader,
    /// Asked one that does not lead.
    #[error("node {asked} does not lead{}", leader.map(|l| format!(", it says that node {l} does")).unwrap_or_default())]
    NotLeader {
        /// Who was asked.
        asked: NodeId,
        /// Who leads, as it believes.
        leader: Option<NodeId>,
    },
    /// The connection could not be opened, or broke before the answer.
    #[error("node {asked} could not be reached: {why}")]
    Unreachable {
        /// Who was asked.
        asked: NodeId,
        /// What went wrong.
        why: String,
    },
    /// No answer in time.
    #[error("node {asked} did not answer in time")]
    TimedOut {
        /// Who was asked.
        asked: NodeId,
    },
    /// The leader takes no proposals just now.
    #[error("node {asked} leads, but takes nothing just now")]
    Busy {
        /// Who was asked.
        asked: NodeId,
    },
    /// The leader cannot read the question.
    #[error("node {asked} does not understand the question: nodes of different versions?")]
    Malformed {
        /// Who was asked.
        asked: NodeId,
    },
    /// Raft has stopped on this node or there.
    #[error("Raft has stopped on node {asked}")]
    Stopped {
        /// Who was asked.
        asked: NodeId,
    },
}

struct Call {
    to: NodeId,
    ask: Ask,
    answer: oneshot::Sender<Reply>,
}

/// What is asked on one connection and not answered.
#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Reply>>,
    /// Questions without an answer, those included that nobody waits for any more.
    due: usize,
    /// Since when an answer has been due, and none came.
    since: Option<Instant>,
}

impl Waiting {
    fn asked(&mut self, number: u64, answer: oneshot::Sender<Reply>, now: Instant) {
        self.answers.insert(number, answer);
        self.due += 1;
        self.since.get_or_insert(now);
    }

    fn answered(&mut self, number: u64, now: Instant) -> Option<oneshot::Sender<Reply>> {
        self.due = self.due.saturating_sub(1);
        self.since = (self.due > 0).then_some(now);
        self.answers.remove(&number)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= SILENCE_MAX)
    }
}

type Unanswered = Arc<Mutex<Waiting>>;

/// Asks the leader. Cheap to clone.
pub(crate) struct Asks<L> {
    desk: Arc<LeaderDesk<L>>,
    calls: mpsc::Sender<Call>,
}

impl<L> Clone for Asks<L> {
    fn clone(&self) -> Self {
        Self { desk: self.desk.clone(), calls: self.calls.clone() }
    }
}

impl<L: Leadership> Asks<L> {
    /// With the future that sends what is asked; run it for as long as anything is asked.
    pub(crate) fn new(desk: Arc<LeaderDesk<L>>, pool: PeerPool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (calls, queue) = mpsc::channel(QUEUE_MAX);
        let leader = desk.raft().leader_watch();
        (Self { desk, calls }, Courier { pool, leader, conn: None }.run(queue))
    }

    /// This node.
    pub(crate) fn node_id(&self) -> NodeId {
        self.desk.raft().node_id()
    }

    /// Raft on this node.
    pub(crate) fn raft(&self) -> &L {
        self.desk.raft()
    }

    /// Asks whoever leads.
    ///
    /// # Errors
    /// [`AskError`]; a refusal is an error too.
    pub(crate) async fn ask(&self, ask: Ask, patience: Duration) -> Result<Reply, AskError> {
        let Some(leader) = self.desk.raft().leader_watch().borrow().leader else { return Err(AskError::NoLeader) };
        let reply = async {
            if leader == self.node_id() {
                return Ok(self.desk.answer(leader, ask).await);
            }
            let unreachable = |why: &str| AskError::Unreachable { asked: leader, why: why.into() };
            let (answer, answered) = oneshot::channel();
            let sent = self.calls.send(Call { to: leader, ask, answer }).await;
            sent.map_err(|_| unreachable("this node is shutting down"))?;
            answered.await.map_err(|_| unreachable("no connection, or it broke"))
        };
        match timeout(patience, reply).await {
            Err(_) => Err(AskError::TimedOut { asked: leader }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Reply::Refused(refused))) => Err(match refused {
                Refused::NotLeader { leader: hint } => AskError::NotLeader { asked: leader, leader: hint },
                Refused::Busy => AskError::Busy { asked: leader },
                Refused::Malformed => AskError::Malformed { asked: leader },
                Refused::Stopped => AskError::Stopped { asked: leader },
            }),
            Ok(Ok(reply)) => Ok(reply),
        }
    }
}

/// One connection to one leader.
struct Conn {
    to: NodeId,
    sender: PeerSender,
    unanswered: Unanswered,
    reader: JoinHandle<()>,
    next_number: u64,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.reader.abort();
        // Whoever waits learns of it by the dropped sender.
        lock(&self.unanswered).answers.clear();
    }
}

struct Courier {
    pool: PeerPool,
    leader: watch::Receiver<LeaderView>,
    conn: Option<Conn>,
}

impl Courier {
    async fn run(mut self, mut queue: mpsc::Receiver<Call>) {
        while let Some(call) = queue.recv().await {
            // Nobody waits any more.
            if call.answer.is_closed() {
                continue;
            }
            let to = call.to;
            let sent = timeout(SEND_PATIENCE, self.send(call)).await;
            if let Err(error) = sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                debug!(%to, %error, "a question to the leader was not sent");
                self.conn = None;
            }
        }
    }

    async fn send(&mut self, call: Call) -> std::io::Result<()> {
        if self.conn.as_ref().is_some_and(|c| c.to != call.to || c.reader.is_finished()) {
            self.conn = None;
        }
        let conn = match &mut self.conn {
            Some(conn) => conn,
            none => none.insert(dial(&self.pool, &mut self.leader, call.to).await?),
        };
        conn.next_number += 1;
        let number = conn.next_number;
        let body = codec::encode(&Question { number, ask: call.ask }).map_err(std::io::Error::other)?;
        {
            let mut unanswered = lock(&conn.unanswered);
            unanswered.answers.retain(|_, answer| !answer.is_closed());
            if unanswered.answers.len() >= UNANSWERED_MAX {
                return Err(std::io::Error::other("too many questions without an answer"));
            }
            unanswered.asked(number, call.answer, Instant::now());
        }
        conn.sender.send(kind::QUESTION, body).await?;
        conn.sender.flush().await
    }
}

/// Connects, unless the node stops being the leader meanwhile.
async fn dial(pool: &PeerPool, leader: &mut watch::Receiver<LeaderView>, to: NodeId) -> std::io::Result<Conn> {
    let conn = tokio::select! {
        conn = pool.dial(to, Purpose::Proposals) => conn?,
        _ = leader.wait_for(|view| view.leader != Some(to)) => {
            return Err(std::io::Error::other("it does not lead any more"));
        }
    };
    let (sender, receiver) = conn.into_split();
    let unanswered = Unanswered::default();
    let reader = tokio::spawn(read_answers(receiver, unanswered.clone()));
    Ok(Conn { to, sender, unanswered, reader, next_number: 0 })
}

async fn read_answers(mut receiver: PeerReceiver, unanswered: Unanswered) {
    let mut look = interval(SILENCE_MAX / 5);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            biased;
            frame = receiver.recv() => frame,
            _ = look.tick() => {
                if lock(&unanswered).is_silent(Instant::now()) {
                    debug!("the leader answers nothing on this connection");
                    break;
                }
                continue;
            }
        };
        let Ok(Some(frame)) = frame else { break };
        let Ok(Answer { number, reply }) = codec::decode::<Answer>(&frame.body) else { break };
        if let Some(answer) = lock(&unanswered).answered(number, Instant::now()) {
            // Whoever asked may have lost patience.
            let _ = answer.send(reply);
        }
    }
    lock(&unanswered).answers.clear();
}
