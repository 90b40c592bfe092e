//! Forwarding to the leader: a node that cannot carry out a request itself asks the leader's
//! administration and relays the answer. A request that was forwarded is never forwarded again; a leader that has
//! handed over meanwhile (as one that is to be removed does first) says who leads now, and is believed a few times.

use std::fmt;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse;

use crate::cluster::LeaderAddress;
use crate::problem::Problem;

/// Marks a request that a node forwarded; its value is that node's id.
pub const FORWARDED: &str = "quorate-forwarded-by";
/// In a refusal because leadership moved: the id of the leader now, and where its administration is.
const LEADER_ID: &str = "quorate-leader";
const LEADER_ADMIN: &str = "quorate-leader-admin";
/// Leaders that are asked, one after the other.
const LEADERS_MAX: usize = 3;
/// Largest answer of the leader that is relayed.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client for the leader's administration.
#[derive(Clone, Debug)]
pub struct Forwarder {
    node: u64,
    client: reqwest::Client,
}

/// A request, as far as it is forwarded.
#[derive(Clone)]
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

impl fmt::Debug for Forwardable {
    /// Without the body: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, target, was_forwarded, body } = self;
        let body_bytes = body.len();
        f.debug_struct("Forwardable")
            .field("method", method)
            .field("target", target)
            .field("was_forwarded", was_forwarded)
            .field("body_bytes", &body_bytes)
            .finish()
    }
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
            return moved(leader);
        }
        let mut leader = leader.clone();
        for _ in 1..LEADERS_MAX {
            let answer = self.relay(&leader, request.clone()).await;
            match leader_now(&answer) {
                Some(now) => leader = now,
                None => return answer,
            }
        }
        self.relay(&leader, request).await
    }

    async fn relay(&self, leader: &LeaderAddress, request: Forwardable) -> Response<Body> {
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
        let kept = [header::CONTENT_TYPE, HeaderName::from_static(LEADER_ID), HeaderName::from_static(LEADER_ADMIN)];
        let kept = kept.map(|name| (answer.headers().get(&name).cloned(), name));
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
        for (value, name) in kept {
            if let Some(value) = value {
                response.headers_mut().insert(name, value);
            }
        }
        Ok(response)
    }
}

/// This node was taken for the leader.
fn moved(leader: &LeaderAddress) -> Response<Body> {
    let detail = format!("this node was taken for the leader, but node {} at {} is; retry", leader.id, leader.admin);
    let mut response = Problem::unavailable("leader-moved", "Leadership moved meanwhile", detail).into_response();
    if let Ok(admin) = HeaderValue::from_str(&leader.admin) {
        response.headers_mut().insert(LEADER_ID, HeaderValue::from(leader.id));
        response.headers_mut().insert(LEADER_ADMIN, admin);
    }
    response
}

/// Who leads now, when an answer says that leadership moved.
fn leader_now(answer: &Response<Body>) -> Option<LeaderAddress> {
    let text = |name| answer.headers().get(name)?.to_str().ok();
    Some(LeaderAddress { id: text(LEADER_ID)?.parse().ok()?, admin: text(LEADER_ADMIN)?.to_owned() })
}
