//! The front end on real sockets over a log in memory: what a client sees, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, connect, packet, string};
use quorate::mqtt::reason::Reason;
use quorate::mqtt::{MqttOptions, MqttServer};
use quorate_store::codec::Payload;
use quorate_store::command::Publish;
use quorate_store::ids::QoS;
use quorate_store::topic::TopicName;

fn start() -> (Arc<FakeBackend>, MqttServer) {
    FakeBackend::start(&MqttOptions::default())
}

#[test]
fn three_versions_share_a_port() {
    let (_backend, server) = start();
    let at = server.local_addr();
    let mut old = Client::open(at, false);
    old.send(&connect(3, "mqisdp", 2, 60, &[]));
    old.expect(0x20, &[0, 0]);
    // 3.1 lets DUP be set on a repeated SUBSCRIBE.
    old.send(&packet(0x8A, &[&[0, 1][..], &string("a/#"), &[1]].concat()));
    old.expect(0x90, &[0, 1, 1]);
    let (mut v4, present) = Client::connect(at, false, "v4", false);
    assert!(!present);
    v4.publish("a/b", 1, 7, b"to 3.1");
    v4.expect(0x40, &[0, 7]);
    assert_eq!(old.read().publish(false), (32_769, b"to 3.1".to_vec()));
    let mut v5 = Client::open(at, true);
    v5.send(&connect(5, "", 2, 60, &[]));
    let ack = v5.read();
    assert_eq!((ack.first, &ack.body[..2]), (0x20, &[0, 0][..]));
    let text = String::from_utf8_lossy(&ack.body);
    assert!(text.contains("auto-"), "an identifier was assigned: {ack:?}");
    assert!(!ack.body.windows(2).any(|w| w == [0x2A, 0]), "without a word shared subscriptions are available");
    let mut unknown = Client::open(at, true);
    unknown.send(&connect(6, "x", 2, 60, &[]));
    unknown.expect(0x20, &[0, 0x84, 0]);
    unknown.expect_closed();
    server.stop();
}

#[test]
fn qos_0_1_and_2_from_end_to_end() {
    let (_backend, server) = start();
    let at = server.local_addr();
    let (mut subscriber, _) = Client::connect(at, true, "s", false);
    subscriber.subscribe(1, "t/+", 2);
    let (mut publisher, _) = Client::connect(at, true, "p", true);
    let large: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();

    publisher.publish("t/0", 0, 0, b"zero");
    assert_eq!(subscriber.read().publish(true), (0, b"zero".to_vec()));

    publisher.publish("t/1", 1, 10, &large);
    publisher.expect(0x40, &[0, 10]);
    assert_eq!(subscriber.read().publish(true), (1, large));
    subscriber.ack(0x40, 1);

    publisher.publish("t/2", 2, 11, b"two");
    publisher.expect(0x50, &[0, 11]);
    publisher.ack(0x62, 11);
    publisher.expect(0x70, &[0, 11]);
    publisher.ack(0x62, 11);
    publisher.expect(0x70, &[0, 11, 0x92]);
    assert_eq!(subscriber.read().publish(true), (2, b"two".to_vec()));
    subscriber.ack(0x50, 2);
    subscriber.expect(0x62, &[0, 2]);
    subscriber.ack(0x70, 2);
    // An identifier that nothing is known of.
    subscriber.ack(0x50, 99);
    subscriber.expect(0x62, &[0, 99, 0x92]);

    publisher.publish("nobody", 1, 12, b"");
    publisher.expect(0x40, &[0, 12, 0x10]);
    server.stop();
}

#[test]
fn a_packet_in_pieces_and_many_packets_at_once() {
    let (_backend, server) = start();
    let (mut client, _) = Client::connect(server.local_addr(), false, "pieces", true);
    let bytes = client.publish_bytes("a", 1, 1, b"byte by byte");
    for byte in &bytes {
        client.send(&[*byte]);
    }
    client.expect(0x40, &[0, 1]);
    let many: Vec<u8> = (2..=3000_u16).flat_map(|id| client.publish_bytes("a", 1, id, b"x")).collect();
    client.send(&many);
    for id in 2..=3000_u16 {
        client.expect(0x40, &id.to_be_bytes());
    }
    assert_eq!(server.stats().publishes_in[1], 3000);
    assert_eq!(server.stats().acks_before_commit, 0);
    server.stop();
}

