//! The disk's own process: takes requests from a control socket, a line each, until that closes.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption};

use super::model::{Cut, Disk, Operation};
use super::mount::Mounted;

/// Longest that a disk is busy after its last file was closed.
const BUSY_MAX: Duration = Duration::from_secs(30);

struct Server {
    disk: Arc<Mutex<Disk>>,
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

/// Serves an empty disk at `mountpoint`, as told over the socket at `control`, until that closes.
///
/// # Errors
/// When nobody listens there.
pub fn serve(control: &Path, mountpoint: &Path) -> io::Result<()> {
    let control = UnixStream::connect(control)?;
    let disk = Arc::new(Mutex::new(Disk::new()));
    let mut server = Server { disk, mountpoint: mountpoint.to_owned(), session: None };
    for request in BufReader::new(control.try_clone()?).lines() {
        let Ok(request) = request else { break };
        let answer = match server.answer(&request) {
            Ok(answer) => format!("ok {answer}\n"),
            Err(error) => format!("error {}\n", error.replace('\n', " ")),
        };
        if (&control).write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
    server.disk().power_off();
    if server.unmount().is_err() {
        // Somebody died with files open: take it out of the way all the same.
        drop(Command::new("umount").arg("-l").arg(mountpoint).stderr(Stdio::null()).status());
    }
    Ok(())
}

impl Server {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mount(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("quorate-fault".to_owned())];
        self.session = Some(fuser::spawn_mount(Mounted { disk: Arc::clone(&self.disk) }, &self.mountpoint, &config)?);
        Ok(())
    }

    /// Tries again while it is busy: a process that somebody starts beside us has our files open, too, until it has
    /// become what it is to be. How its thread ended does not matter once nothing is mounted any more.
    fn unmount(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let first = session.umount_and_join();
        let began = Instant::now();
        while first.is_err() && self.is_mounted()? {
            if began.elapsed() > BUSY_MAX {
                return first;
            }
            drop(Command::new("umount").arg(&self.mountpoint).stderr(Stdio::null()).status());
        }
        Ok(())
    }

    fn is_mounted(&self) -> io::Result<bool> {
        let at = self.mountpoint.to_string_lossy();
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(&*at)))
    }

    fn answer(&mut self, request: &str) -> Result<String, String> {
        let mut words = request.split(' ');
        let what = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let number = |at: usize| -> Result<u64, String> {
            rest.get(at).and_then(|word| word.parse().ok()).ok_or_else(|| format!("no number in {request:?}"))
        };
        match what {
            "mount" => self.mount().map_err(|e| e.to_string())?,
            "changes" => return Ok(self.disk().changes().to_string()),
            "is_off" => return Ok(self.disk().is_off().to_string()),
            "cut_before" => self.disk().cut_before(number(0)?),
            "power_off" => self.disk().power_off(),
            "fail_sync_of" => self.disk().fail_sync_of(rest.first().copied().unwrap_or_default()),
            "fail_read" => self.disk().fail_after(Operation::Read, number(0)?),
            "fail_write" => self.disk().fail_after(Operation::Write, number(0)?),
            "fail_sync" => self.disk().fail_after(Operation::Sync, number(0)?),
            "leave_room" => self.disk().leave_room(number(0)?),
            "slow_syncs" => self.disk().slow_syncs(number(0)?, number(1)?),
            "no_trouble" => self.disk().no_trouble(),
            "restart" => {
                self.disk().power_off();
                self.unmount().map_err(|e| format!("{e}: is a file of it still open?"))?;
                self.disk().cut(number(0).map_or(Cut::Clean, Cut::Torn));
                self.mount().map_err(|e| e.to_string())?;
            }
            _ => return Err(format!("unknown request {what:?}")),
        }
        Ok(String::new())
    }
}
