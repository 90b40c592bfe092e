//! SUBSCRIBE, UNSUBSCRIBE, their acknowledgements, and what a topic filter matches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use conformance::client::{AckKind, field, packet, publish};
use conformance::{Test, both, v4};

/// A SUBSCRIBE or UNSUBSCRIBE with this body behind its identifier and properties.
fn with_payload(t: &Test, first: u8, payload: &[u8]) -> Vec<u8> {
    let properties = if t.is_v5() { &[0][..] } else { &[] };
    packet(first, &[&[0, 9][..], properties, payload].concat())
}

/// [MQTT-3.8.4-1], [MQTT-3.8.4-1 v3.1.1], with its identifier [MQTT-3.8.4-2], [MQTT-2.2.1-6], [MQTT-3.8.4-2 v3.1.1],
/// [MQTT-2.3.1-7 v3.1.1].
#[test]
fn a_subscribe_gets_a_suback_with_its_identifier() {
    both(|t| {
        let mut client = t.client("c");
        for id in [1_u16, 256, 65_535] {
            let properties = if t.is_v5() { &[0][..] } else { &[] };
            let body = [&id.to_be_bytes()[..], properties, &field(t.topic("t").as_bytes()), &[1]].concat();
            client.send(&packet(0x82, &body));
            let ack = client.read();
            assert_eq!((ack.first, ack.id(), ack.codes()), (0x90, id, &[1][..]));
        }
    });
}

/// [MQTT-3.8.4-6], [MQTT-3.8.4-5 v3.1.1]: in their order [MQTT-3.9.3-1], [MQTT-3.9.3-1 v3.1.1], each the granted QoS or a
/// failure [MQTT-3.8.4-7] of the list [MQTT-3.9.3-2], [MQTT-3.9.3-2 v3.1.1].
#[test]
fn a_suback_has_a_code_for_each_filter_in_their_order() {
    both(|t| {
        let mut client = t.client("c");
        let (two, none, one) = (t.topic("2"), t.topic("0"), t.topic("1"));
        let codes = client.subscribe_many(&[(&two, 2), ("a/#/b", 1), (&none, 0), ("a+", 2), (&one, 1)]);
        let invalid = if t.is_v5() { 0x8f } else { 0x80 };
        assert_eq!(codes, [2, invalid, 0, invalid, 1]);
    });
}

/// [MQTT-3.8.4-5], [MQTT-3.8.4-4 v3.1.1]: the last of two equal ones holds.
#[test]
fn the_filters_of_a_subscribe_act_one_after_the_other() {
    both(|t| {
        let mut client = t.client("c");
        let (same, other) = (t.topic("t"), t.topic("u"));
        assert_eq!(client.subscribe_many(&[(&same, 2), (&other, 2), (&same, 0)]), [2, 2, 0]);
        t.publish(&same, 2, "x");
        assert_eq!(client.receive("x").qos, 0);
        t.publish(&other, 2, "y");
        assert_eq!(client.receive("y").qos, 2);
        client.expect_nothing();
    });
}

/// [MQTT-3.8.4-8], [MQTT-3.8.4-6 v3.1.1].
#[test]
fn a_message_comes_at_the_lower_of_its_qos_and_the_granted_one() {
    both(|t| {
        for granted in 0..=2 {
            let mut client = t.client("c");
            client.subscribe(&t.topic("t"), granted);
            for published in 0..=2 {
                t.publish(&t.topic("t"), published, "x");
                assert_eq!(client.receive("x").qos, published.min(granted));
            }
        }
    });
}

