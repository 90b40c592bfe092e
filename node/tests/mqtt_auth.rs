//! Who may connect, on real sockets over a log in memory: passwords, SCRAM, tokens, and what becomes of clients whose
//! user changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, connect, packet, string};
use mqtt_testkit::scram::{Scram, auth, auth_of, properties};
use quorate::mqtt::options::JwtOptions;
use quorate::mqtt::{MqttOptions, MqttServer};
use quorate_http_admin::password;
use quorate_store::access::User;

const METHOD: &str = "SCRAM-SHA-256";

/// A server with `ann`, whose password is `pencil`.
fn start(options: &MqttOptions) -> (Arc<FakeBackend>, MqttServer) {
    let (backend, server) = FakeBackend::start(options);
    set_password(&backend, "ann", "pencil");
    (backend, server)
}

fn set_password(backend: &FakeBackend, name: &str, password: &str) {
    let secrets = password::derive(password, true).unwrap();
    let user = User {
        name: name.into(),
        password_hash: Some(secrets.password_hash),
        scram: secrets.scram,
        is_superuser: false,
    };
    backend.change_access(|access| {
        access.users.insert(name.into(), user);
    });
}

fn connect_as(v5: bool, client_id: &str, user: &str, password: &[u8]) -> Vec<u8> {
    let mut body = string("MQTT");
    body.extend_from_slice(&[if v5 { 5 } else { 4 }, 0xC2, 0, 60]);
    if v5 {
        body.push(0);
    }
    body.extend_from_slice(&string(client_id));
    body.extend_from_slice(&string(user));
    body.extend_from_slice(&(password.len() as u16).to_be_bytes());
    body.extend_from_slice(password);
    packet(0x10, &body)
}

/// The code of CONNACK.
fn login(server: &MqttServer, v5: bool, client_id: &str, user: &str, password: &[u8]) -> (Client, u8) {
    let mut client = Client::open(server.local_addr(), v5);
    client.send(&connect_as(v5, client_id, user, password));
    let ack = client.read();
    assert_eq!(ack.first, 0x20);
    (client, ack.body[1])
}

/// A client that is let in.
fn welcome(server: &MqttServer, v5: bool, client_id: &str, user: &str, password: &[u8]) -> Client {
    let (client, code) = login(server, v5, client_id, user, password);
    assert_eq!(code, 0);
    client
}

#[test]
fn a_user_comes_in_with_its_password_and_with_no_other() {
    let (_backend, server) = start(&MqttOptions::default());
    for (v5, wrong) in [(true, 0x86), (false, 4)] {
        let mut ann = welcome(&server, v5, "ann", "ann", b"pencil");
        ann.ping();
        for (user, password) in [("ann", &b"pencils"[..]), ("ann", b""), ("bob", b"pencil")] {
            let (mut client, code) = login(&server, v5, "other", user, password);
            assert_eq!(code, wrong, "{user}");
            client.expect_closed();
        }
        ann.ping();
    }
    let stats = server.stats();
    let count = |counters: &[(&str, u64)], method: &str| counters.iter().find(|(m, _)| *m == method).unwrap().1;
    assert_eq!(count(&stats.authenticated, "password"), 2);
    assert_eq!(count(&stats.auth_failures, "password"), 6);
}

#[test]
fn clients_go_when_their_user_goes_or_gets_another_password_and_nobody_else_does() {
    let (backend, server) = start(&MqttOptions::default());
    set_password(&backend, "bob", "eraser");
    let mut bob = welcome(&server, true, "b", "bob", b"eraser");
    let (mut nobody, _) = Client::connect(server.local_addr(), true, "nobody", true);
    let mut v5 = welcome(&server, true, "v5", "ann", b"pencil");
    let mut v3 = welcome(&server, false, "v3", "ann", b"pencil");
    set_password(&backend, "ann", "crayon");
    v5.expect(0xE0, &[0x87]);
    v5.expect_closed();
    v3.expect_closed();
    let mut again = welcome(&server, true, "v5", "ann", b"crayon");
    // What is not about the password disconnects nobody.
    backend.change_access(|access| {
        let ann = access.users.get("ann").unwrap().clone();
        access.users.insert("ann".into(), User { is_superuser: true, ..ann });
    });
    again.ping();
    backend.change_access(|access| {
        access.users.remove("ann");
    });
    again.expect(0xE0, &[0x87]);
    assert_eq!(login(&server, true, "v5", "ann", b"crayon").1, 0x86);
    bob.ping();
    nobody.ping();
}

