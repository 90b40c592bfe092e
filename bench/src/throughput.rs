//! Load on some nodes, subscribers on another: messages a second, latencies, processor time for each message.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use tokio::task::{JoinHandle, LocalSet};

use crate::connection::end_session;
use crate::fleet::Fleet;
use crate::histogram::Quantiles;
use crate::shared::{Phase, Shared};
use crate::{BenchError, machine, publisher, subscriber};

/// Longest wait for the last acknowledgements and deliveries after a run.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// A drain without a delivery for so long is over.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(5);
/// Both for peers, of which some send again what was not acknowledged within 30 s.
const PEER_DRAIN_MAX: Duration = Duration::from_secs(120);
const PEER_DRAIN_IDLE_MAX: Duration = Duration::from_secs(35);

/// The load.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Publishers.
    #[arg(long, default_value_t = 10)]
    pub(crate) publishers: usize,
    /// Subscribers.
    #[arg(long, default_value_t = 10)]
    pub(crate) subscribers: usize,
    /// Every subscriber gets every message; else each publisher's messages go to one subscriber.
    #[arg(long)]
    pub(crate) broadcast: bool,
    /// The subscribers are one shared group: each message goes to one of them.
    #[arg(long, conflicts_with = "broadcast")]
    pub(crate) shared: bool,
    /// Publishes of one publisher that may be unacknowledged.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    pub(crate) window: u16,
    /// QoS of publishes and subscriptions.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) qos: u8,
    /// Bytes of a payload, at least 20.
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Publishes a second of each publisher; without it as fast as the window lets.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Measured seconds.
    #[arg(long, default_value_t = 15.0)]
    pub(crate) seconds: f64,
    /// Seconds of load before.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) warmup: f64,
    /// Sessions that end with their connection; else they outlive it.
    #[arg(long)]
    pub(crate) transient: bool,
    /// MQTT 3.1.1 instead of 5.0 (3.1.1 has no Session Expiry: sessions of a run are ended after it all the same).
    #[arg(long)]
    pub(crate) v4: bool,
    /// Which node publishers connect to, from 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) publish_to: usize,
    /// Which node subscribers connect to.
    #[arg(long, default_value_t = 1)]
    pub(crate) subscribe_to: usize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    qos: u8,
    publishers: usize,
    window: u16,
    subscribers: usize,
    payload_bytes: usize,
    is_persistent: bool,
    seconds: f64,
    /// Publishes acknowledged a second.
    pub(crate) published_per_s: f64,
    /// Messages delivered a second.
    pub(crate) delivered_per_s: f64,
    /// PUBLISH to PUBACK or PUBCOMP.
    pub(crate) ack: Quantiles,
    /// PUBLISH to delivery.
    pub(crate) end_to_end: Quantiles,
    /// Processor time of all brokers for each acknowledged publish.
    pub(crate) broker_cpu_us_per_message: Option<f64>,
    /// Bytes that the brokers' disk wrote for each.
    disk_bytes_per_message: Option<f64>,
    /// Processor time of this load generator for each.
    client_cpu_us_per_message: f64,
    /// The disk's own time for an append of 4 KiB and its fdatasync, just before the run.
    fdatasync: Quantiles,
    pub(crate) refused: u64,
    pub(crate) repeated: u64,
    pub(crate) skipped: u64,
    /// Acknowledged and not delivered when the run was drained.
    pub(crate) missing: i64,
}

impl LoadArgs {
    fn publisher_plan(&self, fleet: &Fleet, run: u64, number: usize) -> Result<publisher::Plan, BenchError> {
        Ok(publisher::Plan {
            at: fleet.at(self.publish_to)?,
            version: fleet.version(self.v4),
            client_id: format!("bench-{run}-p{number}"),
            number: number as u32,
            topic: format!("bench/{run}/{}", number % self.subscribers.max(1)),
            qos: self.qos,
            window: usize::from(self.window),
            payload_bytes: self.bytes,
            is_noise: false,
            is_persistent: !self.transient,
            rate: self.rate,
            messages_max: u64::MAX,
        })
    }

