use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::Bytes;
use ntex::codec::{Decoder as _, Encoder as _};
use ntex::util::{BytePages, ByteString, BytesMut};
use ntex_mqtt::{v3, v5};
use quorate_store::codec::Payload;
use quorate_store::ids::{ClusterTime, PacketId, Position, QoS};
use quorate_store::message::{Message, MessageProperties};

use super::*;
use crate::mqtt::packet::{AuthData, ConnAck, Delivered, Granted, Offered, Outgoing, Publish, Secret, SentAlias};
use crate::mqtt::reason::Reason;

fn id(n: u16) -> PacketId {
    PacketId(NonZeroU16::new(n).unwrap())
}

fn decode(version: Version, bytes: &[u8]) -> Result<Vec<Packet>, Reject> {
    let wire = Wire::new(version, 1 << 20);
    let mut src = BytesMut::from(bytes);
    let mut packets = Vec::new();
    while let Some(packet) = wire.decode(&mut src)? {
        packets.push(packet);
    }
    assert!(src.is_empty(), "{} bytes are left", src.len());
    Ok(packets)
}

/// Encodes with the exact length promised.
fn encode_one(version: Version, packet: &Outgoing) -> BytesMut {
    let mut pages = BytePages::default();
    encode(version, packet, &mut pages);
    assert_eq!(pages.len(), encoded_len(version, packet), "{packet:?}");
    BytesMut::from(pages)
}

fn delivered(qos: QoS, payload: usize, properties: Option<MessageProperties>) -> Delivered {
    Delivered {
        dup: qos != QoS::AtMostOnce,
        qos,
        retain: true,
        id: (qos != QoS::AtMostOnce).then(|| id(513)),
        expiry_s: Some(77),
        identifiers: Arc::from([1, 300]),
        alias: None,
        message: Arc::new(Message {
            position: Position::new(1, 0),
            topic: TopicName::new("some/topic").unwrap(),
            qos,
            retain: true,
            published_at: ClusterTime(0),
            expires_at: None,
            properties: properties.map(Box::new),
            payload: Payload(Bytes::from(vec![7; payload])),
        }),
    }
}

fn properties() -> MessageProperties {
    MessageProperties {
        is_utf8: Some(true),
        content_type: Some("text".into()),
        response_topic: Some("re/ply".into()),
        correlation_data: Some(vec![0, 255]),
        user: vec![("b".into(), "2".into()), ("a".into(), "1".into()), ("b".into(), "2".into())],
    }
}

#[test]
fn a_delivery_is_what_an_independent_codec_reads() {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for payload in [0, 100, 127, 20_000, 2_100_000] {
            let d = delivered(qos, payload, Some(properties()));
            let mut bytes = encode_one(Version::V5, &Outgoing::Publish(d.clone()));
            let codec = v5::codec::Codec::new();
            let Ok(Some(v5::codec::Decoded::Publish(p, body, _))) = codec.decode(&mut bytes) else { panic!("{qos:?}") };
            assert_eq!((p.dup, p.retain, u8::from(p.qos)), (d.dup, true, qos as u8));
            assert_eq!((p.packet_id, &*p.topic), (d.id.map(|id| id.0), "some/topic"));
            assert_eq!(&body[..], &d.message.payload[..]);
            let got = p.properties;
            assert_eq!(got.message_expiry_interval.map(std::num::NonZeroU32::get), Some(77));
            assert_eq!(got.subscription_ids.iter().map(|id| id.get()).collect::<Vec<_>>(), [1, 300]);
            assert!(got.is_utf8_payload);
            assert_eq!(got.content_type.as_deref(), Some("text"));
            assert_eq!(got.response_topic.as_deref(), Some("re/ply"));
            assert_eq!(got.correlation_data.as_deref(), Some(&[0, 255][..]));
            let user: Vec<_> = got.user_properties.iter().map(|(k, v)| (&**k, &**v)).collect();
            assert_eq!(user, [("b", "2"), ("a", "1"), ("b", "2")], "unaltered and in order");

            let mut bytes = encode_one(Version::V311, &Outgoing::Publish(d.clone()));
            let codec = v3::codec::Codec::new();
            let Ok(Some(v3::codec::Decoded::Publish(p, body, _))) = codec.decode(&mut bytes) else { panic!("{qos:?}") };
            assert_eq!((p.dup, p.retain, u8::from(p.qos), p.packet_id), (d.dup, true, qos as u8, d.id.map(|id| id.0)));
            assert_eq!((&*p.topic, &body[..]), ("some/topic", &d.message.payload[..]));
        }
    }
}

