//! Bytes in the log, in rows and in frames: a fixed little-endian envelope around a bincode body, with
//! payloads outside the body as raw bytes.
//!
//! ```text
//! offset 0  version     u8    ENVELOPE_VERSION
//!        1  kind        u8    what the body is (see [`Kind`])
//!        2  body_len    u32   little endian
//!        6  payload_len u32   little endian
//!       10  body        bincode, little endian, variable-length integers
//!        .  payloads    all payloads of the body, one after the other, in the body's order
//! ```
//!
//! In the body a payload is only its length; decoding hands out slices of the one buffer, so a payload is
//! never copied on the way from the log to a subscriber. bincode is used in this module only: it can be
//! replaced here in a day, and golden fixtures (`store/tests/golden`) hold the bytes fast.

use std::cell::Cell;

use bincode::config::{Configuration, Limit, LittleEndian, Varint, standard};
use bincode::de::{Decode, Decoder};
use bincode::enc::write::Writer;
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use bytes::Bytes;
use thiserror::Error;

/// Version of the envelope. Bodies evolve by appended enum variants, not by this.
pub const ENVELOPE_VERSION: u8 = 1;
/// Bytes before the body.
pub const ENVELOPE_LEN: usize = 10;
/// Longest body or payload area: one entry never comes near it.
pub const PART_BYTES_MAX: usize = 1 << 30;

/// What an envelope holds. Ordinals are on disk and on the wire: kept for ever, only appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`crate::command::Batch`]
    Batch = 1,
    /// [`crate::message::Message`] in a message or retained row.
    Message = 2,
    /// Any other row's value.
    Row = 3,
    /// A Raft log entry, vote or membership (see `quorate-raft`).
    Raft = 4,
    /// A frame between peers (see `quorate-raft`).
    Frame = 5,
}

/// Why bytes were refused. Whoever reads them from disk must stop, not skip.
#[derive(Debug, Error)]
pub enum CodecError {
    /// Fewer bytes than the envelope says.
    #[error("truncated: {have} bytes where the envelope says {want}")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        want: usize,
    },
    /// More bytes than the envelope says.
    #[error("{0} bytes too many after the envelope")]
    Trailing(usize),
    /// Written by a newer version: upgrade this node before it joins.
    #[error("envelope version {0} is newer than this build reads ({ENVELOPE_VERSION}): upgrade this node")]
    Version(u8),
    /// Something else was expected here.
    #[error("an envelope of kind {found} where kind {expected} belongs")]
    WrongKind {
        /// Ordinal found.
        found: u8,
        /// Ordinal expected.
        expected: u8,
    },
    /// The body does not decode. An unknown enum variant ends here too: an unknown command halts.
    #[error("the body does not decode: {0}")]
    Body(#[from] DecodeError),
    /// The value does not encode (a length above its bound).
    #[error("the value does not encode: {0}")]
    Encode(#[from] EncodeError),
    /// Body or payloads above [`PART_BYTES_MAX`].
    #[error("{0} bytes in one part of an envelope, at most {PART_BYTES_MAX}")]
    TooLarge(usize),
}

/// A payload: raw bytes outside the bincode body. Cloning shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl std::ops::Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Encode for Payload {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        u32::try_from(self.0.len()).map_err(|_| EncodeError::Other("payload longer than u32"))?.encode(encoder)
    }
}

/// The payload area while a body is decoded: hands out the next `n` bytes, uncopied.
#[derive(Debug)]
pub struct PayloadSource(Bytes);

impl Decode<PayloadSource> for Payload {
    fn decode<D: Decoder<Context = PayloadSource>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let len = u32::decode(decoder)? as usize;
        let area = &mut decoder.context().0;
        if area.len() < len {
            return Err(DecodeError::UnexpectedEnd { additional: len - area.len() });
        }
        Ok(Self(area.split_to(len)))
    }
}

bincode::impl_borrow_decode_with_context!(Payload, PayloadSource);

/// What an envelope can hold: a bincode body and, in the order in which the body is encoded, its payloads.
pub trait Enveloped: Encode + Decode<PayloadSource> {
    /// Its kind in the envelope.
    const KIND: Kind;
    /// Calls `f` with each payload, in encoding order.
    fn payloads(&self, f: &mut dyn FnMut(&Payload));
}

/// With a limit: else a damaged length asks for any amount of memory, and the process aborts where it should
/// have said what is wrong.
fn config() -> Configuration<LittleEndian, Varint, Limit<PART_BYTES_MAX>> {
    standard().with_limit::<PART_BYTES_MAX>()
}

