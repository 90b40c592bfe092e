//! Topic filters, written down once more: nothing of the broker's is used here.

/// A filter without its share, and the share.
pub(super) fn split(filter: &str) -> (&str, Option<&str>) {
    match filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')) {
        Some((share, inner)) => (inner, Some(share)),
        None => (filter.strip_prefix("$exclusive/").unwrap_or(filter), None),
    }
}

/// Whether a filter without share matches a topic (MQTT 5.0 section 4.7).
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(f), Some(t)) if f == t => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (filter, topic) in
            [("a", "a"), ("#", "a/b"), ("a/#", "a"), ("a/#", "a/b/c"), ("+/b", "a/b"), ("a/+", "a/"), ("$S/#", "$S/a")]
        {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [("a", "b"), ("a", "a/b"), ("a/b", "a"), ("+", "a/b"), ("#", "$S/a"), ("a/+", "a")] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(split("$share/g/a/+"), ("a/+", Some("g")));
        assert_eq!(split("a/+"), ("a/+", None));
        assert_eq!(split("$exclusive/a"), ("a", None));
    }
}
