//! The log over power cuts, on a disk that really forgets what was not synced.
//!
//! A script of votes, appends and truncations runs on [`RocksLog`] on the fault disk; the power goes before
//! each single change that reaches the disk (a write, a sync, a creation, a rename); the log is opened again
//! on what is left. Then there must be *one* moment of the script, at or after the last acknowledgement, at
//! which the log was exactly what it is now: what was acknowledged is there, what was acknowledged as
//! truncated is not back, the vote has not gone backwards, and no operation is half done.
//!
//! The last tests leave one sync out and must see exactly that promise broken: the check bites.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::mpsc;

use quorate_store::log::{LogOptions, OnFatal, RocksLog, SkipSync};
use support::fault_fs::{Cut, FaultDisk};
use support::log_options;
use support::model::{Change, Model, Step, tell};

/// What may have happened, step after step.
struct Run {
    /// The log before the first step and after each one that was issued.
    moments: Vec<Model>,
    /// How many steps were acknowledged.
    acknowledged: usize,
}

/// A log that fails is no surprise here: its power is cut.
fn open(disk: &FaultDisk, options: &LogOptions) -> Option<RocksLog> {
    let nothing: OnFatal = Arc::new(|_| {});
    RocksLog::open(disk.join("log"), options.clone(), nothing).ok()
}

/// Runs `script` until the power goes. `in_flight` steps are issued before the first is waited for.
fn run(disk: &FaultDisk, options: &LogOptions, script: &[Step], in_flight: usize) -> Run {
    let mut run = Run { moments: vec![Model::default()], acknowledged: 0 };
    let Some(log) = open(disk, options) else { return run };
    let (tx, answers) = mpsc::channel();
    let mut model = Model::default();
    let mut waited = 0;
    for (number, step) in (1..).zip(script) {
        let change = model.resolve(step);
        model.apply(&change);
        run.moments.push(model.clone());
        let tx = tx.clone();
        let left = tell(&log, change, Box::new(move |result| tx.send((number, result.is_ok())).unwrap_or_default()));
        waited += usize::from(left.is_none());
        drop(left);
        while waited > in_flight {
            waited -= 1;
            let (number, ok) = answers.recv().unwrap();
            if !ok {
                return run;
            }
            run.acknowledged = number;
        }
    }
    for (number, ok) in answers.iter().take(waited) {
        if !ok {
            return run;
        }
        run.acknowledged = number;
    }
    run
}

/// Whether what is in the log is what was there at one moment that is not before the last acknowledgement.
fn check(now: &Model, run: &Run) -> Result<(), String> {
    let possible = &run.moments[run.acknowledged..];
    let purged = now.purged.as_ref().map(|p| p.0);
    // Purges and committed marks are not synced: an older one is as good.
    let known = |mark: &dyn Fn(&Model) -> bool| run.moments.iter().any(mark);
    if !known(&|m| m.purged == now.purged) || !known(&|m| m.committed == now.committed) {
        return Err(format!("marks that were never given: {:?} {:?}", now.purged, now.committed));
    }
    let as_now = |m: &&Model| {
        let front = purged.max(m.purged.as_ref().map(|p| p.0));
        let behind = |model: &Model| -> Vec<_> {
            model.records.iter().filter(|r| front.is_none_or(|front| r.index > front)).cloned().collect()
        };
        m.vote == now.vote && behind(m) == behind(now)
    };
    if possible.iter().any(|m| as_now(&m)) {
        return Ok(());
    }
    let ends = |m: &Model| (m.vote.clone(), m.records.last().map(|r| r.index), m.records.len());
    Err(format!(
        "{} steps were acknowledged, the log then had {:?}, now it has {:?}",
        run.acknowledged,
        ends(&possible[0]),
        ends(now)
    ))
}

/// One cut: runs, cuts, opens, checks. Opens twice, because recovery writes too.
fn cut_once(options: &LogOptions, script: &[Step], in_flight: usize, before: u64, cut: Cut) -> Result<bool, String> {
    let mut disk = FaultDisk::new();
    disk.cut_before(before);
    let run = run(&disk, options, script, in_flight);
    let was_cut = disk.is_off();
    disk.restart(cut);
    for _ in 0..2 {
        let log = open_after(&disk, options)?;
        check(&Model::of(&log), &run)?;
        drop(log);
    }
    Ok(was_cut)
}

fn open_after(disk: &FaultDisk, options: &LogOptions) -> Result<RocksLog, String> {
    let nothing: OnFatal = Arc::new(|_| {});
    RocksLog::open(disk.join("log"), options.clone(), nothing).map_err(|e| format!("refused: {e}"))
}

/// Cuts before every change, or before every `stride`-th, until the script runs through.
fn cut_everywhere(options: &LogOptions, script: &[Step], in_flight: usize, stride: u64, torn: bool) -> u64 {
    let mut before = u64::from(torn);
    loop {
        let cut = if torn { Cut::Torn(before) } else { Cut::Clean };
        match cut_once(options, script, in_flight, before, cut) {
            Ok(true) => before += stride,
            Ok(false) => return before / stride,
            Err(what) => panic!("power cut before change {before} ({cut:?}): {what}"),
        }
    }
}

fn script() -> Vec<Step> {
    let append = |count, bytes| Step::Append { count, bytes };
    vec![
        Step::Vote,
        append(1, 10),
        append(3, 300),
        Step::Vote,
        Step::Truncate { count: 2 },
        append(2, 100),
        Step::Truncate { count: 4 },
        append(5, 2000),
        Step::Committed,
        Step::Vote,
        append(2, 40_000),
        Step::Truncate { count: 1 },
        Step::Purge { count: 2 },
        append(1, 20),
        Step::Vote,
    ]
}

