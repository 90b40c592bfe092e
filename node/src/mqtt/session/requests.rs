//! Requests of one connection that are on their way through the log, and what their outcomes answer.
//!
//! Outcomes come in the order in which the commands were proposed, because one stream carries them; so
//! acknowledgements leave in the order in which the packets came. What is refused without the log takes
//! its place in the same line.

use quorate_store::command::Command;
use quorate_store::effect::Outcome;
use quorate_store::ids::PacketId;

use super::{Ending, Now, Output, Request, Session};
use crate::mqtt::packet::Outgoing;
use crate::mqtt::reason::Reason;
use crate::mqtt::sys::SysAsk;

/// One in line.
#[derive(Debug)]
pub(super) struct Pending {
    request: Request,
    pub(super) wait: Wait,
}

/// What a client, or the session itself, waits for. What is large is in a box: an idle connection keeps the room for
/// a few of these.
#[derive(Debug)]
pub(super) enum Wait {
    /// CONNACK.
    Connect,
    /// Nothing: QoS 0.
    Publish0,
    /// PUBACK; and whether the PUBLISH had an idempotency key, so that it tells the position.
    Publish1(PacketId, bool),
    /// PUBREC, likewise.
    Publish2(PacketId, bool),
    /// PUBCOMP.
    Release(PacketId),
    /// The window moves by so many acknowledgements.
    Settle(usize),
    /// SUBACK.
    Subscribe(Box<Subscribing>),
    /// UNSUBACK: what is known before the outcome, `None` where the log decides.
    Unsubscribe(Box<(PacketId, Vec<Option<Reason>>)>),
    /// Only its turn.
    Turn(Box<Outgoing>),
}

/// A SUBSCRIBE on its way through the log.
#[derive(Debug)]
pub(super) struct Subscribing {
    pub(super) id: PacketId,
    /// What is known before the outcome, `None` where the log decides.
    pub(super) known: Vec<Option<Reason>>,
    /// Which of those that it decides ask for `$SYS` topics.
    pub(super) sys: Vec<(usize, SysAsk)>,
}

impl Session {
    /// Proposes a command; its outcome will find `wait`.
    pub(super) fn propose(&mut self, wait: Wait, command: Command, out: &mut Output) {
        let request = self.next_request;
        self.next_request += 1;
        self.pending.push_back(Pending { request, wait });
        out.commands.push((request, command));
    }

    /// Sends `packet` after all answers that are owed before it.
    pub(super) fn in_turn(&mut self, packet: Outgoing, out: &mut Output) {
        if self.pending.is_empty() {
            self.acknowledge(packet, out);
        } else {
            let request = self.next_request;
            self.next_request += 1;
            self.pending.push_back(Pending { request, wait: Wait::Turn(Box::new(packet)) });
        }
    }

    pub(super) fn answer(&mut self, request: Request, outcome: Outcome, now: Now, out: &mut Output) {
        if self.pending.front().is_none_or(|next| next.request != request) {
            // Acknowledging now could acknowledge what is not committed: the client asks again elsewhere.
            tracing::error!(request, ?outcome, "an outcome out of turn: the connection is closed");
            out.counts.acks_before_commit += 1;
            self.end(Ending::Error(Reason::IMPLEMENTATION_SPECIFIC_ERROR), out);
            return;
        }
        let Some(Pending { wait, .. }) = self.pending.pop_front() else { return };
        self.decide(wait, outcome, now, out);
        while let Some(Pending { wait: Wait::Turn(_), .. }) = self.pending.front() {
            if let Some(Pending { wait: Wait::Turn(packet), .. }) = self.pending.pop_front() {
                self.acknowledge(*packet, out);
            }
        }
        self.release_held(out);
    }

