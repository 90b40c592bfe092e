//! A disk that forgets what was not synced when its power is cut, and that can be full, slow or broken.
//!
//! It is a FUSE file system of our own, so that a broker runs on it unchanged, with its own system calls. It is served
//! by a process of its own (`quorate-faults disk`, [`serve`]): a process that serves the files it uses cannot be killed
//! while it waits for itself. When whoever started it ends, in whatever way, the control socket closes, and the server
//! unmounts and goes. Needs `/dev/fuse` and the right to mount: root, or `fusermount3` of the package fuse3.

mod model;
mod mount;
mod server;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use model::{Cut, Operation};
pub use server::serve;

/// How long the server's process may take to start.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to do what it is asked.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What went wrong with it, other than what was asked for.
#[derive(Debug, Error)]
#[error("the fault disk at {at}, asked to {asked}: {why}")]
pub struct DiskError {
    /// Where it is mounted.
    at: String,
    /// What it was asked.
    asked: String,
    /// What came of it.
    why: String,
}

/// A mounted disk.
#[derive(Debug)]
pub struct FaultDisk {
    path: PathBuf,
    control: Mutex<BufReader<UnixStream>>,
    server: Child,
}

impl FaultDisk {
    /// An empty disk, mounted at the empty folder `path`. `command` is a process that calls [`serve`]; the path of the
    /// control socket and of the folder are added to its arguments.
    ///
    /// # Errors
    /// When the process does not start, or may not mount.
    pub fn mount(command: Command, path: &Path) -> Result<Self, DiskError> {
        let error = |why: String| DiskError { at: path.display().to_string(), asked: "mount".into(), why };
        let (server, control) = start(command, path).map_err(|e| error(e.to_string()))?;
        let disk = Self { path: path.to_owned(), control: Mutex::new(BufReader::new(control)), server };
        disk.ask("mount").map_err(|e| {
            error(format!("{} (it needs /dev/fuse and either root or fusermount3 of the package fuse3)", e.why))
        })?;
        Ok(disk)
    }

    /// One request to the server.
    fn ask(&self, request: &str) -> Result<String, DiskError> {
        let error = |why: String| DiskError { at: self.path.display().to_string(), asked: request.to_owned(), why };
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = String::new();
        let mut exchange = || {
            writeln!(control.get_mut(), "{request}")?;
            control.read_line(&mut answer)
        };
        exchange().map_err(|e| error(e.to_string()))?;
        match answer.trim_end_matches('\n').split_once(' ') {
            Some(("ok", answer)) => Ok(answer.to_owned()),
            _ => Err(error(answer.trim_end().to_owned())),
        }
    }

    fn number(&self, request: &str) -> Result<u64, DiskError> {
        let answer = self.ask(request)?;
        let why = format!("answered {answer}");
        answer.parse().map_err(|_| DiskError { at: self.path.display().to_string(), asked: request.to_owned(), why })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changing operations (writes, syncs, creations, renames, removals) so far.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn changes(&self) -> Result<u64, DiskError> {
        self.number("changes")
    }

    /// The power goes just before the change of this number, from 0.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn cut_before(&self, change: u64) -> Result<(), DiskError> {
        self.ask(&format!("cut_before {change}")).map(drop)
    }

    /// The power goes now: everything fails until [`Self::restart`].
    ///
    /// # Errors
    /// When its server has ended.
    pub fn power_off(&self) -> Result<(), DiskError> {
        self.ask("power_off").map(drop)
    }

    /// Whether the power is off.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn is_off(&self) -> Result<bool, DiskError> {
        Ok(self.ask("is_off")? == "true")
    }

    /// The power is back, with a fresh kernel cache. Nothing may have a file of it open any more.
    ///
    /// # Errors
    /// When something has, or its server has ended.
    pub fn restart(&self, cut: Cut) -> Result<(), DiskError> {
        let request = match cut {
            Cut::Clean => "restart".to_owned(),
            Cut::Torn(seed) => format!("restart {seed}"),
        };
        self.ask(&request).map(drop)
    }

    /// The next fsync of a file whose name ends in `suffix` fails.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn fail_sync_of(&self, suffix: &str) -> Result<(), DiskError> {
        self.ask(&format!("fail_sync_of {suffix}")).map(drop)
    }

    /// An operation of this kind fails with EIO, once, after `others` that do not.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn fail_after(&self, operation: Operation, others: u64) -> Result<(), DiskError> {
        let which = match operation {
            Operation::Read => "fail_read",
            Operation::Write => "fail_write",
            Operation::Sync => "fail_sync",
        };
        self.ask(&format!("{which} {others}")).map(drop)
    }

    /// Only so many bytes more fit on it; then writes fail with ENOSPC.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn leave_room(&self, bytes: u64) -> Result<(), DiskError> {
        self.ask(&format!("leave_room {bytes}")).map(drop)
    }

    /// An fsync takes `from_ms` to `to_ms` milliseconds longer.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn slow_syncs(&self, from_ms: u64, to_ms: u64) -> Result<(), DiskError> {
        self.ask(&format!("slow_syncs {from_ms} {to_ms}")).map(drop)
    }

    /// Ends all trouble but a power cut.
    ///
    /// # Errors
    /// When its server has ended.
    pub fn no_trouble(&self) -> Result<(), DiskError> {
        self.ask("no_trouble").map(drop)
    }
}

/// The server's process, and our end of its control socket.
fn start(mut command: Command, path: &Path) -> io::Result<(Child, UnixStream)> {
    let socket = path.with_extension("control");
    if socket.exists() {
        std::fs::remove_file(&socket)?;
    }
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    command.arg(&socket).arg(path).stdin(Stdio::null()).stdout(Stdio::null());
    // Not in our process group: an interrupted run must leave it time to unmount.
    let server = command.process_group(0).spawn()?;
    let end = Instant::now() + START_MAX;
    loop {
        match listener.accept() {
            Ok((control, _)) => {
                control.set_nonblocking(false)?;
                control.set_read_timeout(Some(ANSWER_MAX))?;
                return Ok((server, control));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e),
        }
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A server that has ended is as good.
        drop(control.get_ref().shutdown(std::net::Shutdown::Both));
        drop(self.server.wait());
        drop(std::fs::remove_file(self.path.with_extension("control")));
    }
}
