//! Rows, snapshots and the log together over power cuts, on a disk that really forgets what was not synced.
//!
//! Rows are not logged: a cut throws them back to their last flush, and the log is applied again from there. That
//! loses nothing only while the log still has what they lack, so it is purged to a *flushed* snapshot at most. And
//! because a majority of others may have what this disk has not synced yet, rows can come out of a cut *ahead* of the
//! log. A script of appends, applied runs, flushes, snapshots and purges runs on the fault disk; the power goes
//! before each change that reaches it; then everything is opened as a node opens it. The rows must be exactly those
//! of a replica that applied so far, what they lack must be in the log, and going on must lead where the other
//! replica is.
//!
//! The last test purges what was applied and not flushed, and must see that promise broken: the check bites.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;
mod testkit;

use std::sync::Arc;

use bytes::Bytes;
use quorate_store::codec;
use quorate_store::command::Command;
use quorate_store::effect::AllEffects;
use quorate_store::log::{LogEngine as _, LogRecord, OnFatal, RocksLog};
use quorate_store::machine::Machine;
use quorate_store::rows::{MemRows, RocksRows, Rows, RowsOptions};
use quorate_store::snapshot::{RowsDir, SnapshotDir, SnapshotId, SnapshotMeta, SnapshotOptions};
use support::fault_fs::{Cut, FaultDisk};
use support::{log_options, wait};
use testkit::commands::{publish, publish2, retain, settle};
use testkit::{Entry, Rig};

/// What a node does to its files.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Appends so many entries, synced.
    Append(u64),
    /// Applies so many entries of the log as one run.
    Apply(u64),
    /// Applies so many entries, and flushes them, while their append still waits for the disk.
    Ahead(u64),
    /// Flushes the rows.
    Flush,
    /// Makes a snapshot of what is applied.
    Snapshot,
    /// Purges the log to the newest snapshot.
    Purge,
    /// Purges the log to what is applied: the mistake.
    PurgeApplied,
}

/// A log of publishes, acknowledgements and retained messages, and the digest of the rows after each entry.
struct History {
    log: Vec<Entry>,
    digests: Vec<u64>,
}

fn history() -> History {
    let mut rig = Rig::with_nodes(2);
    let s = rig.subscriber(2, "s", 2, "t/#");
    let p = rig.publisher(1, "p");
    for n in 0..12_u16 {
        let text = format!("{n} {}", "x".repeat(40 * usize::from(n)));
        let commands = vec![
            Command::Publish(publish(p, 1, "t/1", &text)),
            Command::Publish(publish2(p, n + 1, "t/2", &text)),
            Command::Publish(retain(p, &format!("t/r/{}", n % 3), &text)),
        ];
        rig.batch(1, commands);
        let rows = rig.queue(s.session);
        let oldest = rows.iter().filter(|row| row.qos == quorate_store::ids::QoS::AtLeastOnce).take(2);
        let acks = settle(s, quorate_store::command::AckKind::Puback, oldest);
        rig.batch(2, vec![acks]);
    }
    let mut replica = Machine::open(MemRows::default()).unwrap();
    let mut digests = vec![replica.digest().unwrap()];
    for entry in &rig.log {
        replica.apply(entry.context, &entry.batch, &mut AllEffects::default()).unwrap();
        replica.commit_run().unwrap();
        digests.push(replica.digest().unwrap());
    }
    History { log: rig.log, digests }
}

impl History {
    fn record(&self, index: u64) -> LogRecord {
        LogRecord { index, bytes: codec::encode(&self.log[index as usize - 1].batch).unwrap() }
    }

    fn len(&self) -> u64 {
        self.log.len() as u64
    }
}

/// A node's files, open.
struct Files {
    log: RocksLog,
    rows: RowsDir,
    machine: Machine<RocksRows>,
    snapshots: SnapshotDir,
}

/// What the node may count on.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// Entries whose append was acknowledged.
    appended: u64,
    /// The newest snapshot that was made.
    snapshot: u64,
}

