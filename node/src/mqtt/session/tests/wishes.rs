//! Idempotency keys and delayed publishes, as far as a connection has to do with them.

use quorate_store::message::MessageProperties;

use super::*;

fn keyed(qos: QoS, n: u16, keys: &[&str]) -> Publish {
    let user = keys.iter().map(|key| ("idempotency-key".to_owned(), (*key).to_owned())).collect();
    Publish { properties: Some(Box::new(MessageProperties { user, ..Default::default() })), ..publish(qos, n) }
}

fn to(topic: &str, publish: Publish) -> Publish {
    Publish { topic: Some(TopicName::new(topic).unwrap()), ..publish }
}

/// The acknowledgement of a PUBLISH with a key, to a client that says this of itself.
fn acknowledgement(connect: Connect) -> Outgoing {
    let mut rig = Rig::connecting(Version::V5, connect, MqttOptions::default());
    rig.outcome(0, Outcome::Connected(found()));
    rig.take_packets();
    rig.packet(Packet::Publish(keyed(QoS::AtLeastOnce, 1, &["k"])));
    rig.outcome(1, published(true));
    rig.take_packets().remove(0)
}

#[test]
fn the_acknowledgement_of_a_publish_with_a_key_tells_the_position() {
    let mut rig = Rig::open(Version::V5);
    let first = Position::new(40, 3);
    rig.packet(Packet::Publish(keyed(QoS::AtLeastOnce, 1, &["k"])));
    rig.packet(Packet::Publish(keyed(QoS::AtLeastOnce, 2, &["k"])));
    rig.packet(Packet::Publish(keyed(QoS::ExactlyOnce, 3, &["k"])));
    rig.packet(Packet::Publish(publish(QoS::AtLeastOnce, 4)));
    rig.outcome(1, Outcome::Published { position: first, matched: false });
    rig.outcome(2, Outcome::Repeated { position: first });
    rig.outcome(3, Outcome::Repeated { position: first });
    rig.outcome(4, published(true));
    let packets = rig.take_packets();
    let [
        Outgoing::PubAckAt(_, Reason::NO_MATCHING_SUBSCRIBERS, a),
        Outgoing::PubAckAt(_, Reason::SUCCESS, b),
        Outgoing::PubRecAt(_, Reason::SUCCESS, c),
        Outgoing::PubAck(_, Reason::SUCCESS),
    ] = &packets[..]
    else {
        panic!("{packets:?}")
    };
    assert_eq!((*a, *b, *c), (first, first, first));
    // Its exchange goes on like any other.
    rig.packet(Packet::PubRel { id: id(3) });
    rig.outcome(5, Outcome::Released { known: true });
    assert_eq!(rig.said(), [("pubcomp", 3, 0)]);
}

/// [MQTT-3.1.2-29], [MQTT-3.4.2-3], [MQTT-3.5.2-3]
#[test]
fn a_client_that_wants_no_user_properties_or_takes_no_long_packets_gets_a_bare_acknowledgement() {
    assert!(matches!(acknowledgement(hello(Version::V5)), Outgoing::PubAckAt(..)));
    let without = Connect { wants_problems: false, ..hello(Version::V5) };
    assert!(matches!(acknowledgement(without), Outgoing::PubAck(_, Reason::SUCCESS)));
    let whole = crate::mqtt::wire::encoded_len(Version::V5, &acknowledgement(hello(Version::V5)));
    let limited = |bytes: usize| Connect { packet_bytes_max: Some(bytes as u32), ..hello(Version::V5) };
    assert!(matches!(acknowledgement(limited(whole)), Outgoing::PubAckAt(..)));
    assert!(matches!(acknowledgement(limited(whole - 1)), Outgoing::PubAck(_, Reason::SUCCESS)));
}

#[test]
fn a_repeat_is_acknowledged_only_when_it_was_applied() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(keyed(QoS::AtLeastOnce, 1, &["k"])));
    rig.outcome(1, Outcome::Repeated { position: Position::new(NOW.applied + 1, 0) });
    assert_eq!(rig.said(), [("disconnect", 0, 0x83)]);
    assert_eq!(rig.out.counts.acks_before_commit, 1);
}

