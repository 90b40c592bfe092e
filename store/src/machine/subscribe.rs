//! SUBSCRIBE and UNSUBSCRIBE.

use crate::command::Subscribe;
use crate::effect::{EffectSink, Outcome};
use crate::ids::{Position, QoS, SessionId};
use crate::rows::RowStore;
use crate::rows::key;
use crate::rows::value::{SubscriptionRow, Value as _};
use crate::topic::TopicFilter;

use super::{Machine, MachineError};

/// Filters that one SUBSCRIBE or UNSUBSCRIBE may have: it is one command, and its cost is bounded. Those beyond are
/// answered with 0x97 Quota exceeded, or as not subscribed to.
pub(super) const FILTERS_MAX: usize = 1024;
/// SUBACK reason code: Quota exceeded.
const QUOTA_EXCEEDED: u8 = 0x97;
/// SUBACK reason code: Shared Subscriptions not supported. They come with their own rows.
const SHARED_NOT_SUPPORTED: u8 = 0x9e;

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
    ) -> Result<Result<QoS, u8>, MachineError> {
        if filter.as_str().starts_with("$share/") {
            return Ok(Err(SHARED_NOT_SUPPORTED));
        }
        let Some(session) = self.sessions.get(id) else { return Ok(Err(QUOTA_EXCEEDED)) };
        let is_new = !self.trie.contains(filter, id);
        let wants_retained = match row.options.retain_handling {
            0 => true,
            1 => is_new,
            _ => false,
        };
        let is_full = is_new && session.subscriptions >= self.settings.subscriptions_max;
        if is_full || (wants_retained && !self.can_bring_retained(id, filter)) {
            return Ok(Err(QUOTA_EXCEEDED));
        }
        self.trie.insert(filter, id, row);
        if let Some(session) = self.sessions.get_mut(id) {
            session.subscriptions += u32::from(is_new);
        }
        // An existing subscription is replaced, its options with it [MQTT-3.8.4-3].
        self.rows.put(key::subscription(id, filter.as_str()), row.to_bytes()?);
        if wants_retained {
            self.bring_retained(position, id, filter, row, fx)?;
        }
        Ok(Ok(row.options.qos))
    }

    pub(super) fn unsubscribe(&mut self, id: SessionId, filters: &[TopicFilter]) -> Result<Outcome, MachineError> {
        let mut answers = Vec::with_capacity(filters.len());
        for (number, filter) in filters.iter().enumerate() {
            let existed = number < FILTERS_MAX && self.trie.remove(filter, id);
            if existed {
                self.rows.delete(key::subscription(id, filter.as_str()));
                if let Some(session) = self.sessions.get_mut(id) {
                    session.subscriptions = session.subscriptions.saturating_sub(1);
                }
                self.drop_retained_cursor(id, filter)?;
            }
            answers.push(existed);
        }
        Ok(Outcome::Unsubscribed(answers))
    }
}
