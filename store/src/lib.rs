//! What is replicated: the commands, the state machine that applies them, the rows that it keeps, the
//! Raft log on disk, and snapshots.
//!
//! This crate is the ground floor: it knows neither Raft nor MQTT packets, neither sockets nor clocks. The
//! [`machine`] is pure: rows and the command go in, changed rows and effects come out, the same on every
//! replica. [`rows`] and [`log`] are the two RocksDB databases under it, [`snapshot`] carries the former
//! from node to node.

pub mod access;
pub mod codec;
pub mod command;
pub mod delayed;
pub mod effect;
pub mod files;
mod id_hasher;
pub mod idempotency;
pub mod ids;
pub mod log;
pub mod machine;
pub mod message;
pub mod rows;
pub mod seeded_bug;
pub mod snapshot;
pub mod topic;
