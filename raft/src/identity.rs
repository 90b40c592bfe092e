//! Who this data directory belongs to, and that only one process uses it.
//!
//! `node.json` names the cluster and the node; it is written atomically and fsynced before anything else
//! says that name to a peer. `LOCK` is flocked for the life of the process. Nothing here is replicated.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::{fmt, str};

use quorate_store::ids::NodeId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Format of the data directory that this build writes, and the newest it reads.
pub const DATA_FORMAT: u32 = 1;

const NODE_FILE: &str = "node.json";
const NODE_FILE_NEW: &str = "node.json.new";
const LOCK_FILE: &str = "LOCK";

/// Names a cluster: random, chosen at its bootstrap, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// A new cluster's.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random::<u128>().max(1))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl str::FromStr for ClusterId {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(s, 16).map(Self)
    }
}

/// Whose the data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster.
    pub cluster: ClusterId,
    /// Node, never reused.
    pub node: NodeId,
    /// What it joined with; a repeat of the join answers the same node.
    pub token: u128,
}

/// What is written. Before the join is granted, cluster and node are missing.
#[derive(Debug, Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    cluster_id: Option<String>,
    node_id: Option<u64>,
    join_token: String,
    /// The log has been created: if it is missing later, it was lost.
    #[serde(default)]
    has_log: bool,
}

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// It cannot be read or written.
    #[error("data directory {}: {action}: {error}; check that it exists, has room and belongs to this user", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What came of it.
        error: io::Error,
    },
    /// Another process holds the lock.
    #[error("data directory {} is in use by another quorate process; stop it, or name another with --data-dir", .0.display())]
    InUse(PathBuf),
    /// Written by a newer version.
    #[error("data directory {} has format {found}, this build reads up to {DATA_FORMAT}; run the newer version again", path.display())]
    NewerFormat {
        /// Folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// `node.json` is damaged.
    #[error("{}: {why}; restore the file, or wipe the directory and join as a new node", path.display())]
    Corrupt {
        /// File.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is another cluster's or node's.
    #[error("data directory {} belongs to node {} of cluster {}, not to node {wanted_node} of cluster {wanted_cluster}; use an empty directory", path.display(), found.node, found.cluster)]
    Foreign {
        /// Folder.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Which node it should be.
        wanted_node: NodeId,
        /// Which cluster it should be.
        wanted_cluster: ClusterId,
    },
}

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Unlocked when dropped, also by the death of the process.
    _lock: File,
}

impl DataDir {
    /// Creates the folder if need be and locks it.
    ///
    /// # Errors
    /// [`IdentityError::InUse`], or when it cannot be written.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        fs::create_dir_all(path).map_err(io_error(path, "create"))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error(&lock_path, "open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(IdentityError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(io_error(&lock_path, "lock")(error)),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is; `None` while it has not joined or bootstrapped.
    ///
    /// # Errors
    /// Damaged, or of a newer format.
    pub fn identity(&self) -> Result<Option<Identity>, IdentityError> {
        Ok(self.read()?.and_then(|(identity, _)| identity))
    }

    /// The token to join with: made and written at the first call, the same ever after.
    ///
    /// # Errors
    /// Damaged, or not writable.
    pub fn join_token(&self) -> Result<u128, IdentityError> {
        if let Some((_, token)) = self.read()? {
            return Ok(token);
        }
        let token = rand::random();
        self.write(&NodeFile {
            format: DATA_FORMAT,
            cluster_id: None,
            node_id: None,
            join_token: hex(token),
            has_log: false,
        })?;
        Ok(token)
    }

    /// Makes it this node's. A repeat is a no-op.
    ///
    /// # Errors
    /// [`IdentityError::Foreign`] when it is another's already.
    pub fn claim(&self, identity: Identity) -> Result<(), IdentityError> {
        match self.identity()? {
            Some(found) if (found.cluster, found.node) == (identity.cluster, identity.node) => Ok(()),
            Some(found) => Err(IdentityError::Foreign {
                path: self.path.clone(),
                found,
                wanted_node: identity.node,
                wanted_cluster: identity.cluster,
            }),
            None => self.write(&file_of(identity, false)),
        }
    }

    /// Whether [`Self::mark_log`] was called, in this start or an earlier one.
    ///
    /// # Errors
    /// Damaged, or of a newer format.
    pub fn has_log(&self) -> Result<bool, IdentityError> {
        Ok(self.read_file()?.is_some_and(|file| file.has_log))
    }

