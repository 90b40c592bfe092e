//! Disks that lose their power, fail, are full or slow: on the disk that forgets ([`crate::disk`]).

use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::disk::{FaultDisk, Operation};
use crate::harness::HarnessError;

pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "power-loss",
        about: "power loss of one, a minority, a majority or all: nothing that was not synced is left",
        need: Need::Disks,
        make: || Box::new(PowerLoss { is_torn: false, off: Vec::new() }),
    },
    Kind {
        name: "torn-tail",
        about: "power loss after which some sectors of what was not synced are there",
        need: Need::Disks,
        make: || Box::new(PowerLoss { is_torn: true, off: Vec::new() }),
    },
    Kind {
        name: "eio",
        about: "EIO on the n-th write or fsync of a minority, or on the n-th read after a restart",
        need: Need::Disks,
        make: || Box::new(Trouble { make: eio, hit: Vec::new() }),
    },
    Kind {
        name: "enospc",
        about: "the disks of a minority are full",
        need: Need::Disks,
        make: || Box::new(Trouble { make: full, hit: Vec::new() }),
    },
    Kind {
        name: "slow-fsync",
        about: "each fsync of some nodes takes 50 to 2,000 ms longer",
        need: Need::Disks,
        make: || Box::new(Trouble { make: slow, hit: Vec::new() }),
    },
];

/// EIO comes within so many operations.
const OPERATIONS_MAX: u64 = 300;
/// A full disk has room for so many bytes more, at most.
const ROOM_MAX: u64 = 256 * 1024;

struct PowerLoss {
    is_torn: bool,
    off: Vec<usize>,
}

impl Nemesis for PowerLoss {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        if !world.has_disks() {
            return Err(Refused("the nodes are not on disks that forget".into()));
        }
        let scope = world.any_scope();
        self.off = world.targets(scope);
        world.power_off(&self.off.clone())?;
        Ok(installed(world, &self.off, format!("power loss, {scope:?}")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        let off = std::mem::take(&mut self.off);
        world.power_on(&off, self.is_torn)
    }
}

/// Trouble that is made on some disks, and ended; nodes that ended over it are started again.
struct Trouble {
    make: fn(&mut World, usize) -> Result<String, HarnessError>,
    hit: Vec<usize>,
}

impl Nemesis for Trouble {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        if !world.has_disks() {
            return Err(Refused("the nodes are not on disks that forget".into()));
        }
        let scope = world.minor_scope();
        let mut what = Vec::new();
        for place in world.targets(scope) {
            self.hit.push(place);
            what.push((self.make)(world, place)?);
        }
        Ok(installed(world, &self.hit, what.join(", ")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        for place in std::mem::take(&mut self.hit) {
            world.disk(place, FaultDisk::no_trouble)?;
            world.ensure_running(place)?;
        }
        Ok(())
    }
}

fn eio(world: &mut World, place: usize) -> Result<String, HarnessError> {
    let operations = [Operation::Write, Operation::Sync, Operation::Read];
    let operation = world.rng.pick(&operations).copied().unwrap_or(Operation::Sync);
    let others = world.rng.below(if operation == Operation::Read { 20 } else { OPERATIONS_MAX });
    world.disk(place, |disk| disk.fail_after(operation, others))?;
    if operation == Operation::Read {
        // What it has read is in memory: a start reads the disk.
        world.kill(place)?;
        world.release(place)?;
    }
    Ok(format!("EIO on {operation:?} number {}", others + 1))
}

fn full(world: &mut World, place: usize) -> Result<String, HarnessError> {
    let room = world.rng.below(ROOM_MAX);
    world.disk(place, |disk| disk.leave_room(room))?;
    Ok(format!("room for {room} bytes more"))
}

fn slow(world: &mut World, place: usize) -> Result<String, HarnessError> {
    let from = world.rng.between(50, 500);
    let to = world.rng.between(from, 2_000);
    world.disk(place, |disk| disk.slow_syncs(from, to))?;
    Ok(format!("fsync takes {from} to {to} ms longer"))
}
