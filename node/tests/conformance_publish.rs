//! PUBLISH: what of a message reaches its subscribers, and in what form.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use conformance::client::{Property, Publish, Value, field, packet, prop, publish, user};
use conformance::{Test, both, v5};
use quorate_jepsen::wire::property;

/// No Local, in the Subscription Options.
const NO_LOCAL: u8 = 0x04;
const SUBSCRIPTION_ID: u8 = 0x0b;
const TOPIC_ALIAS: u8 = 0x23;

/// Publishes with properties, through the whole handshake.
fn publish_with(t: &Test, topic: &str, qos: u8, properties: &[Property]) {
    let mut publisher = t.client("publisher");
    let id = publisher.fresh_id();
    let with = Publish { properties: properties.to_vec(), ..publish(topic, qos, id, "payload") };
    publisher.publish_through(&with);
    publisher.disconnect();
}

fn identifiers(publish: &Publish) -> Vec<u32> {
    let of = |p: &Property| match p.value {
        Value::Var(id) if p.id == SUBSCRIPTION_ID => Some(id),
        _ => None,
    };
    let mut ids: Vec<u32> = publish.properties.iter().filter_map(of).collect();
    ids.sort_unstable();
    ids
}

/// [MQTT-3.3.4-1], [MQTT-3.3.4-1 v3.1.1], [MQTT-4.3.2-4], [MQTT-4.3.3-8], [MQTT-4.3.3-11]; acknowledgements repeat the
/// identifier [MQTT-2.2.1-5], [MQTT-2.3.1-6 v3.1.1]; their codes are of the lists [MQTT-3.4.2-1], [MQTT-3.5.2-1],
/// [MQTT-3.7.2-1].
#[test]
fn a_publish_is_answered_as_its_qos_wants() {
    both(|t| {
        let mut client = t.client("c");
        let topic = t.topic("nobody subscribes");
        client.send_publish(&publish(&topic, 0, 0, "x"));
        client.ping();
        for id in [1, 77, 65_535] {
            client.send_publish(&publish(&topic, 1, id, "x"));
            let ack = client.read();
            assert_eq!((ack.first, ack.id()), (0x40, id));
            client.send_publish(&publish(&topic, 2, id, "x"));
            let rec = client.read();
            assert_eq!((rec.first, rec.id()), (0x50, id));
            client.ack(conformance::client::AckKind::Pubrel, id);
            let comp = client.read();
            assert_eq!((comp.first, comp.id(), comp.reason()), (0x70, id, 0));
            let no_subscribers = if t.is_v5() { 0x10 } else { 0 };
            assert_eq!((ack.reason(), rec.reason()), (no_subscribers, no_subscribers));
            // 3.1.1 has no reason codes.
            assert!(t.is_v5() || [&ack, &rec, &comp].iter().all(|a| a.body.len() == 2));
        }
    });
}

/// [MQTT-3.7.2-1]: an identifier that is not known; nothing is said beside it [MQTT-3.7.2-2], [MQTT-3.7.2-3].
#[test]
fn a_pubrel_of_an_unknown_identifier_gets_a_pubcomp_that_says_so() {
    both(|t| {
        let mut client = t.client("c");
        client.ack(conformance::client::AckKind::Pubrel, 9);
        let comp = client.read();
        assert_eq!((comp.first, comp.id(), comp.reason()), (0x70, 9, if t.is_v5() { 0x92 } else { 0 }));
        assert!(comp.properties().is_empty(), "{comp:?}");
    });
}

/// [MQTT-3.6.2-1]: PUBREL is sent with Success, or with what says that the identifier is not known; nothing is said
/// beside it [MQTT-3.6.2-2], [MQTT-3.6.2-3].
#[test]
fn a_pubrec_of_an_unknown_identifier_gets_a_pubrel_that_says_so() {
    v5(|t| {
        let mut client = t.client("c");
        client.ack(conformance::client::AckKind::Pubrec, 9);
        let rel = client.read();
        assert_eq!((rel.first, rel.id(), rel.reason()), (0x62, 9, 0x92));
        assert!(rel.properties().is_empty(), "{rel:?}");
    });
}

