//! Who may connect. Now: everybody from this machine, and from elsewhere nobody unless the configuration
//! says so. Users, tokens and certificates come behind the same trait.

use std::fmt::Debug;
use std::net::SocketAddr;

use super::listen::ListenerOptions;
use super::packet::Connect;
use super::reason::Reason;

/// A client that wants in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// What it says about itself.
    pub connect: &'a Connect,
    /// Through which listener it came, and how that lets clients authenticate.
    pub listener: &'a ListenerOptions,
    /// Where it comes from: what a PROXY header says, or else its socket. Unknown for a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The user name that its verified certificate gives it.
    pub certificate_user: Option<&'a str>,
}

impl Attempt<'_> {
    /// Whether it comes from this machine: over loopback, or through a Unix socket.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.peer.map_or(self.listener.is_unix(), |peer| peer.ip().to_canonical().is_loopback())
    }
}

/// Decides whether a client may connect. Called on the worker's thread: it must not block.
pub trait Authenticator: Send + Sync + Debug + 'static {
    /// Checks an attempt.
    ///
    /// # Errors
    /// The reason code for CONNACK.
    fn check(&self, attempt: Attempt<'_>) -> Result<(), Reason>;
}

/// Anonymous clients, from this machine or from everywhere, where the listener lets them in. User name and password
/// are accepted and ignored.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous {
    /// From other machines too.
    pub everywhere: bool,
}

impl Authenticator for Anonymous {
    fn check(&self, attempt: Attempt<'_>) -> Result<(), Reason> {
        let welcome = attempt.is_local() || self.everywhere;
        if welcome && attempt.listener.allows_anonymous() { Ok(()) } else { Err(Reason::NOT_AUTHORIZED) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::listen::{AuthMethod, Endpoint};
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
            wants_problems: true,
            topic_alias_max: 0,
            wants_response_information: false,
            username: Some("u".into()),
            password: None,
            will: None,
        }
    }

    fn unix() -> ListenerOptions {
        let endpoint = Endpoint::Unix { path: "/run/quorate.sock".into(), mode: 0o660 };
        ListenerOptions { endpoint, ..tcp() }
    }

    fn tcp() -> ListenerOptions {
        ListenerOptions::tcp("mqtt", ([127, 0, 0, 1], 1883).into())
    }

    #[test]
    fn anonymous_clients_come_from_this_machine_unless_all_may() {
        let connect = connect();
        let check = |everywhere, listener: &ListenerOptions, peer: Option<&str>| {
            let peer = peer.map(|text| text.parse().unwrap());
            Anonymous { everywhere }.check(Attempt { connect: &connect, listener, peer, certificate_user: None })
        };
        let refused = Err(Reason::NOT_AUTHORIZED);
        assert_eq!(check(false, &tcp(), Some("127.0.0.1:1000")), Ok(()));
        assert_eq!(check(false, &tcp(), Some("[::ffff:127.0.0.1]:1000")), Ok(()));
        assert_eq!(check(false, &tcp(), Some("10.0.0.1:1000")), refused);
        assert_eq!(check(false, &tcp(), None), refused);
        assert_eq!(check(true, &tcp(), Some("10.0.0.1:1000")), Ok(()));
        assert_eq!(check(false, &unix(), None), Ok(()));
        assert_eq!(check(false, &unix(), Some("10.0.0.1:1000")), refused, "a proxy in front of the socket says so");
    }

    #[test]
    fn a_listener_that_wants_to_know_who_comes_lets_nobody_in_unknown() {
        let connect = connect();
        let peer = "127.0.0.1:1000".parse().ok();
        for (auth, want) in [
            (vec![AuthMethod::Password], Err(Reason::NOT_AUTHORIZED)),
            (vec![AuthMethod::Password, AuthMethod::Anonymous], Ok(())),
        ] {
            let listener = &ListenerOptions { auth, ..tcp() };
            let attempt = Attempt { connect: &connect, listener, peer, certificate_user: None };
            assert_eq!(Anonymous { everywhere: true }.check(attempt), want);
        }
    }
}
