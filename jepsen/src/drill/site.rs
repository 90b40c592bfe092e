//! The cluster that is drilled: who belongs to it, where they are, and whether they are well.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::harness::{ClusterView, DigestView, http};
use crate::history::event::What;
use crate::history::record::Recorder;

/// A node that is well answers within this.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(200);
/// Longest time for all nodes to show the same applied index.
const SAME_MAX: Duration = Duration::from_secs(10);

/// Where a node is, if not where the cluster says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAt {
    /// Its name.
    pub name: String,
    /// `HOST:PORT` for MQTT clients.
    pub mqtt: String,
    /// `HOST:PORT` of its administration.
    pub admin: String,
}

/// A voter.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) mqtt: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Host of its peer address, as the cluster has it.
    pub(super) host: String,
}

/// The cluster.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) cluster_id: String,
    pub(super) members: Vec<Member>,
}

impl Site {
    /// Asks one node for all others.
    ///
    /// # Errors
    /// Who does not answer, or whose address or name is of no use.
    pub(super) fn find(admin: &str, given: &[NodeAt]) -> Result<Self, String> {
        let asked = resolve(admin.trim_start_matches("http://").trim_end_matches('/'))?;
        let view = ClusterView::of(asked).map_err(|e| {
            format!("{e}\n  is the node running? name the administration of any node with --admin HOST:PORT")
        })?;
        if let Some(stranger) = given.iter().find(|given| view.node(&given.name).is_none()) {
            let names: Vec<&str> = view.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(format!("--node names {:?}; the cluster has {}", stranger.name, names.join(", ")));
        }
        let mut members = Vec::new();
        for node in view.nodes.iter().filter(|node| node.role != "learner") {
            let host = host_of(&node.peer);
            // They become words of a shell's line.
            for word in [node.name.as_str(), host] {
                if !is_plain(word) {
                    return Err(format!(
                        "{word:?} is no name or host that could stand in a command (letters, digits and ._:-); start the \
                         node with another --name"
                    ));
                }
            }
            let given = given.iter().find(|given| given.name == node.name);
            let (mqtt, admin) = given.map_or((&node.mqtt, &node.admin), |given| (&given.mqtt, &given.admin));
            let place = |address: &str| {
                reachable(address, host)
                    .map_err(|e| format!("{}: {e}; say where it is with --node {0}=MQTT,ADMIN", node.name))
            };
            members.push(Member {
                name: node.name.clone(),
                mqtt: place(mqtt)?,
                admin: place(admin)?,
                host: host.to_owned(),
            });
        }
        let mut names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(format!("nodes cannot be told apart by their names: {}", names.join(", ")));
        }
        Ok(Self { cluster_id: view.cluster_id, members })
    }

    /// What one of its nodes says, if every voter is up, ready and of the same mind about the leader.
    ///
    /// # Errors
    /// What is not well.
    pub(super) fn health(&self) -> Result<ClusterView, String> {
        let mut found: Option<ClusterView> = None;
        for Member { name, admin, .. } in &self.members {
            let view = ClusterView::within(*admin, ANSWER_MAX).map_err(|e| format!("{name}: {e}"))?;
            if view.cluster_id != self.cluster_id {
                return Err(format!("{name}: at {admin} is a node of another cluster"));
            }
            let Some(leader) = view.leader else { return Err(format!("{name} knows of no leader")) };
            if let Some(lost) = view.nodes.iter().find(|node| node.role != "learner" && node.state != "up") {
                return Err(format!("{name} says that {} is {}", lost.name, lost.state));
            }
            let ready = http::request_within(*admin, "GET", "/health/ready", None, ANSWER_MAX);
            let ready = ready.map_err(|e| format!("{name}: {e}"))?;
            if ready.status != 200 {
                return Err(format!("{name} does not welcome clients: {}", ready.body.trim()));
            }
            let first = found.get_or_insert(view);
            if first.leader != Some(leader) {
                return Err(format!("{name} takes another node for the leader"));
            }
        }
        found.ok_or_else(|| "there is no voter".to_owned())
    }

    /// Waits until it is whole.
    ///
    /// # Errors
    /// What was not well in the end.
    pub(super) fn wait_healthy(&self, bound: Duration) -> Result<(), String> {
        let end = Instant::now() + bound;
        loop {
            match self.health() {
                Ok(_) => return Ok(()),
                Err(why) if Instant::now() >= end => return Err(format!("not within {bound:?}: {why}")),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Name of the leader in the eyes of the member with the highest term; written down.
    pub(super) fn leader(&self, recorder: &Recorder) -> Option<String> {
        let views = self.members.iter().filter_map(|member| ClusterView::within(member.admin, ANSWER_MAX / 2).ok());
        let view = views.filter(|view| view.leader.is_some()).max_by_key(|view| view.term)?;
        let node = view.leader_name()?.to_owned();
        recorder.record(None, What::Leader { node: node.clone(), term: view.term });
        Some(node)
    }

    /// All nodes' rows by a full scan, written down. How many nodes showed the same applied index: others may use the
    /// cluster, too.
    pub(super) fn digests(&self, recorder: &Recorder) -> usize {
        let end = Instant::now() + SAME_MAX;
        loop {
            let ask = |member: &Member| Some((member.name.clone(), DigestView::of(member.admin).ok()?));
            let said: Vec<(String, DigestView)> = self.members.iter().filter_map(ask).collect();
            let same = |applied: u64| said.iter().filter(|(_, other)| other.applied == applied).count();
            let compared = said.iter().map(|(_, digest)| same(digest.applied)).max().unwrap_or_default();
            if compared == self.members.len() || Instant::now() >= end {
                for (node, DigestView { applied, digest }) in said {
                    recorder.record(None, What::Digest { node, applied, digest });
                }
                return compared;
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_plain(word: &str) -> bool {
    let is_of = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    !word.is_empty() && !word.starts_with('-') && word.bytes().all(is_of)
}

fn resolve(address: &str) -> Result<SocketAddr, String> {
    let found = address.to_socket_addrs().map_err(|e| format!("{address:?} is no address: {e}"))?.next();
    found.ok_or_else(|| format!("{address:?} has no address"))
}

/// An address that names no host (`0.0.0.0`) is that of the node's peer address.
fn reachable(address: &str, host: &str) -> Result<SocketAddr, String> {
    let found = resolve(address)?;
    if found.ip().is_unspecified() {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        return resolve(&format!("{host}:{}", found.port()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_a_word_of_a_command_has_no_meaning_for_the_shell() {
        for plain in ["n1", "broker-1.example.org", "10.0.0.1", "fd00::1"] {
            assert!(is_plain(plain), "{plain}");
        }
        for bad in ["", "-oProxyCommand=x", "a b", "a;b", "$(x)", "a'b", "a\nb", "[::1]"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn an_address_without_a_host_is_on_the_host_of_its_peer_address() {
        assert_eq!(host_of("10.0.0.7:7400"), "10.0.0.7");
        assert_eq!(host_of("[fd00::1]:7400"), "fd00::1");
        assert_eq!(reachable("0.0.0.0:1883", "10.0.0.7").unwrap(), "10.0.0.7:1883".parse().unwrap());
        assert_eq!(reachable("[::]:1883", "fd00::1").unwrap(), "[fd00::1]:1883".parse().unwrap());
        assert_eq!(reachable("10.0.0.8:1883", "10.0.0.7").unwrap(), "10.0.0.8:1883".parse().unwrap());
        assert!(reachable("nonsense", "10.0.0.7").is_err());
    }
}
