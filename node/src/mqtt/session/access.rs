//! Who the client is to the rules: what it may publish and subscribe to, until when it is known, and how it proves once
//! more who it is (AUTH, MQTT 5.0 §4.12.1).
//!
//! The rules come with each input ([`Output::access`]), so that a change counts from the next packet on. Without rules
//! a packet costs one look; with rules nothing is allocated.

use quorate_store::access::{Access, Client, Permission, reached_by_publish, reached_by_subscription};
use quorate_store::ids::{PacketId, QoS};

use super::{Ending, Now, Output, Session};
use crate::mqtt::auth::Identity;
use crate::mqtt::auth::scram::{self, Exchange};
use crate::mqtt::options::DenyAction;
use crate::mqtt::packet::{Auth, AuthData, Outgoing, Secret};
use crate::mqtt::reason::Reason;

/// The client of a connection.
#[derive(Debug)]
pub(super) struct Principal {
    client_id: Box<str>,
    identity: Identity,
    /// When its proof is worth nothing any more.
    until_ms: Option<u64>,
    /// It is proving once more who it is.
    exchange: Option<Box<Exchange>>,
    /// Exchanges that it began.
    exchanges: u64,
    /// QoS 2 identifiers that the log had recorded at CONNECT and that it has not released since.
    pub(super) recorded: Vec<PacketId>,
}

impl Principal {
    pub(super) fn new(client_id: &str, identity: Identity, now: Now) -> Self {
        let lasts_ms = |left: std::time::Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self {
            client_id: client_id.into(),
            until_ms: identity.expires_in.map(|left| now.mono_ms.saturating_add(lasts_ms(left))),
            identity,
            exchange: None,
            exchanges: 0,
            recorded: Vec::new(),
        }
    }

    pub(super) fn until_ms(&self) -> Option<u64> {
        self.until_ms
    }

    /// For CONNACK [MQTT-4.12.0-5].
    pub(super) fn server_final(&self) -> Option<Box<AuthData>> {
        self.identity.scram.as_ref().map(|done| auth_data(&done.server_final))
    }

    fn client(&self) -> Client<'_> {
        Client { user: self.identity.user.as_deref(), client_id: &self.client_id }
    }

    pub(super) fn may_publish(&self, access: &Access, topic: &str, qos: QoS, retain: bool) -> bool {
        is_open(access) || access.may_publish(self.client(), reached_by_publish(topic), qos, retain)
    }

    /// The QoS at which it may subscribe.
    pub(super) fn may_subscribe(&self, access: &Access, filter: &str, qos: QoS) -> Option<QoS> {
        if is_open(access) {
            Some(qos)
        } else {
            access.may_subscribe(self.client(), reached_by_subscription(filter), qos)
        }
    }
}

fn auth_data(message: &str) -> Box<AuthData> {
    let data = Some(Secret(bytes::Bytes::copy_from_slice(message.as_bytes())));
    Box::new(AuthData { method: scram::METHOD.to_owned(), data })
}

fn is_open(access: &Access) -> bool {
    access.rules.is_empty() && access.otherwise == Permission::Allow
}

impl Session {
    /// Client identifier, also an assigned one.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.principal.client_id
    }

    /// Authenticated user.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.principal.identity.user.as_deref()
    }

    /// Ends the connection when what the client proved does not hold any more: its user is gone, or has another
    /// password.
    pub fn check_identity(&mut self, out: &mut Output) {
        if !self.is_over() && !self.principal.identity.holds(&out.access) {
            tracing::info!(
                client_id = self.client_id(),
                user = self.user(),
                "the user changed: the client is disconnected"
            );
            self.end(Ending::Error(Reason::NOT_AUTHORIZED), out);
        }
    }

    /// A PUBLISH that the rules refuse. `was_open`: its identifier stood for another QoS 2 exchange already.
    pub(super) fn deny_publish(&mut self, qos: QoS, id: Option<PacketId>, was_open: bool, out: &mut Output) {
        out.counts.denied_publishes += 1;
        let is_v5 = self.version.is_v5();
        let reason = if is_v5 { Reason::NOT_AUTHORIZED } else { Reason::SUCCESS };
        // 3.1.1 cannot be told no [MQTT-3.3.5-2]. An answer to what was sent twice would end the first one's exchange,
        // which the log goes on with.
        if (!is_v5 && self.options.acl_deny_action == DenyAction::Disconnect) || (is_v5 && was_open) {
            return self.end(Ending::Error(Reason::NOT_AUTHORIZED), out);
        }
        match (qos, id) {
            (QoS::AtLeastOnce, Some(id)) => self.in_turn(Outgoing::PubAck(id, reason), out),
            (QoS::ExactlyOnce, Some(id)) => self.in_turn(Outgoing::PubRec(id, reason), out),
            _ => {}
        }
    }

    /// AUTH on an open connection: the client proves once more who it is. Everything else goes on meanwhile.
    pub(super) fn authenticate_again(&mut self, auth: Auth, out: &mut Output) {
        let Auth { reason, auth } = auth;
        // No AUTH without a method in CONNECT [MQTT-4.12.0-6], and always the same method [MQTT-4.12.1-1].
        let (Some(done), Some(auth)) = (&self.principal.identity.scram, auth) else {
            return self.end(Ending::Error(Reason::PROTOCOL_ERROR), out);
        };
        if auth.method != scram::METHOD {
            return self.end(Ending::Error(Reason::PROTOCOL_ERROR), out);
        }
        let seed = done.seed;
        let data = auth.data.as_ref().map(|data| &data.0[..]).unwrap_or_default();
        let result = match (reason, self.principal.exchange.take()) {
            (Reason::RE_AUTHENTICATE, None) => {
                let nonce = scram::nonce_from(&seed, self.principal.exchanges);
                self.principal.exchanges += 1;
                // The same user as before: rights that subscriptions rest on do not pass to another.
                Exchange::begin(data, &nonce, &out.access, self.user()).map(|exchange| {
                    let answer = auth_data(exchange.server_first());
                    self.principal.exchange = Some(Box::new(exchange));
                    Outgoing::Auth(Reason::CONTINUE_AUTHENTICATION, answer)
                })
            }
            (Reason::CONTINUE_AUTHENTICATION, Some(exchange)) => exchange.finish(data, seed).and_then(|identity| {
                // It may have changed between the two messages.
                if !identity.holds(&out.access) {
                    return Err(scram::Bad::Credentials);
                }
                self.principal.identity = identity;
                let answer = self.principal.server_final().ok_or(scram::Bad::Message)?;
                Ok(Outgoing::Auth(Reason::SUCCESS, answer))
            }),
            _ => return self.end(Ending::Error(Reason::PROTOCOL_ERROR), out),
        };
        match result {
            Ok(packet) => out.packets.push(packet),
            Err(bad) => {
                tracing::info!(client_id = self.client_id(), user = self.user(), ?bad, "a re-authentication failed");
                self.end(Ending::Error(Reason::NOT_AUTHORIZED), out); // [MQTT-4.12.1-2]
            }
        }
    }
}
