//! Plays operations on the machine and on the model, and compares after each.

use std::collections::{BTreeMap, HashMap};

use quorate_store::command::{Ack, AckKind, Batch, Close, Command, Connect, NodeStarted, Origin};
use quorate_store::command::{
    Publish, QueueFullPolicy, SessionRef, Setting, Settle, Subscribe, SubscribeOptions, Will,
};
use quorate_store::ids::{BatchSeq, ClusterTime, Incarnation, NodeId, Position, QoS, QueueSeq};
use quorate_store::message::MessageProperties;
use quorate_store::topic::FilterKind;

use super::Model;
use super::compare::Verdict;
use super::ops::{Cmd, Op, Time, Who};
use super::shares::Seen;
use crate::testkit::Rig;
use crate::testkit::commands::{filter, packet_id, payload, qos, topic};
use crate::testkit::replica::reopened;

pub(super) const TOPICS: [&str; 9] = ["a", "a/b", "a/b/c", "b", "b/x", "$s/a", "a/", "/a", "b/x/c"];
pub(super) const FILTERS: [&str; 22] = [
    "a",
    "a/b",
    "b/x",
    "a/+",
    "a/#",
    "#",
    "+/b",
    "+",
    "b/+/c",
    "$s/#",
    "+/+",
    "/+",
    "w/#",
    "w/+",
    "a/b/#",
    "+/b/#",
    "w/c1",
    "$share/g/a/#",
    "$share/h/a/+",
    "$share/g/b",
    "$exclusive/a/#",
    "$exclusive/b/x",
];
/// Where in [`FILTERS`] the shared ones are: no will matches them.
pub(super) const SHARED: std::ops::Range<u8> = 17..20;
/// The first of [`FILTERS`]: no will and no retained message of their own publisher comes by them.
const FILTERS_FOR_NO_LOCAL: usize = 3;
/// Batches of one stream that a test keeps to send them again.
const SENT_MAX: usize = 8;

/// Machine, model and what the nodes remember.
pub(crate) struct Driver {
    pub(crate) rig: Rig,
    pub(crate) model: Model,
    /// Batches of the streams, the newest last.
    batches: BTreeMap<Incarnation, Vec<Batch>>,
    starts: BTreeMap<u64, Vec<NodeStarted>>,
    former: Vec<(u64, Incarnation)>,
    /// Connections that were, with the node on which they were.
    known: Vec<SessionRef>,
    /// Which message stands at a position: never two.
    pub(super) positions: BTreeMap<Position, (String, Vec<u8>)>,
    counter: u64,
    /// The history is about the bound of queues: no message expires, and wills take no room.
    is_bounded: bool,
    /// How often a history came to the places that it is made for.
    pub(crate) reached: BTreeMap<&'static str, u64>,
}

