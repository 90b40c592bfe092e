//! What a message costs as clients, subscriptions, payloads and nodes grow: the same traffic each time, once at a fixed
//! rate and once as fast as its window lets, and everything else only there.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use quorate_jepsen::wire::Version;
use serde::Serialize;
use tokio::net::TcpStream;

use crate::compare::chart::{self, Bar};
use crate::compare::summary::{Spread, number};
use crate::connection::client;
use crate::fleet::{Fleet, FleetArgs};
use crate::throughput::{self, LoadArgs};
use crate::{BenchError, idle, light};

/// Publishers and subscribers of the traffic, each.
const PAIRS_MAX: usize = 10;
/// Clients that connect at a time.
const CONNECTING_MAX: usize = 256;
/// Sessions that subscribe at a time, each with up to [`FILTERS_MAX`] filters.
const SUBSCRIBING_MAX: usize = 16;
/// Filters of one session.
const FILTERS_MAX: u32 = 1_000;
/// Filters of one SUBSCRIBE.
const FILTERS_A_PACKET: usize = 500;
/// Bytes of all payloads that may be unacknowledged, of all publishers.
const WINDOW_BYTES_MAX: usize = 16 << 20;
/// Room in a packet beside the payload.
const PACKET_BYTES_MORE: u64 = 1_024;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Axis {
    /// Connected clients, each subscribed to a filter of its own.
    Clients,
    /// Stored subscriptions of clients that are away.
    Subscriptions,
    /// Bytes of a payload.
    Payload,
    /// Nodes of the cluster.
    Nodes,
}

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct GrowthArgs {
    /// What grows, one after the other.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "WHAT,...",
        default_value = "clients,subscriptions,payload,nodes"
    )]
    axes: Vec<Axis>,
    /// Clients that are connected, the traffic's included.
    #[arg(long, value_delimiter = ',', value_name = "CLIENTS,...", default_value = "10,100,1000,10000",
        value_parser = clap::value_parser!(u32).range(2..=28_000))]
    clients: Vec<u32>,
    /// Subscriptions that are stored.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SUBSCRIPTIONS,...",
        default_value = "10,1000,10000,100000,1000000"
    )]
    subscriptions: Vec<u32>,
    /// Bytes of a payload, at least 20.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "BYTES,...",
        default_value = "64,256,1024,4096,16384,65536,262144,1048576"
    )]
    payloads: Vec<usize>,
    /// Nodes of a cluster.
    #[arg(long, value_delimiter = ',', value_name = "NODES,...", default_value = "1,3,5",
        value_parser = clap::value_parser!(u8).range(1..=9))]
    sizes: Vec<u8>,
    /// Publishes a second of all publishers together, at the fixed rate.
    #[arg(long, default_value_t = 5_000.0)]
    rate: f64,
    /// Bytes of payloads a second at the fixed rate, at most: less of the large ones are published.
    #[arg(long, default_value_t = 20_000_000.0)]
    bytes_rate_max: f64,
    /// Publishes of one publisher that may be unacknowledged, without a fixed rate (fewer of large ones).
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    window: u16,
    /// Bytes of a payload where that does not grow.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Measured seconds of each load.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Seconds of load before.
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// A picture of the processor time as well.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One load.
#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    per_s: f64,
    /// Processor time of all brokers a message.
    cpu_us: f64,
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    /// Acknowledged and not delivered.
    missing: i64,
}

/// One size.
#[derive(Clone, Copy, Debug, Serialize)]
struct Point {
    axis: Axis,
    size: u64,
    at_rate: Figures,
    at_window: Figures,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    rate: f64,
    points: Vec<Point>,
}

impl GrowthArgs {
    /// The most sockets that are open at a time.
    pub(crate) fn connections(&self) -> u32 {
        self.clients.iter().copied().max().unwrap_or_default()
    }

    /// Nodes that take the largest payload, and never less than they do as they come.
    fn roomy(&self, fleet: &FleetArgs) -> FleetArgs {
        let largest = self.payloads.iter().copied().max().unwrap_or_default() as u64;
        let packet_bytes_max = (largest + PACKET_BYTES_MORE).max(1 << 20);
        fleet.with_env(&[("QUORATE_PACKET_BYTES_MAX", packet_bytes_max.to_string())])
    }
}

/// The most publishers, and as many subscribers, that so many clients can be.
fn pairs(clients: u32) -> usize {
    (clients as usize / 2).clamp(1, PAIRS_MAX)
}

/// Publishes of one publisher that may be unacknowledged, so that all of them have so many bytes at most.
fn window(wanted: u16, payload_bytes: usize) -> u16 {
    let most = WINDOW_BYTES_MAX / PAIRS_MAX / payload_bytes.max(1);
    wanted.min(u16::try_from(most).unwrap_or(u16::MAX)).max(1)
}