#[test]
fn a_node_that_checks_too_many_passwords_says_so_and_serves_the_others() {
    let options = MqttOptions { auth_threads: 1, auth_waiting_max: 1, ..MqttOptions::default() };
    let (_backend, server) = start(&options);
    let (mut other, _) = Client::connect(server.local_addr(), true, "other", true);
    welcome(&server, true, "ann", "ann", b"pencil");
    let mut clients: Vec<_> = (0..30).map(|_| Client::open(server.local_addr(), true)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(&connect_as(true, &format!("c{n}"), "ann", b"wrong"));
    }
    other.ping();
    let codes: Vec<u8> = clients.iter_mut().map(|client| client.read().body[1]).collect();
    assert!(codes.iter().all(|code| matches!(code, 0x86 | 0x89)), "{codes:x?}");
    assert!(codes.contains(&0x86) && codes.contains(&0x89), "{codes:x?}");
}

#[test]
fn a_client_that_goes_while_its_password_is_checked_leaves_nothing() {
    let (backend, server) = start(&MqttOptions { auth_threads: 1, ..MqttOptions::default() });
    drop(welcome(&server, true, "ann", "ann", b"pencil"));
    for n in 0..20 {
        let mut client = Client::open(server.local_addr(), true);
        client.send(&connect_as(true, &format!("gone{n}"), "ann", b"pencil"));
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.stats().connections > 0 {
        assert!(Instant::now() < deadline, "{} connections are left", server.stats().connections);
        std::thread::yield_now();
    }
    drop(backend);
}

/// What a client says before it is let in counts once it is, also when it has said goodbye.
#[test]
fn a_client_that_says_all_at_once_and_closes_is_heard_after_its_password_was_checked() {
    let (_backend, server) = start(&MqttOptions::default());
    let (mut reader, _) = Client::connect(server.local_addr(), true, "reader", true);
    reader.subscribe(1, "t", 1);
    drop(welcome(&server, true, "ann", "ann", b"pencil"));
    let mut client = Client::open(server.local_addr(), true);
    let publish = client.publish_bytes("t", 1, 1, b"all at once");
    client.send(&[connect_as(true, "hasty", "ann", b"pencil"), publish, vec![0xE0, 0]].concat());
    client.socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.read().publish(true).1, b"all at once");
}

fn scram_connect(client_id: &str, method: &str, data: &str) -> Vec<u8> {
    connect(5, client_id, 2, 60, &properties(method, data))
}

/// Opens a connection by SCRAM; the code of CONNACK and its data.
fn scram_login(server: &MqttServer, user: &str, password: &str) -> (Client, u8, Scram) {
    let mut client = Client::open(server.local_addr(), true);
    let mut scram = Scram::new(user, password, "fyko+d2lbbFgONRv9qkxdawL");
    client.send(&scram_connect("s", METHOD, &scram.first()));
    let asked = client.read();
    assert_eq!((asked.first, asked.body[0]), (0xF0, 0x18), "{asked:?}");
    let (method, server_first) = auth_of(&asked.body, 1);
    assert_eq!(method, METHOD);
    client.send(&auth(0x18, METHOD, &scram.last(&server_first)));
    let ack = client.read();
    assert_eq!(ack.first, 0x20);
    if ack.body[1] == 0 {
        assert_eq!(auth_of(&ack.body, 2), (METHOD.to_owned(), scram.server_final().to_owned()));
    }
    (client, ack.body[1], scram)
}

fn welcome_scram(server: &MqttServer) -> Client {
    let (client, code, _) = scram_login(server, "ann", "pencil");
    assert_eq!(code, 0);
    client
}

/// [MQTT-4.12.0-2] [MQTT-4.12.0-5] [MQTT-4.12.1-1] [MQTT-3.15.2-1]
#[test]
fn scram_proves_each_side_to_the_other_and_once_more_while_connected() {
    let (backend, server) = start(&MqttOptions::default());
    let mut client = welcome_scram(&server);
    client.subscribe(1, "t", 1);
    let mut again = Scram::new("ann", "pencil", "second");
    client.send(&auth(0x19, METHOD, &again.first()));
    let (_, server_first) = auth_of(&client.read().body, 1);
    client.publish("t", 0, 0, b"meanwhile");
    assert_eq!(client.read().publish(true).1, b"meanwhile");
    client.send(&auth(0x18, METHOD, &again.last(&server_first)));
    let done = client.read();
    assert_eq!((done.first, done.body[0]), (0xF0, 0));
    assert_eq!(auth_of(&done.body, 1).1, again.server_final());
    client.ping();
    set_password(&backend, "ann", "crayon");
    client.expect(0xE0, &[0x87]);
}

