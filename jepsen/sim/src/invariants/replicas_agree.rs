//! Replicas agree (guarantee 12): at the same applied index the rows are the same, on every node and in every life.

use std::collections::BTreeMap;

use super::Found;
use crate::net::Host;
use crate::node;

/// The rows' digest at an applied index, and who showed it first.
#[derive(Default)]
pub(super) struct Digests(BTreeMap<u64, (u64, Host)>);

impl Digests {
    pub(super) fn look(&mut self) -> Found {
        for host in node::running() {
            let Some(read) = node::look(host, |cluster| cluster.rows().digest()) else { continue };
            let promise = "replicas agree (guarantee 12)";
            let (index, digest) = read.map_err(|e| (promise, format!("the rows of node {host}: {e}")))?;
            let (known, by) = *self.0.entry(index).or_insert((digest, host));
            if known != digest {
                return Err((promise, format!("nodes {by} and {host} have other rows at index {index}")));
            }
        }
        Ok(())
    }
}
