//! Idempotency keys: which publishes of which user are in the window, and where they stand.
//!
//! Two rows for each key: by user and key, to find it, and by position, so that the oldest go first, whether there
//! are too many or they are too old. Whether a key is in the window by time is asked when it is looked up, so what is
//! too old and not removed yet changes nothing, and no tick is needed for it. Each key that comes removes up to two
//! that are to go, and each entry a step of them, so that the window never grows beyond its bound by count.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::SessionRef;
use crate::ids::{ClusterTime, Position};
use crate::rows::key::{self, Key, RowKind};
use crate::rows::value::{IdempotencyOrderRow, IdempotencyRow, Value as _};
use crate::rows::{RowRead as _, RowStore, RowsError};
use crate::seeded_bug::{SeededBug, is_seeded};

use super::timers::STEP_ROWS;
use super::{Machine, MachineError, Settings};

/// Oldest keys that are read at a time, when some are to go.
const READ_AHEAD: usize = 64;
/// Keys that one new key removes at most: more than come, so that what is to go comes to an end.
const REMOVED_FOR_ONE: usize = 2;

/// What the machine knows of the window without reading.
#[derive(Debug, Default)]
pub(super) struct Idempotency {
    /// How many keys there are.
    pub(super) keys: u64,
    /// The oldest of them, read in advance: when they came, and under which name they stand.
    oldest: BTreeMap<Position, IdempotencyOrderRow>,
    /// Keys at lower positions are in `oldest`, or gone: nothing is read there again.
    read_until: Position,
}

/// A key of a publish, as its rows name it.
#[derive(Debug)]
pub(super) struct Named {
    /// User and key.
    name: Bytes,
    /// What stands there now, in the window or not.
    row: Option<IdempotencyRow>,
}

impl Settings {
    /// Whether publishes are remembered by their keys at all.
    fn has_idempotency(&self) -> bool {
        self.idempotency_keys_max > 0 && self.idempotency_window_s > 0
    }

    fn is_in_window(&self, came: ClusterTime, now: ClusterTime) -> bool {
        came.plus_secs(self.idempotency_window_s) > now
    }
}

impl<S: RowStore> Machine<S> {
    /// The key `key` of the user whose connection `from` is, with what is known of it.
    pub(super) fn named(&self, from: Option<SessionRef>, key: &str) -> Result<Option<Named>, MachineError> {
        if !self.settings.has_idempotency() {
            return Ok(None);
        }
        let user = from.and_then(|from| self.sessions.get(from.session)).and_then(|s| s.row.user.as_deref());
        let name = key::idempotency_name(user, key);
        let row = self.row(&key::idempotency(&name))?;
        Ok(Some(Named { name: name.into(), row }))
    }

    /// Where it was published first, if that is in the window.
    pub(super) fn first_position(&self, named: &Named) -> Option<Position> {
        let row = named.row.filter(|row| self.settings.is_in_window(row.came, self.applied.time))?;
        Some(row.position)
    }

    /// The message at `position` was published under this key, which is not in the window.
    pub(super) fn remember(&mut self, named: Named, position: Position) -> Result<(), MachineError> {
        if is_seeded(SeededBug::IdempotencyKeyForgotten) {
            return Ok(());
        }
        if let Some(old) = named.row {
            self.forget_order(old.position);
        }
        let came = self.applied.time;
        self.rows.put(key::idempotency(&named.name), IdempotencyRow { position, came }.to_bytes()?);
        let order = IdempotencyOrderRow { came, name: named.name };
        self.rows.put_new(key::of_position(RowKind::IdempotencyOrder, position), order.to_bytes()?);
        self.idempotency.keys += 1;
        self.forget_oldest_keys(REMOVED_FOR_ONE)
    }

    /// A step of an entry.
    pub(super) fn advance_idempotency(&mut self) -> Result<(), MachineError> {
        self.forget_oldest_keys(STEP_ROWS)
    }

    /// Whether there are more keys than the setting allows, because it was lowered.
    pub(super) fn has_surplus_keys(&self) -> bool {
        self.idempotency.keys > self.settings.idempotency_keys_max
    }

    /// Removes up to `most` keys that are too many or too old.
    fn forget_oldest_keys(&mut self, most: usize) -> Result<(), MachineError> {
        for _ in 0..most {
            if self.idempotency.oldest.is_empty() && self.idempotency.keys > 0 {
                self.read_oldest_keys()?;
            }
            let Some((position, oldest)) = self.idempotency.oldest.first_key_value() else { return Ok(()) };
            if !self.has_surplus_keys() && self.settings.is_in_window(oldest.came, self.applied.time) {
                return Ok(());
            }
            let (position, name) = (*position, oldest.name.clone());
            self.forget_order(position);
            self.rows.delete(key::idempotency(&name));
        }
        Ok(())
    }

    /// Removes a key from the order; its other row is the caller's.
    fn forget_order(&mut self, position: Position) {
        self.rows.delete(key::of_position(RowKind::IdempotencyOrder, position));
        self.idempotency.oldest.remove(&position);
        self.idempotency.keys = self.idempotency.keys.saturating_sub(1);
    }

    fn read_oldest_keys(&mut self) -> Result<(), MachineError> {
        let from = key::of_position(RowKind::IdempotencyOrder, self.idempotency.read_until);
        let mut failed = None;
        let mut found = Vec::new();
        self.rows.scan(from.as_bytes(), &Key::kind(RowKind::IdempotencyOrder).end(), &mut |k, v| {
            match order_row(k, v) {
                Ok(row) => found.push(row),
                Err(e) => failed = Some(e),
            }
            if failed.is_some() || found.len() >= READ_AHEAD {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if let Some(e) = failed {
            return Err(e.into());
        }
        if let Some((last, _)) = found.last() {
            self.idempotency.read_until = Position::from_u64(last.as_u64().saturating_add(1));
        }
        self.idempotency.oldest.extend(found);
        Ok(())
    }

    /// Start: how many keys there are.
    pub(super) fn load_idempotency(&mut self) -> Result<(), MachineError> {
        let mut loaded = Idempotency::default();
        let prefix = Key::kind(RowKind::IdempotencyOrder);
        self.rows.scan(prefix.as_bytes(), &prefix.end(), &mut |_, _| {
            loaded.keys += 1;
            ControlFlow::Continue(())
        })?;
        self.idempotency = loaded;
        Ok(())
    }
}

fn order_row(k: &[u8], v: &[u8]) -> Result<(Position, IdempotencyOrderRow), RowsError> {
    let position = key::rest_u64(k, 0).map(Position::from_u64);
    let damaged = || RowsError::Damaged { key: key::describe(k), reason: "its key is no position".to_owned() };
    Ok((position.ok_or_else(damaged)?, IdempotencyOrderRow::read(k, &Bytes::copy_from_slice(v))?))
}
