//! RocksDB: damage is refused by name; the torn end of a power cut is accepted with everything synced intact.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_store::log::{LogEngine, LogError, LogOptions, RocksLog, wal};
use support::model::{Model, Step, tell};
use support::{Rng, copy_files, wait};

fn options(recycled_wals: usize) -> LogOptions {
    LogOptions { write_buffer_bytes: 64 << 10, recycled_wals, ..LogOptions::default() }
}

fn open(dir: &Path, options: &LogOptions) -> Result<RocksLog, LogError> {
    RocksLog::open(dir, options.clone(), Arc::new(|error| panic!("the log failed: {error}")))
}

/// A log of several write-ahead logs, of which the newest ends in acknowledged records, as a killed process
/// leaves it: the folder is copied while the log is open.
fn killed(recycled_wals: usize, rounds: u64, mark: bool) -> (tempfile::TempDir, Model, LogOptions) {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = options(recycled_wals);
    let log = open(dir.path(), &options).unwrap();
    let mut model = Model::default();
    for i in 0..rounds {
        let step = if i % 5 == 1 {
            Step::Vote
        } else {
            Step::Append { count: 1 + i % 4, bytes: 300 + 1000 * (i % 3) as usize }
        };
        let change = model.resolve(&step);
        model.apply(&change);
        wait(|done| drop(tell(&log, change, done))).unwrap();
    }
    copy_files(dir.path(), copy.path(), mark);
    drop(log);
    (copy, model, options)
}

/// The live write-ahead logs, oldest first, with what is in them.
fn wals(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let floor = wal::floor(dir).unwrap().unwrap();
    let mut out: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .filter(|p| p.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap() >= floor.wal_min)
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect();
    out.sort();
    out
}

fn assert_whole(dir: &Path, options: &LogOptions, model: &Model) {
    let log = open(dir, options).unwrap();
    assert_eq!(log.state(), model.state());
    assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap(), model.records);
}

/// Opens a damaged copy; it must be refused, with an error that names `file`.
fn assert_refused(dir: &Path, options: &LogOptions, file: &Path, damage: &str) {
    match open(dir, options) {
        Ok(log) => panic!("{damage}: accepted, last {:?}", log.state().last),
        Err(error @ LogError::Damaged { .. }) => {
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(error.to_string().contains(name), "{damage}: {error}");
        }
        Err(error) => panic!("{damage}: {error}"),
    }
}

#[test]
fn a_killed_log_opens_whole() {
    for recycled in [0, 2] {
        let (dir, model, options) = killed(recycled, 200, true);
        assert_whole(dir.path(), &options, &model);
        assert_whole(dir.path(), &options, &model);
    }
}

/// A database without the row that says how to read it is not a new one.
#[test]
fn a_log_that_lost_the_row_of_its_format_is_refused() {
    let (dir, _, options) = killed(0, 20, true);
    drop(open(dir.path(), &options).unwrap());
    {
        let db = rocksdb::DB::open_default(dir.path()).unwrap();
        let mut synced = rocksdb::WriteOptions::default();
        synced.set_sync(true);
        // Group 0, kind 0, index 0.
        db.delete_opt([0_u8; 11], &synced).unwrap();
    }
    let refused = open(dir.path(), &options).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused.contains("Format"), "{refused:?}");
}

/// With the mark of what is synced (the system stayed up), every flipped byte of what was synced is refused.
#[test]
fn any_flipped_byte_of_what_was_synced_is_refused_by_name() {
    for recycled in [0, 2] {
        let (dir, model, options) = killed(recycled, 120, true);
        let files = wals(dir.path());
        let mut rng = Rng::new(7);
        let mut flips = 0;
        for (path, bytes) in &files {
            let end = used(bytes, path);
            for turn in 0..60 {
                // The last records are tried in each turn: nothing behind them gives the damage away.
                let at = if turn < 20 { end - 1 - turn * 17 % end.min(400) } else { rng.below(end as u64) as usize };
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (turn % 8);
                fs::write(path, &damaged).unwrap();
                if is_padding(bytes, at) {
                    continue;
                }
                assert_refused(dir.path(), &options, path, &format!("{}: byte {at} of {end}", path.display()));
                flips += 1;
            }
            fs::write(path, bytes).unwrap();
        }
        assert!(flips > 50, "{flips}");
        assert_whole(dir.path(), &options, &model);
    }
}

