//! A shared group: each message goes to exactly one member, and to another only when a connection ended unsettled.

use std::time::{Duration, Instant};

use super::parts::{Publisher, Subscriber, TRY};
use super::{Actor, Part, Workload};
use crate::client::{Client, Manner};

pub(super) const WORKLOAD: Workload = Workload {
    name: "shared",
    about: "two publishers at QoS 1 and 2; three durable members of one shared group that come and go; two \
            of another, one of which leaves for good again and again",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let member = |qos| {
        let filter = format!("$share/g{group}/shared{group}/#");
        let subscriber = Subscriber { breaks_permille: 20, away_ms: (0, 2_000), ..Subscriber::new(filter, qos) };
        Part::new(Manner { hold_percent: 30, receive_maximum: 16, ..Manner::default() }, subscriber)
    };
    let other = format!("$share/h{group}/shared{group}/#");
    let transient = Manner { expiry_s: 0, hold_percent: 30, receive_maximum: 16, ..Manner::default() };
    vec![
        Part::new(Manner::default(), Subscriber::new(other.clone(), 1)),
        Part::new(transient, Passing { filter: other }),
        member(2),
        member(2),
        member(1),
        Part::new(Manner::default(), Publisher::new(format!("shared{group}/a"), 1)),
        Part::new(Manner::default(), Publisher::new(format!("shared{group}/b"), 2)),
    ]
}

/// A member whose session ends with its connection: what it has not settled is for the others.
struct Passing {
    filter: String,
}

impl Actor for Passing {
    fn turn(&mut self, client: &mut Client) {
        if !client.ensure_connected(Instant::now() + TRY) || !client.subscribe(&self.filter, 1) {
            return;
        }
        let stays = client.rng.between(100, 1_000);
        client.pump(Duration::from_millis(stays));
        if client.rng.chance(70) {
            client.break_off();
        } else {
            client.disconnect(false);
        }
    }
}
