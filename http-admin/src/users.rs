//! `/api/v1/users`: who may connect. What verifies a password goes in and never comes out.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quorate_store::access::{Access, User};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cluster::{AccessChange, AdminError, ClusterAdmin};
use crate::password::{self, PasswordError};
use crate::problem::Problem;
use crate::routes::{App, Ask, Page, Shared, json};

/// A user, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// User Name of CONNECT.
    pub name: String,
    /// It may log in with a password.
    pub password: bool,
    /// It may log in by SCRAM-SHA-256.
    pub scram: bool,
    /// No ACL rule is asked for it.
    pub superuser: bool,
}

/// `GET /api/v1/users`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPage {
    /// In order of their names.
    pub users: Vec<UserView>,
    /// Ask on with `?after=` this; `None` at the end.
    pub next: Option<String>,
}

/// `PUT /api/v1/users/{name}`. What is left out stays as it is, or, of a new user, is false.
///
/// It has a password in it, so it is not `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutUser {
    /// The new password; `null` takes it away, and SCRAM with it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub password: Option<Option<String>>,
    /// Whether SCRAM-SHA-256 is to work with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scram: Option<bool>,
    /// Whether no ACL rule is asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superuser: Option<bool>,
}

/// Tells `null` from what is left out.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl From<&User> for UserView {
    fn from(user: &User) -> Self {
        Self {
            name: user.name.clone(),
            password: user.password_hash.is_some(),
            scram: user.scram.is_some(),
            superuser: user.is_superuser,
        }
    }
}

impl From<PasswordError> for Problem {
    fn from(error: PasswordError) -> Self {
        let detail = error.to_string();
        match error {
            PasswordError::Failed => Self::from(AdminError::Internal(detail)),
            PasswordError::Empty | PasswordError::TooLong | PasswordError::Forbidden => Self::bad_request(detail),
        }
    }
}

pub(crate) fn routes<C: ClusterAdmin>() -> Router<Arc<Shared<C>>> {
    Router::new()
        .route("/api/v1/users", get(list::<C>))
        .route("/api/v1/users/{name}", get(show::<C>).put(put::<C>).delete(delete::<C>))
}

async fn list<C: ClusterAdmin>(
    State(shared): App<C>,
    page: Result<Query<Page<String>>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let page = match Page::of(page) {
        Ok(page) => page,
        Err(problem) => return problem.into_response(),
    };
    let access = shared.cluster.access();
    // With 100,000 users the sorting takes a while.
    match tokio::task::spawn_blocking(move || page_of(&access, &page)).await {
        Ok(page) => json(StatusCode::OK, &page),
        Err(error) => Problem::from(AdminError::Internal(error.to_string())).into_response(),
    }
}

fn page_of(access: &Access, page: &Page<String>) -> UserPage {
    let is_after = |user: &&User| page.after.as_ref().is_none_or(|after| user.name > *after);
    let mut rest = access.users.sorted().into_iter().filter(is_after).map(UserView::from);
    let users: Vec<UserView> = rest.by_ref().take(page.limit).collect();
    let next = rest.next().and_then(|_| users.last()).map(|user| user.name.clone());
    UserPage { users, next }
}

async fn show<C: ClusterAdmin>(State(shared): App<C>, Path(name): Path<String>) -> Response {
    match shared.cluster.access().users.get(&name) {
        Some(user) => json(StatusCode::OK, &UserView::from(user)),
        None => unknown(&name).into_response(),
    }
}

fn unknown(name: &str) -> Problem {
    let detail = format!("there is no user `{name}`; `quorate user list` lists them");
    Problem::new(StatusCode::NOT_FOUND, "unknown-user", "No such user", detail)
}

async fn put<C: ClusterAdmin>(State(shared): App<C>, Path(name): Path<String>, ask: Ask) -> Response {
    put_user(&shared, name, ask).await.unwrap_or_else(IntoResponse::into_response)
}

