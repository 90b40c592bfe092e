//! Rows of shared groups, to the byte.
//!
//! ```text
//! ShareRow    version u8 = 1 | turn u64 | rows u64 | bytes u64 | dropped u64 | expiring u64 | filter UTF-8
//!             integers little endian; the filter is `$share/name/filter`
//! WaitingRow  version u8 = 1 | flags u8 | charge u32 | [expires_at u64]
//!             flags: bits 0-1 QoS of the message, 2 its RETAIN, 4 the message has other rows, 5 it expires, and
//!             expires_at is there
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::value::{FIXED_VERSION, FLAG_EXPIRES, FLAG_RETAIN, FLAG_SHARED, Value};
use crate::codec;
use crate::ids::{ClusterTime, Position, QoS, SessionId};

/// A group of a shared subscription; written once a run, as counters are. Its members are the subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRow {
    /// The member that was served last.
    pub turn: SessionId,
    /// Messages that wait.
    pub rows: u64,
    /// Bytes charged for them.
    pub bytes: u64,
    /// Messages dropped because too many waited.
    pub dropped: u64,
    /// Messages that wait and expire.
    pub expiring: u64,
    /// `$share/name/filter`.
    pub filter: String,
}

/// Bytes of a group's row before its filter.
const SHARE_ROW_LEN: usize = 41;

impl Value for ShareRow {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        let mut out = BytesMut::with_capacity(SHARE_ROW_LEN + self.filter.len());
        out.put_u8(FIXED_VERSION);
        for n in [self.turn.0.as_u64(), self.rows, self.bytes, self.dropped, self.expiring] {
            out.put_u64_le(n);
        }
        out.put_slice(self.filter.as_bytes());
        Ok(out.freeze())
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        let (head, filter) =
            bytes.split_at_checked(SHARE_ROW_LEN).ok_or("a row of a shared group has at least 41 bytes")?;
        let Some((&FIXED_VERSION, fields)) = head.split_first() else {
            return Err("a shared group of a version not known to this build".into());
        };
        let ([turn, rows, bytes, dropped, expiring], []) = fields.as_chunks::<8>() else {
            return Err("a row of a shared group begins with five numbers".into());
        };
        let n = |field: &[u8; 8]| u64::from_le_bytes(*field);
        Ok(Self {
            turn: SessionId(Position::from_u64(n(turn))),
            rows: n(rows),
            bytes: n(bytes),
            dropped: n(dropped),
            expiring: n(expiring),
            filter: std::str::from_utf8(filter).map_err(|e| e.to_string())?.to_owned(),
        })
    }
}

/// A message that waits for a member with room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingRow {
    /// QoS of the message, 1 or 2.
    pub qos: QoS,
    /// RETAIN of the message.
    pub retain: bool,
    /// Other rows point to the message; a references row counts them.
    pub is_shared: bool,
    /// Bytes charged.
    pub charge: u32,
    /// The message's.
    pub expires_at: Option<ClusterTime>,
}

impl WaitingRow {
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, String> {
        let (head, rest) = bytes.split_first_chunk::<6>().ok_or("a waiting row has at least six bytes")?;
        let [version, flags, c0, c1, c2, c3] = *head;
        if version != FIXED_VERSION || flags & !(3 | FLAG_RETAIN | FLAG_SHARED | FLAG_EXPIRES) != 0 {
            return Err(format!("waiting row version {version}, flags {flags:#x} are not known to this build"));
        }
        let expires_at = match (flags & FLAG_EXPIRES, rest.split_first_chunk::<8>()) {
            (0, None) if rest.is_empty() => None,
            (FLAG_EXPIRES, Some((at, []))) => Some(ClusterTime(u64::from_le_bytes(*at))),
            _ => return Err("a waiting row whose length does not fit its flags".into()),
        };
        Ok(Self {
            qos: QoS::from_u8(flags & 3).ok_or("QoS 3")?,
            retain: flags & FLAG_RETAIN != 0,
            is_shared: flags & FLAG_SHARED != 0,
            charge: u32::from_le_bytes([c0, c1, c2, c3]),
            expires_at,
        })
    }
}

impl Value for WaitingRow {
    fn to_bytes(&self) -> Result<Bytes, codec::CodecError> {
        let mut out = BytesMut::with_capacity(14);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        out.put_u8(FIXED_VERSION);
        out.put_u8(
            self.qos as u8
                | flag(self.retain, FLAG_RETAIN)
                | flag(self.is_shared, FLAG_SHARED)
                | flag(self.expires_at.is_some(), FLAG_EXPIRES),
        );
        out.put_u32_le(self.charge);
        if let Some(at) = self.expires_at {
            out.put_u64_le(at.0);
        }
        Ok(out.freeze())
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, String> {
        Self::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let share = ShareRow {
            turn: SessionId(Position::new(3, 4)),
            rows: 1,
            bytes: 2,
            dropped: 3,
            expiring: 4,
            filter: "$share/g/a/#".into(),
        };
        assert_eq!(ShareRow::from_bytes(&share.to_bytes().unwrap()).unwrap(), share);
        for expires_at in [None, Some(ClusterTime(7))] {
            let row = WaitingRow { qos: QoS::ExactlyOnce, retain: true, is_shared: true, charge: 300, expires_at };
            assert_eq!(WaitingRow::from_bytes(&row.to_bytes().unwrap()).unwrap(), row);
        }
    }

    #[test]
    fn cut_or_foreign_bytes_are_refused() {
        assert!(ShareRow::from_bytes(&Bytes::from_static(&[1; 40])).is_err());
        assert!(ShareRow::from_bytes(&Bytes::from_static(&[2; 42])).is_err());
        for bad in [&[1_u8, 1, 0, 0, 0][..], &[1, 1, 0, 0, 0, 0, 0], &[1, 0x21, 0, 0, 0, 0], &[1, 0x41, 0, 0, 0, 0]] {
            assert!(WaitingRow::from_slice(bad).is_err(), "{bad:?}");
        }
    }
}
