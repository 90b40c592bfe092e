//! What a run says in the end: every promise kept, a promise broken, or too little seen to say.
//!
//! *Unknown* is no pass: a run without enough acknowledged operations, without a leader change where one was wanted,
//! or in which a nemesis never fired, has shown nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::history::MessageName;
use crate::history::event::Client;
use crate::history::read::Line;

/// How many violations a report spells out, and how many lines of the history for each.
const SPELLED_OUT_MAX: usize = 20;
pub(super) const LINES_MAX: usize = 12;

/// A promise of docs/GUARANTEES.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Nothing arrives that nobody sent: it needs no number.
    NothingFromNowhere,
    /// 2.
    NoAcknowledgedLoss,
    /// 3.
    ExactlyOnce,
    /// 4.
    AtLeastOnce,
    /// 5.
    Order,
    /// 6.
    Subscriptions,
    /// 7.
    Retained,
    /// 8.
    OneOwner,
    /// 9.
    Wills,
    /// 10.
    Shared,
    /// 11.
    Bounded,
    /// 12.
    ReplicasAgree,
    /// 13.
    Available,
}

impl Guarantee {
    /// Its number in docs/GUARANTEES.md.
    #[must_use]
    pub const fn number(self) -> Option<u8> {
        Some(match self {
            Self::NothingFromNowhere => return None,
            Self::NoAcknowledgedLoss => 2,
            Self::ExactlyOnce => 3,
            Self::AtLeastOnce => 4,
            Self::Order => 5,
            Self::Subscriptions => 6,
            Self::Retained => 7,
            Self::OneOwner => 8,
            Self::Wills => 9,
            Self::Shared => 10,
            Self::Bounded => 11,
            Self::ReplicasAgree => 12,
            Self::Available => 13,
        })
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::NothingFromNowhere => "nothing from nowhere",
            Self::NoAcknowledgedLoss => "no acknowledged loss",
            Self::ExactlyOnce => "QoS 2 exactly once",
            Self::AtLeastOnce => "QoS 1 repeats",
            Self::Order => "order",
            Self::Subscriptions => "subscriptions are linearizable",
            Self::Retained => "retained is a linearizable register",
            Self::OneOwner => "one owner",
            Self::Wills => "wills",
            Self::Shared => "shared groups",
            Self::Bounded => "bounded and loud",
            Self::ReplicasAgree => "replicas agree",
            Self::Available => "available with a majority",
        };
        match self.number() {
            Some(number) => write!(f, "guarantee {number} ({name})"),
            None => f.write_str(name),
        }
    }
}

/// What was wrong, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Acknowledged and never there.
    Lost,
    /// There more often than it may be.
    Duplicated,
    /// Not in order.
    Reordered,
    /// An old value, or the word of an old owner.
    Stale,
    /// Came again as it may not.
    BadlyRepeated,
    /// From nowhere, or to somebody who did not want it.
    Unwanted,
    /// Two answers that exclude each other.
    Contradiction,
    /// It took too long.
    Slow,
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub guarantee: Guarantee,
    /// In which way.
    pub kind: Kind,
    /// To whom.
    pub client: Option<Client>,
    /// With which message.
    pub message: Option<MessageName>,
    /// In words.
    pub what: String,
    /// Lines of the history that show it.
    pub lines: Vec<Line>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.guarantee)?;
        if let Some(client) = self.client {
            write!(f, ", client {}", client.0)?;
        }
        if let Some(message) = self.message {
            write!(f, ", message {message}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What a run must have had to count.
#[derive(Clone, Debug)]
pub struct Expectations {
    /// Operations that were acknowledged, at least.
    pub acknowledged_min: usize,
    /// Changes of the leader, at least.
    pub leader_changes_min: usize,
    /// Nemeses each of which fired, by name.
    pub nemeses: Vec<String>,
    /// Nodes whose digests at one applied index were compared, at least; 0: no digests are asked for.
    pub digests_min: usize,
    /// Whether clients were to read what was left to the end. Without it nothing can be said to be lost.
    pub drained: bool,
    /// Longest time without any acknowledgement that is allowed; none: it is measured only.
    pub unavailable_ns_max: Option<u64>,
    /// How long a CONNECT that nobody answered may still take effect: the broker's `connect_deadline_ms`, and time for
    /// its clock to be behind.
    pub connect_deadline_ns: u64,
    /// How much later than its delay a will may be published, or than its expiry a message be sent: the broker's
    /// `node_timeout`, an election, a tick.
    pub will_late_ns_max: u64,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            acknowledged_min: 1,
            leader_changes_min: 0,
            nemeses: Vec::new(),
            digests_min: 0,
            drained: true,
            unavailable_ns_max: None,
            connect_deadline_ns: 15_000_000_000,
            will_late_ns_max: 15_000_000_000,
        }
    }
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every promise was kept, and enough happened to say so.
    Pass,
    /// Too little was seen, for these reasons.
    Unknown(Vec<String>),
    /// These promises were broken.
    Violation(Vec<Violation>),
}

impl Verdict {
    /// Of the process that says it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Violation(_) => 1,
            Self::Unknown(_) => 2,
        }
    }
}

