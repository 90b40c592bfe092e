//! Shared by the tests of what must survive a power cut: a disk that really forgets, and small helpers.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test support: a failure here is a failed test, and no test uses all of it"
)]

pub mod fault_fs;
pub mod model;

use std::sync::mpsc;

pub use quorate_jepsen::rng::Rng;
use quorate_store::log::{Done, LogError, LogOptions};

/// A server's options, but without writing 128 MB at each open.
pub fn log_options() -> LogOptions {
    LogOptions { warm_wals: 0, ..LogOptions::default() }
}

/// A waiter, and where its answer comes.
pub fn waiter() -> (Done, mpsc::Receiver<Result<(), LogError>>) {
    let (tx, rx) = mpsc::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

/// Calls `operation` with a waiter and waits for its answer.
pub fn wait(operation: impl FnOnce(Done)) -> Result<(), LogError> {
    let (done, answer) = waiter();
    operation(done);
    answer.recv_timeout(std::time::Duration::from_secs(60)).expect("the log answers every waiter")
}
