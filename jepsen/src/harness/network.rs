//! Machines of their own for nodes: a network namespace each, with one link to its peers and one to clients.
//!
//! It owns the namespaces, links and bridges that it makes, and removes exactly those. A link that is cut is taken off
//! its bridge: both ends look well and nothing arrives, as when a switch dies. That is what no signal to a process can
//! show: the node goes on and may do harm, and its peers hear neither a reset nor a refusal. Needs Linux, `ip` and root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};

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
    /// Says to other processes here that the addresses are taken, as long as this one lives.
    _claim: UnixListener,
    machines: usize,
    /// What machines drop of what comes in, by who asked for it.
    drops: BTreeMap<(u32, usize), Vec<Dropped>>,
}

/// What a machine drops of what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Everything from this machine's address on the link to peers.
    From(usize),
    /// So many of a hundred packets on this link.
    Some(Link, u8),
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

/// Addresses that no other process here has.
fn claim(pid: u32) -> Result<(u8, UnixListener), HarnessError> {
    let [.., first] = pid.to_be_bytes();
    for net in (first..=u8::MAX).chain(0..first) {
        let name = SocketAddr::from_abstract_name(format!("quorate-network-{net}"));
        match name.and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(claim) => return Ok((net, claim)),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(HarnessError::io("claiming addresses for machines")(e)),
        }
    }
    let what = "claiming addresses for machines".into();
    Err(HarnessError::Answer { what, answer: "all 256 networks are in use by other processes".into() })
}

/// Removes what harnesses left behind that were ended in the middle.
fn sweep() {
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let is_left = |name: &String| owner_of(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    let namespaces = names("/run/netns").into_iter().filter(is_left).map(|name| format!("netns del {name}"));
    let links = names("/sys/class/net").into_iter().filter(is_left).map(|name| format!("link del {name}"));
    for command in namespaces.chain(links).collect::<Vec<_>>() {
        // Links end with the namespace of their other end, and another run may be sweeping, too.
        drop(ip(&command));
    }
}

/// Process that a namespace, bridge or link belongs to, by its name.
fn owner_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix('q')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    let (pid, kind) = rest.split_at_checked(digits)?;
    let is_ours = ["n", "bp", "bc", "p", "c"]
        .iter()
        .any(|start| kind.strip_prefix(start).is_some_and(|place| place.chars().all(|c| c.is_ascii_digit())));
    if is_ours { pid.parse().ok() } else { None }
}

impl Network {
    /// A network without machines.
    ///
    /// # Errors
    /// When this process may not make one.
    pub fn new() -> Result<Self, HarnessError> {
        let pid = std::process::id();
        let (net, claim) = claim(pid)?;
        sweep();
        let network = Self { tag: format!("q{pid}"), net, _claim: claim, machines: 0, drops: BTreeMap::new() };
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
        let address = |last| self.address(last);
        let machine = Machine {
            namespace: self.namespace(self.machines),
            peers: address(number),
            clients: address(CLIENTS + number),
        };
        let namespace = &machine.namespace;
        ip(&format!("netns add {namespace}"))?;
        self.machines += 1;
        ip(&format!("-n {namespace} link set lo up"))?;
        for (link, address) in [(Link::Peers, machine.peers), (Link::Clients, machine.clients)] {
            let inside = inside(link);
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

    /// From now on a machine drops this of what comes in, beside what others asked for, until [`Self::keep`]. Needs
    /// `nft`.
    ///
    /// # Errors
    /// When there is no such machine, or no `nft`.
    pub fn drop_at(&mut self, owner: u32, place: usize, drops: Vec<Dropped>) -> Result<(), HarnessError> {
        self.drops.insert((owner, place), drops);
        self.apply_drops(place)
    }

    /// Ends everything that `owner` asked for.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn keep(&mut self, owner: u32) -> Result<(), HarnessError> {
        let places: Vec<usize> = self.drops.keys().filter(|(o, _)| *o == owner).map(|(_, place)| *place).collect();
        self.drops.retain(|(o, _), _| *o != owner);
        places.into_iter().try_for_each(|place| self.apply_drops(place))
    }

    /// The machine's rules become those that stand in `drops`, all at once.
    fn apply_drops(&self, place: usize) -> Result<(), HarnessError> {
        let namespace = format!("--net=/run/netns/{}", self.namespace(place));
        let what = "nft -f - (is nftables installed?)";
        let run = || -> std::io::Result<Output> {
            let mut nft = Command::new("nsenter")
                .args([&namespace, "--", "nft", "-f", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = nft.stdin.take() {
                stdin.write_all(self.rules(place).as_bytes())?;
            }
            nft.wait_with_output()
        };
        let output = run().map_err(HarnessError::io(what))?;
        if output.status.success() {
            return Ok(());
        }
        let answer = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(HarnessError::Answer { what: what.into(), answer })
    }

    fn rules(&self, place: usize) -> String {
        let mut rules = String::from(
            "table inet harness {}\ndelete table inet harness\ntable inet harness {\nchain input {\n\
             type filter hook input priority 0; policy accept;\n",
        );
        for drop in self.drops.iter().filter(|((_, at), _)| *at == place).flat_map(|(_, drops)| drops) {
            let rule = match drop {
                Dropped::From(other) => {
                    let other = u8::try_from(other + 1).unwrap_or(u8::MAX);
                    format!("ip saddr {} drop\n", self.address(other))
                }
                Dropped::Some(link, percent) => {
                    format!("iifname {} numgen random mod 100 < {percent} drop\n", inside(*link))
                }
            };
            rules.push_str(&rule);
        }
        rules.push_str("}\n}\n");
        rules
    }

    const fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(NET[0], NET[1], self.net, last)
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

/// Name of a link's end in its machine.
const fn inside(link: Link) -> &'static str {
    match link {
        Link::Peers => "peers",
        Link::Clients => "clients",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        for ours in ["q812n0", "q812bp", "q812bc", "q812p2", "q812c11"] {
            assert_eq!(owner_of(ours), Some(812), "{ours}");
        }
        for other in ["eth0", "q", "q12", "qemu0", "q812x1", "q812nx", "br-q812"] {
            assert_eq!(owner_of(other), None, "{other}");
        }
    }
}