/// Where the intact records of this file end (in a reused file, older ones follow).
fn used(bytes: &[u8], path: &Path) -> usize {
    let number: u32 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let (mut at, mut end) = (0, 0);
    while at + 7 <= bytes.len() {
        let left = 32_768 - at % 32_768;
        let head = if bytes[at + 6] > 4 { 11 } else { 7 };
        if left < head {
            at += left;
            continue;
        }
        let len = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        if bytes[at + 6] == 0 || (head == 11 && bytes[at + 7..at + 11] != number.to_le_bytes()) {
            break;
        }
        at += head + len;
        end = at;
    }
    end
}

/// The few bytes at the end of a block that are too short for a header.
fn is_padding(bytes: &[u8], at: usize) -> bool {
    let block_end = (at / 32_768 + 1) * 32_768;
    block_end - at <= 10 && block_end <= bytes.len() && bytes[at..block_end].iter().all(|b| *b == 0)
}

/// Without the mark (it is lost, or a power cut left it behind) damage in the middle is refused all the same.
#[test]
fn a_damaged_record_in_the_middle_is_refused_by_name() {
    let (dir, model, options) = killed(2, 120, false);
    let files = wals(dir.path());
    for (path, bytes) in &files {
        let end = used(bytes, path);
        if end < 10_000 {
            continue;
        }
        type Damage = (&'static str, fn(&mut Vec<u8>, usize));
        let damages: [Damage; 4] = [
            ("a flipped bit", |b, _| b[3000] ^= 1),
            ("the first byte", |b, _| b[0] ^= 0x80),
            ("a sector of zeros", |b, _| b[4096..4608].fill(0)),
            ("a page of another file", |b, _| b[4096..8192].fill(0xA5)),
        ];
        for (what, damage) in damages {
            let mut damaged = bytes.clone();
            damage(&mut damaged, end);
            fs::write(path, &damaged).unwrap();
            assert_refused(dir.path(), &options, path, what);
        }
        fs::write(path, bytes).unwrap();
    }
    assert_whole(dir.path(), &options, &model);
}

/// RocksDB alone passes over a zeroed block and goes on behind it.
#[test]
fn a_zeroed_block_in_the_middle_is_refused() {
    let (dir, _, options) = killed(0, 100, false);
    let options = LogOptions { write_buffer_bytes: 8 << 20, ..options };
    let log = open(dir.path(), &options).unwrap();
    let next = log.state().last.map_or(0, |l| l + 1);
    for next in next..next + 100 {
        let bytes = bytes::Bytes::from(vec![7; 2000]);
        wait(|done| log.append(vec![quorate_store::log::LogRecord { index: next, bytes }], done)).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    copy_files(dir.path(), copy.path(), false);
    let (path, mut bytes) = wals(copy.path()).pop().unwrap();
    bytes[65_536..98_304].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_refused(copy.path(), &options, &path, "a zeroed block");
}

#[test]
fn a_missing_or_shortened_file_is_refused() {
    let (dir, model, options) = killed(2, 120, true);
    let (path, bytes) = wals(dir.path()).pop().unwrap();
    let end = used(&bytes, &path);
    for len in [0, 5, end / 2, end - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert_refused(dir.path(), &options, &path, &format!("cut to {len} of {end}"));
    }
    fs::remove_file(&path).unwrap();
    let error = open(dir.path(), &options).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    fs::write(&path, &bytes).unwrap();
    assert_whole(dir.path(), &options, &model);
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    assert_refused(dir.path(), &options, Path::new("CURRENT"), "no CURRENT");
}

/// What a power cut leaves of a record that was being written: any part of it, zeros, or the file's former
/// life. All of that was never acknowledged, so the log opens with everything before it.
#[test]
fn the_torn_end_of_a_power_cut_is_accepted_with_the_synced_part_intact() {
    for recycled in [0, 2] {
        for bytes_of_last in [10, 3000, 100_000] {
            let (dir, before, options) = killed(recycled, 120, false);
            // One more record on the end, and then only parts of it.
            let whole = tempfile::tempdir().unwrap();
            copy_files(dir.path(), whole.path(), true);
            let (path, short) = wals(dir.path()).pop().unwrap();
            let from = used(&short, &path);
            let long = with_one_more(&short[..from], &path, bytes_of_last, recycled > 0, &dir);
            let end = long.len();
            let mut rng = Rng::new(bytes_of_last as u64);
            for turn in 0..20u64 {
                let mut torn = long.clone();
                match turn % 5 {
                    0 => torn.truncate(from + rng.below((end - from) as u64) as usize),
                    1 => {
                        let at = from + rng.below((end - from) as u64) as usize;
                        torn[at..].fill(0);
                    }
                    2 => {
                        let at = from + rng.below((end - from) as u64) as usize;
                        torn[at] ^= 0x10;
                    }
                    3 => torn[from..(from + 7).min(end)].fill(0),
                    _ => {
                        let at = from + rng.below((end - from) as u64) as usize;
                        let to = (at + 600).min(end);
                        torn[at..to].fill(0x5A);
                        torn.extend_from_slice(&[0; 3000]);
                    }
                }
                fs::remove_dir_all(dir.path()).unwrap();
                fs::create_dir(dir.path()).unwrap();
                copy_files(whole.path(), dir.path(), true);
                fs::write(dir.path().join(path.file_name().unwrap()), &torn).unwrap();
                // Opened twice: the tear stays behind in an older file for a while.
                for _ in 0..2 {
                    let log = open(dir.path(), &options).unwrap();
                    let now = Model::of(&log);
                    let same = &now.records[..before.records.len()];
                    assert_eq!((same, &now.vote), (&before.records[..], &before.vote), "turn {turn}");
                    assert_eq!(now.records.len(), before.records.len(), "turn {turn}: the torn record is not there");
                }
            }
        }
    }
}

/// The file's bytes with one more record of `len` bytes, written in RocksDB's own format.
fn with_one_more(bytes: &[u8], path: &Path, len: usize, reusable: bool, dir: &tempfile::TempDir) -> Vec<u8> {
    let number: u32 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let floor = wal::floor(dir.path()).unwrap().unwrap();
    let sequence = wal::check(dir.path(), floor, 0).unwrap() + 1;
    let mut record = sequence.to_le_bytes().to_vec();
    record.extend_from_slice(&1u32.to_le_bytes());
    record.extend_from_slice(&[1, 1, b'k']);
    record.extend(std::iter::repeat_n(0xEE, len));
    let mut out = bytes.to_vec();
    let head = if reusable { 11 } else { 7 };
    let (mut rest, mut first) = (&record[..], true);
    while !rest.is_empty() || first {
        let left = 32_768 - out.len() % 32_768;
        if left < head {
            out.extend(std::iter::repeat_n(0, left));
            continue;
        }
        let (part, more) = rest.split_at(rest.len().min(left - head));
        let kind = match (first, more.is_empty()) {
            (true, true) => 1,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        } + if reusable { 4 } else { 0 };
        let mut summed = vec![kind];
        if reusable {
            summed.extend_from_slice(&number.to_le_bytes());
        }
        summed.extend_from_slice(part);
        let masked = crc32c::crc32c(&summed).rotate_right(15).wrapping_add(0xa282_ead8);
        out.extend_from_slice(&masked.to_le_bytes());
        out.extend_from_slice(&(part.len() as u16).to_le_bytes());
        out.extend_from_slice(&summed);
        (rest, first) = (more, false);
    }
    out
}

/// A row whose value was changed under RocksDB's own checksums (a bug, a bit flip in memory) is refused by
/// its index.
#[test]
fn a_record_that_is_not_what_was_written_is_refused_by_its_index() {
    use quorate_store::log::keys;
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), &options(2)).unwrap();
    let mut model = Model::default();
    let change = model.resolve(&Step::Append { count: 9, bytes: 100 });
    wait(|done| drop(tell(&log, change, done))).unwrap();
    drop(log);
    let edit = |batch: rocksdb::WriteBatch| {
        let db = rocksdb::DB::open(&rocksdb::Options::default(), dir.path()).unwrap();
        db.write_opt(batch, &rocksdb::WriteOptions::default()).unwrap();
        db.flush().unwrap();
        drop(db);
        let error = open(dir.path(), &options(2)).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        error
    };
    let (mut good, key) = (Vec::new(), keys::record(0, 4));
    keys::value_into(&mut good, &key, &[b"good"]);
    let mut batch = rocksdb::WriteBatch::default();
    batch.put(key, [&good[..], b"!"].concat());
    assert!(edit(batch).contains("record 4"));
    let mut batch = rocksdb::WriteBatch::default();
    batch.delete(key);
    assert!(edit(batch).contains("record 4 is missing"));
}

