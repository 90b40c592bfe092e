//! Writes a history down while it happens: many threads, one clock, one file.
//!
//! The clock is read under the lock that orders the lines, so the file is in the order of its times, and what a client
//! writes down before it sends comes before everything that the sending brings about.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::event::{Client, Event, OpId, What};

/// Remarks that are kept of one run.
const NOTES_MAX: usize = 1_000;

/// Where all events of a run go. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    begin: Instant,
    ops: AtomicU64,
    out: Mutex<Out>,
    notes: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Out {
    file: BufWriter<File>,
    events: u64,
    /// By nemesis.
    faults: BTreeMap<String, u64>,
    not_installed: BTreeMap<String, u64>,
    failed: Option<io::Error>,
}

impl Recorder {
    /// Into a new file. The clock starts.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let (faults, not_installed) = (BTreeMap::new(), BTreeMap::new());
        let out = Out { file, events: 0, faults, not_installed, failed: None };
        Ok(Self(Arc::new(Shared {
            begin: Instant::now(),
            ops: AtomicU64::new(1),
            out: Mutex::new(out),
            notes: Mutex::default(),
        })))
    }

    /// A name for an operation.
    #[must_use]
    pub fn op(&self) -> OpId {
        OpId(self.0.ops.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes down what happens to a client now, or what the nemesis does.
    pub fn record(&self, client: Option<Client>, what: What) {
        let mut out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner);
        let at_ns = u64::try_from(self.0.begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match &what {
            What::Fault { nemesis, .. } => *out.faults.entry(nemesis.clone()).or_default() += 1,
            What::NotInstalled { nemesis, .. } => *out.not_installed.entry(nemesis.clone()).or_default() += 1,
            _ => {}
        }
        let event = Event { at_ns, client, what };
        let written = serde_json::to_string(&event).map_err(io::Error::from).and_then(|l| writeln!(out.file, "{l}"));
        match written {
            Ok(()) => out.events += 1,
            // A history with a hole proves nothing: the first failure is the run's result.
            Err(e) => drop(out.failed.get_or_insert(e)),
        }
    }

    /// Keeps a remark that has no event, for the report.
    pub fn note(&self, remark: &str) {
        let mut notes = self.0.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NOTES_MAX {
            let at = self.0.begin.elapsed();
            notes.push(format!("{:.3} s: {remark}", at.as_secs_f64()));
        }
    }

    /// The remarks so far.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many faults were made, by nemesis.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<String, u64> {
        self.0.out.lock().unwrap_or_else(PoisonError::into_inner).faults.clone()
    }

    /// How many could not be made, by nemesis.
    #[must_use]
    pub fn not_installed(&self) -> BTreeMap<String, u64> {
        self.0.out.lock().unwrap_or_else(PoisonError::into_inner).not_installed.clone()
    }

    /// Everything so far is in the file. How many events.
    ///
    /// # Errors
    /// When any of them could not be written.
    pub fn flush(&self) -> io::Result<u64> {
        let mut out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner);
        match out.failed.take() {
            Some(e) => Err(e),
            None => out.file.flush().map(|()| out.events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_many_threads_are_whole_and_in_the_order_of_their_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let recorder = Recorder::create(&path).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let recorder = recorder.clone();
                std::thread::spawn(move || {
                    for _ in 0..100 {
                        let op = recorder.op();
                        recorder.record(Some(Client(n)), What::Fail { op, code: None });
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(recorder.flush().unwrap(), 400);
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 400);
        assert!(events.is_sorted_by_key(|e| e.at_ns));
        let ops: std::collections::BTreeSet<_> =
            events.iter().map(|e| if let What::Fail { op, .. } = e.what { op } else { unreachable!() }).collect();
        assert_eq!(ops.len(), 400);
    }
}
