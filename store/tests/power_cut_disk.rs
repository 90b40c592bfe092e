//! The disk that the power-cut tests trust: does it forget what it must, and keep what it must?
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod support;

use std::fs::{self, File};
use std::io::Write;

use support::fault_fs::{Cut, FaultDisk};

#[test]
fn bytes_and_names_are_kept_exactly_when_each_was_synced() {
    let mut disk = FaultDisk::new();
    let root = File::open(disk.path()).unwrap();
    let mut kept = File::create(disk.join("kept")).unwrap();
    kept.write_all(b"synced").unwrap();
    kept.sync_data().unwrap();
    kept.write_all(b", not synced").unwrap();
    let nameless = File::create(disk.join("nameless")).unwrap();
    nameless.sync_all().unwrap();
    drop(nameless);
    fs::remove_file(disk.join("nameless")).unwrap();
    root.sync_all().unwrap();
    let mut late = File::create(disk.join("late")).unwrap();
    late.write_all(b"x").unwrap();
    late.sync_all().unwrap();
    fs::remove_file(disk.join("late")).unwrap();
    fs::rename(disk.join("kept"), disk.join("moved")).unwrap();
    assert_eq!(fs::read(disk.join("moved")).unwrap(), b"synced, not synced");
    drop((root, kept, late));

    disk.restart(Cut::Clean);
    assert_eq!(fs::read(disk.join("kept")).unwrap(), b"synced");
    let names: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["kept"], "the folder was not synced after the rename");
}

#[test]
fn a_file_that_lost_one_of_its_names_gets_another() {
    let disk = FaultDisk::new();
    fs::write(disk.join("table"), b"x").unwrap();
    for snapshot in 0..3 {
        let name = disk.join(&format!("snapshot-{snapshot}"));
        fs::hard_link(disk.join("table"), &name).unwrap();
        fs::remove_file(&name).unwrap();
    }
    assert_eq!(fs::read(disk.join("table")).unwrap(), b"x");
}

#[test]
fn after_the_cut_nothing_more_reaches_the_disk() {
    let mut disk = FaultDisk::new();
    let root = File::open(disk.path()).unwrap();
    let mut file = File::create(disk.join("a")).unwrap();
    file.write_all(b"1").unwrap();
    file.sync_all().unwrap();
    root.sync_all().unwrap();
    disk.cut_before(disk.changes() + 1);
    file.write_all(b"2").unwrap();
    assert!(file.sync_all().is_err(), "the power went before this sync");
    assert!(file.write_all(b"3").is_err() && File::create(disk.join("b")).is_err());
    drop((root, file));
    disk.restart(Cut::Clean);
    assert_eq!(fs::read(disk.join("a")).unwrap(), b"1");
}

#[test]
fn a_torn_cut_keeps_what_was_synced_and_some_sectors_of_the_rest() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let mut disk = FaultDisk::new();
        let root = File::open(disk.path()).unwrap();
        let mut file = File::create(disk.join("a")).unwrap();
        file.write_all(&[1; 1024]).unwrap();
        file.sync_all().unwrap();
        root.sync_all().unwrap();
        file.write_all(&[2; 1024]).unwrap();
        drop((root, file));
        disk.restart(Cut::Torn(seed));
        let bytes = fs::read(disk.join("a")).unwrap();
        assert_eq!(bytes[..1024], [1; 1024]);
        seen.insert(bytes[1024..].chunks(512).map(|s| s[0]).collect::<Vec<_>>());
    }
    assert!(seen.len() >= 4, "too few outcomes: {seen:?}");
}
