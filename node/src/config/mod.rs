//! The configuration of a node: one table of keys ([`keys`]), four layers.
//!
//! Defaults lie below the file, the file below the environment (`QUORATE_…`), the environment below the
//! flags. This module reads and checks; it starts nothing and holds no state. Nothing here reaches the
//! replicated state except, once, the `bootstrap_` keys: what changes an outcome is a replicated row.

mod error;
mod keys;
mod value;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use quorate_store::seeded_bug::is_variable;
use quorate_store::topic::TOPIC_LEVELS_MAX;

pub use error::ConfigError;
pub use keys::{Config, Key, Layer};
pub use value::{Listen, LogEngineKind, LogFormat, QueueFull, Value};

use crate::mqtt::ListenerOptions;
use crate::mqtt::listen::{AuthMethod, Endpoint, load_tls};
use crate::nearest::nearest;

/// Prefix of the environment variables.
pub const VARIABLE_PREFIX: &str = "QUORATE_";
/// Variables that are no keys: `server --config`, `cluster --admin`, `pub`/`sub --url`.
pub const OTHER_VARIABLES: [&str; 3] = ["QUORATE_CONFIG", "QUORATE_ADMIN_URL", "QUORATE_URL"];

/// Most of `packet_bytes_max`: a batch of one such packet still fits in a frame to a peer (64 MiB).
const PACKET_BYTES_MOST: u32 = 60 << 20;
/// Most of `subscribe_filters_max`: what the state machine takes in one command.
const FILTERS_MOST: u16 = 1_024;
/// Most of `topic_alias_out_max`.
const ALIASES_OUT_MOST: u16 = 1_024;
/// Longest `response_topic_prefix`.
const RESPONSE_PREFIX_BYTES_MOST: usize = 1_024;
/// Most of `mqtt_workers`.
const WORKERS_MOST: usize = 1_024;
/// Most of `settle_delay_ms`.
const SETTLE_DELAY_MS_MOST: u64 = 1_000;

impl Key {
    /// The flag, without dashes before it.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }
}

