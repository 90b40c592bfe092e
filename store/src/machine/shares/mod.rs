//! Shared subscriptions: each message goes to exactly one member of a group.
//!
//! A group is a share name and a filter, from the SUBSCRIBE of its first member to the end of its last. Its members are
//! subscriptions like all others. Who gets a message is decided when the message is applied ([`choose`]); with no
//! member that is connected and has room it waits in the group's own queue ([`waiting`]), which is served as soon as
//! one has ([`pump`]). A message that was given to a member is a row of that member's session like all others, and
//! returns when its connection ends without having settled it ([`members`]).
//!
//! Everything here but the rows is rebuilt at start and changes no outcome: which messages are held in memory, and
//! which sessions are looked at in vain.

mod choose;
mod members;
mod pump;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use crate::command::ShareStrategy;
use crate::effect::ShareSummary;
use crate::ids::{QueueSeq, SessionId, ShareId};
use crate::rows::RowStore;
use crate::rows::key::{self, RowKind};
use crate::rows::share::ShareRow;
use crate::rows::value::{ShareStrategyRow, SubscriptionRow, Value as _};
use crate::topic::{FilterKind, TopicFilter};

use super::state::Sessions;
use super::trie::{Subscriber, Trie};
use super::{Machine, MachineError};

use waiting::Front;

/// Unsettled rows of shared groups that a session may have: what the end of one connection must return.
pub(super) const SHARED_INFLIGHT_MAX: u64 = 512;
/// Groups that one session may be a member of: what the end of one session must leave. One more is answered with 0x97.
pub(super) const SESSION_SHARES_MAX: usize = 1024;
/// Members of one group: what one message must be held against. One more is answered with 0x97.
pub(super) const MEMBERS_MAX: usize = 4096;
/// Groups whose strategy is not the default.
const STRATEGIES_MAX: usize = 4096;

/// One group.
#[derive(Debug)]
pub(super) struct Share {
    row: ShareRow,
    name: String,
    /// What topics are matched against.
    filter: TopicFilter,
    strategy: ShareStrategy,
    members: BTreeMap<SessionId, SubscriptionRow>,
    front: Front,
    /// Who was served last with QoS 0 past the log, a session's position; of this node alone.
    qos0_turn: AtomicU64,
    /// The first search for expired messages that can find one, when the last found none and nothing has changed.
    no_room_before: Option<crate::ids::ClusterTime>,
}

/// What a session has to do with shared groups.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// Of which it is a member.
    pub(super) shares: BTreeSet<ShareId>,
    /// Those of them in which messages wait, in order. It keeps its memory: a group at its limit begins to wait and
    /// ceases with every message, for all its members.
    waiting: Vec<ShareId>,
    /// Unsettled rows that groups gave.
    pub(super) rows: BTreeSet<QueueSeq>,
}

impl Membership {
    fn is_empty(&self) -> bool {
        self.shares.is_empty() && self.rows.is_empty()
    }

    /// The group whose turn it is after `turn`.
    fn next_waiting(&self, turn: ShareId) -> Option<ShareId> {
        let later = self.waiting.partition_point(|share| *share <= turn);
        self.waiting.get(later).or(self.waiting.first()).copied()
    }

