//! The strict frame check: one whole frame is examined before the codec decodes it.
//!
//! ntex-mqtt 8.2 lets pass what it must not: a PUBLISH header longer than its frame (whose length
//! underflows and swallows the packets behind it), bytes after the last field, a will's QoS without a
//! will, reserved SUBSCRIBE bits, U+0000, empty topics, non-minimal lengths and more. So a frame waits
//! here until it is complete, is checked against MQTT 3.1.1 or 5.0 field by field, and is refused with the
//! reason code that MQTT 5.0 has for it. What passes, the codec decodes to exactly one packet.
//!
//! It owns no bytes and keeps no state between frames; what depends on the session (aliases, quotas, the
//! order of packets) is the session machine's.

mod fields;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use super::packet::Version;
use super::reason::Reason;
use fields::{Fields, props};

/// Longest fixed header: one byte and four of Remaining Length.
const FIXED_HEADER_BYTES_MAX: usize = 5;

/// A frame that is refused: the connection is closed with `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({reason})")]
pub struct Reject {
    /// For DISCONNECT or CONNACK of 5.0.
    pub reason: Reason,
    /// What is wrong, for the log.
    pub what: &'static str,
}

impl Reject {
    /// Bytes that are no MQTT [MQTT-4.13.1-1].
    #[must_use]
    pub const fn malformed(what: &'static str) -> Self {
        Self { reason: Reason::MALFORMED_PACKET, what }
    }

    /// A well-formed packet that breaks the protocol [MQTT-4.13.1-1].
    #[must_use]
    pub const fn protocol(what: &'static str) -> Self {
        Self { reason: Reason::PROTOCOL_ERROR, what }
    }
}

/// Where a complete frame lies at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// First byte: type and flags.
    pub first: u8,
    /// Where its body begins.
    pub body: usize,
    /// Its length.
    pub total: usize,
}

/// What the codec loses or refuses although it is allowed, for [`super::wire`] to put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Offset in the body of a Message Expiry Interval of 0, which the codec refuses.
    pub zero_expiry: Option<usize>,
    /// Payload Format Indicator, of which the codec tells 0 not from absent.
    pub is_utf8: Option<bool>,
}

/// Finds the frame at the start of `buffer`; `None` while it is incomplete.
///
/// # Errors
/// A Remaining Length that is malformed, or makes the packet longer than `packet_bytes_max`: known from
/// the first five bytes, before any of the rest has come [MQTT-3.1.2-24].
pub fn frame(buffer: &[u8], packet_bytes_max: u32) -> Result<Option<Frame>, Reject> {
    let Some((&first, rest)) = buffer.split_first() else { return Ok(None) };
    let mut len = 0_usize;
    for (i, &b) in rest.iter().enumerate().take(FIXED_HEADER_BYTES_MAX - 1) {
        len |= usize::from(b & 0x7F) << (7 * i);
        if b & 0x80 != 0 {
            continue;
        }
        if b == 0 && i > 0 {
            return Err(Reject::malformed("Remaining Length is not in its shortest form"));
        }
        let body = i + 2;
        let total = body + len;
        if total > packet_bytes_max as usize {
            return Err(Reject { reason: Reason::PACKET_TOO_LARGE, what: "packet above Maximum Packet Size" });
        }
        return Ok((buffer.len() >= total).then_some(Frame { first, body, total }));
    }
    if rest.len() < FIXED_HEADER_BYTES_MAX - 1 {
        return Ok(None);
    }
    Err(Reject::malformed("Remaining Length of more than four bytes"))
}

/// Checks a whole frame from a client: its first byte and its body.
///
/// # Errors
/// [`Reject`] names the first thing that is wrong.
pub fn check(version: Version, first: u8, body: &[u8]) -> Result<Notes, Reject> {
    check_knowing(version, first, body, &[])
}

/// [`check`] on a connection whose last PUBLISH had the Topic Name `known_topic`, which passed: most clients send
/// one again and again, and comparing is quicker than looking at each character.
///
/// # Errors
/// As [`check`].
pub fn check_knowing(version: Version, first: u8, body: &[u8], known_topic: &[u8]) -> Result<Notes, Reject> {
    let mut f = Fields::new(body);
    let v5 = version.is_v5();
    let flags = first & 0x0F;
    // 3.1 lets DUP be set on a repeated PUBREL, SUBSCRIBE and UNSUBSCRIBE.
    let asked = if version == Version::V31 { flags & !0x08 } else { flags };
    let want = |flags: u8, wanted: u8| {
        if flags == wanted { Ok(()) } else { Err(Reject::malformed("reserved flags of the fixed header")) }
    };
    match first >> 4 {
        1 => want(flags, 0).and_then(|()| connect(&mut f, v5)),
        3 => publish(&mut f, flags, v5, known_topic),
        4 | 5 | 7 => want(flags, 0).and_then(|()| ack(&mut f, v5)),
        6 => want(asked, 2).and_then(|()| ack(&mut f, v5)),
        8 => want(asked, 2).and_then(|()| subscribe(&mut f, v5)),
        10 => want(asked, 2).and_then(|()| unsubscribe(&mut f, v5)),
        12 => want(flags, 0).and_then(|()| f.end()),
        14 => want(flags, 0).and_then(|()| disconnect(&mut f, v5)),
        15 if v5 => want(flags, 0).and_then(|()| auth(&mut f)),
        2 | 9 | 11 | 13 => Err(Reject::protocol("a packet that only servers send")),
        _ => Err(Reject::malformed("a reserved packet type")),
    }?;
    Ok(f.notes)
}