    fn subscriber_plan(&self, fleet: &Fleet, run: u64, number: usize) -> Result<subscriber::Plan, BenchError> {
        let filter = match (self.broadcast, self.shared) {
            (true, _) => format!("bench/{run}/#"),
            (_, true) => format!("$share/bench/bench/{run}/#"),
            _ => format!("bench/{run}/{number}"),
        };
        Ok(subscriber::Plan {
            at: fleet.at(self.subscribe_to)?,
            version: fleet.version(self.v4),
            client_id: format!("bench-{run}-s{number}"),
            filter,
            qos: self.qos,
            is_persistent: !self.transient,
            // Of a shared group each gets some messages of all publishers: none of them sees which are missing.
            publishers: if self.shared { 0 } else { self.publishers },
        })
    }
}

/// Runs one load.
pub(crate) async fn run(fleet: &Fleet, load: &LoadArgs) -> Result<Report, BenchError> {
    if let Some(why) = fleet.lacks_qos2().filter(|_| load.qos == 2) {
        return Err(BenchError::NoQos2(why));
    }
    LocalSet::new().run_until(run_local(fleet, load)).await
}

async fn run_local(fleet: &Fleet, load: &LoadArgs) -> Result<Report, BenchError> {
    let fdatasync = machine::fdatasync(&fleet.dir)?.quantiles();
    // Names of a run's own, so that runs on the same brokers never meet.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run = since_1970.as_micros() as u64;
    let shared = Rc::new(Shared::default());
    let mut receiving: Vec<JoinHandle<Result<(), BenchError>>> = Vec::new();
    for number in 0..load.subscribers {
        let plan = load.subscriber_plan(fleet, run, number)?;
        let connection = subscriber::open(&plan).await?;
        receiving.push(tokio::task::spawn_local(subscriber::receive(plan, connection, Rc::clone(&shared))));
    }
    let mut publishing = Vec::new();
    for number in 0..load.publishers {
        let plan = load.publisher_plan(fleet, run, number)?;
        publishing.push(tokio::task::spawn_local(publisher::publish(plan, Rc::clone(&shared))));
    }
    tokio::time::timeout(DRAIN_MAX, shared.publishers_ready(load.publishers))
        .await
        .map_err(|_| BenchError::Stuck("publishers did not connect"))?;

    shared.set_phase(Phase::Warmup);
    tokio::time::sleep(Duration::from_secs_f64(load.warmup)).await;
    let written_before = machine::disk_written_bytes(&fleet.dir);
    let cpu_before = (machine::cpu_us(&fleet.pids)?, machine::cpu_us(&[std::process::id()])?);
    let start = Instant::now();
    shared.set_phase(Phase::Measured);
    tokio::time::sleep(Duration::from_secs_f64(load.seconds)).await;
    let counts = shared.measured();
    let seconds = start.elapsed().as_secs_f64();
    let cpu_after = (machine::cpu_us(&fleet.pids)?, machine::cpu_us(&[std::process::id()])?);
    let written_after = machine::disk_written_bytes(&fleet.dir);
    shared.set_phase(Phase::Over);

    for publisher in publishing {
        let end = tokio::time::timeout(DRAIN_MAX, publisher).await;
        end.map_err(|_| BenchError::Stuck("publishes stay unacknowledged"))?.map_err(|_| BenchError::Task)??;
    }
    let copies = if load.broadcast { load.subscribers as u64 } else { u64::from(load.subscribers > 0) };
    let bounds = if fleet.has_peer() { (PEER_DRAIN_MAX, PEER_DRAIN_IDLE_MAX) } else { (DRAIN_MAX, DRAIN_IDLE_MAX) };
    let missing = drain(&shared, copies, bounds).await;
    for subscriber in receiving {
        if subscriber.is_finished() {
            subscriber.await.map_err(|_| BenchError::Task)??;
        } else {
            subscriber.abort();
        }
    }
    for number in 0..load.subscribers {
        let plan = load.subscriber_plan(fleet, run, number)?;
        end_session(plan.at, plan.version, &plan.client_id).await?;
    }
    for number in 0..load.publishers {
        let plan = load.publisher_plan(fleet, run, number)?;
        end_session(plan.at, plan.version, &plan.client_id).await?;
    }

    let (refused, repeated, skipped) = shared.oddities();
    let each = |all: u64| all as f64 / counts.acknowledged.max(1) as f64;
    Ok(Report {
        qos: load.qos,
        publishers: load.publishers,
        window: load.window,
        subscribers: load.subscribers,
        payload_bytes: load.bytes,
        is_persistent: !load.transient,
        seconds,
        published_per_s: counts.acknowledged as f64 / seconds,
        delivered_per_s: counts.delivered as f64 / seconds,
        ack: shared.ack_quantiles(),
        end_to_end: shared.end_to_end_quantiles(),
        broker_cpu_us_per_message: (!fleet.pids.is_empty()).then(|| each(cpu_after.0.saturating_sub(cpu_before.0))),
        disk_bytes_per_message: written_before
            .zip(written_after)
            .map(|(before, after)| each(after.saturating_sub(before))),
        client_cpu_us_per_message: each(cpu_after.1 - cpu_before.1),
        fdatasync,
        refused,
        repeated,
        skipped,
        missing,
    })
}

