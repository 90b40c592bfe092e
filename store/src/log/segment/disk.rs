//! The two sides of the segments: the writer's, with the durability contract, and the readers'.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::super::disk::{Disk, DiskReader, Logged};
use super::super::mark::Mark;
use super::super::writer::Op;
use super::super::{LogError, LogOptions, LogRecord};
use super::file::{self, PAGE, Segment, segment_path};
use super::format::{self, Batch, HeaderFields, NewBatch, whole_sectors};
use super::index::{Index, Place, records};
use super::open::{Opened, open};
use super::spares::Spares;

/// The smallest segment: a header with an ordinary state, and a few batches.
const SEGMENT_BYTES_MIN: u64 = 2 * PAGE;

/// The index, as writer and readers share it. Its lock is only ever held for memory operations.
type SharedIndex = Arc<Mutex<Index>>;

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The writer's side.
pub(super) struct SegmentDisk {
    dir: PathBuf,
    group: u16,
    segment_bytes: u64,
    index: SharedIndex,
    /// The segment that is being filled.
    current: Arc<Segment>,
    /// Where its next batch begins.
    offset: u64,
    /// The next batch's number.
    sequence: u64,
    mark: Mark,
    spares: Spares,
    /// Memory for the heads of a batch.
    scratch: Vec<u8>,
    /// Locked while the log is open.
    _lock: File,
}

/// The readers' side.
pub(super) struct SegmentReader {
    dir: PathBuf,
    index: SharedIndex,
}

/// The size of segment files under these options.
pub(super) fn segment_bytes(options: &LogOptions) -> u64 {
    // A multiple of pages, so that a write can always end with one.
    let most = u64::MAX / 2 / PAGE * PAGE;
    options.segment_bytes.clamp(SEGMENT_BYTES_MIN, most).next_multiple_of(PAGE)
}

/// The generation of a log's first segment. Nobody can guess it: what a client sends, and what a file held before, is
/// never taken for a batch of this log because it stands in the right place.
#[expect(clippy::disallowed_types, reason = "chance is wanted, and replicas do not see it")]
pub(super) fn random_generation() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Writes the header of a segment, into `file`, which has none, and syncs it.
/// Returns where the first batch begins, too.
pub(super) fn begin_segment(file: File, fields: HeaderFields, header: &[u8]) -> io::Result<(Arc<Segment>, u64)> {
    let HeaderFields { generation, number, file_bytes: bytes, .. } = fields;
    let len = header.len() as u64;
    file::write_parts(&file, 0, len, std::iter::once(header), bytes)?;
    file.sync_data()?;
    Ok((Arc::new(Segment { number, generation, file, bytes }), whole_sectors(len)))
}

impl SegmentDisk {
    pub(super) fn open(dir: &Path, options: &LogOptions) -> Result<(Self, SegmentReader, Logged), LogError> {
        let Opened { index, current, offset, sequence, mark, spares, ready, lock } = open(dir, options)?;
        let logged = Logged { state: index.contents.state(), begin: index.contents.begin };
        let segment_bytes = segment_bytes(options);
        let next = current.number.saturating_add(1);
        let spares = Spares::start(dir, segment_bytes, options.recycled_wals, spares, ready.map(|file| (next, file)))?;
        let index = Arc::new(Mutex::new(index));
        let mut disk = Self {
            dir: dir.to_path_buf(),
            group: options.group,
            segment_bytes,
            index: Arc::clone(&index),
            current,
            offset,
            sequence,
            mark,
            spares,
            scratch: Vec::new(),
            _lock: lock,
        };
        disk.spares.prepare(next);
        disk.give_back();
        Ok((disk, SegmentReader { dir: dir.to_path_buf(), index }, logged))
    }

    /// **The durability contract, and the only place in this engine that writes batches.** When this returns `Ok`,
    /// every operation in `batch`, and all written before it, survives the loss of power: the batch stands as a whole
    /// in the current segment, at `self.offset`, and fdatasync of that file has returned; file, blocks, name and header
    /// were synced before the first batch went in, so nothing else needs to reach the disk; no batch before this one
    /// is unsynced; and the check at open will refuse a log in which it is missing. No waiter may be called, and no
    /// vote, append or truncation be reported to Raft, on any other ground. When this returns an error nobody knows
    /// what is on disk: it is never tried again.
    ///
    /// `sync` is false only in the tests that must see the loss (`SkipSync`).
    fn write_synced(&mut self, batch: &NewBatch, ops: &[Op], sync: bool) -> io::Result<()> {
        let Segment { file, bytes, .. } = &*self.current;
        file::write_parts(file, self.offset, u64::from(batch.len), batch.parts(format::items(ops)), *bytes)?;
        if sync {
            file.sync_data()?;
            // Deliberately not synced: a lower bound of what is, see `mark`.
            self.mark.note(self.sequence);
        }
        Ok(())
    }

