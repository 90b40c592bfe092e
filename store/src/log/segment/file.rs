//! The few calls to the system: creating a preallocated file, vectored writes at a place, zeros.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::format::SECTOR;
use crate::files::sync_dir;

/// A write ends at a multiple of this where the file does not end before it: the kernel would have to read a page
/// that is written in part.
pub(super) const PAGE: u64 = 4096;
/// Parts of one vectored write (`IOV_MAX`).
const PARTS_MAX: usize = 1024;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A segment with a header.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) generation: u64,
    pub(super) file: File,
    pub(super) bytes: u64,
}

/// The name of a segment.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.seg"))
}

/// The name of a file that waits for its next use.
pub(super) fn spare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.spare"))
}

/// The name of a file that is not whole yet.
pub(super) fn new_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.new"))
}

/// For reading and writing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Creates the segment file `number`, of `bytes` zeros, durable with its name. In the place of one of that name, if
/// there is one: that must not have a header. `None` when `stop` was set meanwhile.
pub(super) fn create(dir: &Path, number: u64, bytes: u64, stop: &AtomicBool) -> io::Result<Option<File>> {
    let path = new_path(dir, number);
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    // Only for blocks that lie together: where the file system has no such call, the zeros do the same.
    let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
    let mut at = 0;
    while at < bytes {
        if stop.load(Relaxed) {
            drop(file);
            fs::remove_file(&path)?;
            return Ok(None);
        }
        let len = (bytes - at).min(1 << 20);
        write_zeros(&file, at, len)?;
        at += len;
    }
    file.sync_all()?;
    fs::rename(&path, segment_path(dir, number))?;
    sync_dir(dir)?;
    Ok(Some(file))
}

/// Writes zeros; does not sync.
pub(super) fn write_zeros(file: &File, from: u64, len: u64) -> io::Result<()> {
    let mut at = from;
    let end = from.saturating_add(len);
    while at < end {
        let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(ZEROS.get(..part).unwrap_or_default(), at)?;
        at += part as u64;
    }
    Ok(())
}

/// Writes `parts`, `len` bytes in all, one behind the other from `offset` on, and zeros behind them up to the end of
/// the page; does not sync. The file's bytes from there on must be free.
pub(super) fn write_parts<'a>(
    file: &File,
    offset: u64,
    len: u64,
    parts: impl Iterator<Item = &'a [u8]>,
    file_bytes: u64,
) -> io::Result<()> {
    let end = offset.saturating_add(len);
    let padding = usize::try_from(end.next_multiple_of(PAGE).min(file_bytes).saturating_sub(end)).unwrap_or(0);
    let padding = ZEROS.get(..padding).unwrap_or_default();
    let mut slices: Vec<IoSlice<'_>> =
        parts.chain([padding]).filter(|part| !part.is_empty()).map(IoSlice::new).collect();
    let mut rest = slices.as_mut_slice();
    let mut at = offset;
    while !rest.is_empty() {
        let now = rest.get(..rest.len().min(PARTS_MAX)).unwrap_or_default();
        match rustix::io::pwritev(file, now, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Where what is not zero in `bytes` ends, in whole sectors.
pub(super) fn end_of_nonzero(bytes: &[u8]) -> usize {
    let sectors = bytes.chunks(SECTOR).rposition(|sector| sector.iter().any(|b| *b != 0));
    sectors.map_or(0, |last| (last + 1).saturating_mul(SECTOR).min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_parts_than_one_call_takes_are_written_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let never = AtomicBool::new(false);
        let file = create(dir.path(), 1, 3 * PAGE, &never).unwrap().unwrap();
        file.write_all_at(&[9; 3 * PAGE as usize], 0).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 3) as usize]).collect();
        let want: Vec<u8> = parts.iter().flatten().copied().collect();
        write_parts(&file, 512, want.len() as u64, parts.iter().map(Vec::as_slice), 3 * PAGE).unwrap();
        let found = fs::read(segment_path(dir.path(), 1)).unwrap();
        assert_eq!(found[..512], [9; 512]);
        assert_eq!(found[512..512 + want.len()], want);
        assert!(found[512 + want.len()..PAGE as usize].iter().all(|b| *b == 0), "the rest of the page is zero");
        assert!(found[PAGE as usize..].iter().all(|b| *b == 9));
        assert_eq!(end_of_nonzero(&found), found.len());
        assert_eq!(end_of_nonzero(&[0; 2000]), 0);
    }

    #[test]
    fn a_file_that_is_not_wanted_any_more_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(create(dir.path(), 1, PAGE, &AtomicBool::new(true)).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