/// Waits until what was acknowledged is delivered, or nothing more comes; how many deliveries are missing.
async fn drain(shared: &Shared, copies: u64, (all_max, idle_max): (Duration, Duration)) -> i64 {
    let (start, mut last, mut last_at) = (Instant::now(), 0, Instant::now());
    loop {
        let all = shared.all();
        let missing = (all.acknowledged * copies) as i64 - all.delivered as i64;
        if all.delivered > last {
            (last, last_at) = (all.delivered, Instant::now());
        }
        if missing <= 0 || last_at.elapsed() > idle_max || start.elapsed() > all_max {
            return missing;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Report {
    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let cpu = self.broker_cpu_us_per_message.map_or("unknown".to_owned(), |us| format!("{us:.1} us"));
        let disk = self.disk_bytes_per_message.map_or("unknown".to_owned(), |bytes| format!("{bytes:.0}"));
        let sessions = if self.is_persistent { "persistent" } else { "transient" };
        let row = |name: &str, q: &Quantiles| {
            format!(
                "  {name:<22} p50 {:>9.0} us   p99 {:>9.0} us   p99.9 {:>9.0} us   max {:>9.0} us\n",
                q.p50_us, q.p99_us, q.p999_us, q.max_us
            )
        };
        let mut text = format!(
            "QoS {}, {} publishers x window {} -> {} subscribers, {} bytes, {sessions} sessions, {:.1} s\n",
            self.qos, self.publishers, self.window, self.subscribers, self.payload_bytes, self.seconds
        );
        text +=
            &format!("  published {:>12.0} /s   delivered {:>12.0} /s\n", self.published_per_s, self.delivered_per_s);
        if self.qos > 0 {
            text += &row(if self.qos == 1 { "PUBLISH to PUBACK" } else { "PUBLISH to PUBCOMP" }, &self.ack);
        }
        text += &row("PUBLISH to delivery", &self.end_to_end);
        text += &row("disk: 4 KiB fdatasync", &self.fdatasync);
        text += &format!(
            "  processor time a message: all brokers {cpu}, load generator {:.1} us\n  bytes written to the disk of all brokers a message: {disk}\n",
            self.client_cpu_us_per_message
        );
        text += &format!(
            "  refused {}, repeated {}, skipped {}, missing after the drain {}\n",
            self.refused, self.repeated, self.skipped, self.missing
        );
        text
    }
}
