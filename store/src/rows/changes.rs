//! Changed rows, found by their keys in the time that a hash takes.
//!
//! Each message makes and removes two rows, of its own and of a queue, in each of the two layers that rows go through
//! ([`super::overlay`], [`super::recent`]): most of what apply does. One ordered map of whole keys cost half of its time.
//! So what is only ever asked for by its id lies in a hash map, what is read in order (the queues) in one small map of
//! numbers for each queue, and all else, which is rare, in an ordered map.

use std::collections::btree_map::Entry as Ordered;
use std::collections::hash_map::Entry as Hashed;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::ops::Bound;

use super::key::{self, Key, Parts};
use super::{Change, RowValue};
use crate::id_hasher::IdHasher;

/// What an entry of a map costs beside its value, as measured.
pub(super) const ENTRY_BYTES: usize = 96;

/// A kind of row, and an id: a position in the log, so nobody outside chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Id(u8, u64);

type IdMap<T> = HashMap<Id, T, BuildHasherDefault<IdHasher>>;

/// Changes of rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    by_id: IdMap<Change>,
    queues: IdMap<BTreeMap<u64, Change>>,
    others: BTreeMap<Key, Change>,
    bytes: usize,
}

/// What a change of a row adds and takes away, in bytes, and whether it is the first.
struct Taken {
    more: usize,
    less: usize,
    is_first: bool,
}

fn size(key_len: usize, change: &Change) -> usize {
    ENTRY_BYTES + key_len + change.value().map_or(0, RowValue::len)
}

/// The two changes of a row as one; none if it is as if it had never been.
fn both(before: &Change, after: Change) -> Option<Change> {
    match (before, after) {
        (Change::New(_), Change::Delete) => None,
        (Change::New(_), Change::New(value) | Change::Put(value)) => Some(Change::New(value)),
        // What lies behind has a row of this key, or may have one.
        (Change::Put(_) | Change::Delete, Change::New(value) | Change::Put(value)) => Some(Change::Put(value)),
        (Change::Put(_) | Change::Delete, Change::Delete) => Some(Change::Delete),
    }
}

/// One entry, whichever map it is of.
macro_rules! take {
    ($entry:expr, $of:ident, $key_len:expr, $change:expr) => {
        match $entry {
            $of::Vacant(entry) => {
                let more = size($key_len, &$change);
                entry.insert($change);
                Taken { more, less: 0, is_first: true }
            }
            $of::Occupied(mut entry) => {
                let less = size($key_len, entry.get());
                let more = match both(entry.get(), $change) {
                    Some(change) => {
                        let more = size($key_len, &change);
                        entry.insert(change);
                        more
                    }
                    None => {
                        entry.remove();
                        0
                    }
                };
                Taken { more, less, is_first: false }
            }
        }
    };
}

/// A key of a scan: some are made for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ScanKey<'a> {
    Kept(&'a Key),
    Made(Key),
}

impl ScanKey<'_> {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Kept(key) => key.as_bytes(),
            Self::Made(key) => key.as_bytes(),
        }
    }

    fn into_key(self) -> Key {
        match self {
            Self::Kept(key) => key.clone(),
            Self::Made(key) => key,
        }
    }
}

/// Changes in the order of their keys.
pub(super) type Scan<'a> = Box<dyn Iterator<Item = (ScanKey<'a>, &'a Change)> + 'a>;

/// Room that is made at once; more comes as it is needed.
const ROOM_MAX: usize = 4_096;

impl Changes {
    /// With room for as many as there were before.
    pub(super) fn like(before: &Self) -> Self {
        let room = before.by_id.len().min(ROOM_MAX);
        Self { by_id: HashMap::with_capacity_and_hasher(room, BuildHasherDefault::default()), ..Self::default() }
    }