/// Enough bytes that memtables are flushed and write-ahead logs change files and are used again.
fn long_script() -> Vec<Step> {
    let mut steps = Vec::new();
    for i in 0..60u64 {
        steps.push(Step::Append { count: 1 + i % 3, bytes: 3000 + 1000 * (i % 5) as usize });
        match i % 10 {
            2 => steps.push(Step::Vote),
            5 => steps.push(Step::Truncate { count: 1 + i % 4 }),
            7 => steps.push(Step::Purge { count: 8 }),
            8 => steps.push(Step::Committed),
            _ => {}
        }
    }
    steps
}

fn small_files() -> LogOptions {
    LogOptions { write_buffer_bytes: 64 << 10, recycled_wals: 2, tail_bytes_max: 10_000, ..LogOptions::default() }
}

#[test]
fn a_cut_before_every_step_of_vote_append_and_truncate_loses_nothing() {
    let cuts = cut_everywhere(&log_options(), &script(), 0, 1, false);
    assert!(cuts > 40, "only {cuts} cuts");
}

#[test]
fn a_cut_that_tears_what_was_being_written_loses_nothing_and_is_never_taken_for_damage() {
    let cuts = cut_everywhere(&log_options(), &script(), 0, 1, true);
    assert!(cuts > 40, "only {cuts} cuts");
}

#[test]
fn cuts_amid_group_commits_lose_nothing() {
    for torn in [false, true] {
        let cuts = cut_everywhere(&log_options(), &script(), 6, 1, torn);
        assert!(cuts > 20, "only {cuts} cuts");
    }
}

#[test]
fn cuts_while_files_change_and_are_used_again_lose_nothing() {
    // A slow disk gathers what is in flight into fewer writes: then the places to cut are closer to each other.
    for (torn, in_flight, stride) in [(false, 0, 11), (true, 0, 11), (true, 5, 5)] {
        let cuts = cut_everywhere(&small_files(), &long_script(), in_flight, stride, torn);
        assert!(cuts > 20, "only {cuts} cuts");
    }
}

/// The power goes again while the log recovers from the first cut.
#[test]
fn cuts_during_recovery_lose_nothing() {
    let options = small_files();
    let script = long_script();
    for first in [150, 217] {
        for second in (first % 5..).step_by(5) {
            let mut disk = FaultDisk::new();
            disk.cut_before(first);
            let run = run(&disk, &options, &script, 3);
            disk.restart(Cut::Torn(first + second));
            disk.cut_before(disk.changes() + second);
            drop(open(&disk, &options));
            let was_cut = disk.is_off();
            disk.restart(Cut::Torn(first * second));
            let log = open_after(&disk, &options).unwrap_or_else(|e| panic!("cut before {first}, then {second}: {e}"));
            check(&Model::of(&log), &run).unwrap_or_else(|e| panic!("cut before {first}, then {second}: {e}"));
            drop(log);
            if !was_cut {
                assert!(second > 10, "recovery made only {second} changes");
                break;
            }
        }
    }
}

/// Runs `steps`, cuts the power the moment the last is acknowledged, and says what the check finds.
fn acknowledged_then_cut(skip_sync: SkipSync, steps: &[Step]) -> Result<(), String> {
    let options = LogOptions { skip_sync, ..log_options() };
    let mut disk = FaultDisk::new();
    let mut run = Run { moments: vec![Model::default()], acknowledged: 0 };
    let log = open(&disk, &options).expect("an empty disk");
    let mut model = Model::default();
    for step in steps {
        let change = model.resolve(step);
        assert!(!matches!(change, Change::Nothing));
        model.apply(&change);
        run.moments.push(model.clone());
        support::wait(|done| drop(tell(&log, change, done))).expect("acknowledged");
        run.acknowledged += 1;
    }
    // Closing would sync: the power goes first.
    disk.power_off();
    drop(log);
    disk.restart(Cut::Clean);
    let log = open_after(&disk, &options)?;
    check(&Model::of(&log), &run)
}

fn assert_sync_is_needed(skip_sync: SkipSync, steps: &[Step]) {
    acknowledged_then_cut(SkipSync::Nothing, steps).expect("with every sync nothing is lost");
    let loss = acknowledged_then_cut(skip_sync, steps).expect_err("without this sync something acknowledged is lost");
    assert!(loss.contains("acknowledged"), "lost in another way than expected: {loss}");
}

#[test]
fn without_the_sync_of_a_vote_an_acknowledged_vote_is_lost() {
    assert_sync_is_needed(SkipSync::Vote, &[Step::Append { count: 2, bytes: 9 }, Step::Vote, Step::Vote]);
}

#[test]
fn without_the_sync_of_an_append_acknowledged_records_are_lost() {
    assert_sync_is_needed(SkipSync::Append, &[Step::Vote, Step::Append { count: 2, bytes: 9 }]);
}

#[test]
fn without_the_sync_of_a_truncation_truncated_records_are_back() {
    let steps = [Step::Vote, Step::Append { count: 5, bytes: 9 }, Step::Truncate { count: 3 }];
    assert_sync_is_needed(SkipSync::Truncate, &steps);
}

/// The cut-everywhere tests themselves notice a missing sync, not only the ones made for it.
#[test]
fn the_cuts_notice_each_missing_sync() {
    for skip_sync in [SkipSync::Vote, SkipSync::Append, SkipSync::Truncate] {
        let options = LogOptions { skip_sync, ..log_options() };
        let noticed =
            (0..).map(|before| cut_once(&options, &script(), 0, before, Cut::Clean)).find_map(|cut| match cut {
                Ok(true) => None,
                Ok(false) => Some(false),
                Err(_) => Some(true),
            });
        assert_eq!(noticed, Some(true), "{skip_sync:?}: no cut noticed that it was left out");
    }
}
