//! One owner for each client identifier: clients connect again elsewhere while the old connection stands.

use std::time::{Duration, Instant};

use super::parts::{Publisher, TRY};
use super::{Actor, Part, Workload};
use crate::client::{Client, Manner};

pub(super) const WORKLOAD: Workload = Workload {
    name: "takeover",
    about: "durable sessions at QoS 1 and 2, publishing and subscribed, taken over again and again on other nodes",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let moving = |name: &str, qos| {
        let publisher = Publisher { window: 4, ..Publisher::new(format!("take{group}/{name}"), qos) };
        let manner = Manner { hold_percent: 30, ..Manner::default() };
        Part::new(manner, Moving { publisher, filter: format!("take{group}/#"), qos })
    };
    vec![moving("a", 1), moving("b", 2), moving("c", 2)]
}

struct Moving {
    publisher: Publisher,
    filter: String,
    qos: u8,
}

impl Actor for Moving {
    fn setup(&mut self, client: &mut Client) -> bool {
        client.subscribe(&self.filter, self.qos)
    }

    fn turn(&mut self, client: &mut Client) {
        if client.rng.chance(4) {
            // If it fails, the next turn connects.
            client.take_over();
        }
        if client.ensure_connected(Instant::now() + TRY) {
            self.publisher.turn(client);
            client.pump(Duration::from_millis(20));
        }
    }
}
