//! Listeners: MQTT through TLS, WebSockets, Unix sockets and behind a proxy, and how many may come in. The front end
//! is real, its log is in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod mqtt_testkit;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mqtt_testkit::backend::FakeBackend;
use mqtt_testkit::client::{Client, connect, packet, string};
use mqtt_testkit::secure::{Authority, server_certificate, tcp, tls, tls_over, unix, websocket};
use quorate::mqtt::auth::{Attempt, Authenticator, Identity, Judgement};
use quorate::mqtt::{MqttOptions, MqttServer};
use rcgen::SanType;
use rustls::version::{TLS12, TLS13};
use tungstenite::Message;

/// A front end with these listeners, without the main one; their addresses.
fn start(urls: &[String]) -> (Arc<FakeBackend>, MqttServer, Vec<SocketAddr>) {
    start_with(&MqttOptions::default(), urls)
}

fn start_with(options: &MqttOptions, urls: &[String]) -> (Arc<FakeBackend>, MqttServer, Vec<SocketAddr>) {
    let listeners = urls.iter().map(|url| url.parse().expect(url)).collect();
    let (backend, server) = FakeBackend::start(&MqttOptions { listeners, ..options.clone() });
    let addresses = server.addresses()[1..].iter().flatten().copied().collect();
    (backend, server, addresses)
}

/// Says MQTT through whatever it is: QoS 1 there and back, a message of 300 kB, a DISCONNECT.
fn talk<S: Read + Write>(stream: S, v5: bool, client_id: &str) {
    let mut client = Client::over(stream, v5);
    client.greet(client_id, true);
    client.subscribe(1, client_id, 1);
    let large = vec![7; 300_000];
    for (id, payload) in [(2, &b"small"[..]), (3, &large)] {
        client.publish(client_id, 1, id, payload);
        let (mut acked, mut came) = (false, false);
        while !(acked && came) {
            let packet = client.read();
            match packet.first >> 4 {
                4 => acked = true,
                3 => {
                    let (id, got) = packet.publish(v5);
                    assert_eq!(got, payload);
                    client.ack(0x40, id);
                    came = true;
                }
                _ => panic!("{packet:?}"),
            }
        }
    }
    client.ping();
    client.send(&[0xE0, 0]);
    client.expect_closed();
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !until() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// What authentication was told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    listener: String,
    peer: Option<IpAddr>,
    user: Option<String>,
}

/// Lets everybody in and remembers what it was told.
#[derive(Debug, Default)]
struct Witness(Mutex<Vec<Seen>>);

impl Authenticator for Witness {
    fn judge(&self, attempt: Attempt<'_>) -> Judgement {
        self.0.lock().unwrap().push(Seen {
            listener: attempt.listener.name.clone(),
            peer: attempt.peer.map(|peer| peer.ip()),
            user: attempt.certificate_user.map(str::to_owned),
        });
        Judgement::Now(Ok(Identity::default()))
    }
}

impl Witness {
    fn last(&self) -> Seen {
        self.0.lock().unwrap().last().cloned().expect("nobody came")
    }
}

fn start_seen(urls: &[String]) -> (Arc<Witness>, MqttServer, Vec<SocketAddr>) {
    let witness = Arc::new(Witness::default());
    let listeners = urls.iter().map(|url| url.parse().expect(url)).collect();
    let options = MqttOptions { listeners, ..MqttOptions::default() };
    let (_, server) = FakeBackend::start_seen_by(&options, witness.clone());
    let addresses = server.addresses()[1..].iter().flatten().copied().collect();
    (witness, server, addresses)
}

