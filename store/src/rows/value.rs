//! The values of rows, to the byte.
//!
//! Most are an envelope of kind `Row` ([`crate::codec`]) around a bincode body. The rows that every message
//! writes are fixed little-endian fields behind one version byte, because an envelope would be half of them:
//!
//! ```text
//! QueueRow     version u8 = 1 | flags u8 | position u64 | charge u32 | [expires_at u64] | [share u64 | message u8]
//!              | Subscription Identifiers u32 ...
//!              flags: bits 0-1 QoS, 2 RETAIN, 3 released, 4 the message has other rows (a references row),
//!              5 the message expires, and expires_at is there, 6 it was given by a shared group: share is there, and
//!              of the message bits 0-1 QoS, 2 RETAIN
//! CountersRow  version u8 = 1 | next_seq u64 | head u64 | rows u64 | bytes u64 | dropped u64 | expiring u64
//!              | [shared u64 | turn u64], when one of them is not 0
//! IdempotencyRow       version u8 = 1 | position u64 | came u64
//! IdempotencyOrderRow  version u8 = 1 | came u64 | user and key as in the key of kind 18
//! ```
//!
//! Rows of shared groups are in [`super::share`].

use std::sync::{Arc, LazyLock};

use bincode::{Decode, Encode};
use bytes::{BufMut, Bytes, BytesMut};

use super::{RowValue, RowsError, key};
use crate::access::{AclRule, User};
use crate::codec::{self, Enveloped, Kind, Payload, PayloadSource};
use crate::command::{NodeInfo, Setting, ShareStrategy, SubscribeOptions, Will};
use crate::ids::{ClusterTime, Epoch, Incarnation, Position, QoS, QueueSeq, SessionId, ShareId};
use crate::message::Message;

/// Version byte of the fixed rows.
pub(super) const FIXED_VERSION: u8 = 1;

/// Row format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// A row's value.
pub(crate) trait Value: Sized {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError>;
    fn from_bytes(bytes: &Bytes) -> Result<Self, String>;

    /// Decodes what stands at `key`.
    fn read(key: &[u8], bytes: &Bytes) -> Result<Self, RowsError> {
        Self::from_bytes(bytes).map_err(|reason| RowsError::Damaged { key: key::describe(key), reason })
    }
}

impl<T: Enveloped> Value for T {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        codec::encode(self)
    }
    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        codec::decode(bytes).map_err(|e| e.to_string())
    }
}

macro_rules! plain_rows {
    ($($name:ident),*) => {$(
        impl Enveloped for $name {
            const KIND: Kind = Kind::Row;
            fn payloads(&self, _: &mut dyn FnMut(&Payload)) {}
        }
    )*};
}
plain_rows!(
    AppliedRow,
    SessionRow,
    SubscriptionRow,
    NodeRow,
    SettingRow,
    ContinuationRow,
    User,
    AclRule,
    ShareStrategyRow
);

impl Enveloped for Message {
    const KIND: Kind = Kind::Message;
    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        f(&self.payload);
    }
}

impl Enveloped for WillRow {
    const KIND: Kind = Kind::Row;
    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        f(&self.will.payload);
    }
}

impl Enveloped for DelayedRow {
    const KIND: Kind = Kind::Row;
    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        f(&self.message.payload);
    }
}

/// Where in the log these rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct AppliedRow {
    /// Row format of everything here.
    pub format: u32,
    /// Index of the last applied entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Cluster time after it.
    pub time: ClusterTime,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SessionRow {
    /// Client Identifier; whoever finds the session by it shares it.
    pub client_id: Arc<str>,
    /// Latest CONNECT.
    pub epoch: Epoch,
    /// Incarnation it is connected to; kept when that was closed until the session is closed in its turn.
    pub owner: Option<Incarnation>,
    /// Session Expiry Interval in force, seconds.
    pub expiry_s: u32,
    /// Bound of its window.
    pub receive_maximum: u16,
    /// Its deliveries are rows; for ever as it was created.
    pub durable: bool,
    /// Rows below may have been sent on an earlier connection.
    pub sent_until: QueueSeq,
    /// When it ends; only while it is disconnected.
    pub expires_at: Option<ClusterTime>,
    /// User of the latest CONNECT; `None` for an anonymous one.
    pub user: Option<String>,
}

