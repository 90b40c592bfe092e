//! Options of the MQTT front end. Each is a limit of this node alone; whatever changes an outcome on other
//! nodes is a replicated setting instead.

use std::net::SocketAddr;
use std::time::Duration;

pub use super::auth::jwt::JwtOptions;
use super::listen::ListenerOptions;
use quorate_store::ids::QoS;
use quorate_store::topic::TOPIC_LEVELS_MAX;

/// Packets of one connection that are handled before another gets its turn.
pub(crate) const PACKETS_PER_TURN_MAX: usize = 256;
/// Commands of one connection that are proposed and not applied; above it nothing more is read from it.
pub(crate) const REQUESTS_MAX: usize = 4096;
/// Acknowledgements in one Settle command.
pub(crate) const SETTLE_ACKS_MAX: usize = 512;
/// PUBLISH packets of a 3.1.1 client that wait for room in the inbound window, in bytes; above it nothing
/// more is read from it.
pub(crate) const HELD_BYTES_MAX: usize = 64 * 1024;
/// Rows that one connection keeps ready while its window is full.
pub(crate) const READY_ROWS_MAX: usize = 1024;
/// What a queued delivery is charged beside topic and payload.
pub(crate) const DELIVERY_OVERHEAD_BYTES: usize = 96;
/// Clients told to go elsewhere in one step of a drain, per worker.
pub(crate) const DRAIN_STEP_CLIENTS: usize = 64;
/// Steps of a drain: with more clients they are larger, so that all are told in time.
pub(crate) const DRAIN_STEPS_MAX: usize = 100;
/// Pause between two steps of a drain.
pub(crate) const DRAIN_STEP: Duration = Duration::from_millis(20);
/// Connections beyond a bound that are kept just long enough to be told so.
pub(crate) const REFUSALS_MAX: usize = 256;

/// Least [`MqttOptions::packet_bytes_max`]: CONNECT has to come through.
const PACKET_BYTES_LEAST: u32 = 1024;
/// Least [`MqttOptions::outbound_bytes_max`].
const OUTBOUND_BYTES_LEAST: usize = 4096;

/// How the front end listens and what it allows.
#[derive(Clone, Debug)]
pub struct MqttOptions {
    /// Where MQTT clients connect, in plain TCP; none: only through `listeners`.
    pub listen: Option<SocketAddr>,
    /// Where else they connect, and how.
    pub listeners: Vec<ListenerOptions>,
    /// Worker threads; each serves its share of the connections.
    pub workers: usize,
    /// Largest packet taken from a client; told to v5 clients as Maximum Packet Size.
    pub packet_bytes_max: u32,
    /// QoS 1 and 2 publishes of one client that may be in flight to us (Receive Maximum).
    pub receive_maximum: u16,
    /// QoS 1 and 2 deliveries that may be in flight to one client, whatever larger Receive Maximum it has.
    pub inflight_max: u16,
    /// Topic aliases a v5 client may set.
    pub topic_alias_max: u16,
    /// Topic aliases that are set on one connection to a v5 client that takes them.
    pub topic_alias_out_max: u16,
    /// Maximum QoS of publishes and wills; v5 clients are told.
    pub qos_max: QoS,
    /// Retained messages are taken; v5 clients are told.
    pub retain_available: bool,
    /// Filters may have wildcards; v5 clients are told.
    pub wildcard_available: bool,
    /// Filters may be shared; v5 clients are told.
    pub shared_available: bool,
    /// SUBSCRIBE may have a Subscription Identifier; v5 clients are told.
    pub subscription_identifiers_available: bool,
    /// A payload that is said to be UTF-8 must be.
    pub payload_utf8_check: bool,
    /// Most levels of a topic name or filter.
    pub topic_levels_max: usize,
    /// Publishes a second that are read from one client; 0 for no bound.
    pub publish_rate_max: u32,
    /// Bytes of publishes a second that are read from one client; 0 for no bound.
    pub publish_bytes_rate_max: u32,
    /// Response Information for v5 clients that ask for it; empty for none.
    pub response_topic_prefix: String,
    /// Filters of one SUBSCRIBE or UNSUBSCRIBE that are taken; the others are refused, each with a reason.
    pub subscribe_filters_max: u16,
    /// Longest keep alive in seconds, told to v5 clients as Server Keep Alive; 0 for no bound.
    pub keep_alive_s_max: u16,
    /// Shortest keep alive in seconds, told likewise.
    pub keep_alive_s_min: u16,
    /// Keep alive of 3.1 and 3.1.1 clients that ask for none; 0 for none.
    pub keep_alive_s_implied: u16,
    /// How long a new connection may take to send its CONNECT.
    pub connect_timeout: Duration,
    /// How long a CONNECT may take to commit; later it is refused, here and in the log.
    pub connect_deadline: Duration,
    /// Connections of this node; one more is refused with 0x89 (3.1.1: 3).
    pub connections_max: usize,
    /// Connections of one client address; one more is refused with 0x97 (3.1.1: 3). 0: no bound.
    pub connections_per_address_max: usize,
    /// New connections in a second; more are refused with 0x9F (3.1.1: 3). 0: no bound.
    pub connection_rate_max: u32,
    /// Session Expiry Interval of 3.1.1 clients without Clean Session, in seconds.
    pub session_expiry_s: u32,
    /// Bytes that wait in one connection's write buffer before its queue is left alone.
    pub outbound_bytes_max: usize,
    /// Bytes that wait in memory for one transient session; above it, it is disconnected with 0x97.
    pub transient_queue_bytes_max: usize,
    /// Rows in one page of a session's queue.
    pub page_rows_max: usize,
    /// Payload bytes in one page of a session's queue.
    pub page_bytes_max: usize,
    /// Bytes of deliveries that wait for one worker; above it rows are left to be paged and QoS 0 is dropped.
    pub mailbox_bytes_max: usize,
    /// Say under `$SYS` which clients come and go.
    pub sys_client_events: bool,
    /// Clients need not authenticate, wherever they come from; else only those on loopback need not.
    pub allow_anonymous: bool,
    /// Threads that check passwords.
    pub auth_threads: usize,
    /// Passwords that wait to be checked; above, a client is refused with 0x89 (3.1.1: 3).
    pub auth_waiting_max: usize,
    /// What becomes of a 3.1.1 client whose publish the rules refuse.
    pub acl_deny_action: DenyAction,
    /// Tokens in the place of passwords.
    pub jwt: JwtOptions,
}

