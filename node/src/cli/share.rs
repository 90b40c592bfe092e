//! `quorate share`: shared subscriptions, through any node's administration.

use clap::{Args, Subcommand, ValueEnum};
use quorate_http_admin::{PutStrategy, ShareList, ShareView, Strategy};
use reqwest::Method;

use super::admin::Admin;
use super::cluster::table;
use super::{Failure, as_json, print_out};

const SHARES: &str = "/api/v1/shares";

/// `quorate share …`
#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    /// Administration of any node of the cluster
    #[arg(long, global = true, value_name = "URL", env = "QUORATE_ADMIN_URL", default_value = "http://127.0.0.1:7480")]
    admin: String,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: ShareCommand,
}

#[derive(Debug, Subcommand)]
enum ShareCommand {
    /// List the groups, with what waits in them
    List,
    /// Set who of a group gets a message; it holds also for a group that there is not yet
    Strategy {
        /// Share name, as in $share/NAME/FILTER
        name: String,
        /// Topic filter, as in $share/NAME/FILTER
        filter: String,
        /// How members are chosen
        strategy: How,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum How {
    /// Who has the most room (the default)
    MostRoom,
    /// Who comes next
    RoundRobin,
    /// The same member for a topic, as long as it has room
    Sticky,
    /// Members connected to the publisher's node first
    Local,
}

impl From<How> for Strategy {
    fn from(how: How) -> Self {
        match how {
            How::MostRoom => Self::MostRoom,
            How::RoundRobin => Self::RoundRobin,
            How::Sticky => Self::Sticky,
            How::Local => Self::Local,
        }
    }
}

/// Carries the command out.
///
/// # Errors
/// What the cluster or the network said.
pub(crate) async fn run(args: ShareArgs) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin, None)?;
    let failed = |failure| admin.failure(&failure);
    match args.command {
        ShareCommand::List => {
            let list: ShareList = admin.ask(Method::GET, SHARES, None::<&()>).await.map_err(failed)?;
            print_out(&if args.json { as_json(&list)? } else { words(&list.shares) })
        }
        ShareCommand::Strategy { name, filter, strategy } => {
            let put = PutStrategy { name, filter, strategy: strategy.into() };
            let path = format!("{SHARES}/strategy");
            let set: PutStrategy = admin.ask(Method::PUT, &path, Some(&put)).await.map_err(failed)?;
            let text = format!("$share/{}/{}: {}\n", set.name, set.filter, word(set.strategy));
            print_out(&if args.json { as_json(&set)? } else { text })
        }
    }
}

fn word(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::MostRoom => "most room",
        Strategy::RoundRobin => "round robin",
        Strategy::Sticky => "sticky",
        Strategy::Local => "local",
    }
}

fn words(shares: &[ShareView]) -> String {
    if shares.is_empty() {
        return "nobody shares a subscription now\n".to_owned();
    }
    let head = ["GROUP", "STRATEGY", "MEMBERS", "WAITING", "BYTES", "DROPPED"].map(str::to_owned);
    let row = |share: &ShareView| {
        [
            format!("$share/{}/{}", share.name, share.filter),
            word(share.strategy).to_owned(),
            share.members.to_string(),
            share.waiting_messages.to_string(),
            share.waiting_bytes.to_string(),
            share.dropped_messages.to_string(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(shares.iter().map(row)).collect();
    table(&rows)
}
