//! What can be wrong with the log: each error names the file or the index, and what to do.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::options::EngineKind;

/// Why the log was not opened, or ended. Cloning shares the causes: the first error is the answer to every
/// later operation.
#[derive(Clone, Debug, Error)]
pub enum LogError {
    /// The disk said no.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system answered.
        source: Arc<std::io::Error>,
    },
    /// RocksDB said no while the log was opened or read; it names the file.
    #[error("{doing} {}: {source}", path.display())]
    Rocks {
        /// What was tried.
        doing: &'static str,
        /// Which folder.
        path: PathBuf,
        /// What RocksDB answered.
        source: rocksdb::Error,
    },
    /// A write or its fsync failed. It is never tried again: after a failed fsync nobody knows what is on
    /// disk.
    #[error("writing to the log failed and is never retried, the process must end: {0}")]
    Write(Arc<dyn std::error::Error + Send + Sync>),
    /// The folder holds the files of the other engine.
    #[error(
        "the log in {} was written by the engine \"{found}\", and this node is to use \"{wanted}\", which cannot read \
         it: set log_engine = \"{found}\" again, or replace this node with an empty data directory (its state comes \
         back from the others)",
        dir.display()
    )]
    OtherEngine {
        /// The log's folder.
        dir: PathBuf,
        /// Whose files these are.
        found: EngineKind,
        /// Which engine was to open them.
        wanted: EngineKind,
    },
    /// A write-ahead log or segment is damaged where it was synced: records behind it are intact, or what is known to
    /// have been synced is missing.
    #[error(
        "the log is damaged: {} at byte {offset}: {what}. Acknowledged entries are lost, so this node must not \
         start on it: remove the node from the cluster and let it join again under a new id",
        file.display()
    )]
    Damaged {
        /// The damaged file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found and what was expected.
        what: String,
    },
    /// A write-ahead log or segment holds something that this build does not write.
    #[error("{} at byte {offset}: {what}: written by another version?", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// RocksDB came to another end of the log than the check before it.
    #[error("RocksDB recovered {} up to sequence number {recovered}, its files hold {expected}", dir.display())]
    RecoveryDisagrees {
        /// The log's folder.
        dir: PathBuf,
        /// The last sequence number in the files.
        expected: u64,
        /// The last one after recovery.
        recovered: u64,
    },
    /// A record is missing between others.
    #[error("the log in {} has a hole: record {index} is missing", dir.display())]
    Hole {
        /// The log's folder.
        dir: PathBuf,
        /// The missing index.
        index: u64,
    },
    /// A row's bytes are not what was written.
    #[error("the log in {} is damaged: {row}: {what}", dir.display())]
    Record {
        /// The log's folder.
        dir: PathBuf,
        /// Which row.
        row: String,
        /// What is wrong with it.
        what: String,
    },
    /// Written by a newer version: upgrade this node.
    #[error("the log in {} has format {found}, this build reads up to {known}: upgrade this node", dir.display())]
    Format {
        /// The log's folder.
        dir: PathBuf,
        /// Format found.
        found: u16,
        /// Newest format known.
        known: u16,
    },
    /// The caller's records do not follow the log's: a bug, stopped before it reached the disk.
    #[error("an append begins at index {found} where {expected} belongs")]
    NotConsecutive {
        /// The index that belonged there.
        expected: u64,
        /// The index that came.
        found: u64,
    },
    /// The caller wants to remove records that are purged already: a bug, stopped before it reached the disk.
    #[error("truncation from index {index}, but the log is purged up to {purged}")]
    TruncatesPurged {
        /// From where.
        index: u64,
        /// Up to where it is purged.
        purged: u64,
    },
    /// The writer thread panicked (in a waiter): nothing is written any more.
    #[error("the log's writer thread has ended")]
    WriterEnded,
    /// The engine was shut down before this operation.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Wraps an I/O error with what was tried and where.
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source: Arc::new(source) }
    }

    /// Wraps what a failed write or fsync was answered.
    pub(super) fn write(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Write(Arc::new(source))
    }

    /// Wraps an error of RocksDB with what was tried and where.
    pub(super) fn rocks(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rocksdb::Error) -> Self {
        let path = path.into();
        move |source| Self::Rocks { doing, path, source }
    }
}