/// [MQTT-3.8.4-3], [MQTT-3.8.4-3 v3.1.1]: the flow is not interrupted.
#[test]
fn an_identical_filter_replaces_its_subscription_and_loses_nothing() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        let mut publisher = t.client("publisher");
        for n in 0..30_u16 {
            publisher.send_publish(&publish(&t.topic("t"), 1, n + 1, &n.to_string()));
        }
        // While they are on their way the subscription is replaced again and again.
        let mut bytes = Vec::new();
        for id in 100..110 {
            quorate_jepsen::wire::encode::subscribe(&mut bytes, t.version, id, &[(&t.topic("t"), 1)]);
        }
        client.send(&bytes);
        let (mut received, mut subacks) = (Vec::new(), 0);
        while received.len() < 30 || subacks < 10 {
            let got = client.read();
            if got.first == 0x90 {
                subacks += 1;
            } else {
                let message = got.publish();
                client.ack(AckKind::Puback, message.id);
                received.push(String::from_utf8(message.payload).unwrap());
            }
        }
        assert_eq!(received, (0..30).map(|n: u16| n.to_string()).collect::<Vec<_>>());
        for n in 0..30 {
            publisher.expect_ack(AckKind::Puback, n + 1);
        }
        // One subscription, with the options of the last.
        t.publish(&t.topic("t"), 2, "after");
        assert_eq!(client.receive("after").qos, 1);
        client.expect_nothing();
    });
}

/// [MQTT-3.8.3-2 v3.1.1]: they are supported, so none is rejected.
#[test]
fn filters_with_wildcards_are_granted() {
    both(|t| {
        let mut client = t.client("c");
        let filters = [t.topic("+"), t.topic("#"), t.topic("a/+/b/#"), "+/+".to_owned(), "#".to_owned()];
        for filter in filters {
            client.subscribe(&filter, 1);
            assert_eq!(client.unsubscribe(&[&filter]).first, 0xb0);
        }
    });
}

/// [MQTT-3.8.3-1], [MQTT-3.8.3-1 v3.1.1], [MQTT-3.10.3-1], [MQTT-3.10.3-1 v3.1.1].
#[test]
fn filters_that_are_not_utf_8_end_the_connection() {
    both(|t| {
        for bad in [&b"\xff"[..], b"a\xc0\xaf", b"a\xed\xa0\x80", b"a\0"] {
            for (first, options) in [(0x82, &[0][..]), (0xa2, &[])] {
                let mut client = t.client("c");
                client.send(&with_payload(t, first, &[&field(bad)[..], options].concat()));
                client.expect_end(0x81);
            }
        }
    });
}

/// [MQTT-3.8.3-2], [MQTT-3.8.3-3 v3.1.1], [MQTT-3.10.3-2], [MQTT-3.10.3-2 v3.1.1].
#[test]
fn a_subscribe_or_unsubscribe_without_a_filter_ends_the_connection() {
    both(|t| {
        for first in [0x82, 0xa2] {
            let mut client = t.client("c");
            client.send(&with_payload(t, first, &[]));
            client.expect_end(0x82);
        }
    });
}

/// [MQTT-3.8.1-1], [MQTT-3.8.1-1 v3.1.1], [MQTT-3.10.1-1], [MQTT-3.10.1-1 v3.1.1]; the packet is good but for its flags.
#[test]
fn other_flags_of_subscribe_and_unsubscribe_end_the_connection() {
    both(|t| {
        for (kind, options) in [(0x80, &[0][..]), (0xa0, &[])] {
            for flags in (0..16).filter(|flags| *flags != 2) {
                let mut client = t.client("c");
                let payload = [&field(b"a")[..], options].concat();
                client.send(&with_payload(t, kind | flags, &payload));
                client.expect_end(0x81);
            }
        }
    });
}

/// [MQTT-3.8.3-5], [MQTT-3.8.3-4 v3.1.1].
#[test]
fn reserved_bits_of_the_options_end_the_connection() {
    both(|t| {
        let bad: &[u8] = if t.is_v5() { &[0x40, 0x80, 0xc1, 0x03] } else { &[0x04, 0x08, 0x10, 0x40, 0x80, 0x03] };
        for options in bad {
            let mut client = t.client("c");
            client.send(&with_payload(t, 0x82, &[&field(b"a")[..], &[*options]].concat()));
            client.expect_end(if t.is_v5() && *options == 3 { 0x82 } else { 0x81 });
        }
    });
}

