//! The format of one write-ahead log file of RocksDB 11 (its `db/log_format.h`).
//!
//! ```text
//! file      blocks of 32,768 bytes; a tail of a block too short for a header is zero
//! fragment  offset 0  crc32c   u32 little endian, masked, over the bytes from offset 6 on
//!                  4  length   u16 little endian, of the data
//!                  6  type     u8   1-4 full, first, middle, last; 5-8 the same in a reusable file
//!                  7  number   u32 little endian, of the file; only in types 5-8
//!               7/11  data
//! record    the data of one full, or of a first, any middle and a last fragment:
//!           sequence number u64, count u32, both little endian, then `count` operations
//! ```
//!
//! In a reused file, fragments of its former life stand behind the end; they carry another file number. A
//! MANIFEST is such a file too, with types 1-4 and records of other contents.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::super::super::error::LogError;

const BLOCK_LEN: usize = 32_768;
/// Blocks read at once.
const READ_BLOCKS: usize = 32;
const HEAD_LEN: usize = 7;
const REUSABLE_HEAD_LEN: usize = 11;
const END_MISSING: &str = "a record whose end is missing";
const CRC_MASK_DELTA: u32 = 0xa282_ead8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Full,
    First,
    Middle,
    Last,
}

/// What stands at one place of a block.
#[derive(Debug)]
enum Found<'a> {
    /// An intact fragment of this file.
    Fragment { part: Part, data: &'a [u8], len: usize },
    /// An intact fragment of the file's former life.
    Former { len: usize },
    /// Zeros up to the end of the block.
    Zeros,
    /// An intact fragment of a type that this build does not write.
    Foreign { kind: u8 },
    /// None of these.
    Bad(&'static str),
}

fn le32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn look(at: &[u8], number: u64) -> Found<'_> {
    let Some(&[_, _, _, _, l0, l1, kind]) = at.first_chunk::<HEAD_LEN>() else {
        return Found::Bad("a header that is cut short");
    };
    if kind == 0 && l0 == 0 && l1 == 0 {
        return if at.iter().all(|b| *b == 0) { Found::Zeros } else { Found::Bad("an empty header before data") };
    }
    let (part, head_len) = match kind {
        1 => (Some(Part::Full), HEAD_LEN),
        2 => (Some(Part::First), HEAD_LEN),
        3 => (Some(Part::Middle), HEAD_LEN),
        4 => (Some(Part::Last), HEAD_LEN),
        5 => (Some(Part::Full), REUSABLE_HEAD_LEN),
        6 => (Some(Part::First), REUSABLE_HEAD_LEN),
        7 => (Some(Part::Middle), REUSABLE_HEAD_LEN),
        8 => (Some(Part::Last), REUSABLE_HEAD_LEN),
        // The bits of RocksDB's later types: odd ones have the longer header.
        9.. => (None, if kind > 10 && kind & 1 == 1 { REUSABLE_HEAD_LEN } else { HEAD_LEN }),
        0 => return Found::Bad("a fragment of type 0"),
    };
    let len = head_len + usize::from(u16::from_le_bytes([l0, l1]));
    let (Some(masked), Some(summed), Some(data)) = (le32(at), at.get(6..len), at.get(head_len..len)) else {
        return Found::Bad("a length that runs past the end of its block or of the file");
    };
    let rotated = masked.wrapping_sub(CRC_MASK_DELTA);
    if crc32c::crc32c(summed) != rotated.rotate_left(15) {
        return Found::Bad("a checksum that does not match");
    }
    let former = head_len == REUSABLE_HEAD_LEN && at.get(7..11).and_then(le32) != Some(number as u32);
    match part {
        _ if former => Found::Former { len },
        Some(part) => Found::Fragment { part, data, len },
        None => Found::Foreign { kind },
    }
}

/// The first place at or behind `from` where an intact fragment of file `number` begins.
fn next_intact(block: &[u8], from: usize, number: u64) -> Option<usize> {
    let in_file = (number as u32).to_le_bytes();
    (from..block.len()).find(|at| {
        let Some(rest) = block.get(*at..) else { return false };
        // Checked first, because a checksum over every byte's guess would take long.
        let plausible = match rest.get(6) {
            Some(1..=4) => true,
            Some(5..=8) => rest.get(7..11) == Some(&in_file),
            _ => false,
        };
        plausible && matches!(look(rest, number), Found::Fragment { .. })
    })
}

/// Bytes before a record's operations: sequence number and count.
const RECORD_HEAD_LEN: usize = 12;

/// A record whose last fragment has not come yet. Its head may be spread over fragments too.
#[derive(Clone, Copy, Debug)]
struct Open {
    offset: u64,
    head: [u8; RECORD_HEAD_LEN],
    have: usize,
}

impl Open {
    fn new(offset: u64, data: &[u8]) -> Self {
        let mut open = Self { offset, head: [0; RECORD_HEAD_LEN], have: 0 };
        open.more(data);
        open
    }

