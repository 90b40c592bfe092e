//! Alarms: what an operator should look at, told when it begins and when it is over, as EMQX tells them.
//!
//! They follow from the cluster's status; what they say is nowhere else in `$SYS`. Each has one name for as long as it is
//! on; its words may come to say more, for who subscribes later.

use std::collections::BTreeMap;

use quorate_raft::{ClockAlarm, ClusterStatus};
use quorate_store::message::SharedMessage;
use quorate_store::topic::TopicName;
use serde_json::json;

use super::{Scope, Scoped};
use crate::mqtt::sys::{value, wall_ms};

const NO_QUORUM: &str = "no_quorum";
const CLOCK_HELD: &str = "clock_held";
const CLOCK_JUMPED: &str = "clock_jumped";
/// Before the Client Identifier of the session.
const QUEUE_OVER_HALF: &str = "queue_over_half/";
/// The sessions that have no alarm of their own.
const QUEUES_OVER_HALF_MORE: &str = "queues_over_half_more";

/// Alarms that are on, by name.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    on: BTreeMap<String, On>,
    /// A node that starts has no quorum yet, and that is no alarm.
    had_quorum: bool,
}

#[derive(Debug)]
struct On {
    message: String,
    since_ms: u64,
    shown: SharedMessage,
}

impl Alarms {
    /// Holds the alarms against `status`; what began and what is over.
    pub(super) fn update(&mut self, status: &ClusterStatus) -> Vec<Scoped> {
        self.had_quorum |= status.has_quorum;
        let mut due = due(status);
        if !self.had_quorum {
            due.remove(NO_QUORUM);
        }
        let now_ms = wall_ms();
        let mut changed = Vec::new();
        self.on.retain(|name, _| {
            let goes_on = due.contains_key(name);
            if !goes_on {
                changed.extend(tell(status, "deactivate", now_ms, name, "over"));
            }
            goes_on
        });
        for (name, message) in due {
            if let Some(on) = self.on.get_mut(&name) {
                if on.message != message
                    && let Some((_, shown)) = tell(status, "activate", on.since_ms, &name, &message)
                {
                    on.shown = shown;
                    on.message = message;
                }
                continue;
            }
            if let Some(told) = tell(status, "activate", now_ms, &name, &message) {
                self.on.insert(name, On { message, since_ms: now_ms, shown: told.1.clone() });
                changed.push(told);
            }
        }
        changed
    }

    /// Those that are on, for the board.
    pub(super) fn active(&self) -> impl Iterator<Item = SharedMessage> {
        self.on.values().map(|on| on.shown.clone())
    }
}

/// What is wrong now: names, and what there is to say.
pub(crate) fn due(status: &ClusterStatus) -> BTreeMap<String, String> {
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
    due.extend(status.clock_alarm.map(clock));
    queues(status, &mut due);
    due
}

fn clock(alarm: ClockAlarm) -> (String, String) {
    match alarm {
        ClockAlarm::Held { jump } => {
            let message = format!(
                "at this cold start the clocks of a majority were {} s ahead of cluster time, and nothing expires by \
                 them before all voters are here and agree: set the clocks that are wrong, or raise \
                 cold_start_jump_s_max and restart all nodes",
                jump.as_secs()
            );
            (CLOCK_HELD.to_owned(), message)
        }
        ClockAlarm::Jumped { jump } => {
            let message = format!(
                "cluster time jumped by {} s at this cold start, as the clocks of all voters agree",
                jump.as_secs()
            );
            (CLOCK_JUMPED.to_owned(), message)
        }
    }
}

