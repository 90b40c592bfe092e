//! `quorate drill`: the fault harness on a cluster that is the operator's own.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use quorate_jepsen::drill::{Commands, Drill, NodeAt, Options, Stop};
use quorate_jepsen::outcome::Outcome;
use quorate_jepsen::wire::encode::Login;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::user::{Asked, password};
use super::{Failure, print_out};

/// What the exit statuses of a drill mean; those of the fault harness.
pub(super) const EXIT_STATUSES: &str = "\
    Commands run by `sh -c`; {node} is the name of the node, {host} the host of its peer address, {peers} those of the \
    other voters with commas between. A nemesis without its commands is said to be NOT INSTALLED.\n\n\
    Exit status:\n  \
    0   every promise was kept, or only the plan was shown\n  \
    1   a promise was broken\n  \
    2   no verdict: refused, ended early, too little seen, or wrong usage";

/// `quorate drill …`
#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    /// Administration of any node of the cluster, which knows the others
    #[arg(long, value_name = "URL", env = "QUORATE_ADMIN_URL", default_value = "http://127.0.0.1:7480")]
    admin: String,
    /// A node that is not where the cluster says, as seen from here
    #[arg(long, value_name = "NAME=MQTT,ADMIN", value_parser = parse_node)]
    node: Vec<NodeAt>,
    /// Do it; without this the plan is shown and nothing is done
    #[arg(long)]
    yes: bool,
    /// Workloads, with commas between: mixed, queue, exactly-once, retained, subscriptions, takeover, shared, wills, offline
    #[arg(long, value_name = "LIST", default_value = "mixed")]
    workload: String,
    /// Nemeses, with commas between; none: load alone
    #[arg(long, value_name = "LIST", default_value = "kill,pause,partition,drain")]
    nemesis: String,
    /// Seconds of load; longer if not every nemesis has had its turn by then
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..))]
    time: u64,
    /// Where all choices come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for the history, the verdict, and what the commands print
    #[arg(long, value_name = "DIR", default_value = "quorate-drill")]
    out: PathBuf,
    /// Harm any number of nodes at a time, not only a minority
    #[arg(long)]
    allow_outage: bool,
    /// User name of the drill's clients; it may connect, publish and subscribe below drill/
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Read the password from the first line of this file [the terminal, or standard input]
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    means: Means,
}

/// How things are done to nodes.
#[derive(Debug, Args)]
#[command(next_help_heading = "How it is done")]
struct Means {
    /// Kill a node, as in 'ssh {host} systemctl kill -s KILL quorate'
    #[arg(long, value_name = "COMMAND")]
    kill: Option<String>,
    /// Start a node that was killed or drained, as in 'ssh {host} systemctl start quorate'
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// A supervisor starts such a node by itself (Restart=always)
    #[arg(long, conflicts_with = "start")]
    supervised: bool,
    /// Freeze a node, as in 'ssh {host} systemctl kill -s STOP quorate'
    #[arg(long, value_name = "COMMAND")]
    pause: Option<String>,
    /// Let it go on, as in 'ssh {host} systemctl kill -s CONT quorate'
    #[arg(long, value_name = "COMMAND")]
    resume: Option<String>,
    /// Cut a node off from its peers, as in 'ssh {host} iptables -I INPUT -s {peers} -j DROP'
    #[arg(long, value_name = "COMMAND")]
    partition: Option<String>,
    /// End that, as in 'ssh {host} iptables -D INPUT -s {peers} -j DROP'
    #[arg(long, value_name = "COMMAND")]
    heal: Option<String>,
    /// Stop a node gracefully, as in 'ssh {host} systemctl stop quorate'
    #[arg(long, value_name = "COMMAND")]
    drain: Option<String>,
    /// For nodes of this machine: a file with the process id, as in /run/{node}.pid; kill, pause and drain are signals then
    #[arg(long, value_name = "PATH")]
    pid_file: Option<String>,
}