/// [MQTT-4.12.0-4] [MQTT-4.12.1-2]
#[test]
fn scram_without_the_password_ends_before_and_after_connack() {
    let (_backend, server) = start(&MqttOptions::default());
    let mut open = welcome_scram(&server);
    for (user, password) in [("ann", "pencils"), ("nobody", "pencil")] {
        let (mut client, code, _) = scram_login(&server, user, password);
        assert_eq!(code, 0x86, "{user}");
        client.expect_closed();
    }
    let mut again = Scram::new("ann", "pencils", "second");
    open.send(&auth(0x19, METHOD, &again.first()));
    let (_, server_first) = auth_of(&open.read().body, 1);
    open.send(&auth(0x18, METHOD, &again.last(&server_first)));
    open.expect(0xE0, &[0x87]);
    open.expect_closed();
}

/// [MQTT-4.12.0-1] [MQTT-3.1.2-30]
#[test]
fn an_exchange_is_of_a_method_that_is_offered_and_nothing_else_comes_before_its_end() {
    let (_backend, server) = start(&MqttOptions::default());
    drop(welcome_scram(&server));
    let open = |bytes: &[u8]| {
        let mut client = Client::open(server.local_addr(), true);
        client.send(bytes);
        client
    };
    let mut unknown = open(&scram_connect("s", "SCRAM-SHA-1", "n,,n=ann,r=x"));
    assert_eq!(unknown.read().body[1], 0x8C);
    unknown.expect_closed();
    let mut malformed = open(&scram_connect("s", METHOD, "hello"));
    assert_eq!(malformed.read().body[1], 0x87);
    malformed.expect_closed();
    for (packet, what) in [
        (vec![0xC0, 0], "PINGREQ"),
        (auth(0x19, METHOD, "n,,n=ann,r=x"), "another beginning"),
        (auth(0x18, "SCRAM-SHA-1", "c=biws"), "another method"),
        (scram_connect("s", METHOD, "n,,n=ann,r=x"), "a second CONNECT"),
    ] {
        let mut client = open(&scram_connect("s", METHOD, "n,,n=ann,r=x"));
        assert_eq!(client.read().first, 0xF0);
        client.send(&packet);
        let ack = client.read();
        assert_eq!((ack.first, ack.body[1]), (0x20, 0x82), "{what}");
        client.expect_closed();
    }
    let mut leaves = open(&scram_connect("s", METHOD, "n,,n=ann,r=x"));
    assert_eq!(leaves.read().first, 0xF0);
    leaves.send(&[0xE0, 0]);
    leaves.expect_closed();
    let (mut without, _) = Client::connect(server.local_addr(), true, "w", true);
    without.send(&auth(0x19, METHOD, "n,,n=ann,r=x"));
    without.expect(0xE0, &[0x82]);
}

#[test]
fn an_exchange_is_over_when_the_time_to_connect_is() {
    let options = MqttOptions { connect_timeout: Duration::from_secs(1), ..MqttOptions::default() };
    let (_backend, server) = start(&options);
    let mut client = Client::open(server.local_addr(), true);
    client.send(&scram_connect("s", METHOD, "n,,n=ann,r=x"));
    assert_eq!(client.read().first, 0xF0);
    client.expect_closed();
}

const SECRET: &[u8] = b"a secret of at least 32 bytes, as RFC 7518 wants it";

fn token(user: &str, lasts_s: u64) -> Vec<u8> {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + lasts_s;
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(&format!(r#"{{"sub":"{user}","exp":{exp}}}"#)));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, message.as_bytes()))).into_bytes()
}

#[test]
fn a_token_lets_its_user_in_for_as_long_as_it_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, SECRET).unwrap();
    let jwt = JwtOptions { key_file, leeway_s: 0, ..JwtOptions::default() };
    let (_backend, server) = start(&MqttOptions { jwt, ..MqttOptions::default() });
    let (mut long, code) = login(&server, true, "long", "device", &token("device", 3600));
    assert_eq!(code, 0);
    let (mut short, code) = login(&server, true, "short", "device", &token("device", 2));
    assert_eq!(code, 0);
    let (_, code) = login(&server, true, "x", "device", &token("another", 3600));
    assert_eq!(code, 0x86, "it is for another user");
    let mut forged = token("device", 3600);
    let last = forged.len() - 5;
    forged[last] ^= 1;
    assert_eq!(login(&server, true, "x", "device", &forged).1, 0x86);
    // Who has a password goes on using it.
    welcome(&server, true, "ann", "ann", b"pencil").ping();
    short.expect(0xE0, &[0x87]);
    short.expect_closed();
    long.ping();
}
