//! A queue at QoS 1: what was acknowledged arrives, in order, and repeats only over broken connections.

use super::parts::{Publisher, Subscriber};
use super::{Part, Workload};
use crate::client::Manner;
use crate::wire::Version;

pub(super) const WORKLOAD: Workload = Workload {
    name: "queue",
    about: "QoS 1: three publishers, one of them with idempotency keys, two durable subscribers to all of it, one of them \
            3.1.1",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let v4 = || Manner { version: Version::V4, ..Manner::default() };
    vec![
        Part::new(Manner::default(), Subscriber::new(format!("queue{group}/#"), 1)),
        Part::new(v4(), Subscriber::new(format!("queue{group}/#"), 1)),
        Part::new(Manner::default(), Publisher { keys_permille: 50, ..Publisher::new(format!("queue{group}/a"), 1) }),
        Part::new(Manner::default(), Publisher::new(format!("queue{group}/b"), 1)),
        Part::new(v4(), Publisher::new(format!("queue{group}/c"), 1)),
    ]
}
