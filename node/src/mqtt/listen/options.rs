//! What one listener is told by its URL.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address of this machine.
    Tcp(SocketAddr),
    /// A Unix socket, reached by whoever may open its file.
    Unix {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// A way in which a client can say who it is, tried in the order in which the listener names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// Not at all.
    Anonymous,
    /// User name and password.
    Password,
    /// Enhanced authentication by SCRAM-SHA-256.
    Scram,
    /// A JSON web token as password.
    Jwt,
    /// The client certificate, whose name is the user name.
    Certificate,
}

impl AuthMethod {
    /// All of them, with their words in a URL.
    pub const ALL: [(&'static str, Self); 5] = [
        ("anonymous", Self::Anonymous),
        ("password", Self::Password),
        ("scram", Self::Scram),
        ("jwt", Self::Jwt),
        ("certificate", Self::Certificate),
    ];
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientCertificate {
    /// It is not asked for.
    #[default]
    None,
    /// It is asked for, and verified when there is one.
    Optional,
    /// There is no connection without.
    Required,
}

/// Which name of a client certificate is the user name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CertificateUser {
    /// The common name of the subject.
    #[default]
    CommonName,
    /// The first DNS name among the subject's alternative names.
    Dns,
    /// The first mail address among them.
    Email,
    /// The first URI among them.
    Uri,
}

/// TLS of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// The certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who signs client certificates, PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show one.
    pub client_cert: ClientCertificate,
    /// How it names the user.
    pub cert_user: CertificateUser,
    /// Only TLS 1.3.
    pub only_tls13: bool,
}

/// Which PROXY protocol header each connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ProxyHeader {
    /// None: there is no proxy in front, or one that does not say for whom it speaks.
    #[default]
    None,
    /// The line of version 1.
    V1,
    /// The binary header of version 2.
    V2,
    /// Either.
    Any,
}

/// One listener, as its URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerOptions {
    /// Its name in logs and metrics: the URL without its parameters, or `mqtt`.
    pub name: String,
    /// The URL as it was written.
    pub url: String,
    /// Where.
    pub endpoint: Endpoint,
    /// With TLS, or without.
    pub tls: Option<TlsOptions>,
    /// The path of the WebSocket, for a listener that speaks MQTT through one.
    pub websocket: Option<String>,
    /// The pages whose scripts may open a WebSocket (`Origin`); empty: all.
    pub origins: Vec<String>,
    /// The header that says for whom a proxy speaks.
    pub proxy: ProxyHeader,
    /// The addresses that may send one; empty: all that reach the listener.
    pub proxy_from: Vec<IpNet>,
    /// Connections of this listener; 0: only the node's bound.
    pub connections_max: usize,
    /// Connections of one client address on this listener; 0: only the node's bound.
    pub connections_per_address_max: usize,
    /// New connections a second on this listener; 0: only the node's bound.
    pub connection_rate_max: u32,
    /// How clients authenticate, in this order. Empty: see [`crate::mqtt::auth::chain`]; unknown ones come from this
    /// machine or, with `allow_anonymous`,
    /// from everywhere.
    pub auth: Vec<AuthMethod>,
}

impl ListenerOptions {
    /// A plain TCP listener without bounds of its own.
    #[must_use]
    pub fn tcp(name: &str, address: SocketAddr) -> Self {
        Self::new(name, Endpoint::Tcp(address))
    }

    pub(super) fn new(name: &str, endpoint: Endpoint) -> Self {
        Self {
            name: name.to_owned(),
            url: name.to_owned(),
            endpoint,
            tls: None,
            websocket: None,
            origins: Vec::new(),
            proxy: ProxyHeader::None,
            proxy_from: Vec::new(),
            connections_max: 0,
            connections_per_address_max: 0,
            connection_rate_max: 0,
            auth: Vec::new(),
        }
    }

    /// Whether MQTT stands in its sockets as it is: no header, no TLS, no WebSocket before it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.tls.is_none() && self.websocket.is_none() && self.proxy == ProxyHeader::None
    }

    /// Whether only clients of this machine reach it by themselves.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self.endpoint {
            Endpoint::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Endpoint::Unix { .. } => true,
        }
    }

    /// Whether only processes of this machine reach it.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.endpoint, Endpoint::Unix { .. })
    }

    /// Whether clients may come in without saying who they are, if they may at all.
    #[must_use]
    pub fn allows_anonymous(&self) -> bool {
        self.auth.is_empty() || self.auth.contains(&AuthMethod::Anonymous)
    }
}

impl fmt::Display for ListenerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
