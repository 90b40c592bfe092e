//! What this node's front end is told: outcomes of its commands, deliveries, disconnections.
//!
//! Fed from the apply thread only, in log order. Whoever implements [`NodeEffects`] must never block:
//! the whole node applies nothing meanwhile.

use quorate_store::command::SessionRef;
use quorate_store::effect::{Delivery, KickReason, Outcome};
use quorate_store::ids::{ClusterTime, Incarnation, QueueSeq};

/// Which request of which connection an outcome answers. Opaque here; `generation` lets the front end
/// reuse slots without a late answer hitting the wrong connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Front-end worker.
    pub worker: u16,
    /// Connection slot of that worker.
    pub slot: u32,
    /// Which use of the slot.
    pub generation: u32,
    /// Which request of the connection.
    pub request: u64,
}

/// One thing that the log says about this node's clients.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// What became of a submitted command.
    Outcome {
        /// Whose.
        ticket: Ticket,
        /// What.
        outcome: Outcome,
    },
    /// Send this to a connection.
    Deliver(Delivery),
    /// A row that was not sent is gone: do not send it any more.
    Withdraw {
        /// Which connection.
        from: SessionRef,
        /// Which row.
        seq: QueueSeq,
    },
    /// Disconnect this connection.
    Kick {
        /// Which.
        from: SessionRef,
        /// Why.
        reason: KickReason,
    },
}

/// What one applied run of log entries means for this node, in log order.
#[derive(Clone, Debug)]
pub struct AppliedRun {
    /// Last log index of the run.
    pub index: u64,
    /// Cluster time after it.
    pub time: ClusterTime,
    /// In log order.
    pub events: Vec<NodeEvent>,
}

/// Implemented by the front end; called from the apply thread, must never block.
pub trait NodeEffects: Send + Sync + 'static {
    /// A run of entries was applied and its rows are readable.
    fn applied(&self, run: AppliedRun);
    /// This node has a (new) incarnation: clients may connect.
    fn incarnation_started(&self, incarnation: Incarnation);
    /// The incarnation is over: disconnect all clients; their tickets will never be answered.
    fn incarnation_closed(&self, incarnation: Incarnation);
}
