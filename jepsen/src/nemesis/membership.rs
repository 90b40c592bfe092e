//! Members that come and go under load.

use super::world::Scope;
use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::harness::HarnessError;

macro_rules! change {
    ($name:literal, $about:literal, $change:expr) => {
        Kind {
            name: $name,
            about: $about,
            need: Need::Whole,
            make: || Box::new(Change { change: $change, added: false }),
        }
    };
}

pub(super) const KINDS: &[Kind] = &[
    change!("add-node", "a node joins as a learner and is promoted; healed by removing a follower", add),
    change!("remove-leader", "another node joins, then the leader is removed", remove_leader),
    change!("replace-wiped", "a node is killed and removed, and another joins in its place", replace_wiped),
    change!("transfer", "leadership is handed over, several times", transfer),
    Kind {
        name: "snapshots",
        about: "snapshots and purges about every hundred entries, from the start of the run to its end",
        need: Need::ShortLog,
        make: || Box::new(Snapshots),
    },
];

/// The nodes, what was done in words, and whether there is one node more than before.
type Changed = Result<(Vec<String>, String, bool), Refused>;

/// A change that is over when it is made; a node too many is taken away again at the end.
struct Change {
    change: fn(&mut World) -> Changed,
    added: bool,
}

impl Nemesis for Change {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let (nodes, what, added) = (self.change)(world)?;
        self.added = added;
        Ok(Installed { nodes, what })
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        if std::mem::take(&mut self.added)
            && let Some(follower) = world.targets(Scope::Follower).first().copied()
        {
            world.remove(follower)?;
        }
        Ok(())
    }
}

fn add(world: &mut World) -> Changed {
    let place = world.add()?;
    let name = world.name(place);
    Ok((vec![name.clone()], format!("{name} joined and votes"), true))
}

fn remove_leader(world: &mut World) -> Changed {
    let added = world.add()?;
    let Some(leader) = world.leader() else { return Err(Refused("nobody knows a leader".into())) };
    world.remove(leader)?;
    let (old, new) = (world.name(leader), world.name(added));
    Ok((vec![old.clone(), new.clone()], format!("{new} joined, the leader {old} was removed"), false))
}

fn replace_wiped(world: &mut World) -> Changed {
    let Some(place) = world.targets(Scope::One).first().copied() else { return Err(Refused("no node".into())) };
    world.kill(place)?;
    world.remove(place)?;
    let added = world.add()?;
    let (old, new) = (world.name(place), world.name(added));
    Ok((vec![old.clone(), new.clone()], format!("{old} was killed and removed, {new} joined"), false))
}

fn transfer(world: &mut World) -> Changed {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let Some(place) = world.targets(Scope::Follower).first().copied() else { break };
        let id = world.id(place)?;
        world.change("POST", "/api/v1/cluster/leader", Some(&format!("{{\"to\":{id}}}")))?;
        nodes.push(world.name(place));
    }
    let what = format!("leadership was handed to {nodes:?}");
    Ok((nodes, what, false))
}

/// In the nodes' configuration from the start; here it is only said.
struct Snapshots;

impl Nemesis for Snapshots {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let places = world.members();
        Ok(installed(world, &places, "snapshots and purges as often as the configuration allows"))
    }

    fn heal(&mut self, _: &mut World) -> Result<(), HarnessError> {
        Ok(())
    }
}
