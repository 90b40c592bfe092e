use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::key::{self, RowKind};
use super::super::{Change, MemRows, digest};
use super::*;
use crate::codec::Payload;
use crate::ids::{ClusterTime, Position, QoS};
use crate::message::Message;
use crate::topic::TopicName;

fn one(k: u8, v: Option<u8>) -> RowBatch {
    let key = key::of_position(RowKind::Message, Position::new(u64::from(k), 0));
    RowBatch::set([(key, v.map(|v| Bytes::copy_from_slice(&[v])))])
}

fn get(rows: &impl RowRead, k: u8) -> Option<u8> {
    let key = key::of_position(RowKind::Message, Position::new(u64::from(k), 0));
    rows.get(key.as_bytes()).unwrap().map(|v| v[0])
}

#[test]
fn a_crash_falls_back_to_the_last_flush_and_a_checkpoint_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = RocksRows::open(&dir.path().join("a"), &RowsOptions::default()).unwrap();
    rows.write(one(1, Some(1))).unwrap();
    rows.flush().unwrap();
    rows.write(one(2, Some(2))).unwrap();
    // What a crash would leave: the files as they are, copied without the database closing.
    let crashed = dir.path().join("crashed");
    std::fs::create_dir(&crashed).unwrap();
    for file in std::fs::read_dir(dir.path().join("a")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), crashed.join(file.file_name())).unwrap();
    }
    let after = RocksRows::open(&crashed, &RowsOptions::default()).unwrap();
    assert_eq!((get(&after, 1), get(&after, 2)), (Some(1), None));

    rows.checkpoint(&dir.path().join("b")).unwrap();
    rows.write(one(1, None)).unwrap();
    let copy = RocksRows::open(&dir.path().join("b"), &RowsOptions::default()).unwrap();
    assert_eq!((get(&copy, 1), get(&copy, 2)), (Some(1), Some(2)));
    copy.verify().unwrap();
    assert_eq!(get(&rows.reader(), 1), None);
}

fn small() -> RowsOptions {
    RowsOptions { recent_bytes_max: 2_000, write_buffer_bytes: 3_000, ..RowsOptions::default() }
}

fn all(rows: &impl RowRead, from: u64, max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (from, to) = (key_of(from), [0xff; 4]);
    let mut seen = Vec::new();
    rows.scan(from.as_bytes(), &to, &mut |key, value| {
        seen.push((key.to_vec(), value.to_vec()));
        if seen.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .unwrap();
    seen
}

fn key_of(k: u64) -> Key {
    key::of_position(RowKind::Message, Position::new(k, 0))
}

/// A run: rows come, some of an earlier one go, one is written each time.
fn run(n: u64) -> RowBatch {
    let value = |n: u64| RowValue::from(Bytes::copy_from_slice(&n.to_be_bytes()));
    let mut rows = vec![(key_of(0), Change::Put(value(n)))];
    rows.extend((0..n % 5).map(|k| (key_of(10 * n + k), Change::New(value(n)))));
    let before = n.saturating_sub(if n.is_multiple_of(3) { 1 } else { 40 });
    let gone = (1..5).filter(|k| n > before && (n + k).is_multiple_of(2));
    rows.extend(gone.map(|k| (key_of(10 * before + k), Change::Delete)));
    rows.into_iter().collect()
}

#[test]
fn rows_are_the_same_wherever_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = RocksRows::open(dir.path(), &small()).unwrap();
    let mut model = MemRows::default();
    for n in 1..3_000 {
        rows.write(run(n)).unwrap();
        model.write(run(n)).unwrap();
        if n.is_multiple_of(37) {
            assert_eq!(all(&rows, 0, usize::MAX), all(&model, 0, usize::MAX), "after {n}");
            assert_eq!(digest(&rows.reader.frozen()).unwrap(), digest(&model).unwrap());
        }
        let (from, max) = (n * 7 % (10 * n), 1 + n as usize % 300);
        assert_eq!(all(&rows, from, max), all(&model, from, max), "after {n}");
        assert_eq!(rows.get(key_of(from).as_bytes()).unwrap(), model.get(key_of(from).as_bytes()).unwrap());
    }
    rows.verify().unwrap();
}

/// The first row says how far the others must be.
#[test]
fn who_reads_meanwhile_or_after_a_crash_sees_the_state_after_some_run() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let mut rows = RocksRows::open(&live, &small()).unwrap();
    let is_whole = |rows: &RocksReader| {
        let frozen = rows.frozen();
        let until =
            frozen.get(key_of(0).as_bytes()).unwrap().map_or(0, |v| u64::from_be_bytes(v[..].try_into().unwrap()));
        let mut model = MemRows::default();
        (1..=until).for_each(|n| model.write(run(n)).unwrap());
        assert_eq!(all(&frozen, 0, usize::MAX), all(&model, 0, usize::MAX), "after {until}");
        until
    };
    let (reader, stop) = (rows.reader(), std::sync::atomic::AtomicBool::new(false));
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut times = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                is_whole(&reader);
                times += 1;
            }
            times
        });
        for n in 1..2_000 {
            rows.write(run(n)).unwrap();
            if n.is_multiple_of(250) {
                let crashed = dir.path().join(format!("crashed{n}"));
                rows.checkpoint_without_flush(&crashed);
                let after = RocksRows::open(&crashed.join("c"), &small()).unwrap();
                assert!(is_whole(&after.reader) <= n);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reading.join().unwrap() > 0);
    });
    rows.flush().unwrap();
    assert_eq!(is_whole(&RocksRows::peek(&live).unwrap()), 1_999);
}

