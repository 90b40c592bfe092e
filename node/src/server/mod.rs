//! `quorate server`: one node, its parts started in order and stopped in order.
//!
//! Raft and the administration run on a tokio runtime of several threads, the MQTT front end on ntex workers
//! of its own. This module owns the process: its signals, its end and its exit status. It holds no state
//! that matters: killing it at any point is safe.

mod admin;
mod admission;
mod open_files;
mod options;
mod start;
mod stop;

use crate::cli::{Failure, ServerArgs};
use crate::config::Config;
use crate::logging;

/// Nobody may take this for a broker that keeps its promises.
#[cfg(feature = "seeded-bugs")]
fn tell_of_the_bug() -> Result<(), Failure> {
    use quorate_store::seeded_bug::{VARIABLE, chosen, unknown};
    if let Some(name) = unknown() {
        return Err(Failure::new(format!("{VARIABLE}: there is no bug `{name}`")));
    }
    let bug = chosen().map_or("none", quorate_store::seeded_bug::SeededBug::name);
    tracing::warn!(bug, "THIS BUILD HAS BUGS ON PURPOSE: it is for the fault harness, and breaks its promises");
    Ok(())
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(args: &ServerArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), std::env::vars(), args.flags())?;
    logging::install(config.log_format, &config.log_level).map_err(|error| Failure::new(error.to_string()))?;
    #[cfg(feature = "seeded-bugs")]
    tell_of_the_bug()?;
    open_files::raise(&config);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().thread_name("quorate").enable_all().build().map_err(|error| {
            Failure::new(format!("cannot start threads: {error}\n  are file descriptors or memory exhausted?"))
        })?;
    runtime.block_on(async {
        let stop_signal = stop::StopSignal::listen(args.exit_with_parent)?;
        start::run(config, stop_signal).await
    })
}
