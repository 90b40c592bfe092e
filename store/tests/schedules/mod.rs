//! The schedules, by what they are about.

mod bounded;
mod nodes;
mod qos2;
mod queue;
mod retained;
mod sessions;
mod settings;
mod wills;
