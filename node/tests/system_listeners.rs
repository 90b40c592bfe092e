//! Listeners of a real node: its configuration, its signals and its metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;
mod testkit;

use std::process::Command;

use mqtt_testkit::client::Client;
use mqtt_testkit::secure::{Authority, server_certificate, tls, unix};
use quorate_jepsen::harness::{free_ports, http};
use quorate_jepsen::wire::Version;
use rustls::version::TLS13;
use testkit::raw::{Raw, client};
use testkit::{RECOVERY, SOON, eventually, nodes, nodes_behind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again_on_sighup_and_when_their_files_change() {
    let authority = Authority::new();
    authority.issue("server", "first", vec![]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mqtt.sock");
    let at = ([127, 0, 0, 1], free_ports(1).unwrap()[0]).into();
    let listeners = format!("tls://{at}?name=secure&{},unix://{}", authority.query("server"), path.display());
    for reload_s in ["0", "1"] {
        let mut system = nodes(1, &[("listeners", &listeners), ("tls_reload_s", reload_s)]);
        system.wait_whole();
        let config = authority.client(&[&TLS13], None);
        let first = server_certificate(&tls(at, &config));
        let pid = system.cluster.nodes[0].pid().unwrap().to_string();
        let tell = || {
            if reload_s == "0" {
                assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
            }
        };
        let key = authority.path("server.key");
        let good = std::fs::read(&key).unwrap();
        std::fs::write(&key, "no key").unwrap();
        tell();
        eventually("the bad file is named", RECOVERY, || {
            let log = system.cluster.nodes[0].log();
            (log.contains("the old certificate stays in use") && log.contains("server.key holds no private key"))
                .then_some(())
        })
        .await;
        assert_eq!(server_certificate(&tls(at, &config)), first);
        std::fs::write(&key, good).unwrap();
        authority.issue("server", "second", vec![]);
        tell();
        eventually("the new certificate is shown", RECOVERY, || {
            (server_certificate(&tls(at, &config)) != first).then_some(())
        })
        .await;
        // The node serves through both, and counts each.
        let mut secure = Client::over(tls(at, &config), true);
        let mut local = Client::over(unix(&path), false);
        secure.greet("secure", true);
        local.greet("local", true);
        let metrics = http::get(system.admin(0), "/metrics").unwrap().body;
        for line in [
            "quorate_mqtt_listener_connections{listener=\"mqtt\"} 0".to_owned(),
            "quorate_mqtt_listener_connections{listener=\"secure\"} 1".to_owned(),
            format!("quorate_mqtt_listener_connections{{listener=\"unix://{}\"}} 1", path.display()),
            "quorate_mqtt_refused_connections_total{listener=\"secure\",limit=\"rate\"} 0".to_owned(),
            "quorate_mqtt_failed_connections_total{listener=\"secure\",stage=\"tls\"} 0".to_owned(),
        ] {
            assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }
        let status = system.cluster.nodes[0].terminate(SOON).unwrap();
        assert!(status.success() && !path.exists(), "the socket is removed at the stop");
    }
}

#[test]
fn config_check_reads_the_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("quorate.toml");
    let text =
        "mqtt = \"\"\nlisteners = [\"tls://0.0.0.0:8883?cert=/nowhere/a.pem&key=/nowhere/a.key&auth=password\"]\n";
    std::fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_quorate")).args(["config", "check"]).arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("listeners = tls://0.0.0.0:8883?cert=/nowhere/a.pem"), "{said}");
    assert!(said.contains("cannot read /nowhere/a.pem: there is no such file; check the path"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_clients_are_served_than_the_soft_limit_of_open_files() {
    const SOFT: usize = 256;
    let system = nodes_behind(&format!("ulimit -Sn {SOFT}; ulimit -Hn 4096"), 1, &[]);
    let mut clients = Vec::new();
    for number in 0..SOFT + 50 {
        clients.push(Raw::connect(system.mqtt(0), Version::V5, &client(&number.to_string(), true)).await.0);
    }
    for client in &mut clients {
        client.publish_through("all/here", 1, "x").await;
    }
    let log = system.cluster.nodes[0].log();
    assert!(log.contains("limit of open files and sockets") && log.contains(&SOFT.to_string()), "{log}");
    assert!(log.contains("the limit of open files is too low for so many connections"), "{log}");
}