#[test]
fn a_key_that_is_none_and_a_delay_that_is_none_are_refused_in_their_turn() {
    let long = "x".repeat(257);
    for (publish, reason) in [
        (keyed(QoS::ExactlyOnce, 2, &[""]), 0x83),
        (keyed(QoS::ExactlyOnce, 2, &[&long]), 0x83),
        (keyed(QoS::ExactlyOnce, 2, &["k", "l"]), 0x83),
        (to("$delayed/x/t", publish(QoS::ExactlyOnce, 2)), 0x90),
        (to("$delayed/5", publish(QoS::ExactlyOnce, 2)), 0x90),
        (to("$delayed/5/", publish(QoS::ExactlyOnce, 2)), 0x90),
        (to("$delayed/5/$SYS/t", publish(QoS::ExactlyOnce, 2)), 0x87),
    ] {
        let mut rig = Rig::open(Version::V5);
        rig.packet(Packet::Publish(super::publish(QoS::AtLeastOnce, 1)));
        rig.packet(Packet::Publish(publish));
        assert_eq!(rig.out.commands.len(), 1, "nothing is proposed");
        assert!(rig.said().is_empty(), "the one before it comes first");
        rig.outcome(1, published(true));
        assert_eq!(rig.said(), [("puback", 1, 0), ("pubrec", 2, reason)]);
        assert_eq!(rig.out.counts.refused, 1);
    }
}

#[test]
fn what_the_log_refuses_is_a_reason_in_5_0_and_the_end_in_3_1_1() {
    let delayed = |version, qos| {
        let mut rig = Rig::open(version);
        rig.packet(Packet::Publish(to("$delayed/9999999/t", publish(qos, 1))));
        rig.outcome(1, Outcome::Refused(0x97));
        rig
    };
    assert_eq!(delayed(Version::V5, QoS::AtLeastOnce).said(), [("puback", 1, 0x97)]);
    assert_eq!(delayed(Version::V5, QoS::ExactlyOnce).said(), [("pubrec", 1, 0x97)]);
    let rig = delayed(Version::V311, QoS::AtLeastOnce);
    assert!(rig.session.is_over() && rig.out.closed == Some(Reason::QUOTA_EXCEEDED));
    let mut rig = Rig::open(Version::V311);
    rig.packet(Packet::Publish(to("$delayed/x/t", publish(QoS::AtLeastOnce, 1))));
    assert!(rig.session.is_over() && rig.out.closed == Some(Reason::TOPIC_NAME_INVALID));
}

#[test]
fn at_qos_0_they_go_through_the_log_and_what_is_refused_is_counted() {
    let mut rig = Rig::open(Version::V5);
    rig.packet(Packet::Publish(keyed(QoS::AtMostOnce, 0, &["k"])));
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (0, 2), "the next follows it");
    rig.outcome(1, Outcome::Repeated { position: Position::new(40, 3) });
    rig.outcome(2, published(true));
    rig.packet(Packet::Publish(to("$delayed/5/t", publish(QoS::AtMostOnce, 0))));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (0, 3));
    rig.outcome(3, Outcome::Refused(0x97));
    rig.packet(Packet::Publish(keyed(QoS::AtMostOnce, 0, &[""])));
    assert_eq!((rig.out.qos0.len(), rig.out.commands.len()), (0, 3));
    assert_eq!(rig.out.counts.refused, 2);
    rig.packet(Packet::Publish(publish(QoS::AtMostOnce, 0)));
    assert_eq!(rig.out.qos0.len(), 1);
    assert!(rig.said().is_empty() && !rig.session.is_over());
}

#[test]
fn a_will_is_not_delayed_by_its_topic() {
    let will = Will {
        delay_s: 0,
        topic: TopicName::new("$delayed/5/t").unwrap(),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: None,
        expiry_s: None,
        payload: Payload::default(),
    };
    let connect = Connect { will: Some(will), ..hello(Version::V5) };
    let mut rig = Rig::connecting(Version::V5, connect, MqttOptions::default());
    assert_eq!(rig.said(), [("connack", 0, 0x90)]);
}