/// [MQTT-3.3.2-1], [MQTT-3.3.2-1 v3.1.1].
#[test]
fn a_topic_name_is_the_first_field_and_utf_8() {
    both(|t| {
        let properties = if t.is_v5() { &[0][..] } else { &[] };
        let mut watcher = t.client("watcher");
        watcher.subscribe(&t.topic("ü/☃/𝄞"), 0);
        let mut client = t.client("c");
        client.send(&packet(0x30, &[&field(t.topic("ü/☃/𝄞").as_bytes()), properties, b"x"].concat()));
        watcher.receive("x");
        client.send(&packet(0x30, &[&field(b"a\xff"), properties, b"x"].concat()));
        client.expect_end(0x81);
    });
}

/// [MQTT-3.3.2-2], [MQTT-3.3.2-2 v3.1.1], [MQTT-4.7.0-1], [MQTT-4.7.1-1 v3.1.1].
#[test]
fn a_topic_name_has_no_wildcards() {
    both(|t| {
        for name in ["a/#", "+", "a/+/b", "#", "a#"] {
            let mut client = t.client("c");
            client.send_publish(&publish(name, 1, 1, "x"));
            client.expect_end(0x90);
        }
    });
}

/// [MQTT-3.3.2-3], [MQTT-3.3.2-3 v3.1.1].
#[test]
fn what_is_delivered_has_a_topic_that_matches() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("a/+/c"), 1);
        for topic in ["a/b/c", "a/c", "a/b/c/d", "a//c", "A/b/c", "a/b/c "] {
            t.publish(&t.topic(topic), 1, topic);
        }
        for topic in ["a/b/c", "a//c"] {
            assert_eq!(client.receive(topic).topic, t.topic(topic));
        }
        client.expect_nothing();
    });
}

/// [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-20], and user properties [MQTT-3.3.2-17] in their order
/// [MQTT-3.3.2-18].
#[test]
fn the_properties_of_a_message_are_forwarded_unaltered() {
    v5(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        for qos in 0..=2 {
            for indicator in [0, 1] {
                let sent = [
                    prop(0x01, Value::U8(indicator)),
                    prop(0x03, Value::Text("application/x-☃".into())),
                    prop(0x08, Value::Text("where/answers/go".into())),
                    prop(0x09, Value::Bytes(vec![0, 1, 254, 255])),
                    user("b", "1"),
                    user("a", ""),
                    user("b", "1"),
                    user("", "2"),
                ];
                publish_with(t, &t.topic("t"), qos, &sent);
                let got = client.receive("payload").properties;
                for one in &sent[..4] {
                    assert_eq!(got.iter().filter(|p| p.id == one.id).collect::<Vec<_>>(), [one]);
                }
                let users: Vec<_> = got.iter().filter(|p| p.id == property::USER).cloned().collect();
                assert_eq!(users, sent[4..]);
            }
        }
        publish_with(t, &t.topic("t"), 1, &[]);
        assert!(client.receive("payload").properties.is_empty());
    });
}

/// [MQTT-3.3.2-13], [MQTT-3.3.2-14], [MQTT-3.3.2-19], [MQTT-1.5.7-1]; a QoS 0 message is refused alike.
#[test]
fn texts_in_properties_are_utf_8_and_a_response_topic_has_no_wildcards() {
    v5(|t| {
        let bad = |id: u8, text: &[u8]| [&[id][..], &field(text)].concat();
        for (properties, reason) in [
            (bad(0x08, b"\xff"), 0x81),
            (bad(0x08, b"a/+"), 0x82),
            (bad(0x08, b"#"), 0x82),
            (bad(0x03, b"\xc0\xaf"), 0x81),
            ([&bad(0x26, b"\xff")[..], &field(b"v")].concat(), 0x81),
            ([&bad(0x26, b"k")[..], &field(b"\xed\xa0\x80")].concat(), 0x81),
        ] {
            let mut client = t.client("c");
            let body = [&field(b"a")[..], &[properties.len() as u8], &properties, b"x"].concat();
            client.send(&packet(0x30, &body));
            client.expect_end(reason);
        }
    });
}

