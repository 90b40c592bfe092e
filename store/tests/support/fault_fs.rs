//! The disk that forgets (`quorate_jepsen::disk`), for tests: whatever goes wrong with the disk itself fails the test.
//!
//! Where it cannot be mounted the tests fail and say so: a power-cut test that skips itself proves nothing. Its server
//! is the test binary started once more.

use std::path::{Path, PathBuf};
use std::process::Command;

pub use quorate_jepsen::disk::Cut;

/// Tells a test binary that it is the disk's server.
const SERVE: &str = "QUORATE_FAULT_DISK";

/// A mounted disk that loses what was not synced when its power is cut.
pub struct FaultDisk {
    /// Goes before the folder that it is mounted in.
    disk: quorate_jepsen::disk::FaultDisk,
    dir: tempfile::TempDir,
}

impl FaultDisk {
    /// An empty disk.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        let mut server = Command::new(std::env::current_exe().unwrap());
        // Two paths follow: to the test harness names of tests that do not exist.
        server.args(["support::fault_fs::serve", "--exact", "--ignored", "--nocapture"]).env(SERVE, "yes");
        let disk = quorate_jepsen::disk::FaultDisk::mount(server, &path).unwrap_or_else(|error| {
            panic!(
                "POWER-CUT TESTS CANNOT RUN: {error}. They are not skipped, because then nothing would hold what \
                 Quorate promises about power cuts."
            )
        });
        Self { disk, dir }
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// A path on it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Changing operations (writes, syncs, creations, renames, removals) so far.
    pub fn changes(&self) -> u64 {
        self.disk.changes().unwrap()
    }

    /// The power goes just before the change of this number, from 0.
    pub fn cut_before(&self, change: u64) {
        self.disk.cut_before(change).unwrap();
    }

    /// The power goes now.
    pub fn power_off(&self) {
        self.disk.power_off().unwrap();
    }

    /// Whether it is gone.
    pub fn is_off(&self) -> bool {
        self.disk.is_off().unwrap()
    }

    /// The next fsync of a file whose name ends in `suffix` fails.
    pub fn fail_sync_of(&self, suffix: &str) {
        self.disk.fail_sync_of(suffix).unwrap();
    }

    /// Room for so many bytes more than there are.
    pub fn leave_room(&self, bytes: u64) {
        self.disk.leave_room(bytes).unwrap();
    }

    /// No trouble from now on.
    pub fn no_trouble(&self) {
        self.disk.no_trouble().unwrap();
    }

    /// The power is back, with a fresh kernel cache. Nothing may have a file of it open any more.
    pub fn restart(&mut self, cut: Cut) {
        self.disk.restart(cut).unwrap();
    }
}

/// The server's process; does nothing when it is run as a test.
#[test]
#[ignore = "the fault disk's own process"]
fn serve() {
    if std::env::var_os(SERVE).is_none() {
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let [.., control, mountpoint] = arguments.as_slice() else { panic!("no socket and no folder: {arguments:?}") };
    quorate_jepsen::disk::serve(Path::new(control), Path::new(mountpoint)).unwrap();
}
