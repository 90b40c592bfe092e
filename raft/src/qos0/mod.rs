//! QoS 0 publishes without RETAIN: past the log, straight to the nodes that have subscribers.
//!
//! Owns the queue in front of the apply thread, which alone may ask the state machine who subscribes, and one
//! queue and connection per peer. Everything is bounded in bytes; what does not fit, or whose peer cannot be
//! reached, is dropped and counted: that is what QoS 0 promises. Deliveries name the incarnation that owned
//! the session, so none reaches a node's later life. Nothing here is replicated, repeated or acknowledged.

mod peers;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use quorate_store::codec;
use quorate_store::command::Publish;
use quorate_store::effect::Delivery;
use quorate_store::ids::{ClusterTime, Incarnation, NodeId, Position, QoS};
use quorate_store::message::{Message, SharedMessage};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::apply::{ApplyHandle, NodeMachine};
use crate::effects::{AppliedRun, NodeEffects, NodeEvent};
use crate::peer::{Frame, PeerConn, PeerPool, PeerService, Purpose};
use crate::proposer::{StreamStats, lock};
use peers::{FRAME_PUBLISH, PeerQueues, Qos0Frame, Target};

/// Publishes that one job on the apply thread routes, at most: apply waits no longer than that.
const ROUTED_AT_ONCE: usize = 128;
/// Deliveries after which it stops early: one publish may have very many, but not 128 of them.
const DELIVERIES_AT_ONCE: usize = 4096;
/// Frames of a peer that are handed on together.
const RECEIVED_AT_ONCE: usize = 256;
/// Charged for each queued publish beside its topic, properties and payload.
const PUBLISH_BYTES: usize = 128;

/// Routes QoS 0 publishes of this node's clients. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Qos0Router(Arc<Router>);

struct Router {
    apply: ApplyHandle,
    front: Arc<dyn NodeEffects>,
    incarnation: watch::Receiver<Option<Incarnation>>,
    queue: Mutex<RouteQueue>,
    bytes_max: usize,
    /// Bytes of peers' frames that wait for the apply thread.
    received_bytes: AtomicUsize,
    peers: PeerQueues,
    stats: Arc<StreamStats>,
}

#[derive(Debug, Default)]
struct RouteQueue {
    publishes: VecDeque<Publish>,
    bytes: usize,
    /// A job on the apply thread will look here.
    scheduled: bool,
}

impl RouteQueue {
    /// Takes the first `count`, or all.
    fn take(&mut self, count: usize) -> VecDeque<Publish> {
        let rest = self.publishes.split_off(count.min(self.publishes.len()));
        let taken = std::mem::replace(&mut self.publishes, rest);
        self.bytes -= taken.iter().map(publish_bytes).sum::<usize>();
        taken
    }

    /// Puts what was taken and not routed at the front again. Whether another job must look here.
    fn give_back(&mut self, mut left: VecDeque<Publish>) -> bool {
        self.bytes += left.iter().map(publish_bytes).sum::<usize>();
        left.append(&mut self.publishes);
        self.publishes = left;
        self.scheduled = !self.publishes.is_empty();
        self.scheduled
    }
}

/// Routes publishes from the front until there were so many deliveries.
fn route_until(publishes: &mut VecDeque<Publish>, deliveries_max: usize, mut route: impl FnMut(Publish) -> usize) {
    let mut deliveries = 0;
    while deliveries < deliveries_max
        && let Some(publish) = publishes.pop_front()
    {
        deliveries += route(publish);
    }
}

/// Bytes that came from peers and wait for the apply thread; free again when it is dropped.
struct Held {
    router: Arc<Router>,
    bytes: usize,
}

