//! `quorate cluster`: status and membership, through any node's administration.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_http_admin::{
    ClusterView, JoinRequest, Joined, NodeView, Plan, Quorum, Role, TransferRequest, Transferred,
};
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;

use tokio::time::{Instant, sleep};

use super::admin::{Admin, AdminFailure};
use super::{Failure, print_out};

const NODES: &str = "/api/v1/cluster/nodes";
/// How long a change waits for a leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Before it asks again.
const LEADER_PAUSE: Duration = Duration::from_millis(250);

/// `quorate cluster …`
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Administration of any node of the cluster
    #[arg(long, global = true, value_name = "URL", env = "QUORATE_ADMIN_URL", default_value = "http://127.0.0.1:7480")]
    admin: String,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Show the quorum before, during and after the change, and change nothing
    #[arg(long, global = true)]
    dry_run: bool,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show the members, who leads, and how far each has applied the log
    Status,
    /// Admit a new node as a learner and print how to start it
    Add {
        /// Its name, for people
        #[arg(long, default_value = "")]
        name: String,
        /// Where MQTT clients will reach it
        #[arg(long, value_name = "HOST:PORT")]
        mqtt: String,
        /// Where the other nodes will reach it
        #[arg(long, value_name = "HOST:PORT")]
        peer: String,
        /// Where its administration will be
        #[arg(long = "node-admin", value_name = "HOST:PORT")]
        node_admin: String,
        /// Keep it a learner; else it becomes a voter by itself once it has caught up
        #[arg(long)]
        learner: bool,
    },
    /// Make a learner that has caught up a voter
    Promote {
        /// Node id
        id: u64,
    },
    /// Make a voter a learner
    Demote {
        /// Node id
        id: u64,
    },
    /// Take a node out of the cluster for good; its id is never used again
    Remove {
        /// Node id
        id: u64,
    },
    /// Hand leadership to a node, or to the voter that is most up to date
    Transfer {
        /// Node id
        id: Option<u64>,
    },
}

/// Carries the command out.
///
/// # Errors
/// What the cluster or the network said.
pub(crate) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin, None)?;
    let (method, path, body) = match &args.command {
        ClusterCommand::Status => (Method::GET, "/api/v1/cluster".to_owned(), None),
        ClusterCommand::Add { name, mqtt, peer, node_admin, learner } => {
            let request = JoinRequest {
                token: format!("{:032x}", rand::random::<u128>()),
                name: name.clone(),
                mqtt: mqtt.clone(),
                peer: peer.clone(),
                admin: node_admin.clone(),
                learner: *learner,
                cluster_id: None,
            };
            (Method::POST, NODES.to_owned(), Some(json(&request)?))
        }
        ClusterCommand::Promote { id } => (Method::POST, format!("{NODES}/{id}/promote"), None),
        ClusterCommand::Demote { id } => (Method::POST, format!("{NODES}/{id}/demote"), None),
        ClusterCommand::Remove { id } => (Method::DELETE, format!("{NODES}/{id}"), None),
        ClusterCommand::Transfer { id } => {
            (Method::POST, "/api/v1/cluster/leader".to_owned(), Some(json(&TransferRequest { to: *id })?))
        }
    };
    let dry_run = args.dry_run && method != Method::GET;
    let path = if dry_run { format!("{path}?dry_run=true") } else { path };
    let answer = ask(&admin, &method, &path, body.as_ref()).await?;
    let text = if args.json {
        let mut answer = answer;
        // Whoever scripts this needs the token to start the node with.
        if let (ClusterCommand::Add { .. }, Some(token), Some(object)) =
            (&args.command, token(body.as_ref()), answer.as_object_mut())
        {
            object.insert("token".to_owned(), Value::String(token));
        }
        format!("{answer:#}\n")
    } else if dry_run {
        plan_text(&parse(answer)?)
    } else {
        match &args.command {
            ClusterCommand::Add { name, mqtt, peer, node_admin, .. } => {
                let joined: Joined = parse(answer)?;
                let token = token(body.as_ref()).unwrap_or_default();
                let join = admin.base().trim_start_matches("http://");
                let id = joined.id;
                let name = if name.is_empty() { String::new() } else { format!("--name {name} ") };
                format!(
                    "node {id} is admitted to cluster {} as a learner; start it on an empty data directory with\n  \
                     quorate server {name}--data-dir DIR --mqtt {mqtt} --peer {peer} --admin {node_admin} --join {join} --join-token {token}\n",
                    joined.cluster_id
                )
            }
            ClusterCommand::Transfer { .. } => format!("node {} leads\n", parse::<Transferred>(answer)?.leader),
            _ => status_text(&parse(answer)?),
        }
    };
    print_out(&text)
}

/// Asks again while leadership moves: such an answer says that nothing was done.
async fn ask(admin: &Admin, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
    let deadline = Instant::now() + LEADER_TIMEOUT;
    loop {
        match admin.ask(method.clone(), path, body).await {
            Ok(answer) => return Ok(answer),
            Err(AdminFailure::Refused(problem))
                if matches!(problem.kind.as_str(), "/problems/leader-moved" | "/problems/no-leader")
                    && Instant::now() < deadline =>
            {
                sleep(LEADER_PAUSE).await;
            }
            Err(failure) => return Err(admin.failure(&failure)),
        }
    }
}

fn json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new(error.to_string()))
}

fn token(body: Option<&Value>) -> Option<String> {
    body?.get("token")?.as_str().map(str::to_owned)
}

fn parse<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::new(format!(
            "the node's answer is of another version: {error}\n  use the `quorate` of that node, or --json"
        ))
    })
}

fn status_text(view: &ClusterView) -> String {
    let leader = match view.leader.and_then(|id| view.node(id)) {
        Some(node) => format!("leader {} ({})", node.id, node.name),
        None => "no leader".to_owned(),
    };
    let mut text = format!("cluster {}  {leader}  term {}  committed {}\n", view.cluster_id, view.term, view.commit);
    let mut rows = vec![["ID", "NAME", "ROLE", "STATE", "APPLIED", "MQTT", "PEER", "ADMIN"].map(str::to_owned)];
    rows.extend(view.nodes.iter().map(row));
    text.push_str(&table(&rows));
    for alarm in &view.alarms {
        text.push_str(&format!("alarm {}: {}\n", alarm.name, alarm.message));
    }
    text
}

fn row(node: &NodeView) -> [String; 8] {
    use quorate_http_admin::NodeState;
    let role = match node.role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Learner => "learner",
    };
    let state = if node.state == NodeState::Up { "up" } else { "lost" };
    let NodeView { id, name, mqtt, peer, admin, applied, .. } = node;
    let (id, applied) = (id.to_string(), applied.to_string());
    [id, name.clone(), role.to_owned(), state.to_owned(), applied, mqtt.clone(), peer.clone(), admin.clone()]
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn plan_text(plan: &Plan) -> String {
    let words = |quorum: &Quorum| {
        format!("{} of voters {:?} must agree, {} of them are up", quorum.needed, quorum.voters, quorum.up)
    };
    let mut text = format!("before: {}\n", words(&plan.before));
    for quorum in &plan.during {
        text.push_str(&format!("during: {}\n", words(quorum)));
    }
    text.push_str(&format!("after:  {}\n", words(&plan.after)));
    text.push_str(if plan.possible {
        "nothing was changed; the change can be carried through now\n"
    } else {
        "nothing was changed; too few nodes are up to carry the change through\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_its_columns_up() {
        let rows = [["ID", "NAME"], ["1", "a"], ["10", "bb"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "ID  NAME\n1   a\n10  bb\n");
    }
}
