//! The index of what a server has applied increases monotonically (Raft figure 2, `lastApplied`), within a life.

use std::collections::BTreeMap;

use super::Found;
use crate::net::Host;
use crate::node;

/// How far each node was, in which life.
#[derive(Default)]
pub(super) struct Applied(BTreeMap<Host, (u64, u64)>);

impl Applied {
    pub(super) fn look(&mut self) -> Found {
        for host in node::running() {
            let Some(index) = node::look(host, |cluster| cluster.applied().borrow().index) else { continue };
            let life = node::life(host);
            let before = self.0.insert(host, (life, index));
            if let Some((_, was)) = before.filter(|(lived, was)| *lived == life && *was > index) {
                let how = format!("node {host}, life {life}, had applied {was} and now {index}");
                return Err(("what is applied stays so (Raft figure 2)", how));
            }
        }
        Ok(())
    }
}
