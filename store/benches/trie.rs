//! What it costs to find the subscriptions that match a topic: by how many there are, by the depth of the topic, and
//! by how many match. `make bench-trie`; docs/PERFORMANCE.md has the figures.
//!
//! Measured where a broker does it: [`Machine::match_qos0`], which is the walk of the trie and one delivery for each
//! session found. *One topic* is matched again and again, so all that it touches is in the processor's caches;
//! *any topic* is another one each time, out of all that are subscribed to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

// The rig writes batches as a cluster does.
#[path = "../tests/testkit/mod.rs"]
mod testkit;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use quorate_store::command::{Command, Connect, SessionRef, Subscribe, SubscribeOptions};
use quorate_store::ids::{ClusterTime, Position, QoS};
use quorate_store::message::{Message, SharedMessage};
use quorate_store::topic::TopicName;
use testkit::Rig;
use testkit::commands::{connect, filter, options, payload, topic};

/// Sessions that share the subscriptions of a population.
const SESSIONS: usize = 1_000;
/// Filters of one SUBSCRIBE.
const FILTERS: usize = 500;
/// How many topics *any topic* goes through: their trie nodes are more than the processor's caches hold.
const TOPICS: usize = 1 << 18;

fn subscribe(from: SessionRef, filters: &[String]) -> Command {
    let options = SubscribeOptions { retain_handling: 2, ..options(0) };
    Command::Subscribe(Subscribe {
        from,
        identifier: None,
        filters: filters.iter().map(|text| (filter(text), options)).collect(),
    })
}

/// Connected sessions on one node, the filters dealt out among them.
fn population(sessions: usize, filters: &[String]) -> Rig {
    let mut rig = Rig::with_nodes(1);
    let sessions: Vec<SessionRef> = (0..sessions.min(filters.len()))
        .map(|n| rig.connect_undrained(1, Connect { expiry_s: 3600, ..connect(&format!("c{n}")) }))
        .collect();
    let share = filters.len().div_ceil(sessions.len());
    for (session, share) in sessions.iter().zip(filters.chunks(share)) {
        for some in share.chunks(FILTERS) {
            rig.batch_undrained(1, vec![subscribe(*session, some)]);
        }
    }
    rig.log.clear();
    rig
}

fn message() -> SharedMessage {
    Arc::new(Message {
        position: Position::ZERO,
        topic: topic("t"),
        qos: QoS::AtMostOnce,
        retain: false,
        published_at: ClusterTime(0),
        expires_at: None,
        properties: None,
        payload: payload(""),
    })
}

fn matching(rig: &Rig, topic: &TopicName, message: &SharedMessage) -> usize {
    let mut found = 0;
    rig.machine.match_qos0(None, topic, message, &mut |_, delivery| {
        black_box(&delivery);
        found += 1;
    });
    found
}

/// The filter of subscription `n` and the topic that it alone matches.
type Shape = (&'static str, fn(usize) -> String);
const SHAPES: [Shape; 3] = [
    ("exact", |n| format!("plant/{}/line/{}/state", n / 1000, n % 1000)),
    ("plus", |n| format!("plant/{}/+/{}/state", n / 1000, n % 1000)),
    ("hash", |n| format!("plant/{}/line/{}/#", n / 1000, n % 1000)),
];

/// Topics of a population of `count`, in an order without a pattern.
fn topics(count: usize) -> Vec<TopicName> {
    let topic_of = SHAPES[0].1;
    let mut at: usize = 1;
    let mut any = || {
        // A linear congruential sequence; its upper bits are the random ones.
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (at >> 33) % count
    };
    (0..TOPICS.min(count * 4)).map(|_| topic(&topic_of(any()))).collect()
}

fn by_subscriptions(c: &mut Criterion) {
    let message = message();
    for (shape, filter_of) in SHAPES {
        let mut group = c.benchmark_group(format!("subscriptions/{shape}"));
        for count in [10, 10_000, 1_000_000] {
            let filters: Vec<String> = (0..count).map(filter_of).collect();
            let rig = population(SESSIONS, &filters);
            let topics = topics(count);
            assert!(topics.iter().take(1000).all(|topic| matching(&rig, topic, &message) == 1));
            group.bench_function(BenchmarkId::new("one topic", count), |b| {
                b.iter(|| matching(&rig, black_box(&topics[0]), &message));
            });
            let mut next = topics.iter().cycle();
            group.bench_function(BenchmarkId::new("any topic", count), |b| {
                b.iter(|| matching(&rig, next.next().unwrap(), &message));
            });
        }
        group.finish();
    }
}

fn by_depth(c: &mut Criterion) {
    let message = message();
    for (shape, last) in [("exact", ""), ("plus", "/+"), ("hash", "/#")] {
        let mut group = c.benchmark_group(format!("depth/{shape}"));
        for depth in [1, 4, 16, 64] {
            let stem = |n: usize| vec![format!("level{n}"); depth].join("/");
            let filters: Vec<String> = (0..10_000).map(|n| stem(n) + last).collect();
            let rig = population(SESSIONS, &filters);
            let topic = topic(&if last.is_empty() { stem(77) } else { stem(77) + "/x" });
            assert_eq!(matching(&rig, &topic, &message), 1);
            group.bench_function(BenchmarkId::from_parameter(depth), |b| {
                b.iter(|| matching(&rig, black_box(&topic), &message));
            });
        }
        group.finish();
    }
}

/// The worst that filters can do to a topic: at each level both the level itself and `+` lead on.
fn by_branches(c: &mut Criterion) {
    let message = message();
    let mut group = c.benchmark_group("every mix of level and plus");
    for depth in [1_usize, 4, 8, 12] {
        let mix = |n: usize| (0..depth).map(|l| if n >> l & 1 == 1 { "+" } else { "a" }).collect::<Vec<_>>().join("/");
        let filters: Vec<String> = (0..1 << depth).map(mix).collect();
        let rig = population(1, &filters);
        let topic = topic(&vec!["a"; depth].join("/"));
        assert_eq!(matching(&rig, &topic, &message), 1, "one session has them all");
        group.bench_function(BenchmarkId::from_parameter(depth), |b| {
            b.iter(|| matching(&rig, black_box(&topic), &message));
        });
    }
    group.finish();
}

fn by_matches(c: &mut Criterion) {
    let message = message();
    let mut group = c.benchmark_group("matches");
    for sessions in [1, 10, 100, 1_000, 10_000] {
        let filters = vec!["plant/1/line/1/state".to_owned(); sessions];
        let rig = population(sessions, &filters);
        let topic = topic("plant/1/line/1/state");
        assert_eq!(matching(&rig, &topic, &message), sessions);
        group.bench_function(BenchmarkId::from_parameter(sessions), |b| {
            b.iter(|| matching(&rig, black_box(&topic), &message));
        });
    }
    group.finish();
}

fn configured() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).sample_size(30)
}

criterion_group! {
    name = trie;
    config = configured();
    targets = by_subscriptions, by_depth, by_branches, by_matches
}
criterion_main!(trie);
