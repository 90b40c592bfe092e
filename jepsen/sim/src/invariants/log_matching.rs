//! If a server has applied a log entry at a given index, no other server will ever apply a different one for it (Raft
//! §5.4.3, "State Machine Safety"): what stands in the logs up to what is applied is the same, to the byte, for ever.

use std::collections::BTreeMap;

use super::Found;
use crate::node;

/// What was applied at each index, as it stood in some log.
#[derive(Default)]
pub(super) struct Logs(BTreeMap<u64, u64>);

impl Logs {
    pub(super) fn look(&mut self) -> Found {
        for host in node::running() {
            let Some(applied) = node::look(host, |cluster| cluster.applied().borrow().index) else { continue };
            let Some(disk) = node::disk(host) else { continue };
            for (index, hash) in disk.records_until(applied) {
                let known = *self.0.entry(index).or_insert(hash);
                if known != hash {
                    let how = format!("node {host} has applied another entry {index} than a node before it");
                    return Err(("state machine safety (Raft §5.4.3)", how));
                }
            }
        }
        Ok(())
    }
}
