//! Metrics of the way from a packet to its commit: what waits, what was proposed, how long the disk takes.
//!
//! Counted elsewhere, where it happens; read here at each scrape.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// The way through the log, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    /// Commands of clients that wait for a batch.
    pub waiting_commands: u64,
    /// Batches that were proposed and are not applied here.
    pub batches_in_flight: u64,
    /// Counters of the proposal path: name, what is counted, value.
    pub proposals: Vec<(&'static str, &'static str, u64)>,
    /// Synced writes of the log.
    pub log: LogSample,
}

/// What the log's writer thread has done.
#[derive(Clone, Debug, Default)]
pub struct LogSample {
    /// Upper bounds in seconds and how many synced writes took up to each and more than the one before; the last
    /// bound is infinite.
    pub sync_buckets: Vec<(f64, u64)>,
    /// Seconds spent in synced writes.
    pub sync_seconds: f64,
    /// Entries appended.
    pub records: u64,
    /// Bytes of them.
    pub record_bytes: u64,
    /// Times that a caller waited because too much waited for the disk.
    pub waits: u64,
}

/// Says how the stages are; called at each scrape.
pub type StagesSource = Arc<dyn Fn() -> Stages + Send + Sync>;

pub(crate) struct StagesCollector(pub(crate) StagesSource);

impl fmt::Debug for StagesCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagesCollector").finish_non_exhaustive()
    }
}

impl Collector for StagesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Stages { waiting_commands, batches_in_flight, proposals, log } = (self.0)();
        for (name, help, value) in [
            ("proposals_waiting_commands", "Commands of clients that wait for a batch", waiting_commands),
            ("proposals_batches_in_flight", "Batches proposed and not yet applied here", batches_in_flight),
        ] {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        for (name, help, value) in proposals {
            // The format ends each help text by itself.
            let (name, help) = (format!("proposals_{name}"), help.trim_end_matches('.'));
            let mut counter = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            counter.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        for (name, help, value) in [
            ("log_records", "Entries appended to the log on this disk", log.records),
            ("log_record_bytes", "Bytes of them", log.record_bytes),
            ("log_waits", "Times that an append waited because too much waited for the disk", log.waits),
        ] {
            let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        let help = "Time of one synced write of the log, in seconds";
        let mut histogram = encoder.encode_descriptor("log_sync_seconds", help, None, MetricType::Histogram)?;
        let count = log.sync_buckets.iter().map(|(_, count)| count).sum();
        histogram.encode_histogram::<NoLabelSet>(log.sync_seconds, count, &log.sync_buckets, None)
    }
}
