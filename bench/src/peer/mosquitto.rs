//! Mosquitto: one node, for it has no cluster.

use std::path::Path;
use std::process::Command;

use quorate_jepsen::harness::free_ports;

use super::{Description, IN_FLIGHT_MAX, Packages, Started, loopback, process::Processes};
use crate::BenchError;

pub(super) fn start(dir: &Path, packages: &Packages) -> Result<Started, BenchError> {
    let program = packages.program("mosquitto")?;
    let version = version(packages.command(&program))?;
    let ports = free_ports(1)?;
    let port = ports.first().copied().unwrap_or_default();
    let configuration = configuration(dir, port);
    let file = dir.join("mosquitto.conf");
    std::fs::write(&file, &configuration).map_err(BenchError::io(&file.display().to_string()))?;
    let mut command = packages.command(&program);
    command.arg("-c").arg(&file);
    let mut processes = Processes::default();
    eprintln!("starting Mosquitto {version} in {}", dir.display());
    processes.start("mosquitto", dir, command)?;
    let description = Description {
        name: "Mosquitto".to_owned(),
        version,
        nodes: 1,
        durability:
            "in the memory of the one node; on its disk by a snapshot every 30 minutes, nothing fsynced before \
                     an acknowledgement"
                .to_owned(),
        configuration,
    };
    Ok(Started { mqtt: vec![loopback(port)], processes, description })
}

/// It says its version at the top of its help, and calls asking for that an error.
fn version(mut command: Command) -> Result<String, BenchError> {
    let output = command.arg("-h").output().map_err(BenchError::io("mosquitto -h"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    Ok(first.rsplit(' ').next().unwrap_or_default().to_owned())
}

/// `user` keeps it from becoming another user, who could not write here, when it is started by root.
fn configuration(dir: &Path, port: u16) -> String {
    format!(
        "listener {port} 127.0.0.1\n\
         allow_anonymous true\n\
         user root\n\
         persistence true\n\
         persistence_location {}/\n\
         max_queued_messages 0\n\
         max_inflight_messages {IN_FLIGHT_MAX}\n\
         set_tcp_nodelay true\n\
         log_dest stderr\n",
        dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_persists_and_drops_nothing() {
        let text = configuration(Path::new("data"), 20_001);
        for line in [
            "listener 20001 127.0.0.1",
            "persistence true",
            "persistence_location data/",
            "max_queued_messages 0",
            "max_inflight_messages 1000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