/// A flipped byte in a table is found by RocksDB's checksums and named by it.
#[test]
fn a_damaged_table_is_refused() {
    let (dir, _, options) = killed(2, 200, true);
    drop(open(dir.path(), &options).unwrap());
    let path = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "sst"));
    let path = path.unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = open(dir.path(), &options).unwrap_err().to_string();
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
}

/// A power cut while RocksDB notes a change of its files: what was written before is all there.
#[test]
fn the_torn_end_of_a_manifest_is_cut_off_and_a_lost_one_is_noticed() {
    let (dir, model, options) = killed(2, 200, true);
    let name = fs::read_to_string(dir.path().join("CURRENT")).unwrap();
    let manifest = dir.path().join(name.trim());
    let whole = fs::read(&manifest).unwrap();
    let mut torn = whole.clone();
    // The beginning of a record whose data never came.
    torn.extend_from_slice(&[1, 2, 3, 4, 40, 0, 1]);
    torn.extend_from_slice(&[0; 40]);
    fs::write(&manifest, &torn).unwrap();
    assert_whole(dir.path(), &options, &model);
    assert_eq!(fs::read(manifest.with_extension("torn")).unwrap(), torn, "the evidence is kept");

    // A change that was synced and is damaged now: the write-ahead logs from before it are gone.
    let (dir, _, options) = killed(2, 200, true);
    let manifest = dir.path().join(fs::read_to_string(dir.path().join("CURRENT")).unwrap().trim());
    let mut damaged = fs::read(&manifest).unwrap();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    fs::write(&manifest, &damaged).unwrap();
    let error = open(dir.path(), &options).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. } | LogError::Rocks { .. }), "{error}");
}