/// Encodes `value` in an envelope.
///
/// # Errors
/// [`CodecError::TooLarge`] above [`PART_BYTES_MAX`].
pub fn encode<T: Enveloped>(value: &T) -> Result<Bytes, CodecError> {
    let mut out = envelope(value, true)?;
    value.payloads(&mut |p| out.extend_from_slice(&p.0));
    Ok(Bytes::from(out))
}

/// The same bytes as [`encode`], in parts: the envelope with the body first, then the payloads, uncopied.
/// For frames whose payloads are long and go to a socket anyway.
///
/// # Errors
/// As [`encode`].
pub fn encode_parts<T: Enveloped>(value: &T) -> Result<Vec<Bytes>, CodecError> {
    let mut parts = vec![Bytes::from(envelope(value, false)?)];
    value.payloads(&mut |p| parts.push(p.0.clone()));
    Ok(parts)
}

/// Bytes of the scratch that a thread keeps.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// Bodies are encoded here first, because nobody knows their lengths: rows live long, and with a guess each of them
    /// would keep what it does not need.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Body<'a>(&'a mut Vec<u8>);

impl Writer for Body<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Head and body, with exactly the room for the payloads behind them if they are to follow.
fn envelope<T: Enveloped>(value: &T, payloads_follow: bool) -> Result<Vec<u8>, CodecError> {
    let mut payload_len = 0;
    value.payloads(&mut |p| payload_len += p.0.len());
    let room = if payloads_follow { payload_len } else { 0 };
    // Taken out meanwhile: what is encoded may encode something itself.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    bincode::encode_into_writer(value, Body(&mut scratch), config())?;
    let part = |n: usize| if n > PART_BYTES_MAX { Err(CodecError::TooLarge(n)) } else { Ok(n as u32) };
    let mut out = Vec::with_capacity(ENVELOPE_LEN + scratch.len() + room);
    out.extend_from_slice(&[ENVELOPE_VERSION, T::KIND as u8]);
    out.extend_from_slice(&part(scratch.len())?.to_le_bytes());
    out.extend_from_slice(&part(payload_len)?.to_le_bytes());
    out.extend_from_slice(&scratch);
    if scratch.capacity() <= SCRATCH_BYTES_MAX {
        SCRATCH.set(scratch);
    }
    Ok(out)
}

/// How long [`encode`] makes `value`.
///
/// # Errors
/// As [`encode`].
pub fn encoded_len<T: Enveloped>(value: &T) -> Result<usize, CodecError> {
    struct Counted(usize);

    impl Writer for Counted {
        fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
            self.0 += bytes.len();
            Ok(())
        }
    }

    let (mut body, mut payload_len) = (Counted(0), 0);
    bincode::encode_into_writer(value, &mut body, config())?;
    value.payloads(&mut |p| payload_len += p.0.len());
    match body.0.max(payload_len) {
        too_large if too_large > PART_BYTES_MAX => Err(CodecError::TooLarge(too_large)),
        _ => Ok(ENVELOPE_LEN + body.0 + payload_len),
    }
}

/// Decodes an envelope that fills `bytes` exactly. Payloads are slices of `bytes`.
///
/// # Errors
/// [`CodecError`], which names what is wrong; nothing is guessed or skipped.
pub fn decode<T: Enveloped>(bytes: &Bytes) -> Result<T, CodecError> {
    let truncated = |want| CodecError::Truncated { have: bytes.len(), want };
    let head: &[u8; ENVELOPE_LEN] = bytes.first_chunk().ok_or_else(|| truncated(ENVELOPE_LEN))?;
    let [version, kind, b0, b1, b2, b3, p0, p1, p2, p3] = *head;
    if version != ENVELOPE_VERSION {
        return Err(CodecError::Version(version));
    }
    if kind != T::KIND as u8 {
        return Err(CodecError::WrongKind { found: kind, expected: T::KIND as u8 });
    }
    let body_len = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
    let payload_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    let body_end = ENVELOPE_LEN + body_len;
    let end = body_end + payload_len;
    if bytes.len() < end {
        return Err(truncated(end));
    }
    if bytes.len() > end {
        return Err(CodecError::Trailing(bytes.len() - end));
    }
    let source = PayloadSource(bytes.slice(body_end..));
    let body = bytes.get(ENVELOPE_LEN..body_end).unwrap_or_default();
    let (value, read): (T, usize) = bincode::decode_from_slice_with_context(body, config(), source)?;
    if read != body_len {
        return Err(CodecError::Trailing(body_len - read));
    }
    // Each payload was cut off the front of the area: what their lengths leave over belongs to nobody.
    let mut used = 0;
    value.payloads(&mut |p| used += p.0.len());
    if used == payload_len { Ok(value) } else { Err(CodecError::Trailing(payload_len.saturating_sub(used))) }
}
