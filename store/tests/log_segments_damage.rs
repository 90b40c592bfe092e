//! Segments: damage is refused by name, or changes nothing; the torn end of a power cut is accepted with everything
//! synced intact.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_store::log::{LogEngine, LogError, LogOptions, SegmentLog};
use support::model::{Model, Step, tell};
use support::{Rng, copy_files, wait};

const SECTOR: usize = 512;

fn options() -> LogOptions {
    LogOptions { segment_bytes: 16 << 10, recycled_wals: 2, ..LogOptions::default() }
}

fn open(dir: &Path) -> Result<SegmentLog, LogError> {
    SegmentLog::open(dir, options(), Arc::new(|error| panic!("the log failed: {error}")))
}

/// A log in the making.
struct Making {
    dir: tempfile::TempDir,
    log: SegmentLog,
    model: Model,
    rounds: u64,
}

impl Making {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path()).unwrap();
        Self { dir, log, model: Model::default(), rounds: 0 }
    }

    fn tell(&mut self, step: &Step) {
        let change = self.model.resolve(step);
        self.model.apply(&change);
        match step {
            Step::Purge { .. } | Step::Committed => drop(tell(&self.log, change, Box::new(|_| {}))),
            _ => wait(|done| drop(tell(&self.log, change, done))).unwrap(),
        }
    }

    /// Appends, votes, truncations and purges; the last is waited for. Files are used again.
    fn go_on(&mut self, rounds: u64) {
        for _ in 0..rounds {
            let i = self.rounds;
            self.rounds += 1;
            match i % 7 {
                1 => self.tell(&Step::Vote),
                3 => self.tell(&Step::Truncate { count: 2 }),
                4 if i > 20 => self.tell(&Step::Purge { count: 6 }),
                5 => self.tell(&Step::Committed),
                _ => {}
            }
            self.tell(&Step::Append { count: 1 + i % 4, bytes: 100 + 400 * (i % 3) as usize });
        }
    }

    /// The folder as a killed process leaves it.
    fn killed(&self, mark: bool) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_files(self.dir.path(), copy.path(), mark);
        copy
    }
}

/// A segment file, taken apart.
#[derive(Clone, Debug)]
struct Segment {
    path: PathBuf,
    bytes: Vec<u8>,
    header: Range<usize>,
    /// Its batches; none in a segment that was prepared and not begun.
    batches: Vec<Range<usize>>,
}

impl Segment {
    fn is_begun(&self) -> bool {
        !self.header.is_empty()
    }

    /// Whether the byte belongs to something that the log is made of.
    fn is_used(&self, at: usize) -> bool {
        self.header.contains(&at) || self.batches.iter().any(|batch| batch.contains(&at))
    }
}

fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// The segments in `dir`, oldest first, read by docs/FORMAT.md.
fn segments(dir: &Path) -> Vec<Segment> {
    let paths = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    paths.sort();
    let take_apart = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        let (mut header, mut batches) = (0..0, Vec::new());
        if bytes.starts_with(b"QRTSEG01") {
            header = 0..le32(&bytes, 12);
            let mut at = header.end.next_multiple_of(SECTOR);
            while at < bytes.len() && bytes[at..].starts_with(b"QRTB") && bytes[at + 8..at + 16] == bytes[24..32] {
                batches.push(at..at + le32(&bytes, at + 24));
                at = (at + le32(&bytes, at + 24)).next_multiple_of(SECTOR);
            }
        }
        Segment { path, bytes, header, batches }
    };
    paths.into_iter().map(take_apart).collect()
}

fn assert_whole(dir: &Path, model: &Model, what: &str) {
    let log = open(dir).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(log.state(), model.state(), "{what}");
    assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap(), model.records, "{what}");
}

