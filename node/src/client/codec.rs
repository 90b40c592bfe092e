//! The bytes of the client's packets, 3.1.1 and 5.0. Written for this client alone, so that what the demo
//! checks does not rest on the codec that the server uses.
//!
//! Decoding takes whole frames only and refuses what a server must not send; it never panics on input.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::packet::{Ack, AckKind, ConnAck, Connect, Packet, Publish, Qos, Version};

/// Longest frame that is taken from a server.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// Why a server's bytes were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Ends before its content does.
    #[error("a packet ends before its content does")]
    Truncated,
    /// Above [`FRAME_BYTES_MAX`], or a length of five bytes.
    #[error("a packet is too long")]
    TooLong,
    /// A packet type or flags that a server does not send.
    #[error("a server does not send first byte {0:#04x}")]
    UnexpectedType(u8),
    /// Text that is no UTF-8.
    #[error("text that is not UTF-8")]
    NotUtf8,
    /// A property that does not exist.
    #[error("property {0:#04x} does not exist")]
    UnknownProperty(u32),
    /// QoS 3, or packet identifier 0.
    #[error("{0}")]
    Invalid(&'static str),
}

type Decoded<T> = Result<T, DecodeError>;

/// What an encoding could not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("text of {0} bytes: MQTT strings have at most 65,535")]
pub struct EncodeError(usize);

// ---- encoding ----

/// Appends `packet` to `out`.
///
/// # Errors
/// When a string is too long.
pub fn encode(packet: &Packet, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
    let mut body = BytesMut::new();
    let first = match packet {
        Packet::Connect(connect) => {
            put_connect(connect, version, &mut body)?;
            0x10
        }
        Packet::Publish(publish) => {
            put_string(&publish.topic, &mut body)?;
            if publish.qos != Qos::AtMostOnce {
                body.put_u16(publish.packet_id);
            }
            if version == Version::V5 {
                body.put_u8(0);
            }
            let flags = (u8::from(publish.dup) << 3) | ((publish.qos as u8) << 1) | u8::from(publish.retain);
            put_head(0x30 | flags, body.len() + publish.payload.len(), out);
            out.extend_from_slice(&body);
            out.extend_from_slice(&publish.payload);
            return Ok(());
        }
        Packet::Ack(ack) => {
            body.put_u16(ack.packet_id);
            if version == Version::V5 && ack.reason != 0 {
                body.put_u8(ack.reason);
            }
            ((ack.kind as u8) << 4) | if ack.kind == AckKind::Pubrel { 2 } else { 0 }
        }
        Packet::Subscribe { packet_id, filters } => {
            body.put_u16(*packet_id);
            if version == Version::V5 {
                body.put_u8(0);
            }
            for (filter, qos) in filters {
                put_string(filter, &mut body)?;
                body.put_u8(*qos as u8);
            }
            0x82
        }
        Packet::PingReq => 0xc0,
        Packet::Disconnect { reason, .. } => {
            if version == Version::V5 && *reason != 0 {
                body.put_u8(*reason);
            }
            0xe0
        }
        Packet::ConnAck(ack) => {
            body.put_u8(u8::from(ack.present));
            body.put_u8(ack.reason);
            if version == Version::V5 {
                body.put_slice(&[3, 0x21]);
                body.put_u16(ack.receive_maximum);
            }
            0x20
        }
        Packet::SubAck { packet_id, reasons } => {
            body.put_u16(*packet_id);
            if version == Version::V5 {
                body.put_u8(0);
            }
            body.put_slice(reasons);
            0x90
        }
        Packet::PingResp => 0xd0,
    };
    put_head(first, body.len(), out);
    out.extend_from_slice(&body);
    Ok(())
}

fn put_connect(connect: &Connect, version: Version, body: &mut BytesMut) -> Result<(), EncodeError> {
    put_string("MQTT", body)?;
    body.put_u8(if version == Version::V5 { 5 } else { 4 });
    body.put_u8(if connect.clean_start { 2 } else { 0 });
    body.put_u16(connect.keep_alive_s);
    if version == Version::V5 {
        body.put_slice(&[8, 0x11]);
        body.put_u32(connect.expiry_s);
        body.put_u8(0x21);
        body.put_u16(connect.receive_maximum);
    }
    put_string(&connect.client_id, body)
}

