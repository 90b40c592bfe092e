//! Snapshots: made, sent in pieces, received over interruptions, installed, and cut off at every step.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use quorate_store::rows::key::Key;
use quorate_store::rows::{RocksRows, RowBatch, RowRead, RowStore, RowsOptions};
use quorate_store::snapshot::{
    Incoming, RowsDir, Snapshot, SnapshotDir, SnapshotError, SnapshotId, SnapshotMeta, SnapshotOptions, manifest,
};
use support::fault_fs::{Cut, FaultDisk};

const META_KEY: &[u8] = b"\xFFtest-meta";

fn rows(dir: &Path) -> RocksRows {
    RocksRows::open(dir, &RowsOptions::default()).unwrap()
}

fn put(rows: &mut RocksRows, index: u64, count: u64) {
    let mut batch: Vec<(Key, Option<Bytes>)> = (0..count)
        .map(|i| {
            let key = Key::from(format!("row {i:05}").as_bytes());
            (key, Some(Bytes::from(format!("{index} {}", "v".repeat(100)))))
        })
        .collect();
    batch.push((Key::from(META_KEY), Some(Bytes::copy_from_slice(&index.to_le_bytes()))));
    rows.write(RowBatch::set(batch)).unwrap();
}

fn meta_of(rows: &impl RowRead) -> u64 {
    let bytes = rows.get(META_KEY).unwrap().unwrap_or_default();
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

fn make(home: &SnapshotDir, source: &RocksRows) -> Result<std::sync::Arc<Snapshot>, SnapshotError> {
    home.make(
        |to| Ok(source.checkpoint(to)?),
        |copy| {
            let index = meta_of(&RocksRows::open(copy, &RowsOptions::default())?);
            Ok(SnapshotMeta { id: SnapshotId { index, term: 3 }, meta: Bytes::from_static(b"membership") })
        },
    )
}

fn open(dir: &Path) -> SnapshotDir {
    SnapshotDir::open(dir, SnapshotOptions::default()).unwrap()
}

/// Sends what is missing, in chunks of `chunk`, at most `chunks` of them. Whether all is sent.
fn send(from: &Snapshot, to: &mut Incoming, chunk: usize, chunks: usize) -> bool {
    for _ in 0..chunks {
        let Some((file, offset)) = to.next_missing() else { return true };
        to.write(file, offset, &from.read(file, offset, chunk).unwrap()).unwrap();
    }
    to.next_missing().is_none()
}

fn names(dir: &Path) -> Vec<String> {
    let mut out: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    out.sort();
    out
}

#[test]
fn a_snapshot_travels_in_chunks_and_becomes_the_rows_of_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = rows(&dir.path().join("source"));
    put(&mut source, 41, 2000);
    let home = open(&dir.path().join("a"));
    let snapshot = make(&home, &source).unwrap();
    put(&mut source, 42, 10);
    assert_eq!(snapshot.id(), SnapshotId { index: 41, term: 3 });
    assert_eq!(&snapshot.manifest().meta.meta[..], b"membership");
    assert_eq!(names(&dir.path().join("a")), ["41-3"], "nothing else is left behind");
    snapshot.verify().unwrap();

    let there = open(&dir.path().join("b"));
    let mut incoming = there.receive(snapshot.manifest_bytes()).unwrap();
    assert!(!send(&snapshot, &mut incoming, 1000, 20));
    let have = incoming.have_bytes();
    assert!(matches!(incoming.finish(), Err(SnapshotError::Incomplete { .. })));
    // Interrupted: a restart takes it up where it stopped.
    drop((incoming, there));
    let there = open(&dir.path().join("b"));
    assert!(there.newest().is_none(), "a half received snapshot is not shown");
    let mut incoming = there.receive(snapshot.manifest_bytes()).unwrap();
    assert_eq!(incoming.have_bytes(), have);
    let (file, offset) = incoming.next_missing().unwrap();
    assert!(matches!(incoming.write(file, offset + 1, b"x"), Err(SnapshotError::Chunk { .. })));
    assert!(matches!(incoming.write(999, 0, b"x"), Err(SnapshotError::NoSuchFile { .. })));
    assert!(send(&snapshot, &mut incoming, 1000, usize::MAX));
    let received = incoming.finish().unwrap();
    assert_eq!(received.manifest(), snapshot.manifest());
    assert_eq!(names(&dir.path().join("b")), ["41-3"]);

    let mut live = RowsDir::open(&dir.path().join("rows")).unwrap();
    put(&mut rows(&live.live()), 7, 3);
    let staged = live.stage(&received).unwrap();
    assert_eq!(meta_of(&rows(&live.live())), 7, "staging does not touch the live rows");
    let now = live.install(staged).unwrap();
    assert_eq!(meta_of(&rows(&now)), 41);
    live.clean().unwrap();
    assert_eq!(names(&dir.path().join("rows")), ["2", "CURRENT"]);
    put(&mut rows(&now), 50, 2500);
    received.verify().unwrap();
    drop(live);
    assert_eq!(meta_of(&rows(&RowsDir::open(&dir.path().join("rows")).unwrap().live())), 50);
}

