//! All metrics of a node, in one place.
//!
//! Nothing is counted here: at each scrape the front end says what it has counted and the cluster's view what
//! it shows. Names, help and labels stand here and nowhere else.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::{ClusterView, Health, NodeState, Role};
use crate::stages::{StagesCollector, StagesSource};

/// A number that goes up and down.
type Level = Gauge<i64, AtomicI64>;

/// Which member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    /// Its id.
    node: u64,
}

/// What the MQTT front end has counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MqttSample {
    /// Connections now.
    pub connections: u64,
    /// Connections ever.
    pub connections_total: u64,
    /// Connections that were accepted with CONNACK 0.
    pub accepted: u64,
    /// Messages from clients, by QoS.
    pub received: [u64; 3],
    /// Messages to clients, by QoS, repeats included.
    pub sent: [u64; 3],
    /// Bytes from clients.
    pub bytes_received: u64,
    /// Bytes to clients.
    pub bytes_sent: u64,
    /// Connections that ended, by reason code (0: the client or its socket ended it).
    pub closed: Vec<(u8, u64)>,
    /// Messages that expired before they were sent.
    pub expired: u64,
    /// Messages above the client's Maximum Packet Size.
    pub too_large: u64,
    /// QoS 0 messages dropped because somebody was slow.
    pub qos0_dropped: u64,
    /// Transient sessions that were ended because their queue was full.
    pub transient_overflows: u64,
    /// Publishes refused because a queue was full.
    pub queue_full: u64,
    /// Publishes refused for another reason, or dropped at QoS 0 for it.
    pub refused: u64,
    /// Times a client published faster than it may, and was not read for a while.
    pub throttled: u64,
    /// Acknowledgements that answered nothing.
    pub unknown_acks: u64,
    /// Deliveries that a worker which was behind got as numbers, to be read from the rows.
    pub mailbox_degraded: u64,
    /// Pages of queues read from the rows.
    pub pages: u64,
    /// Times that clients waited because the log was behind.
    pub proposer_busy: u64,
    /// Clients let in, by method of authentication.
    pub authenticated: Vec<(&'static str, u64)>,
    /// Clients not let in, by method; `none`: no method could judge what they showed.
    pub auth_failures: Vec<(&'static str, u64)>,
    /// Publishes that the rules refused.
    pub denied_publishes: u64,
    /// Subscriptions that the rules refused.
    pub denied_subscriptions: u64,
    /// Acknowledgements sent before their commit. Must stay 0.
    pub acks_before_commit: u64,
    /// Each listener.
    pub listeners: Vec<ListenerSample>,
}

/// What one listener has counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerSample {
    /// Its name.
    pub name: String,
    /// Connections now.
    pub connections: u64,
    /// Connections ever.
    pub connections_total: u64,
    /// Connections that were refused, by the bound that was reached.
    pub refused: Vec<(&'static str, u64)>,
    /// Connections that came to nothing before MQTT, by where they failed.
    pub failed: Vec<(&'static str, u64)>,
}

/// Says what the MQTT front end has counted; called at each scrape.
pub type MqttSource = Arc<dyn Fn() -> MqttSample + Send + Sync>;

struct MqttCollector(MqttSource);

impl fmt::Debug for MqttCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MqttCollector").finish_non_exhaustive()
    }
}

