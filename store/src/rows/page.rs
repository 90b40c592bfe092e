//! Pages of a session's queue, as the front end reads them to resume or to catch up.
//!
//! A page is read from any thread, at whatever state is applied by then: rows may vanish between two pages,
//! which is no error, and a page never holds a row twice.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::key::{self, Key, RowKind};
use super::value::QueueRow;
use super::{RowRead, RowsError};
use crate::ids::{QoS, QueueSeq, SessionId};
use crate::message::SharedMessage;

/// One queued message.
#[derive(Clone, Debug)]
pub struct QueuedRow {
    /// Its number in the queue, which fixes its packet identifier.
    pub seq: QueueSeq,
    /// QoS of the delivery.
    pub qos: QoS,
    /// RETAIN of the delivery.
    pub retain: bool,
    /// Only its PUBREL is owed.
    pub released: bool,
    /// Subscription Identifiers.
    pub identifiers: Arc<[u32]>,
    /// The message.
    pub message: SharedMessage,
}

/// Some consecutive rows of a queue.
#[derive(Clone, Debug)]
pub struct QueuePage {
    /// In order of `seq`.
    pub rows: Vec<QueuedRow>,
    /// Where the next page begins.
    pub next: QueueSeq,
    /// There was no further row when this page was read.
    pub end: bool,
}

/// Reads at most `rows_max` rows of `session` from `from` on, and stops at `bytes_max` bytes of messages
/// (one row is read whatever its size).
///
/// # Errors
/// [`RowsError`] when the database fails or a row is damaged.
pub fn queue_page(
    rows: &impl RowRead,
    session: SessionId,
    from: QueueSeq,
    rows_max: usize,
    bytes_max: usize,
) -> Result<QueuePage, RowsError> {
    let start = key::queue(session, from);
    let end = key::of_session(RowKind::Queue, session).end();
    let mut found: Vec<(QueueSeq, QueueRow)> = Vec::new();
    let mut failed = None;
    let mut more = false;
    rows.scan(start.as_bytes(), &end, &mut |k, v| {
        if found.len() >= rows_max {
            more = true;
            return ControlFlow::Break(());
        }
        let seq = key::rest_u64(k, 8).map(QueueSeq);
        match (seq, QueueRow::from_slice(v)) {
            (Some(seq), Ok(row)) => found.push((seq, row)),
            (_, Err(reason)) => failed = Some(RowsError::Damaged { key: key::describe(k), reason }),
            (None, _) => failed = Some(RowsError::Damaged { key: key::describe(k), reason: "short key".into() }),
        }
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    let keys: Vec<Key> = found.iter().map(|(_, row)| key::of_position(RowKind::Message, row.position)).collect();
    let mut page = QueuePage { rows: Vec::with_capacity(found.len()), next: from, end: !more };
    let mut found = found.into_iter().peekable();
    let mut bytes = 0;
    rows.messages(&keys, &mut |message| {
        let Some((seq, row)) = found.next() else { return ControlFlow::Break(()) };
        page.next = seq.next();
        // Settled between the two reads: it has vanished, and its message with it.
        if let Some(message) = message {
            bytes += message.charge_bytes();
            page.rows.push(QueuedRow {
                seq,
                qos: row.qos,
                retain: row.retain,
                released: row.released,
                identifiers: row.identifiers,
                message,
            });
        }
        if bytes >= bytes_max && found.peek().is_some() {
            page.end = false;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(page)
}
