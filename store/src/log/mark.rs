//! How far the log is known to be synced, kept beside its files.
//!
//! After each synced write the writer notes its sequence number (RocksDB's, or that of the batch in a segment) in
//! the file `synced`, without an fsync of its own. So the mark is never ahead of the disk, and after a power cut it may lag: it is a lower bound.
//! It lets the check at open tell damage at the very end of the log, where nothing follows, from the torn
//! end of a power cut, whenever the system itself stayed up (a crash, a kill, a clean stop).
//!
//! ```text
//! offset 0  "QRTSYNC1"
//!        8  sequence number  u64 little endian
//!       16  crc32c           u32 little endian, over the 16 bytes before it
//! ```

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::LogError;

const MAGIC: &[u8; 8] = b"QRTSYNC1";
const LEN: usize = 20;

/// The mark's file in the log's folder.
pub(super) const FILE: &str = "synced";

/// Writes the mark.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    /// A mark that cannot be written costs nothing but the mark: said once.
    warned: bool,
}

impl Mark {
    /// Opens or creates the mark of the log in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(LogError::io("opening", &path))?;
        Ok(Self { file, path, warned: false })
    }

    /// Notes that everything up to `sequence` is synced.
    pub(super) fn note(&mut self, sequence: u64) {
        if let Err(error) = self.file.write_all_at(&encode(sequence), 0)
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!(file = %self.path.display(), %error, "the mark of what is synced is not kept");
        }
    }
}

fn encode(sequence: u64) -> [u8; LEN] {
    let mut out = [0; LEN];
    let (magic, rest) = out.split_at_mut(8);
    magic.copy_from_slice(MAGIC);
    let (number, sum) = rest.split_at_mut(8);
    number.copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(magic), number);
    sum.copy_from_slice(&crc.to_le_bytes());
    out
}

/// The sequence number up to which the log in `dir` is known to be synced; 0 without a mark, and with one
/// that a power cut tore.
pub(super) fn read(dir: &Path) -> Result<u64, LogError> {
    let path = dir.join(FILE);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => file.take(LEN as u64).read_to_end(&mut bytes).map_err(LogError::io("reading", &path))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(LogError::io("opening", &path)(e)),
    };
    let number = bytes.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    if bytes == encode(number) {
        return Ok(number);
    }
    if !bytes.is_empty() {
        tracing::warn!(file = %path.display(), "the mark of what is synced is torn and not used");
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_a_torn_one_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), 0);
        let mut mark = Mark::open(dir.path()).unwrap();
        mark.note(u64::MAX);
        mark.note(0x0102_0304_0506_0708);
        assert_eq!(read(dir.path()).unwrap(), 0x0102_0304_0506_0708);
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), LEN);
        for cut in 0..LEN {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(dir.path()).unwrap(), 0);
        }
        let mut flipped = whole;
        flipped[9] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert_eq!(read(dir.path()).unwrap(), 0);
    }
}
