//! Logs: one line an event on standard error, as text for people or JSON for machines.

use std::io::IsTerminal;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Libraries that tell every step of theirs at `info`, or every attempt to reach a dead node at `warn`.
const QUIET: &str = "openraft=error,ntex=warn,ntex_io=warn,ntex_net=warn,ntex_rt=warn,ntex_server=warn";

/// `log_level` does not parse.
#[derive(Debug, Error)]
#[error(
    "log_level = \"{level}\": {why}\n  use error, warn, info, debug or trace, or directives such as info,quorate_raft=debug"
)]
pub struct LogLevelError {
    level: String,
    why: String,
}

/// Installs the subscriber for this process, and a panic hook that logs as everything else does. Whether a
/// panic ends the process is for the part that it happened in: what carries the log or clients does.
///
/// # Errors
/// When `level` does not parse. A subscriber that is installed already stays.
pub fn install(format: LogFormat, level: &str) -> Result<(), LogLevelError> {
    // What is said later about the same target wins.
    let filter = EnvFilter::try_new(format!("{QUIET},{level}"))
        .map_err(|error| LogLevelError { level: level.to_owned(), why: error.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let why = panic.payload_as_str().unwrap_or("no message");
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            let backtrace = backtrace.to_string().replace('\n', " | ");
            tracing::error!(place, why, backtrace, "a bug, please report it");
        } else {
            tracing::error!(place, why, "a bug, please report it; RUST_BACKTRACE=1 would tell more");
        }
    }));
    Ok(())
}
