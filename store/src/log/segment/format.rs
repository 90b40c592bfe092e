//! Segments and batches, to the byte. docs/FORMAT.md repeats this for people without the source.
//!
//! Integers are little endian. A segment is a header, then batches, each at the next multiple of 512 bytes behind the
//! one before it; what lies between, and behind the last batch, is zero or what the file held in an earlier use.
//!
//! ```text
//! header  offset 0  "QRTSEG01"
//!                8  crc32c       u32   over the header from offset 12 on
//!               12  length       u32   of the header, its items included
//!               16  format       u16   1
//!               18  group        u16   Raft group; 0 is the only one now
//!               20  items        u32   how many
//!               24  generation   u64   random in the first segment of a log, then one more for each
//!               32  number       u64   as in the file's name
//!               40  first batch  u64   sequence number of the first batch in here
//!               48  file length  u64
//!               56  items: the state as of the start of this segment
//! batch   offset 0  "QRTB"
//!                4  crc32c       u32   over the batch from offset 8 on
//!                8  generation   u64   the segment's
//!               16  sequence     u64   1 for the first batch of a log, then consecutive over all segments
//!               24  length       u32   of the batch, its items included
//!               28  items        u32   how many
//!               32  items, in the order in which they take effect
//! item    offset 0  kind         u8    see Kind, kept stable
//!                1  index        u64   0 where the kind has none
//!                9  length       u32   of the body
//!               13  body
//! ```
//!
//! | kind | item | index | body |
//! |---|---|---|---|
//! | 1 | record | its index | opaque: one encoded Raft entry |
//! | 2 | vote | 0 | opaque |
//! | 3 | truncate | first index that goes | empty |
//! | 4 | purge | last index that goes | opaque log id |
//! | 5 | committed | 0 | opaque |
//! | 6 | begin | of the first record of a log that was never purged | empty |
//! | 7 | last (in headers only) | of the last record | empty |

use super::super::writer::Op;

/// The format that this build writes.
pub(super) const FORMAT: u16 = 1;
/// Batches begin at multiples of this: what a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
/// Bytes of a header before its items.
const HEADER_LEN: usize = 56;
/// Bytes of a batch before its items.
pub(super) const BATCH_LEN: usize = 32;
/// Bytes of an item before its body.
pub(super) const ITEM_LEN: usize = 13;
const HEADER_MAGIC: &[u8; 8] = b"QRTSEG01";
const BATCH_MAGIC: &[u8; 4] = b"QRTB";

/// Kinds of items. Ordinals are on disk: kept stable, only appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A Raft entry.
    Record = 1,
    /// The vote.
    Vote = 2,
    /// Records from an index on are gone.
    Truncate = 3,
    /// Records up to an index are gone.
    Purge = 4,
    /// The committed mark.
    Committed = 5,
    /// Where a never purged log begins.
    Begin = 6,
    /// The last record there is, in a header.
    Last = 7,
}

impl Kind {
    const fn of(ordinal: u8) -> Option<Self> {
        Some(match ordinal {
            1 => Self::Record,
            2 => Self::Vote,
            3 => Self::Truncate,
            4 => Self::Purge,
            5 => Self::Committed,
            6 => Self::Begin,
            7 => Self::Last,
            _ => return None,
        })
    }
}

/// One item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    pub(super) body: &'a [u8],
}

impl<'a> Item<'a> {
    pub(super) const fn new(kind: Kind, index: u64, body: &'a [u8]) -> Self {
        Self { kind, index, body }
    }

    /// Its bytes before the body; `None` when the body is too long for the format.
    fn head(&self) -> Option<[u8; ITEM_LEN]> {
        let [i0, i1, i2, i3, i4, i5, i6, i7] = self.index.to_le_bytes();
        let [l0, l1, l2, l3] = u32::try_from(self.body.len()).ok()?.to_le_bytes();
        Some([self.kind as u8, i0, i1, i2, i3, i4, i5, i6, i7, l0, l1, l2, l3])
    }
}

