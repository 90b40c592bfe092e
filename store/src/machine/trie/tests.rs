use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::command::SubscribeOptions;
use crate::ids::Position;

fn row(qos: QoS) -> SubscriptionRow {
    let options = SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: 0 };
    SubscriptionRow { identifier: None, options }
}

fn id(n: u64) -> SessionId {
    SessionId(Position::new(n, 0))
}

fn session(n: u64) -> Subscriber {
    Subscriber::Session(id(n))
}

#[test]
fn overlapping_subscriptions_of_a_session_are_one_match_with_the_highest_qos() {
    let mut t = Trie::default();
    let mut with_id = row(QoS::AtMostOnce);
    with_id.identifier = Some(9);
    t.insert(&TopicFilter::new("a/#").unwrap(), session(1), with_id);
    t.insert(&TopicFilter::new("a/+").unwrap(), session(1), row(QoS::ExactlyOnce));
    let m = t.matches(&TopicName::new("a/b").unwrap(), None).sessions;
    assert_eq!(m.len(), 1);
    assert_eq!((m[0].qos, m[0].identifiers.as_slice()), (QoS::ExactlyOnce, &[9][..]));
}

#[test]
fn no_local_counts_only_against_its_own_session() {
    let mut t = Trie::default();
    let mut r = row(QoS::AtLeastOnce);
    r.options.no_local = true;
    t.insert(&TopicFilter::new("a").unwrap(), session(1), r);
    t.insert(&TopicFilter::new("a").unwrap(), session(2), r);
    let m = t.matches(&TopicName::new("a").unwrap(), Some(id(1))).sessions;
    assert_eq!(m.iter().map(|m| m.session).collect::<Vec<_>>(), [id(2)]);
}

#[test]
fn a_session_a_group_and_an_exclusive_subscription_of_one_filter_stand_side_by_side() {
    let mut t = Trie::default();
    let a = TopicFilter::new("a/+").unwrap();
    let share = ShareId(Position::new(1, 0));
    for who in [session(1), Subscriber::Exclusive(id(1)), Subscriber::Share(share)] {
        assert!(t.insert(&a, who, row(QoS::AtLeastOnce)));
    }
    let found = t.matches(&TopicName::new("a/b").unwrap(), None);
    assert_eq!((found.sessions.len(), found.shares), (1, vec![share]));
    assert!(t.remove(&a, session(1)));
    assert!(t.contains(&a, Subscriber::Exclusive(id(1))) && t.contains(&a, Subscriber::Share(share)));
}

/// Names that fit into a node, one that just does, one that just does not, and one that begins like it.
const NAMES: &str = "a|b|c||\\$s|ä|twenty-two-bytes-long-|twenty-three-bytes-long|twenty-three-bytes-longer";

fn filter() -> impl Strategy<Value = TopicFilter> {
    let text = format!("(\\$?({NAMES}|\\+)/){{0,3}}({NAMES}|\\+|#)");
    prop::string::string_regex(&text).unwrap().prop_filter_map("not a filter", |s| TopicFilter::new(&s).ok())
}

fn topic() -> impl Strategy<Value = TopicName> {
    let text = format!("(\\$?({NAMES})/){{0,3}}({NAMES})");
    prop::string::string_regex(&text).unwrap().prop_filter_map("not a topic", |s| TopicName::new(&s).ok())
}

fn who() -> impl Strategy<Value = Subscriber> {
    let share = |n| Subscriber::Share(ShareId(Position::new(n, 0)));
    (0..4_u64, 0..5_u8).prop_map(move |(n, kind)| match kind {
        0 => share(n),
        1 => Subscriber::Exclusive(id(n)),
        _ => session(n),
    })
}

fn any_row() -> impl Strategy<Value = SubscriptionRow> {
    let (flags, identifier) = (any::<[bool; 2]>(), prop::option::of(prop::sample::select(vec![1, 2, 268_435_455])));
    (0..3_u8, flags, identifier).prop_map(|(qos, [no_local, retain_as_published], identifier)| {
        let qos = QoS::from_u8(qos).unwrap();
        let options = SubscribeOptions { qos, no_local, retain_as_published, retain_handling: 0 };
        SubscriptionRow { identifier, options }
    })
}

