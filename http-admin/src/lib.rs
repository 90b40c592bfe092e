//! Administration over HTTP: the cluster's state and its changes as REST, health for load balancers,
//! users and rules, metrics for Prometheus, and a page for people.
//!
//! It owns the HTTP server, the JSON shapes, the registry of metrics and the forwarding to the leader.
//! It never touches the log, rows or MQTT: everything it does goes through [`ClusterAdmin`].

#[cfg(test)]
mod access_tests;
mod acls;
mod cluster;
mod dry_run;
mod forward;
mod metrics;
pub mod password;
mod problem;
mod routes;
mod server;
mod shares;
mod stages;
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
mod users;

pub use acls::{Act, CheckRequest, Checked, PutOtherwise, PutRule, RulePage, RuleView, Verdict, Whom};
pub use cluster::{
    AccessChange, AdminError, AlarmView, ClusterAdmin, ClusterView, Digest, Health, JoinRequest, Joined, LeaderAddress,
    NodeState, NodeView, Role, TransferRequest, Transferred,
};
pub use dry_run::{Change, Plan, Quorum, plan};
pub use forward::{FORWARDED, Forwarder};
pub use metrics::{ListenerSample, Metrics, MqttSample, MqttSource};
pub use problem::{PROBLEM_JSON, Problem};
pub use routes::{Limits, router};
pub use server::AdminServer;
pub use shares::{PutStrategy, ShareList, ShareView, Strategy};
pub use stages::{LogSample, Stages, StagesSource};
pub use users::{PutUser, UserPage, UserView};
