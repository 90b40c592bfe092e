//! Files and folders that a power cut cannot undo: the few steps that everything outside RocksDB shares.
//!
//! A file's bytes are durable after fsync of the file, its name after fsync of its folder; a rename replaces
//! the old file whole or not at all, and is durable after fsync of the folder. This module only calls the
//! system; which file it is, and when, is its callers' business.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Makes the names in `dir` durable.
///
/// # Errors
/// The system's; after a failed fsync nobody knows what is on disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes the bytes of the file at `path` durable.
///
/// # Errors
/// The system's.
pub fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates `dir` and the folders above it, and makes each new name durable. An existing folder's own name is
/// made durable too: who created it may have been cut off before that.
///
/// # Errors
/// The system's.
pub fn create_dir_synced(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.try_exists()? {
        create_dir_synced(parent)?;
    }
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        other => other?,
    }
    sync_dir(parent)
}

/// Writes `bytes` to the file at `path` so that after a power cut either the old file is there, whole, or the
/// new one; when it returns, the new one.
///
/// # Errors
/// The system's.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = Path::new(&aside);
    let mut file = File::create(aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(aside, path)?;
    sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Removes the folder `dir` with all that is in it; that there is none is fine.
///
/// # Errors
/// The system's.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
