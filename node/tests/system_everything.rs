//! One session that has everything a session can have, and whose node, the leader, dies: it goes on at another node as
//! if nothing had happened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod testkit;

use std::collections::BTreeMap;

use quorate_jepsen::wire::property::{self, Property, TOPIC_ALIAS, TOPIC_ALIAS_MAXIMUM, Value};
use quorate_jepsen::wire::{Ack, AckKind, Packet, Publish, Version};
use testkit::raw::{self, Raw, Will, keyed, publish};
use testkit::three_nodes;

/// Long enough for a node to be killed before it has passed.
const DELAYED: &str = "$delayed/10/own/later";

fn hello(clean: bool, will_delay_s: u32) -> raw::Connect {
    let will =
        Will { topic: "status/c".into(), payload: b"gone".to_vec(), qos: 1, retain: false, delay_s: will_delay_s };
    raw::Connect { receive_maximum: 20, will: Some(will), ..raw::client("everything", clean) }
}

fn takes_aliases() -> [Property; 1] {
    [Property { id: TOPIC_ALIAS_MAXIMUM, value: Value::U16(8) }]
}

fn with_alias(publish: Publish) -> Publish {
    Publish { properties: vec![Property { id: TOPIC_ALIAS, value: Value::U16(1) }], ..publish }
}

/// What the broker's aliases stand for on one connection.
#[derive(Default)]
struct Aliases(BTreeMap<u32, String>);

impl Aliases {
    fn topic(&mut self, publish: &Publish) -> String {
        let alias = property::number(&publish.properties, TOPIC_ALIAS);
        match (publish.topic.as_str(), alias) {
            ("", alias) => self.0[&alias.expect("a topic or an alias")].clone(),
            (topic, alias) => {
                self.0.extend(alias.map(|alias| (alias, topic.to_owned())));
                topic.to_owned()
            }
        }
    }
}

fn text(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.payload).into_owned()
}

/// Guarantees 2, 3, 4, 8, 9 and 10 at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_with_everything_resumes_on_another_node_as_if_nothing_had_happened() {
    let mut system = three_nodes();
    let home = system.leader();
    let away = system.follower();
    let third = 3 - home - away;
    let mut up = system.connect(third, Version::V5, "up").await;
    up.subscribe("up/#", 1).await;
    let mut status = system.connect(third, Version::V5, "status").await;
    status.subscribe("status/#", 1).await;

    let (mut client, _) = Raw::connect_with(system.mqtt(home), &hello(true, 600), &takes_aliases()).await;
    client.subscribe("own/#", 2).await;
    client.subscribe("$share/crew/jobs/#", 2).await;
    let mut publisher = system.connect(third, Version::V5, "publisher").await;
    for (topic, qos, payload) in
        [("own/x", 2, "first"), ("own/x", 2, "second"), ("jobs/x", 2, "job"), ("jobs/x", 1, "task")]
    {
        publisher.publish_through(topic, qos, payload).await;
    }
    let mut aliases = Aliases::default();
    let mut sent = BTreeMap::new();
    for (topic, payload) in [("own/x", "first"), ("own/x", "second"), ("jobs/x", "job"), ("jobs/x", "task")] {
        let publish = client.expect_message(payload, false).await;
        assert_eq!(aliases.topic(&publish), topic);
        assert_eq!(publish.topic.is_empty(), payload == "second" || payload == "task", "the alias stands for it");
        sent.insert(payload.to_owned(), publish.id);
    }
    // One exchange is as far as PUBREL, the others are not begun.
    client.ack(AckKind::Pubrec, sent["first"]).await;
    client.expect_ack(AckKind::Pubrel, sent["first"]).await;
    // Its own publishes: one through, one as far as PUBREC, one with a key, one for later.
    client.publish(&with_alias(publish("up/x", 1, 101, false, "one"))).await;
    client.expect_ack(AckKind::Puback, 101).await;
    client.publish(&with_alias(publish("", 2, 102, false, "two"))).await;
    client.expect_ack(AckKind::Pubrec, 102).await;
    client.publish(&keyed("k", publish("up/x", 1, 103, false, "three"))).await;
    client.expect_ack(AckKind::Puback, 103).await;
    client.publish(&publish(DELAYED, 1, 104, false, "later")).await;
    client.expect_ack(AckKind::Puback, 104).await;

    system.kill(home);

    let (mut client, is_present) = Raw::connect_with(system.mqtt(away), &hello(false, 0), &takes_aliases()).await;
    assert!(is_present);
    client.expect_ack(AckKind::Pubrel, sent["first"]).await;
    client.ack(AckKind::Pubcomp, sent["first"]).await;
    let mut aliases = Aliases::default();
    let mut open = BTreeMap::new();
    let mut got = BTreeMap::new();
    while got.len() < 4 {
        match client.next().await {
            Packet::Publish(publish) => {
                let (topic, payload) = (aliases.topic(&publish), text(&publish));
                let want = match payload.as_str() {
                    "job" | "task" => "jobs/x",
                    "later" => "own/later",
                    _ => "own/x",
                };
                assert_eq!(topic, want);
                match payload.as_str() {
                    "second" | "job" => assert_eq!((publish.id, publish.dup), (sent[&payload], true), "{publish:?}"),
                    // Unsettled QoS 1 went back to the group, whose only member this is.
                    "task" | "later" => assert!(!publish.dup, "{publish:?}"),
                    other => panic!("{other} once more"),
                }
                if publish.qos == 1 {
                    client.ack(AckKind::Puback, publish.id).await;
                    assert!(got.insert(payload, 1).is_none());
                } else {
                    client.ack(AckKind::Pubrec, publish.id).await;
                    open.insert(publish.id, payload);
                }
            }
            Packet::Ack(Ack { kind: AckKind::Pubrel, id, .. }) => {
                client.ack(AckKind::Pubcomp, id).await;
                let payload = open.remove(&id).expect("a PUBREL of what was received");
                assert!(got.insert(payload, 2).is_none());
            }
            other => panic!("{other:?}"),
        }
    }
    let want = [("job", 2), ("later", 1), ("second", 2), ("task", 1)];
    assert_eq!(got, want.map(|(payload, qos)| (payload.to_owned(), qos)).into());
    // Its own exchange goes on: what is recorded is not published again, and neither is what has a known key.
    client.publish(&with_alias(publish("up/x", 2, 102, true, "two"))).await;
    client.expect_ack(AckKind::Pubrec, 102).await;
    client.ack(AckKind::Pubrel, 102).await;
    client.expect_ack(AckKind::Pubcomp, 102).await;
    client.publish(&keyed("k", publish("up/x", 1, 105, false, "three"))).await;
    client.expect_ack(AckKind::Puback, 105).await;
    client.expect_nothing().await;
    for payload in ["one", "two", "three"] {
        up.receive_through(payload, false).await;
    }
    up.expect_nothing().await;

    // The will of the connection that died with its node is not published; that of this one is, once.
    status.expect_nothing().await;
    drop(client);
    status.receive_through("gone", false).await;
    status.expect_nothing().await;
    system.assert_same_digest();
}
