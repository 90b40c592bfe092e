//! What nodes and leaders say to each other on connections of purpose `Proposals`.
//!
//! A connection carries either batches or questions. On one for batches the leader is silent until it
//! refuses; the refusal is the last frame. On one for questions each has a number and one answer.

use bincode::{Decode, Encode};
use quorate_store::codec::{Enveloped, Kind, Payload, PayloadSource};
use quorate_store::ids::{ClusterTime, Incarnation, NodeId};

/// Kinds of frames of this purpose. On the wire: kept for ever, only appended.
pub(crate) mod kind {
    /// An encoded batch of a stream.
    pub(crate) const BATCH: u8 = 16;
    /// [`super::Refused`], then the connection is closed.
    pub(crate) const REFUSED: u8 = 17;
    /// [`super::Question`].
    pub(crate) const QUESTION: u8 = 18;
    /// [`super::Answer`].
    pub(crate) const ANSWER: u8 = 19;
}

/// Why a leader takes no batches of a connection any more. None that came after the first refused one was
/// appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Refused {
    /// It does not lead (any more).
    NotLeader {
        /// Who does, as far as it knows.
        leader: Option<NodeId>,
    },
    /// It leads, but has dropped something of what it took, or takes no direct commands just now: come again.
    Busy,
    /// A batch that it cannot read. Nothing unreadable is ever appended.
    Malformed,
    /// Raft has stopped there.
    Stopped,
}

/// What a node knows of cluster time, for a leader that has none yet (see [`crate::clock`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ClockReport {
    /// Cluster time there now.
    pub(crate) time: ClusterTime,
    /// It comes from a leader since that process started.
    pub(crate) is_live: bool,
    /// Wall clock there now, milliseconds since 1970.
    pub(crate) wall_ms: u64,
}

/// What a node asks the leader.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub(crate) enum Ask {
    /// I am here.
    Ping {
        /// My incarnation, once I have seen it applied.
        incarnation: Option<Incarnation>,
        /// My clock.
        clock: ClockReport,
    },
    /// Append this encoded direct batch.
    Direct(Payload),
    /// An index for a linearizable read.
    ReadIndex,
}

/// What the leader answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Reply {
    /// To a ping.
    Pong {
        /// A majority backed this leader so long ago, if it did within `quorum_grace` and the asker is a member.
        quorum_age_ms: Option<u64>,
        /// Its clock.
        clock: ClockReport,
    },
    /// The direct batch was enqueued; whether it is committed, the log will say.
    Enqueued,
    /// A state that has applied this index is fresh enough.
    ReadIndex(u64),
    /// Not done, and not even begun.
    Refused(Refused),
    /// No majority confirmed this leader in time.
    NoQuorum,
}

/// A question with its number.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[bincode(decode_context = "PayloadSource")]
pub(crate) struct Question {
    pub(crate) number: u64,
    pub(crate) ask: Ask,
}

/// The answer to the question of that number.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Answer {
    pub(crate) number: u64,
    pub(crate) reply: Reply,
}

impl Enveloped for Refused {
    const KIND: Kind = Kind::Frame;
    fn payloads(&self, _: &mut dyn FnMut(&Payload)) {}
}

impl Enveloped for Question {
    const KIND: Kind = Kind::Frame;
    fn payloads(&self, f: &mut dyn FnMut(&Payload)) {
        if let Ask::Direct(batch) = &self.ask {
            f(batch);
        }
    }
}

impl Enveloped for Answer {
    const KIND: Kind = Kind::Frame;
    fn payloads(&self, _: &mut dyn FnMut(&Payload)) {}
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_store::codec;
    use quorate_store::ids::Position;

    use super::*;
    use crate::golden::frame;

    #[test]
    fn questions_and_answers_survive_the_wire() {
        let clock = ClockReport { time: ClusterTime(77), is_live: true, wall_ms: 1_700_000_000_000 };
        for ask in [
            Ask::Ping { incarnation: Some(Incarnation(Position::new(9, 1))), clock },
            Ask::Ping { incarnation: None, clock },
            Ask::Direct(Payload(Bytes::from_static(b"batch"))),
            Ask::ReadIndex,
        ] {
            let question = Question { number: u64::MAX, ask };
            assert_eq!(codec::decode::<Question>(&codec::encode(&question).unwrap()).unwrap(), question);
        }
        for reply in [
            Reply::Pong { quorum_age_ms: None, clock },
            Reply::Pong { quorum_age_ms: Some(77), clock },
            Reply::Enqueued,
            Reply::ReadIndex(5),
            Reply::Refused(Refused::NotLeader { leader: Some(NodeId(3)) }),
            Reply::NoQuorum,
        ] {
            let answer = Answer { number: 0, reply };
            assert_eq!(codec::decode::<Answer>(&codec::encode(&answer).unwrap()).unwrap(), answer);
        }
    }

    #[test]
    fn questions_answers_and_refusals_keep_their_bytes() {
        let clock = ClockReport { time: ClusterTime(77), is_live: true, wall_ms: 1_700_000_000_000 };
        let incarnation = Some(Incarnation(Position::new(9, 1)));
        for (name, ask) in [
            ("question-ping", Ask::Ping { incarnation, clock }),
            ("question-direct", Ask::Direct(Payload(Bytes::from_static(b"an encoded batch")))),
            ("question-read-index", Ask::ReadIndex),
        ] {
            frame(name, &Question { number: 300, ask });
        }
        for (name, reply) in [
            ("answer-pong", Reply::Pong { quorum_age_ms: Some(180), clock }),
            ("answer-enqueued", Reply::Enqueued),
            ("answer-read-index", Reply::ReadIndex(1 << 40)),
            ("answer-refused", Reply::Refused(Refused::Malformed)),
            ("answer-no-quorum", Reply::NoQuorum),
        ] {
            frame(name, &Answer { number: 300, reply });
        }
        for (name, refused) in [
            ("refused-not-leader", Refused::NotLeader { leader: Some(NodeId(3)) }),
            ("refused-busy", Refused::Busy),
            ("refused-stopped", Refused::Stopped),
        ] {
            frame(name, &refused);
        }
    }

    #[test]
    fn a_frame_that_ends_early_is_refused() {
        let whole = codec::encode(&Question { number: 1, ask: Ask::ReadIndex }).unwrap();
        for cut in 0..whole.len() {
            assert!(codec::decode::<Question>(&whole.slice(..cut)).is_err());
        }
    }
}
