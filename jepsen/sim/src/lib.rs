//! The deterministic simulator: three whole nodes, their disks, the network between them and their clients in one
//! thread, on virtual time, with all chance from one seed.
//!
//! What runs is what is shipped: `quorate_raft::Cluster` with openraft in it, `quorate_store::machine`, and the session
//! machines of `quorate::mqtt`. Simulated are the disk under the log, the bytes between nodes, and libc's clock.
//!
//! | file | what it does |
//! |---|---|
//! | `clock` | virtual time and seeded randomness, below everything |
//! | `world` | what happens when, chance, the trace |
//! | `net` | TCP between hosts: delay, loss, cuts, dead ends |
//! | `disk` | a Raft log whose synced and unsynced parts are kept apart |
//! | `node` | lives of nodes: start, kill, power loss, stop |
//! | `front` | session machines, driven as the front end drives them |
//! | `client` | clients, by their habits |
//! | `history` | what they saw, as events for the checkers |
//! | `faults` | what goes wrong, by chance |
//! | `invariants` | what must hold in every state, one file each |
//! | `run` | one seed from beginning to end |

mod client;
mod clock;
mod disk;
mod faults;
mod front;
mod history;
mod invariants;
mod net;
mod node;
mod run;
mod world;

pub use run::{Bug, Options, Report, run};