#[test]
fn what_mqtt_cannot_carry_has_no_length() {
    let long = MessageProperties { content_type: Some("x".repeat(65_536)), ..MessageProperties::default() };
    let packet = Outgoing::Publish(delivered(QoS::AtMostOnce, 1, Some(long)));
    assert_eq!(encoded_len(Version::V5, &packet), usize::MAX);
    let mut pages = BytePages::default();
    encode(Version::V311, &packet, &mut pages);
    assert!(!pages.is_empty(), "3.1.1 has no properties");
}

fn auth() -> Box<AuthData> {
    let data = Some(Secret(Bytes::from_static(b"data")));
    Box::new(AuthData { method: "SCRAM-SHA-256".into(), data })
}

#[test]
fn every_other_packet_is_what_an_independent_codec_reads() {
    let granted = Granted {
        expiry_s: Some(5),
        receive_maximum: 10,
        packet_bytes_max: 1 << 20,
        client_id: Some("auto-1".into()),
        topic_alias_max: 3,
        keep_alive_s: Some(9),
        offered: Offered { qos_max: QoS::ExactlyOnce, retain: true, wildcards: true, identifiers: true, shared: true },
        response_information: None,
        auth: Some(auth()),
    };
    let connack = |reason, granted, server_reference: Option<&str>| {
        let session_present = reason == Reason::SUCCESS;
        let server_reference = server_reference.map(Arc::from);
        Outgoing::ConnAck(Box::new(ConnAck { session_present, reason, granted, server_reference }))
    };
    for packet in [
        connack(Reason::SUCCESS, Some(granted), None),
        connack(Reason::SERVER_UNAVAILABLE, None, None),
        connack(Reason::USE_ANOTHER_SERVER, None, Some("other:1883")),
        Outgoing::Auth(Reason::CONTINUE_AUTHENTICATION, auth()),
        Outgoing::PubAck(id(1), Reason::SUCCESS),
        Outgoing::PubAck(id(1), Reason::QUOTA_EXCEEDED),
        Outgoing::PubRec(id(2), Reason::NO_MATCHING_SUBSCRIBERS),
        Outgoing::PubAckAt(id(1), Reason::SUCCESS, Position::new(7, 3)),
        Outgoing::PubRecAt(id(2), Reason::NO_MATCHING_SUBSCRIBERS, Position::new((1 << 44) - 1, 1 << 19)),
        Outgoing::PubRel(id(3), Reason::SUCCESS),
        Outgoing::PubComp(id(4), Reason::PACKET_IDENTIFIER_NOT_FOUND),
        Outgoing::SubAck(id(5), vec![Reason(0), Reason(2), Reason::TOPIC_FILTER_INVALID]),
        Outgoing::UnsubAck(id(6), vec![Reason::SUCCESS, Reason::NO_SUBSCRIPTION_EXISTED]),
        Outgoing::PingResp,
        Outgoing::Disconnect(Reason::SESSION_TAKEN_OVER, None),
        Outgoing::Disconnect(Reason::USE_ANOTHER_SERVER, Some("other:1883 third:1883".into())),
    ] {
        let mut bytes = encode_one(Version::V5, &packet);
        let copy = bytes.clone();
        let codec = v5::codec::Codec::new();
        let Ok(Some(v5::codec::Decoded::Packet(read, _))) = codec.decode(&mut bytes) else {
            panic!("{packet:?}: {copy:?}")
        };
        assert!(bytes.is_empty());
        if let (v5::codec::Packet::ConnectAck(ack), Outgoing::ConnAck(sent)) = (&read, &packet) {
            assert_eq!(u8::from(ack.reason_code), sent.reason.0);
            assert_eq!(ack.server_reference.as_deref(), sent.server_reference.as_deref());
            if sent.reason == Reason::SUCCESS {
                assert_eq!(ack.assigned_client_id.as_deref(), Some("auto-1"));
                assert_eq!((ack.receive_max.get(), ack.topic_alias_max), (10, 3));
                assert_eq!((ack.session_expiry_interval_secs, ack.server_keepalive_sec), (Some(5), Some(9)));
                assert_eq!(ack.max_packet_size, Some(1 << 20));
                assert!(ack.shared_subscription_available && ack.wildcard_subscription_available);
            }
        }
        if let (v5::codec::Packet::PublishAck(a), Outgoing::PubAckAt(id, reason, position)) = (&read, &packet) {
            assert_eq!((a.packet_id, u8::from(a.reason_code)), (id.0, reason.0));
            let [(name, value)] = &a.properties[..] else { panic!("{a:?}") };
            assert_eq!((&**name, &**value), ("position", position.to_string().as_str()));
        }
        if let (v5::codec::Packet::Disconnect(d), Outgoing::Disconnect(reason, reference)) = (&read, &packet) {
            assert_eq!(u8::from(d.reason_code), reason.0);
            assert_eq!(d.server_reference.as_deref(), reference.as_deref());
        }
        if let (v5::codec::Packet::Auth(a), Outgoing::Auth(reason, sent)) = (&read, &packet) {
            assert_eq!((u8::from(a.reason_code), a.auth_method.as_deref()), (reason.0, Some(sent.method.as_str())));
            assert_eq!(a.auth_data.as_deref(), Some(&b"data"[..]));
        }
        let mut bytes = encode_one(Version::V311, &packet);
        if matches!(packet, Outgoing::Disconnect(..) | Outgoing::Auth(..)) {
            assert!(bytes.is_empty(), "3.1.1 has no such packet from a server");
        } else {
            let codec = v3::codec::Codec::new();
            assert!(matches!(codec.decode(&mut bytes), Ok(Some(v3::codec::Decoded::Packet(..)))), "{packet:?}");
        }
    }
}

