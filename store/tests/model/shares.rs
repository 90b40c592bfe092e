//! Shared groups in the reference model: it says who may have a message, and takes over whom the machine chose.
//!
//! A message that was offered to a group is in the model's hands until it is seen with one member: never with two, never
//! with nobody while a member has room, the older before the younger.

use std::collections::{BTreeMap, BTreeSet};

use quorate_store::command::SessionRef;
use quorate_store::effect::{Delivery, Effect};
use quorate_store::ids::{Position, QoS, SessionId, ShareId};
use quorate_store::rows::QueuedRow;
use quorate_store::rows::key::RowKind;

use super::Model;
use super::compare::Verdict;
use super::matching::matches;
use super::state::{Msg, Row, Session, Sub};
use crate::testkit::Rig;

/// Unsettled rows of groups that a session may have.
const IN_FLIGHT_MAX: usize = 512;

/// A group.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    /// `$share/name/filter`.
    pub(crate) whole: String,
    pub(crate) waiting: BTreeMap<Position, Msg>,
    /// Its last member has left it in this entry.
    pub(crate) is_over: bool,
}

/// What the model remembers of groups, and of the entry that is being applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    pub(crate) by_key: BTreeMap<u64, Share>,
    next: u64,
    /// Clients whose sessions have ended in this entry, but keep their groups alive up to its end.
    pub(super) lingering: BTreeMap<String, BTreeSet<String>>,
    /// Sessions whose subscriptions or connections have changed in this entry.
    pub(super) touched: BTreeSet<SessionId>,
    /// Sessions whose connections have ended in this entry.
    disconnected: BTreeSet<SessionId>,
    /// Rows of which it is open whether they were sent when their connection ended.
    may_return: Vec<(SessionId, Row)>,
    /// Those whose sessions have ended, too: the messages are lost with them, or not.
    may_be_lost: BTreeSet<Position>,
    /// A connection has ended in this entry, so that a message may have been given and come back.
    pub(super) may_have_returned: bool,
    /// All that was offered to a group in this entry, or waited before.
    offered: BTreeSet<Position>,
    /// QoS 0, each for one of these.
    direct: Vec<(Position, Vec<SessionRef>)>,
    /// Sessions that have ended in this entry and were members: what groups gave them moved their own rows.
    ended_members: BTreeSet<SessionId>,
    /// What happened, for the statistics of the generator.
    pub(crate) reached: Vec<&'static str>,
}

/// What the machine's rows say of groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// By session and number in its queue.
    given: BTreeMap<(SessionId, u64), ShareId>,
    waiting: BTreeMap<ShareId, BTreeSet<Position>>,
    wholes: BTreeMap<ShareId, String>,
    tails: BTreeMap<SessionId, u64>,
}

impl Seen {
    pub(crate) fn in_rows_of(rig: &Rig) -> Self {
        let mut seen = Self::default();
        for share in rig.machine.shares() {
            seen.wholes.insert(share.share, format!("$share/{}/{}", share.name, share.filter));
        }
        for session in rig.machine.sessions() {
            let tail = rig.machine.queue_tail(session.session).unwrap();
            seen.tails.insert(session.session, tail.0);
        }
        let u64_at = |key: &[u8], at: usize| u64::from_be_bytes(key[at..at + 8].try_into().unwrap());
        let position_at = |key: &[u8], at: usize| Position::from_u64(u64_at(key, at));
        for (key, value) in rig.machine.store().iter() {
            if key[2] == RowKind::Queue as u8 && value[1] & 0x40 != 0 {
                let at = 14 + if value[1] & 0x20 == 0 { 0 } else { 8 };
                let share = u64::from_le_bytes(value[at..at + 8].try_into().unwrap());
                let of = (SessionId(position_at(key, 3)), u64_at(key, 11));
                seen.given.insert(of, ShareId(Position::from_u64(share)));
            }
            if key[2] == RowKind::ShareQueue as u8 {
                let waiting = seen.waiting.entry(ShareId(position_at(key, 3))).or_default();
                waiting.insert(position_at(key, 11));
            }
        }
        seen
    }

