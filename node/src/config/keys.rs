//! Every key of the configuration, once: name, type, default and words. The flags of `quorate server`,
//! the `QUORATE_` variables, the TOML file and `quorate config default` all come from this one table.

use std::net::SocketAddr;
use std::path::PathBuf;

use quorate_store::log::EngineKind;
use serde::Deserialize;

use super::value::{Listen, LogEngineKind, LogFormat, QueueFull, Value};
use crate::mqtt::ListenerOptions;
use crate::mqtt::options::DenyAction;

/// One key, as help and `config default` show it.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its heading.
    pub section: &'static str,
    /// `snake_case`: the TOML key; the flag is `--kebab-case`, the variable `QUORATE_CAPITALS`.
    pub name: &'static str,
    /// What it does, a line each.
    pub doc: &'static [&'static str],
    /// A flag that may stand alone.
    pub is_switch: bool,
    /// A flag that takes several values.
    pub is_list: bool,
}

macro_rules! keys {
    ($( $section:literal { $( $(#[doc = $doc:literal])+ $key:ident: $ty:ty = $default:expr; )+ } )+) => {
        /// A complete configuration.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $($( $(#[doc = $doc])+ pub $key: $ty, )+)+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($( $key: $default, )+)+ }
            }
        }

        /// What one source (file, environment, flags) says; what it leaves out stays as it was.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Layer {
            $($( $key: Option<$ty>, )+)+
        }

        impl Layer {
            /// Sets a key from the text of a flag or variable.
            ///
            /// # Errors
            /// What was expected instead; nothing when there is no such key.
            pub fn set(&mut self, key: &str, text: &str) -> Option<Result<(), String>> {
                match key {
                    $($( stringify!($key) => Some(<$ty>::from_text(text).map(|value| self.$key = Some(value))), )+)+
                    _ => None,
                }
            }
        }

        impl Config {
            /// Lays `layer` over this.
            pub fn overlay(&mut self, layer: Layer) {
                $($( if let Some(value) = layer.$key { self.$key = value; } )+)+
            }

            /// Each key with its value as TOML, in the order of the table.
            #[must_use]
            pub fn entries(&self) -> Vec<(Key, String)> {
                vec![$($( (
                    Key {
                        section: $section,
                        name: stringify!($key),
                        doc: &[$($doc),+],
                        is_switch: <$ty>::IS_SWITCH,
                        is_list: <$ty>::IS_LIST,
                    },
                    self.$key.to_toml(),
                ), )+)+]
            }
        }
    };
}

keys! {
    "Node" {
        /// Name of this node, for people. Empty: the machine's host name.
        name: String = String::new();
        /// Where this node keeps its log, its rows and its identity.
        data_dir: PathBuf = PathBuf::from("./quorate-data");
        /// Address for MQTT clients (3.1, 3.1.1 and 5.0 on one port), in plain TCP. Empty: only `listeners`.
        mqtt: Listen = Listen(Some(SocketAddr::from(([127, 0, 0, 1], 1883))));
        /// More listeners, a URL each: `tcp://ADDRESS`, `tls://ADDRESS`, `ws://ADDRESS/mqtt`, `wss://ADDRESS/mqtt` or
        /// `unix:///PATH`, with parameters such as `?cert=FILE&key=FILE`. docs/OPERATIONS.md names them all.
        listeners: Vec<ListenerOptions> = Vec::new();
        /// Address for the other nodes of the cluster.
        peer: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7400));
        /// Address for REST, metrics, health and the web page.
        admin: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7480));
        /// `host:port` under which MQTT clients reach this node. Empty: the address of `mqtt`, or, when that is empty,
        /// of the first of `listeners` that has one; when that address is
        /// 0.0.0.0 or ::, the host of `peer_advertise`. `admin_advertise` likewise.
        mqtt_advertise: String = String::new();
        /// `host:port` under which the other nodes reach this node. Empty: the address of `peer`.
        peer_advertise: String = String::new();
        /// `host:port` under which the admin interface is reached. Empty: the address of `admin`.
        admin_advertise: String = String::new();
        /// Accept clients, peers and administrators without authentication on addresses that are not loopback.
        allow_anonymous: bool = false;
    }
    "Cluster" {
        /// Make a new cluster of this one node, on an empty data directory. Without it and without `join` a node does
        /// so only if its `peer` address is on loopback; elsewhere it refuses to start.
        /// Ignored when the data directory belongs to a cluster already.
        bootstrap: bool = false;
        /// Join the cluster that answers at one of these admin addresses (`host:port`), tried in turn.
        /// Ignored when the data directory belongs to that cluster already.
        join: Vec<String> = Vec::new();
        /// Token of `quorate cluster add`; empty: the node asks for an id by itself.
        join_token: String = String::new();
        /// How long the node asks for admission before it gives up.
        join_timeout_ms: u64 = 60_000;
        /// Stay a learner after joining; else the node becomes a voter by itself once it has caught up.
        learner: bool = false;
        /// First start of a new cluster: byte bound of one session's queue. 0: a tenth of the data disk, at least 1 GiB.
        /// Replicated from then on: this key is not read again.
        bootstrap_queue_bytes_max: u64 = 0;
        /// First start of a new cluster: what a full queue does, `reject` the publisher or `drop-oldest`.
        bootstrap_queue_full: QueueFull = QueueFull::Reject;
        /// First start of a new cluster: largest Session Expiry Interval. 604800 is 7 days.
        bootstrap_session_expiry_s_max: u32 = 604_800;
        /// First start of a new cluster: how many idempotency keys are remembered, of all users together. The oldest
        /// go first; a key takes about 150 bytes of disk and no memory. 0: none are.
        bootstrap_idempotency_keys_max: u64 = 1_000_000;
        /// First start of a new cluster: how long an idempotency key is remembered. 86400 is a day.
        bootstrap_idempotency_window_s: u32 = 86_400;
        /// First start of a new cluster: longest delay of a publish to `$delayed/SECONDS/TOPIC`.
        bootstrap_delay_s_max: u32 = 4_294_967;
        /// First start of a new cluster: bytes of delayed publishes that may wait. 0: none are taken.
        bootstrap_delayed_bytes_max: u64 = 268_435_456;
        /// First start of a new cluster: subscriptions of one session; one more is refused with 0x97.
        bootstrap_subscriptions_max: u32 = 65_536;
    }
    "Logging" {
        /// `text` for people, `json` for machines; one line an event on standard error.
        log_format: LogFormat = LogFormat::Text;
        /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,quorate_raft=debug`.
        log_level: String = "info".to_owned();
    }
    "MQTT" {
        /// Worker threads, up to 1,024. 0: one for each processor.
        mqtt_workers: usize = 0;
        /// Connections at a time; one more is refused with 0x89.
        connections_max: usize = 100_000;
        /// Connections of one client address at a time (of IPv6: of one /64); one more is refused with 0x97. 0: no bound.
        connections_per_address_max: usize = 0;
        /// New connections in a second, and as many at once after a pause; more are refused with 0x9F. 0: no bound.
        connection_rate_max: u32 = 0;
        /// How often the files of certificates are looked at: changed ones are used for new connections, as on SIGHUP.
        /// 0: only on SIGHUP.
        tls_reload_s: u64 = 10;
        /// Largest packet that is accepted, up to 62,914,560 (60 MiB); v5 clients are told.
        packet_bytes_max: u32 = 1_048_576;
        /// QoS 1 and 2 publishes of one client that may be unacknowledged; v5 clients are told.
        receive_maximum: u16 = 1_024;
        /// QoS 1 and 2 deliveries to one client that may be unacknowledged, whatever more it allows. What one client gets
        /// in a second is at most so many for each round of the log; each takes about 100 bytes on every node.
        inflight_max: u16 = 4_096;
        /// Topic aliases that a v5 client may set.
        topic_alias_max: u16 = 64;
        /// Topic aliases that are set on one connection to a v5 client that takes them, up to 1,024. 0: none.
        topic_alias_out_max: u16 = 16;
        /// Highest QoS of publishes and wills, 0 to 2; v5 clients are told. Above, v5 clients are disconnected (0x9B),
        /// older ones closed. Subscriptions are granted no more.
        qos_max: u8 = 2;
        /// Take retained messages; v5 clients are told. If not, a client that sends one is disconnected (0x9A).
        retain_available: bool = true;
        /// Take filters with wildcards; v5 clients are told. If not, v5 clients are disconnected (0xA2), others get 0x80.
        wildcard_available: bool = true;
        /// Take shared subscriptions; v5 clients are told. If not, v5 clients are disconnected (0x9E), others get 0x80.
        shared_available: bool = true;
        /// Take Subscription Identifiers; v5 clients are told. If not, who sends one is disconnected (0xA1).
        subscription_identifiers_available: bool = true;
        /// Refuse (0x99) a payload that its publisher calls UTF-8 (Payload Format Indicator 1) and that is not.
        payload_utf8_check: bool = true;
        /// Levels of a topic name or filter, 1 to 128. A publish with more ends the connection (0x90), a filter is
        /// refused (0x8F).
        topic_levels_max: usize = 128;
        /// Publishes a second of one client, after a burst of a second's worth. Above, it is not read until its time has
        /// come: nothing is lost. 0: no bound.
        publish_rate_max: u32 = 0;
        /// Bytes of publishes (topic and payload) a second of one client, likewise. 0: no bound.
        publish_bytes_rate_max: u32 = 0;
        /// Response Information for v5 clients that ask for it: the topics under which they may expect replies.
        /// Empty: none is told.
        response_topic_prefix: String = String::new();
        /// Filters of one SUBSCRIBE or UNSUBSCRIBE that are taken, up to 1,024; more are refused, one by one. A 3.1.1
        /// client that unsubscribes from more is disconnected, because its UNSUBACK cannot say no.
        subscribe_filters_max: u16 = 1_024;
        /// Longest keep alive of v5 clients, which are told. Older clients cannot be told, and keep theirs. 0: no bound.
        keep_alive_s_max: u16 = 0;
        /// Shortest keep alive of v5 clients, which are told. 0: no bound.
        keep_alive_s_min: u16 = 0;
        /// Keep alive of 3.1 and 3.1.1 clients that ask for none: one that sends nothing for one and a half times as
        /// long is closed. 0: it may be silent for ever.
        keep_alive_s_implied: u16 = 0;
        /// A connection must have sent its CONNECT by then.
        connect_timeout_ms: u64 = 10_000;
        /// A CONNECT that is not committed by then is refused.
        connect_deadline_ms: u64 = 10_000;
        /// Session expiry of 3.1.1 clients with Clean Session 0, up to the replicated maximum.
        session_expiry_s: u32 = 4_294_967_295;
        /// Bytes that wait for one slow connection before its queue is left on disk.
        outbound_bytes_max: usize = 262_144;
        /// Bytes that wait for one session that does not outlive its connection; above, it is disconnected (0x97).
        transient_queue_bytes_max: usize = 4_194_304;
        /// Rows of a session's queue that are read at a time.
        page_rows_max: usize = 256;
        /// Bytes of a session's queue that are read at a time.
        page_bytes_max: usize = 65_536;
        /// Bytes of deliveries that wait for one worker; above, they are read from disk later and QoS 0 is dropped.
        mailbox_bytes_max: usize = 67_108_864;
        /// Seconds between two rounds of `$SYS` topics. 0: none, and no client events.
        sys_interval_s: u32 = 10;
        /// Publish `$SYS/brokers/{node id}/clients/{client id}/connected` and `.../disconnected`.
        sys_client_events: bool = true;
        /// How long a stopping node takes to send its clients elsewhere.
        drain_timeout_ms: u64 = 5_000;
    }
    "Authentication and rules" {
        /// Threads that check passwords; each needs 19 MiB while it does. 0: one for each two processors.
        auth_threads: usize = 0;
        /// Passwords that wait to be checked; one more client is refused with 0x89.
        auth_waiting_max: usize = 1_024;
        /// A publish of a 3.1.1 client that the rules refuse: `disconnect` the client, because it cannot be told, or
        /// `ignore`: answer it as if all were well, and drop and count the message.
        acl_deny_action: DenyAction = DenyAction::Disconnect;
        /// File with what verifies JSON web tokens that clients send as password: a secret of at least 32 bytes, a public
        /// key (PEM), or a key set (JWKS). It is read anew when it changes. Empty: no tokens.
        jwt_key_file: PathBuf = PathBuf::new();
        /// Algorithms of tokens, such as RS256. Empty: all that fit the key.
        jwt_algorithms: Vec<String> = Vec::new();
        /// The claim that is the user name; a User Name in CONNECT has to be the same.
        jwt_user_claim: String = "sub".to_owned();
        /// What `aud` of a token has to name. Empty: it is not looked at.
        jwt_audience: String = String::new();
        /// What `iss` of a token has to be. Empty: it is not looked at.
        jwt_issuer: String = String::new();
        /// Seconds by which the clock of who makes tokens may differ from this node's.
        jwt_leeway_s: u32 = 10;
        /// A client stays connected when its token expires; else it is disconnected with 0x87.
        jwt_stays_after_expiry: bool = false;
    }
    "Consensus" {
        /// Interval of the leader's heartbeats.
        heartbeat_ms: u64 = 200;
        /// Shortest election timeout: at least three heartbeats, and ten fsyncs of the disk.
        election_ms_min: u64 = 800;
        /// Longest election timeout; also the leader's lease.
        election_ms_max: u64 = 1_200;
        /// A node that is silent for so long is declared lost: wills are published, its sessions are free.
        node_timeout_ms: u64 = 4_000;
        /// A node without a leader that a majority backs for so long sends its clients elsewhere.
        quorum_grace_ms: u64 = 3_500;
        /// After an outage of all nodes, cluster time jumps further than this only when all voters' clocks agree.
        cold_start_jump_s_max: u64 = 86_400;
        /// Bytes of commands that wait to be proposed; above, connections are not read.
        waiting_bytes_max: usize = 16_777_216;
        /// Commands that wait to be proposed; above, connections are not read.
        waiting_commands_max: usize = 65_536;
        /// Commands in one batch.
        batch_commands_max: usize = 64;
        /// Bytes in one batch (a single command may be longer).
        batch_bytes_max: usize = 65_536;
        /// Batches of this node on their way to the leader and through the log.
        batches_in_flight_max: usize = 64;
        /// Acknowledgements of clients that nothing waits for are proposed after so long, or with the next command that
        /// comes: an entry of their own would cost every node an fsync. At most 1,000; 0: at once.
        settle_delay_ms: u64 = 5;
        /// Leader: bytes of log that wait for their fsync; above, proposals are refused.
        unflushed_bytes_max: usize = 67_108_864;
        /// Bytes of QoS 0 messages that wait for another node; above, they are dropped and counted.
        qos0_bytes_max: usize = 8_388_608;
    }
    "Storage" {
        /// A snapshot is taken when so many bytes of log were applied since the last.
        snapshot_log_bytes: u64 = 268_435_456;
        /// A snapshot is taken at least so often, while anything is new.
        snapshot_interval_ms: u64 = 600_000;
        /// Bytes of log kept behind the snapshot, so that a node that was away needs no snapshot.
        log_keep_bytes: u64 = 268_435_456;
        /// Entries of log kept behind the snapshot, at most.
        log_keep_entries_max: u64 = 1_000_000;
        /// What keeps the Raft log: `rocksdb`, or `segments` (preallocated files, each record written once). For a new
        /// data directory only: a node does not start on the log of the other engine.
        log_engine: LogEngineKind = LogEngineKind(EngineKind::RocksDb);
        /// Bytes of a segment file of the log, with `log_engine = "segments"`.
        log_segment_bytes: u64 = 67_108_864;
        /// Bytes of the log's newest records kept in memory for replication and apply.
        log_tail_bytes_max: usize = 67_108_864;
        /// Bytes of records in one synced write.
        log_write_bytes_max: usize = 4_194_304;
        /// Bytes of one buffer of the log database, with `log_engine = "rocksdb"`; entries that are purged before it is full
        /// are never written twice.
        log_buffer_bytes: usize = 67_108_864;
        /// Bytes of one buffer of the row database; after so many bytes of log all rows are flushed. At twice as many,
        /// which a slow disk brings about, applying waits for it.
        rows_buffer_bytes: usize = 33_554_432;
        /// Bytes of rows that are kept in front of the row database; what is removed by then it never sees. At
        /// twice as many applying waits, too.
        rows_recent_bytes_max: usize = 8_388_608;
        /// Bytes of the row database's cache.
        rows_cache_bytes: usize = 33_554_432;
        /// Files that the row database keeps open.
        rows_open_files_max: u32 = 512;
    }
    "Administration" {
        /// Largest request body.
        admin_body_bytes_max: usize = 1_048_576;
        /// A request that is not answered by then gets 503.
        admin_timeout_ms: u64 = 30_000;
        /// Requests that are served at a time.
        admin_requests_max: usize = 128;
    }
}
