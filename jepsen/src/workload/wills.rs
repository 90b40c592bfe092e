//! Wills: published exactly once when due, never when not, whatever dies.

use std::time::{Duration, Instant};

use super::parts::{Subscriber, TRY};
use super::{Actor, Part, Workload};
use crate::client::{Client, Manner};
use crate::history::MessageName;
use crate::history::event::Will;

pub(super) const WORKLOAD: Workload = Workload {
    name: "wills",
    about: "clients with wills, delayed or not, that break off or say goodbye; two durable watchers",
    parts,
};

/// Publishers of wills are named apart from those of messages: their order is another.
const WILL_NAMES: u32 = 1_000;

fn parts(group: u32) -> Vec<Part> {
    let watcher = || Part::new(Manner::default(), Subscriber::new(format!("will{group}/#"), 2));
    let mortal = |qos| Part::new(Manner::default(), Mortal { topic: format!("will{group}/x"), qos, lives: 0 });
    vec![watcher(), watcher(), mortal(1), mortal(2), mortal(2), mortal(1)]
}

struct Mortal {
    topic: String,
    qos: u8,
    lives: u64,
}

impl Mortal {
    /// The next CONNECT has a will of its own.
    fn rearm(&mut self, client: &mut Client) {
        let message = MessageName { publisher: WILL_NAMES + client.id.0, seq: self.lives };
        self.lives += 1;
        let delay_s = if client.rng.chance(50) { 0 } else { u32::try_from(client.rng.between(1, 4)).unwrap_or(1) };
        client.will = Some(Will { message, topic: self.topic.clone(), qos: self.qos, delay_s });
    }
}

impl Actor for Mortal {
    fn turn(&mut self, client: &mut Client) {
        let end = Instant::now() + TRY;
        while !client.is_connected() {
            // One will for each CONNECT: what a lost one left behind must be told apart.
            self.rearm(client);
            if !client.connect(false) {
                client.pump(Duration::from_millis(100));
                if Instant::now() >= end {
                    return;
                }
            }
        }
        let life = client.rng.between(200, 2_000);
        client.pump(Duration::from_millis(life));
        if !client.is_connected() {
            // Who comes back at once finds its session before the cluster has given up the node that had it.
            let away = client.rng.between(0, 8_000);
            client.pump(Duration::from_millis(away));
            return;
        }
        match client.rng.below(10) {
            0..=4 => client.break_off(),
            5..=6 => client.disconnect(false),
            7 => client.disconnect(true),
            _ => return,
        }
        let away = client.rng.between(0, 3_000);
        client.pump(Duration::from_millis(away));
    }

    /// The last word of each is known: no will is left to come from it.
    fn last(&mut self, client: &mut Client) {
        client.disconnect(false);
    }
}
