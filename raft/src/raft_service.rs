//! The answering side of Raft connections: requests of peers go to openraft, its answers go back.
//!
//! Many streams and calls run at once on a connection. It also tells [`crate::failover`] when a peer's
//! connection ends. It decides nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_store::codec::{self, Enveloped};
use quorate_store::ids::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::consensus::{Consensus, Raft};
use crate::peer::{Frame, PeerConn, PeerSender, PeerService, Purpose};
use crate::raft_link::{AppendEntriesRequest, STREAM_REQUESTS_MAX};
use crate::wire::{
    Answer, AnswerBody, AppendBody, AppendedBody, Call, CallBody, KIND_ANSWER, KIND_APPEND, KIND_APPEND_END,
    KIND_APPEND_GONE, KIND_APPENDED, KIND_CALL, StreamBody, TransferRefused, transfer_request,
};

/// Streams of one connection at once: replication and a few heartbeats are what there should be.
const STREAMS_MAX: usize = 64;
/// Streams that ended and are remembered, so that frames which were overtaken do not begin them again.
const ENDED_KEPT: usize = 1024;
/// Calls of one connection at once.
const CALLS_MAX: usize = 64;
/// Answers that wait to be sent.
const ANSWERS_MAX: usize = 1024;

type Answers = mpsc::Sender<(u8, Bytes)>;

/// See the module.
pub(crate) struct RaftService {
    consensus: Consensus,
    /// Told when a peer's connection ends.
    ended: mpsc::Sender<PeerGone>,
}

/// A peer's Raft connection to this node ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerGone {
    pub(crate) node: NodeId,
    /// Which start of its process it was.
    pub(crate) boot: u64,
}

impl RaftService {
    pub(crate) fn new(consensus: Consensus, ended: mpsc::Sender<PeerGone>) -> Self {
        Self { consensus, ended }
    }
}

impl PeerService for RaftService {
    fn purpose(&self) -> Purpose {
        Purpose::Raft
    }

    fn serve(self: Arc<Self>, from: NodeId, conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let boot = conn.peer_boot();
            match serve_connection(&self.consensus, conn).await {
                Ok(()) => debug!(%from, "Raft connection closed by the peer"),
                Err(error) => debug!(%from, %error, "Raft connection broke"),
            }
            // Full only when many end at once; then failover is looking already.
            let _ = self.ended.try_send(PeerGone { node: from, boot });
        })
    }
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn encode<T: Enveloped>(value: &T) -> io::Result<Bytes> {
    codec::encode(value).map_err(io::Error::other)
}

