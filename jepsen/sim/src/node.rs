//! Nodes: each life of one is a tokio runtime with a whole `quorate_raft::Cluster` in it. To kill the process is to drop
//! the runtime; to stop it is not to run it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_raft::{Cluster, Execution, FatalHook, LogRetention, RaftOptions, Start, StartError};
use quorate_store::command::NodeInfo;
use quorate_store::rows::{RowsEngine, RowsOptions};
use tokio::runtime::{Builder, Runtime};

use crate::client;
use crate::clock;
use crate::disk::{SimDisk, Unsynced};
use crate::front::{Effects, Front};
use crate::invariants;
use crate::net::{self, Host, Transport};
use crate::world::{self, after, below, between, note, one_in, one_of};

/// After a start that failed because nobody answered.
const START_AGAIN: Duration = Duration::from_millis(700);
/// Between two looks at a front end's clocks.
const TICK: Duration = Duration::from_millis(500);

struct Node {
    host: Host,
    dir: PathBuf,
    disk: SimDisk,
    retention: LogRetention,
    /// Rows are flushed once in so many ticks, as a full memtable is; none: only for snapshots.
    flushes_one_in: Option<u32>,
    /// Counts lives.
    life: u64,
    runtime: Option<Runtime>,
    front: Option<Front>,
    next_timer_ns: Option<u64>,
    is_stopped: bool,
    /// What came while it was stopped, in order.
    backlog: VecDeque<Input>,
    wall_skew_ms: i64,
}

type Input = Box<dyn FnOnce(&mut Front)>;

thread_local! {
    static NODES: RefCell<BTreeMap<Host, Node>> = const { RefCell::new(BTreeMap::new()) };
}

fn with<T>(host: Host, f: impl FnOnce(&mut Node) -> T) -> Option<T> {
    NODES.with_borrow_mut(|nodes| nodes.get_mut(&host).map(f))
}

/// So many hosts with empty disks, off.
pub(crate) fn begin(count: u64, dir: &Path, retention: LogRetention, unsynced: Unsynced) {
    let flushes_one_in = one_in(2).then(|| 1 + below(4) as u32);
    let node = |host| Node {
        host,
        dir: dir.join(host.to_string()),
        disk: SimDisk::new(host, unsynced),
        retention,
        flushes_one_in,
        life: 0,
        runtime: None,
        front: None,
        next_timer_ns: None,
        is_stopped: false,
        backlog: VecDeque::new(),
        wall_skew_ms: 0,
    };
    NODES.set((1..=count).map(|host| (host, node(host))).collect());
}

/// All hosts.
pub(crate) fn hosts() -> Vec<Host> {
    NODES.with_borrow(|nodes| nodes.keys().copied().collect())
}

/// Hosts whose process runs, stopped or not.
pub(crate) fn running() -> Vec<Host> {
    NODES.with_borrow(|nodes| nodes.values().filter(|n| n.runtime.is_some()).map(|n| n.host).collect())
}

/// Which of its lives a host is in.
pub(crate) fn life(host: Host) -> u64 {
    with(host, |node| node.life).unwrap_or_default()
}

/// The disk of a host.
pub(crate) fn disk(host: Host) -> Option<SimDisk> {
    with(host, |node| node.disk.clone())
}

/// A front end to connect to; this one only if there is no other.
pub(crate) fn some_front(but_not: Option<Host>) -> Option<(Host, u64)> {
    let fronts: Vec<(Host, u64)> =
        NODES.with_borrow(|nodes| nodes.values().filter(|n| n.front.is_some()).map(|n| (n.host, n.life)).collect());
    let others: Vec<(Host, u64)> = fronts.iter().copied().filter(|(host, _)| Some(*host) != but_not).collect();
    one_of(if others.is_empty() { &fronts } else { &others })
}

/// Does something with a front end, if that life goes on. When its process is stopped, later.
pub(crate) fn with_front(host: Host, life: u64, f: impl FnOnce(&mut Front) + 'static) {
    let front = with(host, |node| {
        if node.life != life || node.runtime.is_none() {
            return None;
        }
        if node.is_stopped || !node.backlog.is_empty() {
            node.backlog.push_back(Box::new(f));
            return None;
        }
        Some(f)
    });
    if let Some(Some(f)) = front {
        enter(host, life, f);
    }
}

fn enter(host: Host, life: u64, f: impl FnOnce(&mut Front)) {
    let front = with(host, |node| {
        clock::set_wall_skew_ms(node.wall_skew_ms);
        node.front.take()
    });
    let Some(Some(mut front)) = front else { return };
    f(&mut front);
    with(host, |node| {
        if node.life == life {
            node.front = Some(front);
        }
    });
}

/// A node that went on takes what came meanwhile.
fn catch_up(host: Host) {
    while let Some((life, Some(input))) =
        with(host, |node| (node.life, node.backlog.pop_front().filter(|_| !node.is_stopped)))
    {
        enter(host, life, input);
    }
}

/// Looks at what a running node says of itself.
pub(crate) fn look<T>(host: Host, f: impl FnOnce(&Cluster) -> T) -> Option<T> {
    with(host, |node| node.front.as_ref().map(|front| f(front.cluster())))?
}

