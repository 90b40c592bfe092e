//! Another pair of clients: what somebody else sees while a queue fills or drains, or a node catches up.
//!
//! It has a thread of its own, or it would wait for the load generator's other clients and not for the broker.

use std::net::SocketAddr;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_jepsen::wire::Version;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::connection::end_session;
use crate::histogram::Quantiles;
use crate::shared::{Phase, Shared};
use crate::{BenchError, publisher, subscriber};

/// Longest wait for the pair to connect, and at the end for what is not acknowledged or delivered yet.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Where and how.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) publish_to: SocketAddr,
    pub(crate) subscribe_to: SocketAddr,
    pub(crate) version: Version,
    /// Publishes a second; none: one after the other, each when the last is acknowledged.
    pub(crate) rate: Option<f64>,
    pub(crate) payload_bytes: usize,
}

/// What the pair saw in one part of a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Lap {
    /// PUBLISH to PUBACK.
    pub(crate) ack: Quantiles,
    /// PUBLISH to delivery.
    pub(crate) end_to_end: Quantiles,
    /// Seconds that it took.
    pub(crate) seconds: f64,
}

/// What is left at the end.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct End {
    pub(crate) acknowledged: u64,
    /// Acknowledged and not delivered when nothing came any more.
    pub(crate) missing: u64,
    pub(crate) repeated: u64,
}

/// A running pair. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Beside {
    laps: mpsc::UnboundedSender<oneshot::Sender<Lap>>,
    thread: JoinHandle<Result<End, BenchError>>,
}

impl Beside {
    /// Starts it; returns when it publishes.
    pub(crate) async fn start(plan: Plan) -> Result<Self, BenchError> {
        let (laps, asked) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("beside".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(BenchError::io("starting a runtime"))?;
                runtime.block_on(LocalSet::new().run_until(run(plan, asked)))
            })
            .map_err(BenchError::io("starting a thread"))?;
        let beside = Self { laps, thread };
        // Also the word that it has begun; and what it takes to connect belongs to no part.
        match beside.lap().await {
            Ok(_) => Ok(beside),
            Err(_) => Err(beside.end().await.err().unwrap_or(BenchError::Task)),
        }
    }

    /// What it saw since the last time.
    pub(crate) async fn lap(&self) -> Result<Lap, BenchError> {
        let (answer, answered) = oneshot::channel();
        self.laps.send(answer).map_err(|_| BenchError::Stuck("the pair of clients beside has ended"))?;
        let lap = tokio::time::timeout(WAIT_MAX, answered).await;
        lap.map_err(|_| BenchError::Stuck("the pair of clients beside does not connect"))?
            .map_err(|_| BenchError::Stuck("the pair of clients beside has ended"))
    }

    /// Waits for its last acknowledgements and deliveries.
    pub(crate) async fn end(self) -> Result<End, BenchError> {
        drop(self.laps);
        let thread = self.thread;
        let ended = tokio::task::spawn_blocking(move || thread.join()).await;
        ended.map_err(|_| BenchError::Task)?.map_err(|_| BenchError::Task)?
    }
}

async fn run(plan: Plan, mut asked: mpsc::UnboundedReceiver<oneshot::Sender<Lap>>) -> Result<End, BenchError> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let topic = format!("beside/{run}");
    let shared = Rc::new(Shared::default());
    let subscribing = subscriber::Plan {
        at: plan.subscribe_to,
        version: plan.version,
        client_id: format!("bench-beside-{run}-s"),
        filter: topic.clone(),
        qos: 1,
        is_persistent: true,
        publishers: 1,
    };
    let connection = subscriber::open(&subscribing).await?;
    let receiving = tokio::task::spawn_local(subscriber::receive(subscribing.clone(), connection, Rc::clone(&shared)));
    let publishing = publisher::Plan {
        at: plan.publish_to,
        version: plan.version,
        client_id: format!("bench-beside-{run}-p"),
        number: 0,
        topic,
        qos: 1,
        // At a rate a slow acknowledgement must not hold back the next publish.
        window: if plan.rate.is_some() { 1_000 } else { 1 },
        payload_bytes: plan.payload_bytes,
        is_noise: false,
        is_persistent: true,
        rate: plan.rate,
        messages_max: u64::MAX,
    };
    let publisher_id = publishing.client_id.clone();
    let mut publishing = tokio::task::spawn_local(publisher::publish(publishing, Rc::clone(&shared)));
    tokio::select! {
        ready = tokio::time::timeout(WAIT_MAX, shared.publishers_ready(1)) => {
            ready.map_err(|_| BenchError::Stuck("the publisher beside does not connect"))?;
        }
        end = &mut publishing => return Err(early(end)),
    }
    shared.set_phase(Phase::Measured);
    let mut since = Instant::now();
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(answer) = ask else { break };
                let (ack, end_to_end) = shared.lap();
                // Whoever asked may have given up meanwhile.
                let _ = answer.send(Lap { ack, end_to_end, seconds: since.elapsed().as_secs_f64() });
                since = Instant::now();
            }
            end = &mut publishing => return Err(early(end)),
        }
    }
    shared.set_phase(Phase::Over);
    let ended = tokio::time::timeout(WAIT_MAX, publishing).await;
    ended.map_err(|_| BenchError::Stuck("publishes beside stay unacknowledged"))?.map_err(|_| BenchError::Task)??;
    let end = Instant::now() + WAIT_MAX;
    let missing = || shared.all().acknowledged.saturating_sub(shared.all().delivered);
    while missing() > 0 && Instant::now() < end && !receiving.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    receiving.abort();
    let (_, repeated, _) = shared.oddities();
    let result = End { acknowledged: shared.all().acknowledged, missing: missing(), repeated };
    end_session(plan.subscribe_to, plan.version, &subscribing.client_id).await?;
    end_session(plan.publish_to, plan.version, &publisher_id).await?;
    Ok(result)
}

/// Why the publisher ended before it should.
fn early(end: Result<Result<(), BenchError>, tokio::task::JoinError>) -> BenchError {
    match end {
        Ok(Err(e)) => e,
        Ok(Ok(())) | Err(_) => BenchError::Task,
    }
}

/// A line for people.
pub(crate) fn line(name: &str, lap: &Lap) -> String {
    format!(
        "  {name:<30} PUBACK p50 {:>7.2} ms, p99 {:>7.2} ms, max {:>8.1} ms; delivery p50 {:>7.2} ms, p99 {:>7.2} ms; {:.0}/s\n",
        lap.ack.p50_us / 1e3,
        lap.ack.p99_us / 1e3,
        lap.ack.max_us / 1e3,
        lap.end_to_end.p50_us / 1e3,
        lap.end_to_end.p99_us / 1e3,
        lap.ack.count as f64 / lap.seconds.max(f64::EPSILON)
    )
}
