//! What the log promises to Raft while nothing breaks, over a clean restart, and when the disk says no.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use quorate_store::log::{
    LogEngine, LogError, LogOptions, LogRecord, LogState, OnFatal, RocksLog, SegmentLog, SkipSync,
};
use support::fault_fs::{Cut, FaultDisk};
use support::{TestEngine, log_options, wait, waiter};

fn never() -> OnFatal {
    Arc::new(|error| panic!("the log failed: {error}"))
}

fn open<E: TestEngine>(dir: &Path) -> E {
    E::open(dir, log_options(), never()).unwrap()
}

fn record(index: u64, text: &str) -> LogRecord {
    LogRecord { index, bytes: Bytes::copy_from_slice(text.as_bytes()) }
}

fn records(range: std::ops::Range<u64>) -> Vec<LogRecord> {
    range.map(|i| record(i, &format!("entry {i}"))).collect()
}

fn texts(log: &impl LogEngine, from: u64, to: u64) -> Vec<String> {
    let read = log.read(from, to, usize::MAX).unwrap();
    read.iter().map(|r| format!("{}={}", r.index, String::from_utf8_lossy(&r.bytes))).collect()
}

fn everything_comes_back_after_a_restart<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    assert_eq!(log.state(), LogState::default());
    wait(|done| log.save_vote(Bytes::from_static(b"vote 7"), done)).unwrap();
    wait(|done| log.append(records(0..10), done)).unwrap();
    log.save_committed(Bytes::from_static(b"committed 8"));
    log.purge_to(2, Bytes::from_static(b"log id 2"));
    let state = LogState {
        vote: Some(Bytes::from_static(b"vote 7")),
        committed: Some(Bytes::from_static(b"committed 8")),
        purged: Some((2, Bytes::from_static(b"log id 2"))),
        last: Some(9),
    };
    assert_eq!(log.state(), state);
    drop(log);
    let log = open::<E>(dir.path());
    assert_eq!(log.state(), state);
    assert_eq!(log.read(0, 100, usize::MAX).unwrap(), records(3..10));
    assert_eq!(log.read(4, 6, usize::MAX).unwrap(), records(4..6));
}

fn records_are_readable_as_soon_as_append_returns_and_while_the_disk_is_busy<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    // The writer is kept busy inside the first waiter, so nothing more is flushed.
    let (release, held) = mpsc::channel::<()>();
    let (entered_tx, entered) = mpsc::channel();
    log.append(
        records(0..1),
        Box::new(move |_| {
            entered_tx.send(()).unwrap();
            held.recv().unwrap();
        }),
    );
    entered.recv().unwrap();
    let (done, answer) = waiter();
    log.append(records(1..5), done);
    assert_eq!(log.read(0, 9, usize::MAX).unwrap(), records(0..5));
    assert_eq!(log.unflushed_bytes(), records(1..5).iter().map(|r| r.bytes.len()).sum::<usize>());
    assert!(answer.try_recv().is_err());
    release.send(()).unwrap();
    answer.recv().unwrap().unwrap();
    assert_eq!(log.unflushed_bytes(), 0);
}

fn what_is_queued_together_is_synced_together<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    let (release, held) = mpsc::channel::<()>();
    let (entered_tx, entered) = mpsc::channel();
    log.append(
        records(0..1),
        Box::new(move |_| {
            entered_tx.send(()).unwrap();
            held.recv().unwrap();
        }),
    );
    entered.recv().unwrap();
    let syncs = || log.stats().syncs.load(Relaxed);
    let before = syncs();
    let (tx, answers) = mpsc::channel();
    for i in 1..=500 {
        let tx = tx.clone();
        log.append(records(i..i + 1), Box::new(move |result| tx.send((i, result.is_ok())).unwrap()));
    }
    release.send(()).unwrap();
    let order: Vec<_> = answers.iter().take(500).collect();
    assert_eq!(order, (1..=500).map(|i| (i, true)).collect::<Vec<_>>(), "waiters are called in order");
    assert_eq!(syncs() - before, 1, "500 appends, one synced write");
    assert_eq!(log.stats().records_per_sync_max.load(Relaxed), 500);
    assert_eq!(log.stats().ops.load(Relaxed), 501);
}

