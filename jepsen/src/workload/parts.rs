//! Publishers and subscribers that several workloads are made of.

use std::time::{Duration, Instant};

use super::Actor;
use crate::client::{Client, Extras};

/// How long one try to get a connection takes.
pub(super) const TRY: Duration = Duration::from_secs(2);

/// Publishes to one topic as fast as a window lets it, with pauses that bound the rate.
pub(super) struct Publisher {
    pub(super) topic: String,
    pub(super) qos: u8,
    /// Publishes that may be unanswered at a time.
    pub(super) window: usize,
    /// The connection is broken off so often in a thousand turns.
    pub(super) breaks_permille: u64,
    /// So often in a thousand turns it publishes twice under one idempotency key.
    pub(super) keys_permille: u64,
    /// So many in a thousand of its messages expire after 1 to 3 seconds.
    pub(super) expiring_permille: u64,
}

impl Publisher {
    pub(super) fn new(topic: impl Into<String>, qos: u8) -> Self {
        Self { topic: topic.into(), qos, window: 8, breaks_permille: 5, keys_permille: 0, expiring_permille: 0 }
    }
}

impl Actor for Publisher {
    fn turn(&mut self, client: &mut Client) {
        if !client.ensure_connected(Instant::now() + TRY) {
            return;
        }
        if client.rng.below(1_000) < self.breaks_permille {
            return client.break_off();
        }
        if client.rng.below(1_000) < self.keys_permille {
            let key = format!("{}-{}", client.id.0, client.rng.draw());
            for _ in 0..2 {
                let extras = Extras { key: Some(key.clone()), ..Extras::default() };
                client.publish_with(extras, &self.topic, self.qos, false);
            }
        }
        let burst = client.rng.between(1, self.window as u64);
        for _ in 0..burst {
            let is_expiring = client.rng.below(1_000) < self.expiring_permille;
            let seconds = u32::try_from(client.rng.between(1, 3)).unwrap_or(1);
            let extras = Extras { expiry_s: is_expiring.then_some(seconds), ..Extras::default() };
            let is_full = client.open() >= self.window;
            if is_full || client.publish_with(extras, &self.topic, self.qos, false).is_none() {
                break;
            }
        }
        let pause = client.rng.between(10, 60);
        client.pump(Duration::from_millis(pause));
    }
}

/// Subscribed before the first publish and to the end; its session never ends, its connections do.
pub(super) struct Subscriber {
    pub(super) filter: String,
    pub(super) qos: u8,
    pub(super) breaks_permille: u64,
    /// It stays away for so long, in milliseconds, after it broke off.
    pub(super) away_ms: (u64, u64),
}

impl Subscriber {
    pub(super) fn new(filter: impl Into<String>, qos: u8) -> Self {
        Self { filter: filter.into(), qos, breaks_permille: 10, away_ms: (0, 300) }
    }
}

impl Actor for Subscriber {
    fn setup(&mut self, client: &mut Client) -> bool {
        client.subscribe(&self.filter, self.qos)
    }

    fn turn(&mut self, client: &mut Client) {
        if !client.ensure_connected(Instant::now() + TRY) {
            return;
        }
        client.pump(Duration::from_millis(100));
        if client.rng.below(1_000) < self.breaks_permille {
            client.break_off();
            let away = client.rng.between(self.away_ms.0, self.away_ms.1);
            client.pump(Duration::from_millis(away));
        }
    }
}
