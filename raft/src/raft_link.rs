//! The calling side of a Raft connection: one per peer, shared by replication, heartbeats and calls.
//!
//! Many streams and calls run at once on it, told apart by a number. Heartbeats and calls overtake log
//! entries that wait to be sent. A link that says nothing for too long while an answer is due is broken and
//! dialed again; whoever waited is told. It never retries a request: that is openraft's.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_store::codec::{self, Enveloped};
use quorate_store::ids::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use crate::peer::{Frame, PeerPool, PeerReceiver, PeerSender, Purpose};
use crate::types::Types;
use crate::wire::{
    Answer, AnswerBody, AppendBody, AppendedBody, Call, CallBody, KIND_ANSWER, KIND_APPEND, KIND_APPEND_END,
    KIND_APPEND_GONE, KIND_APPENDED, KIND_CALL, StreamBody,
};

/// Requests of one stream that may wait for their answer.
pub(crate) const STREAM_REQUESTS_MAX: usize = 64;
/// Bytes of entries of one stream that may wait for their answer (one request may be longer).
const STREAM_BYTES_MAX: usize = 8 << 20;
/// Frames of entries that wait for the writer.
const BULK_FRAMES_MAX: usize = 16;
/// Heartbeats, calls and ends of streams that wait for the writer.
const URGENT_FRAMES_MAX: usize = 1024;

pub(crate) type AppendEntriesRequest = openraft::raft::AppendEntriesRequest<Types>;
pub(crate) type StreamAppendResult = openraft::raft::StreamAppendResult<Types>;

struct OutFrame {
    kind: u8,
    parts: Vec<Bytes>,
}

/// Who waits for what. Gone when the link is broken.
#[derive(Default)]
struct Waiting {
    calls: BTreeMap<u64, oneshot::Sender<Answer>>,
    streams: BTreeMap<u64, mpsc::Sender<StreamAppendResult>>,
    /// Requests of streams that wait for their answer.
    in_flight: usize,
    /// Since when anything has been waited for without a pause.
    since: Option<Instant>,
}

impl Waiting {
    fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.in_flight == 0
    }

    fn expect(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn settle(&mut self) {
        self.since = if self.is_idle() { None } else { Some(Instant::now()) };
    }
}

type SharedWaiting = Arc<Mutex<Option<Waiting>>>;

fn with_waiting<T>(waiting: &SharedWaiting, f: impl FnOnce(&mut Waiting) -> T) -> Option<T> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(f)
}

/// A connection with its tasks.
struct OpenLink {
    bulk: mpsc::Sender<OutFrame>,
    urgent: mpsc::Sender<OutFrame>,
    waiting: SharedWaiting,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The link to one peer; dials when it is needed.
pub(crate) struct RaftLink {
    peer: NodeId,
    pool: PeerPool,
    silence_max: Duration,
    next_id: AtomicU64,
    open: tokio::sync::Mutex<Option<Arc<OpenLink>>>,
}

/// The links to all peers.
#[derive(Clone)]
pub(crate) struct RaftLinks(Arc<Links>);

struct Links {
    pool: PeerPool,
    silence_max: Duration,
    links: Mutex<BTreeMap<NodeId, Arc<RaftLink>>>,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the Raft connection broke")
}

fn encode<T: Enveloped>(value: &T) -> io::Result<Vec<Bytes>> {
    codec::encode_parts(value).map_err(io::Error::other)
}

impl RaftLinks {
    /// A link is given up when an answer is due and nothing came for `silence_max`.
    pub(crate) fn new(pool: PeerPool, silence_max: Duration) -> Self {
        Self(Arc::new(Links { pool, silence_max, links: Mutex::default() }))
    }

    /// The link to `peer`.
    pub(crate) fn to(&self, peer: NodeId) -> Arc<RaftLink> {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(RaftLink {
                peer,
                pool: self.0.pool.clone(),
                silence_max: self.0.silence_max,
                next_id: AtomicU64::new(1),
                open: tokio::sync::Mutex::default(),
            })
        };
        links.entry(peer).or_insert_with(new).clone()
    }

    /// Forgets the links to others; who uses one keeps it until then.
    pub(crate) fn retain(&self, is_member: impl Fn(NodeId) -> bool) {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner).retain(|peer, _| is_member(*peer));
    }

    /// Dials.
    pub(crate) fn pool(&self) -> &PeerPool {
        &self.0.pool
    }
}

