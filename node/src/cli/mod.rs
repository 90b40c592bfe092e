//! The command line: what can be asked, and how the answer sounds.
//!
//! Results go to standard output, everything else to standard error. A failure says what, why and what to
//! do. This module owns the exit statuses; the work is done elsewhere.

mod acl;
mod admin;
mod cluster;
mod drill;
mod publish;
mod settings;
mod share;
mod subscribe;
mod target;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, parse_file};

pub(crate) use admin::{Admin, AdminFailure};
pub use settings::ServerArgs;

/// Done.
pub const EXIT_DONE: u8 = 0;
/// Refused or failed; the reason is on standard error.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage (clap's own).
pub const EXIT_USAGE: u8 = 2;
/// A running node could not go on: its disk failed, or a file is damaged. It ended rather than go on with
/// what may not be there.
pub const EXIT_FATAL: u8 = 70;

const EXIT_STATUSES: &str = "Exit status:\n  \
    0   done\n  \
    1   refused or failed; standard error says what, why and what to do\n  \
    2   wrong usage\n  \
    70  a running node could not go on: its disk failed, or a file is damaged";

/// A failure in the words of the command line.
#[derive(Debug)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// With exit status 1.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: EXIT_FAILED }
    }

    /// With another exit status.
    #[must_use]
    pub fn with_status(message: impl Into<String>, status: u8) -> Self {
        Self { message: message.into(), status }
    }

    /// What is printed.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.to_string())
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    about = "An MQTT broker whose every promise is a committed Raft entry",
    after_help = EXIT_STATUSES,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node; without flags a single-node broker on 127.0.0.1:1883
    #[command(after_help = EXIT_STATUSES)]
    Server(Box<ServerArgs>),
    /// Three real nodes on loopback: load, kill -9 of the leader, then of all, and a verdict
    Demo(crate::demo::DemoArgs),
    /// Look at a cluster and change it
    Cluster(cluster::ClusterArgs),
    /// Say who may connect
    User(user::UserArgs),
    /// Say what clients may publish and subscribe to
    Acl(acl::AclArgs),
    /// Look at shared subscriptions and set how their members are chosen
    Share(share::ShareArgs),
    /// Publish messages
    Pub(publish::PubArgs),
    /// Subscribe and print what comes
    Sub(subscribe::SubArgs),
    /// Load and faults on your own staging cluster, and a verdict; without --yes only the plan
    #[command(after_help = drill::EXIT_STATUSES)]
    Drill(Box<drill::DrillArgs>),
    /// Print the default configuration, or check a file
    Config(ConfigArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a TOML file with every key, its meaning and its default
    Default,
    /// Check a configuration file: unknown keys, types, values that make no sense
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Parses the arguments of this process, does what they say and answers with the exit status.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Server(args) => crate::server::run(&args),
        Command::Demo(args) => runtime().and_then(|runtime| runtime.block_on(crate::demo::run(args))),
        Command::Cluster(args) => runtime().and_then(|runtime| runtime.block_on(cluster::run(args))),
        Command::User(args) => runtime().and_then(|runtime| runtime.block_on(user::run(args))),
        Command::Acl(args) => runtime().and_then(|runtime| runtime.block_on(acl::run(args))),
        Command::Share(args) => runtime().and_then(|runtime| runtime.block_on(share::run(args))),
        Command::Pub(args) => runtime().and_then(|runtime| runtime.block_on(publish::run(args))),
        Command::Sub(args) => runtime().and_then(|runtime| runtime.block_on(subscribe::run(args))),
        Command::Drill(args) => runtime().and_then(|runtime| runtime.block_on(drill::run(*args))),
        Command::Config(args) => config(&args.command),
    };
    match result {
        Ok(()) => ExitCode::from(EXIT_DONE),
        Err(failure) => {
            eprintln!("quorate: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// The clients and the demo need one thread: what they wait for is elsewhere.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}; are file descriptors or memory exhausted?")))
}

fn config(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Default => print_out(&Config::default().to_toml()),
        ConfigCommand::Check { file } => {
            let text = std::fs::read_to_string(file)
                .map_err(|source| ConfigError::Unreadable { path: file.clone(), source })?;
            let mut config = Config::default();
            config.overlay(parse_file(file, &text)?);
            config.check()?;
            print_out(&format!("{} is valid\n", file.display()))
        }
    }
}

/// Lines of JSON.
fn as_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
    Ok(text + "\n")
}

/// Prints to standard output; that nobody reads it any more (`| head`) is no failure.
fn print_out(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_key_is_a_flag_of_the_server() {
        let args =
            ["quorate", "server", "--data-dir", "/d", "--bootstrap", "--join", "a:1", "b:2", "--receive-maximum=7"];
        let Command::Server(server) = Cli::try_parse_from(args).unwrap().command else { panic!() };
        let flags = server.flags();
        for flag in [("data_dir", "/d"), ("bootstrap", "true"), ("join", "a:1,b:2"), ("receive_maximum", "7")] {
            assert!(flags.contains(&(flag.0, flag.1.to_owned())), "{flag:?} is not in {flags:?}");
        }
        assert_eq!(flags.len(), 4);
        for (key, _) in Config::default().entries() {
            let value = if key.is_switch { "=true" } else { "=1" };
            let flag = format!("--{}{value}", key.flag());
            assert!(Cli::try_parse_from(["quorate", "server", &flag]).is_ok(), "{flag}");
        }
    }

    /// The commands that the documents show, as a visitor would type them.
    #[test]
    fn the_commands_in_the_documents_are_understood() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut seen = 0;
        for document in ["README.md", "docs/OPERATIONS.md", "examples/README.md"] {
            let text = std::fs::read_to_string(root.join(document)).unwrap();
            for line in text.lines().filter(|line| line.starts_with("quorate ") && !line.contains(['|', '…'])) {
                let command = line.split(" #").next().unwrap_or_default();
                let words = command.split_whitespace().map(|word| word.trim_matches('\''));
                assert!(Cli::try_parse_from(words).is_ok(), "{document}: {line}");
                seen += 1;
            }
        }
        assert!(seen > 5, "{seen} commands found");
    }

    #[test]
    fn unknown_flags_are_usage_errors() {
        let error = Cli::try_parse_from(["quorate", "server", "--data-dri", "/d"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(EXIT_USAGE));
        assert!(error.to_string().contains("--data-dir"));
    }
}
