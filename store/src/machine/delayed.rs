//! Delayed publishes, from their commit until cluster time reaches them.
//!
//! They stand in rows by due time and position, and are published in that order by every entry that finds some due,
//! a bounded step each. What is published then is a message of that entry, with a position of its own, as a will's:
//! the position of the PUBLISH is older than a SUBSCRIBE that came meanwhile, and what is read at that SUBSCRIBE must
//! not take it for what was there. Nobody can be refused then, so a full queue's copy is dropped and counted; what
//! waits is bounded where it comes in. The end of the publisher's session cancels nothing.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::Publish;
use crate::delayed::Delayed;
use crate::effect::{EffectSink, Outcome};
use crate::ids::{ClusterTime, Position};
use crate::message::Message;
use crate::rows::key::{self, Key, RowKind};
use crate::rows::value::{DelayedRow, Value as _};
use crate::rows::{RowRead as _, RowStore, RowsError};

use super::publish::Refusal;
use super::{Machine, MachineError};

/// Bytes charged for a row beside its value. With it the formula is version 1, as of queue rows.
const ROW_CHARGE: u64 = 64;
/// Bytes of rows that one entry publishes, about: the one that goes beyond is the last.
const STEP_BYTES: usize = 4 << 20;
/// PUBACK and PUBREC reason code: Quota exceeded.
const QUOTA_EXCEEDED: u8 = 0x97;

/// What the machine knows of them without reading.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// How many wait.
    pub(super) messages: u64,
    /// Bytes charged for them.
    pub(super) bytes: u64,
    /// When the first of them is due.
    next_due: Option<ClusterTime>,
    /// The row that was published last: there is none before it, and never will be.
    after: Option<Key>,
}

impl Waiting {
    fn took(&mut self, due: ClusterTime, value: &[u8]) {
        self.messages += 1;
        self.bytes += charge(value);
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    fn published(&mut self, key: Key, value: &[u8]) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(charge(value));
        self.after = Some(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    pub(super) fn is_due(&self, now: ClusterTime) -> bool {
        self.next_due.is_some_and(|due| due <= now)
    }
}

fn charge(value: &[u8]) -> u64 {
    ROW_CHARGE + value.len() as u64
}

impl<S: RowStore> Machine<S> {
    /// Delayed publishes that wait, and the bytes charged for them.
    #[must_use]
    pub fn delayed(&self) -> (u64, u64) {
        (self.waiting.messages, self.waiting.bytes)
    }

    /// Keeps a publish until it is due.
    pub(super) fn delay(
        &mut self,
        position: Position,
        publish: &Publish,
        delayed: Delayed,
    ) -> Result<Outcome, MachineError> {
        if delayed.delay_s > self.settings.delay_s_max {
            return Ok(Outcome::Refused(QUOTA_EXCEEDED));
        }
        let publisher = publish.from.and_then(|from| self.sessions.get(from.session));
        let row = DelayedRow {
            publisher: publisher.map(|session| session.row.client_id.to_string()),
            expiry_s: publish.expiry_s,
            message: Message {
                position,
                topic: delayed.topic,
                qos: publish.qos,
                retain: publish.retain,
                published_at: self.applied.time,
                expires_at: None,
                properties: publish.properties.clone(),
                payload: publish.payload.clone(),
            },
        };
        let value = row.to_bytes()?;
        if self.waiting.bytes.saturating_add(charge(&value)) > self.settings.delayed_bytes_max {
            return Ok(Outcome::QueueFull);
        }
        let due = self.applied.time.plus_secs(delayed.delay_s);
        self.waiting.took(due, &value);
        self.rows.put_new(key::delayed(due, position), value);
        // Whether somebody will subscribe to it by then is not known.
        Ok(Outcome::Published { position, matched: true })
    }

    /// Publishes what is due, within `budget` rows.
    pub(super) fn advance_delayed(&mut self, budget: &mut usize, fx: &mut dyn EffectSink) -> Result<(), MachineError> {
        if *budget == 0 || !self.waiting.is_due(self.applied.time) {
            return Ok(());
        }
        for (key, value) in self.read_due(*budget)? {
            *budget -= 1;
            self.waiting.published(key.clone(), &value);
            let row = DelayedRow::read(key.as_bytes(), &value)?;
            self.rows.delete(key);
            let publisher = row.publisher.and_then(|client_id| self.sessions.by_client(&client_id));
            let now = self.applied.time;
            let message = Message {
                position: self.own_position(),
                published_at: now,
                expires_at: row.expiry_s.map(|s| now.plus_secs(s)),
                ..row.message
            };
            self.spread(message, publisher, Refusal::Impossible, fx)?;
        }
        Ok(())
    }

    /// The first rows that are due, and notes when the one behind them is.
    fn read_due(&mut self, most: usize) -> Result<Vec<(Key, Bytes)>, MachineError> {
        let now = self.applied.time;
        let prefix = Key::kind(RowKind::Delayed);
        let from = self.waiting.after.as_ref().unwrap_or(&prefix);
        let mut found: Vec<(Key, Bytes)> = Vec::new();
        let (mut next_due, mut bytes, mut damaged) = (None, 0, None);
        self.rows.scan(from.as_bytes(), &prefix.end(), &mut |k, v| {
            let Some(due) = key::rest_u64(k, 0).map(ClusterTime) else {
                damaged = Some(key::describe(k));
                return ControlFlow::Break(());
            };
            if due > now || found.len() >= most || bytes >= STEP_BYTES {
                next_due = Some(due);
                return ControlFlow::Break(());
            }
            bytes += v.len();
            found.push((k.into(), Bytes::copy_from_slice(v)));
            ControlFlow::Continue(())
        })?;
        if let Some(key) = damaged {
            let reason = "its key does not begin with a time".to_owned();
            return Err(RowsError::Damaged { key, reason }.into());
        }
        self.waiting.next_due = next_due;
        Ok(found)
    }

    /// Start: what waits.
    pub(super) fn load_delayed(&mut self) -> Result<(), MachineError> {
        let mut loaded = Waiting::default();
        let prefix = Key::kind(RowKind::Delayed);
        self.rows.scan(prefix.as_bytes(), &prefix.end(), &mut |k, v| {
            loaded.took(key::rest_u64(k, 0).map_or(ClusterTime(0), ClusterTime), v);
            ControlFlow::Continue(())
        })?;
        self.waiting = loaded;
        Ok(())
    }
}
