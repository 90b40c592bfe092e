//! What clients saw and what went wrong, as events on virtual time, for the checkers of `quorate_jepsen::check`.

use std::cell::RefCell;
use std::collections::BTreeSet;

use quorate_jepsen::history::event::{Client, Event, OpId, What};

use crate::clock;

#[derive(Default)]
struct Recorded {
    events: Vec<Event>,
    ops: u64,
    /// Faults that have begun and not ended.
    open: BTreeSet<u32>,
}

thread_local! {
    static RECORDED: RefCell<Recorded> = RefCell::default();
}

/// Nothing has happened yet.
pub(crate) fn begin() {
    RECORDED.set(Recorded::default());
}

/// A name for an operation.
pub(crate) fn op() -> OpId {
    RECORDED.with_borrow_mut(|recorded| {
        recorded.ops += 1;
        OpId(recorded.ops)
    })
}

/// Writes down what happens to a client now, or what is done to the nodes.
pub(crate) fn record(client: Option<u32>, what: What) {
    RECORDED.with_borrow_mut(|recorded| {
        match &what {
            What::Fault { number, .. } => drop(recorded.open.insert(*number)),
            What::Healed { number } if !recorded.open.remove(number) => return,
            _ => {}
        }
        recorded.events.push(Event { at_ns: clock::now_ns(), client: client.map(Client), what });
    });
}

/// Every fault that has not ended ends now.
pub(crate) fn heal_all() {
    let open = RECORDED.with_borrow(|recorded| recorded.open.clone());
    for number in open {
        record(None, What::Healed { number });
    }
}

/// All of it.
pub(crate) fn take() -> Vec<Event> {
    RECORDED.take().events
}
