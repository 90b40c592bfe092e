//! Topic matching as MQTT 5.0 section 4.7 words it, written down a second time and slowly.

/// Whether `topic` matches `filter`.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let filter: Vec<&str> = filter.split('/').collect();
    let topic: Vec<&str> = topic.split('/').collect();
    levels_match(&filter, &topic)
}

fn levels_match(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) => true,
        (["+", filter @ ..], [_, topic @ ..]) => levels_match(filter, topic),
        ([f, filter @ ..], [t, topic @ ..]) => f == t && levels_match(filter, topic),
        ([], []) => true,
        _ => false,
    }
}
