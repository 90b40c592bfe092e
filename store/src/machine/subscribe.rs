//! SUBSCRIBE and UNSUBSCRIBE.

use crate::command::Subscribe;
use crate::effect::{EffectSink, Outcome};
use crate::ids::{Position, QoS, SessionId};
use crate::rows::RowStore;
use crate::rows::key;
use crate::rows::value::{SubscriptionRow, Value as _};
use crate::topic::TopicFilter;

use super::{Machine, MachineError};

/// Subscriptions that one session may have; one more is answered with 0x97 Quota exceeded.
pub(super) const SUBSCRIPTIONS_MAX: u32 = 65_536;
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
        for (filter, options) in &subscribe.filters {
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
        let Some(session) = self.sessions.get_mut(id) else { return Ok(Err(QUOTA_EXCEEDED)) };
        let is_full = session.subscriptions >= SUBSCRIPTIONS_MAX;
        let is_new = self.trie.insert(filter, id, row);
        if is_new && is_full {
            self.trie.remove(filter, id);
            return Ok(Err(QUOTA_EXCEEDED));
        }
        session.subscriptions += u32::from(is_new);
        // An existing subscription is replaced, its options with it [MQTT-3.8.4-3].
        self.rows.put(key::subscription(id, filter.as_str()).into(), row.to_bytes()?);
        let wants_retained = match row.options.retain_handling {
            0 => true,
            1 => is_new,
            _ => false,
        };
        if wants_retained {
            self.bring_retained(position, id, filter, row, fx)?;
        }
        Ok(Ok(row.options.qos))
    }

    pub(super) fn unsubscribe(&mut self, id: SessionId, filters: &[TopicFilter]) -> Result<Outcome, MachineError> {
        let mut answers = Vec::with_capacity(filters.len());
        for filter in filters {
            let existed = self.trie.remove(filter, id);
            if existed {
                self.rows.delete(key::subscription(id, filter.as_str()).into());
                if let Some(session) = self.sessions.get_mut(id) {
                    session.subscriptions = session.subscriptions.saturating_sub(1);
                }
                self.drop_retained_cursors(id, filter)?;
            }
            answers.push(existed);
        }
        Ok(Outcome::Unsubscribed(answers))
    }
}