/// Opens a damaged folder; it must be refused, with an error that names a segment and leaves the folder as it is.
fn assert_refused(dir: &Path, what: &str) {
    let before = segments(dir);
    match open(dir) {
        Ok(log) => panic!("{what}: accepted, last {:?}", log.state().last),
        Err(error @ LogError::Damaged { .. }) => assert!(error.to_string().contains(".seg"), "{what}: {error}"),
        Err(LogError::Hole { .. }) => {}
        Err(error) => panic!("{what}: {error}"),
    }
    let after = segments(dir);
    assert!(before.iter().map(|s| &s.bytes).eq(after.iter().map(|s| &s.bytes)), "{what}: something was written");
}

/// A damaged copy of a log.
fn damaged(whole: &Path, damage: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_files(whole, copy.path(), true);
    damage(copy.path());
    copy
}

fn name(segment: &Segment) -> &std::ffi::OsStr {
    segment.path.file_name().unwrap()
}

fn last_begun(all: &[Segment]) -> &Segment {
    all.iter().rfind(|segment| segment.is_begun()).unwrap()
}

/// A log of several segments, some of them in files that were used before, and what it holds.
fn made(rounds: u64, mark: bool) -> (tempfile::TempDir, Vec<Segment>, Model) {
    let mut making = Making::new();
    making.go_on(rounds);
    // The last segment has several batches, so that damage in it has something behind it.
    while last_begun(&segments(making.dir.path())).batches.len() < 3 {
        making.go_on(1);
    }
    let dir = making.killed(mark);
    let all = segments(dir.path());
    let begun = all.iter().filter(|segment| segment.is_begun()).count();
    assert!(begun > 4, "only {begun} segments");
    (dir, all, making.model)
}

#[test]
fn a_killed_log_opens_whole() {
    for rounds in [1, 30, 100, 300] {
        let mut making = Making::new();
        making.go_on(rounds);
        for mark in [false, true] {
            let dir = making.killed(mark);
            for _ in 0..2 {
                assert_whole(dir.path(), &making.model, &format!("{rounds} rounds"));
            }
        }
    }
}

/// The places of a segment at which a byte is flipped: all of the header, of each batch its head, the ends of its body
/// and some in between, and what lies between and behind.
fn places(segment: &Segment, rng: &mut Rng) -> Vec<usize> {
    let mut out: Vec<_> = segment.header.clone().collect();
    for batch in &segment.batches {
        out.extend(batch.clone().take(32));
        out.extend([32, 33, 45].map(|at| (batch.start + at).min(batch.end - 1)));
        out.extend((0..6).map(|_| batch.start + rng.below(batch.len() as u64) as usize));
        out.push(batch.end - 1);
        out.push(batch.end.min(segment.bytes.len() - 1));
    }
    out.push(segment.header.end);
    out.extend((0..20).map(|_| rng.below(segment.bytes.len() as u64) as usize));
    out.push(segment.bytes.len() - 1);
    out
}

/// With the mark of what is synced (the system stayed up) every flipped byte of what was synced is refused, and one
/// elsewhere changes nothing.
#[test]
fn any_flipped_byte_is_refused_by_name_or_changes_nothing() {
    let (dir, all, model) = made(140, true);
    let mut rng = Rng::new(7);
    let (mut refused, mut harmless) = (0, 0);
    for segment in &all {
        for at in places(segment, &mut rng) {
            let mut bytes = segment.bytes.clone();
            bytes[at] ^= 1 << rng.below(8);
            let what = format!("{}: byte {at}", segment.path.display());
            if segment.is_used(at) {
                // A refused log is not changed, so the next byte can follow.
                fs::write(&segment.path, &bytes).unwrap();
                assert_refused(dir.path(), &what);
                fs::write(&segment.path, &segment.bytes).unwrap();
                refused += 1;
            } else {
                let copy = damaged(dir.path(), |copy| fs::write(copy.join(name(segment)), &bytes).unwrap());
                assert_whole(copy.path(), &model, &what);
                harmless += 1;
            }
        }
    }
    assert!(refused > 1000 && harmless > 50, "{refused} refused, {harmless} harmless");
    assert_whole(dir.path(), &model, "after all");
}