    /// How many messages wait, in all groups.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.values().map(BTreeSet::len).sum()
    }
}

/// A row of a group that the model did not know of.
pub(super) struct NewRow {
    session: SessionId,
    seq: u64,
    share: u64,
    row: Row,
}

impl NewRow {
    pub(super) fn is(&self, session: SessionId, seq: u64) -> bool {
        (self.session, self.seq) == (session, seq)
    }
}

/// What a filter is matched against, unless it is a share.
pub(super) fn of_one_session(filter: &str) -> Option<&str> {
    if is_share(filter) { None } else { Some(filter.strip_prefix("$exclusive/").unwrap_or(filter)) }
}

pub(super) fn is_share(filter: &str) -> bool {
    filter.starts_with("$share/")
}

fn of_share(whole: &str) -> &str {
    whole.splitn(3, '/').nth(2).unwrap()
}

impl Shares {
    pub(super) fn begin_entry(&mut self) {
        self.by_key.retain(|_, share| !share.is_over);
        self.lingering.clear();
        self.touched.clear();
        self.disconnected.clear();
        self.may_return.clear();
        self.may_be_lost.clear();
        self.may_have_returned = false;
        self.offered = self.by_key.values().flat_map(|share| share.waiting.keys().copied()).collect();
        self.direct.clear();
        self.ended_members.clear();
        self.reached.clear();
    }

    /// Whether it is a message of a group, and so no copy that apply has made.
    pub(super) fn knows(&self, position: Position) -> bool {
        self.offered.contains(&position) || self.direct.iter().any(|(of, _)| *of == position)
    }

    pub(super) fn has_ended(&self, member: SessionId) -> bool {
        self.ended_members.contains(&member)
    }

    pub(super) fn note_end(&mut self, session: &Session) {
        if session.subs.keys().any(|f| is_share(f)) || session.rows.values().any(|row| row.given.is_some()) {
            self.ended_members.insert(session.id);
        }
    }

    fn alive(&self, whole: &str) -> Option<u64> {
        self.by_key.iter().find(|(_, share)| share.whole == whole && !share.is_over).map(|(key, _)| *key)
    }

    pub(super) fn begin(&mut self, whole: &str) {
        if self.alive(whole).is_none() {
            self.next += 1;
            let share = Share { whole: whole.to_owned(), waiting: BTreeMap::new(), is_over: false };
            self.by_key.insert(self.next, share);
        }
    }

    pub(super) fn linger(&mut self, session: &Session) {
        self.note_end(session);
        let shares = session.subs.keys().filter(|f| is_share(f)).cloned().collect();
        self.lingering.insert(session.client_id.clone(), shares);
    }
}

/// Gives `one` a place that `fits` it, if need be by moving others on: a delivery does not say of which group it is.
fn settle_on(
    one: usize,
    places: usize,
    fits: &dyn Fn(usize, usize) -> bool,
    taken: &mut BTreeMap<usize, usize>,
    seen: &mut BTreeSet<usize>,
) -> bool {
    for place in (0..places).filter(|place| fits(one, *place)).collect::<Vec<_>>() {
        if !seen.insert(place) {
            continue;
        }
        let is_free = match taken.get(&place).copied() {
            None => true,
            Some(other) => settle_on(other, places, fits, taken, seen),
        };
        if is_free {
            taken.insert(place, one);
            return true;
        }
    }
    false
}

impl Model {
    /// A group ends with its last member.
    pub(super) fn end_memberless_shares(&mut self) {
        for share in self.shares.by_key.values_mut() {
            let is_member = |s: &Session| s.subs.contains_key(&share.whole);
            let lingers = self.shares.lingering.values().any(|shares| shares.contains(&share.whole));
            share.is_over |= !lingers && !self.sessions.values().any(is_member);
        }
    }

