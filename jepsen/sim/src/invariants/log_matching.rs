//! If a server has applied a log entry at a given index, no other server will ever apply a different one for it (Raft
//! §5.4.3, "State Machine Safety"): what stands in the logs up to what is applied is the same, to the byte, for ever.

use std::collections::BTreeMap;

use super::Found;
use crate::node;

/// What was applied at each index, as it stood in some log.
#[derive(Default)]
pub(super) struct Logs {
    hashes: BTreeMap<u64, u64>,
    /// Term of the newest of them.
    term: u64,
}

impl Logs {
    /// Highest term in which any of it was applied.
    pub(super) fn term(&self) -> u64 {
        self.term
    }

    /// What was applied above an index, by its hashes.
    pub(super) fn after(&self, index: u64) -> impl Iterator<Item = (u64, u64)> {
        self.hashes.range(index + 1..).map(|(index, hash)| (*index, *hash))
    }

    pub(super) fn look(&mut self) -> Found {
        for host in node::running() {
            let applied = node::look(host, |cluster| {
                let applied = cluster.applied();
                let view = applied.borrow();
                (view.index, view.term)
            });
            let Some((applied, term)) = applied else { continue };
            self.term = self.term.max(term);
            let Some(disk) = node::disk(host) else { continue };
            for (index, hash) in disk.records_until(applied) {
                let known = *self.hashes.entry(index).or_insert(hash);
                if known != hash {
                    let how = format!("node {host} has applied another entry {index} than a node before it");
                    return Err(("state machine safety (Raft §5.4.3)", how));
                }
            }
        }
        Ok(())
    }
}
