//! `$SYS/broker/load/...`: what comes and goes a minute, as moving averages over 1, 5 and 15 minutes, with Mosquitto's
//! names.

use std::time::Instant;

use quorate_store::topic::TopicName;

use super::{Scope, Scoped};
use crate::mqtt::stats::StatsSnapshot;
use crate::mqtt::sys::value;

const WINDOWS_MIN: [u32; 3] = [1, 5, 15];

/// A counter and its averages, in events a minute.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    last: u64,
    a_minute: [f64; WINDOWS_MIN.len()],
}

impl Average {
    fn update(&mut self, now: u64, minutes: f64) {
        let rate = now.saturating_sub(self.last) as f64 / minutes;
        self.last = now;
        for (average, window) in self.a_minute.iter_mut().zip(WINDOWS_MIN) {
            let kept = (-minutes / f64::from(window)).exp();
            *average = rate * (1.0 - kept) + *average * kept;
        }
    }
}

type Counter = fn(&StatsSnapshot) -> u64;

const COUNTERS: [(&str, Counter); 9] = [
    ("messages/received", |s| s.packets_in),
    ("messages/sent", |s| s.packets_out),
    ("publish/received", |s| s.publishes_in.iter().sum()),
    ("publish/sent", |s| s.publishes_out.iter().sum()),
    ("publish/dropped", |s| s.qos0_dropped + s.expired + s.too_large + s.queue_full + s.refused),
    ("bytes/received", |s| s.bytes_in),
    ("bytes/sent", |s| s.bytes_out),
    ("sockets", |s| s.connections_total),
    ("connections", |s| s.accepted),
];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Load {
    averages: [Average; COUNTERS.len()],
    updated: Option<Instant>,
}

impl Load {
    /// Takes the counters as they are `now`.
    pub(super) fn update(&mut self, stats: &StatsSnapshot, now: Instant) {
        let passed = self.updated.replace(now).map(|before| now.duration_since(before).as_secs_f64() / 60.0);
        for (average, (_, of)) in self.averages.iter_mut().zip(COUNTERS) {
            match passed {
                Some(minutes) if minutes > 0.0 => average.update(of(stats), minutes),
                _ => average.last = of(stats),
            }
        }
    }

    pub(super) fn values(&self) -> Vec<Scoped> {
        let mut values = Vec::with_capacity(COUNTERS.len() * WINDOWS_MIN.len());
        for (average, (name, _)) in self.averages.iter().zip(COUNTERS) {
            for (a_minute, window) in average.a_minute.iter().zip(WINDOWS_MIN) {
                if let Ok(topic) = TopicName::new(&format!("$SYS/broker/load/{name}/{window}min")) {
                    values.push((Scope::Here, value(topic, format!("{a_minute:.2}"))));
                }
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn averages_come_to_what_happens_a_minute_the_short_one_first() {
        let mut load = Load::default();
        let start = Instant::now();
        let mut stats = StatsSnapshot { packets_in: 1_000_000, ..StatsSnapshot::default() };
        load.update(&stats, start);
        for tick in 1..=360 {
            stats.packets_in += 10; // every ten seconds: sixty a minute
            load.update(&stats, start + Duration::from_secs(10 * tick));
            if tick == 6 {
                let [one, five, fifteen] = load.averages[0].a_minute;
                assert!(one > five && five > fifteen && fifteen > 0.0 && one < 60.0, "{one} {five} {fifteen}");
            }
        }
        assert!(load.averages[0].a_minute.iter().all(|a| (a - 60.0).abs() < 2.0), "{:?}", load.averages[0]);
    }
}
