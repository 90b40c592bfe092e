//! Joining a cluster: asks the administration of a member for an id, and makes sure that a data directory
//! meets no other cluster.

use std::path::Path;
use std::time::Duration;

use quorate_http_admin::{ClusterView, JoinRequest, Joined};
use quorate_raft::ClusterId;
use quorate_raft::identity::Identity;
use quorate_store::command::NodeInfo;
use reqwest::{Method, StatusCode};
use tokio::time::{Instant, sleep};

use crate::cli::{Admin, AdminFailure, Failure};

/// A member that is asked whose cluster it is answers by then, or is not asked any more: the data directory
/// is enough to start.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// A member that is asked for admission answers by then.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Before all members are asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a joiner brings along.
#[derive(Clone, Debug)]
pub(crate) struct Joiner {
    /// Admin addresses, tried in turn.
    pub(crate) members: Vec<String>,
    /// Kept, so that a repeat gets the same id.
    pub(crate) token: u128,
    /// Its name and addresses.
    pub(crate) info: NodeInfo,
    /// It stays a learner.
    pub(crate) learner: bool,
    /// How long it tries.
    pub(crate) timeout: Duration,
}

/// Asks for an id until a member gives one.
///
/// # Errors
/// A refusal, or nobody gave one in time.
pub(crate) async fn join(joiner: &Joiner) -> Result<(u64, ClusterId), Failure> {
    let request = JoinRequest {
        token: format!("{:032x}", joiner.token),
        name: joiner.info.name.clone(),
        mqtt: joiner.info.mqtt.clone(),
        peer: joiner.info.peer.clone(),
        admin: joiner.info.admin.clone(),
        learner: joiner.learner,
        cluster_id: None,
    };
    let deadline = Instant::now() + joiner.timeout;
    loop {
        let mut last = String::new();
        for member in &joiner.members {
            let admin = Admin::new(member, Some(JOIN_TIMEOUT))?;
            let answer: Result<Joined, _> = admin.ask(Method::POST, "/api/v1/cluster/nodes", Some(&request)).await;
            match answer {
                Ok(joined) => {
                    let cluster = joined.cluster_id.parse().map_err(|_| {
                        Failure::new(format!("{member} answers with cluster id `{}`, which is none", joined.cluster_id))
                    })?;
                    return Ok((joined.id, cluster));
                }
                Err(AdminFailure::Refused(problem)) if is_final(problem.status) => {
                    return Err(Failure::new(format!("{member} does not admit this node: {}", problem.detail)));
                }
                Err(failure) => {
                    tracing::warn!(member, why = %failure, "not admitted to the cluster yet");
                    last = format!("{member}: {failure}");
                }
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "not admitted to the cluster within {} ms; {last}\n  \
                 --join takes admin addresses of members; the cluster needs a leader to admit a node",
                joiner.timeout.as_millis()
            )));
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Whether asking again would change nothing.
fn is_final(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(|status| status.is_client_error())
}

/// A node that has an identity was told to join `members`: they must be of its cluster.
///
/// # Errors
/// They are of another. Members that do not answer say nothing.
pub(crate) async fn check_cluster(identity: &Identity, members: &[String], data_dir: &Path) -> Result<(), Failure> {
    for member in members {
        let admin = Admin::new(member, Some(LOOK_TIMEOUT))?;
        let Ok(view) = admin.ask::<ClusterView>(Method::GET, "/api/v1/cluster", None::<&()>).await else { continue };
        let (have, want) = (identity.cluster.to_string(), view.cluster_id);
        if have != want {
            return Err(Failure::new(format!(
                "the data directory {} belongs to node {} of cluster {have}, but {member} is of cluster {want}\n  \
                 start without --join to go on in cluster {have}, or use an empty --data-dir to join the other one",
                data_dir.display(),
                identity.node
            )));
        }
        return Ok(());
    }
    Ok(())
}
