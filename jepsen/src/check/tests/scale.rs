//! Long histories, with reused packet identifiers, pass too; and how long the checks take on them, which is printed and
//! not tested.

use std::path::PathBuf;
use std::time::Instant;

use crate::check::check_file;
use crate::check::testkit::broker::{World, run};
use crate::check::verdict::{Expectations, Verdict};
use crate::history::read::Writer;

/// With a folder in `QUORATE_SCALE` histories of a hundred times the length are written there and judged.
#[test]
fn a_long_history_passes() {
    let kept = std::env::var_os("QUORATE_SCALE").map(PathBuf::from);
    let temporary = tempfile::tempdir().unwrap();
    let (folder, steps) = match &kept {
        Some(folder) => (folder.as_path(), 250_000),
        None => (temporary.path(), 2_500),
    };
    for (name, faults_one_in, has_churn) in [("faulty", 400, false), ("wild", 400, true)] {
        for eighths in [1, 2, 4, 8] {
            let world = World { steps: steps * eighths, faults_one_in, has_churn, settled_every: 100, ..World::FAULTY };
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
