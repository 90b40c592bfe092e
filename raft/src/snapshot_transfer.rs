//! A snapshot on its way to a peer: a stream of files with checksums that an interrupted transfer goes on
//! with.
//!
//! The sender offers the manifest; the receiver asks for what it is missing, chunk by chunk, verifies,
//! installs and answers with its vote. A receiver that was cut off asks the next sender of the same snapshot
//! only for the rest. It installs through openraft, which decides whether the sender may lead.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_store::codec::{self, Enveloped, Kind, Payload, PayloadSource};
use quorate_store::ids::NodeId;
use quorate_store::snapshot::{Incoming, SnapshotError};
use tokio::time::{interval, timeout};
use tracing::{info, warn};

use crate::consensus::Consensus;
use crate::encoding::{decode_vote, encode_vote};
use crate::execution::Execution;
use crate::peer::{PeerConn, PeerPool, PeerService, Purpose};
use crate::snapshots::Snapshots;
use crate::types::{Snapshot, Vote};

/// Bytes of one chunk.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Without a word for this long the transfer is broken.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The receiver says that often that it is still verifying or installing.
const WORKING_EVERY: Duration = Duration::from_secs(1);
/// Times that a file which arrived damaged is fetched again before the transfer is given up.
const DAMAGED_MAX: usize = 3;
/// The only kind of frame of this purpose; what it is stands in [`Message`].
const KIND_MESSAGE: u8 = 32;

/// What both sides say. On the wire: variants are only appended.
#[derive(Debug, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
enum Message {
    /// Sender: this is what I have.
    Offer { vote: Payload, manifest: Payload },
    /// Receiver: from here on, please.
    Want { file: u32, offset: u64 },
    /// Sender: the bytes that were asked for.
    Chunk(Payload),
    /// Receiver: all is here; verifying, installing.
    Working,
    /// Receiver: installed, or not wanted; my vote.
    Done { vote: Payload },
    /// Either: it ends here.
    Failed(String),
}

impl Enveloped for Message {
    const KIND: Kind = Kind::Frame;
    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        match self {
            Self::Offer { vote, manifest } => {
                f(vote);
                f(manifest);
            }
            Self::Chunk(bytes) => f(bytes),
            Self::Done { vote } => f(vote),
            Self::Want { .. } | Self::Working | Self::Failed(_) => {}
        }
    }
}

async fn tell(conn: &mut PeerConn, message: &Message) -> io::Result<()> {
    let body = codec::encode(message).map_err(io::Error::other)?;
    let told = async {
        conn.send(KIND_MESSAGE, body).await?;
        conn.flush().await
    };
    timeout(SILENCE_MAX, told).await.map_err(|_| silent())?
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the other side of a snapshot transfer is silent")
}

async fn hear(conn: &mut PeerConn) -> io::Result<Message> {
    let heard = timeout(SILENCE_MAX, conn.recv()).await.map_err(|_| silent())?;
    let frame = heard?.ok_or(io::ErrorKind::UnexpectedEof)?;
    codec::decode(&frame.body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{message:?} has no place here in a snapshot transfer"))
}

async fn blocking<T: Send + 'static>(
    execution: Execution,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    execution.blocking(f).await.map_err(io::Error::other)?
}

/// Sends `snapshot` to `to`; its vote when it is installed there.
///
/// # Errors
/// When the connection breaks or the receiver gives up; the next attempt goes on where this one stopped.
pub(crate) async fn send(
    pool: &PeerPool,
    execution: Execution,
    to: NodeId,
    vote: &Vote,
    snapshot: &Snapshot,
) -> io::Result<Vote> {
    let mut conn = pool.dial(to, Purpose::Snapshot).await?;
    let files = snapshot.snapshot.0.clone();
    info!(%to, snapshot = %files.id(), bytes = files.manifest().total_bytes(), "sending a snapshot");
    let offer = Message::Offer {
        vote: Payload(encode_vote(vote).map_err(io::Error::other)?),
        manifest: Payload(files.manifest_bytes().clone()),
    };
    tell(&mut conn, &offer).await?;
    loop {
        match hear(&mut conn).await? {
            Message::Want { file, offset } => {
                let files = files.clone();
                let read = move || files.read(file as usize, offset, CHUNK_BYTES_MAX).map_err(io::Error::other);
                tell(&mut conn, &Message::Chunk(Payload(blocking(execution, read).await?))).await?;
            }
            Message::Working => {}
            Message::Done { vote } => {
                info!(%to, snapshot = %files.id(), "snapshot sent");
                return decode_vote(&vote.0).map_err(io::Error::other);
            }
            Message::Failed(why) => return Err(io::Error::other(why)),
            other => return Err(unexpected(&other)),
        }
    }
}

