//! One broker process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{HarnessError, wait_for};

/// How much of a node's log a report shows.
const LOG_TAIL_BYTES: u64 = 6_000;

/// Where a node listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// MQTT.
    pub mqtt: SocketAddr,
    /// Peers.
    pub peer: SocketAddr,
    /// Administration.
    pub admin: SocketAddr,
}

impl Addresses {
    /// On loopback, with these ports.
    #[must_use]
    pub fn loopback(mqtt: u16, peer: u16, admin: u16) -> Self {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Self { mqtt: at(mqtt), peer: at(peer), admin: at(admin) }
    }
}

/// How a node starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As the first node of a new cluster.
    Bootstrap,
    /// Into the cluster that this administration address belongs to.
    Join(SocketAddr),
    /// On its data directory.
    Again,
}

/// A broker: its place on disk and on the network, and its process while it has one.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub at: Addresses,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Environment beside the harness's own (`QUORATE_...`).
    pub env: Vec<(String, String)>,
    /// Network namespace that it runs in, when not in this process's.
    pub namespace: Option<String>,
    binary: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    frozen: bool,
}

impl NodeProcess {
    /// A node that is not started yet. Its data and its log go under `dir`, by its name.
    #[must_use]
    pub fn new(binary: &Path, dir: &Path, name: &str, at: Addresses) -> Self {
        Self {
            name: name.to_owned(),
            at,
            data_dir: dir.join(name),
            env: Vec::new(),
            namespace: None,
            binary: binary.to_owned(),
            log: dir.join(format!("{name}.log")),
            child: None,
            frozen: false,
        }
    }

    /// Starts it. It is not ready yet when this returns.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn start(&mut self, how: Start) -> Result<(), HarnessError> {
        let opening = format!("opening {}", self.log.display());
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(HarnessError::io(opening))?;
        let mut command = match &self.namespace {
            // It becomes the broker: the process id is the broker's. Not `ip netns exec`, which gives it a copy of all
            // mounts as well: a disk that is unmounted here would live on there.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command.arg("server").args(["--name", &self.name]).arg("--data-dir").arg(&self.data_dir);
        command.args(["--mqtt", &self.at.mqtt.to_string(), "--peer", &self.at.peer.to_string()]);
        command.args(["--admin", &self.at.admin.to_string()]);
        match how {
            Start::Bootstrap => drop(command.arg("--bootstrap")),
            Start::Join(admin) => drop(command.args(["--join", &admin.to_string()])),
            Start::Again => {}
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        // The pipe ends with this process, however that ends, and the node with the pipe.
        command.arg("--exit-with-parent").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let starting = format!("starting {}", self.binary.display());
        self.child = Some(command.spawn().map_err(HarnessError::io(starting))?);
        self.frozen = false;
        Ok(())
    }

    /// Its process id, while it has one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether its process runs; frozen ones do.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Whether it is stopped by [`Self::freeze`].
    #[must_use]
    pub const fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// SIGKILL, and waits until it is gone. Nothing when it does not run.
    ///
    /// # Errors
    /// When the process cannot be signalled.
    pub fn kill(&mut self) -> Result<(), HarnessError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        self.frozen = false;
        child.kill().map_err(HarnessError::io(format!("killing {}", self.name)))?;
        child.wait().map_err(HarnessError::io(format!("waiting for {}", self.name)))?;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not end within `bound`.
    pub fn terminate(&mut self, bound: Duration) -> Result<ExitStatus, HarnessError> {
        self.signal(Signal::TERM)?;
        self.wait_exit(bound)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not end within `bound`.
    pub fn wait_exit(&mut self, bound: Duration) -> Result<ExitStatus, HarnessError> {
        let name = self.name.clone();
        let Some(child) = self.child.as_mut() else {
            return Err(HarnessError::Answer { what: format!("waiting for {name}"), answer: "not running".into() });
        };
        let status = wait_for(&format!("exit of {name}"), bound, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(e) => Err(e.to_string()),
        })?;
        self.child = None;
        Ok(status)
    }

    /// SIGSTOP: to everyone else it looks as if its machine had vanished from the network.
    ///
    /// # Errors
    /// When the process cannot be signalled.
    pub fn freeze(&mut self) -> Result<(), HarnessError> {
        self.signal(Signal::STOP)?;
        self.frozen = true;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the process cannot be signalled.
    pub fn thaw(&mut self) -> Result<(), HarnessError> {
        self.signal(Signal::CONT)?;
        self.frozen = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), HarnessError> {
        let what = format!("signalling {}", self.name);
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let Some(pid) = pid else { return Err(HarnessError::Answer { what, answer: "not running".into() }) };
        kill_process(pid, signal).map_err(|e| HarnessError::io(what)(e.into()))
    }

    /// The end of what it wrote to its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let tail = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        tail().unwrap_or_else(|e| format!("no log: {e}"))
    }

    /// Everything that it wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Err(e) = self.kill() {
            eprintln!("harness: {e}");
        }
    }
}
