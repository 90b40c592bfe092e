//! RabbitMQ: three nodes with the MQTT plugin, subscriptions of persistent sessions in quorum queues.
//!
//! Its own start script is used, for the options of the virtual machine that it sets. That script calls `erl`, which
//! knows only the folder that Erlang is installed to: here it finds one that knows where it was unpacked. A port mapper
//! (epmd), a cookie and a home of its own keep it from every other Erlang on the machine.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_jepsen::harness::free_ports;

use super::{Description, IN_FLIGHT_MAX, Packages, Started, loopback, process::Processes, ready};
use crate::BenchError;

const NODES: usize = 3;
/// It listens on loopback, in a run of its own: no secret.
const COOKIE: &str = "quoratebench";

/// Where programs are.
struct Programs {
    server: PathBuf,
    /// Folder of Erlang.
    root: PathBuf,
    /// Of its virtual machine.
    runtime: PathBuf,
}

/// Ports of one node.
#[derive(Clone, Copy)]
struct Ports {
    distribution: u16,
    mqtt: u16,
}

pub(super) fn start(dir: &Path, packages: &Packages) -> Result<Started, BenchError> {
    let runtime = packages.folder("usr/lib/erlang", "erts-")?.join("bin");
    let programs = Programs {
        server: packages.folder("usr/lib/rabbitmq/lib", "rabbitmq_server-")?.join("sbin/rabbitmq-server"),
        root: runtime.ancestors().nth(2).unwrap_or(&runtime).to_owned(),
        runtime,
    };
    let ports = free_ports(1 + 2 * NODES)?;
    let (mapper, rest) = ports.split_first().map_or((0, [].as_slice()), |(mapper, rest)| (*mapper, rest));
    let nodes: Vec<Ports> = rest
        .chunks_exact(2)
        .filter_map(|ports| match ports {
            [distribution, mqtt] => Some(Ports { distribution: *distribution, mqtt: *mqtt }),
            _ => None,
        })
        .collect();
    eprintln!("starting three nodes of RabbitMQ in {}", dir.display());
    write(&dir.join(".erlang.cookie"), COOKIE, 0o400)?;
    write(&dir.join("erl"), &erl(&programs), 0o755)?;

    let mut processes = Processes::default();
    let mut epmd = packages.command(&programs.runtime.join("epmd"));
    epmd.args(["-port", &mapper.to_string(), "-address", "127.0.0.1"]);
    processes.start_helper("epmd", dir, epmd)?;
    ready::wait(&mut processes, "Erlang's port mapper", |_| {
        TcpStream::connect(loopback(mapper)).map(drop).map_err(|e| e.to_string())
    })?;
    for (number, ports) in (1..).zip(&nodes) {
        let home = dir.join(format!("n{number}"));
        fs::create_dir_all(&home).map_err(BenchError::io(&home.display().to_string()))?;
        write(&home.join("rabbitmq.conf"), &configuration(ports.mqtt), 0o644)?;
        write(&home.join("advanced.config"), "[{kernel, [{inet_dist_use_interface, {127,0,0,1}}]}].\n", 0o644)?;
        write(&home.join("enabled_plugins"), "[rabbitmq_mqtt].\n", 0o644)?;
        let command = node(packages, &programs, dir, number, mapper, ports.distribution)?;
        processes.start(&format!("n{number}"), dir, command)?;
        // One after the other: nodes that had started at the same time once refused all clients for two minutes (CONNACK
        // code 3). The plugin keeps who is connected in a Raft group of its own, which they must find each other for.
        up(&mut processes, number)?;
    }
    formed(&mut processes)?;

    let description = Description {
        name: "RabbitMQ".to_owned(),
        version: version(&processes.log("n1")),
        nodes: NODES,
        durability: "in the log of a majority of three replicas of each subscriber's quorum queue, fsynced".to_owned(),
        configuration: nodes.first().map_or(String::new(), |first| configuration(first.mqtt)),
    };
    Ok(Started { mqtt: nodes.iter().map(|n| loopback(n.mqtt)).collect(), processes, description })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), BenchError> {
    let shown = path.display().to_string();
    fs::write(path, text).map_err(BenchError::io(&shown))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(BenchError::io(&shown))
}

