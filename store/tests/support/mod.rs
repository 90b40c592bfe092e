//! Shared by the tests of what must survive a power cut: a disk that really forgets, and small helpers.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test support: a failure here is a failed test, and no test uses all of it"
)]

pub mod fault_fs;
pub mod model;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

pub use quorate_jepsen::rng::Rng;
use quorate_store::log::{Done, LogEngine, LogError, LogOptions, OnFatal, RocksLog, SegmentLog};

/// An engine as the tests open it. What the log promises is tested on each.
pub trait TestEngine: LogEngine {
    /// How the names of the files end that an append syncs.
    const SYNCED: &str;
    /// Changes that reach the disk while a log is opened, at least.
    const RECOVERY_CHANGES_MIN: u64;

    fn open(dir: &Path, options: LogOptions, on_fatal: OnFatal) -> Result<Self, LogError>;
}

impl TestEngine for RocksLog {
    const SYNCED: &str = ".log";
    const RECOVERY_CHANGES_MIN: u64 = 10;

    fn open(dir: &Path, options: LogOptions, on_fatal: OnFatal) -> Result<Self, LogError> {
        Self::open(dir, options, on_fatal)
    }
}

impl TestEngine for SegmentLog {
    const SYNCED: &str = ".seg";
    const RECOVERY_CHANGES_MIN: u64 = 3;

    fn open(dir: &Path, options: LogOptions, on_fatal: OnFatal) -> Result<Self, LogError> {
        Self::open(dir, options, on_fatal)
    }
}

/// Makes a test for each engine of each function `f<E: TestEngine>()`.
#[macro_export]
macro_rules! on_each_engine {
    ($($name:ident),+ $(,)?) => {
        mod rocks {
            $(#[test] fn $name() { super::$name::<quorate_store::log::RocksLog>(); })+
        }
        mod segments {
            $(#[test] fn $name() { super::$name::<quorate_store::log::SegmentLog>(); })+
        }
    };
}

/// A server's options, but without writing 128 MB at each open.
pub fn log_options() -> LogOptions {
    LogOptions { warm_wals: 0, segment_bytes: 256 << 10, ..LogOptions::default() }
}

/// Copies all files of a log as they stand at one moment: its engine may still be at work behind the scenes, so until
/// nothing changed meanwhile. `mark` says whether the mark of what is synced goes with them.
pub fn copy_files(from: &Path, to: &Path, mark: bool) {
    let listing = || -> Option<Vec<(PathBuf, u64)>> {
        let files = fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.is_dir());
        let mut files: Vec<_> =
            files.map(|p| Some((p.clone(), fs::metadata(&p).ok()?.len()))).collect::<Option<_>>()?;
        files.sort();
        Some(files)
    };
    for _ in 0..1000 {
        fs::remove_dir_all(to).unwrap();
        fs::create_dir(to).unwrap();
        let Some(files) = listing() else { continue };
        let copied = files
            .iter()
            .filter(|(path, _)| mark || path.file_name().unwrap() != "synced")
            .all(|(path, _)| fs::copy(path, to.join(path.file_name().unwrap())).is_ok());
        if copied && listing() == Some(files) {
            return;
        }
    }
    panic!("{} does not come to rest", from.display());
}

/// A waiter, and where its answer comes.
pub fn waiter() -> (Done, mpsc::Receiver<Result<(), LogError>>) {
    let (tx, rx) = mpsc::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

/// Calls `operation` with a waiter and waits for its answer.
pub fn wait(operation: impl FnOnce(Done)) -> Result<(), LogError> {
    let (done, answer) = waiter();
    operation(done);
    answer.recv_timeout(std::time::Duration::from_secs(60)).expect("the log answers every waiter")
}
