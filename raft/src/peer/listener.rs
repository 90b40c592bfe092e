//! Accepting peers: hello, then the service of the connection's purpose.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quorate_store::ids::NodeId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::hello::{LocalPeer, receive};
use super::{AddressBook, PeerAcceptor, PeerConn, PeerStream, PeerTransport, Purpose};

/// Longest wait for a caller's hello.
const HELLO_TIMEOUT: Duration = Duration::from_millis(2000);
/// Most connections from peers at once.
const CONNECTIONS_MAX: usize = 1024;
/// Pause after a failed `accept` (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What serves the connections of one purpose.
pub(crate) trait PeerService: Send + Sync + 'static {
    /// Which.
    fn purpose(&self) -> Purpose;
    /// Serves one connection until it ends. `from` is 0 for a node that has not joined yet.
    fn serve(self: Arc<Self>, from: NodeId, conn: PeerConn) -> BoxFuture<'static, ()>;
}

/// The peer port.
pub(crate) struct PeerListener {
    port: Box<dyn PeerAcceptor>,
}

impl PeerListener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// When the address cannot be had, for example because it is in use.
    pub(crate) async fn bind(address: &str, transport: &dyn PeerTransport) -> io::Result<Self> {
        Ok(Self { port: transport.listen(address).await? })
    }

    /// Where it listens (the port that was chosen for port 0).
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.port.local_addr()
    }

    /// Serves until the returned task is aborted; that ends all connections.
    pub(crate) async fn run(mut self, local: LocalPeer, addresses: AddressBook, services: Vec<Arc<dyn PeerService>>) {
        let services: BTreeMap<u8, Arc<dyn PeerService>> =
            services.into_iter().map(|s| (s.purpose() as u8, s)).collect();
        let services = Arc::new(services);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (from, stream) = match self.port.accept().await {
                Ok(caller) => caller,
                Err(error) => {
                    warn!(%error, "peer port: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                warn!(connections = CONNECTIONS_MAX, "peer port: too many connections, one was refused");
                continue;
            };
            let (services, local, addresses) = (services.clone(), local.clone(), addresses.clone());
            connections.spawn(async move {
                let _place = place;
                serve_one(from, stream, &local, &addresses, &services).await;
            });
        }
    }
}

async fn serve_one(
    from: SocketAddr,
    stream: BoxFuture<'static, io::Result<PeerStream>>,
    local: &LocalPeer,
    addresses: &AddressBook,
    services: &BTreeMap<u8, Arc<dyn PeerService>>,
) {
    let hello = async { receive(PeerConn::new(stream.await?), local).await };
    let (conn, address) = match timeout(HELLO_TIMEOUT, hello).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => {
            warn!(%from, %error, "peer port: a caller was turned away");
            return;
        }
        Err(_) => {
            debug!(%from, "peer port: a caller said nothing");
            return;
        }
    };
    addresses.says(conn.peer(), &address);
    let Some(service) = services.get(&(conn.purpose() as u8)) else {
        warn!(peer = %conn.peer(), purpose = ?conn.purpose(), "peer port: nothing serves this purpose");
        return;
    };
    Arc::clone(service).serve(conn.peer(), conn).await;
}
