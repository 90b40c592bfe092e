//! Which record stands in which batch, which segments are needed, and the state as it is on disk.
//!
//! One place a batch, not a record, so its size is bounded by the log's bytes over 512. The writer brings it forward
//! after each synced batch, the check at open for each batch that it reads; readers look a record's batch up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::super::LogState;
use super::file::Segment;
use super::format::{Item, Kind};

/// The state as it is on disk: what the next segment's header repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<(u64, Bytes)>,
    /// Index of the first record of a log that was never purged.
    pub(super) begin: u64,
    pub(super) last: Option<u64>,
}

impl Contents {
    /// What a header says.
    ///
    /// # Errors
    /// In words, when that cannot be.
    pub(super) fn of_header<'a>(items: impl Iterator<Item = Item<'a>>) -> Result<Self, String> {
        let mut out = Self::default();
        for item in items {
            match item.kind {
                Kind::Last => out.last = Some(item.index),
                Kind::Purge => out.purged = Some((item.index, Bytes::copy_from_slice(item.body))),
                Kind::Record | Kind::Truncate => return Err(format!("an item of kind {:?} in a header", item.kind)),
                _ => out.apply(&item)?,
            }
        }
        Ok(out)
    }

    /// As a header says it.
    pub(super) fn items(&self) -> Vec<Item<'_>> {
        let vote = self.vote.as_ref().map(|vote| Item::new(Kind::Vote, 0, vote));
        let committed = self.committed.as_ref().map(|committed| Item::new(Kind::Committed, 0, committed));
        let purged = self.purged.as_ref().map(|(index, id)| Item::new(Kind::Purge, *index, id));
        let last = self.last.map(|index| Item::new(Kind::Last, index, &[]));
        let begin = Some(Item::new(Kind::Begin, self.begin, &[]));
        [vote, committed, purged, begin, last].into_iter().flatten().collect()
    }

    /// Index of the first record, there or to come.
    pub(super) fn first(&self) -> u64 {
        self.purged.as_ref().map_or(self.begin, |(index, _)| index.saturating_add(1))
    }

    /// Takes one item.
    ///
    /// # Errors
    /// In words, when it cannot follow.
    fn apply(&mut self, item: &Item<'_>) -> Result<(), String> {
        let purged = self.purged.as_ref().map(|(index, _)| *index);
        match item.kind {
            Kind::Record => {
                let next = self.last.or(purged).map(|index| index.saturating_add(1));
                if let Some(expected) = next.filter(|next| *next != item.index) {
                    return Err(format!("record {} where {expected} belongs", item.index));
                }
                self.last = Some(item.index);
            }
            Kind::Vote => self.vote = Some(Bytes::copy_from_slice(item.body)),
            Kind::Committed => self.committed = Some(Bytes::copy_from_slice(item.body)),
            Kind::Begin => self.begin = item.index,
            Kind::Truncate => {
                if let Some(purged) = purged.filter(|purged| *purged >= item.index) {
                    return Err(format!("a truncation from {} on of a log purged up to {purged}", item.index));
                }
                if self.last.is_some_and(|last| last >= item.index) {
                    let first = self.first();
                    self.last = item.index.checked_sub(1).filter(|last| *last >= first);
                }
            }
            Kind::Purge => {
                if let Some(purged) = purged.filter(|purged| *purged >= item.index) {
                    return Err(format!("a purge up to {} of a log purged up to {purged}", item.index));
                }
                self.last = self.last.filter(|last| *last > item.index);
                self.purged = Some((item.index, Bytes::copy_from_slice(item.body)));
            }
            Kind::Last => return Err("an item of kind Last in a batch".to_owned()),
        }
        Ok(())
    }

    /// As callers are told.
    pub(super) fn state(&self) -> LogState {
        let Self { vote, committed, purged, last, .. } = self.clone();
        LogState { vote, committed, purged, last }
    }
}

