//! Opening: what is refused, and what the log holds when it is not.
//!
//! All segments are read, in the order of their numbers, before anything is changed. A batch is torn only by a power
//! cut in the middle of its write, and the next one is written only when it is synced, so at most one batch is torn,
//! and nothing of this log stands behind it. The log is refused when
//!
//! 1. a segment is missing between others, or its header is not intact, or says another number, group or length,
//! 2. the sequence numbers of the batches have a gap, or a header does not repeat the state that the batches before it
//!    made,
//! 3. an intact batch stands behind a place that is none,
//! 4. records are missing between those that are purged and the last, or
//! 5. the last batch lies before the one that the mark in `synced` knows to have been synced.
//!
//! The last file may be one that was prepared and never begun; then it holds no batch that could be the next. A torn
//! end is overwritten with zeros, so that nothing of it is ever taken for a batch, and all that was read is synced
//! before it is believed: who wrote it may have been killed before it was.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::disk::refuse_other_engine;
use super::super::mark::{self, Mark};
use super::super::{EngineKind, LogError, LogOptions};
use super::disk::{begin_segment, random_generation, segment_bytes};
use super::file::{self, PAGE, Segment, end_of_nonzero, new_path, segment_path, spare_path};
use super::format::{self, Batch, FORMAT, Header, HeaderFields, Item, Items, SECTOR, UnknownItem, whole_sectors};
use super::index::{Contents, Index, Place};
use crate::files::{create_dir_synced, sync_dir};

const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// An opened log.
pub(super) struct Opened {
    pub(super) index: Index,
    pub(super) current: Arc<Segment>,
    /// Where the next batch begins in it.
    pub(super) offset: u64,
    /// The next batch's number.
    pub(super) sequence: u64,
    pub(super) mark: Mark,
    /// Files that wait for their next use.
    pub(super) spares: Vec<u64>,
    /// The next segment, prepared.
    pub(super) ready: Option<File>,
    pub(super) lock: File,
}

/// Opens or creates the log in `dir`.
pub(super) fn open(dir: &Path, options: &LogOptions) -> Result<Opened, LogError> {
    create_dir_synced(dir).map_err(LogError::io("creating", dir))?;
    refuse_other_engine(dir, EngineKind::Segments)?;
    let lock = lock(dir)?;
    let synced = mark::read(dir)?;
    let names = Names::list(dir)?;
    let mut replay = Replay::new(dir, options.group);
    replay.read_all(&names.segments, synced)?;

    let unbegun = replay.unbegun.take();
    let segment_bytes = segment_bytes(options);
    let spares = names.tidy(dir, segment_bytes)?;
    let Replay { mut index, expected, at, .. } = replay;
    let (current, offset, ready) = match at {
        Some(at) => {
            let (segment, offset) = at.settle(dir)?;
            (segment, offset, unbegun.map(|number| prepared(dir, number, segment_bytes)).transpose()?.flatten())
        }
        None => {
            let (segment, offset) = first_segment(dir, options.group, segment_bytes)?;
            index.begin(&segment);
            (segment, offset, None)
        }
    };
    let sequence = expected.unwrap_or(1);
    let mut mark = Mark::open(dir)?;
    mark.note(sequence.saturating_sub(1));
    Ok(Opened { index, current, offset, sequence, mark, spares, ready, lock })
}

/// Nobody else may write here. A process that this one starts has the locks of this one until it has become what it is
/// to be, so a lock that was just given up is waited for.
fn lock(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(LogError::io("opening", &path))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(LogError::io("locking", &path)(error)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
        }
    }
    let error = std::io::Error::new(std::io::ErrorKind::WouldBlock, "another process has the log open");
    Err(LogError::io("locking", &path)(error))
}

/// The first segment of a new log.
fn first_segment(dir: &Path, group: u16, file_bytes: u64) -> Result<(Arc<Segment>, u64), LogError> {
    let fields = HeaderFields { group, generation: random_generation(), number: 1, batch_first: 1, file_bytes };
    let begin = || {
        let header = format::header(fields, &Contents::default().items());
        let file = file::create(dir, 1, file_bytes, &AtomicBool::new(false))?;
        let (Some(header), Some(file)) = (header, file) else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        begin_segment(file, fields, &header)
    };
    begin().map_err(LogError::io("creating the first segment in", dir))
}

