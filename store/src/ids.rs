//! Identities: what names a place in the log, a node, a session, a packet.
//!
//! None of these is ever a timestamp or random. A [`Position`] is where in the log something happened,
//! and everything that needs an identity that no restart, failover or restore may repeat (a message,
//! a session, an epoch, an incarnation) is named by the position that made it.

use std::fmt;
use std::num::NonZeroU16;

use bincode::{Decode, Encode};

/// Bits of a [`Position`] that count commands within one log entry.
const NUMBER_BITS: u32 = 20;

/// A Raft group. One exists now; every key and frame carries it so that more can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct GroupId(pub u16);

impl GroupId {
    /// The group that holds everything today.
    pub const MAIN: Self = Self(0);
}

/// A node, as Raft knows it. Allocated by the log, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `(log index, number within the entry)` in a u64: 44 bits of index, 20 bits of number.
///
/// Commands of a batch take the numbers 0, 1, 2, ... in order; what apply itself publishes in the same
/// entry (wills, copies of retained messages) goes on counting from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Position(u64);

impl Position {
    /// Highest number of one log entry.
    pub const NUMBER_MAX: u32 = (1 << NUMBER_BITS) - 1;
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// The `number`-th event of the entry at `index`.
    ///
    /// # Panics
    /// When either does not fit: batches are bounded far below [`Self::NUMBER_MAX`], and an index of
    /// 2^44 is 55 years of 10,000 entries a second.
    #[must_use]
    pub fn new(index: u64, number: u32) -> Self {
        assert!(
            index < 1 << (64 - NUMBER_BITS) && number <= Self::NUMBER_MAX,
            "position {index}.{number} out of range"
        );
        Self((index << NUMBER_BITS) | u64::from(number))
    }

    /// From its packed form (rows, frames).
    #[must_use]
    pub const fn from_u64(packed: u64) -> Self {
        Self(packed)
    }

    /// Its packed form.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Raft log index.
    #[must_use]
    pub const fn index(self) -> u64 {
        self.0 >> NUMBER_BITS
    }

    /// Number within the entry.
    #[must_use]
    pub const fn number(self) -> u32 {
        (self.0 & Self::NUMBER_MAX as u64) as u32
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.number())
    }
}

/// One life of a node: the position of its `NodeStarted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Incarnation(pub Position);

/// One connection of a session: the position of its CONNECT. Commands of an older epoch are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Epoch(pub Position);

/// One session, from the CONNECT that created it (its position) to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct SessionId(pub Position);

/// One group of a shared subscription, from the SUBSCRIBE of its first member to the end of its last: a position that
/// this SUBSCRIBE took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ShareId(pub Position);

macro_rules! displays_as_position {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
displays_as_position!(Incarnation, Epoch, SessionId, ShareId);

/// Number of a batch in its node incarnation's proposal stream: 1, 2, 3, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct BatchSeq(pub u64);

/// Number of a row in a session's queue: 0, 1, 2, ... over the session's whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct QueueSeq(pub u64);

impl QueueSeq {
    /// The packet identifier under which this row goes out, on whichever node and however often:
    /// `1 + seq mod 65535`. A window spans less than 65,535 rows, so no two rows in flight share one.
    #[must_use]
    pub fn packet_id(self) -> PacketId {
        let id = 1 + (self.0 % 65_535) as u16;
        PacketId(NonZeroU16::MIN.saturating_add(id - 1))
    }

    /// The row after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for QueueSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A packet identifier, never 0 [MQTT-2.2.1-3].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    /// `None` for 0.
    #[must_use]
    pub fn new(id: u16) -> Option<Self> {
        NonZeroU16::new(id).map(Self)
    }

    /// The last.
    pub const MAX: Self = Self(NonZeroU16::MAX);

    /// The one after it; after the last comes the first.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// The one `n` after it, around the end.
    #[must_use]
    pub fn plus(self, n: u16) -> Self {
        QueueSeq(u64::from(self.get()) - 1 + u64::from(n)).packet_id()
    }

    /// As on the wire.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// Cluster time in milliseconds. It comes from the log only: apply takes `max(previous, stamp)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ClusterTime(pub u64);

impl ClusterTime {
    /// Later by `seconds`.
    #[must_use]
    pub const fn plus_secs(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(seconds as u64 * 1000))
    }
}

/// MQTT quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// `None` above 2.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_identifiers_cycle_through_1_to_65535() {
        assert_eq!(QueueSeq(0).packet_id().get(), 1);
        assert_eq!(QueueSeq(65_534).packet_id().get(), 65_535);
        assert_eq!(QueueSeq(65_535).packet_id().get(), 1);
        assert_eq!(QueueSeq(u64::MAX).packet_id().get(), 1 + (u64::MAX % 65_535) as u16);
    }

    #[test]
    fn a_position_keeps_index_and_number_and_orders_by_both() {
        let p = Position::new(7, 3);
        assert_eq!((p.index(), p.number(), p.to_string().as_str()), (7, 3, "7.3"));
        assert!(Position::new(7, Position::NUMBER_MAX) < Position::new(8, 0));
    }
}
