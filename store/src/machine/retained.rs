//! Retained messages for a new subscription, as the topics stood at the SUBSCRIBE's position.
//!
//! Topics are looked at in order, a bounded number an entry; what is left is a replicated cursor
//! ([`Cursor`]). A value newer than the SUBSCRIBE is skipped: it was delivered live. When a
//! live message comes for a topic that the cursor has not reached, the topic's retained value goes first and
//! a mark makes the cursor pass the topic over. Within one entry positions do not tell older from newer
//! (what apply itself publishes counts on behind the commands): there, the mark does.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::effect::EffectSink;
use crate::ids::{Position, QoS, SessionId};
use crate::message::{Message, SharedMessage};
use crate::rows::key;
use crate::rows::value::{SubscriptionRow, Value as _, shared_identifiers};
use crate::rows::{RowRead as _, RowStore, RowValue};
use crate::seeded_bug::{SeededBug, is_seeded};
use crate::topic::{TopicFilter, TopicName};

use super::continuations::{Continuation, Cursor};
use super::queue::{Addressed, Reserved};
use super::state::Session;
use super::timers::STEP_ROWS;
use super::{Machine, MachineError};

/// Cursors that one session may have; a SUBSCRIBE that may need one more is answered with 0x97 Quota exceeded.
pub(super) const CURSORS_MAX: usize = 1024;

impl<S: RowStore> Machine<S> {
    /// Whether the retained messages of one more filter can be brought, by and by if not at once.
    pub(super) fn can_bring_retained(&self, id: SessionId, filter: &TopicFilter) -> bool {
        let may_need_a_cursor = filter.has_wildcard() || self.retained_budget == 0;
        let has_room = |session: &Session| {
            session.cursors.len() < CURSORS_MAX || session.cursors.contains_key(filter) || !may_need_a_cursor
        };
        self.numbers_left() > STEP_ROWS && self.sessions.get(id).is_some_and(has_room)
    }

    /// Starts to bring the retained messages that match `filter`; small sets are done at once. What an earlier
    /// SUBSCRIBE of the same filter still owes comes with this one.
    pub(super) fn bring_retained(
        &mut self,
        until: Position,
        id: SessionId,
        filter: &TopicFilter,
        subscription: SubscriptionRow,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        self.drop_retained_cursor(id, filter)?;
        if !filter.has_wildcard() && self.retained_budget > 0 {
            self.retained_budget -= 1;
            if let Some(message) = self.retained_at(filter.as_str())?.filter(|m| self.is_due(m, until)) {
                let to = addressed(id, subscription, message.qos);
                self.copy_for(&message, vec![to], Reserved::NONE, fx)?;
            }
            return Ok(());
        }
        let next_topic = filter.literal_prefix().to_owned();
        let mut cursor = Cursor { session: id, filter: filter.clone(), subscription, until, next_topic, marks: 0 };
        let mut budget = self.retained_budget;
        let is_done = budget > 0 && self.advance_cursor(None, &mut cursor, &mut budget, fx)?;
        self.retained_budget = budget;
        if !is_done {
            let at = self.own_position();
            self.put_continuation(at, Continuation::Retained(cursor))?;
        }
        Ok(())
    }

    /// One step of a cursor, which may have marks when it is at a position; true at its end.
    pub(super) fn advance_cursor(
        &mut self,
        at: Option<Position>,
        cursor: &mut Cursor,
        budget: &mut usize,
        fx: &mut dyn EffectSink,
    ) -> Result<bool, MachineError> {
        // The subscription outlives the connection when the session does; a transient session's does not.
        if !self.sessions.get(cursor.session).is_some_and(|session| self.lives(session)) {
            return Ok(true);
        }
        let limit = *budget;
        if self.numbers_left() < limit {
            // This entry has no more positions for copies; the next has.
            return Ok(false);
        }
        let prefix = key::retained(cursor.filter.literal_prefix());
        let mut page: Vec<(String, Bytes)> = Vec::new();
        let mut more = None;
        self.rows.scan(key::retained(&cursor.next_topic).as_bytes(), &prefix.end(), &mut |k, v| {
            let topic = String::from_utf8_lossy(key::rest(k)).into_owned();
            if page.len() >= limit {
                more = Some(topic);
                return ControlFlow::Break(());
            }
            page.push((topic, Bytes::copy_from_slice(v)));
            ControlFlow::Continue(())
        })?;
        *budget = budget.saturating_sub(page.len().max(1));
        for (topic, value) in page {
            let message = Message::read(key::retained(&topic).as_bytes(), &value)?;
            let marked = match at.filter(|_| cursor.marks > 0) {
                Some(at) => self.take_mark(at, cursor, &topic)?,
                None => false,
            };
            if !marked && self.is_due(&message, cursor.until) && cursor.filter.matches(&message.topic) {
                let to = addressed(cursor.session, cursor.subscription, message.qos);
                self.copy_for(&message, vec![to], Reserved::NONE, fx)?;
            }
        }
        let Some(more) = more else { return Ok(true) };
        cursor.next_topic = more;
        Ok(false)
    }

