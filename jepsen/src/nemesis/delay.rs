//! Delay and jitter on the links between nodes, without the kernel's netem, which small machines lack.
//!
//! From the start of the run each node's connections to its peers are led by a rule of nftables into a relay in its own
//! namespace, a thread of this process, which passes the bytes on when their time has come, in order. Without a fault
//! that is at once. Only [`Need::Relays`] brings relays: they cost a copy of every byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::AsFd as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, SockRef, Socket, Type};

use super::{Installed, Kind, Need, Nemesis, Refused, World, installed};
use crate::harness::{HarnessError, NodeProcess};
use crate::rng::Rng;

pub(super) const KINDS: &[Kind] = &[Kind {
    name: "delay",
    about: "20 to 200 ms and as much jitter on the links of some nodes to their peers, by relays",
    need: Need::Relays,
    make: || Box::new(Delay { owner: None }),
}];

/// Where a relay listens in its namespace.
const PORT: u16 = 7_399;
/// What a relay's own connections carry, so that they are not led into it again.
const MARK: u32 = 7;
const CONNECT_MAX: Duration = Duration::from_secs(5);
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait in one direction of one connection: what would be in the network.
const CHUNKS_MAX: usize = 1_024;

/// How slow a link is: always so much, and up to so much more by chance.
type Slow = (Duration, Duration);

/// The relays of a run, and whose links are slow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// By the address of the node and who asked for it.
    slow: BTreeMap<(Ipv4Addr, u32), Slow>,
    listeners: Vec<TcpListener>,
}

impl Relays {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the links of these nodes are slow.
    fn slow(&self, owner: u32, nodes: &[Ipv4Addr], slow: Slow) {
        self.state().slow.extend(nodes.iter().map(|node| ((*node, owner), slow)));
    }

    fn heal(&self, owner: u32) {
        self.state().slow.retain(|(_, by), _| *by != owner);
    }

    /// How slow the link between two nodes is: as the slower of them.
    fn between(&self, one: Ipv4Addr, other: Ipv4Addr) -> Slow {
        let state = self.state();
        let slow = state.slow.iter().filter(|((node, _), _)| *node == one || *node == other);
        slow.map(|(_, slow)| *slow).max().unwrap_or_default()
    }

    /// A relay for a node's connections to its peers.
    pub(super) fn start(&self, node: &NodeProcess) -> Result<(), HarnessError> {
        let name = &node.name;
        let failed = |answer: String| HarnessError::Answer { what: format!("the relay of {name}"), answer };
        let (Some(namespace), SocketAddr::V4(peer)) = (node.namespace.clone(), node.at.peer) else {
            return Err(failed("it has no machine of its own".into()));
        };
        let listener = listen(&namespace).map_err(|e| failed(e.to_string()))?;
        redirect(&namespace, peer.port()).map_err(failed)?;
        let accepting = listener.try_clone().map_err(|e| failed(e.to_string()))?;
        self.state().listeners.push(listener);
        let (relays, own) = (self.clone(), *peer.ip());
        thread::spawn(move || {
            // Sockets that are made here are the namespace's.
            if enter(&namespace).is_err() {
                return;
            }
            for (number, stream) in (0..).zip(accepting.incoming()) {
                let Ok(stream) = stream else { return };
                // A node that cannot be reached is one that does not accept.
                let _ = join(&relays, own, stream, number);
            }
        });
        Ok(())
    }

    /// Nothing is accepted any more.
    pub(super) fn stop(&self) {
        for listener in self.state().listeners.drain(..) {
            // One that is closed already is as good.
            drop(SockRef::from(&listener).shutdown(Shutdown::Both));
        }
    }
}

/// This thread is in a network namespace from now on.
fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn listen(namespace: &str) -> io::Result<TcpListener> {
    let namespace = namespace.to_owned();
    let bound = thread::spawn(move || {
        enter(&namespace)?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))
    });
    bound.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
}