impl Files {
    fn open(disk: &FaultDisk) -> Result<Self, String> {
        let nothing: OnFatal = Arc::new(|_| {});
        let log = RocksLog::open(disk.join("log"), log_options(), nothing).map_err(|e| format!("the log: {e}"))?;
        let rows = RowsDir::open(&disk.join("rows")).map_err(|e| format!("the rows: {e}"))?;
        let snapshots = SnapshotDir::open(&disk.join("snapshots"), SnapshotOptions::default())
            .map_err(|e| format!("the snapshots: {e}"))?;
        let live = RocksRows::open(&rows.live(), &RowsOptions::default()).map_err(|e| format!("the rows: {e}"))?;
        let machine = Machine::open(live).map_err(|e| format!("the rows: {e}"))?;
        Ok(Self { log, rows, machine, snapshots })
    }

    fn applied(&self) -> u64 {
        self.machine.applied().index
    }

    fn last(&self) -> u64 {
        let state = self.log.state();
        state.last.or(state.purged.map(|(index, _)| index)).unwrap_or(0)
    }

    fn append(&self, history: &History, to: u64) -> Result<(), String> {
        let records: Vec<_> = (self.last() + 1..=to).map(|index| history.record(index)).collect();
        if records.is_empty() {
            return Ok(());
        }
        wait(|done| self.log.append(records, done)).map_err(|e| e.to_string())
    }

    fn apply(&mut self, history: &History, to: u64) -> Result<(), String> {
        for index in self.applied() + 1..=to {
            let entry = &history.log[index as usize - 1];
            let applied = self.machine.apply(entry.context, &entry.batch, &mut AllEffects::default());
            applied.map_err(|e| e.to_string())?;
        }
        self.machine.commit_run().map_err(|e| e.to_string())
    }

    fn flush(&self) -> Result<(), String> {
        self.machine.store().flush().map_err(|e| e.to_string())
    }

    fn snapshot(&self) -> Result<u64, String> {
        let made = self.snapshots.make(
            |to| Ok(self.machine.store().checkpoint(to)?),
            |copy| {
                let (applied, meta) = Rows::read_applied(copy)?;
                Ok(SnapshotMeta { id: SnapshotId { index: applied.index, term: applied.term }, meta })
            },
        );
        made.map(|snapshot| snapshot.id().index).map_err(|e| e.to_string())
    }

    fn purge(&self, to: u64) -> Result<(), String> {
        self.log.purge_to(to, Bytes::from_static(b"its log id"));
        // It rides on the next synced write.
        wait(|done| self.log.save_vote(Bytes::from_static(b"a vote"), done)).map_err(|e| e.to_string())
    }

    /// One step; when the power goes it fails, and the steps end.
    fn step(&mut self, history: &History, step: Step, kept: &mut Kept) -> Result<(), String> {
        match step {
            Step::Append(count) => {
                let to = (self.last() + count).min(history.len());
                self.append(history, to)?;
                kept.appended = to;
            }
            Step::Apply(count) => self.apply(history, (self.applied() + count).min(self.last()))?,
            Step::Ahead(count) => {
                let to = (self.last() + count).min(history.len());
                self.apply(history, to)?;
                self.flush()?;
                self.append(history, to)?;
                kept.appended = to;
            }
            Step::Flush => self.flush()?,
            Step::Snapshot => kept.snapshot = self.snapshot()?,
            Step::Purge => self.purge(kept.snapshot)?,
            Step::PurgeApplied => self.purge(self.applied())?,
        }
        Ok(())
    }
}