#[test]
fn a_damaged_file_is_named_forgotten_and_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = rows(&dir.path().join("source"));
    put(&mut source, 41, 100);
    let snapshot = make(&open(&dir.path().join("a")), &source).unwrap();
    let there = open(&dir.path().join("b"));
    let mut incoming = there.receive(snapshot.manifest_bytes()).unwrap();
    let (file, offset) = incoming.next_missing().unwrap();
    let mut chunk = snapshot.read(file, offset, usize::MAX).unwrap().to_vec();
    chunk[0] ^= 1;
    incoming.write(file, offset, &chunk).unwrap();
    assert!(send(&snapshot, &mut incoming, 100_000, usize::MAX));
    let error = incoming.finish().unwrap_err();
    assert!(error.to_string().contains(&snapshot.manifest().files[file].name), "{error}");
    assert_eq!(incoming.next_missing(), Some((file, 0)));
    assert!(send(&snapshot, &mut incoming, 100_000, usize::MAX));
    let received = incoming.finish().unwrap();

    let table = received.manifest().files.iter().find(|f| f.name.ends_with(".sst")).unwrap();
    let path = received.dir().join(&table.name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[50] ^= 1;
    fs::write(&path, bytes).unwrap();
    let live = RowsDir::open(&dir.path().join("rows")).unwrap();
    let error = live.stage(&received).unwrap_err();
    assert!(error.to_string().contains(&table.name), "{error}");
}

#[test]
fn old_snapshots_go_when_nobody_holds_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = rows(&dir.path().join("source"));
    let home = open(&dir.path().join("s"));
    put(&mut source, 1, 10);
    let held = make(&home, &source).unwrap();
    put(&mut source, 2, 10);
    drop(make(&home, &source).unwrap());
    put(&mut source, 3, 10);
    drop(make(&home, &source).unwrap());
    assert_eq!(names(&dir.path().join("s")), ["1-3", "3-3"], "the first is being read");
    let whole = held.manifest().files.iter().position(|f| f.len > 0).unwrap();
    assert_eq!(held.read(whole, 0, 1).unwrap().len(), 1);
    drop(held);
    home.prune().unwrap();
    assert_eq!(names(&dir.path().join("s")), ["3-3"]);
    assert_eq!(home.newest().unwrap().id().index, 3);
    let again = make(&home, &source).unwrap();
    assert_eq!((again.id().index, home.list().len()), (3, 1), "the same snapshot twice is one");
}

#[test]
fn shared_tables_keep_their_checksums_and_the_manifest_stays_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = rows(&dir.path().join("source"));
    let home = open(&dir.path().join("s"));
    put(&mut source, 1, 3000);
    let first = make(&home, &source).unwrap();
    put(&mut source, 2, 1);
    let second = make(&home, &source).unwrap();
    let shared =
        |s: &Snapshot| s.manifest().files.iter().filter(|f| f.name.ends_with(".sst")).cloned().collect::<Vec<_>>();
    assert!(shared(&second).starts_with(&shared(&first)));
    second.verify().unwrap();
}

#[test]
fn what_a_crash_left_behind_is_removed_and_a_damaged_manifest_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let home_dir = dir.path().join("s");
    let mut source = rows(&dir.path().join("source"));
    put(&mut source, 5, 10);
    let snapshot = make(&open(&home_dir), &source).unwrap();
    let copy_as = |name: &str| {
        fs::create_dir(home_dir.join(name)).unwrap();
        for f in fs::read_dir(snapshot.dir()).unwrap().map(Result::unwrap) {
            fs::copy(f.path(), home_dir.join(name).join(f.file_name())).unwrap();
        }
    };
    for name in ["making-0", "making-old-4-3", "peek-7", "incoming-5-3-00000000", "6-3"] {
        copy_as(name);
    }
    fs::create_dir(home_dir.join("incoming-9-3-11111111")).unwrap();
    fs::write(home_dir.join("6-3").join(manifest::FILE), "quorate-snapshot 1\n").unwrap();
    let home = open(&home_dir);
    assert_eq!(names(&home_dir), ["5-3", "damaged-6-3"]);
    assert_eq!(home.list(), [SnapshotId { index: 5, term: 3 }]);
}

#[test]
fn a_failed_checkpoint_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let home = open(dir.path());
    let error = home.make(|_| Err("no".into()), |_| unreachable!()).unwrap_err();
    assert!(error.to_string().contains("checkpoint for a snapshot: no"), "{error}");
    let source = rows(&dir.path().join("source"));
    home.make(|to| Ok(source.checkpoint(to)?), |_| Err("no meta".into())).unwrap_err();
    assert_eq!(names(dir.path()), ["source"]);
}

