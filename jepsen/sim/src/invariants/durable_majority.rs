//! An entry is committed when it is stored on a majority (Raft §5.3), and stored means synced (Raft §5.1, persistent
//! state): what any node has applied stands, synced, in the logs of two nodes of three, or in what stands for it there.
//! It stays there, so no power cut takes it away (guarantee 1).

use quorate_raft::NodeRole;

use super::Found;
use crate::node;

/// Voters of a run, once it has formed, and how many of them are enough.
const VOTERS: usize = 3;
const MAJORITY: usize = 2;

/// Up to where the log may be from a time with fewer voters, once all nodes know that there are three.
#[derive(Default)]
pub(super) struct Stored(Option<u64>);

impl Stored {
    pub(super) fn look(&mut self) -> Found {
        let disks: Vec<_> = node::hosts().into_iter().filter_map(node::disk).collect();
        let Some(formed) = self.0 else {
            let voters = |cluster: &quorate_raft::Cluster| {
                let status = cluster.status();
                status.borrow().nodes.iter().filter(|n| n.role != NodeRole::Learner).count()
            };
            if node::hosts().into_iter().all(|host| node::look(host, voters) == Some(VOTERS)) {
                self.0 = disks.iter().map(|disk| disk.last()).max();
            }
            return Ok(());
        };
        let applied = node::running().into_iter();
        let applied = applied.filter_map(|host| node::look(host, |cluster| cluster.applied().borrow().index));
        let Some(index) = applied.max().filter(|index| *index > formed) else { return Ok(()) };
        let count = disks.iter().filter(|disk| disk.is_durable(index)).count();
        if count < MAJORITY {
            let how = format!("entry {index} is applied and stands synced on {count} nodes");
            return Err(("what is committed is stored on a majority (Raft §5.3)", how));
        }
        Ok(())
    }
}