/// [MQTT-3.10.4-1], [MQTT-3.10.4-1 v3.1.1]: those that differ stay.
#[test]
fn an_unsubscribe_deletes_the_same_filter_and_no_other() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("a/b"), 1);
        for other in ["a/+", "#", "a/B", "a/b/", "/a/b", "a/b/#"] {
            let ack = client.unsubscribe(&[&t.topic(other)]);
            assert_eq!(ack.codes(), if t.is_v5() { &[0x11][..] } else { &[] });
        }
        t.publish(&t.topic("a/b"), 1, "still");
        client.receive("still");
        let ack = client.unsubscribe(&[&t.topic("a/b")]);
        assert_eq!(ack.codes(), if t.is_v5() { &[0][..] } else { &[] });
        t.publish(&t.topic("a/b"), 1, "gone");
        client.expect_nothing();
    });
}

/// [MQTT-3.10.4-2], [MQTT-3.10.4-2 v3.1.1].
#[test]
fn nothing_is_added_for_a_client_after_its_unsuback() {
    both(|t| {
        let mut client = t.client("c");
        client.subscribe(&t.topic("t"), 2);
        client.unsubscribe(&[&t.topic("t")]);
        for qos in 0..=2 {
            t.publish(&t.topic("t"), qos, "x");
        }
        client.expect_nothing();
    });
}

/// [MQTT-3.10.4-3], [MQTT-3.10.4-3 v3.1.1].
#[test]
fn deliveries_that_began_are_finished_after_an_unsubscribe() {
    both(|t| {
        let (mut client, _) = t.resume("c");
        client.subscribe(&t.topic("t"), 2);
        t.publish(&t.topic("t"), 1, "one");
        t.publish(&t.topic("t"), 2, "two");
        let (one, two) = (client.message(), client.message());
        client.unsubscribe(&[&t.topic("t")]);
        client.ack(AckKind::Pubrec, two.id);
        client.expect_ack(AckKind::Pubrel, two.id);
        client.break_off();
        let (mut client, _) = t.resume("c");
        client.expect_ack(AckKind::Pubrel, two.id);
        assert_eq!(client.receive("one").id, one.id);
        client.ack(AckKind::Pubcomp, two.id);
        client.expect_nothing();
    });
}

/// [MQTT-3.10.4-4], [MQTT-3.10.4-5], [MQTT-3.10.4-4 v3.1.1], [MQTT-3.10.4-5 v3.1.1], [MQTT-2.2.1-6],
/// [MQTT-2.3.1-7 v3.1.1].
#[test]
fn an_unsubscribe_gets_an_unsuback_with_its_identifier_also_when_nothing_was_deleted() {
    both(|t| {
        let mut client = t.client("c");
        for id in [1_u16, 256, 65_535] {
            let properties = if t.is_v5() { &[0][..] } else { &[] };
            let filter = field(t.topic("nobody").as_bytes());
            client.send(&packet(0xa2, &[&id.to_be_bytes()[..], properties, &filter].concat()));
            let ack = client.read();
            assert_eq!((ack.first, ack.id()), (0xb0, id));
            assert_eq!(ack.codes(), if t.is_v5() { &[0x11][..] } else { &[] });
        }
    });
}

/// [MQTT-3.10.4-6], [MQTT-3.10.4-6 v3.1.1]; codes in the order of the filters [MQTT-3.11.3-1], of the list
/// [MQTT-3.11.3-2].
#[test]
fn the_filters_of_an_unsubscribe_act_one_after_the_other() {
    both(|t| {
        let mut client = t.client("c");
        let (a, b, c) = (t.topic("a"), t.topic("b"), t.topic("c"));
        client.subscribe_many(&[(&a, 1), (&c, 1)]);
        let ack = client.unsubscribe(&[&a, &b, &a, &c]);
        assert_eq!(ack.codes(), if t.is_v5() { &[0, 0x11, 0x11, 0][..] } else { &[] });
        for topic in [&a, &b, &c] {
            t.publish(topic, 1, "x");
        }
        client.expect_nothing();
    });
}

/// [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.1-2 v3.1.1], [MQTT-4.7.1-3 v3.1.1]; at least a character
/// [MQTT-4.7.3-1], [MQTT-4.7.3-1 v3.1.1].
#[test]
fn a_wildcard_that_is_not_a_whole_level_or_not_the_last_is_refused() {
    both(|t| {
        let mut client = t.client("c");
        let refused = [if t.is_v5() { 0x8f } else { 0x80 }];
        for filter in ["a#", "#/a", "a/#/b", "##", "/##", "a+", "+a", "a/b+/c", "++", "+#", ""] {
            assert_eq!(client.subscribe_many(&[(filter, 1)]), refused, "{filter}");
        }
        client.ping();
    });
}

