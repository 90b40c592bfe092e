//! `quorate drill` as an operator types it, on a cluster that is not the drill's own. A supervisor starts nodes that end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use quorate_jepsen::harness::wait_for;
use quorate_jepsen::wire::Version;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::raw::{self, Raw};
use testkit::{RECOVERY, System, three_nodes};

/// Longest time for a whole drill of these tests on a busy machine.
const DRILL_MAX: Duration = Duration::from_secs(300);

/// The command, on a cluster whose process ids are in files beside its data.
fn drill(system: &System, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["drill", "--admin", &system.admin(1).to_string(), "--seed", "1", "--out"]).arg(out(system));
    command.arg("--pid-file").arg(system.dir().join("{node}.pid")).args(["--supervised"]).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn out(system: &System) -> PathBuf {
    system.dir().join("drill")
}

fn write_pid(system: &System, place: usize) {
    let node = &system.cluster.nodes[place];
    fs::write(system.dir().join(format!("{}.pid", node.name)), node.pid().unwrap().to_string()).unwrap();
}

fn three_supervised() -> System {
    let system = three_nodes();
    (0..3).for_each(|place| write_pid(&system, place));
    system
}

/// Starts nodes that have ended; how many there were.
fn supervise(system: &mut System) -> usize {
    let mut started = 0;
    for place in 0..system.cluster.nodes.len() {
        if !system.cluster.nodes[place].is_running() {
            system.restart(place);
            write_pid(system, place);
            started += 1;
        }
    }
    started
}

/// Supervises until the drill has ended. Its status, and how many nodes were started.
fn to_the_end(system: &mut System, drill: &mut Child) -> (ExitStatus, usize) {
    let mut started = 0;
    let status = wait_for("the end of the drill", DRILL_MAX, || {
        started += supervise(system);
        drill.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
    });
    (status.unwrap(), started)
}

/// Runs it with its output in files of its folder.
fn start(system: &System, arguments: &[&str]) -> Child {
    let file = |name| fs::File::create(system.dir().join(name)).unwrap();
    let mut command = drill(system, arguments);
    command.stdout(file("drill.stdout")).stderr(file("drill.stderr")).spawn().unwrap()
}

fn said(system: &System) -> String {
    ["drill.stdout", "drill.stderr"].map(|name| fs::read_to_string(system.dir().join(name)).unwrap()).concat()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn about(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join("run.json")).unwrap()).unwrap()
}

/// No client of the drill has a session, and no topic of its has a retained message.
async fn assert_nothing_is_left(system: &System, about: &Value) {
    let (tag, clients) = (about["tag"].as_str().unwrap(), about["clients"].as_u64().unwrap());
    assert!(clients > 0);
    for id in 0..clients {
        let client = raw::client(&format!("drill-{tag}-{id}"), false);
        let (client, is_present) = Raw::connect(system.mqtt(0), Version::V5, &client).await;
        assert!(!is_present, "client {id} has a session");
        client.disconnect().await;
    }
    let mut witness = system.connect(1, Version::V5, "witness").await;
    witness.subscribe("drill/#", 1).await;
    system.publish_numbers(2, "drill/marker", 1, 7..8).await;
    let first = witness.expect_publish().await;
    assert_eq!(first.topic, "drill/marker", "a retained message was left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_kills_pauses_and_heals_and_leaves_nothing_behind() {
    let mut system = three_supervised();
    let mut drill = start(&system, &["--nemesis", "kill,pause,partition", "--time", "15", "--yes"]);
    let (status, started) = to_the_end(&mut system, &mut drill);
    let said = said(&system);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("Pass\npass: ") && said.contains("longest without an acknowledgement"), "{said}");
    assert!(said.contains("partition: NOT INSTALLED: no --partition and --heal"), "{said}");
    let about = about(&out(&system));
    assert_eq!(about["outcome"], "Pass");
    let faults = |name: &str| about["faults"][name].as_u64().unwrap_or(0);
    assert!(faults("kill") > 0 && faults("pause") > 0 && faults("partition") == 0, "{about}");
    assert!(about["figures"]["published"].as_u64().unwrap() > 100, "{about}");
    assert!(started > 0, "nothing was killed: {said}");
    assert!(!out(&system).join("undo.sh").exists());
    system.wait_whole();
    assert_nothing_is_left(&system, &about).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_is_told_to_end_heals_first_and_gives_no_pass() {
    let mut system = three_supervised();
    let mut drill = start(&system, &["--nemesis", "pause", "--time", "300", "--workload", "queue", "--yes"]);
    let stands = wait_for("a fault that stands", RECOVERY, || {
        fs::read_to_string(out(&system).join("undo.sh")).map_err(|e| e.to_string())
    });
    assert!(stands.unwrap().starts_with("kill -CONT "), "{}", said(&system));
    kill_process(Pid::from_child(&drill), Signal::TERM).unwrap();
    let (status, _) = to_the_end(&mut system, &mut drill);
    let said = said(&system);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("unknown: the drill was ended early by a signal"), "{said}");
    assert!(!out(&system).join("undo.sh").exists());
    system.wait_whole();
    assert_nothing_is_left(&system, &about(&out(&system))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_touches_nothing_and_a_cluster_that_is_not_whole_is_left_alone() {
    let mut system = three_supervised();
    let touched = system.dir().join("touched");
    let touch = format!("touch {} # {{node}} {{host}} {{peers}}", touched.display());
    let partition = ["--partition", touch.as_str(), "--heal", touch.as_str()];
    let pids: Vec<_> = system.cluster.nodes.iter().map(|node| node.pid()).collect();
    let sockets = || (0..3).map(|place| system.metric(place, "quorate_mqtt_accepted_sockets_total")).sum::<u64>();
    let before = sockets();
    let plan = drill(&system, &partition).output().unwrap();
    let words = text(&plan);
    assert_eq!(plan.status.code(), Some(0), "{words}");
    assert!(words.contains("3 voters; at most 1 harmed at a time"), "{words}");
    assert!(words.contains("touched # n1 127.0.0.1 127.0.0.1,127.0.0.1`"), "{words}");
    assert!(words.contains("nothing was done; say --yes to do it"), "{words}");
    assert_eq!(sockets(), before, "no client has connected");
    assert!(!touched.exists() && !out(&system).exists());
    assert_eq!(system.cluster.nodes.iter().map(|node| node.pid()).collect::<Vec<_>>(), pids);
    assert_eq!(supervise(&mut system), 0, "a node has ended");

    let mut with_yes = partition.to_vec();
    with_yes.push("--yes");
    fs::create_dir(out(&system)).unwrap();
    fs::write(out(&system).join("undo.sh"), "true\n").unwrap();
    let refused = drill(&system, &with_yes).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(text(&refused).contains("an earlier drill was killed before it healed"), "{}", text(&refused));
    fs::remove_dir_all(out(&system)).unwrap();

    system.kill(2);
    let refused = drill(&system, &with_yes).output().unwrap();
    let words = text(&refused);
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(words.contains("the cluster is not whole: n3: ") && words.contains("nothing was done"), "{words}");
    assert!(!touched.exists() && !out(&system).exists());
}