impl Held {
    /// `None` when as much waits as may. The last one in may overshoot.
    fn new(router: &Arc<Router>, bytes: usize) -> Option<Self> {
        if router.received_bytes.load(Ordering::Relaxed) >= router.bytes_max {
            return None;
        }
        router.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Self { router: router.clone(), bytes })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.router.received_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Qos0Router {
    /// Must be called within a tokio runtime, on which the peers' tasks run.
    pub(crate) fn new(
        apply: ApplyHandle,
        pool: PeerPool,
        front: Arc<dyn NodeEffects>,
        incarnation: watch::Receiver<Option<Incarnation>>,
        bytes_max: usize,
        stats: Arc<StreamStats>,
    ) -> Self {
        let peers = PeerQueues::new(pool, bytes_max, stats.clone());
        let queue = Mutex::new(RouteQueue::default());
        let received_bytes = AtomicUsize::new(0);
        Self(Arc::new(Router { apply, front, incarnation, queue, bytes_max, received_bytes, peers, stats }))
    }

    /// Sends a message to all who subscribe now. Never blocks; drops and counts above the bound.
    pub(crate) fn route(&self, publish: Publish) {
        let schedule = {
            let mut queue = lock(&self.0.queue);
            if queue.bytes >= self.0.bytes_max {
                drop(queue);
                self.0.stats.qos0_dropped_here.inc();
                return;
            }
            queue.bytes += publish_bytes(&publish);
            queue.publishes.push_back(publish);
            !std::mem::replace(&mut queue.scheduled, true)
        };
        if schedule {
            self.schedule();
        }
    }

    /// Sends messages to this node's own clients who subscribe now. Few at a time, and seldom: they go past the
    /// queue.
    pub(crate) fn publish_here(&self, publishes: Vec<Publish>) {
        let (router, count) = (self.0.clone(), publishes.len() as u64);
        let job = Box::new(move |machine: &mut NodeMachine| {
            let applied = machine.applied();
            let own = *router.incarnation.borrow();
            let mut events = Vec::new();
            for publish in publishes {
                let message = message_of(publish, applied.time);
                machine.match_qos0(None, &message.topic, &message, &mut |owner, delivery| {
                    if own == Some(owner) {
                        events.push(NodeEvent::Deliver(delivery));
                    }
                });
            }
            if !events.is_empty() {
                router.front.applied(AppliedRun { index: applied.index, time: applied.time, events });
            }
        });
        if self.0.apply.submit(job).is_err() {
            self.0.stats.qos0_dropped_here.add(count);
        }
    }

    /// Forgets the queues and connections of nodes that are no members any more.
    pub(crate) fn retain_peers(&self, is_member: impl Fn(NodeId) -> bool) {
        self.0.peers.retain(is_member);
    }

    fn schedule(&self) {
        let router = self.clone();
        if self.0.apply.submit(Box::new(move |machine| router.route_some(machine))).is_err() {
            let mut queue = lock(&self.0.queue);
            let dropped = queue.publishes.len();
            *queue = RouteQueue::default();
            drop(queue);
            self.0.stats.qos0_dropped_here.add(dropped as u64);
        }
    }

    /// On the apply thread.
    fn route_some(&self, machine: &mut NodeMachine) {
        let mut publishes = lock(&self.0.queue).take(ROUTED_AT_ONCE);
        let applied = machine.applied();
        let own = *self.0.incarnation.borrow();
        let mut owners: Option<HashMap<Incarnation, NodeId>> = None;
        let mut events = Vec::new();
        route_until(&mut publishes, DELIVERIES_AT_ONCE, |publish| {
            self.0.stats.qos0_routed.inc();
            let publisher = publish.from.map(|from| from.session);
            let message = message_of(publish, applied.time);
            let mut remote: HashMap<Incarnation, Vec<Target>> = HashMap::new();
            let mut deliveries = 0;
            machine.match_qos0(publisher, &message.topic, &message, &mut |owner, delivery| {
                deliveries += 1;
                if own == Some(owner) {
                    events.push(NodeEvent::Deliver(delivery));
                } else {
                    remote.entry(owner).or_default().push(Target::of(&delivery));
                }
            });
            for (owner, targets) in remote {
                let owners = owners.get_or_insert_with(|| open_incarnations(machine));
                let Some(node) = owners.get(&owner) else { continue };
                self.0.peers.push(*node, Qos0Frame { owner, message: message.clone(), targets });
            }
            deliveries
        });
        if !events.is_empty() {
            self.0.front.applied(AppliedRun { index: applied.index, time: applied.time, events });
        }
        if lock(&self.0.queue).give_back(publishes) {
            self.schedule();
        }
    }

    /// What a peer's frames hold for this node's clients.
    fn receive(&self, from: NodeId, frames: Vec<Frame>) -> Result<(), codec::CodecError> {
        let bytes = frames.iter().map(|f| PUBLISH_BYTES + f.body.len()).sum();
        let Some(held) = Held::new(&self.0, bytes) else {
            self.0.stats.qos0_dropped_here.add(frames.len() as u64);
            return Ok(());
        };
        let mut events = Vec::new();
        let own = *self.0.incarnation.borrow();
        for frame in frames.into_iter().filter(|f| f.kind == FRAME_PUBLISH) {
            let Qos0Frame { owner, message, targets } = codec::decode(&frame.body)?;
            self.0.stats.qos0_received.inc();
            if own != Some(owner) {
                debug!(%from, %owner, "a QoS 0 message for another life of this node");
                continue;
            }
            events.extend(targets.into_iter().map(|target| NodeEvent::Deliver(target.delivery(&message))));
        }
        if events.is_empty() {
            return Ok(());
        }
        // Through the apply thread: the front end hears from no other.
        let (front, count) = (self.0.front.clone(), events.len() as u64);
        let job = Box::new(move |machine: &mut NodeMachine| {
            let _held = held;
            let applied = machine.applied();
            front.applied(AppliedRun { index: applied.index, time: applied.time, events });
        });
        if self.0.apply.submit(job).is_err() {
            self.0.stats.qos0_dropped_here.add(count);
        }
        Ok(())
    }
}

/// Serves the connections of purpose `QoS0`.
impl PeerService for Qos0Router {
    fn purpose(&self) -> Purpose {
        Purpose::QoS0
    }

