//! Topic aliases that this node sets: the topics that were sent last on this connection.
//!
//! At most as many as the client takes, and as the configuration allows. A new topic takes the place of the one that
//! was used longest ago. Nothing is allocated before the first is set; nothing outlives the connection
//! [MQTT-3.3.2-7]. An alias counts only once its packet is on its way: [`Aliases::offer`] changes nothing.

use quorate_store::topic::TopicName;

use crate::mqtt::packet::SentAlias;

/// A topic of so many bytes is no longer than its alias.
const SHORT_TOPIC_BYTES: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Aliases {
    max: u16,
    uses: u64,
    /// The n-th has alias n + 1.
    topics: Vec<(TopicName, u64)>,
}

impl Aliases {
    /// `max` is the smaller of what the client takes and what this node keeps [MQTT-3.3.2-11].
    pub(super) fn new(max: u16) -> Self {
        Self { max, uses: 0, topics: Vec::new() }
    }

    pub(super) fn max(&self) -> u16 {
        self.max
    }

    /// The alias with which a message on `topic` would go out; `None` when it goes without.
    pub(super) fn offer(&self, topic: &TopicName) -> Option<SentAlias> {
        if self.max == 0 || topic.as_str().len() <= SHORT_TOPIC_BYTES {
            return None;
        }
        let known = self.topics.iter().position(|(known, _)| known == topic);
        let place = known.or_else(|| {
            let oldest = self.topics.iter().enumerate().min_by_key(|(_, (_, used))| *used).map(|(i, _)| i);
            if self.topics.len() < usize::from(self.max) { Some(self.topics.len()) } else { oldest }
        })?;
        let number = u16::try_from(place + 1).ok()?;
        Some(SentAlias { number, is_known: known.is_some() })
    }

    /// A message on `topic` goes out with what was offered.
    pub(super) fn sent(&mut self, alias: SentAlias, topic: &TopicName) {
        self.uses += 1;
        let place = usize::from(alias.number).saturating_sub(1);
        match self.topics.get_mut(place) {
            Some((_, used)) if alias.is_known => *used = self.uses,
            Some(entry) => *entry = (topic.clone(), self.uses),
            None => self.topics.push((topic.clone(), self.uses)),
        }
    }
}
