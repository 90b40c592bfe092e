//! If a log entry is committed in a given term, then it is present in the logs of the leaders of all higher-numbered
//! terms (Raft §5.4, "Leader Completeness"): what was seen applied stands in the log of who is seen to lead next.

use super::Found;
use super::log_matching::Logs;
use crate::net::Host;
use crate::node;

/// Looks at a leader that was seen for the first time in its term.
pub(super) fn look(leader: Host, term: u64, logs: &Logs) -> Found {
    // A leader that was deposed before it was seen need not have what its successor committed.
    let Some(disk) = node::disk(leader).filter(|_| logs.term() < term) else { return Ok(()) };
    for (index, hash) in logs.after(disk.purged()) {
        if disk.record(index) != Some(hash) {
            let how = format!("entry {index} was applied before, and node {leader} leads term {term} without it");
            return Err(("a leader has all that is committed (Raft §5.4)", how));
        }
    }
    Ok(())
}
