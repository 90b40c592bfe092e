//! `snapshots/`: the whole snapshots of this node, newest last, and what is being made or received.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::tree::{self, FileId};
use super::{FileEntry, Incoming, Manifest, Snapshot, SnapshotError, SnapshotId, SnapshotMeta, manifest};
use crate::files::{create_dir_synced, remove_dir, sync_dir, sync_file, write_atomically};

const MAKING: &str = "making-";
const PEEK: &str = "peek-";
const DAMAGED: &str = "damaged-";
pub(super) const INCOMING: &str = "incoming-";

/// Limits of the snapshots kept.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotOptions {
    /// Newest snapshots kept; older ones go as soon as nobody holds them. At least 1.
    pub keep: usize,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { keep: 1 }
    }
}

/// What the closures of [`SnapshotDir::make`] may fail with.
pub type AnyError = Box<dyn Error + Send + Sync>;

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    options: SnapshotOptions,
    snapshots: Mutex<BTreeMap<SnapshotId, Arc<Snapshot>>>,
    /// Names folders that are being made.
    made: AtomicU64,
}

/// The folder `snapshots/`. Clones share it. Making and receiving may run at the same time; each takes the disk
/// for a while, so call it from a blocking thread.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    inner: Arc<Inner>,
}

impl SnapshotDir {
    /// Opens `dir`, or creates it, and removes what a crash left behind. A snapshot whose manifest is damaged
    /// is put aside under a name that says so: the rows are the truth, a new one can be made of them.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: &Path, options: SnapshotOptions) -> Result<Self, SnapshotError> {
        create_dir_synced(dir).map_err(SnapshotError::io("creating", dir))?;
        let mut snapshots = BTreeMap::new();
        let mut incoming = Vec::new();
        for entry in tree::entries(dir)? {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with(MAKING) || name.starts_with(PEEK) {
                remove(&path)?;
            } else if name.starts_with(INCOMING) {
                match load(&path) {
                    Ok(snapshot) => incoming.push(snapshot),
                    // Cut off before its manifest was there: nothing to take up again.
                    Err(_) => remove(&path)?,
                }
            } else if parse(&name).is_some() {
                match load(&path) {
                    Ok(snapshot) => drop(snapshots.insert(snapshot.id(), Arc::new(snapshot))),
                    Err(error) => {
                        tracing::error!(snapshot = %path.display(), %error, "a damaged snapshot is put aside");
                        let aside = dir.join(format!("{DAMAGED}{name}"));
                        remove(&aside)?;
                        fs::rename(&path, &aside).map_err(SnapshotError::io("putting aside", &path))?;
                    }
                }
            }
        }
        // Only the newest transfer is worth going on with, and only if it leads further.
        let newest = snapshots.last_key_value().map(|(id, _)| *id);
        incoming.sort_unstable_by_key(Snapshot::id);
        let go_on = incoming.pop_if(|i| newest.is_none_or(|newest| i.id() > newest));
        for stale in incoming {
            remove(&stale.dir)?;
        }
        if let Some(go_on) = go_on {
            tracing::info!(snapshot = %go_on.id(), "a transfer can be taken up again");
        }
        sync_dir(dir).map_err(SnapshotError::io("syncing", dir))?;
        let inner =
            Inner { dir: dir.to_path_buf(), options, snapshots: Mutex::new(snapshots), made: AtomicU64::new(0) };
        let it = Self { inner: Arc::new(inner) };
        it.prune()?;
        Ok(it)
    }

    fn snapshots(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Arc<Snapshot>>> {
        self.inner.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest whole snapshot.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Snapshot>> {
        self.snapshots().last_key_value().map(|(_, snapshot)| Arc::clone(snapshot))
    }

    /// All whole snapshots, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotId> {
        self.snapshots().keys().copied().collect()
    }

    /// Makes a snapshot: `checkpoint` writes a checkpoint into the folder it is given (which does not exist
    /// yet), `meta` reads position and meta from the folder it is given, a copy of the checkpoint that it may
    /// open and change as it likes.
    ///
    /// # Errors
    /// The closures' or the disk's; what was half made is removed.
    pub fn make(
        &self,
        checkpoint: impl FnOnce(&Path) -> Result<(), AnyError>,
        meta: impl FnOnce(&Path) -> Result<SnapshotMeta, AnyError>,
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        let number = self.inner.made.fetch_add(1, Relaxed);
        let making = self.inner.dir.join(format!("{MAKING}{number}"));
        let peek = self.inner.dir.join(format!("{PEEK}{number}"));
        let made = self.make_in(&making, &peek, checkpoint, meta);
        let cleared = remove(&peek).and(if made.is_err() { remove(&making) } else { Ok(()) });
        made.and_then(|snapshot| cleared.map(|()| snapshot))
    }

    fn make_in(
        &self,
        making: &Path,
        peek: &Path,
        checkpoint: impl FnOnce(&Path) -> Result<(), AnyError>,
        meta: impl FnOnce(&Path) -> Result<SnapshotMeta, AnyError>,
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        remove(making)?;
        remove(peek)?;
        let failed = |doing| move |source| SnapshotError::Source { doing, source };
        checkpoint(making).map_err(failed("making a checkpoint"))?;
        let names = tree::names(making)?;
        tree::share(making, peek, names.iter().map(String::as_str))?;
        let meta = meta(peek).map_err(failed("reading a checkpoint"))?;
        seal(making, meta, names, &self.known_sums())?;
        self.publish(making)
    }

    /// Checksums of tables that older snapshots share with the next one: a table never changes.
    fn known_sums(&self) -> BTreeMap<FileId, u32> {
        let snapshots: Vec<_> = self.snapshots().values().cloned().collect();
        let tables =
            snapshots.iter().flat_map(|s| s.manifest.files.iter().map(|entry| (s.dir.join(&entry.name), entry)));
        tables
            .filter(|(_, entry)| tree::is_table(&entry.name))
            .filter_map(|(path, entry)| Some((tree::file_id(&path).ok()?, entry.crc)))
            .collect()
    }

    /// Takes up the receipt of the snapshot with this manifest, or begins it. See [`Incoming`].
    ///
    /// # Errors
    /// [`SnapshotError::Manifest`] when it is refused, or the disk's.
    pub fn receive(&self, manifest: &[u8]) -> Result<Incoming, SnapshotError> {
        Incoming::open(self.clone(), &self.inner.dir, manifest)
    }

    /// Gives a sealed folder its place: renamed, and the name synced. When the same snapshot is there already,
    /// that one stays.
    pub(super) fn publish(&self, sealed: &Path) -> Result<Arc<Snapshot>, SnapshotError> {
        let mut snapshot = load(sealed)?;
        let id = snapshot.id();
        let mut snapshots = self.snapshots();
        if let Some(there) = snapshots.get(&id) {
            remove(sealed)?;
            return Ok(Arc::clone(there));
        }
        let place = self.inner.dir.join(id.to_string());
        fs::rename(sealed, &place).map_err(SnapshotError::io("publishing", &place))?;
        sync_dir(&self.inner.dir).map_err(SnapshotError::io("syncing", &self.inner.dir))?;
        snapshot.dir = place;
        tracing::info!(snapshot = %id, bytes = snapshot.manifest.total_bytes(), "snapshot published");
        let snapshot = Arc::new(snapshot);
        snapshots.insert(id, Arc::clone(&snapshot));
        drop(snapshots);
        self.prune()?;
        Ok(snapshot)
    }

    /// Removes snapshots beyond the newest ones, as far as nobody holds them.
    ///
    /// # Errors
    /// The disk's.
    pub fn prune(&self) -> Result<(), SnapshotError> {
        let mut removed = Vec::new();
        {
            let mut snapshots = self.snapshots();
            let excess = snapshots.len().saturating_sub(self.inner.options.keep.max(1));
            let old: Vec<_> = snapshots.keys().copied().take(excess).collect();
            for id in old {
                if snapshots.get(&id).is_some_and(|held| Arc::strong_count(held) == 1)
                    && let Some(snapshot) = snapshots.remove(&id)
                {
                    // Renamed first, so that a crash never leaves half a snapshot under a whole one's name.
                    let aside = self.inner.dir.join(format!("{MAKING}old-{id}"));
                    remove(&aside)?;
                    fs::rename(&snapshot.dir, &aside).map_err(SnapshotError::io("removing", &snapshot.dir))?;
                    removed.push(aside);
                }
            }
        }
        removed.iter().try_for_each(|aside| remove(aside))
    }
}

