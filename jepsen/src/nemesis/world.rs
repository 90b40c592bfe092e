//! What nemeses work on: the cluster, its disks and clocks, and who holds what down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::delay::Relays;
use crate::client::Directory;
use crate::disk::{Cut, DiskError, FaultDisk};
use crate::harness::{Cluster, ClusterOptions, ClusterView, HarnessError, NodeProcess, Prepare, Start, http, wait_for};
use crate::history::event::What;
use crate::history::record::Recorder;
use crate::rng::Rng;

/// A node that is well answers within this.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// A change of members is tried again for so long.
const CHANGE_MAX: Duration = Duration::from_secs(60);
/// Longest time for a node to join, faults or not.
const JOIN_MAX: Duration = Duration::from_secs(30);
/// Longest time until all members serve again once all faults are healed.
const SERVE_MAX: Duration = Duration::from_secs(90);

/// What a run's nodes are given so that nemeses can do their work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Equipment {
    /// Program that serves disks that forget (`quorate-faults`); none: nodes are on this machine's disk.
    pub(crate) disk_server: Option<PathBuf>,
    /// Library that gives a process a clock of its own.
    pub(crate) faketime: Option<PathBuf>,
    /// Through which nodes talk to each other; none: they do so directly.
    pub(crate) relays: Option<Relays>,
}

type Disks = Arc<Mutex<BTreeMap<String, FaultDisk>>>;

/// The cluster and what was done to it.
pub(crate) struct World {
    /// Goes before the disks under it.
    pub(crate) cluster: Cluster,
    pub(crate) rng: Rng,
    pub(crate) recorder: Recorder,
    pub(super) relays: Option<Relays>,
    disks: Disks,
    directory: Directory,
    /// Places of the nodes that belong to the cluster and should run.
    members: BTreeSet<usize>,
    /// How many nemeses hold a node down.
    held: BTreeMap<usize, u32>,
    owners: u32,
}

/// Which nodes a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Leader,
    Follower,
    One,
    Minority,
    Majority,
    All,
}

impl World {
    /// Starts the cluster.
    pub(crate) fn start(
        options: ClusterOptions,
        equipment: Equipment,
        seed: u64,
        recorder: Recorder,
        directory: Directory,
    ) -> Result<Self, HarnessError> {
        let (disks, relays) = (Disks::default(), equipment.relays.clone());
        let prepared = Arc::clone(&disks);
        let prepare = Prepare(Box::new(move |node| prepare(node, &equipment, &prepared)));
        let cluster = Cluster::start_prepared(options, Some(prepare))?;
        let members = (0..cluster.nodes.len()).collect();
        let rng = Rng::of(seed, u64::MAX);
        let held = BTreeMap::new();
        let world = Self { cluster, rng, recorder, relays, disks, directory, members, held, owners: 0 };
        world.tell_clients();
        Ok(world)
    }

    /// A name for what a nemesis asks of the network.
    pub(crate) const fn owner(&mut self) -> u32 {
        self.owners += 1;
        self.owners
    }

    pub(crate) fn members(&self) -> Vec<usize> {
        self.members.iter().copied().collect()
    }

    pub(crate) fn name(&self, place: usize) -> String {
        self.cluster.nodes.get(place).map_or_else(String::new, |node| node.name.clone())
    }

    pub(crate) fn names(&self, places: &[usize]) -> Vec<String> {
        places.iter().map(|place| self.name(*place)).collect()
    }

    fn tell_clients(&self) {
        let nodes = self.members.iter().filter_map(|place| self.cluster.nodes.get(*place));
        self.directory.set(nodes.map(|node| (node.name.clone(), node.at.mqtt)).collect());
    }

    /// What the member with the highest term says.
    pub(crate) fn view(&mut self) -> Option<ClusterView> {
        let awake = self.cluster.awake();
        let admins: Vec<SocketAddr> = self
            .members
            .iter()
            .filter(|place| awake.contains(place))
            .filter_map(|place| self.cluster.nodes.get(*place))
            .map(|node| node.at.admin)
            .collect();
        let views = admins.into_iter().filter_map(|admin| ClusterView::within(admin, ANSWER_MAX).ok());
        views.filter(|view| view.leader.is_some()).max_by_key(|view| view.term)
    }

    /// Place of the leader, if a member knows one; written down.
    pub(crate) fn leader(&mut self) -> Option<usize> {
        let view = self.view()?;
        let name = view.leader_name()?;
        self.recorder.record(None, What::Leader { node: name.to_owned(), term: view.term });
        self.members.iter().copied().find(|place| self.name(*place) == name)
    }

    /// Any scope.
    pub(crate) fn any_scope(&mut self) -> Scope {
        let all = [Scope::Leader, Scope::Follower, Scope::One, Scope::Minority, Scope::Majority, Scope::All];
        self.rng.pick(&all).copied().unwrap_or(Scope::One)
    }

