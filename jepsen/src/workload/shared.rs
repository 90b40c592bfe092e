//! A shared group: each message goes to exactly one member, and to another only when a connection ended unsettled.

use super::parts::{Publisher, Subscriber};
use super::{Part, Workload};
use crate::client::Manner;

pub(super) const WORKLOAD: Workload = Workload {
    name: "shared",
    about: "two publishers at QoS 1 and 2; three durable members of one shared group that come and go",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let member = |qos| {
        let filter = format!("$share/g{group}/shared{group}/#");
        let subscriber = Subscriber { breaks_permille: 20, away_ms: (0, 2_000), ..Subscriber::new(filter, qos) };
        Part::new(Manner { hold_percent: 30, receive_maximum: 16, ..Manner::default() }, subscriber)
    };
    vec![
        member(2),
        member(2),
        member(1),
        Part::new(Manner::default(), Publisher::new(format!("shared{group}/a"), 1)),
        Part::new(Manner::default(), Publisher::new(format!("shared{group}/b"), 2)),
    ]
}
