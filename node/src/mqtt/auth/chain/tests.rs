use bytes::Bytes;
use quorate_store::access::{Access, User};

use super::super::super::listen::{Endpoint, ListenerOptions};
use super::super::super::packet::{AuthData, Connect};
use super::*;

fn connect(username: Option<&str>, password: Option<&'static str>) -> Connect {
    Connect {
        client_id: "c".into(),
        clean_start: true,
        keep_alive_s: 0,
        expiry_s: None,
        receive_maximum: 1,
        packet_bytes_max: None,
        auth: None,
        wants_problems: true,
        topic_alias_max: 0,
        wants_response_information: false,
        username: username.map(str::to_owned),
        password: password.map(|text| Secret(Bytes::from_static(text.as_bytes()))),
        will: None,
    }
}

fn tcp(auth: &[AuthMethod]) -> ListenerOptions {
    ListenerOptions { auth: auth.to_vec(), ..ListenerOptions::tcp("mqtt", ([127, 0, 0, 1], 1883).into()) }
}

fn unix() -> ListenerOptions {
    let endpoint = Endpoint::Unix { path: "/run/quorate.sock".into(), mode: 0o660 };
    ListenerOptions { endpoint, ..tcp(&[]) }
}

/// `ann` with the password `pencil`, and `eve`, who has none.
fn users() -> Access {
    let user = |name: &str, password_hash| User { name: name.into(), password_hash, scram: None, is_superuser: false };
    let ann = user("ann", Some(password::derive("pencil", false).unwrap().password_hash));
    let users = [("ann".to_owned(), ann), ("eve".to_owned(), user("eve", None))];
    Access { users: users.into_iter().collect(), ..Access::default() }
}

fn judge_at(
    everywhere: bool,
    listener: &ListenerOptions,
    access: &Access,
    peer: Option<&str>,
    connect: &Connect,
) -> Result<Option<String>, u8> {
    let chain = Chain::new(everywhere, Arc::new(Pool::start(1, 8).unwrap()), None);
    let peer = peer.map(|text| text.parse().unwrap());
    let attempt = Attempt { connect, listener, peer, is_unknown: false, certificate_user: None, access };
    let result = match chain.judge(attempt) {
        Judgement::Now(result) => result,
        Judgement::Later(verdict) => tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(verdict),
        Judgement::Exchange(_) => panic!("no exchange was asked for"),
    };
    result.map(|identity| identity.user.as_deref().map(str::to_owned)).map_err(|refused| refused.reason.0)
}

fn judge(listener: &ListenerOptions, access: &Access, connect: &Connect) -> Result<Option<String>, u8> {
    judge_at(false, listener, access, Some("127.0.0.1:1000"), connect)
}

#[test]
fn unknown_clients_come_from_this_machine_unless_all_may() {
    let (nobody, access) = (connect(None, None), Access::default());
    let at = |everywhere, listener: &ListenerOptions, peer| judge_at(everywhere, listener, &access, peer, &nobody);
    let mqtt = tcp(&[]);
    assert_eq!(at(false, &mqtt, Some("127.0.0.1:1000")), Ok(None));
    assert_eq!(at(false, &mqtt, Some("[::ffff:127.0.0.1]:1000")), Ok(None));
    assert_eq!(at(false, &mqtt, Some("10.0.0.1:1000")), Err(0x87));
    assert_eq!(at(false, &mqtt, None), Err(0x87));
    assert_eq!(at(true, &mqtt, Some("10.0.0.1:1000")), Ok(None));
    assert_eq!(at(false, &unix(), None), Ok(None));
    assert_eq!(at(false, &unix(), Some("10.0.0.1:1000")), Err(0x87), "a proxy in front of the socket says so");
}

/// The proxy's own address is no sign of where its client is.
#[test]
fn a_client_of_whom_its_proxy_says_nothing_is_not_taken_for_local() {
    let (nobody, access) = (connect(None, None), Access::default());
    for (listener, peer) in [(tcp(&[]), Some("127.0.0.1:1000")), (unix(), None)] {
        let chain = Chain::new(false, Arc::new(Pool::start(1, 8).unwrap()), None);
        let peer = peer.map(|text| text.parse().unwrap());
        let attempt = Attempt {
            connect: &nobody,
            listener: &listener,
            peer,
            is_unknown: true,
            certificate_user: None,
            access: &access,
        };
        let Judgement::Now(result) = chain.judge(attempt) else { panic!("nothing is to be waited for") };
        assert_eq!(result.unwrap_err().reason.0, 0x87);
    }
}

