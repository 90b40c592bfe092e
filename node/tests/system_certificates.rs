//! A login by client certificate through the whole chain, on three real processes: TLS, the name in the certificate, the
//! rules that hold for it, and its session when its node dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;
mod testkit;

use std::io::Read as _;
use std::net::SocketAddr;

use mqtt_testkit::client::{Client, Raw, connect, packet, string};
use mqtt_testkit::secure::{Authority, Tls, tcp, tls, tls_over};
use quorate_jepsen::harness::http;
use rcgen::SanType;
use rustls::ClientConfig;
use rustls::version::TLS13;
use testkit::{SOON, System, eventually, three_machines_with};

/// Where the common name is the user.
const PORT: u16 = 8883;
/// Where the first DNS name is.
const DNS_PORT: u16 = 8884;

fn at(system: &System, place: usize, port: u16) -> SocketAddr {
    (system.mqtt(place).ip(), port).into()
}

/// What the TLS handshake or the first read fails with: in TLS 1.3 the client has finished before the server has looked
/// at its certificate.
fn refusal(at: SocketAddr, config: &ClientConfig) -> String {
    match tls_over(tcp(at), config) {
        Ok(mut stream) => stream.read(&mut [0]).expect_err("it was served").to_string(),
        Err(error) => error.to_string(),
    }
}

/// Sets something over REST.
fn put(system: &System, place: usize, path: &str, body: &str) {
    let answer = http::request(system.admin(place), "PUT", path, Some(body)).unwrap();
    assert!(answer.status < 300, "{answer:?}");
}

