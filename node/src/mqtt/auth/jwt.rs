//! JSON web tokens (RFC 7519) in the place of a password.
//!
//! Which algorithm may be used is decided by the key, never by the token: a public key verifies no HMAC. The file with
//! the keys is looked at again when it changes; if it cannot be read then, the keys that it had go on. Tokens are
//! verified on the threads of [`super::pool`].

mod keys;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};
use thiserror::Error;

use super::super::listen::AuthMethod;
use super::super::reason::Reason;
use super::{Identity, Refused};
use keys::Key;

/// How often the file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// Longest token.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What tokens have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// A secret, a public key (PEM), or a key set (JWKS). Empty: no tokens.
    pub key_file: PathBuf,
    /// Algorithms by their names in RFC 7518. Empty: all that fit the key.
    pub algorithms: Vec<String>,
    /// The claim that is the user name.
    pub user_claim: String,
    /// `aud` has to name this. Empty: it is not looked at.
    pub audience: String,
    /// `iss` has to be this. Empty: it is not looked at.
    pub issuer: String,
    /// Clocks may differ by so much.
    pub leeway_s: u32,
    /// A client whose token expires stays; else it is disconnected with 0x87.
    pub stays_after_expiry: bool,
}

impl Default for JwtOptions {
    fn default() -> Self {
        Self {
            key_file: PathBuf::new(),
            algorithms: Vec::new(),
            user_claim: "sub".to_owned(),
            audience: String::new(),
            issuer: String::new(),
            leeway_s: 10,
            stays_after_expiry: false,
        }
    }
}

/// Why tokens cannot be verified.
#[derive(Debug, Error)]
pub enum JwtError {
    /// The file cannot be read.
    #[error("cannot read the key of JSON web tokens from {path}: {source}; check the path and its permissions")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no key in it.
    #[error("{path} has no key for JSON web tokens: {why}")]
    NoKey {
        /// Which.
        path: PathBuf,
        /// Why, and what it should be.
        why: String,
    },
    /// A name that RFC 7518 does not have, or none that is offered.
    #[error(
        "{0:?} is no algorithm for JSON web tokens: name some of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384"
    )]
    Algorithm(String),
}

/// The keys of a file, and as of when.
#[derive(Debug)]
struct Loaded {
    keys: Arc<[Key]>,
    seen: Option<(SystemTime, u64)>,
    looked: Instant,
}

/// Verifies tokens.
#[derive(Debug)]
pub struct Jwt {
    options: JwtOptions,
    algorithms: Vec<Algorithm>,
    loaded: Mutex<Loaded>,
}

impl Jwt {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn open(options: JwtOptions) -> Result<Self, JwtError> {
        verify::install();
        let algorithms = options.algorithms.iter().map(|name| keys::algorithm(name)).collect::<Result<Vec<_>, _>>()?;
        let seen = seen(&options.key_file);
        let keys = keys::read(&options.key_file, &algorithms)?;
        let loaded = Loaded { keys, seen, looked: Instant::now() };
        Ok(Self { options, algorithms, loaded: Mutex::new(loaded) })
    }

    /// Whether `password` has the form of a token.
    #[must_use]
    pub fn is_token(password: &[u8]) -> bool {
        password.len() <= TOKEN_BYTES_MAX && decode_header(password).is_ok()
    }

    /// Who a client is that shows `token`, and names `said` as its user, if it names any.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn check(&self, token: &[u8], said: Option<&str>) -> Result<Identity, Refused> {
        self.decide(token, said).map_err(|why| {
            tracing::debug!(why, user = said, "a token was refused");
            Refused { method: Some(AuthMethod::Jwt), reason: Reason::BAD_USER_NAME_OR_PASSWORD }
        })
    }

    fn decide(&self, token: &[u8], said: Option<&str>) -> Result<Identity, &'static str> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err("it is too long");
        }
        let header = decode_header(token).map_err(|_| "it is no token")?;
        if header.crit.is_some() {
            return Err("it has an extension that must be understood");
        }
        let kid = header.kid.as_deref();
        let keys = self.keys();
        let fits = |key: &&Key| {
            key.algorithms.contains(&header.alg) && (kid.is_none() || key.id.is_none() || key.id.as_deref() == kid)
        };
        let validation = self.validation(header.alg);
        let mut claims = Err("no key is for its algorithm and key identifier");
        for key in keys.iter().filter(fits) {
            match decode::<Map<String, Value>>(token, &key.key, &validation) {
                Ok(token) => {
                    claims = Ok(token.claims);
                    break;
                }
                Err(_) => claims = Err("its signature or one of its claims is not valid"),
            }
        }
        let claims = claims?;
        let user = claims.get(&self.options.user_claim).and_then(Value::as_str).filter(|user| !user.is_empty());
        let user = user.ok_or("it names no user")?;
        if said.is_some_and(|said| said != user) {
            return Err("it is for another user");
        }
        Ok(Identity {
            user: Some(Arc::from(user)),
            method: AuthMethod::Jwt,
            expires_in: if self.options.stays_after_expiry { None } else { Some(self.left(&claims)) },
            ..Identity::default()
        })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = u64::from(self.options.leeway_s);
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if self.options.audience.is_empty() {
            validation.validate_aud = false;
        } else {
            validation.set_audience(&[&self.options.audience]);
            required.push("aud");
        }
        if !self.options.issuer.is_empty() {
            validation.set_issuer(&[&self.options.issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    /// How long a valid token goes on being valid.
    fn left(&self, claims: &Map<String, Value>) -> Duration {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
        let until_s = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0) + f64::from(self.options.leeway_s);
        // One that never ends in practice is beyond what a duration holds.
        Duration::try_from_secs_f64((until_s - now_s).max(0.0)).unwrap_or(Duration::MAX)
    }

    fn keys(&self) -> Arc<[Key]> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK {
            loaded.looked = Instant::now();
            let now = seen(&self.options.key_file);
            if now != loaded.seen {
                loaded.seen = now;
                match keys::read(&self.options.key_file, &self.algorithms) {
                    Ok(keys) => {
                        tracing::info!(path = %self.options.key_file.display(), keys = keys.len(), "keys of tokens read anew");
                        loaded.keys = keys;
                    }
                    Err(error) => tracing::error!(%error, "the keys of tokens stay what they were"),
                }
            }
        }
        loaded.keys.clone()
    }
}

/// What tells one state of a file from another.
fn seen(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}