    /// Goes to the next segment, for a batch of `len` bytes. The current one gets no mark of its end: the next one's
    /// header says with which batch it goes on.
    fn next_segment(&mut self, len: u64) -> Result<(), LogError> {
        let too_long = || LogError::write(io::Error::other("the state is too long for the header of a segment"));
        let number = self.current.number.checked_add(1).ok_or_else(too_long)?;
        let header = |file_bytes| {
            let generation = self.current.generation.wrapping_add(1);
            let fields = HeaderFields { group: self.group, generation, number, batch_first: self.sequence, file_bytes };
            let bytes = format::header(fields, &lock(&self.index).contents.items()).ok_or_else(too_long)?;
            Ok((fields, bytes))
        };
        let (mut fields, mut bytes) = header(self.segment_bytes)?;
        let need = whole_sectors(bytes.len() as u64).saturating_add(len);
        let file = if need <= self.segment_bytes {
            self.spares.take(number)?
        } else {
            let need = need.checked_next_multiple_of(PAGE).ok_or_else(too_long)?;
            (fields, bytes) = header(need)?;
            self.spares.create(number, need)?
        };
        let (segment, offset) = begin_segment(file, fields, &bytes).map_err(LogError::write)?;
        lock(&self.index).begin(&segment);
        (self.current, self.offset) = (segment, offset);
        self.spares.prepare(number.saturating_add(1));
        Ok(())
    }

    /// Takes back the segments that hold nothing any more. What they said is repeated in the header of a later one,
    /// which is synced.
    fn give_back(&mut self) {
        let purged = lock(&self.index).give_up(self.current.number);
        self.spares.give_back(purged);
    }
}

impl Disk for SegmentDisk {
    type Reader = SegmentReader;

    fn write(&mut self, ops: &[Op], sync: bool) -> Result<(), LogError> {
        let too_long = || LogError::write(io::Error::other("a write of more than 4 GiB"));
        let scratch = std::mem::take(&mut self.scratch);
        let mut batch = NewBatch::new(format::items(ops), scratch).ok_or_else(too_long)?;
        let len = u64::from(batch.len);
        let fits = |offset: u64| offset.checked_add(len).is_some_and(|end| end <= self.current.bytes);
        if !fits(self.offset) {
            self.next_segment(len)?;
        }
        batch.seal(self.current.generation, self.sequence, format::items(ops));
        self.write_synced(&batch, ops, sync).map_err(LogError::write)?;
        let place = Place {
            segment: Arc::clone(&self.current),
            offset: self.offset,
            len: usize::try_from(batch.len).map_err(LogError::write)?,
        };
        lock(&self.index).batch(place, format::items(ops)).map_err(|what| LogError::Damaged {
            file: segment_path(&self.dir, self.current.number),
            offset: self.offset,
            what,
        })?;
        self.offset = self.offset.saturating_add(whole_sectors(len));
        self.sequence = self.sequence.saturating_add(1);
        self.scratch = batch.into_heads();
        self.give_back();
        Ok(())
    }
}

impl SegmentReader {
    /// The bytes of a batch.
    fn bytes_of(&self, place: &Place) -> Result<Vec<u8>, LogError> {
        let mut bytes = vec![0; place.len];
        let read = place.segment.file.read_exact_at(&mut bytes, place.offset);
        read.map_err(LogError::io("reading", segment_path(&self.dir, place.segment.number)))?;
        Ok(bytes)
    }

    fn damaged(&self, index: u64, place: &Place, what: &str) -> LogError {
        let file = segment_path(&self.dir, place.segment.number);
        LogError::Record {
            dir: self.dir.clone(),
            row: format!("record {index}"),
            what: format!("{what} in {} at byte {}", file.display(), place.offset),
        }
    }
}

impl DiskReader for SegmentReader {
    fn read(
        &self,
        from: u64,
        to_exclusive: u64,
        bytes_left: &mut usize,
        out: &mut Vec<LogRecord>,
    ) -> Result<u64, LogError> {
        let mut next = from;
        while next < to_exclusive {
            let Some((place, end)) = lock(&self.index).find(next) else { return Ok(next) };
            let bytes = self.bytes_of(&place)?;
            let batch = match Batch::decode(&bytes, place.segment.generation) {
                Ok(batch) => batch,
                // Purged meanwhile, and the file is in its next life.
                Err(_) if !lock(&self.index).is_live(&place.segment) => return Ok(next),
                Err(what) => return Err(self.damaged(next, &place, what)),
            };
            let items: Vec<_> = batch.items.flatten().collect();
            let found = records(items.into_iter(), next, end.min(to_exclusive));
            if found.is_empty() {
                return Ok(next);
            }
            for body in found {
                if body.len() > *bytes_left && !out.is_empty() {
                    *bytes_left = 0;
                    return Ok(next);
                }
                *bytes_left = bytes_left.saturating_sub(body.len());
                // Copied, so that one record does not keep the bytes of its whole batch.
                out.push(LogRecord { index: next, bytes: Bytes::copy_from_slice(body) });
                next = next.saturating_add(1);
            }
        }
        Ok(next)
    }
}
