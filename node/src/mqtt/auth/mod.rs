//! Who a client is: the methods that its listener names, tried in their order.
//!
//! The first method that can judge what the client shows decides; one that has nothing to judge passes on
//! ([`chain`]). Nothing here blocks a worker: what costs time is a future that [`pool`]'s threads resolve, and an
//! exchange ([`scram`]) is a machine without I/O. No secret is ever formatted.

pub mod chain;
pub mod jwt;
pub mod pool;
pub mod scram;

use std::fmt;
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_store::access::{Access, User};

use super::listen::{AuthMethod, ListenerOptions};
use super::packet::Connect;
use super::reason::Reason;
pub use chain::Chain;

/// A client that wants in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// What it says about itself.
    pub connect: &'a Connect,
    /// Through which listener it came, and how that lets clients authenticate.
    pub listener: &'a ListenerOptions,
    /// Where it comes from: what a PROXY header says, or else its socket. Unknown for a Unix socket.
    pub peer: Option<SocketAddr>,
    /// That is its proxy's address, which did not say for whom it speaks: it may be anybody.
    pub is_unknown: bool,
    /// The user name that its verified certificate gives it.
    pub certificate_user: Option<&'a str>,
    /// Users, as this node knows them now.
    pub access: &'a Access,
}

impl Attempt<'_> {
    /// Whether it comes from this machine: over loopback, or through a Unix socket.
    #[must_use]
    pub fn is_local(&self) -> bool {
        !self.is_unknown && self.peer.map_or(self.listener.is_unix(), |peer| peer.ip().to_canonical().is_loopback())
    }
}

/// Who a client is, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `None` for an anonymous client.
    pub user: Option<Arc<str>>,
    /// What decided.
    pub method: AuthMethod,
    /// What of the user row was checked, see [`stamp`]: the client goes when it changes.
    pub stamp: Option<u64>,
    /// How long it is known.
    pub expires_in: Option<Duration>,
    /// What an exchange leaves behind.
    pub scram: Option<Box<Exchanged>>,
}

impl Default for Identity {
    /// An anonymous client.
    fn default() -> Self {
        Self { user: None, method: AuthMethod::Anonymous, stamp: None, expires_in: None, scram: None }
    }
}

impl Identity {
    /// Whether what was checked still holds.
    #[must_use]
    pub fn holds(&self, access: &Access) -> bool {
        let Some(stamped) = self.stamp else { return true };
        let user = self.user.as_deref().and_then(|name| access.users.get(name));
        user.is_some_and(|user| stamp(user, self.method) == stamped)
    }
}

/// What a successful exchange leaves behind.
#[derive(Clone, PartialEq, Eq)]
pub struct Exchanged {
    /// For CONNACK.
    pub server_final: String,
    /// From which the nonces of later exchanges on this connection are made.
    pub seed: [u8; 32],
}

impl fmt::Debug for Exchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchanged").finish_non_exhaustive()
    }
}

/// A number that changes when what `method` checks of `user` changes. It is compared within this process only.
#[must_use]
pub fn stamp(user: &User, method: AuthMethod) -> u64 {
    let mut hasher = DefaultHasher::new();
    if method == AuthMethod::Scram {
        let scram = user.scram.as_ref();
        scram.map(|scram| (&scram.salt, scram.iterations, scram.stored_key, scram.server_key)).hash(&mut hasher);
    } else {
        user.password_hash.hash(&mut hasher);
    }
    hasher.finish()
}

/// A client that is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What decided; `None` when no method could judge what the client shows.
    pub method: Option<AuthMethod>,
    /// For CONNACK.
    pub reason: Reason,
}

/// Resolves when it is known who the client is.
pub type Verdict = Pin<Box<dyn Future<Output = Result<Identity, Refused>> + Send>>;

/// Decides whether a client may connect. Called on the workers' threads: it must not block.
pub trait Authenticator: Send + Sync + fmt::Debug + 'static {
    /// What is made of an attempt.
    fn judge(&self, attempt: Attempt<'_>) -> Judgement;
}

/// What is made of a CONNECT.
pub enum Judgement {
    /// It is known who it is, or that it may not come in.
    Now(Result<Identity, Refused>),
    /// That takes a while.
    Later(Verdict),
    /// The client has to answer first.
    Exchange(Box<scram::Exchange>),
}

impl fmt::Debug for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(result) => f.debug_tuple("Now").field(result).finish(),
            Self::Later(_) => f.write_str("Later"),
            Self::Exchange(_) => f.write_str("Exchange"),
        }
    }
}