/// [MQTT-4.2-1], [MQTT-4.2.0-1 v3.1.1]; over a WebSocket in binary frames [MQTT-6.0.0-1], [MQTT-6.0.0-1 v3.1.1], under
/// the name that was offered [MQTT-6.0.0-4], [MQTT-6.0.0-4 v3.1.1].
#[test]
fn mqtt_is_spoken_through_every_kind_of_listener() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mqtt.sock");
    let files = authority.query("server");
    let urls = [
        "tcp://127.0.0.1:0".to_owned(),
        format!("tls://127.0.0.1:0?{files}"),
        "ws://127.0.0.1:0".to_owned(),
        format!("wss://127.0.0.1:0/deep/path?{files}"),
        format!("unix://{}", path.display()),
    ];
    let (_, server, at) = start(&urls);
    let config = authority.client(&[&TLS13, &TLS12], None);
    for v5 in [true, false] {
        talk(tcp(server.local_addr()), v5, "main");
        talk(tcp(at[0]), v5, "plain");
        talk(tls(at[1], &config), v5, "tls");
        talk(websocket(tcp(at[2]), "/mqtt", "mqtt").unwrap(), v5, "ws");
        talk(websocket(tls(at[3], &config), "/deep/path?a=b", "mqtt").unwrap(), v5, "wss");
        talk(unix(&path), v5, "unix");
    }
    for listener in server.listeners() {
        assert_eq!(listener.connections_total, 2, "{listener:?}");
    }
    wait("all are gone", || server.listeners().iter().all(|listener| listener.connections == 0));
    server.stop();
    assert!(!path.exists(), "the Unix socket is removed");
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_1_2_can_be_refused() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let files = authority.query("server");
    let (_, server, at) = start(&[
        format!("tls://127.0.0.1:0?name=both&{files}"),
        format!("tls://127.0.0.1:0?name=new&tls_min=1.3&{files}"),
    ]);
    for version in [&TLS12, &TLS13] {
        let stream = tls(at[0], &authority.client(&[version], None));
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        talk(stream, true, "client");
    }
    talk(tls(at[1], &authority.client(&[&TLS13], None)), true, "client");
    assert!(tls_over(tcp(at[1]), &authority.client(&[&TLS12], None)).is_err());
    wait("the failure is counted", || server.listeners()[2].failed.contains(&("tls", 1)));
    server.stop();
}

#[test]
fn what_a_client_said_before_it_closed_tls_still_counts() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let (backend, server, at) = start(&[format!("tls://127.0.0.1:0?{}", authority.query("server"))]);
    let mut client = Client::over(tls(at[0], &authority.client(&[&TLS13], None)), true);
    client.greet("hasty", false);
    let bytes = [client.publish_bytes("a", 1, 1, b"last words"), vec![0xE0, 0]].concat();
    client.socket.conn.writer().write_all(&bytes).unwrap();
    client.socket.conn.send_close_notify();
    client.socket.flush().unwrap();
    // It fails when the broker has read DISCONNECT already and was the first to close.
    let _ = client.socket.sock.shutdown(std::net::Shutdown::Write);
    backend.wait("what it said is in the log", |log| log.published.len() == 1);
    server.stop();
}

#[test]
fn a_client_certificate_is_asked_for_verified_and_names_the_user() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let uri = SanType::URI("urn:device:7".try_into().unwrap());
    authority.issue("device", "device 7", vec![uri]);
    let stranger = Authority::new();
    stranger.issue("device", "device 7", vec![]);
    let files = format!("{}&client_ca={}", authority.query("server"), authority.path("ca.pem").display());
    let (witness, server, at) = start_seen(&[
        format!("tls://127.0.0.1:0?name=required&{files}"),
        format!("tls://127.0.0.1:0?name=optional&client_cert=optional&cert_user=san-uri&{files}"),
    ]);
    for version in [&TLS12, &TLS13] {
        talk(tls(at[0], &authority.client(&[version], Some("device"))), true, "client");
        let peer = Some([127, 0, 0, 1].into());
        let seen = Seen { listener: "required".into(), peer, user: Some("device 7".into()) };
        assert_eq!(witness.last(), seen);
        talk(tls(at[1], &authority.client(&[version], Some("device"))), true, "client");
        assert_eq!(witness.last(), Seen { listener: "optional".into(), peer, user: Some("urn:device:7".into()) });
        talk(tls(at[1], &authority.client(&[version], None)), true, "client");
        assert_eq!(witness.last(), Seen { listener: "optional".into(), peer, user: None });
    }
    let served = witness.0.lock().unwrap().len();
    // Nobody without one, and nobody with one of somebody else.
    let foreign = authority.client_with(&[&TLS13], Some((&stranger, "device")));
    let nameless = |version| authority.client(&[version], None);
    for (listener, config, alert) in [
        (0, nameless(&TLS13), "CertificateRequired"),
        (0, nameless(&TLS12), "CertificateRequired"),
        (0, foreign.clone(), "UnknownCA"),
        (1, foreign, "UnknownCA"),
    ] {
        // In TLS 1.3 the client has finished before the server has looked at its certificate.
        let error = match tls_over(tcp(at[listener]), &config) {
            Ok(mut stream) => stream.read(&mut [0]).expect_err("it was served"),
            Err(error) => error,
        };
        assert!(error.to_string().contains(alert), "{alert} was not said: {error}");
    }
    wait("the failures are counted", || {
        server.listeners()[1].failed.contains(&("tls", 3)) && server.listeners()[2].failed.contains(&("tls", 1))
    });
    assert_eq!(witness.0.lock().unwrap().len(), served);
    server.stop();
}