    /// A scope that leaves a majority alone.
    pub(crate) fn minor_scope(&mut self) -> Scope {
        let some = [Scope::Leader, Scope::Follower, Scope::One, Scope::Minority];
        self.rng.pick(&some).copied().unwrap_or(Scope::One)
    }

    /// The members in any order.
    pub(crate) fn shuffled(&mut self) -> Vec<usize> {
        let mut places = self.members();
        self.rng.shuffle(&mut places);
        places
    }

    /// The nodes of a scope; a leader that nobody knows is any.
    pub(crate) fn targets(&mut self, scope: Scope) -> Vec<usize> {
        let mut places = self.shuffled();
        let count = places.len();
        match scope {
            Scope::Leader => {
                if let Some(leader) = self.leader() {
                    places.retain(|place| *place == leader);
                }
                places.truncate(1);
            }
            Scope::Follower => {
                if let Some(leader) = self.leader() {
                    places.retain(|place| *place != leader);
                }
                places.truncate(1);
            }
            Scope::One => places.truncate(1),
            Scope::Minority => places.truncate(((count.max(1) - 1) / 2).max(1)),
            Scope::Majority => places.truncate(count / 2 + 1),
            Scope::All => {}
        }
        places
    }

    /// No node is held down or has ended by itself.
    pub(crate) fn is_whole(&mut self) -> bool {
        let awake = self.cluster.awake();
        self.held.is_empty() && self.members.iter().all(|place| awake.contains(place))
    }

    /// Ends a process; it stays down until [`Self::release`].
    pub(crate) fn kill(&mut self, place: usize) -> Result<(), HarnessError> {
        self.hold(place);
        self.cluster.node_mut(place)?.kill()
    }

    /// From now on this node is not started by others.
    pub(crate) fn hold(&mut self, place: usize) {
        *self.held.entry(place).or_default() += 1;
    }

    /// Starts a node on its data, unless another nemesis holds it too.
    pub(crate) fn release(&mut self, place: usize) -> Result<(), HarnessError> {
        match self.held.get_mut(&place) {
            Some(holders) if *holders > 1 => *holders -= 1,
            _ => {
                self.held.remove(&place);
                self.ensure_running(place)?;
            }
        }
        Ok(())
    }

    /// Starts a member that nobody holds and that does not run; if it had ended by itself, that is noted.
    pub(crate) fn ensure_running(&mut self, place: usize) -> Result<(), HarnessError> {
        if !self.members.contains(&place) || self.held.contains_key(&place) {
            return Ok(());
        }
        let node = self.cluster.node_mut(place)?;
        if node.is_running() {
            return Ok(());
        }
        if node.pid().is_some() {
            let status = node.wait_exit(Duration::from_secs(5))?;
            let last = node.log_tail().lines().last().unwrap_or_default().to_owned();
            self.recorder.note(&format!("{} had ended by itself ({status}): {last}", self.name(place)));
        }
        // Off still, when a fault could not be healed as it should have been.
        if self.disks().contains_key(&self.name(place)) {
            self.disk(place, |disk| if disk.is_off()? { disk.restart(Cut::Clean) } else { Ok(()) })?;
        }
        self.cluster.node_mut(place)?.start(Start::Again)
    }