    /// Offers a message to all groups that match. Whether there is one.
    pub(super) fn offer(&mut self, msg: &Msg) -> bool {
        let mut matched = false;
        for share in self.shares.by_key.values_mut().filter(|share| !share.is_over) {
            let members: Vec<&Session> = self.sessions.values().filter(|s| s.subs.contains_key(&share.whole)).collect();
            if members.is_empty() || !matches(of_share(&share.whole), &msg.topic) {
                continue;
            }
            matched = true;
            let position = msg.position.expect("no will matches a group of the test");
            if msg.qos == QoS::AtMostOnce {
                let connected: Vec<_> = members.iter().filter(|s| s.owner.is_some()).map(|s| s.reference()).collect();
                if !connected.is_empty() {
                    self.shares.direct.push((position, connected));
                }
            } else {
                share.waiting.insert(position, msg.clone());
                self.shares.offered.insert(position);
            }
        }
        matched
    }

    /// Groups of which one member gets a QoS 0 message past the log: who may.
    pub(super) fn qos0_members(&self, topic: &str) -> Vec<Vec<SessionId>> {
        let alive = self.shares.by_key.values().filter(|s| !s.is_over && matches(of_share(&s.whole), topic));
        let members = alive.map(|share| {
            let members = self.sessions.values().filter(|s| s.owner.is_some() && s.subs.contains_key(&share.whole));
            members.map(|s| s.id).collect::<Vec<_>>()
        });
        members.filter(|members| !members.is_empty()).collect()
    }

    /// A connection has ended: what its groups gave it returns, if nobody can have it.
    pub(super) fn return_rows(&mut self, id: SessionId) {
        self.shares.touched.insert(id);
        self.shares.disconnected.insert(id);
        self.shares.may_have_returned = true;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (surely_sent, sent) = session.sent;
        let shares = &mut self.shares;
        let returned = session.rows.extract_if(.., |seq, row| {
            let alive = row.given.is_some_and(|share| shares.by_key.get(&share).is_some_and(|s| !s.is_over));
            let is_open = row.qos == QoS::ExactlyOnce && !row.released;
            row.may_return = alive && is_open && (surely_sent..sent).contains(seq);
            alive && (row.qos == QoS::AtLeastOnce || (is_open && *seq >= sent))
        });
        let returned: Vec<(u64, Row)> = returned.collect();
        let open = session.rows.values().filter(|row| row.may_return).map(|row| (id, row.clone()));
        shares.may_return.extend(open);
        for (seq, row) in returned {
            let share = row.given.and_then(|share| shares.by_key.get_mut(&share)).unwrap();
            let position = row.msg.position.unwrap_or_else(|| panic!("row {seq} without a position"));
            share.waiting.insert(position, row.msg);
            shares.offered.insert(position);
            shares.reached.push("returned to a group");
        }
    }

