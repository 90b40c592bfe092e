//! What must hold in every state that a run comes through, one file each; and the first thing that did not.

mod acknowledged;
mod applied_forward;
mod audit;
mod covered;
mod durable_majority;
mod election_safety;
mod fenced;
mod leader_completeness;
mod log_matching;
mod one_vote;
mod replicas_agree;

use std::cell::RefCell;

use quorate_jepsen::history::MessageName;
use quorate_raft::AppliedRun;

use crate::net::Host;
use crate::world::note;

#[derive(Default)]
struct State {
    violation: Option<String>,
    terms: election_safety::Terms,
    logs: log_matching::Logs,
    digests: replicas_agree::Digests,
    applied: applied_forward::Applied,
    stored: durable_majority::Stored,
    votes: one_vote::Votes,
    audit: audit::Audit,
    /// Counts looks: what is dear is not looked at each time.
    looks: u64,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Looks between two that compare all rows.
const LOOKS_PER_SCAN: u64 = 50;

/// Nothing is known yet.
pub(crate) fn begin() {
    STATE.set(State::default());
}

/// A promise is broken.
pub(crate) fn violated(promise: &str, how: &str) {
    note!("VIOLATED {promise}: {how}");
    STATE.with_borrow_mut(|state| state.violation.get_or_insert(format!("{promise}: {how}")).len());
}

/// The first violation.
pub(crate) fn violation() -> Option<String> {
    STATE.with_borrow(|state| state.violation.clone())
}

/// Looks at the nodes as they are now.
pub(crate) fn look() {
    let found = STATE.with_borrow_mut(|state| -> Found {
        state.looks += 1;
        let scans = state.looks % LOOKS_PER_SCAN == 0;
        let State { terms, logs, digests, applied, stored, votes, audit, .. } = state;
        terms.look(|leader, term| leader_completeness::look(leader, term, logs))?;
        applied.look()?;
        stored.look()?;
        votes.look()?;
        covered::look()?;
        audit.look(None)?;
        if scans {
            logs.look()?;
            digests.look()?;
            fenced::look(audit)?;
        }
        Ok(())
    });
    judge(found);
}

/// A node's front end is told what was applied.
pub(crate) fn told(host: Host, run: &AppliedRun) {
    judge(STATE.with_borrow_mut(|state| {
        state.audit.look(Some((host, run.index)))?;
        fenced::told(&state.audit, run)
    }));
}

/// A client has an acknowledgement for this.
pub(crate) fn acknowledged(message: MessageName) {
    judge(STATE.with_borrow_mut(|state| {
        state.audit.look(None)?;
        acknowledged::look(&state.audit, message)
    }));
}

fn judge(found: Found) {
    if let Err((promise, how)) = found {
        violated(promise, &how);
    }
}

/// Who led in how many terms.
pub(crate) fn terms() -> usize {
    STATE.with_borrow(|state| state.terms.len())
}

type Found = Result<(), (&'static str, String)>;