/// What `ops` are in a batch, in their order.
pub(super) fn items(ops: &[Op]) -> impl Iterator<Item = Item<'_>> {
    ops.iter().flat_map(|op| {
        let (records, begins, single) = match op {
            Op::Append { records, begins, .. } => (records.as_slice(), *begins, None),
            Op::Vote { vote, .. } => (&[][..], false, Some(Item::new(Kind::Vote, 0, vote))),
            Op::Truncate { from, .. } => (&[][..], false, Some(Item::new(Kind::Truncate, *from, &[]))),
            Op::Purge { to, log_id, .. } => (&[][..], false, Some(Item::new(Kind::Purge, *to, log_id))),
            Op::Committed(committed) => (&[][..], false, Some(Item::new(Kind::Committed, 0, committed))),
        };
        let begin = records.first().filter(|_| begins).map(|first| Item::new(Kind::Begin, first.index, &[]));
        let records = records.iter().map(|record| Item::new(Kind::Record, record.index, &record.bytes));
        begin.into_iter().chain(records).chain(single)
    })
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

/// The items of something intact.
#[derive(Clone, Debug)]
pub(super) struct Items<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Items<'a> {
    fn take(&mut self) -> Option<Item<'a>> {
        let kind = Kind::of(*self.rest.first()?)?;
        let index = le64(self.rest, 1)?;
        let len = usize::try_from(le32(self.rest, 9)?).ok()?;
        let (body, rest) = self.rest.get(ITEM_LEN..)?.split_at_checked(len)?;
        self.rest = rest;
        Some(Item { kind, index, body })
    }
}

/// An item that cannot be taken apart stands in intact bytes: another version wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnknownItem;

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, UnknownItem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return (!std::mem::take(&mut self.rest).is_empty()).then_some(Err(UnknownItem));
        }
        let item = self.take();
        self.left = if item.is_some() { self.left - 1 } else { 0 };
        if item.is_none() {
            self.rest = &[];
        }
        Some(item.ok_or(UnknownItem))
    }
}

/// A segment's header.
#[derive(Clone, Debug)]
pub(super) struct Header<'a> {
    pub(super) format: u16,
    pub(super) group: u16,
    pub(super) generation: u64,
    pub(super) number: u64,
    pub(super) batch_first: u64,
    pub(super) file_bytes: u64,
    /// Bytes of the header, its items included.
    pub(super) len: usize,
    pub(super) items: Items<'a>,
}

impl<'a> Header<'a> {
    /// The header at the beginning of `segment`; `None` when there is no intact one.
    pub(super) fn decode(segment: &'a [u8]) -> Option<Self> {
        if !segment.starts_with(HEADER_MAGIC) {
            return None;
        }
        let len = usize::try_from(le32(segment, 12)?).ok()?;
        let header = segment.get(..len).filter(|header| header.len() >= HEADER_LEN)?;
        if crc32c::crc32c(header.get(12..)?) != le32(header, 8)? {
            return None;
        }
        let half = |at: usize| header.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b));
        Some(Self {
            format: half(16)?,
            group: half(18)?,
            generation: le64(header, 24)?,
            number: le64(header, 32)?,
            batch_first: le64(header, 40)?,
            file_bytes: le64(header, 48)?,
            len,
            items: Items { rest: header.get(HEADER_LEN..)?, left: le32(header, 20)? },
        })
    }
}

/// What a new segment's header says besides its state.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderFields {
    pub(super) group: u16,
    pub(super) generation: u64,
    pub(super) number: u64,
    pub(super) batch_first: u64,
    pub(super) file_bytes: u64,
}

