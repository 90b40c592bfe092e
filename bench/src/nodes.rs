//! Nodes that this process started, looked at and started again without standing in the way of the load: whatever
//! waits is polled, and whatever blocks is done by another thread.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quorate_jepsen::harness::{ClusterView, HarnessError, NodeProcess, Start, http};

use crate::BenchError;
use crate::fleet::{FORM_MAX, Fleet};

/// How often a wait looks again.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// How long a node may take to answer one look.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Looks until `look` finds what it wants; its error is what it found instead.
pub(crate) async fn wait_for<T, F>(what: &str, bound: Duration, mut look: impl FnMut() -> F) -> Result<T, BenchError>
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + bound;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(last) if Instant::now() >= end => {
                return Err(BenchError::NotWithin { what: what.to_owned(), bound, last });
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn aside<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, HarnessError> + Send + 'static,
) -> Result<T, HarnessError> {
    let failed = |e: tokio::task::JoinError| HarnessError::Answer { what: "a thread".into(), answer: e.to_string() };
    tokio::task::spawn_blocking(ask).await.map_err(failed)?
}

/// What one node says of the cluster.
pub(crate) async fn view(admin: SocketAddr) -> Result<ClusterView, String> {
    aside(move || ClusterView::within(admin, ANSWER_MAX)).await.map_err(|e| e.to_string())
}

/// Whether one node welcomes clients; else what it says.
async fn is_ready(admin: SocketAddr) -> Result<(), String> {
    let answer = aside(move || http::request_within(admin, "GET", "/health/ready", None, ANSWER_MAX)).await;
    let answer = answer.map_err(|e| e.to_string())?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{} {}", answer.status, answer.body)) }
}

/// Place of the leader.
pub(crate) async fn leader(fleet: &mut Fleet) -> Result<usize, BenchError> {
    let nodes: Vec<(String, SocketAddr)> =
        fleet.own()?.nodes.iter().filter(|n| n.pid().is_some()).map(|n| (n.name.clone(), n.at.admin)).collect();
    let Some((_, admin)) = nodes.first().cloned() else { return Err(BenchError::NotOurs) };
    let name = wait_for("a leader", FORM_MAX, || async move {
        let view = view(admin).await?;
        view.leader_name().map(str::to_owned).ok_or_else(|| format!("{view:?}"))
    });
    let name = name.await?;
    let place = fleet.own()?.nodes.iter().position(|n| n.name == name);
    place.ok_or(BenchError::Stuck("the leader is none of the nodes that were started"))
}

/// Place of a follower, counted from the leader, so that the others are where clients may be.
pub(crate) async fn follower(fleet: &mut Fleet) -> Result<usize, BenchError> {
    let leader = leader(fleet).await?;
    match fleet.mqtt.len() {
        0 | 1 => Err(BenchError::Pointless("a single node has no follower to be killed: start more by --nodes")),
        nodes => Ok((leader + nodes - 1) % nodes),
    }
}

/// Ends a node by SIGKILL.
pub(crate) fn kill(fleet: &mut Fleet, place: usize) -> Result<(), BenchError> {
    Ok(fleet.own()?.node_mut(place)?.kill()?)
}

/// Starts a node on its data again; when, and where its administration is.
pub(crate) fn start(fleet: &mut Fleet, place: usize) -> Result<(Instant, SocketAddr), BenchError> {
    let node: &mut NodeProcess = fleet.own()?.node_mut(place)?;
    let started = Instant::now();
    node.start(Start::Again)?;
    let admin = node.at.admin;
    fleet.refresh();
    Ok((started, admin))
}

/// Waits until a node welcomes clients.
pub(crate) async fn ready(admin: SocketAddr, bound: Duration) -> Result<(), BenchError> {
    wait_for("the node that was started again is ready", bound, || is_ready(admin)).await
}
