//! Talking to a node's administration, in the words of the command line.

use std::fmt;
use std::time::Duration;

use reqwest::{Client, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;

use quorate_http_admin::Problem;

use super::Failure;

/// How long a command waits for an answer: longer than the server's own timeout.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One node's administration.
#[derive(Debug)]
pub(crate) struct Admin {
    base: String,
    client: Client,
}

/// What did not work.
#[derive(Debug)]
pub(crate) enum AdminFailure {
    /// Nobody answers there.
    Unreachable(String),
    /// The node says no.
    Refused(Problem),
    /// What answers there is not a Quorate administration.
    Foreign(String),
}

impl Admin {
    /// `url` may leave out `http://`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub(crate) fn new(url: &str, timeout: Option<Duration>) -> Result<Self, Failure> {
        let base = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let client = Client::builder()
            .timeout(timeout.unwrap_or(TIMEOUT))
            .no_proxy()
            .build()
            .map_err(|error| Failure::new(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), client })
    }

    /// Where it is.
    #[must_use]
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request and reads the JSON that answers.
    ///
    /// # Errors
    /// [`AdminFailure`]
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, AdminFailure> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| AdminFailure::Unreachable(root_cause(&error)))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| AdminFailure::Unreachable(root_cause(&error)))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| AdminFailure::Foreign(error.to_string()));
        }
        match serde_json::from_slice(&bytes) {
            Ok(problem) => Err(AdminFailure::Refused(problem)),
            Err(_) => Err(AdminFailure::Foreign(format!("HTTP status {status}"))),
        }
    }

    /// Words for a failure.
    #[must_use]
    pub(crate) fn failure(&self, failure: &AdminFailure) -> Failure {
        let base = &self.base;
        Failure::new(match failure {
            AdminFailure::Unreachable(why) => format!(
                "nobody answers at {base}: {why}\n  is the node running? name another one's admin address with --admin (the demo's are http://127.0.0.1:7481 to 7483)"
            ),
            AdminFailure::Refused(problem) => format!("{base} says: {}\n  {}", problem.title, problem.detail),
            AdminFailure::Foreign(why) => format!(
                "what answers at {base} is not the administration of a Quorate node ({why})\n  check the port: MQTT, peer and admin addresses differ"
            ),
        })
    }
}

impl fmt::Display for AdminFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "nobody answers: {why}"),
            Self::Refused(problem) => write!(f, "{}: {}", problem.title, problem.detail),
            Self::Foreign(why) => write!(f, "what answers is not the administration of a Quorate node: {why}"),
        }
    }
}

/// `text` as a part of a path or query.
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(url, "%{byte:02X}");
        }
        url
    })
}

/// reqwest's own text stops at "error sending request": the reason is at the end of the chain.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