    /// Rows of groups that the machine has and the model did not know of: each must have been in its hands.
    pub(super) fn find_new_rows(
        &mut self,
        seen: &Seen,
        queue: &mut dyn FnMut(SessionId) -> Vec<QueuedRow>,
    ) -> Result<Vec<NewRow>, String> {
        for (id, row) in std::mem::take(&mut self.shares.may_return) {
            let share = row.given.and_then(|share| self.shares.by_key.get_mut(&share)).filter(|s| !s.is_over);
            if let Some(share) = share.filter(|_| !self.sessions.contains_key(&id)) {
                let position = row.msg.position.unwrap();
                self.shares.offered.insert(position);
                self.shares.may_be_lost.insert(position);
                share.waiting.insert(position, row.msg);
            }
        }
        let mut found = Vec::new();
        for session in self.sessions.values_mut() {
            let gone: Vec<(u64, Row)> = session
                .rows
                .extract_if(.., |seq, row| row.may_return && !seen.given.contains_key(&(session.id, *seq)))
                .collect();
            for (_, row) in gone {
                let share = row.given.and_then(|share| self.shares.by_key.get_mut(&share)).unwrap();
                self.shares.offered.insert(row.msg.position.unwrap());
                share.waiting.insert(row.msg.position.unwrap(), row.msg);
            }
            session.rows.values_mut().for_each(|row| row.may_return = false);
        }
        // Only now: what one session gave back another may have got.
        for session in self.sessions.values_mut() {
            let is_new = |(_, seq): &&(SessionId, u64)| session.rows.get(seq).is_none_or(|row| row.given.is_none());
            let range = (session.id, 0)..=(session.id, u64::MAX);
            let new: Vec<u64> = seen.given.range(range).map(|(of, _)| of).filter(is_new).map(|(_, seq)| *seq).collect();
            if new.is_empty() {
                continue;
            }
            let rows: BTreeMap<u64, QueuedRow> = queue(session.id).into_iter().map(|row| (row.seq.0, row)).collect();
            for seq in new {
                let (got, whole) = (&rows[&seq], seen.wholes.get(&seen.given[&(session.id, seq)]));
                let position = got.message.position;
                let of = self.shares.by_key.iter_mut().find(|(_, share)| {
                    let same = if share.is_over { whole.is_none() } else { whole == Some(&share.whole) };
                    same && share.waiting.contains_key(&position)
                });
                let Some((key, share)) = of else {
                    return Err(format!("row {seq} of {} holds what no group had: {got:?} of {whole:?}", session.id));
                };
                let msg = share.waiting.remove(&position).unwrap();
                let sub = session.subs.get(&share.whole);
                let is_touched = self.shares.touched.contains(&session.id);
                if !is_touched {
                    check_given(session, sub, &msg, got).map_err(|e| format!("row {seq} of {}: {e}", session.id))?;
                }
                let row = Row {
                    msg,
                    qos: got.qos,
                    retain: Some(got.retain),
                    identifiers: got.identifiers.iter().copied().collect(),
                    released: got.released,
                    may_be_gone: false,
                    fresh: false,
                    charge: 0,
                    given: Some(*key),
                    may_return: false,
                };
                found.push(NewRow { session: session.id, seq, share: *key, row });
            }
        }
        for session in self.sessions.values_mut() {
            let Some(tail) = seen.tails.get(&session.id).copied() else {
                return Err(format!("session {} is gone", session.id));
            };
            let is_concerned = session.subs.keys().any(|f| is_share(f)) || self.shares.touched.contains(&session.id);
            if tail < session.tail || (tail > session.tail && !is_concerned) {
                return Err(format!("the queue of {} ends at {tail}, expected {}", session.id, session.tail));
            }
            // What groups gave before the connection ended moved the session's own rows of this entry up, and its
            // window with them.
            if self.shares.disconnected.contains(&session.id) {
                session.sent.1 += tail - session.tail;
            }
            session.tail = tail;
        }
        Ok(found)
    }

    /// All that is left to hold, once rows and deliveries to single sessions are compared.
    pub(super) fn check_shares(
        &mut self,
        seen: &Seen,
        new: Vec<NewRow>,
        deliveries: &[&Delivery],
        effects: &[Effect],
    ) -> Verdict {
        let mut taken: BTreeMap<u64, BTreeSet<Position>> = BTreeMap::new();
        for row in &new {
            taken.entry(row.share).or_default().insert(row.row.msg.position.unwrap());
        }
        self.check_share_deliveries(seen, &new, deliveries, &mut taken)?;
        for NewRow { session, seq, row, .. } in new {
            let session = self.sessions.get_mut(&session).unwrap();
            if self.shares.disconnected.contains(&session.id) {
                // It may have been sent before the connection ended.
                session.sent.1 = session.sent.1.max(session.tail);
            }
            session.rows.insert(seq, row);
            self.shares.reached.push("given by a group");
            // It had room; what else came in this entry may have come later.
            let rows = session.rows.values().filter(|row| !row.fresh).count();
            if rows > usize::from(session.receive_maximum) && !self.shares.touched.contains(&session.id) {
                return Err(format!("row {seq} was given to {}, which had no room", session.client_id));
            }
        }
        self.check_room()?;
        self.check_waiting(seen, effects, &taken)
    }

