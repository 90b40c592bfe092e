//! What can be wrong with a configuration: each says what, where and what to do.

use std::path::PathBuf;

use thiserror::Error;

use crate::nearest::did_you_mean;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration file {path}: {source}\n  check the path and its permissions, or leave out --config to run with the defaults"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or a value has the wrong type.
    #[error(
        "{path} is not a valid configuration: {message}\n  `quorate config default` prints every key with its type and default"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` in {path}, line {line}{}\n  `quorate config default` prints every key", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// The key that was meant, perhaps.
        nearest: Option<&'static str>,
    },
    /// An environment variable that begins with `QUORATE_` and names no key.
    #[error("unknown environment variable `{name}`{}\n  every QUORATE_ variable is a key of the configuration in capitals; `quorate config default` prints every key", did_you_mean(.nearest.as_deref()))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The variable that was meant, perhaps.
        nearest: Option<String>,
    },
    /// A flag's or variable's text does not parse.
    #[error("{origin}: `{text}` is not a value for it: {expected}")]
    BadText {
        /// The flag or variable.
        origin: String,
        /// What it says.
        text: String,
        /// What is expected.
        expected: String,
    },
    /// A value, or two of them together, make no sense.
    #[error("{key} = {value}: {why}\n  {remedy}")]
    Refused {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        why: String,
        /// What to do.
        remedy: String,
    },
}
