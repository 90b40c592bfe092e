//! Files that rot, are cut short or come back from an old backup, and disks that are lost whole: on one node at a time,
//! a minority. A node that meets damage refuses to run and names the file; its operator replaces it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::world::Scope;
use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::harness::{HarnessError, wait_for};

macro_rules! damage {
    ($name:literal, $about:literal, $damage:expr) => {
        Kind { name: $name, about: $about, need: Need::Whole, make: || Box::new(Damage { damage: $damage, hit: None }) }
    };
}

pub(super) const KINDS: &[Kind] = &[
    damage!("bit-flip", "bits of a log, SST, MANIFEST or snapshot file of one node are flipped", flip),
    damage!("truncate", "such a file is cut short", truncate),
    damage!("stale-restore", "such a file is replaced by what it was some seconds before", stale),
    Kind {
        name: "disk-lost",
        about: "all files of one node are gone; it is removed, and another joins in its place",
        need: Need::Whole,
        make: || Box::new(Lost { place: None }),
    },
];

/// A node that is going to refuse its files does so within this.
const REFUSE_MAX: Duration = Duration::from_secs(10);
/// A stale file is so old.
const STALE_AFTER: Duration = Duration::from_secs(3);

struct Damage {
    damage: fn(&mut World, usize) -> Result<String, Refused>,
    hit: Option<usize>,
}

/// One node, the leader in many cases.
fn one(world: &mut World) -> Result<usize, Refused> {
    let scope = if world.rng.chance(40) { Scope::Leader } else { Scope::One };
    world.targets(scope).first().copied().ok_or_else(|| Refused("there is no node".into()))
}

impl Nemesis for Damage {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let place = one(world)?;
        // Others must not take a second node's data meanwhile.
        world.hold(place);
        self.hit = Some(place);
        let what = (self.damage)(world, place)?;
        Ok(installed(world, &[place], what))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        let Some(place) = self.hit.take() else { return Ok(()) };
        world.release(place)?;
        let name = world.name(place);
        let node = world.cluster.node_mut(place)?;
        let refused = wait_for("a refusal", REFUSE_MAX, || if node.is_running() { Err(String::new()) } else { Ok(()) });
        if refused.is_err() {
            world.recorder.note(&format!("{name} runs on its damaged files"));
            return Ok(());
        }
        let status = world.cluster.node_mut(place)?.wait_exit(REFUSE_MAX)?;
        let last = world.cluster.node(place)?.log_tail().lines().last().unwrap_or_default().to_owned();
        world.recorder.note(&format!("{name} refused its damaged files ({status}): {last}"));
        replace(world, place)
    }
}

/// What an operator does: the old node is removed, and a new one joins with a new id.
fn replace(world: &mut World, place: usize) -> Result<(), HarnessError> {
    world.remove(place)?;
    world.add().map(drop)
}

fn failed(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Refused {
    let what = format!("{what} {}", path.display());
    move |e| Refused(format!("{what}: {e}"))
}

/// Files with bytes under a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            files(&path, found)?;
        } else if entry.metadata()?.len() > 0 {
            found.push(path);
        }
    }
    Ok(())
}

/// A file of the node's: first a kind of file is drawn, then one of it, so that a kind with many is not hit always.
fn file_of(world: &mut World, place: usize) -> Result<PathBuf, Refused> {
    let data = world.cluster.node(place)?.data_dir.clone();
    let mut all = Vec::new();
    files(&data, &mut all).map_err(failed("reading", &data))?;
    all.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_in = |path: &Path, part: &str| path.components().any(|c| c.as_os_str() == part);
    let kinds: [Vec<PathBuf>; 4] = [
        all.iter().filter(|p| name(p).ends_with(".log") || name(p).ends_with(".seg")).cloned().collect(),
        all.iter().filter(|p| name(p).ends_with(".sst") && !is_in(p, "snapshots")).cloned().collect(),
        all.iter().filter(|p| name(p).starts_with("MANIFEST")).cloned().collect(),
        all.iter().filter(|p| is_in(p, "snapshots")).cloned().collect(),
    ];
    let there: Vec<&Vec<PathBuf>> = kinds.iter().filter(|kind| !kind.is_empty()).collect();
    let kind = world.rng.pick(&there).copied();
    let file = kind.and_then(|kind| world.rng.pick(kind).cloned());
    file.ok_or_else(|| Refused("the node has no file to damage".into()))
}

/// The file's name, from the data directory on.
fn short(world: &World, place: usize, file: &Path) -> String {
    let data = world.cluster.node(place).map(|node| node.data_dir.clone()).unwrap_or_default();
    file.strip_prefix(data).unwrap_or(file).display().to_string()
}

fn flip(world: &mut World, place: usize) -> Result<String, Refused> {
    world.cluster.node_mut(place)?.kill()?;
    let file = file_of(world, place)?;
    let mut bytes = fs::read(&file).map_err(failed("reading", &file))?;
    let flips = world.rng.between(1, 8);
    for _ in 0..flips {
        let at = usize::try_from(world.rng.below(bytes.len() as u64)).unwrap_or_default();
        let bit = world.rng.below(8);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }
    fs::write(&file, &bytes).map_err(failed("writing", &file))?;
    Ok(format!("{flips} bits of {} ({} bytes)", short(world, place, &file), bytes.len()))
}

fn truncate(world: &mut World, place: usize) -> Result<String, Refused> {
    world.cluster.node_mut(place)?.kill()?;
    let file = file_of(world, place)?;
    let length = fs::metadata(&file).map_err(failed("reading", &file))?.len();
    let left = world.rng.below(length);
    let handle = fs::File::options().write(true).open(&file).map_err(failed("opening", &file))?;
    handle.set_len(left).map_err(failed("cutting", &file))?;
    Ok(format!("{} cut from {length} to {left} bytes", short(world, place, &file)))
}

fn stale(world: &mut World, place: usize) -> Result<String, Refused> {
    let file = file_of(world, place)?;
    let old = fs::read(&file).map_err(failed("reading", &file))?;
    std::thread::sleep(STALE_AFTER);
    world.cluster.node_mut(place)?.kill()?;
    // Gone meanwhile: then it comes back.
    let new = fs::read(&file).unwrap_or_default();
    fs::write(&file, &old).map_err(failed("writing", &file))?;
    let changed = if old == new { "unchanged" } else { "changed" };
    Ok(format!("{} as it was {STALE_AFTER:?} before, since then {changed}", short(world, place, &file)))
}

struct Lost {
    place: Option<usize>,
}

impl Nemesis for Lost {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let place = one(world)?;
        self.place = Some(place);
        world.kill(place)?;
        let data = world.cluster.node(place)?.data_dir.clone();
        // The folder itself may be a mounted disk.
        for entry in fs::read_dir(&data).map_err(failed("reading", &data))? {
            let path = entry.map_err(failed("reading", &data))?.path();
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(failed("removing", &path))?;
        }
        Ok(installed(world, &[place], "killed, all its files removed"))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        self.place.take().map_or(Ok(()), |place| replace(world, place))
    }
}
