//! The MQTT front end: clients on one side, the log on the other.
//!
//! [`strict`] and [`wire`] turn bytes into packets of one model ([`packet`]) whatever version is spoken;
//! [`session`] is the sans-IO machine with all the rules of one connection; `conn`, `worker` and [`server`]
//! are the thin runtime around it on ntex: sockets, slots, mailboxes. `effects` takes what the apply thread
//! learns from the log and hands it to the workers. The log is behind the trait [`Backend`].
//!
//! It owns the sockets and what is in memory of the connections of this node; nothing here is the truth
//! about a session, and nothing here acknowledges what the log has not applied on this node.

pub mod auth;
mod authenticate;
pub mod backend;
pub mod cluster;
mod conn;
pub mod detect;
mod effects;
pub mod explain;
pub mod listen;
pub mod options;
pub mod packet;
pub mod reason;
pub mod server;
pub mod session;
pub mod stats;
pub mod strict;
pub mod sys;
pub mod wire;
mod worker;

pub use backend::Backend;
pub use listen::ListenerOptions;
pub use options::MqttOptions;
pub use server::{MqttFront, MqttServer, StartError};
