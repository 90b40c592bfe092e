//! Retained messages: stored, replaced, removed, and what a subscription brings of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use conformance::{both, v4, v5};

/// Retain Handling 1, in its place in the Subscription Options.
const IF_NEW: u8 = 0x10;
/// Retain Handling 2.
const NEVER: u8 = 0x20;
/// Retain As Published.
const AS_PUBLISHED: u8 = 0x08;

/// [MQTT-3.3.1-5], [MQTT-3.3.1-5 v3.1.1], [MQTT-3.3.1-6 v3.1.1]; with RETAIN 1 [MQTT-3.3.1-8 v3.1.1].
#[test]
fn a_new_subscription_brings_the_last_retained_message_of_each_topic_with_its_qos() {
    both(|t| {
        for (topic, qos, payload) in [("a", 1, "old"), ("a", 2, "new"), ("b", 1, "other"), ("c", 0, "plain")] {
            t.retain(&t.topic(topic), qos, payload);
        }
        let mut client = t.client("c");
        client.subscribe(&t.topic("+"), 2);
        let mut got: Vec<_> = (0..3).map(|_| client.message()).collect();
        got.iter().for_each(|p| client.settle(p));
        got.sort_by(|a, b| a.topic.cmp(&b.topic));
        let of = |p: &conformance::client::Publish| (p.qos, p.retain, String::from_utf8(p.payload.clone()).unwrap());
        let want = [(2, true, "new"), (1, true, "other"), (0, true, "plain")];
        assert_eq!(got.iter().map(of).collect::<Vec<_>>(), want.map(|(q, r, p)| (q, r, p.to_owned())));
        client.expect_nothing();
    });
}

/// [MQTT-3.3.1-7 v3.1.1], [MQTT-3.3.1-5].
#[test]
fn a_retained_message_of_qos_0_replaces_the_one_before() {
    both(|t| {
        t.retain(&t.topic("t"), 2, "old");
        t.retain(&t.topic("t"), 0, "new");
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        assert_eq!(client.receive("new").qos, 0);
        client.expect_nothing();
    });
}

/// [MQTT-3.3.1-6], [MQTT-3.3.1-10 v3.1.1]; nothing empty is stored [MQTT-3.3.1-7], [MQTT-3.3.1-11 v3.1.1].
#[test]
fn an_empty_retained_message_is_delivered_and_removes_what_was_stored() {
    both(|t| {
        for qos in 0..=2 {
            let topic = t.topic(&format!("qos {qos}"));
            t.retain(&topic, 1, "stored");
            let mut there = t.client("there");
            there.subscribe(&topic, 2);
            there.receive("stored");
            t.retain(&topic, qos, "");
            let normal = there.receive("");
            assert_eq!((normal.retain, normal.qos), (false, qos));
            let mut late = t.client("late");
            late.subscribe(&topic, 2);
            late.expect_nothing();
        }
    });
}

/// [MQTT-3.3.1-8], [MQTT-3.3.1-12 v3.1.1].
#[test]
fn a_message_without_retain_neither_stores_nor_removes() {
    both(|t| {
        t.retain(&t.topic("kept"), 1, "kept");
        for payload in ["plain", ""] {
            t.publish(&t.topic("kept"), 1, payload);
            t.publish(&t.topic("none"), 1, payload);
        }
        let mut client = t.client("c");
        client.subscribe(&t.topic("+"), 1);
        client.receive("kept");
        client.expect_nothing();
    });
}

/// [MQTT-3.3.1-9 v3.1.1], [MQTT-3.3.1-12].
#[test]
fn an_established_subscription_gets_retained_messages_without_the_flag() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        for qos in 0..=2 {
            t.retain(&t.topic("t"), qos, "live");
            assert!(!client.receive("live").retain);
        }
    });
}

/// [MQTT-3.3.1-13].
#[test]
fn retain_as_published_keeps_the_flag_as_it_was() {
    v5(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1 | AS_PUBLISHED);
        for qos in 0..=1 {
            t.retain(&t.topic("t"), qos, "with");
            assert!(client.receive("with").retain);
            t.publish(&t.topic("t"), qos, "without");
            assert!(!client.receive("without").retain);
        }
    });
}

/// [MQTT-3.3.1-9], [MQTT-3.8.4-4], [MQTT-3.8.4-3 v3.1.1].
#[test]
fn retain_handling_0_brings_retained_messages_at_every_subscribe() {
    both(|t| {
        t.retain(&t.topic("t"), 1, "kept");
        let mut client = t.client("c");
        for _ in 0..3 {
            client.subscribe(&t.topic("t"), 1);
            assert!(client.receive("kept").retain);
            client.expect_nothing();
        }
    });
}

/// [MQTT-3.3.1-10].
#[test]
fn retain_handling_1_brings_them_only_with_a_new_subscription() {
    v5(|t| {
        t.retain(&t.topic("t"), 1, "kept");
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1 | IF_NEW);
        client.receive("kept");
        client.subscribe(&t.topic("t"), 1 | IF_NEW);
        client.subscribe(&t.topic("t"), IF_NEW);
        client.expect_nothing();
        client.unsubscribe(&[&t.topic("t")]);
        client.subscribe(&t.topic("t"), 1 | IF_NEW);
        client.receive("kept");
    });
}

/// [MQTT-3.3.1-11].
#[test]
fn retain_handling_2_never_brings_them() {
    v5(|t| {
        t.retain(&t.topic("t"), 1, "kept");
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 1 | NEVER);
        client.subscribe(&t.topic("t"), 1 | NEVER);
        client.expect_nothing();
        t.publish(&t.topic("t"), 1, "live");
        client.receive("live");
    });
}

/// [MQTT-3.3.1-6 v3.1.1]: the message is of its topic, whoever retained it [MQTT-3.3.2-3 v3.1.1].
#[test]
fn a_wildcard_brings_retained_messages_of_the_topics_that_match_and_of_no_others() {
    v4(|t| {
        for topic in ["a/b", "a/c/d", "b/b"] {
            t.retain(&t.topic(topic), 1, topic);
        }
        let mut client = t.client("c");
        client.subscribe(&t.topic("+/b"), 1);
        let mut got = [client.message(), client.message()];
        got.iter().for_each(|p| client.settle(p));
        got.sort_by(|a, b| a.topic.cmp(&b.topic));
        assert_eq!([&got[0].topic, &got[1].topic], [&t.topic("a/b"), &t.topic("b/b")]);
        client.expect_nothing();
    });
}