fn a_drain_is_bounded_by_bytes<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { drain_bytes_max: 10_000, ..log_options() };
    let log = E::open(dir.path(), options, never()).unwrap();
    let (release, held) = mpsc::channel::<()>();
    let (entered_tx, entered) = mpsc::channel();
    log.save_vote(
        Bytes::from_static(b"v"),
        Box::new(move |_| {
            entered_tx.send(()).unwrap();
            held.recv().unwrap();
        }),
    );
    entered.recv().unwrap();
    let before = log.stats().syncs.load(Relaxed);
    let (tx, answers) = mpsc::channel();
    for i in 0..20 {
        let tx = tx.clone();
        let bytes = Bytes::from(vec![1; 5000]);
        log.append(vec![LogRecord { index: i, bytes }], Box::new(move |_| tx.send(()).unwrap()));
    }
    release.send(()).unwrap();
    answers.iter().take(20).for_each(drop);
    assert_eq!(log.stats().syncs.load(Relaxed) - before, 10);
}

fn a_caller_far_ahead_of_the_disk_waits<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { queue_bytes_max: 1000, ..log_options() };
    let log = E::open(dir.path(), options, never()).unwrap();
    let (tx, answers) = mpsc::channel();
    for i in 0..200 {
        let tx = tx.clone();
        let bytes = Bytes::from(vec![1; 900]);
        log.append(vec![LogRecord { index: i, bytes }], Box::new(move |r| tx.send(r.is_ok()).unwrap()));
        assert!(log.unflushed_bytes() <= 4 << 20);
    }
    assert!(answers.iter().take(200).all(|ok| ok));
    assert!(log.stats().waits.load(Relaxed) > 0);
}

fn the_tail_is_bounded_and_reads_below_it_come_from_the_disk<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { tail_bytes_max: 50, ..log_options() };
    let log = E::open(dir.path(), options, never()).unwrap();
    for i in 0..50 {
        wait(|done| log.append(records(i..i + 1), done)).unwrap();
    }
    assert_eq!(log.read(0, 100, usize::MAX).unwrap(), records(0..50), "from disk and memory in one answer");
    assert_eq!(log.read(10, 100, 20).unwrap(), records(10..12));
    assert_eq!(log.read(10, 100, 0).unwrap(), records(10..11), "one at least");
    assert_eq!(log.read(46, 100, 17).unwrap(), records(46..48));
    assert!(log.read(50, 100, 99).unwrap().is_empty());
    assert!(log.read(9, 3, 99).unwrap().is_empty());
}

fn a_truncated_end_is_gone_and_its_indices_are_used_again<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    // All queued at once, so that truncation and new records share one write.
    let (tx, answers) = mpsc::channel();
    let done = |tx: &mpsc::Sender<_>| {
        let tx = tx.clone();
        Box::new(move |r: Result<(), LogError>| tx.send(r.is_ok()).unwrap())
    };
    log.append(records(0..10), done(&tx));
    log.truncate_from(6, done(&tx));
    log.append(vec![record(6, "new six"), record(7, "new seven")], done(&tx));
    log.truncate_from(7, done(&tx));
    log.append(vec![record(7, "newer seven")], done(&tx));
    let want = ["5=entry 5", "6=new six", "7=newer seven"];
    assert_eq!(texts(&log, 5, 100), want);
    assert!(answers.iter().take(5).all(|ok| ok));
    drop(log);
    let log = open::<E>(dir.path());
    assert_eq!(log.state().last, Some(7));
    assert_eq!(texts(&log, 5, 100), want);
    wait(|done| log.truncate_from(0, done)).unwrap();
    assert_eq!(log.state().last, None);
    wait(|done| log.append(records(0..2), done)).unwrap();
    assert_eq!(log.read(0, 9, 99).unwrap(), records(0..2));
}

