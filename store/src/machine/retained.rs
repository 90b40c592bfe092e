//! Retained messages for a new subscription, as the topics stood at the SUBSCRIBE's position.
//!
//! Topics are looked at in order, a bounded number an entry; what is left is a replicated cursor
//! ([`ContinuationRow::Retained`]). A value newer than the SUBSCRIBE is skipped: it was delivered live. When a
//! live message comes for a topic that the cursor has not reached, the topic's retained value goes first and
//! a mark makes the cursor pass the topic over. Within one entry positions do not tell older from newer
//! (what apply itself publishes counts on behind the commands): there, the mark does.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::effect::EffectSink;
use crate::ids::{Position, QoS, SessionId};
use crate::message::Message;
use crate::rows::key::{self, RowKind};
use crate::rows::value::{ContinuationRow, SubscriptionRow, Value as _};
use crate::rows::{RowRead as _, RowStore};
use crate::topic::{TopicFilter, TopicName};

use super::queue::Addressed;
use super::{Machine, MachineError};

impl<S: RowStore> Machine<S> {
    /// Starts to bring the retained messages that match `filter`; small sets are done at once.
    pub(super) fn bring_retained(
        &mut self,
        until: Position,
        id: SessionId,
        filter: &TopicFilter,
        subscription: SubscriptionRow,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let Some(epoch) = self.sessions.get(id).map(|s| s.row.epoch) else { return Ok(()) };
        if !filter.has_wildcard() && self.retained_budget > 0 {
            self.retained_budget -= 1;
            if let Some(message) = self.retained_at(filter.as_str(), until)? {
                self.copy_for(message.clone(), &addressed(id, subscription, message.qos), fx)?;
            }
            return Ok(());
        }
        let cursor = ContinuationRow::Retained {
            session: id,
            epoch,
            filter: filter.as_str().to_owned(),
            subscription,
            until,
            next_topic: filter.literal_prefix().to_owned(),
        };
        let mut budget = self.retained_budget;
        let rest = if budget > 0 { self.advance_retained(None, cursor, &mut budget, fx)? } else { Some(cursor) };
        self.retained_budget = budget;
        if let Some(rest) = rest {
            let at = self.own_position();
            self.put_continuation(at, rest)?;
            if let Some(session) = self.sessions.get_mut(id) {
                session.cursors.push(at);
            }
        }
        Ok(())
    }

