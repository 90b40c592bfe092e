//! What the REST API says about a cluster, as far as the harness reads it.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::{HarnessError, http};

/// How long a node that is well may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// `GET /api/v1/cluster`.
#[derive(Clone, Debug, Deserialize)]
pub struct ClusterView {
    /// Identity of the cluster.
    pub cluster_id: String,
    /// Node id of the leader.
    pub leader: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// Committed log index.
    pub commit: u64,
    /// Members.
    pub nodes: Vec<NodeView>,
    /// Alarms that are on.
    #[serde(default)]
    pub alarms: Vec<AlarmView>,
}

/// An alarm.
#[derive(Clone, Debug, Deserialize)]
pub struct AlarmView {
    /// Its name.
    pub name: String,
    /// What it says.
    pub message: String,
}

/// A member.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeView {
    /// Node id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `leader`, `follower` or `learner`.
    pub role: String,
    /// `up` or `lost`.
    pub state: String,
    /// Applied log index, as far as the asked node knows.
    pub applied: Option<u64>,
    /// Where MQTT clients reach it.
    #[serde(default)]
    pub mqtt: String,
    /// Where the other nodes reach it.
    #[serde(default)]
    pub peer: String,
    /// Where its administration is.
    #[serde(default)]
    pub admin: String,
}

impl ClusterView {
    /// Asks one node.
    ///
    /// # Errors
    /// When it does not answer, or something else.
    pub fn of(admin: SocketAddr) -> Result<Self, HarnessError> {
        Self::within(admin, ANSWER_MAX)
    }

    /// Asks one node that may be cut off, frozen or slow.
    ///
    /// # Errors
    /// When it does not answer within `bound`, or something else.
    pub fn within(admin: SocketAddr, bound: Duration) -> Result<Self, HarnessError> {
        read(admin, "/api/v1/cluster", bound)
    }

    /// A member by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The leader's name.
    #[must_use]
    pub fn leader_name(&self) -> Option<&str> {
        self.nodes.iter().find(|n| Some(n.id) == self.leader).map(|n| n.name.as_str())
    }

    /// Members that vote and are up.
    #[must_use]
    pub fn voters_up(&self) -> usize {
        self.nodes.iter().filter(|n| n.role != "learner" && n.state == "up").count()
    }
}

/// `GET /api/v1/cluster/digest`: one node's rows by a full scan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DigestView {
    /// Applied log index of the rows that were scanned.
    pub applied: u64,
    /// The digest, 16 hexadecimal digits.
    pub digest: String,
}

impl DigestView {
    /// Asks one node.
    ///
    /// # Errors
    /// When it does not answer, or something else.
    pub fn of(admin: SocketAddr) -> Result<Self, HarnessError> {
        read(admin, "/api/v1/cluster/digest", ANSWER_MAX)
    }
}

fn read<T: for<'a> Deserialize<'a>>(admin: SocketAddr, path: &str, bound: Duration) -> Result<T, HarnessError> {
    let answer = http::request_within(admin, "GET", path, None, bound)?;
    let refused = || HarnessError::Answer {
        what: format!("GET http://{admin}{path}"),
        answer: format!("{} {}", answer.status, answer.body),
    };
    if answer.status != 200 {
        return Err(refused());
    }
    serde_json::from_str(&answer.body).map_err(|_| refused())
}