fn a_purge_beyond_the_end_empties_the_log_and_it_goes_on_behind<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    wait(|done| log.append(records(0..5), done)).unwrap();
    log.purge_to(100, Bytes::from_static(b"100"));
    log.purge_to(50, Bytes::from_static(b"an older one changes nothing"));
    assert_eq!(log.state().last, None);
    assert!(log.read(0, 999, 99).unwrap().is_empty());
    wait(|done| log.append(records(101..103), done)).unwrap();
    drop(log);
    let log = open::<E>(dir.path());
    assert_eq!((log.state().last, log.state().purged), (Some(102), Some((100, Bytes::from_static(b"100")))));
    assert_eq!(log.read(0, 999, 99).unwrap(), records(101..103));
}

fn a_log_may_begin_above_zero_and_knows_its_beginning<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    wait(|done| log.append(records(7..9), done)).unwrap();
    drop(log);
    let log = open::<E>(dir.path());
    assert_eq!(log.read(0, 99, 99).unwrap(), records(7..9));
    wait(|done| log.truncate_from(3, done)).unwrap();
    assert_eq!(log.state().last, None);
    wait(|done| log.append(records(4..6), done)).unwrap();
    assert_eq!(log.read(0, 99, 99).unwrap(), records(4..6));
}

fn lazy_marks_reach_the_disk_without_another_write<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { lazy_ms_max: 20, ..log_options() };
    let log = E::open(dir.path(), options, never()).unwrap();
    wait(|done| log.append(records(0..5), done)).unwrap();
    let before = log.stats().syncs.load(Relaxed);
    log.save_committed(Bytes::from_static(b"1"));
    log.purge_to(1, Bytes::from_static(b"p1"));
    log.save_committed(Bytes::from_static(b"2"));
    log.purge_to(3, Bytes::from_static(b"p3"));
    let deadline = std::time::Duration::from_secs(30);
    let (tx, rx) = mpsc::channel::<()>();
    while log.stats().syncs.load(Relaxed) == before {
        assert!(!matches!(rx.recv_timeout(deadline / 3000), Err(mpsc::RecvTimeoutError::Disconnected)));
    }
    drop(tx);
    drop(log);
    let log = open::<E>(dir.path());
    assert_eq!(log.state().committed, Some(Bytes::from_static(b"2")));
    assert_eq!(log.state().purged, Some((3, Bytes::from_static(b"p3"))));
    assert_eq!(log.read(0, 9, 99).unwrap(), records(4..5));
}

fn an_append_that_does_not_follow_ends_the_log<E: TestEngine>() {
    for bad in [records(4..5), records(6..7), vec![record(5, "a"), record(7, "b")]] {
        let dir = tempfile::tempdir().unwrap();
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&fatal);
        let on_fatal: OnFatal = Arc::new(move |e| told.lock().unwrap().push(e.to_string()));
        let log = E::open(dir.path(), log_options(), on_fatal).unwrap();
        wait(|done| log.append(records(0..5), done)).unwrap();
        let error = wait(|done| log.append(bad, done)).unwrap_err();
        assert!(matches!(error, LogError::NotConsecutive { .. }), "{error}");
        assert_eq!(*fatal.lock().unwrap(), [error.to_string()]);
        assert!(log.read(0, 9, 99).is_err() && log.poisoned().is_some());
        drop(log);
        assert_eq!(open::<E>(dir.path()).read(0, 9, 99).unwrap(), records(0..5), "nothing of it reached the disk");
    }
}

/// How many changes reached the disk, when what engines do behind the scenes is done.
fn settled(disk: &FaultDisk) -> u64 {
    let (_nobody, never) = mpsc::channel::<()>();
    loop {
        let changes = disk.changes();
        assert!(never.recv_timeout(std::time::Duration::from_millis(100)).is_err());
        if disk.changes() == changes {
            return changes;
        }
    }
}

