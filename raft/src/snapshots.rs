//! Snapshots as openraft sees them, over the folders that [`quorate_store::snapshot`] keeps.
//!
//! What a snapshot contains is read from its own rows: their applied index, and the membership bytes that the
//! apply thread left in them. All of this takes the disk: call it from a blocking thread.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_store::rows::{Rows, RowsOptions, RowsReader};
use quorate_store::snapshot::{Incoming, RowsDir, Snapshot, SnapshotDir, SnapshotId, SnapshotOptions};

use crate::encoding;
use crate::types::{LogId, SnapshotMeta, StoredMembership};

/// Bytes read at once when a snapshot is taken over from another folder.
const COPY_BYTES: usize = 1 << 20;

/// A snapshot in a folder. It is not removed while it is held.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotData(pub(crate) Arc<Snapshot>);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Snapshots {
    rows: Arc<Mutex<RowsDir>>,
    /// Set with `rows` locked: from then on none are copied.
    closed: Arc<AtomicBool>,
    dir: SnapshotDir,
    options: RowsOptions,
}

fn meta_of(snapshot: &Snapshot) -> io::Result<SnapshotMeta> {
    let meta = &snapshot.manifest().meta;
    let last_membership = if meta.meta.is_empty() {
        StoredMembership::default()
    } else {
        encoding::decode_stored_membership(&meta.meta).map_err(io::Error::other)?
    };
    Ok(SnapshotMeta { last_log_id: Some(LogId::new_term_index(meta.id.term, meta.id.index)), last_membership })
}

impl Snapshots {
    /// Opens the folders under `data_dir`, and the rows in use. What a crash left half done is removed.
    pub(crate) fn open(data_dir: &Path, options: &RowsOptions) -> io::Result<(Self, Rows)> {
        let rows = RowsDir::open(&data_dir.join("rows")).map_err(io::Error::other)?;
        let dir =
            SnapshotDir::open(&data_dir.join("snapshots"), SnapshotOptions::default()).map_err(io::Error::other)?;
        let live = Rows::open(&rows.live(), options).map_err(io::Error::other)?;
        let closed = Arc::new(AtomicBool::new(false));
        Ok((Self { rows: Arc::new(Mutex::new(rows)), closed, dir, options: options.clone() }, live))
    }

    /// Makes a snapshot of all that is applied, flushed. `rows` are asked for when nothing removes rows any more
    /// ([`Self::clean_up`] after an installation), until they are copied.
    pub(crate) fn build(&self, rows: impl FnOnce() -> Option<RowsReader>) -> io::Result<(SnapshotMeta, SnapshotData)> {
        let made = self.dir.make(
            |to| {
                let _not_removed = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
                let stopping = || io::Error::other("this node is shutting down");
                if self.closed.load(Ordering::Relaxed) {
                    return Err(stopping().into());
                }
                Ok(rows().ok_or_else(stopping)?.checkpoint(to)?)
            },
            |peek| {
                let (applied, meta) = Rows::read_applied(peek)?;
                let id = SnapshotId { index: applied.index, term: applied.term };
                Ok(quorate_store::snapshot::SnapshotMeta { id, meta })
            },
        );
        let snapshot = made.map_err(io::Error::other)?;
        Ok((meta_of(&snapshot)?, SnapshotData(snapshot)))
    }

    /// Makes a received snapshot the rows in use, durably, and opens them. The rows before it stay until
    /// [`Self::clean_up`].
    pub(crate) fn install(&self, meta: &SnapshotMeta, data: &SnapshotData) -> io::Result<Rows> {
        let found = meta_of(&data.0)?;
        if found.last_log_id != meta.last_log_id {
            let why = format!("the snapshot is of {:?}, not of {:?}", found.last_log_id, meta.last_log_id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        // What was received stands among ours already.
        if self.dir.newest().is_none_or(|newest| newest.id() < data.0.id()) {
            self.take_over(&data.0)?;
        }
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let staged = rows.stage(&data.0).map_err(io::Error::other)?;
        let live = rows.install(staged).map_err(io::Error::other)?;
        Rows::open(&live, &self.options).map_err(io::Error::other)
    }

    /// Copies a snapshot that stands elsewhere.
    pub(crate) fn take_over(&self, snapshot: &Snapshot) -> io::Result<()> {
        let mut incoming = self.receive(snapshot.manifest_bytes())?;
        while let Some((file, offset)) = incoming.next_missing() {
            let bytes = snapshot.read(file, offset, COPY_BYTES).map_err(io::Error::other)?;
            incoming.write(file, offset, &bytes).map_err(io::Error::other)?;
        }
        incoming.finish().map_err(io::Error::other)?;
        Ok(())
    }

    /// The newest snapshot.
    pub(crate) fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotData)>> {
        let newest = self.dir.newest();
        newest.map(|snapshot| Ok((meta_of(&snapshot)?, SnapshotData(snapshot)))).transpose()
    }

    /// Begins to receive the snapshot with this manifest, or goes on where an earlier attempt stopped.
    pub(crate) fn receive(&self, manifest: &[u8]) -> io::Result<Incoming> {
        self.dir.receive(manifest).map_err(io::Error::other)
    }

    /// Waits until no rows are being copied, and lets none be copied after that: then nothing here keeps the
    /// database open that a next start in the same directory would open, too.
    pub(crate) fn close(&self) {
        let _not_copied = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Rows are being copied, installed or removed.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        self.rows.try_lock().is_err()
    }

    /// Openraft's view of a received snapshot.
    pub(crate) fn received(snapshot: Arc<Snapshot>) -> io::Result<crate::types::Snapshot> {
        Ok(openraft::Snapshot { meta: meta_of(&snapshot)?, snapshot: SnapshotData(snapshot) })
    }

    /// Removes rows that are not in use any more, and snapshots beyond the newest.
    pub(crate) fn clean_up(&self) -> io::Result<()> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clean().map_err(io::Error::other)?;
        self.dir.prune().map_err(io::Error::other)
    }
}