impl Config {
    /// Defaults, then `file`, then `variables`, then `flags` (key and text), checked.
    ///
    /// # Errors
    /// [`ConfigError`], which names the place.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
            config.overlay(parse_file(path, &text)?);
        }
        config.overlay(parse_variables(variables)?);
        let mut layer = Layer::default();
        for (key, text) in flags {
            if let Some(Err(expected)) = layer.set(key, &text) {
                return Err(ConfigError::BadText { origin: format!("--{}", key.replace('_', "-")), text, expected });
            }
        }
        config.overlay(layer);
        config.check()?;
        Ok(config)
    }

    /// Whether the values make sense, alone and together.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] for the first that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &'static str, why: &str, remedy: &str| {
            let value = self.entries().into_iter().find(|(k, _)| k.name == key).map_or_else(String::new, |(_, v)| v);
            Err(ConfigError::Refused { key, value, why: why.to_owned(), remedy: remedy.to_owned() })
        };
        if self.bootstrap && !self.join.is_empty() {
            return refuse(
                "bootstrap",
                "a node either makes a new cluster or joins one",
                "keep `bootstrap` or `join`, not both",
            );
        }
        for (key, address) in [("mqtt", self.mqtt.0), ("peer", Some(self.peer)), ("admin", Some(self.admin))] {
            if !self.allow_anonymous && address.is_some_and(|address| !address.ip().is_loopback()) {
                return refuse(
                    key,
                    "whoever reaches this address would be let in without authentication",
                    "use a loopback address, or, on a network that you trust, set allow_anonymous = true (--allow-anonymous)",
                );
            }
        }
        if self.mqtt.0.is_none() && self.listeners.is_empty() {
            return refuse("mqtt", "no client could connect", "give an address, or at least one of `listeners`");
        }
        for listener in &self.listeners {
            self.check_listener(listener)?;
        }
        if self.peer.ip().is_unspecified() && self.peer_advertise.is_empty() {
            return refuse(
                "peer_advertise",
                "others cannot reach the address 0.0.0.0 or ::",
                "say under which `host:port` they reach this node, for example \"node1.example:7400\"",
            );
        }
        for (key, text) in [
            ("mqtt_advertise", &self.mqtt_advertise),
            ("peer_advertise", &self.peer_advertise),
            ("admin_advertise", &self.admin_advertise),
        ] {
            if !text.is_empty() && !is_host_port(text) {
                return refuse(key, "this is no `host:port`", "write it like \"node1.example:7400\"");
            }
        }
        for text in &self.join {
            if !is_host_port(text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/')) {
                return refuse(
                    "join",
                    "this is no `host:port`",
                    "give the admin address of a member, like \"node1.example:7480\"",
                );
            }
        }
        if !self.join_token.is_empty() && u128::from_str_radix(&self.join_token, 16).is_err() {
            return refuse(
                "join_token",
                "a token is up to 32 hexadecimal digits",
                "copy it from `quorate cluster add`",
            );
        }
        if self.heartbeat_ms == 0 || self.election_ms_min < 3 * self.heartbeat_ms {
            return refuse(
                "election_ms_min",
                "an election timeout below three heartbeats deposes healthy leaders",
                "raise election_ms_min or lower heartbeat_ms (at least 1)",
            );
        }
        if self.election_ms_max < self.election_ms_min.saturating_add(self.heartbeat_ms) {
            return refuse(
                "election_ms_max",
                "too near to election_ms_min: candidates would keep colliding",
                "make it at least election_ms_min + heartbeat_ms",
            );
        }
        if self.quorum_grace_ms >= self.node_timeout_ms {
            return refuse(
                "quorum_grace_ms",
                "a node cut off must have sent its clients away before it is declared lost",
                "make it less than node_timeout_ms",
            );
        }
        if self.node_timeout_ms <= self.election_ms_max {
            return refuse(
                "node_timeout_ms",
                "a node would be declared lost during an ordinary election",
                "make it more than election_ms_max",
            );
        }
        if !(1_024..=PACKET_BYTES_MOST).contains(&self.packet_bytes_max) {
            return refuse(
                "packet_bytes_max",
                "a packet goes to the other nodes in one frame of at most 64 MiB",
                "use 1,024 to 62,914,560",
            );
        }
        if !(1..=FILTERS_MOST).contains(&self.subscribe_filters_max) {
            return refuse(
                "subscribe_filters_max",
                "one command of the log has at most 1,024 filters, and a SUBSCRIBE at least one",
                "use 1 to 1,024",
            );
        }
        if self.qos_max > 2 {
            return refuse("qos_max", "MQTT has QoS 0, 1 and 2", "use 0, 1 or 2");
        }
        if !(1..=TOPIC_LEVELS_MAX).contains(&self.topic_levels_max) {
            return refuse("topic_levels_max", "the state machine takes topics of 1 to 128 levels", "use 1 to 128");
        }
        if self.topic_alias_out_max > ALIASES_OUT_MOST {
            return refuse("topic_alias_out_max", "aliases are searched one by one", "use 0 to 1,024");
        }
        if self.keep_alive_s_max > 0 && self.keep_alive_s_min > self.keep_alive_s_max {
            return refuse("keep_alive_s_min", "it is above keep_alive_s_max", "make it at most keep_alive_s_max");
        }
        if self.response_topic_prefix.len() > RESPONSE_PREFIX_BYTES_MOST
            || self.response_topic_prefix.contains(['+', '#', '\0'])
        {
            return refuse(
                "response_topic_prefix",
                "topics that begin with it could not be published to",
                "use at most 1,024 bytes without +, # and U+0000",
            );
        }
        if self.mqtt_workers > WORKERS_MOST {
            return refuse("mqtt_workers", "there can be at most 1,024", "use 0 for one for each processor");
        }
        if self.settle_delay_ms > SETTLE_DELAY_MS_MOST {
            return refuse(
                "settle_delay_ms",
                "what clients acknowledge would lie on this node for long, and come again if it died",
                "use at most 1,000; 0 proposes each at once",
            );
        }
        for (key, value) in [("receive_maximum", self.receive_maximum), ("inflight_max", self.inflight_max)] {
            if value == 0 {
                return refuse(key, "with 0 no message at QoS 1 or 2 could ever be sent", "use 1 to 65,535");
            }
        }
        for (key, value) in [
            ("connections_max", self.connections_max),
            ("outbound_bytes_max", self.outbound_bytes_max),
            ("auth_waiting_max", self.auth_waiting_max),
            ("transient_queue_bytes_max", self.transient_queue_bytes_max),
            ("page_rows_max", self.page_rows_max),
            ("page_bytes_max", self.page_bytes_max),
            ("mailbox_bytes_max", self.mailbox_bytes_max),
            ("qos0_bytes_max", self.qos0_bytes_max),
            ("admin_body_bytes_max", self.admin_body_bytes_max),
            ("waiting_bytes_max", self.waiting_bytes_max),
            ("waiting_commands_max", self.waiting_commands_max),
            ("admin_requests_max", self.admin_requests_max),
        ] {
            if value == 0 {
                return refuse(
                    key,
                    "0 would stop the node from serving anybody",
                    "use at least 1, or leave the key out",
                );
            }
        }
        for (key, value) in [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("connect_deadline_ms", self.connect_deadline_ms),
            ("admin_timeout_ms", self.admin_timeout_ms),
        ] {
            if value == 0 {
                return refuse(key, "nothing is ever done in 0 milliseconds", "use at least 1, or leave the key out");
            }
        }
        Ok(())
    }

    /// Whether a listener is safe, and its files can be used.
    fn check_listener(&self, listener: &ListenerOptions) -> Result<(), ConfigError> {
        let refuse = |why: String, remedy: &str| ConfigError::Refused {
            key: "listeners",
            value: listener.url.clone(),
            why,
            remedy: remedy.to_owned(),
        };
        if !self.allow_anonymous && !listener.is_local() && listener.allows_anonymous() {
            return Err(refuse(
                "whoever reaches this address would be let in without authentication".to_owned(),
                "name how clients authenticate, such as auth=password, or, on a network that you trust, set allow_anonymous = true (--allow-anonymous)",
            ));
        }
        if listener.auth.contains(&AuthMethod::Jwt) && self.jwt_key_file.as_os_str().is_empty() {
            let why = "there is no key to verify tokens with".to_owned();
            return Err(refuse(why, "set jwt_key_file (--jwt-key-file), or leave jwt out of auth"));
        }
        if let Some(tls) = &listener.tls {
            load_tls(tls).map_err(|error| {
                refuse(error.to_string(), "paths are taken from where the server runs: write them absolute")
            })?;
        }
        if self.listeners.iter().filter(|other| other.name == listener.name).count() > 1 {
            let why = "two listeners have this name".to_owned();
            return Err(refuse(why, "listen somewhere else, or name them apart with name=…"));
        }
        Ok(())
    }

    /// As a commented TOML file that reads back to this configuration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from(
            "# Configuration of `quorate server --config FILE`: every key with its default.\n\
             # Each key is also a flag (--data-dir) and an environment variable (QUORATE_DATA_DIR);\n\
             # flags go before variables, variables before this file. Unknown keys are errors.\n\
             # _ms is milliseconds, _s seconds, _bytes bytes.\n",
        );
        let mut section = "";
        for (key, value) in self.entries() {
            if key.section != section {
                section = key.section;
                let _ = write!(out, "\n# ---- {section} ----\n");
            }
            out.push('\n');
            for line in key.doc {
                let _ = writeln!(out, "#{line}");
            }
            let _ = writeln!(out, "{} = {value}", key.name);
        }
        out
    }

    /// Under which address MQTT clients reach this node.
    #[must_use]
    pub fn mqtt_public(&self) -> String {
        let first = self.listeners.iter().find_map(|listener| match listener.endpoint {
            Endpoint::Tcp(address) => Some(address),
            Endpoint::Unix { .. } => None,
        });
        match self.mqtt.0.or(first) {
            Some(address) => self.public(&self.mqtt_advertise, address),
            None => self.mqtt_advertise.clone(),
        }
    }

    /// Under which address the other nodes reach this node.
    #[must_use]
    pub fn peer_public(&self) -> String {
        self.public(&self.peer_advertise, self.peer)
    }

    /// Under which address the administration is reached.
    #[must_use]
    pub fn admin_public(&self) -> String {
        self.public(&self.admin_advertise, self.admin)
    }

    /// What is advertised, or the address; for an address that nobody can reach, the host of `peer_advertise`.
    fn public(&self, advertised: &str, listened: SocketAddr) -> String {
        if !advertised.is_empty() {
            return advertised.to_owned();
        }
        match self.peer_advertise.rsplit_once(':') {
            Some((host, _)) if listened.ip().is_unspecified() => format!("{host}:{}", listened.port()),
            _ => listened.to_string(),
        }
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Reads a file's text; `path` is for the errors.
///
/// # Errors
/// [`ConfigError::UnknownKey`], [`ConfigError::Malformed`].
pub fn parse_file(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    let malformed = |e: &toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        message: e.to_string().trim_end().to_owned(),
    };
    let table = toml::de::DeTable::parse(text).map_err(|e| malformed(&e))?;
    let keys = Config::default().entries();
    for key in table.get_ref().keys() {
        if !keys.iter().any(|(known, _)| known.name == key.get_ref().as_ref()) {
            let before = text.get(..key.span().start).unwrap_or_default();
            return Err(ConfigError::UnknownKey {
                key: key.get_ref().to_string(),
                path: path.to_owned(),
                line: 1 + before.matches('\n').count(),
                nearest: nearest(key.get_ref(), keys.iter().map(|(known, _)| known.name)),
            });
        }
    }
    toml::from_str(text).map_err(|e| malformed(&e))
}

fn parse_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    for (name, text) in variables {
        let Some(key) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
        if OTHER_VARIABLES.contains(&name.as_str()) || is_service_link(key) || is_variable(&name) {
            continue;
        }
        let lower = key.to_ascii_lowercase();
        match layer.set(&lower, &text) {
            Some(Ok(())) => {}
            Some(Err(expected)) => return Err(ConfigError::BadText { origin: name, text, expected }),
            None => {
                let keys = Config::default().entries();
                let nearest = nearest(&lower, keys.iter().map(|(known, _)| known.name));
                let nearest = nearest.map(|key| format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase()));
                return Err(ConfigError::UnknownVariable { name, nearest });
            }
        }
    }
    Ok(layer)
}

/// Kubernetes sets such variables in every pod beside a service named `quorate`: nobody wrote them, so
/// they are no mistakes.
fn is_service_link(key: &str) -> bool {
    key == "PORT" || key.starts_with("PORT_") || key == "SERVICE_HOST" || key.starts_with("SERVICE_PORT")
}

#[cfg(test)]
mod tests;
