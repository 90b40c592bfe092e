//! What it costs to find the subscriptions that match a topic: by how many there are, by the depth of the topic, and
//! by how many match; what a subscription costs; and what a message costs that goes to shared groups.
//! `make bench-trie`; docs/PERFORMANCE.md has the figures.
//!
//! Measured where a broker does it: [`Machine::match_qos0`], which is the walk of the trie and one delivery for each
//! session found. *One topic* is matched again and again, so all that it touches is in the processor's caches;
//! *any topic* is another one each time, out of all that are subscribed to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

// The rig writes batches as a cluster does.
#[path = "../tests/testkit/mod.rs"]
mod testkit;

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use quorate_store::command::{AckKind, Command, Connect, SessionRef, Settle, Subscribe, SubscribeOptions};
use quorate_store::effect::{AllEffects, Delivery};
use quorate_store::ids::{ClusterTime, Position, QoS};
use quorate_store::machine::{EntryContext, Machine};
use quorate_store::message::{Message, SharedMessage};
use quorate_store::topic::TopicName;
use testkit::commands::{ack, connect, filter, options, payload, publish, subscribe, topic, unsubscribe};
use testkit::{Happened, Rig};

/// Sessions that share the subscriptions of a population.
const SESSIONS: usize = 1_000;
/// Filters of one SUBSCRIBE.
const FILTERS: usize = 500;
/// How many topics *any topic* goes through: their trie nodes are more than the processor's caches hold.
const TOPICS: usize = 1 << 18;

fn subscribe_all(from: SessionRef, filters: &[String]) -> Command {
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
            rig.batch_undrained(1, vec![subscribe_all(*session, some)]);
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

/// What the process has on its heap and stacks.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Appends one batch and applies it; nothing keeps it.
fn apply(rig: &mut Rig, commands: Vec<Command>) -> Happened {
    let batch = rig.next_batch(1, commands);
    let index = rig.machine.applied().index + 1;
    let context = EntryContext { index, term: rig.term, stamp: ClusterTime(rig.now) };
    let mut effects = AllEffects::default();
    rig.machine.apply(context, &batch, &mut effects).unwrap();
    rig.machine.commit_run().unwrap();
    Happened(effects.0)
}

/// What a million subscriptions hold in memory, and how long it takes to read them at start. It comes first: later the
/// allocator has memory to give that others have left.
#[allow(clippy::disallowed_methods, reason = "the bench has a clock, the machine sees nothing of it")]
fn memory(_: &mut Criterion) {
    const COUNT: usize = 1_000_000;
    let filters: Vec<String> = (0..COUNT).map(SHAPES[0].1).collect();
    let rig = population(SESSIONS, &filters);
    // These take what building the population has left.
    let _filler = rig.machine.store().clone();
    let _first = Machine::open(rig.machine.store().clone()).unwrap();
    let rows = rig.machine.store().clone();
    let (before, start) = (anonymous_bytes(), Instant::now());
    let machine = Machine::open(rows).unwrap();
    let (took, bytes) = (start.elapsed(), anonymous_bytes().saturating_sub(before));
    assert_eq!(machine.totals().subscriptions, COUNT as u64);
    println!("{COUNT} subscriptions are read in {took:?} and take {} bytes each", bytes / COUNT as u64);
}

/// SUBSCRIBE and UNSUBSCRIBE of one filter as commands, rows and all.
fn by_changes(c: &mut Criterion) {
    for (shape, filter_of) in SHAPES {
        let mut group = c.benchmark_group(format!("subscribe and unsubscribe/{shape}"));
        for count in [10, 1_000_000] {
            let filters: Vec<String> = (0..count).map(filter_of).collect();
            let mut rig = population(SESSIONS, &filters);
            let from = apply(&mut rig, vec![Command::Connect(connect("one more"))]).connected().session;
            let mut at = 0;
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| {
                    // Beside what is there: neither the first nor the last level is new.
                    at = (at + 7_919) % count;
                    let text = filter_of(at).replacen("plant", "plants", 1);
                    apply(&mut rig, vec![subscribe(from, 0, &text), unsubscribe(from, &text)]);
                });
            });
        }
        group.finish();
    }
}