#[test]
fn a_new_certificate_is_used_without_a_restart_and_a_bad_one_is_not() {
    let authority = Authority::new();
    authority.issue("server", "first", vec![]);
    let (_, server, at) = start(&[format!("tls://127.0.0.1:0?{}", authority.query("server"))]);
    let config = authority.client(&[&TLS13], None);
    let first = tls(at[0], &config);
    assert!(server.reload_tls(false), "nothing has changed");
    assert_eq!(server_certificate(&tls(at[0], &config)), server_certificate(&first));
    // A bad file changes nothing.
    let good = std::fs::read(authority.path("server.key")).unwrap();
    std::fs::write(authority.path("server.key"), "no key").unwrap();
    assert!(!server.reload_tls(false));
    assert!(server.reload_tls(false), "it is said once");
    assert!(!server.reload_tls(true));
    assert_eq!(server_certificate(&tls(at[0], &config)), server_certificate(&first));
    std::fs::write(authority.path("server.key"), good).unwrap();
    // A good one is for the next connection; the first one goes on.
    authority.issue("server", "second", vec![]);
    assert!(server.reload_tls(false));
    assert_ne!(server_certificate(&tls(at[0], &config)), server_certificate(&first));
    talk(first, true, "first");
    server.stop();
}

#[test]
fn a_handshake_that_does_not_come_is_given_up() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let files = authority.query("server");
    let options = MqttOptions { connect_timeout: Duration::from_secs(1), ..MqttOptions::default() };
    let (_, server, at) = start_with(
        &options,
        &[
            format!("tls://127.0.0.1:0?{files}"),
            "ws://127.0.0.1:0".to_owned(),
            "tcp://127.0.0.1:0?proxy=any".to_owned(),
            format!("wss://127.0.0.1:0?{files}"),
        ],
    );
    let mut silent: Vec<_> = at.iter().map(|at| tcp(*at)).collect();
    silent[1].write_all(b"GET /mqtt HTTP/1.1\r\nHo").unwrap();
    silent[2].write_all(b"PROXY TC").unwrap();
    let mut no_request = tls(at[3], &authority.client(&[&TLS13], None));
    for socket in &mut silent {
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
    }
    assert!(no_request.read(&mut [0]).is_ok_and(|n| n == 0), "TLS is closed as it should be");
    server.stop();
}

/// [MQTT-6.0.0-2], [MQTT-6.0.0-2 v3.1.1]
#[test]
fn packets_may_span_websocket_frames_and_share_them() {
    let (_, server, at) = start(&["ws://127.0.0.1:0".to_owned()]);
    let mut client = Client::over(websocket(tcp(at[0]), "/mqtt", "mqtt").unwrap(), false);
    for byte in connect(4, "pieces", 2, 60, &[]) {
        client.send(&[byte]);
    }
    client.expect(0x20, &[0, 0]);
    let subscribe = packet(0x82, &[&[0, 1][..], &string("a"), &[0]].concat());
    client.send(&[subscribe, vec![0xC0, 0, 0xC0, 0]].concat());
    // A ping need not wait for the log.
    let mut answers: Vec<u8> = (0..3).map(|_| client.read().first).collect();
    answers.sort_unstable();
    assert_eq!(answers, [0x90, 0xD0, 0xD0]);
    // What the WebSocket itself says does not disturb.
    client.socket.socket.send(Message::Ping(b"are you there"[..].into())).unwrap();
    assert_eq!(client.socket.socket.read().unwrap(), Message::Pong(b"are you there"[..].into()));
    client.socket.socket.close(None).unwrap();
    assert!(matches!(client.socket.socket.read().unwrap(), Message::Close(_)));
    server.stop();
}