#[test]
fn nothing_is_acknowledged_before_it_is_committed() {
    let (backend, server) = start();
    let (mut client, _) = Client::connect(server.local_addr(), true, "early", true);
    backend.set_hold(true);
    client.publish("a", 1, 1, b"x");
    client.publish("a", 2, 2, b"x");
    client.send(&packet(0x82, &[&[0, 3, 0][..], &string("b"), &[1]].concat()));
    // Pings are answered meanwhile, and nothing else comes before them.
    client.ping();
    client.ping();
    backend.wait("all three wait", |log| log.waiting() == 3);
    backend.set_hold(false);
    client.expect(0x40, &[0, 1, 0x10]);
    client.expect(0x50, &[0, 2, 0x10]);
    client.expect(0x90, &[0, 3, 0, 1]);
    // Connecting waits too.
    backend.set_hold(true);
    let mut second = Client::open(server.local_addr(), true);
    second.send(&[connect(5, "later", 2, 60, &[]), vec![0xC0, 0]].concat());
    backend.wait("its CONNECT waits", |log| log.waiting() == 1);
    backend.set_hold(false);
    assert_eq!(second.read().first, 0x20);
    second.expect(0xD0, &[]);
    server.stop();
}

#[test]
fn a_full_proposer_stops_reading_and_loses_nothing() {
    let (backend, server) = start();
    let (mut client, _) = Client::connect(server.local_addr(), false, "busy", true);
    backend.waiting_max.store(3, Ordering::SeqCst);
    let many: Vec<u8> = (1..=5000_u16).flat_map(|id| client.publish_bytes("a", 1, id, b"x")).collect();
    let mut writer = client.socket.try_clone().unwrap();
    let sending = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &many).unwrap());
    for id in 1..=5000_u16 {
        client.expect(0x40, &id.to_be_bytes());
    }
    sending.join().unwrap();
    assert!(backend.refused.load(Ordering::SeqCst) > 0, "the proposer was never full");
    assert_eq!(backend.log().published.len(), 5000);
    server.stop();
}

#[test]
fn a_session_is_resumed_with_pubrel_first_and_dup_where_it_was_sent() {
    let (_backend, server) = start();
    let at = server.local_addr();
    let (mut subscriber, _) = Client::connect(at, true, "resume", false);
    subscriber.subscribe(1, "t", 2);
    let (mut publisher, _) = Client::connect(at, true, "p", true);
    for id in 1..=3 {
        publisher.publish("t", 2, id, &[id as u8]);
        publisher.expect(0x50, &[0, id as u8]);
    }
    for id in 1..=3 {
        assert_eq!(subscriber.read().publish(true).0, id);
    }
    // The second is received and released, its PUBCOMP is owed.
    subscriber.ack(0x50, 2);
    subscriber.expect(0x62, &[0, 2]);
    drop(subscriber);
    _backend.wait("the session is closed", |log| !log.sessions["resume"].connected);
    publisher.publish("t", 1, 9, b"new");
    publisher.expect(0x40, &[0, 9]);
    let (mut subscriber, present) = Client::connect(at, true, "resume", false);
    assert!(present);
    subscriber.expect(0x62, &[0, 2]);
    for (first, id) in [(0x3C, 1), (0x3C, 3), (0x32, 4)] {
        let packet = subscriber.read();
        assert_eq!((packet.first, packet.publish(true).0), (first, id));
    }
    server.stop();
}

#[test]
fn another_connection_takes_the_session_over() {
    let (_backend, server) = start();
    let at = server.local_addr();
    let (mut first, _) = Client::connect(at, true, "twin", false);
    let (mut second, present) = Client::connect(at, true, "twin", false);
    assert!(present);
    first.expect(0xE0, &[0x8E]);
    first.expect_closed();
    second.ping();
    let (mut third, _) = Client::connect(at, false, "twin", false);
    second.expect(0xE0, &[0x8E]);
    let (_fourth, _) = Client::connect(at, false, "twin", false);
    third.expect_closed();
    server.stop();
}

