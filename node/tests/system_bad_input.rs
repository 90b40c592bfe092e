//! What a node refuses, and how it says so: what, why and what to do, an exit status, and nothing lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_jepsen::harness::{Addresses, NodeProcess, Start, free_ports, http};
use quorate_jepsen::wire::{AckKind, Packet, Version};
use tempfile::TempDir;
use testkit::raw::{self, Raw};
use testkit::{RECOVERY, SOON, nodes, three_nodes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Exit status of a refusal.
const REFUSED: i32 = 1;

fn broker() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_quorate"))
}

/// A node of its own, not started yet.
fn lone_node(dir: &TempDir) -> NodeProcess {
    let ports = free_ports(3).unwrap();
    NodeProcess::new(broker(), dir.path(), "lone", Addresses::loopback(ports[0], ports[1], ports[2]))
}

/// The node ends by itself with status 1, and what it says holds all of `words`.
fn assert_refuses(node: &mut NodeProcess, how: Start, words: &[&str]) {
    node.start(how).unwrap();
    let status = node.wait_exit(SOON).unwrap_or_else(|e| panic!("{e}\n{}", node.log_tail()));
    let said = node.log_tail();
    assert_eq!(status.code(), Some(REFUSED), "{said}");
    for word in words {
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "no word of {word:?} in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("quorate.toml");
    std::fs::write(&file, "name = \"a\"\nmqtt_prot = \"127.0.0.1:1\"\n").unwrap();
    for arguments in [["server", "--config"], ["config", "check"]] {
        let output = Command::new(broker()).args(arguments).arg(&file).current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(REFUSED), "{said}");
        assert!(said.contains("mqtt_prot"), "{said}");
    }
    let output = Command::new(broker()).arg("server").env("QUORATE_NO_SUCH_KEY", "1").output().unwrap();
    assert!(!output.status.success(), "an unknown variable is passed over");
    assert!(String::from_utf8_lossy(&output.stderr).contains("QUORATE_NO_SUCH_KEY"));
}

