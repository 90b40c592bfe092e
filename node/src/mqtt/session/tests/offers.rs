//! What is offered and what is not: aliases that we set, availability, payload format, rates, keep alive, words.

use quorate_store::message::MessageProperties;

use super::*;
use crate::mqtt::packet::{Delivered, SentAlias};

fn open_with(version: Version, connect: Connect, options: MqttOptions) -> Rig {
    let mut rig = Rig::connecting(version, connect, options);
    rig.take_commands();
    rig.outcome(0, Outcome::Connected(found()));
    rig.take_packets();
    rig
}

fn on(topic: &str) -> SharedMessage {
    Arc::new(Message { topic: TopicName::new(topic).unwrap(), ..Arc::unwrap_or_clone(message(None)) })
}

fn sent(rig: &mut Rig) -> Vec<Delivered> {
    let packets = rig.take_packets().into_iter().map(|packet| match packet {
        Outgoing::Publish(delivered) => delivered,
        other => panic!("{other:?}"),
    });
    packets.collect()
}

fn alias(number: u16, is_known: bool) -> Option<SentAlias> {
    Some(SentAlias { number, is_known })
}

/// [MQTT-3.1.2-26], [MQTT-3.1.2-27], [MQTT-3.3.2-11]
#[test]
fn aliases_stay_within_what_the_client_takes_and_the_oldest_makes_room() {
    let taking = |topic_alias_max| Connect { topic_alias_max, receive_maximum: 100, ..hello(Version::V5) };
    let mut rig = open_with(Version::V5, taking(2), MqttOptions::default());
    let mut seq = 0..;
    let mut send = |rig: &mut Rig, topic: &str, qos: QoS| {
        let row = (qos > QoS::AtMostOnce).then(|| seq.next().unwrap());
        rig.deliver(row, qos, on(topic));
        let [delivered] = &sent(rig)[..] else { panic!() };
        delivered.alias
    };
    let (q0, q1, q2) = (QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce);
    assert_eq!(send(&mut rig, "topic/one", q0), alias(1, false));
    assert_eq!(send(&mut rig, "topic/one", q1), alias(1, true));
    assert_eq!(send(&mut rig, "topic/two", q2), alias(2, false));
    assert_eq!(send(&mut rig, "topic/one", q0), alias(1, true));
    assert_eq!(send(&mut rig, "topic/three", q1), alias(2, false), "two was used longest ago");
    assert_eq!(send(&mut rig, "topic/three", q1), alias(2, true));
    assert_eq!(send(&mut rig, "topic/two", q0), alias(1, false));
    assert_eq!(send(&mut rig, "t", q0), None, "no shorter with an alias");

    for (max, out_max) in [(0, 16), (5, 0)] {
        let options = MqttOptions { topic_alias_out_max: out_max, ..MqttOptions::default() };
        let mut rig = open_with(Version::V5, taking(max), options);
        rig.deliver(None, QoS::AtMostOnce, on("topic/one"));
        assert_eq!(sent(&mut rig)[0].alias, None);
    }
    let mut old = open_with(Version::V311, hello(Version::V311), MqttOptions::default());
    old.deliver(None, QoS::AtMostOnce, on("topic/one"));
    assert_eq!(sent(&mut old)[0].alias, None);
}