/// What the node sends to its peers' port goes to the relay.
fn redirect(namespace: &str, port: u16) -> Result<(), String> {
    let rules = format!(
        "table ip relay {{\nchain out {{\ntype nat hook output priority -100; policy accept;\n\
         meta mark != {MARK} tcp dport {port} redirect to :{PORT}\n}}\n}}\n"
    );
    let run = || -> io::Result<_> {
        let mut nft = Command::new("nsenter")
            .args([&format!("--net=/run/netns/{namespace}"), "--", "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = nft.stdin.take() {
            stdin.write_all(rules.as_bytes())?;
        }
        nft.wait_with_output()
    };
    let output = run().map_err(|e| format!("nft -f - (is nftables installed?): {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// Connects to where the stream was meant to go, and relays both ways.
fn join(relays: &Relays, own: Ipv4Addr, near: TcpStream, number: u64) -> io::Result<()> {
    let meant = SockRef::from(&near).original_dst_v4()?;
    let peer = meant.as_socket_ipv4().ok_or_else(|| io::Error::other("not an address of IPv4"))?;
    let relays = relays.clone();
    thread::spawn(move || {
        let connect = || -> io::Result<TcpStream> {
            // The thread is a child of one in the namespace, and so in it.
            let far = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            far.set_mark(MARK)?;
            far.connect_timeout(&meant, CONNECT_MAX)?;
            Ok(far.into())
        };
        let Ok(far) = connect() else { return };
        for (from, to, salt) in [(&near, &far, 0), (&far, &near, 1)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            drop(to.set_nodelay(true));
            let (relays, link) = (relays.clone(), (own, *peer.ip()));
            let rng = Rng::of(number, salt);
            let (sender, receiver) = sync_channel(CHUNKS_MAX);
            thread::spawn(move || take(&relays, link, from, &sender, rng));
            thread::spawn(move || pass(to, &receiver));
        }
    });
    Ok(())
}

/// Reads what comes and says when it is due. The end is passed on like everything else.
fn take(
    relays: &Relays,
    link: (Ipv4Addr, Ipv4Addr),
    mut from: TcpStream,
    sender: &SyncSender<(Instant, Vec<u8>)>,
    mut rng: Rng,
) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = from.read(&mut chunk).unwrap_or(0);
        chunk.truncate(length);
        let (least, jitter) = relays.between(link.0, link.1);
        let by_chance = Duration::from_micros(rng.below(u64::try_from(jitter.as_micros()).unwrap_or(0) + 1));
        if sender.send((Instant::now() + least + by_chance, chunk)).is_err() || length == 0 {
            // The other direction ends with this one: a node that is gone neither hears nor speaks.
            return drop(from.shutdown(Shutdown::Read));
        }
    }
}

/// Writes each chunk when it is due, and none before the one ahead of it.
fn pass(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
    for (due, chunk) in receiver {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if chunk.is_empty() || to.write_all(&chunk).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}

struct Delay {
    owner: Option<u32>,
}

impl Nemesis for Delay {
    fn install(&mut self, world: &mut World) -> Result<Installed, Refused> {
        let Some(relays) = world.relays.clone() else { return Err(Refused("the nodes have no relays".into())) };
        let scope = world.any_scope();
        let places = world.targets(scope);
        let (least, jitter) = (world.rng.between(20, 200), world.rng.between(0, 200));
        let mut nodes = Vec::new();
        for place in &places {
            if let SocketAddr::V4(peer) = world.cluster.node(*place)?.at.peer {
                nodes.push(*peer.ip());
            }
        }
        let owner = world.owner();
        self.owner = Some(owner);
        relays.slow(owner, &nodes, (Duration::from_millis(least), Duration::from_millis(jitter)));
        Ok(installed(world, &places, format!("{least} ms, and up to {jitter} ms of jitter")))
    }

    fn heal(&mut self, world: &mut World) -> Result<(), HarnessError> {
        if let (Some(relays), Some(owner)) = (&world.relays, self.owner.take()) {
            relays.heal(owner);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_as_slow_as_the_slower_of_its_ends_until_all_who_asked_have_healed() {
        let [one, other, third] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let ms = |least, jitter| (Duration::from_millis(least), Duration::from_millis(jitter));
        let relays = Relays::default();
        relays.slow(1, &[one], ms(20, 5));
        relays.slow(2, &[one, other], ms(50, 0));
        assert_eq!(relays.between(one, third), ms(50, 0));
        relays.heal(2);
        assert_eq!((relays.between(one, other), relays.between(other, third)), (ms(20, 5), ms(0, 0)));
    }

    #[test]
    fn chunks_are_passed_on_in_order_and_not_before_they_are_due() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let (sender, receiver) = sync_channel(8);
        let begin = Instant::now();
        let due = begin + Duration::from_millis(30);
        for (at, chunk) in [(due, b"first".to_vec()), (begin, b"second".to_vec()), (begin, Vec::new())] {
            sender.send((at, chunk)).unwrap();
        }
        let passing = thread::spawn(move || pass(to, &receiver));
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        passing.join().unwrap();
        assert_eq!(got, b"firstsecond");
        assert!(begin.elapsed() >= Duration::from_millis(30));
    }
}
