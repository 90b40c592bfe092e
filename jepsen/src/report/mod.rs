//! docs/PROOF.md from what runs left behind: `run.json` of each, the simulator's summary, the seeded bugs, the ledger.
//!
//! The figures of the runs are kept beside the page (`docs/proof/runs.jsonl`), so that the page can be written again
//! without running for hours.

mod page;
pub(crate) mod plot;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::check::verdict::Figures;

/// So many plots are shown, of runs with different faults.
const PLOTS_MAX: usize = 6;

/// What is known of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    workload: String,
    nemesis: String,
    seed: u64,
    time_s: u64,
    nodes: usize,
    outcome: String,
    figures: Option<Figures>,
    faults: BTreeMap<String, u64>,
    #[serde(default)]
    not_installed: BTreeMap<String, u64>,
}

/// What the simulator did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Simulated {
    seeds: u64,
    violations: u64,
    hours: f64,
    simulated_hours: f64,
    acknowledged: u64,
    delivered: u64,
    faults: u64,
    command: String,
}

/// A mistake that was put into the broker on purpose.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Seeded {
    name: String,
    /// Number in docs/GUARANTEES.md.
    guarantee: u8,
    what: String,
    /// `sim` or `run`; none: nothing noticed it.
    caught_by: Option<String>,
    command: String,
    /// How many seeds it took.
    seeds: Option<u64>,
    /// How many seconds it took.
    seconds: Option<u64>,
    violation: String,
    /// Why nothing noticed it.
    why: String,
}

/// Where things are, from the root of the repository.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Folders of runs to add; each holds `run.json`, or folders that do.
    pub(crate) runs: Vec<PathBuf>,
    /// Whether what earlier runs left is forgotten.
    pub(crate) is_fresh: bool,
    /// `docs`.
    pub(crate) docs: PathBuf,
}

fn invalid(path: &Path, e: &serde_json::Error) -> io::Error {
    io::Error::other(format!("{}: {e}", path.display()))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|e| invalid(path, &e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    }
}

fn records(path: &Path) -> io::Result<Vec<Record>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    text.lines().map(|line| serde_json::from_str(line).map_err(|e| invalid(path, &e))).collect()
}

/// Folders with a `run.json`: this one, or those in it, by name.
fn runs_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if folder.join("run.json").exists() {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.join("run.json").exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the page. How many runs it tells of.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn write(places: &Places) -> io::Result<usize> {
    let proof = places.docs.join("proof");
    fs::create_dir_all(&proof)?;
    let kept = proof.join("runs.jsonl");
    let mut runs = if places.is_fresh { Vec::new() } else { records(&kept)? };
    let mut shown: BTreeSet<String> = BTreeSet::new();
    let mut plots: Vec<(String, Record)> = Vec::new();
    for folder in &places.runs {
        for dir in runs_in(folder)? {
            let Some(record) = read::<Record>(&dir.join("run.json"))? else { continue };
            let plot = dir.join("plot.svg");
            if plots.len() < PLOTS_MAX && plot.exists() && shown.insert(record.nemesis.clone()) {
                let name = format!("run-{}.svg", record.seed);
                fs::copy(&plot, proof.join(&name))?;
                plots.push((name, record.clone()));
            }
            runs.push(record);
        }
    }
    let mut lines = String::new();
    for record in &runs {
        lines.push_str(&serde_json::to_string(record)?);
        lines.push('\n');
    }
    fs::write(&kept, lines)?;
    if plots.is_empty() {
        plots = drawn(&proof, &runs)?;
    }
    let page = page::Page {
        runs: &runs,
        simulated: read(&proof.join("sim.json"))?,
        seeded: read(&places.docs.join("../jepsen/seeded-bugs.json"))?.unwrap_or_default(),
        ledger: fs::read_to_string(proof.join("ledger.md")).unwrap_or_default(),
        plots: &plots,
    };
    fs::write(places.docs.join("PROOF.md"), page.text())?;
    Ok(runs.len())
}

/// The plots that an earlier page has.
fn drawn(proof: &Path, runs: &[Record]) -> io::Result<Vec<(String, Record)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proof)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let seed = name.strip_prefix("run-").and_then(|rest| rest.strip_suffix(".svg")).and_then(|n| n.parse().ok());
        if let Some(run) = runs.iter().find(|run| Some(run.seed) == seed) {
            found.push((name, run.clone()));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