impl RaftLink {
    async fn open(&self) -> io::Result<Arc<OpenLink>> {
        let mut open = self.open.lock().await;
        if let Some(link) = open.as_ref() {
            if with_waiting(&link.waiting, |_| ()).is_some() {
                return Ok(link.clone());
            }
            *open = None;
        }
        let (sender, receiver) = self.pool.dial(self.peer, Purpose::Raft).await?.into_split();
        debug!(peer = %self.peer, "Raft connection opened");
        let (bulk, bulk_frames) = mpsc::channel(BULK_FRAMES_MAX);
        let (urgent, urgent_frames) = mpsc::channel(URGENT_FRAMES_MAX);
        let waiting: SharedWaiting = Arc::new(Mutex::new(Some(Waiting::default())));
        let close = CloseOnDrop { waiting: waiting.clone() };
        let writer = tokio::spawn(write_frames(sender, bulk_frames, urgent_frames, close));
        let close = CloseOnDrop { waiting: waiting.clone() };
        let reader = tokio::spawn(read_frames(receiver, self.peer, self.silence_max, close));
        let link = Arc::new(OpenLink { bulk, urgent, waiting, tasks: [writer, reader] });
        *open = Some(link.clone());
        Ok(link)
    }

    /// Asks once.
    ///
    /// # Errors
    /// When the peer cannot be reached, the connection breaks, or no answer comes within `ttl`.
    pub(crate) async fn call(&self, call: Call, ttl: Duration) -> io::Result<Answer> {
        let asked = async {
            let link = self.open().await?;
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let (answer, answered) = oneshot::channel();
            with_waiting(&link.waiting, |w| {
                w.calls.insert(id, answer);
                w.expect();
            })
            .ok_or_else(broken)?;
            let _forget = ForgetCall { id, waiting: &link.waiting };
            let frame = OutFrame { kind: KIND_CALL, parts: encode(&CallBody { id, call })? };
            link.urgent.send(frame).await.map_err(|_| broken())?;
            answered.await.map_err(|_| broken())
        };
        timeout(ttl, asked).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))?
    }

    /// A stream of AppendEntries requests; `urgent` ones overtake others.
    ///
    /// # Errors
    /// When the peer cannot be reached.
    pub(crate) async fn stream(&self, urgent: bool) -> io::Result<AppendStream> {
        let link = self.open().await?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answers) = mpsc::channel(STREAM_REQUESTS_MAX);
        with_waiting(&link.waiting, |w| w.streams.insert(id, answer)).ok_or_else(broken)?;
        Ok(AppendStream { id, link, urgent, answers, sent_bytes: VecDeque::new(), in_flight_bytes: 0, ended: false })
    }
}

/// One stream; ends when dropped.
pub(crate) struct AppendStream {
    id: u64,
    link: Arc<OpenLink>,
    urgent: bool,
    answers: mpsc::Receiver<StreamAppendResult>,
    /// Of the requests that wait for their answer.
    sent_bytes: VecDeque<usize>,
    in_flight_bytes: usize,
    ended: bool,
}

impl AppendStream {
    /// Another request may be sent.
    pub(crate) fn has_room(&self) -> bool {
        let requests = self.sent_bytes.len();
        requests == 0 || (requests < STREAM_REQUESTS_MAX && self.in_flight_bytes < STREAM_BYTES_MAX)
    }

    /// Requests that wait for their answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.sent_bytes.len()
    }

    /// Sends one request; call it only with [`Self::has_room`].
    pub(crate) async fn send(&mut self, request: &AppendEntriesRequest) -> io::Result<()> {
        let body = AppendBody::new(self.id, request).map_err(io::Error::other)?;
        let parts = encode(&body)?;
        let bytes = parts.iter().map(Bytes::len).sum();
        with_waiting(&self.link.waiting, |w| {
            w.in_flight += 1;
            w.expect();
        })
        .ok_or_else(broken)?;
        self.sent_bytes.push_back(bytes);
        self.in_flight_bytes += bytes;
        self.lane().send(OutFrame { kind: KIND_APPEND, parts }).await.map_err(|_| broken())
    }

    /// Nothing more is sent. Answers still come.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        let parts = encode(&StreamBody { stream: self.id })?;
        self.lane().send(OutFrame { kind: KIND_APPEND_END, parts }).await.map_err(|_| broken())
    }

    /// The next answer, in the order of the requests; `None` when the stream is gone. Cancel-safe.
    pub(crate) async fn answer(&mut self) -> Option<StreamAppendResult> {
        let answer = self.answers.recv().await?;
        if let Some(bytes) = self.sent_bytes.pop_front() {
            self.in_flight_bytes -= bytes;
        }
        Some(answer)
    }

    fn lane(&self) -> &mpsc::Sender<OutFrame> {
        if self.urgent { &self.link.urgent } else { &self.link.bulk }
    }
}

