//! One frame: its header, its bounds, and how it is found in a read buffer.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use quorate_store::ids::GroupId;

/// Version of the frame header.
pub(crate) const FRAME_VERSION: u8 = 1;
/// Longest body of a frame between nodes that know each other. One log entry always fits: the front end's
/// packet limit is far below.
pub(crate) const FRAME_BODY_BYTES_MAX: usize = 64 << 20;
/// Longest body before the hello is over.
pub(crate) const HELLO_BODY_BYTES_MAX: usize = 4096;
/// Bodies up to this length are copied out of the read buffer. What a frame holds may be kept for long (an entry
/// in the log's tail, a queued message): a slice would keep the whole buffer, many times its own length, and the
/// buffer could not be used again.
const COPIED_BODY_BYTES_MAX: usize = 16 << 10;
/// Length field and header.
pub(crate) const FRAME_HEAD_LEN: usize = 8;
/// Bytes of the header that the length field counts.
const COUNTED_HEAD_LEN: usize = 4;

/// What came in one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The purpose says what it means.
    pub(crate) kind: u8,
    /// Raft group.
    pub(crate) group: GroupId,
    /// Its own memory when it is short, else a slice of the read buffer.
    pub(crate) body: Bytes,
}

/// The header of a frame with a body of `body_len` bytes.
///
/// # Errors
/// When the body is longer than [`FRAME_BODY_BYTES_MAX`].
pub(crate) fn frame_head(kind: u8, group: GroupId, body_len: usize) -> io::Result<[u8; FRAME_HEAD_LEN]> {
    if body_len > FRAME_BODY_BYTES_MAX {
        let what = format!("a frame of {body_len} bytes, at most {FRAME_BODY_BYTES_MAX} go to a peer");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let [l0, l1, l2, l3] = ((body_len + COUNTED_HEAD_LEN) as u32).to_le_bytes();
    let [g0, g1] = group.0.to_le_bytes();
    Ok([l0, l1, l2, l3, FRAME_VERSION, kind, g0, g1])
}

/// What the buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A whole frame, taken out of the buffer.
    Frame(Frame),
    /// At least this many bytes are missing.
    Missing(usize),
}

/// Takes the first frame out of `buffer`.
///
/// # Errors
/// A frame of another version, or longer than `body_bytes_max`: the connection is of no use any more.
pub(crate) fn take_frame(buffer: &mut BytesMut, body_bytes_max: usize) -> io::Result<Parsed> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let Some(&[l0, l1, l2, l3, version, kind, g0, g1]) = buffer.first_chunk::<FRAME_HEAD_LEN>() else {
        return Ok(Parsed::Missing(FRAME_HEAD_LEN - buffer.len()));
    };
    let counted = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if version != FRAME_VERSION {
        return Err(invalid(format!(
            "a peer frame of version {version}; this build speaks {FRAME_VERSION}: is that a Quorate peer port, of a compatible version?"
        )));
    }
    let Some(body_len) = counted.checked_sub(COUNTED_HEAD_LEN).filter(|n| *n <= body_bytes_max) else {
        return Err(invalid(format!("a peer frame of {counted} bytes; at most {body_bytes_max} are taken here")));
    };
    let whole = FRAME_HEAD_LEN + body_len;
    if buffer.len() < whole {
        return Ok(Parsed::Missing(whole - buffer.len()));
    }
    buffer.advance(FRAME_HEAD_LEN);
    let body = if body_len <= COPIED_BODY_BYTES_MAX {
        let body = Bytes::copy_from_slice(buffer.get(..body_len).unwrap_or_default());
        buffer.advance(body_len);
        body
    } else {
        buffer.split_to(body_len).freeze()
    };
    Ok(Parsed::Frame(Frame { kind, group: GroupId(u16::from_le_bytes([g0, g1])), body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, body: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(&frame_head(kind, GroupId(7), body.len()).unwrap_or_default());
        buffer.extend_from_slice(body);
        buffer
    }

    #[test]
    fn a_frame_comes_out_as_it_went_in_however_it_is_cut() {
        let whole = framed(9, b"hello");
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::from(whole.get(..cut).unwrap_or_default());
            assert!(matches!(take_frame(&mut buffer, 100), Ok(Parsed::Missing(n)) if n > 0 && n <= whole.len() - cut));
        }
        let mut buffer = whole.clone();
        buffer.extend_from_slice(&whole);
        for _ in 0..2 {
            let frame = Frame { kind: 9, group: GroupId(7), body: Bytes::from_static(b"hello") };
            assert_eq!(take_frame(&mut buffer, 100).ok(), Some(Parsed::Frame(frame)));
        }
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_short_frame_that_is_kept_keeps_no_more_than_its_own_bytes() {
        let mut buffer = BytesMut::new();
        let mut kept = Vec::new();
        for n in 0..1000 {
            // As a reader does: room for much, one short frame comes.
            buffer.reserve(COPIED_BODY_BYTES_MAX);
            buffer.extend_from_slice(&framed(1, &[7; 200]));
            let Ok(Parsed::Frame(frame)) = take_frame(&mut buffer, 1000) else { panic!("no frame") };
            assert!(frame.body.is_unique(), "frame {n} shares the read buffer");
            kept.push(frame.body);
        }
        assert!(buffer.is_empty() && buffer.capacity() <= 4 * COPIED_BODY_BYTES_MAX, "{}", buffer.capacity());
        let bytes = kept.into_iter().filter_map(|body| Some(body.try_into_mut().ok()?.capacity())).sum::<usize>();
        assert_eq!(bytes, 1000 * 200);
        // A long one is not copied.
        let long = framed(1, &[7; COPIED_BODY_BYTES_MAX + 1]);
        buffer.extend_from_slice(&long);
        let at = buffer.as_ptr();
        let Ok(Parsed::Frame(frame)) = take_frame(&mut buffer, long.len()) else { panic!("no frame") };
        assert_eq!(frame.body.as_ptr() as usize, at as usize + FRAME_HEAD_LEN);
    }

    #[test]
    fn a_frame_beyond_the_bound_or_of_another_version_is_refused() {
        assert!(take_frame(&mut framed(1, &[0; 101]), 100).is_err());
        let mut other = framed(1, b"x");
        other.as_mut().iter_mut().skip(4).take(1).for_each(|b| *b = 2);
        assert!(take_frame(&mut other, 100).is_err());
        assert!(
            take_frame(&mut BytesMut::from(&[3, 0, 0, 0, 1, 0, 0, 0][..]), 100).is_err(),
            "shorter than its header"
        );
        assert!(frame_head(1, GroupId(0), FRAME_BODY_BYTES_MAX + 1).is_err());
    }
}
