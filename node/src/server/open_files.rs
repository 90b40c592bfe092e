//! How many files and sockets this process may have open.
//!
//! A shell or a service manager often gives 1,024, which is for programs that use `select`; the hard limit is what an
//! administrator means. So the soft one is raised to it. At the limit new clients are not accepted until others leave.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// For all but clients and tables of the row database: the log, links to other nodes, the administration.
const OTHERS: u64 = 1024;

/// Raises the soft limit to the hard one, and says what is not enough.
pub(super) fn raise(config: &Config) {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the soft limit of open files to the hard one");
        }
    }
    let limit = getrlimit(Resource::Nofile).current;
    let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    tracing::info!(before = text(before.current), now = text(limit), "limit of open files and sockets");
    let wanted = wanted(config);
    if limit.is_some_and(|limit| limit < wanted) {
        tracing::warn!(
            limit = text(limit),
            wanted,
            connections_max = config.connections_max,
            "the limit of open files is too low for so many connections: at the limit no more clients are accepted. \
             Raise the hard limit (LimitNOFILE= of a systemd unit, --ulimit nofile= of a container, ulimit -Hn of a \
             shell), or set a smaller connections_max"
        );
    }
}

/// What the configuration may come to use.
fn wanted(config: &Config) -> u64 {
    let clients = u64::try_from(config.connections_max).unwrap_or(u64::MAX);
    clients.saturating_add(config.rows_open_files_max.into()).saturating_add(OTHERS)
}
