//! Reads what a broker sends.

use super::property::{self, Property};
use super::{Ack, AckKind, Frame, Packet, Publish, PublishRef, Version, WireError};

/// Walks over the body of a packet.
pub(super) struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(kind: u8, rest: &'a [u8]) -> Self {
        Self { kind, rest }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(WireError::Short(self.kind))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn var(&mut self) -> Result<u32, WireError> {
        let mut value = 0;
        for at in 0..4 {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Length)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    pub(super) fn text(&mut self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8)
    }

    fn properties(&mut self, version: Version) -> Result<&'a [u8], WireError> {
        if version == Version::V4 {
            return Ok(&[]);
        }
        let length = self.var()?;
        self.take(length as usize)
    }

    /// Properties that may be left out at the end of a packet.
    fn trailing_properties(&mut self) -> Result<Vec<Property>, WireError> {
        if self.is_empty() { Ok(Vec::new()) } else { property::parse(self.properties(Version::V5)?) }
    }
}

/// A PUBLISH, without copying it. The frame must be of type 3.
///
/// # Errors
/// [`WireError`] when it is not one.
pub fn publish_of<'a>(frame: &Frame<'a>, version: Version) -> Result<PublishRef<'a>, WireError> {
    let qos = (frame.first >> 1) & 3;
    if frame.kind() != 3 || qos == 3 {
        return Err(WireError::FirstByte(frame.first));
    }
    let mut reader = Reader::new(3, frame.body);
    let topic = reader.text()?;
    let id = if qos == 0 { 0 } else { reader.u16()? };
    let properties = reader.properties(version)?;
    let (dup, retain) = (frame.first & 8 != 0, frame.first & 1 != 0);
    Ok(PublishRef { dup, qos, retain, topic, id, properties, payload: reader.rest })
}

/// A PUBACK, PUBREC, PUBREL or PUBCOMP. The frame must be of type 4 to 7.
///
/// # Errors
/// [`WireError`] when it is none.
pub fn ack_of(frame: &Frame<'_>) -> Result<Ack, WireError> {
    let kind = match frame.first {
        0x40 => AckKind::Puback,
        0x50 => AckKind::Pubrec,
        0x62 => AckKind::Pubrel,
        0x70 => AckKind::Pubcomp,
        other => return Err(WireError::FirstByte(other)),
    };
    let mut reader = Reader::new(frame.kind(), frame.body);
    let id = reader.u16()?;
    let code = if reader.is_empty() { 0 } else { reader.u8()? };
    Ok(Ack { kind, id, code })
}

/// The properties of a PUBACK, PUBREC, PUBREL or PUBCOMP of 5.0, which [`ack_of`] passes over.
///
/// # Errors
/// [`WireError`] when it has none that can be read.
pub fn ack_properties_of(frame: &Frame<'_>) -> Result<Vec<Property>, WireError> {
    let mut reader = Reader::new(frame.kind(), frame.body);
    reader.u16()?;
    if !reader.is_empty() {
        reader.u8()?;
    }
    reader.trailing_properties()
}

/// Any packet of a broker.
///
/// # Errors
/// [`WireError`] when it is none.
pub fn decode(frame: &Frame<'_>, version: Version) -> Result<Packet, WireError> {
    let mut reader = Reader::new(frame.kind(), frame.body);
    Ok(match frame.first {
        0x20 => {
            let present = reader.u8()? == 1;
            let code = reader.u8()?;
            Packet::ConnAck { present, code, properties: reader.trailing_properties()? }
        }
        0x30..=0x3f => {
            let p = publish_of(frame, version)?;
            Packet::Publish(Publish {
                dup: p.dup,
                qos: p.qos,
                retain: p.retain,
                topic: p.topic.to_owned(),
                id: p.id,
                properties: property::parse(p.properties)?,
                payload: p.payload.to_vec(),
            })
        }
        0x40 | 0x50 | 0x62 | 0x70 => Packet::Ack(ack_of(frame)?),
        0x90 | 0xb0 => {
            let id = reader.u16()?;
            reader.properties(version)?;
            let codes = reader.rest.to_vec();
            if frame.first == 0x90 { Packet::SubAck { id, codes } } else { Packet::UnsubAck { id, codes } }
        }
        0xd0 => Packet::PingResp,
        0xe0 if version == Version::V5 => {
            let code = if reader.is_empty() { 0 } else { reader.u8()? };
            Packet::Disconnect { code, properties: reader.trailing_properties()? }
        }
        0xf0 if version == Version::V5 => Packet::Auth { code: if reader.is_empty() { 0 } else { reader.u8()? } },
        other => return Err(WireError::FirstByte(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{encode, frame};
    use super::*;

    #[test]
    fn frames_are_split_where_they_end() {
        let mut buffer = Vec::new();
        encode::ping(&mut buffer);
        buffer.extend([0x40, 2, 0, 7, 0x40]);
        let first = frame(&buffer).unwrap().unwrap();
        assert_eq!((first.first, first.bytes), (0xc0, 2));
        let second = frame(&buffer[2..]).unwrap().unwrap();
        assert_eq!(ack_of(&second).unwrap(), Ack { kind: AckKind::Puback, id: 7, code: 0 });
        assert!(frame(&buffer[6..]).unwrap().is_none());
        assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff, 1]).unwrap_err(), WireError::Length);
    }

    #[test]
    fn a_publish_reads_back_as_it_was_written() {
        for version in [Version::V4, Version::V5] {
            let want = Publish {
                dup: true,
                qos: 2,
                retain: false,
                topic: "a/b".into(),
                id: 513,
                properties: Vec::new(),
                payload: vec![9; 300],
            };
            let mut buffer = Vec::new();
            encode::publish(&mut buffer, version, &want);
            let frame = frame(&buffer).unwrap().unwrap();
            assert_eq!(frame.bytes, buffer.len());
            assert_eq!(decode(&frame, version).unwrap(), Packet::Publish(want));
        }
    }

    #[test]
    fn a_connack_has_its_properties() {
        let bytes = [0x20, 9, 1, 0, 6, 0x21, 0, 10, 0x12, 0, 0];
        let packet = decode(&frame(&bytes).unwrap().unwrap(), Version::V5).unwrap();
        let Packet::ConnAck { present: true, code: 0, properties } = packet else { panic!("{packet:?}") };
        assert_eq!(property::number(&properties, property::RECEIVE_MAXIMUM), Some(10));
        assert_eq!(property::text(&properties, property::ASSIGNED_CLIENT_ID), Some(""));
    }
}