    fn more(&mut self, data: &[u8]) {
        for (to, from) in self.head.iter_mut().skip(self.have).zip(data) {
            *to = *from;
            self.have += 1;
        }
    }

    /// Sequence number and count, once the whole head is there.
    fn head(&self) -> Option<(u64, u32)> {
        let (sequence, count) = self.head.split_first_chunk()?;
        (self.have == RECORD_HEAD_LEN).then_some((u64::from_le_bytes(*sequence), le32(count)?))
    }
}

/// Takes the findings of a scan, in the order of the file.
pub(super) trait Findings {
    /// A whole, intact record, with the first 12 bytes of its data as sequence number and count.
    fn record(&mut self, offset: u64, end: u64, head: Option<(u64, u32)>) -> Result<(), LogError>;
    /// The bytes at `offset` are no intact record.
    fn tear(&mut self, offset: u64, what: &dyn Fn() -> String);
    /// Whether this file had a tear before.
    fn is_torn(&self) -> bool;
    /// An intact record begins behind a tear.
    fn begins_behind_tear(&mut self, offset: u64, sequence: Option<u64>) -> Result<(), LogError>;
}

struct Scan<'a, F> {
    path: &'a Path,
    number: u64,
    findings: &'a mut F,
    open: Option<Open>,
}

/// Reads the file of this number from its beginning and tells `findings` what is there.
pub(super) fn scan(path: &Path, number: u64, findings: &mut impl Findings) -> Result<(), LogError> {
    let mut file = File::open(path).map_err(LogError::io("opening", path))?;
    let mut buffer = vec![0; BLOCK_LEN * READ_BLOCKS];
    let mut scan = Scan { path, number, findings, open: None };
    let mut offset = 0;
    loop {
        let mut have = 0;
        while let Some(room) = buffer.get_mut(have..).filter(|r| !r.is_empty()) {
            match file.read(room) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(LogError::io("reading", path)(e)),
            }
        }
        for block in buffer.get(..have).unwrap_or_default().chunks(BLOCK_LEN) {
            scan.block(block, offset)?;
            offset += block.len() as u64;
        }
        if have < buffer.len() {
            break;
        }
    }
    if let Some(open) = scan.open {
        scan.findings.tear(open.offset, &|| END_MISSING.to_owned());
    }
    Ok(())
}

impl<F: Findings> Scan<'_, F> {
    fn block(&mut self, block: &[u8], base: u64) -> Result<(), LogError> {
        let mut at = 0;
        while let Some(rest) = block.get(at..).filter(|r| r.len() >= HEAD_LEN) {
            let offset = base + at as u64;
            match look(rest, self.number) {
                Found::Fragment { part, data, len } => {
                    self.fragment(part, data, offset, offset + len as u64)?;
                    at += len;
                }
                Found::Former { len } => {
                    self.tear(offset, "the file's former life");
                    at += len;
                }
                Found::Zeros => {
                    if rest.len() >= REUSABLE_HEAD_LEN {
                        self.tear(offset, "zeros");
                    }
                    return Ok(());
                }
                Found::Foreign { kind } => {
                    return Err(LogError::Unsupported {
                        file: self.path.to_path_buf(),
                        offset,
                        what: format!("a fragment of type {kind}"),
                    });
                }
                Found::Bad(what) => {
                    self.tear(offset, what);
                    // A length that may be damaged leads nowhere: look for the next intact fragment byte by
                    // byte, so that no intact record behind the damage is overlooked.
                    match next_intact(block, at + 1, self.number) {
                        Some(next) => at = next,
                        None => return Ok(()),
                    }
                }
            }
        }
        if block.get(at..).is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
            self.tear(base + at as u64, "a header that is cut short");
        }
        Ok(())
    }

    fn tear(&mut self, offset: u64, what: &'static str) {
        let at = self.open.take().map_or(offset, |open| open.offset);
        let say = || if at == offset { what.to_owned() } else { format!("a record with {what} at byte {offset}") };
        self.findings.tear(at, &say);
    }

    fn fragment(&mut self, part: Part, data: &[u8], offset: u64, end: u64) -> Result<(), LogError> {
        if matches!(part, Part::Middle | Part::Last) {
            let Some(open) = self.open.as_mut() else {
                // Behind a tear these are the remains of the torn record.
                self.tear(offset, "the middle of a record without its beginning");
                return Ok(());
            };
            open.more(data);
        } else {
            if let Some(open) = self.open.take() {
                self.findings.tear(open.offset, &|| END_MISSING.to_owned());
            }
            let open = Open::new(offset, data);
            if self.findings.is_torn() {
                return self.findings.begins_behind_tear(offset, open.head().map(|(sequence, _)| sequence));
            }
            self.open = Some(open);
        }
        if matches!(part, Part::Full | Part::Last)
            && let Some(open) = self.open.take()
        {
            self.findings.record(open.offset, end, open.head())?;
        }
        Ok(())
    }
}
