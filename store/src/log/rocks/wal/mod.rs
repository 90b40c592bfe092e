//! Reads the write-ahead logs before RocksDB may, and tells the torn end of a power cut from damage.
//!
//! RocksDB alone cannot: each of its recovery modes either drops synced records behind a damaged one without
//! a word or refuses a torn end (see `options::database`). What makes the difference decidable here is how
//! the log is written: **every record of the write-ahead log is synced before the next one begins** (purges
//! and committed marks ride on synced writes), and RocksDB numbers its records without gaps. So at most one
//! record, the last, can be torn, and the log is refused when
//!
//! 1. an intact record begins behind a damaged place in the same file,
//! 2. the sequence numbers of the records, over all live files, have a gap,
//! 3. the first one does not join on to what the MANIFEST says is in tables, or
//! 4. the last one lies before what the MANIFEST or the mark in `synced` knows to have been synced.
//!
//! Which files are live, and what the MANIFEST knows, comes from RocksDB itself ([`floor`]); a MANIFEST whose end
//! was torn is trimmed before ([`trim_manifest`]). Nothing else is written (but for an empty folder aside while
//! RocksDB is asked), so a refused log stays as it was.

mod blocks;
mod chain;
mod manifest;

use std::path::{Path, PathBuf};

use rocksdb::DB;

use super::super::error::LogError;
use super::options::manifest_only;
use crate::files::remove_dir;
use blocks::scan;
use chain::Chain;
pub use manifest::trim_manifest;

/// What the MANIFEST says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Write-ahead logs below this number are obsolete.
    pub wal_min: u64,
    /// Records up to this sequence number existed, and were synced, when the MANIFEST was last written.
    pub sequence: u64,
}

/// Asks RocksDB what the MANIFEST of the database in `dir` says; `None` when there is no database yet.
///
/// # Errors
/// When RocksDB refuses the MANIFEST or a table; it names the file.
pub fn floor(dir: &Path) -> Result<Option<Floor>, LogError> {
    let current = dir.join("CURRENT");
    if !current.try_exists().map_err(LogError::io("looking for", &current))? {
        return Ok(None);
    }
    let aside = dir.join("aside");
    let clear = || remove_dir(&aside).map_err(LogError::io("removing", &aside));
    clear()?;
    std::fs::create_dir(&aside).map_err(LogError::io("creating", &aside))?;
    let refused = |e| LogError::rocks("opening the MANIFEST of", dir)(e);
    let db = DB::open_cf_for_read_only(&manifest_only(&aside), dir, ["default"], false).map_err(refused)?;
    let wal_min = db.property_int_value("rocksdb.min-log-number-to-keep").map_err(refused)?.unwrap_or(0);
    let floor = Floor { wal_min, sequence: db.latest_sequence_number() };
    drop(db);
    clear()?;
    Ok(Some(floor))
}

/// Reads all live write-ahead logs in `dir` and returns the last sequence number that they (or, when they are
/// empty, the tables) hold. `synced` is what is known to have been synced from elsewhere, 0 for nothing.
///
/// # Errors
/// [`LogError::Damaged`] for anything but the torn end of a power cut; [`LogError::Unsupported`] for what this
/// build does not write.
pub fn check(dir: &Path, floor: Floor, synced: u64) -> Result<u64, LogError> {
    let mut chain = Chain::new(dir, floor);
    for (number, path) in wals(dir)?.into_iter().filter(|(number, _)| *number >= floor.wal_min) {
        chain.begin_file(&path);
        scan(&path, number, &mut chain)?;
    }
    chain.finish(synced)
}

/// The write-ahead logs in `dir`, oldest first.
fn wals(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let listing = LogError::io("listing", dir);
    let mut out = Vec::new();
    let entries = match std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) => return Err(listing(e)),
    };
    for entry in entries {
        let path = entry.path();
        let stem = path.file_stem().and_then(|s| s.to_str());
        if path.extension().is_some_and(|e| e == "log")
            && let Some(number) = stem.and_then(|s| s.parse().ok())
        {
            out.push((number, path));
        }
    }
    out.sort_unstable();
    Ok(out)
}
