//! What `pub` and `sub` have in common: where to connect, as whom, and how to connect again.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Failure;
use crate::client::{Client, ClientError, Qos, Version, address_of};

/// Between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Where to connect, and as whom.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Servers, tried in turn
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        env = "QUORATE_URL",
        default_value = "mqtt://127.0.0.1:1883"
    )]
    pub(crate) url: Vec<String>,
    /// Client identifier [a random one]
    #[arg(long, value_name = "ID")]
    pub(crate) client_id: Option<String>,
    /// Protocol version
    #[arg(long, value_enum, default_value_t = Protocol::V5)]
    pub(crate) protocol: Protocol,
    /// Keep Alive in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) keep_alive: u16,
    /// Give up when no server has accepted the client for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u64,
}

/// Protocol version, as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// MQTT 3.1.1
    #[value(name = "3.1.1", alias = "3", alias = "311")]
    V311,
    /// MQTT 5.0
    #[value(name = "5", alias = "5.0")]
    V5,
}

impl From<Protocol> for Version {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::V311 => Self::V311,
            Protocol::V5 => Self::V5,
        }
    }
}

/// `0`, `1` or `2`.
pub(crate) fn parse_qos(text: &str) -> Result<Qos, String> {
    text.parse().ok().and_then(Qos::from_u8).ok_or_else(|| "QoS is 0, 1 or 2".to_owned())
}

impl Target {
    /// The client identifier, or a random one that begins with `prefix`.
    #[must_use]
    pub(crate) fn client_id(&self, prefix: &str) -> String {
        self.client_id.clone().unwrap_or_else(|| format!("{prefix}-{:08x}", rand::random::<u32>()))
    }

    /// Connects to the first server that accepts; `preferred` (a Server Reference, one server or more)
    /// goes first.
    ///
    /// # Errors
    /// When none has for `timeout`, or when one refuses for good.
    pub(crate) async fn connect(&self, client: &mut Client, preferred: Option<&str>) -> Result<bool, Failure> {
        let timeout = Duration::from_secs(self.timeout.max(1));
        let deadline = tokio::time::Instant::now() + timeout;
        let mut preferred: Vec<String> = preferred.unwrap_or_default().split_whitespace().map(address_of).collect();
        loop {
            let mut last = None;
            let listed = self.url.iter().map(|url| address_of(url));
            for address in std::mem::take(&mut preferred).into_iter().chain(listed) {
                match client.connect(&address, timeout).await {
                    Ok(present) => return Ok(present),
                    Err(ClientError::Refused { reason, detail }) if is_final(reason) => {
                        let error = ClientError::Refused { reason, detail };
                        return Err(Failure::new(format!("{address}: {error}")));
                    }
                    Err(error) => last = Some(format!("{address}: {error}")),
                }
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Failure::new(format!(
                    "{}\n  is the server running? name servers with --url mqtt://HOST:PORT[,mqtt://HOST:PORT...]",
                    last.unwrap_or_else(|| "no server is named".to_owned())
                )));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Whether another attempt would be refused, too.
fn is_final(reason: u8) -> bool {
    matches!(reason, 0x81 | 0x82 | 0x84..=0x87 | 0x8a)
}
