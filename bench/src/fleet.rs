//! The brokers under load: nodes that this process starts, those of a peer, or ones that run already.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use quorate_jepsen::harness::{Cluster, ClusterOptions};
use quorate_jepsen::wire::Version;
use tempfile::TempDir;

use crate::BenchError;
use crate::peer::{Description, Packages, Peer, Running};

/// Longest wait for a leader or a member.
pub(crate) const FORM_MAX: Duration = Duration::from_secs(90);

/// Which brokers.
#[derive(Args, Clone, Debug)]
pub(crate) struct FleetArgs {
    /// The broker to start nodes of (default: `quorate` beside this program).
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "mqtt")]
    broker: Option<PathBuf>,
    /// Where the nodes keep their data (default: a temporary folder). Choose the disk to be measured.
    #[arg(long, value_name = "DIR", global = true, conflicts_with = "mqtt")]
    dir: Option<PathBuf>,
    /// How many nodes are started.
    #[arg(long, default_value_t = 3, value_name = "NODES", global = true, conflicts_with_all = ["mqtt", "peer"],
        value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Each of the nodes in a network namespace of its own (as root), so that its links can be cut.
    #[arg(long, global = true, conflicts_with = "mqtt")]
    pub(crate) machines: bool,
    /// MQTT addresses of brokers that run already, instead of starting any.
    #[arg(long, value_delimiter = ',', value_name = "ADDR,...", global = true)]
    mqtt: Vec<SocketAddr>,
    /// Process ids of those brokers, for processor time and memory.
    #[arg(long, value_delimiter = ',', value_name = "PID,...", global = true, requires = "mqtt")]
    pids: Vec<u32>,
    /// Starts another broker instead, by MQTT 3.1.1.
    #[arg(long, value_enum, global = true, conflicts_with_all = ["mqtt", "broker", "machines"])]
    pub(crate) peer: Option<Peer>,
    /// Where the packages of other brokers are unpacked (default: where `make peers` puts them).
    #[arg(long, value_name = "DIR", global = true)]
    peers_dir: Option<PathBuf>,
    /// What a command configures its nodes with (`QUORATE_...`), beside this process's own environment.
    #[arg(skip)]
    env: Vec<(String, String)>,
}

impl FleetArgs {
    /// The same for another broker; none: Quorate.
    pub(crate) fn of(&self, peer: Option<Peer>) -> Self {
        Self { peer, ..self.clone() }
    }

    /// The same with so many nodes.
    pub(crate) fn with_nodes(&self, nodes: u8) -> Self {
        Self { nodes, ..self.clone() }
    }

    /// The same with nodes that are configured so.
    pub(crate) fn with_env(&self, env: &[(&str, String)]) -> Self {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Self { env, ..self.clone() }
    }

    /// Whether these are nodes of Quorate that this program starts.
    pub(crate) fn is_own(&self) -> bool {
        self.mqtt.is_empty() && self.peer.is_none()
    }

    /// Whether brokers are meant that this program does not start.
    pub(crate) fn is_elsewhere(&self) -> bool {
        !self.mqtt.is_empty()
    }
}

/// The brokers.
pub(crate) struct Fleet {
    /// Where clients connect to.
    pub(crate) mqtt: Vec<SocketAddr>,
    /// Their processes, as far as they are known.
    pub(crate) pids: Vec<u32>,
    /// Those that this process started. Dropped before their data.
    pub(crate) cluster: Option<Cluster>,
    /// A peer that this process started. Dropped before its data too.
    peer: Option<(Peer, Running)>,
    /// The program of those that this process started.
    binary: Option<PathBuf>,
    /// Where their data is.
    pub(crate) dir: PathBuf,
    _temporary: Option<TempDir>,
}

