//! A log is discarded up to where a snapshot stands for it, and no further (Raft §7): else a follower that needs what is
//! gone could never be served.

use super::Found;
use crate::node;

pub(super) fn look() -> Found {
    for host in node::running() {
        let seen = node::look(host, |cluster| {
            let status = cluster.status();
            let status = status.borrow();
            (status.purged, status.snapshot)
        });
        let Some((purged, snapshot)) = seen else { continue };
        if purged > snapshot {
            let how = format!("node {host} has purged its log up to {purged:?}, and its snapshot is of {snapshot:?}");
            return Err(("what is discarded is in a snapshot (Raft §7)", how));
        }
    }
    Ok(())
}
