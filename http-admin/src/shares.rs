//! `/api/v1/shares`: shared subscriptions, and how the members of a group are chosen.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use quorate_store::command::ShareStrategy;
use quorate_store::topic::{FilterKind, TopicFilter};
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterAdmin;
use crate::problem::Problem;
use crate::routes::{App, Ask, Shared, json};

/// Who of a group gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Who has the most room.
    MostRoom,
    /// Who comes next.
    RoundRobin,
    /// The same member for a topic.
    Sticky,
    /// Members connected to the publisher's node first.
    Local,
}

impl From<ShareStrategy> for Strategy {
    fn from(strategy: ShareStrategy) -> Self {
        match strategy {
            ShareStrategy::MostRoom => Self::MostRoom,
            ShareStrategy::RoundRobin => Self::RoundRobin,
            ShareStrategy::StickyTopic => Self::Sticky,
            ShareStrategy::Local => Self::Local,
        }
    }
}

impl From<Strategy> for ShareStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::MostRoom => Self::MostRoom,
            Strategy::RoundRobin => Self::RoundRobin,
            Strategy::Sticky => Self::StickyTopic,
            Strategy::Local => Self::Local,
        }
    }
}

/// A group, from the SUBSCRIBE of its first member to the end of its last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareView {
    /// Share name.
    pub name: String,
    /// Topic filter.
    pub filter: String,
    /// How its members are chosen.
    pub strategy: Strategy,
    /// How many it has, connected or not.
    pub members: u64,
    /// Messages that wait for a member with room.
    pub waiting_messages: u64,
    /// Bytes charged for them.
    pub waiting_bytes: u64,
    /// Messages that were dropped because too many waited.
    pub dropped_messages: u64,
}

/// `GET /api/v1/shares`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareList {
    /// In order of creation, as applied on this node.
    pub shares: Vec<ShareView>,
}

/// `PUT /api/v1/shares/strategy`: it holds also for a group that there is not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutStrategy {
    /// Share name.
    pub name: String,
    /// Topic filter, without `$share/` and the name.
    pub filter: String,
    /// How its members are chosen from now on.
    pub strategy: Strategy,
}

pub(crate) fn routes<C: ClusterAdmin>() -> Router<Arc<Shared<C>>> {
    Router::new().route("/api/v1/shares", get(list::<C>)).route("/api/v1/shares/strategy", put(set_strategy::<C>))
}

async fn list<C: ClusterAdmin>(State(shared): App<C>) -> Response {
    match shared.cluster.shares().await {
        Ok(shares) => json(StatusCode::OK, &ShareList { shares }),
        Err(error) => Problem::from(error).into_response(),
    }
}

/// The filter of a group that can be.
fn filter_of(put: &PutStrategy) -> Result<TopicFilter, Problem> {
    let whole = format!("$share/{}/{}", put.name, put.filter);
    match TopicFilter::new(&whole).map(|filter| filter.kind()) {
        Ok(FilterKind::Shared { filter, .. }) if !put.name.contains('/') => Ok(filter),
        _ => Err(Problem::bad_request(format!(
            "`{whole}` is no shared subscription: a share name has at least one character and none of / + #, a filter is a topic filter"
        ))),
    }
}

async fn set_strategy<C: ClusterAdmin>(State(shared): App<C>, ask: Ask) -> Response {
    let change = async {
        let put: PutStrategy = ask.body()?;
        let filter = filter_of(&put)?;
        if !ask.dry_run {
            shared.cluster.set_share_strategy(put.name.clone(), filter, put.strategy.into()).await?;
            tracing::info!(share = put.name, filter = put.filter, strategy = ?put.strategy, "share strategy set");
        }
        Ok::<_, Problem>(json(StatusCode::OK, &put))
    };
    change.await.unwrap_or_else(IntoResponse::into_response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_subscribed_to_has_a_strategy() {
        let put = |name: &str, filter: &str| PutStrategy {
            name: name.to_owned(),
            filter: filter.to_owned(),
            strategy: Strategy::Sticky,
        };
        assert_eq!(filter_of(&put("g", "a/+/#")).unwrap().as_str(), "a/+/#");
        assert_eq!(filter_of(&put("g", "/")).unwrap().as_str(), "/");
        for (name, filter) in [("", "a"), ("g", ""), ("g/h", "a"), ("+", "a"), ("g", "a#"), ("g", "$share/h/a")] {
            assert!(filter_of(&put(name, filter)).is_err(), "{name} {filter}");
        }
    }
}
