//! What an engine is at the disk: all that differs between the engines behind [`super::LogEngine`].
//!
//! Everything above (state, queue, group commit, tail, poisoning) is shared. A [`Disk`] belongs to the writer
//! thread alone, which gives it one group of operations at a time; its [`DiskReader`] is shared by all readers.

use std::path::Path;

use super::writer::Op;
use super::{EngineKind, LogError, LogRecord, LogState};

/// What a log held when it was opened.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) state: LogState,
    /// Index of the first record of a log that was never purged.
    pub(super) begin: u64,
}

/// The writer thread's side.
pub(super) trait Disk: Send + 'static {
    /// The readers' side.
    type Reader: DiskReader;

    /// Writes all of `ops`, in their order, as one: after a power cut all of them are there, or none. `Ok` only
    /// when that is certain and all written before is certain, too, unless `sync` is false, which only tests ask
    /// for. Each engine has one such function, and its comment is the durability contract. After an error it is
    /// never called again.
    ///
    /// What was written must be readable through the reader when this returns: the tail forgets it then.
    fn write(&mut self, ops: &[Op], sync: bool) -> Result<(), LogError>;
}

/// The readers' side.
pub(super) trait DiskReader: Send + Sync + 'static {
    /// Adds records from `from` on to `out` and returns the index after them. Stops, with what it has, at the first
    /// record that it does not find. Sets `bytes_left` to 0 when the bound stopped it.
    fn read(
        &self,
        from: u64,
        to_exclusive: u64,
        bytes_left: &mut usize,
        out: &mut Vec<LogRecord>,
    ) -> Result<u64, LogError>;
}

/// Refuses a folder that holds the files of another engine than `wanted`: it would look empty to this one, and a
/// node that forgets its votes and entries takes acknowledged messages away from the cluster.
pub(super) fn refuse_other_engine(dir: &Path, wanted: EngineKind) -> Result<(), LogError> {
    for entry in std::fs::read_dir(dir).map_err(LogError::io("listing", dir))? {
        let name = entry.map_err(LogError::io("listing", dir))?.file_name();
        if let Some(found) = name.to_str().and_then(made_by).filter(|found| *found != wanted) {
            return Err(LogError::OtherEngine { dir: dir.to_path_buf(), found, wanted });
        }
    }
    Ok(())
}

/// Which engine makes files of this name; `None` for what both have (`LOCK`, `synced`) and what neither has.
fn made_by(name: &str) -> Option<EngineKind> {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    match extension {
        "seg" => Some(EngineKind::Segments),
        "log" | "sst" if stem.bytes().all(|b| b.is_ascii_digit()) => Some(EngineKind::RocksDb),
        "" if stem == "CURRENT" || stem.starts_with("MANIFEST-") => Some(EngineKind::RocksDb),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_an_engine_are_known_by_their_names() {
        for name in ["CURRENT", "MANIFEST-000001", "000004.log", "000012.sst"] {
            assert_eq!(made_by(name), Some(EngineKind::RocksDb), "{name}");
        }
        assert_eq!(made_by("0000000000000001.seg"), Some(EngineKind::Segments));
        for name in ["LOCK", "synced", "LOG", "0000000000000001.spare", "backup.log"] {
            assert_eq!(made_by(name), None, "{name}");
        }
    }
}
