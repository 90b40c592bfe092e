//! A little of everything at the same time.

use super::{Part, Workload, exactly_once, queue, retained, shared, subscriptions, takeover, wills};

pub(super) const WORKLOAD: Workload = Workload {
    name: "mixed",
    about: "queue, exactly-once, retained, subscriptions, takeover, shared and wills at once",
    parts,
};

fn parts(group: u32) -> Vec<Part> {
    let all = [
        queue::WORKLOAD,
        exactly_once::WORKLOAD,
        retained::WORKLOAD,
        subscriptions::WORKLOAD,
        takeover::WORKLOAD,
        shared::WORKLOAD,
        wills::WORKLOAD,
    ];
    all.iter().flat_map(|workload| (workload.parts)(group)).collect()
}