    fn decide(&mut self, wait: Wait, outcome: Outcome, now: Now, out: &mut Output) {
        match (wait, outcome) {
            (Wait::Connect, Outcome::Connected(connected)) => self.connected(&connected, now, out),
            (Wait::Connect, Outcome::Refused(reason)) => self.end(Ending::Error(Reason(reason)), out),
            (Wait::Connect, _) => self.end(Ending::Error(Reason::SERVER_UNAVAILABLE), out),
            (_, Outcome::Fenced) => self.end(Ending::Fenced, out),
            (Wait::Publish0, outcome) => {
                self.logged_qos0 = self.logged_qos0.saturating_sub(1);
                out.counts.queue_full += u64::from(outcome == Outcome::QueueFull);
                out.counts.refused += u64::from(matches!(outcome, Outcome::Refused(_)));
            }
            (
                Wait::Publish1(..) | Wait::Publish2(..),
                Outcome::Published { position, .. } | Outcome::Repeated { position },
            ) if position.index() > now.applied => {
                tracing::error!(%position, applied = now.applied, "an acknowledgement before its commit was applied");
                out.counts.acks_before_commit += 1;
                self.end(Ending::Error(Reason::IMPLEMENTATION_SPECIFIC_ERROR), out);
            }
            (Wait::Publish1(id, has_key), Outcome::Published { position, matched }) => {
                let packet = self.placed(Outgoing::PubAck(id, matching(matched)), has_key.then_some(position));
                self.acknowledge(packet, out);
            }
            (Wait::Publish2(id, has_key), Outcome::Published { position, matched }) => {
                let packet = self.placed(Outgoing::PubRec(id, matching(matched)), has_key.then_some(position));
                self.acknowledge(packet, out);
            }
            (Wait::Publish1(id, _), Outcome::Repeated { position }) => {
                let packet = self.placed(Outgoing::PubAck(id, Reason::SUCCESS), Some(position));
                self.acknowledge(packet, out);
            }
            (Wait::Publish2(id, _), Outcome::Repeated { position }) => {
                let packet = self.placed(Outgoing::PubRec(id, Reason::SUCCESS), Some(position));
                self.acknowledge(packet, out);
            }
            (Wait::Publish2(id, _), Outcome::AlreadyRecorded) => {
                self.acknowledge(Outgoing::PubRec(id, Reason::SUCCESS), out);
            }
            (Wait::Publish1(id, _), Outcome::QueueFull) => {
                out.counts.queue_full += 1;
                self.refused(Outgoing::PubAck(id, Reason::QUOTA_EXCEEDED), Reason::QUOTA_EXCEEDED, out);
            }
            (Wait::Publish2(id, _), Outcome::QueueFull) => {
                out.counts.queue_full += 1;
                self.refused(Outgoing::PubRec(id, Reason::QUOTA_EXCEEDED), Reason::QUOTA_EXCEEDED, out);
            }
            (Wait::Publish1(id, _), Outcome::Refused(reason)) => {
                out.counts.refused += 1;
                self.refused(Outgoing::PubAck(id, Reason(reason)), Reason(reason), out);
            }
            (Wait::Publish2(id, _), Outcome::Refused(reason)) => {
                out.counts.refused += 1;
                self.refused(Outgoing::PubRec(id, Reason(reason)), Reason(reason), out);
            }
            (Wait::Release(id), Outcome::Released { known }) => {
                // In a session that was there before, this is most likely a PUBREL of the connection before, sent again
                // because its PUBCOMP was lost. 0x92 would be right as well ("not an error during recovery", 3.7.2.1),
                // but MQTT.js fails the publish over it, and rumqttc counts it as in flight for ever.
                let is_fine = known || self.is_resumed;
                let reason = if is_fine { Reason::SUCCESS } else { Reason::PACKET_IDENTIFIER_NOT_FOUND };
                self.acknowledge(Outgoing::PubComp(id, reason), out);
            }
            (Wait::Settle(count), Outcome::Done) => self.outbox.settled(count, out),
            (Wait::Subscribe(subscribing), Outcome::Subscribed(granted)) => {
                let Subscribing { id, known, sys } = *subscribing;
                let is_due = |place: usize, ask: &SysAsk| match granted.get(place) {
                    Some(Ok(granted)) => granted.is_new || !ask.only_new,
                    Some(Err(_)) | None => false,
                };
                out.sys.extend(sys.into_iter().filter(|(place, ask)| is_due(*place, ask)).map(|(_, ask)| ask));
                let granted = granted.into_iter().map(|g| g.map_or_else(Reason, |granted| Reason(granted.qos as u8)));
                self.acknowledge(Outgoing::SubAck(id, fill(known, granted)), out);
            }
            (Wait::Unsubscribe(unsubscribing), Outcome::Unsubscribed(existed)) => {
                let (id, known) = *unsubscribing;
                let gone = |existed| if existed { Reason::SUCCESS } else { Reason::NO_SUBSCRIPTION_EXISTED };
                self.acknowledge(Outgoing::UnsubAck(id, fill(known, existed.into_iter().map(gone))), out);
            }
            (wait, outcome) => {
                tracing::error!(?wait, ?outcome, "an outcome that does not answer its command");
                self.end(Ending::Error(Reason::IMPLEMENTATION_SPECIFIC_ERROR), out);
            }
        }
    }

    /// A publish that the log refuses. One of 3.1.1 cannot be: its connection is closed.
    fn refused(&mut self, packet: Outgoing, reason: Reason, out: &mut Output) {
        if self.version.is_v5() {
            self.acknowledge(packet, out);
        } else {
            self.end(Ending::Error(reason), out);
        }
    }

    /// The one place from which acknowledgements leave: after their outcome was applied, in turn.
    fn acknowledge(&mut self, packet: Outgoing, out: &mut Output) {
        match &packet {
            Outgoing::PubAck(..) | Outgoing::PubAckAt(..) => {
                self.unanswered_qos1 = self.unanswered_qos1.saturating_sub(1)
            }
            Outgoing::PubRec(id, reason) | Outgoing::PubRecAt(id, reason, _) => {
                self.unanswered_qos2 = self.unanswered_qos2.saturating_sub(1);
                if reason.is_failure() {
                    self.inbound_qos2.remove(id);
                }
            }
            Outgoing::PubComp(id, _) => {
                self.inbound_qos2.remove(id);
            }
            _ => {}
        }
        out.packets.push(packet);
    }
}

fn matching(matched: bool) -> Reason {
    if matched { Reason::SUCCESS } else { Reason::NO_MATCHING_SUBSCRIBERS }
}

/// Puts the log's answers where none was known before. One too few is a refusal, never a success.
fn fill(known: Vec<Option<Reason>>, mut decided: impl Iterator<Item = Reason>) -> Vec<Reason> {
    known.into_iter().map(|k| k.or_else(|| decided.next()).unwrap_or(Reason::UNSPECIFIED_ERROR)).collect()
}