/// [MQTT-3.3.2-11], [MQTT-3.1.2-24]
#[test]
fn an_alias_comes_with_the_topic_and_then_alone_and_its_length_is_exact() {
    for is_known in [false, true] {
        let mut d = delivered(QoS::AtLeastOnce, 120, Some(properties()));
        let plain = encoded_len(Version::V5, &Outgoing::Publish(d.clone()));
        d.alias = Some(SentAlias { number: 300, is_known });
        let mut bytes = encode_one(Version::V5, &Outgoing::Publish(d.clone()));
        assert_eq!(bytes.len(), if is_known { plain + 3 - "some/topic".len() } else { plain + 3 });
        let codec = v5::codec::Codec::new();
        let Ok(Some(v5::codec::Decoded::Publish(p, ..))) = codec.decode(&mut bytes) else { panic!() };
        assert_eq!(p.properties.topic_alias.map(|n| n.get()), Some(300));
        assert_eq!(&*p.topic, if is_known { "" } else { "some/topic" });
        let old = encode_one(Version::V311, &Outgoing::Publish(d));
        assert!(old.windows(10).any(|w| w == b"some/topic"), "3.1.1 has no aliases");
    }
}

/// [MQTT-3.2.2-9]
#[test]
fn connack_tells_what_is_not_offered_and_only_that() {
    let granted = |offered, response_information: Option<&str>| {
        let response_information = response_information.map(Box::from);
        let granted = Granted {
            expiry_s: None,
            receive_maximum: u16::MAX,
            packet_bytes_max: 1 << 20,
            client_id: None,
            topic_alias_max: 0,
            keep_alive_s: None,
            offered,
            response_information,
            auth: None,
        };
        let ack =
            ConnAck { session_present: false, reason: Reason::SUCCESS, granted: Some(granted), server_reference: None };
        Outgoing::ConnAck(Box::new(ack))
    };
    let all = Offered { qos_max: QoS::ExactlyOnce, retain: true, wildcards: true, identifiers: true, shared: true };
    assert_eq!(&encode_one(Version::V5, &granted(all, None))[..], b"\x20\x08\0\0\x05\x27\0\x10\0\0");
    let none =
        Offered { qos_max: QoS::AtLeastOnce, retain: false, wildcards: false, identifiers: false, shared: false };
    let mut bytes = encode_one(Version::V5, &granted(none, Some("replies/")));
    let codec = v5::codec::Codec::new();
    let Ok(Some(v5::codec::Decoded::Packet(v5::codec::Packet::ConnectAck(ack), _))) = codec.decode(&mut bytes) else {
        panic!()
    };
    assert_eq!(ack.max_qos, ntex_mqtt::QoS::AtLeastOnce);
    assert!(!ack.retain_available && !ack.wildcard_subscription_available && !ack.shared_subscription_available);
    assert!(!ack.subscription_identifiers_available);
    assert_eq!(ack.response_info.as_deref(), Some("replies/"));
}

