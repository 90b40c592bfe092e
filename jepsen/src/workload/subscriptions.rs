//! Subscriptions are linearizable: SUBACK before PUBLISH means delivery, UNSUBACK before PUBLISH means none.

use std::time::{Duration, Instant};

use super::parts::{Publisher, TRY};
use super::{Actor, Part, Workload};
use crate::client::{Client, Manner};

pub(super) const WORKLOAD: Workload = Workload {
    name: "subscriptions",
    about: "two publishers; three durable clients subscribe and unsubscribe, at QoS 1 and 2, and come and go",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let changing = || Part::new(Manner::default(), Changing { filter: format!("sub{group}/+"), is_subscribed: false });
    let publisher = |topic: &str, qos| {
        Part::new(Manner::default(), Publisher { window: 4, ..Publisher::new(format!("sub{group}/{topic}"), qos) })
    };
    vec![changing(), changing(), changing(), publisher("a", 1), publisher("b", 2)]
}

struct Changing {
    filter: String,
    is_subscribed: bool,
}

impl Actor for Changing {
    fn turn(&mut self, client: &mut Client) {
        if !client.ensure_connected(Instant::now() + TRY) {
            return;
        }
        // An answer that did not come leaves it open: the same is asked again, which changes nothing if it was done.
        if self.is_subscribed {
            self.is_subscribed = !client.unsubscribe(&self.filter);
        } else {
            let qos = if client.rng.chance(50) { 1 } else { 2 };
            self.is_subscribed = client.subscribe(&self.filter, qos);
        }
        let pause = client.rng.between(100, 1_500);
        client.pump(Duration::from_millis(pause));
        if client.rng.chance(5) {
            client.break_off();
        }
    }
}
