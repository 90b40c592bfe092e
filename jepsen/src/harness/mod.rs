//! Real brokers as processes: started, watched over HTTP, killed, frozen, restarted.
//!
//! It owns the processes that it starts and ends exactly those, by their pids, also when a test panics. It knows the
//! broker by its command line, its REST API and its sockets only.

mod cluster;
pub mod http;
mod node;
mod relay;
mod view;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use thiserror::Error;

pub use cluster::{Cluster, ClusterOptions};
pub use node::{Addresses, NodeProcess, Start};
pub use relay::Relay;
pub use view::{ClusterView, DigestView, NodeView};

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

/// Loopback ports that nobody uses now, all different.
///
/// # Errors
/// When none can be bound.
pub fn free_ports(count: usize) -> Result<Vec<u16>, HarnessError> {
    let bind = |_| TcpListener::bind("127.0.0.1:0");
    let sockets: Vec<TcpListener> =
        (0..count).map(bind).collect::<Result<_, _>>().map_err(HarnessError::io("picking a port"))?;
    let port = |socket: &TcpListener| Ok(socket.local_addr()?.port());
    sockets.iter().map(port).collect::<Result<_, _>>().map_err(HarnessError::io("picking a port"))
}
