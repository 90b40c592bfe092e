//! The demo's three nodes: real processes of this very binary on loopback.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use quorate_http_admin::{ClusterView, Digest};
use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::cli::{Admin, AdminFailure, Failure};
use crate::config::VARIABLE_PREFIX;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);
/// A node that does not answer its administration by then is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// What is shown of a dead node's log.
const LOG_TAIL_BYTES: u64 = 2_000;

/// Ports of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// MQTT clients.
    pub mqtt: u16,
    /// Other nodes.
    pub peer: u16,
    /// Administration.
    pub admin: u16,
}

impl Ports {
    /// Ports of node `number` (from 1): 1882, 7400, 7480 + number, or `base` + number, + 10, + 20.
    #[must_use]
    pub fn of(number: u16, base: Option<u16>) -> Self {
        let (mqtt, peer, admin) = match base {
            None => (1882, 7400, 7480),
            Some(base) => (base, base.saturating_add(10), base.saturating_add(20)),
        };
        Self { mqtt: mqtt + number, peer: peer + number, admin: admin + number }
    }

    /// Whether all three can be listened on now.
    ///
    /// # Errors
    /// Says which cannot.
    pub fn check(self, number: usize) -> Result<(), Failure> {
        for (port, what) in [(self.mqtt, "MQTT"), (self.peer, "peers"), (self.admin, "administration")] {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
                Failure::new(format!(
                    "127.0.0.1:{port} cannot be used for the {what} of node {number}: {error}\n  \
                     stop what uses it (another demo or broker?), or move the demo: quorate demo --base-port 21000"
                ))
            })?;
        }
        Ok(())
    }
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// From 1.
    pub number: usize,
    /// Where it listens.
    pub ports: Ports,
    dir: PathBuf,
    log: PathBuf,
    admin: Admin,
    join: Option<String>,
    child: Option<Child>,
}

impl Node {
    /// A node that does not run yet. The first makes the cluster, others join through `join`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(number: usize, ports: Ports, dir: &Path, join: Option<String>) -> Result<Self, Failure> {
        Ok(Self {
            number,
            ports,
            dir: dir.join(format!("node{number}")),
            log: dir.join(format!("node{number}.log")),
            admin: Admin::new(&format!("127.0.0.1:{}", ports.admin), Some(ASK_TIMEOUT))?,
            join,
            child: None,
        })
    }

    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// `host:port` for MQTT clients.
    #[must_use]
    pub fn mqtt(&self) -> String {
        format!("127.0.0.1:{}", self.ports.mqtt)
    }

    /// URL of the administration.
    #[must_use]
    pub fn admin(&self) -> &str {
        self.admin.base()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<(), Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::new(format!("cannot start node {}: {what}: {error}", self.number))
        };
        let binary = std::env::current_exe().map_err(|error| failed("where is this binary", error))?;
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| failed(&self.log.to_string_lossy(), error))?;
        let mut command = Command::new(&binary);
        command.args(["server", "--exit-with-parent", "--name", &self.name()]);
        command.arg("--data-dir").arg(&self.dir);
        for (flag, port) in [("--mqtt", self.ports.mqtt), ("--peer", self.ports.peer), ("--admin", self.ports.admin)] {
            command.arg(flag).arg(format!("127.0.0.1:{port}"));
        }
        match &self.join {
            None => command.arg("--bootstrap"),
            Some(address) => command.args(["--join", address]),
        };
        // The visitor's own settings are for the visitor's own nodes.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(VARIABLE_PREFIX)) {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        // Ctrl-C is for the demo, which stops its nodes in order.
        command.process_group(0);
        self.child = Some(command.spawn().map_err(|error| failed(&binary.to_string_lossy(), error))?);
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When there is nothing to kill, or it cannot be.
    pub fn kill(&mut self) -> Result<(), Failure> {
        self.check_alive()?;
        let number = self.number;
        let Some(child) = &mut self.child else {
            return Err(Failure::new(format!("node {number} is not running")));
        };
        child.start_kill().map_err(|error| Failure::new(format!("cannot kill node {number}: {error}")))
    }

    /// Waits until a killed process is gone.
    pub async fn gone(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait().await;
        }
    }

    /// Closes its standard input, which it takes as SIGTERM.
    pub fn ask_to_stop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
        }
    }

    /// Waits for its end; after `timeout` it is killed.
    pub async fn stopped(&mut self, timeout: Duration) {
        let Some(mut child) = self.child.take() else { return };
        if tokio::time::timeout(timeout, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }

    /// The cluster as this node sees it.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn view(&self) -> Result<ClusterView, AdminFailure> {
        self.ask("/api/v1/cluster").await
    }

    /// Digest of its rows.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn digest(&self) -> Result<Digest, AdminFailure> {
        self.ask("/api/v1/cluster/digest").await
    }

    /// Whether it welcomes clients.
    pub async fn is_ready(&self) -> bool {
        self.ask::<serde_json::Value>("/health/ready").await.is_ok()
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminFailure> {
        self.admin.ask(Method::GET, path, None::<&()>).await
    }

    /// An error when the process has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                Err(Failure::new(format!("node {} died by itself ({status}){}", self.number, self.log_tail())))
            }
            _ => Ok(()),
        }
    }

    /// The end of its log, in words.
    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        match read() {
            Ok(text) => format!("; the end of {}:\n{}", self.log.display(), text.trim_end()),
            Err(error) => format!("; its log {} cannot be read: {error}", self.log.display()),
        }
    }
}

/// Polls until `condition` answers, at most `timeout`; nodes that die meanwhile end the wait.
///
/// # Errors
/// A dead node, or the time is over.
pub async fn wait_for<T>(
    nodes: &mut [Node],
    timeout: Duration,
    what: &str,
    mut condition: impl AsyncFnMut(&[Node]) -> Option<T>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition(nodes).await {
            return Ok(value);
        }
        for node in nodes.iter_mut() {
            node.check_alive()?;
        }
        if Instant::now() > deadline {
            let logs: Vec<String> = nodes.iter().map(|node| node.log.display().to_string()).collect();
            return Err(Failure::new(format!(
                "after {} s still waiting until {what}\n  the nodes' logs: {}",
                timeout.as_secs(),
                logs.join(" ")
            )));
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_where_scripts_expect_them() {
        assert_eq!(Ports::of(1, None), Ports { mqtt: 1883, peer: 7401, admin: 7481 });
        assert_eq!(Ports::of(3, None), Ports { mqtt: 1885, peer: 7403, admin: 7483 });
        assert_eq!(Ports::of(2, Some(21_000)), Ports { mqtt: 21_002, peer: 21_012, admin: 21_022 });
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let failure = Ports { mqtt: port, peer: port, admin: port }.check(2).unwrap_err();
        assert!(failure.message().contains(&format!("127.0.0.1:{port}")), "{failure:?}");
        assert!(failure.message().contains("node 2") && failure.message().contains("--base-port"), "{failure:?}");
    }
}
