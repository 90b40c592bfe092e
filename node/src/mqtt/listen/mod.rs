//! Where clients come in: every listener with its address, what is spoken there, and its bounds.
//!
//! A listener is one URL ([`ListenerOptions`]), so that it is one text in a file, a flag and a variable. It owns
//! no connection: what it says is handed to each connection that comes through it.

mod arrive;
mod certificate;
mod handshake;
mod limits;
mod open;
mod options;
pub mod proxy;
mod stats;
mod tls;
mod upgrade;
mod url;
mod websocket;

pub(in crate::mqtt) use arrive::{Arrival, Client, unwrap};
pub(in crate::mqtt) use limits::Bounds;
pub use open::OpenError;
pub(in crate::mqtt) use open::{ListenSocket, Listener, Opened, SocketFile};
pub use stats::ListenerSnapshot;
pub use tls::{TlsError, load as load_tls};
pub use url::UrlError;

pub use options::{AuthMethod, CertificateUser, ClientCertificate, Endpoint, ListenerOptions, ProxyHeader, TlsOptions};
