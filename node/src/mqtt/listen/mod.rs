//! Where clients come in: every listener with its address, what is spoken there, and its bounds.
//!
//! A listener is one URL ([`ListenerOptions`]), so that it is one text in a file, a flag and a variable. It owns
//! no connection: what it says is handed to each connection that comes through it.

mod options;

pub use options::{AuthMethod, CertificateUser, ClientCertificate, Endpoint, ListenerOptions, ProxyHeader, TlsOptions};