    pub(crate) fn has_disks(&self) -> bool {
        !self.disks().is_empty()
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<String, FaultDisk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a node's disk.
    pub(crate) fn disk(
        &self,
        place: usize,
        work: impl FnOnce(&FaultDisk) -> Result<(), DiskError>,
    ) -> Result<(), HarnessError> {
        let name = self.name(place);
        let failed = |answer| HarnessError::Answer { what: format!("the disk of {name}"), answer };
        let disks = self.disks();
        let disk = disks.get(&name).ok_or_else(|| failed("there is none".into()))?;
        work(disk).map_err(|e| failed(e.to_string()))
    }

    /// The power of these nodes goes at the same moment; they stay down until [`Self::power_on`].
    pub(crate) fn power_off(&mut self, places: &[usize]) -> Result<(), HarnessError> {
        for place in places {
            self.disk(*place, FaultDisk::power_off)?;
        }
        places.iter().try_for_each(|place| self.kill(*place))
    }

    /// The power is back; what was not synced is gone, all or some of it.
    pub(crate) fn power_on(&mut self, places: &[usize], is_torn: bool) -> Result<(), HarnessError> {
        for place in places {
            let cut = if is_torn { Cut::Torn(self.rng.draw() >> 1) } else { Cut::Clean };
            self.disk(*place, |disk| disk.restart(cut))?;
            self.release(*place)?;
        }
        Ok(())
    }

    /// A request to the administration of any member that takes it, tried again until it is done.
    pub(crate) fn change(&mut self, method: &str, path: &str, body: Option<&str>) -> Result<(), HarnessError> {
        let end = Instant::now() + CHANGE_MAX;
        loop {
            let mut last = "no member is awake".to_owned();
            let awake = self.cluster.awake();
            let members: Vec<usize> = self.members.iter().copied().filter(|place| awake.contains(place)).collect();
            for place in members {
                let admin = self.cluster.node(place)?.at.admin;
                match http::request_within(admin, method, path, body, Duration::from_secs(5)) {
                    Ok(answer) if (200..300).contains(&answer.status) => return Ok(()),
                    // Done by an earlier try whose answer was lost.
                    Ok(answer) if answer.status == 404 && method == "DELETE" => return Ok(()),
                    Ok(answer) => last = format!("{} {}", answer.status, answer.body),
                    Err(e) => last = e.to_string(),
                }
            }
            if Instant::now() >= end {
                return Err(HarnessError::Answer { what: format!("{method} {path}"), answer: last });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Node id of a member, as soon as somebody who knows a leader says it.
    pub(crate) fn id(&mut self, place: usize) -> Result<u64, HarnessError> {
        let name = self.name(place);
        wait_for(&format!("node id of {name}"), CHANGE_MAX, || {
            let id = self.view().and_then(|view| view.node(&name).map(|node| node.id));
            id.ok_or_else(|| "nobody knows it".to_owned())
        })
    }

    /// Takes a member out of the cluster for good and ends its process.
    pub(crate) fn remove(&mut self, place: usize) -> Result<(), HarnessError> {
        let id = self.id(place)?;
        self.members.remove(&place);
        self.tell_clients();
        self.held.remove(&place);
        self.change("DELETE", &format!("/api/v1/cluster/nodes/{id}"), None)?;
        self.cluster.node_mut(place)?.kill()
    }

    /// Starts a new node that joins, and waits until it votes.
    pub(crate) fn add(&mut self) -> Result<usize, HarnessError> {
        let place = self.cluster.start_node()?;
        let name = self.name(place);
        let end = Instant::now() + JOIN_MAX;
        let is_voter = |view: &ClusterView| view.node(&name).is_some_and(|n| n.role != "learner" && n.state == "up");
        loop {
            let view = self.view();
            if view.as_ref().is_some_and(is_voter) {
                break;
            }
            if Instant::now() >= end {
                // It must not become a member behind our back.
                self.cluster.node_mut(place)?.kill()?;
                return Err(HarnessError::Answer { what: format!("{name} joins"), answer: format!("{view:?}") });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.members.insert(place);
        self.tell_clients();
        Ok(place)
    }

    /// Whatever happened, all members run again; waits until they serve.
    pub(crate) fn recover(&mut self) -> Result<(), HarnessError> {
        self.held.clear();
        let end = Instant::now() + SERVE_MAX;
        loop {
            for place in self.members() {
                let node = self.cluster.node_mut(place)?;
                if node.is_frozen() {
                    node.thaw()?;
                }
                self.ensure_running(place)?;
            }
            let wanted = self.members.len();
            let view = self.view();
            let is_well = view.as_ref().is_some_and(|view| view.voters_up() >= wanted);
            if is_well && self.cluster.wait_ready(Duration::from_secs(1)).is_ok() {
                self.leader();
                return Ok(());
            }
            if Instant::now() >= end {
                let what = HarnessError::Answer {
                    what: format!("{wanted} voters up, all faults healed, within {SERVE_MAX:?}"),
                    answer: format!("{view:?}"),
                };
                return Err(self.cluster.with_logs(&what));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(relays) = &self.relays {
            relays.stop();
        }
    }
}

/// A new node's disk, clock and relay.
fn prepare(node: &mut NodeProcess, equipment: &Equipment, disks: &Disks) -> Result<(), HarnessError> {
    let name = node.name.clone();
    let failed = |what: &str, answer: String| HarnessError::Answer { what: format!("{what} of {name}"), answer };
    if let Some(server) = &equipment.disk_server {
        std::fs::create_dir_all(&node.data_dir).map_err(|e| failed("folder", e.to_string()))?;
        let mut command = Command::new(server);
        command.arg("disk");
        let disk = FaultDisk::mount(command, &node.data_dir).map_err(|e| failed("disk", e.to_string()))?;
        disks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), disk);
    }
    if let Some(relays) = &equipment.relays {
        relays.start(node)?;
    }
    if let Some(library) = &equipment.faketime {
        let clock = super::clock::file(&node.data_dir);
        std::fs::write(&clock, "+0\n").map_err(|e| failed("clock", e.to_string()))?;
        let mut set = |name: &str, value: String| node.env.push((name.to_owned(), value));
        set("LD_PRELOAD", library.display().to_string());
        set("FAKETIME_TIMESTAMP_FILE", clock.display().to_string());
        set("FAKETIME_CACHE_DURATION", "1".into());
        // Wall clocks jump; monotonic ones do not, on any machine.
        set("FAKETIME_DONT_FAKE_MONOTONIC", "1".into());
    }
    Ok(())
}
