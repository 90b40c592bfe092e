//! MQTT 5.0 properties (§2.2.2.2): read and written as a list, by identifier.

use super::WireError;
use super::decode::Reader;

/// Session Expiry Interval.
pub const SESSION_EXPIRY: u8 = 0x11;
/// Message Expiry Interval.
pub const MESSAGE_EXPIRY: u8 = 0x02;
/// Assigned Client Identifier.
pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
/// Server Keep Alive.
pub const SERVER_KEEP_ALIVE: u8 = 0x13;
/// Will Delay Interval.
pub const WILL_DELAY: u8 = 0x18;
/// Server Reference.
pub const SERVER_REFERENCE: u8 = 0x1c;
/// Receive Maximum.
pub const RECEIVE_MAXIMUM: u8 = 0x21;
/// Topic Alias Maximum.
pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
/// Topic Alias.
pub const TOPIC_ALIAS: u8 = 0x23;
/// Maximum Packet Size.
pub const MAXIMUM_PACKET: u8 = 0x27;
/// User Property.
pub const USER: u8 = 0x26;

/// A value, as wide as its identifier makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// One byte.
    U8(u8),
    /// Two bytes.
    U16(u16),
    /// Four bytes.
    U32(u32),
    /// A variable byte integer.
    Var(u32),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Two texts.
    Pair(String, String),
}

/// One property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its identifier.
    pub id: u8,
    /// Its value.
    pub value: Value,
}

/// The number that property `id` holds, if it is there.
#[must_use]
pub fn number(properties: &[Property], id: u8) -> Option<u32> {
    properties.iter().find(|p| p.id == id).and_then(|p| match p.value {
        Value::U8(v) => Some(u32::from(v)),
        Value::U16(v) => Some(u32::from(v)),
        Value::U32(v) | Value::Var(v) => Some(v),
        _ => None,
    })
}

/// The text that property `id` holds, if it is there.
#[must_use]
pub fn text(properties: &[Property], id: u8) -> Option<&str> {
    properties.iter().find(|p| p.id == id).and_then(|p| match &p.value {
        Value::Text(v) => Some(v.as_str()),
        _ => None,
    })
}

/// Reads the properties of `bytes` (without their length).
///
/// # Errors
/// When they are cut short, unknown or no text.
pub fn parse(bytes: &[u8]) -> Result<Vec<Property>, WireError> {
    let mut reader = Reader::new(0, bytes);
    let mut properties = Vec::new();
    while !reader.is_empty() {
        let id = reader.u8()?;
        let value = match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Value::U8(reader.u8()?),
            0x13 | 0x21 | 0x22 | 0x23 => Value::U16(reader.u16()?),
            0x02 | 0x11 | 0x18 | 0x27 => Value::U32(reader.u32()?),
            0x0b => Value::Var(reader.var()?),
            0x03 | 0x08 | 0x12 | 0x15 | 0x1a | 0x1c | 0x1f => Value::Text(reader.text()?.to_owned()),
            0x09 | 0x16 => Value::Bytes(reader.bytes()?.to_vec()),
            0x26 => Value::Pair(reader.text()?.to_owned(), reader.text()?.to_owned()),
            other => return Err(WireError::Property(other)),
        };
        properties.push(Property { id, value });
    }
    Ok(properties)
}