fn ensure(condition: bool, reject: Reject) -> Result<(), Reject> {
    if condition { Ok(()) } else { Err(reject) }
}

fn connect(f: &mut Fields<'_>, v5: bool) -> Result<(), Reject> {
    const CLEAN_START: u8 = 0x02;
    const WILL: u8 = 0x04;
    const WILL_QOS: u8 = 0x18;
    const WILL_RETAIN: u8 = 0x20;
    const PASSWORD: u8 = 0x40;
    const USER_NAME: u8 = 0x80;

    f.text()?; // Protocol Name: read by `detect`
    f.byte()?; // Protocol Version
    let flags = f.byte()?;
    ensure(
        flags & !(CLEAN_START | WILL | WILL_QOS | WILL_RETAIN | PASSWORD | USER_NAME) == 0,
        Reject::malformed("reserved flag of CONNECT [MQTT-3.1.2-3]"),
    )?;
    f.two()?; // Keep Alive
    if v5 {
        let seen = f.properties(props::CONNECT)?;
        ensure(
            seen & props::AUTH_DATA == 0 || seen & props::AUTH_METHOD != 0,
            Reject::protocol("Authentication Data without Authentication Method"),
        )?;
    }
    f.text()?; // Client Identifier
    if flags & WILL != 0 {
        ensure(flags & WILL_QOS != WILL_QOS, Reject::malformed("Will QoS 3 [MQTT-3.1.2-12]"))?;
        if v5 {
            f.properties(props::WILL)?;
        }
        f.topic_name()?;
        f.binary()?;
    } else {
        ensure(
            flags & (WILL_QOS | WILL_RETAIN) == 0,
            Reject::malformed("Will QoS or Will Retain without a will [MQTT-3.1.2-11]"),
        )?;
    }
    if flags & USER_NAME != 0 {
        f.text()?;
    }
    if flags & PASSWORD != 0 {
        ensure(v5 || flags & USER_NAME != 0, Reject::malformed("password without user name [MQTT-3.1.2-22]"))?;
        f.binary()?;
    }
    f.end()
}

fn publish(f: &mut Fields<'_>, flags: u8, v5: bool, known_topic: &[u8]) -> Result<(), Reject> {
    let qos = flags >> 1 & 3;
    ensure(qos != 3, Reject::malformed("QoS 3 [MQTT-3.3.1-4]"))?;
    let topic = f.binary()?;
    let known = topic == known_topic;
    if !known {
        fields::clean_text(topic)?;
    }
    if qos > 0 {
        f.packet_id()?;
    }
    let seen = if v5 { f.properties(props::PUBLISH)? } else { 0 };
    if topic.is_empty() {
        return ensure(seen & props::TOPIC_ALIAS != 0, Reject::protocol("empty Topic Name without an alias"));
    }
    // What is left is the payload.
    if known { Ok(()) } else { fields::no_wildcard(topic, Reason::TOPIC_NAME_INVALID) }
}

fn ack(f: &mut Fields<'_>, v5: bool) -> Result<(), Reject> {
    f.packet_id()?;
    if v5 && !f.is_empty() {
        f.byte()?;
        if !f.is_empty() {
            f.properties(props::ACK)?;
        }
    }
    f.end()
}

fn subscribe(f: &mut Fields<'_>, v5: bool) -> Result<(), Reject> {
    f.packet_id()?;
    if v5 {
        f.properties(props::SUBSCRIBE)?;
    }
    ensure(!f.is_empty(), Reject::protocol("SUBSCRIBE without a filter [MQTT-3.8.3-2]"))?;
    while !f.is_empty() {
        let filter = f.text()?;
        let options = f.byte()?;
        let reserved = if v5 { 0xC0 } else { 0xFC };
        ensure(options & reserved == 0, Reject::malformed("reserved bits of Subscription Options [MQTT-3.8.3-5]"))?;
        ensure(options & 0x03 != 3, Reject::protocol("Maximum QoS 3 in SUBSCRIBE"))?;
        ensure(options & 0x30 != 0x30, Reject::protocol("Retain Handling 3 in SUBSCRIBE"))?;
        ensure(
            options & 0x04 == 0 || !filter.starts_with(b"$share/"),
            Reject::protocol("No Local on a shared subscription [MQTT-3.8.3-4]"),
        )?;
    }
    Ok(())
}

fn unsubscribe(f: &mut Fields<'_>, v5: bool) -> Result<(), Reject> {
    f.packet_id()?;
    if v5 {
        f.properties(props::UNSUBSCRIBE)?;
    }
    ensure(!f.is_empty(), Reject::protocol("UNSUBSCRIBE without a filter [MQTT-3.10.3-2]"))?;
    while !f.is_empty() {
        f.text()?;
    }
    Ok(())
}

fn disconnect(f: &mut Fields<'_>, v5: bool) -> Result<(), Reject> {
    if v5 && !f.is_empty() {
        let reason = f.byte()?;
        let known = matches!(reason, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99);
        ensure(known, Reject::malformed("a reason code that clients do not send in DISCONNECT"))?;
        if !f.is_empty() {
            f.properties(props::DISCONNECT)?;
        }
    }
    f.end()
}

fn auth(f: &mut Fields<'_>) -> Result<(), Reject> {
    if !f.is_empty() {
        ensure(matches!(f.byte()?, 0x00 | 0x18 | 0x19), Reject::malformed("a reason code that AUTH does not have"))?;
        if !f.is_empty() {
            f.properties(props::AUTH)?;
        }
    }
    f.end()
}
