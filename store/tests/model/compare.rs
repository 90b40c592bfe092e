//! Holds what the machine said and keeps against what the model expects, and tells where they part.
//!
//! Where the DESIGN leaves the order of rows free (retained messages of several topics, wills that are due
//! in one entry) the model takes over the machine's order, after it has checked what is not free: the
//! order of live messages, and the order within each topic.

use std::collections::{BTreeMap, BTreeSet};

use quorate_store::command::SessionRef;
use quorate_store::effect::{Connected, Delivery, Effect, Outcome};
use quorate_store::ids::{Incarnation, QoS, SessionId};
use quorate_store::rows::QueuedRow;

use super::shares::Seen;
use super::state::{Row, Session};
use super::{Answer, Expected, Model, Sent, Want, WantConnected};

/// Where machine and model part.
pub(crate) type Verdict = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err(format!($($text)*));
        }
    };
}

/// What a row or a delivery holds, to compare by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Content {
    topic: String,
    payload: Vec<u8>,
    qos: QoS,
    identifiers: BTreeSet<u32>,
    expires_at: Option<u64>,
}

impl Content {
    fn of_row(row: &QueuedRow) -> Self {
        Self {
            topic: row.message.topic.as_str().to_owned(),
            payload: row.message.payload.to_vec(),
            qos: row.qos,
            identifiers: row.identifiers.iter().copied().collect(),
            expires_at: row.message.expires_at.map(|at| at.0),
        }
    }

    fn of_delivery(delivery: &Delivery) -> Self {
        Self {
            topic: delivery.message.topic.as_str().to_owned(),
            payload: delivery.message.payload.to_vec(),
            qos: delivery.qos,
            identifiers: delivery.identifiers.iter().copied().collect(),
            expires_at: delivery.message.expires_at.map(|at| at.0),
        }
    }

    fn of_sent(sent: &Sent) -> Self {
        Self {
            topic: sent.msg.topic.clone(),
            payload: sent.msg.payload.clone(),
            qos: sent.qos,
            identifiers: sent.identifiers.clone(),
            expires_at: sent.msg.expires_at,
        }
    }

    fn of_model_row(row: &Row) -> Self {
        Self {
            topic: row.msg.topic.clone(),
            payload: row.msg.payload.clone(),
            qos: row.qos,
            identifiers: row.identifiers.clone(),
            expires_at: row.msg.expires_at,
        }
    }
}

impl Model {
    /// Compares the effects of one entry (and of the ticks that drained its continuations) and then all
    /// queues. `queue` reads a session's rows in the machine.
    pub(crate) fn check(
        &mut self,
        expected: &Expected,
        effects: &[Effect],
        queue: &mut dyn FnMut(SessionId) -> Vec<QueuedRow>,
        seen: &Seen,
    ) -> Verdict {
        check_answer(&expected.answer, effects)?;
        self.check_kicks(expected, effects)?;
        check_withdrawn(expected, effects)?;
        let new = self.find_new_rows(seen, queue)?;
        let mut moved = BTreeMap::new();
        for session in self.sessions.values_mut() {
            let mut rows = queue(session.id);
            rows.retain(|row| !new.iter().any(|new| new.is(session.id, row.seq.0)));
            moved.insert(session.id, session.check_queue(rows)?);
        }
        let of_shares = self.check_deliveries(&expected.sent, &moved, effects)?;
        self.check_shares(seen, new, &of_shares, effects)
    }

    fn check_kicks(&self, expected: &Expected, effects: &[Effect]) -> Verdict {
        let mut kicks = Vec::new();
        let mut closed = Vec::new();
        for effect in effects {
            match effect {
                Effect::Kick { owner, from, reason } => kicks.push((*owner, *from, *reason)),
                Effect::IncarnationClosed { incarnation, node } => {
                    let life = self.lives.get(incarnation);
                    ensure!(life.is_some_and(|l| l.node == *node), "{incarnation} is no incarnation of node {node}");
                    closed.push(*incarnation);
                }
                _ => {}
            }
        }
        ensure!(kicks == expected.kicks, "kicked {kicks:?}, expected {:?}", expected.kicks);
        ensure!(closed == expected.closed, "closed {closed:?}, expected {:?}", expected.closed);
        Ok(())
    }