    /// Before a live message goes to `direct` and to those with room for it: the retained value of its topic, to those
    /// whose cursors still owe it. Before it replaces that value: to all (No Local keeps it from its publisher, not the
    /// old value). All get one copy, so that it takes one position however many they are.
    pub(super) fn bring_retained_first(
        &mut self,
        direct: &[Addressed],
        reserved: Reserved<'_>,
        live: &Message,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        if !self.continuations.has_cursors() {
            return Ok(());
        }
        let topic = live.topic.as_str();
        // Every cursor's filter is subscribed to.
        let sessions: Vec<SessionId> = if live.retain {
            self.trie.matches(&live.topic, None).sessions.into_iter().map(|found| found.session).collect()
        } else {
            reserved.queued.iter().chain(direct).map(|to| to.session).collect()
        };
        let is_owed = |cursor: &Cursor| cursor.next_topic.as_str() <= topic && cursor.filter.matches(&live.topic);
        let cursors = sessions.iter().filter_map(|id| self.sessions.get(*id)).flat_map(|s| s.cursors.values().copied());
        let owed: Vec<Position> = cursors.filter(|at| self.continuations.cursor(*at).is_some_and(is_owed)).collect();
        if owed.is_empty() {
            return Ok(());
        }
        let value = self.retained_at(topic)?;
        let mut to = Vec::new();
        for at in owed {
            let Some(cursor) = self.continuations.cursor(at) else { continue };
            let due = value.as_ref().filter(|m| self.is_due(m, cursor.until));
            // In the entry of the SUBSCRIBE a newer value cannot be told from an older one.
            let is_same_entry = cursor.until.index() == self.applied.index;
            if due.is_none() && !is_same_entry {
                continue;
            }
            let mark = key::continuation_mark(at, topic);
            if cursor.marks > 0 && self.rows.get(mark.as_bytes())?.is_some() {
                continue;
            }
            to.extend(due.map(|m| addressed(cursor.session, cursor.subscription, m.qos)));
            // A value that is replaced needs no mark later: the cursor passes newer ones over.
            if !live.retain || is_same_entry {
                self.rows.put(mark, Bytes::new());
                if let Some(cursor) = self.continuations.cursor_mut(at) {
                    cursor.marks += 1;
                }
            }
        }
        match value {
            Some(value) if !to.is_empty() => self.copy_for(&value, to, reserved, fx),
            _ => Ok(()),
        }
    }

    /// Keeps, replaces or removes the retained message of its topic [MQTT-3.3.1-5], [MQTT-3.3.1-6].
    pub(super) fn retain(&mut self, message: &Message, row: &RowValue) {
        let key = key::retained(message.topic.as_str());
        self.retained_expiry.forget(&message.topic);
        if message.payload.is_empty() {
            self.retained_topics.forget(&message.topic);
            if !is_seeded(SeededBug::RetainedNotCleared) {
                self.rows.delete(key);
            }
        } else {
            self.retained_topics.note(&message.topic);
            self.rows.put(key, row.clone());
            if let Some(at) = message.expires_at {
                self.retained_expiry.note(message.topic.clone(), at);
            }
        }
    }

    /// Removes the retained message of `topic`, which has expired.
    pub(super) fn expire_retained(&mut self, topic: &TopicName) {
        self.retained_topics.forget(topic);
        self.rows.delete(key::retained(topic.as_str()));
    }

    /// The cursor of a subscription that is gone ends with it.
    pub(super) fn drop_retained_cursor(&mut self, id: SessionId, filter: &TopicFilter) -> Result<(), MachineError> {
        let at = self.sessions.get(id).and_then(|session| session.cursors.get(filter).copied());
        at.map_or(Ok(()), |at| self.end_cursor(at))
    }

    fn take_mark(&mut self, at: Position, cursor: &mut Cursor, topic: &str) -> Result<bool, MachineError> {
        let mark = key::continuation_mark(at, topic);
        let marked = self.rows.get(mark.as_bytes())?.is_some();
        if marked {
            self.rows.delete(mark);
            cursor.marks = cursor.marks.saturating_sub(1);
        }
        Ok(marked)
    }

    fn retained_at(&self, topic: &str) -> Result<Option<SharedMessage>, MachineError> {
        let key = key::retained(topic);
        let is_stale = is_seeded(SeededBug::RetainedFromStaleFollower);
        Ok(if is_stale { self.rows.store().message(key.as_bytes())? } else { self.rows.message(key.as_bytes())? })
    }

    fn is_due(&self, message: &Message, until: Position) -> bool {
        message.position.index() <= until.index() && message.expires_at.is_none_or(|at| at > self.applied.time)
    }
}

fn addressed(session: SessionId, subscription: SubscriptionRow, qos: QoS) -> Addressed {
    Addressed {
        session,
        qos: qos.min(subscription.options.qos),
        retain: true,
        identifiers: shared_identifiers(subscription.identifier.into_iter()),
        given: None,
    }
}