/// [MQTT-6.0.0-1]
#[test]
fn a_text_frame_closes_the_connection() {
    let (_, server, at) = start(&["ws://127.0.0.1:0".to_owned()]);
    let mut client = Client::over(websocket(tcp(at[0]), "/mqtt", "mqtt").unwrap(), true);
    client.greet("talker", true);
    client.socket.socket.send(Message::Text("hello".into())).unwrap();
    match client.socket.socket.read().unwrap() {
        Message::Close(Some(close)) => assert_eq!(u16::from(close.code), 1003),
        other => panic!("{other:?}"),
    }
    client.expect_closed();
    server.stop();
}

/// [MQTT-6.0.0-4]; that the client offers it is the rule 6.0.0-3 for clients.
#[test]
fn only_the_mqtt_protocol_is_spoken_at_the_path_of_the_listener() {
    let (_, server, at) = start(&["ws://127.0.0.1:0".to_owned()]);
    let refused = |path: &str, protocol: &str| websocket(tcp(at[0]), path, protocol).err().expect("it was granted");
    assert!(refused("/other", "mqtt").contains("404"));
    assert!(refused("/mqtt", "soap").contains("400"));
    let mut old = Client::over(websocket(tcp(at[0]), "/mqtt", "mqttv3.1").unwrap(), false);
    old.send(&connect(3, "old", 2, 60, &[]));
    old.expect(0x20, &[0, 0]);
    let mut plain = tcp(at[0]);
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    let mut mqtt = Client::open(at[0], true);
    mqtt.send(&connect(5, "no websocket", 2, 60, &[]));
    let mut answer = String::new();
    mqtt.socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("400 Bad Request") && answer.contains("through a WebSocket"), "{answer}");
    wait("the failures are counted", || server.listeners()[1].failed.contains(&("websocket", 4)));
    server.stop();
}

fn proxy_v2(command: u8, source: [u8; 4]) -> Vec<u8> {
    let [a, b, c, d] = source;
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend_from_slice(&[command, 0x11, 0, 12, a, b, c, d, 127, 0, 0, 1, 0x10, 0, 7, 0x5B]);
    header
}

#[test]
fn the_address_that_a_proxy_names_is_the_clients() {
    let authority = Authority::new();
    authority.issue("server", "server", vec![]);
    let files = authority.query("server");
    let (witness, server, at) = start_seen(&[
        "tcp://127.0.0.1:0?name=tcp&proxy=any".to_owned(),
        format!("tls://127.0.0.1:0?name=tls&proxy=v2&{files}"),
        "ws://127.0.0.1:0?name=ws&proxy=v1".to_owned(),
        format!("wss://127.0.0.1:0?name=wss&proxy=v2&{files}"),
    ]);
    let config = authority.client(&[&TLS13], None);
    let with = |at: SocketAddr, header: &[u8]| {
        let mut socket = tcp(at);
        socket.write_all(header).unwrap();
        socket
    };
    let v1 = b"PROXY TCP4 192.0.2.1 127.0.0.1 4096 1883\r\n";
    let seen = |listener: &str, peer: [u8; 4]| {
        assert_eq!(witness.last(), Seen { listener: listener.into(), peer: Some(peer.into()), user: None });
    };
    talk(with(at[0], v1), true, "v1");
    seen("tcp", [192, 0, 2, 1]);
    talk(with(at[0], &proxy_v2(0x21, [192, 0, 2, 2])), true, "v2");
    seen("tcp", [192, 0, 2, 2]);
    talk(with(at[0], &proxy_v2(0x20, [192, 0, 2, 2])), true, "local");
    seen("tcp", [127, 0, 0, 1]);
    talk(with(at[0], b"PROXY UNKNOWN\r\n"), true, "unknown");
    seen("tcp", [127, 0, 0, 1]);
    talk(tls_over(with(at[1], &proxy_v2(0x21, [192, 0, 2, 3])), &config).unwrap(), true, "tls");
    seen("tls", [192, 0, 2, 3]);
    talk(websocket(with(at[2], v1), "/mqtt", "mqtt").unwrap(), true, "ws");
    seen("ws", [192, 0, 2, 1]);
    let socket = tls_over(with(at[3], &proxy_v2(0x21, [192, 0, 2, 4])), &config).unwrap();
    talk(websocket(socket, "/mqtt", "mqtt").unwrap(), true, "wss");
    seen("wss", [192, 0, 2, 4]);
    server.stop();
}