/// Which topics a filter matches. [MQTT-4.7.3-4], [MQTT-4.7.3-4 v3.1.1]: character by character, nothing is normalised.
#[test]
fn a_filter_matches_level_by_level() {
    both(|t| {
        for (filter, matching, others) in [
            ("s/t/#", &["s/t", "s/t/", "s/t/u", "s/t/u/v"][..], &["s", "s/tt", "S/t"][..]),
            ("s/+", &["s/t", "s/"], &["s", "s/t/u"]),
            ("s/+/u", &["s/t/u", "s//u"], &["s/u", "s/t/u/", "s/t/v/u"]),
            ("+/+/#", &["a/b", "/b", "a/"], &["a"]),
            ("/", &["/"], &["//", "a/"]),
            ("caf\u{e9}", &["caf\u{e9}"], &["cafe\u{301}", "CAF\u{c9}", "cafe"]),
        ] {
            let mut client = t.client("c");
            client.subscribe(&t.topic(filter), 1);
            let mut publisher = t.client("publisher");
            for topic in others {
                publisher.publish(&t.topic(topic), 1, topic);
            }
            for topic in matching {
                publisher.publish(&t.topic(topic), 1, topic);
                client.receive(topic);
            }
        }
    });
}

/// [MQTT-4.7.2-1], [MQTT-4.7.2-1 v3.1.1].
#[test]
fn a_filter_that_begins_with_a_wildcard_does_not_match_topics_that_begin_with_a_dollar_sign() {
    both(|t| {
        let name = t.id("t");
        let topic = format!("$conformance/{name}");
        let mut client = t.client("c");
        client.subscribe_many(&[("#", 1), (&format!("+/{name}"), 1)]);
        t.publish(&topic, 1, "hidden");
        let mut explicit = t.client("explicit");
        explicit.subscribe("$conformance/+", 1);
        t.publish(&topic, 1, "seen");
        explicit.receive("seen");
        // What the first gets meanwhile comes from other tests, and from nothing that begins so.
        t.publish(&t.topic("end"), 1, "end");
        loop {
            let got = client.message();
            client.settle(&got);
            assert!(!got.topic.starts_with('$'), "{got:?}");
            if got.topic == t.topic("end") {
                break;
            }
        }
    });
}

/// [MQTT-4.7.3-3], [MQTT-4.7.3-3 v3.1.1]; the longest are served.
#[test]
fn names_and_filters_of_65_535_bytes_are_served() {
    both(|t| {
        let start = t.topic("");
        let longest = format!("{start}{}", "x".repeat(65_535 - start.len()));
        let mut client = t.client("c");
        client.subscribe(&longest, 1);
        t.publish(&longest, 1, "far away");
        assert_eq!(client.receive("far away").topic.len(), 65_535);
        let ack = client.unsubscribe(&[&longest]);
        assert_eq!(ack.codes(), if t.is_v5() { &[0][..] } else { &[] });
    });
}

/// [MQTT-4.7.3-2], [MQTT-4.7.3-2 v3.1.1], [MQTT-1.5.4-2], [MQTT-1.5.3-2 v3.1.1].
#[test]
fn names_and_filters_have_no_null_character() {
    both(|t| {
        let mut client = t.client("c");
        client.send_publish(&publish("a\0b", 0, 0, "x"));
        client.expect_end(0x81);
        for (first, options) in [(0x82, &[0][..]), (0xa2, &[])] {
            let mut client = t.client("c");
            client.send(&with_payload(t, first, &[&field(b"a\0b")[..], options].concat()));
            client.expect_end(0x81);
        }
    });
}

/// [MQTT-3.9.3-2 v3.1.1]: a refusal that has its own code on 5.0 is 0x80.
#[test]
fn a_refusal_is_0x80_for_a_3_1_1_client() {
    v4(|t| {
        let mut client = t.client("c");
        assert_eq!(client.subscribe_many(&[("a#", 1), (&t.topic("t"), 1)]), [0x80, 1]);
    });
}
