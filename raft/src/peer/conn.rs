//! One framed connection, whole or split. Plain TCP and TLS look the same from here.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use quorate_store::ids::{GroupId, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{FRAME_BODY_BYTES_MAX, Frame, HELLO_BODY_BYTES_MAX, Parsed, frame_head, take_frame};
use super::{PeerStream, Purpose};

/// Parts up to this size are copied together, longer ones are written from where they are.
const COPY_BYTES_MAX: usize = 4096;
/// `send` flushes by itself above this.
const QUEUED_BYTES_MAX: usize = 256 << 10;
/// Slices of one vectored write.
const SLICES_MAX: usize = 64;
/// What a read asks for at least.
const READ_BYTES_MIN: usize = 16 << 10;

/// The sending half.
pub(crate) struct PeerSender {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    /// Small parts, not yet in `queued`.
    staging: BytesMut,
    queued: VecDeque<Bytes>,
    queued_bytes: usize,
}

/// The receiving half.
pub(crate) struct PeerReceiver {
    io: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    body_bytes_max: usize,
}

/// A connection to one node for one purpose, after its hello.
pub(crate) struct PeerConn {
    peer: NodeId,
    boot: u64,
    purpose: Purpose,
    sender: PeerSender,
    receiver: PeerReceiver,
}

impl PeerSender {
    /// Queues one frame; it goes out with the next [`Self::flush`], or now when much is queued.
    /// Not cancel-safe once it writes: drop the connection if you drop the future.
    pub(crate) async fn send(&mut self, kind: u8, body: Bytes) -> io::Result<()> {
        self.send_parts(kind, [body]).await
    }

    /// Queues one frame whose body is these parts, one after the other. Long parts are not copied.
    pub(crate) async fn send_parts<P>(&mut self, kind: u8, parts: P) -> io::Result<()>
    where
        P: IntoIterator<Item = Bytes> + AsRef<[Bytes]>,
    {
        let body_len = parts.as_ref().iter().map(Bytes::len).sum();
        self.staging.extend_from_slice(&frame_head(kind, GroupId::MAIN, body_len)?);
        for part in parts {
            if part.len() <= COPY_BYTES_MAX {
                self.staging.extend_from_slice(&part);
            } else {
                self.queue_staging();
                self.queued_bytes += part.len();
                self.queued.push_back(part);
            }
        }
        if self.queued_bytes + self.staging.len() > QUEUED_BYTES_MAX { self.flush().await } else { Ok(()) }
    }

    /// Writes out all that is queued.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.queue_staging();
        while !self.queued.is_empty() {
            let mut written = {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = self.queued.len().min(SLICES_MAX);
                slices.iter_mut().zip(&self.queued).for_each(|(slice, part)| *slice = IoSlice::new(part));
                self.io.write_vectored(slices.get(..count).unwrap_or_default()).await?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.queued_bytes = self.queued_bytes.saturating_sub(written);
            while let Some(front) = self.queued.front_mut() {
                if front.len() > written {
                    front.advance(written);
                    break;
                }
                written -= front.len();
                self.queued.pop_front();
            }
        }
        self.io.flush().await
    }

    /// Tells the other side that nothing more comes.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.io.shutdown().await
    }

    fn queue_staging(&mut self) {
        if !self.staging.is_empty() {
            let part = self.staging.split().freeze();
            self.queued_bytes += part.len();
            self.queued.push_back(part);
        }
    }
}

impl PeerReceiver {
    /// The next frame; `None` when the other side closed between two frames. Cancel-safe.
    ///
    /// # Errors
    /// A broken connection, or a frame that is no good: close the connection.
    pub(crate) async fn recv(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let missing = match take_frame(&mut self.buffer, self.body_bytes_max)? {
                Parsed::Frame(frame) => return Ok(Some(frame)),
                Parsed::Missing(n) => n,
            };
            self.buffer.reserve(missing.max(READ_BYTES_MIN));
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// A whole frame that is in the buffer already, if any: lets a reader work off what has come before it waits.
    pub(crate) fn try_recv(&mut self) -> io::Result<Option<Frame>> {
        match take_frame(&mut self.buffer, self.body_bytes_max)? {
            Parsed::Frame(frame) => Ok(Some(frame)),
            Parsed::Missing(_) => Ok(None),
        }
    }
}

impl PeerConn {
    /// Over a fresh byte stream: frames are short until [`Self::established`].
    pub(super) fn new(PeerStream { reader, writer }: PeerStream) -> Self {
        let sender = PeerSender { io: writer, staging: BytesMut::new(), queued: VecDeque::new(), queued_bytes: 0 };
        let receiver = PeerReceiver { io: reader, buffer: BytesMut::new(), body_bytes_max: HELLO_BODY_BYTES_MAX };
        Self { peer: NodeId(0), boot: 0, purpose: Purpose::Control, sender, receiver }
    }

    /// The hello is over.
    pub(super) fn established(&mut self, peer: NodeId, boot: u64, purpose: Purpose) {
        self.peer = peer;
        self.boot = boot;
        self.purpose = purpose;
        self.receiver.body_bytes_max = FRAME_BODY_BYTES_MAX;
    }

    /// The node at the other end; node 0 is one that has not joined yet ([`Purpose::Control`] only).
    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    /// Which start of that node's process this is.
    pub(crate) fn peer_boot(&self) -> u64 {
        self.boot
    }

    /// What it is for.
    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// See [`PeerSender::send`].
    pub(crate) async fn send(&mut self, kind: u8, body: Bytes) -> io::Result<()> {
        self.sender.send(kind, body).await
    }

    /// See [`PeerSender::flush`].
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.sender.flush().await
    }

    /// See [`PeerReceiver::recv`].
    pub(crate) async fn recv(&mut self) -> io::Result<Option<Frame>> {
        self.receiver.recv().await
    }

    /// For a task that sends and one that receives.
    pub(crate) fn into_split(self) -> (PeerSender, PeerReceiver) {
        (self.sender, self.receiver)
    }
}

impl fmt::Debug for PeerConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConn").field("peer", &self.peer).field("purpose", &self.purpose).finish_non_exhaustive()
    }
}
