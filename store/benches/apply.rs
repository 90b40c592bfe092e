//! What a message of QoS 1 costs where it is applied: as a command to decode, as rows and a delivery, and as the
//! acknowledgement that takes the rows away. `make bench-apply`; docs/PERFORMANCE.md has the figures.
//!
//! Ten durable subscribers, a topic each, and runs as a busy node has them: some entries of publishes, and the
//! acknowledgements of those of the run before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A clock and a variable of the environment: nothing here is applied on a replica.
#![allow(clippy::disallowed_methods)]

// The rig writes batches as a cluster does.
#[path = "../tests/testkit/mod.rs"]
mod testkit;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use quorate_store::codec;
use quorate_store::command::{AckKind, Batch, Command, Connect, Publish, SessionRef, Settle};
use quorate_store::effect::{Effect, EffectSink};
use quorate_store::ids::{ClusterTime, Incarnation, Position};
use quorate_store::machine::{EntryContext, Machine};
use quorate_store::rows::{MemRows, RowStore, Rows, RowsOptions};
use testkit::commands::{ack, connect, payload, publish, subscribe};
use testkit::{Entry, Rig};

const SUBSCRIBERS: usize = 10;
/// Publishes of one entry, and entries of publishes of one run.
const COMMANDS: usize = 64;
const ENTRIES: usize = 4;

/// Looks at each effect, and keeps none.
#[derive(Default)]
struct Count(usize);

impl EffectSink for Count {
    fn wants(&self, _: Incarnation) -> bool {
        true
    }

    fn push(&mut self, effect: Effect) {
        self.0 += usize::from(matches!(black_box(&effect), Effect::Deliver { .. }));
    }
}

/// A cluster with its subscribers, and what will be published.
struct Load {
    rig: Rig,
    to: Vec<SessionRef>,
    messages: Vec<Publish>,
    /// Row of each subscriber that is acknowledged next.
    first: Vec<u64>,
    /// Positions of what is not acknowledged, by subscriber.
    open: Vec<Vec<Position>>,
}

impl Load {
    fn new() -> Self {
        let mut rig = Rig::with_nodes(2);
        let publisher = rig.publisher(1, "publisher");
        let to: Vec<SessionRef> = (0..SUBSCRIBERS)
            .map(|n| {
                let receive_maximum = 1_000;
                let connect = Connect { expiry_s: 3_600, receive_maximum, ..connect(&format!("subscriber {n}")) };
                let session = rig.connect(2, connect).session;
                rig.one(2, subscribe(session, 1, &format!("plant/line{n}/temperature")));
                session
            })
            .collect();
        let text = "v".repeat(256);
        let message = |n: usize| Publish {
            payload: payload(&text),
            ..publish(publisher, 1, &format!("plant/line{n}/temperature"), "")
        };
        let messages = (0..SUBSCRIBERS).map(message).collect();
        let (first, open) = (vec![0; SUBSCRIBERS], vec![Vec::new(); SUBSCRIBERS]);
        Self { rig, to, messages, first, open }
    }

    fn next(&mut self, index: u64, node: u64, commands: Vec<Command>) -> Entry {
        let context = EntryContext { index, term: 1, stamp: ClusterTime(self.rig.now) };
        Entry { context, batch: self.rig.next_batch(node, commands) }
    }

    /// The next run, from this index on.
    fn run(&mut self, mut index: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut acknowledged = Vec::new();
        for ((from, open), first) in self.to.iter().zip(&mut self.open).zip(&mut self.first) {
            let open = std::mem::take(open);
            let seqs = *first..;
            *first += open.len() as u64;
            let acks: Vec<_> =
                open.into_iter().zip(seqs).map(|(position, seq)| ack(seq, position, AckKind::Puback)).collect();
            if !acks.is_empty() {
                acknowledged.push(Command::Settle(Settle { from: *from, acks }));
            }
        }
        if !acknowledged.is_empty() {
            entries.push(self.next(index, 2, acknowledged));
            index += 1;
        }
        for entry in 0..ENTRIES {
            let mut commands = Vec::new();
            for number in 0..COMMANDS {
                let n = (entry * COMMANDS + number) % SUBSCRIBERS;
                self.open[n].push(Position::new(index, number as u32));
                commands.push(Command::Publish(self.messages[n].clone()));
            }
            entries.push(self.next(index, 1, commands));
            index += 1;
        }
        entries
    }
}

fn apply<S: RowStore>(machine: &mut Machine<S>, entries: &[Entry], effects: &mut Count) {
    for entry in entries {
        machine.apply(entry.context, &entry.batch, effects).unwrap();
    }
    machine.commit_run().unwrap();
}

/// So many runs of a machine over these rows.
fn runs<S: RowStore>(rows: S, times: u64) -> Duration {
    let mut load = Load::new();
    let mut machine = Machine::open(rows).unwrap();
    let mut effects = Count::default();
    apply(&mut machine, &load.rig.log.clone(), &mut effects);
    let mut index = load.rig.next_index();
    let mut spent = Duration::ZERO;
    effects.0 = 0;
    for _ in 0..times {
        let entries = load.run(index);
        index += entries.len() as u64;
        let began = Instant::now();
        apply(&mut machine, &entries, &mut effects);
        spent += began.elapsed();
    }
    assert_eq!(effects.0 as u64, times * (ENTRIES * COMMANDS) as u64, "each message is delivered once");
    spent
}

fn applied(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements((ENTRIES * COMMANDS) as u64));
    group.bench_function("rows in memory", |b| b.iter_custom(|times| runs(MemRows::default(), times)));
    group.bench_function("rows in RocksDB", |b| {
        b.iter_custom(|times| {
            let dir = tempfile::tempdir().unwrap();
            runs(Rows::open(dir.path(), &RowsOptions::default()).unwrap(), times)
        });
    });
    group.finish();
}

fn coded(c: &mut Criterion) {
    let mut load = Load::new();
    let index = load.rig.next_index();
    let entries = load.run(index);
    let acknowledged = load.run(index + entries.len() as u64).remove(0);
    let mut group = c.benchmark_group("a batch");
    for (of, batch, commands) in [
        ("of publishes", &entries[0].batch, COMMANDS),
        ("of acknowledgements", &acknowledged.batch, ENTRIES * COMMANDS),
    ] {
        group.throughput(Throughput::Elements(commands as u64));
        group.bench_function(BenchmarkId::new("encoded", of), |b| b.iter(|| codec::encode(black_box(batch)).unwrap()));
        let bytes: Bytes = codec::encode(batch).unwrap();
        group.bench_function(BenchmarkId::new("decoded", of), |b| {
            b.iter(|| codec::decode::<Batch>(black_box(&bytes)).unwrap());
        });
    }
    group.finish();
}

fn configured() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).sample_size(20)
}

criterion_group! {
    name = benches;
    config = configured();
    targets = applied, coded
}

/// `APPLY_RUNS=200`: so many runs and no more, for a profiler or to count instructions.
fn main() {
    let Some(times) = std::env::var("APPLY_RUNS").ok().and_then(|times| times.parse().ok()) else {
        benches();
        return Criterion::default().configure_from_args().final_summary();
    };
    let dir = tempfile::tempdir().unwrap();
    let spent = runs(Rows::open(dir.path(), &RowsOptions::default()).unwrap(), times);
    let messages = times * (ENTRIES * COMMANDS) as u64;
    println!("{messages} messages, {:.3} us each", spent.as_secs_f64() * 1e6 / messages as f64);
}