#[test]
fn a_proxy_header_is_needed_where_it_is_wanted_and_unknown_where_it_is_not() {
    let (_, server, at) = start(&[
        "tcp://127.0.0.1:0?name=wanted&proxy=v2".to_owned(),
        "tcp://127.0.0.1:0?name=known&proxy=v2&proxy_from=10.0.0.0/8".to_owned(),
        "tcp://127.0.0.1:0?name=unknown".to_owned(),
    ]);
    let refuses = |at: SocketAddr, bytes: &[u8]| {
        let mut client = Client::open(at, true);
        client.send(bytes);
        client.expect_closed();
    };
    let greeting = connect(5, "c", 2, 60, &[]);
    refuses(at[0], &greeting);
    refuses(at[0], b"PROXY TCP4 192.0.2.1 127.0.0.1 4096 1883\r\n");
    refuses(at[1], &[proxy_v2(0x21, [192, 0, 2, 1]), greeting.clone()].concat());
    refuses(at[2], &[proxy_v2(0x21, [192, 0, 2, 1]), greeting].concat());
    let failed: Vec<_> = server.listeners().iter().map(|listener| listener.failed[0]).collect();
    assert_eq!(failed, [("proxy", 0), ("proxy", 2), ("proxy", 1), ("proxy", 0)]);
    server.stop();
}

#[test]
fn a_client_behind_a_proxy_is_not_of_this_machine() {
    let (_, server, at) = start(&["tcp://127.0.0.1:0?proxy=v2".to_owned()]);
    for (source, code) in [([127, 0, 0, 1], 0), ([192, 0, 2, 1], 0x87)] {
        let mut client = Client::open(at[0], true);
        client.send(&proxy_v2(0x21, source));
        assert_eq!(client.try_greet("c", true).body[1], code);
    }
    server.stop();
}

/// Connects and says with which code it was answered, `None` when it was closed without a word.
fn code(at: SocketAddr, v5: bool, client_id: &str) -> (Client, Option<u8>) {
    let mut client = Client::open(at, v5);
    let _ = client.socket.write_all(&connect(if v5 { 5 } else { 4 }, client_id, 2, 60, &[]));
    let code = client.next().map(|ack| ack.body[1]);
    (client, code)
}

fn refused(server: &MqttServer, listener: usize) -> String {
    let mut text = String::new();
    for (limit, n) in &server.listeners()[listener].refused {
        let _ = write!(text, "{limit}={n} ");
    }
    text
}

#[test]
fn one_address_has_only_so_many_connections() {
    let options = MqttOptions { connections_per_address_max: 3, allow_anonymous: true, ..MqttOptions::default() };
    let urls = ["tcp://127.0.0.1:0?connections_per_address_max=2&proxy=v1".to_owned()];
    let (_, server, at) = start_with(&options, &urls);
    let from = |ip: &str, v5: bool| {
        let mut client = Client::open(at[0], v5);
        client.send(format!("PROXY TCP4 {ip} 127.0.0.1 4096 1883\r\n").as_bytes());
        let code = client.try_greet(&format!("{ip}{v5}"), true).body[1];
        (client, code)
    };
    // The listener's bound, for each address that the proxy names.
    let (first, code1) = from("192.0.2.1", true);
    let (_second, code2) = from("192.0.2.1", false);
    assert_eq!((code1, code2), (0, 0));
    assert_eq!(from("192.0.2.1", true).1, 0x97);
    assert_eq!(from("192.0.2.1", false).1, 3);
    assert_eq!(from("192.0.2.2", true).1, 0);
    drop(first);
    wait("its place is free again", || from("192.0.2.1", true).1 == 0);
    // The node's bound, on the main listener.
    let main = server.local_addr();
    let clients: Vec<_> = (0..4).map(|n| code(main, true, &format!("main{n}"))).collect();
    assert_eq!(clients.iter().map(|(_, code)| *code).collect::<Vec<_>>(), [Some(0), Some(0), Some(0), Some(0x97)]);
    assert_eq!(refused(&server, 0), "connections=0 address=1 rate=0 ");
    server.stop();
}

