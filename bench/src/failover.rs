//! How long clients wait when the leader goes: its process killed, or its machine gone silent.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_jepsen::harness::{Cluster, HarnessError, Link, Start};
use quorate_jepsen::wire::{AckKind, Publish, Version, ack_of, encode};
use serde::Serialize;
use tokio::task::LocalSet;

use crate::BenchError;
use crate::connection::{Connection, client};
use crate::fleet::{FORM_MAX, Fleet};

/// Pause before a client that was refused tries the next node.
const RETRY: Duration = Duration::from_millis(10);
/// A client that hears nothing for so long goes to the next node (a silent machine resets no connection).
const SILENCE_MAX: Duration = Duration::from_secs(6);

/// What is done to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    /// SIGKILL: its connections are reset.
    Kill,
    /// SIGSTOP: nobody hears of it any more, as when its machine or its network is gone.
    Freeze,
    /// Its links to peers and clients are cut: it goes on, and nobody hears of it. Needs `--machines`.
    Cut,
    /// Its link to its peers is cut; clients reach it as before. Needs `--machines`.
    CutPeers,
}

impl How {
    /// What is done, and undone when `is_over`.
    fn apply(self, cluster: &mut Cluster, leader: usize, is_over: bool) -> Result<(), HarnessError> {
        let links: &[Link] = match (self, is_over) {
            (Self::Kill, false) => return cluster.node_mut(leader)?.kill(),
            (Self::Kill, true) => return cluster.node_mut(leader)?.start(Start::Again),
            (Self::Freeze, false) => return cluster.node_mut(leader)?.freeze(),
            (Self::Freeze, true) => return cluster.node_mut(leader)?.thaw(),
            (Self::Cut, _) => &[Link::Peers, Link::Clients],
            (Self::CutPeers, _) => &[Link::Peers],
        };
        links.iter().try_for_each(|link| match is_over {
            false => cluster.cut(leader, *link),
            true => cluster.heal(leader, *link),
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Freeze => "SIGSTOP",
            Self::Cut => "cut off",
            Self::CutPeers => "cut from peers",
        }
    }
}

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct FailoverArgs {
    /// What is done to the leader.
    #[arg(long, value_enum, default_value = "kill")]
    pub(crate) how: How,
    /// How often.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Publishers on each node.
    #[arg(long, default_value_t = 2)]
    pub(crate) publishers: usize,
    /// Publishes of one publisher that may be unacknowledged.
    #[arg(long, default_value_t = 4)]
    pub(crate) window: u16,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Seconds of load after the leader went.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) after: f64,
}

/// One round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    how: How,
    /// Longest pause between two PUBACKs of a publisher on a node that lived, milliseconds.
    survivor_stall_ms: f64,
    /// Longest time until a publisher of the leader had a PUBACK from another node, milliseconds.
    moved_ms: f64,
    /// How many publishers of survivors lost their connection.
    survivors_disconnected: u64,
    /// PUBACKs in the round.
    acknowledged: u64,
}

/// All rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    rounds: Vec<Round>,
}

/// A publisher's own account.
struct Account {
    /// Node that it began on.
    home: usize,
    acks: RefCell<Vec<Instant>>,
    /// First acknowledgement on another node than its home.
    moved_at: Cell<Option<Instant>>,
    disconnected: Cell<u64>,
}

/// Runs all rounds; the leader is started again after each.
pub(crate) async fn run(fleet: &mut Fleet, args: &FailoverArgs) -> Result<Report, BenchError> {
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(LocalSet::new().run_until(round(fleet, args)).await?);
    }
    Ok(Report { rounds })
}