/// Runs all.
pub(crate) async fn run(fleet: &FleetArgs, args: &GrowthArgs) -> Result<Report, BenchError> {
    if !fleet.is_own() {
        return Err(BenchError::NotOurs);
    }
    let mut points = Vec::new();
    for axis in &args.axes {
        points.extend(match axis {
            Axis::Clients => on(fleet, async |fleet| clients(fleet, args).await).await?,
            Axis::Subscriptions => on(fleet, async |fleet| subscriptions(fleet, args).await).await?,
            Axis::Payload => on(&args.roomy(fleet), async |fleet| payloads(fleet, args).await).await?,
            Axis::Nodes => sizes(fleet, args).await?,
        });
    }
    let report = Report { rate: args.rate, points };
    if let Some(path) = &args.svg {
        std::fs::write(path, report.picture()).map_err(BenchError::io(&path.display().to_string()))?;
    }
    let missing = report.points.iter().map(|point| point.at_rate.missing.max(0) + point.at_window.missing.max(0)).sum();
    BenchError::lost("acknowledged messages", i64::unsigned_abs(missing), || report.table())?;
    Ok(report)
}

/// Measures on nodes that are new; what they said is kept when that fails.
async fn on(
    fleet: &FleetArgs,
    work: impl AsyncFnOnce(&Fleet) -> Result<Vec<Point>, BenchError>,
) -> Result<Vec<Point>, BenchError> {
    let fleet = Fleet::open(fleet)?;
    let points = work(&fleet).await;
    if points.is_err() {
        fleet.keep_logs();
    }
    points
}

async fn measure(
    fleet: &Fleet,
    args: &GrowthArgs,
    (axis, size): (Axis, u64),
    pairs: usize,
    bytes: usize,
) -> Result<Point, BenchError> {
    let rate = args.rate.min(args.bytes_rate_max / bytes.max(1) as f64);
    let load = LoadArgs {
        publishers: pairs,
        subscribers: pairs,
        broadcast: false,
        shared: false,
        window: window(args.window, bytes),
        qos: 1,
        bytes,
        rate: None,
        seconds: args.seconds,
        warmup: args.warmup,
        transient: false,
        v4: false,
        publish_to: 0,
        subscribe_to: 1,
    };
    let steady = LoadArgs { rate: Some(rate / pairs as f64), ..load.clone() };
    let point = Point {
        axis,
        size,
        at_rate: figures(&throughput::run(fleet, &steady).await?),
        at_window: figures(&throughput::run(fleet, &load).await?),
    };
    // All of them take a while, and what is measured should not go with what fails later.
    eprintln!("{}", point.line());
    Ok(point)
}

fn figures(report: &throughput::Report) -> Figures {
    Figures {
        per_s: report.published_per_s,
        cpu_us: report.broker_cpu_us_per_message.unwrap_or(f64::NAN),
        ack_p50_ms: report.ack.p50_us / 1e3,
        ack_p99_ms: report.ack.p99_us / 1e3,
        missing: report.missing,
    }
}

fn sorted<T: Copy + Ord>(sizes: &[T]) -> Vec<T> {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable();
    sizes
}

/// Address of each node, for clients that are spread over them.
fn spread(nodes: &[SocketAddr], number: u32) -> Result<SocketAddr, BenchError> {
    nodes.get(number as usize % nodes.len().max(1)).copied().ok_or(BenchError::NotOurs)
}

async fn clients(fleet: &Fleet, args: &GrowthArgs) -> Result<Vec<Point>, BenchError> {
    let (mut held, mut points): (Vec<TcpStream>, Vec<Point>) = (Vec::new(), Vec::new());
    for size in sorted(&args.clients) {
        let others = size.saturating_sub(2 * pairs(size) as u32);
        let more = held.len() as u32..others.max(held.len() as u32);
        held.extend(light::each(more, CONNECTING_MAX, |number| hold(spread(&fleet.mqtt, number), number)).await?);
        let point = (Axis::Clients, u64::from(size));
        points.push(measure(fleet, args, point, pairs(size), args.bytes).await?);
        let lost = held.iter().filter(|stream| light::is_closed(stream)).count() as u64;
        BenchError::lost("idle connections", lost, String::new)?;
    }
    Ok(points)
}

async fn hold(at: Result<SocketAddr, BenchError>, number: u32) -> Result<TcpStream, BenchError> {
    let connect = client(Version::V5, &format!("bench-growth-{number}"), true, true);
    let (mut stream, _) = light::open(at?, Version::V5, &connect).await?;
    light::subscribe(&mut stream, Version::V5, 1, &[format!("growth/client/{number}/inbox")]).await?;
    Ok(stream)
}

