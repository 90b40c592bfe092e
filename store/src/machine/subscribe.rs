//! SUBSCRIBE and UNSUBSCRIBE.

use crate::command::Subscribe;
use crate::effect::{EffectSink, Granted, Outcome};
use crate::ids::{Position, SessionId};
use crate::rows::RowStore;
use crate::rows::key;
use crate::rows::value::{SubscriptionRow, Value as _};
use crate::topic::{FilterKind, TopicFilter};

use super::trie::Subscriber;
use super::{Machine, MachineError};

/// Filters that one SUBSCRIBE or UNSUBSCRIBE may have: it is one command, and its cost is bounded. Those beyond are
/// answered with 0x97 Quota exceeded, or as not subscribed to.
pub(super) const FILTERS_MAX: usize = 1024;
/// SUBACK reason code: Quota exceeded.
const QUOTA_EXCEEDED: u8 = 0x97;
/// SUBACK reason code: Topic Filter invalid.
const FILTER_INVALID: u8 = 0x8f;

impl<S: RowStore> Machine<S> {
    pub(super) fn subscribe(
        &mut self,
        position: Position,
        subscribe: &Subscribe,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        let id = subscribe.from.session;
        let mut answers = Vec::with_capacity(subscribe.filters.len());
        for (number, (filter, options)) in subscribe.filters.iter().enumerate() {
            if number >= FILTERS_MAX {
                answers.push(Err(QUOTA_EXCEEDED));
                continue;
            }
            let row = SubscriptionRow { identifier: subscribe.identifier, options: *options };
            answers.push(self.subscribe_one(position, id, filter, row, fx)?);
        }
        Ok(Outcome::Subscribed(answers))
    }

    fn subscribe_one(
        &mut self,
        position: Position,
        id: SessionId,
        filter: &TopicFilter,
        row: SubscriptionRow,
        fx: &mut dyn EffectSink,
    ) -> Result<Result<Granted, u8>, MachineError> {
        let Some(session) = self.sessions.get(id) else { return Ok(Err(QUOTA_EXCEEDED)) };
        let has_room = session.subscriptions < self.settings.subscriptions_max;
        let (matched, who) = match filter.kind() {
            FilterKind::Plain => (filter.clone(), Subscriber::Session(id)),
            FilterKind::Exclusive { filter } if self.is_held_by_another(&filter, id)? => {
                return Ok(Err(QUOTA_EXCEEDED));
            }
            FilterKind::Exclusive { filter } => (filter, Subscriber::Exclusive(id)),
            FilterKind::Shared { .. } => {
                let is_new = !self.is_member(filter, id);
                if (is_new && !has_room) || !self.join_share(filter, id, row) {
                    return Ok(Err(QUOTA_EXCEEDED));
                }
                // Retained messages are not for a part of a group.
                self.count_subscription(id, is_new);
                self.rows.put(key::subscription(id, filter.as_str()), row.to_bytes()?);
                return Ok(Ok(Granted { qos: row.options.qos, is_new }));
            }
            FilterKind::Invalid => return Ok(Err(FILTER_INVALID)),
        };
        let is_new = !self.trie.contains(&matched, who);
        let wants_retained = match row.options.retain_handling {
            0 => true,
            1 => is_new,
            _ => false,
        };
        if (is_new && !has_room) || (wants_retained && !self.can_bring_retained(id, &matched)) {
            return Ok(Err(QUOTA_EXCEEDED));
        }
        self.trie.insert(&matched, who, row);
        self.count_subscription(id, is_new);
        if let Subscriber::Exclusive(_) = who {
            self.hold_exclusive(&matched, id)?;
        }
        // An existing subscription is replaced, its options with it [MQTT-3.8.4-3].
        self.rows.put(key::subscription(id, filter.as_str()), row.to_bytes()?);
        if wants_retained {
            self.bring_retained(position, id, &matched, row, fx)?;
        }
        Ok(Ok(Granted { qos: row.options.qos, is_new }))
    }

    fn count_subscription(&mut self, id: SessionId, is_new: bool) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.subscriptions += u32::from(is_new);
        }
    }

    pub(super) fn unsubscribe(&mut self, id: SessionId, filters: &[TopicFilter]) -> Result<Outcome, MachineError> {
        let mut answers = Vec::with_capacity(filters.len());
        for (number, filter) in filters.iter().enumerate() {
            let existed = number < FILTERS_MAX && self.unsubscribe_one(id, filter)?;
            if existed {
                self.rows.delete(key::subscription(id, filter.as_str()));
                if let Some(session) = self.sessions.get_mut(id) {
                    session.subscriptions = session.subscriptions.saturating_sub(1);
                }
            }
            answers.push(existed);
        }
        Ok(Outcome::Unsubscribed(answers))
    }

    /// True when there was such a subscription.
    fn unsubscribe_one(&mut self, id: SessionId, filter: &TopicFilter) -> Result<bool, MachineError> {
        let (matched, who, other) = match filter.kind() {
            FilterKind::Shared { .. } => return self.leave_share_of(filter, id),
            FilterKind::Exclusive { filter } => (filter, Subscriber::Exclusive(id), Subscriber::Session(id)),
            FilterKind::Plain | FilterKind::Invalid => {
                (filter.clone(), Subscriber::Session(id), Subscriber::Exclusive(id))
            }
        };
        if !self.trie.remove(&matched, who) {
            return Ok(false);
        }
        if let Subscriber::Exclusive(_) = who {
            self.free_exclusive(&matched, id)?;
        }
        // `a` and `$exclusive/a` have one cursor.
        if !self.trie.contains(&matched, other) {
            self.drop_retained_cursor(id, &matched)?;
        }
        Ok(true)
    }
}
