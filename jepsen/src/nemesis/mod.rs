//! Faults of real processes, disks, networks and clocks. Each file is one idea.
//!
//! A nemesis chooses its targets by the run's seed, installs its fault and heals it. What cannot be installed is said
//! ([`Refused`], an event in the history), never passed over.

mod clock;
mod damage;
mod delay;
mod disks;
mod membership;
mod network;
mod processes;
mod schedule;
mod world;

use crate::harness::HarnessError;

pub(crate) use clock::library as faketime;
pub(crate) use schedule::{Schedule, parse};
pub(crate) use world::{Equipment, World};

/// What was done.
pub(crate) struct Installed {
    /// Names of the nodes that it hits.
    pub(crate) nodes: Vec<String>,
    /// In words.
    pub(crate) what: String,
}

/// Why it was not done.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl From<HarnessError> for Refused {
    fn from(error: HarnessError) -> Self {
        Self(error.to_string())
    }
}

/// A fault that can be made and ended.
pub(crate) trait Nemesis {
    /// Makes it.
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused>;

    /// Ends it; also called when [`Self::install`] failed half-way.
    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError>;
}

/// What a nemesis needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Processes that can be signalled.
    Nothing,
    /// Links that can be cut.
    Machines,
    /// Relays between nodes.
    Relays,
    /// The disk that forgets.
    Disks,
    /// A clock for each process.
    Clocks,
    /// Snapshots and purges all the time, by configuration.
    ShortLog,
    /// That no other nemesis holds a node down when it begins: it takes a node's data or its membership.
    Whole,
}

/// A nemesis by its name.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) need: Need,
    pub(crate) make: fn() -> Box<dyn Nemesis>,
}

/// All of them.
pub(crate) fn all() -> Vec<Kind> {
    [processes::KINDS, network::KINDS, delay::KINDS, disks::KINDS, damage::KINDS, clock::KINDS, membership::KINDS]
        .concat()
}

/// What was done, to the nodes at these places.
fn installed(world: &World, places: &[usize], what: impl Into<String>) -> Installed {
    Installed { nodes: world.names(places), what: what.into() }
}
