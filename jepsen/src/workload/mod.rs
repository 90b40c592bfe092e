//! What clients do while the nemesis works. Each file is one idea; [`mod@parts`] holds what they share.
//!
//! A workload is a list of actors, each with a client and a thread of its own. All go through the same phases:
//! *setup* before any fault, *load* under faults, *drain* when all faults are healed (everything outstanding is finished),
//! *read* (what is left for durable sessions is read until nothing comes any more).

mod exactly_once;
mod mixed;
mod offline;
mod parts;
mod queue;
mod retained;
mod shared;
pub(crate) mod stage;
mod subscriptions;
mod takeover;
mod wills;

use crate::client::{Client, Manner};

/// The actors of a list of workloads, with commas between.
///
/// # Errors
/// Names what there is not, and what there is.
pub(crate) fn parts(list: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    for (group, workload) in (0..).zip(named(list)?) {
        parts.extend((workload.parts)(group));
    }
    Ok(parts)
}

/// The workloads of such a list.
///
/// # Errors
/// As [`parts()`].
pub(crate) fn named(list: &str) -> Result<Vec<&'static Workload>, String> {
    let find = |name: &str| {
        let names = || ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        let found = ALL.iter().find(|workload| workload.name == name);
        found.ok_or_else(|| format!("there is no workload {name:?}; there are {}", names()))
    };
    list.split(',').map(find).collect()
}

/// What one client does.
pub(crate) trait Actor: Send {
    /// Before the first fault, on a connection; called again until it is true.
    fn setup(&mut self, _: &mut Client) -> bool {
        true
    }

    /// One turn of the load, of a second or so at most where nothing is amiss. The client may have no connection.
    fn turn(&mut self, client: &mut Client);

    /// Faults are healed, everything of its own is finished: called once, on a connection.
    fn last(&mut self, _: &mut Client) {}
}

/// An actor and what its client is.
pub(crate) struct Part {
    pub(crate) manner: Manner,
    pub(crate) actor: Box<dyn Actor>,
}

impl Part {
    pub(crate) fn new(manner: Manner, actor: impl Actor + 'static) -> Self {
        Self { manner, actor: Box::new(actor) }
    }
}

/// A workload.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Its actors, with a number that keeps the topics of two of them apart.
    pub(crate) parts: fn(u32) -> Vec<Part>,
}

/// All of them.
pub(crate) static ALL: [Workload; 9] = [
    queue::WORKLOAD,
    exactly_once::WORKLOAD,
    retained::WORKLOAD,
    subscriptions::WORKLOAD,
    takeover::WORKLOAD,
    shared::WORKLOAD,
    wills::WORKLOAD,
    offline::WORKLOAD,
    mixed::WORKLOAD,
];
