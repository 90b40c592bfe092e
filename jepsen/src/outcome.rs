//! How a run ended, in a file for people and one for machines.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::check;
use crate::check::verdict::{Expectations, Figures, Verdict};
use crate::history::record::Recorder;

/// A run in which less than this was acknowledged shows nothing.
pub(crate) const ACKNOWLEDGED_MIN: usize = 20;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every promise that was checked was kept.
    Pass,
    /// One was broken.
    Violation,
    /// The run shows nothing: it could not be done.
    Unknown,
}

impl Outcome {
    /// Of the process that says it.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Violation => 1,
            Self::Unknown => 2,
        }
    }
}

/// What came of it.
pub(crate) struct Report {
    pub(crate) outcome: Outcome,
    pub(crate) text: String,
    figures: Option<Figures>,
}

impl Report {
    pub(crate) fn unknown(why: impl Into<String>) -> Self {
        Self { outcome: Outcome::Unknown, text: why.into(), figures: None }
    }

    /// The verdict of the history in `out`; `broken` is what the harness saw go wrong by itself.
    pub(crate) fn of(out: &Path, recorder: &Recorder, expectations: &Expectations, broken: &[String]) -> Self {
        if let Err(e) = recorder.flush() {
            return Self::unknown(format!("the history could not be written: {e}"));
        }
        let report = match check::check_file(&out.join("history.jsonl"), expectations) {
            Ok(report) => report,
            Err(e) => return Self::unknown(format!("the history cannot be judged: {e}")),
        };
        let outcome = match &report.verdict {
            Verdict::Violation(_) => Outcome::Violation,
            _ if !broken.is_empty() => Outcome::Violation,
            Verdict::Unknown(_) => Outcome::Unknown,
            Verdict::Pass => Outcome::Pass,
        };
        Self { outcome, text: format!("{report}{}", broken.join("\n")), figures: Some(report.figures) }
    }

    /// Something that takes a pass its worth.
    pub(crate) fn doubt(&mut self, why: &str) {
        if self.outcome == Outcome::Pass {
            self.outcome = Outcome::Unknown;
        }
        self.text = format!("{}\nunknown: {why}", self.text.trim_end());
    }

    /// Writes `verdict.txt` and `run.json`, and prints the verdict. `about` says what the run was, `again` how to run it
    /// once more.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn publish(
        mut self,
        out: &Path,
        recorder: &Recorder,
        mut about: Value,
        again: &str,
    ) -> io::Result<Outcome> {
        let notes = recorder.notes();
        let events = recorder.flush().unwrap_or_else(|e| {
            self = Self::unknown(format!("the history could not be written: {e}"));
            0
        });
        let mut text = format!("{:?}\n{}\n", self.outcome, self.text.trim_end());
        for note in &notes {
            text.push_str(&format!("note: {note}\n"));
        }
        if self.outcome != Outcome::Pass {
            text.push_str(&format!("to run it again: {again}\n"));
        }
        fs::write(out.join("verdict.txt"), &text)?;
        let came = json!({
            "command": again,
            "harness": env!("CARGO_PKG_VERSION"),
            "events": events,
            "outcome": format!("{:?}", self.outcome),
            "figures": self.figures,
            "faults": recorder.faults(),
            "not_installed": recorder.not_installed(),
            "notes": notes,
        });
        if let (Some(about), Value::Object(came)) = (about.as_object_mut(), came) {
            about.extend(came);
        }
        fs::write(out.join("run.json"), format!("{about:#}\n"))?;
        println!("{text}");
        Ok(self.outcome)
    }
}
