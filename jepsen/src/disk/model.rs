//! A model of a disk under a file system that keeps apart what was written and what was synced.
//!
//! - Bytes of a file are durable after fsync or fdatasync of that file, as they were then.
//! - Names in a directory (creation, removal, rename) are durable after fsync of that directory.
//! - A file whose name is not durable is gone after a cut, synced or not: stricter than most file systems.
//!
//! [`Disk::cut`] drops what is not durable. With [`Cut::Torn`] some of it survives, as on a real disk: any
//! sectors of unsynced bytes, and the first few of a directory's unsynced changes.
//!
//! A disk can also be in trouble without losing its power: it fills, it slows down, its n-th operation fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use crate::rng::Rng;

pub(super) type Ino = u64;
const ROOT: Ino = 1;
const SECTOR: usize = 512;

/// What a disk can fail at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reading of bytes that the kernel has not cached.
    Read,
    /// Writing.
    Write,
    /// fsync and fdatasync of a file.
    Sync,
}

/// What survives a power cut besides what was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Clean,
    /// Some of it, chosen by this seed.
    Torn(u64),
}

#[derive(Debug, Default)]
pub(super) struct FileNode {
    pub(super) live: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges of `live` that changed since the last sync.
    dirty: Vec<(usize, usize)>,
    /// Handles that are open: a file without a name lives as long.
    open: u32,
}

#[derive(Debug, Default)]
pub(super) struct DirNode {
    pub(super) live: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
    /// Changes since the last sync, in order; what belongs together is one change.
    changes: Vec<Vec<(OsString, Option<Ino>)>>,
}

#[derive(Debug)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// The disk.
#[derive(Debug)]
pub(super) struct Disk {
    nodes: BTreeMap<Ino, Node>,
    next: Ino,
    /// Changing operations so far.
    changes: u64,
    /// The power goes before this change.
    cut_before: Option<u64>,
    /// The power is off: everything fails.
    off: bool,
    /// The next fsync of a file whose name ends in this fails, once.
    fail_sync_of: Option<String>,
    /// This operation fails, once, after so many that do not.
    fail_after: Option<(Operation, u64)>,
    /// Bytes that fit.
    bytes_max: Option<u64>,
    /// An fsync takes so long at least and at most, in milliseconds.
    sync_ms: Option<(u64, u64)>,
    rng: Rng,
    /// A name went: there may be files that nothing leads to.
    has_garbage: bool,
}

/// An errno.
pub(super) type Errno = i32;