/// Opens what a cut left, as a node does, and checks it; goes on to the end of the history. Whether the rows were
/// ahead of the log.
fn check(disk: &FaultDisk, history: &History, kept: Kept) -> Result<bool, String> {
    let mut files = Files::open(disk)?;
    let (applied, last) = (files.applied(), files.last());
    let digest = files.machine.digest().map_err(|e| e.to_string())?;
    if digest != history.digests[applied as usize] {
        return Err(format!("the rows say that {applied} is applied, and are not those of a replica that did that"));
    }
    if last < kept.appended {
        return Err(format!("{} entries were acknowledged, {last} are there", kept.appended));
    }
    let newest = files.snapshots.newest().map_or(0, |snapshot| snapshot.id().index);
    if newest < kept.snapshot {
        return Err(format!("a snapshot of {} was made, the newest is of {newest}", kept.snapshot));
    }
    let purged = files.log.state().purged.map_or(0, |(index, _)| index);
    if purged > applied {
        return Err(format!("the log begins behind {purged}, the rows end at {applied}: what is between is lost"));
    }
    for record in files.log.read(applied.min(last) + 1, last + 1, usize::MAX).map_err(|e| e.to_string())? {
        if record != history.record(record.index) {
            return Err(format!("entry {} is not what was appended", record.index));
        }
    }
    if applied > last {
        // What the log lacks must be in a snapshot before it is purged to where the rows are.
        let snapshot = files.snapshot()?;
        if snapshot != applied {
            return Err(format!("a snapshot of {applied} says that it is of {snapshot}"));
        }
        files.purge(applied)?;
    }
    files.append(history, history.len())?;
    files.apply(history, history.len())?;
    if files.machine.digest().map_err(|e| e.to_string())? != history.digests[history.log.len()] {
        return Err("going on does not lead where another replica is".into());
    }
    files.rows.clean().map_err(|e| e.to_string())?;
    Ok(applied > last)
}

/// How the cuts of one script went.
#[derive(Debug, Default)]
struct Cuts {
    cuts: u64,
    rows_ahead: u64,
}

fn cut_everywhere(script: &[Step], torn: bool, stride: u64) -> Result<Cuts, String> {
    let history = history();
    let mut seen = Cuts::default();
    let mut before = u64::from(torn);
    loop {
        let cut = if torn { Cut::Torn(before) } else { Cut::Clean };
        let mut disk = FaultDisk::new();
        disk.cut_before(before);
        let mut kept = Kept::default();
        if let Ok(mut files) = Files::open(&disk) {
            let _ = script.iter().try_for_each(|step| files.step(&history, *step, &mut kept));
        }
        let was_cut = disk.is_off();
        disk.restart(cut);
        let told = |what| format!("power cut before change {before} ({cut:?}), {kept:?}: {what}");
        seen.rows_ahead += u64::from(check(&disk, &history, kept).map_err(told)?);
        if !was_cut {
            return Ok(seen);
        }
        seen.cuts += 1;
        before += stride;
    }
}

const SCRIPT: [Step; 14] = [
    Step::Append(6),
    Step::Apply(4),
    Step::Flush,
    Step::Append(3),
    Step::Apply(5),
    Step::Ahead(3),
    Step::Snapshot,
    Step::Append(4),
    Step::Purge,
    Step::Apply(2),
    Step::Ahead(2),
    Step::Append(5),
    Step::Apply(3),
    Step::Flush,
];

#[test]
fn a_cut_at_any_step_leaves_rows_and_a_log_that_together_have_everything() {
    let seen = cut_everywhere(&SCRIPT, false, 1).unwrap();
    println!("{seen:?}");
    assert!(seen.cuts > 50 && seen.rows_ahead > 2, "the script misses its point: {seen:?}");
}

#[test]
fn a_cut_that_tears_what_was_being_written_is_no_worse() {
    let seen = cut_everywhere(&SCRIPT, true, 3).unwrap();
    println!("{seen:?}");
    assert!(seen.cuts > 50 && seen.rows_ahead > 0, "the script misses its point: {seen:?}");
}

#[test]
fn a_log_purged_beyond_the_flushed_rows_is_noticed() {
    let script = [Step::Append(6), Step::Apply(4), Step::PurgeApplied, Step::Append(2)];
    let noticed = cut_everywhere(&script, false, 1).unwrap_err();
    assert!(noticed.contains("what is between is lost"), "{noticed}");
}