impl Drop for AppendStream {
    fn drop(&mut self) {
        let unanswered = self.sent_bytes.len() - self.answers.len().min(self.sent_bytes.len());
        let _ = with_waiting(&self.link.waiting, |w| {
            w.streams.remove(&self.id);
            w.in_flight = w.in_flight.saturating_sub(unanswered);
            if w.is_idle() {
                w.since = None;
            }
        });
        if !self.ended {
            // Overtakes what the stream still has in the bulk lane; the server ignores that then.
            if let Ok(parts) = encode(&StreamBody { stream: self.id }) {
                let _ = self.link.urgent.try_send(OutFrame { kind: KIND_APPEND_END, parts });
            }
        }
    }
}

struct ForgetCall<'a> {
    id: u64,
    waiting: &'a SharedWaiting,
}

impl Drop for ForgetCall<'_> {
    fn drop(&mut self) {
        let _ = with_waiting(self.waiting, |w| {
            w.calls.remove(&self.id);
            if w.is_idle() {
                w.since = None;
            }
        });
    }
}

/// The end of either task is the end of the link: everyone who waits is told, by their channel closing.
struct CloseOnDrop {
    waiting: SharedWaiting,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        drop(self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

async fn write_frames(
    mut sender: PeerSender,
    mut bulk: mpsc::Receiver<OutFrame>,
    mut urgent: mpsc::Receiver<OutFrame>,
    _close: CloseOnDrop,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = urgent.recv() => frame,
            Some(frame) = bulk.recv() => frame,
            else => return,
        };
        let mut next = Some(frame);
        while let Some(frame) = next {
            if let Err(error) = sender.send_parts(frame.kind, frame.parts).await {
                debug!(%error, "Raft connection: write failed");
                return;
            }
            next = urgent.try_recv().or_else(|_| bulk.try_recv()).ok();
        }
        if let Err(error) = sender.flush().await {
            debug!(%error, "Raft connection: write failed");
            return;
        }
    }
}

async fn read_frames(mut receiver: PeerReceiver, peer: NodeId, silence_max: Duration, close: CloseOnDrop) {
    let mut check = interval(silence_max / 4);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            frame = receiver.recv() => match frame {
                Ok(Some(frame)) => {
                    if let Err(error) = dispatch(&frame, &close.waiting) {
                        warn!(%peer, %error, "Raft connection: an answer was no good");
                        return;
                    }
                }
                Ok(None) => {
                    debug!(%peer, "Raft connection closed by the peer");
                    return;
                }
                Err(error) => {
                    debug!(%peer, %error, "Raft connection broke");
                    return;
                }
            },
            _ = check.tick() => {
                let silent = with_waiting(&close.waiting, |w| w.since.is_some_and(|at| at.elapsed() > silence_max));
                if silent != Some(false) {
                    warn!(%peer, "Raft connection: no answer for too long, dialing again");
                    return;
                }
            }
        }
    }
}

fn dispatch(frame: &Frame, waiting: &SharedWaiting) -> io::Result<()> {
    let invalid = |e: codec::CodecError| io::Error::new(io::ErrorKind::InvalidData, e);
    match frame.kind {
        KIND_APPENDED => {
            let body: AppendedBody = codec::decode(&frame.body).map_err(invalid)?;
            let full = with_waiting(waiting, |w| {
                // A stream that was dropped here may still be answered.
                let Some(stream) = w.streams.get(&body.stream) else {
                    w.settle();
                    return false;
                };
                let full =
                    stream.try_send(body.into_result()).is_err_and(|e| matches!(e, mpsc::error::TrySendError::Full(_)));
                w.in_flight = w.in_flight.saturating_sub(1);
                w.settle();
                full
            });
            if full == Some(true) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more answers than requests"));
            }
        }
        KIND_APPEND_GONE => {
            let body: StreamBody = codec::decode(&frame.body).map_err(invalid)?;
            let _ = with_waiting(waiting, |w| w.streams.remove(&body.stream));
        }
        KIND_ANSWER => {
            let body: AnswerBody = codec::decode(&frame.body).map_err(invalid)?;
            let _ = with_waiting(waiting, |w| {
                if let Some(call) = w.calls.remove(&body.id) {
                    let _ = call.send(body.answer);
                }
                w.settle();
            });
        }
        other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of kind {other}"))),
    }
    Ok(())
}