/// What was counted, for docs and machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Lines.
    pub events: usize,
    /// Operations that were accepted.
    pub acknowledged: usize,
    /// Publishes among them, QoS 1 and 2.
    pub published: usize,
    /// Operations of which nobody knows.
    pub unknown: usize,
    /// Operations that certainly had no effect.
    pub failed: usize,
    /// Deliveries.
    pub delivered: usize,
    /// Deliveries again that were allowed.
    pub repeats: usize,
    /// Violations that are losses.
    pub lost: usize,
    /// Too often.
    pub duplicated: usize,
    /// Not in order.
    pub reordered: usize,
    /// Old values and old owners.
    pub stale: usize,
    /// Every other violation.
    pub other: usize,
    /// Reads of retained values that were judged.
    pub retained_reads: usize,
    /// Wills that were certainly due.
    pub wills_due: usize,
    /// Messages whose place in the log is known from the broker.
    pub positions: usize,
    /// Changes of the leader.
    pub leader_changes: usize,
    /// Faults that were made.
    pub faults: usize,
    /// Longest time without an acknowledgement to anybody, up to the drain.
    pub unavailable_ns_max: u64,
    /// The same for the client that had it worst.
    pub client_unavailable_ns_max: u64,
    /// From a fault, or its end, until a client's next operation was accepted: median.
    pub recovery_ns_p50: u64,
    /// 99th percentile.
    pub recovery_ns_p99: u64,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// The counts.
    pub figures: Figures,
    /// What the nemesis could not do, and what was too little when a violation is the verdict.
    pub remarks: Vec<String>,
    /// Text of the lines that the violations name.
    pub(super) quoted: Vec<(Line, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = &self.figures;
        let word = match &self.verdict {
            Verdict::Pass => "pass",
            Verdict::Unknown(_) => "unknown",
            Verdict::Violation(_) => "VIOLATION",
        };
        writeln!(
            f,
            "{word}: {} events, {} acknowledged, {} unknown, {} failed, {} delivered, {} repeats",
            n.events, n.acknowledged, n.unknown, n.failed, n.delivered, n.repeats
        )?;
        writeln!(
            f,
            "{} lost, {} duplicated, {} out of order, {} stale, {} other; {} faults, {} changes of the leader",
            n.lost, n.duplicated, n.reordered, n.stale, n.other, n.faults, n.leader_changes
        )?;
        let ms = |ns: u64| ns / 1_000_000;
        writeln!(
            f,
            "longest without an acknowledgement {} ms, of one client {} ms; recovery p50 {} ms, p99 {} ms",
            ms(n.unavailable_ns_max),
            ms(n.client_unavailable_ns_max),
            ms(n.recovery_ns_p50),
            ms(n.recovery_ns_p99)
        )?;
        for remark in &self.remarks {
            writeln!(f, "note: {remark}")?;
        }
        match &self.verdict {
            Verdict::Pass => {}
            Verdict::Unknown(reasons) => {
                for reason in reasons {
                    writeln!(f, "unknown: {reason}")?;
                }
            }
            Verdict::Violation(violations) => {
                for violation in violations.iter().take(SPELLED_OUT_MAX) {
                    writeln!(f, "{violation}")?;
                    for line in violation.lines.iter().take(LINES_MAX) {
                        if let Ok(at) = self.quoted.binary_search_by_key(line, |(line, _)| *line) {
                            let text = self.quoted.get(at).map_or("", |(_, text)| text.as_str());
                            writeln!(f, "  {:>7}  {text}", line.0)?;
                        }
                    }
                }
                if let Some(more) = violations.len().checked_sub(SPELLED_OUT_MAX).filter(|&more| more > 0) {
                    writeln!(f, "and {more} more")?;
                }
            }
        }
        Ok(())
    }
}

/// What the checks have found so far.
#[derive(Default)]
pub(super) struct Found {
    pub(super) violations: Vec<Violation>,
    pub(super) unknown: Vec<String>,
    pub(super) remarks: Vec<String>,
    pub(super) figures: Figures,
}

impl Found {
    /// The verdict of all that was found; `quote` gives the text of a line.
    pub(super) fn into_report(mut self, quote: impl Fn(Line) -> Option<String>) -> Report {
        for violation in &self.violations {
            let n = &mut self.figures;
            *match violation.kind {
                Kind::Lost => &mut n.lost,
                Kind::Duplicated => &mut n.duplicated,
                Kind::Reordered => &mut n.reordered,
                Kind::Stale => &mut n.stale,
                Kind::BadlyRepeated | Kind::Unwanted | Kind::Contradiction | Kind::Slow => &mut n.other,
            } += 1;
        }
        let mut lines: Vec<Line> = self
            .violations
            .iter()
            .take(SPELLED_OUT_MAX)
            .flat_map(|violation| violation.lines.iter().take(LINES_MAX).copied())
            .collect();
        lines.sort_unstable();
        lines.dedup();
        let quoted = lines.into_iter().filter_map(|line| Some((line, quote(line)?))).collect();
        let verdict = if !self.violations.is_empty() {
            self.remarks.append(&mut self.unknown);
            Verdict::Violation(self.violations)
        } else if self.unknown.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Unknown(self.unknown)
        };
        Report { verdict, figures: self.figures, remarks: self.remarks, quoted }
    }
}