fn put_string(text: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    out.put_u16(u16::try_from(text.len()).map_err(|_| EncodeError(text.len()))?);
    out.put_slice(text.as_bytes());
    Ok(())
}

fn put_head(first: u8, mut len: usize, out: &mut BytesMut) {
    out.put_u8(first);
    loop {
        let low = (len & 0x7f) as u8;
        len >>= 7;
        out.put_u8(if len > 0 { low | 0x80 } else { low });
        if len == 0 {
            return;
        }
    }
}

// ---- decoding ----

/// Takes the next packet off `input`, when it is there whole.
///
/// # Errors
/// [`DecodeError`]: the connection is of no use any more.
pub fn decode(input: &mut BytesMut, version: Version) -> Decoded<Option<Packet>> {
    let Some(&first) = input.first() else { return Ok(None) };
    let mut len = 0_usize;
    let mut head = 1;
    loop {
        let Some(&byte) = input.get(head) else { return if head > 4 { Err(DecodeError::TooLong) } else { Ok(None) } };
        len |= usize::from(byte & 0x7f) << (7 * (head - 1));
        head += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if head > 4 {
            return Err(DecodeError::TooLong);
        }
    }
    if len > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    if input.len() < head + len {
        input.reserve(head + len - input.len());
        return Ok(None);
    }
    input.advance(head);
    let mut body = Body(input.split_to(len).freeze());
    let packet = match first {
        0x20 => body.connack(version)?,
        0x30..=0x3f => Packet::Publish(body.publish(first, version)?),
        0x40 => body.ack(AckKind::Puback, version)?,
        0x50 => body.ack(AckKind::Pubrec, version)?,
        0x62 => body.ack(AckKind::Pubrel, version)?,
        0x70 => body.ack(AckKind::Pubcomp, version)?,
        0x90 => {
            let packet_id = body.packet_id()?;
            if version == Version::V5 {
                body.properties()?;
            }
            Packet::SubAck { packet_id, reasons: body.rest().to_vec() }
        }
        0xd0 => Packet::PingResp,
        0xe0 if version == Version::V5 => {
            let reason = if body.0.is_empty() { 0 } else { body.u8()? };
            let properties = if body.0.is_empty() { Properties::default() } else { body.properties()? };
            Packet::Disconnect { reason, server_reference: properties.server_reference }
        }
        _ => return Err(DecodeError::UnexpectedType(first)),
    };
    if body.0.is_empty() { Ok(Some(packet)) } else { Err(DecodeError::Invalid("bytes after a packet's content")) }
}

/// The properties that this client acts on; the others are only measured.
#[derive(Debug, Default)]
struct Properties {
    receive_maximum: Option<u16>,
    packet_bytes_max: Option<u32>,
    keep_alive_s: Option<u16>,
    reason_string: Option<String>,
    server_reference: Option<String>,
}

struct Body(Bytes);

impl Body {
    fn take(&mut self, len: usize) -> Decoded<Bytes> {
        if self.0.len() < len { Err(DecodeError::Truncated) } else { Ok(self.0.split_to(len)) }
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self) -> Decoded<u8> {
        self.0.try_get_u8().map_err(|_| DecodeError::Truncated)
    }

    fn u16(&mut self) -> Decoded<u16> {
        self.0.try_get_u16().map_err(|_| DecodeError::Truncated)
    }

    fn u32(&mut self) -> Decoded<u32> {
        self.0.try_get_u32().map_err(|_| DecodeError::Truncated)
    }

    fn packet_id(&mut self) -> Decoded<u16> {
        match self.u16()? {
            0 => Err(DecodeError::Invalid("packet identifier 0")),
            id => Ok(id),
        }
    }

