//! All nodes are killed under load and started again at once: how long nobody is served, and whether anything that was
//! acknowledged is missing.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use quorate_jepsen::wire::Version;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet, LocalSet};

use crate::fleet::Fleet;
use crate::histogram::Quantiles;
use crate::shared::{Phase, Shared};
use crate::stubborn::{self, Account, Subscribing};
use crate::{BenchError, nodes, publisher, subscriber};

/// Longest wait for everybody to be served again.
const SERVED_MAX: Duration = Duration::from_secs(180);
/// Longest wait for the last acknowledgements, and for the last deliveries.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// A drain without a delivery for so long is over.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(15);

/// The experiment.
#[derive(Args, Clone, Debug)]
pub(crate) struct RestartArgs {
    /// Publishers, each with a subscriber of its own; both spread over the nodes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) publishers: u16,
    /// Publishes of one publisher that may be unacknowledged.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) window: u16,
    /// Bytes of a payload, at least 20.
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Seconds of load before.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) before: f64,
    /// Seconds of load after everybody is served again.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) after: f64,
    /// Fails when the time without a PUBACK, from the start of the last process, is longer than this.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) outage_s_max: Option<f64>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    publishers: u16,
    window: u16,
    payload_bytes: usize,
    /// Messages acknowledged a second before.
    before_per_s: f64,
    before_ack: Quantiles,
    /// From the first SIGKILL to the start of the last process.
    down_s: f64,
    /// From the start of the last process to the first PUBACK on any node.
    first_puback_s: f64,
    /// And until each publisher had one.
    every_puback_s: f64,
    /// And until each subscriber had a delivery.
    every_delivery_s: f64,
    after_per_s: f64,
    acknowledged: u64,
    /// Acknowledged and not delivered when the run was drained.
    missing: u64,
    repeated: u64,
    resent: u64,
    refused: u64,
    sessions_lost: u64,
}

/// The load.
struct Load {
    shared: Rc<Shared>,
    accounts: Vec<Rc<Account>>,
    publishing: JoinSet<Result<(), BenchError>>,
    receiving: Vec<JoinHandle<Result<(), BenchError>>>,
}

impl Load {
    async fn start(fleet: &Fleet, args: &RestartArgs) -> Result<Self, BenchError> {
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let shared = Rc::new(Shared::default());
        let mut load = Self {
            shared: Rc::clone(&shared),
            accounts: Vec::new(),
            publishing: JoinSet::new(),
            receiving: Vec::new(),
        };
        for number in 0..args.publishers {
            let place = usize::from(number);
            let account = Rc::new(Account::default());
            let topic = format!("restart/{run}/{number}");
            let subscribing = Subscribing {
                at: fleet.at(place + 1)?,
                client_id: format!("bench-restart-{run}-s{number}"),
                filter: topic.clone(),
            };
            let first = subscriber::open(&subscriber::Plan {
                at: subscribing.at,
                version: Version::V5,
                client_id: subscribing.client_id.clone(),
                filter: topic.clone(),
                qos: 1,
                is_persistent: true,
                publishers: 1,
            })
            .await?;
            let receiving = stubborn::receive(subscribing, first, Rc::clone(&shared), Rc::clone(&account));
            load.receiving.push(tokio::task::spawn_local(receiving));
            let plan = publisher::Plan {
                at: fleet.at(place)?,
                version: Version::V5,
                client_id: format!("bench-restart-{run}-p{number}"),
                number: u32::from(number),
                topic,
                qos: 1,
                window: usize::from(args.window),
                payload_bytes: args.bytes,
                is_noise: false,
                is_persistent: true,
                rate: None,
                messages_max: u64::MAX,
            };
            load.publishing.spawn_local(stubborn::publish(plan, Rc::clone(&shared), Rc::clone(&account)));
            load.accounts.push(account);
        }
        tokio::time::timeout(DRAIN_MAX, shared.publishers_ready(usize::from(args.publishers)))
            .await
            .map_err(|_| BenchError::Stuck("publishers did not connect"))?;
        Ok(load)
    }

    /// Something that ended ended wrongly.
    async fn check(&mut self) -> Result<(), BenchError> {
        if let Some(end) = self.publishing.try_join_next() {
            end.map_err(|_| BenchError::Task)??;
        }
        if let Some(ended) = self.receiving.iter().position(JoinHandle::is_finished) {
            self.receiving.swap_remove(ended).await.map_err(|_| BenchError::Task)??;
        }
        Ok(())
    }

    fn sum(&self, of: impl Fn(&Account) -> u64) -> u64 {
        self.accounts.iter().map(|account| of(account)).sum()
    }

    fn missing(&self) -> u64 {
        self.sum(|account| account.acknowledged.borrow().missing_in(&account.delivered.borrow()))
    }