    /// One step of a cursor; what is left of it, or `None` at its end.
    pub(super) fn advance_retained(
        &mut self,
        at: Option<Position>,
        cursor: ContinuationRow,
        budget: &mut usize,
        fx: &mut dyn EffectSink,
    ) -> Result<Option<ContinuationRow>, MachineError> {
        let ContinuationRow::Retained { session, epoch, filter, subscription, until, next_topic } = cursor else {
            return Ok(None);
        };
        // The subscription outlives the connection when the session does; a transient session's does not.
        if self.sessions.get(session).is_none() {
            return Ok(None);
        }
        let Ok(parsed) = TopicFilter::new(&filter) else { return Ok(None) };
        let prefix = key::retained(parsed.literal_prefix());
        let mut page: Vec<(String, Bytes)> = Vec::new();
        let mut more = None;
        let limit = *budget;
        self.rows.scan(key::retained(&next_topic).as_bytes(), &prefix.end(), &mut |k, v| {
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
            let marked = match at {
                Some(at) => self.take_mark(at, &topic)?,
                None => false,
            };
            if !marked && self.is_due(&message, until) && parsed.matches(&message.topic) {
                let to = addressed(session, subscription, message.qos);
                self.copy_for(message, &to, fx)?;
            }
        }
        Ok(more.map(|next_topic| ContinuationRow::Retained { session, epoch, filter, subscription, until, next_topic }))
    }

    /// Before a live message goes to `recipients`: the retained value of its topic, to those whose cursors still
    /// owe it. Before it replaces that value: to all (No Local keeps it from its publisher, not the old value).
    pub(super) fn bring_retained_first(
        &mut self,
        recipients: &[SessionId],
        live: &Message,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        let cursors: Vec<Position> = if live.retain {
            self.continuations.keys().copied().collect()
        } else {
            recipients.iter().filter_map(|id| self.sessions.get(*id)).flat_map(|s| s.cursors.iter().copied()).collect()
        };
        for at in cursors {
            let Some(ContinuationRow::Retained { session, filter, subscription, until, next_topic, .. }) =
                self.continuations.get(&at).cloned()
            else {
                continue;
            };
            let topic = live.topic.as_str();
            let owed = next_topic.as_str() <= topic && TopicFilter::new(&filter).is_ok_and(|f| f.matches(&live.topic));
            let mark = key::continuation_mark(at, topic);
            if !owed || self.rows.get(mark.as_bytes())?.is_some() {
                continue;
            }
            if let Some(message) = self.retained_at(topic, until)? {
                let to = addressed(session, subscription, message.qos);
                self.copy_for(message, &to, fx)?;
            }
            self.rows.put(mark.into(), Bytes::new());
        }
        Ok(())
    }

    /// Keeps, replaces or removes the retained message of its topic [MQTT-3.3.1-5], [MQTT-3.3.1-6].
    pub(super) fn retain(&mut self, message: &Message, row: &Bytes) -> Result<(), MachineError> {
        let key = key::retained(message.topic.as_str());
        if let Some(bytes) = self.rows.get(key.as_bytes())?
            && let Some(at) = Message::read(key.as_bytes(), &bytes)?.expires_at
        {
            self.retained_expiry.remove(&(at, message.topic.clone()));
        }
        if message.payload.is_empty() {
            self.rows.delete(key.into());
        } else {
            self.rows.put(key.into(), row.clone());
            self.retained_expiry.extend(message.expires_at.map(|at| (at, message.topic.clone())));
        }
        Ok(())
    }

    /// Removes the retained message of `topic`, which has expired.
    pub(super) fn expire_retained(&mut self, topic: &TopicName) {
        self.rows.delete(key::retained(topic.as_str()).into());
    }

    /// The cursors of a subscription that is gone end with it.
    pub(super) fn drop_retained_cursors(&mut self, id: SessionId, filter: &TopicFilter) -> Result<(), MachineError> {
        let Some(session) = self.sessions.get(id) else { return Ok(()) };
        for at in session.cursors.clone() {
            let row = self.continuations.get(&at);
            if matches!(row, Some(ContinuationRow::Retained { filter: f, .. }) if f == filter.as_str()) {
                self.end_cursor(at)?;
            }
        }
        Ok(())
    }

    /// A cursor has nothing more to bring; its marks are removed by later steps.
    pub(super) fn end_cursor(&mut self, at: Position) -> Result<(), MachineError> {
        self.end_continuation(at);
        self.put_continuation(at, ContinuationRow::Marks)
    }

    fn take_mark(&mut self, at: Position, topic: &str) -> Result<bool, MachineError> {
        let mark = key::continuation_mark(at, topic);
        let marked = self.rows.get(mark.as_bytes())?.is_some();
        if marked {
            self.rows.delete(mark.into());
        }
        Ok(marked)
    }

    fn retained_at(&self, topic: &str, until: Position) -> Result<Option<Message>, MachineError> {
        let key = key::retained(topic);
        let Some(bytes) = self.rows.get(key.as_bytes())? else { return Ok(None) };
        let message = Message::read(key.as_bytes(), &bytes)?;
        Ok(Some(message).filter(|m| self.is_due(m, until)))
    }

    fn is_due(&self, message: &Message, until: Position) -> bool {
        message.position.index() <= until.index() && message.expires_at.is_none_or(|at| at > self.applied.time)
    }

    /// Removes a continuation.
    pub(super) fn end_continuation(&mut self, at: Position) {
        self.rows.delete(key::of_position(RowKind::Continuation, at).into());
        if let Some(ContinuationRow::Retained { session, .. }) = self.continuations.remove(&at)
            && let Some(session) = self.sessions.get_mut(session)
        {
            session.cursors.retain(|cursor| *cursor != at);
        }
    }
}

fn addressed(session: SessionId, subscription: SubscriptionRow, qos: QoS) -> Addressed {
    Addressed {
        session,
        qos: qos.min(subscription.options.qos),
        retain: true,
        identifiers: subscription.identifier.into_iter().collect(),
    }
}
