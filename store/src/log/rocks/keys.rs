//! Every row of the log database, to the byte. docs/FORMAT.md repeats this for people without the source.
//!
//! ```text
//! key    offset 0  group   u16 big endian   Raft group; 0 is the only one now
//!               2  kind    u8               see Kind, kept stable
//!               3  index   u64 big endian   Raft log index of a record; 0 in all other rows
//! value  offset 0  crc32c  u32 little endian   over the key, then the body
//!               4  body
//! ```
//!
//! | kind | row | body |
//! |---|---|---|
//! | 0 | format | u16 little endian: [`FORMAT`] |
//! | 1 | vote | opaque |
//! | 2 | committed | opaque |
//! | 3 | purged | u64 little endian: last purged index, then the opaque log id |
//! | 4 | begin | u64 little endian: index of the first record of a log that was never purged |
//! | 5 | record | opaque: one encoded Raft entry |
//! | 6 | warm | empty: see `warm` |
//!
//! Big endian, so that the order of keys is the order of indices. The checksum covers the key, so that a value
//! under another index than its own is noticed too.

/// The format that this build writes.
pub const FORMAT: u16 = 1;
/// Bytes of a key.
pub const KEY_LEN: usize = 11;
/// Bytes before the body of a value.
pub const VALUE_HEAD_LEN: usize = 4;

/// A key.
pub type Key = [u8; KEY_LEN];

/// Kinds of rows. Ordinals are on disk: kept stable, only appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Format of this database.
    Format = 0,
    /// The vote.
    Vote = 1,
    /// The committed mark.
    Committed = 2,
    /// The purged mark.
    Purged = 3,
    /// Where a never purged log begins.
    Begin = 4,
    /// A Raft entry.
    Record = 5,
    /// Nothing: written when the database has to change to another write-ahead log.
    Warm = 6,
}

/// The key of a row. `index` is 0 for all but records.
#[must_use]
pub fn key(group: u16, kind: Kind, index: u64) -> Key {
    let [g0, g1] = group.to_be_bytes();
    let [i0, i1, i2, i3, i4, i5, i6, i7] = index.to_be_bytes();
    [g0, g1, kind as u8, i0, i1, i2, i3, i4, i5, i6, i7]
}

/// The key of a record.
#[must_use]
pub fn record(group: u16, index: u64) -> Key {
    key(group, Kind::Record, index)
}

/// The key after the last record that a group can have.
#[must_use]
pub fn records_end(group: u16) -> Key {
    let [g0, g1] = group.to_be_bytes();
    [g0, g1, Kind::Record as u8 + 1, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The index in a record's key; `None` when it is not the key of one of `group`'s records.
#[must_use]
pub fn record_index(group: u16, key: &[u8]) -> Option<u64> {
    let (head, index) = key.split_at_checked(3)?;
    let [g0, g1] = group.to_be_bytes();
    let index: [u8; 8] = index.try_into().ok()?;
    (head == [g0, g1, Kind::Record as u8]).then(|| u64::from_be_bytes(index))
}

/// Writes the value of a row into `out`, which it clears first.
pub fn value_into(out: &mut Vec<u8>, key: &Key, body: &[&[u8]]) {
    out.clear();
    out.extend_from_slice(&[0; VALUE_HEAD_LEN]);
    let mut crc = crc32c::crc32c(key);
    for part in body {
        crc = crc32c::crc32c_append(crc, part);
        out.extend_from_slice(part);
    }
    if let Some(head) = out.first_chunk_mut::<VALUE_HEAD_LEN>() {
        *head = crc.to_le_bytes();
    }
}

/// The body of a row's value.
///
/// # Errors
/// What is wrong with it, in words.
pub fn body<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], String> {
    let Some((head, body)) = value.split_first_chunk::<VALUE_HEAD_LEN>() else {
        return Err(format!("a value of {} bytes, at least {VALUE_HEAD_LEN} belong there", value.len()));
    };
    let stored = u32::from_le_bytes(*head);
    let found = crc32c::crc32c_append(crc32c::crc32c(key), body);
    if stored == found { Ok(body) } else { Err(format!("checksum {found:08x} where {stored:08x} was written")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_the_module_says() {
        assert_eq!(record(0x0102, 0x0A0B), [1, 2, 5, 0, 0, 0, 0, 0, 0, 0x0A, 0x0B]);
        assert_eq!(key(0, Kind::Vote, 0), [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(record(0, u64::MAX) < records_end(0) && records_end(0) < key(1, Kind::Format, 0));
        assert_eq!(record_index(0x0102, &record(0x0102, 77)), Some(77));
        assert_eq!(record_index(0, &record(1, 77)), None);
        assert_eq!(record_index(0, &key(0, Kind::Vote, 0)), None);
    }

    #[test]
    fn a_value_is_as_the_module_says_and_any_flipped_bit_is_noticed() {
        let k = record(0, 1);
        let mut value = Vec::new();
        value_into(&mut value, &k, &[b"ab", b"c"]);
        assert_eq!(value, [0x74, 0x85, 0xb7, 0x09, b'a', b'b', b'c']);
        assert_eq!(body(&k, &value), Ok(&b"abc"[..]));
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(body(&k, &flipped).is_err());
        }
        assert!(body(&record(0, 2), &value).is_err(), "the key belongs to the checksum");
    }
}
