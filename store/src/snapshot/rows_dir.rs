//! `rows/`: which folder holds the live rows, and how a snapshot becomes the live rows.
//!
//! `rows/CURRENT` holds the number of the live folder, in decimal and a line feed. It is replaced by an atomic
//! rename after the new folder is whole and synced; so at any moment one whole database is live.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Snapshot, SnapshotError, tree};
use crate::files::{create_dir_synced, remove_dir, sync_dir, write_atomically};

const CURRENT: &str = "CURRENT";

/// The folder `rows/`. One owner.
#[derive(Debug)]
pub struct RowsDir {
    dir: PathBuf,
    live: u64,
}

/// A snapshot's files, ready to become the live rows.
#[derive(Debug)]
#[must_use = "staged rows are removed at the next start unless they are installed"]
pub struct StagedRows {
    number: u64,
    dir: PathBuf,
}

impl StagedRows {
    /// Their folder; the rows in it may be opened only after [`RowsDir::install`].
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl RowsDir {
    /// Opens `dir`, or creates it with an empty live folder, and removes all folders but the live one.
    ///
    /// # Errors
    /// [`SnapshotError::NoCurrent`] when rows are there but `CURRENT` is not readable; the disk's.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        create_dir_synced(dir).map_err(SnapshotError::io("creating", dir))?;
        let current = dir.join(CURRENT);
        let live = match fs::read_to_string(&current) {
            Ok(text) => text.strip_suffix('\n').and_then(|n| n.parse().ok()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(SnapshotError::io("reading", &current)(e)),
        };
        let it = match live {
            Some(live) => Self { dir: dir.to_path_buf(), live },
            None => {
                // Fine on the very first start, also one that was cut off: then nothing is in the folders.
                for rows in numbered(dir)?.into_iter().map(|n| dir.join(n.to_string())) {
                    if !tree::entries(&rows)?.is_empty() {
                        return Err(SnapshotError::NoCurrent { current, rows });
                    }
                }
                let it = Self { dir: dir.to_path_buf(), live: 1 };
                create_dir_synced(&it.live()).map_err(SnapshotError::io("creating", it.live()))?;
                it.name_live(1)?;
                it
            }
        };
        it.clean()?;
        Ok(it)
    }

    /// The folder of the live rows.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.dir.join(self.live.to_string())
    }

    /// Verifies `snapshot` and brings its files into a folder of their own, synced. The live rows may be open
    /// meanwhile.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], or the disk's.
    pub fn stage(&self, snapshot: &Snapshot) -> Result<StagedRows, SnapshotError> {
        snapshot.verify()?;
        let number = numbered(&self.dir)?.into_iter().fold(self.live, u64::max) + 1;
        let dir = self.dir.join(number.to_string());
        tree::share(&snapshot.dir, &dir, snapshot.manifest.files.iter().map(|f| f.name.as_str()))?;
        Ok(StagedRows { number, dir })
    }

    /// Makes the staged rows the live ones: when this returns they are, also after a power cut. Returns their
    /// folder. The former folder stays until [`Self::clean`], which is for after its database is closed.
    ///
    /// # Errors
    /// The disk's; then which rows are live is only known after the next start.
    #[expect(clippy::needless_pass_by_value, reason = "staged rows are installed once")]
    pub fn install(&mut self, staged: StagedRows) -> Result<PathBuf, SnapshotError> {
        self.name_live(staged.number)?;
        self.live = staged.number;
        tracing::info!(rows = %self.live().display(), "rows installed from a snapshot");
        Ok(self.live())
    }

    fn name_live(&self, number: u64) -> Result<(), SnapshotError> {
        let current = self.dir.join(CURRENT);
        write_atomically(&current, format!("{number}\n").as_bytes()).map_err(SnapshotError::io("writing", current))
    }

    /// Removes all folders but the live one.
    ///
    /// # Errors
    /// The disk's.
    pub fn clean(&self) -> Result<(), SnapshotError> {
        for number in numbered(&self.dir)?.into_iter().filter(|n| *n != self.live) {
            let old = self.dir.join(number.to_string());
            remove_dir(&old).map_err(SnapshotError::io("removing", &old))?;
        }
        sync_dir(&self.dir).map_err(SnapshotError::io("syncing", &self.dir))
    }
}

/// The numbers that name folders in `dir`.
fn numbered(dir: &Path) -> Result<Vec<u64>, SnapshotError> {
    let entries = tree::entries(dir)?;
    Ok(entries.iter().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}