#[test]
fn new_connections_beyond_the_rate_are_told_and_then_closed() {
    let options = MqttOptions { connection_rate_max: 4, ..MqttOptions::default() };
    let (_, server, at) = start_with(&options, &["tcp://127.0.0.1:0?connection_rate_max=2".to_owned()]);
    // All at once: the listener lets two through and tells two, the others are closed without a word.
    let begun = Instant::now();
    let mut open: Vec<_> = (0..12).map(|_| tcp(at[0])).collect();
    let mut codes = Vec::new();
    for (n, socket) in open.drain(..).enumerate() {
        let mut client = Client::over(socket, n % 2 == 0);
        let level = if client.v5 { 5 } else { 4 };
        let _ = client.socket.write_all(&connect(level, &format!("c{n}"), 2, 60, &[]));
        codes.push((client.v5, client.next().map(|ack| ack.body[1])));
    }
    let count = |want: &[(bool, Option<u8>)]| codes.iter().filter(|code| want.contains(code)).count();
    let served = count(&[(true, Some(0)), (false, Some(0))]);
    let told = count(&[(true, Some(0x9F)), (false, Some(3))]);
    let closed = count(&[(true, None), (false, None)]);
    assert_eq!(served + told + closed, 12, "{codes:?}");
    // A slow machine may have let some more through.
    let slack = begun.elapsed().as_millis() as usize * 2 / 1000;
    assert!((2..=2 + slack).contains(&served) && (1..=2 + slack).contains(&told) && closed > 0, "{codes:?}");
    assert_eq!(refused(&server, 1), format!("connections=0 address=0 rate={} ", 12 - served));
    // Later there is room again.
    wait("a second has passed", || code(at[0], true, "later").1 == Some(0));
    server.stop();
}

#[test]
fn a_listener_has_only_so_many_connections() {
    let options = MqttOptions { connections_max: 3, ..MqttOptions::default() };
    let (_, server, at) = start_with(&options, &["tcp://127.0.0.1:0?connections_max=1".to_owned()]);
    let (first, code1) = code(at[0], true, "first");
    assert_eq!(code1, Some(0));
    assert_eq!(code(at[0], true, "second").1, Some(0x89));
    assert_eq!(code(at[0], false, "second").1, Some(3));
    let main = server.local_addr();
    let clients: Vec<_> = (0..3).map(|n| code(main, true, &format!("main{n}"))).collect();
    assert_eq!(clients.iter().map(|(_, code)| *code).collect::<Vec<_>>(), [Some(0), Some(0), Some(0x89)]);
    assert_eq!(refused(&server, 1), "connections=2 address=0 rate=0 ");
    assert_eq!(refused(&server, 0), "connections=1 address=0 rate=0 ");
    drop(first);
    wait("its place is free again", || code(at[0], true, "third").1 == Some(0));
    server.stop();
}

#[test]
fn a_listener_that_wants_authentication_lets_nobody_in_without() {
    let options = MqttOptions { allow_anonymous: true, ..MqttOptions::default() };
    let urls =
        ["tcp://127.0.0.1:0?name=a&auth=password".to_owned(), "tcp://127.0.0.1:0?name=b&auth=anonymous".to_owned()];
    let (_, server, at) = start_with(&options, &urls);
    assert_eq!(code(at[0], true, "nobody").1, Some(0x87));
    assert_eq!(code(at[0], false, "nobody").1, Some(5));
    assert_eq!(code(at[1], true, "nobody").1, Some(0));
    server.stop();
}
