//! Counters of the proposal path, for metrics. Only ever added to; nothing reads them to decide.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Its value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),* $(,)?) => {
        /// What the proposal path of this node has done since its process started.
        #[derive(Debug, Default)]
        pub struct StreamStats {
            $($(#[doc = $doc])+ pub $name: Counter,)*
        }

        impl StreamStats {
            /// Names, what is counted, and values now, in the order of their declaration.
            #[must_use]
            pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),+).trim_start(), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Commands that were taken.
    submitted,
    /// Commands that were refused, because too many wait or this node has no incarnation.
    busy,
    /// Commands that were withdrawn before they had a number.
    withdrawn,
    /// Settle commands that were merged into an earlier one of the same session.
    merged,
    /// Batches cut and numbered.
    batches,
    /// Commands in them.
    batch_commands,
    /// Bytes of them, encoded.
    batch_bytes,
    /// Commands that could not be encoded or sent, because they are too long (a limit of the front end is wrong).
    unencodable,
    /// Batches sent again.
    resent,
    /// Times that the state machine told of a gap and the stream was sent again.
    gaps,
    /// Times that nothing was applied for too long and the stream was sent again.
    stalls,
    /// Connections opened to a leader for the stream.
    links,
    /// Connections of the stream that the leader refused or that broke.
    links_lost,
    /// Batches of this node seen applied.
    batches_applied,
    /// Outcomes handed to the front end.
    outcomes,
    /// Commands whose outcome will never be told, because the incarnation was closed.
    abandoned,
    /// Incarnations of this node that started.
    incarnations_started,
    /// Incarnations of this node that were closed under it.
    incarnations_closed,
    /// Direct commands that were sent, repeats included.
    direct_sent,
    /// Batches that this node, as leader, took from others.
    intake_batches,
    /// Connections or questions of others that this node refused, because it does not lead.
    intake_refused,
    /// Batches that this node, as leader, refused, because its disk is behind.
    intake_busy,
    /// Frames of others that made no sense. The connection was closed, nothing was appended.
    intake_malformed,
    /// Ticks appended as leader.
    ticks,
    /// Incarnations of others declared lost, as leader.
    nodes_declared_lost,
    /// Times that this node lost contact with a leader that a majority backs.
    quorum_lost,
    /// QoS 0 publishes routed.
    qos0_routed,
    /// QoS 0 publishes dropped here, because the apply thread is behind.
    qos0_dropped_here,
    /// QoS 0 publishes not sent to one peer, because its queue is full or it cannot be reached.
    qos0_dropped_to_peer,
    /// QoS 0 publishes that came from peers.
    qos0_received,
}
