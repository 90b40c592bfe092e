//! A backlog: subscribers stay away for long, and find everything when they come back, in order.

use super::parts::{Publisher, Subscriber};
use super::{Part, Workload};
use crate::client::Manner;

pub(super) const WORKLOAD: Workload = Workload {
    name: "offline",
    about: "publishers at QoS 1 and 2, one of messages that expire; durable subscribers that stay away for 5 to 15 seconds at a time",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let away = |qos, window| {
        let filter = format!("offline{group}/#");
        let subscriber = Subscriber { breaks_permille: 200, away_ms: (5_000, 15_000), ..Subscriber::new(filter, qos) };
        Part::new(Manner { receive_maximum: window, ..Manner::default() }, subscriber)
    };
    vec![
        away(1, 100),
        away(2, 10),
        Part::new(Manner::default(), Publisher::new(format!("offline{group}/a"), 1)),
        Part::new(Manner::default(), Publisher::new(format!("offline{group}/b"), 2)),
        Part::new(
            Manner::default(),
            Publisher { expiring_permille: 500, ..Publisher::new(format!("offline{group}/c"), 2) },
        ),
    ]
}
