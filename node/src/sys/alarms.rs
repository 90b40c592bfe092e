//! Alarms: what an operator should look at, told when it begins and when it is over, as EMQX tells them.
//!
//! They follow from the cluster's status; what they say is nowhere else in `$SYS`.

use std::collections::BTreeMap;

use quorate_raft::ClusterStatus;
use quorate_store::message::SharedMessage;
use quorate_store::topic::TopicName;
use serde_json::json;

use super::{Scope, Scoped};
use crate::mqtt::sys::{value, wall_ms};

const NO_QUORUM: &str = "no_quorum";

/// Alarms that are on, by name.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    on: BTreeMap<String, SharedMessage>,
    /// A node that starts has no quorum yet, and that is no alarm.
    had_quorum: bool,
}

impl Alarms {
    /// Holds the alarms against `status`; what began and what is over.
    pub(super) fn update(&mut self, status: &ClusterStatus) -> Vec<Scoped> {
        self.had_quorum |= status.has_quorum;
        let mut due = due(status);
        if !self.had_quorum {
            due.remove(NO_QUORUM);
        }
        let mut changed = Vec::new();
        self.on.retain(|name, _| {
            let goes_on = due.contains_key(name);
            if !goes_on {
                changed.extend(tell(status, "deactivate", "deactivate_at", name, "over"));
            }
            goes_on
        });
        for (name, message) in due {
            if self.on.contains_key(&name) {
                continue;
            }
            if let Some(told) = tell(status, "activate", "activate_at", &name, &message) {
                self.on.insert(name, told.1.clone());
                changed.push(told);
            }
        }
        changed
    }

    /// Those that are on, for the board.
    pub(super) fn active(&self) -> impl Iterator<Item = SharedMessage> {
        self.on.values().cloned()
    }
}

/// What is wrong now.
fn due(status: &ClusterStatus) -> BTreeMap<String, String> {
    let mut due = BTreeMap::new();
    if !status.has_quorum {
        let message = "no leader that a majority backs is known here: clients are sent away";
        due.insert(NO_QUORUM.to_owned(), message.to_owned());
    }
    // A node that has never started has no incarnation to lose.
    for node in status.nodes.iter().filter(|node| !node.is_up && !node.info.mqtt.is_empty()) {
        let message =
            format!("node {} ({}) is lost: it is silent for longer than node_timeout", node.id.0, node.info.name);
        due.insert(format!("node_lost_{}", node.id.0), message);
    }
    due
}

fn tell(status: &ClusterStatus, what: &str, when: &str, name: &str, message: &str) -> Option<Scoped> {
    let topic = TopicName::new(&format!("$SYS/brokers/{}/alarms/{what}", status.node.0)).ok()?;
    // EMQX counts microseconds here.
    let text = json!({ "name": name, "message": message, when: wall_ms().saturating_mul(1000) });
    Some((Scope::Everywhere, value(topic, text.to_string())))
}

#[cfg(test)]
mod tests {
    use quorate_raft::{ClusterId, NodeRole, NodeStatus};
    use quorate_store::command::NodeInfo;
    use quorate_store::ids::{ClusterTime, NodeId};

    use super::*;

    fn status() -> ClusterStatus {
        let node = |id| NodeStatus {
            id: NodeId(id),
            info: NodeInfo { name: format!("n{id}"), mqtt: "127.0.0.1:1883".to_owned(), ..NodeInfo::default() },
            role: NodeRole::Follower,
            is_up: true,
            is_reachable: true,
            applied: Some(1),
        };
        ClusterStatus {
            cluster: ClusterId(7),
            node: NodeId(1),
            leader: Some(NodeId(1)),
            term: 3,
            commit: 1,
            applied: 1,
            time: ClusterTime(0),
            snapshot: None,
            purged: None,
            nodes: vec![node(1), node(2)],
            has_quorum: true,
            incarnation: None,
        }
    }

    fn told(changed: &[Scoped]) -> Vec<(String, String)> {
        let name = |payload: &[u8]| {
            let text: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
            text.get("name").and_then(|n| n.as_str()).expect("a name").to_owned()
        };
        changed.iter().map(|(_, m)| (m.topic.as_str().to_owned(), name(&m.payload))).collect()
    }

    #[test]
    fn an_alarm_is_told_when_it_begins_and_when_it_is_over_and_shown_meanwhile() {
        let mut alarms = Alarms::default();
        assert!(alarms.update(&status()).is_empty());
        let mut bad = status();
        bad.has_quorum = false;
        bad.nodes.last_mut().expect("two").is_up = false;
        let activate = "$SYS/brokers/1/alarms/activate".to_owned();
        let both = ["no_quorum", "node_lost_2"].map(|name| (activate.clone(), name.to_owned()));
        assert_eq!(told(&alarms.update(&bad)), both);
        assert!(alarms.update(&bad).is_empty(), "once");
        assert_eq!(alarms.active().count(), 2);
        bad.has_quorum = true;
        let over = ("$SYS/brokers/1/alarms/deactivate".to_owned(), "no_quorum".to_owned());
        assert_eq!(told(&alarms.update(&bad)), [over]);
        assert_eq!(alarms.active().count(), 1);
    }
}
