//! A message as it is stored and delivered.

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec::{Payload, PayloadSource};
use crate::ids::{ClusterTime, Position, QoS};
use crate::topic::TopicName;

/// The MQTT 5 properties of a PUBLISH that travel with the message, unaltered and in order
/// [MQTT-3.3.2-4], [MQTT-3.3.2-15..18]. Empty for 3.1.1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MessageProperties {
    /// Payload Format Indicator was 1 (UTF-8).
    pub is_utf8: Option<bool>,
    /// Content Type.
    pub content_type: Option<String>,
    /// Response Topic.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation_data: Option<Vec<u8>>,
    /// User Properties, in the publisher's order [MQTT-3.3.2-18].
    pub user: Vec<(String, String)>,
}

impl MessageProperties {
    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_utf8.is_none()
            && self.content_type.is_none()
            && self.response_topic.is_none()
            && self.correlation_data.is_none()
            && self.user.is_empty()
    }

    /// What they take in memory, about: for bounds of this node only, never for anything replicated.
    #[must_use]
    pub fn charge_bytes(&self) -> usize {
        let text = |s: &Option<String>| s.as_ref().map_or(0, String::len);
        let user: usize = self.user.iter().map(|(name, value)| name.len() + value.len() + USER_PROPERTY_BYTES).sum();
        let binary = self.correlation_data.as_ref().map_or(0, Vec::len);
        size_of::<Self>() + text(&self.content_type) + text(&self.response_topic) + binary + user
    }
}

/// A user property without its bytes: empty ones take five bytes of a packet and ten times that in memory.
const USER_PROPERTY_BYTES: usize = size_of::<(String, String)>();

/// What a publisher sent, with what the log added. Shared by all its deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub struct Message {
    /// Where it stands in the log: its identity.
    pub position: Position,
    /// Where to.
    pub topic: TopicName,
    /// The publisher's QoS; a delivery has at most this.
    pub qos: QoS,
    /// The publisher set RETAIN.
    pub retain: bool,
    /// Cluster time at which it was published.
    pub published_at: ClusterTime,
    /// Cluster time from which it is not sent any more (Message Expiry Interval) [MQTT-3.3.2-5].
    pub expires_at: Option<ClusterTime>,
    /// MQTT 5 properties; boxed, because most messages have none.
    pub properties: Option<Box<MessageProperties>>,
    /// The application's bytes.
    pub payload: Payload,
}

impl Message {
    /// Topic, properties and payload, about as they lie in memory: what a queue of this node is charged for
    /// holding it. For bounds of this node only, never for anything replicated.
    #[must_use]
    pub fn charge_bytes(&self) -> usize {
        let properties = self.properties.as_deref().map_or(0, MessageProperties::charge_bytes);
        self.topic.as_str().len() + self.payload.len() + properties
    }
}

/// A message shared by its deliveries.
pub type SharedMessage = Arc<Message>;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_charged_everything_that_its_publisher_chose() {
        let mut message = Message {
            position: Position::ZERO,
            topic: TopicName::new("four").unwrap(),
            qos: QoS::AtMostOnce,
            retain: false,
            published_at: ClusterTime(0),
            expires_at: None,
            properties: None,
            payload: Payload(bytes::Bytes::from_static(b"payload")),
        };
        assert_eq!(message.charge_bytes(), 11);
        for properties in [
            MessageProperties { content_type: Some("x".repeat(5000)), ..Default::default() },
            MessageProperties { response_topic: Some("x".repeat(5000)), ..Default::default() },
            MessageProperties { correlation_data: Some(vec![0; 5000]), ..Default::default() },
            MessageProperties { user: vec![("n".repeat(2500), "v".repeat(2500))], ..Default::default() },
            MessageProperties { user: vec![(String::new(), String::new()); 1000], ..Default::default() },
        ] {
            message.properties = Some(Box::new(properties));
            assert!(message.charge_bytes() > 5000, "{message:?}");
        }
    }
}
