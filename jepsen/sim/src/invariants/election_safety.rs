//! At most one leader can be elected in a given term (Raft §5.2, "Election Safety").

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use quorate_jepsen::history::event::What;

use super::Found;
use crate::net::Host;
use crate::{history, node};

/// Who led in each term.
#[derive(Default)]
pub(super) struct Terms(BTreeMap<u64, Host>);

impl Terms {
    /// Who is seen to lead for the first time is told to `elected`.
    pub(super) fn look(&mut self, mut elected: impl FnMut(Host, u64) -> Found) -> Found {
        for host in node::running() {
            let view = node::look(host, |cluster| *cluster.leader().borrow());
            let Some(term) = view.filter(|view| view.is_self).map(|view| view.term) else { continue };
            if let Entry::Vacant(vacant) = self.0.entry(term) {
                vacant.insert(host);
                history::record(None, What::Leader { node: format!("n{host}"), term });
                elected(host, term)?;
            }
            let leader = self.0.get(&term).copied().unwrap_or(host);
            if leader != host {
                return Err((
                    "one leader for each term (Raft §5.2)",
                    format!("{leader} and {host} lead in term {term}"),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
