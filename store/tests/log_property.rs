//! The log against a vector, over random interleavings of appends, truncations, purges, reads and restarts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use proptest::prelude::*;
use quorate_store::log::{LogEngine, LogOptions, RocksLog, SegmentLog};
use support::TestEngine;
use support::model::{Model, Step, tell};

/// One thing that a run does.
#[derive(Clone, Debug)]
enum Act {
    Do(Step),
    /// Reads `len` records from `from` above the front (which may be below it or beyond the end).
    Read {
        from: u64,
        len: u64,
        bytes_max: usize,
    },
    /// Waits until everything so far is on disk.
    Settle,
    /// Closes the log and opens it again.
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let step = prop_oneof![
        8 => (1..20u64, prop_oneof![Just(10usize), 10..5000usize]).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        3 => (1..25u64).prop_map(|count| Step::Truncate { count }),
        2 => Just(Step::Vote),
        2 => (0..25u64).prop_map(|count| Step::Purge { count }),
        2 => Just(Step::Committed),
    ];
    prop_oneof![
        12 => step.prop_map(Act::Do),
        8 => (0..60u64, 0..40u64, prop_oneof![Just(usize::MAX), 0..20_000usize])
            .prop_map(|(from, len, bytes_max)| Act::Read { from, len, bytes_max }),
        3 => Just(Act::Settle),
        1 => Just(Act::Reopen),
    ]
}

fn options() -> impl Strategy<Value = LogOptions> {
    (prop_oneof![Just(0usize), Just(20_000), Just(1 << 20)], prop_oneof![Just(3000usize), Just(4 << 20)], 0..3usize)
        .prop_map(|(tail_bytes_max, drain_bytes_max, recycled_wals)| LogOptions {
            tail_bytes_max,
            drain_bytes_max,
            recycled_wals,
            // Small, so that memtables fill, write-ahead logs are reused and tables are read, and segments change.
            write_buffer_bytes: 64 << 10,
            segment_bytes: 8 << (10 + 2 * recycled_wals),
            verify_bytes_max: if tail_bytes_max == 0 { 10_000 } else { 1 << 30 },
            ..LogOptions::default()
        })
}

fn open<E: TestEngine>(dir: &Path, options: &LogOptions) -> E {
    E::open(dir, options.clone(), Arc::new(|error| panic!("the log failed: {error}"))).unwrap()
}

fn check_read(log: &impl LogEngine, model: &Model, from: u64, len: u64, bytes_max: usize) {
    let first = model.records.first().map_or(model.next(), |r| r.index);
    let from = (first + from).saturating_sub(20);
    let read = log.read(from, from + len, bytes_max).unwrap();
    let mut bytes = 0;
    let want: Vec<_> = model
        .records
        .iter()
        .filter(|r| (from..from + len).contains(&r.index))
        .enumerate()
        .take_while(|(i, r)| {
            bytes += r.bytes.len();
            *i == 0 || bytes <= bytes_max
        })
        .map(|(_, r)| r.clone())
        .collect();
    // A bound may cut at the border between disk and memory, never make records up or leave a gap.
    assert!(read.len() <= want.len() && want.starts_with(&read), "{read:?}\n{want:?}");
    if bytes_max == usize::MAX {
        assert_eq!(read, want);
    } else {
        assert_eq!(read.is_empty(), want.is_empty());
    }
}

fn agrees_with_a_vector<E: TestEngine>(options: &LogOptions, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let mut log: E = open(dir.path(), options);
    let mut model = Model::default();
    let (tx, answers) = mpsc::channel();
    let mut waiting = 0;
    for act in acts {
        match act {
            Act::Do(step) => {
                let change = model.resolve(&step);
                model.apply(&change);
                let tx = tx.clone();
                let left = tell(&log, change, Box::new(move |result| tx.send(result.is_ok()).unwrap()));
                waiting += usize::from(left.is_none());
            }
            Act::Read { from, len, bytes_max } => check_read(&log, &model, from, len, bytes_max),
            Act::Settle => prop_assert!(answers.iter().take(std::mem::take(&mut waiting)).all(|ok| ok)),
            Act::Reopen => {
                drop(log);
                log = open(dir.path(), options);
            }
        }
        prop_assert_eq!(log.state(), model.state());
    }
    drop(log);
    prop_assert!(answers.iter().take(waiting).all(|ok| ok));
    log = open(dir.path(), options);
    prop_assert_eq!(log.state(), model.state());
    prop_assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap(), model.records);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn rocksdb_agrees_with_a_vector(options in options(), acts in prop::collection::vec(act(), 1..80)) {
        agrees_with_a_vector::<RocksLog>(&options, acts)?;
    }

    #[test]
    fn segments_agree_with_a_vector(options in options(), acts in prop::collection::vec(act(), 1..80)) {
        agrees_with_a_vector::<SegmentLog>(&options, acts)?;
    }
}

/// Readers on other threads, while records are truncated and written again: every answer is consecutive and
/// of one history.
fn readers_never_see_two_histories_in_one_answer<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        tail_bytes_max: 500,
        write_buffer_bytes: 64 << 10,
        segment_bytes: 8 << 10,
        ..LogOptions::default()
    };
    let log: E = open(dir.path(), &options);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let generation = |text: &[u8]| String::from_utf8_lossy(text).split('.').next().unwrap().parse::<u64>().unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (log, stop) = (log.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut seen = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let read = log.read(0, u64::MAX, usize::MAX).unwrap();
                    seen += read.len() as u64;
                    let (mut before, mut index) = (0, None);
                    for record in read {
                        let now = generation(&record.bytes);
                        assert!(now >= before, "an older history behind a newer one");
                        assert!(index.is_none_or(|i| record.index == i + 1));
                        (before, index) = (now, Some(record.index));
                    }
                }
                seen
            })
        })
        .collect();
    let mut last = 0u64;
    for turn in 1..400u64 {
        let keep = if last > 5 { last - turn % 5 } else { last };
        let (done, answer) = support::waiter();
        log.truncate_from(keep, Box::new(|_| {}));
        let records = (keep..keep + 12)
            .map(|index| quorate_store::log::LogRecord {
                index,
                bytes: format!("{turn}.{index}.{}", "x".repeat(100)).into(),
            })
            .collect();
        log.append(records, done);
        last = keep + 12;
        if turn % 7 == 0 {
            log.purge_to(keep.saturating_sub(30), bytes::Bytes::from_static(b"id"));
        }
        if turn % 3 == 0 {
            answer.recv().unwrap().unwrap();
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(readers.into_iter().map(|r| r.join().unwrap()).all(|seen| seen > 0));
}

on_each_engine!(readers_never_see_two_histories_in_one_answer);
