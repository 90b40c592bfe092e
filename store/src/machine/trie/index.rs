//! Children by their parent and name: one table for the whole trie. A slot holds a hash and the number of a node, so
//! eight of them are in one line of the processor's cache.
//!
//! Nothing depends on the order in here, and no two replicas have the same: it is only asked for one child at a time.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::node::NodeIndex;

const SLOTS_MIN: usize = 16;

/// Hashes a parent and the name of a level. Clients choose names: without the key they cannot choose ones that meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key(u64);

impl Key {
    #[expect(clippy::disallowed_types, reason = "says where a child is looked for, never which one is found")]
    pub(super) fn random() -> Self {
        use std::hash::{BuildHasher as _, Hasher as _, RandomState};
        Self(RandomState::new().build_hasher().finish())
    }

    pub(super) fn hash(self, parent: NodeIndex, level: &[u8]) -> u32 {
        /// Odd, and without a pattern in its bits: parents that follow each other get seeds far apart.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let seed = self.0 ^ (parent.at() as u64).wrapping_mul(SPREAD);
        (xxh3_64_with_seed(level, seed) >> 32) as u32
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    /// None in a free slot.
    node: NodeIndex,
}

const FREE: Slot = Slot { hash: 0, node: NodeIndex::NONE };

/// A table with linear probing. Slots are in the order of their hashes, so it grows in one pass from front to back.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// None, or a power of two; a quarter of them is free.
    slots: Vec<Slot>,
    used: usize,
}

impl Index {
    /// Slots that are taken.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.used
    }

    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// The slots from the home of `hash` on up to the first that is free.
    fn probe(&self, hash: u32) -> impl Iterator<Item = (usize, Slot)> {
        let mut at = self.home(hash);
        std::iter::from_fn(move || {
            let slot = *self.slots.get(at).filter(|slot| slot.node.is_some())?;
            let found = (at, slot);
            at = self.after(at);
            Some(found)
        })
    }

    /// The node with this hash for which `is_it` holds.
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(NodeIndex) -> bool) -> Option<NodeIndex> {
        self.probe(hash).find(|(_, slot)| slot.hash == hash && is_it(slot.node)).map(|(_, slot)| slot.node)
    }

    pub(super) fn insert(&mut self, hash: u32, node: NodeIndex) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let slots = vec![FREE; (self.slots.len() * 2).max(SLOTS_MIN)];
            for slot in std::mem::replace(&mut self.slots, slots).into_iter().filter(|slot| slot.node.is_some()) {
                self.place(slot);
            }
        }
        self.place(Slot { hash, node });
        self.used += 1;
    }

    fn place(&mut self, slot: Slot) {
        let at = self.probe(slot.hash).last().map_or(self.home(slot.hash), |(at, _)| self.after(at));
        if let Some(free) = self.slots.get_mut(at) {
            *free = slot;
        }
    }

    pub(super) fn remove(&mut self, hash: u32, node: NodeIndex) {
        let Some((mut hole, _)) = self.probe(hash).find(|(_, slot)| slot.node == node) else { return };
        self.used -= 1;
        // What follows moves up, unless that were before its home: a search must not meet a hole on its way.
        let mask = self.slots.len() - 1;
        let mut at = self.after(hole);
        while let Some(slot) = self.slots.get(at).copied().filter(|slot| slot.node.is_some()) {
            let from_home = at.wrapping_sub(self.home(slot.hash)) & mask;
            if from_home >= at.wrapping_sub(hole) & mask {
                if let Some(to) = self.slots.get_mut(hole) {
                    *to = slot;
                }
                hole = at;
            }
            at = self.after(at);
        }
        if let Some(hole) = self.slots.get_mut(hole) {
            *hole = FREE;
        }
    }
}
