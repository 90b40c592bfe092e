//! Inputs that are malformed or odd get the answer that each must get, from a real process, which serves others as if
//! nothing had happened and whose memory does not grow by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use std::sync::{Arc, Mutex};

use conformance::client::{Client, Connect, Version, packet};
use conformance::{Broker, broker};
use serde::Deserialize;

/// How much the memory of a process may move between two runs of all inputs, in KiB.
const RSS_GROWTH_KIB_MAX: u64 = 8 * 1024;
/// Connections that send inputs at a time.
const TOGETHER: usize = 8;
/// Inputs that one of them sends before somebody else asks whether the broker lives.
const EACH: usize = 4;

/// A line of `malformed.jsonl`; its README says what the fields mean.
#[derive(Clone, Debug, Deserialize)]
struct Input {
    id: String,
    ver: u8,
    pre: String,
    hex: String,
    expect: String,
    spec: String,
}

fn inputs() -> Vec<Input> {
    include_str!("conformance/malformed.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What a broker did with an input.
#[derive(Debug, Default)]
struct Answer {
    packets: Vec<Vec<u8>>,
    is_closed: bool,
}

impl Answer {
    /// Return or reason code of the last packet of this type.
    fn code(&self, first: u8) -> Option<u8> {
        let of = |packet: &Vec<u8>| match first {
            0x20 => packet[3],
            _ => packet.get(2).copied().unwrap_or(0),
        };
        self.packets.iter().rev().find(|packet| packet[0] == first).map(of)
    }

    fn has(&self, packet: &[u8]) -> bool {
        self.packets.iter().any(|got| got.starts_with(packet))
    }

    /// Whether it is one of the answers that are allowed.
    fn is_allowed(&self, input: &Input) -> bool {
        input.expect.split('|').any(|allowed| self.is(allowed, input.ver))
    }

    fn is(&self, allowed: &str, version: u8) -> bool {
        let (kind, value) = allowed.split_once(':').unwrap_or((allowed, ""));
        let (connack, disconnect) = (self.code(0x20), self.code(0xe0));
        match kind {
            // A CONNACK may come before the close if it refuses.
            "close" if self.is_closed && connack.is_none_or(|code| matches!(code, 1..=5 | 0x80..)) => {
                let wanted = u8::from_str_radix(value, 16).ok();
                // 3.1.1 has no way to say why.
                version == 4 || wanted.is_none() || wanted == disconnect || wanted == connack
            }
            "silent-close" => self.is_closed && connack.is_none(),
            "alive" => !self.is_closed && self.has(&[0xd0, 0]),
            "connack" => {
                let (code, close) = value.split_once('+').map_or((value, false), |(code, _)| (code, true));
                let code = u8::from_str_radix(code, 16).unwrap();
                connack == Some(code) && (self.is_closed || (code == 0 && !close))
            }
            "reply" if value.starts_with("90") => self.packets.iter().any(|p| p[0] == 0x90 && p.last() >= Some(&0x80)),
            "reply" => self.has(&bytes_of(value)),
            _ => false,
        }
    }
}

fn version(input: &Input) -> Version {
    if input.ver == 4 { Version::V4 } else { Version::V5 }
}

/// Sends an input on a connection of its own and reads until the broker closes, or answers the ping behind it.
fn run(broker: &Broker, input: &Input) -> Answer {
    let mut client = Client::open(broker.node.at.mqtt, version(input));
    if input.pre == "connected" {
        // The second CONNECT of a client has its client identifier.
        let id = if input.id.contains("connect-twice") { "mf" } else { &input.id };
        let ack = client.greet(&Connect { keep_alive_s: 60, ..Connect::new(version(input), id, true) });
        assert_eq!(ack.reason(), 0, "{}: {ack:?}", input.id);
    }
    client.send(&bytes_of(&input.hex));
    // Where only a close is right it is waited for: a ping behind it would turn it into a reset, which loses the reason.
    let stays = |allowed: &str| matches!(allowed, "alive" | "connack:00") || allowed.starts_with("reply:");
    let may_stay = input.expect.split('|').any(stays);
    let mut answer = Answer::default();
    if may_stay && input.pre == "connected" {
        client.send(&[0xc0, 0]);
    }
    loop {
        let Some(got) = client.next() else {
            answer.is_closed = true;
            return answer;
        };
        let packet = packet(got.first, &got.body);
        answer.packets.push(packet.clone());
        // What follows a good CONNACK ends it, or the ping does.
        if got.first == 0x20 && got.reason() == 0 && may_stay {
            client.send(&[0xc0, 0]);
        }
        // Answers that wait for a commit may come behind that to the ping.
        if answer.has(&[0xd0, 0]) {
            if answer.is_allowed(input) {
                return answer;
            }
            println!("{}: waiting for more than {answer:02x?}", input.id);
        }
    }
}

/// A client that has nothing to do with it is served.
fn assert_serves(broker: &Broker, after: &str) {
    let mut client = Client::open(broker.node.at.mqtt, Version::V4);
    client.send(&Connect::new(Version::V4, "fresh", true).bytes());
    let got = client.next().unwrap_or_else(|| panic!("a fresh client is not served after {after}"));
    assert_eq!((got.first, &got.body[..]), (0x20, &[0, 0][..]), "after {after}");
    client.ping();
}

/// Runs inputs that do not disturb each other at the same time.
fn run_all(broker: &Broker, inputs: &[Input]) {
    // CONNECTs of the corpus share one client identifier: one at a time.
    let (together, one_by_one): (Vec<&Input>, Vec<&Input>) =
        inputs.iter().partition(|input| input.pre == "connected" && !input.id.contains("connect-twice"));
    let wrong = Mutex::new(Vec::new());
    let judge = |inputs: &[&Input]| {
        for input in inputs {
            let answer = run(broker, input);
            if !answer.is_allowed(input) {
                let what = format!("{} [{}]: wanted {}, got {answer:02x?}", input.id, input.spec, input.expect);
                wrong.lock().unwrap().push(what);
            }
        }
    };
    for some in together.chunks(TOGETHER * EACH) {
        std::thread::scope(|scope| some.chunks(EACH).for_each(|inputs| drop(scope.spawn(|| judge(inputs)))));
        assert_serves(broker, &some[0].id);
    }
    for some in one_by_one.chunks(EACH) {
        judge(some);
        assert_serves(broker, &some[0].id);
    }
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} inputs:\n{}", wrong.len(), inputs.len(), wrong.join("\n"));
}

/// Resident memory of the broker's process.
fn rss_kib(broker: &Broker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.node.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS is there");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Each line of `malformed.jsonl` for the statement that judges it: [malformed corpus].
#[test]
fn every_malformed_input_gets_the_answer_that_it_must_get_and_leaves_no_trace() {
    let broker = Arc::new(Broker::start(&[]));
    let inputs = inputs();
    assert_eq!(inputs.len(), 476);
    // Once, so that what is filled once (tables, buffers, caches) is full.
    run_all(&broker, &inputs);
    let before = rss_kib(&broker);
    run_all(&broker, &inputs);
    let after = rss_kib(&broker);
    println!("resident memory: {before} KiB before, {after} KiB after");
    assert!(after <= before + RSS_GROWTH_KIB_MAX, "from {before} to {after} KiB");
}

#[test]
fn the_judge_tells_right_from_wrong() {
    let input = |expect: &str, ver| Input {
        id: String::new(),
        ver,
        pre: String::new(),
        hex: String::new(),
        expect: expect.to_owned(),
        spec: String::new(),
    };
    let answer =
        |packets: &[&[u8]], is_closed| Answer { packets: packets.iter().map(|p| p.to_vec()).collect(), is_closed };
    let disconnect = |code| answer(&[&[0xe0, 1, code]], true);
    for (expect, ver, answer, allowed) in [
        ("close:81", 5, disconnect(0x81), true),
        ("close:81", 5, disconnect(0x82), false),
        ("close:81|close:82", 5, disconnect(0x82), true),
        ("close:81", 5, answer(&[], true), false),
        ("close:81", 4, answer(&[], true), true),
        ("close:81", 5, answer(&[&[0x20, 3, 0, 0x81, 0]], true), true),
        ("close", 5, disconnect(0x82), true),
        ("close", 4, answer(&[&[0x20, 2, 0, 0]], true), false),
        ("close", 4, answer(&[&[0xd0, 0]], false), false),
        ("silent-close", 4, answer(&[&[0x20, 2, 0, 1]], true), false),
        ("silent-close", 4, answer(&[], true), true),
        ("alive", 4, answer(&[&[0xd0, 0]], false), true),
        ("alive", 4, answer(&[], true), false),
        ("connack:02", 4, answer(&[&[0x20, 2, 0, 2]], true), true),
        ("connack:02", 4, answer(&[&[0x20, 2, 0, 2]], false), false),
        ("connack:00", 5, answer(&[&[0x20, 3, 0, 0, 0], &[0xd0, 0]], false), true),
        ("connack:00+close", 5, answer(&[&[0x20, 3, 0, 0, 0]], false), false),
        ("reply:9003", 5, answer(&[&[0x90, 4, 0, 1, 0, 0x8f], &[0xd0, 0]], false), true),
        ("reply:9003", 5, answer(&[&[0x90, 4, 0, 1, 0, 0], &[0xd0, 0]], false), false),
        ("reply:7002004d", 4, answer(&[&[0x70, 2, 0, 0x4d], &[0xd0, 0]], false), true),
        ("reply:7002004d", 4, answer(&[&[0x70, 2, 0, 0x4e], &[0xd0, 0]], false), false),
    ] {
        assert_eq!(answer.is_allowed(&input(expect, ver)), allowed, "{expect} v{ver} {answer:02x?}");
    }
}

#[test]
fn a_connect_that_comes_byte_by_byte_is_accepted() {
    let broker = broker();
    let mut client = Client::open(broker.node.at.mqtt, Version::V4);
    for byte in Connect::new(Version::V4, "bytewise", true).bytes() {
        client.send(&[byte]);
        // Others are served between them.
        assert_serves(&broker, "a byte of a CONNECT");
    }
    assert_eq!(client.read().body, [0, 0]);
}

#[test]
fn connections_that_send_half_a_connect_keep_nobody_out() {
    let broker = broker();
    let half = |n: u32| {
        let mut client = Client::open(broker.node.at.mqtt, Version::V4);
        client.send(&Connect::new(Version::V4, &format!("half{n}"), true).bytes()[..7]);
        client
    };
    let halves: Vec<Client> = (0..200).map(half).collect();
    assert_serves(&broker, "200 halves");
    drop(halves);
    assert_serves(&broker, "the end of 200 halves");
}

#[test]
fn a_length_that_is_announced_is_not_set_aside() {
    let broker = Arc::new(Broker::start(&[]));
    assert_serves(&broker, "nothing");
    let before = rss_kib(&broker);
    let mut publishers = Vec::new();
    for n in 0..50 {
        let mut client = Client::open(broker.node.at.mqtt, Version::V4);
        assert_eq!(client.greet(&Connect::new(Version::V4, &format!("large{n}"), true)).reason(), 0);
        client.send(&bytes_of("30ffffff7f0003612f62"));
        publishers.push(client);
    }
    let mut stranger = Client::open(broker.node.at.mqtt, Version::V4);
    stranger.send(&bytes_of("10ffffff7f00044d515454"));
    assert_serves(&broker, "256 MB, announced 51 times");
    // One of them would be 256 MiB.
    let after = rss_kib(&broker);
    assert!(after < before + 64 * 1024, "from {before} to {after} KiB");
    // Above the packet limit: they are sent away.
    for client in &mut publishers {
        client.expect_silent_close();
    }
    stranger.expect_silent_close();
}