    /// From now on a missing log is a lost one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark_log(&self, identity: Identity) -> Result<(), IdentityError> {
        if self.has_log()? { Ok(()) } else { self.write(&file_of(identity, true)) }
    }

    fn read_file(&self) -> Result<Option<NodeFile>, IdentityError> {
        let path = self.path.join(NODE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error(&path, "read")(e)),
        };
        let corrupt = |why: String| IdentityError::Corrupt { path: path.clone(), why };
        // The format first: a newer one may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_str(&text).map_err(|e| corrupt(e.to_string()))?;
        if format > DATA_FORMAT {
            return Err(IdentityError::NewerFormat { path: self.path.clone(), found: format });
        }
        serde_json::from_str(&text).map(Some).map_err(|e| corrupt(e.to_string()))
    }

    fn read(&self) -> Result<Option<(Option<Identity>, u128)>, IdentityError> {
        let Some(file) = self.read_file()? else { return Ok(None) };
        let path = self.path.join(NODE_FILE);
        let corrupt = |why: String| IdentityError::Corrupt { path: path.clone(), why };
        let token = u128::from_str_radix(&file.join_token, 16).map_err(|e| corrupt(format!("join_token: {e}")))?;
        let identity = match (file.cluster_id, file.node_id) {
            (None, None) => None,
            (Some(cluster), Some(node)) => {
                let cluster = cluster.parse().map_err(|e| corrupt(format!("cluster_id: {e}")))?;
                Some(Identity { cluster, node: NodeId(node), token })
            }
            _ => return Err(corrupt("one of cluster_id and node_id is missing".into())),
        };
        Ok(Some((identity, token)))
    }

    /// Durable when it returns: the new file is fsynced before it takes the name, the folder after.
    fn write(&self, file: &NodeFile) -> Result<(), IdentityError> {
        let path = self.path.join(NODE_FILE);
        let new = self.path.join(NODE_FILE_NEW);
        let text = serde_json::to_string_pretty(file)
            .map_err(|e| IdentityError::Corrupt { path: path.clone(), why: e.to_string() })?;
        let put = || -> io::Result<()> {
            let mut out = File::create(&new)?;
            out.write_all(text.as_bytes())?;
            out.write_all(b"\n")?;
            out.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        put().map_err(io_error(&path, "write"))
    }
}

fn file_of(identity: Identity, has_log: bool) -> NodeFile {
    NodeFile {
        format: DATA_FORMAT,
        cluster_id: Some(identity.cluster.to_string()),
        node_id: Some(identity.node.0),
        join_token: hex(identity.token),
        has_log,
    }
}

fn hex(token: u128) -> String {
    format!("{token:032x}")
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |error| IdentityError::Io { path, action, error }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn identity(cluster: u128, node: u64, token: u128) -> Identity {
        Identity { cluster: ClusterId(cluster), node: NodeId(node), token }
    }

    #[test]
    fn a_second_process_is_told_that_the_directory_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(IdentityError::InUse(_))));
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn the_join_token_and_the_identity_stay() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.identity().unwrap(), None);
        let token = data.join_token().unwrap();
        assert_eq!(data.join_token().unwrap(), token);
        assert_eq!(data.identity().unwrap(), None);
        data.claim(identity(5, 3, token)).unwrap();
        data.claim(identity(5, 3, token)).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity(5, 3, token)));
        assert_eq!(data.join_token().unwrap(), token);
        assert!(matches!(data.claim(identity(6, 3, token)), Err(IdentityError::Foreign { .. })));
        assert!(matches!(data.claim(identity(5, 4, token)), Err(IdentityError::Foreign { .. })));
    }

    #[test]
    fn a_newer_format_and_a_damaged_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let file = dir.path().join(NODE_FILE);
        fs::write(&file, r#"{"format": 2, "anything": "else"}"#).unwrap();
        assert!(matches!(data.identity(), Err(IdentityError::NewerFormat { found: 2, .. })));
        for damaged in ["", "{", r#"{"format":1}"#, r#"{"format":1,"cluster_id":"1","join_token":"2"}"#] {
            fs::write(&file, damaged).unwrap();
            assert!(matches!(data.identity(), Err(IdentityError::Corrupt { .. })), "{damaged}");
            assert!(data.join_token().is_err(), "a damaged file is never overwritten");
        }
    }
}
