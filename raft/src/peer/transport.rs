//! How bytes get from node to node: TCP, with TLS when it is configured; or whatever a simulation puts in its place.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::PeerTls;
use super::socket::prepare;

/// Both directions of a connection.
pub struct PeerStream {
    /// What comes.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What goes.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerStream").finish_non_exhaustive()
    }
}

/// A caller: where from, and its connection, once that is set up.
pub type Caller = (SocketAddr, BoxFuture<'static, io::Result<PeerStream>>);

/// A port that peers call.
pub trait PeerAcceptor: Send + 'static {
    /// Where it listens.
    ///
    /// # Errors
    /// When that cannot be told.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next caller. Setting up its connection must not hold up the others: that is the future in it.
    /// Cancel-safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>>;
}

/// Connects nodes. Errors have the kinds of the system's: failover is decided by `ConnectionRefused`.
pub trait PeerTransport: fmt::Debug + Send + Sync + 'static {
    /// Listens at `address`.
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn PeerAcceptor>>>;

    /// Connects to `address`.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<PeerStream>>;
}

/// TCP between machines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tcp {
    tls: Option<PeerTls>,
}

impl Tcp {
    pub(crate) fn transport(tls: Option<PeerTls>) -> Arc<dyn PeerTransport> {
        Arc::new(Self { tls })
    }
}

fn plain(tcp: TcpStream) -> PeerStream {
    let (reader, writer) = tcp.into_split();
    PeerStream { reader: Box::new(reader), writer: Box::new(writer) }
}

fn secure(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> PeerStream {
    let (reader, writer) = tokio::io::split(stream);
    PeerStream { reader: Box::new(reader), writer: Box::new(writer) }
}

impl PeerTransport for Tcp {
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn PeerAcceptor>>> {
        let (address, tls) = (address.to_owned(), self.tls.clone());
        Box::pin(async move {
            let tcp = TcpListener::bind(address).await?;
            Ok(Box::new(TcpPort { tcp, tls }) as Box<dyn PeerAcceptor>)
        })
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<PeerStream>> {
        let (address, tls) = (address.to_owned(), self.tls.clone());
        Box::pin(async move {
            let tcp = TcpStream::connect(address).await?;
            prepare(&tcp)?;
            match tls {
                None => Ok(plain(tcp)),
                Some(tls) => Ok(secure(tls.connect(tcp).await?)),
            }
        })
    }
}

struct TcpPort {
    tcp: TcpListener,
    tls: Option<PeerTls>,
}

impl PeerAcceptor for TcpPort {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>> {
        Box::pin(async {
            let (tcp, from) = self.tcp.accept().await?;
            let tls = self.tls.clone();
            let set_up = async move {
                prepare(&tcp)?;
                match tls {
                    None => Ok(plain(tcp)),
                    Some(tls) => Ok(secure(tls.accept(tcp).await?)),
                }
            };
            Ok((from, Box::pin(set_up) as BoxFuture<'static, io::Result<PeerStream>>))
        })
    }
}
