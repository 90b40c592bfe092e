use quorate_store::access::User;

use super::*;

/// RFC 7677 section 3: user `user`, password `pencil`.
const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn digest(text: &str) -> [u8; 32] {
    BASE64.decode(text).unwrap().try_into().unwrap()
}

fn access(name: &str) -> Access {
    // Computed with another implementation (Python's hashlib) from `pencil` and the salt.
    let scram = ScramVerifier {
        salt: BASE64.decode(SALT).unwrap(),
        iterations: 4096,
        stored_key: digest("WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="),
        server_key: digest("wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="),
    };
    let user = User { name: name.into(), password_hash: None, scram: Some(scram), is_superuser: false };
    Access { users: [(name.to_owned(), user)].into_iter().collect(), ..Access::default() }
}

fn begin(first: &str) -> Result<Exchange, Bad> {
    Exchange::begin(first.as_bytes(), NONCE, &access("user"), None)
}

#[test]
fn the_exchange_is_that_of_the_standard() {
    let exchange = begin(FIRST).unwrap();
    assert_eq!(exchange.server_first(), SERVER_FIRST);
    let identity = exchange.finish(FINAL.as_bytes(), [7; 32]).unwrap();
    assert_eq!(identity.user.as_deref(), Some("user"));
    assert_eq!(identity.scram.as_ref().unwrap().server_final, SERVER_FINAL);
    assert!(identity.holds(&access("user")) && !identity.holds(&access("else")));
}

#[test]
fn a_wrong_proof_or_another_exchange_is_refused() {
    let finish = |last: &str| begin(FIRST).unwrap().finish(last.as_bytes(), [7; 32]).unwrap_err();
    assert_eq!(finish(&FINAL.replace("p=dH", "p=dX")), Bad::Credentials);
    assert_eq!(finish(&FINAL.replace("p=dHzb", "p=")), Bad::Message, "shorter than a proof");
    assert_eq!(finish(&FINAL.replace("c=biws", "c=eSws")), Bad::Message, "another header: y,,");
    assert_eq!(finish(&FINAL.replace("hNlF$k0", "hNlF$k1")), Bad::Message, "another nonce");
    assert_eq!(finish(&FINAL.replace(",p=", ",x=1,p=")), Bad::Credentials, "something that was not signed");
    assert_eq!(finish(""), Bad::Message);
    // What was valid once is not valid for the next nonce.
    let other = Exchange::begin(FIRST.as_bytes(), "another", &access("user"), None).unwrap();
    assert_eq!(other.finish(FINAL.as_bytes(), [7; 32]).unwrap_err(), Bad::Message);
}

#[test]
fn messages_that_are_none_are_refused() {
    for first in [
        "",
        "n,,",
        "n,,n=user",
        "n,,n=,r=x",
        "n,,r=x,n=user",
        "p=tls-unique,,n=user,r=x",
        "n,b=user,n=user,r=x",
        "n,,m=ext,n=user,r=x",
        "n,,n=us=er,r=x",
        "n,,n=user,r=",
        "n,,n=user,r=x y",
    ] {
        assert_eq!(begin(first).unwrap_err(), Bad::Message, "{first:?}");
    }
    assert_eq!(text(&[b'x'; MESSAGE_BYTES_MAX + 1]), Err(Bad::Message));
    assert_eq!(text(b"\xff"), Err(Bad::Message));
    begin("n,,n=user,r=x,ext=1").unwrap();
    begin("y,a=user,n=user,r=x").unwrap();
}

#[test]
fn nobody_speaks_for_another_user() {
    assert_eq!(begin("n,a=root,n=user,r=x").unwrap_err(), Bad::Credentials);
    let said = Exchange::begin(FIRST.as_bytes(), NONCE, &access("user"), Some("root"));
    assert_eq!(said.unwrap_err(), Bad::Credentials);
    Exchange::begin(FIRST.as_bytes(), NONCE, &access("user"), Some("user")).unwrap();
    let escaped = Exchange::begin(b"n,,n=a=2Cb=3Dc,r=x", NONCE, &access("a,b=c"), Some("a,b=c")).unwrap();
    assert_eq!(escaped.user, "a,b=c");
}

#[test]
fn an_unknown_user_is_asked_like_any_other() {
    let ask = || begin("n,,n=nobody,r=x").unwrap();
    let first = ask().server_first().to_owned();
    assert_eq!(first, ask().server_first(), "the same salt whenever it is asked for");
    assert_ne!(first, begin("n,,n=nobody2,r=x").unwrap().server_first());
    let last = format!("c=biws,r=x{NONCE},p={}", BASE64.encode([0; 32]));
    assert_eq!(ask().finish(last.as_bytes(), [7; 32]).unwrap_err(), Bad::Credentials);
}

#[test]
fn nonces_differ_and_secrets_are_not_shown() {
    assert_ne!(fresh_nonce(), fresh_nonce());
    assert_ne!(nonce_from(&[1; 32], 0), nonce_from(&[1; 32], 1));
    assert_ne!(nonce_from(&[1; 32], 0), nonce_from(&[2; 32], 0));
    let exchange = begin(FIRST).unwrap();
    let shown = format!("{exchange:?} {:?}", begin(FIRST).unwrap().finish(FINAL.as_bytes(), [7; 32]));
    assert!(!shown.contains("stored_key: [") && !shown.contains("v=6rr") && !shown.contains("[7"), "{shown}");
}
