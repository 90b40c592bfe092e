//! What can be wrong with a snapshot: each error names the file.

use std::error::Error;
use std::path::PathBuf;

use thiserror::Error;

/// Why a snapshot could not be made, received or installed.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The disk said no.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The rows could not be checkpointed, or their meta not be read from the checkpoint.
    #[error("{doing} for a snapshot: {source}")]
    Source {
        /// What was tried.
        doing: &'static str,
        /// What the rows answered.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file is not what the manifest says.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found and what belongs there.
        what: String,
    },
    /// A manifest does not parse, or names what it must not.
    #[error("the manifest is refused at line {line}: {what}")]
    Manifest {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A chunk for a file, or an offset, that is not the next.
    #[error("a chunk for {name} at byte {offset}, but {have} of {want} bytes are there")]
    Chunk {
        /// The file.
        name: String,
        /// Where the chunk begins.
        offset: u64,
        /// Bytes there are.
        have: u64,
        /// Bytes there will be.
        want: u64,
    },
    /// A file number beyond the manifest.
    #[error("file {file} of a snapshot of {files} files")]
    NoSuchFile {
        /// The number asked for, from 0.
        file: usize,
        /// How many there are.
        files: usize,
    },
    /// Bytes are still missing.
    #[error("the snapshot is not whole: {name} has {have} of {want} bytes")]
    Incomplete {
        /// The file.
        name: String,
        /// Bytes there are.
        have: u64,
        /// Bytes there must be.
        want: u64,
    },
    /// Rows are there, but not which folder is the live one.
    #[error("{} is missing or damaged, but {} holds rows: replace this node, its state comes back from the others", current.display(), rows.display())]
    NoCurrent {
        /// The file that names the live folder.
        current: PathBuf,
        /// A folder with rows.
        rows: PathBuf,
    },
}

impl SnapshotError {
    /// Wraps an I/O error with what was tried and where.
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
