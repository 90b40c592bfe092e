//! The routes: what each path does, with limits around everything but health.
//!
//! Handlers hold no state of their own. Reads are answered by any node from what it knows; changes go
//! to the cluster, and when only the leader can carry them out, to the leader's administration.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, OriginalUri, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::cluster::{AdminError, ClusterAdmin, JoinRequest, TransferRequest};
use crate::dry_run::{Change, plan};
use crate::forward::{Forwardable, Forwarder};
use crate::metrics::Metrics;
use crate::problem::Problem;

/// Bounds of the administration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request body.
    pub body_bytes_max: usize,
    /// A request that is not answered by then gets 503.
    pub timeout: Duration,
    /// Requests that are served at a time; health is not counted.
    pub requests_max: usize,
}

pub(crate) struct Shared<C> {
    pub(crate) cluster: C,
    forwarder: Forwarder,
    metrics: Arc<Metrics>,
    slots: Semaphore,
    timeout: Duration,
    /// Passwords that are hashed at a time: each takes 19 MiB and a processor.
    pub(crate) hashing: Arc<Semaphore>,
}

/// Passwords that are hashed at a time.
const HASHING_MAX: usize = 2;
/// Most rows of one answer.
pub(crate) const PAGE_ROWS_MAX: usize = 1000;

pub(crate) type App<C> = State<Arc<Shared<C>>>;

/// All routes over `cluster`.
pub fn router<C: ClusterAdmin>(cluster: C, forwarder: Forwarder, metrics: Arc<Metrics>, limits: Limits) -> Router {
    let shared = Arc::new(Shared {
        cluster,
        forwarder,
        metrics,
        slots: Semaphore::new(limits.requests_max.min(Semaphore::MAX_PERMITS)),
        timeout: limits.timeout,
        hashing: Arc::new(Semaphore::new(HASHING_MAX)),
    });
    let health = Router::new()
        .route("/health/live", get(|| async { ok("live") }))
        .route("/health/ready", get(ready::<C>))
        .route("/health/leader", get(leader_health::<C>));
    let rest = Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/metrics", get(metrics_text::<C>))
        .route("/api/v1/cluster", get(cluster_view::<C>))
        .route("/api/v1/cluster/nodes", get(nodes::<C>).post(join::<C>))
        .route("/api/v1/cluster/nodes/{id}", delete(remove::<C>))
        .route("/api/v1/cluster/nodes/{id}/promote", post(promote::<C>))
        .route("/api/v1/cluster/nodes/{id}/demote", post(demote::<C>))
        .route("/api/v1/cluster/leader", post(transfer::<C>))
        .route("/api/v1/cluster/digest", get(digest::<C>))
        .merge(crate::users::routes::<C>())
        .merge(crate::acls::routes::<C>())
        .merge(crate::shares::routes::<C>())
        .layer(axum::middleware::from_fn_with_state(shared.clone(), bounded::<C>))
        .layer(DefaultBodyLimit::max(limits.body_bytes_max));
    health
        .merge(rest)
        .fallback(|uri: Uri| async move { Problem::not_found(uri.path()) })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .with_state(shared)
}

/// Takes one of the slots and holds the handler to the timeout.
async fn bounded<C: ClusterAdmin>(State(shared): App<C>, request: Request, next: Next) -> Response {
    if !is_own_origin(request.headers()) {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "foreign-origin",
            "Asked by another web site",
            "a page of another origin may not use this interface",
        )
        .into_response();
    }
    let Ok(_slot) = shared.slots.try_acquire() else {
        return Problem::unavailable("overloaded", "Too many requests at a time", "retry after a second")
            .into_response();
    };
    match tokio::time::timeout(shared.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable(
            "timeout",
            "Not answered in time",
            "the request may or may not have been carried out: look at /api/v1/cluster, then retry",
        )
        .into_response(),
    }
}

/// Browsers name the page that asks: only our own may, else any web site could change a cluster on loopback.
fn is_own_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    origin.as_bytes().split(|byte| *byte == b'/').next_back() == Some(host)
}

fn ok(status: &str) -> Response {
    json(StatusCode::OK, &serde_json::json!({ "status": status }))
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = (status, body).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => Problem::from(AdminError::Internal(error.to_string())).into_response(),
    }
}

async fn ready<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    match shared.cluster.health().not_ready {
        None => ok("ready"),
        Some(why) => Problem::unavailable("not-ready", "Not ready for clients", why).into_response(),
    }
}

async fn leader_health<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    if shared.cluster.health().is_leader {
        ok("leader")
    } else {
        Problem::unavailable("not-leader", "Not the leader", "another node leads, or none does").into_response()
    }
}

async fn metrics_text<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    match shared.metrics.encode(&shared.cluster.view(), &shared.cluster.health()) {
        Ok(text) => {
            const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
        }
        Err(error) => Problem::from(AdminError::Internal(error.to_string())).into_response(),
    }
}

async fn cluster_view<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    json(StatusCode::OK, &shared.cluster.view())
}

async fn nodes<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    json(StatusCode::OK, &shared.cluster.view().nodes)
}

async fn digest<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    match shared.cluster.digest().await {
        Ok(digest) => json(StatusCode::OK, &digest),
        Err(error) => Problem::from(error).into_response(),
    }
}

/// What every change comes with.
pub(crate) struct Ask {
    request: Forwardable,
    pub(crate) dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    dry_run: bool,
}

