//! The client's half of a session: what must be kept over reconnects so that QoS 1 and 2 mean something.

use std::collections::{BTreeSet, VecDeque};

use crate::history::event::OpId;
use crate::wire::{Ack, AckKind, Publish};

/// A publish that is not finished.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) op: OpId,
    pub(super) publish: Publish,
    pub(super) state: State,
    /// It went out on more than one connection: a refusal of the last says nothing of the others.
    pub(super) resent: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The PUBLISH is out.
    Sent,
    /// PUBREC came, PUBREL is out.
    Released,
}

/// What an acknowledgement of the broker does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The broker has the message.
    Taken(OpId),
    /// It refused it; after a resend nobody knows about the first sending.
    Refused {
        /// Which.
        op: OpId,
        /// It had been sent before on another connection.
        resent: bool,
    },
    /// PUBCOMP, or an answer that was there before.
    Known,
    /// There is no such packet identifier.
    Unknown,
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// In the order of their first sending.
    open: VecDeque<Outgoing>,
    /// QoS 2 identifiers that were received and not released.
    pub(super) received: BTreeSet<u16>,
    last_id: u16,
}

impl Session {
    /// Nothing is left of it. The publishes whose fate is open.
    pub(super) fn forget(&mut self) -> Vec<OpId> {
        self.received.clear();
        self.open.drain(..).filter(|o| o.state == State::Sent).map(|o| o.op).collect()
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// An identifier that nothing uses.
    pub(super) fn id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.open.iter().any(|o| o.publish.id == self.last_id) {
                return self.last_id;
            }
        }
    }

    pub(super) fn begin(&mut self, op: OpId, publish: Publish) {
        self.open.push_back(Outgoing { op, publish, state: State::Sent, resent: false });
    }

    /// What goes out again on a new connection, in order; it is marked as resent.
    pub(super) fn again(&mut self) -> Vec<Outgoing> {
        for outgoing in self.open.iter_mut().filter(|o| o.state == State::Sent) {
            outgoing.publish.dup = true;
            outgoing.resent = true;
        }
        self.open.iter().cloned().collect()
    }

    /// PUBACK, PUBREC or PUBCOMP.
    pub(super) fn acknowledged(&mut self, ack: Ack) -> Progress {
        let found = self.open.iter().position(|o| o.publish.id == ack.id);
        let Some((at, outgoing)) = found.and_then(|at| Some((at, self.open.get_mut(at)?))) else {
            return Progress::Unknown;
        };
        let (op, resent) = (outgoing.op, outgoing.resent);
        match (ack.kind, outgoing.publish.qos, outgoing.state) {
            (AckKind::Puback, 1, State::Sent) | (AckKind::Pubrec, 2, State::Sent) if ack.code >= 0x80 => {
                self.open.remove(at);
                Progress::Refused { op, resent }
            }
            (AckKind::Puback, 1, State::Sent) => {
                self.open.remove(at);
                Progress::Taken(op)
            }
            (AckKind::Pubrec, 2, State::Sent) => {
                outgoing.state = State::Released;
                Progress::Taken(op)
            }
            (AckKind::Pubrec, 2, State::Released) => Progress::Known,
            (AckKind::Pubcomp, 2, State::Released) => {
                self.open.remove(at);
                Progress::Known
            }
            _ => Progress::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(id: u16, qos: u8) -> Publish {
        let (topic, properties, payload) = ("t".to_owned(), Vec::new(), Vec::new());
        Publish { dup: false, qos, retain: false, topic, id, properties, payload }
    }

    fn ack(kind: AckKind, id: u16, code: u8) -> Ack {
        Ack { kind, id, code }
    }

    #[test]
    fn what_was_not_answered_goes_out_again_in_order_with_its_identifier_and_dup() {
        let mut session = Session::default();
        for (op, qos) in [(1, 1), (2, 2), (3, 2)] {
            let id = session.id();
            session.begin(OpId(op), publish(id, qos));
        }
        assert_eq!(session.acknowledged(ack(AckKind::Pubrec, 2, 0)), Progress::Taken(OpId(2)));
        let again = session.again();
        let seen: Vec<_> = again.iter().map(|o| (o.publish.id, o.publish.dup, o.state)).collect();
        assert_eq!(seen, [(1, true, State::Sent), (2, false, State::Released), (3, true, State::Sent)]);
        let refused = session.acknowledged(ack(AckKind::Puback, 1, 0x97));
        assert_eq!(refused, Progress::Refused { op: OpId(1), resent: true });
        assert_eq!(session.acknowledged(ack(AckKind::Pubcomp, 2, 0)), Progress::Known);
        assert_eq!(session.forget(), [OpId(3)], "the fate of what was taken is known");
    }

    #[test]
    fn an_answer_of_the_wrong_kind_or_to_nothing_is_noticed() {
        let mut session = Session::default();
        session.begin(OpId(1), publish(1, 2));
        assert_eq!(session.acknowledged(ack(AckKind::Puback, 1, 0)), Progress::Unknown);
        assert_eq!(session.acknowledged(ack(AckKind::Pubcomp, 1, 0)), Progress::Unknown);
        assert_eq!(session.acknowledged(ack(AckKind::Puback, 9, 0)), Progress::Unknown);
    }
}