    /// Messages wait in `share`, or none any more.
    fn note_waiting(&mut self, share: ShareId, do_wait: bool) {
        match self.waiting.binary_search(&share) {
            Err(at) if do_wait => self.waiting.insert(at, share),
            Ok(at) if !do_wait => {
                self.waiting.remove(at);
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Shares {
    by_id: BTreeMap<ShareId, Share>,
    by_filter: BTreeMap<TopicFilter, ShareId>,
    /// By the whole filter; the default is not among them.
    strategies: BTreeMap<TopicFilter, ShareStrategy>,
    /// Their rows are written at the end of the run.
    dirty: BTreeSet<ShareId>,
    /// Every connected session that has room and is a member of a group in which messages wait is among these.
    roomy: BTreeSet<SessionId>,
}

impl Shares {
    pub(super) fn get(&self, share: ShareId) -> Option<&Share> {
        self.by_id.get(&share)
    }

    /// Memberships in all groups.
    pub(super) fn memberships(&self) -> usize {
        self.by_id.values().map(|share| share.members.len()).sum()
    }

    /// A group whose row is to be changed.
    fn change(&mut self, share: ShareId) -> Option<&mut Share> {
        let found = self.by_id.get_mut(&share)?;
        self.dirty.insert(share);
        Some(found)
    }

    /// A session may have got room.
    pub(super) fn note_room(&mut self, session: SessionId, membership: Option<&Membership>) {
        if membership.is_some_and(|m| !m.waiting.is_empty()) {
            self.roomy.insert(session);
        }
    }

    fn add(&mut self, id: ShareId, row: ShareRow, trie: &mut Trie) -> bool {
        let Ok(whole) = TopicFilter::new(&row.filter) else { return false };
        let FilterKind::Shared { name, filter } = whole.kind() else { return false };
        let strategy = self.strategies.get(&whole).copied().unwrap_or_default();
        trie.insert(&filter, Subscriber::Share(id), SubscriptionRow::OF_A_SHARE);
        let front = Front::new(row.rows > 0);
        self.by_filter.insert(whole, id);
        let (members, qos0_turn) = (BTreeMap::new(), AtomicU64::new(0));
        let share = Share { row, name, filter, strategy, members, front, qos0_turn, no_room_before: None };
        self.by_id.insert(id, share);
        true
    }

    /// Start: a subscription row of a session that lives. False when there is no such group.
    pub(super) fn load_member(&mut self, whole: &TopicFilter, id: SessionId, row: SubscriptionRow) -> Option<ShareId> {
        let share = *self.by_filter.get(whole)?;
        self.by_id.get_mut(&share)?.members.insert(id, row);
        Some(share)
    }

    /// Start: what waits, by member.
    pub(super) fn load_waiting(&mut self, sessions: &mut Sessions) {
        for (id, share) in self.by_id.iter().filter(|(_, share)| share.row.rows > 0) {
            for member in share.members.keys() {
                if let Some(session) = sessions.get_mut(*member) {
                    session.membership().note_waiting(*id, true);
                    self.roomy.insert(*member);
                }
            }
        }
    }
}

impl<S: RowStore> Machine<S> {
    /// All groups, in order of creation (administration, tests).
    #[must_use]
    pub fn shares(&self) -> Vec<ShareSummary> {
        let summary = |(id, share): (&ShareId, &Share)| ShareSummary {
            share: *id,
            name: share.name.clone(),
            filter: share.filter.as_str().to_owned(),
            strategy: share.strategy,
            members: share.members.keys().copied().collect(),
            waiting: share.row.rows,
            waiting_bytes: share.row.bytes,
            dropped: share.row.dropped,
        };
        self.shares.by_id.iter().map(summary).collect()
    }

    /// Writes the rows of groups that the run has changed.
    pub(super) fn write_shares(&mut self) -> Result<(), MachineError> {
        for id in std::mem::take(&mut self.shares.dirty) {
            if let Some(share) = self.shares.get(id) {
                self.rows.put(key::of_position(RowKind::Share, id.0), share.row.to_bytes()?);
            }
        }
        Ok(())
    }

    /// Start: groups and strategies, before the subscriptions.
    pub(super) fn load_shares(&mut self) -> Result<(), MachineError> {
        let mut shares = Shares::default();
        self.each(RowKind::ShareStrategy, |k, ShareStrategyRow(strategy)| {
            let whole = TopicFilter::new(std::str::from_utf8(key::rest(k)).ok()?).ok()?;
            shares.strategies.insert(whole, strategy);
            Some(())
        })?;
        let mut trie = std::mem::take(&mut self.trie);
        self.each(RowKind::Share, |k, row: ShareRow| {
            let id = ShareId(crate::ids::Position::from_u64(key::rest_u64(k, 0)?));
            shares.add(id, row, &mut trie).then_some(())
        })?;
        self.trie = trie;
        self.shares = shares;
        Ok(())
    }
}
