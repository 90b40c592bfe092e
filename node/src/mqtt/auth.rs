//! Who may connect. Now: everybody from this machine, and from elsewhere nobody unless the configuration
//! says so. Users, tokens and certificates come behind the same trait.

use std::fmt::Debug;
use std::net::SocketAddr;

use super::packet::Connect;
use super::reason::Reason;

/// A client that wants in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// What it says about itself.
    pub connect: &'a Connect,
    /// Where it comes from; unknown for a socket that has no address.
    pub peer: Option<SocketAddr>,
}

/// Decides whether a client may connect. Called on the worker's thread: it must not block.
pub trait Authenticator: Send + Sync + Debug + 'static {
    /// Checks an attempt.
    ///
    /// # Errors
    /// The reason code for CONNACK.
    fn check(&self, attempt: Attempt<'_>) -> Result<(), Reason>;
}

/// Anonymous clients, from loopback or from everywhere. User name and password are accepted and ignored.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous {
    /// From other machines too.
    pub everywhere: bool,
}

impl Authenticator for Anonymous {
    fn check(&self, attempt: Attempt<'_>) -> Result<(), Reason> {
        let loopback = attempt.peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        if loopback || self.everywhere { Ok(()) } else { Err(Reason::NOT_AUTHORIZED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect() -> Connect {
        Connect {
            client_id: "c".into(),
            clean_start: true,
            keep_alive_s: 0,
            expiry_s: None,
            receive_maximum: 1,
            packet_bytes_max: None,
            has_auth_method: false,
            username: Some("u".into()),
            password: None,
            will: None,
        }
    }

    #[test]
    fn anonymous_clients_come_from_loopback_unless_all_may() {
        let connect = connect();
        let from = |ip: [u8; 4]| Attempt { connect: &connect, peer: Some((ip, 1000).into()) };
        let mapped = "[::ffff:127.0.0.1]:1000".parse().ok();
        let local = Anonymous { everywhere: false };
        assert_eq!(local.check(from([127, 0, 0, 1])), Ok(()));
        assert_eq!(local.check(Attempt { connect: &connect, peer: mapped }), Ok(()));
        assert_eq!(local.check(from([10, 0, 0, 1])), Err(Reason::NOT_AUTHORIZED));
        assert_eq!(local.check(Attempt { connect: &connect, peer: None }), Err(Reason::NOT_AUTHORIZED));
        assert_eq!(Anonymous { everywhere: true }.check(from([10, 0, 0, 1])), Ok(()));
    }
}
