//! Other brokers, started on loopback so that they get the same load from the same clients.
//!
//! It owns the processes that it starts and ends exactly those. Programs come from the folder that `make peers` fills,
//! or from PATH. How durable an acknowledgement of each is stands in its [`Description`]: figures without it would
//! compare unlike things.

mod mosquitto;
mod nats;
mod packages;
mod process;
mod rabbitmq;
mod ready;

use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use crate::BenchError;
pub(crate) use packages::Packages;
use process::Processes;

/// Publishes that a peer may have unacknowledged to one subscriber: the same for all, and more than any load here has
/// on its way to one.
const IN_FLIGHT_MAX: u16 = 1_000;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    /// RabbitMQ's MQTT plugin: three nodes, quorum queues.
    Rabbitmq,
    /// NATS: three nodes, JetStream with three replicas.
    Nats,
    /// Mosquitto: one node.
    Mosquitto,
}

/// What was measured, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Description {
    /// Its name.
    pub(crate) name: String,
    /// As the program itself says.
    pub(crate) version: String,
    /// Nodes.
    pub(crate) nodes: usize,
    /// What has happened when a PUBACK arrives.
    pub(crate) durability: String,
    /// Configuration of the first node.
    pub(crate) configuration: String,
}

/// A peer's processes as its module starts them, not ready yet.
struct Started {
    /// Where clients connect to, node by node.
    mqtt: Vec<SocketAddr>,
    processes: Processes,
    description: Description,
}

/// A peer that answers. Ended when it is dropped.
pub(crate) struct Running {
    /// Where clients connect to.
    pub(crate) mqtt: Vec<SocketAddr>,
    /// All its processes: the broker itself of each node first, then helpers.
    pub(crate) pids: Vec<u32>,
    /// What it is.
    pub(crate) description: Description,
    _processes: Processes,
}

impl Peer {
    /// Why there is no QoS 2 to measure, if there is none.
    pub(crate) const fn lacks_qos2(self) -> Option<&'static str> {
        match self {
            Self::Rabbitmq => Some("RabbitMQ 3.10 takes QoS 2 for QoS 1"),
            Self::Nats => Some("NATS 2.9 has no QoS 2"),
            Self::Mosquitto => None,
        }
    }

    /// Starts it with its data in `dir`, and waits until each node answers a client.
    pub(crate) fn start(self, dir: &Path, packages: &Packages) -> Result<Running, BenchError> {
        let mut started = match self {
            Self::Rabbitmq => rabbitmq::start(dir, packages)?,
            Self::Nats => nats::start(dir, packages)?,
            Self::Mosquitto => mosquitto::start(dir, packages)?,
        };
        for at in started.mqtt.clone() {
            ready::wait_client(&mut started.processes, at)?;
        }
        let pids = started.processes.pids()?;
        eprintln!("{} {} is ready", started.description.name, started.description.version);
        let Started { mqtt, processes, description } = started;
        Ok(Running { mqtt, pids, description, _processes: processes })
    }
}

/// Loopback at a port.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
