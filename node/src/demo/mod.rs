//! `quorate demo`: three real nodes, real load, `kill -9`, and a verdict that anybody can check.
//!
//! It starts three processes of this binary, runs clients with persistent sessions over all of them, kills
//! the leader while every phase of QoS 2 has something in flight, restarts it, kills all three at once,
//! restarts them, and judges what the clients saw ([`checker`]). It owns the processes and a temporary
//! folder, and uses nothing of a node but its sockets.

pub mod checker;
pub mod load;
pub mod nodes;
pub mod progress;
pub mod report;

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use quorate_http_admin::{NodeState, Role};
use tokio::time::{Instant, sleep};

use crate::cli::Failure;
use crate::client::Phases;
use checker::{Verdict, check};
use load::{Load, read};
use nodes::{Node, Ports, wait_for};
use progress::Progress;
use report::{Timings, is_populated, phases_text, verdict_table};

/// How many nodes.
const NODES: u16 = 3;
/// Three nodes on a slow disk are three voters by then.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Clients are served again by then, or never.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to look for a moment at which every phase has something in it.
const POPULATED_TIMEOUT: Duration = Duration::from_secs(30);
/// Load before, between and after the kills.
const STEADY: Duration = Duration::from_secs(3);
/// After the last expected delivery: time for one too many to show itself.
const QUIET: Duration = Duration::from_millis(1_000);
/// Nodes stop gracefully by then.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks at the load.
const POLL: Duration = Duration::from_millis(1);
/// Between two updates of the progress.
const PROGRESS_POLL: Duration = Duration::from_millis(100);

/// `quorate demo …`
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// End after the verdict: 0 when every promise was kept, else 1
    #[arg(long)]
    once: bool,
    /// Node i (from 1) on ports N+i (MQTT), N+10+i (peer) and N+20+i (admin) [1882+i, 7400+i, 7480+i]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65_500))]
    base_port: Option<u16>,
    /// Messages a second of each of the six publishers
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
}

/// Runs the demo.
///
/// # Errors
/// When a promise was broken, or it could not run.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("quorate-demo-").tempdir().map_err(|error| {
        Failure::new(format!("cannot make a temporary folder: {error}\n  name another place with TMPDIR"))
    })?;
    let mut nodes = prepare(&args, dir.path())?;
    let progress = Progress::new();
    let result = tokio::select! {
        result = perform(&args, &mut nodes, dir.path(), &progress) => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted before the verdict")),
    };
    progress.finish();
    if result.is_ok() && !args.once {
        stay_up(&nodes, &progress).await;
    }
    for node in &mut nodes {
        node.ask_to_stop();
    }
    for node in &mut nodes {
        node.stopped(STOP_TIMEOUT).await;
    }
    if let Err(failure) = result {
        let kept = dir.keep();
        return Err(Failure::new(format!("{}\n  data and logs are kept in {}", failure.message(), kept.display())));
    }
    Ok(())
}

fn prepare(args: &DemoArgs, dir: &Path) -> Result<Vec<Node>, Failure> {
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        let ports = Ports::of(number, args.base_port);
        ports.check(number.into())?;
        let join = (number > 1).then(|| format!("127.0.0.1:{}", Ports::of(1, args.base_port).admin));
        nodes.push(Node::new(number.into(), ports, dir, join)?);
    }
    Ok(nodes)
}

async fn perform(args: &DemoArgs, nodes: &mut [Node], dir: &Path, progress: &Progress) -> Result<(), Failure> {
    progress.print("Quorate: three nodes on this machine, each acknowledged message fsynced on two of them");
    for node in nodes.iter() {
        progress.print(&format!("  node {}   MQTT mqtt://{}   admin {}/", node.number, node.mqtt(), node.admin()));
    }
    progress.print(&format!("  data and logs in {}", dir.display()));
    start_cluster(nodes, progress).await?;

    let mut load = Load::new(nodes.iter().map(Node::mqtt).collect());
    let (verdict, timings, replicas_agree) = drive(args, nodes, &mut load, progress).await?;
    progress.finish();
    let subscribers = load.clients.iter().filter(|client| client.publishes.is_none()).count();
    progress.print(&verdict_table(&verdict, subscribers, &timings, replicas_agree));
    if !verdict.is_good() || replicas_agree == Some(false) {
        return Err(Failure::new("a promise was broken: see the table"));
    }
    // What was not seen is not proved.
    if verdict.at_least_once.acknowledged == 0 || verdict.exactly_once.acknowledged == 0 {
        return Err(Failure::new("nothing is proved: no message was acknowledged"));
    }
    if replicas_agree.is_none() {
        return Err(Failure::new("nothing is proved: the nodes' rows could not be compared at one applied index"));
    }
    progress.print("Every promise kept: nothing acknowledged was lost, QoS 2 came exactly once, order held.");
    load.forget_sessions().await;
    Ok(())
}

