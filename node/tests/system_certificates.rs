//! A login by client certificate through the whole chain, on three real processes: TLS, the name in the certificate, the
//! rules that hold for it, and its session when its node dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;
mod testkit;

use std::io::Read as _;

use mqtt_testkit::client::{Client, connect, packet};
use mqtt_testkit::secure::{Authority, Tls, tcp, tls, tls_over};
use quorate_jepsen::harness::http;
use rustls::ClientConfig;
use rustls::version::TLS13;
use testkit::{SOON, System, eventually, three_machines_with};

const PORT: u16 = 8883;

/// A CONNECT of 5.0 for a session that stays; Session Present.
fn login(system: &System, place: usize, config: &ClientConfig, client_id: &str) -> (Client<Tls>, bool) {
    let at = (system.mqtt(place).ip(), PORT).into();
    let mut client = Client::over(tls(at, config), true);
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
    for (number, rule) in [
        (10, r#"{"permission":"allow","who":"all","action":"all","filters":["plant/%u/#"]}"#),
        (20, r#"{"permission":"deny","who":"all","action":"all","filters":["plant/#"]}"#),
    ] {
        let answer = http::request(system.admin(leader), "PUT", &format!("/api/v1/acls/{number}"), Some(rule)).unwrap();
        assert!(answer.status < 300, "{answer:?}");
    }

    let seven = authority.client(&[&TLS13], Some("pump-7"));
    let (mut pump, present) = login(&system, leader, &seven, "seven");
    assert!(!present);
    pump.subscribe(1, "plant/pump-7/#", 1);
    let (code, back) = publish(&mut pump, "plant/pump-7/state", 2, b"mine", true);
    assert!(code < 0x80 && back == b"mine", "{code:#x} {back:?}");
    assert_eq!(publish(&mut pump, "plant/pump-8/state", 3, b"not mine", false).0, 0x87);

    // Nobody else has its session, whatever it calls itself; nobody comes in with a certificate of somebody else.
    let eight = authority.client(&[&TLS13], Some("pump-8"));
    let mut other = Client::over(tls((system.mqtt(leader).ip(), PORT).into(), &eight), true);
    other.send(&connect(5, "seven", 0, 60, &[]));
    assert_eq!(other.read().body[1], 0x87);
    let foreign = authority.client_with(&[&TLS13], Some((&stranger, "pump-7")));
    let refused = match tls_over(tcp((system.mqtt(leader).ip(), PORT).into()), &foreign) {
        Ok(mut stream) => stream.read(&mut [0]).expect_err("it was served"),
        Err(error) => error,
    };
    assert!(refused.to_string().contains("UnknownCA"), "{refused}");

    // Its node dies; the same certificate finds the session elsewhere, with what came meanwhile.
    system.kill(leader);
    let survivor = (leader + 1) % 3;
    let (mut pump, present) = eventually("it comes in elsewhere", SOON, || {
        let at = (system.mqtt(survivor).ip(), PORT).into();
        let mut client = Client::over(tls(at, &seven), true);
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
