//! Processes of a peer: started with a log each, ended by their ids.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::BenchError;
use crate::machine::{self, Birth};

/// How long a peer may take to end by itself.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Helpers that are there at both ends of this are no passing ones.
const PASSING: Duration = Duration::from_millis(500);
/// Of a log, for an error.
const LOG_LINES: usize = 15;

/// A command for a program that ends when this process does, however that ends.
pub(super) fn command(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.is_file() {
        return Command::new(program);
    }
    // It becomes the program: the process id is the program's.
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

struct Process {
    name: String,
    /// No broker, but something that brokers need.
    is_helper: bool,
    child: Child,
    log: PathBuf,
}

/// All of a peer. Ended when they are dropped.
#[derive(Default)]
pub(super) struct Processes {
    list: Vec<Process>,
}

impl Processes {
    /// Starts a broker; what it says goes to `dir/name.log`.
    pub(super) fn start(&mut self, name: &str, dir: &Path, command: Command) -> Result<(), BenchError> {
        self.spawn(name, dir, command, false)
    }

    /// Starts something that brokers need.
    pub(super) fn start_helper(&mut self, name: &str, dir: &Path, command: Command) -> Result<(), BenchError> {
        self.spawn(name, dir, command, true)
    }

    fn spawn(&mut self, name: &str, dir: &Path, mut command: Command, is_helper: bool) -> Result<(), BenchError> {
        let path = dir.join(format!("{name}.log"));
        let shown = path.display().to_string();
        let log = File::create(&path).map_err(BenchError::io(&shown))?;
        let also = log.try_clone().map_err(BenchError::io(&shown))?;
        command.stdin(Stdio::null()).stdout(log).stderr(also);
        let starting = format!("starting {}", command.get_program().display());
        let child = command.spawn().map_err(BenchError::io(&starting))?;
        self.list.push(Process { name: name.to_owned(), is_helper, child, log: path });
        Ok(())
    }

    /// Everything that one has said so far.
    pub(super) fn log(&self, name: &str) -> String {
        let file = self.list.iter().find(|p| p.name == name).map(|p| &p.log);
        let bytes = file.and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fails when one of them has ended.
    pub(super) fn check(&mut self) -> Result<(), BenchError> {
        let ended = self.list.iter_mut().find_map(|p| Some((p.name.clone(), p.child.try_wait().ok()??)));
        match ended {
            Some((name, status)) => Err(BenchError::PeerEnded { log: self.tail(&name), name, status }),
            None => Ok(()),
        }
    }

    /// The end of one's log.
    pub(super) fn tail(&self, name: &str) -> String {
        let log = self.log(name);
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }

    /// Ids of all: of each broker the process that has the most memory, which is itself and not a shell around it, then
    /// all others that stay.
    pub(super) fn pids(&self) -> Result<Vec<u32>, BenchError> {
        let look = || -> Result<Vec<Vec<Birth>>, BenchError> {
            self.list.iter().map(|p| machine::family(p.child.id())).collect()
        };
        let before = look()?;
        std::thread::sleep(PASSING);
        let now: Vec<Birth> = look()?.into_iter().flatten().collect();
        let (mut brokers, mut helpers) = (Vec::new(), Vec::new());
        for (process, family) in self.list.iter().zip(before) {
            let mut pids: Vec<u32> = family.into_iter().filter(|b| now.contains(b)).map(|b| b.pid).collect();
            pids.sort_by_key(|pid| machine::pages(*pid).map_or(0, |pages| pages.resident_bytes));
            if !process.is_helper {
                brokers.extend(pids.pop());
            }
            helpers.extend(pids);
        }
        brokers.extend(helpers);
        Ok(brokers)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let mut families: Vec<Birth> = Vec::new();
        for process in self.list.iter().rev() {
            families.extend(machine::family(process.child.id()).unwrap_or_default());
            signal(process.child.id(), Signal::TERM);
        }
        let end = Instant::now() + END_MAX;
        for process in &mut self.list {
            while matches!(process.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(LOOK);
            }
        }
        // Who is left was not among those that ended in time, or was left behind by its parent. Its id is still its
        // own only if it was born at the same time.
        for left in families.iter().filter(|birth| machine::birth(birth.pid).as_ref() == Some(*birth)) {
            signal(left.pid, Signal::KILL);
        }
        for process in &mut self.list {
            if let Err(e) = process.child.wait() {
                eprintln!("quorate-bench: waiting for {}: {e}", process.name);
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, signal);
    }
}