/// [MQTT-3.1.2-24], [MQTT-3.1.2-25]: what is not sent sets no alias, and an alias never makes a packet too large.
#[test]
fn a_packet_that_is_dropped_sets_no_alias_and_an_alias_drops_none() {
    // 7 bytes of payload and 9 of topic: 21 at QoS 0, 24 with a new alias, 15 with a known one.
    let limited = |bytes| Connect {
        topic_alias_max: 5,
        packet_bytes_max: Some(bytes),
        receive_maximum: 100,
        ..hello(Version::V5)
    };
    let large = |topic: &str| {
        let payload = Payload(Bytes::from(vec![b'x'; 20]));
        Arc::new(Message { payload, ..Arc::unwrap_or_clone(on(topic)) })
    };
    let mut rig = open_with(Version::V5, limited(24), MqttOptions::default());
    rig.deliver(None, QoS::AtMostOnce, large("topic/one"));
    assert!(sent(&mut rig).is_empty());
    assert_eq!(rig.out.counts.too_large, 1);
    rig.deliver(None, QoS::AtMostOnce, on("topic/one"));
    assert_eq!(sent(&mut rig)[0].alias, alias(1, false), "the one that was dropped has set none");
    // The alias alone is short enough for a payload that the topic is not.
    let more = |n| {
        let payload = Payload(Bytes::from(vec![b'x'; n]));
        Arc::new(Message { payload, ..Arc::unwrap_or_clone(on("topic/one")) })
    };
    rig.deliver(None, QoS::AtMostOnce, more(16));
    assert_eq!(sent(&mut rig)[0].alias, alias(1, true));

    let mut rig = open_with(Version::V5, limited(21), MqttOptions::default());
    for _ in 0..2 {
        rig.deliver(None, QoS::AtMostOnce, on("topic/one"));
        assert_eq!(sent(&mut rig)[0].alias, None, "with a new alias it would be too large");
    }
    assert_eq!(rig.out.counts.too_large, 0);

    let mut rig = open_with(Version::V5, limited(100), MqttOptions::default());
    rig.out.room = 0;
    rig.deliver(None, QoS::AtMostOnce, on("topic/one"));
    rig.deliver(Some(0), QoS::AtLeastOnce, on("topic/one"));
    assert!(sent(&mut rig).is_empty());
    rig.out.room = 1000;
    rig.drive(|session, _| session.writable());
    assert_eq!(sent(&mut rig)[0].alias, alias(1, false), "nor has one that found no room");
}

fn nothing_offered() -> MqttOptions {
    MqttOptions {
        qos_max: QoS::AtMostOnce,
        retain_available: false,
        wildcard_available: false,
        shared_available: false,
        subscription_identifiers_available: false,
        ..MqttOptions::default()
    }
}

/// [MQTT-3.2.2-9]: what CONNACK said is not offered is not taken.
#[test]
fn publishes_beyond_the_offer_end_the_connection() {
    for (sent, reason) in [
        (publish(QoS::AtLeastOnce, 1), 0x9B),
        (publish(QoS::ExactlyOnce, 1), 0x9B),
        (Publish { retain: true, ..publish(QoS::AtMostOnce, 0) }, 0x9A),
    ] {
        for version in [Version::V5, Version::V311] {
            let mut rig = open_with(version, hello(version), nothing_offered());
            rig.packet(Packet::Publish(sent.clone()));
            assert_eq!(rig.said(), [("disconnect", 0, reason)]);
            assert!(matches!(rig.take_commands()[..], [Command::Close(_)]) && rig.out.qos0.is_empty());
        }
    }
    let mut rig = open_with(Version::V5, hello(Version::V5), nothing_offered());
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!(rig.out.qos0.len(), 1);
}

fn will(topic: &str) -> Will {
    Will {
        delay_s: 0,
        topic: TopicName::new(topic).unwrap(),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: None,
        expiry_s: None,
        payload: Payload(Bytes::from_static(b"\xFF")),
    }
}

/// [MQTT-3.2.2-12], [MQTT-3.2.2-13], [MQTT-3.2.2-6]
#[test]
fn wills_beyond_the_offer_are_refused() {
    let text = Some(Box::new(MessageProperties { is_utf8: Some(true), ..Default::default() }));
    for (will, reason) in [
        (Will { qos: QoS::AtLeastOnce, ..will("w") }, 0x9B),
        (Will { retain: true, ..will("w") }, 0x9A),
        (Will { properties: text, ..will("w") }, 0x99),
        (will("$SYS/x"), 0x87),
    ] {
        for version in [Version::V5, Version::V311] {
            let connect = Connect { will: Some(will.clone()), ..hello(version) };
            let mut rig = Rig::connecting(version, connect, nothing_offered());
            assert_eq!(rig.said(), [("connack", 0, reason)]);
            assert!(rig.take_commands().is_empty() && rig.session.is_over());
        }
    }
    let connect = Connect { will: Some(will("w")), ..hello(Version::V5) };
    let mut rig = Rig::connecting(Version::V5, connect, nothing_offered());
    assert!(matches!(rig.take_commands()[..], [Command::Connect(_)]));
}

