//! Delayed publish: a PUBLISH to `$delayed/SECONDS/TOPIC` is published to TOPIC so many seconds later.
//!
//! The front end refuses a topic of this form that is none before it proposes anything, and apply takes it apart:
//! both ask here.

use thiserror::Error;

use crate::topic::{TopicError, TopicName};

/// What the topic of a delayed publish begins with.
pub const PREFIX: &str = "$delayed/";

/// A delayed publish, as its topic says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// After how many seconds.
    pub delay_s: u32,
    /// Where it is published then.
    pub topic: TopicName,
}

/// Why a topic that begins with [`PREFIX`] is refused (0x90 Topic Name invalid).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DelayedError {
    /// `$delayed/` is not followed by a whole number and `/`.
    #[error(
        "a delayed publish names its seconds, a whole number up to {}, and its topic: $delayed/SECONDS/TOPIC",
        u32::MAX
    )]
    Seconds,
    /// What follows the seconds is no topic name.
    #[error("a delayed publish to something that is no topic name: {0}")]
    Topic(#[from] TopicError),
    /// What follows the seconds is delayed once more.
    #[error("a delayed publish is not delayed twice")]
    Nested,
}

/// Takes the topic of a delayed publish apart; `None` when it is a topic like any other.
#[must_use]
pub fn split(topic: &TopicName) -> Option<Result<Delayed, DelayedError>> {
    Some(parse(topic.as_str().strip_prefix(PREFIX)?))
}

/// Where a message with this topic is published in the end: what rules about topics have to look at.
#[must_use]
pub fn target(topic: &TopicName) -> &str {
    let delayed = topic.as_str().strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
    delayed.map_or(topic.as_str(), |(_, target)| target)
}

fn parse(text: &str) -> Result<Delayed, DelayedError> {
    let (seconds, topic) = text.split_once('/').ok_or(DelayedError::Seconds)?;
    if !seconds.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DelayedError::Seconds);
    }
    let delay_s = seconds.parse().map_err(|_| DelayedError::Seconds)?;
    if topic.starts_with(PREFIX) {
        return Err(DelayedError::Nested);
    }
    Ok(Delayed { delay_s, topic: TopicName::new(topic)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delayed_topic_is_taken_apart_and_a_bad_one_refused() {
        let split = |text: &str| split(&TopicName::new(text).unwrap());
        let delayed = |delay_s, topic: &str| Some(Ok(Delayed { delay_s, topic: TopicName::new(topic).unwrap() }));
        assert_eq!(split("$delayed/15/x/y"), delayed(15, "x/y"));
        assert_eq!(split("$delayed/0/x"), delayed(0, "x"));
        assert_eq!(split("$delayed/007//x"), delayed(7, "/x"));
        assert_eq!(split("$delayed/5/$SYS/x"), delayed(5, "$SYS/x"));
        assert_eq!(split("$delayed/4294967295/x"), delayed(u32::MAX, "x"));
        for like_any_other in ["$delayed", "$delayedx/5/x", "delayed/5/x", "x/$delayed/5/x"] {
            assert_eq!(split(like_any_other), None, "{like_any_other}");
        }
        for bad in [
            "$delayed/",
            "$delayed/5",
            "$delayed/x/y",
            "$delayed//x",
            "$delayed/-1/x",
            "$delayed/1.5/x",
            "$delayed/4294967296/x",
            "$delayed/ 5/x",
        ] {
            assert!(matches!(split(bad), Some(Err(DelayedError::Seconds))), "{bad}");
        }
        let target = |text: &str| target(&TopicName::new(text).unwrap()).to_owned();
        assert_eq!(target("$delayed/15/$SYS/y"), "$SYS/y");
        assert_eq!([target("x/y"), target("$delayed/5"), target("$delayed")], ["x/y", "$delayed/5", "$delayed"]);
        assert_eq!(split("$delayed/5/"), Some(Err(DelayedError::Topic(TopicError::Empty))));
        assert_eq!(split("$delayed/5/$delayed/5/x"), Some(Err(DelayedError::Nested)));
    }
}
