//! The value of a row as long as it lies in memory.
//!
//! Most rows never reach the database, so a message is encoded only when it does: until then its row is the message
//! itself, its payload a slice of the log's own record. Rows of a few bytes, like those of a queue, take no memory of
//! their own.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::value::Value as _;
use super::{RowsError, key};
use crate::codec::{self, CodecError};
use crate::message::{Message, SharedMessage};

/// Bytes that lie in the value itself: what is left beside a length and a tag where [`Bytes`] must fit, too.
const SHORT_LEN_MAX: usize = 38;

/// The value of a row.
#[derive(Clone, Debug)]
pub struct RowValue(Form);

#[derive(Clone, Debug)]
enum Form {
    Short(u8, [u8; SHORT_LEN_MAX]),
    Encoded(Bytes),
    /// With the length that it has when it is encoded.
    Message(u32, SharedMessage),
}

const _: () = assert!(size_of::<RowValue>() == 40, "there is one in every entry of the maps of recent rows");

impl From<Bytes> for RowValue {
    fn from(encoded: Bytes) -> Self {
        Self(Form::Encoded(encoded))
    }
}

impl RowValue {
    /// A message that is not encoded yet.
    ///
    /// # Errors
    /// [`CodecError`] when it does not encode: later it does.
    pub(crate) fn message(message: SharedMessage) -> Result<Self, CodecError> {
        let len = codec::encoded_len(&*message)?;
        let len = u32::try_from(len).map_err(|_| CodecError::TooLarge(len))?;
        Ok(Self(Form::Message(len, message)))
    }

    /// `len` bytes that `write` fills in; in place if they are few.
    pub(crate) fn written(len: usize, write: impl FnOnce(&mut [u8])) -> Self {
        let mut short = [0; SHORT_LEN_MAX];
        match (short.get_mut(..len), u8::try_from(len)) {
            (Some(room), Ok(short_len)) => {
                write(room);
                Self(Form::Short(short_len, short))
            }
            _ => {
                let mut room = vec![0; len];
                write(&mut room);
                Self(Form::Encoded(Bytes::from(room)))
            }
        }
    }

    /// Length of the encoded value.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Form::Short(len, _) => usize::from(*len),
            Form::Encoded(bytes) => bytes.len(),
            Form::Message(len, _) => *len as usize,
        }
    }

    /// The encoded value, where it lies if it is encoded.
    ///
    /// # Errors
    /// [`RowsError::Encode`].
    pub fn encoded(&self) -> Result<Cow<'_, [u8]>, RowsError> {
        Ok(match &self.0 {
            Form::Short(len, bytes) => Cow::Borrowed(bytes.get(..usize::from(*len)).unwrap_or_default()),
            Form::Encoded(bytes) => Cow::Borrowed(bytes),
            Form::Message(_, message) => Cow::Owned(codec::encode(&**message)?.into()),
        })
    }

    /// The encoded value, to be kept.
    ///
    /// # Errors
    /// [`RowsError::Encode`].
    pub fn to_bytes(&self) -> Result<Bytes, RowsError> {
        Ok(match &self.0 {
            Form::Short(len, bytes) => Bytes::copy_from_slice(bytes.get(..usize::from(*len)).unwrap_or_default()),
            Form::Encoded(bytes) => bytes.clone(),
            Form::Message(_, message) => codec::encode(&**message)?,
        })
    }

    /// The message that this is, at `key`.
    ///
    /// # Errors
    /// [`RowsError::Damaged`] when it is none.
    pub(crate) fn to_message(&self, key: &[u8]) -> Result<SharedMessage, RowsError> {
        match &self.0 {
            Form::Message(_, message) => Ok(message.clone()),
            Form::Encoded(bytes) => Ok(Arc::new(Message::read(key, bytes)?)),
            Form::Short(..) => {
                Err(RowsError::Damaged { key: key::describe(key), reason: "too short for a message".to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Payload;
    use crate::ids::{ClusterTime, Position, QoS};
    use crate::topic::TopicName;

    fn message(payload: usize) -> SharedMessage {
        Arc::new(Message {
            position: Position::new(7, 3),
            topic: TopicName::new("a/b").unwrap(),
            qos: QoS::ExactlyOnce,
            retain: true,
            published_at: ClusterTime(1 << 40),
            expires_at: Some(ClusterTime(9)),
            properties: None,
            payload: Payload(vec![5; payload].into()),
        })
    }

    #[test]
    fn a_message_is_the_same_row_whether_it_is_encoded_or_not() {
        for payload in [0, 1, 70_000] {
            let message = message(payload);
            let row = codec::encode(&*message).unwrap();
            let value = RowValue::message(message.clone()).unwrap();
            assert_eq!(
                (value.len(), &value.to_bytes().unwrap(), &*value.encoded().unwrap()),
                (row.len(), &row, &row[..])
            );
            assert!(Arc::ptr_eq(&value.to_message(&[]).unwrap(), &message));
            assert_eq!(RowValue::from(row).to_message(&[]).unwrap(), message);
        }
    }

    #[test]
    fn what_is_written_is_there_whether_it_is_short_or_long() {
        for len in 0..100 {
            let value = RowValue::written(len, |room| room.fill(len as u8));
            let want = vec![len as u8; len];
            assert_eq!((value.len(), value.to_bytes().unwrap()), (len, Bytes::from(want.clone())));
            assert_eq!(*value.encoded().unwrap(), want[..]);
            assert!(value.to_message(&[]).is_err());
        }
    }
}
