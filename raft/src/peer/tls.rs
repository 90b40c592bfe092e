//! Mutual TLS between nodes, when configured.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// How nodes prove to each other who they are. The configurations are made by the binary from its files;
/// the server's must demand a client certificate.
#[derive(Clone)]
pub struct PeerTls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    server_name: ServerName<'static>,
}

impl PeerTls {
    /// `server_name` is what every node's certificate is issued for.
    #[must_use]
    pub fn new(client: Arc<ClientConfig>, server: Arc<ServerConfig>, server_name: ServerName<'static>) -> Self {
        Self { connector: client.into(), acceptor: server.into(), server_name }
    }

    pub(super) async fn connect(&self, tcp: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        self.connector.connect(self.server_name.clone(), tcp).await
    }

    pub(super) async fn accept(&self, tcp: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        self.acceptor.accept(tcp).await
    }
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}
