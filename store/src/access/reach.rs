//! What a topic of PUBLISH or a filter of SUBSCRIBE reaches in the end: rules are about that, whatever stands before it.

/// The topic at which a message is published in the end: `t` of `$delayed/SECONDS/t`.
#[must_use]
pub fn reached_by_publish(topic: &str) -> &str {
    topic.strip_prefix(crate::delayed::PREFIX).map_or(topic, |rest| after_level(rest).unwrap_or(topic))
}

/// The filter with which a subscription matches: `f` of `$share/group/f` and `$exclusive/f`.
#[must_use]
pub fn reached_by_subscription(filter: &str) -> &str {
    match filter.split_once('/') {
        Some(("$share", rest)) => after_level(rest).unwrap_or(filter),
        Some(("$exclusive", rest)) if !rest.is_empty() => rest,
        _ => filter,
    }
}

fn after_level(text: &str) -> Option<&str> {
    text.split_once('/').map(|(_, rest)| rest).filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_or_subscription_is_about_is_judged() {
        for (topic, judged) in [
            ("a/b", "a/b"),
            ("$delayed/10/a/b", "a/b"),
            ("$delayed/10//b", "/b"),
            ("$delayed/10", "$delayed/10"),
            ("$delayed/10/", "$delayed/10/"),
            ("$SYS/x", "$SYS/x"),
            ("x/$delayed/10/a", "x/$delayed/10/a"),
        ] {
            assert_eq!(reached_by_publish(topic), judged, "{topic}");
        }
        for (filter, judged) in [
            ("a/+", "a/+"),
            ("$share/g/a/#", "a/#"),
            ("$share/g//a", "/a"),
            ("$share/g", "$share/g"),
            ("$exclusive/a/b", "a/b"),
            ("$exclusive/", "$exclusive/"),
            ("$exclusive", "$exclusive"),
        ] {
            assert_eq!(reached_by_subscription(filter), judged, "{filter}");
        }
    }
}
