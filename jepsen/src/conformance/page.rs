//! Writes the page, and reads the results back from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Conformance, DATA, Edition, Id, Results, Statement, Test};

const HEAD: &str = "\
# Conformance

Every normative statement of MQTT 3.1.1 and 5.0 about servers, with the tests that hold it. This page is written by
`make conformance` from the comments of the tests and two tables; do not edit it. `jepsen/tests/conformance.rs` fails,
in CI too, when the page differs from them or when a statement has neither a test nor a reason. The results are those of
the last `make conformance`, which runs exactly these tests; CI runs all of them, and a test that fails fails CI.

";

impl Conformance {
    /// The page with these results.
    #[must_use]
    pub fn page(&self, results: &Results) -> String {
        let mut page = HEAD.to_owned();
        page.push_str("| | statements | held by a test | with a reason instead |\n|---|---|---|---|\n");
        for edition in Edition::ALL {
            let of: Vec<&Statement> = self.of(edition).collect();
            let held = of.iter().filter(|s| !self.holders(&s.id).is_empty()).count();
            let reasons = of.iter().filter(|s| self.reason(&s.id).is_some()).count();
            let _ = writeln!(page, "| MQTT {} | {} | {held} | {reasons} |", edition.name(), of.len());
        }
        let _ = writeln!(
            page,
            "\nStatements are in `{DATA}/normative.tsv`, in few words of our own;\n\
             [its README](../{DATA}/README.md) says where ids come from. \"n inputs\" are those of the {}\n\
             in `{DATA}/malformed.jsonl` that the statement judges.",
            self.inputs_total
        );
        for edition in Edition::ALL {
            let _ = writeln!(page, "\n## MQTT {}", edition.name());
            let mut areas: Vec<&str> = Vec::new();
            for statement in self.of(edition) {
                if !areas.contains(&statement.area.as_str()) {
                    areas.push(&statement.area);
                }
            }
            for area in areas {
                let _ = writeln!(page, "\n### {} ({})\n", capital(area), edition.name());
                page.push_str("| id | statement | held by | result |\n|---|---|---|---|\n");
                for statement in self.of(edition).filter(|s| s.area == area) {
                    self.row(statement, results, &mut page);
                }
            }
        }
        page
    }

    fn of(&self, edition: Edition) -> impl Iterator<Item = &Statement> {
        self.statements.iter().filter(move |s| s.id.edition == edition)
    }

    fn row(&self, statement: &Statement, results: &Results, page: &mut String) {
        let holders = self.holders(&statement.id);
        let link = |(test, inputs): &(&Test, usize)| {
            let count = match inputs {
                0 => String::new(),
                1 => " (1 input)".to_owned(),
                n => format!(" ({n} inputs)"),
            };
            format!("[{}](../{}){count}", test.name, test.file)
        };
        let held = match self.reason(&statement.id) {
            Some(reason) if holders.is_empty() => format!("*{}*", cell(reason)),
            _ => holders.iter().map(link).collect::<Vec<_>>().join("<br>"),
        };
        let tests: Vec<&Test> = holders.iter().map(|(test, _)| *test).collect();
        let result = if tests.is_empty() { "" } else { results.of(&statement.id, &tests) };
        let _ = writeln!(page, "| {} | {} | {held} | {result} |", statement.id.number, cell(&statement.text));
    }

    /// The results that a page shows.
    #[must_use]
    pub fn results_of_page(page: &str) -> Results {
        let mut edition = Edition::V5;
        let mut rows = BTreeMap::new();
        for line in page.lines() {
            if let Some(name) = line.strip_prefix("## MQTT ") {
                edition = Edition::from_name(name).unwrap_or(edition);
            } else if let Some(row) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) {
                let number = row.split(" | ").next().unwrap_or_default().to_owned();
                let result = row.rsplit(" | ").next().unwrap_or_default().to_owned();
                rows.insert(Id { edition, number }, result);
            }
        }
        Results::of_rows(rows)
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Text that does not break a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('#', "\\#").replace('*', "\\*")
}