/// The file of a segment that was never begun, ready for use; `None` when it has another size, and is removed.
fn prepared(dir: &Path, number: u64, segment_bytes: u64) -> Result<Option<File>, LogError> {
    let path = segment_path(dir, number);
    let prepare = || {
        if fs::metadata(&path)?.len() != segment_bytes {
            fs::remove_file(&path)?;
            sync_dir(dir)?;
            return Ok(None);
        }
        let file = file::open(&path)?;
        // What is left of a torn header.
        file::write_zeros(&file, 0, PAGE)?;
        file.sync_data()?;
        Ok(Some(file))
    };
    prepare().map_err(LogError::io("preparing", &path))
}

/// The files in the folder.
struct Names {
    segments: Vec<u64>,
    spares: Vec<u64>,
    unfinished: Vec<u64>,
}

impl Names {
    fn list(dir: &Path) -> Result<Self, LogError> {
        let mut out = Self { segments: Vec::new(), spares: Vec::new(), unfinished: Vec::new() };
        for entry in fs::read_dir(dir).map_err(LogError::io("listing", dir))? {
            let path = entry.map_err(LogError::io("listing", dir))?.path();
            let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else { continue };
            // The names that are given here, and no other way to write the number.
            match &path {
                path if *path == segment_path(dir, number) => out.segments.push(number),
                path if *path == spare_path(dir, number) => out.spares.push(number),
                path if *path == new_path(dir, number) => out.unfinished.push(number),
                _ => {}
            }
        }
        out.segments.sort_unstable();
        Ok(out)
    }

    /// Removes what was not finished, and spares of another size. Returns the spares that are left.
    fn tidy(self, dir: &Path, segment_bytes: u64) -> Result<Vec<u64>, LogError> {
        let tidy = || {
            for number in &self.unfinished {
                fs::remove_file(new_path(dir, *number))?;
            }
            let mut spares = Vec::new();
            for number in &self.spares {
                let path = spare_path(dir, *number);
                if fs::metadata(&path)?.len() == segment_bytes {
                    spares.push(*number);
                } else {
                    fs::remove_file(&path)?;
                }
            }
            // Names that were seen must not go any more, either.
            sync_dir(dir)?;
            Ok(spares)
        };
        tidy().map_err(LogError::io("tidying", dir))
    }
}

/// The end of the batches of a segment.
#[derive(Debug)]
struct End {
    segment: Arc<Segment>,
    offset: u64,
    /// What stands there.
    what: &'static str,
    /// Where what is not zero ends.
    nonzero: u64,
}

impl End {
    /// Overwrites what is behind the end, which nobody was ever told of, and makes what is before it durable.
    fn settle(self, dir: &Path) -> Result<(Arc<Segment>, u64), LogError> {
        let Self { segment, offset, nonzero, .. } = self;
        let settle = || {
            if nonzero > offset {
                file::write_zeros(&segment.file, offset, nonzero - offset)?;
            }
            segment.file.sync_data()
        };
        settle().map_err(LogError::io("settling the end of", segment_path(dir, segment.number)))?;
        Ok((segment, offset))
    }
}

/// Reads segments in order.
struct Replay<'a> {
    dir: &'a Path,
    group: u16,
    index: Index,
    /// The sequence number that the next batch must have; `None` before the first segment.
    expected: Option<u64>,
    /// The end of the segment that was read last.
    at: Option<End>,
    /// The last file, when it has no header.
    unbegun: Option<u64>,
}

impl<'a> Replay<'a> {
    fn new(dir: &'a Path, group: u16) -> Self {
        Self { dir, group, index: Index::default(), expected: None, at: None, unbegun: None }
    }