/// Receives snapshots.
pub(crate) struct SnapshotService {
    consensus: Consensus,
    snapshots: Snapshots,
    execution: Execution,
    /// One at a time.
    receiving: tokio::sync::Mutex<()>,
}

impl SnapshotService {
    pub(crate) fn new(consensus: Consensus, snapshots: Snapshots, execution: Execution) -> Self {
        Self { consensus, snapshots, execution, receiving: tokio::sync::Mutex::new(()) }
    }

    async fn receive(&self, conn: &mut PeerConn) -> io::Result<Vote> {
        let Message::Offer { vote, manifest } = hear(conn).await? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot transfer begins with an offer"));
        };
        let Ok(_alone) = self.receiving.try_lock() else {
            return Err(io::Error::other("another snapshot is being received; try again later"));
        };
        let vote = decode_vote(&vote.0).map_err(io::Error::other)?;
        let own = {
            let metrics = self.consensus.raft().server_metrics();
            metrics.borrow_watched().vote
        };
        if own > vote {
            return Ok(own);
        }
        let snapshots = self.snapshots.clone();
        let mut incoming = blocking(self.execution, move || snapshots.receive(&manifest.0)).await?;
        let mut damaged = 0;
        let snapshot = loop {
            incoming = fetch(conn, self.execution, incoming).await?;
            let verify = async { Ok(self.execution.blocking(move || (incoming.finish(), incoming)).await) };
            let (finished, rest) = working(conn, verify).await?.map_err(io::Error::other)?;
            incoming = rest;
            match finished {
                Ok(snapshot) => break snapshot,
                Err(error @ SnapshotError::Damaged { .. }) if damaged < DAMAGED_MAX => {
                    warn!(%error, "a file of the snapshot arrived damaged: it is fetched again");
                    damaged += 1;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        };
        let snapshot = Snapshots::received(snapshot)?;
        let raft = self.consensus.raft().clone();
        let install = async { raft.install_full_snapshot(vote, snapshot).await.map_err(io::Error::other) };
        Ok(working(conn, install).await?.vote)
    }
}

/// Asks for chunks until none is missing.
async fn fetch(conn: &mut PeerConn, execution: Execution, mut incoming: Incoming) -> io::Result<Incoming> {
    while let Some((file, offset)) = incoming.next_missing() {
        let number = u32::try_from(file).map_err(io::Error::other)?;
        tell(conn, &Message::Want { file: number, offset }).await?;
        let bytes: Bytes = match hear(conn).await? {
            Message::Chunk(Payload(bytes)) if !bytes.is_empty() => bytes,
            Message::Failed(why) => return Err(io::Error::other(why)),
            other => return Err(unexpected(&other)),
        };
        incoming = blocking(execution, move || {
            incoming.write(file, offset, &bytes).map_err(io::Error::other)?;
            Ok(incoming)
        })
        .await?;
    }
    Ok(incoming)
}

/// Waits for `work`, and tells the sender meanwhile that it goes on.
async fn working<T>(conn: &mut PeerConn, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut work = std::pin::pin!(work);
    let mut every = interval(WORKING_EVERY);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = every.tick() => tell(conn, &Message::Working).await?,
        }
    }
}

impl PeerService for SnapshotService {
    fn purpose(&self) -> Purpose {
        Purpose::Snapshot
    }

    fn serve(self: Arc<Self>, from: NodeId, mut conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let answer = match self.receive(&mut conn).await {
                Ok(vote) => match encode_vote(&vote) {
                    Ok(vote) => Message::Done { vote: Payload(vote) },
                    Err(error) => Message::Failed(error.to_string()),
                },
                Err(error) => {
                    warn!(%from, %error, "a snapshot was not received; the leader tries again");
                    Message::Failed(error.to_string())
                }
            };
            // The sender sees the connection close when this does not reach it.
            let _ = tell(&mut conn, &answer).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::frame;

    #[test]
    fn a_transfer_keeps_its_bytes() {
        let raw = |bytes: &'static [u8]| Payload(Bytes::from_static(bytes));
        for (name, message) in [
            ("snapshot-offer", Message::Offer { vote: raw(b"a vote"), manifest: raw(b"a manifest") }),
            ("snapshot-want", Message::Want { file: 3, offset: 1 << 33 }),
            ("snapshot-chunk", Message::Chunk(raw(b"bytes of a file"))),
            ("snapshot-working", Message::Working),
            ("snapshot-done", Message::Done { vote: raw(b"a vote") }),
            ("snapshot-failed", Message::Failed("no room".into())),
        ] {
            frame(name, &message);
        }
    }
}
