//! Reading the fields of one frame: integers, strings, property sections. Nothing is copied.

use super::{Notes, Reject, ensure};
use crate::mqtt::reason::Reason;

/// Which properties a packet may carry: one bit for each identifier (all of them are below 64).
pub(super) mod props {
    pub(in crate::mqtt::strict) const AUTH_METHOD: u64 = 1 << 0x15;
    pub(in crate::mqtt::strict) const AUTH_DATA: u64 = 1 << 0x16;
    pub(in crate::mqtt::strict) const TOPIC_ALIAS: u64 = 1 << 0x23;
    pub(super) const SUBSCRIPTION_ID: u64 = 1 << 0x0B;

    pub(in crate::mqtt::strict) const CONNECT: u64 = set(&[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27]);
    pub(in crate::mqtt::strict) const WILL: u64 = set(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26]);
    pub(in crate::mqtt::strict) const PUBLISH: u64 = set(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26]);
    pub(in crate::mqtt::strict) const ACK: u64 = set(&[0x1F, 0x26]);
    pub(in crate::mqtt::strict) const SUBSCRIBE: u64 = set(&[0x0B, 0x26]);
    pub(in crate::mqtt::strict) const UNSUBSCRIBE: u64 = set(&[0x26]);
    pub(in crate::mqtt::strict) const DISCONNECT: u64 = set(&[0x11, 0x1F, 0x26]);
    pub(in crate::mqtt::strict) const AUTH: u64 = set(&[0x15, 0x16, 0x1F, 0x26]);

    const fn set(mut ids: &[u8]) -> u64 {
        let mut bits = 0;
        while let [id, rest @ ..] = ids {
            bits |= 1 << *id;
            ids = rest;
        }
        bits
    }
}

/// User Property: the only one that may be repeated.
const USER: u8 = 0x26;

/// What is left of a frame's body.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    len: usize,
    pub(super) notes: Notes,
}

