//! Topic names and topic filters: parsed once at the edge, valid ever after.
//!
//! MQTT 5.0 §4.7: levels are separated by `/`, may be empty, and the whole is 1 to 65,535 bytes of
//! UTF-8 without U+0000. A filter may hold `+` (one whole level) and a final `#` (all levels below and
//! the parent itself). Filters that begin with a wildcard do not match topics that begin with `$`
//! [MQTT-4.7.2-1].

use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};
use thiserror::Error;

/// Most levels of a topic name or filter. It bounds the depth of the subscription trie.
pub const TOPIC_LEVELS_MAX: usize = 128;

/// Why a topic name or filter was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TopicError {
    /// [MQTT-4.7.3-1]
    #[error("a topic has at least one character")]
    Empty,
    /// [MQTT-4.7.3-3]
    #[error("a topic has at most 65,535 bytes of UTF-8")]
    TooLong,
    /// [MQTT-4.7.3-2]
    #[error("a topic does not contain U+0000")]
    Nul,
    /// [MQTT-3.3.2-2]
    #[error("a topic name does not contain the wildcards + and #")]
    Wildcard,
    /// [MQTT-4.7.1-1], [MQTT-4.7.1-2]
    #[error("+ stands for a whole level, and # for all levels at the end of a filter")]
    MisplacedWildcard,
    /// Our limit, see [`TOPIC_LEVELS_MAX`].
    #[error("a topic has at most {TOPIC_LEVELS_MAX} levels")]
    TooManyLevels,
}

fn check_common(s: &str) -> Result<(), TopicError> {
    if s.is_empty() {
        return Err(TopicError::Empty);
    }
    if s.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    let mut separators = 0;
    for b in s.bytes() {
        match b {
            0 => return Err(TopicError::Nul),
            b'/' => separators += 1,
            _ => {}
        }
    }
    if separators >= TOPIC_LEVELS_MAX { Err(TopicError::TooManyLevels) } else { Ok(()) }
}