    /// Bytes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.queues.is_empty() && self.others.is_empty()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Change> {
        match key::parts(key) {
            Parts::Id(kind, id) => self.by_id.get(&Id(kind, id)),
            Parts::Queue(kind, queue, seq) => self.queues.get(&Id(kind, queue))?.get(&seq),
            Parts::Other => self.others.get(key),
        }
    }

    /// Takes a later change of one row; whether it is the first here.
    pub(super) fn take(&mut self, key: Key, change: Change) -> bool {
        let parts = key::parts(key.as_bytes());
        let taken = match parts {
            Parts::Id(kind, id) => self.take_id(Id(kind, id), change),
            Parts::Queue(kind, queue, seq) => self.take_queued(Id(kind, queue), seq, change),
            Parts::Other => {
                let len = key.as_bytes().len();
                take!(self.others.entry(key), Ordered, len, change)
            }
        };
        self.count(&taken);
        taken.is_first
    }

    fn take_id(&mut self, id: Id, change: Change) -> Taken {
        take!(self.by_id.entry(id), Hashed, key::ID_LEN, change)
    }

    fn take_queued(&mut self, queue: Id, seq: u64, change: Change) -> Taken {
        let rows = self.queues.entry(queue).or_default();
        let taken = take!(rows.entry(seq), Ordered, key::QUEUE_LEN, change);
        if rows.is_empty() {
            self.queues.remove(&queue);
        }
        taken
    }

    fn count(&mut self, taken: &Taken) {
        self.bytes = (self.bytes + taken.more).saturating_sub(taken.less);
    }

    /// Takes all of these, which are later.
    pub(super) fn take_all(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        for (id, change) in later.by_id {
            let taken = self.take_id(id, change);
            self.count(&taken);
        }
        for (queue, rows) in later.queues {
            for (seq, change) in rows {
                let taken = self.take_queued(queue, seq, change);
                self.count(&taken);
            }
        }
        for (key, change) in later.others {
            self.take(key, change);
        }
    }

    /// All, in no order.
    pub(super) fn into_rows(self) -> impl Iterator<Item = (Key, Change)> {
        let by_id = self.by_id.into_iter().map(|(Id(kind, id), change)| (key::of_id(kind, id), change));
        let queued = self.queues.into_iter().flat_map(|(Id(kind, queue), rows)| {
            rows.into_iter().map(move |(seq, change)| (key::of_queue(kind, queue, seq), change))
        });
        by_id.chain(queued).chain(self.others)
    }

    /// All, in runs of keys in order: one of those of ids, one of each queue, one of the others. Numbers are sorted
    /// faster than keys.
    pub(super) fn in_runs(&self) -> Scan<'_> {
        let mut by_id: Vec<(&Id, &Change)> = self.by_id.iter().collect();
        by_id.sort_unstable_by_key(|(id, _)| **id);
        let by_id = by_id.into_iter().map(|(Id(kind, id), change)| (ScanKey::Made(key::of_id(*kind, *id)), change));
        let mut queues: Vec<(&Id, &BTreeMap<u64, Change>)> = self.queues.iter().collect();
        queues.sort_unstable_by_key(|(id, _)| **id);
        let queued = queues.into_iter().flat_map(|(Id(kind, queue), rows)| {
            rows.iter().map(move |(seq, change)| (ScanKey::Made(key::of_queue(*kind, *queue, *seq)), change))
        });
        let others = self.others.iter().map(|(key, change)| (ScanKey::Kept(key), change));
        Box::new(by_id.chain(queued).chain(others))
    }

    /// The changes of `from <= key < to`, in the order of their keys.
    pub(super) fn in_range<'a>(&'a self, from: &[u8], to: &[u8]) -> Scan<'a> {
        // A map refuses a range that ends before it begins.
        let to = to.max(from);
        match key::range(from, to) {
            key::Range::Queue(kind, queue, seqs) => {
                let rows = self.queues.get(&Id(kind, queue));
                let rows = rows.into_iter().flat_map(move |rows| rows.range(seqs));
                Box::new(rows.map(move |(seq, change)| (ScanKey::Made(key::of_queue(kind, queue, *seq)), change)))
            }
            key::Range::Others => Box::new(self.others_in(from, to)),
            key::Range::Any => {
                let is_in = |key: &Key| from <= key.as_bytes() && key.as_bytes() < to;
                let by_id = self.by_id.iter().map(|(Id(kind, id), change)| (key::of_id(*kind, *id), change));
                let queued = self.queues.iter().flat_map(|(Id(kind, queue), rows)| {
                    rows.iter().map(|(seq, change)| (key::of_queue(*kind, *queue, *seq), change))
                });
                let made = by_id.chain(queued).filter(|(key, _)| is_in(key));
                let mut all: Vec<(ScanKey<'a>, &Change)> =
                    made.map(|(key, change)| (ScanKey::Made(key), change)).chain(self.others_in(from, to)).collect();
                all.sort_unstable_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
                Box::new(all.into_iter())
            }
        }
    }

    fn others_in<'a>(&'a self, from: &[u8], to: &[u8]) -> impl Iterator<Item = (ScanKey<'a>, &'a Change)> + use<'a> {
        let others = self.others.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        others.map(|(key, change)| (ScanKey::Kept(key), change))
    }

    /// At most `max` changes of `from <= key < to`, and the key after them if there are more.
    pub(super) fn some_in_range(&self, from: &[u8], to: &[u8], max: usize) -> (Vec<(Key, Change)>, Option<Key>) {
        let mut all = self.in_range(from, to);
        let first = all.by_ref().take(max).map(|(key, change)| (key.into_key(), change.clone())).collect();
        (first, all.next().map(|(key, _)| key.into_key()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::key::RowKind;
    use super::*;
    use crate::ids::{Position, QueueSeq, SessionId};

    pub(in super::super) fn key(k: u8) -> Key {
        Key::from_encoded(&[k])
    }

    pub(in super::super) fn value(v: u8) -> RowValue {
        RowValue::written(1, |room| room.fill(v))
    }

    #[test]
    fn what_is_made_and_removed_leaves_nothing() {
        let mut changes = Changes::default();
        changes.take(key(1), Change::New(value(1)));
        changes.take(key(1), Change::Put(value(2)));
        changes.take(key(1), Change::Delete);
        assert!(changes.is_empty());
        assert_eq!(changes.bytes(), 0);
    }

    #[test]
    fn what_may_lie_behind_is_deleted_there_too() {
        let mut changes = Changes::default();
        changes.take(key(1), Change::Put(value(1)));
        changes.take(key(1), Change::Delete);
        assert!(matches!(changes.get(&[1]), Some(Change::Delete)));
        changes.take(key(1), Change::Put(value(2)));
        changes.take(key(1), Change::Delete);
        assert!(matches!(changes.get(&[1]), Some(Change::Delete)));
        assert_eq!(changes.bytes(), ENTRY_BYTES + 1);
    }

    #[test]
    fn a_range_says_where_it_stopped() {
        let mut changes = Changes::default();
        for k in 1..6 {
            changes.take(key(k), Change::New(value(k)));
        }
        let (some, more) = changes.some_in_range(&[2], &[5], 2);
        assert_eq!(some.iter().map(|(k, _)| k.as_bytes()[0]).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(more, Some(key(4)));
        let (some, more) = changes.some_in_range(&[4], &[5], 2);
        assert_eq!((some.len(), more), (1, None));
        assert_eq!(changes.some_in_range(&[5], &[2], 2).0.len(), 0);
    }

    /// Keys of all three maps, close to each other.
    fn any_key(n: u64) -> Key {
        let (kind, id, seq) = (n % 7, n / 7 % 3, n / 21 % 5);
        let session = SessionId(Position::from_u64(id));
        match kind {
            0 => key::of_session(RowKind::Session, session),
            1 => key::of_position(RowKind::Message, Position::from_u64(id)),
            2 => key::queue(session, QueueSeq(seq)),
            3 => key::share_queue(crate::ids::ShareId(Position::from_u64(id)), Position::from_u64(seq)),
            4 => key::retained(&"t".repeat(seq as usize * 9)),
            5 => key::subscription(session, "a/b"),
            _ => Key::from_encoded(&[kind as u8, id as u8]),
        }
    }

    proptest::proptest! {
        #[test]
        fn three_maps_are_as_one(
            changes in proptest::collection::vec((0_u64..105, 0_u8..3, 0_u8..9), 0..60),
            bounds in proptest::collection::vec((0_u64..105, 0_u64..105, 0_usize..20, 0_usize..20), 20),
        ) {
            let (mut maps, mut two, mut later) = (Changes::default(), Changes::default(), Changes::default());
            let mut one: BTreeMap<Vec<u8>, Change> = BTreeMap::new();
            let count = changes.len();
            let (mut used, mut gone) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
            for (at, (n, what, v)) in changes.into_iter().enumerate() {
                let key = any_key(n);
                // New is what was never used before, if it says so.
                let change = match what {
                    0 if !used.contains(&key) => Change::New(value(v)),
                    0 | 1 => Change::Put(value(v)),
                    _ => Change::Delete,
                };
                used.insert(key.clone());
                // And what was new and is gone does not come back.
                let is_new = matches!(one.get(key.as_bytes()), Some(Change::New(_)));
                if gone.contains(&key) {
                    continue;
                }
                if is_new && matches!(change, Change::Delete) {
                    gone.insert(key.clone());
                }
                let before = one.get(key.as_bytes()).cloned();
                let merged = before.as_ref().map_or(Some(change.clone()), |before| both(before, change.clone()));
                match merged {
                    Some(merged) => one.insert(key.as_bytes().to_vec(), merged),
                    None => one.remove(key.as_bytes()),
                };
                proptest::prop_assert_eq!(maps.take(key.clone(), change.clone()), before.is_none());
                if at < count / 2 { two.take(key, change); } else { later.take(key, change); }
            }
            two.take_all(later);
            let text = |change: &Change| format!("{change:?}");
            for maps in [&maps, &two] {
                let bytes: usize = one.iter().map(|(key, change)| size(key.len(), change)).sum();
                proptest::prop_assert_eq!(maps.bytes(), bytes);
                proptest::prop_assert_eq!(maps.is_empty(), one.is_empty());
                for n in 0..105 {
                    let key = any_key(n);
                    proptest::prop_assert_eq!(maps.get(key.as_bytes()).map(text), one.get(key.as_bytes()).map(text));
                }
                for (from, to, cut, end) in &bounds {
                    // Prefixes and their ends, too.
                    let (from, to) = (any_key(*from), any_key(*to));
                    let from = from.as_bytes().get(..*cut).unwrap_or(from.as_bytes());
                    let to = to.as_bytes().get(..*cut).map_or_else(|| to.as_bytes().to_vec(), |to| Key::from(to).end());
                    for to in [to, Key::from(from.get(..*end).unwrap_or(from)).end()] {
                        let seen: Vec<_> =
                            maps.in_range(from, &to).map(|(key, change)| (key.as_bytes().to_vec(), text(change))).collect();
                        let want: Vec<_> = one
                            .iter()
                            .filter(|(key, _)| from <= &***key && **key < to)
                            .map(|(key, change)| (key.clone(), text(change)))
                            .collect();
                        proptest::prop_assert_eq!(seen, want, "{:?} to {:?}", from, to);
                    }
                }
                let mut rows: Vec<_> =
                    maps.clone().into_rows().map(|(key, change)| (key.as_bytes().to_vec(), text(&change))).collect();
                rows.sort();
                let want: Vec<_> = one.iter().map(|(key, change)| (key.clone(), text(change))).collect();
                proptest::prop_assert_eq!(&rows, &want);
                let mut runs: Vec<_> =
                    maps.in_runs().map(|(key, change)| (key.as_bytes().to_vec(), text(change))).collect();
                runs.sort();
                proptest::prop_assert_eq!(runs, want);
            }
        }
    }
}
