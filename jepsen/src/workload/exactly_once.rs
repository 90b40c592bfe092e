//! QoS 2 both ways: each message arrives exactly once, whatever breaks in which phase.

use super::parts::{Publisher, Subscriber};
use super::{Part, Workload};
use crate::client::Manner;
use crate::wire::Version;

pub(super) const WORKLOAD: Workload = Workload {
    name: "exactly-once",
    about: "QoS 2 both ways: four publishers (one of messages that expire), two durable subscribers, connections broken in all phases",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    // Answers are held back often, so that connections break between PUBREC and PUBCOMP too.
    let slow = || Manner { hold_percent: 40, receive_maximum: 16, ..Manner::default() };
    let v4 = || Manner { version: Version::V4, hold_percent: 40, ..Manner::default() };
    let publisher =
        |topic: &str| Publisher { breaks_permille: 20, ..Publisher::new(format!("once{group}/{topic}"), 2) };
    // What may have been sent goes on when it has expired, or its receiver waits for PUBREL for ever.
    let expiring = || Publisher { expiring_permille: 500, ..publisher("d") };
    let subscriber = || Subscriber { breaks_permille: 40, ..Subscriber::new(format!("once{group}/#"), 2) };
    vec![
        Part::new(slow(), subscriber()),
        Part::new(v4(), subscriber()),
        Part::new(Manner::default(), publisher("a")),
        Part::new(Manner::default(), publisher("b")),
        Part::new(v4(), publisher("c")),
        Part::new(Manner::default(), expiring()),
    ]
}