/// A machine whose disk was replaced is not to be a cluster of its own.
#[test]
fn an_empty_directory_that_belongs_nowhere_is_refused_where_others_may_reach_the_node() {
    let dir = TempDir::new().unwrap();
    let mut node = lone_node(&dir);
    node.at.peer.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
    node.env.push(("QUORATE_PEER_ADVERTISE".into(), "here.example:7400".into()));
    node.env.push(("QUORATE_ALLOW_ANONYMOUS".into(), "true".into()));
    assert_refuses(&mut node, Start::Again, &["--join", "--bootstrap", "disk", "is empty"]);
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let dir = TempDir::new().unwrap();
    let mut node = lone_node(&dir);
    for address in [node.at.mqtt, node.at.peer, node.at.admin] {
        let taken = std::net::TcpListener::bind(address).unwrap();
        assert_refuses(&mut node, Start::Bootstrap, &["in use", &address.port().to_string()]);
        drop(taken);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_is_used_by_one_process_of_its_own_cluster_only() {
    let system = nodes(1, &[]);
    let mine = system.cluster.nodes[0].data_dir.clone();
    let dir = TempDir::new().unwrap();
    let mut second = lone_node(&dir);
    second.data_dir.clone_from(&mine);
    assert_refuses(&mut second, Start::Again, &["in use"]);

    // Another cluster's directory, asked to join ours.
    let mut other = lone_node(&dir);
    other.start(Start::Bootstrap).unwrap();
    testkit::eventually("the other cluster is ready", RECOVERY, || {
        quorate_jepsen::harness::http::get(other.at.admin, "/health/ready").ok().filter(|a| a.status == 200)
    })
    .await;
    other.kill().unwrap();
    assert_refuses(&mut other, Start::Join(system.admin(0)), &["cluster"]);
    // Nothing is lost: without the wrong flag it is what it was.
    other.start(Start::Again).unwrap();
    testkit::eventually("the other cluster is back", RECOVERY, || {
        quorate_jepsen::harness::http::get(other.at.admin, "/health/ready").ok().filter(|a| a.status == 200)
    })
    .await;
}

/// The file in `folder` that holds `needle`, and where.
fn place_of(needle: &str, folder: &Path) -> (PathBuf, usize) {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = |path: PathBuf| {
        let bytes = std::fs::read(&path).ok()?;
        let at = bytes.windows(needle.len()).position(|window| window == needle.as_bytes())?;
        Some((path, at))
    };
    files.filter_map(found).next().expect("the payload is in the log")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused_by_name_and_left_as_it_is() {
    let mut system = nodes(1, &[]);
    let mut client = system.connect(0, Version::V5, "client").await;
    for number in 0..50 {
        client.publish_through("x", 1, &format!("message number {number}.")).await;
    }
    system.kill(0);
    let (file, at) = place_of("message number 17.", &system.cluster.nodes[0].data_dir.join("log"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(&file, &bytes).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let node = &mut system.cluster.nodes[0];
    assert_refuses(node, Start::Again, &[name]);
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "it was changed");
    // Mended, it opens: nothing was lost by the attempt.
    bytes[at] ^= 0x40;
    std::fs::write(&file, &bytes).unwrap();
    system.restart(0);
    system.wait_whole();
    system.resume(0, Version::V5, "client").await.publish_through("x", 1, "again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_a_newer_format_and_a_damaged_identity_are_refused() {
    let mut system = nodes(1, &[]);
    system.kill(0);
    let file = system.cluster.nodes[0].data_dir.join("node.json");
    let good = std::fs::read_to_string(&file).unwrap();
    let newer = good.replace("\"format\": 1", "\"format\": 99").replace("\"format\":1", "\"format\":99");
    assert_ne!(newer, good, "{good}");
    std::fs::write(&file, newer).unwrap();
    assert_refuses(&mut system.cluster.nodes[0], Start::Again, &["99"]);
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    assert_refuses(&mut system.cluster.nodes[0], Start::Again, &["node.json"]);
    std::fs::write(&file, good).unwrap();
    system.restart(0);
    system.wait_whole();
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = TempDir::new().unwrap();
    let mut node = lone_node(&dir);
    // A file where the directory should be: also root cannot write there.
    std::fs::write(&node.data_dir, "in the way").unwrap();
    let name = node.data_dir.file_name().unwrap().to_str().unwrap().to_owned();
    assert_refuses(&mut node, Start::Bootstrap, &[&name]);
    // Nor here.
    node.data_dir = PathBuf::from("/proc/quorate-data");
    assert_refuses(&mut node, Start::Bootstrap, &["/proc/quorate-data"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_of_the_state_is_refused_by_name() {
    let mut system = nodes(1, &[]);
    let mut client = system.connect(0, Version::V5, "damaged").await;
    client.subscribe("x/#", 1).await;
    let status = system.cluster.nodes[0].terminate(RECOVERY).unwrap();
    assert!(status.success(), "{status:?}");
    let is_table = |path: &PathBuf| path.extension().is_some_and(|e| e == "sst");
    let tables = std::fs::read_dir(system.cluster.nodes[0].data_dir.join("rows/1")).unwrap();
    let table = tables.map(|entry| entry.unwrap().path()).find(is_table).expect("the rows were flushed");
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[20] ^= 0x10;
    std::fs::write(&table, &bytes).unwrap();
    let name = table.file_name().unwrap().to_str().unwrap();
    assert_refuses(&mut system.cluster.nodes[0], Start::Again, &[name]);
    bytes[20] ^= 0x10;
    std::fs::write(&table, &bytes).unwrap();
    system.restart(0);
    system.wait_whole();
    system.resume(0, Version::V5, "damaged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_means_another_cluster_is_refused_and_leaves_no_trace() {
    let mut system = nodes(1, &[]);
    let join = r#"{"token": "ab", "mqtt": "h:1", "peer": "h:2", "admin": "h:3", "cluster_id": "another"}"#;
    let answer = http::request(system.admin(0), "POST", "/api/v1/cluster/nodes", Some(join)).unwrap();
    assert_eq!(answer.status, 409, "{answer:?}");
    let mine = system.cluster.wait_voters(1, SOON).unwrap().cluster_id;
    assert!(answer.body.contains("/problems/wrong-cluster") && answer.body.contains(&mine), "{answer:?}");
    assert!(answer.body.contains("another"), "{answer:?}");
    assert_eq!(system.cluster.wait_voters(1, SOON).unwrap().nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_malformed_packet_ends_its_connection_with_a_reason_and_nothing_else() {
    let mut system = three_nodes();
    let mut bystander = system.connect(0, Version::V5, "bystander").await;
    bystander.subscribe("quiet/#", 1).await;
    // Topic length beyond the frame; QoS 3; a reserved type; an unknown property; a PUBREL with wrong flags.
    let malformed: [&[u8]; 5] = [
        &[0x32, 5, 0xff, 0xff, b'a', 0, 1],
        &[0x36, 6, 0, 1, b'a', 0, 1, 0],
        &[0x00, 0],
        &[0x30, 5, 0, 1, b'a', 1, 0xfe],
        &[0x60, 2, 0, 1],
    ];
    for bytes in malformed {
        let mut client = system.connect(0, Version::V5, "malformed").await;
        client.send(|out, _| out.extend_from_slice(bytes)).await;
        let reason = client.expect_end().await;
        assert!(matches!(reason, Some(0x81 | 0x82)), "{bytes:02x?}: {reason:02x?}");
        let mut client = system.connect(0, Version::V4, "malformed-4").await;
        client.send(|out, _| out.extend_from_slice(&[0x36, 6, 0, 1, b'a', 0, 1, 0])).await;
        assert_eq!(client.expect_end().await, None);
    }
    // No CONNECT at all: no answer either [MQTT-3.1.0-1]. Twice a CONNECT.
    let mut stranger = tokio::net::TcpStream::connect(system.mqtt(1)).await.unwrap();
    stranger.write_all(&[0xc0, 0]).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, stranger.read_to_end(&mut answer)).await.unwrap().unwrap();
    let mut twice = system.connect(1, Version::V5, "twice").await;
    twice.send(|out, version| quorate_jepsen::wire::encode::connect(out, version, &raw::client("twice", true))).await;
    assert_eq!(twice.expect_end().await, Some(0x82));
    bystander.expect_nothing().await;
    let mut publisher = system.connect(2, Version::V5, "publisher").await;
    publisher.publish_through("quiet/x", 1, "still served").await;
    bystander.receive_through("still served", false).await;
    system.assert_same_digest();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn more_publishes_than_receive_maximum_allows_are_answered_with_0x93() {
    let system = nodes(1, &[("receive_maximum", "3")]);
    let (mut client, packet) = Raw::open(system.mqtt(0), Version::V5, &raw::client("eager", true)).await;
    let Some(Packet::ConnAck { code: 0, properties, .. }) = packet else { panic!("{packet:?}") };
    let granted = quorate_jepsen::wire::property::number(&properties, quorate_jepsen::wire::property::RECEIVE_MAXIMUM);
    assert_eq!(granted, Some(3));
    // QoS 2 without PUBREL keeps its place in the window.
    for id in 1..=3 {
        client.publish(&raw::publish("x", 2, id, false, "held")).await;
        client.expect_ack(AckKind::Pubrec, id).await;
    }
    client.publish(&raw::publish("x", 2, 4, false, "too many")).await;
    assert_eq!(client.expect_end().await, Some(0x93));
}
