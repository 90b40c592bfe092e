//! Wall clocks that jump and drift, of single processes, by libfaketime.

use std::path::{Path, PathBuf};

use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::harness::HarnessError;

pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "clock-jump",
        about: "the wall clocks of some processes jump by up to two days, forwards or back",
        need: Need::Clocks,
        make: || Box::new(Clock { set: jump, hit: Vec::new() }),
    },
    Kind {
        name: "clock-drift",
        about: "the wall clocks of some processes run at half to twice their speed",
        need: Need::Clocks,
        make: || Box::new(Clock { set: drift, hit: Vec::new() }),
    },
];

/// Where Debian, and others, put the library.
const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

/// The library, if it is installed.
pub(crate) fn library() -> Option<PathBuf> {
    LIBRARIES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// The file that says what a node's clock shows.
pub(super) fn file(data_dir: &Path) -> PathBuf {
    data_dir.with_extension("clock")
}

struct Clock {
    set: fn(&mut World) -> String,
    hit: Vec<usize>,
}

fn write(world: &World, place: usize, clock: &str) -> Result<(), HarnessError> {
    let path = file(&world.cluster.node(place)?.data_dir);
    std::fs::write(&path, format!("{clock}\n"))
        .map_err(|source| HarnessError::Io { what: format!("setting {}", path.display()), source })
}

impl Nemesis for Clock {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let scope = world.any_scope();
        let mut what = Vec::new();
        for place in world.targets(scope) {
            if !file(&world.cluster.node(place)?.data_dir).exists() {
                return Err(Refused("libfaketime is not installed: the nodes have no clocks of their own".into()));
            }
            self.hit.push(place);
            let clock = (self.set)(world);
            write(world, place, &clock)?;
            what.push(clock);
        }
        Ok(installed(world, &self.hit, format!("clocks: {what:?}")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        std::mem::take(&mut self.hit).into_iter().try_for_each(|place| write(world, place, "+0"))
    }
}

fn jump(world: &mut World) -> String {
    let sign = if world.rng.chance(50) { '+' } else { '-' };
    // Seconds, minutes, hours or days.
    let reach = [10, 600, 36_000, 172_800];
    let most = world.rng.pick(&reach).copied().unwrap_or(10);
    format!("{sign}{}", world.rng.between(1, most))
}

fn drift(world: &mut World) -> String {
    let percent = world.rng.between(50, 200);
    format!("+0 x{}.{:02}", percent / 100, percent % 100)
}