async fn serve_connection(consensus: &Consensus, conn: PeerConn) -> io::Result<()> {
    let (sender, mut receiver) = conn.into_split();
    let (answers, frames) = mpsc::channel(ANSWERS_MAX);
    let (gone, mut gone_streams) = mpsc::channel(STREAMS_MAX);
    // Aborted with this connection.
    let mut tasks = JoinSet::new();
    tasks.spawn(write_answers(sender, frames));
    let mut streams = Streams::default();
    loop {
        tokio::select! {
            frame = receiver.recv() => {
                let Some(frame) = frame? else { return Ok(()) };
                handle(consensus, &frame, &mut streams, &mut tasks, &answers, &gone)?;
            }
            Some(stream) = gone_streams.recv() => streams.end(stream),
            Some(_) = tasks.join_next() => {}
        }
        if answers.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// The streams of one connection. Their numbers say nothing of the order in which their frames come:
/// heartbeats overtake, and so does the end of a stream that was given up.
#[derive(Default)]
struct Streams {
    open: BTreeMap<u64, mpsc::Sender<AppendEntriesRequest>>,
    /// What still comes of these is ignored.
    ended: BTreeSet<u64>,
    /// As is what comes of those up to this, which were forgotten.
    ended_to: u64,
}

impl Streams {
    fn is_new(&self, stream: u64) -> bool {
        stream > self.ended_to && !self.ended.contains(&stream) && !self.open.contains_key(&stream)
    }

    fn end(&mut self, stream: u64) {
        self.open.remove(&stream);
        // Twice is nothing new: the peer ends it, and so does its task.
        if stream <= self.ended_to {
            return;
        }
        self.ended.insert(stream);
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_first()
        {
            self.ended_to = oldest;
        }
    }
}

fn handle(
    consensus: &Consensus,
    frame: &Frame,
    streams: &mut Streams,
    tasks: &mut JoinSet<()>,
    answers: &Answers,
    gone: &mpsc::Sender<u64>,
) -> io::Result<()> {
    match frame.kind {
        KIND_APPEND => {
            let body: AppendBody = codec::decode(&frame.body).map_err(invalid)?;
            let stream = body.stream;
            let request = body.into_request().map_err(invalid)?;
            consensus.leader_appended(request.vote.leader_id.term);
            if streams.is_new(stream) {
                if streams.open.len() >= STREAMS_MAX {
                    return Err(invalid("too many streams on one Raft connection"));
                }
                let (requests, queue) = mpsc::channel(STREAM_REQUESTS_MAX);
                streams.open.insert(stream, requests);
                tasks.spawn(serve_stream(consensus.raft().clone(), stream, queue, answers.clone(), gone.clone()));
            }
            match streams.open.get(&stream).map(|requests| requests.try_send(request)) {
                // It may be one whose first frame was overtaken by very many others: whoever waits is told. (If
                // there is no room for that, it is told by the silence.)
                None => {
                    let gone = encode(&StreamBody { stream })?;
                    let _ = answers.try_send((KIND_APPEND_GONE, gone));
                    Ok(())
                }
                Some(Ok(()) | Err(mpsc::error::TrySendError::Closed(_))) => Ok(()),
                Some(Err(mpsc::error::TrySendError::Full(_))) => {
                    Err(invalid("more requests at once than a stream may have"))
                }
            }
        }
        KIND_APPEND_END => {
            let body: StreamBody = codec::decode(&frame.body).map_err(invalid)?;
            streams.end(body.stream);
            Ok(())
        }
        KIND_CALL => {
            let body: CallBody = codec::decode(&frame.body).map_err(invalid)?;
            if tasks.len() >= STREAMS_MAX + CALLS_MAX {
                return Err(invalid("too many calls on one Raft connection"));
            }
            let (raft, answers) = (consensus.raft().clone(), answers.clone());
            tasks.spawn(async move {
                let answer = answer(&raft, body.call).await;
                if let Ok(bytes) = encode(&AnswerBody { id: body.id, answer }) {
                    let _ = answers.send((KIND_ANSWER, bytes)).await;
                }
            });
            Ok(())
        }
        other => Err(invalid(format!("a frame of kind {other} on a Raft connection"))),
    }
}

async fn serve_stream(
    raft: Raft,
    stream: u64,
    queue: mpsc::Receiver<AppendEntriesRequest>,
    answers: Answers,
    gone: mpsc::Sender<u64>,
) {
    let requests = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let mut results = pin!(raft.stream_append(requests));
    while let Some(result) = results.next().await {
        let result = match result {
            Ok(result) => result,
            Err(fatal) => {
                warn!(%fatal, "a Raft stream ends, because Raft has stopped here");
                break;
            }
        };
        let last = result.is_err();
        let Ok(bytes) = encode(&AppendedBody::new(stream, &result)) else { break };
        if answers.send((KIND_APPENDED, bytes)).await.is_err() || last {
            break;
        }
    }
    if let Ok(bytes) = encode(&StreamBody { stream }) {
        let _ = answers.send((KIND_APPEND_GONE, bytes)).await;
    }
    let _ = gone.send(stream).await;
}

async fn answer(raft: &Raft, call: Call) -> Answer {
    match call {
        Call::Vote(call) => match raft.vote(call.into()).await {
            Ok(response) => Answer::Vote((&response).into()),
            Err(_) => Answer::Stopped,
        },
        Call::PreVote(call) => match raft.pre_vote(call.into()).await {
            Ok(response) => Answer::Vote((&response).into()),
            Err(_) => Answer::Stopped,
        },
        Call::Transfer { from, to, last } => {
            match raft.handle_transfer_leader(transfer_request(from, to, last)).await {
                Ok(Ok(())) => Answer::Transfer(None),
                Ok(Err(refused)) => Answer::Transfer(Some(TransferRefused::new(&refused))),
                Err(_) => Answer::Stopped,
            }
        }
        Call::Progress => {
            let metrics = raft.data_metrics();
            let (last, applied) = {
                let metrics = metrics.borrow_watched();
                (metrics.last_log, metrics.last_applied.map_or(0, |id| id.index))
            };
            let metrics = raft.server_metrics();
            let vote = metrics.borrow_watched().vote;
            Answer::progress(&vote, last.as_ref(), applied)
        }
    }
}

async fn write_answers(mut sender: PeerSender, mut answers: mpsc::Receiver<(u8, Bytes)>) {
    while let Some(answer) = answers.recv().await {
        let mut next = Some(answer);
        while let Some((kind, body)) = next {
            if sender.send(kind, body).await.is_err() {
                return;
            }
            next = answers.try_recv().ok();
        }
        if sender.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_once_whatever_overtakes_it() {
        let mut streams = Streams::default();
        let (requests, _queue) = mpsc::channel(1);
        // A heartbeat with a higher number came first and is over.
        streams.open.insert(9, requests.clone());
        assert!(!streams.is_new(9));
        streams.end(9);
        assert!(streams.is_new(8) && !streams.is_new(9));
        // The end of one that was given up overtakes its first request.
        streams.end(7);
        assert!(!streams.is_new(7));
        streams.open.insert(8, requests);
        for stream in 10..10 + 2 * ENDED_KEPT as u64 {
            assert!(streams.is_new(stream));
            streams.end(stream);
        }
        assert!(streams.ended.len() <= ENDED_KEPT);
        for stream in 7..10 + 2 * ENDED_KEPT as u64 {
            assert!(!streams.is_new(stream), "{stream} is open or ended");
        }
        assert!(streams.open.contains_key(&8));
    }

    #[test]
    fn a_stream_that_ended_never_begins_again_however_often_it_ends() {
        let mut streams = Streams::default();
        let last = 3 * ENDED_KEPT as u64;
        for stream in 1..=last {
            streams.end(stream);
        }
        // Its end comes from the peer, and once more from its own task, which took long.
        for stream in 1..=last {
            streams.end(stream);
            assert!((1..=last).step_by(97).all(|s| !streams.is_new(s)), "after the second end of {stream}");
        }
    }
}
