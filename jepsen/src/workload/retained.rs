//! A retained message is a linearizable register: writers set it, readers on any node read it by a new subscription.

use std::time::{Duration, Instant};

use super::parts::TRY;
use super::{Actor, Part, Workload};
use crate::client::{Client, Manner};

pub(super) const WORKLOAD: Workload = Workload {
    name: "retained",
    about: "retained messages of four topics as registers: two writers, three readers on any node",
    parts,
};

const TOPICS: u64 = 4;

fn parts(group: u32) -> Vec<Part> {
    let reads = || Manner { expiry_s: 0, answer_max: Duration::from_secs(3), ..Manner::default() };
    let writer = |is_first| Writer { group, is_first, set_up: 0 };
    vec![
        Part::new(Manner::default(), writer(true)),
        Part::new(Manner::default(), writer(false)),
        Part::new(reads(), Reader { group }),
        Part::new(reads(), Reader { group }),
        Part::new(reads(), Reader { group }),
    ]
}

fn topic(group: u32, number: u64) -> String {
    format!("retained{group}/{number}")
}

struct Writer {
    group: u32,
    is_first: bool,
    set_up: u64,
}

impl Actor for Writer {
    /// Every topic has a value before the first read, so that a read which finds none is one that found nothing.
    fn setup(&mut self, client: &mut Client) -> bool {
        while self.is_first && self.set_up < TOPICS {
            if client.publish(&topic(self.group, self.set_up), 1, true).is_none() {
                return false;
            }
            self.set_up += 1;
        }
        client.pump(Duration::from_millis(100));
        client.is_connected() && client.open() == 0
    }

    fn turn(&mut self, client: &mut Client) {
        if !client.ensure_connected(Instant::now() + TRY) {
            return;
        }
        if client.rng.below(1_000) < 10 {
            return client.break_off();
        }
        // One at a time: a register with a queue of writes before it tells little.
        if client.open() == 0 {
            let to = topic(self.group, client.rng.below(TOPICS));
            let qos = if client.rng.chance(70) { 1 } else { 2 };
            client.publish(&to, qos, true);
        }
        let pause = client.rng.between(10, 80);
        client.pump(Duration::from_millis(pause));
    }
}

struct Reader {
    group: u32,
}

impl Actor for Reader {
    fn turn(&mut self, client: &mut Client) {
        if !client.ensure_connected(Instant::now() + TRY) {
            return;
        }
        let of = topic(self.group, client.rng.below(TOPICS));
        // Half of them stay for a while: what comes live must go on where the retained value ends.
        let linger = if client.rng.chance(50) { client.rng.between(20, 400) } else { 0 };
        client.read_retained(&of, false, Duration::from_millis(linger));
        let pause = client.rng.between(5, 60);
        client.pump(Duration::from_millis(pause));
        if client.rng.chance(15) {
            client.disconnect(false);
        }
    }

    /// With all faults healed every topic has its value on every node.
    fn last(&mut self, client: &mut Client) {
        client.manner.answer_max = Duration::from_secs(10);
        for number in 0..TOPICS {
            client.read_retained(&topic(self.group, number), true, Duration::ZERO);
            client.disconnect(false);
            client.ensure_connected(Instant::now() + Duration::from_secs(30));
        }
    }
}