fn a_failed_fsync_ends_the_log_for_good<E: TestEngine>() {
    let disk = FaultDisk::new();
    let fatals = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&fatals);
    let on_fatal: OnFatal = Arc::new(move |error| {
        assert!(matches!(error, LogError::Write(_)), "{error}");
        told.fetch_add(1, Relaxed);
    });
    let log = E::open(&disk.join("log"), log_options(), on_fatal).unwrap();
    wait(|done| log.append(records(0..3), done)).unwrap();
    let changes = settled(&disk);
    disk.fail_sync_of(E::SYNCED);
    let first = wait(|done| log.append(records(3..4), done)).unwrap_err().to_string();
    assert_eq!(fatals.load(Relaxed), 1);
    let tried = settled(&disk);
    assert!(tried > changes);
    assert_eq!(wait(|done| log.append(records(4..5), done)).unwrap_err().to_string(), first);
    assert_eq!(wait(|done| log.save_vote(Bytes::new(), done)).unwrap_err().to_string(), first);
    assert_eq!(wait(|done| log.truncate_from(1, done)).unwrap_err().to_string(), first);
    assert_eq!(log.read(0, 9, 99).unwrap_err().to_string(), first);
    log.purge_to(0, Bytes::new());
    log.save_committed(Bytes::new());
    assert_eq!(disk.changes(), tried, "nothing was tried again");
    assert_eq!(fatals.load(Relaxed), 1);
}

fn a_log_is_open_once<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let _log = open::<E>(dir.path());
    let error = E::open(dir.path(), log_options(), never()).err().unwrap();
    assert!(error.to_string().contains("LOCK") || error.to_string().contains("lock"), "{error}");
}

fn the_last_clone_may_go_in_a_waiter<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let log = open::<E>(dir.path());
    let (tx, rx) = mpsc::channel();
    let clone = log.clone();
    let (release, held) = mpsc::channel::<()>();
    log.append(
        records(0..3),
        Box::new(move |result| {
            held.recv().unwrap();
            drop(clone);
            tx.send(result.is_ok()).unwrap();
            // Goes with the thread, after the database: a process that ends while it is being closed pulls
            // RocksDB's own statics away from under it.
            UNTIL_THREAD_ENDS.set(Some(tx));
        }),
    );
    drop(log);
    release.send(()).unwrap();
    assert!(rx.recv().unwrap());
    assert!(rx.recv().is_err(), "the writer's thread said something after its end");
    drop(open::<E>(dir.path()));
}

std::thread_local! {
    static UNTIL_THREAD_ENDS: std::cell::Cell<Option<mpsc::Sender<bool>>> = const { std::cell::Cell::new(None) };
}

/// The process may be killed between a write and its sync, and the power go after the next start: by then others may
/// have been told what the log holds.
fn what_an_opened_log_says_stays_also_when_it_was_not_synced_before<E: TestEngine>() {
    let mut disk = FaultDisk::new();
    let skip = LogOptions { skip_sync: SkipSync::Vote, ..log_options() };
    let log = E::open(&disk.join("log"), skip, never()).unwrap();
    wait(|done| log.append(records(0..3), done)).unwrap();
    wait(|done| log.save_vote(Bytes::from_static(b"vote"), done)).unwrap();
    drop(log);
    let nothing: OnFatal = Arc::new(|_| {});
    let log = E::open(&disk.join("log"), log_options(), nothing).unwrap();
    let state = log.state();
    assert_eq!(state.vote, Some(Bytes::from_static(b"vote")));
    disk.power_off();
    drop(log);
    disk.restart(Cut::Clean);
    assert_eq!(E::open(&disk.join("log"), log_options(), never()).unwrap().state(), state);
}

fn the_files_of_the_other_engine_are_refused_with_what_to_do<E: TestEngine>() {
    let dir = tempfile::tempdir().unwrap();
    let is_rocks = E::SYNCED == RocksLog::SYNCED;
    if is_rocks {
        drop(open::<SegmentLog>(dir.path()));
    } else {
        drop(open::<RocksLog>(dir.path()));
    }
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    let error = E::open(dir.path(), log_options(), never()).err().unwrap();
    let (found, wanted) = if is_rocks { ("segments", "rocksdb") } else { ("rocksdb", "segments") };
    let said = error.to_string();
    assert!(matches!(error, LogError::OtherEngine { .. }), "{said}");
    assert!(said.contains(&format!("set log_engine = \"{found}\" again")) && said.contains(wanted), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "nothing was made there");
}

#[test]
fn rocksdb_uses_the_processors_crc32c() {
    let dir = tempfile::tempdir().unwrap();
    drop(open::<RocksLog>(dir.path()));
    let said = std::fs::read_to_string(dir.path().join("LOG")).unwrap();
    let line = said.lines().find(|l| l.contains("Fast CRC32 supported")).unwrap_or("no such line");
    assert!(!cfg!(target_arch = "x86_64") || line.contains("Supported on x86"), "{line}");
}