/// [MQTT-3.2.2-10], and [MQTT-3.8.3-2 v3.1.1]: a filter with wildcards is rejected.
#[test]
fn subscriptions_beyond_the_offer_are_lowered_or_refused() {
    let asked =
        SubscribeOptions { qos: QoS::ExactlyOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
    let subscribe = |filter: &str, identifier| {
        let filters =
            vec![Ok((TopicFilter::new("plain").unwrap(), asked)), Ok((TopicFilter::new(filter).unwrap(), asked))];
        Packet::Subscribe(Subscribe { id: id(1), identifier, filters })
    };
    for (filter, identifier, reason) in
        [("a/#", None, 0xA2), ("+", None, 0xA2), ("$share/g/a", None, 0x9E), ("a", Some(3), 0xA1)]
    {
        let mut rig = open_with(Version::V5, hello(Version::V5), nothing_offered());
        rig.packet(subscribe(filter, identifier));
        assert_eq!(rig.said(), [("disconnect", 0, reason)]);
    }
    for (version, filter) in [(Version::V5, "a"), (Version::V311, "a/#"), (Version::V311, "$share/g/a")] {
        let mut rig = open_with(version, hello(version), nothing_offered());
        rig.packet(subscribe(filter, None));
        let [Command::Subscribe(subscribe)] = &rig.take_commands()[..] else { panic!() };
        assert!(subscribe.filters.iter().all(|(_, o)| o.qos == QoS::AtMostOnce), "accepted with any QoS, granted 0");
        assert_eq!(subscribe.filters.len(), if version.is_v5() { 2 } else { 1 });
    }
}

fn utf8(payload: &'static [u8], is_utf8: bool, qos: QoS, n: u16) -> Packet {
    let properties = Some(Box::new(MessageProperties { is_utf8: Some(is_utf8), ..Default::default() }));
    Packet::Publish(Publish { properties, payload: Payload(Bytes::from_static(payload)), ..publish(qos, n) })
}

#[test]
fn a_payload_that_is_not_what_it_claims_is_refused_in_its_turn() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 1)));
    rig.packet(utf8(b"\xC3\x28", true, QoS::AtLeastOnce, 2));
    rig.packet(utf8(b"\xC3\x28", true, QoS::ExactlyOnce, 3));
    rig.packet(utf8(b"\xC3\x28", true, QoS::AtMostOnce, 0));
    assert!(rig.said().is_empty() && rig.out.qos0.is_empty());
    assert_eq!((rig.take_commands().len(), rig.out.counts.refused), (1, 3));
    rig.outcome(1, published(true));
    assert_eq!(rig.said(), [("puback", 1, 0), ("puback", 2, 0x99), ("pubrec", 3, 0x99)]);
    rig.packet(utf8("ü".as_bytes(), true, QoS::AtLeastOnce, 4));
    rig.packet(utf8(b"\xC3\x28", false, QoS::AtLeastOnce, 5));
    assert_eq!(rig.take_commands().len(), 2, "UTF-8, and what claims nothing, is taken");
    let options = MqttOptions { payload_utf8_check: false, ..MqttOptions::default() };
    let mut rig = open_with(Version::V5, hello(Version::V5), options);
    rig.packet(utf8(b"\xC3\x28", true, QoS::AtLeastOnce, 1));
    assert_eq!(rig.take_commands().len(), 1);
}

/// [MQTT-3.3.4-7]: what was refused counts for Receive Maximum no longer.
#[test]
fn refused_publishes_give_their_place_back() {
    let options = MqttOptions { receive_maximum: 1, ..MqttOptions::default() };
    let mut rig = open_with(Version::V5, hello(Version::V5), options);
    for n in 1..=3 {
        rig.packet(utf8(b"\xFF", true, QoS::ExactlyOnce, n));
        rig.packet(utf8(b"\xFF", true, QoS::AtLeastOnce, n + 10));
    }
    assert!(!rig.session.is_over());
    rig.packet(Packet::Publish(publish(QoS::ExactlyOnce, 20)));
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 21)));
    assert_eq!(rig.said().last(), Some(&("disconnect", 0, 0x93)));
}

