//! The command line as a visitor uses it: every command once, against real nodes, through a node that does not lead.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use quorate_jepsen::harness::{ClusterView, NodeProcess, Start, free_ports};
use serde_json::Value;
use testkit::{RECOVERY, System, eventually, nodes, three_nodes};

fn quorate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments);
    command
}

/// Runs a command that must succeed; what it prints.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn url(system: &System, place: usize) -> String {
    format!("mqtt://{}", system.mqtt(place))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pub_publishes_sub_prints_also_when_it_was_away() {
    let system = three_nodes();
    let (here, there) = (url(&system, 0), url(&system, 1));
    // A session that is kept: it subscribes once, then is away while messages come.
    let session = ["sub", "--url", &here, "-t", "plant/#", "-q", "2", "--persistent", "--client-id", "cli", "-n", "1"];
    let first = quorate(&session).stdout(Stdio::piped()).spawn().unwrap();
    eventually("the subscriber is there", RECOVERY, || {
        (system.metric(0, "quorate_mqtt_connections") > 0).then_some(())
    })
    .await;
    // Whether its SUBSCRIBE was first is seen by a retained message: it comes either way.
    said(&mut quorate(&["pub", "--url", &there, "-t", "plant/1", "-m", "retained", "-q", "1", "-r"]));
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success());
    assert_eq!(String::from_utf8(first.stdout).unwrap(), "retained\n");

    let mut lines = quorate(&["pub", "--url", &there, "-t", "plant/2", "-q", "2"]);
    let mut lines = lines.stdin(Stdio::piped()).spawn().unwrap();
    lines.stdin.take().unwrap().write_all(b"one\ntwo\nthree\n").unwrap();
    assert!(lines.wait().unwrap().success());
    let back =
        ["sub", "--url", &there, "-t", "plant/#", "-q", "2", "--persistent", "--client-id", "cli", "-n", "3", "-v"];
    let lines = said(&mut quorate(&back));
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines, ["plant/2 [qos 2] one", "plant/2 [qos 2] two", "plant/2 [qos 2] three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_refused_fails_the_command_and_says_why() {
    let system = nodes(1, &[("bootstrap_queue_bytes_max", "1000")]);
    let at = url(&system, 0);
    let mut away = system.connect(0, quorate_jepsen::wire::Version::V5, "away").await;
    away.subscribe("full", 1).await;
    away.disconnect().await;
    let big = "x".repeat(2000);
    let output = quorate(&["pub", "--url", &at, "-t", "full", "-m", &big, "-q", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("0x97"), "{}", text(&output));
    let output = quorate(&["pub", "--url", "mqtt://127.0.0.1:1", "-t", "x", "-m", "y", "--timeout", "1"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("127.0.0.1:1"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_command_shows_and_changes_the_membership_through_a_follower() {
    let mut system = three_nodes();
    let leader = system.leader();
    let follower = system.follower();
    let admin = format!("http://{}", system.admin(follower));
    let cluster = |arguments: &[&str]| said(quorate(&["cluster"]).args(arguments).args(["--admin", &admin]));
    let shown = cluster(&["status"]);
    for node in &system.cluster.nodes {
        assert!(shown.contains(&node.name), "{shown}");
    }
    let json: Value = serde_json::from_str(&cluster(&["status", "--json"])).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 3);

    // Leadership goes where it is told.
    let to = system.id(follower).to_string();
    let plan = cluster(&["transfer", &to, "--dry-run"]);
    assert!(plan.contains("before"), "{plan}");
    assert_eq!(system.leader(), leader, "a dry run changes nothing");
    assert!(cluster(&["transfer", &to]).contains(&format!("node {to} leads")));
    assert_eq!(system.leader(), follower);

    // A learner is admitted, started with what the command says, promoted, demoted, removed.
    let ports = free_ports(3).unwrap();
    let at: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let add = ["add", "--name", "fourth", "--mqtt", &at[0], "--peer", &at[1], "--node-admin", &at[2], "--learner"];
    let added: Value = serde_json::from_str(&cluster(&[&add[..], &["--json"]].concat())).unwrap();
    let (id, token) = (added["id"].as_u64().unwrap(), added["token"].as_str().unwrap().to_owned());
    let addresses = quorate_jepsen::harness::Addresses::loopback(ports[0], ports[1], ports[2]);
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_quorate"));
    let mut fourth = NodeProcess::new(binary, system.dir(), "fourth", addresses);
    fourth.env = vec![("QUORATE_JOIN_TOKEN".into(), token), ("QUORATE_LEARNER".into(), "true".into())];
    fourth.start(Start::Join(system.admin(leader))).unwrap();
    let role = |wanted: &'static str| {
        let admin = system.admin(leader);
        eventually("the fourth node's role", RECOVERY, move || {
            let view = ClusterView::of(admin).ok()?;
            let node = view.node("fourth")?;
            (node.id == id && node.role == wanted && node.state == "up").then_some(())
        })
    };
    role("learner").await;
    let id = id.to_string();
    // It may have to catch up first, which the command says.
    eventually("it is promoted", RECOVERY, || {
        let output = quorate(&["cluster", "promote", &id, "--admin", &admin]).output().unwrap();
        assert!(output.status.success() || text(&output).contains("not caught up"), "{}", text(&output));
        output.status.success().then_some(())
    })
    .await;
    role("follower").await;
    cluster(&["demote", &id]);
    role("learner").await;
    cluster(&["remove", &id]);
    let names: Value = serde_json::from_str(&cluster(&["status", "--json"])).unwrap();
    assert!(!names.to_string().contains("fourth"), "{names}");
    let output = quorate(&["cluster", "promote", &id, "--admin", &admin]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    fourth.kill().unwrap();

    // The leader goes too: it hands over first, and whoever was asked follows it.
    let before = system.leader();
    let id = system.id(before).to_string();
    let through = format!("http://{}", system.admin(leader));
    said(quorate(&["cluster", "remove", &id]).args(["--admin", &through]));
    system.kill(before);
    system
        .cluster
        .wait_view("two nodes are left", RECOVERY, |view| view.nodes.len() == 2 && view.leader.is_some())
        .unwrap();
    system.assert_same_digest();
}

#[test]
fn the_default_configuration_is_valid_and_so_is_the_example() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("default.toml");
    std::fs::write(&file, said(&mut quorate(&["config", "default"]))).unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/quorate.toml");
    for file in [file.to_str().unwrap(), example] {
        assert!(said(&mut quorate(&["config", "check", file])).contains("is valid"));
    }
}
