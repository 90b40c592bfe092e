//! Who lives: connections that end while they begin, keep alive when bytes come and go slowly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, connect, packet, string};
use quorate::mqtt::MqttOptions;
use quorate_store::codec::Payload;
use quorate_store::command::Publish;
use quorate_store::ids::QoS;
use quorate_store::topic::TopicName;

#[test]
fn a_connect_that_is_applied_after_its_end_leaves_no_connection() {
    let (backend, server) = FakeBackend::start_workers(&MqttOptions::default(), 1);
    let at = server.local_addr();
    let connected = |log: &mqtt_testkit::log::FakeLog| log.sessions.get("ghost").is_some_and(|s| s.connected);
    // The worker wakes to the loss of its quorum and to the commit; which it takes first is chance.
    for _ in 0..20 {
        let (mut other, _) = Client::connect(at, true, "other", true);
        backend.set_hold(true);
        let mut ghost = Client::open(at, true);
        ghost.send(&connect(5, "ghost", 0, 60, &[0x11, 0, 0, 0, 100]));
        backend.wait("its CONNECT waits", |log| log.waiting() == 1);
        let mut log = backend.log();
        other.publish("a", 1, 1, b"x");
        backend.wait_for_a_stuck_worker();
        backend.apply_held(&mut log);
        backend.set_quorum(false, None);
        drop(log);
        backend.set_hold(false);
        backend.wait("nobody is connected as ghost", |log| log.waiting() == 0 && !connected(log));
        backend.set_quorum(true, None);
    }
    server.stop();
}

#[test]
fn a_client_that_said_goodbye_before_it_was_connected_is_heard_to_the_end() {
    let (backend, server) = FakeBackend::start_workers(&MqttOptions::default(), 1);
    let (mut probe, _) = Client::connect(server.local_addr(), true, "probe", true);
    backend.set_hold(true);
    let mut hasty = Client::open(server.local_addr(), true);
    let will = [&[0][..], &string("w"), &string("gone")].concat();
    let body = [&string("MQTT")[..], &[5, 4, 0, 60, 5, 0x11, 0, 0, 0, 100], &string("hasty"), &will].concat();
    let said = hasty.publish_bytes("a", 1, 1, b"last words");
    hasty.send(&[packet(0x10, &body), said, vec![0xE0, 0]].concat());
    drop(hasty);
    backend.wait("its CONNECT waits", |log| log.waiting() == 1);
    // The one worker has seen that the socket is closed by the time that it answers.
    probe.ping();
    probe.ping();
    backend.set_hold(false);
    backend.wait("its publish arrived, and its goodbye", |log| {
        log.published.len() == 1 && log.sessions.get("hasty").is_some_and(|s| !s.connected && s.will_due == 0)
    });
    // Who says no goodbye has given up: its CONNECT must not undo what it did elsewhere since.
    backend.set_hold(true);
    let mut gone = Client::open(server.local_addr(), true);
    let said = gone.publish_bytes("a", 1, 1, b"x");
    gone.send(&[connect(5, "gone", 0, 60, &[0x11, 0, 0, 0, 100]), said].concat());
    drop(gone);
    backend.wait("its CONNECT waits", |log| log.waiting() == 1);
    probe.ping();
    probe.ping();
    backend.set_hold(false);
    backend.wait("its CONNECT is dealt with", |log| log.waiting() == 0);
    probe.ping();
    backend
        .wait("it is not connected", |log| log.waiting() == 0 && log.sessions.get("gone").is_none_or(|s| !s.connected));
    assert_eq!(backend.log().published.len(), 1);
    server.stop();
}

/// Clients that say nothing: each is disconnected after one and a half times its keep alive, and so tells
/// the time. The server's own clock runs, whatever the machine's load.
struct Silent(Vec<Client>);

impl Silent {
    fn open(at: std::net::SocketAddr, keep_alives_s: &[u16]) -> Self {
        Self(
            keep_alives_s
                .iter()
                .rev()
                .map(|s| {
                    let mut client = Client::open(at, true);
                    client.send(&connect(5, &format!("silent{s}"), 2, *s, &[]));
                    assert_eq!(client.read().first, 0x20);
                    client
                })
                .collect(),
        )
    }

    /// Until the next is disconnected.
    fn next(&mut self) {
        self.0.pop().unwrap().expect(0xE0, &[0x8D]);
    }
}

fn connect_lasting(at: std::net::SocketAddr, client_id: &str, keep_alive_s: u16) -> Client {
    let mut client = Client::open(at, true);
    client.send(&connect(5, client_id, 0, keep_alive_s, &[0x11, 0, 0, 3, 0xE8]));
    assert_eq!(client.read().first, 0x20);
    client
}

#[test]
fn keep_alive_counts_the_pieces_of_a_packet_that_comes_slowly() {
    let (_backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    let mut silent = Silent::open(at, &[2, 3, 4, 5]);
    let mut slow = connect_lasting(at, "slow", 4);
    let bytes = slow.publish_bytes("a", 1, 1, &[7; 1000]);
    for piece in bytes.chunks(bytes.len() / 4) {
        slow.send(piece);
        if !silent.0.is_empty() {
            silent.next();
        }
    }
    slow.expect(0x40, &[0, 1, 0x10]);
    // And what stops halfway is no life.
    slow.send(&bytes[..10]);
    slow.expect(0xE0, &[0x8D]);
    server.stop();
}

#[test]
fn keep_alive_does_not_count_while_the_proposer_is_full() {
    let (backend, server) = FakeBackend::start(&MqttOptions::default());
    let at = server.local_addr();
    let mut silent = Silent::open(at, &[2, 3]);
    let mut client = connect_lasting(at, "patient", 1);
    backend.waiting_max.store(0, Ordering::SeqCst);
    client.publish("a", 1, 1, b"x");
    let deadline = Instant::now() + Duration::from_secs(20);
    while backend.refused.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "the proposer was never full");
        std::thread::yield_now();
    }
    // Behind it, unread.
    client.send(&[0xC0, 0]);
    silent.next();
    silent.next();
    backend.waiting_max.store(usize::MAX, Ordering::SeqCst);
    // A room that was full is announced with the next commit.
    backend.nudge();
    // The answer to the ping need not wait for a commit.
    let mut answers = [client.read().first, client.read().first];
    answers.sort_unstable();
    assert_eq!(answers, [0x40, 0xD0]);
    server.stop();
}

#[test]
fn keep_alive_is_heard_while_a_large_message_is_on_its_way() {
    const PAYLOAD_BYTES: usize = 40 << 20;
    let options = MqttOptions { packet_bytes_max: 50 << 20, outbound_bytes_max: 64 * 1024, ..MqttOptions::default() };
    let (backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    let mut silent = Silent::open(at, &[1, 2, 3, 4]);
    let mut client = connect_lasting(at, "narrow", 3);
    client.subscribe(1, "t", 1);
    backend.inject(&Publish {
        from: None,
        packet_id: None,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: TopicName::new("t").unwrap(),
        properties: None,
        expiry_s: None,
        payload: Payload(Bytes::from(vec![0; PAYLOAD_BYTES])),
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.stats().publishes_out[1] == 0 {
        assert!(Instant::now() < deadline, "it was never sent");
        std::thread::yield_now();
    }
    // It reads nothing, and says that it lives.
    while !silent.0.is_empty() {
        client.send(&[0xC0, 0]);
        silent.next();
    }
    let packet = client.read();
    assert_eq!((packet.first, packet.body.len() > PAYLOAD_BYTES), (0x32, true));
    for _ in 0..4 {
        client.expect(0xD0, &[]);
    }
    server.stop();
}
