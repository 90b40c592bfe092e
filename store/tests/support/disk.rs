//! A model of a disk under a file system that keeps apart what was written and what was synced.
//!
//! - Bytes of a file are durable after fsync or fdatasync of that file, as they were then.
//! - Names in a directory (creation, removal, rename) are durable after fsync of that directory.
//! - A file whose name is not durable is gone after a cut, synced or not: stricter than most file systems.
//!
//! [`Disk::cut`] drops what is not durable. With [`Cut::Torn`] some of it survives, as on a real disk: any
//! sectors of unsynced bytes, and the first few of a directory's unsynced changes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::Rng;

pub type Ino = u64;
pub const ROOT: Ino = 1;
const SECTOR: usize = 512;

/// What survives a power cut besides what was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Clean,
    /// Some of it, chosen by this seed.
    Torn(u64),
}

#[derive(Debug, Default)]
pub struct FileNode {
    pub live: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges of `live` that changed since the last sync.
    dirty: Vec<(usize, usize)>,
}

#[derive(Debug, Default)]
pub struct DirNode {
    pub live: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
    /// Changes since the last sync, in order; what belongs together is one change.
    changes: Vec<Vec<(OsString, Option<Ino>)>>,
}

#[derive(Debug)]
pub enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
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
}

/// An errno.
pub type Errno = i32;

impl Disk {
    pub fn new() -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]);
        Self { nodes, next: ROOT + 1, changes: 0, cut_before: None, off: false, fail_sync_of: None }
    }

    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn is_off(&self) -> bool {
        self.off
    }

    pub fn cut_before(&mut self, change: u64) {
        self.cut_before = Some(change);
    }

    pub fn power_off(&mut self) {
        self.off = true;
    }

    pub fn fail_sync_of(&mut self, suffix: &str) {
        self.fail_sync_of = Some(suffix.to_owned());
    }

    /// Every operation asks first.
    pub fn is_on(&self) -> Result<(), Errno> {
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
    pub fn cut(&mut self, cut: Cut) {
        let mut rng = match cut {
            Cut::Clean => None,
            Cut::Torn(seed) => Some(Rng::new(seed)),
        };
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => file.cut(rng.as_mut()),
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

    pub fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(libc::ENOENT)
    }

    pub fn dir(&self, ino: Ino) -> Result<&DirNode, Errno> {
        match self.node(ino)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(libc::ENOTDIR),
        }
    }

    pub fn file(&self, ino: Ino) -> Result<&FileNode, Errno> {
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

    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.is_on()?;
        self.dir(parent)?.live.get(name).copied().ok_or(libc::ENOENT)
    }

    pub fn create(&mut self, parent: Ino, name: &OsStr, node: Node) -> Result<Ino, Errno> {
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

    pub fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        self.change()?;
        self.file(ino)?;
        if self.dir(parent)?.live.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.dir_mut(parent)?.apply(vec![(name.to_owned(), Some(ino))]);
        Ok(())
    }

    pub fn remove(&mut self, parent: Ino, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        self.change()?;
        let ino = *self.dir(parent)?.live.get(name).ok_or(libc::ENOENT)?;
        match self.node(ino)? {
            Node::Dir(_) if !is_dir => return Err(libc::EISDIR),
            Node::Dir(dir) if !dir.live.is_empty() => return Err(libc::ENOTEMPTY),
            Node::File(_) if is_dir => return Err(libc::ENOTDIR),
            _ => {}
        }
        // The node stays: it may be open, and its name may come back.
        self.dir_mut(parent)?.apply(vec![(name.to_owned(), None)]);
        Ok(())
    }

    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Errno> {
        self.change()?;
        let ino = *self.dir(from.0)?.live.get(from.1).ok_or(libc::ENOENT)?;
        if let Some(replaced) = self.dir(to.0)?.live.get(to.1)
            && let Node::Dir(dir) = self.node(*replaced)?
            && !dir.live.is_empty()
        {
            return Err(libc::ENOTEMPTY);
        }
        if from.0 == to.0 {
            let both = vec![(from.1.to_owned(), None), (to.1.to_owned(), Some(ino))];
            self.dir_mut(from.0)?.apply(both);
        } else {
            self.dir_mut(to.0)?.apply(vec![(to.1.to_owned(), Some(ino))]);
            self.dir_mut(from.0)?.apply(vec![(from.1.to_owned(), None)]);
        }
        Ok(())
    }

    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.change()?;
        self.file_mut(ino)?.write(offset as usize, data);
        Ok(())
    }

    pub fn resize(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        self.change()?;
        let file = self.file_mut(ino)?;
        let (old, len) = (file.live.len(), len as usize);
        file.live.resize(len, 0);
        if len > old {
            file.dirty.push((old, len));
        }
        Ok(())
    }

    pub fn sync_file(&mut self, ino: Ino) -> Result<(), Errno> {
        self.change()?;
        if let Some(suffix) = self.fail_sync_of.clone()
            && self.names_of(ino).iter().any(|name| name.to_string_lossy().ends_with(&suffix))
        {
            self.fail_sync_of = None;
            return Err(libc::EIO);
        }
        self.file_mut(ino)?.sync();
        Ok(())
    }

    fn names_of(&self, ino: Ino) -> Vec<OsString> {
        let dirs = self.nodes.values().filter_map(|node| match node {
            Node::Dir(dir) => Some(dir),
            Node::File(_) => None,
        });
        dirs.flat_map(|dir| dir.live.iter().filter(|(_, i)| **i == ino).map(|(name, _)| name.clone())).collect()
    }

    pub fn sync_dir(&mut self, ino: Ino) -> Result<(), Errno> {
        self.change()?;
        let dir = self.dir_mut(ino)?;
        dir.durable = dir.live.clone();
        dir.changes.clear();
        Ok(())
    }
}

impl FileNode {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[offset..end].copy_from_slice(data);
        self.dirty.push((offset, end));
    }

    fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for (from, to) in self.dirty.drain(..) {
            let to = to.min(self.live.len());
            if from < to {
                self.durable[from..to].copy_from_slice(&self.live[from..to]);
            }
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
                    let to = (from + SECTOR).min(self.live.len()).min(self.durable.len());
                    if from < to && rng.below(2) == 0 {
                        self.durable[from..to].copy_from_slice(&self.live[from..to]);
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
            let survive = rng.below(self.changes.len() as u64 + 1) as usize;
            for change in &self.changes[..survive] {
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
