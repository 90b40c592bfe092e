//! The checkers: one file for each invariant, each of which names the guarantee of docs/GUARANTEES.md that it holds.
//!
//! They see what clients saw and nothing else ([`crate::history::event`]); only [`replay`] uses the positions that the
//! broker says, as a second, independent witness. Each says a promise is broken only when no order of events that the
//! history allows would have kept it: an operation of which nobody knows may have happened, at any time until a later
//! connection of its client was acknowledged, or never.
//!
//! What arrives on a connection after the CONNACK of a later connection of the same client is the word of an owner that
//! does not know yet; nothing follows from it (guarantee 8), and no check but [`phantom`] looks at it.
//!
//! [`summary`] holds the same promises on a history without times, for tests that keep no events.
#![expect(clippy::indexing_slicing, reason = "places are handed out by the index and never taken back")]

mod agreement;
mod digests;
mod exactly_once;
mod expiry;
mod filter;
mod idempotent;
mod no_loss;
mod order;
mod outage;
mod phantom;
mod recovery;
mod repeats;
mod replay;
mod retained;
mod run;
mod shared;
mod subscriptions;
pub mod summary;
mod takeover;
mod timeline;
pub mod verdict;
mod wills;
mod zones;

#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use summary::check;

use crate::history::event::Event;
use crate::history::index::Index;
use crate::history::read::{ReadError, Reader};
use run::Run;
use verdict::{Expectations, Found, Report};

/// Judges a history in a file.
///
/// # Errors
/// [`ReadError`] when it is no history: a fault of the harness, not of the broker.
pub fn check_file(path: &Path, expectations: &Expectations) -> Result<Report, ReadError> {
    Ok(judge(&Index::build(Reader::open(path)?)?, expectations))
}

/// Judges events in memory.
///
/// # Errors
/// As [`check_file`].
pub fn check_events(events: impl IntoIterator<Item = Event>, expectations: &Expectations) -> Result<Report, ReadError> {
    Ok(judge(&Index::build(events.into_iter().map(Ok))?, expectations))
}

fn judge(index: &Index, expectations: &Expectations) -> Report {
    let run = Run::new(index, expectations);
    let mut found = Found::default();
    recovery::check(&run, &mut found);
    digests::check(&run, &mut found);
    no_loss::check(&run, &mut found);
    exactly_once::check(&run, &mut found);
    repeats::check(&run, &mut found);
    idempotent::check(&run, &mut found);
    order::check(&run, &mut found);
    agreement::check(&run, &mut found);
    subscriptions::check(&run, &mut found);
    retained::check(&run, &mut found);
    takeover::check(&run, &mut found);
    wills::check(&run, &mut found);
    shared::check(&run, &mut found);
    expiry::check(&run, &mut found);
    phantom::check(&run, &mut found);
    replay::check(&run, &mut found);
    found.into_report(|line| {
        let event = index.events.get((line.0 as usize).checked_sub(1)?)?;
        serde_json::to_string(event).ok()
    })
}