impl Fleet {
    /// Starts brokers, or takes those that run.
    pub(crate) fn open(args: &FleetArgs) -> Result<Self, BenchError> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let temporary = TempDir::with_prefix_in("quorate-bench-", &parent)
            .map_err(BenchError::io(&parent.display().to_string()))?;
        let dir = temporary.path().to_owned();
        if !args.mqtt.is_empty() {
            let (mqtt, pids) = (args.mqtt.clone(), args.pids.clone());
            return Ok(Self { mqtt, pids, cluster: None, peer: None, binary: None, dir, _temporary: Some(temporary) });
        }
        if let Some(peer) = args.peer {
            let running = peer.start(&dir, &Packages::new(args.peers_dir.as_deref())?)?;
            let (mqtt, pids) = (running.mqtt.clone(), running.pids.clone());
            let peer = Some((peer, running));
            return Ok(Self { mqtt, pids, cluster: None, peer, binary: None, dir, _temporary: Some(temporary) });
        }
        let binary = match &args.broker {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().map_err(BenchError::io("this program"))?.with_file_name("quorate"),
        };
        eprintln!("starting nodes of {}: {}, in {}", binary.display(), args.nodes, dir.display());
        let options = ClusterOptions {
            binary: binary.clone(),
            dir: dir.clone(),
            nodes: usize::from(args.nodes),
            env: args.env.clone(),
            machines: args.machines,
        };
        let mut fleet = Self {
            mqtt: Vec::new(),
            pids: Vec::new(),
            cluster: Some(Cluster::start(options)?),
            peer: None,
            binary: Some(binary),
            dir,
            _temporary: Some(temporary),
        };
        fleet.refresh();
        Ok(fleet)
    }

    /// Reads addresses and process ids again, after a restart.
    pub(crate) fn refresh(&mut self) {
        if let Some(cluster) = &self.cluster {
            self.mqtt = cluster.nodes.iter().map(|n| n.at.mqtt).collect();
            self.pids = cluster.nodes.iter().filter_map(|n| n.pid()).collect();
        }
    }

    /// After a failure: what the brokers said is all that can tell why. Their data goes.
    pub(crate) fn keep_logs(&self) {
        let keep = || -> std::io::Result<PathBuf> {
            let kept = TempDir::with_prefix("quorate-bench-logs-")?.keep();
            for entry in std::fs::read_dir(&self.dir)? {
                let path = entry?.path();
                if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "log")) {
                    std::fs::copy(&path, kept.join(name))?;
                }
            }
            Ok(kept)
        };
        if self.cluster.is_none() && self.peer.is_none() {
            return;
        }
        match keep() {
            Ok(kept) => eprintln!("what the brokers said is kept in {}", kept.display()),
            Err(e) => eprintln!("what the brokers said could not be kept: {e}"),
        }
    }

    /// The protocol to speak: peers are measured by 3.1.1.
    pub(crate) fn version(&self, is_v4: bool) -> Version {
        if is_v4 || self.has_peer() { Version::V4 } else { Version::V5 }
    }

    /// Whether these are a peer's.
    pub(crate) const fn has_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// Why QoS 2 cannot be measured, if it cannot.
    pub(crate) fn lacks_qos2(&self) -> Option<&'static str> {
        self.peer.as_ref().and_then(|(peer, _)| peer.lacks_qos2())
    }

    /// Of each node the broker's own process, the one of [`Self::at`] 0 first.
    pub(crate) fn nodes(&self) -> &[u32] {
        self.pids.get(..self.mqtt.len()).unwrap_or(&self.pids)
    }

    /// What is measured, if this process started it.
    pub(crate) fn description(&self) -> Result<Option<Description>, BenchError> {
        let own = || self.binary.as_deref().map(|binary| quorate(binary, self.mqtt.len())).transpose();
        self.peer.as_ref().map_or_else(own, |(_, running)| Ok(Some(running.description.clone())))
    }

    /// Whether the nodes' links can be cut.
    pub(crate) fn has_machines(&self) -> bool {
        self.cluster.as_ref().is_some_and(Cluster::has_machines)
    }

    /// The nodes that this process started.
    pub(crate) fn own(&mut self) -> Result<&mut Cluster, BenchError> {
        self.cluster.as_mut().ok_or(BenchError::NotOurs)
    }

    /// Address of the node at `place`, counted round.
    pub(crate) fn at(&self, place: usize) -> Result<SocketAddr, BenchError> {
        self.mqtt.get(place % self.mqtt.len().max(1)).copied().ok_or(BenchError::NotOurs)
    }
}

fn quorate(binary: &Path, nodes: usize) -> Result<Description, BenchError> {
    let shown = format!("{} --version", binary.display());
    let output = Command::new(binary).arg("--version").output().map_err(BenchError::io(&shown))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(Description {
        name: "Quorate".to_owned(),
        version: text.trim().rsplit(' ').next().unwrap_or_default().to_owned(),
        nodes,
        durability: "in the log of a majority, fsynced".to_owned(),
        configuration: "as it comes\n".to_owned(),
    })
}