/// Leaves the cluster to the visitor until Ctrl-C.
async fn stay_up(nodes: &[Node], progress: &Progress) {
    let (mqtt, admin) = nodes.first().map(|node| (node.mqtt(), node.admin().to_owned())).unwrap_or_default();
    progress.print(&format!(
        "\nThe cluster stays up until Ctrl-C. Try\n  quorate sub --url mqtt://{mqtt} -t 'hello/#' -q 2 -v\n  \
         quorate pub --url mqtt://{mqtt} -t hello/world -m hi -q 2\n  quorate cluster status --admin {admin}"
    ));
    // Without a handler for it, Ctrl-C ends the process anyway.
    let _ = tokio::signal::ctrl_c().await;
    progress.print("stopping");
}

/// Starts the first node, then the others, and waits for three voters.
async fn start_cluster(nodes: &mut [Node], progress: &Progress) -> Result<(), Failure> {
    if let Some(first) = nodes.first_mut() {
        first.start()?;
    }
    wait_for(nodes, START_TIMEOUT, "node 1 is ready", async |nodes| nodes.first()?.is_ready().await.then_some(()))
        .await?;
    for node in nodes.iter_mut().skip(1) {
        node.start()?;
    }
    let leader = wait_for(nodes, START_TIMEOUT, "all nodes are voters and ready", all_ready).await?;
    progress.step(&format!("three voters; node {leader} leads"));
    Ok(())
}

/// The leader's number here (its id may be another: they are given in the order of joining), once every node is ready
/// and sees three voters that are up.
async fn all_ready(nodes: &[Node]) -> Option<usize> {
    let mut leader = None;
    for node in nodes {
        if !node.is_ready().await {
            return None;
        }
        let view = node.view().await.ok()?;
        let members = view.nodes.iter().filter(|member| member.role != Role::Learner && member.state == NodeState::Up);
        if members.count() != usize::from(NODES) {
            return None;
        }
        leader = view.leader.and_then(|id| view.node(id)).map(|member| member.name.clone());
    }
    nodes.iter().find(|node| Some(node.name()) == leader).map(|node| node.number)
}

/// The play: load, first kill, second kill, rest, judgement.
async fn drive(
    args: &DemoArgs,
    nodes: &mut [Node],
    load: &mut Load,
    progress: &Progress,
) -> Result<(Verdict, Timings, Option<bool>), Failure> {
    load.subscribe();
    watch(load, progress, RECOVERY_TIMEOUT, "subscribing", |load| {
        load.clients.iter().all(|client| client.publishes.is_some() || read(&client.record).is_subscribed)
    })
    .await?;
    load.publish(args.rate);
    progress.step(&format!(
        "load: 6 publishers and 3 subscribers, QoS 1 and 2, 3.1.1 and 5.0, {} messages a second",
        6 * args.rate
    ));
    steady(load, progress, "all nodes up").await;

    let mut timings = Timings::default();
    kill_leader(nodes, load, progress, &mut timings).await?;
    kill_all(nodes, load, progress, &mut timings).await?;

    load.stop_publishing();
    progress.step("publishers stop; what is in flight comes to its end");
    // What is missing after this time is judged as lost, not waited for.
    let judged_at = Cell::new(None);
    let _ = watch(load, progress, RECOVERY_TIMEOUT, "coming to rest", |load| is_at_rest(load, &judged_at)).await;
    sleep(QUIET).await;
    let verdict = check(&load.history());
    let replicas_agree = replicas_agree(nodes).await;
    Ok((verdict, timings, replicas_agree))
}

