//! The whole key space.
//!
//! ```text
//! key = group u16 | kind u8 | rest            integers big endian, so that keys sort as numbers
//! ```
//!
//! | kind | rest | value ([`super::value`]) |
//! |---|---|---|
//! | 1 meta | name u8 | see [`MetaName`] |
//! | 2 session | session u64 | `SessionRow` |
//! | 3 counters | session u64 | `CountersRow` |
//! | 4 subscription | session u64, filter UTF-8 | `SubscriptionRow` |
//! | 5 queue | session u64, seq u64 | `QueueRow` |
//! | 6 message | position u64 | [`crate::message::Message`] |
//! | 7 references | position u64 | u64: queue rows that point to the message; absent means one |
//! | 8 inbound | session u64, packet id u16 | position u64 of the QoS 2 PUBLISH that waits for its PUBREL |
//! | 9 retained | topic UTF-8 | [`crate::message::Message`] |
//! | 10 will | session u64 | `WillRow` |
//! | 11 node | node u64 | `NodeRow` |
//! | 12 dedup | incarnation u64 | u64: last applied batch of an open incarnation |
//! | 13 setting | ordinal u8 | [`crate::command::Setting`] |
//! | 14 continuation | position u64 | `ContinuationRow` |
//! | 15 continuation mark | continuation u64, topic UTF-8 | empty: this topic's retained value is delivered |
//! | 16 shared group | share u64 | `ShareRow` |
//! | 17 group queue | share u64, position u64 | `WaitingRow` |
//! | 18 idempotency key | user: u32 (0 anonymous, else its length + 1) and UTF-8; key UTF-8 | `IdempotencyRow` |
//! | 19 idempotency order | position u64 | `IdempotencyOrderRow` |
//! | 20 delayed | due u64, position u64 of the PUBLISH | `DelayedRow` |
//! | 21 exclusive | filter UTF-8, without `$exclusive/` | session u64 that holds it |
//! | 22 user | name UTF-8 | [`crate::access::User`] |
//! | 23 ACL rule | number u32 | [`crate::access::AclRule`] |
//! | 24 share strategy | filter UTF-8, `$share/name/filter` | `ShareStrategyRow` |
//!
//! Ordinals are on disk: kept for ever, only appended.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Bound;

use crate::ids::{ClusterTime, GroupId, Incarnation, NodeId, PacketId, Position, QueueSeq, SessionId, ShareId};

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RowKind {
    /// One of [`MetaName`].
    Meta = 1,
    /// A session.
    Session = 2,
    /// A session's sequence counters.
    Counters = 3,
    /// A subscription.
    Subscription = 4,
    /// A message queued for a session.
    Queue = 5,
    /// A message, once whatever the fan-out.
    Message = 6,
    /// How many queue rows point to a message.
    References = 7,
    /// An inbound QoS 2 packet identifier.
    Inbound = 8,
    /// A retained message.
    Retained = 9,
    /// A will.
    Will = 10,
    /// A node.
    Node = 11,
    /// The last batch of a proposal stream.
    Dedup = 12,
    /// A replicated setting.
    Setting = 13,
    /// Work that later entries go on with.
    Continuation = 14,
    /// Progress of such work, topic by topic.
    ContinuationMark = 15,
    /// A group of a shared subscription.
    Share = 16,
    /// A message that waits for a member of such a group with room.
    ShareQueue = 17,
    /// An idempotency key, by user.
    Idempotency = 18,
    /// Idempotency keys in the order in which they came.
    IdempotencyOrder = 19,
    /// A delayed publish.
    Delayed = 20,
    /// Which session holds an exclusive subscription.
    Exclusive = 21,
    /// A user.
    User = 22,
    /// An ACL rule.
    AclRule = 23,
    /// How members of a shared group are chosen.
    ShareStrategy = 24,
}

/// The rows of kind meta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MetaName {
    /// `AppliedRow`: where in the log these rows are, cluster time, format version.
    Applied = 1,
    /// Opaque bytes of the Raft layer (its membership).
    Raft = 2,
    /// u64: the next node id.
    NextNode = 3,
    /// u64: position of the continuation that was advanced last: the next in order comes first.
    Served = 4,
}

