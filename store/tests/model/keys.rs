//! Which publishes are remembered by their idempotency keys.

use quorate_store::command::Publish;
use quorate_store::ids::Position;

use super::Model;
use super::state::Known;

/// The key of a publish; an error when it has one that is none.
pub(super) fn key_of(publish: &Publish) -> Result<Option<String>, ()> {
    let user = publish.properties.iter().flat_map(|p| &p.user);
    let mut keys: Vec<&String> = user.filter(|(name, _)| name == "idempotency-key").map(|(_, key)| key).collect();
    keys.dedup();
    match keys.as_slice() {
        [] => Ok(None),
        [key] if (1..=256).contains(&key.len()) => Ok(Some((*key).clone())),
        _ => Err(()),
    }
}

impl Model {
    /// Where this key of this user was published first, as far as it is remembered.
    pub(super) fn known_at(&self, user: &Option<String>, key: &str) -> Option<Position> {
        let newest = self.known.iter().rev().take(self.settings.keys_max as usize);
        let mut same = newest.filter(|known| known.user == *user && known.key == key);
        same.find(|known| self.is_recent(known)).map(|known| known.position)
    }

    fn is_recent(&self, known: &Known) -> bool {
        self.time - known.came < u64::from(self.settings.key_window_s) * 1000
    }

    pub(super) fn come_to_know(&mut self, user: Option<String>, key: String, position: Position) {
        if self.settings.keys_max > 0 && self.settings.key_window_s > 0 {
            self.known.retain(|known| known.user != user || known.key != key);
            self.known.push(Known { user, key, position, came: self.time });
        }
    }

    /// At the end of an entry: what is too old, and the oldest when there are too many.
    pub(super) fn forget_old_keys(&mut self) {
        let surplus = self.known.len().saturating_sub(self.settings.keys_max as usize);
        self.known.drain(..surplus);
        let known = std::mem::take(&mut self.known);
        self.known = known.into_iter().filter(|known| self.is_recent(known)).collect();
    }

    /// An identifier of QoS 2 waits for its PUBREL.
    pub(super) fn record_identifier(&mut self, publish: &Publish) {
        if let (Some(from), Some(id)) = (publish.from, publish.packet_id)
            && let Some(session) = self.fenced(from)
        {
            session.inbound.insert(id.get());
        }
    }
}
