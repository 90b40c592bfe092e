//! The brokers under load: three that this process starts, or ones that run already.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use quorate_jepsen::harness::{Cluster, ClusterOptions};
use tempfile::TempDir;

use crate::BenchError;

/// Longest wait for a leader or a member.
pub(crate) const FORM_MAX: Duration = Duration::from_secs(90);

/// Which brokers.
#[derive(Args, Clone, Debug)]
pub(crate) struct FleetArgs {
    /// The broker to start three nodes of (default: `quorate` beside this program).
    #[arg(long, value_name = "FILE", conflicts_with = "mqtt")]
    broker: Option<PathBuf>,
    /// Where the three nodes keep their data (default: a temporary folder). Choose the disk to be measured.
    #[arg(long, value_name = "DIR", conflicts_with = "mqtt")]
    dir: Option<PathBuf>,
    /// Each of the three nodes in a network namespace of its own (as root), so that its links can be cut.
    #[arg(long, conflicts_with = "mqtt")]
    pub(crate) machines: bool,
    /// MQTT addresses of brokers that run already, instead of starting any.
    #[arg(long, value_delimiter = ',', value_name = "ADDR,...")]
    mqtt: Vec<SocketAddr>,
    /// Process ids of those brokers, for processor time and memory.
    #[arg(long, value_delimiter = ',', value_name = "PID,...", requires = "mqtt")]
    pids: Vec<u32>,
}

/// The brokers.
pub(crate) struct Fleet {
    /// Where clients connect to.
    pub(crate) mqtt: Vec<SocketAddr>,
    /// Their processes, as far as they are known.
    pub(crate) pids: Vec<u32>,
    /// Those that this process started. Dropped before their data.
    pub(crate) cluster: Option<Cluster>,
    /// Where their data is.
    pub(crate) dir: PathBuf,
    _temporary: Option<TempDir>,
}

impl Fleet {
    /// Starts three brokers, or takes those that run.
    pub(crate) fn open(args: &FleetArgs) -> Result<Self, BenchError> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let temporary = TempDir::with_prefix_in("quorate-bench-", &parent)
            .map_err(BenchError::io(&parent.display().to_string()))?;
        let dir = temporary.path().to_owned();
        if !args.mqtt.is_empty() {
            let (mqtt, pids) = (args.mqtt.clone(), args.pids.clone());
            return Ok(Self { mqtt, pids, cluster: None, dir, _temporary: Some(temporary) });
        }
        let binary = match &args.broker {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().map_err(BenchError::io("this program"))?.with_file_name("quorate"),
        };
        eprintln!("starting three nodes of {} in {}", binary.display(), dir.display());
        let options = ClusterOptions { binary, dir: dir.clone(), nodes: 3, env: Vec::new(), machines: args.machines };
        let mut fleet = Self {
            mqtt: Vec::new(),
            pids: Vec::new(),
            cluster: Some(Cluster::start(options)?),
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