    fn serve(self: Arc<Self>, from: NodeId, conn: PeerConn) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let (_sender, mut receiver) = conn.into_split();
            while let Ok(Some(frame)) = receiver.recv().await {
                let mut frames = vec![frame];
                while frames.len() < RECEIVED_AT_ONCE
                    && let Ok(Some(frame)) = receiver.try_recv()
                {
                    frames.push(frame);
                }
                if let Err(error) = self.receive(from, frames) {
                    warn!(%from, %error, "a QoS 0 message that does not decode");
                    return;
                }
            }
        })
    }
}

fn open_incarnations(machine: &NodeMachine) -> HashMap<Incarnation, NodeId> {
    machine.nodes().into_iter().filter(|n| n.up).filter_map(|n| Some((n.incarnation?, n.id))).collect()
}

fn publish_bytes(publish: &Publish) -> usize {
    PUBLISH_BYTES + publish.charge_bytes()
}

fn message_of(publish: Publish, now: ClusterTime) -> SharedMessage {
    Arc::new(Message {
        position: Position::ZERO,
        topic: publish.topic,
        qos: QoS::AtMostOnce,
        retain: false,
        published_at: now,
        expires_at: publish.expiry_s.map(|s| now.plus_secs(s)),
        properties: publish.properties,
        payload: publish.payload,
    })
}

impl Target {
    fn of(delivery: &Delivery) -> Self {
        Self { to: delivery.to, retain: delivery.retain, identifiers: delivery.identifiers.to_vec() }
    }

    fn delivery(self, message: &SharedMessage) -> Delivery {
        Delivery {
            to: self.to,
            seq: None,
            qos: QoS::AtMostOnce,
            retain: self.retain,
            identifiers: self.identifiers.into(),
            message: message.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
