//! Messages that are queued for a session that is away, and how the session gets them.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_jepsen::wire::Version;
use tokio::task::JoinSet;

use crate::connection::{Connection, client, end_session};
use crate::shared::{Phase, Shared};
use crate::{BenchError, publisher, subscriber};

/// Longest wait for the next acknowledgement.
const QUEUE_IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest wait for publishers to connect.
const CONNECT_MAX: Duration = Duration::from_secs(60);
/// Longest drain.
const DRAIN_MAX: Duration = Duration::from_secs(900);
/// A drain without a delivery for so long is over.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(60);

/// How much is queued, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct BacklogArgs {
    /// Messages that are queued for a session that is away.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) messages: u64,
    /// Bytes of a payload, at least 20.
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Publishers that queue them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) publishers: u16,
    /// Publishes of one publisher that may be unacknowledged.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    pub(crate) window: u16,
}

impl BacklogArgs {
    /// What is queued for `client`.
    pub(crate) fn backlog(&self, client: &'static str, version: Version, is_noise: bool) -> Backlog {
        Backlog {
            client,
            version,
            messages: self.messages,
            payload_bytes: self.bytes,
            is_noise,
            publishers: usize::from(self.publishers),
            window: usize::from(self.window),
        }
    }
}

/// What is queued. All of this runs in a `LocalSet`.
#[derive(Clone, Debug)]
pub(crate) struct Backlog {
    /// Whose queue; also the first level of the topics.
    pub(crate) client: &'static str,
    pub(crate) version: Version,
    pub(crate) messages: u64,
    pub(crate) payload_bytes: usize,
    /// See [`publisher::Plan`].
    pub(crate) is_noise: bool,
    pub(crate) publishers: usize,
    pub(crate) window: usize,
}

/// How the session got them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    pub(crate) per_s: f64,
    pub(crate) delivered: u64,
    pub(crate) repeated: u64,
    pub(crate) skipped: u64,
}

impl Backlog {
    fn plan(&self, at: SocketAddr) -> subscriber::Plan {
        subscriber::Plan {
            at,
            version: self.version,
            client_id: self.client.to_owned(),
            filter: format!("{}/#", self.client),
            qos: 1,
            is_persistent: true,
            publishers: self.publishers,
        }
    }

    /// The session subscribes and goes away.
    pub(crate) async fn leave(&self, at: SocketAddr) -> Result<(), BenchError> {
        end_session(at, self.version, self.client).await?;
        subscriber::open(&self.plan(at)).await?.close().await
    }

    /// Publishes all that is to be queued; messages a second.
    pub(crate) async fn queue(&self, at: SocketAddr) -> Result<f64, BenchError> {
        let shared = Rc::new(Shared::default());
        let mut publishing = JoinSet::new();
        for number in 0..self.publishers {
            let share = self.messages / self.publishers as u64;
            let rest = if number == 0 { self.messages % self.publishers as u64 } else { 0 };
            let plan = publisher::Plan {
                at,
                version: self.version,
                client_id: format!("{}-p{number}", self.client),
                number: number as u32,
                topic: format!("{}/{number}", self.client),
                qos: 1,
                window: self.window,
                payload_bytes: self.payload_bytes,
                is_noise: self.is_noise,
                is_persistent: false,
                rate: None,
                messages_max: share + rest,
            };
            publishing.spawn_local(publisher::publish(plan, Rc::clone(&shared)));
        }
        tokio::time::timeout(CONNECT_MAX, shared.publishers_ready(self.publishers))
            .await
            .map_err(|_| BenchError::Stuck("publishers of the backlog do not connect"))?;
        let start = Instant::now();
        shared.set_phase(Phase::Measured);
        loop {
            let acknowledged = shared.all().acknowledged;
            match tokio::time::timeout(QUEUE_IDLE_MAX, publishing.join_next()).await {
                Ok(Some(end)) => end.map_err(|_| BenchError::Task)??,
                Ok(None) => return Ok(self.messages as f64 / start.elapsed().as_secs_f64()),
                Err(_) if shared.all().acknowledged > acknowledged => {}
                Err(_) => return Err(BenchError::Stuck("publishes of the backlog stay unacknowledged")),
            }
        }
    }

    /// The session comes back and gets them, as many as there are.
    pub(crate) async fn drain(&self, at: SocketAddr) -> Result<Drained, BenchError> {
        let shared = Rc::new(Shared::default());
        shared.set_phase(Phase::Measured);
        let start = Instant::now();
        let connect = client(self.version, self.client, true, false);
        let (connection, is_present) = Connection::open(at, self.version, &connect).await?;
        if !is_present {
            return Err(BenchError::Stuck("the session is gone"));
        }
        let receiving = tokio::task::spawn_local(subscriber::receive(self.plan(at), connection, Rc::clone(&shared)));
        let (mut last, mut last_at) = (0, start);
        while shared.all().delivered < self.messages {
            if shared.all().delivered > last {
                (last, last_at) = (shared.all().delivered, Instant::now());
            }
            if start.elapsed() > DRAIN_MAX || last_at.elapsed() > DRAIN_IDLE_MAX || receiving.is_finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Not the time in which nothing came any more, when something is missing.
        let delivered = shared.all().delivered;
        let end = if delivered < self.messages { last_at } else { Instant::now() };
        receiving.abort();
        let (_, repeated, skipped) = shared.oddities();
        let per_s = delivered as f64 / (end - start).as_secs_f64().max(f64::EPSILON);
        Ok(Drained { per_s, delivered, repeated, skipped })
    }
}
