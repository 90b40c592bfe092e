use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use serde_json::json;

use super::*;

const SECRET: &[u8] = b"a secret of at least 32 bytes, as RFC 7518 wants it";
const RSA_PRIVATE: &str = include_str!("../../../../tests/keys/jwt_rsa.pem");
const RSA_PUBLIC: &str = include_str!("../../../../tests/keys/jwt_rsa_public.pem");

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn valid() -> Value {
    json!({ "sub": "ann", "exp": now_s() + 60 })
}

/// A token with this header and these claims, signed by `sign`.
fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}").into_bytes()
}

fn hs(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    ring::hmac::sign(&key, message).as_ref().to_vec()
}

fn hs256(claims: &Value) -> Vec<u8> {
    token(&json!({ "alg": "HS256", "typ": "JWT" }), claims, |message| hs(SECRET, message))
}

fn rs(encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
    let base64: String = RSA_PRIVATE.lines().filter(|line| !line.starts_with("-----")).collect();
    let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap()).unwrap();
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

struct Ec {
    pair: EcdsaKeyPair,
    curve: &'static str,
}

impl Ec {
    fn new(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self { pair: EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap(), curve }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }

    fn jwk(&self, kid: &str) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(if self.curve == "P-256" { 32 } else { 48 });
        json!({ "kty": "EC", "crv": self.curve, "kid": kid, "use": "sig",
                "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
    }

    /// SubjectPublicKeyInfo of P-256 (RFC 5480).
    fn pem(&self) -> String {
        let mut der =
            b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"
                .to_vec();
        der.extend_from_slice(self.pair.public_key().as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }
}

struct Rig {
    dir: tempfile::TempDir,
    jwt: Jwt,
}

impl Rig {
    fn try_with(key: impl AsRef<[u8]>, change: impl FnOnce(&mut JwtOptions)) -> Result<Self, JwtError> {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("key");
        std::fs::write(&key_file, key).unwrap();
        let mut options = JwtOptions { key_file, ..JwtOptions::default() };
        change(&mut options);
        Ok(Self { jwt: Jwt::open(options)?, dir })
    }

    fn with(key: impl AsRef<[u8]>, change: impl FnOnce(&mut JwtOptions)) -> Self {
        Self::try_with(key, change).unwrap_or_else(|error| panic!("{error}"))
    }

    fn new(key: impl AsRef<[u8]>) -> Self {
        Self::with(key, |_| {})
    }

    fn user(&self, token: &[u8]) -> Option<String> {
        self.jwt.check(token, None).ok().map(|identity| identity.user.unwrap().to_string())
    }

    fn takes(&self, token: &[u8]) -> bool {
        self.user(token).is_some()
    }
}

#[test]
fn a_token_of_each_kind_of_key_says_who_comes() {
    let secret = Rig::new(SECRET);
    assert_eq!(secret.user(&hs256(&valid())).as_deref(), Some("ann"));
    assert!(
        !secret.takes(&token(&json!({ "alg": "HS256" }), &valid(), |m| hs(b"another secret, which nobody gave us", m)))
    );

    let rsa = Rig::new(RSA_PUBLIC);
    assert!(rsa.takes(&token(&json!({ "alg": "RS256" }), &valid(), |m| rs(&RSA_PKCS1_SHA256, m))));
    assert!(rsa.takes(&token(&json!({ "alg": "PS512" }), &valid(), |m| rs(&RSA_PSS_SHA512, m))));
    assert!(!rsa.takes(&token(&json!({ "alg": "RS256" }), &valid(), |m| rs(&RSA_PSS_SHA512, m))));

    let (p256, p384) =
        (Ec::new(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"), Ec::new(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"));
    let ec = Rig::new(p256.pem());
    assert!(ec.takes(&token(&json!({ "alg": "ES256" }), &valid(), |m| p256.sign(m))));
    assert!(!ec.takes(&token(&json!({ "alg": "ES384" }), &valid(), |m| p384.sign(m))));

    let set = json!({ "keys": [p256.jwk("one"), p384.jwk("two"), { "kty": "OKP", "crv": "X25519", "x": "AA" }] });
    let set = Rig::new(set.to_string());
    let es256 = |kid: &str| token(&json!({ "alg": "ES256", "kid": kid }), &valid(), |m| p256.sign(m));
    assert!(set.takes(&es256("one")));
    assert!(!set.takes(&es256("two")), "the token says that it was signed by another key");
    assert!(set.takes(&token(&json!({ "alg": "ES384" }), &valid(), |m| p384.sign(m))));
}

#[test]
fn the_token_does_not_choose_what_its_key_is_used_for() {
    let rsa = Rig::new(RSA_PUBLIC);
    // The public key, known to all, as the secret of an HMAC; and no signature at all.
    assert!(!rsa.takes(&token(&json!({ "alg": "HS256" }), &valid(), |m| hs(RSA_PUBLIC.as_bytes(), m))));
    assert!(!rsa.takes(&token(&json!({ "alg": "HS256" }), &valid(), |m| hs(RSA_PUBLIC.trim().as_bytes(), m))));
    for none in ["none", "None", "nOnE", ""] {
        assert!(!rsa.takes(&token(&json!({ "alg": none }), &valid(), |_| Vec::new())));
    }
    let only = Rig::with(RSA_PUBLIC, |options| options.algorithms = vec!["PS512".to_owned()]);
    assert!(!only.takes(&token(&json!({ "alg": "RS256" }), &valid(), |m| rs(&RSA_PKCS1_SHA256, m))));
    let secret = Rig::new(SECRET);
    let critical = token(&json!({ "alg": "HS256", "crit": ["b64"], "b64": false }), &valid(), |m| hs(SECRET, m));
    assert!(!secret.takes(&critical));
}

#[test]
fn claims_are_what_the_options_say() {
    let rig = Rig::new(SECRET);
    let now = now_s();
    for (claims, takes) in [
        (json!({ "sub": "ann", "exp": now + 60, "nbf": now - 1 }), true),
        (json!({ "sub": "ann", "exp": now + 60, "aud": "whoever" }), true),
        (json!({ "sub": "ann", "exp": now - 60 }), false),
        (json!({ "sub": "ann", "exp": now + 60, "nbf": now + 50 }), false),
        (json!({ "sub": "ann", "exp": now + 60, "nbf": "soon" }), false),
        (json!({ "sub": "ann", "exp": "later" }), false),
        (json!({ "sub": "ann" }), false),
        (json!({ "exp": now + 60 }), false),
        (json!({ "sub": "", "exp": now + 60 }), false),
        (json!({ "sub": 7, "exp": now + 60 }), false),
    ] {
        assert_eq!(rig.takes(&hs256(&claims)), takes, "{claims}");
    }
    let strict = Rig::with(SECRET, |options| {
        options.audience = "mqtt".to_owned();
        options.issuer = "us".to_owned();
        options.user_claim = "name".to_owned();
    });
    let full = json!({ "name": "ann", "exp": now + 60, "aud": ["x", "mqtt"], "iss": "us" });
    assert!(strict.takes(&hs256(&full)));
    for (claim, value) in
        [("aud", json!("x")), ("aud", Value::Null), ("iss", json!("them")), ("iss", Value::Null), ("name", Value::Null)]
    {
        let mut claims = full.clone();
        claims[claim] = value;
        assert!(!strict.takes(&hs256(&claims)), "{claims}");
    }
}

#[test]
fn it_is_for_the_user_that_the_client_names_and_ends_with_its_expiry() {
    let rig = Rig::new(SECRET);
    let ann = hs256(&valid());
    assert!(rig.jwt.check(&ann, Some("ann")).is_ok());
    let refused = rig.jwt.check(&ann, Some("bob")).unwrap_err();
    assert_eq!(refused, Refused { method: Some(AuthMethod::Jwt), reason: Reason::BAD_USER_NAME_OR_PASSWORD });
    let left = rig.jwt.check(&ann, None).unwrap().expires_in.unwrap();
    assert!((Duration::from_secs(60)..=Duration::from_secs(70)).contains(&left), "60 s and 10 s of leeway: {left:?}");
    let stays = Rig::with(SECRET, |options| options.stays_after_expiry = true);
    assert_eq!(stays.jwt.check(&ann, None).unwrap().expires_in, None);
    let forever = hs256(&json!({ "sub": "ann", "exp": u64::MAX }));
    assert!(rig.jwt.check(&forever, None).is_ok());
}

#[test]
fn only_what_has_the_form_of_a_token_is_one() {
    assert!(Jwt::is_token(&hs256(&valid())));
    for other in [&b""[..], b"pencil", b"a.b.c", b"..", &[b'x'; 20_000]] {
        assert!(!Jwt::is_token(other));
    }
    let rig = Rig::new(SECRET);
    assert!(!rig.takes(b"pencil"));
    assert!(!rig.takes(&token(&json!({ "alg": "HS256" }), &json!({ "sub": "x".repeat(20_000) }), |m| hs(SECRET, m))));
}

#[test]
fn a_file_without_a_usable_key_is_refused_with_what_it_should_be() {
    let why = |key: &[u8], algorithms: &[&str]| {
        let algorithms = algorithms.iter().map(|name| (*name).to_owned()).collect();
        let rig = Rig::try_with(key, |options| options.algorithms = algorithms);
        rig.map(|_| ()).unwrap_err().to_string()
    };
    assert!(why(b"short", &[]).contains("at least 32 bytes"));
    let behind_a_comment = format!("# our key\n{RSA_PUBLIC}");
    let with_a_mark = [&b"\xEF\xBB\xBF"[..], RSA_PUBLIC.as_bytes()].concat();
    for other in [
        behind_a_comment.as_bytes(),
        &with_a_mark,
        b"[{\"kty\":\"oct\"}] and more, 32 bytes",
        b"<html>not found, says the server of keys</html>",
    ] {
        assert!(why(other, &[]).contains("nor a secret"), "whoever can read it could make tokens");
    }
    assert!(why(RSA_PRIVATE.as_bytes(), &[]).contains("a public key"), "nobody who reads this may make tokens");
    assert!(why(b"{]", &[]).contains("neither a key set nor a key"));
    assert!(why(b"{}", &[]).contains("none of its keys"));
    assert!(why(br#"{"keys":[]}"#, &[]).contains("none of its keys"));
    assert!(why(br#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#, &[]).contains("less than 32 bytes"));
    assert!(why(SECRET, &["RS256"]).contains("none of its keys fits"));
    assert!(why(SECRET, &["none"]).contains("no algorithm"));
    let missing = JwtOptions { key_file: "/nowhere/key".into(), ..JwtOptions::default() };
    assert!(Jwt::open(missing).unwrap_err().to_string().contains("/nowhere/key"));
}

#[test]
fn keys_are_read_anew_when_the_file_changes_and_kept_when_it_is_damaged() {
    let rig = Rig::new(SECRET);
    let other = b"another secret of at least 32 bytes, after the first".as_slice();
    let new = token(&json!({ "alg": "HS256" }), &valid(), |message| hs(other, message));
    let look = |rig: &Rig| rig.jwt.loaded.lock().unwrap().looked -= LOOK;
    assert!(!rig.takes(&new));
    std::fs::write(rig.dir.path().join("key"), other).unwrap();
    look(&rig);
    assert!(rig.takes(&new) && !rig.takes(&hs256(&valid())));
    std::fs::write(rig.dir.path().join("key"), "short").unwrap();
    look(&rig);
    assert!(rig.takes(&new), "a file that was damaged locks nobody out");
}