/// A will, from its CONNECT until it is published or dropped.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct WillRow {
    /// When it is published; `None` while connected.
    pub due_at: Option<ClusterTime>,
    /// What.
    pub will: Will,
}

/// A delayed publish, from its commit until it is published.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct DelayedRow {
    /// Client Identifier of the publisher: its own No Local subscriptions do not get it, whatever its session then.
    pub publisher: Option<String>,
    /// Message Expiry Interval in seconds, counted from its publication.
    pub expiry_s: Option<u32>,
    /// The message with its real topic, and the position of its PUBLISH.
    pub message: Message,
}

/// A subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SubscriptionRow {
    /// Subscription Identifier.
    pub identifier: Option<u32>,
    /// Options.
    pub options: SubscribeOptions,
}

impl SubscriptionRow {
    /// Stands in the trie for a shared group, whose members have options of their own.
    pub(crate) const OF_A_SHARE: Self = Self {
        identifier: None,
        options: SubscribeOptions {
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        },
    };
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeRow {
    /// Name and addresses.
    pub info: NodeInfo,
    /// The join token that it was allocated for; 0 for the first node.
    pub token: u128,
    /// Nonce of its last `NodeStarted`.
    pub nonce: u128,
    /// Its last incarnation.
    pub incarnation: Option<Incarnation>,
    /// Whether that is open.
    pub is_up: bool,
    /// Wall clock of its last start, milliseconds since 1970.
    pub wall_ms: u64,
}

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SettingRow(pub Setting);

/// How the members of a shared group are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShareStrategyRow(pub ShareStrategy);

/// Work that later entries go on with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ContinuationRow {
    /// The rows of a session that has ended are removed.
    Sweep {
        /// Which.
        session: SessionId,
    },
    /// Retained messages go to a new subscription.
    Retained {
        /// To; it ends with the session, not with the connection that asked.
        session: SessionId,
        /// The subscription.
        filter: String,
        /// With what.
        subscription: SubscriptionRow,
        /// Position of the SUBSCRIBE: newer values are skipped.
        until: Position,
        /// First topic that is not looked at yet.
        next_topic: String,
    },
    /// The marks of a cursor that has ended are removed.
    Marks,
    /// The messages that waited in a shared group that is gone are removed.
    ShareSweep {
        /// Which.
        share: ShareId,
    },
}

/// A message in a session's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRow {
    /// QoS of the delivery, 1 or 2.
    pub qos: QoS,
    /// RETAIN of the delivery.
    pub retain: bool,
    /// PUBREC was applied: only PUBREL goes out.
    pub released: bool,
    /// Other queue rows point to the message; a references row counts them.
    pub is_shared: bool,
    /// The message row.
    pub position: Position,
    /// Bytes charged to the session.
    pub charge: u32,
    /// The message's, so that room is made without reading messages.
    pub expires_at: Option<ClusterTime>,
    /// The shared group that gave it.
    pub given: Option<Given>,
    /// Subscription Identifiers.
    pub identifiers: Arc<[u32]>,
}

/// Where a row of a shared group comes from, and what the message is for whoever gets it next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The group.
    pub share: ShareId,
    /// QoS of the message.
    pub qos: QoS,
    /// RETAIN of the message.
    pub retain: bool,
}

impl Given {
    fn message_flags(self) -> u8 {
        self.qos as u8 | if self.retain { FLAG_RETAIN } else { 0 }
    }
}