impl<'a> Fields<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body, len: body.len(), notes: Notes::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn end(&self) -> Result<(), Reject> {
        ensure(self.rest.is_empty(), Reject::malformed("bytes after the last field"))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Reject> {
        let (field, rest) = self.rest.split_at_checked(n).ok_or(Reject::malformed("a field goes beyond its packet"))?;
        self.rest = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(Reject::malformed("a field goes beyond its packet"))?;
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Reject> {
        let [b] = self.array()?;
        Ok(b)
    }

    pub(super) fn two(&mut self) -> Result<u16, Reject> {
        self.array().map(u16::from_be_bytes)
    }

    /// [MQTT-2.2.1-3]
    pub(super) fn packet_id(&mut self) -> Result<(), Reject> {
        let id = self.two()?;
        ensure(id != 0, Reject::protocol("packet identifier 0 [MQTT-2.2.1-3]"))
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], Reject> {
        let n = self.two()?;
        self.take(usize::from(n))
    }

    /// [MQTT-1.5.4-1], [MQTT-1.5.4-2]
    pub(super) fn text(&mut self) -> Result<&'a [u8], Reject> {
        let text = self.binary()?;
        clean_text(text)?;
        Ok(text)
    }

    /// A Topic Name that must be there and have no wildcard.
    pub(super) fn topic_name(&mut self) -> Result<(), Reject> {
        let topic = self.text()?;
        ensure(
            !topic.is_empty(),
            Reject { reason: Reason::TOPIC_NAME_INVALID, what: "empty Topic Name [MQTT-4.7.3-1]" },
        )?;
        no_wildcard(topic, Reason::TOPIC_NAME_INVALID)
    }

    fn variable(&mut self) -> Result<usize, Reject> {
        let mut n = 0;
        for i in 0..4 {
            let b = self.byte()?;
            n |= usize::from(b & 0x7F) << (7 * i);
            if b & 0x80 == 0 {
                let shortest = b != 0 || i == 0;
                return ensure(shortest, Reject::malformed("an integer is not in its shortest form [MQTT-1.5.5-1]"))
                    .map(|()| n);
            }
        }
        Err(Reject::malformed("a variable integer of more than four bytes [MQTT-1.5.5-1]"))
    }

    /// Reads one property section; which properties it had, as bits.
    pub(super) fn properties(&mut self, allowed: u64) -> Result<u64, Reject> {
        let n = self.variable()?;
        let mut section = Self { rest: self.take(n)?, len: self.len - self.rest.len(), notes: self.notes };
        let mut seen = 0;
        while !section.is_empty() {
            let id = section.byte()?;
            let bit = if id < 64 { 1 << id } else { 0 };
            if allowed & bit == 0 {
                // A Subscription Identifier from a client is the one that has its own rule [MQTT-3.3.4-6].
                let publish = allowed == props::PUBLISH && bit == props::SUBSCRIPTION_ID;
                return Err(if publish {
                    Reject::protocol("Subscription Identifier from a client [MQTT-3.3.4-6]")
                } else {
                    Reject::malformed("a property that this packet does not have")
                });
            }
            ensure(id == USER || seen & bit == 0, Reject::protocol("a property is there twice"))?;
            seen |= bit;
            section.property(id)?;
        }
        self.notes = section.notes;
        Ok(seen)
    }

    fn property(&mut self, id: u8) -> Result<(), Reject> {
        match id {
            // Payload Format Indicator
            0x01 => {
                let value = self.byte()?;
                self.notes.is_utf8 = Some(value == 1);
                ensure(value < 2, Reject::malformed("Payload Format Indicator above 1"))
            }
            // Message Expiry Interval
            0x02 => {
                let offset = self.len - self.rest.len();
                if self.array()? == [0; 4] {
                    self.notes.zero_expiry = Some(offset);
                }
                Ok(())
            }
            // Response Topic
            0x08 => {
                let topic = self.text()?;
                ensure(!topic.is_empty(), Reject::protocol("empty Response Topic"))?;
                no_wildcard(topic, Reason::PROTOCOL_ERROR)
            }
            // Subscription Identifier
            0x0B => {
                let id = self.variable()?;
                ensure(id != 0, Reject::protocol("Subscription Identifier 0"))
            }
            // Session Expiry Interval, Will Delay Interval
            0x11 | 0x18 => self.array::<4>().map(drop),
            // Request Problem Information, Request Response Information
            0x17 | 0x19 => {
                let value = self.byte()?;
                ensure(value < 2, Reject::protocol("a flag property above 1"))
            }
            // Receive Maximum
            0x21 => {
                let value = self.two()?;
                ensure(value != 0, Reject::protocol("Receive Maximum 0"))
            }
            // Topic Alias Maximum
            0x22 => self.two().map(drop),
            // Topic Alias: its upper bound is the session's business
            0x23 => {
                let value = self.two()?;
                ensure(value != 0, Reject { reason: Reason::TOPIC_ALIAS_INVALID, what: "Topic Alias 0 [MQTT-3.3.2-8]" })
            }
            // Maximum Packet Size
            0x27 => {
                let value: [u8; 4] = self.array()?;
                ensure(value != [0; 4], Reject::protocol("Maximum Packet Size 0"))
            }
            // Correlation Data, Authentication Data
            0x09 | 0x16 => self.binary().map(drop),
            USER => self.text().and_then(|_| self.text()).map(drop),
            // Content Type, Authentication Method, Reason String
            _ => self.text().map(drop),
        }
    }
}

/// [MQTT-1.5.4-1], [MQTT-1.5.4-2]
pub(super) fn clean_text(text: &[u8]) -> Result<(), Reject> {
    ensure(std::str::from_utf8(text).is_ok(), Reject::malformed("a string is not UTF-8 [MQTT-1.5.4-1]"))?;
    ensure(!text.contains(&0), Reject::malformed("U+0000 in a string [MQTT-1.5.4-2]"))
}

/// [MQTT-3.3.2-2], [MQTT-3.3.2-14]
pub(super) fn no_wildcard(topic: &[u8], reason: Reason) -> Result<(), Reject> {
    let clean = !topic.iter().any(|c| matches!(c, b'#' | b'+'));
    ensure(clean, Reject { reason, what: "wildcard in a topic name" })
}