#[test]
fn without_a_quorum_clients_are_sent_elsewhere() {
    let (backend, server) = start();
    let at = server.local_addr();
    let (mut v5, _) = Client::connect(at, true, "five", true);
    let (mut v4, _) = Client::connect(at, false, "four", true);
    backend.set_quorum(false, Some("b:1883 c:1883"));
    v5.expect(0xE0, &[&[0x9C, 16, 0x1C][..], &string("b:1883 c:1883")].concat());
    v5.expect_closed();
    v4.expect_closed();
    let mut v5 = Client::open(at, true);
    v5.send(&connect(5, "five", 2, 60, &[]));
    v5.expect(0x20, &[0, 0x88, 0]);
    v5.expect_closed();
    let mut v4 = Client::open(at, false);
    v4.send(&connect(4, "four", 2, 60, &[]));
    v4.expect(0x20, &[0, 3]);
    v4.expect_closed();
    backend.set_quorum(true, None);
    let (mut v5, _) = Client::connect(at, true, "five", true);
    v5.ping();
    backend.set_quorum(false, None);
    v5.expect(0xE0, &[0x89]);
    server.stop();
}

#[test]
fn a_closed_incarnation_acknowledges_nothing_more() {
    let (backend, server) = start();
    let at = server.local_addr();
    let (mut client, _) = Client::connect(at, true, "lost", false);
    backend.set_hold(true);
    client.publish("a", 1, 1, b"x");
    backend.wait("it waits", |log| log.waiting() == 1);
    backend.close_incarnation();
    backend.set_hold(false);
    client.expect(0xE0, &[0x89]);
    client.expect_closed();
    let mut again = Client::open(at, true);
    again.send(&connect(5, "lost", 0, 60, &[]));
    again.expect(0x20, &[0, 0x88, 0]);
    backend.incarnate();
    let (mut again, _) = Client::connect(at, true, "lost", false);
    again.ping();
    assert_eq!(backend.log().closes, 0, "the log closed the connection, not we");
    server.stop();
}

#[test]
fn a_slow_subscriber_is_served_from_rows_in_bounded_memory() {
    const N: u32 = 20_000;
    let options = MqttOptions { outbound_bytes_max: 32 * 1024, page_bytes_max: 16 * 1024, ..MqttOptions::default() };
    let (backend, server) = FakeBackend::start(&options);
    let (mut client, _) = Client::connect(server.local_addr(), true, "slow", false);
    client.subscribe(1, "t", 1);
    for n in 0..N {
        let mut payload = vec![0; 1000];
        payload[..4].copy_from_slice(&n.to_be_bytes());
        backend.inject(&Publish {
            from: None,
            packet_id: None,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: TopicName::new("t").unwrap(),
            properties: None,
            expiry_s: None,
            payload: Payload(Bytes::from(payload)),
        });
    }
    // Nothing was acknowledged: the window, and no more, may have left.
    assert!(server.stats().publishes_out[1] <= u64::from(options.inflight_max));
    for n in 0..N {
        let (id, payload) = client.read().publish(true);
        assert_eq!(payload[..4], n.to_be_bytes());
        client.ack(0x40, id);
    }
    backend.wait("all is settled", |log| log.sessions["slow"].rows.is_empty());
    assert!(server.stats().pages > 0);
    server.stop();
}

