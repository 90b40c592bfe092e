//! How a connection ends, and what the log is told about it.

use std::sync::Arc;

use quorate_store::command::{Close, Command};
use quorate_store::effect::KickReason;
use quorate_store::seeded_bug::{SeededBug, is_seeded};

use super::requests::Wait;
use super::{CLOSE_REQUEST, Output, Session, State};
use crate::mqtt::packet::{ConnAck, Outgoing};
use crate::mqtt::reason::Reason;

/// Why a connection ends.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The socket is gone: the will is due.
    SocketClosed,
    /// The client sent DISCONNECT.
    Client {
        /// 0x00: no will.
        drop_will: bool,
        /// Session Expiry Interval from now on.
        expiry_s: Option<u32>,
    },
    /// The client broke a rule, or we cannot go on: told with a reason, the will is due.
    Error(Reason),
    /// The client should go elsewhere, or come back later.
    Redirect {
        /// Why.
        reason: Reason,
        /// Where.
        server_reference: Option<Arc<str>>,
    },
    /// The log ended it: the connection's epoch is over.
    Kicked(KickReason),
    /// A command was fenced: the epoch is over, and we had not heard why.
    Fenced,
    /// This node's incarnation is closed, and with it all its epochs.
    IncarnationOver {
        /// Where the client may go.
        server_reference: Option<Arc<str>>,
    },
}

impl Ending {
    /// Whether commands of this connection are still accepted.
    fn is_ours(&self) -> bool {
        !matches!(self, Self::Kicked(_) | Self::Fenced | Self::IncarnationOver { .. })
    }
}

impl Session {
    /// Ends the connection: says so to the client where there is something to say, and to the log unless
    /// the log said it first.
    pub fn end(&mut self, ending: Ending, out: &mut Output) {
        if self.state == State::Over {
            return;
        }
        if let (State::Open, true, Some(from)) = (self.state, ending.is_ours(), self.me) {
            self.propose_acks(out);
            let (drop_will, expiry_s) = match ending {
                Ending::Client { drop_will, expiry_s } => (drop_will, expiry_s),
                _ => (false, None),
            };
            let close = Close { from, drop_will, expiry_s, sent_until: self.outbox.sent_until() };
            out.commands.push((CLOSE_REQUEST, Command::Close(close)));
        }
        let (reason, server_reference) = match ending {
            Ending::SocketClosed | Ending::Client { .. } => (None, None),
            Ending::Error(reason) => (Some(reason), None),
            Ending::Redirect { reason, server_reference } => (Some(reason), server_reference),
            Ending::Kicked(KickReason::TakenOver) | Ending::Fenced => (Some(Reason::SESSION_TAKEN_OVER), None),
            Ending::Kicked(KickReason::Administrative) => (Some(Reason::ADMINISTRATIVE_ACTION), None),
            Ending::IncarnationOver { server_reference } => {
                let elsewhere = server_reference.is_some();
                (Some(if elsewhere { Reason::USE_ANOTHER_SERVER } else { Reason::SERVER_BUSY }), server_reference)
            }
        };
        // The CONNECT may yet be committed, and its will be published: a refusal would say that it had no effect.
        let is_undecided = self.pending.iter().any(|pending| matches!(pending.wait, Wait::Connect));
        let may_say = !is_undecided || is_seeded(SeededBug::ConnectRefusedButApplied);
        if let Some(reason) = reason.filter(|_| may_say) {
            out.packets.push(match self.state {
                State::Connecting => Outgoing::ConnAck(Box::new(ConnAck {
                    session_present: false,
                    reason,
                    granted: None,
                    server_reference,
                })),
                _ => Outgoing::Disconnect(reason, server_reference),
            });
        }
        out.closed = Some(reason.unwrap_or(Reason::SUCCESS));
        self.state = State::Over;
        self.pending.clear();
        self.held.clear();
    }
}
