use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::{Client, Directory, Identity, Manner};
use crate::history::MessageName;
use crate::history::event::{Answer, Event, What};
use crate::history::record::Recorder;
use crate::wire::{Publish, Version, encode};

const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];

/// A broker for one connection: it reads something, says this, and reads to the end.
fn broker(says: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut chunk = [0; 1024];
        assert!(stream.read(&mut chunk).unwrap() > 0);
        stream.write_all(&says).unwrap();
        while stream.read(&mut chunk).is_ok_and(|bytes| bytes > 0) {}
    });
    at
}

fn events(says: Vec<u8>, act: impl FnOnce(&mut Client)) -> Vec<What> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let recorder = Recorder::create(&path).unwrap();
    let directory = Directory::default();
    directory.set(vec![("n1".to_owned(), broker(says))]);
    let manner = Manner { hold_percent: 0, answer_max: Duration::from_secs(30), ..Manner::default() };
    let mut client = Client::new(0, 1, manner, recorder.clone(), directory, Identity::default());
    assert!(client.ensure_connected(Instant::now()));
    act(&mut client);
    recorder.flush().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().what).collect()
}

fn publish(seq: u64, id: u16, qos: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let payload = MessageName { publisher: 9, seq }.payload("");
    let (topic, properties) = ("t".to_owned(), Vec::new());
    encode::publish(
        &mut bytes,
        Version::V5,
        &Publish { dup: false, qos, retain: false, topic, id, properties, payload },
    );
    bytes
}

/// More than one round of answers can take, and they come at once.
#[test]
fn of_many_messages_that_come_at_once_none_is_passed_over() {
    let mut says = CONNACK.to_vec();
    (0..200).for_each(|n| says.extend(publish(n, n as u16 + 1, 1)));
    let seen = events(says, |client| {
        let end = Instant::now() + Duration::from_secs(30);
        while client.delivered < 200 && Instant::now() < end {
            client.pump(Duration::from_millis(20));
        }
    });
    let delivered: Vec<u64> =
        seen.iter().filter_map(|e| if let What::Deliver(d) = e { Some(d.message.seq) } else { None }).collect();
    assert_eq!(delivered, (0..200).collect::<Vec<_>>());
    let settled = seen.iter().filter(|e| matches!(e, What::Settle { .. })).count();
    assert_eq!(settled, 200, "each was answered");
}

#[test]
fn a_qos_2_message_that_comes_again_before_its_release_is_told_from_a_new_one() {
    let mut says = CONNACK.to_vec();
    says.extend(publish(0, 7, 2));
    says.extend(publish(0, 7, 2));
    says.extend([0x62, 2, 0, 7]);
    says.extend(publish(1, 7, 2));
    let seen = events(says, |client| {
        let end = Instant::now() + Duration::from_secs(30);
        while client.delivered < 3 && Instant::now() < end {
            client.pump(Duration::from_millis(20));
        }
    });
    let repeated: Vec<bool> =
        seen.iter().filter_map(|e| if let What::Deliver(d) = e { Some(d.repeated) } else { None }).collect();
    assert_eq!(repeated, [false, true, false]);
}

#[test]
fn what_nobody_answered_ends_as_info_and_what_was_refused_as_fail() {
    let mut says = CONNACK.to_vec();
    says.extend([0x40, 3, 0, 1, 0x97]);
    let seen = events(says, |client| {
        client.publish("t", 1, false).unwrap();
        client.publish("t", 1, false).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while client.open() > 1 && Instant::now() < end {
            client.pump(Duration::from_millis(20));
        }
        client.give_up();
    });
    assert!(seen.iter().any(|e| matches!(e, What::Fail { code: Some(0x97), .. })), "{seen:?}");
    assert!(seen.iter().any(|e| matches!(e, What::Info { .. })), "{seen:?}");
    assert!(!seen.iter().any(|e| matches!(e, What::Ok { answer: Answer::Published { .. }, .. })), "{seen:?}");
}