impl Disk {
    pub(super) fn new() -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]);
        Self {
            nodes,
            next: ROOT + 1,
            changes: 0,
            cut_before: None,
            off: false,
            fail_sync_of: None,
            fail_after: None,
            bytes_max: None,
            sync_ms: None,
            rng: Rng::new(1),
            has_garbage: false,
        }
    }

    pub(super) const fn fail_after(&mut self, operation: Operation, others: u64) {
        self.fail_after = Some((operation, others));
    }

    /// No trouble from now on; what is off stays off.
    pub(super) fn no_trouble(&mut self) {
        self.fail_after = None;
        self.fail_sync_of = None;
        self.bytes_max = None;
        self.sync_ms = None;
    }

    /// Room for so many bytes more than there are.
    pub(super) fn leave_room(&mut self, bytes: u64) {
        self.bytes_max = Some(self.used() + bytes);
    }

    /// Bytes of room, where they are limited.
    pub(super) fn room(&self) -> Option<u64> {
        self.bytes_max.map(|max| max.saturating_sub(self.used()))
    }

    pub(super) const fn slow_syncs(&mut self, from_ms: u64, to_ms: u64) {
        self.sync_ms = Some((from_ms, to_ms));
    }

    /// How long the next fsync takes beside its work.
    pub(super) fn sync_pause_ms(&mut self) -> u64 {
        self.sync_ms.map_or(0, |(from, to)| self.rng.between(from, to.max(from)))
    }

    fn used(&self) -> u64 {
        let bytes = |node: &Node| if let Node::File(file) = node { file.live.len() as u64 } else { 0 };
        self.nodes.values().map(bytes).sum()
    }

    /// Whether so many bytes more fit.
    fn fits(&self, more: usize) -> Result<(), Errno> {
        if self.room().is_none_or(|room| more as u64 <= room) { Ok(()) } else { Err(libc::ENOSPC) }
    }

    /// Counts an operation; it fails when its turn has come.
    fn turn(&mut self, operation: Operation) -> Result<(), Errno> {
        match &mut self.fail_after {
            Some((of, 0)) if *of == operation => {
                self.fail_after = None;
                Err(libc::EIO)
            }
            Some((of, left)) if *of == operation => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn opened(&mut self, ino: Ino) -> Result<(), Errno> {
        self.is_on()?;
        self.file_mut(ino)?.open += 1;
        Ok(())
    }

    pub(super) fn closed(&mut self, ino: Ino) {
        if let Ok(file) = self.file_mut(ino) {
            file.open = file.open.saturating_sub(1);
        }
    }

    /// Bytes of a file.
    pub(super) fn read(&mut self, ino: Ino, offset: u64, size: usize) -> Result<&[u8], Errno> {
        self.is_on()?;
        self.turn(Operation::Read)?;
        let live = &self.file(ino)?.live;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(live.len());
        Ok(live.get(from..(from + size).min(live.len())).unwrap_or_default())
    }

    /// Forgets files and folders that nothing leads to any more, not even after a cut.
    fn collect(&mut self) {
        if !std::mem::take(&mut self.has_garbage) {
            return;
        }
        let mut reached = BTreeSet::from([ROOT]);
        let mut at = vec![ROOT];
        while let Some(ino) = at.pop() {
            let Some(Node::Dir(dir)) = self.nodes.get(&ino) else { continue };
            let changed = dir.changes.iter().flatten().filter_map(|(_, ino)| ino.as_ref());
            for next in dir.live.values().chain(dir.durable.values()).chain(changed) {
                if reached.insert(*next) {
                    at.push(*next);
                }
            }
        }
        let mut is_left = false;
        self.nodes.retain(|ino, node| {
            let is_open = matches!(node, Node::File(file) if file.open > 0);
            is_left |= is_open && !reached.contains(ino);
            is_open || reached.contains(ino)
        });
        self.has_garbage = is_left;
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn is_off(&self) -> bool {
        self.off
    }

    pub(super) fn cut_before(&mut self, change: u64) {
        self.cut_before = Some(change);
    }

    pub(super) fn power_off(&mut self) {
        self.off = true;
    }

    pub(super) fn fail_sync_of(&mut self, suffix: &str) {
        self.fail_sync_of = Some(suffix.to_owned());
    }

    /// Every operation asks first.
    pub(super) fn is_on(&self) -> Result<(), Errno> {
        if self.off { Err(libc::EIO) } else { Ok(()) }
    }

    /// Every changing operation asks first.
    fn change(&mut self) -> Result<(), Errno> {
        if self.cut_before == Some(self.changes) {
            self.off = true;
        }
        self.is_on()?;
        self.changes += 1;
        Ok(())
    }

    /// The power is back: what was not durable is gone.
    pub(super) fn cut(&mut self, cut: Cut) {
        let mut rng = match cut {
            Cut::Clean => None,
            Cut::Torn(seed) => Some(Rng::new(seed)),
        };
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => {
                    file.open = 0;
                    file.cut(rng.as_mut());
                }
                Node::Dir(dir) => dir.cut(rng.as_mut()),
            }
        }
        let mut reached = vec![ROOT];
        let mut at = 0;
        while let Some(ino) = reached.get(at).copied() {
            if let Some(Node::Dir(dir)) = self.nodes.get(&ino) {
                reached.extend(dir.live.values());
            }
            at += 1;
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
        self.cut_before = None;
        self.off = false;
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(libc::ENOENT)
    }

    pub(super) fn dir(&self, ino: Ino) -> Result<&DirNode, Errno> {
        match self.node(ino)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(libc::ENOTDIR),
        }
    }

    pub(super) fn file(&self, ino: Ino) -> Result<&FileNode, Errno> {
        match self.node(ino)? {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(libc::EISDIR),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> Result<&mut DirNode, Errno> {
        match self.nodes.get_mut(&ino).ok_or(libc::ENOENT)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(libc::ENOTDIR),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut FileNode, Errno> {
        match self.nodes.get_mut(&ino).ok_or(libc::ENOENT)? {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(libc::EISDIR),
        }
    }

    pub(super) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.is_on()?;
        self.dir(parent)?.live.get(name).copied().ok_or(libc::ENOENT)
    }

    pub(super) fn create(&mut self, parent: Ino, name: &OsStr, node: Node) -> Result<Ino, Errno> {
        self.change()?;
        if self.dir(parent)?.live.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        self.dir_mut(parent)?.apply(vec![(name.to_owned(), Some(ino))]);
        Ok(ino)
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        self.change()?;
        self.file(ino)?;
        if self.dir(parent)?.live.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.dir_mut(parent)?.apply(vec![(name.to_owned(), Some(ino))]);
        Ok(())
    }

    pub(super) fn remove(&mut self, parent: Ino, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        self.change()?;
        let ino = *self.dir(parent)?.live.get(name).ok_or(libc::ENOENT)?;
        match self.node(ino)? {
            Node::Dir(_) if !is_dir => return Err(libc::EISDIR),
            Node::Dir(dir) if !dir.live.is_empty() => return Err(libc::ENOTEMPTY),
            Node::File(_) if is_dir => return Err(libc::ENOTDIR),
            _ => {}
        }
        // The node stays: it may be open, and its name may come back.
        self.has_garbage = true;
        self.dir_mut(parent)?.apply(vec![(name.to_owned(), None)]);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Errno> {
        self.change()?;
        let ino = *self.dir(from.0)?.live.get(from.1).ok_or(libc::ENOENT)?;
        if let Some(replaced) = self.dir(to.0)?.live.get(to.1)
            && let Node::Dir(dir) = self.node(*replaced)?
            && !dir.live.is_empty()
        {
            return Err(libc::ENOTEMPTY);
        }
        self.has_garbage = true;
        if from.0 == to.0 {
            let both = vec![(from.1.to_owned(), None), (to.1.to_owned(), Some(ino))];
            self.dir_mut(from.0)?.apply(both);
        } else {
            self.dir_mut(to.0)?.apply(vec![(to.1.to_owned(), Some(ino))]);
            self.dir_mut(from.0)?.apply(vec![(from.1.to_owned(), None)]);
        }
        Ok(())
    }

    pub(super) fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.change()?;
        self.turn(Operation::Write)?;
        let offset = usize::try_from(offset).map_err(|_| libc::EFBIG)?;
        let end = offset.checked_add(data.len()).ok_or(libc::EFBIG)?;
        self.fits(end.saturating_sub(self.file(ino)?.live.len()))?;
        self.file_mut(ino)?.write(offset, end, data);
        Ok(())
    }

    pub(super) fn resize(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        self.change()?;
        let len = usize::try_from(len).map_err(|_| libc::EFBIG)?;
        self.fits(len.saturating_sub(self.file(ino)?.live.len()))?;
        let file = self.file_mut(ino)?;
        let old = file.live.len();
        file.live.resize(len, 0);
        if len > old {
            file.dirty.push((old, len));
        }
        Ok(())
    }

    pub(super) fn sync_file(&mut self, ino: Ino) -> Result<(), Errno> {
        self.change()?;
        if let Some(suffix) = self.fail_sync_of.clone()
            && self.names_of(ino).iter().any(|name| name.to_string_lossy().ends_with(&suffix))
        {
            self.fail_sync_of = None;
            return Err(libc::EIO);
        }
        self.turn(Operation::Sync)?;
        self.file_mut(ino)?.sync();
        Ok(())
    }

    pub(super) fn names_of(&self, ino: Ino) -> Vec<OsString> {
        let dirs = self.nodes.values().filter_map(|node| match node {
            Node::Dir(dir) => Some(dir),
            Node::File(_) => None,
        });
        dirs.flat_map(|dir| dir.live.iter().filter(|(_, i)| **i == ino).map(|(name, _)| name.clone())).collect()
    }

    pub(super) fn sync_dir(&mut self, ino: Ino) -> Result<(), Errno> {
        self.change()?;
        let dir = self.dir_mut(ino)?;
        dir.durable = dir.live.clone();
        dir.changes.clear();
        self.collect();
        Ok(())
    }
}

impl FileNode {
    fn write(&mut self, offset: usize, end: usize, data: &[u8]) {
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        if let Some(place) = self.live.get_mut(offset..end) {
            place.copy_from_slice(data);
        }
        self.dirty.push((offset, end));
    }

    /// What was written there becomes durable.
    fn keep(&mut self, from: usize, to: usize) {
        let to = to.min(self.live.len()).min(self.durable.len());
        if let (Some(to), Some(from)) = (self.durable.get_mut(from..to), self.live.get(from..to)) {
            to.copy_from_slice(from);
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for (from, to) in std::mem::take(&mut self.dirty) {
            self.keep(from, to);
        }
    }

    fn cut(&mut self, rng: Option<&mut Rng>) {
        if let Some(rng) = rng
            && !self.dirty.is_empty()
        {
            if rng.below(2) == 0 {
                self.durable.resize(self.live.len(), 0);
            }
            for (from, to) in std::mem::take(&mut self.dirty) {
                for sector in from / SECTOR..to.div_ceil(SECTOR) {
                    let from = sector * SECTOR;
                    if from < self.live.len().min(self.durable.len()) && rng.below(2) == 0 {
                        self.keep(from, from + SECTOR);
                    }
                }
            }
        }
        self.dirty.clear();
        self.live = self.durable.clone();
    }
}

impl DirNode {
    fn apply(&mut self, change: Vec<(OsString, Option<Ino>)>) {
        set(&mut self.live, &change);
        self.changes.push(change);
    }

    fn cut(&mut self, rng: Option<&mut Rng>) {
        if let Some(rng) = rng {
            let survive = rng.below(self.changes.len() as u64 + 1);
            for (_, change) in (0..survive).zip(&self.changes) {
                set(&mut self.durable, change);
            }
        }
        self.changes.clear();
        self.live = self.durable.clone();
    }
}

fn set(names: &mut BTreeMap<OsString, Ino>, change: &[(OsString, Option<Ino>)]) {
    for (name, ino) in change {
        match ino {
            Some(ino) => names.insert(name.clone(), *ino),
            None => names.remove(name),
        };
    }
}
