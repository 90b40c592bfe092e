//! Forwarding to the leader: a node that cannot carry out a request itself asks the leader's
//! administration and relays the answer, once. A request that was forwarded is never forwarded again.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::response::IntoResponse;

use crate::cluster::LeaderAddress;
use crate::problem::Problem;

/// Marks a request that a node forwarded; its value is that node's id.
pub const FORWARDED: &str = "quorate-forwarded-by";
/// Largest answer of the leader that is relayed.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client for the leader's administration.
#[derive(Clone, Debug)]
pub struct Forwarder {
    node: u64,
    client: reqwest::Client,
}

/// A request, as far as it is forwarded.
#[derive(Clone, Debug)]
pub struct Forwardable {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// Whether a node has forwarded it already.
    pub was_forwarded: bool,
    /// Body.
    pub body: Bytes,
}

impl Forwardable {
    /// Takes what matters from a request.
    #[must_use]
    pub fn new(method: Method, target: String, headers: &HeaderMap, body: Bytes) -> Self {
        Self { method, target, was_forwarded: headers.contains_key(FORWARDED), body }
    }
}

impl Forwarder {
    /// A forwarder of node `node` that waits up to `timeout` for an answer.
    ///
    /// # Errors
    /// When the HTTP client cannot be made (no resolver, no file descriptors).
    pub fn new(node: u64, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(2)))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { node, client })
    }

    /// Asks `leader` and relays its answer.
    pub async fn forward(&self, leader: &LeaderAddress, request: Forwardable) -> Response<Body> {
        if request.was_forwarded {
            return Problem::unavailable(
                "leader-moved",
                "Leadership moved meanwhile",
                format!("this node was taken for the leader, but node {} at {} is; retry", leader.id, leader.admin),
            )
            .into_response();
        }
        match self.ask(leader, request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(leader = leader.id, admin = leader.admin, %error, "the leader's administration does not answer");
                Problem::unavailable(
                    "leader-unreachable",
                    "The leader's administration does not answer",
                    format!(
                        "node {} at {}: {error}; the request may or may not have been carried out: look at /api/v1/cluster, then retry",
                        leader.id, leader.admin
                    ),
                )
                .into_response()
            }
        }
    }

    async fn ask(&self, leader: &LeaderAddress, request: Forwardable) -> Result<Response<Body>, reqwest::Error> {
        let mut answer = self
            .client
            .request(request.method, format!("http://{}{}", leader.admin, request.target))
            .header(FORWARDED, self.node)
            .header(header::CONTENT_TYPE, "application/json")
            .body(request.body)
            .send()
            .await?;
        let status = StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
        let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let detail = format!("node {} answered more than {ANSWER_BYTES_MAX} bytes", leader.id);
                return Ok(Problem::unavailable("leader-unreachable", "The leader's answer is too long", detail)
                    .into_response());
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = (status, body).into_response();
        if let Some(kind) = kind {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        Ok(response)
    }
}