/// Without the mark (it is lost, or a power cut left it behind) damage before the last batch is refused all the same.
#[test]
fn damage_in_the_middle_is_refused_without_the_mark() {
    let (dir, all, model) = made(140, false);
    let last = all.iter().rposition(Segment::is_begun).unwrap();
    let mut refused = 0;
    for (number, segment) in all.iter().enumerate().filter(|(_, segment)| segment.is_begun()) {
        let behind = usize::from(number == last);
        for batch in segment.batches.iter().rev().skip(behind).chain([&segment.header]) {
            for what in ["a flipped bit", "zeros", "another page"] {
                let mut bytes = segment.bytes.clone();
                match what {
                    "zeros" => bytes[batch.clone()].fill(0),
                    "another page" => bytes[batch.clone()].fill(0xA5),
                    _ => bytes[batch.start + batch.len() / 2] ^= 1,
                }
                fs::write(&segment.path, &bytes).unwrap();
                assert_refused(dir.path(), &format!("{}, {batch:?}: {what}", segment.path.display()));
                refused += 1;
            }
        }
        fs::write(&segment.path, &segment.bytes).unwrap();
    }
    assert!(refused > 100, "{refused}");
    assert_whole(dir.path(), &model, "after all");
}

#[test]
fn a_shortened_lengthened_or_missing_segment_is_refused() {
    let (dir, all, model) = made(140, true);
    for segment in &all {
        let len = segment.bytes.len();
        for cut in [0, 5, 512, len / 2, len - 512, len - 1, len + 512] {
            let mut bytes = segment.bytes.clone();
            bytes.resize(cut, 0);
            let what = format!("{} with {cut} bytes", segment.path.display());
            let copy = damaged(dir.path(), |copy| fs::write(copy.join(name(segment)), &bytes).unwrap());
            if segment.is_begun() {
                assert_refused(copy.path(), &what);
            } else {
                assert_whole(copy.path(), &model, &what);
            }
        }
        let what = format!("{} is gone", segment.path.display());
        let copy = damaged(dir.path(), |copy| fs::remove_file(copy.join(name(segment))).unwrap());
        if segment.is_begun() {
            assert_refused(copy.path(), &what);
        } else {
            assert_whole(copy.path(), &model, &what);
        }
    }
    // From one on, to the end.
    for first in 0..all.len() {
        let gone = all.iter().skip(first).filter(|segment| segment.is_begun()).count();
        let copy = damaged(dir.path(), |copy| {
            all.iter().skip(first).for_each(|segment| fs::remove_file(copy.join(name(segment))).unwrap());
        });
        if gone > 0 {
            assert_refused(copy.path(), &format!("all from number {first} on are gone"));
        }
    }
}

#[test]
fn swapped_segments_are_refused() {
    let (dir, all, _) = made(140, true);
    for (number, one) in all.iter().enumerate() {
        for other in all.iter().skip(number + 1) {
            let copy = damaged(dir.path(), |copy| {
                fs::write(copy.join(name(one)), &other.bytes).unwrap();
                fs::write(copy.join(name(other)), &one.bytes).unwrap();
            });
            assert_refused(copy.path(), &format!("{} and {}", one.path.display(), other.path.display()));
        }
    }
}

/// Somebody puts back a file of an older copy, or of another node.
#[test]
fn an_older_segment_or_one_of_another_log_is_refused() {
    let mut making = Making::new();
    making.go_on(100);
    let (mut older, mut refused) = (Vec::new(), 0);
    for _ in 0..12 {
        older.extend(segments(making.killed(true).path()));
        making.go_on(3);
    }
    let dir = making.killed(true);
    let all = segments(dir.path());
    let other = Making::new();
    let mut other = Making { model: Model::default(), ..other };
    other.go_on(making.rounds);
    older.extend(segments(other.killed(true).path()));
    for old in &older {
        let Some(now) = all.iter().find(|now| name(now) == name(old)) else { continue };
        if now.bytes == old.bytes {
            continue;
        }
        let copy = damaged(dir.path(), |copy| fs::write(copy.join(name(now)), &old.bytes).unwrap());
        let is_same = |range: &Range<usize>| old.bytes[range.clone()] == now.bytes[range.clone()];
        let what = format!("an older {}", now.path.display());
        if now.is_begun() && !(is_same(&now.header) && now.batches.iter().all(is_same)) {
            assert_refused(copy.path(), &what);
            refused += 1;
        } else if !old.is_begun() {
            assert_whole(copy.path(), &making.model, &what);
        }
    }
    assert!(refused > 5, "{refused}");
}

