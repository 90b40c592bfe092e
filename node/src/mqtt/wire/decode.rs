//! From the codec's packets to ours. What is kept is copied once into buffers of its own size, so that a
//! packet in the log does not hold a read buffer of the socket.

use bytes::Bytes;
use ntex::codec::Decoder;
use ntex::util::{ByteString, BytesMut};
use ntex_mqtt::error::DecodeError;
use ntex_mqtt::{v3, v5};
use quorate_store::codec::Payload;
use quorate_store::command::{SubscribeOptions, Will};
use quorate_store::ids::{PacketId, QoS};
use quorate_store::message::MessageProperties;
use quorate_store::topic::{FilterKind, TopicFilter, TopicName};

use super::{Codec, Wire};
use crate::mqtt::packet::{Auth, AuthData, Connect, Packet, Publish, Secret, Subscribe, Version};
use crate::mqtt::reason::Reason;
use crate::mqtt::strict::{Frame, Notes, Reject};

const CONNECT: u8 = 0x10;
const DUP: u8 = 0x08;

/// Decodes the checked frame at the start of `src` and takes it out.
pub(super) fn decode(wire: &Wire, frame: Frame, notes: Notes, src: &mut BytesMut) -> Result<Packet, Reject> {
    if let Some(at) = notes.zero_expiry
        && let Some(last) = src.get_mut(frame.body + at + 3)
    {
        *last = 1; // the codec refuses 0; `notes` remembers it
    }
    match &wire.codec {
        Codec::V5(codec) => match codec.decode(src).map_err(refused)? {
            Some(v5::codec::Decoded::Packet(packet, _)) => from_v5(wire, packet, notes),
            Some(v5::codec::Decoded::Publish(publish, payload, _)) => publish_v5(wire, publish, &payload, notes),
            _ => Err(split()),
        },
        Codec::V3(codec) => {
            let decoded = if wire.version == Version::V31 && frame.first == CONNECT {
                codec.decode(&mut connect_311_from_31(src, frame))
            } else {
                if wire.version == Version::V31
                    && matches!(frame.first >> 4, 6 | 8 | 10)
                    && let Some(first) = src.get_mut(0)
                {
                    *first &= !DUP;
                }
                codec.decode(src)
            };
            match decoded.map_err(refused)? {
                Some(v3::codec::Decoded::Packet(packet, _)) => from_v3(wire, packet),
                Some(v3::codec::Decoded::Publish(publish, payload, _)) => publish_v3(wire, &publish, &payload),
                _ => Err(split()),
            }
        }
    }
}

/// The codec knows 3.1.1 only: the header is another, what follows is the same.
fn connect_311_from_31(src: &mut BytesMut, frame: Frame) -> BytesMut {
    const HEADER_31: usize = 9; // 0x0006 "MQIsdp" 0x03
    const HEADER_311: &[u8] = b"\x00\x04MQTT\x04";
    let whole = src.split_to(frame.total);
    let rest = whole.get(frame.body + HEADER_31..).unwrap_or_default();
    let mut remaining = HEADER_311.len() + rest.len();
    let mut out = BytesMut::with_capacity(frame.total);
    out.extend_from_slice(&[CONNECT]);
    loop {
        let more = if remaining > 0x7F { 0x80 } else { 0 };
        out.extend_from_slice(&[(remaining & 0x7F) as u8 | more]);
        remaining >>= 7;
        if more == 0 {
            break;
        }
    }
    out.extend_from_slice(HEADER_311);
    out.extend_from_slice(rest);
    out
}

fn refused(error: DecodeError) -> Reject {
    match error {
        DecodeError::InvalidClientId => Reject {
            reason: Reason::CLIENT_IDENTIFIER_NOT_VALID,
            what: "empty Client Identifier without Clean Session [MQTT-3.1.3-8]",
        },
        DecodeError::Utf8Error => Reject::malformed("a string is not UTF-8"),
        _ => Reject::malformed("the codec refused the packet"),
    }
}

/// Cannot be: the frame is complete and was checked.
fn split() -> Reject {
    Reject { reason: Reason::IMPLEMENTATION_SPECIFIC_ERROR, what: "the codec split a complete frame" }
}