/// Kills the leader in mid-flight, waits until its clients are served elsewhere, restarts it.
async fn kill_leader(
    nodes: &mut [Node],
    load: &Load,
    progress: &Progress,
    timings: &mut Timings,
) -> Result<(), Failure> {
    let leader = wait_for(nodes, RECOVERY_TIMEOUT, "there is a leader", all_ready).await?;
    let victim = leader.saturating_sub(1);
    let phases = populated(load, Some(victim)).await?;
    let pid = nodes.get(victim).and_then(Node::pid).unwrap_or_default();
    let Some(node) = nodes.get_mut(victim) else {
        return Err(Failure::new(format!("node {leader} is not one of the demo's")));
    };
    let killed = Instant::now();
    node.kill()?;
    node.gone().await;
    progress.step(&format!("SIGKILL to node {leader}, the leader (pid {pid}), with its clients in mid-flight"));
    progress.print(&phases_text(&phases));
    watch(load, progress, RECOVERY_TIMEOUT, "the leader is dead", |load| {
        served_since(load, killed, Some(victim)).is_some()
    })
    .await?;
    let served = served_since(load, killed, Some(victim)).unwrap_or_default();
    timings.clients_served = Some(served);
    progress.step(&format!("its clients were served by other nodes {:.2} s after its death", served.as_secs_f64()));
    steady(load, progress, "two nodes up").await;
    timings.survivor_pause = survivor_pause(load, killed, victim);
    if let Some(node) = nodes.get_mut(victim) {
        node.start()?;
    }
    let leads = wait_for(nodes, RECOVERY_TIMEOUT, "the killed node is back", all_ready).await?;
    progress.step(&format!("node {leader} is back and up to date; node {leads} leads"));
    steady(load, progress, "all nodes up again").await;
    Ok(())
}

/// Kills all nodes at once and restarts them.
async fn kill_all(nodes: &mut [Node], load: &Load, progress: &Progress, timings: &mut Timings) -> Result<(), Failure> {
    let phases = populated(load, None).await?;
    let killed = Instant::now();
    for node in nodes.iter_mut() {
        node.kill()?;
    }
    for node in nodes.iter_mut() {
        node.gone().await;
    }
    progress.step("SIGKILL to all three nodes at once");
    progress.print(&phases_text(&phases));
    for node in nodes.iter_mut() {
        node.start()?;
    }
    wait_for(nodes, RECOVERY_TIMEOUT, "the cluster is back", all_ready).await?;
    watch(load, progress, RECOVERY_TIMEOUT, "all nodes were dead", |load| served_since(load, killed, None).is_some())
        .await?;
    let served = served_since(load, killed, None).unwrap_or_default();
    timings.all_served = Some(served);
    progress.step(&format!("restarted; all clients were served again {:.2} s after the kill", served.as_secs_f64()));
    steady(load, progress, "after the restart").await;
    Ok(())
}

fn counts(load: &Load) -> (u64, u64) {
    load.clients.iter().fold((0, 0), |(acknowledged, delivered), client| {
        let record = read(&client.record);
        (acknowledged + record.acknowledged_at.len() as u64, delivered + record.deliveries.len() as u64)
    })
}

/// Lets the load run for a while.
async fn steady(load: &Load, progress: &Progress, what: &str) {
    let until = Instant::now() + STEADY;
    while Instant::now() < until {
        let (acknowledged, delivered) = counts(load);
        progress.counts(acknowledged, delivered, what);
        sleep(PROGRESS_POLL).await;
    }
}

/// Waits for a condition of the load.
async fn watch(
    load: &Load,
    progress: &Progress,
    timeout: Duration,
    what: &str,
    condition: impl Fn(&Load) -> bool,
) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    while !condition(load) {
        if Instant::now() > deadline {
            let mut text = format!("clients are not served after {} s ({what})", timeout.as_secs());
            for client in &load.clients {
                let record = read(&client.record);
                let node = record.node().map_or_else(|| "nowhere".to_owned(), |node| format!("at node {}", node + 1));
                text.push_str(&format!(
                    "\n  {} {node}: {}",
                    client.name,
                    record.last_error.as_deref().unwrap_or("no error")
                ));
            }
            return Err(Failure::new(text));
        }
        let (acknowledged, delivered) = counts(load);
        progress.counts(acknowledged, delivered, what);
        sleep(PROGRESS_POLL / 10).await;
    }
    Ok(())
}