impl<S: Send + Sync> axum::extract::FromRequest<S> for Ask {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let Query(options) = Query::<Options>::try_from_uri(&parts.uri)
            .map_err(|e| Problem::bad_request(format!("{}; the only option is dry_run=true", e.body_text())))?;
        let (method, headers): (Method, HeaderMap) = (parts.method.clone(), parts.headers.clone());
        let uri =
            parts.extensions.get::<OriginalUri>().map_or_else(|| parts.uri.clone(), |original| original.0.clone());
        let target = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
        let body = Bytes::from_request(Request::from_parts(parts, body), state).await.map_err(body_problem)?;
        Ok(Self { request: Forwardable::new(method, target, &headers, body), dry_run: options.dry_run })
    }
}

fn body_problem(rejection: BytesRejection) -> Problem {
    let detail = rejection.body_text();
    match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The body is too large",
            "the bound is the configuration's admin_body_bytes_max",
        ),
        _ => Problem::bad_request(detail),
    }
}

impl Ask {
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.request.body).map_err(|e| Problem::bad_request(format!("the body: {e}")))
    }

    /// A body with a secret in it, nothing of which comes back in an error.
    pub(crate) fn secret_body<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.request.body).map_err(|e| {
            let (line, column) = (e.line(), e.column());
            let what = if e.is_data() { "a key that is unknown, or a value of another type" } else { "no valid JSON" };
            Problem::bad_request(format!("the body: {what}, at line {line}, column {column}"))
        })
    }
}

/// Which part of a list is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page<T> {
    /// It begins behind this.
    #[serde(default = "none")]
    pub(crate) after: Option<T>,
    /// It has at most so many.
    #[serde(default = "page_rows_max")]
    pub(crate) limit: usize,
}

fn none<T>() -> Option<T> {
    None
}

fn page_rows_max() -> usize {
    PAGE_ROWS_MAX
}

impl<T> Page<T> {
    /// Of a request's query.
    pub(crate) fn of(query: Result<Query<Self>, QueryRejection>) -> Result<Self, Problem> {
        let Query(page) =
            query.map_err(|e| Problem::bad_request(format!("{}; the options are after and limit", e.body_text())))?;
        if (1..=PAGE_ROWS_MAX).contains(&page.limit) {
            Ok(page)
        } else {
            Err(Problem::bad_request(format!("limit: 1 to {PAGE_ROWS_MAX}")))
        }
    }
}

fn node_id(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("`{text}` is no node id: ids are whole numbers")))
}

/// Carries out a change: on trial, here, or at the leader.
async fn carry_out<C: ClusterAdmin, T: Serialize>(
    shared: &Shared<C>,
    ask: Ask,
    change: Change,
    success: StatusCode,
    operation: impl Future<Output = Result<T, AdminError>>,
) -> Response {
    if ask.dry_run {
        return match plan(&shared.cluster.view(), change) {
            Ok(plan) => json(StatusCode::OK, &plan),
            Err(error) => Problem::from(error).into_response(),
        };
    }
    match operation.await {
        Ok(value) => {
            tracing::info!(?change, "membership change carried out");
            json(success, &value)
        }
        Err(AdminError::NotLeader(Some(leader))) => shared.forwarder.forward(&leader, ask.request).await,
        Err(error) => Problem::from(error).into_response(),
    }
}

async fn join<C: ClusterAdmin>(State(shared): App<C>, ask: Ask) -> Response {
    let request = match ask.body::<JoinRequest>() {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    if u128::from_str_radix(&request.token, 16).is_err() {
        return Problem::bad_request("token: up to 32 hexadecimal digits, chosen at random and kept").into_response();
    }
    carry_out(&shared, ask, Change::Join, StatusCode::CREATED, shared.cluster.join(request)).await
}

/// A change of one node, which answers with the cluster as it is then.
async fn change_node<C: ClusterAdmin>(
    shared: &Shared<C>,
    ask: Ask,
    id: &str,
    change: fn(u64) -> Change,
) -> Response<Body> {
    let node = match node_id(id) {
        Ok(node) => node,
        Err(problem) => return problem.into_response(),
    };
    let change = change(node);
    let operation = async {
        match change {
            Change::Promote(node) => shared.cluster.promote(node).await?,
            Change::Demote(node) => shared.cluster.demote(node).await?,
            Change::Remove(node) => shared.cluster.remove(node).await?,
            Change::Join | Change::Transfer(_) => {}
        }
        Ok(shared.cluster.view())
    };
    carry_out(shared, ask, change, StatusCode::OK, operation).await
}

async fn promote<C: ClusterAdmin>(State(shared): App<C>, Path(id): Path<String>, ask: Ask) -> Response {
    change_node(&shared, ask, &id, Change::Promote).await
}

async fn demote<C: ClusterAdmin>(State(shared): App<C>, Path(id): Path<String>, ask: Ask) -> Response {
    change_node(&shared, ask, &id, Change::Demote).await
}

async fn remove<C: ClusterAdmin>(State(shared): App<C>, Path(id): Path<String>, ask: Ask) -> Response {
    change_node(&shared, ask, &id, Change::Remove).await
}

async fn transfer<C: ClusterAdmin>(State(shared): App<C>, ask: Ask) -> Response {
    let request = if ask.request.body.is_empty() { Ok(TransferRequest::default()) } else { ask.body() };
    let to = match request {
        Ok(TransferRequest { to }) => to,
        Err(problem) => return problem.into_response(),
    };
    carry_out(&shared, ask, Change::Transfer(to), StatusCode::OK, shared.cluster.transfer(to)).await
}
