//! The chain of sequence numbers over all live write-ahead logs, and what breaks it.

use std::path::{Path, PathBuf};

use super::super::super::error::LogError;
use super::Floor;
use super::blocks::Findings;

/// The first place of a file where its bytes stop being intact records.
#[derive(Clone, Debug)]
struct Tear {
    file: PathBuf,
    offset: u64,
    what: String,
}

/// Takes the findings of a scan, file after file, in order.
#[derive(Debug)]
pub(super) struct Chain {
    floor: Floor,
    /// The sequence number that the next record must have; `None` before the first.
    expected: Option<u64>,
    /// The file that is being read; before the first, the folder.
    file: PathBuf,
    /// The last place that was not intact and behind which the chain has not gone on yet.
    tear: Option<Tear>,
    /// Whether it lies in the file that is being read.
    torn_here: bool,
    /// Where the last intact record ends.
    end: u64,
}

impl Chain {
    pub(super) fn new(dir: &Path, floor: Floor) -> Self {
        Self { floor, expected: None, file: dir.to_path_buf(), tear: None, torn_here: false, end: 0 }
    }

    pub(super) fn begin_file(&mut self, path: &Path) {
        self.file = path.to_path_buf();
        self.torn_here = false;
        self.end = 0;
    }

    /// Takes one more record: `count` sequence numbers from `sequence` on.
    fn follow(&mut self, offset: u64, end: u64, sequence: u64, count: u32) -> Result<(), LogError> {
        let flushed_next = self.floor.sequence.saturating_add(1);
        let follows = match self.expected {
            Some(expected) => sequence == expected,
            // The first file's beginning is torn: nothing of it was synced, or the chain does not join on.
            None if self.tear.is_some() => sequence == flushed_next,
            None => sequence <= flushed_next,
        };
        if !follows {
            let expected = self.expected.unwrap_or(flushed_next);
            return Err(match &self.tear {
                Some(tear) => LogError::Damaged {
                    file: tear.file.clone(),
                    offset: tear.offset,
                    what: format!(
                        "{}, and {} goes on with sequence number {sequence} where {expected} belongs",
                        tear.what,
                        self.file.display()
                    ),
                },
                None => LogError::Damaged {
                    file: self.file.clone(),
                    offset,
                    what: format!("sequence number {sequence} where {expected} belongs: records before it are missing"),
                },
            });
        }
        // A tear in an older file, behind which the chain goes on without a gap, was the torn end of an
        // earlier power cut.
        self.tear = None;
        self.expected = Some(sequence.saturating_add(u64::from(count)));
        self.end = end;
        Ok(())
    }

    /// All files are read: the last sequence number there is.
    pub(super) fn finish(self, synced: u64) -> Result<u64, LogError> {
        let last = self.expected.map_or(self.floor.sequence, |next| next.saturating_sub(1));
        let known = self.floor.sequence.max(synced);
        if last < known {
            let (file, offset, what) = match self.tear {
                Some(tear) => (tear.file, tear.offset, tear.what),
                None => (self.file, self.end, "the end".to_owned()),
            };
            let what = format!("{what}, after sequence number {last}, but everything up to {known} was synced");
            return Err(LogError::Damaged { file, offset, what });
        }
        if let Some(tear) = self.tear {
            tracing::info!(
                file = %tear.file.display(), offset = tear.offset, what = tear.what, sequence = last,
                "the log ends in a record that was never acknowledged; it is dropped"
            );
        }
        Ok(last)
    }
}

impl Findings for Chain {
    fn record(&mut self, offset: u64, end: u64, head: Option<(u64, u32)>) -> Result<(), LogError> {
        match head {
            Some((sequence, count)) => self.follow(offset, end, sequence, count),
            None => {
                self.tear(offset, &|| "a record too short for its head".to_owned());
                Ok(())
            }
        }
    }

    /// Only the first such place of a file counts.
    fn tear(&mut self, offset: u64, what: &dyn Fn() -> String) {
        if !self.torn_here {
            self.torn_here = true;
            self.tear = Some(Tear { file: self.file.clone(), offset, what: what() });
        }
    }

    fn is_torn(&self) -> bool {
        self.torn_here
    }

    /// What tore was not the last record, so it was synced.
    fn begins_behind_tear(&mut self, offset: u64, sequence: Option<u64>) -> Result<(), LogError> {
        let (at, what) = self.tear.as_ref().map_or((offset, "damage"), |t| (t.offset, t.what.as_str()));
        let number = sequence.map(|s| format!(" (sequence number {s})")).unwrap_or_default();
        let what = format!("{what}, and another record{number} begins intact behind it, at byte {offset}");
        Err(LogError::Damaged { file: self.file.clone(), offset: at, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(sequence: u64) -> Chain {
        Chain::new(Path::new("/log"), Floor { wal_min: 0, sequence })
    }

    fn torn(c: &mut Chain) {
        c.tear(9, &|| "torn".into());
    }

    #[test]
    fn records_join_on_to_the_tables_and_to_each_other() {
        let mut c = chain(10);
        c.begin_file(Path::new("/log/1.log"));
        c.follow(0, 5, 8, 2).unwrap();
        c.follow(5, 9, 10, 3).unwrap();
        c.follow(9, 9, 13, 0).unwrap();
        assert_eq!(c.finish(12).unwrap(), 12);
        assert!(chain(10).follow(0, 5, 12, 1).is_err(), "11 is missing");
    }

    #[test]
    fn a_gap_between_files_is_damage_and_a_tear_without_one_is_not() {
        let mut c = chain(0);
        c.follow(0, 9, 1, 2).unwrap();
        torn(&mut c);
        c.begin_file(Path::new("/log/2.log"));
        let error = c.follow(0, 5, 4, 1).unwrap_err().to_string();
        assert!(error.contains("/log at byte 9: torn"), "{error}");
        c.follow(0, 5, 3, 1).unwrap();
        assert_eq!(c.finish(0).unwrap(), 3);
    }

    #[test]
    fn a_tear_before_the_first_record_must_join_exactly() {
        for (next, ok) in [(10, false), (11, true), (12, false)] {
            let mut c = chain(10);
            torn(&mut c);
            c.begin_file(Path::new("/log/2.log"));
            assert_eq!(c.follow(0, 5, next, 1).is_ok(), ok, "{next}");
        }
    }

    #[test]
    fn an_end_before_what_was_synced_is_damage() {
        let ended = |floor, synced| {
            let mut c = chain(floor);
            c.follow(0, 9, 1, 5).unwrap();
            torn(&mut c);
            c.finish(synced)
        };
        assert_eq!(ended(0, 5).unwrap(), 5);
        assert!(ended(0, 6).is_err());
        assert!(ended(6, 0).is_err());
        assert_eq!(chain(7).finish(7).unwrap(), 7);
        assert!(chain(7).finish(8).is_err());
    }
}
