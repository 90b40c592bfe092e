//! What clippy cannot say about the tree: paths of somebody's machine, leftovers, files that hold two ideas, waits
//! by the clock in tests, links and pages that lead nowhere.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Above this a file is asked whether it is two ideas; above [`LINES_MAX`] the answer is yes.
const LINES_WANTED: usize = 500;
const LINES_MAX: usize = 700;

/// Folders that are ours; everything else at the top is a file.
const FOLDERS: [&str; 11] =
    ["store", "raft", "http-admin", "node", "jepsen", "bench", "interop", "examples", "docs", ".ci", ".config"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// Every text file of ours with its path from the root.
fn files() -> Vec<(String, String)> {
    let root = root();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "Cargo.lock") {
            paths.push(path);
        }
    }
    for folder in FOLDERS {
        if root.join(folder).is_dir() {
            walk(&root.join(folder), &mut paths);
        }
    }
    paths.sort();
    let text = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        Some((name, std::fs::read_to_string(path).ok()?))
    };
    paths.into_iter().filter_map(text).collect()
}

/// `file:line: text` of every line for which `is_bad` holds.
fn lines_where(wanted: impl Fn(&str) -> bool, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files().iter().filter(|(name, _)| wanted(name)) {
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| is_bad(line)) {
            found.push(format!("{name}:{number}: {}", line.trim()));
        }
    }
    found
}

fn is_this_file(name: &str) -> bool {
    name == "jepsen/tests/tidy.rs"
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn nothing_names_a_path_of_somebodys_machine() {
    let bad = ["/work/", "/farm/", "/root/", "/home/", ".library", "/tmp/plan"];
    let found = lines_where(|name| !is_this_file(name), |line| bad.iter().any(|b| line.contains(b)));
    assert_none("paths of a machine", &found);
}

#[test]
fn nothing_is_left_to_be_fixed_later() {
    let bad = ["FIXME", "TODO", "XXX", "todo!(", "unimplemented!(", "<!--"];
    let found = lines_where(|name| !is_this_file(name), |line| bad.iter().any(|b| line.contains(b)));
    assert_none("leftovers (write an issue, or do it)", &found);
}

#[test]
fn no_test_waits_by_the_clock() {
    // A testkit is where waiting for a condition is written once: between two looks it may pause.
    let is_test = |name: &str| {
        name.contains("/tests/") && name.ends_with(".rs") && !name.contains("/testkit/") && !is_this_file(name)
    };
    assert_none("wait for a condition with a generous bound instead", &lines_where(is_test, |l| l.contains("sleep(")));
}

#[test]
fn no_test_is_switched_off() {
    // Not a test of its own: a helper process that a test starts.
    let is_off = |line: &str| line.contains("#[ignore") && !line.contains("the fault disk's own process");
    let found = lines_where(|name| name.ends_with(".rs") && !is_this_file(name), is_off);
    assert_none("tests that do not run", &found);
}

#[test]
fn a_file_is_one_idea() {
    let mut too_long = Vec::new();
    for (name, text) in files().into_iter().filter(|(name, _)| name.ends_with(".rs")) {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            too_long.push(format!("{name}: {lines} lines, at most {LINES_MAX}"));
        } else if lines > LINES_WANTED {
            println!("warning: {name} has {lines} lines: is it still one idea?");
        }
    }
    assert_none("too long", &too_long);
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut silent = Vec::new();
    let is_test = |name: &str| name.ends_with("tests.rs");
    for (name, text) in files().into_iter().filter(|(name, _)| name.ends_with(".rs") && !is_test(name)) {
        let first = text.lines().find(|line| !line.is_empty() && !line.starts_with("#![")).unwrap_or("//!");
        if !first.starts_with("//!") {
            silent.push(name);
        }
    }
    assert_none("no paragraph at the top", &silent);
}

/// Targets of the Markdown links in `text`, without anchors and without what lies outside the tree.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("](") {
        let rest = &text[at + 2..];
        let target = &rest[..rest.find(')').unwrap_or(0)];
        let path = target.split('#').next().unwrap_or_default();
        if !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:") {
            found.push(path.to_owned());
        }
    }
    found
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_linked() {
    let root = root();
    let mut broken = Vec::new();
    let mut linked: BTreeSet<PathBuf> = BTreeSet::new();
    let pages: Vec<_> = files().into_iter().filter(|(name, _)| name.ends_with(".md")).collect();
    for (name, text) in &pages {
        let folder = root.join(name).parent().unwrap().to_owned();
        for link in links(text) {
            match folder.join(&link).canonicalize() {
                Ok(path) => drop(linked.insert(path)),
                Err(_) => broken.push(format!("{name}: {link}")),
            }
        }
    }
    assert_none("broken links", &broken);
    let is_start = |name: &str| ["README.md", "CHANGELOG.md"].contains(&name);
    let unlinked: Vec<String> = pages
        .iter()
        .filter(|(name, _)| !is_start(name) && !linked.contains(&root.join(name).canonicalize().unwrap()))
        .map(|(name, _)| name.clone())
        .collect();
    assert_none("pages that no page links to", &unlinked);
}

/// Paths into our folders that stand between backticks.
fn quoted_paths(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|quoted| {
        let is_plain = quoted.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.".contains(&b));
        let first = quoted.split('/').next().unwrap_or_default();
        is_plain && quoted.contains('/') && FOLDERS.contains(&first)
    })
}

#[test]
fn the_pages_name_files_that_exist() {
    let mut missing = Vec::new();
    for (name, text) in files().into_iter().filter(|(name, _)| name.ends_with(".md")) {
        let gone = quoted_paths(&text).filter(|path| !root().join(path).exists());
        missing.extend(gone.map(|path| format!("{name}: {path}")));
    }
    assert_none("files that pages name and that do not exist", &missing);
}

#[test]
fn the_pages_name_tests_that_exist() {
    let guarantees = std::fs::read_to_string(root().join("docs/GUARANTEES.md")).unwrap();
    let tests: String = files().into_iter().filter(|(name, _)| name.ends_with(".rs")).map(|(_, text)| text).collect();
    let is_name = |word: &str| word.matches('_').count() >= 5 && !word.contains('/');
    let words = guarantees.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '…'));
    let missing: Vec<String> = words
        .filter(|word| is_name(word))
        .filter(|word| !tests.contains(&format!("fn {}", word.trim_end_matches('…'))))
        .map(str::to_owned)
        .collect();
    assert_none("tests that docs/GUARANTEES.md names and that do not exist", &missing);
}

#[test]
fn the_code_blocks_of_the_readme_name_targets_that_exist() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let missing: Vec<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("make "))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter(|target| !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))))
        .map(str::to_owned)
        .collect();
    assert_none("make targets of the README that do not exist", &missing);
}
