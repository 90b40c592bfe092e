//! The loads of a comparison, and what is kept of each.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::CompareArgs;
use crate::backlog::BacklogArgs;
use crate::fleet::Fleet;
use crate::histogram::Quantiles;
use crate::idle::{self, IdleArgs};
use crate::offline::{self, OfflineArgs};
use crate::throughput::{self, LoadArgs};
use crate::{BenchError, machine};

/// Figures by name; one that could not be had is not there.
pub(super) type Figures = BTreeMap<&'static str, f64>;

const PAYLOAD_BYTES: usize = 256;
const WARMUP_S: f64 = 3.0;
/// Longest time for what a load needs beside its measured seconds: connecting, draining, ending sessions.
const AROUND_MAX: Duration = Duration::from_secs(240);
/// Longest time to queue and drain what an absent session gets.
const OFFLINE_MAX: Duration = Duration::from_secs(600);

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scenario {
    /// One publisher that waits for each acknowledgement.
    Latency,
    /// Ten to ten, as fast as their windows let.
    Throughput,
    /// One to fifty.
    FanOut,
    /// Fifty to one.
    FanIn,
    /// Ten to ten at QoS 2.
    ExactlyOnce,
    /// A session that is away.
    Offline,
    /// Connections on which nothing is said.
    Idle,
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its figure.
    pub(super) figure: &'static str,
    pub(super) heading: &'static str,
    pub(super) decimals: usize,
}

const fn column(figure: &'static str, heading: &'static str, decimals: usize) -> Column {
    Column { figure, heading, decimals }
}

const LOAD: &[Column] = &[
    column("published_per_s", "acknowledged/s", 0),
    column("delivered_per_s", "delivered/s", 0),
    column("ack_p50_ms", "to the acknowledgement, p50, ms", 2),
    column("ack_p99_ms", "p99, ms", 2),
    column("delivery_p50_ms", "to the subscriber, p50, ms", 2),
    column("delivery_p99_ms", "p99, ms", 2),
    column("cpu_us", "processor time a message, all processes, us", 0),
    column("peak_mib", "peak memory, all processes, MiB", 0),
    column("missing", "missing", 0),
    column("repeated", "repeated", 0),
];
const OFFLINE: &[Column] = &[
    column("queued_per_s", "in, messages/s", 0),
    column("drained_per_s", "out, messages/s", 0),
    column("peak_mib", "peak memory, all processes, MiB", 0),
    column("missing", "missing", 0),
    column("repeated", "repeated", 0),
];
const IDLE: &[Column] = &[
    column("bytes_per_connection", "a connection and its session, bytes of memory", 0),
    column("bytes_per_session", "the session on another node, bytes", 0),
    column("connected_s", "all connected after, s", 1),
];

impl Scenario {
    pub(super) const ALL: [Self; 7] =
        [Self::Latency, Self::Throughput, Self::FanOut, Self::FanIn, Self::ExactlyOnce, Self::Offline, Self::Idle];

