//! `quorate-conformance filter` prints the nextest expression of the tests that hold a normative statement of MQTT;
//! `quorate-conformance write REPORT` writes docs/CONFORMANCE.md with the results of a JUnit report. `make conformance`
//! does both.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use quorate_jepsen::conformance::{Conformance, PAGE, Results};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned);
    match run(&root, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(said) => {
            eprintln!("quorate-conformance: {said}");
            ExitCode::FAILURE
        }
    }
}

fn run(root: &Path, arguments: &[&str]) -> Result<(), String> {
    let conformance = Conformance::load(root).map_err(|e| e.to_string())?;
    match *arguments {
        ["filter"] => println!("{}", conformance.filter()),
        ["write", report] => {
            let xml = std::fs::read_to_string(report).map_err(|e| format!("{report}: {e}"))?;
            let page = conformance.page(&Results::of_report(&xml));
            let path = root.join(PAGE);
            std::fs::write(&path, &page).map_err(|e| format!("{}: {e}", path.display()))?;
            println!("wrote {PAGE}");
            if page.contains("**failed**") {
                return Err(format!("tests failed, see {PAGE}"));
            }
        }
        _ => return Err("usage: quorate-conformance filter | write JUNIT-REPORT".to_owned()),
    }
    if conformance.problems().is_empty() { Ok(()) } else { Err(conformance.problems().join("\n")) }
}
