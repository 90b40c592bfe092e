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

pub mod disk;
pub mod fault_fs;
pub mod model;

use std::sync::mpsc;

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

/// A small random number generator with a seed (xorshift64*): the same cut is found again.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
