//! `$SYS`: what this node and its cluster are doing, as MQTT messages.
//!
//! One task gathers the counters every `sys_interval_s`, shows them on the front end's board (for whoever subscribes)
//! and publishes them at QoS 0 past the log. `$SYS/broker/...` (Mosquitto's names) and `$SYS/cluster/...` are this
//! node's own view and go to its own clients; `$SYS/brokers/{id}/...` (EMQX's names) name the node and go to all.
//! It reads; nothing waits for it, and nothing it says is replicated.

mod alarms;
mod load;
mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_raft::Cluster;
use quorate_store::message::SharedMessage;
use tokio::time::{MissedTickBehavior, interval};

use crate::mqtt::MqttServer;
use crate::mqtt::sys::{SysBoard, publish};
use alarms::Alarms;
pub(crate) use alarms::due as alarms_due;
use load::Load;
use values::{Gathered, values};

/// Between two looks for alarms.
const ALARM_INTERVAL: Duration = Duration::from_secs(1);

/// Who hears of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Clients of this node.
    Here,
    /// Clients of all nodes.
    Everywhere,
}

type Scoped = (Scope, SharedMessage);

/// Publishes until the front end is gone.
pub(crate) async fn run(cluster: Cluster, mqtt: std::sync::Weak<MqttServer>, board: Arc<SysBoard>, every: Duration) {
    let started = Instant::now();
    let mut tick = interval(ALARM_INTERVAL.min(every));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due = Instant::now();
    let mut alarms = Alarms::default();
    let mut load = Load::default();
    let mut connections_most = 0;
    let mut shown: Vec<Scoped> = Vec::new();
    loop {
        tick.tick().await;
        let Some(stats) = mqtt.upgrade().map(|mqtt| mqtt.stats()) else { return };
        let status = cluster.status().borrow().clone();
        let changed = alarms.update(&status);
        connections_most = connections_most.max(stats.connections);
        let now = Instant::now();
        let is_due = now >= due;
        if is_due {
            // What a node that starts can say is soon out of date.
            due = now + if status.has_quorum { every } else { ALARM_INTERVAL };
            load.update(&stats, now);
            let totals = cluster.totals().await;
            let gathered =
                Gathered { status: &status, stats: &stats, totals, uptime: started.elapsed(), connections_most };
            shown = values(&gathered);
            shown.extend(load.values());
        }
        if is_due || !changed.is_empty() {
            // First, so that who subscribes meanwhile gets it twice rather than not at all.
            board.show(shown.iter().map(|(_, value)| value.clone()).chain(alarms.active()).collect());
        }
        tell(&cluster, &changed);
        if is_due {
            tell(&cluster, &shown);
        }
    }
}

fn tell(cluster: &Cluster, values: &[Scoped]) {
    let of = |wanted| values.iter().filter(move |(scope, _)| *scope == wanted).map(|(_, value)| publish(value));
    for value in of(Scope::Everywhere) {
        cluster.route_qos0(value);
    }
    cluster.route_here(of(Scope::Here).collect());
}
