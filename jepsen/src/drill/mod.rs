//! A drill: load and faults on a cluster that is somebody's own, and the verdict of the fault harness.
//!
//! The cluster runs already, and not for us. What can be done to it is what its operator gives a command for
//! ([`Commands`]); a fault without one is said to be not installed. At most a minority is harmed at a time, what was done
//! is undone however the drill ends, and nothing is left of its clients but the files in its folder.

mod commands;
mod rounds;
mod site;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::check::verdict::Expectations;
use crate::client::{Directory, Identity, knock, sweep};
use crate::history::event::What;
use crate::history::record::Recorder;
use crate::outcome::{ACKNOWLEDGED_MIN, Outcome, Report};
use crate::rng::Rng;
use crate::wire::encode::Login;
use crate::workload::{self, stage::Stage};
use commands::Nemesis;
use rounds::Rounds;
use site::Site;

pub use commands::Commands;
pub use site::NodeAt;

/// How often a wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Set when the drill is to end early: it heals, drains and cleans up as always.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// End it.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Sleeps so long, or until it is set.
    fn sleep_until(&self, end: Instant) {
        while !self.is_set() && Instant::now() < end {
            std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        }
    }
}

/// What to drill.
#[derive(Clone, Debug)]
pub struct Options {
    /// Administration of any node, `HOST:PORT`; `http://` may stand before it.
    pub admin: String,
    /// Addresses of nodes that are not where the cluster says.
    pub nodes: Vec<NodeAt>,
    /// As whom the clients log in.
    pub login: Option<Login>,
    /// Names of workloads, with commas between.
    pub workload: String,
    /// Names of nemeses, with commas between; `none`.
    pub nemesis: String,
    /// How long the load lasts at least, without setup and drain.
    pub time: Duration,
    /// Where all choices come from.
    pub seed: u64,
    /// Folder for the history, the output of the commands and the verdict.
    pub out: PathBuf,
    /// How each nemesis is made and undone.
    pub commands: Commands,
    /// More than a minority may be harmed at a time.
    pub allow_outage: bool,
    /// A word of its own for this drill, in client identifiers and topics.
    pub tag: String,
    /// How to run it once more.
    pub command: String,
    /// Ends it early.
    pub stop: Stop,
}

/// A drill that could begin.
#[derive(Debug)]
pub struct Drill {
    options: Options,
    identity: Identity,
    site: Site,
    nemeses: Vec<Nemesis>,
    harmed_max: usize,
    clients: u32,
}

impl Drill {
    /// Asks the cluster, and changes nothing.
    ///
    /// # Errors
    /// Says what is wrong with the options, or who does not answer.
    pub fn prepare(options: Options) -> Result<Self, String> {
        let nemeses = options.commands.nemeses(&options.nemesis)?;
        let clients = u32::try_from(workload::parts(&options.workload)?.len()).unwrap_or(u32::MAX);
        let site = Site::find(&options.admin, &options.nodes)?;
        let voters = site.members.len();
        let harmed_max = if options.allow_outage { voters } else { voters.saturating_sub(1) / 2 };
        let identity = Identity {
            clients: format!("drill-{}-", options.tag),
            topics: format!("drill/{}/", options.tag),
            login: options.login.clone(),
        };
        Ok(Self { options, identity, site, nemeses, harmed_max, clients })
    }

    /// What [`Self::run`] would do.
    #[must_use]
    pub fn plan(&self) -> String {
        let (options, voters) = (&self.options, self.site.members.len());
        let mut text = format!(
            "cluster {}: {voters} voters; at most {} harmed at a time{}\n",
            self.site.cluster_id,
            self.harmed_max,
            if options.allow_outage { " (--allow-outage)" } else { "" }
        );
        for member in &self.site.members {
            text.push_str(&format!("  {:12} mqtt {}  admin {}\n", member.name, member.mqtt, member.admin));
        }
        text.push_str(&format!(
            "load for {} s and more, until each nemesis has had its turn:\n",
            options.time.as_secs()
        ));
        for workload in workload::named(&options.workload).unwrap_or_default() {
            text.push_str(&format!("  {:12} {}\n", workload.name, workload.about));
        }
        let Identity { clients, topics, .. } = &self.identity;
        text.push_str(&format!(
            "  {} clients {clients}0 to {clients}{}, topics {topics}...; their sessions and retained messages are removed at \
             the end\nfaults, one after the other, each healed before the next:\n",
            self.clients,
            self.clients.saturating_sub(1),
        ));
        if self.nemeses.is_empty() {
            text.push_str("  none\n");
        }
        for nemesis in &self.nemeses {
            text.push_str(&format!("  {:12} {}\n", nemesis.name, nemesis.plan(&self.site)));
        }
        text.push_str(&format!("history, verdict and what the commands print: {}\n", options.out.display()));
        text.push_str(&match self.site.health() {
            Ok(_) => "all voters are up and welcome clients\n".to_owned(),
            Err(why) => format!("NOT HEALTHY NOW, so that it would be refused: {why}\n"),
        });
        text
    }

