//! The methods of a listener, in their order.

use std::sync::Arc;

use quorate_http_admin::password;

use super::super::listen::AuthMethod;
use super::super::packet::Secret;
use super::super::reason::Reason;
use super::jwt::Jwt;
use super::pool::Pool;
use super::scram::{self, Exchange};
use super::{Attempt, Authenticator, Identity, Judgement, Refused, stamp};

/// What a listener without a list does.
const DEFAULT: [AuthMethod; 4] = [AuthMethod::Scram, AuthMethod::Jwt, AuthMethod::Password, AuthMethod::Anonymous];

/// Judges clients by the methods of their listener.
#[derive(Debug)]
pub struct Chain {
    allow_anonymous: bool,
    pool: Arc<Pool>,
    jwt: Option<Arc<Jwt>>,
}

impl Chain {
    /// With `allow_anonymous` unknown clients come from everywhere; else only from this machine. Without `jwt` no token
    /// is judged.
    #[must_use]
    pub fn new(allow_anonymous: bool, pool: Arc<Pool>, jwt: Option<Arc<Jwt>>) -> Self {
        Self { allow_anonymous, pool, jwt }
    }
}

impl Authenticator for Chain {
    /// The first method that can judge what the client shows decides.
    fn judge(&self, attempt: Attempt<'_>) -> Judgement {
        let listed = &attempt.listener.auth;
        let is_default = listed.is_empty();
        let methods: &[AuthMethod] = if is_default { &DEFAULT } else { listed };
        if let Some(asked) = &attempt.connect.auth
            && (asked.method != scram::METHOD || !methods.contains(&AuthMethod::Scram))
        {
            return refused(None, Reason::BAD_AUTHENTICATION_METHOD); // [MQTT-4.12.0-1]
        }
        // A password that nobody could check is no secret: clients with a user name go on working until there is a
        // first user, and where a listener lets everybody in unasked.
        let unchecked = if is_default {
            attempt.access.users.is_empty() && self.jwt.is_none()
        } else {
            methods == [AuthMethod::Anonymous]
        };
        let password = attempt.connect.password.as_ref().map(|password| &password.0[..]);
        // A token is never a password where tokens are taken.
        let jwt =
            self.jwt.as_ref().filter(|_| methods.contains(&AuthMethod::Jwt) && password.is_some_and(Jwt::is_token));
        for method in methods {
            let judgement = match method {
                AuthMethod::Anonymous => self.anonymous(attempt, unchecked),
                AuthMethod::Password if unchecked || jwt.is_some() => None,
                AuthMethod::Password => self.password(attempt),
                AuthMethod::Scram => begin_scram(attempt),
                AuthMethod::Certificate => certificate(attempt),
                AuthMethod::Jwt => jwt.and_then(|jwt| self.token(attempt, jwt.clone())),
            };
            if let Some(judgement) = judgement {
                return judgement;
            }
        }
        let shows_something = attempt.connect.username.is_some() || attempt.connect.password.is_some();
        refused(None, if shows_something { Reason::BAD_USER_NAME_OR_PASSWORD } else { Reason::NOT_AUTHORIZED })
    }
}

impl Chain {
    fn anonymous(&self, attempt: Attempt<'_>, unchecked: bool) -> Option<Judgement> {
        let connect = attempt.connect;
        let says_nothing = connect.username.is_none() && connect.password.is_none() && connect.auth.is_none();
        let welcome = attempt.is_local() || self.allow_anonymous;
        (welcome && (says_nothing || unchecked)).then(|| Judgement::Now(Ok(Identity::default())))
    }

    fn password(&self, attempt: Attempt<'_>) -> Option<Judgement> {
        let (Some(name), Some(password)) = (&attempt.connect.username, &attempt.connect.password) else {
            return None;
        };
        let method = Some(AuthMethod::Password);
        let user = attempt.access.users.get(name);
        let hash = user.and_then(|user| user.password_hash.clone());
        let identity = Identity {
            user: Some(Arc::from(name.as_str())),
            method: AuthMethod::Password,
            stamp: user.map(|user| stamp(user, AuthMethod::Password)),
            ..Identity::default()
        };
        let password = password.clone();
        let Ok(checked) = self.pool.run(move || fits(hash.as_deref(), &password)) else {
            return Some(refused(method, Reason::SERVER_BUSY));
        };
        Some(Judgement::Later(Box::pin(async move {
            match checked.await {
                Ok(true) => Ok(identity),
                Ok(false) => Err(Refused { method, reason: Reason::BAD_USER_NAME_OR_PASSWORD }),
                // The thread is gone: it said why.
                Err(_) => Err(Refused { method, reason: Reason::UNSPECIFIED_ERROR }),
            }
        })))
    }

    fn token(&self, attempt: Attempt<'_>, jwt: Arc<Jwt>) -> Option<Judgement> {
        let token = attempt.connect.password.clone()?;
        let said = attempt.connect.username.clone();
        let method = Some(AuthMethod::Jwt);
        let Ok(checked) = self.pool.run(move || jwt.check(&token.0, said.as_deref())) else {
            return Some(refused(method, Reason::SERVER_BUSY));
        };
        Some(Judgement::Later(Box::pin(async move {
            checked.await.unwrap_or(Err(Refused { method, reason: Reason::UNSPECIFIED_ERROR }))
        })))
    }
}

/// Whether `password` is the one of `hash`; where there is none it takes as long.
fn fits(hash: Option<&str>, password: &Secret) -> bool {
    match hash {
        Some(hash) => password::verify(hash, &password.0),
        None => {
            password::verify_nobody(&password.0);
            false
        }
    }
}

fn refused(method: Option<AuthMethod>, reason: Reason) -> Judgement {
    Judgement::Now(Err(Refused { method, reason }))
}

/// A client that shows a certificate is who the certificate says it is.
fn certificate(attempt: Attempt<'_>) -> Option<Judgement> {
    let name = attempt.certificate_user?;
    if attempt.connect.username.as_deref().is_some_and(|said| said != name) {
        return Some(refused(Some(AuthMethod::Certificate), Reason::BAD_USER_NAME_OR_PASSWORD));
    }
    let identity = Identity { user: Some(Arc::from(name)), method: AuthMethod::Certificate, ..Identity::default() };
    Some(Judgement::Now(Ok(identity)))
}

fn begin_scram(attempt: Attempt<'_>) -> Option<Judgement> {
    let asked = attempt.connect.auth.as_deref()?;
    let first = asked.data.as_ref().map(|data| &data.0[..]).unwrap_or_default();
    let said = attempt.connect.username.as_deref();
    Some(match Exchange::begin(first, &scram::fresh_nonce(), attempt.access, said) {
        Ok(exchange) => Judgement::Exchange(Box::new(exchange)),
        Err(bad) => refused(Some(AuthMethod::Scram), bad.reason()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