/// A Reason String on each packet that can have one, with its exact length; none in 3.1.1.
#[test]
fn reason_strings_are_what_an_independent_codec_reads() {
    use v5::codec::Packet as P;
    let connack = |reason, server_reference: Option<&str>| {
        let server_reference = server_reference.map(Arc::from);
        Outgoing::ConnAck(Box::new(ConnAck { session_present: false, reason, granted: None, server_reference }))
    };
    for why in ["short".to_owned(), "x".repeat(300)] {
        for packet in [
            connack(Reason::SERVER_UNAVAILABLE, None),
            connack(Reason::USE_ANOTHER_SERVER, Some("other:1883")),
            Outgoing::PubAck(id(1), Reason::QUOTA_EXCEEDED),
            Outgoing::PubRec(id(2), Reason::QUOTA_EXCEEDED),
            Outgoing::PubRel(id(3), Reason::PACKET_IDENTIFIER_NOT_FOUND),
            Outgoing::PubComp(id(4), Reason::SUCCESS),
            Outgoing::SubAck(id(5), vec![Reason(0), Reason::QUOTA_EXCEEDED]),
            Outgoing::UnsubAck(id(6), vec![Reason::SUCCESS, Reason::TOPIC_FILTER_INVALID]),
            Outgoing::Disconnect(Reason::SESSION_TAKEN_OVER, None),
            Outgoing::Disconnect(Reason::USE_ANOTHER_SERVER, Some("other:1883".into())),
        ] {
            let mut pages = BytePages::default();
            encode_with(Version::V5, &packet, Some(&why), &mut pages);
            assert_eq!(pages.len(), encoded_len_with(Version::V5, &packet, Some(&why)), "{packet:?}");
            let codec = v5::codec::Codec::new();
            let Ok(Some(v5::codec::Decoded::Packet(read, _))) = codec.decode(&mut BytesMut::from(pages)) else {
                panic!("{packet:?}")
            };
            let said = match read {
                P::ConnectAck(ack) => ack.reason_string,
                P::PublishAck(a) => a.reason_string,
                P::PublishReceived(a) => a.reason_string,
                P::PublishRelease(a) => a.reason_string,
                P::PublishComplete(a) => a.reason_string,
                P::SubscribeAck(a) => a.reason_string,
                P::UnsubscribeAck(a) => a.reason_string,
                P::Disconnect(d) => d.reason_string,
                other => panic!("{other:?}"),
            };
            assert_eq!(said.as_deref(), Some(why.as_str()), "{packet:?}");
            let mut old = BytePages::default();
            encode_with(Version::V311, &packet, Some(&why), &mut old);
            assert_eq!(BytesMut::from(old), encode_one(Version::V311, &packet), "3.1.1 has none");
        }
    }
}

