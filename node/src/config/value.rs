//! The types that a configuration key can have, and their two spellings: the text of a flag or an
//! environment variable, and the TOML that `quorate config default` prints.

use std::net::SocketAddr;
use std::path::PathBuf;

use quorate_store::log::EngineKind;
use serde::{Deserialize, Deserializer};

use crate::mqtt::ListenerOptions;
use crate::mqtt::options::DenyAction;

/// A type of configuration value.
pub trait Value: Sized {
    /// Whether the flag may stand alone (`--bootstrap`).
    const IS_SWITCH: bool = false;
    /// Whether the flag takes several values.
    const IS_LIST: bool = false;

    /// From a flag or an environment variable; the error says what is expected.
    ///
    /// # Errors
    /// What would have been right.
    fn from_text(text: &str) -> Result<Self, String>;
    /// As TOML.
    fn to_toml(&self) -> String;
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Value for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn to_toml(&self) -> String {
        quoted(self)
    }
}

impl Value for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Value for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:1883 or [::1]:1883".to_owned())
    }
    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for bool {
    const IS_SWITCH: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        }
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl Value for Listen {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(Self(None)) } else { SocketAddr::from_text(text).map(|address| Self(Some(address))) }
    }
    fn to_toml(&self) -> String {
        self.0.map_or_else(|| quoted(""), |address| address.to_toml())
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_text(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Value for Vec<ListenerOptions> {
    const IS_LIST: bool = true;

    /// A comma or a space ends a URL only where another one begins: parameters have commas too.
    fn from_text(text: &str) -> Result<Self, String> {
        let mut urls: Vec<String> = Vec::new();
        for part in text.split_inclusive([',', ' ']) {
            let (scheme, rest) = part.split_once("://").unwrap_or_default();
            let begins = !rest.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
            match urls.last_mut() {
                Some(url) if !begins => url.push_str(part),
                _ => urls.push(part.to_owned()),
            }
        }
        let urls = urls.iter().map(|url| url.trim_end_matches([',', ' '])).filter(|url| !url.is_empty());
        urls.map(|url| url.parse().map_err(|error: crate::mqtt::listen::UrlError| format!("{url}: {error}"))).collect()
    }
    fn to_toml(&self) -> String {
        format!("[{}]", self.iter().map(|listener| quoted(&listener.url)).collect::<Vec<_>>().join(", "))
    }
}

impl<'de> Deserialize<'de> for ListenerOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn from_text(text: &str) -> Result<Self, String> {
                text.replace('_', "")
                    .parse()
                    .map_err(|_| format!("expected a whole number from {} to {}", Self::MIN, Self::MAX))
            }
            fn to_toml(&self) -> String {
                let digits = self.to_string();
                let mut out = String::with_capacity(digits.len() + digits.len() / 3);
                for (place, digit) in digits.chars().enumerate() {
                    if place > 0 && (digits.len() - place).is_multiple_of(3) {
                        out.push('_');
                    }
                    out.push(digit);
                }
                out
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, usize);

impl Value for Vec<String> {
    const IS_LIST: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.split([',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }
    fn to_toml(&self) -> String {
        format!("[{}]", self.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", "))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What happens to a message for which a session's queue has no room (see `quorate_store`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueFull {
    /// The publisher is refused.
    Reject,
    /// The oldest unsent messages go.
    DropOldest,
}

/// Which engine keeps the Raft log (see `quorate_store::log`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEngineKind(pub EngineKind);

macro_rules! words {
    ($($ty:ty { $($word:literal => $value:expr),* })*) => {$(
        impl Value for $ty {
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($value),)*
                    _ => Err(format!("expected one of: {}", [$($word),*].join(", "))),
                }
            }
            fn to_toml(&self) -> String {
                $(if *self == $value { return quoted($word); })*
                String::new()
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::from_text(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
words! {
    LogEngineKind { "rocksdb" => Self(EngineKind::RocksDb), "segments" => Self(EngineKind::Segments) }
    LogFormat { "text" => Self::Text, "json" => Self::Json }
    DenyAction { "disconnect" => Self::Disconnect, "ignore" => Self::Ignore }
    QueueFull { "reject" => Self::Reject, "drop-oldest" => Self::DropOldest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_what_they_print() {
        assert_eq!(1_048_576_u64.to_toml(), "1_048_576");
        assert_eq!(100_u16.to_toml(), "100");
        assert_eq!(u64::from_text("1_048_576"), Ok(1_048_576));
        assert_eq!(vec!["a:1".to_owned(), "b:2".to_owned()].to_toml(), r#"["a:1", "b:2"]"#);
        assert_eq!(Vec::<String>::from_text("a:1, b:2 c"), Ok(vec!["a:1".into(), "b:2".into(), "c".into()]));
        assert_eq!(LogFormat::Json.to_toml(), "\"json\"");
        for engine in [EngineKind::RocksDb, EngineKind::Segments] {
            // Errors of the log name the engine as the key does.
            assert_eq!(LogEngineKind::from_text(&engine.to_string()), Ok(LogEngineKind(engine)));
        }
    }

    #[test]
    fn urls_keep_the_commas_of_their_parameters() {
        let text = "tcp://127.0.0.1:1?auth=jwt,password,unix:///a%20b.sock ws://127.0.0.1:2,";
        let listeners = Vec::<ListenerOptions>::from_text(text).unwrap();
        let urls: Vec<&str> = listeners.iter().map(|listener| listener.url.as_str()).collect();
        assert_eq!(urls, ["tcp://127.0.0.1:1?auth=jwt,password", "unix:///a%20b.sock", "ws://127.0.0.1:2"]);
        let toml = r#"["tcp://127.0.0.1:1?auth=jwt,password", "unix:///a%20b.sock", "ws://127.0.0.1:2"]"#;
        assert_eq!(listeners.to_toml(), toml);
        assert_eq!(Vec::<ListenerOptions>::from_text(""), Ok(Vec::new()));
        let error = Vec::<ListenerOptions>::from_text("tcp://127.0.0.1:1?nmae=x").unwrap_err();
        assert_eq!(error, "tcp://127.0.0.1:1?nmae=x: there is no parameter `nmae` (did you mean `name`?)");
        assert_eq!(Listen::from_text(""), Ok(Listen(None)));
        assert_eq!(Listen::from_text("127.0.0.1:1").map(|listen| listen.to_toml()), Ok("\"127.0.0.1:1\"".to_owned()));
    }

    #[test]
    fn bad_values_say_what_is_expected() {
        assert_eq!(u16::from_text("70000"), Err("expected a whole number from 0 to 65535".to_owned()));
        assert!(QueueFull::from_text("drop").is_err_and(|e| e.contains("drop-oldest")));
        assert!(bool::from_text("yes").is_err());
        assert!(SocketAddr::from_text("1883").is_err_and(|e| e.contains("127.0.0.1:1883")));
    }
}