/// A client sees what is below its own name, and nobody else does.
fn put_rules(system: &System, place: usize) {
    for (number, rule) in [
        (10, r#"{"permission":"allow","who":"all","action":"all","filters":["plant/%u/#"]}"#),
        (20, r#"{"permission":"deny","who":"all","action":"all","filters":["plant/#"]}"#),
    ] {
        put(system, place, &format!("/api/v1/acls/{number}"), rule);
    }
}

/// A CONNECT of 5.0 for a session that stays; Session Present.
fn login(system: &System, place: usize, config: &ClientConfig, client_id: &str) -> (Client<Tls>, bool) {
    let mut client = Client::over(tls(at(system, place, PORT), config), true);
    // Session Expiry Interval of an hour.
    client.send(&connect(5, client_id, 0, 60, &[0x11, 0, 0, 14, 16]));
    let connack = client.read();
    assert_eq!((connack.first, connack.body[1]), (0x20, 0), "{connack:?}");
    (client, connack.body[0] == 1)
}

/// A publish at QoS 1: the code of PUBACK, and what of it came back to its publisher, which acknowledges it.
fn publish(client: &mut Client<Tls>, topic: &str, id: u16, payload: &[u8], comes_back: bool) -> (u8, Vec<u8>) {
    client.publish(topic, 1, id, payload);
    let (mut code, mut back) = (None, Vec::new());
    while code.is_none() || (comes_back && back.is_empty()) {
        let packet = client.read();
        if packet.first == 0x40 {
            assert_eq!(packet.body[..2], id.to_be_bytes(), "{packet:?}");
            code = Some(packet.body.get(2).copied().unwrap_or(0));
        } else {
            let (delivered, payload) = packet.publish(true);
            client.ack(0x40, delivered);
            back = payload;
        }
    }
    (code.unwrap(), back)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_names_its_user_the_rules_hold_for_it_and_its_session_outlives_its_node() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.issue("server", "server", vec![]);
    for name in ["pump-7", "pump-8"] {
        authority.issue(name, name, vec![]);
    }
    stranger.issue("pump-7", "pump-7", vec![]);
    let files = format!("{}&client_ca={}", authority.query("server"), authority.path("ca.pem").display());
    let listeners = format!("tls://0.0.0.0:{PORT}?auth=certificate&{files}");
    let mut system = three_machines_with(&[("listeners", &listeners)]);
    let leader = system.leader();
    put_rules(&system, leader);

    let seven = authority.client(&[&TLS13], Some("pump-7"));
    let (mut pump, present) = login(&system, leader, &seven, "seven");
    assert!(!present);
    pump.subscribe(1, "plant/pump-7/#", 1);
    let (code, back) = publish(&mut pump, "plant/pump-7/state", 2, b"mine", true);
    assert!(code < 0x80 && back == b"mine", "{code:#x} {back:?}");
    assert_eq!(publish(&mut pump, "plant/pump-8/state", 3, b"not mine", false).0, 0x87);

    // Nobody else has its session, whatever it calls itself; nobody comes in with a certificate of somebody else.
    let eight = authority.client(&[&TLS13], Some("pump-8"));
    let mut other = Client::over(tls(at(&system, leader, PORT), &eight), true);
    other.send(&connect(5, "seven", 0, 60, &[]));
    assert_eq!(other.read().body[1], 0x87);
    let foreign = authority.client_with(&[&TLS13], Some((&stranger, "pump-7")));
    let refused = refusal(at(&system, leader, PORT), &foreign);
    assert!(refused.contains("UnknownCA"), "{refused}");
    let refused = refusal(at(&system, leader, PORT), &authority.client(&[&TLS13], None));
    assert!(refused.contains("CertificateRequired"), "{refused}");

    // Its node dies; the same certificate finds the session elsewhere, with what came meanwhile.
    system.kill(leader);
    let survivor = (leader + 1) % 3;
    let (mut pump, present) = eventually("it comes in elsewhere", SOON, || {
        let mut client = Client::over(tls(at(&system, survivor, PORT), &seven), true);
        client.send(&connect(5, "seven", 0, 60, &[0x11, 0, 0, 14, 16]));
        let connack = client.read();
        (connack.body[1] == 0).then_some((client, connack.body[0] == 1))
    })
    .await;
    assert!(present, "the session is gone");
    let (code, back) = publish(&mut pump, "plant/pump-7/state", 4, b"still mine", true);
    assert!(code < 0x80 && back == b"still mine", "{code:#x} {back:?}");
    assert_eq!(publish(&mut pump, "plant/pump-8/state", 5, b"not mine", false).0, 0x87);
    pump.send(&packet(0xE0, &[]));
    system.restart(leader);
    system.wait_whole();
    system.assert_same_digest();
}

/// A CONNECT of 5.0 that shows this User Name, too; the answer to it.
fn login_as(at: SocketAddr, config: &ClientConfig, user: &str) -> Raw {
    let mut client = Client::over(tls(at, config), true);
    let mut body = string("MQTT");
    body.extend_from_slice(&[5, 0x82, 0, 60, 0]);
    body.extend_from_slice(&string("named"));
    body.extend_from_slice(&string(user));
    client.send(&packet(0x10, &body));
    client.read()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_in_a_certificate_is_the_user_of_the_rows_and_no_user_name_changes_it() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    authority.issue("root", "root", vec![]);
    authority.issue("pump", "a pump", vec![SanType::DnsName("pump-9.example".try_into().unwrap())]);
    let files = format!("{}&client_ca={}", authority.query("server"), authority.path("ca.pem").display());
    let listeners = [
        format!("tls://0.0.0.0:{PORT}?name=cn&auth=certificate&{files}"),
        format!("tls://0.0.0.0:{DNS_PORT}?name=dns&cert_user=san-dns&auth=certificate&{files}"),
    ];
    let mut system = three_machines_with(&[("listeners", &listeners.join(","))]);
    let leader = system.leader();
    put_rules(&system, leader);
    put(&system, leader, "/api/v1/users/root", r#"{"superuser":true}"#);
    let (root, pump) = (authority.client(&[&TLS13], Some("root")), authority.client(&[&TLS13], Some("pump")));

    // Neither that of a user who is there nor that of one who may do more.
    for (shown, code) in [("pump-9.example", 0), ("root", 0x86), ("a pump", 0x86)] {
        let connack = login_as(at(&system, leader, DNS_PORT), &pump, shown);
        assert_eq!((connack.first, connack.body[1]), (0x20, code), "{shown}");
    }

    // The row of its name makes a certificate a superuser's, on a node that only heard of it, too.
    let elsewhere = (leader + 1) % 3;
    let mut watcher = eventually("the superuser watches all", SOON, || {
        let (mut client, _) = login(&system, elsewhere, &root, "watcher");
        client.send(&packet(0x82, &[&[0, 1, 0][..], &string("plant/#"), &[1]].concat()));
        let suback = client.read();
        (suback.body.last() == Some(&1)).then_some(client)
    })
    .await;
    let mut of_cn = login(&system, leader, &pump, "by-common-name").0;
    let mut of_dns = Client::over(tls(at(&system, leader, DNS_PORT), &pump), true);
    of_dns.send(&connect(5, "by-dns-name", 2, 60, &[]));
    assert_eq!(of_dns.read().body[1], 0);
    assert_eq!(publish(&mut of_cn, "plant/pump-9.example/state", 1, b"of another name", false).0, 0x87);
    assert!(publish(&mut of_cn, "plant/a pump/state", 2, b"common name", false).0 < 0x80);
    assert_eq!(publish(&mut of_dns, "plant/a pump/state", 1, b"of another name", false).0, 0x87);
    assert!(publish(&mut of_dns, "plant/pump-9.example/state", 2, b"dns name", false).0 < 0x80);
    // What was refused is not among what came.
    for wanted in [&b"common name"[..], b"dns name"] {
        let (id, payload) = watcher.read().publish(true);
        assert_eq!(payload, wanted);
        watcher.ack(0x40, id);
    }
    let (code, back) = publish(&mut watcher, "plant/pump-7/state", 3, b"a superuser's", true);
    assert!(code < 0x80 && back == b"a superuser's", "{code:#x} {back:?}");
    system.assert_same_digest();
}
