//! Who may connect and what they may do, on three real processes: what is said to one node holds on all of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;
mod testkit;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mqtt_testkit::client::{Client, connect, packet, string};
use mqtt_testkit::scram::{Scram, auth, auth_of, properties};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use testkit::{SOON, System, eventually, nodes, three_nodes};

const METHOD: &str = "SCRAM-SHA-256";
const PRIVATE: &str = include_str!("keys/jwt_rsa.pem");
const PUBLIC_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/jwt_rsa_public.pem");

/// Runs `quorate` against the administration of a node.
fn quorate(system: &System, place: usize, arguments: &[&str], input: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).args(["--admin", &system.admin(place).to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // One that needs no password may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    assert!(child.wait().unwrap().success(), "{arguments:?}");
}

/// A CONNECT of 5.0; the code of CONNACK.
fn login(system: &System, place: usize, client_id: &str, user: &str, password: &[u8]) -> (Client, u8) {
    let mut body = string("MQTT");
    body.extend_from_slice(&[5, 0xC2, 0, 60, 0]);
    body.extend_from_slice(&string(client_id));
    body.extend_from_slice(&string(user));
    body.extend_from_slice(&(password.len() as u16).to_be_bytes());
    body.extend_from_slice(password);
    let mut client = Client::open(system.mqtt(place), true);
    client.send(&packet(0x10, &body));
    let code = client.read().body[1];
    (client, code)
}

/// Waits until a node, which may be behind by a moment, lets the client in.
async fn comes_in(system: &System, place: usize, user: &str, password: &str) -> Client {
    eventually(&format!("{user} comes in at node {place}"), SOON, || {
        let (client, code) = login(system, place, &format!("{user}{place}"), user, password.as_bytes());
        (code == 0).then_some(client)
    })
    .await
}

fn scram(system: &System, place: usize, user: &str, password: &str) -> (Client, u8) {
    let mut client = Client::open(system.mqtt(place), true);
    let mut scram = Scram::new(user, password, "fyko+d2lbbFgONRv9qkxdawL");
    client.send(&connect(5, "scram", 2, 60, &properties(METHOD, &scram.first())));
    let asked = client.read();
    assert_eq!(asked.first, 0xF0, "{asked:?}");
    client.send(&auth(0x18, METHOD, &scram.last(&auth_of(&asked.body, 1).1)));
    let code = client.read().body[1];
    (client, code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_added_at_one_node_comes_in_at_all_and_is_gone_from_all_when_it_is_deleted() {
    let system = three_nodes();
    let (mut nobody, _) = Client::connect(system.mqtt(2), true, "nobody", true);
    quorate(&system, 0, &["user", "add", "ann", "--scram"], "pencil\n");
    // Who reads the answer finds the change on that node at once.
    assert_eq!(login(&system, 0, "ann0", "ann", b"pencil").1, 0);
    // A session is its user's: else bob would read what waits for ann, or end her connection.
    quorate(&system, 0, &["user", "add", "bob"], "crayon\n");
    let (mut ann, code) = login(&system, 0, "same", "ann", b"pencil");
    assert_eq!(code, 0);
    assert_eq!(login(&system, 0, "same", "bob", b"crayon").1, 0x87);
    ann.ping();
    drop(ann);
    quorate(&system, 0, &["user", "delete", "bob"], "");
    let mut clients = Vec::new();
    for place in 0..3 {
        clients.push(comes_in(&system, place, "ann", "pencil").await);
        assert_eq!(login(&system, place, "x", "ann", b"pencils").1, 0x86);
        assert_eq!(login(&system, place, "x", "bob", b"pencil").1, 0x86);
    }
    let (mut by_scram, code) = scram(&system, 1, "ann", "pencil");
    assert_eq!(code, 0);
    assert_eq!(scram(&system, 2, "ann", "pencils").1, 0x86);

    quorate(&system, 2, &["user", "delete", "ann"], "");
    for client in clients.iter_mut().chain([&mut by_scram]) {
        client.expect(0xE0, &[0x87]);
        client.expect_closed();
    }
    assert_eq!(login(&system, 2, "ann2", "ann", b"pencil").1, 0, "there is no user any more, so none is asked for");
    nobody.ping();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_counts_for_clients_of_every_node() {
    let system = three_nodes();
    quorate(&system, 0, &["user", "add", "ann"], "pencil\n");
    quorate(&system, 0, &["acl", "add", "10", "allow", "user:ann", "all", "plant/%u/#"], "");
    quorate(&system, 0, &["acl", "add", "20", "deny", "all", "all", "plant/#"], "");
    let publish = |client: &mut Client, topic: &str| {
        client.publish(topic, 1, 7, b"x");
        let ack = client.read();
        assert_eq!(ack.first, 0x40, "{ack:?}");
        ack.body.get(2).copied().unwrap_or(0)
    };
    let mut clients = Vec::new();
    for place in 0..3 {
        let mut ann = comes_in(&system, place, "ann", "pencil").await;
        eventually("the rule is there", SOON, || (publish(&mut ann, "plant/bob/x") == 0x87).then_some(())).await;
        assert_ne!(publish(&mut ann, "plant/ann/x"), 0x87);
        clients.push(ann);
    }
    quorate(&system, 1, &["acl", "delete", "20"], "");
    for ann in &mut clients {
        eventually("the rule is gone", SOON, || (publish(ann, "plant/bob/x") != 0x87).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_configured_key_lets_its_user_in() {
    let system = nodes(1, &[("jwt_key_file", PUBLIC_PATH)]);
    let base64: String = PRIVATE.lines().filter(|line| !line.starts_with("-----")).collect();
    let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap()).unwrap();
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3600;
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(r#"{"alg":"RS256"}"#), part(&format!(r#"{{"sub":"device","exp":{exp}}}"#)));
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(&signature));
    let (mut device, code) = login(&system, 0, "device", "device", token.as_bytes());
    assert_eq!(code, 0);
    device.ping();
    assert_eq!(login(&system, 0, "x", "another", token.as_bytes()).1, 0x86);
    signature[9] ^= 1;
    let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(&signature));
    assert_eq!(login(&system, 0, "x", "device", forged.as_bytes()).1, 0x86);
}
