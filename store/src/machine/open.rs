//! Start: everything that the machine holds in memory, rebuilt from the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{BatchSeq, Incarnation, NodeId, PacketId, Position, SessionId};
use crate::message::Message;
use crate::rows::key::{self, Key, MetaName, RowKind};
use crate::rows::overlay::Overlay;
use crate::rows::value::{
    AppliedRow, CountersRow, FORMAT_VERSION, NodeRow, NumberRow, SessionRow, SettingRow, SubscriptionRow, Value,
    WillRow,
};
use crate::rows::{RowRead, RowStore, RowsError};
use crate::seeded_bug::expiry_s_max;
use crate::topic::{FilterKind, TopicFilter};

use super::continuations::Continuations;
use super::delayed::Waiting;
use super::idempotency::Idempotency;
use super::references::References;
use super::shares::Shares;
use super::state::{Deadline, DeadlineKind, RetainedExpiry, RetainedTopics, Session, Sessions};
use super::trie::{Subscriber, Trie};
use super::{Machine, MachineError, Settings, Stream};

impl AppliedRow {
    /// Before the first entry.
    #[must_use]
    pub const fn initial() -> Self {
        Self { format: FORMAT_VERSION, index: 0, term: 0, time: crate::ids::ClusterTime(0) }
    }
}

impl<S: RowStore> Machine<S> {
    /// The machine as the rows in `store` left it.
    ///
    /// # Errors
    /// [`MachineError`] when a row is damaged or the rows have a newer format.
    pub fn open(store: S) -> Result<Self, MachineError> {
        let mut machine = Self {
            rows: Overlay::new(store),
            applied: AppliedRow::initial(),
            raft_state: None,
            settings: Settings::default(),
            access: Arc::default(),
            nodes: BTreeMap::new(),
            next_node: 1,
            streams: BTreeMap::new(),
            sessions: Sessions::default(),
            trie: Trie::default(),
            deadlines: BTreeSet::new(),
            continuations: Continuations::default(),
            retained_expiry: RetainedExpiry::default(),
            retained_topics: RetainedTopics::default(),
            expired: 0,
            references: References::default(),
            idempotency: Idempotency::default(),
            waiting: Waiting::default(),
            retained_budget: 0,
            next_number: 0,
            pending: Vec::new(),
            withdrawn: BTreeSet::new(),
            shares: Shares::default(),
            share_budget: 0,
            origin: None,
        };
        machine.load_meta()?;
        machine.load_access()?;
        machine.load_nodes()?;
        machine.load_shares()?;
        machine.load_sessions()?;
        machine.load_continuations()?;
        machine.load_retained()?;
        machine.load_idempotency()?;
        machine.load_delayed()?;
        Ok(machine)
    }

    fn load_meta(&mut self) -> Result<(), MachineError> {
        if let Some(applied) = self.row::<AppliedRow>(&key::meta(MetaName::Applied))? {
            if applied.format > FORMAT_VERSION {
                return Err(MachineError::NewerFormat { found: applied.format, known: FORMAT_VERSION });
            }
            self.applied = applied;
        }
        self.raft_state = self.rows.get(key::meta(MetaName::Raft).as_bytes())?;
        if let Some(NumberRow(next)) = self.row(&key::meta(MetaName::NextNode))? {
            self.next_node = next;
        }
        let mut settings = self.settings;
        self.each(RowKind::Setting, |_, SettingRow(setting)| {
            settings.set(setting);
            Some(())
        })?;
        settings.session_expiry_s_max = expiry_s_max(settings.session_expiry_s_max);
        self.settings = settings;
        Ok(())
    }

    fn load_nodes(&mut self) -> Result<(), MachineError> {
        let mut nodes = BTreeMap::new();
        self.each(RowKind::Node, |k, row: NodeRow| {
            nodes.insert(NodeId(key::rest_u64(k, 0)?), row);
            Some(())
        })?;
        let mut streams = BTreeMap::new();
        self.each(RowKind::Dedup, |k, NumberRow(last)| {
            let incarnation = Incarnation(Position::from_u64(key::rest_u64(k, 0)?));
            let (node, _) = nodes.iter().find(|(_, row)| row.incarnation == Some(incarnation))?;
            streams.insert(incarnation, Stream { node: *node, last: BatchSeq(last), dirty: false });
            Some(())
        })?;
        self.nodes = nodes;
        self.streams = streams;
        Ok(())
    }

