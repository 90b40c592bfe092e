//! Reason codes of MQTT 5.0 §2.4, and what each becomes for a 3.1.1 client.
//!
//! One byte under its name; it owns no state and decides nothing.

use std::fmt;

/// A reason code. 0x80 and above mean failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u8);

impl Reason {
    /// Success, Normal disconnection, Granted QoS 0.
    pub const SUCCESS: Self = Self(0x00);
    /// A client's DISCONNECT that wants its will published.
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    /// The message was accepted, nobody subscribes.
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    /// There was no such subscription.
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    /// AUTH: the exchange goes on.
    pub const CONTINUE_AUTHENTICATION: Self = Self(0x18);
    /// AUTH: the client authenticates once more.
    pub const RE_AUTHENTICATE: Self = Self(0x19);
    /// Something went wrong that has no code.
    pub const UNSPECIFIED_ERROR: Self = Self(0x80);
    /// Bytes that are no MQTT.
    pub const MALFORMED_PACKET: Self = Self(0x81);
    /// A packet that is not allowed here.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// Our own limit or fault.
    pub const IMPLEMENTATION_SPECIFIC_ERROR: Self = Self(0x83);
    /// Not 3.1, 3.1.1 or 5.0.
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    /// The client identifier is not accepted.
    pub const CLIENT_IDENTIFIER_NOT_VALID: Self = Self(0x85);
    /// Wrong credentials.
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    /// Not allowed.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// This node cannot commit anything now.
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    /// Too much at the moment.
    pub const SERVER_BUSY: Self = Self(0x89);
    /// The node goes down.
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8B);
    /// Enhanced authentication with this method is not offered.
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8C);
    /// Nothing came for one and a half times the keep alive.
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8D);
    /// Another connection has the session.
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    /// Not a topic filter, or not one that is accepted.
    pub const TOPIC_FILTER_INVALID: Self = Self(0x8F);
    /// Not a topic name, or not one that is accepted.
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    /// PUBREL or PUBREC for an identifier that is not known.
    pub const PACKET_IDENTIFIER_NOT_FOUND: Self = Self(0x92);
    /// More publishes in flight than Receive Maximum.
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    /// A Topic Alias of 0 or above the maximum.
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    /// Above Maximum Packet Size.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// A queue is full.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    /// An operator ended it.
    pub const ADMINISTRATIVE_ACTION: Self = Self(0x98);
    /// Payload Format Indicator says UTF-8, and the payload is something else.
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);
    /// Retained messages are not offered.
    pub const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);
    /// A QoS that is not offered.
    pub const QOS_NOT_SUPPORTED: Self = Self(0x9B);
    /// Another node serves this client, for now.
    pub const USE_ANOTHER_SERVER: Self = Self(0x9C);
    /// Another node serves this client from now on.
    pub const SERVER_MOVED: Self = Self(0x9D);
    /// Too many new connections in this second.
    pub const CONNECTION_RATE_EXCEEDED: Self = Self(0x9F);
    /// Shared subscriptions are switched off.
    pub const SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: Self = Self(0x9E);
    /// Subscription Identifiers are not offered.
    pub const SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED: Self = Self(0xA1);
    /// Wildcard subscriptions are not offered.
    pub const WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED: Self = Self(0xA2);

    /// 0x80 and above.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self.0 >= 0x80
    }

    /// The return code of a 3.1 or 3.1.1 CONNACK, where one says nearly the same.
    #[must_use]
    pub const fn connack_v3(self) -> Option<u8> {
        match self {
            Self::SUCCESS => Some(0),
            Self::UNSUPPORTED_PROTOCOL_VERSION => Some(1),
            Self::CLIENT_IDENTIFIER_NOT_VALID => Some(2),
            Self::SERVER_UNAVAILABLE
            | Self::SERVER_BUSY
            | Self::QUOTA_EXCEEDED
            | Self::USE_ANOTHER_SERVER
            | Self::CONNECTION_RATE_EXCEEDED => Some(3),
            Self::BAD_USER_NAME_OR_PASSWORD => Some(4),
            Self::NOT_AUTHORIZED => Some(5),
            _ => None,
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:02X}", self.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