    fn string(&mut self) -> Decoded<String> {
        let len = self.u16()?;
        let bytes = self.take(usize::from(len))?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| DecodeError::NotUtf8)
    }

    fn varint(&mut self) -> Decoded<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::TooLong)
    }

    fn properties(&mut self) -> Decoded<Properties> {
        let len = self.varint()? as usize;
        let mut area = Body(self.take(len)?);
        let mut found = Properties::default();
        while !area.0.is_empty() {
            match area.varint()? {
                // Byte: Payload Format, the capabilities of CONNACK.
                0x01 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => drop(area.u8()?),
                0x13 => found.keep_alive_s = Some(area.u16()?),
                0x21 => found.receive_maximum = Some(area.u16()?),
                0x22 | 0x23 => drop(area.u16()?),
                0x27 => found.packet_bytes_max = Some(area.u32()?),
                0x02 | 0x11 => drop(area.u32()?),
                0x0b => drop(area.varint()?),
                0x1c => found.server_reference = Some(area.string()?),
                0x1f => found.reason_string = Some(area.string()?),
                // Content Type, Response Topic, Assigned Client Identifier, Response Information, Authentication Method.
                0x03 | 0x08 | 0x12 | 0x1a | 0x15 => drop(area.string()?),
                0x09 | 0x16 => {
                    let len = area.u16()?;
                    area.take(usize::from(len))?;
                }
                0x26 => {
                    area.string()?;
                    area.string()?;
                }
                other => return Err(DecodeError::UnknownProperty(other)),
            }
        }
        Ok(found)
    }

    fn connack(&mut self, version: Version) -> Decoded<Packet> {
        let present = self.u8()? & 1 == 1;
        let code = self.u8()?;
        let (reason, properties) = match version {
            Version::V5 => (code, if self.0.is_empty() { Properties::default() } else { self.properties()? }),
            Version::V311 => (translate(code), Properties::default()),
        };
        Ok(Packet::ConnAck(ConnAck {
            present,
            reason,
            receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
            packet_bytes_max: properties.packet_bytes_max,
            keep_alive_s: properties.keep_alive_s,
            reason_string: properties.reason_string,
            server_reference: properties.server_reference,
        }))
    }

    fn publish(&mut self, first: u8, version: Version) -> Decoded<Publish> {
        let qos = Qos::from_u8((first >> 1) & 3).ok_or(DecodeError::Invalid("QoS 3"))?;
        let topic = self.string()?;
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { self.packet_id()? };
        if version == Version::V5 {
            self.properties()?;
        }
        Ok(Publish { dup: first & 8 != 0, qos, retain: first & 1 != 0, topic, packet_id, payload: self.rest() })
    }

    fn ack(&mut self, kind: AckKind, version: Version) -> Decoded<Packet> {
        let packet_id = self.packet_id()?;
        let mut reason = 0;
        if version == Version::V5 && !self.0.is_empty() {
            reason = self.u8()?;
            if !self.0.is_empty() {
                self.properties()?;
            }
        }
        Ok(Packet::Ack(Ack { kind, packet_id, reason }))
    }
}