    /// Compares what single sessions were sent; returns what else was.
    fn check_deliveries<'a>(
        &self,
        expected: &[Sent],
        moved: &BTreeMap<SessionId, BTreeMap<u64, u64>>,
        effects: &'a [Effect],
    ) -> Result<Vec<&'a Delivery>, String> {
        let mut others = Vec::new();
        let mut got: BTreeMap<(SessionId, u64), Vec<&Delivery>> = BTreeMap::new();
        for effect in effects {
            if let Effect::Deliver { owner, delivery } = effect {
                if self.lives.get(owner).is_none_or(|life| life.closed) {
                    continue;
                }
                got.entry(by_connection(delivery.to)).or_default().push(delivery);
            }
        }
        let mut want: BTreeMap<(SessionId, u64), Vec<&Sent>> = BTreeMap::new();
        for sent in expected {
            want.entry(by_connection(sent.to)).or_default().push(sent);
        }
        let connections: BTreeSet<_> = got.keys().chain(want.keys()).copied().collect();
        for connection in connections {
            let got = got.remove(&connection).unwrap_or_default();
            let want = want.remove(&connection).unwrap_or_default();
            let moved = moved.get(&connection.0);
            let more = self.check_connection(connection.0, &want, &got, moved);
            others.extend(more.map_err(|e| format!("deliveries to session {}: {e}", connection.0))?);
        }
        Ok(others)
    }
}

fn check_withdrawn(expected: &Expected, effects: &[Effect]) -> Verdict {
    let withdrawn = |effect: &Effect| match effect {
        Effect::Withdraw { owner, from, seq } => Some((*owner, *from, seq.0)),
        _ => None,
    };
    let by = |(owner, from, seq): &(Incarnation, SessionRef, u64)| (*owner, from.session, from.epoch, *seq);
    let mut got: Vec<_> = effects.iter().filter_map(withdrawn).collect();
    let mut want = expected.withdrawn.clone();
    got.sort_by_key(by);
    want.sort_by_key(by);
    ensure!(got == want, "withdrawn {got:?}, expected {want:?}");
    let answer = effects.iter().position(|e| matches!(e, Effect::Applied { .. } | Effect::DirectApplied { .. }));
    let last = effects.iter().rposition(|e| matches!(e, Effect::Withdraw { .. }));
    ensure!(answer.is_none() || last < answer, "a row is withdrawn after what may let it into the window: {effects:?}");
    Ok(())
}

fn by_connection(to: SessionRef) -> (SessionId, u64) {
    (to.session, to.epoch.0.as_u64())
}

fn check_answer(want: &Answer, effects: &[Effect]) -> Verdict {
    check_answer_by(want, effects, &check_outcome)
}

/// Compares outcomes, but of a session only which it is: not what of its queue was sent, nor where the queue
/// stands.
pub(crate) fn check_outcomes_but_dup(want: &Answer, effects: &[Effect]) -> Verdict {
    check_answer_by(want, effects, &|want, got| match (want, got) {
        (Want::Connected(want), Outcome::Connected(got)) => {
            let same = (got.session, got.present, got.durable) == (want.session, want.present, want.durable);
            ensure!(same, "{got:?}, expected {want:?}");
            Ok(())
        }
        _ => check_outcome(want, got),
    })
}

fn check_answer_by(want: &Answer, effects: &[Effect], check: &dyn Fn(&Want, &Outcome) -> Verdict) -> Verdict {
    let mut answers = effects.iter().filter_map(|effect| match effect {
        Effect::Applied { incarnation, seq, outcomes } => Some((Answer::Applied(*incarnation, *seq, vec![]), outcomes)),
        Effect::Gap { incarnation, expected } => Some((Answer::Gap(*incarnation, *expected), const { &Vec::new() })),
        Effect::DirectApplied { nonce, outcomes } if *nonce != super::super::testkit::DRAIN_NONCE => {
            Some((Answer::Direct(*nonce, vec![]), outcomes))
        }
        _ => None,
    });
    let (got, outcomes) = match answers.next() {
        Some((answer, outcomes)) => (answer, outcomes.as_slice()),
        None => (Answer::Nothing, [].as_slice()),
    };
    ensure!(answers.next().is_none(), "more than one answer: {effects:?}");
    let (same, wants) = match (want, &got) {
        (Answer::Applied(i, s, wants), Answer::Applied(gi, gs, _)) => (i == gi && s == gs, wants.as_slice()),
        (Answer::Direct(n, wants), Answer::Direct(gn, _)) => (n == gn, wants.as_slice()),
        (want, got) => (want == got, [].as_slice()),
    };
    ensure!(same, "answered {got:?}, expected {want:?}");
    ensure!(outcomes.len() == wants.len(), "{} outcomes for {} commands", outcomes.len(), wants.len());
    for (n, (want, got)) in wants.iter().zip(outcomes).enumerate() {
        check(want, got).map_err(|e| format!("outcome of command {n}: {e}"))?;
    }
    Ok(())
}