/// Where a batch is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    /// Bytes of the batch.
    pub(super) len: usize,
}

/// A batch with records that are still there.
#[derive(Debug)]
struct Indexed {
    /// Index of its first record, or less: what was before it in the batch is purged. Its last one stands before the
    /// next batch's first.
    first: u64,
    place: Place,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) contents: Contents,
    batches: VecDeque<Indexed>,
    /// Segments with a header, by number, without a gap.
    live: BTreeMap<u64, Arc<Segment>>,
}

impl Index {
    /// A segment has its header.
    pub(super) fn begin(&mut self, segment: &Arc<Segment>) {
        self.live.insert(segment.number, Arc::clone(segment));
    }

    /// A batch is there.
    ///
    /// # Errors
    /// In words, when it cannot follow.
    pub(super) fn batch<'a>(&mut self, place: Place, items: impl Iterator<Item = Item<'a>>) -> Result<(), String> {
        let mut first: Option<u64> = None;
        for item in items {
            self.contents.apply(&item)?;
            match item.kind {
                Kind::Record => first = Some(first.map_or(item.index, |first| first.min(item.index))),
                Kind::Truncate => {
                    while self.batches.back().is_some_and(|batch| batch.first >= item.index) {
                        self.batches.pop_back();
                    }
                    first = first.filter(|first| *first < item.index);
                }
                _ => {}
            }
        }
        if let Some(first) = first {
            self.batches.push_back(Indexed { first, place });
        }
        let begin = self.contents.first();
        while self.batches.get(1).is_some_and(|second| second.first <= begin) {
            self.batches.pop_front();
        }
        if self.contents.last.is_none() {
            self.batches.clear();
        }
        Ok(())
    }

    /// The batch that holds the record `index`, and the index behind its last one.
    pub(super) fn find(&self, index: u64) -> Option<(Place, u64)> {
        let last = self.contents.last.filter(|last| *last >= index)?;
        let behind = self.batches.partition_point(|batch| batch.first <= index);
        let batch = self.batches.get(behind.checked_sub(1)?)?;
        let end = self.batches.get(behind).map_or(last.saturating_add(1), |next| next.first);
        Some((batch.place.clone(), end))
    }

    /// The index of the first record that is missing at the beginning, if one is.
    pub(super) fn hole(&self) -> Option<u64> {
        self.contents.last?;
        let first = self.contents.first();
        (self.batches.front().is_none_or(|batch| batch.first > first)).then_some(first)
    }

    /// Whether `segment` has not been given up.
    pub(super) fn is_live(&self, segment: &Segment) -> bool {
        self.live.contains_key(&segment.number)
    }

    /// Gives up the segments before `current` that hold nothing any more, oldest first: those in the middle stay
    /// until the ones before them go, or the sequence numbers would have a gap.
    pub(super) fn give_up(&mut self, current: u64) -> Vec<u64> {
        let needed = self.batches.front().map_or(current, |batch| batch.place.segment.number.min(current));
        if self.live.first_key_value().is_none_or(|(oldest, _)| *oldest >= needed) {
            return Vec::new();
        }
        let kept = self.live.split_off(&needed);
        std::mem::replace(&mut self.live, kept).into_keys().collect()
    }
}

/// Of the items of a batch, the bodies of the records from `from` up to `to_exclusive`: one that was written again in
/// the same batch, behind a truncation, counts as it was written last.
pub(super) fn records<'a>(items: impl Iterator<Item = Item<'a>>, from: u64, to_exclusive: u64) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    for item in items.filter(|item| item.kind == Kind::Record && item.index < to_exclusive) {
        // Records of a batch are consecutive but for the steps back that truncations make.
        let at = item.index.checked_sub(from).and_then(|at| usize::try_from(at).ok());
        out.truncate(at.unwrap_or(0));
        if at == Some(out.len()) {
            out.push(item.body);
        }
    }
    out
}
