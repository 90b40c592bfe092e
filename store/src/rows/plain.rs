//! Rows in memory over one file: for simulations, in which a node must not have threads of its own.
//!
//! It keeps RocksDB's promise and no more (see [`super::rocks`]): what is written is in memory, a flush makes all of it
//! durable at once, a crash falls back to the last flush. A flush writes everything, so this is for small states only.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::key::Key;
use super::{Change, MemRows, RowBatch, RowRead, RowStore, RowVisitor, RowsError};
use crate::files::write_atomically;

/// The file in the folder of the rows: for each row the lengths of key and value, u32 LE, then both; at the end
/// the xxh3 of all that, u64 LE.
const FILE: &str = "plain-rows";

/// Reads them.
#[derive(Clone, Debug)]
pub struct PlainReader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    rows: RwLock<MemRows>,
}

/// See the module.
#[derive(Debug)]
pub struct PlainRows {
    reader: PlainReader,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RowsError + '_ {
    |source| RowsError::Io { path: path.display().to_string(), source }
}

fn damaged(path: &Path) -> RowsError {
    failed(path)(io::Error::new(io::ErrorKind::InvalidData, "the file is damaged"))
}

fn encode(rows: &MemRows) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in rows.iter() {
        for part in [key.len(), value.len()] {
            bytes.extend_from_slice(&u32::try_from(part).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
    }
    let sum = xxh3_64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<RowBatch> {
    let (mut rows, sum) = bytes.split_last_chunk::<8>()?;
    if xxh3_64(rows) != u64::from_le_bytes(*sum) {
        return None;
    }
    let mut batch = Vec::new();
    while !rows.is_empty() {
        let (key, rest) = rows.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value) as usize)?;
        batch.push((Key::from_encoded(key), Change::New(Bytes::copy_from_slice(value).into())));
        rows = rest;
    }
    Some(batch.into_iter().collect())
}

impl PlainRows {
    /// Reads what was last flushed in `dir`, which is created.
    ///
    /// # Errors
    /// When the folder cannot be used or the file is damaged.
    pub fn open(dir: &Path) -> Result<Self, RowsError> {
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        let path = dir.join(FILE);
        let mut rows = MemRows::default();
        match std::fs::read(&path) {
            Ok(bytes) => rows.write(decode(&bytes).ok_or_else(|| damaged(&path))?)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&path)(e)),
        }
        let shared = Shared { dir: dir.to_owned(), rows: RwLock::new(rows) };
        Ok(Self { reader: PlainReader(Arc::new(shared)) })
    }

    /// Whether the rows in `dir` are of this kind.
    #[must_use]
    pub fn are_in(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// A reader.
    #[must_use]
    pub fn reader(&self) -> PlainReader {
        self.reader.clone()
    }
}

impl PlainReader {
    fn rows(&self) -> RwLockReadGuard<'_, MemRows> {
        self.0.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, dir: &Path) -> Result<(), RowsError> {
        let path = dir.join(FILE);
        write_atomically(&path, &encode(&self.rows())).map_err(failed(&path))
    }

    /// Makes all that is written durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&self) -> Result<(), RowsError> {
        self.write_to(&self.0.dir)
    }

    /// Flushes, and writes all rows into `to`, a folder that does not exist yet.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn checkpoint(&self, to: &Path) -> Result<(), RowsError> {
        self.flush()?;
        std::fs::create_dir(to).map_err(failed(to))?;
        self.write_to(to)
    }

    /// All rows as they are now.
    #[must_use]
    pub fn frozen(&self) -> MemRows {
        self.rows().clone()
    }
}

impl RowRead for PlainReader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        self.rows().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        self.rows().scan(from, to, f)
    }
}

impl RowRead for PlainRows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, RowsError> {
        self.reader.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], f: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        self.reader.scan(from, to, f)
    }
}

impl RowStore for PlainRows {
    fn write(&mut self, rows: RowBatch) -> Result<(), RowsError> {
        self.reader.0.rows.write().unwrap_or_else(PoisonError::into_inner).write(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(rows: &mut PlainRows, key: u8, value: u8) {
        rows.write(RowBatch::set([(Key::from_encoded(&[key]), Some(Bytes::from(vec![value])))])).unwrap();
    }

    #[test]
    fn a_crash_falls_back_to_the_last_flush() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = PlainRows::open(dir.path()).unwrap();
        put(&mut rows, 1, 1);
        rows.reader().flush().unwrap();
        put(&mut rows, 1, 2);
        put(&mut rows, 2, 2);
        drop(rows);
        let rows = PlainRows::open(dir.path()).unwrap();
        assert_eq!(rows.get(&[1]).unwrap().as_deref(), Some(&[1][..]));
        assert_eq!(rows.get(&[2]).unwrap(), None);
        let copy = dir.path().join("copy");
        rows.reader().checkpoint(&copy).unwrap();
        assert!(PlainRows::are_in(&copy));
        assert_eq!(PlainRows::open(&copy).unwrap().reader().frozen(), rows.reader().frozen());
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = PlainRows::open(dir.path()).unwrap();
        put(&mut rows, 1, 1);
        rows.reader().flush().unwrap();
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(PlainRows::open(dir.path()).is_err());
    }
}
