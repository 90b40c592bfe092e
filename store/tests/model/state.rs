//! What the reference model remembers. Everything is a plain map; nothing is indexed, cached or lazy.

use std::collections::{BTreeMap, BTreeSet};

use quorate_store::command::{NodeInfo, QueueFullPolicy, SessionRef, SubscribeOptions, Will};
use quorate_store::ids::{Epoch, Incarnation, NodeId, Position, QoS, SessionId};

/// One life of a node.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) node: NodeId,
    pub(crate) last_seq: u64,
    pub(crate) closed: bool,
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) token: u128,
    pub(crate) info: NodeInfo,
    pub(crate) nonce: Option<u128>,
    pub(crate) incarnation: Option<Incarnation>,
}

/// A message. The payload tells messages of a test apart; the position is `None` where the DESIGN leaves
/// it to the machine (wills, copies of retained messages).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Msg {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) expires_at: Option<u64>,
    pub(crate) position: Option<Position>,
}

/// A message in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) msg: Msg,
    pub(crate) qos: QoS,
    /// `None` where overlapping subscriptions disagree on Retain As Published.
    pub(crate) retain: Option<bool>,
    pub(crate) identifiers: BTreeSet<u32>,
    pub(crate) released: bool,
    /// It expired before it may have been sent: the machine may have removed it, or not.
    pub(crate) may_be_gone: bool,
    /// Added by the entry that is being applied: its place among the others of the entry is not compared.
    pub(crate) fresh: bool,
    pub(crate) charge: u64,
    /// The group that gave it, by the model's number.
    pub(crate) given: Option<u64>,
    /// Its connection has ended in this entry: it may have returned, or not.
    pub(crate) may_return: bool,
}

/// A subscription.
#[derive(Clone, Debug)]
pub(crate) struct Sub {
    pub(crate) options: SubscribeOptions,
    pub(crate) identifier: Option<u32>,
}

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) client_id: String,
    pub(crate) epoch: Epoch,
    /// Incarnation it is connected to.
    pub(crate) owner: Option<Incarnation>,
    pub(crate) expiry_s: u32,
    pub(crate) durable: bool,
    pub(crate) receive_maximum: u16,
    pub(crate) will: Option<Will>,
    pub(crate) will_due: Option<u64>,
    pub(crate) expires_at: Option<u64>,
    pub(crate) inbound: BTreeSet<u16>,
    pub(crate) rows: BTreeMap<u64, Row>,
    pub(crate) tail: u64,
    /// Rows below `.0` may have been sent before, rows from `.1` on have not; where the DESIGN does not say
    /// which, both numbers differ.
    pub(crate) sent: (u64, u64),
    pub(crate) subs: BTreeMap<String, Sub>,
    pub(crate) dropped: u64,
    pub(crate) user: Option<String>,
}

/// A publish that is remembered by its idempotency key.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) user: Option<String>,
    pub(crate) key: String,
    pub(crate) position: Position,
    pub(crate) came: u64,
}

impl Session {
    pub(crate) fn reference(&self) -> SessionRef {
        SessionRef { session: self.id, epoch: self.epoch }
    }

    /// The first number that the window has certainly not reached (`.0`), and the first that it cannot have
    /// reached (`.1`). They differ because "owed PUBRELs are resent outside the quota" may be read as: a
    /// released row takes no room in the window.
    pub(crate) fn window_end(&self) -> (u64, u64) {
        let room = usize::from(self.receive_maximum);
        let head = self.rows.keys().next().copied().unwrap_or(self.tail);
        let end = |skip: &dyn Fn(&Row) -> bool| {
            let mut used = 0;
            let mut end = head;
            for (seq, row) in self.rows.range(..head + 65_535) {
                if !skip(row) {
                    used += 1;
                }
                if used > room {
                    break;
                }
                end = seq + 1;
            }
            end
        };
        (end(&|_| false), end(&|row| row.released || row.may_be_gone))
    }

    /// First number whose row was certainly not sent, and first that cannot have been.
    pub(crate) fn maybe_sent_end(&self) -> (u64, u64) {
        if self.owner.is_some() {
            let (low, high) = self.window_end();
            (low.max(self.sent.0), high.max(self.sent.1))
        } else {
            self.sent
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.rows.values().map(|row| row.charge).sum()
    }
}

/// Replicated settings, with the defaults of the DESIGN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) queue_bytes_max: u64,
    pub(crate) policy: QueueFullPolicy,
    pub(crate) session_expiry_max: u32,
    pub(crate) keys_max: u64,
    pub(crate) key_window_s: u32,
    pub(crate) delay_max: u32,
    pub(crate) subscriptions_max: usize,
}

/// A publish that waits for its time.
#[derive(Clone, Debug)]
pub(crate) struct Later {
    pub(crate) publisher: Option<String>,
    pub(crate) expiry_s: Option<u32>,
    pub(crate) msg: Msg,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_bytes_max: 1 << 30,
            policy: QueueFullPolicy::Reject,
            session_expiry_max: 7 * 24 * 3600,
            keys_max: 1_000_000,
            key_window_s: 24 * 3600,
            delay_max: 4_294_967,
            subscriptions_max: 65_536,
        }
    }
}
