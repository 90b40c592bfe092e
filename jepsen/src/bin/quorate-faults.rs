//! `quorate-faults run` puts a real cluster under a workload and faults, writes down what every client saw and holds it
//! against what is promised.

use std::process::ExitCode;

use clap::Parser;
use quorate_jepsen::cli::Faults;

#[derive(Debug, Parser)]
#[command(name = "quorate-faults", about = "Real brokers under faults, and a verdict on what their clients saw")]
struct Cli {
    #[command(subcommand)]
    command: Faults,
}

fn main() -> ExitCode {
    Cli::parse().command.perform()
}
