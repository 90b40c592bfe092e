//! Messages queued for a session that is away: how fast they go in, what they cost in memory, how fast they come out.

use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::connection::{Connection, client, end_session};
use crate::fleet::Fleet;
use crate::machine::Memory;
use crate::shared::{Phase, Shared};
use crate::{BenchError, machine, publisher, subscriber};

/// The session that is away.
const CLIENT: &str = "bench-offline";
/// Longest drain.
const DRAIN_MAX: Duration = Duration::from_secs(900);
/// A drain without a delivery for so long is over.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(60);

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct OfflineArgs {
    /// Messages to queue.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) messages: u64,
    /// Bytes of a payload, at least 20.
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Publishers that queue them.
    #[arg(long, default_value_t = 10)]
    pub(crate) publishers: usize,
    /// Publishes of one publisher that may be unacknowledged.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    pub(crate) window: u16,
    /// Fails when a broker's memory was ever above so many MiB.
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib_max: Option<u64>,
    /// MQTT 3.1.1 instead of 5.0.
    #[arg(long)]
    pub(crate) v4: bool,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    messages: u64,
    payload_bytes: usize,
    /// Messages a second while they were queued.
    pub(crate) queued_per_s: f64,
    /// Memory of each broker with all of them queued.
    queued_memory: Vec<Memory>,
    /// Messages a second while the session got them, on another node than it left.
    pub(crate) drained_per_s: f64,
    /// Memory of each broker after that.
    drained_memory: Vec<Memory>,
    pub(crate) delivered: u64,
    pub(crate) repeated: u64,
    pub(crate) skipped: u64,
}

/// Queues and drains.
pub(crate) async fn run(fleet: &Fleet, args: &OfflineArgs) -> Result<Report, BenchError> {
    LocalSet::new().run_until(run_local(fleet, args)).await
}

async fn run_local(fleet: &Fleet, args: &OfflineArgs) -> Result<Report, BenchError> {
    let version = fleet.version(args.v4);
    end_session(fleet.at(1)?, version, CLIENT).await?;
    let plan = subscriber::Plan {
        at: fleet.at(1)?,
        version,
        client_id: CLIENT.to_owned(),
        filter: "offline/#".to_owned(),
        qos: 1,
        is_persistent: true,
        publishers: args.publishers,
    };
    subscriber::open(&plan).await?.close().await?;

    let queueing = Rc::new(Shared::default());
    let mut publishing = Vec::new();
    for number in 0..args.publishers {
        let share = args.messages / args.publishers as u64;
        let rest = if number == 0 { args.messages % args.publishers as u64 } else { 0 };
        let plan = publisher::Plan {
            at: fleet.at(0)?,
            version,
            client_id: format!("{CLIENT}-p{number}"),
            number: number as u32,
            topic: format!("offline/{number}"),
            qos: 1,
            window: usize::from(args.window),
            payload_bytes: args.bytes,
            is_persistent: false,
            rate: None,
            messages_max: share + rest,
        };
        publishing.push(tokio::task::spawn_local(publisher::publish(plan, Rc::clone(&queueing))));
    }
    queueing.publishers_ready(args.publishers).await;
    let start = Instant::now();
    queueing.set_phase(Phase::Measured);
    for publisher in publishing {
        publisher.await.map_err(|_| BenchError::Task)??;
    }
    let queued_per_s = args.messages as f64 / start.elapsed().as_secs_f64();
    let queued_memory = memories(fleet)?;

    let draining = Rc::new(Shared::default());
    draining.set_phase(Phase::Measured);
    let start = Instant::now();
    let (connection, is_present) =
        Connection::open(fleet.at(2)?, version, &client(version, CLIENT, true, false)).await?;
    if !is_present {
        return Err(BenchError::Stuck("the session is gone"));
    }
    let receiving = tokio::task::spawn_local(subscriber::receive(plan, connection, Rc::clone(&draining)));
    let (mut last, mut last_at) = (0, start);
    while draining.all().delivered < args.messages {
        if draining.all().delivered > last {
            (last, last_at) = (draining.all().delivered, Instant::now());
        }
        if start.elapsed() > DRAIN_MAX || last_at.elapsed() > DRAIN_IDLE_MAX || receiving.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Not the time in which nothing came any more, when something is missing.
    let end = if draining.all().delivered < args.messages { last_at } else { Instant::now() };
    let drained_per_s = draining.all().delivered as f64 / (end - start).as_secs_f64().max(f64::EPSILON);
    receiving.abort();
    let (_, repeated, skipped) = draining.oddities();
    let report = Report {
        messages: args.messages,
        payload_bytes: args.bytes,
        queued_per_s,
        queued_memory,
        drained_per_s,
        drained_memory: memories(fleet)?,
        delivered: draining.all().delivered,
        repeated,
        skipped,
    };
    end_session(fleet.at(0)?, version, CLIENT).await?;
    let peak = report.drained_memory.iter().map(|m| m.peak_mib).max().unwrap_or_default();
    match args.memory_mib_max.filter(|max| peak > *max) {
        Some(bound) => Err(BenchError::Memory { peak, bound, report: report.table() }),
        None => Ok(report),
    }
}

fn memories(fleet: &Fleet) -> Result<Vec<Memory>, BenchError> {
    fleet.pids.iter().map(|pid| machine::memory(*pid)).collect()
}

impl Report {
    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let memory = |list: &[Memory]| {
            let shown: Vec<String> = list.iter().map(|m| format!("{} (peak {})", m.resident_mib, m.peak_mib)).collect();
            shown.join(", ")
        };
        format!(
            "{} messages of {} bytes for one session that is away\n\
             \x20 queued  {:>10.0} /s   memory of the brokers in MiB: {}\n\
             \x20 drained {:>10.0} /s   memory of the brokers in MiB: {}\n\
             \x20 delivered {}, repeated {}, skipped {}\n",
            self.messages,
            self.payload_bytes,
            self.queued_per_s,
            memory(&self.queued_memory),
            self.drained_per_s,
            memory(&self.drained_memory),
            self.delivered,
            self.repeated,
            self.skipped
        )
    }
}
