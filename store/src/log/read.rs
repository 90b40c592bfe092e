//! Reading: from memory where the records still are, else from the disk, never with a lock held at the disk.
//!
//! What is not in the tail is flushed, so it is on disk. A truncation that comes in between makes the
//! reader start over: nobody gets records of two histories in one answer.

use super::disk::DiskReader;
use super::writer::Core;
use super::{LogError, LogRecord};

/// Records from `from` up to `to_exclusive`, as [`super::LogEngine::read`] says.
pub(super) fn read<R: DiskReader>(
    core: &Core<R>,
    from: u64,
    to_exclusive: u64,
    bytes_max: usize,
) -> Result<Vec<LogRecord>, LogError> {
    let mut out = Vec::new();
    let mut bytes_left = bytes_max;
    let mut next = from;
    let mut truncations = None;
    let mut missing = None;
    loop {
        let disk_end = {
            let state = core.lock();
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let begin = state.first();
            if truncations.is_some_and(|t| t != state.truncations) || next < begin {
                out.clear();
                bytes_left = bytes_max;
                next = from.max(begin);
                missing = None;
            }
            truncations = Some(state.truncations);
            let end = state.last.map_or(0, |last| last.saturating_add(1)).min(to_exclusive);
            if next >= end || (bytes_left == 0 && !out.is_empty()) {
                return Ok(out);
            }
            if next >= state.tail.first() {
                state.tail.read(next, end, &mut bytes_left, &mut out);
                return Ok(out);
            }
            end.min(state.tail.first())
        };
        if let Some(index) = missing {
            return Err(LogError::Hole { dir: core.dir.clone(), index });
        }
        next = core.reader.read(next, disk_end, &mut bytes_left, &mut out)?;
        // Missing for good, or only because it was purged or truncated meanwhile: the state knows.
        missing = (next < disk_end && bytes_left > 0).then_some(next);
    }
}
