//! Quorate: an MQTT broker whose every promise is a committed Raft entry. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::cli::run()
}