async fn put_user<C: ClusterAdmin>(shared: &Shared<C>, name: String, ask: Ask) -> Result<Response, Problem> {
    let wanted: PutUser = ask.secret_body()?;
    let nameless = User { name: name.clone(), password_hash: None, scram: None, is_superuser: false };
    nameless.check().map_err(AdminError::Access)?;
    if !password::is_prepared(&name) {
        return Err(Problem::bad_request(
            "the user name has a character that SASLprep (RFC 4013) forbids or replaces by another: use the plain form \
             of letters and spaces, as clients will send it",
        ));
    }
    let access = shared.cluster.fresh_access().await?;
    let known = access.users.get(&name).cloned();
    let new = {
        let Ok(turn) = shared.hashing.clone().acquire_owned().await else {
            return Err(AdminError::Unavailable("this node is stopping; ask another".into()).into());
        };
        let base = known.clone().unwrap_or(nameless);
        let changed = tokio::task::spawn_blocking(move || {
            // Who gave up on the answer does not end the hashing.
            let _turn = turn;
            changed(base, &wanted)
        });
        changed.await.map_err(|error| AdminError::Internal(error.to_string()))??
    };
    // Hashing takes its time: what somebody else has changed meanwhile must not be undone by it.
    if shared.cluster.fresh_access().await?.users.get(&name) != known.as_ref() {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "conflict",
            "The user was changed meanwhile",
            format!("somebody else changed the user `{name}` at the same time: look at it, and try again"),
        ));
    }
    let status = if known.is_none() { StatusCode::CREATED } else { StatusCode::OK };
    let view = UserView::from(&new);
    if known.as_ref() != Some(&new) && !ask.dry_run {
        shared.cluster.change_access(AccessChange::PutUser(new)).await?;
        tracing::info!(user = %view.name, superuser = view.superuser, scram = view.scram, "user set");
    }
    Ok(json(if ask.dry_run { StatusCode::OK } else { status }, &view))
}

/// `user` as `wanted`; the same, secrets included, when it is so already. Slow.
fn changed(mut user: User, wanted: &PutUser) -> Result<User, Problem> {
    if let Some(superuser) = wanted.superuser {
        user.is_superuser = superuser;
    }
    let scram = wanted.scram.unwrap_or(user.scram.is_some());
    match &wanted.password {
        Some(Some(password)) => {
            let is_same = user.scram.is_some() == scram
                && user.password_hash.as_ref().is_some_and(|hash| password::verify(hash, password.as_bytes()));
            if !is_same {
                let secrets = password::derive(password, scram)?;
                user.password_hash = Some(secrets.password_hash);
                user.scram = secrets.scram;
            }
        }
        Some(None) if wanted.scram == Some(true) => {
            return Err(Problem::bad_request("SCRAM needs a password: send one, or leave `scram` out"));
        }
        Some(None) => {
            user.password_hash = None;
            user.scram = None;
        }
        None if scram && user.scram.is_none() => {
            return Err(Problem::bad_request(
                "what SCRAM needs is made of the password, which is not kept: send `password` with `scram`",
            ));
        }
        None if !scram => user.scram = None,
        None => {}
    }
    Ok(user)
}

async fn delete<C: ClusterAdmin>(State(shared): App<C>, Path(name): Path<String>, ask: Ask) -> Response {
    if ask.dry_run {
        return show(State(shared), Path(name)).await;
    }
    match shared.cluster.change_access(AccessChange::DeleteUser(name.clone())).await {
        Ok(true) => {
            tracing::info!(user = %name, "user deleted");
            json(StatusCode::OK, &serde_json::json!({ "deleted": name }))
        }
        Ok(false) => unknown(&name).into_response(),
        Err(error) => Problem::from(error).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let user = |n: usize| {
            let name = format!("u{n:03}");
            (name.clone(), User { name, password_hash: None, scram: None, is_superuser: false })
        };
        let access = Access { users: (0..25).map(user).collect(), ..Access::default() };
        let (mut after, mut names) = (None, Vec::new());
        loop {
            let page = page_of(&access, &Page { after, limit: 10 });
            assert!(page.users.len() <= 10);
            names.extend(page.users.into_iter().map(|user| user.name));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(names, (0..25).map(|n| format!("u{n:03}")).collect::<Vec<_>>());
    }
}