/// What a power cut leaves of a batch that was being written: any of its sectors. That was never acknowledged, so the
/// log opens with everything before it, and goes on as if it had never been there.
#[test]
fn the_torn_end_of_a_power_cut_is_accepted_with_the_synced_part_intact() {
    let mut rng = Rng::new(3);
    for rounds in [3, 30, 140] {
        let mut making = Making::new();
        making.go_on(rounds);
        let before = making.model.clone();
        let whole = making.killed(false);
        making.tell(&Step::Append { count: 3, bytes: 900 });
        let longer = making.killed(false);
        let (was, is) = (segments(whole.path()), segments(longer.path()));
        let last = last_begun(&is);
        let Some(old) = was.iter().find(|old| name(old) == name(last)) else { continue };
        let batch = last.batches.last().unwrap();
        let sectors = batch.start / SECTOR..batch.end.div_ceil(SECTOR);
        for turn in 0..40 {
            let mut torn = last.bytes.clone();
            let mut lost = 0;
            for sector in sectors.clone() {
                let at = sector * SECTOR..(sector + 1) * SECTOR;
                if rng.below(2) == 0 || (lost == 0 && sector + 1 == sectors.end) {
                    torn[at.clone()].copy_from_slice(&old.bytes[at]);
                    lost += 1;
                }
            }
            // Only zeros behind the batch's end were lost: then it is whole.
            if torn[batch.clone()] == last.bytes[batch.clone()] {
                continue;
            }
            let copy = damaged(whole.path(), |copy| fs::write(copy.join(name(last)), &torn).unwrap());
            let what = format!("after {rounds} rounds, turn {turn}, {lost} of {sectors:?} lost");
            for _ in 0..2 {
                assert_whole(copy.path(), &before, &what);
            }
            let mut model = before.clone();
            let log = open(copy.path()).unwrap();
            for bytes in [10, 700, 2000] {
                let change = model.resolve(&Step::Append { count: 1, bytes });
                model.apply(&change);
                wait(|done| drop(tell(&log, change, done))).unwrap();
            }
            drop(log);
            assert_whole(copy.path(), &model, &what);
        }
    }
}

/// A record is never taken for a batch because it looks like one: what a client sends must not keep a node from
/// starting.
#[test]
fn records_that_look_like_segments_and_batches_are_only_records() {
    let mut making = Making::new();
    making.go_on(100);
    let all = segments(making.killed(true).path());
    let look_alike: Vec<u8> = all.iter().flat_map(|segment| segment.bytes.clone()).take(40_000).collect();
    // Another generation, as nobody knows this log's: all the checksums are right, all the numbers are high.
    let mut other = Making::new();
    other.go_on(300);
    let foreign: Vec<u8> = segments(other.killed(true).path()).iter().flat_map(|s| s.bytes.clone()).collect();
    for bytes in [look_alike, foreign[..40_000].to_vec(), foreign[100..40_000].to_vec()] {
        let index = making.model.next();
        let record = quorate_store::log::LogRecord { index, bytes: bytes.into() };
        making.model.apply(&support::model::Change::Append(vec![record.clone()]));
        wait(|done| making.log.append(vec![record], done)).unwrap();
        making.go_on(40);
        assert_whole(making.killed(true).path(), &making.model, "with look-alikes");
    }
}

/// The checks above find a log whole only because they find one that is not: without segments there is nothing.
#[test]
fn a_log_that_is_gone_is_refused_as_long_as_its_mark_is_there() {
    let (dir, all, _) = made(60, true);
    all.iter().for_each(|segment| fs::remove_file(&segment.path).unwrap());
    assert_refused(dir.path(), "no segments");
}
