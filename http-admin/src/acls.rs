//! `/api/v1/acls`: what clients may publish and subscribe to.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use quorate_store::access::{
    Access, AclAction, AclRule, Client, Decider, Permission, Who, reached_by_publish, reached_by_subscription,
};
use quorate_store::ids::QoS;
use quorate_store::topic::{TopicFilter, TopicName};
use serde::{Deserialize, Serialize};

use crate::cluster::{AccessChange, AdminError, ClusterAdmin};
use crate::problem::Problem;
use crate::routes::{App, Ask, Page, Shared, json};

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Not authorized.
    Deny,
}

/// Whom a rule fits: `"all"`, `"anonymous"`, `{"user": NAME}`, `{"client": CLIENT_ID}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whom {
    /// Everybody.
    All,
    /// Clients without a user.
    Anonymous,
    /// One user.
    User(String),
    /// One client identifier.
    Client(String),
}

/// What a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// PUBLISH and wills.
    Publish,
    /// SUBSCRIBE.
    Subscribe,
    /// Both.
    All,
}

/// `PUT /api/v1/acls/{number}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutRule {
    /// What it says.
    pub permission: Verdict,
    /// Whom it fits.
    pub who: Whom,
    /// What it fits.
    pub action: Act,
    /// Topic filters, one of which has to fit; `%u` is the user, `%c` the client identifier. None: every topic.
    #[serde(default)]
    pub filters: Vec<String>,
    /// It fits publishes of at most this QoS; a subscription is granted at most this.
    #[serde(default = "any_qos")]
    pub qos_max: u8,
    /// It fits publishes with this RETAIN only; `null`: with either.
    #[serde(default)]
    pub retain: Option<bool>,
}

fn any_qos() -> u8 {
    2
}

/// A rule with its place in the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Rules are asked in order of their numbers; the first that fits decides.
    pub number: u32,
    /// The rest.
    #[serde(flatten)]
    pub rule: PutRule,
}

/// `GET /api/v1/acls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePage {
    /// What holds when no rule fits.
    pub otherwise: Verdict,
    /// In the order in which they are asked.
    pub rules: Vec<RuleView>,
    /// Ask on with `?after=` this; `None` at the end.
    pub next: Option<u32>,
}

/// `PUT /api/v1/acls/otherwise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutOtherwise {
    /// What holds when no rule fits.
    pub permission: Verdict,
}

/// `GET /api/v1/acls/check`: which rule decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// User; left out for an anonymous client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Client identifier.
    #[serde(default)]
    pub client: String,
    /// `publish` or `subscribe`.
    pub action: Act,
    /// Topic, or, for `subscribe`, topic filter.
    pub topic: String,
    /// QoS of the publish, or the one that is subscribed with.
    #[serde(default)]
    pub qos: u8,
    /// RETAIN of the publish.
    #[serde(default)]
    pub retain: bool,
}

/// The answer to a [`CheckRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Whether it may.
    pub allowed: bool,
    /// QoS at which a subscription is granted.
    pub granted_qos: Option<u8>,
    /// `rule`, `superuser`, or `otherwise`.
    pub decided_by: String,
    /// The rule, when one decides.
    pub rule: Option<RuleView>,
}

impl From<Permission> for Verdict {
    fn from(permission: Permission) -> Self {
        match permission {
            Permission::Allow => Self::Allow,
            Permission::Deny => Self::Deny,
        }
    }
}

impl From<Verdict> for Permission {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

impl From<&AclRule> for RuleView {
    fn from(rule: &AclRule) -> Self {
        let who = match &rule.who {
            Who::All => Whom::All,
            Who::Anonymous => Whom::Anonymous,
            Who::User(name) => Whom::User(name.clone()),
            Who::Client(id) => Whom::Client(id.clone()),
        };
        let action = match rule.action {
            AclAction::Publish => Act::Publish,
            AclAction::Subscribe => Act::Subscribe,
            AclAction::All => Act::All,
        };
        let rest = PutRule {
            permission: rule.permission.into(),
            who,
            action,
            filters: rule.filters.clone(),
            qos_max: rule.qos_max as u8,
            retain: rule.retain,
        };
        Self { number: rule.number, rule: rest }
    }
}

fn qos(number: u8) -> Result<QoS, Problem> {
    QoS::from_u8(number).ok_or_else(|| Problem::bad_request(format!("QoS {number}: it is 0, 1 or 2")))
}

fn rule_of(number: u32, put: PutRule) -> Result<AclRule, Problem> {
    let rule = AclRule {
        number,
        permission: put.permission.into(),
        who: match put.who {
            Whom::All => Who::All,
            Whom::Anonymous => Who::Anonymous,
            Whom::User(name) => Who::User(name),
            Whom::Client(id) => Who::Client(id),
        },
        action: match put.action {
            Act::Publish => AclAction::Publish,
            Act::Subscribe => AclAction::Subscribe,
            Act::All => AclAction::All,
        },
        filters: put.filters,
        qos_max: qos(put.qos_max)?,
        retain: put.retain,
    };
    rule.check().map_err(AdminError::Access)?;
    for (prefix, whole) in
        [("$share/", "$share/GROUP/"), ("$exclusive/", "$exclusive/"), ("$delayed/", "$delayed/SECONDS/")]
    {
        if let Some(filter) = rule.filters.iter().find(|filter| filter.starts_with(prefix)) {
            return Err(Problem::bad_request(format!(
                "`{filter}`: a rule names the topics that are reached in the end, and holds for shared and exclusive \
                 subscriptions and delayed publishes to them, too: leave `{whole}` out"
            )));
        }
    }
    Ok(rule)
}

pub(crate) fn routes<C: ClusterAdmin>() -> Router<Arc<Shared<C>>> {
    Router::new()
        .route("/api/v1/acls", get(list::<C>))
        .route("/api/v1/acls/otherwise", put(put_otherwise::<C>))
        .route("/api/v1/acls/check", get(check::<C>))
        .route("/api/v1/acls/{number}", get(show::<C>).put(put_rule::<C>).delete(delete::<C>))
}

async fn list<C: ClusterAdmin>(State(shared): App<C>, page: Result<Query<Page<u32>>, QueryRejection>) -> Response {
    let page = match Page::of(page) {
        Ok(page) => page,
        Err(problem) => return problem.into_response(),
    };
    let access = shared.cluster.access();
    let is_after = |rule: &&AclRule| page.after.is_none_or(|after| rule.number > after);
    let mut rest = access.rules.iter().filter(is_after);
    let rules: Vec<RuleView> = rest.by_ref().take(page.limit).map(RuleView::from).collect();
    let next = rest.next().and_then(|_| rules.last()).map(|rule| rule.number);
    json(StatusCode::OK, &RulePage { otherwise: access.otherwise.into(), rules, next })
}

fn number(text: &str) -> Result<u32, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("`{text}` is no rule number: those are 0 to {}", u32::MAX)))
}