fn queues(status: &ClusterStatus, due: &mut BTreeMap<String, String>) {
    let queues = &status.queues;
    for session in &queues.named {
        let message = format!(
            "session {} has {} messages in its queue, {} of {} bytes: it is full before long if its client does not \
             come and read",
            session.client_id, session.queued, session.queued_bytes, queues.bytes_max
        );
        due.insert(format!("{QUEUE_OVER_HALF}{}", session.client_id), message);
    }
    let more = queues.total.saturating_sub(queues.named.len() as u64);
    if more > 0 {
        let message = format!("and {more} more sessions have a queue over half of its {} bytes", queues.bytes_max);
        due.insert(QUEUES_OVER_HALF_MORE.to_owned(), message);
    }
}

fn tell(status: &ClusterStatus, what: &str, at_ms: u64, name: &str, message: &str) -> Option<Scoped> {
    let topic = TopicName::new(&format!("$SYS/brokers/{}/alarms/{what}", status.node.0)).ok()?;
    // EMQX counts microseconds here.
    let when = format!("{what}_at");
    let text = json!({ "name": name, "message": message, when: at_ms.saturating_mul(1000) });
    Some((Scope::Everywhere, value(topic, text.to_string())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use quorate_raft::{ClusterId, NodeRole, NodeStatus};
    use quorate_store::command::NodeInfo;
    use quorate_store::effect::{QueuesOverHalf, SessionSummary};
    use quorate_store::ids::{ClusterTime, NodeId, Position, SessionId};

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
            queues: Arc::default(),
            clock_alarm: None,
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

    fn filling(client_ids: &[&str], total: u64, queued_bytes: u64) -> Arc<QueuesOverHalf> {
        let summary = |client_id: &&str| SessionSummary {
            session: SessionId(Position::ZERO),
            client_id: (*client_id).to_owned(),
            owner: None,
            queued: 7,
            queued_bytes,
            expires_at: None,
        };
        Arc::new(QueuesOverHalf { named: client_ids.iter().map(summary).collect(), total, bytes_max: 1000 })
    }

    #[test]
    fn queues_over_half_are_named_and_counted_and_what_is_shown_keeps_up_with_them() {
        let mut alarms = Alarms::default();
        let mut status = status();
        status.queues = filling(&["a", "b"], 5, 600);
        let names: Vec<_> = told(&alarms.update(&status)).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["queue_over_half/a", "queue_over_half/b", "queues_over_half_more"]);
        let shown = |alarms: &Alarms| -> Vec<String> {
            alarms.active().map(|m| String::from_utf8(m.payload.to_vec()).expect("UTF-8")).collect()
        };
        assert!(shown(&alarms).iter().any(|text| text.contains("and 3 more sessions")), "{:?}", shown(&alarms));
        status.queues = filling(&["a", "b"], 3, 900);
        assert!(alarms.update(&status).is_empty(), "they are on already");
        assert!(shown(&alarms).iter().any(|text| text.contains("and 1 more sessions")), "{:?}", shown(&alarms));
        assert!(shown(&alarms).iter().any(|text| text.contains("900 of 1000 bytes")), "{:?}", shown(&alarms));
        status.queues = filling(&["b"], 1, 900);
        let over = "$SYS/brokers/1/alarms/deactivate".to_owned();
        let names = ["queue_over_half/a", "queues_over_half_more"].map(|name| (over.clone(), name.to_owned()));
        assert_eq!(told(&alarms.update(&status)), names);
    }

    #[test]
    fn a_clock_that_is_held_is_told_of_until_it_is_not() {
        let mut alarms = Alarms::default();
        let mut status = status();
        status.clock_alarm = Some(ClockAlarm::Held { jump: Duration::from_secs(5) });
        let activate = "$SYS/brokers/1/alarms/activate".to_owned();
        let deactivate = "$SYS/brokers/1/alarms/deactivate".to_owned();
        assert_eq!(told(&alarms.update(&status)), [(activate.clone(), "clock_held".to_owned())]);
        status.clock_alarm = Some(ClockAlarm::Jumped { jump: Duration::from_secs(5) });
        let both = [(deactivate, "clock_held".to_owned()), (activate, "clock_jumped".to_owned())];
        assert_eq!(told(&alarms.update(&status)), both);
    }
}
