//! One bounded queue, one task and one connection per peer for QoS 0 messages.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bincode::{Decode, Encode};
use quorate_store::codec::{self, Enveloped, Kind, Payload, PayloadSource};
use quorate_store::command::SessionRef;
use quorate_store::ids::{Incarnation, NodeId};
use quorate_store::message::SharedMessage;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::peer::{PeerPool, PeerSender, Purpose};
use crate::proposer::{StreamStats, lock};

/// Kind of the one frame of this purpose: a [`Qos0Frame`]. On the wire: kept for ever.
pub(super) const FRAME_PUBLISH: u8 = 16;
/// After a peer could not be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A peer that takes nothing for this long is dialed anew.
const SEND_PATIENCE: Duration = Duration::from_millis(5000);
/// Charged for each message beside its topic, properties and payload.
const FRAME_BYTES: usize = 192;

/// A message and who gets it on one node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub(super) struct Qos0Frame {
    /// Incarnation that owns the sessions.
    pub(super) owner: Incarnation,
    pub(super) message: SharedMessage,
    pub(super) targets: Vec<Target>,
}

/// One connection that gets the message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Target {
    pub(super) to: SessionRef,
    pub(super) retain: bool,
    pub(super) identifiers: Vec<u32>,
}

impl Enveloped for Qos0Frame {
    const KIND: Kind = Kind::Frame;
    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        f(&self.message.payload);
    }
}

impl Qos0Frame {
    fn bytes(&self) -> usize {
        FRAME_BYTES + self.message.charge_bytes() + self.targets.len() * 32
    }
}

/// All peers' queues.
pub(super) struct PeerQueues {
    pool: PeerPool,
    bytes_max: usize,
    stats: Arc<StreamStats>,
    runtime: Handle,
    peers: Mutex<HashMap<NodeId, Peer>>,
}

struct Peer {
    queue: Arc<PeerQueue>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
struct PeerQueue {
    frames: Mutex<Frames>,
    filled: Notify,
}

#[derive(Default)]
struct Frames {
    queue: VecDeque<Qos0Frame>,
    bytes: usize,
}

impl PeerQueue {
    fn take_all(&self) -> VecDeque<Qos0Frame> {
        let mut frames = lock(&self.frames);
        frames.bytes = 0;
        std::mem::take(&mut frames.queue)
    }
}

impl PeerQueues {
    pub(super) fn new(pool: PeerPool, bytes_max: usize, stats: Arc<StreamStats>) -> Self {
        Self { pool, bytes_max, stats, runtime: Handle::current(), peers: Mutex::new(HashMap::new()) }
    }

    /// Forgets the others.
    pub(super) fn retain(&self, is_member: impl Fn(NodeId) -> bool) {
        lock(&self.peers).retain(|node, _| is_member(*node));
    }

    /// Queues a message for `node`, or drops and counts it.
    pub(super) fn push(&self, node: NodeId, frame: Qos0Frame) {
        let queue = {
            let mut peers = lock(&self.peers);
            let peer = peers.entry(node).or_insert_with(|| {
                let queue = Arc::new(PeerQueue::default());
                let sending = send_all(node, queue.clone(), self.pool.clone(), self.stats.clone());
                Peer { queue, task: self.runtime.spawn(sending) }
            });
            peer.queue.clone()
        };
        {
            let mut frames = lock(&queue.frames);
            if frames.bytes >= self.bytes_max {
                drop(frames);
                self.stats.qos0_dropped_to_peer.inc();
                return;
            }
            frames.bytes += frame.bytes();
            frames.queue.push_back(frame);
        }
        queue.filled.notify_one();
    }
}

async fn send_all(node: NodeId, queue: Arc<PeerQueue>, pool: PeerPool, stats: Arc<StreamStats>) {
    let mut conn: Option<PeerSender> = None;
    loop {
        queue.filled.notified().await;
        let frames = queue.take_all();
        let count = frames.len() as u64;
        if count == 0 {
            continue;
        }
        let sent = timeout(SEND_PATIENCE, send_some(node, frames, &mut conn, &pool)).await;
        let error = match sent {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        debug!(%node, %error, dropped = count, "QoS 0 messages to a peer were dropped");
        conn = None;
        stats.qos0_dropped_to_peer.add(count);
        sleep(RETRY_PAUSE).await;
        // What came meanwhile is old by now.
        stats.qos0_dropped_to_peer.add(queue.take_all().len() as u64);
    }
}

async fn send_some(
    node: NodeId,
    frames: VecDeque<Qos0Frame>,
    conn: &mut Option<PeerSender>,
    pool: &PeerPool,
) -> io::Result<()> {
    let sender = match conn {
        Some(sender) => sender,
        none => none.insert(pool.dial(node, Purpose::QoS0).await?.into_split().0),
    };
    for frame in frames {
        let body = codec::encode(&frame).map_err(io::Error::other)?;
        sender.send(FRAME_PUBLISH, body).await?;
    }
    sender.flush().await
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_store::ids::{ClusterTime, Epoch, Position, QoS, SessionId};
    use quorate_store::message::Message;
    use quorate_store::topic::TopicName;

    use super::*;
    use crate::golden;

    #[test]
    fn a_message_survives_the_wire_and_its_payload_is_not_copied() {
        let position = Position::new(4, 2);
        let message = Arc::new(Message {
            position: Position::ZERO,
            topic: TopicName::new("a/b").unwrap(),
            qos: QoS::AtMostOnce,
            retain: false,
            published_at: ClusterTime(5),
            expires_at: None,
            properties: None,
            payload: Payload(Bytes::from_static(b"payload")),
        });
        let to = SessionRef { session: SessionId(position), epoch: Epoch(position) };
        let targets = vec![Target { to, retain: false, identifiers: vec![1, 7] }];
        let frame = Qos0Frame { owner: Incarnation(position), message, targets };
        golden::frame("qos0", &frame);
        let bytes = codec::encode(&frame).unwrap();
        let decoded: Qos0Frame = codec::decode(&bytes).unwrap();
        assert_eq!(decoded, frame);
        assert!(bytes.as_ptr_range().contains(&decoded.message.payload.0.as_ptr()));
    }
}