    fn damaged(&self, number: u64, offset: u64, what: impl Into<String>) -> LogError {
        LogError::Damaged { file: segment_path(self.dir, number), offset, what: what.into() }
    }

    fn read_all(&mut self, numbers: &[u64], synced: u64) -> Result<(), LogError> {
        let mut bytes = Vec::new();
        for (at, number) in numbers.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|before| numbers.get(before));
            if let Some(missing) = before.map(|before| before.saturating_add(1)).filter(|next| next != number) {
                return Err(self.damaged(missing, 0, format!("the file is missing, segment {number} is there")));
            }
            let file = self.read_file(*number, &mut bytes)?;
            self.segment(*number, file, &bytes, at + 1 == numbers.len())?;
        }
        self.check_end(synced)
    }

    fn read_file(&self, number: u64, bytes: &mut Vec<u8>) -> Result<File, LogError> {
        let path = segment_path(self.dir, number);
        let read = |bytes: &mut Vec<u8>| {
            let file = file::open(&path)?;
            let len = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
            bytes.clear();
            bytes.resize(len, 0);
            file.read_exact_at(bytes, 0)?;
            Ok(file)
        };
        read(bytes).map_err(LogError::io("reading", &path))
    }

    fn segment(&mut self, number: u64, file: File, bytes: &[u8], is_last: bool) -> Result<(), LogError> {
        let Some(header) = Header::decode(bytes) else {
            if !is_last {
                return Err(self.damaged(number, 0, "no intact header, and another segment follows"));
            }
            self.unbegun = Some(number);
            let generation = self.at.as_ref().map(|at| at.segment.generation.wrapping_add(1));
            return match intact_batches(bytes, 0, generation).next() {
                None => Ok(()),
                Some((at, batch)) => {
                    let what = format!("no intact header, but batch {} stands at byte {at}", batch.sequence);
                    Err(self.damaged(number, 0, what))
                }
            };
        };
        let (generation, offset) = (header.generation, whole_sectors(header.len as u64));
        self.join(number, header, bytes.len() as u64)?;
        let segment = Arc::new(Segment { number, generation, file, bytes: bytes.len() as u64 });
        self.index.begin(&segment);
        let end = self.batches(&segment, offset, bytes)?;
        self.check_nothing_behind(&end, bytes)?;
        self.at = Some(end);
        Ok(())
    }

    /// Whether the segment goes on where the one before it ends.
    fn join(&mut self, number: u64, header: Header<'_>, file_bytes: u64) -> Result<(), LogError> {
        if header.format != FORMAT {
            return Err(LogError::Format { dir: self.dir.to_path_buf(), found: header.format, known: FORMAT });
        }
        if header.number != number {
            return Err(self.damaged(number, 32, format!("it is segment {}", header.number)));
        }
        if self.at.as_ref().is_some_and(|at| at.segment.generation.wrapping_add(1) != header.generation) {
            return Err(self.damaged(number, 24, "it belongs to another log"));
        }
        if header.group != self.group {
            return Err(self.damaged(number, 18, format!("it belongs to group {}, not {}", header.group, self.group)));
        }
        if header.file_bytes != file_bytes {
            let offset = file_bytes.min(header.file_bytes);
            let what = format!("the file has {file_bytes} bytes, {} belong there", header.file_bytes);
            return Err(self.damaged(number, offset, what));
        }
        let items = self.known(number, 0, header.items)?;
        let contents = Contents::of_header(items.into_iter()).map_err(|what| self.damaged(number, 0, what))?;
        let first = header.batch_first;
        match (self.expected, &self.at) {
            (Some(expected), Some(at)) if first > expected => {
                let what =
                    format!("{}, where batch {expected} belongs: segment {number} begins with batch {first}", at.what);
                return Err(self.damaged(at.segment.number, at.offset, what));
            }
            (Some(expected), _) if first != expected => {
                return Err(self.damaged(number, 40, format!("it begins with batch {first} where {expected} belongs")));
            }
            (Some(_), _) if contents != self.index.contents => {
                return Err(self.damaged(number, 0, "its header says another state than the batches before it made"));
            }
            (Some(_), _) => {}
            (None, _) => {
                self.index.contents = contents;
                self.expected = Some(first);
            }
        }
        Ok(())
    }

    /// Items of something intact that this build writes.
    fn known<'b>(&self, number: u64, offset: u64, items: Items<'b>) -> Result<Vec<Item<'b>>, LogError> {
        items.collect::<Result<_, UnknownItem>>().map_err(|_| LogError::Unsupported {
            file: segment_path(self.dir, number),
            offset,
            what: "an item of an unknown kind".to_owned(),
        })
    }

    /// Takes the batches of a segment up to the first place that is not the next one.
    fn batches(&mut self, segment: &Arc<Segment>, from: u64, bytes: &[u8]) -> Result<End, LogError> {
        let mut offset = from;
        let what = loop {
            let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
            let expected = self.expected.unwrap_or(1);
            let batch = match Batch::decode(rest, segment.generation) {
                Ok(batch) if batch.sequence == expected => batch,
                Ok(_) => break "a batch with another number",
                Err(what) => break what,
            };
            let items = self.known(segment.number, offset, batch.items)?;
            let place = Place { segment: Arc::clone(segment), offset, len: batch.len };
            let followed = self.index.batch(place, items.into_iter());
            followed.map_err(|what| self.damaged(segment.number, offset, what))?;
            offset = offset.saturating_add(whole_sectors(batch.len as u64));
            self.expected = Some(expected.saturating_add(1));
        };
        let nonzero = end_of_nonzero(bytes) as u64;
        Ok(End { segment: Arc::clone(segment), offset, what, nonzero })
    }

    /// What is torn was not synced, so nothing was written behind it.
    fn check_nothing_behind(&self, end: &End, bytes: &[u8]) -> Result<(), LogError> {
        let from = usize::try_from(end.offset).unwrap_or(usize::MAX);
        match intact_batches(bytes, from, Some(end.segment.generation)).next() {
            None => Ok(()),
            Some((at, batch)) => {
                let what = format!("{}, and batch {} stands intact at byte {at}", end.what, batch.sequence);
                Err(self.damaged(end.segment.number, end.offset, what))
            }
        }
    }

    /// All segments are read.
    fn check_end(&self, synced: u64) -> Result<(), LogError> {
        if let Some(unbegun) = self.unbegun.filter(|number| self.at.is_none() && *number > 1) {
            return Err(self.damaged(unbegun - 1, 0, format!("the file is missing, segment {unbegun} is there")));
        }
        let last = self.expected.map_or(0, |next| next.saturating_sub(1));
        if last < synced {
            let (number, offset, what) = match &self.at {
                Some(at) => (at.segment.number, at.offset, at.what),
                None => (self.unbegun.unwrap_or(1), 0, "no segment"),
            };
            let what = format!("{what}, after batch {last}, but everything up to batch {synced} was synced");
            return Err(self.damaged(number, offset, what));
        }
        if let Some(index) = self.index.hole() {
            return Err(LogError::Hole { dir: self.dir.to_path_buf(), index });
        }
        if let Some(at) = self.at.as_ref().filter(|at| at.nonzero > at.offset) {
            let file = segment_path(self.dir, at.segment.number);
            tracing::info!(
                file = %file.display(), offset = at.offset, what = at.what, batch = last,
                "what stands behind the last batch is overwritten: an earlier use of the file, or a write that was cut off"
            );
        }
        Ok(())
    }
}

/// The intact batches that begin at a multiple of 512 bytes from `from` on, of this generation or of any.
fn intact_batches(bytes: &[u8], from: usize, generation: Option<u64>) -> impl Iterator<Item = (usize, Batch<'_>)> {
    (from.next_multiple_of(SECTOR)..bytes.len()).step_by(SECTOR).filter_map(move |at| {
        let rest = bytes.get(at..)?;
        let its = Batch::generation_at(rest)?;
        if generation.is_some_and(|generation| generation != its) {
            return None;
        }
        Some((at, Batch::decode(rest, its).ok()?))
    })
}