/// Bytes of a key that need no memory of their own: all but topics and filters.
const INLINE_LEN: usize = 22;

/// A key.
#[derive(Clone)]
pub struct Key(Bytes);

#[derive(Clone)]
enum Bytes {
    Inline(u8, [u8; INLINE_LEN]),
    Heap(Box<[u8]>),
}

impl Key {
    /// Only group and kind: the first key of the kind.
    #[must_use]
    pub fn kind(kind: RowKind) -> Self {
        Self::with(kind, &[])
    }

    /// A key that was encoded before.
    pub(crate) fn from_encoded(bytes: &[u8]) -> Self {
        Self::of(bytes, &[])
    }

    fn with(kind: RowKind, rest: &[u8]) -> Self {
        let [g0, g1] = GroupId::MAIN.0.to_be_bytes();
        Self::of(&[g0, g1, kind as u8], rest)
    }

    fn and(&self, rest: &[u8]) -> Self {
        Self::of(self.as_bytes(), rest)
    }

    fn of(head: &[u8], rest: &[u8]) -> Self {
        let len = head.len() + rest.len();
        let mut inline = [0; INLINE_LEN];
        if let Some(room) = inline.get_mut(..len)
            && let Ok(short) = u8::try_from(len)
        {
            let (first, second) = room.split_at_mut(head.len());
            first.copy_from_slice(head);
            second.copy_from_slice(rest);
            return Self(Bytes::Inline(short, inline));
        }
        Self(Bytes::Heap([head, rest].concat().into_boxed_slice()))
    }

    /// The first key that does not begin with this one.
    #[must_use]
    pub fn end(&self) -> Vec<u8> {
        let mut end = self.as_bytes().to_vec();
        while let Some(last) = end.last_mut() {
            if *last < u8::MAX {
                *last += 1;
                break;
            }
            end.pop();
        }
        end
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Bytes::Heap(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Self::of(bytes, &[])
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A short key as numbers, in the order of its bytes: what follows its end is zero.
fn numbers(bytes: &[u8; INLINE_LEN]) -> Option<(u128, u64)> {
    Some((u128::from_be_bytes(*bytes.first_chunk()?), u64::from_be_bytes(*bytes.last_chunk()?)))
}

/// As bytes: the order in which the database has them. Short keys, of which maps are full, are compared as numbers: that
/// takes a third of the time.
impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Bytes::Inline(len, bytes), Bytes::Inline(other_len, other)) => {
                numbers(bytes).cmp(&numbers(other)).then(len.cmp(other_len))
            }
            _ => self.as_bytes().cmp(other.as_bytes()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(self.as_bytes()))
    }
}

/// Length of a key that is a kind and an id.
pub(super) const ID_LEN: usize = HEAD_LEN + 8;
/// Length of a key of a queue.
pub(super) const QUEUE_LEN: usize = ID_LEN + 8;
const HEAD_LEN: usize = 3;

/// What a key is made of, where it pays to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// Kind and id, of a kind that is asked for by ids only.
    Id(u8, u64),
    /// Kind, whose queue, and the place in it.
    Queue(u8, u64, u64),
    /// Anything else.
    Other,
}

/// What a range of keys lies in, where it pays to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// These places of one queue.
    Queue(u8, u64, (Bound<u64>, Bound<u64>)),
    /// Nothing that is [`Parts::Id`] or [`Parts::Queue`].
    Others,
    /// All, perhaps.
    Any,
}

const fn is_id(kind: u8) -> bool {
    kind == RowKind::Session as u8
        || kind == RowKind::Counters as u8
        || kind == RowKind::Message as u8
        || kind == RowKind::References as u8
}

const fn is_queue(kind: u8) -> bool {
    kind == RowKind::Queue as u8 || kind == RowKind::ShareQueue as u8
}

/// Kind and rest of a key.
fn split(key: &[u8]) -> Option<(u8, &[u8])> {
    let ([g0, g1, kind], rest) = key.split_first_chunk::<HEAD_LEN>()?;
    ([*g0, *g1] == GroupId::MAIN.0.to_be_bytes()).then_some((*kind, rest))
}

/// At most 8 bytes, as if zeros followed.
fn padded(bytes: &[u8]) -> Option<u64> {
    let mut padded = [0; 8];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_be_bytes(padded))
}