/// Writes the manifest of the files `names` in `dir` and syncs everything.
fn seal(
    dir: &Path,
    meta: SnapshotMeta,
    names: Vec<String>,
    known: &BTreeMap<FileId, u32>,
) -> Result<(), SnapshotError> {
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let path = dir.join(&name);
        let known = if tree::is_table(&name) { known.get(&tree::file_id(&path)?) } else { None };
        let (len, crc) = match known {
            Some(crc) => (fs::metadata(&path).map_err(SnapshotError::io("looking at", &path))?.len(), *crc),
            None => {
                sync_file(&path).map_err(SnapshotError::io("syncing", &path))?;
                tree::sum(&path)?
            }
        };
        files.push(FileEntry { name, len, crc });
    }
    let bytes = Manifest { meta, files }.encode()?;
    let path = dir.join(manifest::FILE);
    write_atomically(&path, &bytes).map_err(SnapshotError::io("writing", &path))
}

/// The snapshot in `dir`, as its manifest says.
pub(super) fn load(dir: &Path) -> Result<Snapshot, SnapshotError> {
    let path = dir.join(manifest::FILE);
    let manifest_bytes = Bytes::from(fs::read(&path).map_err(SnapshotError::io("reading", &path))?);
    let manifest = Manifest::decode(&manifest_bytes)?;
    Ok(Snapshot { dir: dir.to_path_buf(), manifest, manifest_bytes })
}

/// The name of a whole snapshot's folder.
fn parse(name: &str) -> Option<SnapshotId> {
    let (index, term) = name.split_once('-')?;
    let id = SnapshotId { index: index.parse().ok()?, term: term.parse().ok()? };
    (id.to_string() == name).then_some(id)
}

fn remove(dir: &Path) -> Result<(), SnapshotError> {
    remove_dir(dir).map_err(SnapshotError::io("removing", dir))
}
