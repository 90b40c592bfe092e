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
}

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

/// A message shared by its deliveries.
pub type SharedMessage = Arc<Message>;
