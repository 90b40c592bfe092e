//! The flags of `quorate server`: one for each key of the configuration, made from its table.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Config, Key};

struct Flag {
    key: Key,
    long: String,
    value_name: String,
    help: String,
    default: String,
}

static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| {
    let entries = Config::default().entries().into_iter();
    entries
        .map(|(key, default)| Flag {
            long: key.flag(),
            value_name: if key.is_switch { "BOOL" } else { "VALUE" }.to_owned(),
            help: key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
            default,
            key,
        })
        .collect()
});

/// What `quorate server` was given.
#[derive(Clone, Debug, Default)]
pub struct ServerArgs {
    /// `--config`
    pub config: Option<PathBuf>,
    /// Hidden: stop when standard input ends, so that what a test or the demo starts never outlives it.
    pub exit_with_parent: bool,
    flags: Vec<(&'static str, String)>,
}

impl ServerArgs {
    /// Keys and texts that were given as flags.
    #[must_use]
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        self.flags.clone()
    }
}

impl Args for ServerArgs {
    fn augment_args(command: Command) -> Command {
        let command = command
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .help("Configuration file; `quorate config default` prints one")
                    .env("QUORATE_CONFIG")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(Arg::new("exit_with_parent").long("exit-with-parent").hide(true).action(ArgAction::SetTrue));
        FLAGS.iter().fold(command, |command, flag| {
            let mut arg = Arg::new(flag.key.name)
                .long(flag.long.as_str())
                .value_name(flag.value_name.as_str())
                .help(format!("{} [{}]", flag.help, flag.default))
                .help_heading(flag.key.section)
                .hide_short_help(!matches!(flag.key.section, "Node" | "Cluster" | "Logging"));
            if flag.key.is_switch {
                arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
            } else if flag.key.is_list {
                arg = arg.num_args(1..).action(ArgAction::Append);
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServerArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Vec::new();
        for flag in FLAGS.iter() {
            let Some(values) = matches.get_many::<String>(flag.key.name) else { continue };
            flags.push((flag.key.name, values.map(String::as_str).collect::<Vec<_>>().join(",")));
        }
        Ok(Self {
            config: matches.get_one::<PathBuf>("config").cloned(),
            exit_with_parent: matches.get_flag("exit_with_parent"),
            flags,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