/// [MQTT-3.3.2-6]: by the whole seconds that it waited.
#[test]
fn an_expiry_interval_is_forwarded_less_the_time_that_the_message_waited() {
    v5(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("#"), 1);
        publish_with(t, &t.topic("at once"), 1, &[prop(0x02, Value::U32(1000))]);
        let at_once = property::number(&client.receive("payload").properties, 0x02).unwrap();
        assert!((999..=1000).contains(&at_once), "{at_once}");
        client.disconnect();
        publish_with(t, &t.topic("later"), 1, &[prop(0x02, Value::U32(1000))]);
        // Another client's keep alive tells that more than a second has passed.
        let mut clock = t.accepted(&t.clean("clock").keep_alive(1)).0;
        clock.expect_end(0x8d);
        let (mut client, _) = t.resume("c");
        let later = property::number(&client.receive("payload").properties, 0x02).unwrap();
        assert!((900..=999).contains(&later), "{later}");
    });
}

/// [MQTT-3.3.2-5].
#[test]
fn a_message_that_expired_while_it_waited_is_not_sent() {
    v5(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("#"), 2);
        client.disconnect();
        for qos in 1..=2 {
            publish_with(t, &t.topic("short"), qos, &[prop(0x02, Value::U32(1))]);
            publish_with(t, &t.topic("long"), qos, &[prop(0x02, Value::U32(1000))]);
        }
        let mut clock = t.accepted(&t.clean("clock").keep_alive(1)).0;
        clock.expect_end(0x8d);
        let (mut client, _) = t.resume("c");
        for qos in 1..=2 {
            let got = client.receive("payload");
            assert_eq!((got.topic, got.qos), (t.topic("long"), qos));
        }
        client.expect_nothing();
    });
}

/// [MQTT-3.3.2-12]: a client's aliases, from 1 to the maximum that CONNACK tells.
#[test]
fn an_alias_stands_for_its_topic() {
    v5(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("#"), 1);
        let mut publisher = t.open();
        let ack = publisher.greet(&t.clean("publisher"));
        let maximum = property::number(&ack.properties(), 0x22).expect("aliases are offered") as u16;
        let alias = |n| vec![prop(TOPIC_ALIAS, Value::U16(n))];
        for n in [1, 2, maximum] {
            let topic = t.topic(&n.to_string());
            publisher.send_publish(&Publish { properties: alias(n), ..publish(&topic, 0, 0, "named") });
            publisher.send_publish(&Publish { properties: alias(n), ..publish("", 0, 0, "alias") });
            assert_eq!(client.receive("named").topic, topic);
            let got = client.receive("alias");
            assert_eq!(got.topic, topic);
            assert!(
                got.properties.iter().all(|p| p.id != TOPIC_ALIAS),
                "the publisher's alias is not the subscriber's"
            );
        }
        // It can be given another meaning.
        let other = t.topic("other");
        publisher.send_publish(&Publish { properties: alias(1), ..publish(&other, 0, 0, "renamed") });
        publisher.send_publish(&Publish { properties: alias(1), ..publish("", 0, 0, "alias") });
        client.receive("renamed");
        assert_eq!(client.receive("alias").topic, other);
    });
}

/// [MQTT-3.3.2-7]: also when the session goes on.
#[test]
fn an_alias_ends_with_its_connection() {
    v5(|t| {
        let alias = vec![prop(TOPIC_ALIAS, Value::U16(1))];
        let (mut first, _) = t.resume("c");
        first.publish_through(&Publish { properties: alias.clone(), ..publish(&t.topic("t"), 1, 1, "x") });
        first.disconnect();
        let (mut second, present) = t.resume("c");
        assert!(present);
        second.send_publish(&Publish { properties: alias, ..publish("", 1, 1, "x") });
        second.expect_end(0x82);
    });
}

/// [MQTT-3.3.2-8], [MQTT-3.3.2-9].
#[test]
fn an_alias_of_0_or_above_the_maximum_is_an_error() {
    v5(|t| {
        let maximum = property::number(&t.open().greet(&t.clean("asks")).properties(), 0x22).unwrap() as u16;
        for n in [0, maximum + 1, u16::MAX] {
            let mut client = t.client("c");
            let properties = vec![prop(TOPIC_ALIAS, Value::U16(n))];
            client.send_publish(&Publish { properties, ..publish(&t.topic("t"), 0, 0, "x") });
            client.expect_end(0x94);
        }
    });
}