/// Return codes of 3.1.1 as reason codes of 5.0.
fn translate(code: u8) -> u8 {
    match code {
        0 => 0,
        1 => 0x84,
        2 => 0x85,
        3 => 0x88,
        4 => 0x86,
        5 => 0x87,
        _ => 0x80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(packet: &Packet, version: Version) -> BytesMut {
        let mut out = BytesMut::new();
        encode(packet, version, &mut out).unwrap();
        out
    }

    fn decoded(bytes: &[u8], version: Version) -> Decoded<Option<Packet>> {
        decode(&mut BytesMut::from(bytes), version)
    }

    #[test]
    fn a_connect_is_as_the_standard_writes_it() {
        let connect = Packet::Connect(Connect {
            client_id: "ab".to_owned(),
            clean_start: true,
            expiry_s: 1,
            receive_maximum: 2,
            keep_alive_s: 10,
        });
        let v311 = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x0a\x00\x02ab";
        assert_eq!(&bytes_of(&connect, Version::V311)[..], v311);
        let v5 = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x0a\x08\x11\x00\x00\x00\x01\x21\x00\x02\x00\x02ab";
        assert_eq!(&bytes_of(&connect, Version::V5)[..], v5);
    }

    #[test]
    fn what_goes_both_ways_reads_back() {
        for version in [Version::V311, Version::V5] {
            let publish = |qos, packet_id| {
                let (topic, payload) = ("a/b".to_owned(), Bytes::from(vec![7; 300]));
                Packet::Publish(Publish { dup: packet_id == 9, qos, retain: true, topic, packet_id, payload })
            };
            let mut packets =
                vec![publish(Qos::AtMostOnce, 0), publish(Qos::AtLeastOnce, 9), publish(Qos::ExactlyOnce, 1)];
            for kind in [AckKind::Puback, AckKind::Pubrec, AckKind::Pubrel, AckKind::Pubcomp] {
                packets.push(Packet::Ack(Ack { kind, packet_id: 513, reason: 0 }));
            }
            packets.push(Packet::SubAck { packet_id: 3, reasons: vec![2, 0x80] });
            let mut stream = BytesMut::new();
            for packet in &packets {
                encode(packet, version, &mut stream).unwrap();
            }
            // However the bytes are cut, the packets are the same.
            for cut in [1, 2, 3, 7, 100, stream.len()] {
                let mut input = BytesMut::new();
                let mut got = Vec::new();
                for chunk in stream.chunks(cut) {
                    input.extend_from_slice(chunk);
                    while let Some(packet) = decode(&mut input, version).unwrap() {
                        got.push(packet);
                    }
                }
                assert_eq!(got, packets);
                assert!(input.is_empty());
            }
        }
    }

    #[test]
    fn reason_codes_and_properties_of_5_0_are_read() {
        let nack = decoded(&[0x40, 4, 0, 5, 0x97, 0], Version::V5).unwrap();
        assert_eq!(nack, Some(Packet::Ack(Ack { kind: AckKind::Puback, packet_id: 5, reason: 0x97 })));
        let mut bytes = vec![0x20, 0, 1, 0, 0];
        let properties = b"\x21\x00\x14\x27\x00\x00\x10\x00\x13\x00\x3c\x12\x00\x01x\x26\x00\x01a\x00\x01b\x24\x01";
        *bytes.last_mut().unwrap() = properties.len() as u8;
        bytes.extend_from_slice(properties);
        bytes[1] = bytes.len() as u8 - 2;
        let Some(Packet::ConnAck(ack)) = decoded(&bytes, Version::V5).unwrap() else { panic!() };
        assert_eq!((ack.present, ack.reason, ack.receive_maximum), (true, 0, 20));
        assert_eq!((ack.packet_bytes_max, ack.keep_alive_s), (Some(4096), Some(60)));
        let bye = decoded(b"\xe0\x08\x9c\x06\x1c\x00\x03b:1", Version::V5).unwrap();
        assert_eq!(bye, Some(Packet::Disconnect { reason: 0x9c, server_reference: Some("b:1".to_owned()) }));
        let refused = decoded(&[0x20, 2, 0, 3], Version::V311).unwrap();
        assert!(matches!(refused, Some(Packet::ConnAck(ConnAck { reason: 0x88, .. }))));
    }

    #[test]
    fn what_a_server_must_not_send_is_refused() {
        for (bytes, error) in [
            (&[0x10, 0][..], DecodeError::UnexpectedType(0x10)),
            (&[0x60, 2, 0, 1], DecodeError::UnexpectedType(0x60)),
            (&[0x40, 2, 0, 0], DecodeError::Invalid("packet identifier 0")),
            (&[0x40, 1, 0], DecodeError::Truncated),
            (&[0x36, 4, 0, 1, b'a', 0], DecodeError::Invalid("QoS 3")),
            (&[0x32, 5, 0, 9, b'a', 0, 1], DecodeError::Truncated),
            (&[0x30, 0xff, 0xff, 0xff, 0xff, 1], DecodeError::TooLong),
            (&[0x30, 4, 0, 2, 0xc3, 0x28], DecodeError::NotUtf8),
            (&[0xd0, 1, 0], DecodeError::Invalid("bytes after a packet's content")),
        ] {
            assert_eq!(decoded(bytes, Version::V311), Err(error), "{bytes:x?}");
        }
        assert_eq!(decoded(&[0x40, 6, 0, 1, 0, 2, 0x7e, 0], Version::V5), Err(DecodeError::UnknownProperty(0x7e)));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut state = 1_u64;
        for _ in 0..200_000 {
            let mut bytes = BytesMut::new();
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes.put_u8((state >> 56) as u8 & if bytes.len() == 1 { 0x0f } else { 0xff });
            }
            let _ = decode(&mut bytes.clone(), Version::V5);
            let _ = decode(&mut bytes, Version::V311);
        }
    }
}
