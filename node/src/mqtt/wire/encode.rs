//! Our packets as bytes, written once into the write buffer; and the exact length of each beforehand.

use std::sync::Arc;

use ntex::util::{BufMut as _, BytePages};
use quorate_store::ids::{PacketId, Position, QoS};
use quorate_store::message::MessageProperties;

use crate::mqtt::packet::{AuthData, ConnAck, Delivered, Granted, Offered, Outgoing, Version};
use crate::mqtt::reason::Reason;

/// Largest Remaining Length [MQTT-1.5.5].
const REMAINING_MAX: usize = 268_435_455;
/// Longest string or binary field.
const FIELD_MAX: usize = u16::MAX as usize;

/// [`encoded_len_with`] without a Reason String.
pub(crate) fn encoded_len(version: Version, packet: &Outgoing) -> usize {
    encoded_len_with(version, packet, None)
}

/// [`encode_with`] without a Reason String.
pub(crate) fn encode(version: Version, packet: &Outgoing, out: &mut BytePages) {
    encode_with(version, packet, None, out);
}

/// Bytes that `packet` takes on the wire, fixed header included; 0 when it is not sent in this version,
/// `usize::MAX` when MQTT cannot carry it. `why` is its Reason String, for a packet of 5.0 that can have one.
pub(crate) fn encoded_len_with(version: Version, packet: &Outgoing, why: Option<&str>) -> usize {
    let v5 = version.is_v5();
    let why = why.filter(|_| v5);
    let remaining = match packet {
        Outgoing::Publish(delivered) => return publish_len(version, delivered),
        Outgoing::PubAck(_, reason)
        | Outgoing::PubRec(_, reason)
        | Outgoing::PubRel(_, reason)
        | Outgoing::PubComp(_, reason) => ack_remaining(v5, *reason, why),
        Outgoing::PubAckAt(_, _, position) | Outgoing::PubRecAt(_, _, position) => placed_remaining(v5, *position),
        Outgoing::SubAck(_, reasons) => 2 + if v5 { section_len(why_len(why)) } else { 0 } + reasons.len(),
        Outgoing::UnsubAck(_, reasons) => 2 + if v5 { section_len(why_len(why)) + reasons.len() } else { 0 },
        Outgoing::PingResp => 0,
        Outgoing::Auth(_, auth) if v5 => 1 + section_len(auth_len(auth)),
        Outgoing::ConnAck(ack) => match connack_remaining(v5, ack, why) {
            Some(n) => n,
            None => return 0,
        },
        Outgoing::Disconnect(reason, reference) if v5 => disconnect_remaining(*reason, reference.as_ref(), why),
        Outgoing::Auth(..) | Outgoing::Disconnect(..) => return 0,
    };
    whole_len(remaining)
}

/// [`encoded_len`] of a PUBLISH.
pub(crate) fn publish_len(version: Version, delivered: &Delivered) -> usize {
    publish_lens(version.is_v5(), delivered).map_or(usize::MAX, |(remaining, _)| whole_len(remaining))
}

/// [`encoded_len`] of a CONNACK without a Reason String.
pub(crate) fn connack_len(version: Version, ack: &ConnAck) -> usize {
    connack_remaining(version.is_v5(), ack, None).map_or(0, whole_len)
}

const fn whole_len(remaining: usize) -> usize {
    if remaining > REMAINING_MAX { usize::MAX } else { 1 + section_len(remaining) }
}

/// Writes `packet`. What [`encoded_len_with`] calls 0 or impossible is not written.
pub(crate) fn encode_with(version: Version, packet: &Outgoing, why: Option<&str>, out: &mut BytePages) {
    let v5 = version.is_v5();
    let why = why.filter(|_| v5);
    match packet {
        Outgoing::Publish(delivered) => publish(v5, delivered, out),
        Outgoing::PubAck(id, reason) => ack(v5, 0x40, *id, *reason, why, out),
        Outgoing::PubRec(id, reason) => ack(v5, 0x50, *id, *reason, why, out),
        Outgoing::PubAckAt(id, reason, position) => placed(v5, 0x40, *id, *reason, *position, out),
        Outgoing::PubRecAt(id, reason, position) => placed(v5, 0x50, *id, *reason, *position, out),
        Outgoing::PubRel(id, reason) => ack(v5, 0x62, *id, *reason, why, out),
        Outgoing::PubComp(id, reason) => ack(v5, 0x70, *id, *reason, why, out),
        Outgoing::SubAck(id, reasons) => {
            head(0x90, 2 + if v5 { section_len(why_len(why)) } else { 0 } + reasons.len(), out);
            out.put_slice(&id.get().to_be_bytes());
            if v5 {
                variable(why_len(why), out);
                reason_string(why, out);
            }
            for reason in reasons {
                out.put_u8(if v5 || !reason.is_failure() { reason.0 } else { 0x80 });
            }
        }
        Outgoing::UnsubAck(id, reasons) => {
            head(0xB0, 2 + if v5 { section_len(why_len(why)) + reasons.len() } else { 0 }, out);
            out.put_slice(&id.get().to_be_bytes());
            if v5 {
                variable(why_len(why), out);
                reason_string(why, out);
                for reason in reasons {
                    out.put_u8(reason.0);
                }
            }
        }
        Outgoing::PingResp => out.put_slice(&[0xD0, 0]),
        Outgoing::ConnAck(ack) => connack(v5, ack, why, out),
        Outgoing::Disconnect(reason, reference) if v5 => disconnect(*reason, reference.as_ref(), why, out),
        Outgoing::Auth(reason, auth) if v5 => {
            let properties = auth_len(auth);
            head(0xF0, 1 + variable_len(properties) + properties, out);
            out.put_u8(reason.0);
            variable(properties, out);
            auth_properties(auth, out);
        }
        Outgoing::Auth(..) | Outgoing::Disconnect(..) => {}
    }
}