/// Wherever the border of a block falls in a record, its head included, the check reads what RocksDB wrote.
#[test]
fn the_check_reads_what_rocksdb_writes_at_every_border_of_a_block() {
    for recycled in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::PointInTime);
        options.set_recycle_log_file_num(recycled);
        let db = rocksdb::DB::open(&options, dir.path()).unwrap();
        let mut synced = rocksdb::WriteOptions::default();
        synced.set_sync(true);
        let floor = wal::floor(dir.path()).unwrap().unwrap();
        // A record is 12 bytes, 4 for the put with its lengths, and the value; each one ends a byte later in
        // its block than the one before.
        for i in 0..60 {
            let value = vec![1; 32_768 - 2 * (if recycled > 0 { 11 } else { 7 }) - 12 - 6 - 30 + 1];
            let mut batch = rocksdb::WriteBatch::default();
            batch.put(b"k", if i == 0 { &value[30..] } else { &value[..] });
            batch.put(b"", b"");
            db.write_opt(batch, &synced).unwrap();
            let mut small = rocksdb::WriteBatch::default();
            small.put(b"s", [2; 10]);
            db.write_opt(small, &synced).unwrap();
            assert_eq!(wal::check(dir.path(), floor, 0).unwrap(), db.latest_sequence_number(), "after record {i}");
        }
        let path = wals(dir.path()).pop().unwrap().0;
        let bytes = fs::read(&path).unwrap();
        let heads =
            (1..bytes.len() / 32_768).filter(|block| (1..12).contains(&short_first(&bytes, block * 32_768))).count();
        assert!(heads > 0, "no record's head was split by a border");
    }
}

/// Length of the data of the last fragment before `border`, if it begins a record; else 0.
fn short_first(bytes: &[u8], border: usize) -> usize {
    (border - 40..border)
        .find_map(|at| {
            let len = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
            let (kind, head) = (bytes[at + 6], if bytes[at + 6] == 6 { 11 } else { 7 });
            let ends = at + head + len == border;
            let masked = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let intact = || crc32c::crc32c(&bytes[at + 6..border]) == masked.wrapping_sub(0xa282_ead8).rotate_left(15);
            (matches!(kind, 2 | 6) && ends && intact()).then_some(len)
        })
        .unwrap_or(0)
}
