//! A snapshot that is being received: file by file, chunk by chunk, taken up again after a restart.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::{INCOMING, SnapshotDir};
use super::{FileEntry, Manifest, Snapshot, SnapshotError, manifest, tree};
use crate::files::{create_dir_synced, sync_dir, write_atomically};

/// A snapshot on its way in; one receiver at a time. What came is kept when this is dropped; [`SnapshotDir::receive`] with the same
/// manifest takes it up again.
#[derive(Debug)]
pub struct Incoming {
    home: SnapshotDir,
    dir: PathBuf,
    manifest: Manifest,
    /// Bytes there are of each file. After a crash they may be wrong ones; [`Self::finish`] finds out.
    have: Vec<u64>,
    /// The file that is being written.
    open: Option<(usize, File)>,
}

impl Incoming {
    pub(super) fn open(home: SnapshotDir, snapshots: &Path, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let manifest = Manifest::decode(bytes)?;
        let dir = snapshots.join(format!("{INCOMING}{}-{:08x}", manifest.meta.id, crc32c::crc32c(bytes)));
        create_dir_synced(&dir).map_err(SnapshotError::io("creating", &dir))?;
        let path = dir.join(manifest::FILE);
        write_atomically(&path, bytes).map_err(SnapshotError::io("writing", &path))?;
        let mut it = Self { home, dir, have: Vec::with_capacity(manifest.files.len()), manifest, open: None };
        for entry in &it.manifest.files {
            let path = it.dir.join(&entry.name);
            let have = match fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
                Err(e) => return Err(SnapshotError::io("looking at", &path)(e)),
            };
            // Longer than it can be: not what is wanted.
            it.have.push(if have > entry.len { 0 } else { have });
        }
        Ok(it)
    }

    /// What is wanted.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes there are, of all files.
    #[must_use]
    pub fn have_bytes(&self) -> u64 {
        self.have.iter().fold(0, |sum, have| sum.saturating_add(*have))
    }

    /// The next that is missing: number of the file in the manifest, and offset in it; `None` when all bytes
    /// are there.
    #[must_use]
    pub fn next_missing(&self) -> Option<(usize, u64)> {
        let files = self.have.iter().zip(&self.manifest.files).enumerate();
        files.filter(|(_, (have, entry))| **have < entry.len).map(|(file, (have, _))| (file, *have)).next()
    }

    fn entry(&self, file: usize) -> Result<(&FileEntry, u64), SnapshotError> {
        let both = self.manifest.files.get(file).zip(self.have.get(file).copied());
        both.ok_or(SnapshotError::NoSuchFile { file, files: self.manifest.files.len() })
    }

    /// Adds a chunk to the `file`-th file; `offset` must be where it ends now.
    ///
    /// # Errors
    /// [`SnapshotError::Chunk`] for any other chunk, or the disk's.
    pub fn write(&mut self, file: usize, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        let (entry, have) = self.entry(file)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| offset == have && *end <= entry.len);
        let Some(end) = end else {
            return Err(SnapshotError::Chunk { name: entry.name.clone(), offset, have, want: entry.len });
        };
        let path = self.dir.join(&entry.name);
        let target = match self.open.take() {
            Some((open, target)) if open == file => target,
            _ => create(&path, have == 0)?,
        };
        target.write_all_at(bytes, offset).map_err(SnapshotError::io("writing", &path))?;
        self.open = Some((file, target));
        if let Some(have) = self.have.get_mut(file) {
            *have = end;
        }
        Ok(())
    }

    /// Verifies everything, syncs it and publishes the snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Incomplete`] while bytes are missing. [`SnapshotError::Damaged`] for a file that is not
    /// what the manifest says; it is forgotten, so that [`Self::next_missing`] asks for it again.
    pub fn finish(&mut self) -> Result<Arc<Snapshot>, SnapshotError> {
        self.open = None;
        if let Some((file, have)) = self.next_missing() {
            let (entry, _) = self.entry(file)?;
            return Err(SnapshotError::Incomplete { name: entry.name.clone(), have, want: entry.len });
        }
        for (entry, have) in self.manifest.files.iter().zip(&mut self.have) {
            let path = self.dir.join(&entry.name);
            let target = create(&path, entry.len == 0)?;
            if let Err(damaged) = tree::verify(&self.dir, entry) {
                *have = 0;
                target.set_len(0).map_err(SnapshotError::io("truncating", &path))?;
                return Err(damaged);
            }
            target.sync_all().map_err(SnapshotError::io("syncing", &path))?;
        }
        sync_dir(&self.dir).map_err(SnapshotError::io("syncing", &self.dir))?;
        self.home.publish(&self.dir)
    }
}

fn create(path: &Path, truncate: bool) -> Result<File, SnapshotError> {
    let open = OpenOptions::new().create(true).write(true).truncate(truncate).open(path);
    open.map_err(SnapshotError::io("opening", path))
}
