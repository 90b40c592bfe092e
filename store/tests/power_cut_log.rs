//! The log over power cuts, on a disk that really forgets what was not synced.
//!
//! A script of votes, appends and truncations runs on each engine on the fault disk; the power goes before
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

use quorate_store::log::{LogOptions, OnFatal, SegmentLog, SkipSync};
use support::fault_fs::{Cut, FaultDisk};
use support::model::{Change, Model, Step, tell};
use support::{TestEngine, log_options};

/// What may have happened, step after step.
struct Run {
    /// The log before the first step and after each one that was issued.
    moments: Vec<Model>,
    /// How many steps were acknowledged.
    acknowledged: usize,
}

/// A log that fails is no surprise here: its power is cut.
fn open<E: TestEngine>(disk: &FaultDisk, options: &LogOptions) -> Option<E> {
    let nothing: OnFatal = Arc::new(|_| {});
    E::open(&disk.join("log"), options.clone(), nothing).ok()
}

/// Runs `script` until the power goes. `in_flight` steps are issued before the first is waited for.
fn run<E: TestEngine>(disk: &FaultDisk, options: &LogOptions, script: &[Step], in_flight: usize) -> Run {
    let mut run = Run { moments: vec![Model::default()], acknowledged: 0 };
    let Some(log) = open::<E>(disk, options) else { return run };
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
fn cut_once<E: TestEngine>(
    options: &LogOptions,
    script: &[Step],
    in_flight: usize,
    before: u64,
    cut: Cut,
) -> Result<bool, String> {
    let mut disk = FaultDisk::new();
    disk.cut_before(before);
    let run = run::<E>(&disk, options, script, in_flight);
    let was_cut = disk.is_off();
    disk.restart(cut);
    for _ in 0..2 {
        let log = open_after::<E>(&disk, options)?;
        check(&Model::of(&log), &run)?;
        drop(log);
    }
    Ok(was_cut)
}

fn open_after<E: TestEngine>(disk: &FaultDisk, options: &LogOptions) -> Result<E, String> {
    let nothing: OnFatal = Arc::new(|_| {});
    E::open(&disk.join("log"), options.clone(), nothing).map_err(|e| format!("refused: {e}"))
}

/// Cuts before every change, or before every `stride`-th, until the script runs through.
fn cut_everywhere<E: TestEngine>(
    options: &LogOptions,
    script: &[Step],
    in_flight: usize,
    stride: u64,
    torn: bool,
) -> u64 {
    let mut before = u64::from(torn);
    loop {
        let cut = if torn { Cut::Torn(before) } else { Cut::Clean };
        match cut_once::<E>(options, script, in_flight, before, cut) {
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

/// Enough bytes that memtables are flushed and write-ahead logs change files and are used again; segments, too.
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
    LogOptions {
        write_buffer_bytes: 64 << 10,
        segment_bytes: 16 << 10,
        recycled_wals: 2,
        tail_bytes_max: 10_000,
        ..LogOptions::default()
    }
}

fn a_cut_before_every_step_of_vote_append_and_truncate_loses_nothing<E: TestEngine>() {
    let cuts = cut_everywhere::<E>(&log_options(), &script(), 0, 1, false);
    assert!(cuts > 40, "only {cuts} cuts");
}

fn a_cut_that_tears_what_was_being_written_loses_nothing_and_is_never_taken_for_damage<E: TestEngine>() {
    let cuts = cut_everywhere::<E>(&log_options(), &script(), 0, 1, true);
    assert!(cuts > 40, "only {cuts} cuts");
}

fn cuts_amid_group_commits_lose_nothing<E: TestEngine>() {
    for torn in [false, true] {
        let cuts = cut_everywhere::<E>(&log_options(), &script(), 6, 1, torn);
        assert!(cuts > 20, "only {cuts} cuts");
    }
}

fn cuts_while_files_change_and_are_used_again_lose_nothing<E: TestEngine>() {
    // A slow disk gathers what is in flight into fewer writes: then the places to cut are closer to each other.
    for (torn, in_flight, stride) in [(false, 0, 11), (true, 0, 11), (true, 5, 5)] {
        let cuts = cut_everywhere::<E>(&small_files(), &long_script(), in_flight, stride, torn);
        assert!(cuts > 20, "only {cuts} cuts");
    }
}

/// Little enough that segments of 8 KB hold a few batches and are purged, and used again, all the time.
fn purging_script() -> Vec<Step> {
    let mut steps = Vec::new();
    for i in 0..90u64 {
        steps.push(Step::Append { count: 1 + i % 3, bytes: 200 + 400 * (i % 4) as usize });
        match i % 6 {
            1 => steps.push(Step::Vote),
            2 => steps.push(Step::Truncate { count: 1 + i % 2 }),
            4 => steps.push(Step::Committed),
            _ => {}
        }
        if i % 3 == 2 {
            steps.push(Step::Purge { count: 4 });
        }
    }
    steps
}

/// For RocksDB the script is no other than the long one.
#[test]
fn cuts_while_the_smallest_segments_are_used_again_lose_nothing() {
    let options = LogOptions { segment_bytes: 8 << 10, ..small_files() };
    for (torn, in_flight, stride) in [(false, 0, 3), (true, 0, 2), (true, 4, 2)] {
        let cuts = cut_everywhere::<SegmentLog>(&options, &purging_script(), in_flight, stride, torn);
        assert!(cuts > 20, "only {cuts} cuts");
    }
}

/// The power goes again while the log recovers from the first cut.
fn cuts_during_recovery_lose_nothing<E: TestEngine>() {
    cut_twice::<E>(&small_files(), &long_script(), [150, 217], 5);
}

/// Recovery of segments makes few changes, so each is cut before, after many first cuts.
#[test]
fn cuts_before_each_change_of_a_recovery_of_segments_lose_nothing() {
    let options = LogOptions { segment_bytes: 8 << 10, ..small_files() };
    cut_twice::<SegmentLog>(&options, &purging_script(), (20..600).step_by(23), 1);
}

fn cut_twice<E: TestEngine>(
    options: &LogOptions,
    script: &[Step],
    firsts: impl IntoIterator<Item = u64>,
    stride: usize,
) {
    for first in firsts {
        for second in (first % stride as u64..).step_by(stride) {
            let mut disk = FaultDisk::new();
            disk.cut_before(first);
            let run = run::<E>(&disk, options, script, 3);
            disk.restart(Cut::Torn(first + second));
            disk.cut_before(disk.changes() + second);
            drop(open::<E>(&disk, options));
            let was_cut = disk.is_off();
            disk.restart(Cut::Torn(first * second));
            let log = open_after::<E>(&disk, options);
            let log = log.unwrap_or_else(|e| panic!("cut before {first}, then {second}: {e}"));
            check(&Model::of(&log), &run).unwrap_or_else(|e| panic!("cut before {first}, then {second}: {e}"));
            drop(log);
            if !was_cut {
                assert!(second > E::RECOVERY_CHANGES_MIN, "recovery made only {second} changes");
                break;
            }
        }
    }
}

/// Runs `steps`, cuts the power the moment the last is acknowledged, and says what the check finds.
fn acknowledged_then_cut<E: TestEngine>(skip_sync: SkipSync, steps: &[Step]) -> Result<(), String> {
    let options = LogOptions { skip_sync, ..log_options() };
    let mut disk = FaultDisk::new();
    let mut run = Run { moments: vec![Model::default()], acknowledged: 0 };
    let log = open::<E>(&disk, &options).expect("an empty disk");
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
    let log = open_after::<E>(&disk, &options)?;
    check(&Model::of(&log), &run)
}

fn assert_sync_is_needed<E: TestEngine>(skip_sync: SkipSync, steps: &[Step]) {
    acknowledged_then_cut::<E>(SkipSync::Nothing, steps).expect("with every sync nothing is lost");
    let loss =
        acknowledged_then_cut::<E>(skip_sync, steps).expect_err("without this sync something acknowledged is lost");
    assert!(loss.contains("acknowledged"), "lost in another way than expected: {loss}");
}

fn without_the_sync_of_a_vote_an_acknowledged_vote_is_lost<E: TestEngine>() {
    assert_sync_is_needed::<E>(SkipSync::Vote, &[Step::Append { count: 2, bytes: 9 }, Step::Vote, Step::Vote]);
}

fn without_the_sync_of_an_append_acknowledged_records_are_lost<E: TestEngine>() {
    assert_sync_is_needed::<E>(SkipSync::Append, &[Step::Vote, Step::Append { count: 2, bytes: 9 }]);
}

fn without_the_sync_of_a_truncation_truncated_records_are_back<E: TestEngine>() {
    let steps = [Step::Vote, Step::Append { count: 5, bytes: 9 }, Step::Truncate { count: 3 }];
    assert_sync_is_needed::<E>(SkipSync::Truncate, &steps);
}

/// The cut-everywhere tests themselves notice a missing sync, not only the ones made for it.
fn the_cuts_notice_each_missing_sync<E: TestEngine>() {
    for skip_sync in [SkipSync::Vote, SkipSync::Append, SkipSync::Truncate] {
        let options = LogOptions { skip_sync, ..log_options() };
        let noticed =
            (0..).map(|before| cut_once::<E>(&options, &script(), 0, before, Cut::Clean)).find_map(|cut| match cut {
                Ok(true) => None,
                Ok(false) => Some(false),
                Err(_) => Some(true),
            });
        assert_eq!(noticed, Some(true), "{skip_sync:?}: no cut noticed that it was left out");
    }
}

on_each_engine! {
    a_cut_before_every_step_of_vote_append_and_truncate_loses_nothing,
    a_cut_that_tears_what_was_being_written_loses_nothing_and_is_never_taken_for_damage,
    cuts_amid_group_commits_lose_nothing,
    cuts_while_files_change_and_are_used_again_lose_nothing,
    cuts_during_recovery_lose_nothing,
    without_the_sync_of_a_vote_an_acknowledged_vote_is_lost,
    without_the_sync_of_an_append_acknowledged_records_are_lost,
    without_the_sync_of_a_truncation_truncated_records_are_back,
    the_cuts_notice_each_missing_sync,
}
