//! Which test holds which normative statement of MQTT: read from the tests themselves, shown as `docs/CONFORMANCE.md`.
//!
//! A test names a statement in a comment above or inside it: `[MQTT-3.1.0-1]` is a statement of MQTT 5.0,
//! `[MQTT-3.1.0-1 v3.1.1]` one of 3.1.1, where the same number often means something else. `[malformed corpus]` in a
//! test's comment stands for every statement that an input of `malformed.jsonl` must be judged by. A statement that no
//! test holds has a line in `exceptions.tsv` with the reason. It owns no test and runs none.

mod junit;
mod page;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

pub use junit::Results;
pub use scan::Test;

/// Where statements, inputs and exceptions are.
const DATA: &str = "node/tests/conformance";
/// The page.
pub const PAGE: &str = "docs/CONFORMANCE.md";
/// Folders whose tests count, with the package that each is.
const FOLDERS: [(&str, &str); 4] =
    [("store", "quorate-store"), ("raft", "quorate-raft"), ("http-admin", "quorate-http-admin"), ("node", "quorate")];

/// Why there is no page.
#[derive(Debug, Error)]
pub enum ConformanceError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{file}:{line}: {what}")]
    Line {
        /// Where.
        file: String,
        /// Where in it.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edition {
    /// 3.1.1.
    V311,
    /// 5.0.
    V5,
}

impl Edition {
    /// Both, in the order of the page.
    pub const ALL: [Self; 2] = [Self::V5, Self::V311];

    /// As the table writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5.0",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|edition| edition.name() == name)
    }
}

/// Names a statement: its edition and its id without `MQTT-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Which specification.
    pub edition: Edition,
    /// `3.1.0-1`.
    pub number: String,
}

/// A normative statement about servers.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Its name.
    pub id: Id,
    /// Its subject.
    pub area: String,
    /// What it says, in few words.
    pub text: String,
}

/// Everything that the page is made of.
#[derive(Debug)]
pub struct Conformance {
    /// In the order of the table.
    pub statements: Vec<Statement>,
    /// Every test that names a statement.
    pub tests: Vec<Test>,
    reasons: BTreeMap<Id, String>,
    /// Inputs of the corpus by the statement that judges them.
    inputs: BTreeMap<Id, usize>,
    inputs_total: usize,
    problems: Vec<String>,
}

/// The part of a line of `malformed.jsonl` that says what it is judged by.
#[derive(Deserialize)]
struct Input {
    ver: u8,
    spec: String,
    level: String,
}

fn read(path: &Path) -> Result<String, ConformanceError> {
    std::fs::read_to_string(path).map_err(|source| ConformanceError::Io { path: path.to_owned(), source })
}

/// The lines of a table with a heading, split at tabs.
fn table<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Result<(Id, Vec<&'a str>), ConformanceError>> {
    let lines = (1..).zip(text.lines()).skip(1).filter(|(_, line)| !line.is_empty());
    lines.map(move |(line, content)| {
        let bad = |what: &str| ConformanceError::Line { file: file.to_owned(), line, what: what.to_owned() };
        let mut fields = content.split('\t');
        let number = fields.next().and_then(|id| id.strip_prefix("MQTT-")).ok_or_else(|| bad("no id"))?;
        let edition = fields.next().and_then(Edition::from_name).ok_or_else(|| bad("neither 3.1.1 nor 5.0"))?;
        Ok((Id { edition, number: number.to_owned() }, fields.collect()))
    })
}

impl Conformance {
    /// Reads the tables and the tests below `root`, the top of the repository.
    ///
    /// # Errors
    /// When a file cannot be read, or is no table.
    pub fn load(root: &Path) -> Result<Self, ConformanceError> {
        let folder = root.join(DATA);
        let mut problems = Vec::new();
        let mut statements = Vec::new();
        for row in table("normative.tsv", &read(&folder.join("normative.tsv"))?) {
            let (id, fields) = row?;
            let [area, text, ..] = fields.as_slice() else {
                problems.push(format!("normative.tsv: {id} has no words"));
                continue;
            };
            statements.push(Statement { id, area: (*area).to_owned(), text: (*text).to_owned() });
        }
        let mut reasons = BTreeMap::new();
        for row in table("exceptions.tsv", &read(&folder.join("exceptions.tsv"))?) {
            let (id, fields) = row?;
            let reason = fields.concat();
            if reason.is_empty() {
                problems.push(format!("exceptions.tsv: {id} has no reason"));
            }
            if reasons.insert(id.clone(), reason).is_some() {
                problems.push(format!("exceptions.tsv: {id} is there twice"));
            }
        }
        let (inputs, inputs_total) = inputs(&folder)?;
        let mut tests = Vec::new();
        for (folder, package) in FOLDERS {
            scan::folder(root, &root.join(folder), package, &mut tests, &mut problems)?;
        }
        let mut conformance = Self { statements, tests, reasons, inputs, inputs_total, problems };
        conformance.cross_check();
        Ok(conformance)
    }