/// [MQTT-3.3.5-2 v3.1.1]: closed, because an acknowledgement would promise what was not done.
#[test]
fn the_servers_own_topics_are_not_published_to() {
    let to = |topic: &str, qos, n| {
        Packet::Publish(Publish { topic: Some(TopicName::new(topic).unwrap()), ..publish(qos, n) })
    };
    let mut rig = Rig::open(Version::V5);
    rig.packet(to("$SYS/broker/uptime", QoS::AtLeastOnce, 1));
    rig.packet(to("$SYS", QoS::ExactlyOnce, 2));
    rig.packet(to("$delayed/5/$SYS/x", QoS::AtMostOnce, 0));
    assert_eq!(rig.said(), [("puback", 1, 0x87), ("pubrec", 2, 0x87)]);
    assert!(rig.take_commands().is_empty() && rig.out.qos0.is_empty());
    assert_eq!(rig.out.counts.refused, 3);
    rig.packet(to("$SYSTEM/x", QoS::AtMostOnce, 0));
    rig.packet(to("$other", QoS::AtMostOnce, 0));
    assert_eq!(rig.out.qos0.len(), 2, "others' topics");
    let mut rig = Rig::open(Version::V311);
    rig.packet(to("$SYS/x", QoS::AtMostOnce, 0));
    assert!(!rig.session.is_over() && rig.out.qos0.is_empty());
    rig.packet(to("$SYS/x", QoS::AtLeastOnce, 1));
    assert!(rig.session.is_over() && rig.out.closed == Some(Reason::NOT_AUTHORIZED));
}

#[test]
fn who_publishes_too_fast_is_not_read_for_a_while_and_lives() {
    let options = MqttOptions { publish_rate_max: 2, ..MqttOptions::default() };
    let mut rig = open_with(Version::V5, Connect { keep_alive_s: 1, ..hello(Version::V5) }, options);
    for n in 1..=5 {
        rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, n)));
    }
    assert_eq!(rig.take_commands().len(), 5, "what was read is taken");
    assert!(!rig.session.wants_packets());
    assert_eq!(rig.session.throttled_until_ms(), Some(NOW.mono_ms + 1500), "three of five, at two a second");
    assert_eq!(rig.out.counts.throttled, 3);
    // The keep alive is due at the same time, and does not count: it was not heard.
    let later = Now { mono_ms: NOW.mono_ms + 1500, ..NOW };
    rig.session.tick(later, &mut rig.out);
    assert!(rig.session.wants_packets() && !rig.session.is_over());
    assert_eq!(rig.session.deadline_ms(), Some(later.mono_ms + 1500));
    let options = MqttOptions { publish_bytes_rate_max: 10, ..MqttOptions::default() };
    let mut rig = open_with(Version::V311, hello(Version::V311), options);
    let payload = Payload(Bytes::from_static(b"nineteen bytes long"));
    rig.packet(Packet::Publish(Publish { payload, ..publish(QoS::AtMostOnce, 0) }));
    assert_eq!(rig.session.throttled_until_ms(), Some(NOW.mono_ms + 1000), "20 bytes, topic and all");
    rig.packet(Packet::PingReq);
    assert_eq!(rig.said(), [("pingresp", 0, 0)]);
}

/// [MQTT-3.3.4-10], [MQTT-4.9.0-2], [MQTT-4.9.0-3]
#[test]
fn a_full_window_holds_nothing_back_but_publishes() {
    let mut rig = open_with(Version::V5, Connect { receive_maximum: 1, ..hello(Version::V5) }, MqttOptions::default());
    rig.deliver(Some(0), QoS::ExactlyOnce, message(None));
    rig.deliver(Some(1), QoS::AtLeastOnce, message(None));
    assert_eq!(rig.said(), [("publish", 1, 0)]);
    rig.deliver(None, QoS::AtMostOnce, message(None));
    rig.packet(Packet::PingReq);
    assert_eq!(rig.said(), [("publish", 0, 0), ("pingresp", 0, 0)]);
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 9)));
    rig.packet(Packet::Unsubscribe { id: id(8), filters: vec![Err(Reason(0x8F))] });
    rig.outcome(1, published(true));
    assert_eq!(rig.said(), [("puback", 9, 0), ("unsuback", 8, 0x8F)]);
    rig.take_commands();
    rig.packet(Packet::PubRec { id: id(1), reason: Reason::SUCCESS });
    rig.outcome(3, Outcome::Done);
    assert_eq!(rig.said(), [("pubrel", 1, 0)], "still full: until PUBCOMP");
    rig.packet(Packet::PubComp { id: id(1) });
    rig.outcome(4, Outcome::Done);
    assert_eq!(rig.said(), [("publish", 2, 0)]);
}