    /// For people.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Latency => "QoS 1, one publisher, window 1, to one subscriber",
            Self::Throughput => "QoS 1, 10 publishers x window 100, each to one of 10 subscribers",
            Self::FanOut => "QoS 1, one publisher, window 100, to each of 50 subscribers",
            Self::FanIn => "QoS 1, 50 publishers x window 20, all to one subscriber",
            Self::ExactlyOnce => "QoS 2, 10 publishers x window 100, each to one of 10 subscribers",
            Self::Offline => "QoS 1, queued for one session that is away, then drained",
            Self::Idle => "idle connections",
        }
    }

    /// Its table.
    pub(super) const fn columns(self) -> &'static [Column] {
        match self {
            Self::Offline => OFFLINE,
            Self::Idle => IDLE,
            _ => LOAD,
        }
    }

    /// Longest time, the nodes' start not counted.
    pub(super) fn bound(self, args: &CompareArgs) -> Duration {
        match self {
            Self::Offline => OFFLINE_MAX,
            _ => AROUND_MAX + Duration::from_secs_f64(args.seconds),
        }
    }

    fn load(self, seconds: f64) -> Option<LoadArgs> {
        let (publishers, subscribers, window, qos) = match self {
            Self::Latency => (1, 1, 1, 1),
            Self::Throughput => (10, 10, 100, 1),
            Self::FanOut => (1, 50, 100, 1),
            Self::FanIn => (50, 1, 20, 1),
            Self::ExactlyOnce => (10, 10, 100, 2),
            Self::Offline | Self::Idle => return None,
        };
        Some(LoadArgs {
            publishers,
            subscribers,
            broadcast: self == Self::FanOut,
            shared: false,
            window,
            qos,
            bytes: PAYLOAD_BYTES,
            rate: None,
            seconds,
            warmup: WARMUP_S,
            transient: false,
            // What all of them speak.
            v4: true,
            publish_to: 0,
            subscribe_to: 1,
        })
    }

    /// Runs it.
    pub(super) async fn run(
        self,
        fleet: &mut Fleet,
        args: &CompareArgs,
    ) -> Result<(Figures, serde_json::Value), BenchError> {
        if let Some(load) = self.load(args.seconds) {
            let report = throughput::run(fleet, &load).await?;
            return Ok((of_load(&report, fleet), serde_json::to_value(&report)?));
        }
        if self == Self::Offline {
            let away = OfflineArgs {
                queue: BacklogArgs {
                    messages: args.offline_messages,
                    bytes: PAYLOAD_BYTES,
                    publishers: 10,
                    window: 100,
                },
                memory_mib_max: None,
                beside: false,
                boot: false,
                boot_s_max: None,
                v4: true,
            };
            let report = offline::run(fleet, &away).await?;
            let figures = Figures::from([
                ("queued_per_s", report.queued_per_s),
                ("drained_per_s", report.drained_per_s),
                ("peak_mib", peak_mib(fleet)),
                ("missing", args.offline_messages as f64 - report.delivered.saturating_sub(report.repeated) as f64),
                ("repeated", report.repeated as f64),
            ]);
            return Ok((figures, serde_json::to_value(&report)?));
        }
        let idle = IdleArgs {
            connections: args.idle_connections,
            subscriptions: 0,
            at_once: 256,
            transient: false,
            v4: true,
            bytes_max: None,
        };
        let report = idle::run(fleet, &idle).await?;
        let mut figures = Figures::from([
            ("bytes_per_connection", report.bytes_per_connection as f64),
            ("connected_s", report.connected_s),
        ]);
        if fleet.mqtt.len() > 1 {
            figures.insert("bytes_per_session", report.bytes_per_session as f64);
        }
        Ok((figures, serde_json::to_value(&report)?))
    }
}

fn of_load(report: &throughput::Report, fleet: &Fleet) -> Figures {
    let mut figures = Figures::from([
        ("published_per_s", report.published_per_s),
        ("delivered_per_s", report.delivered_per_s),
        ("peak_mib", peak_mib(fleet)),
        ("missing", report.missing as f64),
        ("repeated", report.repeated as f64),
    ]);
    figures.extend(report.broker_cpu_us_per_message.map(|us| ("cpu_us", us)));
    let mut quantiles = |p50: &'static str, p99: &'static str, of: &Quantiles| {
        // Nothing that took a time has no median.
        if of.count > 0 {
            figures.extend([(p50, of.p50_us / 1000.0), (p99, of.p99_us / 1000.0)]);
        }
    };
    quantiles("ack_p50_ms", "ack_p99_ms", &report.ack);
    quantiles("delivery_p50_ms", "delivery_p99_ms", &report.end_to_end);
    figures
}

/// The sum of what each process had at most.
fn peak_mib(fleet: &Fleet) -> f64 {
    let peaks = fleet.pids.iter().filter_map(|pid| machine::memory(*pid).ok());
    peaks.map(|memory| memory.peak_mib as f64).sum()
}
