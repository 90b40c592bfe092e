//! A server votes for at most one candidate in a term (Raft §5.2), whatever it forgets between: counted are votes that its
//! disk said were safe.

use std::collections::BTreeMap;

use quorate_raft::log_record::read_vote;
use quorate_store::ids::NodeId;

use super::Found;
use crate::net::Host;
use crate::node;

const PROMISE: &str = "one vote for each term (Raft §5.2)";

/// For whom each voted in which term.
#[derive(Default)]
pub(super) struct Votes(BTreeMap<(Host, u64), NodeId>);

impl Votes {
    pub(super) fn look(&mut self) -> Found {
        for host in node::hosts() {
            for vote in node::disk(host).map(|disk| disk.take_promised()).unwrap_or_default() {
                let vote = read_vote(&vote).map_err(|e| (PROMISE, format!("the vote of node {host}: {e}")))?;
                // Who voted for itself may follow whoever won that term.
                if vote.is_of_leader {
                    continue;
                }
                let before = *self.0.entry((host, vote.term)).or_insert(vote.node);
                if before != vote.node {
                    let how = format!("node {host} voted for {before} and {} in term {}", vote.node, vote.term);
                    return Err((PROMISE, how));
                }
            }
        }
        Ok(())
    }
}