fn check_outcome(want: &Want, got: &Outcome) -> Verdict {
    match (want, got) {
        (Want::Is(want), got) => ensure!(got == want, "{got:?}, expected {want:?}"),
        (Want::OneOf(wants), got) => ensure!(wants.contains(got), "{got:?}, expected one of {wants:?}"),
        (Want::Connected(want), Outcome::Connected(got)) => check_connected(want, got)?,
        (want, got) => return Err(format!("{got:?}, expected {want:?}")),
    }
    Ok(())
}

fn check_connected(want: &WantConnected, got: &Connected) -> Verdict {
    let WantConnected { session, present, expiry_s, durable, rows, sent, tail, has_shares, inbound } = want;
    ensure!(got.session == *session, "session {:?}, expected {session:?}", got.session);
    ensure!(got.present == *present, "session present {}, expected {present}", got.present);
    ensure!(got.expiry_s == *expiry_s, "expiry {} s, expected {expiry_s}", got.expiry_s);
    ensure!(got.durable == *durable, "durable {}, expected {durable}", got.durable);
    let is_tail = got.queue_tail.0 == *tail || (*has_shares && got.queue_tail.0 > *tail);
    ensure!(is_tail, "tail {}, expected {tail}", got.queue_tail);
    let mut ids = got.inbound_qos2.clone();
    ids.sort_unstable();
    ensure!(ids == *inbound, "inbound QoS 2 {ids:?}, expected {inbound:?}");
    for (seq, is_free) in rows {
        if *is_free {
            continue;
        }
        ensure!(got.queue_head.0 <= *seq, "resending starts at {} and skips row {seq}", got.queue_head);
        let dup = *seq < got.sent_until.0;
        ensure!(dup || *seq >= sent.0, "row {seq} may have been sent and goes out with DUP=0: {got:?}, {sent:?}");
        ensure!(!dup || *seq < sent.1, "row {seq} was never sent and goes out with DUP=1: {got:?}, {sent:?}");
    }
    Ok(())
}

impl Model {
    /// Compares what was sent on one connection in one entry; returns what was sent beside.
    fn check_connection<'a>(
        &self,
        session: SessionId,
        want: &[&Sent],
        got: &[&'a Delivery],
        moved: Option<&BTreeMap<u64, u64>>,
    ) -> Result<Vec<&'a Delivery>, String> {
        let text = |got: &[&Delivery]| {
            got.iter().map(|d| format!("{:?} {:?}", d.seq, Content::of_delivery(d))).collect::<Vec<_>>().join("\n  ")
        };
        let seqs: Vec<u64> = got.iter().filter_map(|d| d.seq.map(|s| s.0)).collect();
        ensure!(seqs.is_sorted_by(|a, b| a < b), "seq goes back: {seqs:?}");
        let mut left: Vec<&'a Delivery> = got.to_vec();
        for sent in want {
            let seq = sent.seq.map(|seq| moved.and_then(|m| m.get(&seq)).copied().unwrap_or(seq));
            let content = Content::of_sent(sent);
            let found = left.iter().position(|d| {
                // Rows that groups gave to a member moved its own; of one that has ended nobody knows how far.
                let is_at =
                    d.seq.map(|s| s.0) == seq || (self.shares.has_ended(session) && d.seq.is_some() && seq.is_some());
                is_at
                    && Content::of_delivery(d) == content
                    && sent.retain.is_none_or(|retain| retain == d.retain)
                    && match sent.msg.position {
                        Some(position) => position == d.message.position,
                        // A copy that apply has made has a position of its own.
                        None => !self.shares.knows(d.message.position),
                    }
                    && d.message.qos == sent.msg.qos
            });
            let Some(found) = found else {
                return Err(format!("not sent: row {seq:?} {sent:?}; sent:\n  {}", text(got)));
            };
            left.remove(found);
        }
        let live = |wanted: &mut dyn Iterator<Item = Vec<u8>>| wanted.collect::<Vec<_>>();
        let positions: BTreeSet<_> = want.iter().filter_map(|s| s.msg.position).collect();
        let got = got.iter().filter(|d| !left.iter().any(|l| std::ptr::eq(*l, **d)));
        let want = live(&mut want.iter().filter(|s| s.msg.position.is_some()).map(|s| s.msg.payload.clone()));
        let got =
            live(&mut got.filter(|d| positions.contains(&d.message.position)).map(|d| d.message.payload.to_vec()));
        ensure!(want == got, "order of live messages: {got:?}, expected {want:?}");
        Ok(left)
    }
}