async fn show<C: ClusterAdmin>(State(shared): App<C>, Path(text): Path<String>) -> Response {
    match number(&text) {
        Ok(number) => match shared.cluster.access().rules.get(number) {
            Some(rule) => json(StatusCode::OK, &RuleView::from(rule)),
            None => unknown(number).into_response(),
        },
        Err(problem) => problem.into_response(),
    }
}

fn unknown(number: u32) -> Problem {
    let detail = format!("there is no rule {number}; `quorate acl list` lists them");
    Problem::new(StatusCode::NOT_FOUND, "unknown-rule", "No such rule", detail)
}

async fn put_rule<C: ClusterAdmin>(State(shared): App<C>, Path(text): Path<String>, ask: Ask) -> Response {
    let change = async {
        let rule = rule_of(number(&text)?, ask.body()?)?;
        let known = shared.cluster.fresh_access().await?.rules.get(rule.number).cloned();
        let view = RuleView::from(&rule);
        let status = if known.is_none() && !ask.dry_run { StatusCode::CREATED } else { StatusCode::OK };
        if known.as_ref() != Some(&rule) && !ask.dry_run {
            shared.cluster.change_access(AccessChange::PutRule(rule)).await?;
            tracing::info!(rule = ?view, "ACL rule set");
        }
        Ok::<_, Problem>(json(status, &view))
    };
    change.await.unwrap_or_else(IntoResponse::into_response)
}

async fn delete<C: ClusterAdmin>(State(shared): App<C>, Path(text): Path<String>, ask: Ask) -> Response {
    if ask.dry_run {
        return show(State(shared), Path(text)).await;
    }
    let number = match number(&text) {
        Ok(number) => number,
        Err(problem) => return problem.into_response(),
    };
    match shared.cluster.change_access(AccessChange::DeleteRule(number)).await {
        Ok(true) => {
            tracing::info!(number, "ACL rule deleted");
            json(StatusCode::OK, &serde_json::json!({ "deleted": number }))
        }
        Ok(false) => unknown(number).into_response(),
        Err(error) => Problem::from(error).into_response(),
    }
}

async fn put_otherwise<C: ClusterAdmin>(State(shared): App<C>, ask: Ask) -> Response {
    let change = async {
        let put: PutOtherwise = ask.body()?;
        let permission = put.permission.into();
        if shared.cluster.fresh_access().await?.otherwise != permission && !ask.dry_run {
            shared.cluster.change_access(AccessChange::Otherwise(permission)).await?;
            tracing::info!(?permission, "what holds when no ACL rule fits was set");
        }
        Ok::<_, Problem>(json(StatusCode::OK, &put))
    };
    change.await.unwrap_or_else(IntoResponse::into_response)
}

async fn check<C: ClusterAdmin>(
    State(shared): App<C>,
    request: Result<Query<CheckRequest>, QueryRejection>,
) -> Response {
    let checked = request
        .map_err(|error| Problem::bad_request(error.body_text()))
        .and_then(|Query(request)| check_in(&shared.cluster.access(), &request));
    match checked {
        Ok(checked) => json(StatusCode::OK, &checked),
        Err(problem) => problem.into_response(),
    }
}

fn check_in(access: &Access, request: &CheckRequest) -> Result<Checked, Problem> {
    let invalid = |error| Problem::bad_request(format!("`{}`: {error}", request.topic));
    let client = Client { user: request.user.as_deref(), client_id: &request.client };
    let qos = qos(request.qos)?;
    let (decider, granted) = match request.action {
        Act::Publish => {
            TopicName::new(&request.topic).map_err(invalid)?;
            (access.decider_of_publish(client, reached_by_publish(&request.topic), qos, request.retain), None)
        }
        Act::Subscribe => {
            TopicFilter::new(&request.topic).map_err(invalid)?;
            let filter = reached_by_subscription(&request.topic);
            (access.decider_of_subscribe(client, filter), access.may_subscribe(client, filter, qos))
        }
        Act::All => return Err(Problem::bad_request("action: `publish` or `subscribe`")),
    };
    let (decided_by, rule) = match decider {
        Decider::Superuser => ("superuser", None),
        Decider::Rule(rule) => ("rule", Some(RuleView::from(rule))),
        Decider::Otherwise(_) => ("otherwise", None),
    };
    Ok(Checked {
        allowed: decider.permission() == Permission::Allow,
        granted_qos: granted.map(|qos| qos as u8),
        decided_by: decided_by.to_owned(),
        rule,
    })
}