/// Bytes of a queue row without expiry and Subscription Identifiers.
const QUEUE_ROW_LEN: usize = 14;
/// Where its flags stand.
const QUEUE_FLAGS_AT: usize = 1;
pub(super) const FLAG_RETAIN: u8 = 1 << 2;
const FLAG_RELEASED: u8 = 1 << 3;
pub(super) const FLAG_SHARED: u8 = 1 << 4;
pub(super) const FLAG_EXPIRES: u8 = 1 << 5;
const FLAG_GIVEN: u8 = 1 << 6;
/// Bits of the flags that this build knows, QoS among them.
const FLAGS_KNOWN: u8 = 3 | FLAG_RETAIN | FLAG_RELEASED | FLAG_SHARED | FLAG_EXPIRES | FLAG_GIVEN;

impl QueueRow {
    /// Decodes a row and leaves its Subscription Identifiers where they are.
    pub(crate) fn split(bytes: &[u8]) -> Result<(Self, &[[u8; 4]]), String> {
        let (head, rest) = bytes.split_at_checked(QUEUE_ROW_LEN).ok_or("a queue row has at least 14 bytes")?;
        let [version, flags, p0, p1, p2, p3, p4, p5, p6, p7, c0, c1, c2, c3] = *head else {
            return Err("a queue row has at least 14 bytes".into());
        };
        if version != FIXED_VERSION || flags & !FLAGS_KNOWN != 0 {
            return Err(format!("queue row version {version}, flags {flags:#x} are not known to this build"));
        }
        let qos = QoS::from_u8(flags & 3).ok_or("QoS 3")?;
        let (expires_at, rest) = if flags & FLAG_EXPIRES == 0 {
            (None, rest)
        } else {
            let (at, rest) = rest.split_first_chunk().ok_or("a queue row ends within its expiry")?;
            (Some(ClusterTime(u64::from_le_bytes(*at))), rest)
        };
        let (given, rest) = if flags & FLAG_GIVEN == 0 {
            (None, rest)
        } else {
            let (share, rest) = rest.split_first_chunk().ok_or("a queue row ends within its shared group")?;
            let (message, rest) = rest.split_first().ok_or("a queue row ends within its shared group")?;
            let qos = QoS::from_u8(message & 3).filter(|_| message & !(3 | FLAG_RETAIN) == 0).ok_or("unknown flags")?;
            let share = ShareId(Position::from_u64(u64::from_le_bytes(*share)));
            (Some(Given { share, qos, retain: message & FLAG_RETAIN != 0 }), rest)
        };
        let (identifiers, []) = rest.as_chunks::<4>() else {
            return Err("a queue row ends within a Subscription Identifier".into());
        };
        let row = Self {
            qos,
            retain: flags & FLAG_RETAIN != 0,
            released: flags & FLAG_RELEASED != 0,
            is_shared: flags & FLAG_SHARED != 0,
            position: Position::from_u64(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            charge: u32::from_le_bytes([c0, c1, c2, c3]),
            expires_at,
            given,
            identifiers: no_identifiers(),
        };
        Ok((row, identifiers))
    }

    /// Decodes a whole row.
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, String> {
        let (row, identifiers) = Self::split(bytes)?;
        let identifiers = shared_identifiers(identifiers.iter().map(|id| u32::from_le_bytes(*id)));
        Ok(Self { identifiers, ..row })
    }

    /// `bytes` of a row, marked released.
    pub(crate) fn released(bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::from(bytes);
        if let Some(flags) = out.get_mut(QUEUE_FLAGS_AT) {
            *flags |= FLAG_RELEASED;
        }
        out.freeze()
    }
}

/// No Subscription Identifiers: the common case, shared by all.
pub(crate) fn no_identifiers() -> Arc<[u32]> {
    static NONE: LazyLock<Arc<[u32]>> = LazyLock::new(|| Arc::from([]));
    NONE.clone()
}

/// Subscription Identifiers, to be shared; of the common case, none, nothing is allocated.
pub(crate) fn shared_identifiers(identifiers: impl ExactSizeIterator<Item = u32>) -> Arc<[u32]> {
    if identifiers.len() == 0 { no_identifiers() } else { identifiers.collect() }
}

impl QueueRow {
    fn encoded_len(&self) -> usize {
        let expiry = if self.expires_at.is_some() { 8 } else { 0 };
        let given = if self.given.is_some() { 9 } else { 0 };
        QUEUE_ROW_LEN + expiry + given + 4 * self.identifiers.len()
    }

