//! What the front end's tests share: a log in memory, a backend over it, and a client on a raw socket.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod log;
pub(crate) mod scram;
pub(crate) mod secure;