impl Driver {
    pub(crate) fn new(nodes: u64, is_bounded: bool) -> Self {
        let mut driver = Self {
            rig: Rig::new(),
            model: Model { charges: is_bounded, ..Model::default() },
            is_bounded,
            batches: BTreeMap::new(),
            starts: BTreeMap::new(),
            former: Vec::new(),
            known: Vec::new(),
            positions: BTreeMap::new(),
            counter: 0,
            reached: BTreeMap::new(),
        };
        driver.direct(Command::AllocateNode { token: 1 << 100, info: Default::default() }).unwrap();
        driver.start(1).unwrap();
        for _ in 1..nodes {
            driver.join().unwrap();
        }
        driver
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Gives one entry to both, lets the machine finish what it began, and compares.
    pub(crate) fn entry(&mut self, batch: &Batch) -> Verdict {
        let (index, term, now) = (self.rig.next_index(), self.rig.term, self.rig.now);
        let before = self.model.clone();
        let mut happened = self.rig.append(batch.clone());
        happened.0.extend(self.rig.drain().0);
        let rig = &self.rig;
        let mut queue = |session| rig.queue(session);
        let seen = Seen::in_rows_of(rig);
        let expected = self.model.apply(index, term, now, batch);
        let mut verdict = self.model.check(&expected, &happened.0, &mut queue, &seen);
        if verdict.is_err() {
            let mut other = Model { wills_come_last: !before.wills_come_last, ..before };
            let expected = other.apply(index, term, now, batch);
            if other.check(&expected, &happened.0, &mut queue, &seen).is_ok() {
                self.model = other;
                verdict = Ok(());
            }
        }
        self.note_what_was_reached(&happened);
        verdict
            .and_then(|()| self.one_message_at_each_position(&happened))
            .and_then(|()| self.no_row_is_left_over(&seen))
            .and_then(|()| self.model.access.check(self.rig.machine.access()))
            .map_err(|e| format!("entry {index} {batch:?}\nat {now}: {e}"))
    }

    fn direct(&mut self, command: Command) -> Verdict {
        let nonce = u128::from(self.count());
        self.entry(&Batch { origin: Origin::Direct { nonce }, commands: vec![command] })
    }

    pub(super) fn join(&mut self) -> Verdict {
        let token = u128::from(self.count());
        self.direct(Command::AllocateNode { token, info: Default::default() })?;
        self.direct(Command::AllocateNode { token, info: Default::default() })?;
        self.start(self.model.next_node)
    }

    fn start(&mut self, node: u64) -> Verdict {
        let nonce = u128::from(self.count());
        let replaces = self.model.nodes.get(&NodeId(node)).and_then(|n| n.incarnation);
        let started = NodeStarted { node: NodeId(node), nonce, replaces, wall_ms: 0, info: Default::default() };
        self.starts.entry(node).or_default().push(started.clone());
        if let Some(stream) = self.rig.nodes.remove(&node) {
            self.former.push((node, stream.incarnation));
        }
        self.direct(Command::NodeStarted(started))?;
        let incarnation = self.model.nodes[&NodeId(node)].incarnation.ok_or("it has no incarnation")?;
        self.rig.nodes.insert(node, crate::testkit::Stream { incarnation, last: 0 });
        Ok(())
    }

    fn node(&self, pick: u8) -> u64 {
        let nodes: Vec<u64> = self.rig.nodes.keys().copied().collect();
        nodes[usize::from(pick) % nodes.len()]
    }

    /// Plays one operation.
    pub(crate) fn play(&mut self, op: &Op) -> Verdict {
        match op {
            Op::Start(node) => self.start(self.node(*node)),
            Op::StartAgain { node, back } => {
                let starts = &self.starts[&self.node(*node)];
                let started = starts[(starts.len() - 1).saturating_sub(usize::from(*back))].clone();
                self.direct(Command::NodeStarted(started))
            }
            Op::StartUnaware { node, nonce } => {
                let replaces = self.former.last().map(|(_, incarnation)| *incarnation);
                let (node, nonce) = (NodeId(self.node(*node)), u128::from(*nonce) << 64);
                let started = NodeStarted { node, nonce, replaces, wall_ms: 0, info: Default::default() };
                self.direct(Command::NodeStarted(started))
            }
            Op::Lose { node, right_term, former } => {
                let node = self.node(*node);
                let mut incarnation = self.rig.incarnation(node);
                if *former && let Some((_, old)) = self.former.last() {
                    incarnation = *old;
                }
                let term = if *right_term { self.rig.term } else { self.rig.term - 1 };
                self.direct(Command::NodeLost { incarnation, term })
            }
            Op::NewTerm => {
                self.rig.term += 1;
                Ok(())
            }
            Op::Replace(node) => {
                let node = self.node(*node);
                self.direct(Command::RemoveNode { node: NodeId(node) })?;
                if let Some(stream) = self.rig.nodes.remove(&node) {
                    self.former.push((node, stream.incarnation));
                }
                self.direct(Command::RemoveNode { node: NodeId(node) })?;
                let last = self.starts[&node].last().cloned().ok_or("it never started")?;
                self.direct(Command::NodeStarted(last))?;
                self.join()
            }
            Op::Batch { node, cmds, time } => self.at(*time, |d| d.batch(d.node(*node), cmds)),
            Op::Flood { node, messages } => {
                let flood = Cmd::publish_anything();
                self.batch(self.node(*node), &vec![flood; usize::from(*messages)])
            }
            Op::Replay { node, back } => {
                let incarnation = self.rig.incarnation(self.node(*node));
                let sent = self.batches.entry(incarnation).or_default();
                match sent.len().checked_sub(1 + usize::from(*back)).map(|i| sent[i].clone()) {
                    Some(batch) => self.entry(&batch),
                    None => Ok(()),
                }
            }
            Op::Gap { node, ahead } => {
                let node = self.node(*node);
                let stream = self.rig.nodes[&node];
                let seq = BatchSeq(self.model.lives[&stream.incarnation].last_seq + 1 + u64::from(*ahead));
                let commands = self.commands(stream.incarnation, &[Cmd::publish_anything()]);
                let origin = Origin::Stream { node: NodeId(node), incarnation: stream.incarnation, seq };
                self.entry(&Batch { origin, commands })
            }
            Op::Ghost { pick, cmds } => {
                if self.former.is_empty() {
                    return Ok(());
                }
                let (node, incarnation) = self.former[usize::from(*pick) % self.former.len()];
                let seq = BatchSeq(self.model.lives[&incarnation].last_seq + 1);
                let commands = self.commands(incarnation, cmds);
                self.entry(&Batch { origin: Origin::Stream { node: NodeId(node), incarnation, seq }, commands })
            }
            Op::Tick(time) => self.at(*time, |d| d.direct(Command::Tick)),
            Op::ExpiryMax(seconds) => self.direct(Command::Set(Setting::SessionExpiryMax(*seconds))),
            Op::KeyWindow { keys, seconds } => {
                self.direct(Command::Set(Setting::IdempotencyKeysMax(*keys)))?;
                self.direct(Command::Set(Setting::IdempotencyWindow(*seconds)))
            }
            Op::DelayMax(seconds) => self.direct(Command::Set(Setting::DelayMax(*seconds))),
            Op::SubscriptionsMax(most) => self.direct(Command::Set(Setting::SubscriptionsMax(*most))),
            Op::Bound { bytes, drop_oldest } if self.is_bounded => {
                let policy = if *drop_oldest { QueueFullPolicy::DropOldest } else { QueueFullPolicy::Reject };
                self.direct(Command::Set(Setting::QueueFullPolicy(policy)))?;
                self.direct(Command::Set(Setting::QueueBytesMax(*bytes)))
            }
            Op::Bound { .. } => Ok(()),
            Op::Access(op) => self.direct(op.command()),
            Op::EndSession(client) => match self.model.session_of(&client_id(*client)).map(|s| s.id) {
                Some(session) => self.direct(Command::EndSession { session }),
                None => Ok(()),
            },
            Op::ShareStrategy { filter: f, strategy } => {
                let whole = FILTERS[usize::from(SHARED.start + f % SHARED.len() as u8)];
                let FilterKind::Shared { name: share, filter } = filter(whole).kind() else { return Ok(()) };
                self.direct(Command::SetShareStrategy { share, filter, strategy: *strategy })
            }
            Op::Reopen => {
                self.rig.machine = reopened(&self.rig.machine);
                Ok(())
            }
        }
    }

    fn at(&mut self, time: Time, play: impl FnOnce(&mut Self) -> Verdict) -> Verdict {
        match time {
            Time::Later(ms) => {
                self.rig.now += ms;
                play(self)
            }
            Time::Behind(ms) => {
                self.rig.now -= ms;
                let verdict = play(self);
                self.rig.now += ms;
                verdict
            }
        }
    }

    /// The next batch of a node, or a batch in vain when its incarnation is closed and it does not know.
    pub(crate) fn batch(&mut self, node: u64, cmds: &[Cmd]) -> Verdict {
        let incarnation = self.rig.incarnation(node);
        let commands = self.commands(incarnation, cmds);
        if commands.is_empty() {
            return Ok(());
        }
        let batch = self.rig.next_batch(node, commands);
        let sent = self.batches.entry(incarnation).or_default();
        sent.push(batch.clone());
        if sent.len() > SENT_MAX {
            sent.remove(0);
        }
        self.entry(&batch)
    }

    fn commands(&mut self, incarnation: Incarnation, cmds: &[Cmd]) -> Vec<Command> {
        let mut acked = HashMap::new();
        cmds.iter().filter_map(|cmd| self.command(incarnation, cmd, &mut acked)).collect()
    }

    /// A connection on this node, or one that is over.
    fn who(&self, incarnation: Incarnation, who: Who) -> Option<SessionRef> {
        let here: Vec<SessionRef> =
            self.model.sessions.values().filter(|s| s.owner == Some(incarnation)).map(|s| s.reference()).collect();
        let from = if who.stale { &self.known } else { &here };
        from.get(usize::from(who.pick) % from.len().max(1)).copied()
    }

    fn command(
        &mut self,
        incarnation: Incarnation,
        cmd: &Cmd,
        acked: &mut HashMap<(SessionRef, u64), AckKind>,
    ) -> Option<Command> {
        match cmd {
            Cmd::Connect { client, clean, expiry_s, receive_maximum, will, late } => {
                let n = self.count();
                let old = self.model.session_of(&client_id(*client)).map(|s| s.reference());
                self.known.extend(old);
                let deadline = if *late { self.model.time.max(self.rig.now) - 1 } else { u64::MAX };
                Some(Command::Connect(Connect {
                    client_id: client_id(*client),
                    clean_start: *clean,
                    expiry_s: *expiry_s,
                    receive_maximum: *receive_maximum,
                    will: will.map(|op| Will {
                        delay_s: op.delay_s,
                        topic: topic(&format!("w/{}", client_id(*client))),
                        qos: if self.is_bounded { QoS::AtMostOnce } else { qos(op.qos) },
                        retain: op.retain,
                        properties: None,
                        expiry_s: op.expiry_s,
                        payload: payload(&format!("will{n}")),
                    }),
                    deadline: ClusterTime(deadline),
                    user: (client % 3 > 0).then(|| format!("u{}", client % 3)),
                }))
            }
            Cmd::Close { who, drop_will, end, sent } => {
                let from = self.who(incarnation, *who)?;
                self.known.push(from);
                let sent_until = self.model.sessions.get(&from.session).map_or(0, |s| {
                    let head = s.rows.keys().next().copied().unwrap_or(s.tail);
                    head + u64::from(*sent) % (s.window_end().0 - head + 1)
                });
                let expiry_s = end.then_some(0);
                let close = Close { from, drop_will: *drop_will, expiry_s, sent_until: QueueSeq(sent_until) };
                Some(Command::Close(close))
            }
            Cmd::Publish { who, admin, qos: q, retain, empty, topic: t, id, expiry_s, keys, delay_s } => {
                let n = self.count();
                let from = if *admin { None } else { Some(self.who(incarnation, *who)?) };
                let text = if *empty { String::new() } else { format!("m{n}") };
                let name = TOPICS[usize::from(*t) % TOPICS.len()];
                let is_of_groups = name.starts_with('a') || name == "b";
                // The model knows messages of groups by their positions, which it does not know of these.
                let can_wait = !self.is_bounded && !is_of_groups;
                let delayed = delay_s.filter(|_| can_wait).map(|s| format!("$delayed/{s}/{name}"));
                Some(Command::Publish(Publish {
                    from,
                    packet_id: (*q == 2 && !admin).then(|| packet_id(u16::from(*id))),
                    qos: qos(*q),
                    retain: *retain,
                    topic: topic(delayed.as_deref().unwrap_or(name)),
                    properties: if self.is_bounded { None } else { with_keys(*keys) },
                    expiry_s: expiry_s.filter(|_| !self.is_bounded),
                    payload: payload(&text),
                }))
            }
            Cmd::Release { who, id } => {
                let from = self.who(incarnation, *who)?;
                Some(Command::Release { from, packet_id: packet_id(u16::from(*id)) })
            }
            Cmd::Settle { who, picks } => {
                let from = self.who(incarnation, *who)?;
                let acks = self.acks(from, picks, acked);
                (!acks.is_empty()).then_some(Command::Settle(Settle { from, acks }))
            }
            Cmd::Subscribe { who, filter: f, qos: q, identifier, flags } => {
                let from = self.who(incarnation, *who)?;
                let f = usize::from(*f) % FILTERS.len();
                // At the bound of a queue the model would have to know whom the machine chooses.
                let f = if self.is_bounded && FILTERS[f].starts_with("$share") { 0 } else { f };
                let no_local = flags & 1 != 0 && f < FILTERS_FOR_NO_LOCAL;
                let options = SubscribeOptions {
                    qos: qos(*q),
                    no_local,
                    retain_as_published: flags & 2 != 0,
                    retain_handling: if no_local { 2 } else { (flags >> 2) % 3 },
                };
                let filters = vec![(filter(FILTERS[f]), options)];
                Some(Command::Subscribe(Subscribe { from, identifier: *identifier, filters }))
            }
            Cmd::Unsubscribe { who, filters } => {
                let from = self.who(incarnation, *who)?;
                let filters = filters.iter().map(|f| filter(FILTERS[usize::from(*f) % FILTERS.len()])).collect();
                Some(Command::Unsubscribe { from, filters })
            }
        }
    }

    /// What a receiver may answer: to rows in its window, and no two answers to one row in a batch but the
    /// same twice.
    fn acks(
        &self,
        from: SessionRef,
        picks: &[(u8, bool)],
        acked: &mut HashMap<(SessionRef, u64), AckKind>,
    ) -> Vec<Ack> {
        let Some(session) = self.model.sessions.get(&from.session) else { return Vec::new() };
        let rows: Vec<_> = session.rows.range(..session.window_end().0).collect();
        let mut acks = Vec::new();
        for (pick, refuse) in picks {
            if rows.is_empty() {
                break;
            }
            let (seq, row) = rows[usize::from(*pick) * rows.len() / 256];
            let kind = match (row.qos, row.released, refuse) {
                (QoS::ExactlyOnce, true, _) => AckKind::Pubcomp,
                (QoS::ExactlyOnce, false, true) => AckKind::PubrecRefused,
                (QoS::ExactlyOnce, false, false) => AckKind::Pubrec,
                _ => AckKind::Puback,
            };
            let kind = *acked.entry((from, *seq)).or_insert(kind);
            let position = row.msg.position.unwrap_or(Position::ZERO);
            acks.push(Ack { seq: QueueSeq(*seq), position, kind });
        }
        acks
    }
}

impl Cmd {
    fn publish_anything() -> Self {
        let who = Who { pick: 0, stale: false };
        Self::Publish {
            who,
            admin: true,
            qos: 2,
            retain: false,
            empty: false,
            topic: 0,
            id: 1,
            expiry_s: None,
            keys: 0,
            delay_s: None,
        }
    }
}

/// Bits 0 to 2 are keys, bit 3 one that is too long.
fn with_keys(bits: u8) -> Option<Box<MessageProperties>> {
    let key = |bit| if bit == 3 { "x".repeat(257) } else { format!("k{bit}") };
    let user: Vec<_> =
        (0..4).filter(|bit| bits & 1 << bit != 0).map(|bit| ("idempotency-key".to_owned(), key(bit))).collect();
    (!user.is_empty()).then(|| Box::new(MessageProperties { user, ..Default::default() }))
}

fn client_id(client: u8) -> String {
    format!("c{client}")
}
