//! Processes that die, freeze and are restarted.

use std::time::Duration;

use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::harness::{HarnessError, wait_for};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "kill",
        about: "SIGKILL of one, a minority, a majority or all; started again on their data",
        need: Need::Nothing,
        make: || Box::new(Kill::default()),
    },
    Kind {
        name: "pause",
        about: "SIGSTOP of one, a minority, a majority or all, then SIGCONT",
        need: Need::Nothing,
        make: || Box::new(Pause::default()),
    },
    Kind {
        name: "restart",
        about: "SIGTERM, which is a drain: leadership moves, clients are sent elsewhere; started again",
        need: Need::Nothing,
        make: || Box::new(Restart::default()),
    },
    Kind {
        name: "rolling-restart",
        about: "SIGTERM and start of one node after the other, each when the one before serves",
        need: Need::Whole,
        make: || Box::new(Rolling),
    },
];

/// A graceful stop: the drain of 5 s and what comes after it, on a busy machine.
const STOP_MAX: Duration = Duration::from_secs(40);

#[derive(Default)]
struct Kill {
    killed: Vec<usize>,
}

impl Nemesis for Kill {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let scope = world.any_scope();
        for place in world.targets(scope) {
            self.killed.push(place);
            world.kill(place)?;
        }
        Ok(installed(world, &self.killed, format!("SIGKILL, {scope:?}")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        std::mem::take(&mut self.killed).into_iter().try_for_each(|place| world.release(place))
    }
}

#[derive(Default)]
struct Pause {
    frozen: Vec<usize>,
}

impl Nemesis for Pause {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let scope = world.any_scope();
        for place in world.targets(scope) {
            let node = world.cluster.node_mut(place)?;
            if node.is_running() && !node.is_frozen() {
                node.freeze()?;
                self.frozen.push(place);
            }
        }
        if self.frozen.is_empty() {
            return Err(Refused("none of the chosen nodes runs".into()));
        }
        Ok(installed(world, &self.frozen, format!("SIGSTOP, {scope:?}")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        for place in std::mem::take(&mut self.frozen) {
            let node = world.cluster.node_mut(place)?;
            // Another nemesis may have killed it meanwhile.
            if node.is_running() && node.is_frozen() {
                node.thaw()?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Restart {
    stopped: Vec<usize>,
}

impl Nemesis for Restart {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let scope = world.minor_scope();
        for place in world.targets(scope) {
            world.hold(place);
            self.stopped.push(place);
            stop(world, place)?;
        }
        Ok(installed(world, &self.stopped, format!("SIGTERM, {scope:?}")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        std::mem::take(&mut self.stopped).into_iter().try_for_each(|place| world.release(place))
    }
}

/// SIGTERM; a node that does not stop within its bound is killed, and that is said.
fn stop(world: &mut World, place: usize) -> Result<(), HarnessError> {
    let node = world.cluster.node_mut(place)?;
    if !node.is_running() || node.is_frozen() {
        return node.kill();
    }
    match node.terminate(STOP_MAX) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let name = node.name.clone();
            world.recorder.note(&format!("{name} was asked to stop and ended with {status}"));
            Ok(())
        }
        Err(e) => {
            node.kill()?;
            world.recorder.note(&format!("a graceful stop did not end: {e}"));
            Ok(())
        }
    }
}

struct Rolling;

impl Nemesis for Rolling {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let places = world.members();
        for place in &places {
            world.hold(*place);
            let stopped = stop(world, *place);
            world.release(*place)?;
            stopped?;
            let wanted = places.len();
            wait_for("the restarted node is up", STOP_MAX, || match world.view() {
                Some(view) if view.voters_up() >= wanted => Ok(()),
                view => Err(format!("{view:?}")),
            })?;
        }
        Ok(installed(world, &places, "SIGTERM and start, one after the other"))
    }

    fn heal(&mut self, _: &mut World) -> Result<(), HarnessError> {
        Ok(())
    }
}