/// [MQTT-3.3.4-2], [MQTT-3.3.5-1 v3.1.1].
#[test]
fn overlapping_subscriptions_bring_a_message_at_the_highest_qos_of_theirs() {
    both(|t| {
        let mut client = t.client("c");
        for (filter, qos) in [("a/+", 0), ("a/b", 2), ("#", 1)] {
            client.subscribe(&t.topic(filter), qos);
        }
        t.publish(&t.topic("a/b"), 2, "two");
        assert_eq!(client.receive("two").qos, 2);
        client.expect_nothing();
        t.publish(&t.topic("a/x"), 2, "one");
        assert_eq!(client.receive("one").qos, 1);
        client.expect_nothing();
    });
}

/// [MQTT-3.3.4-3], [MQTT-3.3.4-4]; one copy comes, so there are no others with identifiers of their own.
#[test]
fn a_message_carries_the_identifiers_of_all_subscriptions_that_match() {
    v5(|t| {
        let mut client = t.client("c");
        let id = |n| [prop(SUBSCRIPTION_ID, Value::Var(n))];
        client.subscribe_with(&id(1), &[(&t.topic("a/+"), 1)]);
        client.subscribe_with(&id(268_435_455), &[(&t.topic("a/b"), 1)]);
        client.subscribe_with(&id(300), &[(&t.topic("x"), 1), (&t.topic("a/#"), 0)]);
        client.subscribe(&t.topic("+/b"), 1);
        t.publish(&t.topic("a/b"), 1, "three");
        assert_eq!(identifiers(&client.receive("three")), [1, 300, 268_435_455]);
        client.expect_nothing();
        t.publish(&t.topic("c/b"), 1, "none");
        assert!(identifiers(&client.receive("none")).is_empty());
        // A new subscription of the same filter has its own identifier, or none.
        client.subscribe_with(&id(2), &[(&t.topic("a/+"), 1)]);
        client.subscribe(&t.topic("a/b"), 1);
        t.publish(&t.topic("a/b"), 1, "changed");
        assert_eq!(identifiers(&client.receive("changed")), [2, 300]);
    });
}

/// [MQTT-3.3.4-6].
#[test]
fn a_client_publishes_without_a_subscription_identifier() {
    v5(|t| {
        let mut client = t.client("c");
        let properties = vec![prop(SUBSCRIPTION_ID, Value::Var(1))];
        client.send_publish(&Publish { properties, ..publish(&t.topic("t"), 0, 0, "x") });
        client.expect_end(0x82);
    });
}

/// [MQTT-3.8.3-3]: by client identifier, whatever else the client subscribes to.
#[test]
fn no_local_keeps_a_client_s_own_messages_from_it() {
    v5(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("quiet"), 1 | NO_LOCAL);
        client.subscribe(&t.topic("loud"), 1);
        client.send_publish(&publish(&t.topic("quiet"), 1, 100, "own"));
        client.send_publish(&publish(&t.topic("quiet"), 0, 0, "own"));
        client.expect_ack(conformance::client::AckKind::Puback, 100);
        client.expect_nothing();
        t.publish(&t.topic("quiet"), 1, "of another");
        client.receive("of another");
    });
}

/// [MQTT-3.3.1-2], [MQTT-3.3.1-2 v3.1.1], [MQTT-4.3.1-1], [MQTT-4.3.1-1 v3.1.1], and no identifier [MQTT-2.2.1-2],
/// [MQTT-2.3.1-5 v3.1.1].
#[test]
fn a_message_of_qos_0_is_sent_with_dup_0_and_without_an_identifier() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        t.publish(&t.topic("t"), 0, "x");
        let got = client.read();
        let properties = if t.is_v5() { &[0][..] } else { &[] };
        assert_eq!((got.first, got.body), (0x30, [&field(t.topic("t").as_bytes()), properties, b"x"].concat()));
    });
}

/// [MQTT-3.3.1-3], [MQTT-3.3.1-3 v3.1.1].
#[test]
fn the_dup_of_an_incoming_message_is_not_that_of_the_outgoing() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        let mut publisher = t.client("publisher");
        for (qos, id) in [(1, 1), (2, 2)] {
            publisher.publish_through(&Publish { dup: true, ..publish(&t.topic("t"), qos, id, "again") });
            assert!(!client.receive("again").dup);
        }
    });
}