/// [MQTT-3.2.2-22], [MQTT-3.1.2-22]
#[test]
fn keep_alive_is_held_within_its_range() {
    let options =
        MqttOptions { keep_alive_s_min: 10, keep_alive_s_max: 100, keep_alive_s_implied: 7, ..MqttOptions::default() };
    for (version, asked, told, counts) in [
        (Version::V5, 5, Some(10), 10),
        (Version::V5, 10, None, 10),
        (Version::V5, 50, None, 50),
        (Version::V5, 101, Some(100), 100),
        (Version::V5, 0, Some(100), 100),
        (Version::V311, 5, None, 5),
        (Version::V311, 500, None, 500),
        (Version::V311, 0, None, 7),
    ] {
        let connect = Connect { keep_alive_s: asked, ..hello(version) };
        let mut rig = Rig::connecting(version, connect, options.clone());
        rig.outcome(0, Outcome::Connected(found()));
        let [Outgoing::ConnAck(ack)] = &rig.take_packets()[..] else { panic!() };
        assert_eq!(ack.granted.as_ref().and_then(|g| g.keep_alive_s), told, "{version:?} {asked}");
        assert_eq!(rig.session.deadline_ms(), Some(NOW.mono_ms + counts * 1500), "{version:?} {asked}");
    }
    let mut rig =
        Rig::connecting(Version::V311, Connect { keep_alive_s: 0, ..hello(Version::V311) }, MqttOptions::default());
    rig.outcome(0, Outcome::Connected(found()));
    assert_eq!(rig.session.deadline_ms(), None);
}

/// [MQTT-3.1.2-28]
#[test]
fn response_information_is_for_those_who_ask() {
    let small = Connect { packet_bytes_max: Some(25), wants_response_information: true, ..hello(Version::V5) };
    let options =
        MqttOptions { response_topic_prefix: "a prefix of some length/".to_owned(), ..MqttOptions::default() };
    let mut rig = Rig::connecting(Version::V5, small, options);
    rig.outcome(0, Outcome::Connected(found()));
    let [Outgoing::ConnAck(ack)] = &rig.take_packets()[..] else { panic!() };
    assert!(ack.granted.as_ref().unwrap().response_information.is_none(), "left out where it does not fit");
    let told = |version, wants_response_information, prefix: &str| {
        let options = MqttOptions { response_topic_prefix: prefix.to_owned(), ..MqttOptions::default() };
        let mut rig = Rig::connecting(version, Connect { wants_response_information, ..hello(version) }, options);
        rig.outcome(0, Outcome::Connected(found()));
        let [Outgoing::ConnAck(ack)] = &rig.take_packets()[..] else { panic!() };
        ack.granted.as_ref().and_then(|g| g.response_information.as_deref().map(str::to_owned))
    };
    assert_eq!(told(Version::V5, true, "replies/").as_deref(), Some("replies/"));
    assert_eq!(told(Version::V5, false, "replies/"), None);
    assert_eq!(told(Version::V5, true, ""), None);
}

/// [MQTT-3.1.2-29]
#[test]
fn reasons_in_words_go_where_the_client_wants_them() {
    let refused = Outgoing::PubAck(id(1), Reason::QUOTA_EXCEEDED);
    let bye = Outgoing::Disconnect(Reason::KEEP_ALIVE_TIMEOUT, None);
    let fine = Outgoing::PubAck(id(1), Reason::SUCCESS);
    let rig = open_with(Version::V5, hello(Version::V5), MqttOptions::default());
    assert!(rig.session.reason_string(&refused).is_some() && rig.session.reason_string(&bye).is_some());
    assert!(rig.session.reason_string(&fine).is_none());
    let quiet = Connect { wants_problems: false, ..hello(Version::V5) };
    let rig = open_with(Version::V5, quiet, MqttOptions::default());
    assert!(rig.session.reason_string(&refused).is_none() && rig.session.reason_string(&bye).is_some());
    let rig = open_with(Version::V311, hello(Version::V311), MqttOptions::default());
    assert!(rig.session.reason_string(&bye).is_none());
    // What was wrong with the bytes is said as it was found.
    let mut rig = open_with(Version::V5, hello(Version::V5), MqttOptions::default());
    rig.drive(|session, out| session.reject(Reject::malformed("what is wrong"), out));
    let bye = rig.take_packets();
    assert_eq!(rig.session.reason_string(&bye[0]), Some("what is wrong"));
}