    /// What speaks against it, and what to do.
    fn refusal(&self) -> Option<String> {
        let script = rounds::script(&self.options.out);
        if script.exists() {
            return Some(format!(
                "{0} is there: an earlier drill was killed before it healed\n  nothing was done; run it (sh {0}) if that \
                 fault still stands, and remove it",
                script.display()
            ));
        }
        if let Err(why) = self.site.health() {
            return Some(format!(
                "the cluster is not whole: {why}\n  nothing was done; a drill begins with all voters up: see `quorate cluster status`"
            ));
        }
        let has_any = self.nemeses.iter().any(|nemesis| nemesis.means.is_ok());
        if has_any && self.harmed_max == 0 {
            return Some(format!(
                "{} voters have no minority that could be harmed without an outage\n  nothing was done; say --allow-outage, \
                 or --nemesis none for load alone",
                self.site.members.len()
            ));
        }
        if !self.nemeses.is_empty() && !has_any {
            return Some(
                "no nemesis has a command, so that nothing would be drilled\n  nothing was done; see the plan (without \
                 --yes) for what each lacks, or say --nemesis none for load alone"
                    .to_owned(),
            );
        }
        for member in &self.site.members {
            if let Err(why) = knock(member.mqtt, &member.name, &self.identity) {
                return Some(format!(
                    "{} does not let MQTT clients in at {}: {why}\n  nothing was done; is the address right (--node), and \
                     may the user (--user) connect, publish and subscribe below {}?",
                    member.name, member.mqtt, self.identity.topics
                ));
            }
        }
        None
    }

    /// Runs it. The verdict is in `verdict.txt` of its folder, and printed.
    ///
    /// # Errors
    /// The refusal in words, or that the folder cannot be written.
    pub fn run(self) -> Result<Outcome, String> {
        if let Some(why) = self.refusal() {
            return Err(why);
        }
        let failed = |e: io::Error| format!("cannot write to {}: {e}", self.options.out.display());
        fs::create_dir_all(&self.options.out).map_err(failed)?;
        let recorder = Recorder::create(&self.options.out.join("history.jsonl")).map_err(failed)?;
        let report = self.perform(&recorder);
        let about = json!({
            "seed": self.options.seed,
            "workload": self.options.workload,
            "nemesis": self.options.nemesis,
            "time_s": self.options.time.as_secs(),
            "cluster_id": self.site.cluster_id,
            "nodes": self.site.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(),
            "tag": self.options.tag,
            "clients": self.clients,
        });
        report.publish(&self.options.out, &recorder, about, &self.options.command).map_err(failed)
    }

    fn perform(&self, recorder: &Recorder) -> Report {
        let options = &self.options;
        let directory = Directory::default();
        directory.set(self.site.members.iter().map(|member| (member.name.clone(), member.mqtt)).collect());
        let parts = match workload::parts(&options.workload) {
            Ok(parts) => parts,
            Err(e) => return Report::unknown(e),
        };
        eprintln!("{} clients connect and subscribe", self.clients);
        let staged = Stage::start(parts, options.seed, recorder, &directory, &self.identity);
        let report = match staged {
            Ok(stage) => self.under_load(stage, recorder),
            Err(e) => Report::unknown(format!("before any fault: {e}")),
        };
        eprintln!("removing the sessions and retained messages of the drill");
        for left in sweep(&directory, &self.identity, self.clients) {
            recorder.note(&left);
        }
        report
    }

    fn under_load(&self, stage: Stage, recorder: &Recorder) -> Report {
        let options = &self.options;
        eprintln!("load for {:?}", options.time);
        stage.load();
        self.site.leader(recorder);
        let mut rounds = Rounds {
            site: &self.site,
            nemeses: &self.nemeses,
            recorder,
            out: &options.out,
            stop: &options.stop,
            rng: Rng::of(options.seed, u64::MAX),
            harmed_max: self.harmed_max,
            faults: 0,
        };
        let mut ended = rounds.run(options.time);
        eprintln!("all faults are healed; everything outstanding is finished and read");
        recorder.record(None, What::Drain);
        ended.broken.extend(stage.drain().into_iter().map(|stuck| format!("stuck: {stuck}")));
        let compared = self.site.digests(recorder);
        if compared < 2 {
            recorder.note("the nodes' rows were not compared: no two nodes showed the same applied index, which is so while others use the cluster");
        }
        let installed = self.nemeses.iter().filter(|nemesis| nemesis.means.is_ok());
        let expectations = Expectations {
            acknowledged_min: ACKNOWLEDGED_MIN,
            nemeses: installed.map(|nemesis| nemesis.name.to_owned()).collect(),
            ..Expectations::default()
        };
        let mut report = Report::of(&options.out, recorder, &expectations, &ended.broken);
        if options.stop.is_set() {
            ended.doubts.push("the drill was ended early by a signal".to_owned());
        }
        for doubt in &ended.doubts {
            report.doubt(doubt);
        }
        report
    }
}
