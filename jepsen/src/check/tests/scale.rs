//! How long the checks take on long histories. Not a promise that a test keeps: it prints what it measures.

use std::path::PathBuf;
use std::time::Instant;

use crate::check::check_file;
use crate::check::testkit::broker::{World, run};
use crate::check::verdict::{Expectations, Verdict};
use crate::history::read::Writer;

/// Histories of about 125,000, 250,000, 500,000 and 1,000,000 events, into the folder that `QUORATE_SCALE` names, by
/// default that of temporary files.
#[test]
#[ignore = "writes 300 MB and takes a while; for measuring"]
fn a_million_events() {
    let folder = std::env::var_os("QUORATE_SCALE").map_or_else(std::env::temp_dir, PathBuf::from);
    for (name, faults_one_in, has_churn) in [("faulty", 400, false), ("wild", 400, true)] {
        for eighths in [1, 2, 4, 8] {
            let world =
                World { steps: 250_000 * eighths, faults_one_in, has_churn, settled_every: 100, ..World::FAULTY };
            let history = run(world, 1);
            let path = folder.join(format!("{name}-{eighths}.jsonl"));
            let mut writer = Writer::create(&path).unwrap();
            history.events.iter().for_each(|event| writer.write(event).unwrap());
            writer.flush().unwrap();
            let began = Instant::now();
            let report = check_file(&path, &Expectations::default()).unwrap();
            println!("{}: {} events in {} ms", path.display(), history.events.len(), began.elapsed().as_millis());
            assert_eq!(report.verdict, Verdict::Pass, "{report}");
        }
    }
}