/// The `erl` that the start script finds.
fn erl(programs: &Programs) -> String {
    format!(
        "#!/bin/sh\nexport EMU=beam PROGNAME=erl ROOTDIR='{}' BINDIR='{}'\nexec \"$BINDIR/erlexec\" \"$@\"\n",
        programs.root.display(),
        programs.runtime.display()
    )
}

fn node(
    packages: &Packages,
    programs: &Programs,
    dir: &Path,
    number: usize,
    mapper: u16,
    distribution: u16,
) -> Result<Command, BenchError> {
    let home = dir.join(format!("n{number}"));
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(dir.to_owned()).chain(std::env::split_paths(&inherited)))
        .map_err(|e| BenchError::io("PATH")(std::io::Error::other(e)))?;
    let mut command = packages.command(&programs.server);
    // Erlang finds its cookie at home.
    command.current_dir(&home).env("HOME", dir).env("PATH", path);
    command.env("ERL_EPMD_PORT", mapper.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    // One started by a node would outlive it.
    command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-start_epmd false");
    command.env("RABBITMQ_NODENAME", format!("n{number}@localhost"));
    command.env("RABBITMQ_DIST_PORT", distribution.to_string());
    for (variable, file) in [
        // Not the one of an installed RabbitMQ; this one does not exist.
        ("RABBITMQ_CONF_ENV_FILE", "rabbitmq-env.conf"),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_LOG_BASE", "log"),
    ] {
        command.env(variable, home.join(file));
    }
    Ok(command)
}

fn configuration(mqtt: u16) -> String {
    let mut text = format!(
        "listeners.tcp = none\n\
         mqtt.listeners.tcp.1 = 127.0.0.1:{mqtt}\n\
         mqtt.tcp_listen_options.nodelay = true\n\
         mqtt.durable_queue_type = quorum\n\
         mqtt.prefetch = {IN_FLIGHT_MAX}\n\
         log.console = true\n\
         log.file = false\n\
         cluster_formation.peer_discovery_backend = classic_config\n"
    );
    for number in 1..=NODES {
        text += &format!("cluster_formation.classic_config.nodes.{number} = n{number}@localhost\n");
    }
    text
}

/// Waits until a node listens.
fn up(processes: &mut Processes, number: usize) -> Result<(), BenchError> {
    ready::wait(processes, &format!("RabbitMQ's node n{number}"), |processes| {
        let log = processes.log(&format!("n{number}"));
        let missing = ["started MQTT TCP listener", "Server startup complete"].into_iter().find(|w| !log.contains(w));
        missing.map_or(Ok(()), |what| Err(format!("its log does not have \"{what}\"")))
    })
}

/// Waits until of each pair of nodes one has seen the other come up.
fn formed(processes: &mut Processes) -> Result<(), BenchError> {
    ready::wait(processes, "RabbitMQ's three nodes to see each other", |processes| {
        let has_pair = |a: usize, b: usize| {
            let sees = |of: usize, other: usize| {
                processes.log(&format!("n{of}")).contains(&format!("node n{other}@localhost up"))
            };
            sees(a, b) || sees(b, a)
        };
        let apart = [(1, 2), (1, 3), (2, 3)].into_iter().find(|(a, b)| !has_pair(*a, *b));
        apart.map_or(Ok(()), |(a, b)| Err(format!("n{a} and n{b} do not")))
    })
}

/// From `Starting RabbitMQ 3.10.8 on Erlang 25.2.3`.
fn version(log: &str) -> String {
    let after = log.split_once("Starting RabbitMQ ").map_or("", |(_, rest)| rest);
    let line = after.lines().next().unwrap_or_default();
    line.split(" [").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_are_quorum_queues_of_three_nodes() {
        let text = configuration(20_002);
        for line in [
            "listeners.tcp = none",
            "mqtt.listeners.tcp.1 = 127.0.0.1:20002",
            "mqtt.durable_queue_type = quorum",
            "mqtt.prefetch = 1000",
            "cluster_formation.classic_config.nodes.3 = n3@localhost",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn its_log_says_its_version() {
        let log = "12:00 [info] <0.223.0>  Starting RabbitMQ 3.10.8 on Erlang 25.2.3 [jit]\nmore";
        assert_eq!(version(log), "3.10.8 on Erlang 25.2.3");
    }
}
