//! Machines of their own for nodes: a network namespace each, with one link to its peers and one to clients.
//!
//! It owns the namespaces, links and bridges that it makes, and removes exactly those. A link that is cut is taken off
//! its bridge: both ends look well and nothing arrives, as when a switch dies. That is what no signal to a process can
//! show: the node goes on and may do harm, and its peers hear neither a reset nor a refusal. Needs Linux, `ip` and root.

use std::net::Ipv4Addr;
use std::process::Command;

use super::HarnessError;

/// Namespaces' addresses are `10.213.x.1` and on for peers, `10.213.x.129` and on for clients.
const NET: [u8; 2] = [10, 213];
/// As many machines as half of a /24 has addresses, less the bridge's own.
const MACHINES_MAX: usize = 120;
/// Where clients' addresses begin.
const CLIENTS: u8 = 128;

/// What a machine is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The other nodes.
    Peers,
    /// Clients and administrators.
    Clients,
}

/// The machines.
#[derive(Debug)]
pub struct Network {
    /// Begins the name of everything that is made.
    tag: String,
    net: u8,
    machines: usize,
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its network namespace.
    pub namespace: String,
    /// Its address on the link to its peers.
    pub peers: Ipv4Addr,
    /// Its address on the link to clients, reachable from here.
    pub clients: Ipv4Addr,
}

fn ip(arguments: &str) -> Result<(), HarnessError> {
    let what = format!("ip {arguments}");
    let run = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = run.map_err(HarnessError::io(format!("{what} (is iproute2 installed?)")))?;
    if output.status.success() {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(HarnessError::Answer { what: format!("{what} (network namespaces need root)"), answer })
}

impl Network {
    /// A network without machines.
    ///
    /// # Errors
    /// When this process may not make one.
    pub fn new() -> Result<Self, HarnessError> {
        let pid = std::process::id();
        let [.., net] = pid.to_be_bytes();
        let network = Self { tag: format!("q{pid}"), net, machines: 0 };
        for link in [Link::Peers, Link::Clients] {
            let bridge = network.bridge(link);
            ip(&format!("link add {bridge} type bridge"))?;
            ip(&format!("link set {bridge} up"))?;
        }
        let here = Ipv4Addr::from([NET[0], NET[1], net, u8::MAX - 1]);
        ip(&format!("addr add {here}/25 dev {}", network.bridge(Link::Clients)))?;
        Ok(network)
    }

    /// A machine more.
    ///
    /// # Errors
    /// When this process may not make one, or there are too many.
    pub fn add(&mut self) -> Result<Machine, HarnessError> {
        let number = u8::try_from(self.machines + 1).ok().filter(|n| usize::from(*n) <= MACHINES_MAX);
        let Some(number) = number else {
            let answer = format!("there are {MACHINES_MAX} already");
            return Err(HarnessError::Answer { what: "adding a machine".into(), answer });
        };
        let address = |last| Ipv4Addr::from([NET[0], NET[1], self.net, last]);
        let machine = Machine {
            namespace: self.namespace(self.machines),
            peers: address(number),
            clients: address(CLIENTS + number),
        };
        let namespace = &machine.namespace;
        ip(&format!("netns add {namespace}"))?;
        self.machines += 1;
        ip(&format!("-n {namespace} link set lo up"))?;
        for (link, inside, address) in
            [(Link::Peers, "peers", machine.peers), (Link::Clients, "clients", machine.clients)]
        {
            let end = self.end(self.machines - 1, link);
            ip(&format!("link add {end} type veth peer name {inside} netns {namespace}"))?;
            ip(&format!("-n {namespace} addr add {address}/25 dev {inside}"))?;
            ip(&format!("-n {namespace} link set {inside} up"))?;
            ip(&format!("link set {end} up"))?;
            self.heal(self.machines - 1, link)?;
        }
        Ok(machine)
    }

    /// From now on nothing comes through this link of a machine, in either direction.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn cut(&self, place: usize, link: Link) -> Result<(), HarnessError> {
        ip(&format!("link set {} nomaster", self.end(place, link)))
    }

    /// Ends a cut.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn heal(&self, place: usize, link: Link) -> Result<(), HarnessError> {
        ip(&format!("link set {} master {}", self.end(place, link), self.bridge(link)))
    }

    fn bridge(&self, link: Link) -> String {
        format!("{}b{}", self.tag, letter(link))
    }

    fn namespace(&self, place: usize) -> String {
        format!("{}n{place}", self.tag)
    }

    /// This side's end of a machine's link.
    fn end(&self, place: usize, link: Link) -> String {
        format!("{}{}{place}", self.tag, letter(link))
    }
}

const fn letter(link: Link) -> char {
    match link {
        Link::Peers => 'p',
        Link::Clients => 'c',
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let namespaces = (0..self.machines).map(|place| format!("netns del {}", self.namespace(place)));
        let bridges = [Link::Peers, Link::Clients].map(|link| format!("link del {}", self.bridge(link)));
        for command in namespaces.chain(bridges) {
            if let Err(e) = ip(&command) {
                eprintln!("harness: {e}");
            }
        }
    }
}