    fn load_sessions(&mut self) -> Result<(), MachineError> {
        let mut sessions = Sessions::default();
        sessions.set_queue_bytes_max(self.settings.queue_bytes_max);
        let mut deadlines = BTreeSet::new();
        self.each(RowKind::Session, |k, row: SessionRow| {
            let id = session_of(k)?;
            if let Some(at) = row.expires_at {
                deadlines.insert(Deadline { at, kind: DeadlineKind::Expiry, session: id });
            }
            sessions.insert(id, Session::new(row));
            Some(())
        })?;
        // Rows of sessions that have ended wait to be swept: they have no session.
        self.each(RowKind::Counters, |k, counters: CountersRow| {
            let id = session_of(k)?;
            if let Some(session) = sessions.get_mut(id) {
                session.counters = counters;
                sessions.count_queued(id);
            }
            Some(())
        })?;
        let mut trie = std::mem::take(&mut self.trie);
        let mut shares = std::mem::take(&mut self.shares);
        self.each(RowKind::Subscription, |k, row: SubscriptionRow| {
            let id = session_of(k)?;
            if let Some(session) = sessions.get_mut(id) {
                let filter = TopicFilter::new(std::str::from_utf8(key::rest(k).get(8..)?).ok()?).ok()?;
                match filter.kind() {
                    FilterKind::Shared { .. } => {
                        let share = shares.load_member(&filter, id, row)?;
                        session.membership().shares.insert(share);
                    }
                    FilterKind::Exclusive { filter } => {
                        trie.insert(&filter, Subscriber::Exclusive(id), row);
                    }
                    FilterKind::Plain | FilterKind::Invalid => {
                        trie.insert(&filter, Subscriber::Session(id), row);
                    }
                }
                session.subscriptions += 1;
            }
            Some(())
        })?;
        self.each(RowKind::Inbound, |k, NumberRow(_)| {
            let packet_id = u16::from_be_bytes(key::rest(k).get(8..)?.try_into().ok()?);
            if let Some(session) = sessions.get_mut(session_of(k)?) {
                session.inbound.insert(PacketId::new(packet_id)?);
            }
            Some(())
        })?;
        self.each(RowKind::Will, |k, row: WillRow| {
            let id = session_of(k)?;
            if let Some(at) = row.due_at {
                deadlines.insert(Deadline { at, kind: DeadlineKind::Will, session: id });
            }
            if let Some(session) = sessions.get_mut(id) {
                session.will = Some(row.due_at);
            }
            Some(())
        })?;
        shares.load_waiting(&mut sessions);
        let with_shared = sessions.with_shared_rows();
        self.sessions = sessions;
        self.deadlines = deadlines;
        self.trie = trie;
        self.shares = shares;
        with_shared.into_iter().try_for_each(|id| self.load_shared_rows(id))
    }

    /// Which rows of a session shared groups gave.
    fn load_shared_rows(&mut self, id: SessionId) -> Result<(), MachineError> {
        let Some(session) = self.sessions.get(id) else { return Ok(()) };
        let mut left = session.counters.shared;
        let mut found = BTreeSet::new();
        self.scan_queue(id, session.counters.head, session.counters.next_seq, &mut |row| {
            if row.given.is_some() {
                found.insert(row.seq);
                left -= 1;
            }
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(session) = self.sessions.get_mut(id) {
            session.membership().rows = found;
        }
        Ok(())
    }

    fn load_retained(&mut self) -> Result<(), MachineError> {
        let mut expiry = RetainedExpiry::default();
        let mut topics = RetainedTopics::default();
        self.each(RowKind::Retained, |_, message: Message| {
            topics.note(&message.topic);
            if let Some(at) = message.expires_at {
                expiry.note(message.topic, at);
            }
            Some(())
        })?;
        self.retained_expiry = expiry;
        self.retained_topics = topics;
        Ok(())
    }

    pub(super) fn row<T: Value>(&self, key: &Key) -> Result<Option<T>, MachineError> {
        let bytes = self.rows.get(key.as_bytes())?;
        Ok(bytes.map(|bytes| T::read(key.as_bytes(), &bytes)).transpose()?)
    }

    /// Calls `f` with every row of `kind`; `None` from it means that the key is damaged.
    pub(super) fn each<T: Value>(
        &self,
        kind: RowKind,
        mut f: impl FnMut(&[u8], T) -> Option<()>,
    ) -> Result<(), MachineError> {
        let prefix = Key::kind(kind);
        let mut failed = None;
        self.rows.scan(prefix.as_bytes(), &prefix.end(), &mut |k, v| {
            let damaged = |reason: &str| RowsError::Damaged { key: key::describe(k), reason: reason.to_owned() };
            failed = match T::read(k, &Bytes::copy_from_slice(v)) {
                Ok(value) => f(k, value).is_none().then(|| damaged("its key does not fit its value")),
                Err(e) => Some(e),
            };
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        failed.map_or(Ok(()), |e| Err(e.into()))
    }
}

fn session_of(key: &[u8]) -> Option<SessionId> {
    key::rest_u64(key, 0).map(|p| SessionId(Position::from_u64(p)))
}
