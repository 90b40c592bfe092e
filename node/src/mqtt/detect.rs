//! Which protocol a new connection speaks: 3.1, 3.1.1 and 5.0 share one port.
//!
//! Looks at the first bytes and consumes none of them.

use ntex::codec::Decoder;
use ntex::util::BytesMut;

use super::packet::Version;
use super::reason::Reason;

/// Why the first bytes are no CONNECT that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// Something else than a CONNECT: closed without an answer [MQTT-3.1.0-1].
    #[error("the first packet is no MQTT CONNECT")]
    NotMqtt,
    /// A version between or below ours: CONNACK 1 of 3.1.1 [MQTT-3.1.2-2].
    #[error("protocol level {0} is not supported (3.1, 3.1.1 and 5.0 are)")]
    TooOld(u8),
    /// A version above ours: CONNACK 0x84 of 5.0 [MQTT-3.1.2-2].
    #[error("protocol version {0} is not supported (3.1, 3.1.1 and 5.0 are)")]
    TooNew(u8),
}

impl NotServed {
    /// For statistics.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotMqtt => Reason::MALFORMED_PACKET,
            Self::TooOld(_) | Self::TooNew(_) => Reason::UNSUPPORTED_PROTOCOL_VERSION,
        }
    }

    /// The CONNACK that says so, as bytes; none for what is no MQTT.
    #[must_use]
    pub const fn answer(self) -> Option<&'static [u8]> {
        match self {
            Self::NotMqtt => None,
            Self::TooOld(_) => Some(b"\x20\x02\x00\x01"),
            Self::TooNew(_) => Some(b"\x20\x03\x00\x84\x00"),
        }
    }
}

/// Reads the version out of the first packet's variable header, as soon as it is there.
///
/// # Errors
/// [`NotServed`] when the bytes cannot become a CONNECT of a version that is served.
pub fn detect(bytes: &[u8]) -> Result<Option<Version>, NotServed> {
    const CONNECT: u8 = 0x10;
    /// Bridges of Mosquitto mark themselves so, and try again without when they are refused.
    const BRIDGE: u8 = 0x80;

    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    if first != CONNECT {
        return Err(NotServed::NotMqtt);
    }
    let Some(last) = rest.iter().take(4).position(|b| b & 0x80 == 0) else {
        return if rest.len() < 4 { Ok(None) } else { Err(NotServed::NotMqtt) };
    };
    let header = rest.get(last + 1..).unwrap_or_default();
    for (name, levels) in [(&b"\x00\x04MQTT"[..], &[4, 5][..]), (b"\x00\x06MQIsdp", &[3])] {
        let n = name.len().min(header.len());
        if header.get(..n) != name.get(..n) {
            continue;
        }
        let Some(&level) = header.get(name.len()) else { return Ok(None) };
        return match level {
            _ if !levels.contains(&level) && level & !BRIDGE <= 4 => Err(NotServed::TooOld(level)),
            3 => Ok(Some(Version::V31)),
            4 => Ok(Some(Version::V311)),
            5 if levels.contains(&level) => Ok(Some(Version::V5)),
            _ => Err(NotServed::TooNew(level)),
        };
    }
    Err(NotServed::NotMqtt)
}

/// [`detect`] as ntex's `Io` wants it.
#[derive(Debug)]
pub(crate) struct Detect;

impl Decoder for Detect {
    type Item = Version;
    type Error = NotServed;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Version>, NotServed> {
        detect(src)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_versions_on_one_port() {
        for (bytes, want) in [
            (&b"\x10\x0c\x00\x04MQTT\x04\x02"[..], Ok(Some(Version::V311))),
            (b"\x10\x0c\x00\x04MQTT\x05\x02", Ok(Some(Version::V5))),
            (b"\x10\x0c\x00\x06MQIsdp\x03\x02", Ok(Some(Version::V31))),
            (b"\x10\x0c\x00\x06MQIs", Ok(None)),
            (b"\x10\x0c\x00", Ok(None)),
            (b"\x10\xff", Ok(None)),
            (b"", Ok(None)),
            (b"\x10\x0c\x00\x04MQTT\x06\x02", Err(NotServed::TooNew(6))),
            (b"\x10\x0c\x00\x04MQTT\x03\x02", Err(NotServed::TooOld(3))),
            (b"\x10\x0c\x00\x04MQTT\x84\x02", Err(NotServed::TooOld(0x84))),
            (b"\x10\x0c\x00\x06MQIsdp\x05\x02", Err(NotServed::TooNew(5))),
            (b"\x10\x0c\x00\x04MQTS\x04\x02", Err(NotServed::NotMqtt)),
            (b"\x10\xff\xff\xff\xff\x7f", Err(NotServed::NotMqtt)),
            (b"GET / HTTP/1.1\r\n", Err(NotServed::NotMqtt)),
            (b"\x30\x06\x00\x03a/bx", Err(NotServed::NotMqtt)),
        ] {
            assert_eq!(detect(bytes), want, "{bytes:?}");
        }
    }
}
