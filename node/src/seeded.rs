//! The broker with a bug on purpose (`quorate_store::seeded_bug`), under another name than the broker's.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::cli::run()
}
