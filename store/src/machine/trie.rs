//! Subscriptions by topic level: matching walks the topic's levels, never the subscriptions.
//!
//! The order of what it finds depends on the map's hashing, so callers sort by session: nothing that apply
//! does may depend on it.

use std::collections::{BTreeMap, HashMap};

use crate::ids::{QoS, SessionId, ShareId};
use crate::rows::value::SubscriptionRow;
use crate::topic::{TopicFilter, TopicName};

/// Index of a trie node.
type NodeIndex = usize;
const ROOT: NodeIndex = 0;

/// Who subscribes: a session has `a`, `$exclusive/a` and a part in `$share/g/a` side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subscriber {
    /// A session.
    Session(SessionId),
    /// A session, to the exclusion of others.
    Exclusive(SessionId),
    /// A shared group.
    Share(ShareId),
}

impl Subscriber {
    /// Whether it is a session's own, not a group's.
    fn is_one_session(self) -> bool {
        !matches!(self, Self::Share(_))
    }
}

#[derive(Debug, Default)]
struct TrieNode {
    children: HashMap<Box<str>, NodeIndex>,
    plus: Option<NodeIndex>,
    /// Subscriptions whose filter ends here.
    here: BTreeMap<Subscriber, SubscriptionRow>,
    /// Subscriptions whose filter ends here with `#`.
    below: BTreeMap<Subscriber, SubscriptionRow>,
}

impl TrieNode {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

/// All subscriptions.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Vec<TrieNode>,
    free: Vec<NodeIndex>,
    subscriptions: usize,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![TrieNode::default()], free: Vec::new(), subscriptions: 0 }
    }
}

/// What the matching subscriptions of one session say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) session: SessionId,
    /// The highest of their QoS [MQTT-3.3.4-2].
    pub(super) qos: QoS,
    /// One of them keeps the RETAIN flag.
    pub(super) retain_as_published: bool,
    /// Their Subscription Identifiers [MQTT-3.3.4-4].
    pub(super) identifiers: Vec<u32>,
}

/// Who gets a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Matches {
    /// In order.
    pub(super) sessions: Vec<Match>,
    /// Groups of which one member gets it, in order.
    pub(super) shares: Vec<ShareId>,
}

impl Trie {
    /// Subscriptions.
    pub(super) fn len(&self) -> usize {
        self.subscriptions
    }

    fn node(&self, index: NodeIndex) -> Option<&TrieNode> {
        self.nodes.get(index)
    }

    fn child(&self, node: NodeIndex, level: &str) -> Option<NodeIndex> {
        let node = self.node(node)?;
        if level == "+" { node.plus } else { node.children.get(level).copied() }
    }

