//! Finds tests and the statements that their comments name.

use std::collections::BTreeSet;
use std::path::Path;

use super::{ConformanceError, Edition, Id, read};

/// Stands in the comment of the test that runs the corpus of malformed inputs.
const CORPUS: &str = "[malformed corpus]";

/// A test that holds statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Its function.
    pub name: String,
    /// Its file, from the top of the repository.
    pub file: String,
    /// Its package.
    pub package: String,
    /// What it names.
    pub ids: BTreeSet<Id>,
    /// Whether it runs the corpus of malformed inputs.
    pub runs_corpus: bool,
}

/// Adds the tests of every Rust file below `folder` that name a statement.
pub(super) fn folder(
    root: &Path,
    folder: &Path,
    package: &str,
    tests: &mut Vec<Test>,
    problems: &mut Vec<String>,
) -> Result<(), ConformanceError> {
    let io = |source| ConformanceError::Io { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>();
    let mut paths: Vec<_> = entries.map_err(io)?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            self::folder(root, &path, package, tests, problems)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let file = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            source(&read(&path)?, &file, package, tests, problems);
        }
    }
    Ok(())
}

/// Adds the tests of one file that name a statement.
fn source(text: &str, file: &str, package: &str, tests: &mut Vec<Test>, problems: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    let is_test =
        |line: &&str| line.trim_start().starts_with("#[test]") || line.trim_start().starts_with("#[tokio::test");
    for (at, attribute) in lines.iter().enumerate().filter(|(_, line)| is_test(line)) {
        let (before, after) = lines.split_at(at);
        let belongs = |line: &&&str| line.trim_start().starts_with("//") || line.trim_start().starts_with("#[");
        let above = before.iter().rev().take_while(belongs);
        let end = &attribute[..attribute.len() - attribute.trim_start().len()];
        let within = after.iter().take_while(|line| line.strip_prefix(end) != Some("}"));
        let Some(name) = within.clone().find_map(|line| function(line)) else { continue };
        let comments: Vec<&str> = above.chain(within).filter_map(|line| Some(line.split_once("//")?.1)).collect();
        let mut ids = BTreeSet::new();
        for comment in &comments {
            for named in brackets(comment) {
                match id(named) {
                    Some(id) => drop(ids.insert(id)),
                    None => problems.push(format!("{file}: {name}: [MQTT-{named}] is no statement")),
                }
            }
        }
        let runs_corpus = comments.iter().any(|comment| comment.contains(CORPUS));
        if runs_corpus || !ids.is_empty() {
            tests.push(Test {
                name: name.to_owned(),
                file: file.to_owned(),
                package: package.to_owned(),
                ids,
                runs_corpus,
            });
        }
    }
}

/// The name of the function that `line` declares.
fn function(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// What stands in brackets after `MQTT-`.
fn brackets(comment: &str) -> impl Iterator<Item = &str> {
    comment.split("[MQTT-").skip(1).map(|rest| rest.split(']').next().unwrap_or_default())
}

/// `3.1.0-1` or `3.1.0-1 v3.1.1`.
fn id(named: &str) -> Option<Id> {
    let (number, edition) = match named.split_once(' ') {
        None => (named, Edition::V5),
        Some((number, edition)) => (number, Edition::from_name(edition.strip_prefix('v')?)?),
    };
    is_number(number).then(|| Id { edition, number: number.to_owned() })
}

/// Digits with dots between them, a dash, digits.
fn is_number(number: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    number.split_once('-').is_some_and(|(section, last)| section.split('.').all(digits) && digits(last))
}

/// The numbers of the statements in a text without brackets.
pub(super) fn numbers(text: &str) -> impl Iterator<Item = String> {
    let ends = |c: char| !(c.is_ascii_digit() || c == '.' || c == '-');
    let number = move |rest: &str| rest.split(ends).next().unwrap_or_default().to_owned();
    text.split("MQTT-").skip(1).map(number).filter(|number| is_number(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_above_and_inside_a_test_name_statements_and_no_others_do() {
        let text = "\
/// [MQTT-9.9.9-9]
fn helper() {}

/// Holds [MQTT-3.1.0-1] and [MQTT-3.1.0-2 v3.1.1].
#[test]
#[should_panic]
fn first() {
    // [MQTT-1.5.4-1]
    let text = \"[MQTT-8.8.8-8]\";
}

// [MQTT-7.7.7-7]
fn between() {}

mod inner {
    // [malformed corpus]
    #[tokio::test(flavor = \"multi_thread\")]
    async fn second() {
        if true {
        }
        check(); // [MQTT-4.2-1]
    }
    // [MQTT-6.6.6-6]
}
";
        let (mut tests, mut problems) = (Vec::new(), Vec::new());
        source(text, "x.rs", "p", &mut tests, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let shown: Vec<(&str, Vec<String>, bool)> =
            tests.iter().map(|t| (t.name.as_str(), t.ids.iter().map(Id::to_string).collect(), t.runs_corpus)).collect();
        let id = str::to_owned;
        assert_eq!(
            shown,
            [
                ("first", vec![id("[MQTT-3.1.0-2 v3.1.1]"), id("[MQTT-1.5.4-1]"), id("[MQTT-3.1.0-1]")], false),
                ("second", vec![id("[MQTT-4.2-1]")], true),
            ]
        );
    }

    #[test]
    fn what_looks_like_a_statement_and_is_none_is_told() {
        for bad in ["3.1.2-11.2", "3.1.2", "3.1.2-1 v3.1", "3.1.2-1..4", ""] {
            let (mut tests, mut problems) = (Vec::new(), Vec::new());
            source(&format!("/// [MQTT-{bad}]\n#[test]\nfn f() {{}}\n"), "x.rs", "p", &mut tests, &mut problems);
            assert_eq!((tests.len(), problems.len()), (0, 1), "{bad}");
        }
    }

    #[test]
    fn a_line_of_the_corpus_may_name_a_section_and_a_statement() {
        let of = |text| numbers(text).collect::<Vec<_>>();
        assert_eq!(of("2.2.2.2 / MQTT-4.13.1-1"), ["4.13.1-1"]);
        assert_eq!(of("MQTT-1.5.4-1, MQTT-1.5.4-2"), ["1.5.4-1", "1.5.4-2"]);
        assert!(of("3.14.1").is_empty());
    }
}
