//! Nodes, their incarnations, and the exactness of their proposal streams.

use crate::command::{NodeInfo, NodeStarted};
use crate::effect::{Effect, EffectSink, Outcome};
use crate::ids::{BatchSeq, Incarnation, NodeId, Position};
use crate::rows::RowStore;
use crate::rows::key::{self, MetaName};
use crate::rows::value::{NodeRow, NumberRow, Value as _};
use crate::seeded_bug::{SeededBug, is_seeded};

use super::{EntryContext, Machine, MachineError, Stream};

impl<S: RowStore> Machine<S> {
    /// Whether a batch is the next of its stream: `Some(true)` to apply it. A repeat and the batches of a
    /// closed incarnation are ignored; a gap is told to the proposer.
    pub(super) fn accept(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        seq: BatchSeq,
        fx: &mut dyn EffectSink,
    ) -> Option<bool> {
        if is_seeded(SeededBug::LateBatchOfLostNodeAccepted) && !self.streams.contains_key(&incarnation) {
            return Some(true);
        }
        let stream = self.streams.get_mut(&incarnation).filter(|s| s.node == node)?;
        let expected = BatchSeq(stream.last.0 + 1);
        if seq < expected && is_seeded(SeededBug::BatchAppliedTwice) {
            return Some(true);
        }
        if seq == expected || (seq > expected && is_seeded(SeededBug::GapApplied)) {
            stream.last = seq;
            stream.dirty = true;
            return Some(true);
        }
        if seq > expected && fx.wants(incarnation) {
            fx.push(Effect::Gap { incarnation, expected });
        }
        Some(false)
    }

    pub(super) fn node_started(
        &mut self,
        position: Position,
        started: &NodeStarted,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        let known = self.nodes.get(&started.node);
        if let Some(row) = known {
            if let (true, Some(incarnation)) = (row.nonce == started.nonce, row.incarnation) {
                return Ok(Outcome::NodeStarted(incarnation));
            }
            if row.incarnation != started.replaces {
                return Ok(Outcome::StartOutdated(row.incarnation));
            }
        } else if !self.nodes.is_empty() || started.node.0 != self.next_node {
            // Removed (its id never comes back), or never allocated. Only the first of all starts unasked.
            return Ok(Outcome::Void);
        }
        let before = known.filter(|row| row.is_up).and_then(|row| row.incarnation);
        let token = known.map_or(0, |row| row.token);
        if let Some(before) = before {
            self.close_incarnation(before, started.node, fx)?;
        }
        let incarnation = Incarnation(position);
        let row = NodeRow {
            info: started.info.clone(),
            token,
            nonce: started.nonce,
            incarnation: Some(incarnation),
            is_up: true,
            wall_ms: started.wall_ms,
        };
        self.put_node(started.node, row)?;
        self.streams.insert(incarnation, Stream { node: started.node, last: BatchSeq(0), dirty: true });
        self.set_next_node(self.next_node.max(started.node.0 + 1))?;
        Ok(Outcome::NodeStarted(incarnation))
    }

    pub(super) fn node_lost(
        &mut self,
        entry: EntryContext,
        incarnation: Incarnation,
        term: u64,
        fx: &mut dyn EffectSink,
    ) -> Result<Outcome, MachineError> {
        // A deposed leader's opinion that a later leader replicates is void: what it had not heard of, the
        // later leader may have.
        if entry.term != term {
            return Ok(Outcome::Void);
        }
        let Some(stream) = self.streams.get(&incarnation) else { return Ok(Outcome::Void) };
        self.close_incarnation(incarnation, stream.node, fx)?;
        Ok(Outcome::Done)
    }

    pub(super) fn allocate_node(&mut self, token: u128, info: &NodeInfo) -> Result<Outcome, MachineError> {
        if let Some((node, _)) = self.nodes.iter().find(|(_, row)| row.token == token && token != 0) {
            return Ok(Outcome::NodeAllocated(*node));
        }
        if self.nodes.is_empty() {
            // The first node starts unasked under the first id, which nobody else may get: ask again when it has.
            return Ok(Outcome::Void);
        }
        let node = NodeId(self.next_node);
        let row = NodeRow { info: info.clone(), token, nonce: 0, incarnation: None, is_up: false, wall_ms: 0 };
        self.put_node(node, row)?;
        self.set_next_node(self.next_node + 1)?;
        Ok(Outcome::NodeAllocated(node))
    }

    pub(super) fn remove_node(&mut self, node: NodeId, fx: &mut dyn EffectSink) -> Result<Outcome, MachineError> {
        let Some(row) = self.nodes.get(&node) else { return Ok(Outcome::Void) };
        if let (true, Some(incarnation)) = (row.is_up, row.incarnation) {
            self.close_incarnation(incarnation, node, fx)?;
        }
        self.nodes.remove(&node);
        self.rows.delete(key::node(node));
        Ok(Outcome::Done)
    }

    /// Refuses everything further of `incarnation`. Its sessions are detached step by step
    /// ([`super::timers`]), or when one of them is touched first.
    fn close_incarnation(
        &mut self,
        incarnation: Incarnation,
        node: NodeId,
        fx: &mut dyn EffectSink,
    ) -> Result<(), MachineError> {
        self.streams.remove(&incarnation);
        self.rows.delete(key::dedup(incarnation));
        if let Some(mut row) = self.nodes.get(&node).cloned() {
            row.is_up = false;
            self.put_node(node, row)?;
        }
        if fx.wants(incarnation) {
            fx.push(Effect::IncarnationClosed { incarnation, node });
        }
        Ok(())
    }

    fn put_node(&mut self, node: NodeId, row: NodeRow) -> Result<(), MachineError> {
        self.rows.put(key::node(node), row.to_bytes()?);
        self.nodes.insert(node, row);
        Ok(())
    }

    fn set_next_node(&mut self, next: u64) -> Result<(), MachineError> {
        self.next_node = next;
        self.rows.put(key::meta(MetaName::NextNode), NumberRow(next).to_bytes()?);
        Ok(())
    }
}