fn parse_node(text: &str) -> Result<NodeAt, String> {
    let parts = text.split_once('=').and_then(|(name, at)| Some((name, at.split_once(',')?)));
    let Some((name, (mqtt, admin))) = parts.filter(|(name, (mqtt, admin))| ![name, mqtt, admin].contains(&&"")) else {
        return Err("it is NAME=MQTT,ADMIN, as in n1=10.0.0.1:1883,10.0.0.1:7480".to_owned());
    };
    let admin = admin.trim_start_matches("http://");
    Ok(NodeAt { name: name.to_owned(), mqtt: mqtt.trim_start_matches("mqtt://").to_owned(), admin: admin.to_owned() })
}

/// A failure without a verdict.
fn no_verdict(message: impl Into<String>) -> Failure {
    Failure::with_status(message, Outcome::Unknown.exit_code())
}

/// Shows the plan, or carries it out.
///
/// # Errors
/// When there is no verdict, or it is a bad one.
pub(crate) async fn run(args: DrillArgs) -> Result<(), Failure> {
    let stop = Stop::default();
    let (is_meant, out) = (args.yes, args.out.clone());
    let options = options(args, stop.clone())?;
    let asked = tokio::task::spawn_blocking(move || Drill::prepare(options).map(|drill| (drill.plan(), drill))).await;
    let (plan, drill) = asked.map_err(|e| no_verdict(e.to_string()))?.map_err(no_verdict)?;
    if !is_meant {
        return print_out(&format!("{plan}nothing was done; say --yes to do it\n"));
    }
    eprint!("{plan}");
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).map_err(|e| no_verdict(format!("cannot wait for signals: {e}; nothing was done")))?);
    }
    let mut drilling = tokio::task::spawn_blocking(move || drill.run());
    let ended = loop {
        tokio::select! {
            ended = &mut drilling => break ended,
            () = any(&mut signals) => {
                eprintln!("quorate: ending early: what was done is undone, then the clients finish and are cleaned up");
                stop.set();
            }
        }
    };
    match ended.map_err(|e| no_verdict(format!("the drill failed: {e}")))?.map_err(no_verdict)? {
        Outcome::Pass => Ok(()),
        outcome => {
            let word = if outcome == Outcome::Violation { "a promise was broken" } else { "no verdict" };
            let message = format!("{word}: see verdict.txt and history.jsonl in {}", out.display());
            Err(Failure::with_status(message, outcome.exit_code()))
        }
    }
}

async fn any(signals: &mut [Signal]) {
    let waiting = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(waiting).await;
}

fn options(args: DrillArgs, stop: Stop) -> Result<Options, Failure> {
    let login = match args.user {
        None => None,
        // The plan needs no password.
        Some(user) if !args.yes => Some(Login { user, password: None }),
        Some(user) => {
            let password = password(args.password_file.as_deref(), Asked::Once).map_err(|e| no_verdict(e.message))?;
            Some(Login { user, password: Some(password) })
        }
    };
    let Means { kill, start, supervised, pause, resume, partition, heal, drain, pid_file } = args.means;
    Ok(Options {
        admin: args.admin,
        nodes: args.node,
        login,
        workload: args.workload,
        nemesis: args.nemesis,
        time: Duration::from_secs(args.time),
        seed: args.seed,
        out: args.out,
        commands: Commands { kill, start, supervised, pause, resume, partition, heal, drain, pid_file },
        allow_outage: args.allow_outage,
        tag: format!("{:08x}", rand::random::<u32>()),
        command: std::env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "),
        stop,
    })
}

/// A word as a shell wants it.
fn quoted(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,=+@%".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_to_run_again_can_be_pasted_into_a_shell() {
        for (word, said) in [("--yes", "--yes"), ("ssh {host} x", "'ssh {host} x'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(quoted(word), said);
        }
    }

    #[test]
    fn a_node_has_a_name_and_two_addresses() {
        let node = parse_node("n1=mqtt://a:1883,http://a:7480").unwrap();
        assert_eq!((node.name.as_str(), node.mqtt.as_str(), node.admin.as_str()), ("n1", "a:1883", "a:7480"));
        for bad in ["", "n1", "n1=a:1883", "=a:1883,a:7480", "n1=,a:7480"] {
            assert!(parse_node(bad).is_err(), "{bad}");
        }
    }
}
