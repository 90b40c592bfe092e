//! Folders of database files: what is in them, copied by hard links, synced and compared.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{FileEntry, SnapshotError, manifest};
use crate::files::{create_dir_synced, sync_dir, sync_file};

const READ_BYTES: usize = 1 << 20;

/// Which file it is, under whatever name: a hard link has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    len: u64,
}

/// Which file stands at `path`.
pub(super) fn file_id(path: &Path) -> Result<FileId, SnapshotError> {
    let metadata = fs::metadata(path).map_err(SnapshotError::io("looking at", path))?;
    Ok(FileId { device: metadata.dev(), inode: metadata.ino(), len: metadata.len() })
}

/// Tables never change once they are written, so they may be shared; everything else is copied.
pub(super) fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}

/// Names of the files in `dir` that belong to its database, in order. Logs for people and locks do not.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, SnapshotError> {
    let mut out = Vec::new();
    for entry in entries(dir)? {
        let is_file = entry.file_type().map_err(SnapshotError::io("looking at", entry.path()))?.is_file();
        let name = entry.file_name().to_string_lossy().into_owned();
        let foreign = name == "LOCK" || name == "LOG" || name.starts_with("LOG.old") || name == manifest::FILE;
        if is_file && !foreign {
            out.push(name);
        }
    }
    out.sort_unstable();
    Ok(out)
}

/// What is in `dir`.
pub(super) fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>, SnapshotError> {
    fs::read_dir(dir).and_then(Iterator::collect).map_err(SnapshotError::io("listing", dir))
}

/// Makes `to` a folder with the files `names` of `from`: tables by hard link, the others copied. Everything is
/// synced, the folder's name too.
pub(super) fn share<'a>(from: &Path, to: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<(), SnapshotError> {
    create_dir_synced(to).map_err(SnapshotError::io("creating", to))?;
    for name in names {
        let (source, target) = (from.join(name), to.join(name));
        if is_table(name) {
            fs::hard_link(&source, &target).map_err(SnapshotError::io("linking", &target))?;
        } else {
            fs::copy(&source, &target).map_err(SnapshotError::io("copying", &target))?;
            sync_file(&target).map_err(SnapshotError::io("syncing", &target))?;
        }
    }
    sync_dir(to).map_err(SnapshotError::io("syncing", to))
}

/// Length and CRC32C of the file at `path`.
pub(super) fn sum(path: &Path) -> Result<(u64, u32), SnapshotError> {
    let mut file = File::open(path).map_err(SnapshotError::io("opening", path))?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut len, mut crc) = (0, 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((len, crc)),
            Ok(n) => {
                len += n as u64;
                crc = crc32c::crc32c_append(crc, buffer.get(..n).unwrap_or_default());
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(SnapshotError::io("reading", path)(e)),
        }
    }
}

/// Compares a file in `dir` with its entry.
pub(super) fn verify(dir: &Path, entry: &FileEntry) -> Result<(), SnapshotError> {
    let path = dir.join(&entry.name);
    let (len, crc) = sum(&path)?;
    if (len, crc) == (entry.len, entry.crc) {
        return Ok(());
    }
    let what = format!("{len} bytes with checksum {crc:08x}, the manifest says {} with {:08x}", entry.len, entry.crc);
    Err(SnapshotError::Damaged { path, what })
}
