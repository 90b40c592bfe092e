//! Counters of the front end: atomics of each worker, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use super::listen::AuthMethod;
use super::reason::Reason;
use super::session::Counts;

const METHODS: usize = AuthMethod::ALL.len();

/// Counters of one worker. A worker adds without contention; readers add the workers up.
#[derive(Debug)]
pub struct Stats {
    /// Sockets now.
    pub connections: AtomicU64,
    /// Sockets ever.
    pub connections_total: AtomicU64,
    /// CONNACK 0.
    pub accepted: AtomicU64,
    /// Publishes taken, by QoS.
    pub publishes_in: [AtomicU64; 3],
    /// Publishes sent, by QoS.
    pub publishes_out: [AtomicU64; 3],
    /// Bytes read, in packets that were decoded.
    pub bytes_in: AtomicU64,
    /// Bytes written to sockets' buffers.
    pub bytes_out: AtomicU64,
    /// Connections that ended with this reason (0 when the client or its socket ended it).
    pub closed: [AtomicU64; 256],
    /// Deliveries that had expired.
    pub expired: AtomicU64,
    /// Packets above the client's Maximum Packet Size.
    pub too_large: AtomicU64,
    /// QoS 0 deliveries dropped: the client, or this worker, was behind.
    pub qos0_dropped: AtomicU64,
    /// Transient sessions whose queue overflowed.
    pub transient_overflows: AtomicU64,
    /// Publishes refused by a full queue.
    pub queue_full: AtomicU64,
    /// Publishes that were not taken for another reason.
    pub refused: AtomicU64,
    /// Times a client published too fast and was not read for a while.
    pub throttled: AtomicU64,
    /// Payload bytes of publishes taken.
    pub publish_bytes_in: AtomicU64,
    /// Payload bytes of publishes sent.
    pub publish_bytes_out: AtomicU64,
    /// Packets of any kind read.
    pub packets_in: AtomicU64,
    /// Packets of any kind written.
    pub packets_out: AtomicU64,
    /// Acknowledgements that answered nothing.
    pub unknown_acks: AtomicU64,
    /// Pages of queues read.
    pub pages: AtomicU64,
    /// Times the proposer was full.
    pub busy: AtomicU64,
    /// Deliveries left to be paged because the worker was behind.
    pub mailbox_degraded: AtomicU64,
    /// Clients that were let in, by method of authentication.
    pub authenticated: [AtomicU64; METHODS],
    /// Clients that were not, by method; the last: no method could judge what they showed.
    pub auth_failures: [AtomicU64; METHODS + 1],
    /// Publishes that the rules refused.
    pub denied_publishes: AtomicU64,
    /// Subscriptions that the rules refused.
    pub denied_subscriptions: AtomicU64,
    /// Acknowledgements before their commit was applied. Stays 0.
    pub acks_before_commit: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            connections: AtomicU64::new(0),
            connections_total: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            publishes_in: Default::default(),
            publishes_out: Default::default(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            closed: std::array::from_fn(|_| AtomicU64::new(0)),
            expired: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            qos0_dropped: AtomicU64::new(0),
            transient_overflows: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            publish_bytes_in: AtomicU64::new(0),
            publish_bytes_out: AtomicU64::new(0),
            packets_in: AtomicU64::new(0),
            packets_out: AtomicU64::new(0),
            unknown_acks: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            mailbox_degraded: AtomicU64::new(0),
            authenticated: Default::default(),
            auth_failures: Default::default(),
            denied_publishes: AtomicU64::new(0),
            denied_subscriptions: AtomicU64::new(0),
            acks_before_commit: AtomicU64::new(0),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    if n > 0 {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

impl Stats {
    /// Adds what one input counted.
    pub(super) fn add(&self, counts: &Counts) {
        for (counter, n) in self.publishes_in.iter().zip(counts.publishes_in) {
            add(counter, n);
        }
        for (counter, n) in self.publishes_out.iter().zip(counts.publishes_out) {
            add(counter, n);
        }
        add(&self.accepted, counts.accepted);
        add(&self.expired, counts.expired);
        add(&self.too_large, counts.too_large);
        add(&self.qos0_dropped, counts.qos0_dropped);
        add(&self.transient_overflows, counts.transient_overflows);
        add(&self.queue_full, counts.queue_full);
        add(&self.refused, counts.refused);
        add(&self.publish_bytes_in, counts.publish_bytes_in);
        add(&self.publish_bytes_out, counts.publish_bytes_out);
        add(&self.throttled, counts.throttled);
        add(&self.unknown_acks, counts.unknown_acks);
        add(&self.denied_publishes, counts.denied_publishes);
        add(&self.denied_subscriptions, counts.denied_subscriptions);
        add(&self.acks_before_commit, counts.acks_before_commit);
    }

    /// Counts how a client was judged.
    pub(super) fn judged(&self, result: Result<AuthMethod, Option<AuthMethod>>) {
        let counter = match result {
            Ok(method) => self.authenticated.get(method as usize),
            Err(method) => self.auth_failures.get(method.map_or(METHODS, |method| method as usize)),
        };
        if let Some(counter) = counter {
            add(counter, 1);
        }
    }

    /// Counts the end of a connection.
    pub(super) fn closed(&self, reason: Reason) {
        if let Some(counter) = self.closed.get(usize::from(reason.0)) {
            add(counter, 1);
        }
    }
}

/// All workers together, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the same names and meanings as in [`Stats`]
pub struct StatsSnapshot {
    pub connections: u64,
    pub connections_total: u64,
    pub accepted: u64,
    pub publishes_in: [u64; 3],
    pub publishes_out: [u64; 3],
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Reason code, and how many connections ended with it; without zeroes.
    pub closed: Vec<(Reason, u64)>,
    pub expired: u64,
    pub too_large: u64,
    pub qos0_dropped: u64,
    pub transient_overflows: u64,
    pub queue_full: u64,
    /// See [`Stats::refused`].
    pub refused: u64,
    pub throttled: u64,
    pub publish_bytes_in: u64,
    pub publish_bytes_out: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub unknown_acks: u64,
    pub pages: u64,
    pub busy: u64,
    pub mailbox_degraded: u64,
    /// Word of the method and how many, all methods.
    pub authenticated: Vec<(&'static str, u64)>,
    /// The same of clients that were not let in; `none`: no method could judge what they showed.
    pub auth_failures: Vec<(&'static str, u64)>,
    pub denied_publishes: u64,
    pub denied_subscriptions: u64,
    pub acks_before_commit: u64,
}

impl StatsSnapshot {
    /// Adds the workers up.
    pub fn of<'a>(workers: &(impl Iterator<Item = &'a Stats> + Clone)) -> Self {
        let sum = |of: fn(&Stats) -> &AtomicU64| workers.clone().map(|w| of(w).load(Ordering::Relaxed)).sum();
        let sums = |of: fn(&Stats) -> &[AtomicU64; 3]| {
            let mut sums = [0; 3];
            for worker in workers.clone() {
                for (sum, counter) in sums.iter_mut().zip(of(worker)) {
                    *sum += counter.load(Ordering::Relaxed);
                }
            }
            sums
        };
        let words = AuthMethod::ALL.iter().map(|(word, _)| *word);
        let authenticated = words.clone().enumerate().map(|(n, word)| {
            let counters = workers.clone().filter_map(|w| w.authenticated.get(n));
            (word, counters.map(|c| c.load(Ordering::Relaxed)).sum())
        });
        let auth_failures = words.chain(["none"]).enumerate().map(|(n, word)| {
            let counters = workers.clone().filter_map(|w| w.auth_failures.get(n));
            (word, counters.map(|c| c.load(Ordering::Relaxed)).sum())
        });
        let closed = (0..=u8::MAX)
            .map(|reason| {
                let counters = workers.clone().filter_map(|w| w.closed.get(usize::from(reason)));
                (Reason(reason), counters.map(|c| c.load(Ordering::Relaxed)).sum())
            })
            .filter(|(_, n)| *n > 0)
            .collect();
        Self {
            connections: sum(|s| &s.connections),
            connections_total: sum(|s| &s.connections_total),
            accepted: sum(|s| &s.accepted),
            publishes_in: sums(|s| &s.publishes_in),
            publishes_out: sums(|s| &s.publishes_out),
            bytes_in: sum(|s| &s.bytes_in),
            bytes_out: sum(|s| &s.bytes_out),
            closed,
            expired: sum(|s| &s.expired),
            too_large: sum(|s| &s.too_large),
            qos0_dropped: sum(|s| &s.qos0_dropped),
            transient_overflows: sum(|s| &s.transient_overflows),
            queue_full: sum(|s| &s.queue_full),
            refused: sum(|s| &s.refused),
            throttled: sum(|s| &s.throttled),
            publish_bytes_in: sum(|s| &s.publish_bytes_in),
            publish_bytes_out: sum(|s| &s.publish_bytes_out),
            packets_in: sum(|s| &s.packets_in),
            packets_out: sum(|s| &s.packets_out),
            unknown_acks: sum(|s| &s.unknown_acks),
            pages: sum(|s| &s.pages),
            busy: sum(|s| &s.busy),
            mailbox_degraded: sum(|s| &s.mailbox_degraded),
            authenticated: authenticated.collect(),
            auth_failures: auth_failures.collect(),
            denied_publishes: sum(|s| &s.denied_publishes),
            denied_subscriptions: sum(|s| &s.denied_subscriptions),
            acks_before_commit: sum(|s| &s.acks_before_commit),
        }
    }
}
