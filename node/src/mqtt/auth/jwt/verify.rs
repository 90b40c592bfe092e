//! Signatures of tokens by *ring*, which the TLS library brings anyway.

use jsonwebtoken::crypto::{CryptoProvider, JwkUtils, JwtVerifier};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use ring::{hmac, signature as ring_signature};

static PROVIDER: CryptoProvider = CryptoProvider {
    // Nothing here makes tokens.
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: |algorithm, key| Ok(Box::new(Signed { algorithm: *algorithm, key: key.clone() })),
    // Only for keys that sign, and for thumbprints.
    jwk_utils: JwkUtils::new_unimplemented(),
};

/// Makes `jsonwebtoken` use this; once for the process.
pub(super) fn install() {
    // Already installed: by an earlier call.
    let _ = PROVIDER.install_default();
}

struct Signed {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for Signed {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        check(self.algorithm, &self.key, message, signature).ok_or_else(Error::new)
    }
}

impl JwtVerifier for Signed {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn check(algorithm: Algorithm, key: &DecodingKey, message: &[u8], signature: &[u8]) -> Option<()> {
    let rsa: &ring_signature::RsaParameters = match algorithm {
        Algorithm::HS256 => return check_hmac(hmac::HMAC_SHA256, key, message, signature),
        Algorithm::HS384 => return check_hmac(hmac::HMAC_SHA384, key, message, signature),
        Algorithm::HS512 => return check_hmac(hmac::HMAC_SHA512, key, message, signature),
        Algorithm::ES256 => return check_ec(&ring_signature::ECDSA_P256_SHA256_FIXED, key, message, signature),
        Algorithm::ES384 => return check_ec(&ring_signature::ECDSA_P384_SHA384_FIXED, key, message, signature),
        Algorithm::RS256 => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &ring_signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &ring_signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &ring_signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    };
    if key.family() != AlgorithmFamily::Rsa {
        return None;
    }
    match key.kind() {
        DecodingKeyKind::SecretOrDer(der) => {
            ring_signature::UnparsedPublicKey::new(rsa, der).verify(message, signature).ok()
        }
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            ring_signature::RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).ok()
        }
    }
}

fn check_hmac(algorithm: hmac::Algorithm, key: &DecodingKey, message: &[u8], signature: &[u8]) -> Option<()> {
    if key.family() != AlgorithmFamily::Hmac {
        return None;
    }
    // In constant time.
    hmac::verify(&hmac::Key::new(algorithm, bytes_of(key)?), message, signature).ok()
}

fn check_ec(
    algorithm: &'static dyn ring_signature::VerificationAlgorithm,
    key: &DecodingKey,
    message: &[u8],
    signature: &[u8],
) -> Option<()> {
    if key.family() != AlgorithmFamily::Ec {
        return None;
    }
    ring_signature::UnparsedPublicKey::new(algorithm, bytes_of(key)?).verify(message, signature).ok()
}

/// A key that is one run of bytes.
pub(super) fn bytes_of(key: &DecodingKey) -> Option<&[u8]> {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => Some(bytes),
        DecodingKeyKind::RsaModulusExponent { .. } => None,
    }
}
