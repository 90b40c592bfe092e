//! The values themselves: Mosquitto's names, EMQX's, and the cluster's.

use std::fmt::Display;
use std::time::Duration;

use quorate_raft::{ClusterStatus, NodeRole, NodeStatus};
use quorate_store::machine::Totals;
use quorate_store::topic::TopicName;

use super::{Scope, Scoped};
use crate::mqtt::stats::StatsSnapshot;
use crate::mqtt::sys::{value, wall_ms};

/// What the values are made of.
pub(super) struct Gathered<'a> {
    pub(super) status: &'a ClusterStatus,
    pub(super) stats: &'a StatsSnapshot,
    pub(super) totals: Totals,
    pub(super) uptime: Duration,
    /// Most connections that were seen at a time.
    pub(super) connections_most: u64,
}

struct Values(Vec<Scoped>);

impl Values {
    fn add(&mut self, scope: Scope, topic: &str, text: &dyn Display) {
        // Made of constants and numbers: always a topic name.
        if let Ok(topic) = TopicName::new(topic) {
            self.0.push((scope, value(topic, text.to_string())));
        }
    }
}

/// All of them.
pub(super) fn values(g: &Gathered<'_>) -> Vec<Scoped> {
    let mut out = Values(Vec::with_capacity(128));
    mosquitto(g, &mut out);
    emqx(g, &mut out);
    cluster(g, &mut out);
    out.0
}

fn mosquitto(g: &Gathered<'_>, out: &mut Values) {
    let mut add = |name: &str, text: &dyn Display| out.add(Scope::Here, &format!("$SYS/broker/{name}"), text);
    let s = g.stats;
    add("version", &format!("quorate version {}", env!("CARGO_PKG_VERSION")));
    add("uptime", &format!("{} seconds", g.uptime.as_secs()));
    add("clients/connected", &s.connections);
    add("clients/maximum", &g.connections_most);
    add("clients/total", &g.totals.sessions);
    add("clients/disconnected", &g.totals.sessions.saturating_sub(g.totals.connected));
    add("clients/expired", &g.totals.expired);
    add("messages/received", &s.packets_in);
    add("messages/sent", &s.packets_out);
    add("publish/messages/received", &s.publishes_in.iter().sum::<u64>());
    add("publish/messages/sent", &s.publishes_out.iter().sum::<u64>());
    add("publish/messages/dropped", &dropped(s));
    add("publish/bytes/received", &s.publish_bytes_in);
    add("publish/bytes/sent", &s.publish_bytes_out);
    add("bytes/received", &s.bytes_in);
    add("bytes/sent", &s.bytes_out);
    add("messages/stored", &g.totals.queued);
    add("store/messages/count", &g.totals.queued);
    add("retained messages/count", &g.totals.retained);
    add("subscriptions/count", &g.totals.subscriptions);
}

/// Deliveries that did not reach their client, and publishes that were not taken.
fn dropped(s: &StatsSnapshot) -> u64 {
    s.qos0_dropped + s.expired + s.too_large + s.queue_full + s.refused
}

fn emqx(g: &Gathered<'_>, out: &mut Values) {
    let ids: Vec<String> = g.status.nodes.iter().map(|node| node.id.0.to_string()).collect();
    out.add(Scope::Here, "$SYS/brokers", &ids.join(","));
    let node = g.status.node.0;
    let mut add = |name: &str, text: &dyn Display| {
        out.add(Scope::Everywhere, &format!("$SYS/brokers/{node}/{name}"), text);
    };
    add("version", &env!("CARGO_PKG_VERSION"));
    add("uptime", &g.uptime.as_millis());
    add("datetime", &rfc3339(wall_ms() / 1000));
    add("sysdescr", &"Quorate");
    let s = g.stats;
    add("stats/connections/count", &s.connections);
    add("stats/connections/max", &g.connections_most);
    add("stats/sessions/count", &g.totals.sessions);
    add("stats/subscriptions/count", &g.totals.subscriptions);
    add("stats/retained/count", &g.totals.retained);
    add("metrics/bytes/received", &s.bytes_in);
    add("metrics/bytes/sent", &s.bytes_out);
    add("metrics/packets/received", &s.packets_in);
    add("metrics/packets/sent", &s.packets_out);
    add("metrics/client/connected", &s.accepted);
    add("metrics/messages/received", &s.publishes_in.iter().sum::<u64>());
    add("metrics/messages/sent", &s.publishes_out.iter().sum::<u64>());
    for (qos, (received, sent)) in s.publishes_in.iter().zip(s.publishes_out).enumerate() {
        add(&format!("metrics/messages/qos{qos}/received"), received);
        add(&format!("metrics/messages/qos{qos}/sent"), &sent);
    }
    add("metrics/delivery/dropped", &dropped(s));
    add("metrics/delivery/dropped/expired", &s.expired);
    add("metrics/delivery/dropped/too_large", &s.too_large);
    add("metrics/delivery/dropped/queue_full", &s.queue_full);
}

fn cluster(g: &Gathered<'_>, out: &mut Values) {
    let mut add = |name: &str, text: &dyn Display| out.add(Scope::Here, &format!("$SYS/cluster/{name}"), text);
    let status = g.status;
    // Whom no majority backs does not lead, whatever this node still believes.
    let leader = status.leader.filter(|_| status.has_quorum).map_or("none".to_owned(), |id| id.0.to_string());
    add("leader", &leader);
    add("term", &status.term);
    add("applied", &status.applied);
    add("commit", &status.commit);
    for node in &status.nodes {
        add(&format!("nodes/{}/state", node.id.0), &state(node));
        if let Some(applied) = node.applied {
            add(&format!("nodes/{}/lag", node.id.0), &status.commit.saturating_sub(applied));
        }
    }
}

fn state(node: &NodeStatus) -> &'static str {
    match node.role {
        _ if !node.is_up => "lost",
        _ if !node.is_reachable => "unreachable",
        NodeRole::Leader => "leader",
        NodeRole::Follower => "follower",
        NodeRole::Learner => "learner",
    }
}

/// Seconds since 1970 as a date and time of day in UTC.
fn rfc3339(seconds: u64) -> String {
    let (day, of_day) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's days-to-date: years begin in March, so that leap days come last.
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day % 3600 / 60, of_day % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
