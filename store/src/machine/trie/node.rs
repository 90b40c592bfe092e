//! A node of the trie, in one line of the processor's cache: with a million subscriptions it is the fetching of such
//! lines that a match costs.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::ids::{Position, QoS, SessionId, ShareId};
use crate::rows::value::SubscriptionRow;

use super::Subscriber;

/// Where a node is among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeIndex(u32);

impl NodeIndex {
    pub(super) const ROOT: Self = Self(0);
    /// No node.
    pub(super) const NONE: Self = Self(u32::MAX);

    /// `None` when there are as many nodes as numbers.
    pub(super) fn new(at: usize) -> Option<Self> {
        u32::try_from(at).ok().map(Self).filter(|index| index.is_some())
    }

    pub(super) fn is_some(self) -> bool {
        self != Self::NONE
    }

    pub(super) fn at(self) -> usize {
        self.0 as usize
    }
}

/// One level of some filters.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Node {
    pub(super) parent: NodeIndex,
    /// The child for `+`.
    pub(super) plus: NodeIndex,
    /// One of the children by name, where `first_hash` says that it could be the one that is looked for. Most nodes
    /// have no other.
    pub(super) first: NodeIndex,
    pub(super) first_hash: u32,
    /// Children by name that only the index knows.
    pub(super) others: u32,
    /// What it is called; nothing for `+` and the root.
    name: Name,
    pub(super) entries: Entries,
}

const _: () = assert!(size_of::<Node>() == 64);

impl Node {
    pub(super) fn new(parent: NodeIndex, level: &str) -> Self {
        Self {
            parent,
            plus: NodeIndex::NONE,
            first: NodeIndex::NONE,
            first_hash: 0,
            others: 0,
            name: Name::new(level),
            entries: Entries::None,
        }
    }

    pub(super) fn has_children_by_name(&self) -> bool {
        self.first.is_some() || self.others > 0
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.has_children_by_name() && !self.plus.is_some() && matches!(self.entries, Entries::None)
    }

    pub(super) fn name(&self) -> &[u8] {
        match &self.name {
            Name::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Name::Long(bytes) => bytes,
        }
    }
}

const SHORT_MAX: usize = 22;

/// Text of one level.
#[derive(Debug)]
enum Name {
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    Long(Box<[u8]>),
}

impl Name {
    fn new(level: &str) -> Self {
        let mut bytes = [0; SHORT_MAX];
        match (u8::try_from(level.len()), bytes.get_mut(..level.len())) {
            (Ok(len), Some(start)) => {
                start.copy_from_slice(level.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(level.as_bytes().into()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Session,
    Exclusive,
    Share,
}

/// One subscription, as far as matching needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    id: Position,
    pub(super) identifier: Option<NonZeroU32>,
    pub(super) qos: QoS,
    kind: Kind,
    /// Its filter ends with `#`.
    is_below: bool,
    flags: u8,
}

impl Entry {
    const NO_LOCAL: u8 = 1;
    const RETAIN_AS_PUBLISHED: u8 = 2;

    pub(super) fn new(who: Subscriber, is_below: bool, row: SubscriptionRow) -> Self {
        let (kind, id) = match who {
            Subscriber::Session(session) => (Kind::Session, session.0),
            Subscriber::Exclusive(session) => (Kind::Exclusive, session.0),
            Subscriber::Share(share) => (Kind::Share, share.0),
        };
        let options = row.options;
        let flags = if options.no_local { Self::NO_LOCAL } else { 0 }
            | if options.retain_as_published { Self::RETAIN_AS_PUBLISHED } else { 0 };
        Self { id, identifier: row.identifier.and_then(NonZeroU32::new), qos: options.qos, kind, is_below, flags }
    }

    pub(super) fn who(&self) -> Subscriber {
        match self.kind {
            Kind::Session => Subscriber::Session(SessionId(self.id)),
            Kind::Exclusive => Subscriber::Exclusive(SessionId(self.id)),
            Kind::Share => Subscriber::Share(ShareId(self.id)),
        }
    }

    pub(super) fn no_local(&self) -> bool {
        self.flags & Self::NO_LOCAL != 0
    }

    pub(super) fn retain_as_published(&self) -> bool {
        self.flags & Self::RETAIN_AS_PUBLISHED != 0
    }
}

/// Subscriptions whose filter ends at a node: most nodes have none or one.
#[derive(Debug)]
pub(super) enum Entries {
    None,
    One(Entry),
    /// At least two.
    Many(Box<Sets>),
}

const _: () = assert!(size_of::<Entries>() == 16);

/// Apart, because a topic that goes on below passes over those that end here, however many they are.
#[derive(Debug, Default)]
pub(super) struct Sets {
    here: BTreeMap<Subscriber, Entry>,
    below: BTreeMap<Subscriber, Entry>,
}

impl Sets {
    fn of(&mut self, is_below: bool) -> &mut BTreeMap<Subscriber, Entry> {
        if is_below { &mut self.below } else { &mut self.here }
    }

    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.here.values().chain(self.below.values())
    }

    fn only(&self) -> Option<Entry> {
        let mut all = self.all();
        all.next().copied().filter(|_| all.next().is_none())
    }
}

impl Entries {
    /// Adds or replaces; true when it was not there.
    pub(super) fn insert(&mut self, new: Entry) -> bool {
        match self {
            Self::Many(sets) => sets.of(new.is_below).insert(new.who(), new).is_none(),
            Self::One(old) if old.is_below != new.is_below || old.who() != new.who() => {
                let mut sets = Box::<Sets>::default();
                for entry in [*old, new] {
                    sets.of(entry.is_below).insert(entry.who(), entry);
                }
                *self = Self::Many(sets);
                true
            }
            Self::None | Self::One(_) => {
                let is_new = matches!(self, Self::None);
                *self = Self::One(new);
                is_new
            }
        }
    }

    /// True when it was there.
    pub(super) fn remove(&mut self, who: Subscriber, is_below: bool) -> bool {
        match self {
            Self::One(entry) if entry.is_below == is_below && entry.who() == who => {
                *self = Self::None;
                true
            }
            Self::None | Self::One(_) => false,
            Self::Many(sets) => {
                let was_there = sets.of(is_below).remove(&who).is_some();
                if let Some(last) = sets.only() {
                    *self = Self::One(last);
                }
                was_there
            }
        }
    }

    pub(super) fn contains(&self, who: Subscriber, is_below: bool) -> bool {
        match self {
            Self::None => false,
            Self::One(entry) => entry.is_below == is_below && entry.who() == who,
            Self::Many(sets) => if is_below { &sets.below } else { &sets.here }.contains_key(&who),
        }
    }

    /// Those that match a topic which ends at the node: `a/#` matches `a` itself.
    pub(super) fn each(&self, take: &mut impl FnMut(&Entry)) {
        match self {
            Self::None => {}
            Self::One(entry) => take(entry),
            Self::Many(sets) => sets.all().for_each(take),
        }
    }

    /// Those that match a topic which goes on below the node.
    pub(super) fn each_below(&self, take: &mut impl FnMut(&Entry)) {
        match self {
            Self::One(entry) if entry.is_below => take(entry),
            Self::None | Self::One(_) => {}
            Self::Many(sets) => sets.below.values().for_each(take),
        }
    }
}