/// A session in `shares` groups of one filter; `members` such sessions of one name each, or of one name together.
fn groups(groups: usize, members: usize, receive_maximum: u16) -> (Rig, Vec<SessionRef>) {
    let mut rig = Rig::with_nodes(1);
    let mut sessions = Vec::new();
    for group in 0..groups {
        for member in 0..members {
            let to = Connect { receive_maximum, ..connect(&format!("{group}-{member}")) };
            let from = rig.connect_undrained(1, to);
            rig.batch_undrained(1, vec![subscribe(from, 1, &format!("$share/{group}/t"))]);
            sessions.push(from);
        }
    }
    rig.log.clear();
    (rig, sessions)
}

/// Settles what `happened` delivers.
fn settle(happened: &Happened) -> Vec<Command> {
    let settle = |d: &Delivery| {
        let acks = vec![ack(d.seq?.0, d.message.position, AckKind::Puback)];
        Some(Command::Settle(Settle { from: d.to, acks }))
    };
    happened.deliveries().filter_map(settle).collect()
}

/// One message to many groups, and to a group of many.
fn by_groups(c: &mut Criterion) {
    let message = message();
    let (t, one) = (topic("t"), || vec![Command::Publish(publish(None, 1, "t", "x"))]);
    for (of, shapes) in
        [("groups of one", [(1, 1), (100, 1), (1_000, 1)]), ("members of one group", [(1, 1), (1, 64), (1, 4_096)])]
    {
        let mut group = c.benchmark_group(of);
        for (shares, members) in shapes {
            let count = shares.max(members);
            let (mut rig, _) = groups(shares, members, 1_024);
            group.bench_function(BenchmarkId::new("QoS 0", count), |b| {
                b.iter(|| assert_eq!(matching(&rig, black_box(&t), &message), shares));
            });
            group.bench_function(BenchmarkId::new("QoS 1, settled at once", count), |b| {
                b.iter(|| {
                    let happened = apply(&mut rig, one());
                    let acks = settle(&happened);
                    assert_eq!(acks.len(), shares);
                    apply(&mut rig, acks);
                });
            });
            // Nobody has all its room any more: what is settled is what was sent `members` messages ago.
            let mut busy = VecDeque::new();
            for _ in 0..members {
                busy.extend(settle(&apply(&mut rig, one())));
            }
            group.bench_function(BenchmarkId::new("QoS 1, all busy", count), |b| {
                b.iter(|| {
                    let acks = settle(&apply(&mut rig, one()));
                    assert_eq!(acks.len(), shares);
                    busy.extend(acks);
                    apply(&mut rig, busy.drain(..shares).collect());
                });
            });
        }
        group.finish();
    }
}

/// A group at its limit: each message waits, until one member settles another.
fn at_the_limit(c: &mut Criterion) {
    let mut group = c.benchmark_group("members of one group that is full");
    for members in [1, 64, 4_096] {
        let (mut rig, _) = groups(1, members, 1);
        let one = || vec![Command::Publish(publish(None, 1, "t", "x"))];
        let mut busy = VecDeque::new();
        for _ in 0..members {
            busy.extend(settle(&apply(&mut rig, one())));
        }
        assert_eq!(busy.len(), members);
        group.bench_function(BenchmarkId::from_parameter(members), |b| {
            b.iter(|| {
                assert_eq!(settle(&apply(&mut rig, one())).len(), 0, "it waits");
                let happened = apply(&mut rig, vec![busy.pop_front().unwrap()]);
                busy.extend(settle(&happened));
                assert_eq!(busy.len(), members, "one is given what waited");
            });
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
    targets = memory, by_subscriptions, by_depth, by_branches, by_matches, by_changes, by_groups, at_the_limit
}
criterion_main!(trie);