    /// What is wrong: statements without test and reason, names of statements that there are not, reasons for what a
    /// test holds.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The tests that hold a statement, with how many inputs of the corpus each runs for it; 0 for a test that names it.
    #[must_use]
    pub fn holders(&self, id: &Id) -> Vec<(&Test, usize)> {
        let inputs = self.inputs.get(id).copied().unwrap_or_default();
        let mut holders = Vec::new();
        for test in &self.tests {
            if test.ids.contains(id) {
                holders.push((test, 0));
            } else if test.runs_corpus && inputs > 0 {
                holders.push((test, inputs));
            }
        }
        holders
    }

    /// Why no test holds a statement.
    #[must_use]
    pub fn reason(&self, id: &Id) -> Option<&str> {
        self.reasons.get(id).map(String::as_str)
    }

    /// A nextest expression for the tests that hold a statement, and no others.
    #[must_use]
    pub fn filter(&self) -> String {
        let mut packages: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for test in &self.tests {
            packages.entry(&test.package).or_default().insert(&test.name);
        }
        let of = |(package, names): (&str, BTreeSet<&str>)| {
            let names: Vec<&str> = names.into_iter().collect();
            format!("(package(={package}) and test(/(^|::)({})$/))", names.join("|"))
        };
        packages.into_iter().map(of).collect::<Vec<_>>().join(" or ")
    }

    fn cross_check(&mut self) {
        let known: BTreeSet<&Id> = self.statements.iter().map(|s| &s.id).collect();
        let mut problems = Vec::new();
        for test in &self.tests {
            for id in test.ids.iter().filter(|id| !known.contains(id)) {
                let place = format!("{}: {}", test.file, test.name);
                problems.push(format!("{place} names {id}, which normative.tsv does not have for servers"));
            }
        }
        for id in self.reasons.keys().filter(|id| !known.contains(id)) {
            problems.push(format!("exceptions.tsv: {id} is not in normative.tsv"));
        }
        for statement in &self.statements {
            let id = &statement.id;
            match (self.holders(id).is_empty(), self.reason(id)) {
                (true, None) => problems.push(format!("{id} has neither a test nor a reason: {}", statement.text)),
                (false, Some(_)) => {
                    problems.push(format!("{id} has a test: its line in exceptions.tsv is out of date"))
                }
                _ => {}
            }
        }
        self.problems.extend(problems);
    }
}

/// How many inputs of the corpus must be judged by each statement, and how many inputs there are.
fn inputs(folder: &Path) -> Result<(BTreeMap<Id, usize>, usize), ConformanceError> {
    let mut counts = BTreeMap::new();
    let text = read(&folder.join("malformed.jsonl"))?;
    let mut total = 0;
    for (line, content) in (1..).zip(text.lines()) {
        let file = || "malformed.jsonl".to_owned();
        let input: Input = serde_json::from_str(content).map_err(|e| ConformanceError::Line {
            file: file(),
            line,
            what: e.to_string(),
        })?;
        total += 1;
        if input.level != "must" {
            continue;
        }
        let edition = if input.ver == 4 { Edition::V311 } else { Edition::V5 };
        for number in scan::numbers(&input.spec) {
            *counts.entry(Id { edition, number }).or_default() += 1;
        }
    }
    Ok((counts, total))
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.edition {
            Edition::V5 => write!(f, "[MQTT-{}]", self.number),
            Edition::V311 => write!(f, "[MQTT-{} v3.1.1]", self.number),
        }
    }
}
