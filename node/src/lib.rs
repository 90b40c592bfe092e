//! The binary `quorate`: command line, configuration, MQTT front end, wiring and shutdown.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | the commands, their flags, their words and exit statuses |
//! | [`config`] | every key once; defaults, file, environment, flags |
//! | [`server`] | one node: starts its parts in order, stops them in order |
//! | [`mqtt`] | the front end for MQTT clients |
//! | [`client`] | a small MQTT client: `pub`, `sub` and the demo |
//! | [`demo`] | three nodes, load, kills and a verdict |
//! | [`logging`] | one line an event on standard error |

#![recursion_limit = "256"]

pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod logging;
pub mod mqtt;
mod nearest;
pub mod server;
mod sys;
