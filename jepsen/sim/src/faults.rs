//! Faults by chance: each seed has some kinds of them, and each comes and goes at its own time.

use std::time::Duration;

use quorate_jepsen::history::event::What;

use crate::net::{self, Host};
use crate::world::{self, after, below, between, note, one_in, one_of};
use crate::{client, history, node};

/// What a fault does is felt for so long after it: a node starts, a leader is elected.
const LINGERS: Duration = Duration::from_secs(4);

/// How long nodes are apart from each other: from less than a CONNECT may wait to more.
const APART: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(14));

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A process dies and is started again.
    Kill,
    /// A machine loses its power.
    Power,
    /// All machines lose their power at once.
    Blackout,
    /// A process is stopped, and goes on.
    Stop,
    /// A node is cut off from the others, in one direction or both.
    Cut,
    /// One link between two nodes is cut.
    Link,
    /// Every node is on its own, for longer than a CONNECT may wait: nobody leads.
    Apart,
    /// Syncs are slow.
    SlowDisk,
    /// The network is another.
    Weather,
    /// A wall clock is wrong.
    Clock,
    /// A client's connection breaks.
    Client,
}

const ALL: [Kind; 11] = [
    Kind::Kill,
    Kind::Power,
    Kind::Blackout,
    Kind::Stop,
    Kind::Cut,
    Kind::Link,
    Kind::Apart,
    Kind::SlowDisk,
    Kind::Weather,
    Kind::Clock,
    Kind::Client,
];

/// One fault.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// Counted from 1.
    number: u32,
    after: Duration,
    kind: Kind,
    /// Of where and for how long: what other faults do changes nothing in this one.
    seed: u64,
}

/// What goes wrong when.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    kinds: Vec<Kind>,
    faults: Vec<Fault>,
}

impl Plan {
    /// For so long, by chance: each kind is in it or not, and they come often or not.
    pub(crate) fn some(length: Duration) -> Self {
        let mut kinds: Vec<Kind> = ALL.into_iter().filter(|_| one_in(2)).collect();
        if kinds.is_empty() {
            kinds.push(Kind::Kill);
        }
        let least = Duration::from_millis(100 + below(1500));
        let mut faults = Vec::new();
        let mut after = between(least, least * 4);
        let mut apart_again = Duration::ZERO;
        while after < length {
            let number = faults.len() as u32 + 1;
            let kind = match one_of(&kinds).unwrap_or(Kind::Kill) {
                // One at a time, or nobody would ever lead.
                Kind::Apart if after < apart_again => Kind::Link,
                kind => kind,
            };
            if kind == Kind::Apart {
                apart_again = after + APART.1 * 2;
            }
            faults.push(Fault { number, after, kind, seed: below(u64::MAX) });
            after += between(least, least * 4);
        }
        Self { kinds, faults }
    }

    /// How many faults there are.
    pub(crate) fn len(&self) -> usize {
        self.faults.len()
    }

    /// Lets them come, but for those in `skipped`.
    pub(crate) fn run(&self, skipped: &[u32]) {
        note!("faults: {:?}, {} of them, {} left out", self.kinds, self.len(), skipped.len());
        for fault in self.faults.iter().filter(|fault| !skipped.contains(&fault.number)).copied() {
            after(fault.after, move || world::with_chance(fault.seed, || strike(fault)));
        }
    }
}

fn some_time() -> Duration {
    // Mostly short, sometimes beyond node_timeout.
    let most = if one_in(4) { 12_000 } else { 2_500 };
    between(Duration::from_millis(20), Duration::from_millis(most))
}

fn some_host() -> Option<Host> {
    one_of(&node::hosts())
}

fn strike(Fault { number, kind, .. }: Fault) {
    let Some(host) = some_host() else { return };
    let time = if kind == Kind::Apart { APART.1 } else { some_time() };
    note!("fault {number}: {kind:?} at node {host} for {} ms", time.as_millis());
    let (nemesis, what) = (format!("{kind:?}"), format!("for {} ms", time.as_millis()));
    history::record(None, What::Fault { number, nemesis, nodes: vec![format!("n{host}")], what });
    // The network's weather and a wrong clock stay.
    if !matches!(kind, Kind::Weather | Kind::Clock) {
        after(time + LINGERS, move || history::record(None, What::Healed { number }));
    }
    match kind {
        Kind::Kill | Kind::Power => {
            node::kill(host, kind == Kind::Power);
            after(time, move || node::start(host));
        }
        Kind::Blackout => {
            for host in node::hosts() {
                node::kill(host, true);
                after(time + between(Duration::ZERO, Duration::from_secs(2)), move || node::start(host));
            }
        }
        Kind::Stop => {
            node::set_stopped(host, true);
            after(time, move || node::set_stopped(host, false));
        }
        Kind::Cut => {
            let ways = below(3);
            for other in node::hosts().into_iter().filter(|other| *other != host) {
                cut(host, other, ways, time);
            }
        }
        Kind::Link => {
            let others: Vec<Host> = node::hosts().into_iter().filter(|other| *other != host).collect();
            if let Some(other) = one_of(&others) {
                cut(host, other, below(3), time);
            }
        }
        Kind::Apart => {
            let hosts = node::hosts();
            for (n, host) in hosts.iter().enumerate() {
                for other in &hosts[n + 1..] {
                    // They do not find each other at one time.
                    cut(*host, *other, 2, between(APART.0, time));
                }
            }
        }
        Kind::SlowDisk => {
            if let Some(disk) = node::disk(host) {
                let slow = Duration::from_millis(50 + below(1950));
                disk.set_sync(slow / 4, slow);
                after(time, move || disk.set_sync(Duration::from_micros(200), Duration::from_millis(3)));
            }
        }
        Kind::Weather => net::set_weather(net::some_weather()),
        Kind::Clock => node::set_wall_skew_ms(host, below(20_000) as i64 - 10_000),
        Kind::Client => client::break_connection(below(u64::from(client::count())) as u32),
    }
}

fn cut(host: Host, other: Host, ways: u64, time: Duration) {
    let links = [(host, other), (other, host)];
    let links: Vec<(Host, Host)> =
        links.into_iter().enumerate().filter(|(n, _)| ways == 2 || ways == *n as u64).map(|(_, link)| link).collect();
    for (from, to) in links {
        net::set_link(from, to, true);
        after(time, move || net::set_link(from, to, false));
    }
}

/// All is well again: for good, once faults do not come any more.
pub(crate) fn heal() {
    note!("all faults end");
    let hosts = node::hosts();
    for from in &hosts {
        for to in &hosts {
            net::set_link(*from, *to, false);
        }
        node::set_stopped(*from, false);
        if let Some(disk) = node::disk(*from) {
            disk.set_sync(Duration::from_micros(200), Duration::from_millis(3));
        }
        node::start(*from);
    }
    net::set_weather(net::Weather {
        least: Duration::from_micros(100),
        most: Duration::from_millis(2),
        loss_one_in: None,
    });
    history::heal_all();
}
