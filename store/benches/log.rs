//! What the log on disk takes, on both engines: groups of records that a caller appends, each group synced before the
//! next of the same caller. `make bench-log`; BENCH_DIR chooses the disk. docs/PERFORMANCE.md has the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate_store::log::{LogEngine, LogError, LogOptions, LogRecord, OnFatal, RocksLog, SegmentLog};

/// Groups of 16 KiB: a batch of 64 messages of 256 bytes.
const RECORD_BYTES: usize = 16 << 10;
/// What stays behind the purge.
const KEPT: u64 = 1_000;

type Answer = Receiver<Result<(), LogError>>;

fn never() -> OnFatal {
    Arc::new(|error| panic!("the log failed: {error}"))
}

/// Appends records one after the other, and purges behind.
struct Caller<E> {
    log: E,
    next: u64,
    record: Bytes,
}

impl<E: LogEngine> Caller<E> {
    fn append(&mut self) -> Answer {
        let (done, answer) = sync_channel(1);
        let record = LogRecord { index: self.next, bytes: self.record.clone() };
        self.next += 1;
        self.log.append(vec![record], Box::new(move |result| done.send(result).unwrap_or_default()));
        if self.next.is_multiple_of(KEPT) && self.next > KEPT {
            self.log.purge_to(self.next - KEPT, Bytes::from_static(b"log id"));
        }
        answer
    }
}

fn engine<E: LogEngine>(c: &mut Criterion, name: &str, open: impl Fn(&Path) -> E) {
    let mut group = c.benchmark_group(format!("records of {RECORD_BYTES} bytes, {name}"));
    let base = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    for in_flight in [1, 8, 64] {
        let dir = tempfile::tempdir_in(&base).unwrap();
        let mut caller = Caller { log: open(dir.path()), next: 0, record: vec![0x5a; RECORD_BYTES].into() };
        group.throughput(Throughput::Bytes((in_flight * RECORD_BYTES) as u64));
        group.bench_function(BenchmarkId::new("in flight", in_flight), |b| {
            b.iter(|| {
                let answers: Vec<Answer> = (0..in_flight).map(|_| caller.append()).collect();
                answers.iter().for_each(|answer| answer.recv().unwrap().unwrap());
            });
        });
    }
    group.finish();
}

fn engines(c: &mut Criterion) {
    engine(c, "RocksDB", |dir| RocksLog::open(dir, LogOptions::default(), never()).unwrap());
    engine(c, "segments", |dir| SegmentLog::open(dir, LogOptions::default(), never()).unwrap());
}

fn configured() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4)).sample_size(20)
}

criterion_group! {
    name = log;
    config = configured();
    targets = engines
}
criterion_main!(log);
