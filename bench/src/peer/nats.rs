//! NATS: three nodes, whose MQTT keeps messages and sessions in JetStream streams of three replicas.

use std::path::Path;
use std::process::Command;

use quorate_jepsen::harness::free_ports;

use super::{Description, IN_FLIGHT_MAX, Packages, Started, loopback, process::Processes};
use crate::BenchError;

const NODES: usize = 3;

/// Ports of one node.
struct Ports {
    client: u16,
    route: u16,
    mqtt: u16,
}

pub(super) fn start(dir: &Path, packages: &Packages) -> Result<Started, BenchError> {
    let program = packages.program("nats-server")?;
    let version = version(packages.command(&program))?;
    let nodes: Vec<Ports> = free_ports(3 * NODES)?
        .chunks_exact(3)
        .filter_map(|ports| match ports {
            [client, route, mqtt] => Some(Ports { client: *client, route: *route, mqtt: *mqtt }),
            _ => None,
        })
        .collect();
    eprintln!("starting three nodes of NATS {version} in {}", dir.display());
    let mut processes = Processes::default();
    for number in 1..=nodes.len() {
        let name = format!("n{number}");
        let file = dir.join(format!("{name}.conf"));
        std::fs::write(&file, configuration(dir, number, &nodes))
            .map_err(BenchError::io(&file.display().to_string()))?;
        let mut command = packages.command(&program);
        command.arg("-c").arg(&file);
        processes.start(&name, dir, command)?;
    }
    let description = Description {
        name: "NATS".to_owned(),
        version,
        nodes: NODES,
        durability: "written by a majority of three replicas of its stream, fsynced by none: that happens every two \
                     minutes"
            .to_owned(),
        configuration: configuration(dir, 1, &nodes),
    };
    Ok(Started { mqtt: nodes.iter().map(|n| loopback(n.mqtt)).collect(), processes, description })
}

fn version(mut command: Command) -> Result<String, BenchError> {
    let output = command.arg("-v").output().map_err(BenchError::io("nats-server -v"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.trim().rsplit('v').next().unwrap_or_default().to_owned())
}

fn configuration(dir: &Path, number: usize, nodes: &[Ports]) -> String {
    let (client, route, mqtt) =
        nodes.get(number - 1).map_or((0, 0, 0), |ports| (ports.client, ports.route, ports.mqtt));
    let routes: Vec<String> = nodes.iter().map(|n| format!("nats://127.0.0.1:{}", n.route)).collect();
    format!(
        "server_name: n{number}\n\
         listen: 127.0.0.1:{client}\n\
         jetstream {{ store_dir: \"{}/n{number}\" }}\n\
         cluster {{ name: bench, listen: 127.0.0.1:{route}, routes: [{}] }}\n\
         mqtt {{ listen: 127.0.0.1:{mqtt}, stream_replicas: {NODES}, max_ack_pending: {IN_FLIGHT_MAX} }}\n",
        dir.display(),
        routes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_know_each_other_and_streams_have_three_replicas() {
        let nodes = [1, 4, 7].map(|n| Ports { client: n, route: n + 1, mqtt: n + 2 });
        let text = configuration(Path::new("data"), 2, &nodes);
        for line in [
            "server_name: n2",
            "listen: 127.0.0.1:4",
            "jetstream { store_dir: \"data/n2\" }",
            "cluster { name: bench, listen: 127.0.0.1:5, routes: [nats://127.0.0.1:2, nats://127.0.0.1:5, nats://127.0.0.1:8] }",
            "mqtt { listen: 127.0.0.1:6, stream_replicas: 3, max_ack_pending: 1000 }",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
