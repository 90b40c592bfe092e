//! Passwords: what is kept instead of one, and how one is checked against it.
//!
//! Salts are drawn here, by the node that takes the request; the command that goes through the log carries the
//! results, so that every replica keeps the same bytes. Nothing here logs, and no error says what a password was.
//! [`derive()`], [`verify`] and [`verify_nobody`] take tens of milliseconds and [`ARGON2_KIB`] of memory on purpose:
//! call them on a thread that may block, and bound how many run at a time.

use std::borrow::Cow;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use hmac::{Hmac, KeyInit, Mac};
use quorate_store::access::ScramVerifier;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// Memory of argon2id in KiB: OWASP's recommendation with [`ARGON2_PASSES`] and [`ARGON2_LANES`].
pub const ARGON2_KIB: u32 = 19_456;
/// Passes of argon2id.
pub const ARGON2_PASSES: u32 = 2;
/// Lanes of argon2id.
pub const ARGON2_LANES: u32 = 1;
/// Iterations of PBKDF2 in a SCRAM-SHA-256 verifier. RFC 7677 asks for at least 4,096. The *client* computes them at
/// each login, so a device of 100,000 SHA-256 a second sets the pace: 15,000 cost it a third of a second, the 600,000
/// that are advised for what only a server computes would cost it 12. That makes a stolen verifier cheaper to guess from
/// than an argon2id hash, so one is made only for a user who is to log in by SCRAM.
pub const SCRAM_ITERATIONS: u32 = 15_000;
/// Salt of a SCRAM verifier in bytes.
pub const SCRAM_SALT_BYTES: usize = 16;
/// Longest password in bytes of UTF-8.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// What is kept instead of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Argon2id, as a PHC string.
    pub password_hash: String,
    /// For SCRAM-SHA-256, when it was asked for.
    pub scram: Option<ScramVerifier>,
}

/// Why a password cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasswordError {
    /// Nothing is left of it.
    #[error("the password is empty: choose one of 1 to {PASSWORD_BYTES_MAX} bytes")]
    Empty,
    /// More than [`PASSWORD_BYTES_MAX`].
    #[error("the password is too long: choose one of 1 to {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
    /// SASLprep (RFC 4013) refuses it.
    #[error(
        "the password has a character that SASLprep (RFC 4013) forbids, such as a control character: choose one of \
         letters, digits, punctuation and spaces"
    )]
    Forbidden,
    /// The system has no random numbers, or the hash function failed.
    #[error("the password could not be hashed, the random number generator of the system may be at fault: retry")]
    Failed,
}

/// What to keep of `password`; slow.
///
/// # Errors
/// [`PasswordError`] says what to choose instead.
pub fn derive(password: &str, with_scram: bool) -> Result<Secrets, PasswordError> {
    let password = prepare(password)?;
    let hash = argon2()?.hash_password(password.as_bytes()).map_err(|_| PasswordError::Failed)?;
    let scram = if with_scram {
        let salt = rand::random::<[u8; SCRAM_SALT_BYTES]>();
        Some(scram_verifier(&password, &salt, SCRAM_ITERATIONS).ok_or(PasswordError::Failed)?)
    } else {
        None
    };
    Ok(Secrets { password_hash: hash.to_string(), scram })
}

/// Whether `password`, as it came in a CONNECT, is the one that `hash` was made from; slow.
///
/// SASLprep is applied as when the password was set, so that clients on systems that compose accents differently agree.
#[must_use]
pub fn verify(hash: &str, password: &[u8]) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    let prepared = std::str::from_utf8(password).ok().and_then(|text| prepare(text).ok());
    // What could never have been set costs as much time as a wrong one.
    let password = prepared.as_deref().map_or(password, str::as_bytes);
    argon2().is_ok_and(|argon2| argon2.verify_password(password, &hash).is_ok())
}

/// Takes as long as [`verify`], for a user who does not exist or has no password: the time of an answer must not tell
/// which names there are.
pub fn verify_nobody(password: &[u8]) {
    let _ = verify(NOBODY, password);
}

/// In the place of a hash where there is none: no password is known that gives it.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cXVvcmF0ZS5ub2JvZHkxMw$m1kBuTI3Q1W5zUvnbeg2Pj0H6mXkYJ0yTqVdwL7cRsE";

/// Whether SASLprep (RFC 4013) leaves a user name as it is. Only such names are given: so a client's User Name is looked
/// up as it comes, and SCRAM, which prepares it, finds the same user.
#[must_use]
pub fn is_prepared(name: &str) -> bool {
    stringprep::saslprep(name).is_ok_and(|prepared| prepared == name)
}

