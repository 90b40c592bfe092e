//! The words and tables of docs/PROOF.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Record, Seeded, Simulated};
use crate::check::verdict::Figures;

const HEAD: &str = "\
# The proof

What Quorate promises ([GUARANTEES.md](GUARANTEES.md)) is checked under faults by code that shares nothing with the broker
and does not trust it: clients with an MQTT codec of their own write down everything that they see, and checkers hold the
history against each promise. This page is written by `quorate-faults report`; do not edit it. The words about bugs are
in [their ledger](proof/ledger.md), the figures of every run in `docs/proof/runs.jsonl`.

```sh
make jepsen                       # what CI runs: simulated nodes, then real ones under faults, about ten minutes
make jepsen-full HOURS=4          # the whole matrix, and this page
quorate-faults run --workload mixed --nemesis kill,power-loss --time 60 --seed 7 --out /tmp/run
quorate-faults list               # workloads and nemeses, and which of them this machine can have
```

A run passes when no promise was broken, every node has the same rows in the end, everything that was acknowledged has
arrived, and enough happened to say so; otherwise it is a violation (exit 1), or *unknown* (exit 2), which is no pass.
*Unknown* operations are those of which the client never heard: they may or may not have happened.
";

const LIMITS: &str = "\
## What this does not show
- Time stands on one machine: three brokers, their clients and the disks share its processors. Unavailability counts
  faults that take a majority away, during which nothing may be acknowledged; recovery counts from a client's
  first operation after a fault, or its end, to an acknowledgement, which includes its own way to another node.
- The disk that forgets is a file system of ours over FUSE; it keeps to what fsync promises, which not every disk does.
- No run proves that there are no bugs; the seeded bugs show what kinds would be noticed.
";

pub(super) struct Page<'a> {
    pub(super) runs: &'a [Record],
    pub(super) simulated: Option<Simulated>,
    pub(super) seeded: Vec<Seeded>,
    pub(super) ledger: String,
    pub(super) plots: &'a [(String, Record)],
}

/// What several runs come to.
#[derive(Default)]
struct Sum {
    runs: usize,
    seconds: u64,
    passed: usize,
    violated: usize,
    faults: u64,
    figures: Figures,
    recovery_p50: Vec<u64>,
}

impl Sum {
    fn add(&mut self, run: &Record) {
        self.runs += 1;
        self.seconds += run.time_s;
        self.passed += usize::from(run.outcome == "Pass");
        self.violated += usize::from(run.outcome == "Violation");
        self.faults += run.faults.values().sum::<u64>();
        let Some(figures) = &run.figures else { return };
        let sum = &mut self.figures;
        sum.acknowledged += figures.acknowledged;
        sum.delivered += figures.delivered;
        sum.unknown += figures.unknown;
        sum.lost += figures.lost;
        sum.duplicated += figures.duplicated;
        sum.reordered += figures.reordered;
        sum.stale += figures.stale;
        sum.other += figures.other;
        sum.leader_changes += figures.leader_changes;
        sum.unavailable_ns_max = sum.unavailable_ns_max.max(figures.unavailable_ns_max);
        sum.recovery_ns_p99 = sum.recovery_ns_p99.max(figures.recovery_ns_p99);
        self.recovery_p50.push(figures.recovery_ns_p50);
    }

    fn row(&self, name: &str) -> String {
        let n = &self.figures;
        let mut p50 = self.recovery_p50.clone();
        p50.sort_unstable();
        let p50 = p50.get(p50.len() / 2).copied().unwrap_or_default();
        let seconds = |ns: u64| format!("{:.1}", ns as f64 / 1e9);
        format!(
            "| {name} | {} | {:.2} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            self.runs,
            self.seconds as f64 / 3600.0,
            self.passed,
            self.faults,
            n.acknowledged,
            n.unknown,
            n.lost,
            n.duplicated,
            n.reordered,
            n.stale + n.other,
            seconds(n.unavailable_ns_max),
            seconds(p50),
            seconds(n.recovery_ns_p99),
        )
    }
}

const COLUMNS: &str = "runs | hours | passed | faults | acknowledged | unknown | lost | duplicated | reordered | stale, other | \
longest unavailable / s | recovery p50 / s | worst p99 / s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