/// The bytes of a header; `None` when its items are too long for the format.
pub(super) fn header(fields: HeaderFields, items: &[Item<'_>]) -> Option<Vec<u8>> {
    let mut out = vec![0; HEADER_LEN];
    for item in items {
        out.extend_from_slice(&item.head()?);
        out.extend_from_slice(item.body);
    }
    let len = u32::try_from(out.len()).ok()?;
    put(&mut out, 0, HEADER_MAGIC);
    put(&mut out, 12, &len.to_le_bytes());
    put(&mut out, 16, &FORMAT.to_le_bytes());
    put(&mut out, 18, &fields.group.to_le_bytes());
    put(&mut out, 20, &u32::try_from(items.len()).ok()?.to_le_bytes());
    put(&mut out, 24, &fields.generation.to_le_bytes());
    put(&mut out, 32, &fields.number.to_le_bytes());
    put(&mut out, 40, &fields.batch_first.to_le_bytes());
    put(&mut out, 48, &fields.file_bytes.to_le_bytes());
    let crc = crc32c::crc32c(out.get(12..)?);
    put(&mut out, 8, &crc.to_le_bytes());
    Some(out)
}

/// An intact batch.
#[derive(Clone, Debug)]
pub(super) struct Batch<'a> {
    pub(super) sequence: u64,
    /// Bytes of it, its items included.
    pub(super) len: usize,
    pub(super) items: Items<'a>,
}

impl<'a> Batch<'a> {
    /// The batch at the beginning of `at`.
    ///
    /// # Errors
    /// In words, what is there instead.
    pub(super) fn decode(at: &'a [u8], generation: u64) -> Result<Self, &'static str> {
        let (Some(found), Some(sequence), Some(len), Some(left)) =
            (le64(at, 8), le64(at, 16), le32(at, 24), le32(at, 28))
        else {
            return Err("the end of the file");
        };
        if !at.starts_with(BATCH_MAGIC) {
            return Err("no batch");
        }
        if found != generation {
            return Err("a batch of the file's former life");
        }
        let batch = usize::try_from(len).ok().and_then(|len| at.get(..len)).filter(|batch| batch.len() >= BATCH_LEN);
        let Some(batch) = batch else { return Err("a batch whose length cannot be") };
        if le32(batch, 4) != batch.get(8..).map(crc32c::crc32c) {
            return Err("a batch whose checksum does not match");
        }
        let rest = batch.get(BATCH_LEN..).unwrap_or_default();
        Ok(Self { sequence, len: batch.len(), items: Items { rest, left } })
    }

    /// The generation that the first bytes of a batch at the beginning of `at` say, unverified.
    pub(super) fn generation_at(at: &[u8]) -> Option<u64> {
        if at.starts_with(BATCH_MAGIC) { le64(at, 8) } else { None }
    }
}

/// A batch that is to be written, its bodies where they are.
pub(super) struct NewBatch {
    /// The heads of batch and items, one after the other.
    heads: Vec<u8>,
    /// Bytes of the batch, its items included.
    pub(super) len: u32,
}

impl NewBatch {
    /// Takes `items` apart into heads and bodies, with room for the batch's own head. `heads` is memory to use again.
    /// `None` when they are too long for the format.
    pub(super) fn new<'a>(items: impl Iterator<Item = Item<'a>>, mut heads: Vec<u8>) -> Option<Self> {
        heads.clear();
        heads.resize(BATCH_LEN, 0);
        let mut count = 0u32;
        let mut len = BATCH_LEN;
        for item in items {
            heads.extend_from_slice(&item.head()?);
            len = len.checked_add(ITEM_LEN)?.checked_add(item.body.len())?;
            count = count.checked_add(1)?;
        }
        let len = u32::try_from(len).ok()?;
        put(&mut heads, 0, BATCH_MAGIC);
        put(&mut heads, 24, &len.to_le_bytes());
        put(&mut heads, 28, &count.to_le_bytes());
        Some(Self { heads, len })
    }