#[test]
fn a_user_name_that_nobody_could_check_is_ignored_until_there_is_a_user() {
    let named = connect(Some("anyone"), Some("anything"));
    assert_eq!(judge(&tcp(&[]), &Access::default(), &named), Ok(None));
    assert_eq!(judge(&tcp(&[]), &users(), &named), Err(0x86));
    assert_eq!(judge(&tcp(&[]), &users(), &connect(Some("ann"), None)), Err(0x86), "a name alone proves nothing");
    assert_eq!(judge(&tcp(&[]), &users(), &connect(None, None)), Ok(None));
    // Where everybody is let in unasked, and where somebody is to be asked from the beginning.
    assert_eq!(judge(&tcp(&[AuthMethod::Anonymous]), &users(), &named), Ok(None));
    assert_eq!(judge(&tcp(&[AuthMethod::Password, AuthMethod::Anonymous]), &Access::default(), &named), Err(0x86));
}

#[test]
fn a_password_is_that_of_its_user() {
    let access = users();
    let check = |name, password| judge(&tcp(&[AuthMethod::Password]), &access, &connect(name, password));
    assert_eq!(check(Some("ann"), Some("pencil")), Ok(Some("ann".to_owned())));
    assert_eq!(check(Some("ann"), Some("pencils")), Err(0x86));
    assert_eq!(check(Some("bob"), Some("pencil")), Err(0x86));
    assert_eq!(check(Some("eve"), Some("")), Err(0x86), "she has no password, not an empty one");
    assert_eq!(check(None, Some("pencil")), Err(0x86));
    assert_eq!(check(None, None), Err(0x87), "this listener wants to know who comes");
    // Also from elsewhere, and where unknown clients may come, too.
    let from_afar = judge_at(true, &tcp(&[]), &access, Some("10.0.0.1:1000"), &connect(Some("ann"), Some("no")));
    assert_eq!(from_afar, Err(0x86), "a wrong password is not a way to be nobody");
    let from_afar = judge_at(false, &tcp(&[]), &access, Some("10.0.0.1:1000"), &connect(Some("ann"), Some("pencil")));
    assert_eq!(from_afar, Ok(Some("ann".to_owned())));
}

#[test]
fn a_certificate_says_who_comes_where_the_listener_takes_its_word() {
    let access = Access::default();
    let chain = Chain::new(false, Arc::new(Pool::start(1, 8).unwrap()), None);
    let judge = |auth: &[AuthMethod], username: Option<&str>, certificate_user| {
        let (listener, connect) = (tcp(auth), connect(username, None));
        let peer = Some("10.0.0.1:1000".parse().unwrap());
        let attempt = Attempt {
            connect: &connect,
            listener: &listener,
            peer,
            is_unknown: false,
            certificate_user,
            access: &access,
        };
        match chain.judge(attempt) {
            Judgement::Now(result) => {
                result.map(|id| id.user.as_deref().map(str::to_owned)).map_err(|refused| refused.reason.0)
            }
            other => panic!("{other:?}"),
        }
    };
    let certificate = [AuthMethod::Certificate];
    assert_eq!(judge(&certificate, None, Some("device-7")), Ok(Some("device-7".to_owned())));
    assert_eq!(judge(&certificate, Some("device-7"), Some("device-7")), Ok(Some("device-7".to_owned())));
    assert_eq!(judge(&certificate, Some("device-8"), Some("device-7")), Err(0x86));
    assert_eq!(judge(&certificate, None, None), Err(0x87));
    assert_eq!(judge(&[AuthMethod::Password], None, Some("device-7")), Err(0x87), "here it is no proof");
    assert_eq!(judge(&[], None, Some("device-7")), Err(0x87), "nor where the listener does not say so");
}

/// [MQTT-4.12.0-1]
#[test]
fn a_method_that_is_not_offered_is_refused() {
    let access = users();
    let asks = |method: &str| Connect {
        auth: Some(Box::new(AuthData { method: method.to_owned(), data: None })),
        ..connect(None, None)
    };
    assert_eq!(judge(&tcp(&[]), &access, &asks("SCRAM-SHA-1")), Err(0x8C));
    assert_eq!(judge(&tcp(&[AuthMethod::Password]), &access, &asks(scram::METHOD)), Err(0x8C));
    assert_eq!(judge(&tcp(&[]), &access, &asks(scram::METHOD)), Err(0x87), "it has to begin with its first message");
}

#[test]
fn counters_are_in_the_order_of_the_methods() {
    for (n, (_, method)) in AuthMethod::ALL.into_iter().enumerate() {
        assert_eq!(method as usize, n);
    }
}
