//! Schedules that lose, double or forge something in a careless build, each a test by name.
//!
//! They drive the machine alone: the log is a list, nodes are names, and time passes when the test says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod schedules;
mod testkit;