async fn subscriptions(fleet: &Fleet, args: &GrowthArgs) -> Result<Vec<Point>, BenchError> {
    let (mut stored, mut points) = (0, Vec::new());
    for size in sorted(&args.subscriptions) {
        let more: Vec<(u32, u32)> = sessions(stored, size);
        let subscribed = light::each(0..more.len() as u32, SUBSCRIBING_MAX, |number| {
            let which = more.get(number as usize).copied().unwrap_or_default();
            subscribe(spread(&fleet.mqtt, number), which)
        });
        subscribed.await?;
        // What is still written of them belongs to no message.
        idle::steady(fleet).await?;
        stored = size;
        let point = (Axis::Subscriptions, u64::from(size));
        points.push(measure(fleet, args, point, PAIRS_MAX, args.bytes).await?);
    }
    Ok(points)
}

/// First filter and number of filters of each session that takes them from `stored` to `wanted`.
fn sessions(stored: u32, wanted: u32) -> Vec<(u32, u32)> {
    (stored..wanted).step_by(FILTERS_MAX as usize).map(|first| (first, FILTERS_MAX.min(wanted - first))).collect()
}

/// A session that stores its filters and goes away.
async fn subscribe(at: Result<SocketAddr, BenchError>, (first, count): (u32, u32)) -> Result<(), BenchError> {
    let connect = client(Version::V5, &format!("bench-growth-{first}"), true, true);
    let (mut stream, _) = light::open(at?, Version::V5, &connect).await?;
    let filters: Vec<String> = (first..first + count).map(|n| format!("growth/{first}/{n}/value")).collect();
    for (id, some) in (1..).zip(filters.chunks(FILTERS_A_PACKET)) {
        light::subscribe(&mut stream, Version::V5, id, some).await?;
    }
    light::close(stream, Version::V5).await
}

async fn payloads(fleet: &Fleet, args: &GrowthArgs) -> Result<Vec<Point>, BenchError> {
    let mut points = Vec::new();
    for bytes in sorted(&args.payloads) {
        points.push(measure(fleet, args, (Axis::Payload, bytes as u64), PAIRS_MAX, bytes).await?);
    }
    Ok(points)
}

async fn sizes(fleet: &FleetArgs, args: &GrowthArgs) -> Result<Vec<Point>, BenchError> {
    let mut points = Vec::new();
    for size in sorted(&args.sizes) {
        let point = (Axis::Nodes, u64::from(size));
        let fleet = fleet.with_nodes(size);
        let measured = on(&fleet, async |fleet| Ok(vec![measure(fleet, args, point, PAIRS_MAX, args.bytes).await?]));
        points.extend(measured.await?);
    }
    Ok(points)
}

impl Axis {
    const fn title(self) -> &'static str {
        match self {
            Self::Clients => "connected clients",
            Self::Subscriptions => "stored subscriptions",
            Self::Payload => "bytes of a payload",
            Self::Nodes => "nodes",
        }
    }
}

impl Point {
    fn line(&self) -> String {
        let figures = |of: &Figures| {
            format!(" {:>12.0} {:>8.1} {:>9.2} {:>9.2}", of.per_s, of.cpu_us, of.ack_p50_ms, of.ack_p99_ms)
        };
        let size = number(self.size as f64, 0);
        format!("{:>22} {size:<12}{}  {}", self.axis.title(), figures(&self.at_rate), figures(&self.at_window))
    }
}

impl Report {
    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "QoS 1 by up to 10 publishers, each to one of as many subscribers; processor time a message of all brokers\n\
             {:>22} {:<12} {:>10}/s {:>8} {:>9} {:>9}   {:>10}/s {:>8} {:>9} {:>9}\n",
            "", "", "fixed rate", "cpu us", "p50 ms", "p99 ms", "window", "cpu us", "p50 ms", "p99 ms"
        );
        for point in &self.points {
            text += &point.line();
            text.push('\n');
        }
        text
    }

    fn picture(&self) -> String {
        let (mut body, mut y) = (String::new(), chart::TOP);
        for axis in [Axis::Clients, Axis::Subscriptions, Axis::Payload, Axis::Nodes] {
            let of_axis = self.points.iter().filter(|point| point.axis == axis);
            let bars: Vec<Bar> = of_axis
                .map(|point| Bar {
                    name: number(point.size as f64, 0),
                    spread: Spread::of(&[point.at_rate.cpu_us]),
                    is_own: true,
                })
                .collect();
            if !bars.is_empty() {
                body += &chart::panel(axis.title(), &bars, 1, &mut y);
            }
        }
        chart::page("us of processor time a message, all nodes, at a fixed rate", &body, y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_store_just_what_is_missing() {
        assert_eq!(sessions(0, 10), [(0, 10)]);
        assert_eq!(sessions(10, 2_110), [(10, 1_000), (1_010, 1_000), (2_010, 100)]);
        assert_eq!(sessions(5, 5), []);
    }

    #[test]
    fn few_clients_are_few_pairs_and_large_payloads_a_small_window() {
        assert_eq!((pairs(2), pairs(10), pairs(100)), (1, 5, 10));
        assert_eq!((window(100, 256), window(100, 65_536), window(100, 1 << 20)), (100, 25, 1));
    }
}