const fn variable_len(n: usize) -> usize {
    match n {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// A variable byte integer in `bytes`, and its length: written in one go, because each write looks for its page.
fn variable_bytes(mut n: usize, bytes: &mut [u8]) -> usize {
    let mut len = 0;
    for byte in bytes {
        len += 1;
        *byte = (n & 0x7F) as u8;
        n >>= 7;
        if n == 0 {
            break;
        }
        *byte |= 0x80;
    }
    len
}

fn variable(n: usize, out: &mut BytePages) {
    let mut bytes = [0; 4];
    let len = variable_bytes(n, &mut bytes);
    out.put_slice(bytes.get(..len).unwrap_or_default());
}

fn head(first: u8, remaining: usize, out: &mut BytePages) {
    let mut bytes = [first, 0, 0, 0, 0];
    let [_, variable @ ..] = &mut bytes;
    let len = 1 + variable_bytes(remaining, variable);
    out.put_slice(bytes.get(..len).unwrap_or_default());
}

/// A string or binary field. Longer ones never come here: they have no [`encoded_len`].
fn field(bytes: &[u8], out: &mut BytePages) {
    let bytes = bytes.get(..bytes.len().min(FIELD_MAX)).unwrap_or_default();
    out.put_slice(&(bytes.len() as u16).to_be_bytes());
    out.put_slice(bytes);
}

fn property_field(id: u8, bytes: &[u8], out: &mut BytePages) {
    out.put_u8(id);
    field(bytes, out);
}

/// A property section with its own length in front.
const fn section_len(properties: usize) -> usize {
    variable_len(properties) + properties
}

fn why_len(why: Option<&str>) -> usize {
    why.filter(|text| text.len() <= FIELD_MAX).map_or(0, |text| 3 + text.len())
}

fn reason_string(why: Option<&str>, out: &mut BytePages) {
    if let Some(text) = why.filter(|text| text.len() <= FIELD_MAX) {
        property_field(0x1F, text.as_bytes(), out);
    }
}

fn ack_remaining(v5: bool, reason: Reason, why: Option<&str>) -> usize {
    match why_len(why) {
        0 => 2 + usize::from(v5 && reason != Reason::SUCCESS),
        n => 3 + section_len(n),
    }
}

fn ack(v5: bool, first: u8, id: PacketId, reason: Reason, why: Option<&str>, out: &mut BytePages) {
    let [a, b] = id.get().to_be_bytes();
    let properties = why_len(why);
    if properties > 0 {
        head(first, 3 + section_len(properties), out);
        out.put_slice(&[a, b, reason.0]);
        variable(properties, out);
        reason_string(why, out);
    } else if v5 && reason != Reason::SUCCESS {
        out.put_slice(&[first, 3, a, b, reason.0]);
    } else {
        out.put_slice(&[first, 2, a, b]);
    }
}

/// Name of the user property that tells a publisher where its message stands.
const POSITION: &str = "position";

/// The property section of an acknowledgement with a position, without its own length: always a short one.
fn position_len(text: &str) -> usize {
    1 + 2 + POSITION.len() + 2 + text.len()
}

fn placed_remaining(v5: bool, position: Position) -> usize {
    if v5 { 2 + 1 + 1 + position_len(&position.to_string()) } else { 2 }
}

fn placed(v5: bool, first: u8, id: PacketId, reason: Reason, position: Position, out: &mut BytePages) {
    if !v5 {
        return ack(v5, first, id, reason, None, out);
    }
    let position = position.to_string();
    head(first, 2 + 1 + 1 + position_len(&position), out);
    out.put_slice(&id.get().to_be_bytes());
    out.put_u8(reason.0);
    variable(position_len(&position), out);
    property_field(0x26, POSITION.as_bytes(), out);
    field(position.as_bytes(), out);
}

/// Length of a field with its own length in front; `None` when it is too long for MQTT.
fn field_len(bytes: &[u8]) -> Option<usize> {
    (bytes.len() <= FIELD_MAX).then_some(2 + bytes.len())
}

fn message_properties_len(p: &MessageProperties) -> Option<usize> {
    let mut n = if p.is_utf8.is_some() { 2 } else { 0 };
    for text in [&p.content_type, &p.response_topic].into_iter().flatten() {
        n += 1 + field_len(text.as_bytes())?;
    }
    if let Some(data) = &p.correlation_data {
        n += 1 + field_len(data)?;
    }
    for (key, value) in &p.user {
        n += 1 + field_len(key.as_bytes())? + field_len(value.as_bytes())?;
    }
    Some(n)
}

/// A Topic Alias property.
const ALIAS_LEN: usize = 3;

/// The Topic Name as it is sent: nothing where the client knows its alias.
fn topic_of(v5: bool, d: &Delivered) -> &[u8] {
    if v5 && d.alias.is_some_and(|alias| alias.is_known) { &[] } else { d.message.topic.as_str().as_bytes() }
}

/// Length of the property section of a v5 PUBLISH, without its own length.
fn publish_properties_len(d: &Delivered) -> Option<usize> {
    let identifiers: usize = d.identifiers.iter().map(|id| 1 + variable_len(*id as usize)).sum();
    let expiry = if d.expiry_s.is_some() { 5 } else { 0 };
    let alias = if d.alias.is_some() { ALIAS_LEN } else { 0 };
    let message = d.message.properties.as_deref().map_or(Some(0), message_properties_len)?;
    Some(identifiers + expiry + alias + message)
}

/// Remaining Length of a PUBLISH, and the length of its property section without its own length.
fn publish_lens(v5: bool, d: &Delivered) -> Option<(usize, usize)> {
    let id = if d.id.is_some() { 2 } else { 0 };
    let (properties, section) = if v5 {
        let n = publish_properties_len(d)?;
        (n, n + variable_len(n))
    } else {
        (0, 0)
    };
    let remaining = field_len(topic_of(v5, d))? + id + section + d.message.payload.len();
    Some((remaining, properties))
}

fn publish(v5: bool, d: &Delivered, out: &mut BytePages) {
    let Some((remaining, properties)) = publish_lens(v5, d).filter(|(n, _)| *n <= REMAINING_MAX) else { return };
    let qos = match d.qos {
        QoS::AtMostOnce => 0,
        QoS::AtLeastOnce => 0x02,
        QoS::ExactlyOnce => 0x04,
    };
    head(0x30 | u8::from(d.dup) << 3 | qos | u8::from(d.retain), remaining, out);
    field(topic_of(v5, d), out);
    if let Some(id) = d.id {
        out.put_slice(&id.get().to_be_bytes());
    }
    if v5 {
        variable(properties, out);
        if let Some(p) = d.message.properties.as_deref() {
            message_properties(p, out);
        }
        if let Some(expiry_s) = d.expiry_s {
            out.put_u8(0x02);
            out.put_slice(&expiry_s.to_be_bytes());
        }
        if let Some(alias) = d.alias {
            out.put_u8(0x23);
            out.put_slice(&alias.number.to_be_bytes());
        }
        for id in d.identifiers.iter() {
            out.put_u8(0x0B);
            variable(*id as usize, out);
        }
    }
    out.put_slice(&d.message.payload);
}

fn message_properties(p: &MessageProperties, out: &mut BytePages) {
    if let Some(is_utf8) = p.is_utf8 {
        out.put_slice(&[0x01, u8::from(is_utf8)]);
    }
    if let Some(text) = &p.content_type {
        property_field(0x03, text.as_bytes(), out);
    }
    if let Some(text) = &p.response_topic {
        property_field(0x08, text.as_bytes(), out);
    }
    if let Some(data) = &p.correlation_data {
        property_field(0x09, data, out);
    }
    for (key, value) in &p.user {
        property_field(0x26, key.as_bytes(), out);
        field(value.as_bytes(), out);
    }
}

/// What is not offered, as properties of one byte; what is offered is not said.
fn not_offered(o: Offered) -> impl Iterator<Item = [u8; 2]> {
    let qos = if o.qos_max < QoS::ExactlyOnce { Some([0x24, o.qos_max as u8]) } else { None };
    let flags = [(0x25, o.retain), (0x28, o.wildcards), (0x29, o.identifiers), (0x2A, o.shared)];
    qos.into_iter().chain(flags.into_iter().filter(|(_, is_offered)| !is_offered).map(|(id, _)| [id, 0]))
}

fn granted_len(g: &Granted) -> usize {
    const MAXIMUM_PACKET_SIZE: usize = 5;
    MAXIMUM_PACKET_SIZE
        + 2 * not_offered(g.offered).count()
        + g.response_information.as_ref().map_or(0, |text| 3 + text.len())
        + if g.expiry_s.is_some() { 5 } else { 0 }
        + if g.receive_maximum < u16::MAX { 3 } else { 0 }
        + g.client_id.as_ref().map_or(0, |id| 3 + id.len())
        + if g.topic_alias_max > 0 { 3 } else { 0 }
        + if g.keep_alive_s.is_some() { 3 } else { 0 }
        + g.auth.as_deref().map_or(0, auth_len)
}

/// Authentication Method and Data. What is too long for a field is cut: nothing that we make is.
fn auth_len(auth: &AuthData) -> usize {
    let data = auth.data.as_ref().map_or(0, |data| 3 + data.0.len().min(FIELD_MAX));
    3 + auth.method.len().min(FIELD_MAX) + data
}

fn auth_properties(auth: &AuthData, out: &mut BytePages) {
    property_field(0x15, auth.method.as_bytes(), out);
    if let Some(data) = &auth.data {
        property_field(0x16, &data.0, out);
    }
}

fn reference_len(reference: Option<&Arc<str>>) -> usize {
    reference.filter(|r| r.len() <= FIELD_MAX).map_or(0, |r| 3 + r.len())
}

fn connack_properties_len(ack: &ConnAck, why: Option<&str>) -> usize {
    why_len(why) + ack.granted.as_ref().map_or(0, granted_len) + reference_len(ack.server_reference.as_ref())
}

fn connack_remaining(v5: bool, ack: &ConnAck, why: Option<&str>) -> Option<usize> {
    if v5 { Some(2 + section_len(connack_properties_len(ack, why))) } else { ack.reason.connack_v3().map(|_| 2) }
}

fn connack(v5: bool, ack: &ConnAck, why: Option<&str>, out: &mut BytePages) {
    let Some(remaining) = connack_remaining(v5, ack, why) else { return };
    head(0x20, remaining, out);
    out.put_u8(u8::from(ack.session_present));
    if !v5 {
        out.put_u8(ack.reason.connack_v3().unwrap_or(3));
        return;
    }
    out.put_u8(ack.reason.0);
    variable(connack_properties_len(ack, why), out);
    reason_string(why, out);
    if let Some(g) = &ack.granted {
        if let Some(expiry_s) = g.expiry_s {
            out.put_u8(0x11);
            out.put_slice(&expiry_s.to_be_bytes());
        }
        if let Some(id) = &g.client_id {
            property_field(0x12, id.as_bytes(), out);
        }
        if let Some(keep_alive_s) = g.keep_alive_s {
            out.put_u8(0x13);
            out.put_slice(&keep_alive_s.to_be_bytes());
        }
        if let Some(text) = &g.response_information {
            property_field(0x1A, text.as_bytes(), out);
        }
        if let Some(auth) = &g.auth {
            auth_properties(auth, out);
        }
        if g.receive_maximum < u16::MAX {
            out.put_u8(0x21);
            out.put_slice(&g.receive_maximum.to_be_bytes());
        }
        if g.topic_alias_max > 0 {
            out.put_u8(0x22);
            out.put_slice(&g.topic_alias_max.to_be_bytes());
        }
        out.put_u8(0x27);
        out.put_slice(&g.packet_bytes_max.to_be_bytes());
        for property in not_offered(g.offered) {
            out.put_slice(&property);
        }
    }
    server_reference(ack.server_reference.as_ref(), out);
}

fn server_reference(reference: Option<&Arc<str>>, out: &mut BytePages) {
    if let Some(reference) = reference.filter(|r| r.len() <= FIELD_MAX) {
        property_field(0x1C, reference.as_bytes(), out);
    }
}

fn disconnect_remaining(reason: Reason, reference: Option<&Arc<str>>, why: Option<&str>) -> usize {
    match why_len(why) + reference_len(reference) {
        0 if reason == Reason::SUCCESS => 0,
        0 => 1,
        n => 1 + section_len(n),
    }
}

fn disconnect(reason: Reason, reference: Option<&Arc<str>>, why: Option<&str>, out: &mut BytePages) {
    let remaining = disconnect_remaining(reason, reference, why);
    head(0xE0, remaining, out);
    if remaining > 0 {
        out.put_u8(reason.0);
    }
    if remaining > 1 {
        variable(why_len(why) + reference_len(reference), out);
        reason_string(why, out);
        server_reference(reference, out);
    }
}
