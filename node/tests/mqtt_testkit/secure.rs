//! Certificates, and clients that speak MQTT through TLS, WebSockets and Unix sockets.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who signs certificates, and the folder with all of them.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // Another authority has another name.
        params.distinguished_name.push(DnType::CommonName, dir.path().display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Writes `NAME.pem` and `NAME.key` of a certificate for 127.0.0.1 with this common name, in place.
    pub(crate) fn issue(&self, file: &str, common_name: &str, alternatives: Vec<SanType>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = alternatives;
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    /// `cert=…&key=…` of what was issued.
    pub(crate) fn query(&self, file: &str) -> String {
        let path = |end: &str| self.path(&format!("{file}.{end}")).display().to_string();
        format!("cert={}&key={}", path("pem"), path("key"))
    }

    /// A client that trusts this authority, and shows what was issued as `file`.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion], file: Option<&str>) -> ClientConfig {
        self.client_with(versions, file.map(|file| (self, file)))
    }

    /// A client that trusts this authority, and shows what another one issued.
    pub(crate) fn client_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        shows: Option<(&Self, &str)>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let Some((by, file)) = shows else { return builder.with_no_client_auth() };
        let chain = vec![CertificateDer::from_pem_file(by.path(&format!("{file}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_file(by.path(&format!("{file}.key"))).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    }
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn tcp(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// TLS over a socket on which something may have been said before; the handshake is done.
pub(crate) fn tls_over(mut socket: TcpStream, config: &ClientConfig) -> io::Result<Tls> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config.clone()), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

pub(crate) fn tls(address: SocketAddr, config: &ClientConfig) -> Tls {
    tls_over(tcp(address), config).unwrap()
}

/// Common name of the certificate that the server showed.
pub(crate) fn server_certificate(tls: &Tls) -> Vec<u8> {
    tls.conn.peer_certificates().unwrap()[0].to_vec()
}

/// A WebSocket as a stream of bytes: a frame for each write.
pub(crate) struct WebSocketStream<S> {
    pub(crate) socket: WebSocket<S>,
    read: Vec<u8>,
}

/// Opens a WebSocket at `path`; the answer when it is not granted.
pub(crate) fn websocket<S: Read + Write>(stream: S, path: &str, protocol: &str) -> Result<WebSocketStream<S>, String> {
    let mut request = format!("ws://127.0.0.1{path}").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    match tungstenite::client(request, stream) {
        Ok((socket, answer)) => {
            assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], protocol);
            Ok(WebSocketStream { socket, read: Vec::new() })
        }
        Err(error) => Err(error.to_string()),
    }
}

impl<S: Read + Write> Read for WebSocketStream<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.read.is_empty() {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.read = bytes.to_vec(),
                Ok(Message::Close(_)) => return Ok(0),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(other) => return Err(io::Error::other(format!("{other:?}"))),
                Err(tungstenite::Error::Io(error)) => return Err(error),
                Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => return Ok(0),
                Err(error) => return Err(io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())),
            }
        }
        let n = buf.len().min(self.read.len());
        buf[..n].copy_from_slice(&self.read[..n]);
        self.read.drain(..n);
        Ok(n)
    }
}

impl<S: Read + Write> Write for WebSocketStream<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.socket.send(Message::Binary(buf.to_vec().into())).map_err(io::Error::other)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A Unix socket.
pub(crate) fn unix(path: &Path) -> std::os::unix::net::UnixStream {
    let socket = std::os::unix::net::UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}