/// Switches a host on and starts its node.
pub(crate) fn start(host: Host) {
    let started = with(host, |node| {
        if node.runtime.is_some() {
            return None;
        }
        node.life += 1;
        node.is_stopped = false;
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let others: Vec<String> = hosts_but(host).into_iter().map(net::address_of).collect();
        let start = if host == 1 { Start::Bootstrap } else { Start::JoinPeers { peers: others, stays_learner: false } };
        let info = NodeInfo { name: format!("n{host}"), mqtt: format!("mqtt-{host}"), ..NodeInfo::default() };
        let mut options = RaftOptions::new(node.dir.clone(), net::address_of(host), info, start);
        options.transport = Arc::new(Transport(host));
        options.execution = Execution::InPlace;
        options.rows = RowsOptions { engine: RowsEngine::Plain, ..RowsOptions::default() };
        options.log = node.retention;
        let life = node.life;
        options.on_fatal = FatalHook(Arc::new(move |why| {
            invariants::violated("a node goes on", &format!("node {host}, life {life}, cannot: {why}"));
        }));
        let disk = node.disk.clone();
        let effects = Arc::new(Effects { host, life });
        let cluster: Arc<Mutex<Option<Result<Cluster, StartError>>>> = Arc::default();
        let made = cluster.clone();
        runtime.spawn(async move {
            let started = Cluster::start_with(options, effects, move |_, _, _| Ok(disk.open())).await;
            *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
            after(Duration::ZERO, move || is_up(host, life, &made));
        });
        node.runtime = Some(runtime);
        node.next_timer_ns = Some(clock::now_ns());
        Some(life)
    });
    if let Some(Some(life)) = started {
        note!("node {host} starts, life {life}");
        net::set_power(host, true);
    }
}

fn hosts_but(host: Host) -> Vec<Host> {
    // Called while the nodes are lent: hosts are counted from 1.
    (1..=3).filter(|other| *other != host).collect()
}

fn is_up(host: Host, life: u64, made: &Mutex<Option<Result<Cluster, StartError>>>) {
    let Some(started) = made.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    match started {
        Ok(cluster) => {
            let front = Front::new(host, life, cluster);
            with(host, |node| {
                if node.life == life && node.runtime.is_some() {
                    node.front = Some(front);
                }
            });
            note!("node {host} is up");
            with_front(host, life, Front::take_over_incarnation);
            tick(host, life);
        }
        Err(StartError::Join(error)) => {
            note!("node {host} is not admitted: {error}");
            kill(host, false);
            after(START_AGAIN, move || start(host));
        }
        Err(error) => invariants::violated("a node starts on its own files", &format!("node {host}: {error}")),
    }
}

fn tick(host: Host, life: u64) {
    let goes_on = with(host, |node| node.life == life && node.runtime.is_some());
    if goes_on == Some(true) {
        with_front(host, life, Front::tick);
        flush(host, life);
        after(TICK, move || tick(host, life));
    }
}

/// The rows' database flushes when it likes, also what stands in no synced log here.
fn flush(host: Host, life: u64) {
    let one_in = with(host, |node| node.flushes_one_in).flatten();
    if !one_in.is_some_and(world::one_in) {
        return;
    }
    after(between(Duration::ZERO, TICK), move || {
        with_front(host, life, move |front| {
            note!("node {host} flushes its rows");
            if let Err(e) = front.cluster().rows().flush() {
                invariants::violated("a node's rows can be written", &format!("node {host}: {e}"));
            }
        });
    });
}

/// The process dies; or the machine loses its power.
pub(crate) fn kill(host: Host, power: bool) {
    let gone = with(host, |node| {
        let runtime = node.runtime.take()?;
        node.next_timer_ns = None;
        node.is_stopped = false;
        node.backlog.clear();
        Some((runtime, node.front.take(), node.disk.clone()))
    });
    let Some(Some((runtime, front, disk))) = gone else { return };
    note!("node {host} {}", if power { "loses its power" } else { "is killed" });
    if power {
        net::set_power(host, false);
    }
    let links = front.as_ref().map(Front::links).unwrap_or_default();
    // A dead process's sockets are closed at once; a machine without power is silent.
    let (least, most) = if power { (1_000, 6_000) } else { (0, 30) };
    let delay = between(Duration::from_millis(least), Duration::from_millis(most));
    drop(runtime);
    drop(front);
    net::close_port(host);
    disk.lose(power);
    client::lose(links, delay);
}

/// SIGSTOP, SIGCONT.
pub(crate) fn set_stopped(host: Host, is_stopped: bool) {
    note!("node {host} {}", if is_stopped { "is stopped" } else { "goes on" });
    with(host, |node| node.is_stopped = is_stopped);
    if !is_stopped {
        after(Duration::ZERO, move || catch_up(host));
    }
}

/// The wall clock of a host is off by this.
pub(crate) fn set_wall_skew_ms(host: Host, ms: i64) {
    note!("node {host} has its wall clock off by {ms} ms");
    with(host, |node| node.wall_skew_ms = ms);
}

/// When a node has something to do by itself.
pub(crate) fn next_timer_ns() -> Option<u64> {
    NODES.with_borrow(|nodes| nodes.values().filter(|n| !n.is_stopped).filter_map(|n| n.next_timer_ns).min())
}

/// Runs the node of a host until it is idle.
pub(crate) fn run(host: Host) {
    let runtime = with(host, |node| {
        if node.is_stopped {
            return None;
        }
        node.runtime.take().map(|runtime| (runtime, node.life, node.wall_skew_ms))
    });
    let Some(Some((runtime, life, skew))) = runtime else { return };
    clock::set_wall_skew_ms(skew);
    let next = clock::run_until_idle(&runtime);
    let is_endless = next.is_err();
    with(host, |node| {
        if node.life == life {
            node.runtime = Some(runtime);
            node.next_timer_ns = next.unwrap_or_default();
        }
    });
    if is_endless {
        invariants::violated("a node comes to rest", &format!("node {host} is in an endless loop"));
    }
}
