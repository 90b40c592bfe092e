//! Exclusive subscriptions: `$exclusive/{filter}` is one session's at a time.
//!
//! It is free again with its UNSUBSCRIBE and with the end of the session, not with the end of a connection. The row that
//! says who holds it is read at SUBSCRIBE only; that of a session which has ended counts for nothing, until the sweep of
//! that session's subscriptions removes it.

use crate::ids::SessionId;
use crate::rows::RowStore;
use crate::rows::key;
use crate::rows::value::{NumberRow, Value as _};
use crate::topic::TopicFilter;

use super::{Machine, MachineError};

impl<S: RowStore> Machine<S> {
    /// Whether another session that lives holds `filter`.
    pub(super) fn is_held_by_another(&self, filter: &TopicFilter, id: SessionId) -> Result<bool, MachineError> {
        let holder = self.holder(filter)?.filter(|holder| *holder != id);
        Ok(holder.and_then(|holder| self.sessions.get(holder)).is_some_and(|session| self.lives(session)))
    }

    /// `filter` is this session's.
    pub(super) fn hold_exclusive(&mut self, filter: &TopicFilter, id: SessionId) -> Result<(), MachineError> {
        self.rows.put(key::exclusive(filter.as_str()), NumberRow(id.0.as_u64()).to_bytes()?);
        Ok(())
    }

    /// `filter` is this session's no more, if it was.
    pub(super) fn free_exclusive(&mut self, filter: &TopicFilter, id: SessionId) -> Result<(), MachineError> {
        if self.holder(filter)? == Some(id) {
            self.rows.delete(key::exclusive(filter.as_str()));
        }
        Ok(())
    }

    fn holder(&self, filter: &TopicFilter) -> Result<Option<SessionId>, MachineError> {
        let row: Option<NumberRow> = self.row(&key::exclusive(filter.as_str()))?;
        Ok(row.map(|NumberRow(id)| SessionId(crate::ids::Position::from_u64(id))))
    }
}
