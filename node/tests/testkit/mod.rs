//! What the system tests share: a cluster of real processes, clients on it, and a verdict over what they saw.
//!
//! Clusters run one at a time, so that the bounds of the tests mean something. Each has a folder and ports of its own.

#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub(crate) mod load;
pub(crate) mod publisher;
pub(crate) mod raw;
pub(crate) mod subscriber;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_jepsen::check::check;
use quorate_jepsen::harness::{Cluster, ClusterOptions, ClusterView, HarnessError, Link, Relay, http, wait_for};
use quorate_jepsen::history::History;
use quorate_jepsen::wire::Version;
use tempfile::TempDir;

use raw::Raw;

/// Longest wait for anything that takes a healthy cluster well under a second.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Longest wait for elections, restarts, joins.
pub(crate) const RECOVERY: Duration = Duration::from_secs(90);

/// Settings under which a node that is away for seconds under load needs a snapshot.
pub(crate) const SHORT_LOG: [(&str, &str); 2] = [("snapshot_log_bytes", "1048576"), ("log_keep_bytes", "65536")];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A cluster for one test.
pub(crate) struct System {
    pub(crate) cluster: Cluster,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// Three nodes with the defaults.
pub(crate) fn three_nodes() -> System {
    nodes(3, &[])
}

/// Three nodes with the defaults, each on a machine of its own, whose links can be cut.
pub(crate) fn three_machines() -> System {
    start(3, &[], true, None)
}

/// The same, with these settings.
pub(crate) fn three_machines_with(settings: &[(&str, &str)]) -> System {
    start(3, settings, true, None)
}

/// `count` nodes with these settings (`snapshot_log_bytes` for `QUORATE_SNAPSHOT_LOG_BYTES`).
pub(crate) fn nodes(count: usize, settings: &[(&str, &str)]) -> System {
    start(count, settings, false, None)
}

/// The same, each started by a shell behind `line`.
pub(crate) fn nodes_behind(line: &str, count: usize, settings: &[(&str, &str)]) -> System {
    start(count, settings, false, Some(line))
}

fn start(count: usize, settings: &[(&str, &str)], machines: bool, behind: Option<&str>) -> System {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = TempDir::with_prefix("quorate-system-").unwrap();
    let mut binary = Path::new(env!("CARGO_BIN_EXE_quorate")).to_owned();
    if let Some(line) = behind {
        let script = format!("#!/bin/sh\n{line}\nexec '{}' \"$@\"\n", binary.display());
        binary = dir.path().join("start.sh");
        std::fs::write(&binary, script).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let options =
        ClusterOptions { binary, dir: dir.path().to_owned(), nodes: count, env: environment(settings), machines };
    let cluster = Cluster::start(options).unwrap_or_else(|e| panic!("the cluster does not form: {e}"));
    System { cluster, dir, _turn: turn }
}

/// Settings as environment variables.
pub(crate) fn environment(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let variable = |(key, value): &(&str, &str)| (format!("QUORATE_{}", key.to_uppercase()), (*value).to_owned());
    settings.iter().map(variable).collect()
}

impl System {
    /// MQTT address of a node.
    pub(crate) fn mqtt(&self, place: usize) -> SocketAddr {
        self.cluster.nodes[place].at.mqtt
    }

    /// Administration address of a node.
    pub(crate) fn admin(&self, place: usize) -> SocketAddr {
        self.cluster.nodes[place].at.admin
    }

    /// A load balancer of a client's own over the nodes that there are now, beginning with `first`.
    pub(crate) fn relay(&self, first: usize) -> Relay {
        self.ok(Relay::start(self.cluster.nodes.iter().map(|n| n.at.mqtt).collect(), first))
    }

    /// The same to another port of machines.
    pub(crate) fn relay_to(&self, port: u16, first: usize) -> Relay {
        self.ok(Relay::start(self.cluster.nodes.iter().map(|n| (n.at.mqtt.ip(), port).into()).collect(), first))
    }

    /// Place of the leader.
    pub(crate) fn leader(&mut self) -> usize {
        let leader = self.cluster.wait_leader(RECOVERY);
        self.ok(leader)
    }

    /// Place of a node that does not lead.
    pub(crate) fn follower(&mut self) -> usize {
        let leader = self.leader();
        (0..self.cluster.nodes.len()).find(|place| *place != leader).unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, place: usize) {
        let killed = self.cluster.nodes[place].kill();
        self.ok(killed);
    }

    /// Starts a node again on its data directory.
    pub(crate) fn restart(&mut self, place: usize) {
        let started = self.cluster.nodes[place].start(quorate_jepsen::harness::Start::Again);
        self.ok(started);
    }

    /// SIGSTOP.
    pub(crate) fn freeze(&mut self, place: usize) {
        let frozen = self.cluster.nodes[place].freeze();
        self.ok(frozen);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self, place: usize) {
        let thawed = self.cluster.nodes[place].thaw();
        self.ok(thawed);
    }

    /// Nothing comes through these links of a node any more.
    pub(crate) fn cut(&self, place: usize, links: &[Link]) {
        links.iter().for_each(|link| self.ok(self.cluster.cut(place, *link)));
    }

    /// Ends a cut.
    pub(crate) fn heal(&self, place: usize, links: &[Link]) {
        links.iter().for_each(|link| self.ok(self.cluster.heal(place, *link)));
    }

    /// Waits until the nodes at `places` agree on a leader among them, and the others count for nothing.
    pub(crate) fn wait_leader_among(&mut self, places: &[usize]) -> usize {
        let admins: Vec<_> = places.iter().map(|place| (*place, self.admin(*place))).collect();
        let names: Vec<_> = places.iter().map(|place| self.cluster.nodes[*place].name.clone()).collect();
        let leader = wait_for("a leader on this side", RECOVERY, || {
            let mut leaders = Vec::new();
            for (_, admin) in &admins {
                let view = ClusterView::of(*admin).map_err(|e| e.to_string())?;
                leaders.push(view.leader_name().map(str::to_owned));
            }
            let first = leaders.first().cloned().flatten();
            let place = names.iter().position(|name| Some(name) == first.as_ref());
            match place {
                Some(place) if leaders.iter().all(|leader| *leader == first) => Ok(places[place]),
                _ => Err(format!("{leaders:?}")),
            }
        });
        self.ok(leader)
    }

    /// Waits until all nodes vote, are up, and welcome clients.
    pub(crate) fn wait_whole(&mut self) {
        let voters = self.cluster.nodes.len();
        let whole = self.cluster.wait_voters(voters, RECOVERY);
        self.ok(whole);
        let ready = self.cluster.wait_ready(RECOVERY);
        self.ok(ready);
    }

    /// One value of a node's metrics, without labels.
    pub(crate) fn metric(&self, place: usize, name: &str) -> u64 {
        let answer = http::get(self.admin(place), "/metrics");
        let text = self.ok(answer).body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
    }

    /// Waits until a node has taken `commands` of clients that are not committed.
    pub(crate) async fn wait_uncommitted(&self, place: usize, commands: u64) {
        let what = format!("{commands} commands wait for their commit");
        eventually(&what, SOON, || {
            let waiting = self.metric(place, "quorate_proposals_waiting_commands");
            let in_flight = self.metric(place, "quorate_proposals_batches_in_flight");
            (waiting + in_flight >= commands).then_some(())
        })
        .await;
    }

    /// Waits until the awake nodes take `place` for lost.
    pub(crate) fn wait_lost(&mut self, place: usize) {
        let name = self.cluster.nodes[place].name.clone();
        let what = format!("{name} is declared lost");
        let lost = self.cluster.wait_view(&what, RECOVERY, |v| v.node(&name).is_some_and(|n| n.state == "lost"));
        self.ok(lost);
    }

    /// Node id of a node.
    pub(crate) fn id(&mut self, place: usize) -> u64 {
        let name = self.cluster.nodes[place].name.clone();
        let view = self.cluster.wait_view("a view with the node", SOON, |v| v.node(&name).is_some());
        self.ok(view).node(&name).unwrap().id
    }

    /// All awake nodes have the same rows, by a full scan.
    pub(crate) fn assert_same_digest(&mut self) {
        let digest = self.cluster.wait_same_digest(RECOVERY);
        self.ok(digest);
    }

    /// Every promise was kept.
    pub(crate) fn assert_clean(&self, history: &History) {
        let verdict = check(history);
        println!("verdict: {verdict}");
        assert!(verdict.is_clean(), "{verdict}");
    }

    /// How often a node has installed a snapshot, by its log.
    pub(crate) fn snapshots_installed(&self, place: usize) -> usize {
        self.cluster.nodes[place].log().matches("rows installed from a snapshot").count()
    }

    /// A client of our own, connected to a node; a new session that outlives the connection. (On 3.1.1 a clean one
    /// would not: there the identifier must be new.)
    pub(crate) async fn connect(&self, place: usize, version: Version, id: &str) -> Raw {
        Raw::connect(self.mqtt(place), version, &raw::client(id, version == Version::V5)).await.0
    }

    /// A client of our own that resumes its session on a node.
    pub(crate) async fn resume(&self, place: usize, version: Version, id: &str) -> Raw {
        let (client, is_present) = Raw::connect(self.mqtt(place), version, &raw::client(id, false)).await;
        assert!(is_present, "session of {id} is gone");
        client
    }

    /// Publishes numbers at a node, one after the other, each with its whole handshake.
    pub(crate) async fn publish_numbers(&self, place: usize, topic: &str, qos: u8, numbers: std::ops::Range<u32>) {
        let mut publisher = self.connect(place, Version::V5, "publisher").await;
        for number in numbers {
            publisher.publish_through(topic, qos, &number.to_string()).await;
        }
        publisher.disconnect().await;
    }

    /// Where data and logs are.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn ok<T>(&self, result: Result<T, HarnessError>) -> T {
        result.unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.cluster.logs());
        }
    }
}

/// Looks every few milliseconds until `look` has something; other tasks go on meanwhile.
pub(crate) async fn eventually<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let mut turns = tokio::time::interval(Duration::from_millis(20));
    let looking = async {
        loop {
            turns.tick().await;
            if let Some(found) = look() {
                return found;
            }
        }
    };
    tokio::time::timeout(bound, looking).await.unwrap_or_else(|_| panic!("not within {bound:?}: {what}"))
}

/// Log index of the newest snapshot in a node's `snapshots` folder; 0 when there is none.
pub(crate) fn newest_snapshot(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let index = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.split_once('-')?.0.parse::<u64>().ok()
    };
    entries.filter_map(index).max().unwrap_or(0)
}
