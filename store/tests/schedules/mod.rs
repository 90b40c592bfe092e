//! The schedules, by what they are about.

mod access;
mod bounded;
mod cursors;
mod delayed;
mod idempotency;
mod nodes;
mod qos2;
mod queue;
mod retained;
mod room;
mod sessions;
mod settings;
mod shared;
mod wills;