impl RocksRows {
    /// What a crash would leave, whatever the flusher is at.
    fn checkpoint_without_flush(&self, to: &Path) {
        let _no_write_back = self.reader.0.writing.lock().unwrap();
        std::fs::create_dir(to).unwrap();
        Checkpoint::new(&self.reader.0.database)
            .unwrap()
            .create_checkpoint_with_log_size(to.join("c"), u64::MAX)
            .unwrap();
    }
}

fn message(position: Position) -> SharedMessage {
    Arc::new(Message {
        position,
        topic: TopicName::new("a/b").unwrap(),
        qos: QoS::AtLeastOnce,
        retain: false,
        published_at: ClusterTime(1),
        expires_at: None,
        properties: None,
        payload: Payload(vec![5; 60].into()),
    })
}

/// Some are recent, some are written back, some are gone, and one is gone and its tombstone written back.
#[test]
fn messages_are_found_wherever_they_lie_and_in_whatever_order_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = RocksRows::open(dir.path(), &small()).unwrap();
    let key = |index: u64, number: u16| key::of_position(RowKind::Message, Position::new(index, number.into()));
    for n in 1..400_u64 {
        let made = (0..n as u16 % 4).map(|number| {
            let message = message(Position::new(n, number.into()));
            (key(n, number), Change::New(RowValue::message(message).unwrap()))
        });
        let before = n.saturating_sub(if n.is_multiple_of(3) { 1 } else { 90 });
        let gone = (0..before as u16 % 4).filter(|k| (n + u64::from(*k)).is_multiple_of(2));
        let gone = gone.map(|number| (key(before, number), Change::Delete));
        rows.write(made.chain(gone).collect()).unwrap();
        if !n.is_multiple_of(7) {
            continue;
        }
        let all: Vec<Key> = (0..n + 2).flat_map(|n| (0..5).map(move |number| key(n, number))).collect();
        let backwards: Vec<Key> = all.iter().rev().step_by(3).cloned().collect();
        for keys in [&all, &backwards] {
            let one_by_one: Vec<_> = keys.iter().map(|key| rows.message(key.as_bytes()).unwrap()).collect();
            let mut together = Vec::new();
            rows.messages(keys, &mut |message| {
                together.push(message);
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(together, one_by_one, "after {n}");
        }
    }
}

/// Nothing goes here: whatever is being written back meanwhile, each is there. Several look at once, so that they wait for
/// each other: that is when a wrong order of looking shows.
#[test]
fn messages_that_are_written_back_while_they_are_looked_for_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = RocksRows::open(dir.path(), &small()).unwrap();
    let key = |index: u64| key::of_position(RowKind::Message, Position::new(index, 0));
    let (reader, made, stop) = (rows.reader(), AtomicU64::new(0), AtomicBool::new(false));
    let look = || {
        let mut times = 0;
        while !stop.load(Ordering::Relaxed) {
            let until = made.load(Ordering::Acquire);
            let keys: Vec<Key> = (until.saturating_sub(60)..until).map(key).collect();
            let (mut all, mut missing) = (keys.iter(), Vec::new());
            reader
                .messages(&keys, &mut |message| {
                    missing.extend(all.next().filter(|_| message.is_none()));
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(missing, Vec::<&Key>::new(), "below {until}");
            times += 1;
        }
        times
    };
    thread::scope(|scope| {
        let looking: Vec<_> = (0..4).map(|_| scope.spawn(look)).collect();
        for n in 0..20_000 {
            let message = RowValue::message(message(Position::new(n, 0))).unwrap();
            rows.write([(key(n), Change::New(message))].into_iter().collect()).unwrap();
            made.store(n + 1, Ordering::Release);
            if looking.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let times: Vec<i32> = looking.into_iter().map(|looking| looking.join().unwrap()).collect();
        assert!(times.iter().sum::<i32>() > 0, "{times:?}");
    });
}