#[test]
fn a_transient_session_that_does_not_keep_up_is_disconnected() {
    let options = MqttOptions { transient_queue_bytes_max: 100_000, inflight_max: 2, ..MqttOptions::default() };
    let (_backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    let (mut subscriber, _) = Client::connect(at, true, "transient", true);
    subscriber.subscribe(1, "t", 1);
    let (mut publisher, _) = Client::connect(at, true, "p", true);
    let mut id = 0;
    // Acknowledged as it comes, it is served from memory.
    while id < 10 {
        id += 1;
        publisher.publish("t", 1, id, &[7; 10_000]);
        publisher.expect(0x40, &id.to_be_bytes());
        let (got, _) = subscriber.read().publish(true);
        subscriber.ack(0x40, got);
    }
    while id < 30 {
        id += 1;
        publisher.publish("t", 1, id, &[7; 10_000]);
        assert_eq!(publisher.read().body[..2], id.to_be_bytes());
    }
    loop {
        let packet = subscriber.read();
        if packet.first == 0xE0 {
            assert_eq!(packet.body, [0x97]);
            break;
        }
        assert_eq!(packet.first, 0x32);
    }
    assert_eq!(server.stats().transient_overflows, 1);
    server.stop();
}

#[test]
fn a_full_queue_tells_the_publisher() {
    let (backend, server) = start();
    let at = server.local_addr();
    let (mut subscriber, _) = Client::connect(at, true, "full", false);
    subscriber.subscribe(1, "t", 1);
    backend.log().rows_max = Some(0);
    let (mut v5, _) = Client::connect(at, true, "p5", true);
    v5.publish("t", 1, 1, b"x");
    v5.expect(0x40, &[0, 1, 0x97]);
    v5.publish("t", 2, 2, b"x");
    v5.expect(0x50, &[0, 2, 0x97]);
    v5.publish("u", 1, 3, b"x");
    v5.expect(0x40, &[0, 3, 0x10]);
    let (mut v4, _) = Client::connect(at, false, "p4", true);
    v4.publish("t", 1, 1, b"x");
    v4.expect_closed();
    server.stop();
}

#[test]
fn a_connect_whose_client_gave_up_leaves_no_connection() {
    let (backend, server) = start();
    backend.set_hold(true);
    let mut ghost = Client::open(server.local_addr(), true);
    ghost.send(&connect(5, "ghost", 0, 60, &[0x11, 0, 0, 0, 100]));
    backend.wait("its CONNECT waits", |log| log.waiting() == 1);
    drop(ghost);
    // The socket's end reaches the worker at some time: before or after the commit, both must do.
    backend.set_hold(false);
    let connected = |log: &mqtt_testkit::log::FakeLog| log.sessions.get("ghost").is_some_and(|s| s.connected);
    let (mut probe, _) = Client::connect(server.local_addr(), true, "probe", true);
    probe.ping();
    backend.wait("nobody is connected as ghost", |log| log.waiting() == 0 && !connected(log));
    server.stop();
}

#[test]
fn a_silent_client_is_disconnected_and_its_will_is_due() {
    let (backend, server) = start();
    let mut client = Client::open(server.local_addr(), true);
    let will = [&[0][..], &string("w"), &string("gone")].concat();
    let mut bytes = [&string("MQTT")[..], &[5, 4, 0, 1, 5, 0x11, 0, 0, 0, 100], &string("silent")].concat();
    bytes.extend_from_slice(&will);
    client.send(&packet(0x10, &bytes));
    assert_eq!(client.read().first, 0x20);
    client.expect(0xE0, &[0x8D]);
    client.expect_closed();
    backend.wait("the will is due", |log| log.sessions["silent"].will_due == 1);
    let (mut polite, _) = Client::connect(server.local_addr(), true, "polite", false);
    polite.send(&[0xE0, 0]);
    polite.expect_closed();
    backend
        .wait("closed without a will", |log| !log.sessions["polite"].connected && log.sessions["polite"].will_due == 0);
    server.stop();
}

#[test]
fn a_drain_sends_everybody_away_and_takes_nobody() {
    let (_backend, server) = start();
    let at = server.local_addr();
    let mut clients: Vec<Client> = (0..200).map(|n| Client::connect(at, true, &format!("d{n}"), true).0).collect();
    let (mut v4, _) = Client::connect(at, false, "old", true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(server.drain(Some("b:1883".into())));
    let told = [&[0x9C, 9, 0x1C][..], &string("b:1883")].concat();
    for client in &mut clients {
        client.expect(0xE0, &told);
        client.expect_closed();
    }
    v4.expect_closed();
    let mut late = Client::open(at, true);
    late.send(&connect(5, "late", 2, 60, &[]));
    late.expect(0x20, &[&[0, 0x9C, 9, 0x1C][..], &string("b:1883")].concat());
    late.expect_closed();
    server.stop();
}

#[test]
fn limits_are_told_with_their_reason() {
    let options = MqttOptions { connections_max: 2, receive_maximum: 2, ..MqttOptions::default() };
    let (backend, server) = FakeBackend::start(&options);
    let at = server.local_addr();
    let (mut one, _) = Client::connect(at, true, "one", true);
    let (mut two, _) = Client::connect(at, false, "two", true);
    let mut three = Client::open(at, true);
    three.send(&connect(5, "three", 2, 60, &[]));
    three.expect(0x20, &[0, 0x89, 0]);
    three.expect_closed();

    // Receive Maximum: 5.0 is disconnected, 3.1.1 waits its turn.
    backend.set_hold(true);
    for id in 1..=3 {
        two.publish("a", 2, id, b"x");
    }
    two.ping();
    for id in 1..=2 {
        one.publish("a", 1, id, b"x");
    }
    one.ping();
    backend.wait("two of each wait", |log| log.waiting() == 4);
    one.publish("a", 1, 3, b"x");
    one.expect(0xE0, &[0x93]);
    one.expect_closed();
    backend.set_hold(false);
    for id in 1..=3 {
        two.expect(0x50, &[0, id]);
    }
    drop(two);

    let open = |id: &str| Client::connect(at, true, id, true).0;
    let closed_with = |mut client: Client, bytes: &[u8], reason: u8| {
        client.send(bytes);
        client.expect(0xE0, &[reason]);
        client.expect_closed();
    };
    backend.wait("all are gone", |log| log.sessions.is_empty());
    for (n, (bytes, reason)) in [
        (vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F], 0x95),
        (packet(0x30, b"\x00\x03a/#\x00x"), 0x90),
        (packet(0x30, b"\x00\x01a\x03\x23\x00\x41x"), 0x94),
        (packet(0x30, b"\x00\x00\x03\x23\x00\x07x"), 0x82),
        (packet(0x32, b"\x00\x01a\x00\x00\x00x"), 0x82),
        (packet(0x36, b"\x00\x01a\x00\x01\x00x"), 0x81),
        (packet(0xF0, b""), 0x82),
        (connect(5, "again", 2, 60, &[]), 0x82),
        (packet(0xE0, b"\x00\x05\x11\x00\x00\x00\x01"), 0x82),
    ]
    .into_iter()
    .enumerate()
    {
        closed_with(open(&format!("bad{n}")), &bytes, reason);
        backend.wait("it is gone", |log| log.sessions.is_empty());
    }
    assert!(server.stats().closed.contains(&(Reason::PACKET_TOO_LARGE, 1)));
    server.stop();
}

#[test]
fn a_client_with_a_small_packet_limit_gets_what_fits() {
    let (backend, server) = start();
    let at = server.local_addr();
    let mut small = Client::open(at, true);
    small.send(&connect(5, "small", 0, 60, &[0x11, 0, 0, 0, 100, 0x27, 0, 0, 0, 40]));
    assert_eq!(small.read().first, 0x20);
    small.subscribe(1, "t", 2);
    let (mut publisher, _) = Client::connect(at, true, "p", true);
    for (id, len) in [(1, 10), (2, 100), (3, 10)] {
        publisher.publish("t", 1, id, &vec![id as u8; len]);
        publisher.expect(0x40, &id.to_be_bytes());
    }
    assert_eq!(small.read().publish(true).1, [1; 10]);
    assert_eq!(small.read().publish(true).1, [3; 10]);
    backend.wait("the large one is settled", |log| log.sessions["small"].rows.len() == 2);
    assert_eq!(server.stats().too_large, 1);
    server.stop();
}

#[test]
fn a_client_that_we_did_not_write() {
    const N: u16 = 500;
    let (_backend, server) = start();
    let port = server.local_addr().port();
    let open = |id: &str| {
        let mut options = rumqttc::MqttOptions::new(id, "127.0.0.1", port);
        options.set_clean_session(false);
        rumqttc::Client::new(options, 50)
    };
    let (subscriber, mut incoming) = open("subscriber");
    subscriber.subscribe("numbers/#", rumqttc::QoS::ExactlyOnce).unwrap();
    let mut got = Vec::new();
    let mut publishing = None;
    for event in incoming.iter() {
        match event.unwrap() {
            rumqttc::Event::Incoming(rumqttc::Packet::SubAck(_)) => {
                let (publisher, mut events) = open("publisher");
                publishing = Some(std::thread::spawn(move || {
                    let acknowledged = std::thread::spawn(move || {
                        let done = |e: &rumqttc::Event| {
                            matches!(
                                e,
                                rumqttc::Event::Incoming(rumqttc::Packet::PubComp(_) | rumqttc::Packet::PubAck(_))
                            )
                        };
                        events.iter().map(Result::unwrap).filter(done).take(usize::from(N)).count()
                    });
                    for n in 0..N {
                        let qos = if n % 2 == 0 { rumqttc::QoS::ExactlyOnce } else { rumqttc::QoS::AtLeastOnce };
                        publisher.publish("numbers/n", qos, false, n.to_be_bytes()).unwrap();
                    }
                    acknowledged.join().unwrap()
                }));
            }
            rumqttc::Event::Incoming(rumqttc::Packet::Publish(p)) => {
                got.push(u16::from_be_bytes(p.payload[..].try_into().unwrap()));
                if got.len() == usize::from(N) {
                    break;
                }
            }
            _ => {}
        }
    }
    assert!(got.iter().copied().eq(0..N), "{got:?}");
    assert_eq!(publishing.unwrap().join().unwrap(), usize::from(N));
    server.stop();
}