pub(super) fn parts(key: &[u8]) -> Parts {
    let known = || {
        let (kind, rest) = split(key)?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let id = u64::from_be_bytes(*id);
        if rest.is_empty() && is_id(kind) {
            return Some(Parts::Id(kind, id));
        }
        let seq = rest.try_into().ok().filter(|_| is_queue(kind))?;
        Some(Parts::Queue(kind, id, u64::from_be_bytes(seq)))
    };
    known().unwrap_or(Parts::Other)
}

pub(super) fn of_id(kind: u8, id: u64) -> Key {
    let [g0, g1] = GroupId::MAIN.0.to_be_bytes();
    Key::of(&[g0, g1, kind], &id.to_be_bytes())
}

pub(super) fn of_queue(kind: u8, queue: u64, seq: u64) -> Key {
    of_id(kind, queue).and(&seq.to_be_bytes())
}

/// Where the keys from `from` to before `to` are.
pub(super) fn range(from: &[u8], to: &[u8]) -> Range {
    let one_queue = || {
        let (kind, rest) = split(from).filter(|(kind, _)| is_queue(*kind))?;
        let (queue, rest) = rest.split_first_chunk::<8>()?;
        let queue = u64::from_be_bytes(*queue);
        let prefix = of_id(kind, queue);
        let until = match to.strip_prefix(prefix.as_bytes()) {
            Some(rest) => Bound::Excluded(padded(rest)?),
            None => (to == prefix.end()).then_some(Bound::Unbounded)?,
        };
        Some(Range::Queue(kind, queue, (Bound::Included(padded(rest)?), until)))
    };
    let others = || {
        let (first, _) = split(from)?;
        let last = match split(to)? {
            (last, []) => last.checked_sub(1)?,
            (last, _) => last,
        };
        let is_other = |kind: u8| !is_id(kind) && !is_queue(kind);
        (first..=last).all(is_other).then_some(Range::Others)
    };
    one_queue().or_else(others).unwrap_or(Range::Any)
}

/// Kind 1.
#[must_use]
pub fn meta(name: MetaName) -> Key {
    Key::with(RowKind::Meta, &[name as u8])
}

/// Kinds 2, 3, 4, 5, 8, 10: of one session; for 4, 5 and 8 this is the prefix of all its rows.
#[must_use]
pub fn of_session(kind: RowKind, session: SessionId) -> Key {
    Key::with(kind, &session.0.as_u64().to_be_bytes())
}

/// Kind 4.
#[must_use]
pub fn subscription(session: SessionId, filter: &str) -> Key {
    of_session(RowKind::Subscription, session).and(filter.as_bytes())
}

/// Kind 5.
#[must_use]
pub fn queue(session: SessionId, seq: QueueSeq) -> Key {
    of_session(RowKind::Queue, session).and(&seq.0.to_be_bytes())
}

/// Kinds 6, 7, 14, 15, 16, 17, 19: named by a position; for 15 and 17 this is the prefix of all its rows.
#[must_use]
pub fn of_position(kind: RowKind, position: Position) -> Key {
    Key::with(kind, &position.as_u64().to_be_bytes())
}

/// Kind 8.
#[must_use]
pub fn inbound(session: SessionId, packet_id: PacketId) -> Key {
    of_session(RowKind::Inbound, session).and(&packet_id.get().to_be_bytes())
}

/// Kind 9.
#[must_use]
pub fn retained(topic: &str) -> Key {
    Key::with(RowKind::Retained, topic.as_bytes())
}

/// Kind 11.
#[must_use]
pub fn node(node: NodeId) -> Key {
    Key::with(RowKind::Node, &node.0.to_be_bytes())
}

/// Kind 12.
#[must_use]
pub fn dedup(incarnation: Incarnation) -> Key {
    Key::with(RowKind::Dedup, &incarnation.0.as_u64().to_be_bytes())
}

/// Kind 13.
#[must_use]
pub fn setting(ordinal: u8) -> Key {
    Key::with(RowKind::Setting, &[ordinal])
}

/// Kind 15.
#[must_use]
pub fn continuation_mark(continuation: Position, topic: &str) -> Key {
    of_position(RowKind::ContinuationMark, continuation).and(topic.as_bytes())
}