/// What becomes of a 3.1.1 client whose publish the rules refuse: it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DenyAction {
    /// It is disconnected, so that it does not take the message for delivered.
    #[default]
    Disconnect,
    /// It is answered as if all were well, and the message is dropped and counted.
    Ignore,
}

impl MqttOptions {
    /// All listeners: the main one, and the others.
    pub(super) fn all_listeners(&self) -> Vec<ListenerOptions> {
        let main = self.listen.map(|address| ListenerOptions::tcp("mqtt", address));
        main.into_iter().chain(self.listeners.iter().cloned()).collect()
    }

    /// With bounds of 0 raised to what lets one packet through.
    pub(super) fn sane(mut self) -> Self {
        self.packet_bytes_max = self.packet_bytes_max.max(PACKET_BYTES_LEAST);
        self.receive_maximum = self.receive_maximum.max(1);
        self.inflight_max = self.inflight_max.max(1);
        self.subscribe_filters_max = self.subscribe_filters_max.max(1);
        self.outbound_bytes_max = self.outbound_bytes_max.max(OUTBOUND_BYTES_LEAST);
        self.auth_threads = self.auth_threads.max(1);
        self.auth_waiting_max = self.auth_waiting_max.max(1);
        self.page_rows_max = self.page_rows_max.max(1);
        self.page_bytes_max = self.page_bytes_max.max(1);
        self
    }
}

impl Default for MqttOptions {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 1883))),
            listeners: Vec::new(),
            workers: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            packet_bytes_max: 1 << 20,
            receive_maximum: 1024,
            inflight_max: 4096,
            topic_alias_max: 64,
            topic_alias_out_max: 16,
            qos_max: QoS::ExactlyOnce,
            retain_available: true,
            wildcard_available: true,
            shared_available: true,
            subscription_identifiers_available: true,
            payload_utf8_check: true,
            topic_levels_max: TOPIC_LEVELS_MAX,
            publish_rate_max: 0,
            publish_bytes_rate_max: 0,
            response_topic_prefix: String::new(),
            subscribe_filters_max: 1024,
            keep_alive_s_max: 0,
            keep_alive_s_min: 0,
            keep_alive_s_implied: 0,
            connect_timeout: Duration::from_secs(10),
            connect_deadline: Duration::from_secs(10),
            connections_max: 100_000,
            connections_per_address_max: 0,
            connection_rate_max: 0,
            session_expiry_s: u32::MAX,
            outbound_bytes_max: 256 * 1024,
            transient_queue_bytes_max: 4 << 20,
            page_rows_max: 256,
            page_bytes_max: 64 * 1024,
            mailbox_bytes_max: 64 << 20,
            sys_client_events: true,
            allow_anonymous: false,
            auth_threads: std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)),
            auth_waiting_max: 1024,
            acl_deny_action: DenyAction::default(),
            jwt: JwtOptions::default(),
        }
    }
}
