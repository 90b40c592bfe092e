//! Sessions as the machine holds them in memory: the row, the counters, and what is derived from rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::effect::{QueuesOverHalf, SessionSummary};
use crate::id_hasher::IdHasher;
use crate::ids::{ClusterTime, Incarnation, PacketId, Position, QueueSeq, SessionId};
use crate::rows::value::{CountersRow, SessionRow};
use crate::topic::{TopicFilter, TopicName};

use super::room::NoRoom;
use super::shares::Membership;
use super::window::Window;

/// What is due at a time. Ordered: at one moment a will is published before its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline {
    pub(super) at: ClusterTime,
    pub(super) kind: DeadlineKind,
    pub(super) session: SessionId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeadlineKind {
    Will,
    Expiry,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) row: SessionRow,
    pub(super) counters: CountersRow,
    /// `counters` differs from its row; it is written at the end of the run.
    pub(super) counters_dirty: bool,
    /// Only while connected, and only when it was needed.
    pub(super) window: Option<Box<Window>>,
    /// Inbound QoS 2 identifiers that wait for their PUBREL.
    pub(super) inbound: BTreeSet<PacketId>,
    /// It has a will row; the time is when it is due.
    pub(super) will: Option<Option<ClusterTime>>,
    pub(super) subscriptions: u32,
    /// Rows that are in the count of all.
    counted: u64,
    /// Its place among the queues over half of their bound.
    over_half: Option<NonZeroU64>,
    /// Continuations that still bring retained messages, by the filter that was subscribed to.
    pub(super) cursors: BTreeMap<TopicFilter, Position>,
    /// There is no row of `.0 <= seq < .1`, and never will be: where a search for room starts. What is known
    /// here changes what a search costs, never what it finds.
    pub(super) gone: (QueueSeq, QueueSeq),
    /// The last search that found nothing to go.
    pub(super) no_room: Option<Box<NoRoom>>,
    /// Its part in shared groups, if it has any.
    pub(super) membership: Option<Box<Membership>>,
}

impl Session {
    pub(super) fn new(row: SessionRow) -> Self {
        Self {
            row,
            counters: CountersRow::default(),
            counters_dirty: false,
            window: None,
            inbound: BTreeSet::new(),
            will: None,
            subscriptions: 0,
            counted: 0,
            over_half: None,
            cursors: BTreeMap::new(),
            gone: (QueueSeq(0), QueueSeq(0)),
            no_room: None,
            membership: None,
        }
    }

    /// Whether its Session Expiry Interval has not passed; what has passed waits only to be removed.
    pub(super) fn is_live(&self, now: ClusterTime) -> bool {
        self.row.expires_at.is_none_or(|at| at > now)
    }
}

/// All sessions, and the ways to find them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// In boxes: the map has up to twice as many places as sessions, and a place is small.
    by_id: HashMap<SessionId, Box<Session>, BuildHasherDefault<IdHasher>>,
    by_client: HashMap<Arc<str>, SessionId>,
    /// By the incarnation they are connected to, open or not: what is left under a closed one waits to be
    /// detached.
    owned: BTreeMap<Incarnation, BTreeSet<SessionId>>,
    dirty: Vec<SessionId>,
    /// Rows in all queues, as of the end of the last run: for people.
    queued: u64,
    over_half: OverHalf,
}

/// Queues over half of their byte bound, as of the end of the last run: for people. Which they are is kept where
/// counters are written anyway, so that nobody ever looks through all sessions for them. A queue leaves at three
/// eighths, so that one that stands at the half is not told of over and over.
#[derive(Debug, Default)]
struct OverHalf {
    bytes_max: u64,
    /// By the order in which they came to be: the first stay the first, whichever come later.
    sessions: BTreeMap<NonZeroU64, SessionId>,
    last: u64,
}

impl OverHalf {
    /// Holds the bytes in a queue against the bound.
    fn note(&mut self, id: SessionId, session: &mut Session) {
        let half = self.bytes_max.div_ceil(2).max(1);
        let bytes = session.counters.bytes;
        match session.over_half {
            None if bytes >= half => {
                self.last = self.last.saturating_add(1);
                session.over_half = NonZeroU64::new(self.last);
                self.sessions.extend(session.over_half.map(|place| (place, id)));
            }
            Some(place) if bytes < half - half / 4 => {
                session.over_half = None;
                self.sessions.remove(&place);
            }
            _ => {}
        }
    }

    fn forget(&mut self, session: &Session) {
        if let Some(place) = session.over_half {
            self.sessions.remove(&place);
        }
    }
}

