//! The idempotency key of a publish: the MQTT 5 user property `idempotency-key`.
//!
//! A publisher that cannot know whether an earlier attempt was published, because it or a node died in between, sends
//! the same key again: the second publish of the same user is acknowledged with the position of the first and not
//! published. The front end refuses a key that is none before it proposes anything, and apply does so again: both ask
//! here.

use thiserror::Error;

use crate::message::MessageProperties;

/// Name of the user property that holds the key.
pub const PROPERTY: &str = "idempotency-key";
/// Longest key, in bytes of UTF-8: any digest or UUID in text, with room to spare.
pub const KEY_BYTES_MAX: usize = 256;

/// Why a publish has no usable key although it has the property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// It is empty.
    #[error("the idempotency key is empty")]
    Empty,
    /// It is longer than [`KEY_BYTES_MAX`].
    #[error("the idempotency key has more than {KEY_BYTES_MAX} bytes")]
    TooLong,
    /// It is given twice, with different values.
    #[error("the message has two different idempotency keys")]
    Ambiguous,
}

/// The key among the properties of a message, if it has one.
///
/// # Errors
/// [`KeyError`] when it has one that is none: the publish is refused with 0x83.
pub fn key_of(properties: Option<&MessageProperties>) -> Result<Option<&str>, KeyError> {
    let Some(properties) = properties else { return Ok(None) };
    let mut keys = properties.user.iter().filter(|(name, _)| name == PROPERTY).map(|(_, key)| key.as_str());
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.any(|other| other != key) {
        return Err(KeyError::Ambiguous);
    }
    match key.len() {
        0 => Err(KeyError::Empty),
        1..=KEY_BYTES_MAX => Ok(Some(key)),
        _ => Err(KeyError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(user: &[(&str, &str)]) -> MessageProperties {
        let user = user.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        MessageProperties { user, ..Default::default() }
    }

    #[test]
    fn a_key_is_found_among_other_properties_and_refused_when_it_is_none() {
        let key = |user: &[(&str, &str)]| key_of(Some(&with(user))).map(|key| key.map(str::to_owned));
        assert_eq!(key_of(None), Ok(None));
        assert_eq!(key(&[("a", "b"), ("Idempotency-Key", "x")]), Ok(None), "names are case sensitive");
        assert_eq!(key(&[("a", "b"), (PROPERTY, "k")]), Ok(Some("k".into())));
        assert_eq!(key(&[(PROPERTY, "k"), (PROPERTY, "k")]), Ok(Some("k".into())));
        assert_eq!(key(&[(PROPERTY, "k"), ("a", "b"), (PROPERTY, "l")]), Err(KeyError::Ambiguous));
        assert_eq!(key(&[(PROPERTY, "")]), Err(KeyError::Empty));
        let longest = "x".repeat(KEY_BYTES_MAX);
        assert_eq!(key(&[(PROPERTY, &longest)]), Ok(Some(longest.clone())));
        assert_eq!(key(&[(PROPERTY, &(longest + "x"))]), Err(KeyError::TooLong));
    }
}