/// Kind 18, by what [`idempotency_name`] made.
#[must_use]
pub fn idempotency(name: &[u8]) -> Key {
    Key::with(RowKind::Idempotency, name)
}

/// User and idempotency key in one: the user's length stands first, so that no two pairs are the same.
#[must_use]
pub fn idempotency_name(user: Option<&str>, key: &str) -> Vec<u8> {
    let user_len = user.map_or(0, |user| u32::try_from(user.len()).unwrap_or(u32::MAX - 1) + 1);
    [&user_len.to_be_bytes(), user.unwrap_or_default().as_bytes(), key.as_bytes()].concat()
}

/// Kind 20.
#[must_use]
pub fn delayed(due: ClusterTime, position: Position) -> Key {
    Key::with(RowKind::Delayed, &due.0.to_be_bytes()).and(&position.as_u64().to_be_bytes())
}

/// Kind 22.
#[must_use]
pub fn user(name: &str) -> Key {
    Key::with(RowKind::User, name.as_bytes())
}

/// Kind 23.
#[must_use]
pub fn acl_rule(number: u32) -> Key {
    Key::with(RowKind::AclRule, &number.to_be_bytes())
}

/// Kind 17.
#[must_use]
pub fn share_queue(share: ShareId, position: Position) -> Key {
    of_position(RowKind::ShareQueue, share.0).and(&position.as_u64().to_be_bytes())
}

/// Kind 21.
#[must_use]
pub fn exclusive(filter: &str) -> Key {
    Key::with(RowKind::Exclusive, filter.as_bytes())
}

/// Kind 24.
#[must_use]
pub fn share_strategy(filter: &str) -> Key {
    Key::with(RowKind::ShareStrategy, filter.as_bytes())
}

/// What follows group and kind.
#[must_use]
pub(crate) fn rest(key: &[u8]) -> &[u8] {
    key.get(3..).unwrap_or_default()
}

/// The u64 at `offset` of what follows group and kind; `None` when the key is too short.
#[must_use]
pub(crate) fn rest_u64(key: &[u8], offset: usize) -> Option<u64> {
    let bytes = rest(key).get(offset..offset + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// A key as people read it: kind and the rest in hex.
#[must_use]
pub(crate) fn describe(key: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut s = format!("kind {} ", key.get(2).copied().unwrap_or_default());
    for b in rest(key) {
        // Writing to a String does not fail.
        let _ = write!(s, "{b:02x}");
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_their_bytes_whether_short_or_long() {
        for len in 0..40 {
            let topic = "t".repeat(len);
            let key = retained(&topic);
            assert_eq!(rest(key.as_bytes()), topic.as_bytes());
            assert_eq!(Key::from(key.as_bytes()), key);
            assert!(key < retained(&format!("{topic}t")));
        }
    }

    #[test]
    fn idempotency_keys_of_two_users_are_never_one() {
        let names = [(None, "ab"), (None, "b"), (Some(""), "ab"), (Some("a"), "b"), (Some("ab"), ""), (Some("b"), "a")];
        let names: std::collections::BTreeSet<_> = names.map(|(user, key)| idempotency_name(user, key)).into();
        assert_eq!(names.len(), 6);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_begins_with_it() {
        let session = SessionId(Position::from_u64(u64::MAX));
        let prefix = of_session(RowKind::Queue, session);
        assert!(queue(session, QueueSeq(u64::MAX)).as_bytes() < prefix.end().as_slice());
        assert!(prefix.end().as_slice() <= Key::kind(RowKind::Message).as_bytes());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2_000))]

        #[test]
        fn keys_are_in_the_order_of_their_bytes(
            one in proptest::collection::vec(0_u8..3, 0..30),
            other in proptest::collection::vec(0_u8..3, 0..30),
            common in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..24),
        ) {
            let (one, other) = ([&*common, &*one].concat(), [&*common, &*other].concat());
            let keys = (Key::from(&*one), Key::from(&*other));
            proptest::prop_assert_eq!(keys.0.cmp(&keys.1), one.cmp(&other));
            proptest::prop_assert_eq!(keys.0 == keys.1, one == other);
        }
    }
}
