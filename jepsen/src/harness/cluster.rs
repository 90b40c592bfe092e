//! Several broker processes that form one cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    Addresses, ClusterView, DigestView, Dropped, HarnessError, Link, Network, NodeProcess, Start, free_ports, http,
    wait_for,
};

/// Longest time for a node to come up, join and be promoted, on a busy machine.
const FORM_MAX: Duration = Duration::from_secs(90);
/// MQTT, peer and administration port of a node that has a machine of its own.
const OWN_PORTS: [u16; 3] = [1883, 7400, 7480];

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The broker.
    pub binary: PathBuf,
    /// Where data and logs go.
    pub dir: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// Environment of each node (`QUORATE_...`).
    pub env: Vec<(String, String)>,
    /// Each node on a machine of its own, whose links can be cut; else all on loopback.
    pub machines: bool,
}

type Preparing = dyn FnMut(&mut NodeProcess) -> Result<(), HarnessError> + Send;

/// Prepares a new node's place before it starts for the first time: its disk, its environment.
pub struct Prepare(pub Box<Preparing>);

impl std::fmt::Debug for Prepare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepare")
    }
}

/// A running cluster. Its processes end when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes, in the order of their starting.
    pub nodes: Vec<NodeProcess>,
    options: ClusterOptions,
    named: usize,
    prepare: Option<Prepare>,
    /// Goes after the nodes in it.
    network: Option<Network>,
}

impl Cluster {
    /// Starts the first node, lets the others join, and waits until all vote and are up.
    ///
    /// # Errors
    /// When they do not get there; the error shows the end of their logs.
    pub fn start(options: ClusterOptions) -> Result<Self, HarnessError> {
        Self::start_prepared(options, None)
    }

    /// As [`Self::start`], with places that are prepared.
    ///
    /// # Errors
    /// As there.
    pub fn start_prepared(options: ClusterOptions, prepare: Option<Prepare>) -> Result<Self, HarnessError> {
        let network = options.machines.then(Network::new).transpose()?;
        let mut cluster = Self { nodes: Vec::new(), options, named: 0, prepare, network };
        let wanted = cluster.options.nodes;
        for _ in 0..wanted {
            cluster.add_node()?;
        }
        Ok(cluster)
    }

    /// One node more, with a name, ports and a data directory of its own; waits until it votes and is up. Its place.
    ///
    /// # Errors
    /// When it does not get there; the error shows the end of its log.
    pub fn add_node(&mut self) -> Result<usize, HarnessError> {
        let place = self.start_node()?;
        let name = self.node(place)?.name.clone();
        let what = format!("{name} votes and is up");
        self.wait_view(&what, FORM_MAX, |view| {
            view.node(&name).is_some_and(|n| n.role != "learner" && n.state == "up") && view.leader.is_some()
        })?;
        self.wait_ready(FORM_MAX)?;
        Ok(place)
    }