    /// What was sent beside the deliveries of single sessions is of groups.
    fn check_share_deliveries(
        &mut self,
        seen: &Seen,
        new: &[NewRow],
        deliveries: &[&Delivery],
        taken: &mut BTreeMap<u64, BTreeSet<Position>>,
    ) -> Verdict {
        let mut rows: BTreeSet<(SessionId, u64)> = new.iter().map(|row| (row.session, row.seq)).collect();
        let mut rowless = Vec::new();
        for delivery in deliveries {
            match delivery.seq {
                None => rowless.push(*delivery),
                Some(seq) => {
                    let is_known = rows.remove(&(delivery.to.session, seq.0));
                    if !is_known && !self.shares.offered.contains(&delivery.message.position) {
                        return Err(format!("nobody expects {delivery:?}"));
                    }
                }
            }
        }
        // QoS 0: of messages that were so, and of those that groups gave to a member that wants no more.
        let direct = &self.shares.direct;
        let still_waits = |whole: &str, position: &Position| {
            let mut groups = seen.wholes.iter().filter(|(_, w)| *w == whole).map(|(id, _)| id);
            groups.any(|id| seen.waiting.get(id).is_some_and(|waiting| waiting.contains(position)))
        };
        // Those of groups that are over come last: of them a message may be lost.
        let (over, alive): (Vec<_>, Vec<_>) = self.shares.by_key.iter().partition(|(_, share)| share.is_over);
        let given: Vec<(u64, &str, Position)> = alive
            .iter()
            .chain(&over)
            .flat_map(|(key, share)| share.waiting.keys().map(|position| (**key, share.whole.as_str(), *position)))
            .filter(|(_, whole, position)| !still_waits(whole, position))
            .collect();
        let fits = |one: usize, place: usize| {
            let (to, position) = (rowless[one].to, rowless[one].message.position);
            if let Some((of, candidates)) = direct.get(place) {
                return *of == position && candidates.contains(&to);
            }
            let (_, whole, of) = given[place - direct.len()];
            let sub = self.sessions.get(&to.session).and_then(|s| s.subs.get(whole));
            let is_touched = self.shares.touched.contains(&to.session);
            of == position && (is_touched || sub.is_some_and(|sub| sub.options.qos == QoS::AtMostOnce))
        };
        let is_over = |place: usize| {
            place.checked_sub(direct.len()).is_some_and(|n| over.iter().any(|(key, _)| **key == given[n].0))
        };
        let fits_alive = |one: usize, place: usize| !is_over(place) && fits(one, place);
        let places = direct.len() + given.len();
        let mut settled = BTreeMap::new();
        for one in 0..rowless.len() {
            settle_on(one, places, &fits_alive, &mut settled, &mut BTreeSet::new());
        }
        for (one, delivery) in rowless.iter().enumerate() {
            let has_one = settled.values().any(|settled| *settled == one);
            if !has_one && !settle_on(one, places, &fits, &mut settled, &mut BTreeSet::new()) {
                return Err(format!("nobody expects {delivery:?}"));
            }
        }
        if let Some(lost) = (0..direct.len()).find(|place| !settled.contains_key(place)) {
            return Err(format!("a QoS 0 message for one of a group went to nobody: {:?}", direct[lost]));
        }
        let places = settled.into_keys().filter_map(|place| place.checked_sub(direct.len()));
        let went: Vec<(u64, Position)> = places.map(|n| (given[n].0, given[n].2)).collect();
        for (key, position) in went {
            self.shares.by_key.get_mut(&key).unwrap().waiting.remove(&position);
            taken.entry(key).or_default().insert(position);
            self.shares.reached.push("given by a group at QoS 0");
        }
        let connected = |(session, _): &&(SessionId, u64)| {
            !self.shares.touched.contains(session) && self.sessions.get(session).is_some_and(|s| s.owner.is_some())
        };
        if let Some(row) = rows.iter().find(connected) {
            return Err(format!("row {row:?} was given and not sent"));
        }
        Ok(())
    }

