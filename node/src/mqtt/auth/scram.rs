//! SCRAM-SHA-256 (RFC 5802, RFC 7677) on the server's side, without channel binding and without I/O.
//!
//! A client's first message makes an [`Exchange`], its final message ends it. The nonce is passed in; random ones are
//! made at the edge. A name that does not exist gets an answer like any other, with a salt of its own that is always
//! the same, so that the exchange does not tell which names there are.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_http_admin::password::{SCRAM_ITERATIONS, SCRAM_SALT_BYTES, scram_signature};
use quorate_store::access::{Access, ScramVerifier};
use sha2::{Digest as _, Sha256};

use super::super::listen::AuthMethod;
use super::super::reason::Reason;
use super::{Exchanged, Identity, stamp};

/// Authentication Method.
pub const METHOD: &str = "SCRAM-SHA-256";
/// Longest message of a client.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Why an exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A message that is no SCRAM, or asks for what is not offered.
    Message,
    /// Another user than the packet says, or a proof that is wrong.
    Credentials,
}

impl Bad {
    /// For CONNACK.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Message => Reason::NOT_AUTHORIZED,
            Self::Credentials => Reason::BAD_USER_NAME_OR_PASSWORD,
        }
    }
}

/// Between the client's two messages.
pub struct Exchange {
    user: String,
    /// `None` for a name that does not exist.
    known: Option<(ScramVerifier, u64)>,
    gs2_header: String,
    nonce: String,
    client_first_bare: String,
    server_first: String,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Takes client-first. `said` is the User Name of CONNECT, which must be the same when there is one.
    ///
    /// # Errors
    /// [`Bad`].
    pub fn begin(message: &[u8], nonce: &str, access: &Access, said: Option<&str>) -> Result<Self, Bad> {
        let first = ClientFirst::parse(text(message)?).ok_or(Bad::Message)?;
        let other = |name: &str| name != first.user;
        if first.authorize.as_deref().is_some_and(other) || said.is_some_and(other) {
            return Err(Bad::Credentials);
        }
        let user = access.users.get(&first.user);
        let known = user.and_then(|user| Some((user.scram.clone()?, stamp(user, AuthMethod::Scram))));
        let nonce = format!("{}{nonce}", first.nonce);
        let mut server_first = format!("r={nonce},s=");
        let (salt, iterations) = match &known {
            Some((verifier, _)) => (verifier.salt.clone(), verifier.iterations),
            None => (salt_of_nobody(&first.user), SCRAM_ITERATIONS),
        };
        BASE64.encode_string(salt, &mut server_first);
        let _ = write!(server_first, ",i={iterations}");
        Ok(Self {
            user: first.user,
            known,
            gs2_header: first.gs2_header.to_owned(),
            nonce,
            client_first_bare: first.bare.to_owned(),
            server_first,
        })
    }

    /// For the client, in AUTH.
    #[must_use]
    pub fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Takes client-final: who the client is.
    ///
    /// # Errors
    /// [`Bad`].
    pub fn finish(self, message: &[u8], seed: [u8; 32]) -> Result<Identity, Bad> {
        let last = ClientFinal::parse(text(message)?).ok_or(Bad::Message)?;
        if last.gs2_header != self.gs2_header.as_bytes() || last.nonce != self.nonce {
            return Err(Bad::Message);
        }
        let signed = format!("{},{},{}", self.client_first_bare, self.server_first, last.without_proof);
        let (verifier, stamp) = self.known.ok_or(Bad::Credentials)?;
        let signature = scram_signature(&verifier, signed.as_bytes(), &last.proof).ok_or(Bad::Credentials)?;
        let mut server_final = "v=".to_owned();
        BASE64.encode_string(signature, &mut server_final);
        Ok(Identity {
            user: Some(Arc::from(self.user)),
            method: AuthMethod::Scram,
            stamp: Some(stamp),
            expires_in: None,
            scram: Some(Box::new(Exchanged { server_final, seed })),
        })
    }
}

fn text(message: &[u8]) -> Result<&str, Bad> {
    let short = Some(message).filter(|message| message.len() <= MESSAGE_BYTES_MAX).ok_or(Bad::Message)?;
    std::str::from_utf8(short).map_err(|_| Bad::Message)
}

struct ClientFirst<'a> {
    gs2_header: &'a str,
    authorize: Option<String>,
    bare: &'a str,
    user: String,
    nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    fn parse(message: &'a str) -> Option<Self> {
        let mut parts = message.splitn(3, ',');
        let (binding, authorize, bare) = (parts.next()?, parts.next()?, parts.next()?);
        // `y`: the client could bind to a channel and thinks that we cannot; `p=`: it wants to.
        if !matches!(binding, "n" | "y") {
            return None;
        }
        let authorize = match authorize {
            "" => None,
            some => Some(unescape(some.strip_prefix("a=")?)?),
        };
        let gs2_header = message.get(..message.len() - bare.len())?;
        let mut attributes = bare.split(',');
        // `m=` in front would be an extension that has to be understood.
        let user = unescape(attributes.next()?.strip_prefix("n=")?).filter(|user| !user.is_empty())?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let is_nonce = !nonce.is_empty() && nonce.bytes().all(|b| b.is_ascii_graphic());
        is_nonce.then_some(Self { gs2_header, authorize, bare, user, nonce })
    }
}

struct ClientFinal<'a> {
    gs2_header: Vec<u8>,
    nonce: &'a str,
    without_proof: &'a str,
    proof: [u8; 32],
}

impl<'a> ClientFinal<'a> {
    fn parse(message: &'a str) -> Option<Self> {
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let gs2_header = BASE64.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let proof = BASE64.decode(proof).ok()?.try_into().ok()?;
        Some(Self { gs2_header, nonce, without_proof, proof })
    }
}

/// A name with `=2C` for a comma and `=3D` for an equals sign.
fn unescape(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (sign, rest) = part.split_at_checked(2)?;
        plain.push(match sign {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        plain.push_str(rest);
    }
    Some(plain)
}

/// A nonce that nobody can guess.
#[must_use]
pub fn fresh_nonce() -> String {
    BASE64.encode(rand::random::<[u8; 18]>())
}

/// The `n`-th nonce of a connection, from the seed that it got when it began: for a machine without randomness.
#[must_use]
pub fn nonce_from(seed: &[u8; 32], n: u64) -> String {
    let mut hash = Sha256::new();
    hash.update(seed);
    hash.update(n.to_le_bytes());
    BASE64.encode(hash.finalize().get(..18).unwrap_or_default())
}

fn salt_of_nobody(name: &str) -> Vec<u8> {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    let mut hash = Sha256::new();
    hash.update(KEY.get_or_init(rand::random));
    hash.update(name);
    hash.finalize().get(..SCRAM_SALT_BYTES).unwrap_or_default().to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
