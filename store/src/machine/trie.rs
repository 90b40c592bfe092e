//! Subscriptions by topic level: matching walks the topic's levels, never the subscriptions.
//!
//! A level costs at most a slot of the [`index`] and a [`node`], each in one line of the processor's cache, and only
//! the node where nothing branches. What is found comes in an order that callers may depend on: of sessions and groups.

mod index;
mod node;

use crate::ids::{QoS, SessionId, ShareId};
use crate::rows::value::SubscriptionRow;
use crate::topic::{TopicFilter, TopicName};

use index::{Index, Key};
use node::{Entry, Node, NodeIndex};

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

/// All subscriptions.
#[derive(Debug)]
pub(super) struct Trie {
    /// The root is the first.
    nodes: Vec<Node>,
    /// Nodes that are not in use.
    free: Vec<NodeIndex>,
    /// Children by name that are not their parent's first.
    index: Index,
    key: Key,
    subscriptions: usize,
}

impl Default for Trie {
    fn default() -> Self {
        let nodes = vec![Node::new(NodeIndex::NONE, "")];
        Self { nodes, free: Vec::new(), index: Index::default(), key: Key::random(), subscriptions: 0 }
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

/// A filter's levels without a final `#`, and whether there was one.
fn without_hash(filter: &TopicFilter) -> (impl Iterator<Item = &str>, bool) {
    (filter.levels().filter(|level| *level != "#"), filter.as_str().ends_with('#'))
}

impl Trie {
    /// Subscriptions.
    pub(super) fn len(&self) -> usize {
        self.subscriptions
    }

    fn node(&self, index: NodeIndex) -> Option<&Node> {
        self.nodes.get(index.at())
    }

    fn node_mut(&mut self, index: NodeIndex) -> Option<&mut Node> {
        self.nodes.get_mut(index.at())
    }

    fn is_child(&self, child: NodeIndex, parent: NodeIndex, level: &[u8]) -> bool {
        self.node(child).is_some_and(|child| child.parent == parent && child.name() == level)
    }

    /// The child called `level`, which is not `+`, of the node at `parent`.
    fn named(&self, parent: NodeIndex, node: &Node, level: &str) -> Option<NodeIndex> {
        if !node.has_children_by_name() {
            return None;
        }
        let (hash, level) = (self.key.hash(parent, level.as_bytes()), level.as_bytes());
        if node.first_hash == hash && self.is_child(node.first, parent, level) {
            return Some(node.first);
        }
        if node.others == 0 {
            return None;
        }
        self.index.find(hash, |child| self.is_child(child, parent, level))
    }

    fn child(&self, parent: NodeIndex, level: &str) -> Option<NodeIndex> {
        let node = self.node(parent)?;
        if level == "+" { Some(node.plus).filter(|plus| plus.is_some()) } else { self.named(parent, node, level) }
    }

    /// The node where the filter's levels end.
    fn end_of<'a>(&self, mut levels: impl Iterator<Item = &'a str>) -> Option<NodeIndex> {
        levels.try_fold(NodeIndex::ROOT, |at, level| self.child(at, level))
    }

    /// `None` when no node has a number left, which is not before there are four thousand million.
    fn child_or_new(&mut self, parent: NodeIndex, level: &str) -> Option<NodeIndex> {
        if let Some(child) = self.child(parent, level) {
            return Some(child);
        }
        let is_plus = level == "+";
        let node = Node::new(parent, if is_plus { "" } else { level });
        let child = match self.free.pop() {
            Some(free) => {
                *self.node_mut(free)? = node;
                free
            }
            None => {
                let child = NodeIndex::new(self.nodes.len())?;
                self.nodes.push(node);
                child
            }
        };
        let hash = self.key.hash(parent, level.as_bytes());
        let parent = self.node_mut(parent)?;
        if is_plus {
            parent.plus = child;
        } else if parent.first.is_some() {
            parent.others += 1;
            self.index.insert(hash, child);
        } else {
            (parent.first, parent.first_hash) = (child, hash);
        }
        Some(child)
    }

    /// Takes away the node at `child`, which holds nothing; its parent.
    fn remove_node(&mut self, child: NodeIndex) -> Option<NodeIndex> {
        let node = std::mem::replace(self.node_mut(child)?, Node::new(NodeIndex::NONE, ""));
        self.free.push(child);
        let parent = self.node_mut(node.parent)?;
        if parent.plus == child {
            parent.plus = NodeIndex::NONE;
        } else if parent.first == child {
            parent.first = NodeIndex::NONE;
        } else {
            parent.others -= 1;
            self.index.remove(self.key.hash(node.parent, node.name()), child);
        }
        Some(node.parent)
    }

    /// Adds or replaces; true when it was not there.
    pub(super) fn insert(&mut self, filter: &TopicFilter, who: Subscriber, row: SubscriptionRow) -> bool {
        let (mut levels, is_below) = without_hash(filter);
        let end = levels.try_fold(NodeIndex::ROOT, |at, level| self.child_or_new(at, level));
        let Some(node) = end.and_then(|end| self.node_mut(end)) else { return false };
        let is_new = node.entries.insert(Entry::new(who, is_below, row));
        self.subscriptions += usize::from(is_new && who.is_one_session());
        is_new
    }

    /// Whether it is there.
    pub(super) fn contains(&self, filter: &TopicFilter, who: Subscriber) -> bool {
        let (levels, is_below) = without_hash(filter);
        let end = self.end_of(levels).and_then(|end| self.node(end));
        end.is_some_and(|node| node.entries.contains(who, is_below))
    }

    /// Removes; true when it was there.
    pub(super) fn remove(&mut self, filter: &TopicFilter, who: Subscriber) -> bool {
        let (levels, is_below) = without_hash(filter);
        let Some(mut at) = self.end_of(levels) else { return false };
        let Some(node) = self.node_mut(at) else { return false };
        let removed = node.entries.remove(who, is_below);
        self.subscriptions -= usize::from(removed && who.is_one_session());
        // Nodes that hold nothing go, so that the trie does not grow with what was once subscribed.
        while at != NodeIndex::ROOT && self.node(at).is_some_and(Node::is_empty) {
            let Some(parent) = self.remove_node(at) else { break };
            at = parent;
        }
        removed
    }

    /// What matches below the node `at`, of which `rest` is still to be walked. As deep as a topic has levels.
    fn walk(&self, at: NodeIndex, rest: Option<&str>, wildcards: bool, take: &mut impl FnMut(&Entry)) {
        let Some(node) = self.node(at) else { return };
        let Some(rest) = rest else { return node.entries.each(take) };
        let (level, rest) = rest.split_once('/').map_or((rest, None), |(level, rest)| (level, Some(rest)));
        if wildcards {
            node.entries.each_below(take);
            if node.plus.is_some() {
                self.walk(node.plus, rest, true, take);
            }
        }
        if let Some(child) = self.named(at, node, level) {
            self.walk(child, rest, true, take);
        }
    }

    /// All sessions and groups with a subscription that matches `topic`. Subscriptions of `publisher` with No Local
    /// do not count [MQTT-3.8.3-3].
    pub(super) fn matches(&self, topic: &TopicName, publisher: Option<SessionId>) -> Matches {
        let mut found: Vec<(SessionId, Entry)> = Vec::new();
        let mut shares = Vec::new();
        self.walk(NodeIndex::ROOT, Some(topic.as_str()), !topic.is_dollar(), &mut |entry| match entry.who() {
            Subscriber::Session(session) | Subscriber::Exclusive(session) => {
                if !(entry.no_local() && publisher == Some(session)) {
                    found.push((session, *entry));
                }
            }
            Subscriber::Share(share) => shares.push(share),
        });
        shares.sort_unstable();
        found.sort_unstable_by_key(|(session, entry)| (*session, entry.identifier));
        let mut sessions: Vec<Match> = Vec::with_capacity(found.len());
        for (session, entry) in found {
            let identifier = entry.identifier.map(std::num::NonZeroU32::get);
            match sessions.last_mut().filter(|m| m.session == session) {
                Some(m) => {
                    m.qos = m.qos.max(entry.qos);
                    m.retain_as_published |= entry.retain_as_published();
                    m.identifiers.extend(identifier);
                }
                None => sessions.push(Match {
                    session,
                    qos: entry.qos,
                    retain_as_published: entry.retain_as_published(),
                    identifiers: identifier.into_iter().collect(),
                }),
            }
        }
        Matches { sessions, shares }
    }
}

#[cfg(test)]
mod tests;
