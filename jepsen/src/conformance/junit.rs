//! Reads which tests passed from a JUnit report of cargo-nextest: test cases with their `name` and `classname`, and
//! whether a `failure` or `error` stands in them.

use std::collections::BTreeMap;

use super::{Id, Test};

/// How a statement's tests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    by_test: BTreeMap<(String, String), bool>,
    /// As the page had it, for want of a report.
    by_id: BTreeMap<Id, String>,
}

/// The value of an attribute of an element.
fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let start = element.find(&format!(" {name}=\""))? + name.len() + 3;
    element.get(start..)?.split('"').next()
}

impl Results {
    /// Of a report.
    #[must_use]
    pub fn of_report(xml: &str) -> Self {
        let mut by_test = BTreeMap::new();
        for case in xml.split("<testcase").skip(1) {
            let case = case.split("</testcase>").next().unwrap_or_default();
            let head = case.split('>').next().unwrap_or_default();
            let (Some(name), Some(class)) = (attribute(head, "name"), attribute(head, "classname")) else { continue };
            let name = name.rsplit("::").next().unwrap_or_default().to_owned();
            let package = class.split("::").next().unwrap_or_default().to_owned();
            let passed = !case.contains("<failure") && !case.contains("<error");
            // Of two of the same name both must pass.
            *by_test.entry((package, name)).or_insert(true) &= passed;
        }
        Self { by_test, by_id: BTreeMap::new() }
    }

    /// Those that a page shows.
    #[must_use]
    pub(super) fn of_rows(by_id: BTreeMap<Id, String>) -> Self {
        Self { by_test: BTreeMap::new(), by_id }
    }

    /// In a word.
    #[must_use]
    pub fn of(&self, id: &Id, tests: &[&Test]) -> &str {
        if let Some(shown) = self.by_id.get(id) {
            return shown;
        }
        let result = |test: &&Test| self.by_test.get(&(test.package.clone(), test.name.clone())).copied();
        let results: Vec<Option<bool>> = tests.iter().map(result).collect();
        if results.contains(&Some(false)) {
            "**failed**"
        } else if results.contains(&None) {
            "not run"
        } else {
            "passed"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Edition;
    use super::*;

    #[test]
    fn a_statement_passes_when_all_its_tests_did() {
        let report = r#"<testsuite name="quorate::a"><testcase name="good" classname="quorate::a" time="0.1"/>
            <testcase name="m::bad" classname="quorate::a"><failure message="x">&lt;</failure></testcase>
            <testcase name="fine" classname="quorate-store::b" time="0.1"><system-out>x</system-out></testcase>
            <testcase name="bad" classname="quorate-store::b" time="0.1"></testcase></testsuite>"#;
        let results = Results::of_report(report);
        let id = Id { edition: Edition::V5, number: "1-1".into() };
        let test = |package: &str, name: &str| Test {
            name: name.into(),
            file: String::new(),
            package: package.into(),
            ids: [id.clone()].into(),
            runs_corpus: false,
        };
        let of = |tests: &[Test]| results.of(&id, &tests.iter().collect::<Vec<_>>()).to_owned();
        assert_eq!(of(&[test("quorate", "good")]), "passed");
        assert_eq!(of(&[test("quorate", "good"), test("quorate-store", "fine")]), "passed");
        assert_eq!(of(&[test("quorate-store", "bad")]), "passed");
        assert_eq!(of(&[test("quorate", "good"), test("quorate", "bad")]), "**failed**");
        assert_eq!(of(&[test("quorate", "good"), test("quorate", "gone")]), "not run");
    }
}