/// Exchanges of the clients of one node, or of all.
fn phases(load: &Load, node: Option<usize>) -> Phases {
    let mut sum = Phases::default();
    for client in &load.clients {
        let record = read(&client.record);
        if record.node().is_some() && (node.is_none() || record.node() == node) {
            sum += record.phases;
        }
    }
    sum
}

/// Waits for a moment at which every phase has something in it; answers with what is in flight then.
async fn populated(load: &Load, node: Option<usize>) -> Result<Phases, Failure> {
    let deadline = Instant::now() + POPULATED_TIMEOUT;
    loop {
        let phases = phases(load, node);
        if is_populated(&phases) {
            return Ok(phases);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "nothing is proved by this kill: at no moment of {} s was every phase of an exchange in flight; try a \
                 higher --rate\n{}",
                POPULATED_TIMEOUT.as_secs(),
                phases_text(&phases)
            )));
        }
        sleep(POLL).await;
    }
}

/// How long after `killed` the last client of `node` (or of all) made progress on a new connection; `None`
/// while one has not.
fn served_since(load: &Load, killed: Instant, node: Option<usize>) -> Option<Duration> {
    let mut longest = Duration::ZERO;
    for client in &load.clients {
        let record = read(&client.record);
        // The connection that the kill broke.
        let Some(broken) = record.connections.iter().position(|connection| {
            connection.closed.is_none_or(|closed| closed >= killed) && node.is_none_or(|node| connection.node == node)
        }) else {
            continue;
        };
        if node.is_some()
            && broken > 0
            && record.connections.get(broken - 1).is_some_and(|before| before.closed >= Some(killed))
        {
            // It came to this node only after the kill.
            continue;
        }
        let first = record.connections.iter().skip(broken + 1).find_map(|connection| connection.first_progress)?;
        longest = longest.max(first.saturating_duration_since(killed));
    }
    Some(longest)
}

/// Longest time between two acknowledgements after the kill, over the publishers of the other nodes.
fn survivor_pause(load: &Load, killed: Instant, victim: usize) -> Option<Duration> {
    let mut longest = None;
    for client in load.clients.iter().filter(|client| client.publishes.is_some()) {
        let record = read(&client.record);
        let was_on_victim = record
            .connections
            .iter()
            .any(|connection| connection.node == victim && connection.closed.is_none_or(|closed| closed >= killed));
        if was_on_victim {
            continue;
        }
        let first = record.acknowledged_at.partition_point(|at| *at < killed).saturating_sub(1);
        let after = record.acknowledged_at.get(first..).unwrap_or_default();
        let gaps = after.windows(2).filter_map(|pair| Some(*pair.last()? - *pair.first()?));
        longest = longest.max(gaps.max());
    }
    longest
}

/// Every publish is completed, every acknowledged message has come, and no exchange is open.
///
/// Judging costs more than looking: it is done once for each number of deliveries.
fn is_at_rest(load: &Load, judged_at: &Cell<Option<u64>>) -> bool {
    let is_quiet = load.clients.iter().all(|client| {
        let record = read(&client.record);
        record.unacknowledged == 0 && record.phases == Phases::default()
    });
    let (_, delivered) = counts(load);
    if !is_quiet || judged_at.replace(Some(delivered)) == Some(delivered) {
        return false;
    }
    let verdict = check(&load.history());
    verdict.at_least_once.lost == 0 && verdict.exactly_once.lost == 0
}

/// Whether all nodes have the same rows; `None` when they could not be compared at one index.
async fn replicas_agree(nodes: &[Node]) -> Option<bool> {
    let deadline = Instant::now() + POPULATED_TIMEOUT;
    while Instant::now() < deadline {
        let mut digests = Vec::new();
        for node in nodes {
            digests.extend(node.digest().await.ok());
        }
        let indices: Vec<u64> = digests.iter().map(|digest| digest.applied).collect();
        if digests.len() == nodes.len() && indices.windows(2).all(|pair| pair.first() == pair.last()) {
            let rows: Vec<String> = digests.into_iter().map(|digest| digest.digest).collect();
            return Some(rows.windows(2).all(|pair| pair.first() == pair.last()));
        }
        sleep(PROGRESS_POLL).await;
    }
    None
}