/// A topic name without wildcards. Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks and keeps `s`.
    ///
    /// # Errors
    /// [`TopicError`] when it is not a topic name.
    pub fn new(s: &str) -> Result<Self, TopicError> {
        check_common(s)?;
        if s.bytes().any(|b| matches!(b, b'+' | b'#')) {
            return Err(TopicError::Wildcard);
        }
        Ok(Self(Arc::from(s)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its levels, in order; at least one, possibly empty ones.
    pub fn levels(&self) -> std::str::Split<'_, char> {
        self.0.split('/')
    }

    /// Whether wildcards at the first level pass it over.
    #[must_use]
    pub fn is_dollar(&self) -> bool {
        self.0.starts_with('$')
    }
}

/// A topic filter. Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TopicFilter(Arc<str>);

impl TopicFilter {
    /// Checks and keeps `s`.
    ///
    /// # Errors
    /// [`TopicError`] when it is not a topic filter.
    pub fn new(s: &str) -> Result<Self, TopicError> {
        check_common(s)?;
        let mut levels = s.split('/').peekable();
        while let Some(level) = levels.next() {
            let misplaced = match level {
                "+" => false,
                "#" => levels.peek().is_some(),
                _ => level.bytes().any(|b| matches!(b, b'+' | b'#')),
            };
            if misplaced {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Self(Arc::from(s)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its levels, in order.
    pub fn levels(&self) -> std::str::Split<'_, char> {
        self.0.split('/')
    }

    /// Whether it holds `+` or `#`.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        self.0.bytes().any(|b| matches!(b, b'+' | b'#'))
    }

    /// The text up to the first wildcard: every topic that matches begins with it, up to a final `/`
    /// that `#` lets fall away (`a/#` matches `a`).
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        let end = self.0.find(['+', '#']).unwrap_or(self.0.len());
        let prefix = self.0.get(..end).unwrap_or_default();
        if self.0.ends_with("/#") && end + 1 == self.0.len() {
            prefix.strip_suffix('/').unwrap_or(prefix)
        } else {
            prefix
        }
    }

    /// Whether `topic` matches (MQTT 5.0 §4.7).
    #[must_use]
    pub fn matches(&self, topic: &TopicName) -> bool {
        if topic.is_dollar() && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.levels();
        for level in self.levels() {
            match (level, names.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (f, Some(n)) if f == n => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

/// What a topic filter asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// Messages whose topic matches it.
    Plain,
    /// A part of them: a shared subscription, `$share/{name}/{filter}` [MQTT-4.8.2-1].
    Shared {
        /// Share name.
        name: String,
        /// What topics are matched against.
        filter: TopicFilter,
    },
    /// All of them, as long as nobody else asks for them so: `$exclusive/{filter}`.
    Exclusive {
        /// What topics are matched against.
        filter: TopicFilter,
    },
    /// It begins like one of the above and is none (0x8F).
    Invalid,
}

const SHARE: &str = "$share/";
const EXCLUSIVE: &str = "$exclusive/";

impl TopicFilter {
    /// What this filter asks for.
    #[must_use]
    pub fn kind(&self) -> FilterKind {
        // Neither is there within the other.
        let inner = |text: &str| {
            let is_plain = !text.starts_with(SHARE) && !text.starts_with(EXCLUSIVE);
            TopicFilter::new(text).ok().filter(|_| is_plain)
        };
        if let Some(rest) = self.0.strip_prefix(SHARE) {
            // A name has at least one character, and none that is a wildcard [MQTT-4.8.2-1], [MQTT-4.8.2-2].
            let named = rest.split_once('/').filter(|(name, _)| !name.is_empty() && !name.contains(['+', '#']));
            let shared = named.and_then(|(name, filter)| {
                inner(filter).map(|filter| FilterKind::Shared { name: name.to_owned(), filter })
            });
            return shared.unwrap_or(FilterKind::Invalid);
        }
        match self.0.strip_prefix(EXCLUSIVE) {
            Some(rest) => inner(rest).map_or(FilterKind::Invalid, |filter| FilterKind::Exclusive { filter }),
            None => FilterKind::Plain,
        }
    }

    /// `$share/{name}/{filter}`.
    ///
    /// # Errors
    /// [`TopicError`] when the name is none, or the whole is too long.
    pub fn shared(name: &str, filter: &TopicFilter) -> Result<Self, TopicError> {
        let whole = Self::new(&format!("{SHARE}{name}/{filter}"))?;
        match whole.kind() {
            FilterKind::Shared { name: found, .. } if found == name => Ok(whole),
            _ => Err(TopicError::MisplacedWildcard),
        }
    }
}

macro_rules! shows_its_text {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self.as_str(), f)
            }
        }
    )*};
}
shows_its_text!(TopicName, TopicFilter);

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        TopicFilter::new(filter).unwrap().matches(&TopicName::new(topic).unwrap())
    }

    #[test]
    fn wildcards_match_as_section_4_7_says() {
        for (f, t, want) in [
            ("a/b", "a/b", true),
            ("a/b", "a", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("+", "a", true),
            ("+", "/a", false),
            ("/+", "/a", true),
            ("+/+", "/", true),
            ("a/+/c", "a//c", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
        ] {
            assert_eq!(matches(f, t), want, "{f} on {t}");
        }
    }

    #[test]
    fn every_matching_topic_begins_with_the_literal_prefix() {
        for (f, p) in [("a/#", "a"), ("a/+/c", "a/"), ("#", ""), ("a/b", "a/b"), ("/#", ""), ("a//#", "a/")] {
            assert_eq!(TopicFilter::new(f).unwrap().literal_prefix(), p, "{f}");
        }
    }

    /// [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    #[test]
    fn a_shared_filter_has_a_name_without_wildcards_and_a_filter() {
        let kind = |f: &str| TopicFilter::new(f).unwrap().kind();
        let shared =
            |name: &str, f: &str| FilterKind::Shared { name: name.into(), filter: TopicFilter::new(f).unwrap() };
        assert_eq!(kind("$share/g/a/+"), shared("g", "a/+"));
        assert_eq!(kind("$share/g//"), shared("g", "/"));
        assert_eq!(kind("$exclusive/a/#"), FilterKind::Exclusive { filter: TopicFilter::new("a/#").unwrap() });
        for plain in ["a", "$share", "$exclusive", "$shared/g/a", "a/$share/g/b"] {
            assert_eq!(kind(plain), FilterKind::Plain, "{plain}");
        }
        for bad in [
            "$share/",
            "$share/g",
            "$share/g/",
            "$share//a",
            "$share/+/a",
            "$share/#",
            "$exclusive/",
            "$share/g/$share/h/a",
            "$share/g/$exclusive/a",
            "$exclusive/$share/g/a",
            "$exclusive/$exclusive/a",
        ] {
            assert_eq!(kind(bad), FilterKind::Invalid, "{bad}");
        }
        assert_eq!(TopicFilter::shared("g", &TopicFilter::new("a/#").unwrap()).unwrap().as_str(), "$share/g/a/#");
        for bad in ["", "+", "g/h", "#"] {
            assert!(TopicFilter::shared(bad, &TopicFilter::new("a").unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_topics_are_refused() {
        assert_eq!(TopicName::new(""), Err(TopicError::Empty));
        assert_eq!(TopicName::new("a/+"), Err(TopicError::Wildcard));
        assert_eq!(TopicName::new("a\0"), Err(TopicError::Nul));
        assert_eq!(TopicName::new(&"x".repeat(65_536)), Err(TopicError::TooLong));
        assert_eq!(TopicName::new(&"/".repeat(128)), Err(TopicError::TooManyLevels));
        for f in ["a#", "#/a", "a+/b", "+a"] {
            assert_eq!(TopicFilter::new(f), Err(TopicError::MisplacedWildcard), "{f}");
        }
    }
}