    /// As it is written: of most rows in place.
    pub(crate) fn to_value(&self) -> RowValue {
        RowValue::written(self.encoded_len(), |room| self.write(room))
    }

    fn write(&self, mut out: &mut [u8]) {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        out.put_u8(FIXED_VERSION);
        out.put_u8(
            self.qos as u8
                | flag(self.retain, FLAG_RETAIN)
                | flag(self.released, FLAG_RELEASED)
                | flag(self.is_shared, FLAG_SHARED)
                | flag(self.expires_at.is_some(), FLAG_EXPIRES)
                | flag(self.given.is_some(), FLAG_GIVEN),
        );
        out.put_u64_le(self.position.as_u64());
        out.put_u32_le(self.charge);
        if let Some(at) = self.expires_at {
            out.put_u64_le(at.0);
        }
        if let Some(given) = self.given {
            out.put_u64_le(given.share.0.as_u64());
            out.put_u8(given.message_flags());
        }
        for identifier in self.identifiers.iter() {
            out.put_u32_le(*identifier);
        }
    }
}

/// Counters of a session's queue; written once a run, not once a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountersRow {
    /// Number of the next row.
    pub next_seq: QueueSeq,
    /// No row is below.
    pub head: QueueSeq,
    /// Unsettled rows.
    pub rows: u64,
    /// Bytes charged for them.
    pub bytes: u64,
    /// Messages dropped because the queue was full.
    pub dropped: u64,
    /// Unsettled rows whose message expires: without any, no room can be made under the policy `reject`.
    pub expiring: u64,
    /// Unsettled rows that shared groups gave.
    pub shared: u64,
    /// The shared group that was served last when this session had room for what waits.
    pub turn: ShareId,
}

impl Default for CountersRow {
    fn default() -> Self {
        Self {
            next_seq: QueueSeq(0),
            head: QueueSeq(0),
            rows: 0,
            bytes: 0,
            dropped: 0,
            expiring: 0,
            shared: 0,
            turn: ShareId(Position::ZERO),
        }
    }
}

impl Value for CountersRow {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        let mut out = BytesMut::with_capacity(65);
        out.put_u8(FIXED_VERSION);
        for n in [self.next_seq.0, self.head.0, self.rows, self.bytes, self.dropped, self.expiring] {
            out.put_u64_le(n);
        }
        if self.shared > 0 || self.turn.0 > Position::ZERO {
            out.put_u64_le(self.shared);
            out.put_u64_le(self.turn.0.as_u64());
        }
        Ok(out.freeze())
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        let Some((&FIXED_VERSION, fields)) = bytes.split_first() else {
            return Err("counters of a version not known to this build".into());
        };
        let (fields, []) = fields.as_chunks::<8>() else {
            return Err("counters end within a number".into());
        };
        let n = u64::from_le_bytes;
        let ([next_seq, head, rows, bytes, dropped, expiring], shared, turn) = match *fields {
            [a, b, c, d, e, f] => ([a, b, c, d, e, f], 0, 0),
            [a, b, c, d, e, f, shared, turn] => ([a, b, c, d, e, f], n(shared), n(turn)),
            _ => return Err("counters are six or eight numbers".into()),
        };
        Ok(Self {
            next_seq: QueueSeq(n(next_seq)),
            head: QueueSeq(n(head)),
            rows: n(rows),
            bytes: n(bytes),
            dropped: n(dropped),
            expiring: n(expiring),
            shared,
            turn: ShareId(Position::from_u64(turn)),
        })
    }
}

/// An idempotency key in the window: what was published under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyRow {
    /// Where it was published.
    pub position: Position,
    /// Cluster time at which it came.
    pub came: ClusterTime,
}