impl Page<'_> {
    pub(super) fn text(&self) -> String {
        let mut page = HEAD.to_owned();
        let mut all = Sum::default();
        self.runs.iter().for_each(|run| all.add(run));
        let _ = writeln!(
            page,
            "\n## Real nodes under faults\n\n\
             {} runs, {:.1} hours of load under {} faults with {} changes of the leader: {} operations acknowledged, {} \
             messages delivered. {} runs passed, {} had a violation, {} were unknown.\n",
            all.runs,
            all.seconds as f64 / 3600.0,
            all.faults,
            all.figures.leader_changes,
            all.figures.acknowledged,
            all.figures.delivered,
            all.passed,
            all.violated,
            all.runs - all.passed - all.violated
        );
        self.sums(&mut page, "workload", |run| &run.workload);
        self.sums(&mut page, "nemeses, rotated", |run| &run.nemesis);
        self.faults(&mut page);
        self.simulator(&mut page);
        self.seeded_bugs(&mut page);
        let _ = writeln!(page, "\n{}", self.ledger.trim());
        if !self.plots.is_empty() {
            page.push_str("\n## Over time\nThroughput above, latency of acknowledgements below, faults in grey.\n\n");
            for (name, run) in self.plots {
                let _ = writeln!(page, "![{} under {}](proof/{name})\n", run.workload, run.nemesis);
            }
        }
        page.push('\n');
        page.push_str(LIMITS);
        page
    }

    fn sums<'a>(&'a self, page: &mut String, title: &str, key: impl Fn(&'a Record) -> &'a str) {
        let mut by: BTreeMap<&str, Sum> = BTreeMap::new();
        for run in self.runs {
            by.entry(key(run)).or_default().add(run);
        }
        let _ = write!(page, "| {title} | {COLUMNS}");
        for (name, sum) in by {
            page.push_str(&sum.row(name));
        }
        page.push('\n');
    }

    fn faults(&self, page: &mut String) {
        let mut by: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for run in self.runs {
            for (nemesis, n) in &run.faults {
                by.entry(nemesis).or_default().0 += n;
            }
            for (nemesis, n) in &run.not_installed {
                by.entry(nemesis).or_default().1 += n;
            }
        }
        page.push_str(
            "*Could not* counts how often a nemesis said that it could not do what it wanted at that moment (such as \
             taking a node's data while another fault holds a node down).\n\n\
             | nemesis | made | could not |\n|---|---|---|\n",
        );
        for (nemesis, (made, refused)) in by {
            let _ = writeln!(page, "| {nemesis} | {made} | {refused} |");
        }
    }

    fn simulator(&self, page: &mut String) {
        page.push_str("\n## Simulated nodes\n\n");
        let Some(sim) = &self.simulated else {
            page.push_str("No run is on record.\n");
            return;
        };
        let _ = writeln!(
            page,
            "{} seeds in {:.2} hours, {:.1} simulated hours ({:.0} an hour, {:.0} seeds an hour): {} faults, {} publishes \
             acknowledged, {} deliveries, {} violations. `{}`; [what it is](../jepsen/sim/README.md).",
            sim.seeds,
            sim.hours,
            sim.simulated_hours,
            sim.simulated_hours / sim.hours,
            sim.seeds as f64 / sim.hours,
            sim.faults,
            sim.acknowledged,
            sim.delivered,
            sim.violations,
            sim.command
        );
    }

    fn seeded_bugs(&self, page: &mut String) {
        let caught = self.seeded.iter().filter(|bug| bug.caught_by.is_some()).count();
        let _ = writeln!(
            page,
            "\n## Seeded bugs: {caught} of {} caught\n\n\
             Mistakes that were put into the broker on purpose, behind a feature that no release has, and whether the \
             ordinary seeds and workloads notice them.\n\n\
             | bug | breaks | what is wrong | caught by | after | said |\n|---|---|---|---|---|---|",
            self.seeded.len()
        );
        for bug in &self.seeded {
            let is_caught = bug.caught_by.is_some();
            let by = if is_caught { format!("`{}`", bug.command) } else { "**not caught**".to_owned() };
            let after = match (bug.seeds, bug.seconds) {
                (Some(1), _) => "the first seed".to_owned(),
                (Some(seeds), _) => format!("{seeds} seeds"),
                (None, Some(seconds)) => format!("{seconds} s"),
                (None, None) => String::new(),
            };
            let said = if is_caught { &bug.violation } else { &bug.why };
            let _ = writeln!(page, "| {} | {} | {} | {by} | {after} | {said} |", bug.name, bug.guarantee, bug.what);
        }
    }
}