#[test]
fn write_ahead_logs_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { write_buffer_bytes: 64 << 10, ..LogOptions::default() };
    let log = RocksLog::open(dir.path(), options, never()).unwrap();
    let said = || std::fs::read_to_string(dir.path().join("LOG")).unwrap();
    assert!(said().contains("reusing log"), "not even the first records go into a warmed write-ahead log");
    let warmed = said().matches("reusing log").count();
    for i in 0..400 {
        let bytes = Bytes::from(vec![3; 4000]);
        wait(|done| log.append(vec![LogRecord { index: i, bytes }], done)).unwrap();
        log.purge_to(i.saturating_sub(4), Bytes::new());
    }
    drop(log);
    assert!(said().matches("reusing log").count() > warmed + 5, "RocksDB hardly reused a write-ahead log");
}

/// A disk that was full when the next segment was to be prepared, and has room when it is needed, costs nothing; one that
/// is still full ends the log.
#[test]
fn a_segment_that_found_no_room_is_tried_again_when_it_is_needed() {
    let disk = FaultDisk::new();
    let fatals = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&fatals);
    let on_fatal: OnFatal = Arc::new(move |error| told.lock().unwrap().push(error.to_string()));
    let options = LogOptions { segment_bytes: 8 << 10, ..LogOptions::default() };
    let log = SegmentLog::open(disk.join("log"), options, on_fatal).unwrap();
    let mut next = 0;
    let mut append = |count: u64| {
        (0..count).try_for_each(|_| {
            next += 1;
            wait(|done| log.append(vec![LogRecord { index: next, bytes: vec![5; 1500].into() }], done))
        })
    };
    settled(&disk);
    disk.leave_room(0);
    append(5).unwrap();
    settled(&disk);
    disk.no_trouble();
    append(20).unwrap();
    settled(&disk);
    disk.leave_room(0);
    let error = append(50).unwrap_err();
    assert!(matches!(error, LogError::Io { .. }), "{error}");
    assert_eq!(*fatals.lock().unwrap(), [error.to_string()]);
    assert!(append(1).is_err());
}

/// The writer never makes a file, so their number stays small and their inodes the same.
#[test]
fn segments_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let log = SegmentLog::open(dir.path(), options, never()).unwrap();
    let mut files = std::collections::BTreeSet::new();
    let mut most = 0;
    for i in 0..400 {
        let bytes = Bytes::from(vec![3; 4000]);
        wait(|done| log.append(vec![LogRecord { index: i, bytes }], done)).unwrap();
        log.purge_to(i.saturating_sub(4), Bytes::new());
        let now: Vec<_> = std::fs::read_dir(dir.path()).unwrap().filter_map(|e| e.ok()?.metadata().ok()).collect();
        let now: Vec<_> = now.iter().filter(|m| m.len() == 64 << 10).map(std::os::unix::fs::MetadataExt::ino).collect();
        most = most.max(now.len());
        files.extend(now);
    }
    assert!(most <= 8, "{most} files at a time");
    assert!(files.len() <= 8, "{} files were made for 1.6 MB in segments of 64 KB", files.len());
}

on_each_engine! {
    everything_comes_back_after_a_restart,
    records_are_readable_as_soon_as_append_returns_and_while_the_disk_is_busy,
    what_is_queued_together_is_synced_together,
    a_drain_is_bounded_by_bytes,
    a_caller_far_ahead_of_the_disk_waits,
    the_tail_is_bounded_and_reads_below_it_come_from_the_disk,
    a_truncated_end_is_gone_and_its_indices_are_used_again,
    a_purge_beyond_the_end_empties_the_log_and_it_goes_on_behind,
    a_log_may_begin_above_zero_and_knows_its_beginning,
    lazy_marks_reach_the_disk_without_another_write,
    an_append_that_does_not_follow_ends_the_log,
    a_failed_fsync_ends_the_log_for_good,
    a_log_is_open_once,
    the_last_clone_may_go_in_a_waiter,
    what_an_opened_log_says_stays_also_when_it_was_not_synced_before,
    the_files_of_the_other_engine_are_refused_with_what_to_do,
}