impl Value for IdempotencyRow {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        let mut out = BytesMut::with_capacity(17);
        out.put_u8(FIXED_VERSION);
        out.put_u64_le(self.position.as_u64());
        out.put_u64_le(self.came.0);
        Ok(out.freeze())
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        let Some((&FIXED_VERSION, fields)) = bytes.split_first() else {
            return Err("an idempotency key of a version not known to this build".into());
        };
        let ([position, came], []) = fields.as_chunks::<8>() else {
            return Err("an idempotency key has two numbers".into());
        };
        let n = u64::from_le_bytes;
        Ok(Self { position: Position::from_u64(n(*position)), came: ClusterTime(n(*came)) })
    }
}

/// An idempotency key's place in the order of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyOrderRow {
    /// Cluster time at which it came.
    pub came: ClusterTime,
    /// User and key ([`key::idempotency_name`]).
    pub name: Bytes,
}

impl Value for IdempotencyOrderRow {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        let mut out = BytesMut::with_capacity(9 + self.name.len());
        out.put_u8(FIXED_VERSION);
        out.put_u64_le(self.came.0);
        out.put_slice(&self.name);
        Ok(out.freeze())
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        let Some((&FIXED_VERSION, fields)) = bytes.split_first() else {
            return Err("an idempotency key of a version not known to this build".into());
        };
        let Some((came, name)) = fields.split_first_chunk() else {
            return Err("an idempotency key ends within its time".into());
        };
        Ok(Self { came: ClusterTime(u64::from_le_bytes(*came)), name: bytes.slice_ref(name) })
    }
}

/// A bare number: references (kind 7), dedup (kind 12), the next node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumberRow(pub(crate) u64);

impl Value for NumberRow {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }
    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        let bytes: [u8; 8] = bytes.as_ref().try_into().map_err(|_| "a number has eight bytes")?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_rows_come_back_as_they_were() {
        let given = Some(Given { share: ShareId(Position::new(5, 6)), qos: QoS::ExactlyOnce, retain: true });
        for (expires_at, given, identifiers) in [
            (None, None, vec![]),
            (Some(ClusterTime(9)), None, vec![]),
            (None, None, vec![1, 268_435_455]),
            (None, given, vec![]),
            (Some(ClusterTime(9)), given, vec![1, 2]),
        ] {
            let row = QueueRow {
                qos: QoS::ExactlyOnce,
                retain: true,
                released: false,
                is_shared: true,
                position: Position::new(7, 9),
                charge: 300,
                expires_at,
                given,
                identifiers: identifiers.into(),
            };
            let bytes = row.to_value().to_bytes().unwrap();
            assert_eq!(QueueRow::from_slice(&bytes).unwrap(), row);
            let released = QueueRow { released: true, ..row };
            assert_eq!(QueueRow::released(&bytes), released.to_value().to_bytes().unwrap());
        }
        let counters = CountersRow {
            next_seq: QueueSeq(9),
            head: QueueSeq(3),
            rows: 5,
            bytes: 1000,
            dropped: 2,
            expiring: 1,
            ..CountersRow::default()
        };
        let shared = CountersRow { shared: 3, turn: ShareId(Position::new(5, 6)), ..counters };
        for counters in [counters, shared, CountersRow { shared: 0, ..shared }] {
            assert_eq!(CountersRow::from_bytes(&counters.to_bytes().unwrap()).unwrap(), counters);
        }
    }

    #[test]
    fn cut_or_foreign_bytes_are_refused() {
        let row = QueueRow::from_slice(&Bytes::from_static(&[1; 13]));
        assert!(row.is_err());
        assert!(QueueRow::from_slice(&Bytes::from_static(&[1; 15])).is_err());
        assert!(QueueRow::from_slice(&Bytes::from_static(&[2; 14])).is_err());
        assert!(QueueRow::from_slice(&Bytes::from_static(&[1, 0x21, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])).is_err());
        assert!(QueueRow::from_slice(&Bytes::from_static(&[1, 0x81, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])).is_err());
        assert!(CountersRow::from_bytes(&Bytes::from_static(&[1; 41])).is_err());
        assert!(NumberRow::from_bytes(&Bytes::from_static(&[1; 7])).is_err());
    }
}
