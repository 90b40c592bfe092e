//! The manifest of a snapshot: lines of text, so that an operator can read it, parsed strictly.
//!
//! ```text
//! quorate-snapshot 1
//! index 4711
//! term 7
//! meta 0a0b0c                        opaque, hexadecimal; may be empty
//! file 1048576 89abcdef 000012.sst   length, CRC32C, name; any number of these, in order of names
//! end 01234567                       CRC32C of all lines before this one
//! ```
//!
//! A manifest also comes from the network: names are checked so that they stay in their folder, and everything
//! is bounded.

use std::fmt::Write;

use bytes::Bytes;

use super::{SnapshotError, SnapshotId, SnapshotMeta};

/// The manifest's name in the snapshot's folder.
pub const FILE: &str = "MANIFEST.quorate";
/// Most files of a snapshot.
pub const FILES_MAX: usize = 100_000;
/// Most bytes of opaque meta.
pub const META_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a manifest.
pub const BYTES_MAX: usize = 32 << 20;
const FIRST_LINE: &str = "quorate-snapshot 1";

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name, a plain one.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// CRC32C of all of them.
    pub crc: u32,
}

/// What is in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Position and opaque meta.
    pub meta: SnapshotMeta,
    /// Its files, in order of names.
    pub files: Vec<FileEntry>,
}

/// Whether `name` may be a file of a snapshot: it must not lead out of the folder, nor hide there.
fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain) && name != FILE
}

fn refused(line: usize, what: impl Into<String>) -> SnapshotError {
    SnapshotError::Manifest { line, what: what.into() }
}

impl Manifest {
    /// Bytes of all files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.len))
    }

    /// As text.
    ///
    /// # Errors
    /// When a name or the number of files is one that [`Self::decode`] would refuse.
    pub fn encode(&self) -> Result<Bytes, SnapshotError> {
        let SnapshotMeta { id, meta } = &self.meta;
        let mut out = format!("{FIRST_LINE}\nindex {}\nterm {}\nmeta ", id.index, id.term);
        for byte in meta {
            let _ = write!(out, "{byte:02x}");
        }
        out.push('\n');
        for FileEntry { name, len, crc } in &self.files {
            let _ = writeln!(out, "file {len} {crc:08x} {name}");
        }
        let _ = writeln!(out, "end {:08x}", crc32c::crc32c(out.as_bytes()));
        let bytes = Bytes::from(out);
        Self::decode(&bytes)?;
        Ok(bytes)
    }

    /// From text.
    ///
    /// # Errors
    /// [`SnapshotError::Manifest`] says which line and why.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        if bytes.len() > BYTES_MAX {
            return Err(refused(0, format!("{} bytes, at most {BYTES_MAX}", bytes.len())));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| refused(0, e.to_string()))?;
        let (lines, end) = text.strip_suffix('\n').and_then(|t| t.rsplit_once('\n')).unwrap_or_default();
        let body = bytes.get(..=lines.len()).unwrap_or_default();
        if *end != *format!("end {:08x}", crc32c::crc32c(body)) {
            return Err(refused(0, "its checksum does not match"));
        }
        let mut lines = (1..).zip(lines.split('\n'));
        let mut next = |key: &str| match lines.next() {
            Some((line, text)) => match text.strip_prefix(key) {
                Some(value) => Ok((line, value)),
                None => Err(refused(line, format!("`{key}` belongs here"))),
            },
            None => Err(refused(0, format!("`{key}` is missing"))),
        };
        next(FIRST_LINE)?;
        let id = SnapshotId { index: number(next("index ")?)?, term: number(next("term ")?)? };
        let (line, hex) = next("meta ")?;
        let meta = unhex(hex).filter(|m| m.len() <= META_BYTES_MAX).ok_or_else(|| refused(line, "bad meta"))?;
        let mut files: Vec<FileEntry> = Vec::new();
        for (line, text) in lines {
            let mut words = text.splitn(4, ' ');
            let (Some("file"), Some(len), Some(crc), Some(name)) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(refused(line, "`file` belongs here"));
            };
            if !is_plain(name) || files.last().is_some_and(|last| *last.name >= *name) || files.len() == FILES_MAX {
                return Err(refused(line, "a file's name that does not belong here"));
            }
            let crc = u32::from_str_radix(crc, 16).ok().filter(|n| format!("{n:08x}") == crc);
            let crc = crc.ok_or_else(|| refused(line, "bad checksum"))?;
            files.push(FileEntry { name: name.to_owned(), len: number((line, len))?, crc });
        }
        Ok(Self { meta: SnapshotMeta { id, meta: meta.into() }, files })
    }
}

fn number((line, text): (usize, &str)) -> Result<u64, SnapshotError> {
    let number = text.parse().ok().filter(|n: &u64| n.to_string() == text);
    number.ok_or_else(|| refused(line, format!("`{}` is no number", text.escape_debug())))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_uppercase());
    pairs.iter().map(|[a, b]| Some((digit(*a)? << 4 | digit(*b)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            meta: SnapshotMeta { id: SnapshotId { index: 4711, term: 7 }, meta: Bytes::from_static(&[10, 0xff]) },
            files: vec![
                FileEntry { name: "000012.sst".into(), len: 1 << 40, crc: 0x89ab_cdef },
                FileEntry { name: "CURRENT".into(), len: 0, crc: 0 },
            ],
        }
    }

    #[test]
    fn a_manifest_is_as_the_module_says_and_comes_back() {
        let bytes = manifest().encode().unwrap();
        let want = "quorate-snapshot 1\nindex 4711\nterm 7\nmeta 0aff\nfile 1099511627776 89abcdef 000012.sst\n\
                    file 0 00000000 CURRENT\nend ";
        assert!(bytes.starts_with(want.as_bytes()), "{bytes:?}");
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
        let empty = Manifest { files: vec![], meta: SnapshotMeta { meta: Bytes::new(), ..manifest().meta } };
        assert_eq!(Manifest::decode(&empty.encode().unwrap()).unwrap(), empty);
    }

    #[test]
    fn any_flipped_or_missing_byte_is_refused() {
        let bytes = manifest().encode().unwrap().to_vec();
        for at in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(Manifest::decode(&flipped).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a b", "a\\b", ".hidden", FILE, "ä", "a\n"] {
            let mut bad = manifest();
            bad.files = vec![FileEntry { name: name.into(), len: 1, crc: 1 }];
            assert!(bad.encode().is_err(), "{name}");
        }
        let mut twice = manifest();
        twice.files[1].name = "000012.sst".into();
        assert!(twice.encode().is_err());
    }
}