/// A password as SASLprep (RFC 4013) has it.
fn prepare(password: &str) -> Result<Cow<'_, str>, PasswordError> {
    // Before the work, and after it, which may lengthen it.
    let fits = |text: &str| if text.len() > PASSWORD_BYTES_MAX { Err(PasswordError::TooLong) } else { Ok(()) };
    fits(password)?;
    let prepared = stringprep::saslprep(password).map_err(|_| PasswordError::Forbidden)?;
    fits(&prepared)?;
    if prepared.is_empty() { Err(PasswordError::Empty) } else { Ok(prepared) }
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(ARGON2_KIB, ARGON2_PASSES, ARGON2_LANES, None).map_err(|_| PasswordError::Failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// What a server keeps to check SCRAM-SHA-256 (RFC 5802 section 3) of `password`, which SASLprep has been applied to.
fn scram_verifier(password: &str, salt: &[u8], iterations: u32) -> Option<ScramVerifier> {
    let mut salted = [0; 32];
    pbkdf2::pbkdf2::<Hmac<Sha256>>(password.as_bytes(), salt, iterations, &mut salted).ok()?;
    let stored_key = Sha256::digest(hmac(&salted, b"Client Key")?).into();
    let server_key = hmac(&salted, b"Server Key")?;
    Some(ScramVerifier { salt: salt.to_vec(), iterations, stored_key, server_key })
}

/// Checks the proof of a client's final SCRAM message over `auth_message` (RFC 5802 section 3).
///
/// The ServerSignature to answer with when it holds, `None` when it does not.
#[must_use]
pub fn scram_signature(verifier: &ScramVerifier, auth_message: &[u8], proof: &[u8; 32]) -> Option<[u8; 32]> {
    let client_signature = hmac(&verifier.stored_key, auth_message)?;
    let mut client_key = *proof;
    client_key.iter_mut().zip(client_signature).for_each(|(key, sign)| *key ^= sign);
    let stored_key: [u8; 32] = Sha256::digest(client_key).into();
    let holds: bool = stored_key.ct_eq(&verifier.stored_key).into();
    if holds { hmac(&verifier.server_key, auth_message) } else { None }
}

fn hmac(key: &[u8; 32], message: &[u8]) -> Option<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(message);
    Some(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_verifies_against_what_is_kept_of_it_and_no_other_does() {
        let kept = derive("correct horse", false).unwrap();
        assert!(kept.password_hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", kept.password_hash);
        assert!(kept.scram.is_none(), "it is made only when asked for");
        assert!(verify(&kept.password_hash, b"correct horse"));
        for wrong in [&b"correct horsf"[..], b"", b"correct horse\0", b"\xff\xfe", &[b'x'; 5000]] {
            assert!(!verify(&kept.password_hash, wrong));
        }
        assert!(!verify("", b"") && !verify("$argon2id$v=19$m=19456,t=2,p=1$", b""), "a damaged hash lets nobody in");
        let again = derive("correct horse", false).unwrap();
        assert_ne!(again.password_hash, kept.password_hash, "each has its own salt");
    }

    #[test]
    fn accents_count_the_same_however_they_are_composed() {
        let kept = derive("caf\u{e9}", false).unwrap();
        assert!(verify(&kept.password_hash, "cafe\u{301}".as_bytes()));
        assert!(!verify(&kept.password_hash, b"cafe"));
    }

    #[test]
    fn what_cannot_be_a_password_is_refused() {
        for (password, why) in [
            ("", PasswordError::Empty),
            ("\u{ad}", PasswordError::Empty),
            ("a\u{7}b", PasswordError::Forbidden),
            ("a\0b", PasswordError::Forbidden),
        ] {
            assert_eq!(derive(password, true).map(|_| ()), Err(why), "{password:?}");
        }
        assert_eq!(derive(&"x".repeat(PASSWORD_BYTES_MAX + 1), true).map(|_| ()), Err(PasswordError::TooLong));
        derive(&"x".repeat(PASSWORD_BYTES_MAX), true).unwrap();
    }

    #[test]
    fn the_hash_of_nobody_is_well_formed_so_that_it_costs_as_much() {
        let (nobody, somebody) = (NOBODY, derive("x", false).unwrap().password_hash);
        let shape = |hash: &str| {
            let parsed = PasswordHash::new(hash).unwrap();
            (parsed.algorithm, parsed.version, parsed.params, parsed.hash.unwrap().len())
        };
        assert_eq!(shape(nobody), shape(&somebody));
        verify_nobody(b"guess");
    }

    /// Bytes of hexadecimal digits.
    fn hex(text: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digit).collect()
    }

    /// The example of RFC 7677 section 3.
    #[test]
    fn scram_agrees_with_the_example_of_its_standard() {
        let verifier = scram_verifier("pencil", &hex("5b6d99689d12358eeca04b141236fa81"), 4096).unwrap();
        let message = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let mut proof: [u8; 32] =
            hex("747cdb65aa56224e2352137e52d7bdcad6a0f738df30782caa69a2cfb0277554").try_into().unwrap();
        let signature = scram_signature(&verifier, message, &proof).unwrap();
        assert_eq!(signature.to_vec(), hex("eabae24d1062db75a9451ff0b6ea7e98c8546549ff741e672d3251b2397de46e"));
        proof[31] ^= 1;
        assert_eq!(scram_signature(&verifier, message, &proof), None);
    }

    #[test]
    fn a_scram_verifier_is_made_of_the_prepared_password() {
        let scram = derive("caf\u{e9}", true).unwrap().scram.unwrap();
        assert_eq!((scram.salt.len(), scram.iterations), (SCRAM_SALT_BYTES, SCRAM_ITERATIONS));
        assert_eq!(scram_verifier("caf\u{e9}", &scram.salt, scram.iterations), Some(scram));
    }
}