fn qos(qos: ntex_mqtt::QoS) -> QoS {
    match qos {
        ntex_mqtt::QoS::AtMostOnce => QoS::AtMostOnce,
        ntex_mqtt::QoS::AtLeastOnce => QoS::AtLeastOnce,
        ntex_mqtt::QoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn payload(bytes: &[u8]) -> Payload {
    Payload(Bytes::copy_from_slice(bytes))
}

fn own(text: &ByteString) -> String {
    String::from(&**text)
}

fn secret(bytes: &[u8]) -> Secret {
    Secret(Bytes::copy_from_slice(bytes))
}

fn auth(method: Option<&ByteString>, data: Option<&[u8]>) -> Option<Box<AuthData>> {
    method.map(|method| Box::new(AuthData { method: own(method), data: data.map(secret) }))
}

impl Wire {
    fn has_too_many_levels(&self, text: &str) -> bool {
        text.bytes().filter(|b| *b == b'/').count() >= self.topic_levels_max
    }

    fn name(&self, text: &str) -> Result<TopicName, Reject> {
        let refused = |what| Reject { reason: Reason::TOPIC_NAME_INVALID, what };
        if self.has_too_many_levels(text) {
            return Err(refused("a Topic Name with more levels than are accepted"));
        }
        TopicName::new(text).map_err(|_| refused("a Topic Name that is not accepted"))
    }

    fn filter(&self, text: &str) -> Result<TopicFilter, Reason> {
        if self.has_too_many_levels(text) {
            return Err(Reason::TOPIC_FILTER_INVALID);
        }
        TopicFilter::new(text).map_err(|_| Reason::TOPIC_FILTER_INVALID)
    }

    /// A filter to subscribe to.
    fn offered(&self, text: &str) -> Result<TopicFilter, Reason> {
        // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
        self.filter(text).and_then(|filter| match filter.kind() {
            FilterKind::Invalid => Err(Reason::TOPIC_FILTER_INVALID),
            _ => Ok(filter),
        })
    }

    fn topic(&self, text: &str) -> Result<TopicName, Reject> {
        let mut last = self.last_topic.borrow_mut();
        match &*last {
            Some(known) if known.as_str() == text => Ok(known.clone()),
            _ => {
                let name = self.name(text)?;
                *last = Some(name.clone());
                Ok(name)
            }
        }
    }
}

fn boxed(properties: MessageProperties) -> Option<Box<MessageProperties>> {
    (!properties.is_empty()).then(|| Box::new(properties))
}

fn user(properties: &[(ByteString, ByteString)]) -> Vec<(String, String)> {
    properties.iter().map(|(k, v)| (own(k), own(v))).collect()
}

/// The Message Expiry Interval as it was sent, 0 included.
fn expiry(decoded: Option<std::num::NonZeroU32>, notes: Notes) -> Option<u32> {
    if notes.zero_expiry.is_some() { Some(0) } else { decoded.map(std::num::NonZeroU32::get) }
}

fn publish_v3(wire: &Wire, publish: &v3::codec::Publish, body: &[u8]) -> Result<Packet, Reject> {
    Ok(Packet::Publish(Publish {
        dup: publish.dup,
        qos: qos(publish.qos),
        retain: publish.retain,
        id: publish.packet_id.map(PacketId),
        topic: Some(wire.topic(&publish.topic)?),
        alias: None,
        expiry_s: None,
        properties: None,
        payload: payload(body),
    }))
}

fn publish_v5(wire: &Wire, publish: v5::codec::Publish, body: &[u8], notes: Notes) -> Result<Packet, Reject> {
    let p = publish.properties;
    Ok(Packet::Publish(Publish {
        dup: publish.dup,
        qos: qos(publish.qos),
        retain: publish.retain,
        id: publish.packet_id.map(PacketId),
        topic: if publish.topic.is_empty() { None } else { Some(wire.topic(&publish.topic)?) },
        alias: p.topic_alias.map(std::num::NonZeroU16::get),
        expiry_s: expiry(p.message_expiry_interval, notes),
        properties: boxed(MessageProperties {
            is_utf8: notes.is_utf8,
            content_type: p.content_type.as_ref().map(own),
            response_topic: p.response_topic.as_ref().map(own),
            correlation_data: p.correlation_data.map(|d| d.to_vec()),
            user: user(&p.user_properties),
        }),
        payload: payload(body),
    }))
}

fn from_v3(wire: &Wire, packet: v3::codec::Packet) -> Result<Packet, Reject> {
    use v3::codec::Packet as P;
    Ok(match packet {
        P::Connect(c) => {
            let will = match c.last_will {
                None => None,
                Some(w) => Some(Will {
                    delay_s: 0,
                    topic: wire.name(&w.topic)?,
                    qos: qos(w.qos),
                    retain: w.retain,
                    properties: None,
                    expiry_s: None,
                    payload: payload(&w.message),
                }),
            };
            Packet::Connect(Box::new(Connect {
                client_id: own(&c.client_id),
                clean_start: c.clean_session,
                keep_alive_s: c.keep_alive,
                expiry_s: None,
                receive_maximum: u16::MAX,
                packet_bytes_max: None,
                auth: None,
                wants_problems: false,
                topic_alias_max: 0,
                wants_response_information: false,
                username: c.username.as_ref().map(own),
                password: c.password.map(|p| secret(&p)),
                will,
            }))
        }
        P::PublishAck { packet_id } => Packet::PubAck { id: PacketId(packet_id), reason: Reason::SUCCESS },
        P::PublishReceived { packet_id } => Packet::PubRec { id: PacketId(packet_id), reason: Reason::SUCCESS },
        P::PublishRelease { packet_id } => Packet::PubRel { id: PacketId(packet_id) },
        P::PublishComplete { packet_id } => Packet::PubComp { id: PacketId(packet_id) },
        P::Subscribe { packet_id, topic_filters } => Packet::Subscribe(Subscribe {
            id: PacketId(packet_id),
            identifier: None,
            filters: topic_filters
                .iter()
                .map(|(text, max)| {
                    let options = SubscribeOptions {
                        qos: qos(*max),
                        no_local: false,
                        retain_as_published: false,
                        retain_handling: 0,
                    };
                    wire.offered(text).map(|f| (f, options))
                })
                .collect(),
        }),
        P::Unsubscribe { packet_id, topic_filters } => Packet::Unsubscribe {
            id: PacketId(packet_id),
            filters: topic_filters.iter().map(|text| wire.filter(text)).collect(),
        },
        P::PingRequest => Packet::PingReq,
        P::Disconnect => Packet::Disconnect { reason: Reason::SUCCESS, expiry_s: None },
        P::ConnectAck(_) | P::SubscribeAck { .. } | P::UnsubscribeAck { .. } | P::PingResponse => {
            return Err(Reject::protocol("a packet that only servers send"));
        }
    })
}

fn from_v5(wire: &Wire, packet: v5::codec::Packet, notes: Notes) -> Result<Packet, Reject> {
    use v5::codec::Packet as P;
    Ok(match packet {
        P::Connect(connect) => connect_v5(wire, *connect, notes)?,
        P::PublishAck(a) => Packet::PubAck { id: PacketId(a.packet_id), reason: Reason(a.reason_code.into()) },
        P::PublishReceived(a) => Packet::PubRec { id: PacketId(a.packet_id), reason: Reason(a.reason_code.into()) },
        P::PublishRelease(a) => Packet::PubRel { id: PacketId(a.packet_id) },
        P::PublishComplete(a) => Packet::PubComp { id: PacketId(a.packet_id) },
        P::Subscribe(s) => Packet::Subscribe(Subscribe {
            id: PacketId(s.packet_id),
            identifier: s.id.map(std::num::NonZeroU32::get),
            filters: s
                .topic_filters
                .iter()
                .map(|(text, o)| {
                    let options = SubscribeOptions {
                        qos: qos(o.qos),
                        no_local: o.no_local,
                        retain_as_published: o.retain_as_published,
                        retain_handling: o.retain_handling.into(),
                    };
                    wire.offered(text).map(|f| (f, options))
                })
                .collect(),
        }),
        P::Unsubscribe(u) => Packet::Unsubscribe {
            id: PacketId(u.packet_id),
            filters: u.topic_filters.iter().map(|text| wire.filter(text)).collect(),
        },
        P::PingRequest => Packet::PingReq,
        P::Disconnect(d) => {
            Packet::Disconnect { reason: Reason(d.reason_code.into()), expiry_s: d.session_expiry_interval_secs }
        }
        P::Auth(a) => Packet::Auth(Auth {
            reason: Reason(a.reason_code.into()),
            auth: auth(a.auth_method.as_ref(), a.auth_data.as_deref()),
        }),
        P::ConnectAck(_) | P::SubscribeAck(_) | P::UnsubscribeAck(_) | P::PingResponse => {
            return Err(Reject::protocol("a packet that only servers send"));
        }
    })
}

fn connect_v5(wire: &Wire, c: v5::codec::Connect, notes: Notes) -> Result<Packet, Reject> {
    let will = match c.last_will {
        None => None,
        Some(w) => Some(Will {
            delay_s: w.will_delay_interval_sec.unwrap_or(0),
            topic: wire.name(&w.topic)?,
            qos: qos(w.qos),
            retain: w.retain,
            expiry_s: expiry(w.message_expiry_interval, notes),
            properties: boxed(MessageProperties {
                is_utf8: notes.is_utf8,
                content_type: w.content_type.as_ref().map(own),
                response_topic: w.response_topic.as_ref().map(own),
                correlation_data: w.correlation_data.map(|d| d.to_vec()),
                user: user(&w.user_properties),
            }),
            payload: payload(&w.message),
        }),
    };
    Ok(Packet::Connect(Box::new(Connect {
        client_id: own(&c.client_id),
        clean_start: c.clean_start,
        keep_alive_s: c.keep_alive,
        expiry_s: Some(c.session_expiry_interval_secs),
        receive_maximum: c.receive_max.map_or(u16::MAX, std::num::NonZeroU16::get),
        packet_bytes_max: c.max_packet_size.map(std::num::NonZeroU32::get),
        auth: auth(c.auth_method.as_ref(), c.auth_data.as_deref()),
        wants_problems: c.request_problem_info,
        topic_alias_max: c.topic_alias_max,
        wants_response_information: c.request_response_info,
        username: c.username.as_ref().map(own),
        password: c.password.map(|p| secret(&p)),
        will,
    })))
}
