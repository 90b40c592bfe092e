//! The simulator of brokers with a bug on purpose (`--bug`), under another name than the simulator's.

use std::process::ExitCode;

#[path = "quorate-jepsen.rs"]
mod ordinary;

fn main() -> ExitCode {
    ordinary::main()
}
