//! Real brokers as processes: started, watched over HTTP, killed, frozen, restarted.
//!
//! It owns the processes that it starts and ends exactly those, by their pids, also when a test panics. It knows the
//! broker by its command line, its REST API and its sockets only.

mod cluster;
pub mod http;
mod network;
mod node;
mod relay;
mod view;

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use cluster::{Cluster, ClusterOptions, Prepare};
pub use network::{Dropped, Link, Machine, Network};
pub use node::{Addresses, NodeProcess, Start};
pub use relay::Relay;
pub use view::{AlarmView, ClusterView, DigestView, NodeView};

/// Ports for nodes: below Linux's and the IANA's range of ephemeral ones.
const PORTS: Range<u16> = 20_000..32_000;
/// Between the first ports of two processes with consecutive ids.
const PORTS_A_PROCESS: u32 = 37;
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(20);

/// Why the harness gave up.
#[derive(Debug, Error)]
pub enum HarnessError {
    /// A process could not be started, signalled or read.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A broker answered something else than was asked for.
    #[error("{what}: {answer}")]
    Answer {
        /// What was being done.
        what: String,
        /// What came.
        answer: String,
    },
    /// A condition did not come about in time.
    #[error("not within {bound:?}: {what}; last seen: {last}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        bound: Duration,
        /// What was there instead.
        last: String,
    },
}

impl HarnessError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Looks again and again until `look` finds what it wants, `Err` being what it found instead.
///
/// # Errors
/// [`HarnessError::Timeout`] after `bound`.
pub fn wait_for<T>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, HarnessError> {
    let end = Instant::now() + bound;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if Instant::now() >= end => {
                return Err(HarnessError::Timeout { what: what.to_owned(), bound, last });
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Loopback ports that nobody uses now, all different, and below those that the kernel gives to outgoing connections: a
/// node that is started again must find its port free.
///
/// # Errors
/// When there are not so many.
pub fn free_ports(count: usize) -> Result<Vec<u16>, HarnessError> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Processes that test at the same time begin at different places.
    let first = std::process::id().wrapping_mul(PORTS_A_PROCESS);
    let mut found = Vec::new();
    for _ in 0..PORTS.len() {
        if found.len() == count {
            return Ok(found);
        }
        let place = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        let port = PORTS.start + u16::try_from(place).unwrap_or_default();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            found.push(port);
        }
    }
    Err(HarnessError::Answer { what: format!("{count} free ports in {PORTS:?}"), answer: format!("only {found:?}") })
}