    /// Waits for the last acknowledgements, then for the last deliveries.
    async fn drain(&mut self) -> Result<(), BenchError> {
        self.shared.set_phase(Phase::Over);
        let end = Instant::now() + DRAIN_MAX;
        while !self.publishing.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            let ended = tokio::time::timeout(left, self.publishing.join_next()).await;
            let ended = ended.map_err(|_| BenchError::Stuck("publishes stay unacknowledged after the restart"))?;
            ended.transpose().map_err(|_| BenchError::Task)?.transpose()?;
        }
        let (start, mut last, mut last_at) = (Instant::now(), 0, Instant::now());
        while self.missing() > 0 && start.elapsed() < DRAIN_MAX && last_at.elapsed() < DRAIN_IDLE_MAX {
            let delivered = self.shared.all().delivered;
            if delivered > last {
                (last, last_at) = (delivered, Instant::now());
            }
            self.check().await?;
            tokio::time::sleep(nodes::LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.receiving.iter().for_each(JoinHandle::abort);
    }
}

/// Loads, kills all, starts all, waits.
pub(crate) async fn run(fleet: &mut Fleet, args: &RestartArgs) -> Result<Report, BenchError> {
    LocalSet::new().run_until(run_local(fleet, args)).await
}

async fn run_local(fleet: &mut Fleet, args: &RestartArgs) -> Result<Report, BenchError> {
    fleet.own()?;
    let mut load = Load::start(fleet, args).await?;
    load.shared.set_phase(Phase::Measured);
    tokio::time::sleep(Duration::from_secs_f64(args.before)).await;
    load.check().await?;
    let acknowledged = load.shared.measured().acknowledged;
    let (before_ack, _) = load.shared.lap();

    let killed = Instant::now();
    kill_all(fleet)?;
    load.accounts.iter().for_each(|account| account.killed());
    let mut started = Instant::now();
    for place in 0..fleet.mqtt.len() {
        (started, _) = nodes::start(fleet, place)?;
    }
    let down_s = (started - killed).as_secs_f64();
    let served = Instant::now();
    let is_served = |a: &Rc<Account>| a.first_ack.get().is_some() && a.first_delivery.get().is_some();
    while !load.accounts.iter().all(is_served) {
        if served.elapsed() > SERVED_MAX {
            return Err(BenchError::NotWithin {
                what: "a PUBACK for every publisher and a delivery to every subscriber after the restart".to_owned(),
                bound: SERVED_MAX,
                last: format!("{} of {} pairs", load.accounts.iter().filter(|a| is_served(a)).count(), args.publishers),
            });
        }
        load.check().await?;
        tokio::time::sleep(nodes::LOOK).await;
    }
    let (since, counted) = (Instant::now(), load.shared.measured().acknowledged);
    tokio::time::sleep(Duration::from_secs_f64(args.after)).await;
    let after_per_s = (load.shared.measured().acknowledged - counted) as f64 / since.elapsed().as_secs_f64();
    load.drain().await?;

    let after = |times: &dyn Fn(&Account) -> Option<Instant>| {
        let of = |a: &Rc<Account>| times(a).map(|at| at.saturating_duration_since(started).as_secs_f64());
        load.accounts.iter().filter_map(of).fold((f64::INFINITY, 0.0), |(min, max), s| (s.min(min), s.max(max)))
    };
    let (first_puback_s, every_puback_s) = after(&|a| a.first_ack.get());
    let (_, every_delivery_s) = after(&|a| a.first_delivery.get());
    let report = Report {
        publishers: args.publishers,
        window: args.window,
        payload_bytes: args.bytes,
        before_per_s: acknowledged as f64 / args.before,
        before_ack,
        down_s,
        first_puback_s,
        every_puback_s,
        every_delivery_s,
        after_per_s,
        acknowledged: load.sum(|a| a.acknowledged.borrow().count()),
        missing: load.missing(),
        repeated: load.sum(|a| a.repeated.get()),
        resent: load.sum(|a| a.resent.get()),
        refused: load.sum(|a| a.refused.get()),
        sessions_lost: load.sum(|a| a.sessions_lost.get()),
    };
    report.held_to(args)
}

/// SIGKILL to all at once, then one after the other is waited for.
fn kill_all(fleet: &mut Fleet) -> Result<(), BenchError> {
    for pid in &fleet.pids {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw).ok_or(BenchError::NotOurs)?;
        kill_process(pid, Signal::KILL).map_err(|e| BenchError::io(&format!("SIGKILL to {pid:?}"))(e.into()))?;
    }
    (0..fleet.mqtt.len()).try_for_each(|place| nodes::kill(fleet, place))
}

impl Report {
    fn held_to(self, args: &RestartArgs) -> Result<Self, BenchError> {
        let table = || self.table();
        BenchError::lost("acknowledged messages", self.missing, table)?;
        BenchError::lost("sessions", self.sessions_lost, table)?;
        BenchError::above(
            ("from the start of the last process to the first PUBACK", "s"),
            self.first_puback_s,
            args.outage_s_max,
            table,
        )?;
        Ok(self)
    }

    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        format!(
            "all nodes killed (SIGKILL) under load and started again: QoS 1, {0} publishers x window {1} -> {0} subscribers, {2} bytes\n\
             \x20 before {3:>10.0} /s   PUBACK p50 {4:.1} ms, p99 {5:.1} ms\n\
             \x20 down for {6:.2} s; from the start of the last process: first PUBACK {7:.2} s, \
             every publisher {8:.2} s, every subscriber {9:.2} s\n\
             \x20 after  {10:>10.0} /s\n\
             \x20 acknowledged {11}, missing after the drain {12}, repeated {13}, sent again {14}, refused {15}, sessions lost {16}\n",
            self.publishers,
            self.window,
            self.payload_bytes,
            self.before_per_s,
            self.before_ack.p50_us / 1e3,
            self.before_ack.p99_us / 1e3,
            self.down_s,
            self.first_puback_s,
            self.every_puback_s,
            self.every_delivery_s,
            self.after_per_s,
            self.acknowledged,
            self.missing,
            self.repeated,
            self.resent,
            self.refused,
            self.sessions_lost
        )
    }
}
