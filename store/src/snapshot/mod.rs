//! Snapshots of the rows: made from a checkpoint, kept, sent and received as files, installed.
//!
//! A snapshot is a folder with the files of a RocksDB checkpoint and a manifest ([`manifest`]) that names each
//! of them with its length and CRC32C, and holds the applied position and opaque meta bytes read *from the
//! checkpoint itself*. What it owns: `snapshots/` ([`SnapshotDir`], [`Incoming`]) and the choice of the live
//! folder under `rows/` ([`RowsDir`]).
//!
//! What it never does: it never changes a file of a snapshot, never shows one that is not whole and synced,
//! and never removes one that somebody still holds. Each change of state is one atomic rename behind an
//! fsync of everything it makes visible, so it can be cut off anywhere and done again:
//!
//! | step | on disk | after a cut |
//! |---|---|---|
//! | make | `snapshots/making-*` | removed at start |
//! | receive | `snapshots/incoming-<index>-<term>-<sum>` | taken up again where it stopped |
//! | publish | renamed to `snapshots/<index>-<term>` | there |
//! | stage | `rows/<n+1>` | removed at start |
//! | install | `rows/CURRENT` replaced by rename | installed; the former `rows/<n>` is removed at start |

mod dir;
mod error;
mod incoming;
pub mod manifest;
mod rows_dir;
mod tree;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use dir::{AnyError, SnapshotDir, SnapshotOptions};
pub use error::SnapshotError;
pub use incoming::Incoming;
pub use manifest::{FileEntry, Manifest};
pub use rows_dir::{RowsDir, StagedRows};

/// The last applied entry in a snapshot. Ordered by index: snapshots hold committed entries only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// Raft log index.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.term)
    }
}

/// What was read from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last applied entry.
    pub id: SnapshotId,
    /// The log id and membership, opaque here.
    pub meta: Bytes,
}

/// A whole snapshot on disk. While it is held it is not removed.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
    /// The manifest as it stands on disk and goes over the wire.
    manifest_bytes: Bytes,
}

impl Snapshot {
    /// Its last applied entry.
    #[must_use]
    pub const fn id(&self) -> SnapshotId {
        self.manifest.meta.id
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is in it.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest for the receiver, see [`SnapshotDir::receive`].
    #[must_use]
    pub const fn manifest_bytes(&self) -> &Bytes {
        &self.manifest_bytes
    }

    /// At most `len` bytes of the `file`-th file of the manifest, from `offset`; fewer only at its end.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self, file: usize, offset: u64, len: usize) -> Result<Bytes, SnapshotError> {
        let Some(entry) = self.manifest.files.get(file) else {
            return Err(SnapshotError::NoSuchFile { file, files: self.manifest.files.len() });
        };
        let path = self.dir.join(&entry.name);
        let left = entry.len.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(len)];
        let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
        file.read_exact_at(&mut bytes, offset).map_err(SnapshotError::io("reading", &path))?;
        Ok(bytes.into())
    }

    /// Reads every file and compares it with the manifest.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] names the first file that differs.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.manifest.files.iter().try_for_each(|entry| tree::verify(&self.dir, entry))
    }
}
