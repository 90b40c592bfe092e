//! The thread that prepares the next segment file ahead of need, and takes back those that are purged.
//!
//! It owns every file in the folder that has no header: the next segment, under its number already, and spares. A file
//! gets its number only when the header of its former life is zeroed on disk, so that a segment without an intact
//! header is one that was never begun.
//!
//! After a failure it does nothing more; the writer hears of it when it needs a file. Only for want of room it is told to
//! try once more then: there may be room again, and nothing was written that anybody relies on.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::super::LogError;
use super::file::{self, PAGE, segment_path, spare_path};
use crate::files::sync_dir;

/// What thread and writer share.
#[derive(Default)]
struct Desk {
    /// Purged segments that nobody has taken back yet, oldest first.
    purged: VecDeque<u64>,
    /// The next segment is wanted.
    wanted: Option<u64>,
    ready: Option<(u64, File)>,
    /// There was no room for the next segment.
    no_room: Option<LogError>,
    failed: Option<LogError>,
}

struct Shared {
    dir: PathBuf,
    segment_bytes: u64,
    spares_max: usize,
    desk: Mutex<Desk>,
    changed: Condvar,
    closing: AtomicBool,
}

/// The writer's handle; the thread ends with it.
pub(super) struct Spares {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spares {
    /// Starts the thread. `spares` are the numbers of files that wait for their next use, `ready` is the next segment,
    /// if there is one already.
    pub(super) fn start(
        dir: &Path,
        segment_bytes: u64,
        spares_max: usize,
        spares: Vec<u64>,
        ready: Option<(u64, File)>,
    ) -> Result<Self, LogError> {
        let desk = Desk { ready, ..Desk::default() };
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            segment_bytes,
            spares_max,
            desk: Mutex::new(desk),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        let keeper = Keeper { shared: Arc::clone(&shared), spares };
        let thread = std::thread::Builder::new()
            .name("log-segments".to_owned())
            .spawn(move || keeper.run())
            .map_err(LogError::io("starting the segments' thread of", dir))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The segment `number` will be wanted.
    pub(super) fn prepare(&self, number: u64) {
        let mut desk = self.shared.desk();
        if desk.ready.as_ref().is_none_or(|(ready, _)| *ready != number) {
            desk.ready = None;
            desk.wanted = Some(number);
        }
        drop(desk);
        self.shared.changed.notify_all();
    }

    /// The file of segment `number`, which was asked for before. Waits for it.
    pub(super) fn take(&self, number: u64) -> Result<File, LogError> {
        let mut desk = self.shared.desk();
        let mut tried_again = false;
        loop {
            if let Some(error) = &desk.failed {
                return Err(error.clone());
            }
            if let Some(error) = desk.no_room.take() {
                if std::mem::replace(&mut tried_again, true) {
                    return Err(error);
                }
                desk.wanted = Some(number);
                self.shared.changed.notify_all();
            }
            match desk.ready.take() {
                Some((ready, file)) if ready == number => return Ok(file),
                _ => desk = self.shared.changed.wait(desk).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// A segment of another size under the number of the one that was prepared.
    pub(super) fn create(&self, number: u64, bytes: u64) -> Result<File, LogError> {
        drop(self.take(number)?);
        let dir = &self.shared.dir;
        let file = file::create(dir, number, bytes, &self.shared.closing);
        file.map_err(LogError::io("creating a segment in", dir))?.ok_or(LogError::Closed)
    }

    /// Segments that are not needed any more, oldest first.
    pub(super) fn give_back(&self, numbers: Vec<u64>) {
        if !numbers.is_empty() {
            self.shared.desk().purged.extend(numbers);
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        {
            // Under the lock, or the thread could miss it between looking and waiting.
            let _desk = self.shared.desk();
            self.shared.closing.store(true, Relaxed);
        }
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(dir = %self.shared.dir.display(), "the segments' thread panicked");
        }
    }
}

/// What the thread does next.
enum Job {
    TakeBack(u64),
    Prepare(u64),
}

/// The thread.
struct Keeper {
    shared: Arc<Shared>,
    /// Names of files that wait for their next use.
    spares: Vec<u64>,
}

impl Keeper {
    fn run(mut self) {
        while let Some(job) = self.next() {
            let done = match job {
                Job::TakeBack(number) => self.take_back(number).map(|()| None),
                Job::Prepare(number) => self.prepare(number).map(|file| file.map(|file| (number, file))),
            };
            let mut desk = self.shared.desk();
            match done {
                Ok(Some(ready)) => desk.ready = Some(ready),
                Ok(None) => {}
                Err(error) => {
                    let is_room = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                    let error = LogError::io("preparing segments in", &self.shared.dir)(error);
                    tracing::error!(dir = %self.shared.dir.display(), %error, "the next segment is not prepared");
                    *(if is_room { &mut desk.no_room } else { &mut desk.failed }) = Some(error);
                }
            }
            drop(desk);
            self.shared.changed.notify_all();
        }
    }

    /// Takes back before it prepares, so that a file that is free is used before a new one is made.
    fn next(&self) -> Option<Job> {
        let mut desk = self.shared.desk();
        loop {
            if self.shared.closing.load(Relaxed) || desk.failed.is_some() {
                return None;
            }
            if let Some(number) = desk.purged.pop_front() {
                return Some(Job::TakeBack(number));
            }
            if let Some(number) = desk.wanted.take() {
                return Some(Job::Prepare(number));
            }
            desk = self.shared.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Each is gone durably before the next goes: the numbers that are left must have no gap.
    fn take_back(&mut self, number: u64) -> io::Result<()> {
        let dir = &self.shared.dir;
        let path = segment_path(dir, number);
        let is_wanted = self.spares.len() < self.shared.spares_max;
        if is_wanted && fs::metadata(&path)?.len() == self.shared.segment_bytes {
            fs::rename(&path, spare_path(dir, number))?;
            self.spares.push(number);
        } else {
            fs::remove_file(&path)?;
        }
        sync_dir(dir)
    }

    fn prepare(&mut self, number: u64) -> io::Result<Option<File>> {
        let Shared { dir, segment_bytes, closing, .. } = &*self.shared;
        let Some(spare) = self.spares.pop() else {
            return file::create(dir, number, *segment_bytes, closing);
        };
        let path = spare_path(dir, spare);
        let file = file::open(&path)?;
        file::write_zeros(&file, 0, PAGE)?;
        file.sync_data()?;
        fs::rename(&path, segment_path(dir, number))?;
        sync_dir(dir)?;
        Ok(Some(file))
    }
}
