//! The proof's tools: an MQTT codec of its own, a harness for real processes, and checkers of what clients saw.
//!
//! It shares no code with the broker, so that a mistake there is not repeated here. The system tests
//! (`node/tests/system_*.rs`) and the load generator run real brokers through [`harness`], speak [`wire`], write down
//! what every client saw as a [`history::History`] and hand it to [`check::check`]. `quorate-faults` (feature `faults`)
//! puts such brokers under faults and records events ([`history::event`]), which the checkers of all guarantees judge.
//! The deterministic simulator is a crate of its own, `jepsen/sim`.

#[cfg(feature = "faults")]
mod campaign;
pub mod check;
#[cfg(feature = "faults")]
pub mod cli;
mod client;
pub mod conformance;
#[cfg(feature = "faults")]
pub mod disk;
pub mod drill;
pub mod harness;
pub mod history;
#[cfg(feature = "faults")]
mod nemesis;
pub mod outcome;
#[cfg(feature = "faults")]
mod report;
pub mod rng;
#[cfg(feature = "faults")]
pub mod run;
pub mod wire;
mod workload;
