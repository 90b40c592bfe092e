//! The window of a connected session that has rows: the first Receive Maximum unsettled rows of its queue, with
//! a span under 65,535 so that no two share a packet identifier.
//!
//! It is a pure function of the rows and the Receive Maximum; what is held here is a copy of the front of
//! the queue, so that settling a live message reads nothing. It may hold more rows than the window has.

use std::collections::VecDeque;

use crate::ids::{ClusterTime, Position, QoS, QueueSeq};
use crate::rows::RowsError;
use crate::rows::key;
use crate::rows::value::{Given, QueueRow, no_identifiers};

/// Rows read from the database at once when the copy runs short.
pub(super) const LOAD_ROWS: usize = 256;
/// Packet identifiers repeat after this many sequence numbers.
pub(super) const SPAN_MAX: u64 = 65_535;

/// What settling needs of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowRow {
    pub(super) seq: QueueSeq,
    pub(super) position: Position,
    pub(super) charge: u32,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) released: bool,
    pub(super) is_shared: bool,
    /// It has Subscription Identifiers, which are not held here.
    pub(super) is_identified: bool,
    pub(super) expires_at: Option<ClusterTime>,
    /// The shared group that gave it.
    pub(super) given: Option<Given>,
}

impl WindowRow {
    pub(super) fn of(seq: QueueSeq, row: &QueueRow) -> Self {
        Self {
            seq,
            position: row.position,
            charge: row.charge,
            qos: row.qos,
            retain: row.retain,
            released: row.released,
            is_shared: row.is_shared,
            is_identified: !row.identifiers.is_empty(),
            expires_at: row.expires_at,
            given: row.given,
        }
    }

    /// The row that stands at `key`.
    pub(super) fn read(key: &[u8], value: &[u8]) -> Result<Self, RowsError> {
        let damaged = |reason| RowsError::Damaged { key: key::describe(key), reason };
        let seq = key::rest_u64(key, 8).ok_or_else(|| damaged("short key".to_owned()))?;
        let (row, identifiers) = QueueRow::split(value).map_err(damaged)?;
        Ok(Self { is_identified: !identifiers.is_empty(), ..Self::of(QueueSeq(seq), &row) })
    }

    /// The whole row, when this is all of it.
    pub(super) fn unidentified(&self) -> Option<QueueRow> {
        (!self.is_identified).then(|| QueueRow {
            qos: self.qos,
            retain: self.retain,
            released: self.released,
            is_shared: self.is_shared,
            position: self.position,
            charge: self.charge,
            expires_at: self.expires_at,
            given: self.given,
            identifiers: no_identifiers(),
        })
    }
}

/// The front of one queue.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Consecutive rows from the first unsettled one on.
    rows: VecDeque<WindowRow>,
    /// First sequence number that is not looked at; all existing rows below are in `rows`.
    loaded_until: QueueSeq,
}

impl Window {
    /// Nothing loaded yet of a queue that has no row below `head`.
    pub(super) fn new(head: QueueSeq) -> Self {
        Self { rows: VecDeque::new(), loaded_until: head }
    }

    pub(super) fn loaded_until(&self) -> QueueSeq {
        self.loaded_until
    }

    pub(super) fn first(&self) -> Option<QueueSeq> {
        self.rows.front().map(|row| row.seq)
    }

    /// Whether the window may hold rows that are not loaded.
    pub(super) fn is_short(&self, receive_maximum: u16, next_seq: QueueSeq) -> bool {
        self.rows.len() < usize::from(receive_maximum) && self.loaded_until < next_seq
    }

    /// Takes what was read: all rows of `loaded_until <= seq < until`.
    pub(super) fn load(&mut self, rows: impl IntoIterator<Item = WindowRow>, until: QueueSeq) {
        self.rows.extend(rows);
        self.loaded_until = until;
    }

    /// Takes a row just appended, when nothing before it is missing and the copy is not far ahead already.
    pub(super) fn append(&mut self, row: WindowRow, receive_maximum: u16) {
        if self.loaded_until == row.seq && self.rows.len() < usize::from(receive_maximum) + LOAD_ROWS {
            self.loaded_until = row.seq.next();
            self.rows.push_back(row);
        }
    }

    fn find(&self, seq: QueueSeq) -> Option<usize> {
        // In the common case acknowledgements come in order, and the first row is asked for.
        if self.first() == Some(seq) { Some(0) } else { self.rows.binary_search_by_key(&seq, |row| row.seq).ok() }
    }

    pub(super) fn get(&self, seq: QueueSeq) -> Option<WindowRow> {
        self.rows.get(self.find(seq)?).copied()
    }

    pub(super) fn set_released(&mut self, seq: QueueSeq) {
        if let Some(row) = self.find(seq).and_then(|i| self.rows.get_mut(i)) {
            row.released = true;
        }
    }

    pub(super) fn remove(&mut self, seq: QueueSeq) {
        if let Some(i) = self.find(seq) {
            self.rows.remove(i);
        }
    }

    /// First number that is certainly outside: the window's end. Only meaningful when not short.
    ///
    /// It follows the last row inside, and never asks for the first row outside: whether that one is loaded
    /// differs between replicas, and the end is written into rows.
    pub(super) fn end(&self, receive_maximum: u16, next_seq: QueueSeq) -> QueueSeq {
        let last_inside = self.rows.get(usize::from(receive_maximum).saturating_sub(1));
        let end = last_inside.map_or(next_seq, |row| row.seq.next());
        match self.first() {
            Some(first) => end.min(QueueSeq(first.0 + SPAN_MAX)),
            None => end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64) -> WindowRow {
        WindowRow {
            seq: QueueSeq(seq),
            position: Position::new(seq, 0),
            charge: 1,
            qos: QoS::AtLeastOnce,
            retain: false,
            released: false,
            is_shared: false,
            is_identified: false,
            expires_at: None,
            given: None,
        }
    }

    #[test]
    fn the_window_moves_only_when_a_row_goes() {
        let mut w = Window::new(QueueSeq(0));
        for seq in 0..5 {
            w.append(row(seq), 3);
        }
        assert_eq!(w.end(3, QueueSeq(5)), QueueSeq(3));
        w.remove(QueueSeq(1));
        assert_eq!(w.end(3, QueueSeq(5)), QueueSeq(4));
        w.set_released(QueueSeq(0));
        assert_eq!(w.end(3, QueueSeq(5)), QueueSeq(4));
    }

    #[test]
    fn the_window_spans_less_than_the_packet_identifiers() {
        let mut w = Window::new(QueueSeq(0));
        w.load([row(0), row(65_534), row(65_535)], QueueSeq(65_536));
        assert_eq!(w.end(10, QueueSeq(65_536)), QueueSeq(65_535));
        w.remove(QueueSeq(0));
        assert_eq!(w.end(10, QueueSeq(65_536)), QueueSeq(65_536));
    }

    #[test]
    fn the_end_is_the_same_whatever_is_loaded_behind_the_window() {
        let mut little = Window::new(QueueSeq(0));
        little.load([row(0), row(1)], QueueSeq(2));
        let mut much = Window::new(QueueSeq(0));
        much.load([row(0), row(1), row(7)], QueueSeq(9));
        assert_eq!(little.end(2, QueueSeq(9)), much.end(2, QueueSeq(9)));
    }

    #[test]
    fn a_row_behind_a_gap_waits_to_be_loaded() {
        let mut w = Window::new(QueueSeq(0));
        w.append(row(7), 3);
        assert!(w.is_short(3, QueueSeq(8)));
        assert_eq!(w.get(QueueSeq(7)), None);
    }
}