#[test]
fn rows_without_current_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let live = RowsDir::open(dir.path()).unwrap();
    put(&mut rows(&live.live()), 1, 1);
    for bad in [None, Some("x\n"), Some("1")] {
        match bad {
            None => fs::remove_file(dir.path().join("CURRENT")).unwrap(),
            Some(text) => fs::write(dir.path().join("CURRENT"), text).unwrap(),
        }
        let error = RowsDir::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("CURRENT"), "{error}");
    }
    fs::write(dir.path().join("CURRENT"), "1\n").unwrap();
    assert_eq!(meta_of(&rows(&RowsDir::open(dir.path()).unwrap().live())), 1);
}

/// The power goes before each single change while a snapshot is received and installed. Afterwards the live
/// rows are the old ones or the new ones, whole; the new ones if the install was reported done; and the whole
/// thing can be done again.
#[test]
fn a_cut_at_every_step_of_receive_and_install_leaves_the_old_or_the_new_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = rows(&dir.path().join("source"));
    put(&mut source, 41, 300);
    let snapshot = make(&open(&dir.path().join("a")), &source).unwrap();
    let receive_and_install = |disk: &FaultDisk| -> Result<(), SnapshotError> {
        let mut live = RowsDir::open(&disk.join("rows"))?;
        let home = SnapshotDir::open(&disk.join("snapshots"), SnapshotOptions::default())?;
        let received = match home.newest() {
            Some(there) => there,
            None => {
                let mut incoming = home.receive(snapshot.manifest_bytes())?;
                while let Some((file, offset)) = incoming.next_missing() {
                    incoming.write(file, offset, &snapshot.read(file, offset, 20_000)?)?;
                }
                incoming.finish()?
            }
        };
        let staged = live.stage(&received)?;
        live.install(staged)?;
        live.clean()
    };
    for torn in [false, true] {
        for step in 0.. {
            let cut = if torn { Cut::Torn(step) } else { Cut::Clean };
            let mut disk = FaultDisk::new();
            let live = RowsDir::open(&disk.join("rows")).unwrap();
            put(&mut rows(&live.live()), 7, 3);
            rows(&live.live()).flush().unwrap();
            let mut old = rows(&live.live());
            put(&mut old, 8, 3);
            old.flush().unwrap();
            drop((old, live));
            disk.cut_before(disk.changes() + step);
            let reported = receive_and_install(&disk).is_ok();
            let was_cut = disk.is_off();
            disk.restart(cut);
            let live = RowsDir::open(&disk.join("rows")).unwrap_or_else(|e| panic!("cut at {step}: {e}"));
            let now = meta_of(&rows(&live.live()));
            assert!(now == 41 || (now == 8 && !reported), "cut at {step}: the rows are those of {now}");
            if let Some(whole) = open(&disk.join("snapshots")).newest() {
                whole.verify().unwrap_or_else(|e| panic!("cut at {step}: {e}"));
            }
            drop(live);
            // A transfer that was cut may have left wrong bytes behind: they are found and asked for again.
            while let Err(error) = receive_and_install(&disk) {
                assert!(matches!(error, SnapshotError::Damaged { .. }), "cut at {step}: {error}");
            }
            assert_eq!(meta_of(&rows(&RowsDir::open(&disk.join("rows")).unwrap().live())), 41);
            if !was_cut {
                assert!(reported && step > 30, "{step}");
                break;
            }
        }
    }
}

/// Likewise while one is made: what is shown afterwards is whole.
#[test]
fn a_cut_at_every_step_of_making_never_shows_half_a_snapshot() {
    for step in (0..).step_by(3) {
        let mut disk = FaultDisk::new();
        let live = RowsDir::open(&disk.join("rows")).unwrap();
        let mut source = rows(&live.live());
        put(&mut source, 9, 50);
        source.flush().unwrap();
        disk.cut_before(disk.changes() + step);
        let made = SnapshotDir::open(&disk.join("snapshots"), SnapshotOptions::default())
            .and_then(|home| make(&home, &source));
        let was_cut = disk.is_off();
        disk.power_off();
        let reported = made.is_ok();
        drop((made, source));
        disk.restart(Cut::Torn(step));
        let newest = open(&disk.join("snapshots")).newest();
        assert!(newest.is_some() || !reported, "cut at {step}: a snapshot that was made is gone");
        if let Some(whole) = newest {
            whole.verify().unwrap_or_else(|e| panic!("cut at {step}: {e}"));
        }
        if !was_cut {
            assert!(reported && step > 30, "{step}");
            break;
        }
    }
}