/// All subscriptions, to be looked at one by one.
type Scan = BTreeMap<(TopicFilter, Subscriber), SubscriptionRow>;

fn matches_of(scan: &Scan, topic: &TopicName, publisher: Option<SessionId>) -> Matches {
    let mut shares = Vec::new();
    let mut rows: BTreeMap<SessionId, Vec<SubscriptionRow>> = BTreeMap::new();
    for ((_, who), row) in scan.iter().filter(|((filter, _), _)| filter.matches(topic)) {
        match *who {
            Subscriber::Share(share) => shares.push(share),
            Subscriber::Session(to) | Subscriber::Exclusive(to) => {
                if !row.options.no_local || publisher != Some(to) {
                    rows.entry(to).or_default().push(*row);
                }
            }
        }
    }
    shares.sort();
    let of_session = |(session, rows): (SessionId, Vec<SubscriptionRow>)| {
        let mut identifiers: Vec<u32> = rows.iter().filter_map(|row| row.identifier).collect();
        identifiers.sort_unstable();
        Match {
            session,
            qos: rows.iter().map(|row| row.options.qos).max().unwrap(),
            retain_as_published: rows.iter().any(|row| row.options.retain_as_published),
            identifiers,
        }
    };
    Matches { sessions: rows.into_iter().map(of_session).collect(), shares }
}

/// Nothing is left of it but the root.
fn is_bare(trie: &Trie) -> bool {
    trie.nodes.len() == trie.free.len() + 1 && trie.index.len() == 0 && trie.nodes[0].is_empty() && trie.len() == 0
}

proptest! {
    #[test]
    fn the_trie_finds_what_a_scan_finds(
        // Three of four are added, else few are ever there together.
        ops in prop::collection::vec((filter(), who(), any_row(), 0..4_u8), 0..120),
        topics in prop::collection::vec((topic(), prop::option::of((0..4_u64).prop_map(id))), 1..16),
    ) {
        let mut trie = Trie::default();
        let mut scan = Scan::new();
        for (filter, who, row, op) in ops {
            let key = (filter.clone(), who);
            prop_assert_eq!(trie.contains(&filter, who), scan.contains_key(&key));
            if op > 0 {
                prop_assert_eq!(trie.insert(&filter, who, row), scan.insert(key, row).is_none());
            } else {
                // One that is there, if there is one.
                let key = scan.range(key.clone()..).next().map_or(key, |(key, _)| key.clone());
                prop_assert_eq!(trie.remove(&key.0, key.1), scan.remove(&key).is_some());
            }
            prop_assert_eq!(trie.len(), scan.keys().filter(|(_, who)| who.is_one_session()).count());
        }
        for (topic, publisher) in &topics {
            prop_assert_eq!(trie.matches(topic, *publisher), matches_of(&scan, topic, *publisher));
        }
        for (filter, who) in scan.into_keys() {
            prop_assert!(trie.remove(&filter, who));
        }
        prop_assert!(is_bare(&trie));
    }

    /// Children of few parents, far more than the first slots, in any order of coming and going.
    #[test]
    fn of_many_children_each_is_found_until_it_goes(
        ops in prop::collection::vec((0..3_u8, 0..300_u16, 0..3_u8), 0..1_500),
    ) {
        let mut trie = Trie::default();
        let mut there = std::collections::BTreeSet::new();
        let name = |parent: u8, child: u16| format!("{parent}/{child}");
        for (parent, child, op) in ops {
            let filter = TopicFilter::new(&name(parent, child)).unwrap();
            if op > 0 {
                prop_assert_eq!(trie.insert(&filter, session(1), row(QoS::AtMostOnce)), there.insert((parent, child)));
            } else {
                prop_assert_eq!(trie.remove(&filter, session(1)), there.remove(&(parent, child)));
            }
        }
        for (parent, child) in (0..3).flat_map(|parent| (0..300).map(move |child| (parent, child))) {
            let topic = TopicName::new(&name(parent, child)).unwrap();
            prop_assert_eq!(!trie.matches(&topic, None).sessions.is_empty(), there.contains(&(parent, child)));
        }
        for (parent, child) in there {
            prop_assert!(trie.remove(&TopicFilter::new(&name(parent, child)).unwrap(), session(1)));
        }
        prop_assert!(is_bare(&trie));
    }
}