impl Sessions {
    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.by_id.get(&id).map(Box::as_ref)
    }

    /// For everything but the owner, which [`Self::set_owner`] keeps in step, and counters
    /// ([`Self::counters_mut`]).
    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&id).map(Box::as_mut)
    }

    /// The counters, to be changed: they are written at the end of the run.
    pub(super) fn counters_mut(&mut self, id: SessionId) -> Option<&mut CountersRow> {
        Some(&mut self.with_counters_mut(id)?.counters)
    }

    /// A session whose counters are to be changed, with the rest of it.
    pub(super) fn with_counters_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = self.by_id.get_mut(&id)?;
        if !session.counters_dirty {
            session.counters_dirty = true;
            self.dirty.push(id);
        }
        Some(session)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Brings what is known of all queues up to what this session's counters say.
    pub(super) fn count_queued(&mut self, id: SessionId) {
        if let Some(session) = self.by_id.get_mut(&id) {
            let before = std::mem::replace(&mut session.counted, session.counters.rows);
            self.queued = self.queued.saturating_sub(before).saturating_add(session.counters.rows);
            self.over_half.note(id, session);
        }
    }

    /// The byte bound of a queue is this from now on. Looks at all sessions when there are any and it is another one.
    pub(super) fn set_queue_bytes_max(&mut self, bytes_max: u64) {
        if std::mem::replace(&mut self.over_half.bytes_max, bytes_max) == bytes_max {
            return;
        }
        let mut ids: Vec<_> = self.by_id.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(session) = self.by_id.get_mut(&id) {
                self.over_half.note(id, session);
            }
        }
    }

    /// Those whose queue is over half of its bound: the first `named_max` of them, and how many there are.
    pub(super) fn over_half(&self, named_max: usize) -> QueuesOverHalf {
        let named = self.over_half.sessions.values().take(named_max);
        QueuesOverHalf {
            named: named.filter_map(|id| Some(summary(*id, self.by_id.get(id)?))).collect(),
            total: self.over_half.sessions.len() as u64,
            bytes_max: self.over_half.bytes_max,
        }
    }

    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// Those with an owner. As many additions as incarnations.
    pub(super) fn connected(&self) -> usize {
        self.owned.values().map(BTreeSet::len).sum()
    }

    pub(super) fn take_dirty(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.dirty)
    }

    pub(super) fn by_client(&self, client_id: &str) -> Option<SessionId> {
        self.by_client.get(client_id).copied()
    }

    pub(super) fn insert(&mut self, id: SessionId, session: Session) {
        self.by_client.insert(session.row.client_id.clone(), id);
        if let Some(owner) = session.row.owner {
            self.owned.entry(owner).or_default().insert(id);
        }
        self.by_id.insert(id, Box::new(session));
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Box<Session>> {
        self.set_owner(id, None);
        let session = self.by_id.remove(&id)?;
        self.queued = self.queued.saturating_sub(session.counted);
        self.over_half.forget(&session);
        self.by_client.remove(&session.row.client_id);
        Some(session)
    }

    pub(super) fn set_owner(&mut self, id: SessionId, owner: Option<Incarnation>) {
        let Some(session) = self.by_id.get_mut(&id) else { return };
        if let Some(old) = std::mem::replace(&mut session.row.owner, owner)
            && let Some(set) = self.owned.get_mut(&old)
        {
            set.remove(&id);
            if set.is_empty() {
                self.owned.remove(&old);
            }
        }
        if let Some(owner) = owner {
            self.owned.entry(owner).or_default().insert(id);
        }
    }

    /// Those that have rows of shared groups.
    pub(super) fn with_shared_rows(&self) -> Vec<SessionId> {
        self.by_id.iter().filter(|(_, s)| s.counters.shared > 0).map(|(id, _)| *id).collect()
    }

    /// The first incarnation that is not `open` but still has sessions, with up to `most` of them.
    pub(super) fn orphans(&self, open: impl Fn(Incarnation) -> bool, most: usize) -> Vec<SessionId> {
        let closed = self.owned.iter().filter(|(incarnation, _)| !open(**incarnation));
        closed.flat_map(|(_, sessions)| sessions.iter().copied()).take(most).collect()
    }

    pub(super) fn summaries(&self) -> Vec<SessionSummary> {
        let mut all: Vec<_> = self.by_id.iter().map(|(id, session)| summary(*id, session)).collect();
        all.sort_by_key(|s| s.session);
        all
    }
}

fn summary(id: SessionId, session: &Session) -> SessionSummary {
    SessionSummary {
        session: id,
        client_id: session.row.client_id.to_string(),
        owner: session.row.owner,
        queued: session.counters.rows,
        queued_bytes: session.counters.bytes,
        expires_at: session.row.expires_at,
    }
}

/// Retained messages that expire: by time, and when each does, so that a new value need not read the old one.
#[derive(Debug, Default)]
pub(super) struct RetainedExpiry {
    by_time: BTreeSet<(ClusterTime, TopicName)>,
    by_topic: BTreeMap<TopicName, ClusterTime>,
}

impl RetainedExpiry {
    pub(super) fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }

    pub(super) fn is_due(&self, now: ClusterTime) -> bool {
        self.by_time.first().is_some_and(|(at, _)| *at <= now)
    }

    /// The next topic whose message has expired by `now`.
    pub(super) fn take_due(&mut self, now: ClusterTime) -> Option<TopicName> {
        let (_, topic) = self.by_time.first().filter(|(at, _)| *at <= now)?.clone();
        self.forget(&topic);
        Some(topic)
    }

    pub(super) fn note(&mut self, topic: TopicName, at: ClusterTime) {
        self.by_topic.insert(topic.clone(), at);
        self.by_time.insert((at, topic));
    }

    pub(super) fn forget(&mut self, topic: &TopicName) {
        if let Some(at) = self.by_topic.remove(topic) {
            self.by_time.remove(&(at, topic.clone()));
        }
    }
}

/// Which topics have a retained message, by the hash of their names: to count them, for people.
#[derive(Debug, Default)]
pub(super) struct RetainedTopics {
    hashes: std::collections::HashSet<u64, BuildHasherDefault<IdHasher>>,
}

impl RetainedTopics {
    pub(super) fn note(&mut self, topic: &TopicName) {
        self.hashes.insert(hash_of(topic));
    }

    pub(super) fn forget(&mut self, topic: &TopicName) {
        self.hashes.remove(&hash_of(topic));
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }
}

fn hash_of(topic: &TopicName) -> u64 {
    let mut hasher = DefaultHasher::new();
    topic.as_str().hash(&mut hasher);
    hasher.finish()
}
