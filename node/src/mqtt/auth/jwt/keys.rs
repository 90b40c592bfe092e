//! Keys out of a file: a secret, a public key, or a key set.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::Value;

use super::JwtError;
use super::verify::bytes_of;

/// A secret for HS256 is at least as long as its hash (RFC 7518 section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// A key, and what it may be used for.
#[derive(Debug)]
pub(super) struct Key {
    /// `kid`
    pub(super) id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

pub(super) fn algorithm(name: &str) -> Result<Algorithm, JwtError> {
    let known = Algorithm::from_str(name).ok().filter(|algorithm| *algorithm != Algorithm::EdDSA);
    known.ok_or_else(|| JwtError::Algorithm(name.to_owned()))
}

/// The keys of a file; each is used for those of `wanted` that fit it, or for all that fit it.
pub(super) fn read(path: &Path, wanted: &[Algorithm]) -> Result<Arc<[Key]>, JwtError> {
    let bytes = std::fs::read(path).map_err(|source| JwtError::Unreadable { path: path.to_owned(), source })?;
    let no_key = |why: &str| JwtError::NoKey { path: path.to_owned(), why: why.to_owned() };
    let text = bytes.trim_ascii();
    let found = if text.starts_with(b"-----BEGIN") {
        vec![(
            None,
            pem(text).ok_or_else(|| no_key("a PEM file has to be a public key, RSA or EC (P-256, P-384)"))?,
            None,
        )]
    } else if text.starts_with(b"{") {
        key_set(text).map_err(|why| no_key(&why))?
    } else if looks_like_something_else(text) {
        return Err(no_key(
            "it is neither a PEM file, nor a key set in JSON, nor a secret: nothing may stand before or around the key",
        ));
    } else if text.len() < SECRET_BYTES_MIN {
        return Err(no_key("a secret has to have at least 32 bytes"));
    } else {
        vec![(None, DecodingKey::from_secret(text), None)]
    };
    let keys: Vec<Key> = found
        .into_iter()
        .map(|(id, key, only)| {
            let mut algorithms = fitting(&key);
            algorithms.retain(|a| only.is_none_or(|only| only == *a) && (wanted.is_empty() || wanted.contains(a)));
            Key { id, algorithms, key }
        })
        .filter(|key| !key.algorithms.is_empty())
        .collect();
    if keys.is_empty() {
        return Err(no_key("none of its keys fits any of the algorithms in jwt_algorithms"));
    }
    Ok(keys.into())
}

/// A public key behind a comment, a byte order mark, an array of keys, a web page: were it taken for a secret, everybody
/// who can read it could make tokens.
fn looks_like_something_else(text: &[u8]) -> bool {
    const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
    let has = |what: &[u8]| text.windows(what.len()).any(|part| part == what);
    text.starts_with(BYTE_ORDER_MARK) || text.starts_with(b"[") || text.starts_with(b"<") || has(b"-----BEGIN")
}

fn pem(text: &[u8]) -> Option<DecodingKey> {
    // Only public keys: whoever reads this file must not be able to make tokens.
    let is_public = std::str::from_utf8(text).is_ok_and(|text| text.contains("PUBLIC KEY-----"));
    let key = DecodingKey::from_rsa_pem(text).or_else(|_| DecodingKey::from_ec_pem(text)).ok()?;
    (is_public && !fitting(&key).is_empty()).then_some(key)
}

type Found = (Option<String>, DecodingKey, Option<Algorithm>);

fn key_set(text: &[u8]) -> Result<Vec<Found>, String> {
    let value: Value = serde_json::from_slice(text)
        .map_err(|error| format!("it is neither a key set nor a key (RFC 7517): {error}"))?;
    let listed = match value.get("keys") {
        Some(Value::Array(keys)) => keys.clone(),
        _ => vec![value],
    };
    // A key of a kind that is unknown here may stand in a set that others use, too: it is passed over (RFC 7517 section 5).
    let keys = listed.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    let for_signatures = |key: &Jwk| key.common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
    let mut found = Vec::new();
    for jwk in keys.filter(for_signatures) {
        let Ok(key) = DecodingKey::from_jwk(&jwk) else { continue };
        let only = match jwk.common.key_algorithm {
            None => None,
            Some(named) => match named.to_string().parse::<Algorithm>() {
                Ok(algorithm) => Some(algorithm),
                Err(_) => continue,
            },
        };
        if key.family() == AlgorithmFamily::Hmac && bytes_of(&key).map_or(0, <[u8]>::len) < SECRET_BYTES_MIN {
            return Err("a secret in it has less than 32 bytes".to_owned());
        }
        found.push((jwk.common.key_id.clone(), key, only));
    }
    Ok(found)
}

/// What a key may be used for, by its kind alone.
fn fitting(key: &DecodingKey) -> Vec<Algorithm> {
    const UNCOMPRESSED_P256: usize = 65;
    const UNCOMPRESSED_P384: usize = 97;
    match key.family() {
        AlgorithmFamily::Hmac => vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512],
        AlgorithmFamily::Rsa => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmFamily::Ec => match bytes_of(key).map_or(0, <[u8]>::len) {
            UNCOMPRESSED_P256 => vec![Algorithm::ES256],
            UNCOMPRESSED_P384 => vec![Algorithm::ES384],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}