    /// Says where it goes, and makes its checksum. `items` are those that it was made of.
    pub(super) fn seal<'a>(&mut self, generation: u64, sequence: u64, items: impl Iterator<Item = Item<'a>>) {
        put(&mut self.heads, 8, &generation.to_le_bytes());
        put(&mut self.heads, 16, &sequence.to_le_bytes());
        let mut crc = 0;
        for (part, bytes) in self.parts(items).enumerate() {
            let skipped = if part == 0 { 8 } else { 0 };
            crc = crc32c::crc32c_append(crc, bytes.get(skipped..).unwrap_or_default());
        }
        put(&mut self.heads, 4, &crc.to_le_bytes());
    }

    /// Its bytes in order, not copied.
    pub(super) fn parts<'a, 'b: 'a>(
        &'a self,
        items: impl Iterator<Item = Item<'b>> + 'a,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let (head, heads) = self.heads.split_at_checked(BATCH_LEN).unwrap_or_default();
        let each = heads.chunks(ITEM_LEN).zip(items).flat_map(|(head, item)| [head, item.body]);
        std::iter::once(head).chain(each)
    }

    /// Gives its memory back.
    pub(super) fn into_heads(self) -> Vec<u8> {
        self.heads
    }
}

/// The next multiple of [`SECTOR`].
pub(super) const fn whole_sectors(len: u64) -> u64 {
    len.next_multiple_of(SECTOR as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: [Item<'static>; 3] =
        [Item::new(Kind::Begin, 7, b""), Item::new(Kind::Record, 7, b"abc"), Item::new(Kind::Vote, 0, b"v")];

    fn batch() -> Vec<u8> {
        let mut new = NewBatch::new(ITEMS.into_iter(), vec![1, 2, 3]).unwrap();
        new.seal(0x0102_0304_0506_0708, 9, ITEMS.into_iter());
        let bytes = new.parts(ITEMS.into_iter()).flatten().copied().collect::<Vec<_>>();
        assert_eq!(bytes.len(), new.len as usize);
        bytes
    }

    #[test]
    fn a_batch_is_as_the_module_says_and_any_flipped_bit_is_noticed() {
        let bytes = batch();
        assert_eq!(bytes[..4], *b"QRTB");
        assert_eq!(bytes[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..32], [9, 0, 0, 0, 0, 0, 0, 0, 75, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[45..61], [1, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c']);
        let generation = 0x0102_0304_0506_0708;
        let found = Batch::decode(&bytes, generation).unwrap();
        assert_eq!((found.sequence, found.len), (9, bytes.len()));
        assert_eq!(found.items.collect::<Result<Vec<_>, _>>().unwrap(), ITEMS);
        assert!(Batch::decode(&bytes, 1).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::decode(&flipped, generation).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Batch::decode(&bytes[..len], generation).is_err());
        }
    }

    #[test]
    fn a_header_is_as_the_module_says_and_any_flipped_bit_is_noticed() {
        let fields = HeaderFields { group: 3, generation: 4, number: 5, batch_first: 6, file_bytes: 7 };
        let bytes = header(fields, &ITEMS).unwrap();
        assert_eq!(bytes[..8], *b"QRTSEG01");
        assert_eq!(bytes[12..24], [99, 0, 0, 0, 1, 0, 3, 0, 3, 0, 0, 0]);
        for (at, value) in [(24, 4), (32, 5), (40, 6), (48, 7)] {
            assert_eq!(bytes[at..at + 8], [value, 0, 0, 0, 0, 0, 0, 0]);
        }
        let found = Header::decode(&bytes).unwrap();
        assert_eq!((found.format, found.group, found.generation, found.number), (1, 3, 4, 5));
        assert_eq!((found.batch_first, found.file_bytes, found.len), (6, 7, bytes.len()));
        assert_eq!(found.items.collect::<Result<Vec<_>, _>>().unwrap(), ITEMS);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn items_of_another_version_are_noticed() {
        let mut items = Items { rest: &[9; 20], left: 1 };
        assert_eq!((items.next(), items.next()), (Some(Err(UnknownItem)), None));
        let mut items = Items { rest: &[1; 3], left: 0 };
        assert_eq!((items.next(), items.next()), (Some(Err(UnknownItem)), None));
    }
}