    /// As [`Self::add_node`], without waiting.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn start_node(&mut self) -> Result<usize, HarnessError> {
        let name = format!("n{}", self.named + 1);
        self.named += 1;
        let how = match self.awake().first() {
            Some(&member) => Start::Join(self.node(member)?.at.admin),
            None => Start::Bootstrap,
        };
        let machine = self.network.as_mut().map(Network::add).transpose()?;
        let at = match &machine {
            Some(machine) => {
                let [mqtt, peer, admin] = OWN_PORTS;
                Addresses {
                    mqtt: (machine.clients, mqtt).into(),
                    peer: (machine.peers, peer).into(),
                    admin: (machine.clients, admin).into(),
                }
            }
            None => {
                let ports = free_ports(3)?;
                let [mqtt, peer, admin] = ports.as_slice() else {
                    return Err(HarnessError::Answer { what: "picking ports".into(), answer: format!("{ports:?}") });
                };
                Addresses::loopback(*mqtt, *peer, *admin)
            }
        };
        let mut node = NodeProcess::new(&self.options.binary, &self.options.dir, &name, at);
        node.env.clone_from(&self.options.env);
        if let Some(machine) = machine {
            node.namespace = Some(machine.namespace);
            node.env.push(("QUORATE_ALLOW_ANONYMOUS".into(), "true".into()));
        }
        if let Some(Prepare(prepare)) = &mut self.prepare {
            prepare(&mut node)?;
        }
        node.start(how)?;
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    /// A node by its place.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, place: usize) -> Result<&NodeProcess, HarnessError> {
        self.nodes.get(place).ok_or_else(|| no_node(place))
    }

    /// A node by its place.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_mut(&mut self, place: usize) -> Result<&mut NodeProcess, HarnessError> {
        self.nodes.get_mut(place).ok_or_else(|| no_node(place))
    }

    /// Whether each node has a machine of its own, so that [`Self::cut`] can be called.
    #[must_use]
    pub const fn has_machines(&self) -> bool {
        self.network.is_some()
    }

    /// Nothing comes through this link of a node any more, in either direction.
    ///
    /// # Errors
    /// When its nodes have no machines of their own.
    pub fn cut(&self, place: usize, link: Link) -> Result<(), HarnessError> {
        self.network()?.cut(place, link)
    }

    /// Ends a cut.
    ///
    /// # Errors
    /// When its nodes have no machines of their own.
    pub fn heal(&self, place: usize, link: Link) -> Result<(), HarnessError> {
        self.network()?.heal(place, link)
    }

    /// A node drops this of what comes in, until [`Self::keep`]: see [`Network::drop_at`].
    ///
    /// # Errors
    /// When its nodes have no machines of their own, or there is no `nft`.
    pub fn drop_at(&mut self, owner: u32, place: usize, drops: Vec<Dropped>) -> Result<(), HarnessError> {
        let none = || HarnessError::Answer { what: "links of nodes".into(), answer: "they are on loopback".into() };
        self.network.as_mut().ok_or_else(none)?.drop_at(owner, place, drops)
    }

    /// Ends all drops that `owner` asked for.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn keep(&mut self, owner: u32) -> Result<(), HarnessError> {
        self.network.as_mut().map_or(Ok(()), |network| network.keep(owner))
    }

    fn network(&self) -> Result<&Network, HarnessError> {
        let none = || HarnessError::Answer { what: "links of nodes".into(), answer: "they are on loopback".into() };
        self.network.as_ref().ok_or_else(none)
    }

    /// Places of the nodes that run and are not frozen.
    pub fn awake(&mut self) -> Vec<usize> {
        let awake =
            |(place, node): (usize, &mut NodeProcess)| (node.is_running() && !node.is_frozen()).then_some(place);
        self.nodes.iter_mut().enumerate().filter_map(awake).collect()
    }

    /// Waits until every node that is awake shows a view of which `is_wanted` holds. The first node's.
    ///
    /// # Errors
    /// When they do not within `bound`; the error shows the end of their logs.
    pub fn wait_view(
        &mut self,
        what: &str,
        bound: Duration,
        is_wanted: impl Fn(&ClusterView) -> bool,
    ) -> Result<ClusterView, HarnessError> {
        let awake = self.awake();
        let admins: Vec<_> = awake.iter().filter_map(|&place| self.nodes.get(place)).map(|n| n.at.admin).collect();
        let found = wait_for(what, bound, || {
            let mut first = None;
            for &admin in &admins {
                let view = ClusterView::of(admin).map_err(|e| e.to_string())?;
                if !is_wanted(&view) {
                    return Err(format!("{view:?}"));
                }
                first.get_or_insert(view);
            }
            first.ok_or_else(|| "no node is awake".to_owned())
        });
        found.map_err(|e| self.with_logs(&e))
    }

    /// Waits until every node that is awake welcomes MQTT clients.
    ///
    /// # Errors
    /// When they do not within `bound`.
    pub fn wait_ready(&mut self, bound: Duration) -> Result<(), HarnessError> {
        let awake = self.awake();
        let admins: Vec<_> = awake.iter().filter_map(|&place| self.nodes.get(place)).map(|n| n.at.admin).collect();
        let found = wait_for("all nodes welcome clients", bound, || {
            for &admin in &admins {
                let answer = http::get(admin, "/health/ready").map_err(|e| e.to_string())?;
                if answer.status != 200 {
                    return Err(format!("{admin}: {} {}", answer.status, answer.body));
                }
            }
            Ok(())
        });
        found.map_err(|e| self.with_logs(&e))
    }

    /// Place of the node that all awake nodes take for the leader, itself awake.
    ///
    /// # Errors
    /// When there is none within `bound`.
    pub fn wait_leader(&mut self, bound: Duration) -> Result<usize, HarnessError> {
        let awake: Vec<(usize, String)> =
            self.awake().into_iter().filter_map(|p| Some((p, self.nodes.get(p)?.name.clone()))).collect();
        let is_awake = |view: &ClusterView| awake.iter().any(|(_, name)| view.leader_name() == Some(name));
        let view = self.wait_view("a leader that is awake", bound, is_awake)?;
        let leader = awake.iter().find(|(_, name)| view.leader_name() == Some(name)).map(|(place, _)| *place);
        leader.ok_or_else(|| no_node(usize::MAX))
    }

    /// Waits until `voters` members vote and are up, in the eyes of every node that is awake.
    ///
    /// # Errors
    /// When they are not within `bound`.
    pub fn wait_voters(&mut self, voters: usize, bound: Duration) -> Result<ClusterView, HarnessError> {
        let what = format!("{voters} voters up and a leader");
        self.wait_view(&what, bound, |view| view.leader.is_some() && view.voters_up() == voters)
    }

    /// Waits until all awake nodes have applied the same entries, and compares their rows by a full scan.
    ///
    /// # Errors
    /// When rows of the same applied index differ, or the nodes do not meet within `bound`.
    pub fn wait_same_digest(&mut self, bound: Duration) -> Result<DigestView, HarnessError> {
        let awake = self.awake();
        let admins: Vec<_> = awake.iter().filter_map(|&place| self.nodes.get(place)).map(|n| n.at.admin).collect();
        let mut differing = None;
        let found = wait_for("the same applied index on all nodes", bound, || {
            let of = |&admin: &_| DigestView::of(admin).map_err(|e| e.to_string());
            let digests: Vec<DigestView> = admins.iter().map(of).collect::<Result<_, _>>()?;
            let Some(first) = digests.first() else { return Err("no node is awake".to_owned()) };
            let differs = |d: &&DigestView| d.applied == first.applied && d.digest != first.digest;
            if digests.iter().any(|d| differs(&d)) {
                differing = Some(format!("{digests:?}"));
                return Ok(first.clone());
            }
            if digests.iter().all(|d| d == first) { Ok(first.clone()) } else { Err(format!("{digests:?}")) }
        });
        match differing {
            Some(answer) => Err(HarnessError::Answer { what: "rows differ at the same applied index".into(), answer }),
            None => found.map_err(|e| self.with_logs(&e)),
        }
    }

    /// The error, with the end of every node's log.
    #[must_use]
    pub fn with_logs(&mut self, error: &HarnessError) -> HarnessError {
        HarnessError::Answer { what: error.to_string(), answer: self.logs() }
    }

    /// The end of every node's log.
    pub fn logs(&mut self) -> String {
        let mut logs = String::new();
        for node in &mut self.nodes {
            let state = if node.is_running() { "runs" } else { "does not run" };
            logs.push_str(&format!("\n--- {} ({state})\n{}", node.name, node.log_tail()));
        }
        logs
    }

    /// Environment (`QUORATE_...`) of nodes that are added from now on.
    pub fn set_env(&mut self, env: Vec<(String, String)>) {
        self.options.env = env;
    }

    /// Where data and logs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }
}

fn no_node(place: usize) -> HarnessError {
    HarnessError::Answer { what: format!("node at place {place}"), answer: "there is none".into() }
}