    fn child_or_new(&mut self, parent: NodeIndex, level: &str) -> NodeIndex {
        if let Some(child) = self.child(parent, level) {
            return child;
        }
        let child = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(TrieNode::default());
            self.nodes.len() - 1
        });
        if let Some(node) = self.nodes.get_mut(parent) {
            if level == "+" {
                node.plus = Some(child);
            } else {
                node.children.insert(level.into(), child);
            }
        }
        child
    }

    /// Adds or replaces; true when it was not there.
    pub(super) fn insert(&mut self, filter: &TopicFilter, who: Subscriber, row: SubscriptionRow) -> bool {
        let mut at = ROOT;
        let mut is_hash = false;
        for level in filter.levels() {
            if level == "#" {
                is_hash = true;
            } else {
                at = self.child_or_new(at, level);
            }
        }
        let Some(node) = self.nodes.get_mut(at) else { return false };
        let set = if is_hash { &mut node.below } else { &mut node.here };
        let is_new = set.insert(who, row).is_none();
        self.subscriptions += usize::from(is_new && who.is_one_session());
        is_new
    }

    /// Whether it is there.
    pub(super) fn contains(&self, filter: &TopicFilter, who: Subscriber) -> bool {
        let mut at = ROOT;
        let mut is_hash = false;
        for level in filter.levels() {
            if level == "#" {
                is_hash = true;
            } else if let Some(child) = self.child(at, level) {
                at = child;
            } else {
                return false;
            }
        }
        self.node(at).is_some_and(|node| if is_hash { &node.below } else { &node.here }.contains_key(&who))
    }

    /// Removes; true when it was there.
    pub(super) fn remove(&mut self, filter: &TopicFilter, who: Subscriber) -> bool {
        let mut path = vec![(ROOT, "")];
        let mut at = ROOT;
        let mut is_hash = false;
        for level in filter.levels() {
            if level == "#" {
                is_hash = true;
            } else {
                let Some(child) = self.child(at, level) else { return false };
                path.push((child, level));
                at = child;
            }
        }
        let Some(node) = self.nodes.get_mut(at) else { return false };
        let set = if is_hash { &mut node.below } else { &mut node.here };
        let removed = set.remove(&who).is_some();
        self.subscriptions -= usize::from(removed && who.is_one_session());
        // Nodes that hold nothing go, so that the trie does not grow with what was once subscribed.
        while let Some((index, level)) = path.pop() {
            let Some(&(parent, _)) = path.last() else { break };
            if !self.node(index).is_some_and(TrieNode::is_empty) {
                break;
            }
            if let Some(node) = self.nodes.get_mut(index) {
                *node = TrieNode::default();
            }
            if let Some(parent) = self.nodes.get_mut(parent) {
                if level == "+" {
                    parent.plus = None;
                } else {
                    parent.children.remove(level);
                }
            }
            self.free.push(index);
        }
        removed
    }

    /// All sessions and groups with a subscription that matches `topic`. Subscriptions of `publisher` with No Local
    /// do not count [MQTT-3.8.3-3].
    pub(super) fn matches(&self, topic: &TopicName, publisher: Option<SessionId>) -> Matches {
        let mut found: Vec<(SessionId, SubscriptionRow)> = Vec::new();
        let mut shares = Vec::new();
        let mut at = vec![ROOT];
        let mut next = Vec::new();
        let mut take = |set: &BTreeMap<Subscriber, SubscriptionRow>| {
            for (who, row) in set {
                match who {
                    Subscriber::Session(s) | Subscriber::Exclusive(s)
                        if !(row.options.no_local && publisher == Some(*s)) =>
                    {
                        found.push((*s, *row));
                    }
                    Subscriber::Session(_) | Subscriber::Exclusive(_) => {}
                    Subscriber::Share(share) => shares.push(*share),
                }
            }
        };
        for (depth, level) in topic.levels().enumerate() {
            let wildcards = depth > 0 || !topic.is_dollar();
            for node in at.drain(..).filter_map(|i| self.node(i)) {
                if wildcards {
                    take(&node.below);
                    next.extend(node.plus);
                }
                next.extend(node.children.get(level).copied());
            }
            std::mem::swap(&mut at, &mut next);
        }
        for node in at.into_iter().filter_map(|i| self.node(i)) {
            take(&node.here);
            // `a/#` matches `a` itself.
            take(&node.below);
        }
        shares.sort_unstable();
        found.sort_by_key(|(session, row)| (*session, row.identifier));
        let mut sessions: Vec<Match> = Vec::with_capacity(found.len());
        for (session, row) in found {
            match sessions.last_mut().filter(|m| m.session == session) {
                Some(m) => {
                    m.qos = m.qos.max(row.options.qos);
                    m.retain_as_published |= row.options.retain_as_published;
                    m.identifiers.extend(row.identifier);
                }
                None => sessions.push(Match {
                    session,
                    qos: row.options.qos,
                    retain_as_published: row.options.retain_as_published,
                    identifiers: row.identifier.into_iter().collect(),
                }),
            }
        }
        Matches { sessions, shares }
    }
}

#[cfg(test)]
mod tests {
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

    fn filter() -> impl Strategy<Value = TopicFilter> {
        "(\\$?(a|b||\\+)/){0,3}(a|b|\\+|#|\\$s)".prop_filter_map("not a filter", |s| TopicFilter::new(&s).ok())
    }

    fn topic() -> impl Strategy<Value = TopicName> {
        "(\\$?(a|b|)/){0,3}(a|b|\\$s)".prop_filter_map("not a topic", |s| TopicName::new(&s).ok())
    }

    proptest! {
        #[test]
        fn the_trie_finds_what_a_scan_finds(
            ops in prop::collection::vec((filter(), 0..4u64, any::<bool>()), 0..40),
            topics in prop::collection::vec(topic(), 1..8),
        ) {
            let mut trie = Trie::default();
            let mut scan: BTreeMap<(String, u64), TopicFilter> = BTreeMap::new();
            for (filter, s, add) in ops {
                let k = (filter.as_str().to_owned(), s);
                prop_assert_eq!(trie.len(), scan.len());
                prop_assert_eq!(trie.contains(&filter, session(s)), scan.contains_key(&k));
                if add {
                    prop_assert_eq!(trie.insert(&filter, session(s), row(QoS::AtLeastOnce)), scan.insert(k, filter).is_none());
                } else {
                    prop_assert_eq!(trie.remove(&filter, session(s)), scan.remove(&k).is_some());
                }
            }
            for topic in &topics {
                let mut want: Vec<_> = scan.iter().filter(|(_, f)| f.matches(topic)).map(|((_, s), _)| id(*s)).collect();
                want.sort();
                want.dedup();
                let got: Vec<_> = trie.matches(topic, None).sessions.into_iter().map(|m| m.session).collect();
                prop_assert_eq!(got, want);
            }
            for (k, f) in scan {
                trie.remove(&f, session(k.1));
            }
            prop_assert_eq!(trie.nodes.len(), trie.free.len() + 1);
        }
    }
}
