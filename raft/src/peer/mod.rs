//! Framed connections between the nodes: who may speak to whom, about what, in frames of bounded size.
//!
//! ```text
//! frame   len u32 LE   bytes after this field: 4 + body
//!         version u8   FRAME_VERSION
//!         kind u8      meaning is the purpose's; 0..=2 are the hello's
//!         group u16 LE Raft group
//!         body
//! ```
//!
//! A connection serves one [`Purpose`]. It begins with a hello in which both sides say which cluster and
//! node they are; a wrong one is refused with a sentence that says what, why and what to do. This module
//! knows nothing of what the frames mean.

mod conn;
mod frame;
mod hello;
mod listener;
mod pool;
mod socket;
mod tls;
mod transport;

pub(crate) use conn::{PeerConn, PeerReceiver, PeerSender};
pub(crate) use frame::{FRAME_BODY_BYTES_MAX, Frame};
pub(crate) use hello::LocalPeer;
pub(crate) use listener::{PeerListener, PeerService};
pub(crate) use pool::{AddressBook, PeerPool, dial_address};
pub use tls::PeerTls;
pub(crate) use transport::Tcp;
pub use transport::{Caller, PeerAcceptor, PeerStream, PeerTransport};

/// What a connection is for. Ordinals are on the wire: only appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Raft messages.
    Raft = 1,
    /// Batches on their way to the leader.
    Proposals = 2,
    /// QoS 0 publishes.
    QoS0 = 3,
    /// Snapshot files.
    Snapshot = 4,
    /// Joining, reads, everything rare.
    Control = 5,
}

impl Purpose {
    /// `None` for one that this build does not know.
    pub(crate) fn from_u8(ordinal: u8) -> Option<Self> {
        match ordinal {
            1 => Some(Self::Raft),
            2 => Some(Self::Proposals),
            3 => Some(Self::QoS0),
            4 => Some(Self::Snapshot),
            5 => Some(Self::Control),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
