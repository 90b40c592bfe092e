//! Counters of one listener, of all workers together: a connection comes and goes seldom enough for that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::limits::{Refusal, Seldom};

/// Why a connection came to nothing before MQTT was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Failure {
    /// Its PROXY header.
    Proxy,
    /// Its TLS handshake.
    Tls,
    /// Its request for a WebSocket.
    WebSocket,
}

impl Failure {
    const ALL: [Self; 3] = [Self::Proxy, Self::Tls, Self::WebSocket];

    const fn label(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::WebSocket => "websocket",
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::mqtt) struct ListenerStats {
    pub(super) connections: AtomicU64,
    pub(super) connections_total: AtomicU64,
    refused: [AtomicU64; 3],
    failed: [AtomicU64; 3],
    refusals_logged: Seldom,
    failures_logged: Seldom,
}

impl ListenerStats {
    /// Counts a refusal. Whether it is time for a log line about refusals.
    pub(super) fn refuse(&self, refusal: Refusal, now: Instant) -> bool {
        let counters = Refusal::ALL.iter().zip(&self.refused);
        for (_, counter) in counters.filter(|(of, _)| **of == refusal) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.refusals_logged.now(now)
    }

    /// Counts a failure. Whether it is time for a log line about failures.
    pub(super) fn fail(&self, failure: Failure, now: Instant) -> bool {
        let counters = Failure::ALL.iter().zip(&self.failed);
        for (_, counter) in counters.filter(|(of, _)| **of == failure) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.failures_logged.now(now)
    }

    pub(super) fn snapshot(&self, name: &str) -> ListenerSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ListenerSnapshot {
            name: name.to_owned(),
            connections: load(&self.connections),
            connections_total: load(&self.connections_total),
            refused: Refusal::ALL.iter().zip(&self.refused).map(|(of, n)| (of.label(), load(n))).collect(),
            failed: Failure::ALL.iter().zip(&self.failed).map(|(of, n)| (of.label(), load(n))).collect(),
        }
    }
}

/// The counters of one listener at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSnapshot {
    /// The listener's name.
    pub name: String,
    /// Sockets now.
    pub connections: u64,
    /// Sockets ever.
    pub connections_total: u64,
    /// Connections beyond a bound: `connections`, `address` and `rate`.
    pub refused: Vec<(&'static str, u64)>,
    /// Connections that came to nothing before MQTT: `proxy`, `tls` and `websocket`.
    pub failed: Vec<(&'static str, u64)>,
}