impl Collector for MqttCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sample = (self.0)();
        let help = "Client connections now";
        let mut connections = encoder.encode_descriptor("connections", help, None, MetricType::Gauge)?;
        connections.encode_gauge(&i64::try_from(sample.connections).unwrap_or(i64::MAX))?;
        for (name, help, value) in [
            ("accepted_sockets", "Sockets accepted", sample.connections_total),
            ("accepted_connects", "CONNECTs accepted", sample.accepted),
            ("received_bytes", "Bytes from clients", sample.bytes_received),
            ("sent_bytes", "Bytes to clients", sample.bytes_sent),
            ("expired_messages", "Messages that expired before they were sent", sample.expired),
            ("too_large_messages", "Messages above the client's Maximum Packet Size", sample.too_large),
            ("qos0_dropped", "QoS 0 messages dropped because somebody was slow", sample.qos0_dropped),
            (
                "transient_overflows",
                "Transient sessions ended because their queue was full",
                sample.transient_overflows,
            ),
            ("queue_full", "Publishes refused because a queue was full", sample.queue_full),
            ("refused_publishes", "Publishes refused for another reason, dropped at QoS 0", sample.refused),
            ("throttled", "Times that a client published faster than it may", sample.throttled),
            ("unknown_acks", "Acknowledgements that answered nothing", sample.unknown_acks),
            (
                "mailbox_degraded",
                "Deliveries left to be read from the rows: a worker was behind",
                sample.mailbox_degraded,
            ),
            ("pages", "Pages of queues read from the rows", sample.pages),
            ("proposer_busy", "Times that clients waited because the log was behind", sample.proposer_busy),
            ("acks_before_commit", "Acknowledgements sent before their commit: must stay 0", sample.acks_before_commit),
        ] {
            let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        for (name, help, values) in [
            ("received_messages", "Messages from clients", sample.received),
            ("sent_messages", "Messages to clients, repeats included", sample.sent),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (qos, value) in ["0", "1", "2"].into_iter().zip(values) {
                family.encode_family(&[("qos", qos)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        for (name, help, values) in [
            ("authenticated", "Clients let in, by method of authentication", sample.authenticated),
            ("auth_failures", "Clients not let in, by method of authentication", sample.auth_failures),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (method, value) in values {
                family.encode_family(&[("method", method)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        let help = "Publishes and subscriptions that the access rules refused";
        let mut family = encoder.encode_descriptor("acl_denied", help, None, MetricType::Counter)?;
        for (action, value) in [("publish", sample.denied_publishes), ("subscribe", sample.denied_subscriptions)] {
            family.encode_family(&[("action", action)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        let help = "Connections that ended, by the reason code that this node gave";
        let mut family = encoder.encode_descriptor("closed_connections", help, None, MetricType::Counter)?;
        for (reason, value) in sample.closed {
            let reason = format!("{reason:#04x}");
            let label = [("reason", reason.as_str())];
            family.encode_family(&label)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        encode_listeners(&sample.listeners, &mut encoder)
    }
}

fn encode_listeners(listeners: &[ListenerSample], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Client connections now, by listener";
    let mut family = encoder.encode_descriptor("listener_connections", help, None, MetricType::Gauge)?;
    for listener in listeners {
        let connections = i64::try_from(listener.connections).unwrap_or(i64::MAX);
        family.encode_family(&[("listener", listener.name.as_str())])?.encode_gauge(&connections)?;
    }
    let help = "Sockets accepted, by listener";
    let mut family = encoder.encode_descriptor("listener_sockets", help, None, MetricType::Counter)?;
    for listener in listeners {
        let label = [("listener", listener.name.as_str())];
        let value = listener.connections_total;
        family.encode_family(&label)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    type Counts = fn(&ListenerSample) -> &[(&'static str, u64)];
    let families: [(_, _, _, Counts); 2] = [
        ("refused_connections", "limit", "Connections refused because a bound was reached", |l| &l.refused),
        ("failed_connections", "stage", "Connections that came to nothing before MQTT was spoken", |l| &l.failed),
    ];
    for (name, label, help, counts) in families {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for listener in listeners {
            for (of, value) in counts(listener) {
                let labels = [("listener", listener.name.as_str()), (label, *of)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct ClusterMetrics {
    term: Level,
    commit: Level,
    applied: Family<NodeLabel, Level>,
    up: Family<NodeLabel, Level>,
    leader: Level,
    is_leader: Level,
    ready: Level,
    voters: Level,
}

impl ClusterMetrics {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("raft");
        registry.register("term", "Raft term", self.term.clone());
        registry.register("commit_index", "Highest committed log index known here", self.commit.clone());
        registry.register("applied_index", "Log index applied, as far as known here", self.applied.clone());
        registry.register("node_up", "1 while the node is heard of", self.up.clone());
        registry.register("leader_id", "Id of the leader, 0 without one", self.leader.clone());
        registry.register("is_leader", "1 on the leader", self.is_leader.clone());
        registry.register("ready", "1 while this node welcomes clients", self.ready.clone());
        registry.register("voters", "Nodes that vote", self.voters.clone());
    }

    fn set(&self, view: &ClusterView, health: &Health) {
        // Gauges are i64; an index that does not fit is 29,000 years away.
        let level = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.term.set(level(view.term));
        self.commit.set(level(view.commit));
        self.leader.set(level(view.leader.unwrap_or(0)));
        self.is_leader.set(i64::from(health.is_leader));
        self.ready.set(i64::from(health.not_ready.is_none()));
        self.voters.set(level(view.nodes.iter().filter(|n| n.role != Role::Learner).count() as u64));
        self.applied.clear();
        self.up.clear();
        for member in &view.nodes {
            let label = NodeLabel { node: member.id };
            self.applied.get_or_create(&label).set(level(member.applied));
            self.up.get_or_create(&label).set(i64::from(member.state == NodeState::Up));
        }
    }
}

/// The registry.
pub struct Metrics {
    registry: Registry,
    cluster: ClusterMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A registry with every metric of a node; `mqtt` says what the front end has counted, `stages` what the way
    /// through the log has.
    #[must_use]
    pub fn new(mqtt: MqttSource, stages: StagesSource) -> Self {
        let mut registry = Registry::with_prefix("quorate");
        registry.register("build", "Version of this node", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        let started: Level = Level::default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        started.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        registry.register_with_unit("start_time", "When this process started, since 1970", Unit::Seconds, started);
        let cluster = ClusterMetrics::default();
        cluster.register(&mut registry);
        registry.sub_registry_with_prefix("mqtt").register_collector(Box::new(MqttCollector(mqtt)));
        registry.register_collector(Box::new(StagesCollector(stages)));
        Self { registry, cluster }
    }

    /// The OpenMetrics text for a scrape.
    ///
    /// # Errors
    /// When a metric does not format.
    pub fn encode(&self, view: &ClusterView, health: &Health) -> Result<String, fmt::Error> {
        self.cluster.set(view, health);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
