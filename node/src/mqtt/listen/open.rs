//! Opens the sockets of the listeners, and closes them.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::limits::Bounds;
use super::options::{Endpoint, ListenerOptions};
use super::stats::{ListenerSnapshot, ListenerStats};
use super::tls::{Tls, TlsError};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 2048;

/// Why a listener was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The address or the path cannot be listened on.
    #[error("cannot listen for MQTT on {name}: {source}; {remedy}")]
    Listen {
        /// The listener.
        name: String,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Its TLS files cannot be used.
    #[error("cannot listen for MQTT on {name}: {source}")]
    Tls {
        /// The listener.
        name: String,
        /// Why.
        source: TlsError,
    },
}

/// A listener while it listens: what its connections need.
#[derive(Debug)]
pub(in crate::mqtt) struct Listener {
    pub(in crate::mqtt) options: ListenerOptions,
    pub(super) tls: Option<Tls>,
    pub(in crate::mqtt) bounds: Bounds,
    /// How many of those beyond the rate are told so.
    pub(super) told: Bounds,
    pub(in crate::mqtt) stats: ListenerStats,
}

impl Listener {
    pub(in crate::mqtt) fn snapshot(&self) -> ListenerSnapshot {
        self.stats.snapshot(&self.options.name)
    }

    /// Reads its TLS files again when they have changed, or `always`. False: they cannot be used.
    pub(in crate::mqtt) fn reload(&self, always: bool) -> bool {
        let Some(reloaded) = self.tls.as_ref().and_then(|tls| tls.reload(always)) else { return true };
        match &reloaded {
            Ok(()) => {
                tracing::info!(listener = %self.options, "the TLS files were read again: new connections use them")
            }
            Err(error) => tracing::error!(
                listener = %self.options,
                %error,
                "the changed TLS files cannot be used and the old certificate stays in use: correct them; they are read again by themselves, or on SIGHUP"
            ),
        }
        reloaded.is_ok()
    }
}

/// Its socket.
#[derive(Debug)]
pub(in crate::mqtt) enum ListenSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Removes the file of a Unix socket when it is dropped, if it still is the one that was made.
#[derive(Debug)]
pub(in crate::mqtt) struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), device_inode: device_inode(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !device_inode(&self.path).is_ok_and(|now| now == self.device_inode) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a Unix socket cannot be removed");
        }
    }
}

fn device_inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// A listener with its socket, before anybody is accepted.
#[derive(Debug)]
pub(in crate::mqtt) struct Opened {
    pub(in crate::mqtt) listener: Arc<Listener>,
    pub(in crate::mqtt) socket: ListenSocket,
    /// Where it is, with the port that was chosen for port 0.
    pub(in crate::mqtt) address: Option<SocketAddr>,
    pub(in crate::mqtt) file: Option<SocketFile>,
}

impl Opened {
    /// # Errors
    /// [`OpenError`] when the socket cannot be had, or the TLS files cannot be used.
    pub(in crate::mqtt) fn open(mut options: ListenerOptions) -> Result<Self, OpenError> {
        let tls = options.tls.clone().map(Tls::open).transpose();
        let tls = tls.map_err(|source| OpenError::Tls { name: options.name.clone(), source })?;
        let bounds =
            Bounds::new(options.connections_max, options.connections_per_address_max, options.connection_rate_max);
        let failed =
            |name: &str, source: io::Error, remedy| OpenError::Listen { name: name.to_owned(), source, remedy };
        let (socket, address, file) = match &options.endpoint {
            Endpoint::Tcp(address) => {
                let remedy = "is another broker running there? choose another address or port";
                let failed = |source| failed(&address.to_string(), source, remedy);
                let listener = ntex::server::create_tcp_listener(*address, BACKLOG).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                (ListenSocket::Tcp(listener), Some(address), None)
            }
            Endpoint::Unix { path, mode } => {
                let remedy = "its directory must exist and be writable, and no other process may listen there";
                let listener = open_unix(path, *mode).map_err(|source| failed(&options.name, source, remedy))?;
                let file = SocketFile::new(path).map_err(|source| failed(&options.name, source, remedy))?;
                (ListenSocket::Unix(listener), None, Some(file))
            }
        };
        if let Some(address) = address {
            options.endpoint = Endpoint::Tcp(address);
        }
        let told = Bounds::new(0, 0, options.connection_rate_max);
        let listener = Listener { options, tls, bounds, told, stats: ListenerStats::default() };
        Ok(Self { listener: Arc::new(listener), socket, address, file })
    }
}

/// A Unix socket with these permissions from its first moment. A file that a dead process left is removed; one on
/// which somebody listens, or that is no socket, is not.
fn open_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets the permissions that the socket has, less those of the umask; those come after.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, mode: u32) -> Result<Opened, OpenError> {
        Opened::open(format!("unix://{}?mode={mode:o}", path.display()).parse().unwrap())
    }

    #[test]
    fn a_unix_socket_has_its_permissions_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.sock");
        let opened = open(&path, 0o606).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o606);
        drop(opened);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_is_taken_over_from_the_dead_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.sock");
        let living = open(&path, 0o600).unwrap();
        let error = open(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("another process listens there") && error.contains("q.sock"), "{error}");
        assert!(path.exists());
        let Opened { socket, file, .. } = living;
        std::mem::forget(file); // as after kill -9
        drop(socket);
        assert!(path.exists());
        drop(open(&path, 0o600).unwrap());
        std::fs::write(&path, "precious").unwrap();
        let error = open(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("a file that is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let error = open(&dir.path().join("missing/q.sock"), 0o600).unwrap_err().to_string();
        assert!(error.contains("its directory must exist"), "{error}");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Opened::open(ListenerOptions::tcp("mqtt", address)).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("choose another address or port"), "{error}");
    }
}