/// [MQTT-4.7.3-3] and a bound of ours.
#[test]
fn topics_above_the_bound_of_levels_are_refused() {
    let wire = || Wire::new(Version::V5, 1 << 20).with_topic_levels_max(2);
    let decode = |bytes: &[u8]| wire().decode(&mut BytesMut::from(bytes));
    assert!(decode(b"\x30\x07\x00\x03a/b\x00x").is_ok());
    assert_eq!(decode(b"\x30\x09\x00\x05a/b/c\x00x").map_err(|r| r.reason), Err(Reason::TOPIC_NAME_INVALID));
    let packet = decode(b"\x82\x11\x00\x01\x00\x00\x03a/#\x01\x00\x05a/b/#\x01").unwrap();
    let Some(Packet::Subscribe(subscribe)) = packet else { panic!("{packet:?}") };
    let reasons: Vec<_> = subscribe.filters.iter().map(|f| f.as_ref().err().map(|r| r.0)).collect();
    assert_eq!(reasons, [None, Some(0x8F)]);
}

#[test]
fn message_expiry_0_and_payload_format_0_survive() {
    let packets = decode(Version::V5, b"\x30\x0C\x00\x01a\x07\x01\x00\x02\x00\x00\x00\x00x").unwrap();
    let [Packet::Publish(Publish { expiry_s, properties, .. })] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(*expiry_s, Some(0));
    assert_eq!(properties.as_ref().and_then(|p| p.is_utf8), Some(false));
    let will = b"\x10\x1A\x00\x04MQTT\x05\x06\x00\x3C\x00\x00\x01c\x05\x02\x00\x00\x00\x00\x00\x01w\x00\x01m";
    let packets = decode(Version::V5, will).unwrap();
    let [Packet::Connect(connect)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(connect.will.as_ref().map(|w| w.expiry_s), Some(Some(0)));
}

#[test]
fn a_publish_in_pieces_is_one_packet() {
    let mut pages = BytePages::default();
    let publish = v5::codec::Publish {
        topic: ByteString::from_static("t"),
        payload_size: 50_000,
        ..v5::codec::Publish::default()
    };
    let payload = ntex::util::Bytes::from(vec![3; 50_000]);
    let codec = v5::codec::Codec::new();
    codec.encodev(v5::codec::Encoded::Publish(publish, Some(payload)), &mut pages).unwrap();
    let whole = BytesMut::from(pages);
    let wire = Wire::new(Version::V5, 1 << 20);
    let mut src = BytesMut::new();
    let mut packets = Vec::new();
    for piece in whole.chunks(777) {
        src.extend_from_slice(piece);
        packets.extend(wire.decode(&mut src).unwrap());
    }
    let [Packet::Publish(publish)] = &packets[..] else { panic!("{} packets", packets.len()) };
    assert_eq!(publish.payload.0.len(), 50_000);
}

#[test]
fn the_header_of_3_1_is_understood() {
    let connect = b"\x10\x12\x00\x06MQIsdp\x03\x02\x00\x3C\x00\x04name";
    let packets = decode(Version::V31, connect).unwrap();
    let [Packet::Connect(connect)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((connect.client_id.as_str(), connect.clean_start, connect.keep_alive_s), ("name", true, 60));
    let packets = decode(Version::V31, b"\x8A\x06\x00\x01\x00\x01a\x01\x6A\x02\x00\x07").unwrap();
    assert!(matches!(&packets[..], [Packet::Subscribe(_), Packet::PubRel { .. }]));
}

#[test]
fn a_filter_that_is_not_offered_is_answered_not_fatal() {
    let packets =
        decode(Version::V5, b"\x82\x1B\x00\x01\x00\x00\x0A$share//ab\x01\x00\x03a/#\x01\x00\x02a#\x01").unwrap();
    let [Packet::Subscribe(subscribe)] = &packets[..] else { panic!("{packets:?}") };
    let reasons: Vec<_> = subscribe.filters.iter().map(|f| f.as_ref().err().map(|r| r.0)).collect();
    assert_eq!(reasons, [Some(0x8F), None, Some(0x8F)]);
}
