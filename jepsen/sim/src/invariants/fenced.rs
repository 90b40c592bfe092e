//! What came twice or before its turn, what a node that was lost still had on its way, and a CONNECT beyond its deadline
//! have no effect (guarantees 4, 5 and 8): nothing in such an entry is delivered, and no such CONNECT has a session.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_jepsen::history::MessageName;
use quorate_raft::{AppliedRun, NodeEvent};
use quorate_store::codec;
use quorate_store::effect::Outcome;
use quorate_store::ids::Position;
use quorate_store::rows::RowRead as _;
use quorate_store::rows::key::{Key, RowKind};
use quorate_store::rows::value::SessionRow;

use super::Found;
use super::audit::Audit;
use crate::node;

const PROMISE: &str = "what is fenced off has no effect (guarantee 8)";

/// Looks at what a node is told.
pub(super) fn told(audit: &Audit, run: &AppliedRun) -> Found {
    for event in &run.events {
        match event {
            NodeEvent::Outcome { outcome: Outcome::Connected(connected), .. } => {
                connect(audit, connected.session.epoch.0)?
            }
            NodeEvent::Deliver(delivery) => {
                let (at, name) = (delivery.message.position, MessageName::parse(&delivery.message.payload.0));
                if let Some(name) = name.filter(|name| audit.is_published_in_vain(at.index(), *name)) {
                    return Err((PROMISE, format!("{name} is delivered, and its batch at {at} counts for nothing")));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Looks at who has the sessions.
pub(super) fn look(audit: &Audit) -> Found {
    for host in node::running() {
        let Some(rows) = node::look(host, |cluster| cluster.rows()) else { continue };
        let mut found = Ok(());
        let from = Key::kind(RowKind::Session);
        let read = rows.scan(from.as_bytes(), &from.end(), &mut |_, value| {
            found = match codec::decode::<SessionRow>(&Bytes::copy_from_slice(value)) {
                Ok(row) => connect(audit, row.epoch.0),
                Err(e) => Err((PROMISE, e.to_string())),
            };
            if found.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        read.map_err(|e| (PROMISE, e.to_string()))?;
        found?;
    }
    Ok(())
}

fn connect(audit: &Audit, at: Position) -> Found {
    if audit.is_void(at.index()) {
        return Err((PROMISE, format!("the CONNECT at {at} has a session, and its entry counts for nothing")));
    }
    if audit.is_late(at) {
        return Err((PROMISE, format!("the CONNECT at {at} has a session, and its deadline was over")));
    }
    Ok(())
}
