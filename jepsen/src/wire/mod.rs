//! An MQTT 3.1.1 and 5.0 codec that shares nothing with the broker's.
//!
//! It is a client's half: it encodes what clients send, right or deliberately odd, and decodes what brokers send.
//! It owns no socket and no session; [`frame`] splits a buffer, [`fn@decode`] reads one frame, [`encode`] appends
//! packets to a buffer. Hot paths (the load generator) use [`publish_of`] and [`ack_of`], which copy nothing.

mod decode;
pub mod encode;
pub mod property;

pub use decode::{ack_of, ack_properties_of, decode, publish_of};

use thiserror::Error;

/// Protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1.
    V4,
    /// 5.0.
    V5,
}

/// Why bytes from a broker could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Longer than four bytes.
    #[error("a length of more than four bytes")]
    Length,
    /// The packet ends before its content does.
    #[error("packet type {0} ends too early")]
    Short(u8),
    /// A type that brokers do not send, or flags that it may not have.
    #[error("unexpected first byte {0:#04x}")]
    FirstByte(u8),
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A property that MQTT 5.0 does not know.
    #[error("unknown property {0:#04x}")]
    Property(u8),
}

/// One whole packet within a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Type and flags.
    pub first: u8,
    /// What follows the length.
    pub body: &'a [u8],
    /// Bytes of the whole packet.
    pub bytes: usize,
}

impl Frame<'_> {
    /// Packet type, 1 to 15.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.first >> 4
    }
}

/// The packet at the front of `buffer`, if all of it is there.
///
/// # Errors
/// [`WireError::Length`] when the length is not one.
pub fn frame(buffer: &[u8]) -> Result<Option<Frame<'_>>, WireError> {
    let Some((&first, rest)) = buffer.split_first() else { return Ok(None) };
    let mut length = 0_usize;
    for at in 0..4 {
        let Some(&byte) = rest.get(at) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let header = 2 + at;
            return Ok(buffer.get(header..header + length).map(|body| Frame { first, body, bytes: header + length }));
        }
    }
    Err(WireError::Length)
}

/// Which acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AckKind {
    /// QoS 1, receiver to sender.
    Puback = 4,
    /// QoS 2, receiver to sender, first.
    Pubrec = 5,
    /// QoS 2, sender to receiver.
    Pubrel = 6,
    /// QoS 2, receiver to sender, last.
    Pubcomp = 7,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which.
    pub kind: AckKind,
    /// Packet identifier.
    pub id: u16,
    /// Reason code; 0 where the packet has none.
    pub code: u8,
}

/// A PUBLISH in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishRef<'a> {
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Topic Name.
    pub topic: &'a str,
    /// Packet identifier; 0 at QoS 0.
    pub id: u16,
    /// Properties, undecoded; empty for 3.1.1.
    pub properties: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

/// A PUBLISH of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// DUP.
    pub dup: bool,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Topic Name.
    pub topic: String,
    /// Packet identifier; 0 at QoS 0.
    pub id: u16,
    /// Properties.
    pub properties: Vec<property::Property>,
    /// Payload.
    pub payload: Vec<u8>,
}

/// What a broker sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// CONNACK.
    ConnAck {
        /// Session Present.
        present: bool,
        /// Return or reason code.
        code: u8,
        /// Properties.
        properties: Vec<property::Property>,
    },
    /// PUBLISH.
    Publish(Publish),
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    Ack(Ack),
    /// SUBACK.
    SubAck {
        /// Packet identifier.
        id: u16,
        /// One for each filter.
        codes: Vec<u8>,
    },
    /// UNSUBACK.
    UnsubAck {
        /// Packet identifier.
        id: u16,
        /// One for each filter; empty for 3.1.1.
        codes: Vec<u8>,
    },
    /// PINGRESP.
    PingResp,
    /// DISCONNECT (5.0).
    Disconnect {
        /// Reason code.
        code: u8,
        /// Properties.
        properties: Vec<property::Property>,
    },
    /// AUTH (5.0).
    Auth {
        /// Reason code.
        code: u8,
    },
}
