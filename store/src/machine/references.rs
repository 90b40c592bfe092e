//! How many queue rows point to a message that went to several.
//!
//! Each acknowledgement of such a message changes its count, so the counts of recent messages are held here and
//! written once a run, as counters are. What is written at the end of a run is the same on every replica, whether the
//! count was held or had to be read; what is held is bounded, and the oldest goes first.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Position;
use crate::rows::key::{self, RowKind};
use crate::rows::overlay::Overlay;
use crate::rows::value::{NumberRow, Value as _};
use crate::rows::{RowRead as _, RowStore};

use super::MachineError;

/// Counts that are held between runs.
const COUNTS_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug)]
struct Count {
    rows: u64,
    /// It has never been written.
    is_new: bool,
}

/// The counts of recent messages.
#[derive(Debug, Default)]
pub(super) struct References {
    counts: BTreeMap<Position, Count>,
    dirty: BTreeSet<Position>,
}

impl References {
    /// A new message to which `rows` point.
    pub(super) fn begin(&mut self, position: Position, rows: usize) {
        self.counts.insert(position, Count { rows: rows as u64, is_new: true });
        self.dirty.insert(position);
    }

    /// One row less points to the message; true when it was the last.
    pub(super) fn release<S: RowStore>(
        &mut self,
        position: Position,
        rows: &mut Overlay<S>,
    ) -> Result<bool, MachineError> {
        let key = key::of_position(RowKind::References, position);
        let count = match self.counts.get(&position) {
            Some(count) => *count,
            None => match rows.get(key.as_bytes())? {
                Some(bytes) => Count { rows: NumberRow::read(key.as_bytes(), &bytes)?.0, is_new: false },
                None => return Ok(true),
            },
        };
        if count.rows > 1 {
            self.counts.insert(position, Count { rows: count.rows - 1, ..count });
            self.dirty.insert(position);
            return Ok(false);
        }
        self.counts.remove(&position);
        self.dirty.remove(&position);
        if !count.is_new {
            rows.delete(key);
        }
        Ok(true)
    }

    /// Writes what the run has changed.
    pub(super) fn write<S: RowStore>(&mut self, rows: &mut Overlay<S>) -> Result<(), MachineError> {
        for position in std::mem::take(&mut self.dirty) {
            let Some(count) = self.counts.get_mut(&position) else { continue };
            count.is_new = false;
            rows.put(key::of_position(RowKind::References, position), NumberRow(count.rows).to_bytes()?);
        }
        while self.counts.len() > COUNTS_MAX {
            self.counts.pop_first();
        }
        Ok(())
    }
}