async fn round(fleet: &mut Fleet, args: &FailoverArgs) -> Result<Round, BenchError> {
    let nodes = fleet.mqtt.clone();
    let mut accounts = Vec::new();
    let mut tasks = Vec::new();
    for home in 0..nodes.len() {
        for number in 0..args.publishers {
            let account = Rc::new(Account {
                home,
                acks: RefCell::default(),
                moved_at: Cell::default(),
                disconnected: Cell::default(),
            });
            accounts.push(Rc::clone(&account));
            let (nodes, args) = (nodes.clone(), args.clone());
            let id = format!("failover-{home}-{number}");
            tasks.push(tokio::task::spawn_local(keep_publishing(nodes, id, args, account)));
        }
    }
    let ready = tokio::time::timeout(FORM_MAX, async {
        while accounts.iter().any(|a| a.acks.borrow().len() < 50) {
            tokio::time::sleep(RETRY).await;
        }
    });
    ready.await.map_err(|_| BenchError::Stuck("publishers are not acknowledged"))?;

    let cluster = fleet.own()?;
    let leader = cluster.wait_leader(FORM_MAX)?;
    let gone_at = Instant::now();
    args.how.apply(cluster, leader, false)?;
    tokio::time::sleep(Duration::from_secs_f64(args.after)).await;
    for task in &tasks {
        task.abort();
    }
    args.how.apply(cluster, leader, true)?;
    cluster.wait_voters(nodes.len(), FORM_MAX)?;
    fleet.refresh();

    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let end = gone_at + Duration::from_secs_f64(args.after);
    let (survivors, moved): (Vec<&Rc<Account>>, Vec<&Rc<Account>>) = accounts.iter().partition(|a| a.home != leader);
    Ok(Round {
        how: args.how,
        survivor_stall_ms: survivors
            .iter()
            .map(|a| ms(longest_pause(&a.acks.borrow(), gone_at, end)))
            .fold(0.0, f64::max),
        moved_ms: moved
            .iter()
            .map(|a| ms(a.moved_at.get().unwrap_or(end).saturating_duration_since(gone_at)))
            .fold(0.0, f64::max),
        survivors_disconnected: survivors.iter().map(|a| a.disconnected.get()).sum(),
        acknowledged: accounts.iter().map(|a| a.acks.borrow().len() as u64).sum(),
    })
}

/// Longest time without an acknowledgement between `gone_at` and `end`, from the last one before it.
fn longest_pause(acks: &[Instant], gone_at: Instant, end: Instant) -> Duration {
    let first = acks.partition_point(|at| *at < gone_at).saturating_sub(1);
    let mut before = acks.get(first).copied().unwrap_or(gone_at);
    let mut longest = Duration::ZERO;
    for at in acks.iter().skip(first + 1).copied().chain([end]) {
        longest = longest.max(at.saturating_duration_since(before));
        before = at;
    }
    longest
}

/// Publishes for ever; goes to the next node when its own does not serve it.
async fn keep_publishing(nodes: Vec<SocketAddr>, id: String, args: FailoverArgs, account: Rc<Account>) {
    let mut turn = account.home;
    loop {
        let Some(at) = nodes.get(turn % nodes.len()).copied() else { return };
        // However it ended, the client goes on elsewhere; what it missed is in the account.
        drop(publish_on(at, &id, &args, &account, turn != account.home).await);
        if turn == account.home {
            account.disconnected.set(account.disconnected.get() + 1);
        }
        turn += 1;
        tokio::time::sleep(RETRY).await;
    }
}

async fn publish_on(
    at: SocketAddr,
    id: &str,
    args: &FailoverArgs,
    account: &Account,
    is_away: bool,
) -> Result<(), BenchError> {
    let connect = client(Version::V5, id, true, false);
    let opening = Connection::open(at, Version::V5, &connect);
    let opened = tokio::time::timeout(SILENCE_MAX, opening).await;
    let (mut connection, _) = opened.map_err(|_| BenchError::Silent { at, what: "CONNACK" })??;
    let topic = format!("failover/{id}");
    let publish = |id: u16| Publish {
        dup: false,
        qos: 1,
        retain: false,
        topic: topic.clone(),
        id,
        properties: Vec::new(),
        payload: vec![b'.'; args.bytes],
    };
    for number in 1..=args.window {
        encode::publish(&mut connection.out, Version::V5, &publish(number));
    }
    loop {
        connection.flush().await?;
        let read = tokio::time::timeout(SILENCE_MAX, connection.read()).await;
        read.map_err(|_| BenchError::Silent { at, what: "PUBACK" })??;
        let now = Instant::now();
        while let Some(frame) = connection.input.next()? {
            if frame.kind() == AckKind::Puback as u8 {
                let ack = ack_of(&frame)?;
                account.acks.borrow_mut().push(now);
                if is_away && account.moved_at.get().is_none() {
                    account.moved_at.set(Some(now));
                }
                encode::publish(&mut connection.out, Version::V5, &publish(ack.id));
            } else {
                return Err(BenchError::Closed { at });
            }
        }
    }
}

impl Report {
    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "leader        longest pause of a publisher    until the leader's publishers    connections lost\n\
             \x20                on a surviving node         were served elsewhere            on survivors\n",
        );
        for round in &self.rounds {
            let how = round.how.name();
            text += &format!(
                "{how:<14} {:>16.0} ms {:>28.0} ms {:>22}\n",
                round.survivor_stall_ms, round.moved_ms, round.survivors_disconnected
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_measured_from_the_last_acknowledgement_before() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let acks = [at(0), at(10), at(20), at(320), at(330)];
        assert_eq!(longest_pause(&acks, at(25), at(400)), Duration::from_millis(300));
        assert_eq!(longest_pause(&acks, at(25), at(900)), Duration::from_millis(570));
    }
}
