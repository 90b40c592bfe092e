//! Reading: from memory where the records still are, else from RocksDB, never with a lock held at the disk.
//!
//! What is not in the tail is flushed, so it is in RocksDB. A truncation that comes in between makes the
//! reader start over: nobody gets records of two histories in one answer.

use bytes::Bytes;
use rocksdb::ReadOptions;

use super::writer::Core;
use super::{LogError, LogRecord, keys};

/// Records from `from` up to `to_exclusive`, as [`super::LogEngine::read`] says.
pub(super) fn read(core: &Core, from: u64, to_exclusive: u64, bytes_max: usize) -> Result<Vec<LogRecord>, LogError> {
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
        next = from_disk(core, next, disk_end, &mut bytes_left, &mut out)?;
        // Missing for good, or only because it was purged or truncated meanwhile: the state knows.
        missing = (next < disk_end && bytes_left > 0).then_some(next);
    }
}

/// Adds records from RocksDB to `out` and returns the index after them. Sets `bytes_left` to 0 when the bound
/// stopped it.
fn from_disk(
    core: &Core,
    from: u64,
    to_exclusive: u64,
    bytes_left: &mut usize,
    out: &mut Vec<LogRecord>,
) -> Result<u64, LogError> {
    let group = core.options.group;
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(keys::record(group, to_exclusive));
    // Read once or twice and purged: the block cache is for what is read often.
    options.fill_cache(false);
    let mut rows = core.db.raw_iterator_opt(options);
    rows.seek(keys::record(group, from));
    let mut next = from;
    while let Some((key, value)) = rows.item() {
        if keys::record_index(group, key) != Some(next) {
            return Ok(next);
        }
        let body = keys::body(key, value).map_err(|what| LogError::Record {
            dir: core.dir.clone(),
            row: format!("record {next}"),
            what,
        })?;
        if body.len() > *bytes_left && !out.is_empty() {
            *bytes_left = 0;
            return Ok(next);
        }
        *bytes_left = bytes_left.saturating_sub(body.len());
        out.push(LogRecord { index: next, bytes: Bytes::copy_from_slice(body) });
        next += 1;
        rows.next();
    }
    rows.status().map_err(LogError::rocks("reading", &core.dir))?;
    Ok(next)
}
