//! Bytes to packets and back, for one connection.
//!
//! Inbound: the strict check, then ntex-mqtt's codec of the connection's version, then our one packet
//! model ([`decode`]). Outbound: bytes written straight from our packets into the write buffer ([`mod@encode`]),
//! because a delivery must not be copied into the codec's types first, and because the exact length of
//! every packet is needed before it is sent: Maximum Packet Size is ours to enforce.
//!
//! It owns the codec's state and the last topic name; it knows nothing of sessions.

mod decode;
mod encode;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;

use std::cell::{Cell, RefCell};

use ntex::codec::Decoder;
use ntex::util::BytesMut;
use ntex_mqtt::{v3, v5};
use quorate_store::topic::{TOPIC_LEVELS_MAX, TopicName};

use super::packet::{Packet, Version};
use super::strict::{self, Reject};
pub(crate) use encode::{connack_len, encode, encode_with, encoded_len, encoded_len_with, publish_len};

/// The codec of one connection.
#[derive(Debug)]
pub struct Wire {
    version: Version,
    codec: Codec,
    packet_bytes_max: u32,
    /// How much of an incomplete packet has come.
    partial_bytes: Cell<usize>,
    /// Most levels of a topic name or filter.
    topic_levels_max: usize,
    /// Most clients publish to one topic again and again: its name is checked and allocated once.
    last_topic: RefCell<Option<TopicName>>,
}

#[derive(Debug)]
enum Codec {
    V3(v3::codec::Codec),
    V5(v5::codec::Codec),
}

impl Wire {
    /// For a connection of `version` that takes packets of at most `packet_bytes_max`.
    #[must_use]
    pub fn new(version: Version, packet_bytes_max: u32) -> Self {
        // The frame check has the whole frame before the codec sees it, so a PUBLISH never comes in chunks.
        let codec = if version.is_v5() {
            let codec = v5::codec::Codec::new();
            codec.set_min_chunk_size(u32::MAX);
            Codec::V5(codec)
        } else {
            let codec = v3::codec::Codec::new();
            codec.set_min_chunk_size(u32::MAX);
            Codec::V3(codec)
        };
        Self {
            version,
            codec,
            packet_bytes_max,
            partial_bytes: Cell::new(0),
            last_topic: RefCell::new(None),
            topic_levels_max: TOPIC_LEVELS_MAX,
        }
    }

    /// Refuses topic names and filters of more levels than this.
    #[must_use]
    pub fn with_topic_levels_max(mut self, levels: usize) -> Self {
        self.topic_levels_max = levels.min(TOPIC_LEVELS_MAX);
        self
    }

    /// Bytes of the packet that was incomplete when it was looked for the last time.
    pub(crate) fn partial_bytes(&self) -> usize {
        self.partial_bytes.get()
    }

    /// Version that is spoken.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }
}

impl Decoder for Wire {
    type Item = Packet;
    type Error = Reject;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Packet>, Reject> {
        let Some(frame) = strict::frame(src, self.packet_bytes_max)? else {
            self.partial_bytes.set(src.len());
            return Ok(None);
        };
        self.partial_bytes.set(0);
        let body = src.get(frame.body..frame.total).unwrap_or_default();
        let notes = {
            let last = self.last_topic.borrow();
            let known_topic = last.as_ref().map_or(&[][..], |topic| topic.as_str().as_bytes());
            strict::check_knowing(self.version, frame.first, body, known_topic)?
        };
        decode::decode(self, frame, notes, src).map(Some)
    }
}
