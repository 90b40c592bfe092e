//! The torn end of RocksDB's MANIFEST.
//!
//! RocksDB appends a change of its files to the MANIFEST and syncs it. A power cut in between can leave a part
//! of the change behind, with bytes missing inside it; RocksDB takes that for damage and does not open. It is
//! the same file format as a write-ahead log, so the intact beginning is found the same way.

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::super::super::error::LogError;
use super::blocks::{Findings, scan};
use crate::files::{sync_dir, sync_file};

#[derive(Default)]
struct Intact {
    end: u64,
    torn: Option<(u64, String)>,
}

impl Findings for Intact {
    fn record(&mut self, _: u64, end: u64, _: Option<(u64, u32)>) -> Result<(), LogError> {
        self.end = end;
        Ok(())
    }

    fn tear(&mut self, offset: u64, what: &dyn Fn() -> String) {
        self.torn.get_or_insert_with(|| (offset, what()));
    }

    fn is_torn(&self) -> bool {
        self.torn.is_some()
    }

    /// One change may be several records behind one sync, so this may still be the torn end.
    fn begins_behind_tear(&mut self, _: u64, _: Option<u64>) -> Result<(), LogError> {
        Ok(())
    }
}

/// Cuts the MANIFEST of the RocksDB database in `dir` down to its intact beginning, if it has a torn end. The
/// whole file is kept beside it, as `MANIFEST-<n>.torn`. Does nothing where there is no database yet.
///
/// Falling back to an earlier MANIFEST never mixes states: it is a whole, earlier list of files, and RocksDB
/// refuses to open when one of them is gone. *Whether something is missing that was synced is for the caller to
/// know*: the log finds out by its chain of sequence numbers ([`super::check`]). Of rows this takes damage in the
/// *middle* for a torn end, too, and they fall back to what was flushed before it; that is caught where the node
/// starts, which refuses rows whose applied index lies before what the log still has.
///
/// # Errors
/// The disk's.
pub fn trim_manifest(dir: &Path) -> Result<(), LogError> {
    let current = dir.join("CURRENT");
    let name = match fs::read_to_string(&current) {
        Ok(name) => name,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(LogError::io("reading", &current)(e)),
    };
    // Anything else in CURRENT is for RocksDB to refuse.
    let number = name.strip_suffix('\n').and_then(|n| n.strip_prefix("MANIFEST-")).and_then(|n| n.parse().ok());
    let (Some(number), path) = (number, dir.join(name.trim_end())) else { return Ok(()) };
    if !path.try_exists().map_err(LogError::io("looking for", &path))? {
        return Ok(());
    }
    let mut intact = Intact::default();
    scan(&path, number, &mut intact)?;
    let Some((offset, what)) = intact.torn else { return Ok(()) };
    tracing::warn!(file = %path.display(), offset, what, keep = intact.end, "the torn end of a MANIFEST is cut off");
    let kept = path.with_extension("torn");
    fs::copy(&path, &kept).map_err(LogError::io("copying", &kept))?;
    sync_file(&kept).map_err(LogError::io("syncing", &kept))?;
    sync_dir(dir).map_err(LogError::io("syncing", dir))?;
    let file = OpenOptions::new().write(true).open(&path).map_err(LogError::io("opening", &path))?;
    file.set_len(intact.end).and_then(|()| file.sync_all()).map_err(LogError::io("trimming", &path))
}
