//! `?dry_run=true`: the quorum before, during and after a membership change, computed and not carried out.

use serde::{Deserialize, Serialize};

use crate::cluster::{AdminError, ClusterView, Role};

/// A change of the membership or of the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new learner.
    Join,
    /// Learner to voter.
    Promote(u64),
    /// Voter to learner.
    Demote(u64),
    /// Out of the membership.
    Remove(u64),
    /// Another leader, named or not.
    Transfer(Option<u64>),
}

/// One set of voters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Who votes.
    pub voters: Vec<u64>,
    /// How many of them must agree.
    pub needed: usize,
    /// How many of them are up now.
    pub up: usize,
}

/// What a change would do. While it runs, every quorum of `during` must agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Always true: nothing was done.
    pub dry_run: bool,
    /// Now.
    pub before: Quorum,
    /// While it runs.
    pub during: Vec<Quorum>,
    /// Then.
    pub after: Quorum,
    /// Whether the nodes that are up now could carry it through.
    pub possible: bool,
}

/// Computes what `change` would do to `view`.
///
/// # Errors
/// [`AdminError::UnknownNode`], or [`AdminError::Conflict`] when no voter would be left.
pub fn plan(view: &ClusterView, change: Change) -> Result<Plan, AdminError> {
    let before = view.voters();
    let mut after = before.clone();
    match change {
        Change::Join | Change::Transfer(None) => {}
        Change::Promote(node) => {
            known(view, node)?;
            if !after.contains(&node) {
                after.push(node);
                after.sort_unstable();
            }
        }
        Change::Demote(node) | Change::Remove(node) => {
            known(view, node)?;
            after.retain(|voter| *voter != node);
        }
        Change::Transfer(Some(node)) => {
            if known(view, node)? == Role::Learner {
                return Err(AdminError::Conflict(format!(
                    "node {node} is a learner and cannot lead: promote it first"
                )));
            }
        }
    }
    if after.is_empty() {
        return Err(AdminError::Conflict("the last voter cannot go: promote another node first".to_owned()));
    }
    let before = quorum(view, before);
    let after = quorum(view, after);
    let during = if before == after { vec![before.clone()] } else { vec![before.clone(), after.clone()] };
    let possible = during.iter().all(|quorum| quorum.up >= quorum.needed);
    Ok(Plan { dry_run: true, before, during, after, possible })
}

fn known(view: &ClusterView, node: u64) -> Result<Role, AdminError> {
    view.node(node).map(|node| node.role).ok_or(AdminError::UnknownNode(node))
}

fn quorum(view: &ClusterView, voters: Vec<u64>) -> Quorum {
    use crate::cluster::NodeState::Up;
    let up = voters.iter().filter(|id| view.node(**id).is_some_and(|node| node.state == Up)).count();
    Quorum { needed: voters.len() / 2 + 1, up, voters }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::view;

    #[test]
    fn a_promotion_needs_both_majorities_while_it_runs() {
        let plan = plan(&view(&[1, 2, 3], &[4]), Change::Promote(4)).unwrap();
        assert_eq!((plan.before.needed, plan.after.needed, plan.during.len()), (2, 3, 2));
        assert_eq!(plan.after.voters, [1, 2, 3, 4]);
        assert!(plan.possible);
    }

    #[test]
    fn the_last_voter_stays() {
        assert!(matches!(plan(&view(&[1], &[2]), Change::Remove(1)), Err(AdminError::Conflict(_))));
        assert!(matches!(plan(&view(&[1], &[2]), Change::Demote(7)), Err(AdminError::UnknownNode(7))));
        assert!(matches!(plan(&view(&[1], &[2]), Change::Transfer(Some(2))), Err(AdminError::Conflict(_))));
    }
}
