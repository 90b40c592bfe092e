//! TLS of one listener: its files, which may change while it runs, and whom a client certificate names.
//!
//! New connections take the certificate that was read last; those that are open keep theirs. What cannot be used is
//! never taken: the old certificate stays, and the error says why.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;

use super::certificate;
use super::options::{ClientCertificate, TlsOptions};

/// Why files cannot be used for TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {why}; check the path and that this user may read it")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file has not what it should have.
    #[error("{path} holds no {what} in PEM form; {remedy}")]
    Empty {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The key is not that of the certificate, or either is damaged.
    #[error(
        "{cert} and {key} cannot be used: {why}; the first certificate must be the server's, and the key must be its key"
    )]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        why: String,
    },
    /// Nobody can be verified.
    #[error("{path} cannot be used to verify client certificates: {why}")]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Reads the files and makes what a handshake needs.
///
/// # Errors
/// [`TlsError`] for the first that cannot be used.
pub fn load(options: &TlsOptions) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = if options.only_tls13 {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let pair = |why: rustls::Error| TlsError::Pair {
        cert: options.cert.clone(),
        key: options.key.clone(),
        why: why.to_string(),
    };
    let chain = certificates(&options.cert)?;
    let key = PrivateKeyDer::from_pem_file(&options.key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => TlsError::Empty {
            path: options.key.clone(),
            what: "private key",
            remedy: "give the unencrypted key (PKCS#8, PKCS#1 or SEC1)",
        },
        error => unreadable(&options.key, &error),
    })?;
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).map_err(pair)?;
    let builder = match (&options.client_ca, options.client_cert) {
        (None, _) | (_, ClientCertificate::None) => builder.with_no_client_auth(),
        (Some(path), asked) => builder.with_client_cert_verifier(verifier(path, asked, provider)?),
    };
    builder.with_single_cert(chain, key).map_err(pair)
}

fn verifier(
    path: &Path,
    asked: ClientCertificate,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let wrong = |why: String| TlsError::ClientCa { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if asked == ClientCertificate::Optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| wrong(error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, &error))?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(|error| unreadable(path, &error))?;
    if all.is_empty() {
        let remedy = "it must have at least one block that begins with -----BEGIN CERTIFICATE-----";
        return Err(TlsError::Empty { path: path.to_owned(), what: "certificate", remedy });
    }
    Ok(all)
}

fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    let why = match error {
        rustls::pki_types::pem::Error::Io(error) if error.kind() == ErrorKind::NotFound => {
            "there is no such file".into()
        }
        error => error.to_string(),
    };
    TlsError::Unreadable { path: path.to_owned(), why }
}

/// What tells a file from what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// The certificate of a listener.
#[derive(Debug)]
pub(super) struct Tls {
    options: TlsOptions,
    current: RwLock<Arc<ServerConfig>>,
    /// The files when they were read last, whether they could be used or not.
    stamps: Mutex<Vec<Option<Stamp>>>,
}

impl Tls {
    /// # Errors
    /// [`TlsError`] when the files cannot be used.
    pub(super) fn open(options: TlsOptions) -> Result<Self, TlsError> {
        let stamps = stamps(&options);
        let config = load(&options)?;
        Ok(Self { options, current: RwLock::new(Arc::new(config)), stamps: Mutex::new(stamps) })
    }

    /// For one handshake.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again, if they changed or `always`. `None`: nothing was to be done.
    pub(super) fn reload(&self, always: bool) -> Option<Result<(), TlsError>> {
        let mut before = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.options);
        if !always && *before == now {
            return None;
        }
        *before = now;
        Some(load(&self.options).map(|config| {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        }))
    }

    /// Whom the verified certificate of a client names.
    pub(super) fn user(&self, certificate: &CertificateDer<'_>) -> Option<Box<str>> {
        certificate::user(certificate, self.options.cert_user)
    }
}

fn stamps(options: &TlsOptions) -> Vec<Option<Stamp>> {
    [Some(&options.cert), Some(&options.key), options.client_ca.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| Stamp::of(path))
        .collect()
}