    fn check_room(&self) -> Verdict {
        for session in self.sessions.values() {
            let given = session.rows.values().filter(|row| row.given.is_some()).count();
            if given > IN_FLIGHT_MAX {
                return Err(format!("session {} has {given} rows of groups", session.id));
            }
        }
        Ok(())
    }

    fn check_waiting(&mut self, seen: &Seen, effects: &[Effect], taken: &BTreeMap<u64, BTreeSet<Position>>) -> Verdict {
        let none = BTreeSet::new();
        let mut known: BTreeSet<ShareId> = BTreeSet::new();
        for (key, share) in self.shares.by_key.iter_mut().filter(|(_, share)| !share.is_over) {
            let Some((id, _)) = seen.wholes.iter().find(|(_, whole)| **whole == share.whole) else {
                return Err(format!("there is no group {}", share.whole));
            };
            known.insert(*id);
            let has = seen.waiting.get(id).unwrap_or(&none);
            if let Some(extra) = has.iter().find(|position| !share.waiting.contains_key(position)) {
                return Err(format!("{extra} waits in {} and with a member", share.whole));
            }
            let (now, sessions) = (self.time, &self.sessions);
            let ended_with = |position: &Position| {
                effects.iter().any(|effect| match effect {
                    Effect::Deliver { delivery, .. } => {
                        let is_it = delivery.message.position == *position && delivery.qos == QoS::ExactlyOnce;
                        is_it && delivery.seq.is_some() && !sessions.contains_key(&delivery.to.session)
                    }
                    _ => false,
                })
            };
            for (position, msg) in share.waiting.extract_if(.., |position, _| !has.contains(position)) {
                let is_expired = msg.expires_at.is_some_and(|at| at <= now);
                if !is_expired && !ended_with(&position) && !self.shares.may_be_lost.contains(&position) {
                    return Err(format!("{position} of {} is lost: {msg:?}", share.whole));
                }
            }
            if let Some(first) = share.waiting.keys().next() {
                self.shares.reached.push("waits in a group");
                let has_room = |s: &&Session| {
                    let given = s.rows.values().filter(|row| row.given.is_some()).count();
                    let room = s.rows.len() < usize::from(s.receive_maximum) && given < IN_FLIGHT_MAX;
                    s.owner.is_some() && s.subs.contains_key(&share.whole) && room
                };
                if let Some(idle) = sessions.values().find(has_room) {
                    return Err(format!("{first} is stranded in {}, {} has room", share.whole, idle.client_id));
                }
                let last_taken = taken.get(key).and_then(|taken| taken.last());
                if !self.shares.may_have_returned && last_taken.is_some_and(|last| last > first) {
                    return Err(format!("{last_taken:?} of {} was served before {first}", share.whole));
                }
            }
        }
        match seen.wholes.keys().chain(seen.waiting.keys()).find(|id| !known.contains(id)) {
            Some(id) => Err(format!("group {id} has no member and is still there")),
            None => Ok(()),
        }
    }
}

/// To whom a message was given, and how.
fn check_given(session: &Session, sub: Option<&Sub>, msg: &Msg, got: &QueuedRow) -> Verdict {
    let Some(sub) = sub else { return Err("it is no member".into()) };
    if session.owner.is_none() {
        return Err("it is not connected".into());
    }
    let identifiers: BTreeSet<u32> = sub.identifier.into_iter().collect();
    let same = got.qos == sub.options.qos.min(msg.qos)
        && got.retain == (sub.options.retain_as_published && msg.retain)
        && got.identifiers.iter().copied().collect::<BTreeSet<_>>() == identifiers
        && got.message.payload.to_vec() == msg.payload
        && got.message.topic.as_str() == msg.topic
        && got.message.expires_at.map(|at| at.0) == msg.expires_at;
    if same { Ok(()) } else { Err(format!("{got:?}, expected {msg:?} by {sub:?}")) }
}
