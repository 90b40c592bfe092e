//! The committed log, read beside the nodes by the rules that DESIGN gives for it, and independent of the machine: which
//! batches are the next of a live stream and which are not, and what has been published.

use std::collections::{BTreeMap, BTreeSet};

use quorate_jepsen::history::MessageName;
use quorate_raft::log_record::{RecordView, read_record};
use quorate_store::command::{Command, NodeStarted, Origin};
use quorate_store::ids::{BatchSeq, ClusterTime, Incarnation, NodeId, Position};

use super::Found;
use crate::net::Host;
use crate::node;

const PROMISE: &str = "what is committed can be read";

/// Nonce and incarnation of a node's latest start.
type Start = (u128, Option<Incarnation>);

/// See the module.
#[derive(Default)]
pub(super) struct Audit {
    /// Last index that was read.
    read: u64,
    time: ClusterTime,
    starts: BTreeMap<NodeId, Start>,
    removed: BTreeSet<NodeId>,
    /// Node and last batch of each live incarnation.
    streams: BTreeMap<Incarnation, (NodeId, BatchSeq)>,
    /// Batches that have no effect, by their index, and the messages in them. (Whatever is due happens at such an entry as
    /// at any other: its stamp counts.)
    void: BTreeMap<u64, BTreeSet<MessageName>>,
    /// CONNECTs that came too late.
    late: BTreeSet<Position>,
    /// What stands in entries that have an effect.
    published: BTreeSet<MessageName>,
}

impl Audit {
    /// Reads on, up to what any node has applied; `told` is one that says so itself.
    pub(super) fn look(&mut self, told: Option<(Host, u64)>) -> Found {
        let applied = |host| node::look(host, |cluster| cluster.applied().borrow().index);
        let seen = node::running().into_iter().filter_map(|host| Some((host, applied(host)?)));
        let known: Vec<(Host, u64)> = seen.chain(told).filter(|(_, applied)| *applied > self.read).collect();
        let last = known.iter().map(|(_, applied)| *applied).max().unwrap_or_default();
        while self.read < last {
            let index = self.read + 1;
            // Whoever has applied it has the committed one, if it has it still.
            let mut logs = known.iter().filter(|(_, applied)| *applied >= index);
            let Some(bytes) = logs.find_map(|(host, _)| node::disk(*host)?.bytes_of(index)) else {
                return Err((
                    PROMISE,
                    format!("entry {index} is applied, and purged from every log before it was read"),
                ));
            };
            let record = read_record(&bytes).map_err(|e| (PROMISE, format!("entry {index}: {e}")))?;
            self.take(record);
            self.read = index;
        }
        Ok(())
    }

    /// Whether the batch at this index has no effect.
    pub(super) fn is_void(&self, index: u64) -> bool {
        self.void.contains_key(&index)
    }

    /// Whether a message stands in such a batch at this index.
    pub(super) fn is_published_in_vain(&self, index: u64, message: MessageName) -> bool {
        self.void.get(&index).is_some_and(|messages| messages.contains(&message))
    }

    /// Whether this CONNECT was beyond its deadline.
    pub(super) fn is_late(&self, connect: Position) -> bool {
        self.late.contains(&connect)
    }

    /// Whether a message stands in the log.
    pub(super) fn has(&self, message: MessageName) -> bool {
        self.published.contains(&message)
    }

    fn take(&mut self, RecordView { index, term, batch }: RecordView) {
        let Some((stamp, batch)) = batch else { return };
        self.time = self.time.max(stamp);
        if let Origin::Stream { node, incarnation, seq } = batch.origin
            && !self.is_next(node, incarnation, seq)
        {
            let messages = batch.commands.iter().filter_map(|command| match command {
                Command::Publish(publish) => MessageName::parse(&publish.payload.0),
                _ => None,
            });
            self.void.insert(index, messages.collect());
            return;
        }
        for (number, command) in (0..).zip(batch.commands) {
            self.obey(Position::new(index, number), term, command);
        }
    }

    fn is_next(&mut self, node: NodeId, incarnation: Incarnation, seq: BatchSeq) -> bool {
        match self.streams.get_mut(&incarnation) {
            Some((of, last)) if *of == node && last.0 + 1 == seq.0 => {
                *last = seq;
                true
            }
            _ => false,
        }
    }

    fn obey(&mut self, at: Position, term: u64, command: Command) {
        match command {
            Command::Connect(connect) if connect.deadline < self.time => drop(self.late.insert(at)),
            Command::Publish(publish) => self.published.extend(MessageName::parse(&publish.payload.0)),
            Command::NodeStarted(started) => self.started(at, &started),
            // What a deposed leader thought is void.
            Command::NodeLost { incarnation, term: of } if of == term => drop(self.streams.remove(&incarnation)),
            Command::RemoveNode { node } => {
                self.removed.insert(node);
                self.streams.retain(|_, (of, _)| *of != node);
            }
            _ => {}
        }
    }

    fn started(&mut self, at: Position, started: &NodeStarted) {
        let (nonce, latest) = self.starts.get(&started.node).copied().unwrap_or_default();
        let is_repeat = nonce == started.nonce && latest.is_some();
        if is_repeat || latest != started.replaces || self.removed.contains(&started.node) {
            return;
        }
        if let Some(before) = latest {
            self.streams.remove(&before);
        }
        let incarnation = Incarnation(at);
        self.starts.insert(started.node, (started.nonce, Some(incarnation)));
        self.streams.insert(incarnation, (started.node, BatchSeq(0)));
    }
}