impl Session {
    /// Compares the queue; returns where the machine put the rows that the model put elsewhere.
    fn check_queue(&mut self, rows: Vec<QueuedRow>) -> Result<BTreeMap<u64, u64>, String> {
        let of = format!("queue of {} (session {})", self.client_id, self.id);
        let mut got: BTreeMap<u64, QueuedRow> = rows.into_iter().map(|row| (row.seq.0, row)).collect();
        let is_old = |row: &Row| !row.fresh;
        for seq in self.rows.iter().filter(|(_, row)| is_old(row)).map(|(seq, _)| *seq).collect::<Vec<_>>() {
            let row = &self.rows[&seq];
            match got.remove(&seq) {
                Some(found) => check_row(row, &found).map_err(|e| format!("{of}: row {seq}: {e}"))?,
                None if row.may_be_gone => {
                    self.rows.remove(&seq);
                }
                None => return Err(format!("{of}: row {seq} {row:?} is gone")),
            }
        }
        let fresh: Vec<(u64, Row)> = self.rows.extract_if(.., |_, row| row.fresh).collect();
        ensure!(
            got.len() == fresh.len(),
            "{of}: {} new rows, expected {}: {got:#?} {fresh:#?}",
            got.len(),
            fresh.len()
        );
        let live = |payloads: &mut dyn Iterator<Item = Vec<u8>>| payloads.collect::<Vec<_>>();
        let positions: BTreeSet<_> = fresh.iter().filter_map(|(_, row)| row.msg.position).collect();
        let want =
            live(&mut fresh.iter().filter(|(_, r)| r.msg.position.is_some()).map(|(_, r)| r.msg.payload.clone()));
        let have = live(
            &mut got.values().filter(|r| positions.contains(&r.message.position)).map(|r| r.message.payload.to_vec()),
        );
        ensure!(want == have, "{of}: order of live messages {have:?}, expected {want:?}");
        let mut moved = BTreeMap::new();
        for (seq, mut row) in fresh {
            // The first of the topic that is left: so the order within a topic is checked, too.
            let found = got.iter().find(|(_, r)| r.message.topic.as_str() == row.msg.topic).map(|(seq, _)| *seq);
            let Some((at, found)) = found.and_then(|at| got.remove_entry(&at)) else {
                return Err(format!("{of}: new row {seq} {row:?} is missing; left: {got:?}"));
            };
            check_row(&row, &found).map_err(|e| format!("{of}: new row {seq} at {at}: {e}"))?;
            ensure!(at < self.tail, "{of}: row {at} is beyond the tail {}", self.tail);
            row.retain = Some(found.retain);
            row.msg.position = Some(found.message.position);
            moved.insert(seq, at);
            self.rows.insert(at, row);
        }
        Ok(moved)
    }
}

fn check_row(want: &Row, got: &QueuedRow) -> Verdict {
    ensure!(Content::of_row(got) == Content::of_model_row(want), "{got:?}, expected {want:?}");
    ensure!(want.retain.is_none_or(|retain| retain == got.retain), "RETAIN {}, expected {want:?}", got.retain);
    ensure!(got.released == want.released, "released {}, expected {}", got.released, want.released);
    ensure!(
        want.msg.position.is_none_or(|position| position == got.message.position),
        "position {}, expected {:?}",
        got.message.position,
        want.msg.position
    );
    Ok(())
}
