//! A reference model of the replicated state: small, naive, and written from the DESIGN and MQTT 5.0 alone.
//!
//! It shares no code with the machine but the types of commands, outcomes and identities. What the machine
//! does by and by in continuations the model does at once, so the two are compared when the machine has no
//! continuation left.
//!
//! Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod access;
pub(crate) mod compare;
pub(crate) mod driver;
pub(crate) mod holds;
pub(crate) mod keys;
pub(crate) mod matching;
pub(crate) mod ops;
pub(crate) mod publishing;
pub(crate) mod shares;
pub(crate) mod state;

use std::collections::BTreeMap;

use quorate_store::access::Permission;
use quorate_store::command::{AckKind, Batch, Close, Command, Connect, NodeStarted, Origin, Publish};
use quorate_store::command::{SessionRef, Setting, Settle, Subscribe, Will};
use quorate_store::effect::{Granted, KickReason, Outcome};
use quorate_store::ids::{BatchSeq, Epoch, Incarnation, NodeId, PacketId, Position, QoS, SessionId};
use quorate_store::topic::TopicFilter;

use shares::{Shares, is_share, of_one_session};
use state::{Known, Later, Life, Msg, Node, Session, Settings, Sub};

/// What the machine has to say about one entry.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) answer: Answer,
    pub(crate) sent: Vec<Sent>,
    pub(crate) kicks: Vec<(Incarnation, SessionRef, KickReason)>,
    pub(crate) closed: Vec<Incarnation>,
    /// Rows that a connection must not send any more.
    pub(crate) withdrawn: Vec<(Incarnation, SessionRef, u64)>,
}

/// Its answer to the proposer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Seen already, or of a closed incarnation.
    Nothing,
    Gap(Incarnation, BatchSeq),
    Applied(Incarnation, BatchSeq, Vec<Want>),
    Direct(u128, Vec<Want>),
}

/// An outcome, as exactly as the DESIGN fixes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Is(Outcome),
    OneOf(Vec<Outcome>),
    Connected(WantConnected),
}

/// `Connected`, with room for what is free: where scanning starts, and which rows *may* have been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantConnected {
    pub(crate) session: SessionRef,
    pub(crate) present: bool,
    pub(crate) expiry_s: u32,
    pub(crate) durable: bool,
    pub(crate) rows: Vec<(u64, bool)>,
    pub(crate) sent: (u64, u64),
    pub(crate) tail: u64,
    /// Groups may have given it rows that are not known yet.
    pub(crate) has_shares: bool,
    pub(crate) inbound: Vec<PacketId>,
}

/// A delivery.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) to: SessionRef,
    pub(crate) seq: Option<u64>,
    pub(crate) qos: QoS,
    /// `None` where overlapping subscriptions disagree.
    pub(crate) retain: Option<bool>,
    pub(crate) identifiers: std::collections::BTreeSet<u32>,
    pub(crate) msg: Msg,
}

/// The state, as the DESIGN's section 3 tells it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) time: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) lives: BTreeMap<Incarnation, Life>,
    pub(crate) settings: Settings,
    pub(crate) access: access::AccessModel,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) retained: BTreeMap<String, Msg>,
    pub(crate) next_node: u64,
    /// Publishes that are remembered by their keys, in order.
    pub(crate) known: Vec<Known>,
    /// Delayed publishes, by when they are due and their positions.
    pub(crate) later: BTreeMap<(u64, Position), Later>,
    /// Payload of each will that was published, in no particular order.
    pub(crate) wills_published: Vec<Vec<u8>>,
    /// Whether rows are charged for; only tests of the bound need it.
    pub(crate) charges: bool,
    /// Whether wills that fall due in an entry come after its commands, or as soon as they may. The DESIGN
    /// leaves it open.
    pub(crate) wills_come_last: bool,
    pub(crate) shares: Shares,
    /// Incarnation whose batch is being applied.
    by: Option<Incarnation>,
    /// Sessions that have ended and whose wills come last.
    ended: Vec<(SessionId, Session)>,
    out: Vec<Sent>,
    kicks: Vec<(Incarnation, SessionRef, KickReason)>,
    closed: Vec<Incarnation>,
    withdrawn: Vec<(Incarnation, SessionRef, u64)>,
}

impl Model {
    pub(crate) fn apply(&mut self, index: u64, term: u64, stamp: u64, batch: &Batch) -> Expected {
        for session in self.sessions.values_mut() {
            session.rows.values_mut().for_each(|row| row.fresh = false);
        }
        self.shares.begin_entry();
        self.time = self.time.max(stamp);
        let now = self.time;
        self.retained.retain(|_, m| m.expires_at.is_none_or(|at| at > now));
        self.mark_rows_that_may_be_gone();
        self.ended = self.sessions.extract_if(.., |_, s| s.expires_at.is_some_and(|at| at <= now)).collect();
        self.ended.iter().for_each(|(_, session)| self.shares.linger(session));
        if !self.wills_come_last {
            self.publish_due_wills();
        }
        let answer = match batch.origin {
            Origin::Direct { nonce } => Answer::Direct(nonce, self.commands(index, term, None, batch)),
            Origin::Stream { incarnation, seq, .. } => match self.lives.get_mut(&incarnation) {
                Some(life) if !life.closed && seq.0 == life.last_seq + 1 => {
                    life.last_seq = seq.0;
                    Answer::Applied(incarnation, seq, self.commands(index, term, Some(incarnation), batch))
                }
                Some(life) if !life.closed && seq.0 > life.last_seq => {
                    Answer::Gap(incarnation, BatchSeq(life.last_seq + 1))
                }
                _ => Answer::Nothing,
            },
        };
        self.publish_due_wills();
        self.publish_what_was_delayed();
        self.mark_rows_that_may_be_gone();
        self.forget_old_keys();
        self.shares.lingering.clear();
        self.end_memberless_shares();
        let take = std::mem::take::<Vec<Sent>>;
        Expected {
            answer,
            sent: take(&mut self.out),
            kicks: std::mem::take(&mut self.kicks),
            closed: std::mem::take(&mut self.closed),
            withdrawn: std::mem::take(&mut self.withdrawn),
        }
    }

    /// The session of this client id, if there is one.
    pub(crate) fn session_of(&self, client_id: &str) -> Option<&Session> {
        self.sessions.values().find(|s| s.client_id == client_id)
    }

    /// Whether a tick is needed for something to happen.
    pub(crate) fn waits_for_time(&self) -> bool {
        !self.later.is_empty() || self.sessions.values().any(|s| s.expires_at.is_some() || s.will_due.is_some())
    }

    fn publish_due_wills(&mut self) {
        let now = self.time;
        for (id, session) in std::mem::take(&mut self.ended) {
            self.publish_that_will(id, session.will);
        }
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            if self.sessions.get(&id).is_some_and(|s| s.will_due.is_some_and(|at| at <= now)) {
                self.publish_will(id);
            }
        }
    }

    /// A row whose message has expired and that was certainly not sent may be removed at any time.
    fn mark_rows_that_may_be_gone(&mut self) {
        let now = self.time;
        for session in self.sessions.values_mut() {
            let unsent = session.maybe_sent_end().0;
            for (_, row) in session.rows.range_mut(unsent..) {
                row.may_be_gone |= row.msg.expires_at.is_some_and(|at| at <= now);
            }
        }
    }

    fn commands(&mut self, index: u64, term: u64, by: Option<Incarnation>, batch: &Batch) -> Vec<Want> {
        self.by = by;
        let mut wants = Vec::new();
        for (number, command) in batch.commands.iter().enumerate() {
            let position = Position::new(index, number as u32);
            self.end_memberless_shares();
            wants.push(self.command(position, term, command));
        }
        wants
    }

    fn command(&mut self, position: Position, term: u64, command: &Command) -> Want {
        match command {
            Command::Connect(c) => self.connect(position, c),
            Command::Close(c) => self.close(c),
            Command::Publish(p) => self.publish(position, p),
            Command::Release { from, packet_id } => match self.fenced(*from) {
                None => Want::Is(Outcome::Fenced),
                Some(s) => Want::Is(Outcome::Released { known: s.inbound.remove(&packet_id.get()) }),
            },
            Command::Settle(s) => self.settle(s),
            Command::Subscribe(s) => self.subscribe(s),
            Command::Unsubscribe { from, filters } => self.unsubscribe(*from, filters),
            Command::NodeStarted(n) => self.node_started(position, n),
            Command::NodeLost { incarnation, term: said } => self.node_lost(*incarnation, *said == term),
            Command::Tick => Want::Is(Outcome::Done),
            // The first node starts under the first id; nobody else may get that.
            Command::AllocateNode { .. } if self.nodes.is_empty() => Want::Is(Outcome::Void),
            Command::AllocateNode { token, info } => {
                if let Some((id, _)) = self.nodes.iter().find(|(_, n)| n.token == *token) {
                    return Want::Is(Outcome::NodeAllocated(*id));
                }
                self.next_node += 1;
                let id = NodeId(self.next_node);
                self.nodes.insert(id, Node { token: *token, info: info.clone(), nonce: None, incarnation: None });
                Want::Is(Outcome::NodeAllocated(id))
            }
            Command::RemoveNode { node } => match self.nodes.remove(node) {
                None => Want::Is(Outcome::Void),
                Some(removed) => {
                    self.close_life(removed.incarnation);
                    Want::Is(Outcome::Done)
                }
            },
            Command::Set(setting) => {
                match *setting {
                    Setting::QueueBytesMax(bytes) => self.settings.queue_bytes_max = bytes,
                    Setting::QueueFullPolicy(policy) => self.settings.policy = policy,
                    Setting::SessionExpiryMax(seconds) => self.settings.session_expiry_max = seconds,
                    Setting::IdempotencyKeysMax(keys) => self.settings.keys_max = keys,
                    Setting::IdempotencyWindow(seconds) => self.settings.key_window_s = seconds,
                    Setting::DelayMax(seconds) => self.settings.delay_max = seconds,
                    Setting::DelayedBytesMax(_) => {}
                    Setting::SubscriptionsMax(most) => self.settings.subscriptions_max = most as usize,
                    Setting::AclOtherwise(permission) => {
                        self.access.denies_otherwise = permission == Permission::Deny;
                    }
                }
                Want::Is(Outcome::Done)
            }
            Command::SetShareStrategy { .. } => Want::Is(Outcome::Done),
            Command::EndSession { session } => {
                let Some(s) = self.sessions.get(session) else {
                    return Want::OneOf(vec![Outcome::Done, Outcome::Void, Outcome::Fenced]);
                };
                if let Some(owner) = s.owner {
                    self.kicks.push((owner, s.reference(), KickReason::Administrative));
                    self.disconnect(*session);
                }
                self.end(*session);
                Want::Is(Outcome::Done)
            }
            Command::PutUser(user) => self.access.put_user(user),
            Command::DeleteUser { name } => self.access.delete_user(name),
            Command::PutAclRule(rule) => self.access.put_rule(rule),
            Command::DeleteAclRule { number } => self.access.delete_rule(*number),
        }
    }

    /// The session that a command comes from, unless that connection of it is over.
    fn fenced(&mut self, from: SessionRef) -> Option<&mut Session> {
        let by = self.by;
        self.sessions.get_mut(&from.session).filter(|s| s.epoch == from.epoch && s.owner.is_some() && s.owner == by)
    }

    fn connect(&mut self, position: Position, connect: &Connect) -> Want {
        if self.time > connect.deadline.0 {
            return Want::Is(Outcome::ConnectExpired);
        }
        self.shares.lingering.remove(&connect.client_id);
        // At the latest when somebody asks for the session.
        for (id, old) in self.ended.extract_if(.., |(_, s)| s.client_id == connect.client_id).collect::<Vec<_>>() {
            self.publish_that_will(id, old.will);
        }
        if let Some(old) = self.session_of(&connect.client_id) {
            let (id, expiry_s, owner, reference) = (old.id, old.expiry_s, old.owner, old.reference());
            let due = old.will_due.is_some_and(|at| at <= self.time);
            let delay_s = old.will.as_ref().map_or(0, |will| will.delay_s);
            if let Some(owner) = owner {
                self.kicks.push((owner, reference, KickReason::TakenOver));
                self.disconnect(id);
            }
            if connect.clean_start || expiry_s == 0 {
                self.end(id);
            } else if (owner.is_some() && delay_s == 0) || due {
                self.publish_will(id);
            }
        }
        let epoch = Epoch(position);
        let expiry_s = connect.expiry_s.min(self.settings.session_expiry_max);
        let present = self.session_of(&connect.client_id).map(|s| s.id);
        let id = present.unwrap_or(SessionId(position));
        let session = self.sessions.entry(id).or_insert_with(|| Session {
            id,
            client_id: connect.client_id.clone(),
            epoch,
            owner: None,
            expiry_s,
            durable: expiry_s > 0,
            receive_maximum: 0,
            will: None,
            will_due: None,
            expires_at: None,
            inbound: Default::default(),
            rows: BTreeMap::new(),
            tail: 0,
            sent: (0, 0),
            subs: BTreeMap::new(),
            dropped: 0,
            user: None,
        });
        session.user.clone_from(&connect.user);
        session.epoch = epoch;
        session.owner = self.by;
        session.expiry_s = expiry_s;
        session.receive_maximum = connect.receive_maximum;
        session.will = connect.will.clone();
        session.will_due = None;
        session.expires_at = None;
        Want::Connected(WantConnected {
            session: session.reference(),
            present: present.is_some(),
            expiry_s,
            durable: session.durable,
            rows: session
                .rows
                .iter()
                .map(|(seq, row)| (*seq, row.may_be_gone || row.fresh || row.may_return))
                .collect(),
            sent: session.sent,
            tail: session.tail,
            has_shares: !self.shares.by_key.is_empty(),
            inbound: session.inbound.iter().filter_map(|id| PacketId::new(*id)).collect(),
        })
    }

    /// A connection ends without its node being able to say what it sent.
    fn disconnect(&mut self, id: SessionId) {
        let now = self.time;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.sent = session.maybe_sent_end();
            session.owner = None;
            session.start_deadlines(now);
        }
        self.return_rows(id);
    }

    fn close(&mut self, close: &Close) -> Want {
        let (now, max) = (self.time, self.settings.session_expiry_max);
        let Some(session) = self.fenced(close.from) else { return Want::Is(Outcome::Fenced) };
        let until = close.sent_until.0.min(session.tail);
        session.sent = (session.sent.0.max(until), session.sent.1.max(until));
        session.owner = None;
        if close.drop_will {
            session.will = None;
        }
        if let Some(expiry_s) = close.expiry_s {
            session.expiry_s = expiry_s.min(max);
        }
        session.start_deadlines(now);
        let id = session.id;
        self.return_rows(id);
        self.do_what_is_due(id);
        Want::Is(Outcome::Done)
    }

    /// After a connection has ended: what is due of its session now.
    fn do_what_is_due(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        if session.expiry_s == 0 {
            self.shares.linger(session);
        }
        if session.expiry_s == 0 && self.wills_come_last {
            self.ended.extend(self.sessions.remove_entry(&id));
        } else if session.expiry_s == 0 {
            self.end(id);
        } else if session.will_due.is_some_and(|at| at <= self.time) && !self.wills_come_last {
            self.publish_will(id);
        }
    }

    fn settle(&mut self, settle: &Settle) -> Want {
        let Some(session) = self.fenced(settle.from) else { return Want::Is(Outcome::Fenced) };
        for ack in &settle.acks {
            match ack.kind {
                AckKind::Pubrec => {
                    if let Some(row) = session.rows.get_mut(&ack.seq.0) {
                        row.released = true;
                    }
                }
                AckKind::Puback | AckKind::PubrecRefused | AckKind::Pubcomp => {
                    session.rows.remove(&ack.seq.0);
                }
            }
        }
        Want::Is(Outcome::Done)
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> Want {
        if self.fenced(subscribe.from).is_none() {
            return Want::Is(Outcome::Fenced);
        }
        let mut granted = Vec::new();
        for (filter, options) in &subscribe.filters {
            let whole = filter.as_str();
            let id = subscribe.from.session;
            let is_held = |s: &Session| s.id != id && s.subs.contains_key(whole);
            if whole.starts_with("$exclusive/") && self.sessions.values().any(is_held) {
                granted.push(Err(0x97));
                continue;
            }
            if is_share(whole) {
                self.shares.begin(whole);
                self.shares.touched.insert(id);
            }
            let sub = Sub { options: *options, identifier: subscribe.identifier };
            let most = self.settings.subscriptions_max;
            let is_full = |s: &mut Session| s.subs.len() >= most && !s.subs.contains_key(filter.as_str());
            if self.fenced(subscribe.from).is_some_and(is_full) {
                granted.push(Err(0x97));
                continue;
            }
            let is_new = self
                .fenced(subscribe.from)
                .is_some_and(|s| s.subs.insert(filter.as_str().to_owned(), sub.clone()).is_none());
            granted.push(Ok(Granted { qos: options.qos, is_new }));
            let wants_retained = options.retain_handling == 0 || (options.retain_handling == 1 && is_new);
            if let Some(matched) = of_one_session(whole).filter(|_| wants_retained) {
                self.send_retained(id, matched, &sub);
            }
        }
        Want::Is(Outcome::Subscribed(granted))
    }

    fn unsubscribe(&mut self, from: SessionRef, filters: &[TopicFilter]) -> Want {
        let Some(session) = self.fenced(from) else { return Want::Is(Outcome::Fenced) };
        let known = filters.iter().map(|f| session.subs.remove(f.as_str()).is_some()).collect();
        if filters.iter().any(|f| is_share(f.as_str())) {
            self.shares.touched.insert(from.session);
        }
        Want::Is(Outcome::Unsubscribed(known))
    }

    fn node_started(&mut self, position: Position, started: &NodeStarted) -> Want {
        if self.nodes.is_empty() && started.node.0 == self.next_node + 1 {
            self.next_node += 1;
            let unasked = Node { token: 0, info: started.info.clone(), nonce: None, incarnation: None };
            self.nodes.insert(started.node, unasked);
        }
        let Some(node) = self.nodes.get_mut(&started.node) else { return Want::Is(Outcome::Void) };
        if let (Some(nonce), Some(incarnation)) = (node.nonce, node.incarnation)
            && nonce == started.nonce
        {
            return Want::Is(Outcome::NodeStarted(incarnation));
        }
        if node.incarnation != started.replaces {
            return Want::Is(Outcome::StartOutdated(node.incarnation));
        }
        let incarnation = Incarnation(position);
        let former = node.incarnation.replace(incarnation);
        node.nonce = Some(started.nonce);
        node.info = started.info.clone();
        self.lives.insert(incarnation, Life { node: started.node, last_seq: 0, closed: false });
        self.close_life(former);
        Want::Is(Outcome::NodeStarted(incarnation))
    }

    fn node_lost(&mut self, incarnation: Incarnation, is_its_term: bool) -> Want {
        if !is_its_term || self.lives.get(&incarnation).is_none_or(|life| life.closed) {
            return Want::Is(Outcome::Void);
        }
        self.close_life(Some(incarnation));
        Want::Is(Outcome::Done)
    }

    fn close_life(&mut self, incarnation: Option<Incarnation>) {
        let Some(incarnation) = incarnation else { return };
        let Some(life) = self.lives.get_mut(&incarnation) else { return };
        if std::mem::replace(&mut life.closed, true) {
            return;
        }
        self.closed.push(incarnation);
        let owned: Vec<SessionId> =
            self.sessions.values().filter(|s| s.owner == Some(incarnation)).map(|s| s.id).collect();
        for id in &owned {
            self.disconnect(*id);
        }
        for id in &owned {
            self.do_what_is_due(*id);
        }
        // Closed one after the other, so a will of one may stand in the window of another when that is closed.
        for id in &owned {
            if let Some(session) = self.sessions.get_mut(id) {
                session.sent.1 = session.sent.1.max(session.window_end().1);
            }
        }
    }

    /// A session ends; its will, if it still has one, is due [MQTT-3.1.2-8].
    fn end(&mut self, id: SessionId) {
        if let Some(ended) = self.sessions.remove(&id) {
            self.shares.note_end(&ended);
            self.publish_that_will(id, ended.will);
        }
    }

    fn publish_will(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.will_due = None;
        let will = session.will.take();
        self.publish_that_will(id, will);
    }

    fn publish_that_will(&mut self, id: SessionId, will: Option<Will>) {
        let Some(will) = will else { return };
        self.wills_published.push(will.payload.to_vec());
        let msg = Msg {
            topic: will.topic.as_str().to_owned(),
            payload: will.payload.to_vec(),
            qos: will.qos,
            retain: will.retain,
            expires_at: will.expiry_s.map(|s| self.time.saturating_add(u64::from(s) * 1000)),
            position: None,
        };
        self.spread(&msg, Some(id));
    }

    fn publish_what_was_delayed(&mut self) {
        let now = self.time;
        for (_, later) in self.later.extract_if(.., |(due, _), _| *due <= now).collect::<Vec<_>>() {
            let publisher = later.publisher.and_then(|client_id| self.session_of(&client_id)).map(|s| s.id);
            let expires_at = later.expiry_s.map(|s| now + u64::from(s) * 1000);
            self.spread(&Msg { expires_at, ..later.msg }, publisher);
        }
    }

    fn publish(&mut self, position: Position, publish: &Publish) -> Want {
        let mut user = None;
        let mut is_recorded = false;
        if let Some(from) = publish.from {
            let Some(session) = self.fenced(from) else { return Want::Is(Outcome::Fenced) };
            user = session.user.clone();
            is_recorded = publish.packet_id.is_some_and(|id| session.inbound.contains(&id.get()));
        }
        let key = keys::key_of(publish);
        match key.as_ref().map(|key| key.as_ref().and_then(|key| self.known_at(&user, key))) {
            Ok(Some(first)) => {
                self.record_identifier(publish);
                return Want::Is(Outcome::Repeated { position: first });
            }
            _ if is_recorded => return Want::Is(Outcome::AlreadyRecorded),
            Err(()) => return Want::Is(Outcome::Refused(0x83)),
            Ok(None) => {}
        }
        let msg = Msg {
            topic: publish.topic.as_str().to_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos,
            retain: publish.retain,
            expires_at: publish.expiry_s.map(|s| self.time.saturating_add(u64::from(s) * 1000)),
            position: Some(position),
        };
        let publisher = publish.from.map(|from| from.session);
        let delay = publish.topic.as_str().strip_prefix("$delayed/").and_then(|rest| rest.split_once('/'));
        if let Some((seconds, topic)) = delay {
            let seconds: u32 = seconds.parse().expect("the driver writes numbers");
            if seconds > self.settings.delay_max {
                return Want::Is(Outcome::Refused(0x97));
            }
            let later = Later {
                publisher: publish.from.and_then(|from| self.fenced(from)).map(|s| s.client_id.clone()),
                expiry_s: publish.expiry_s,
                msg: Msg { topic: topic.to_owned(), expires_at: None, position: None, ..msg },
            };
            self.later.insert((self.time + u64::from(seconds) * 1000, position), later);
            self.record_identifier(publish);
            if let Ok(Some(key)) = key {
                self.come_to_know(user, key, position);
            }
            return Want::Is(Outcome::Published { position, matched: true });
        }
        if self.is_refused(&msg, publisher) {
            return Want::Is(Outcome::QueueFull);
        }
        self.record_identifier(publish);
        if let Ok(Some(key)) = key {
            self.come_to_know(user, key, position);
        }
        let only_itself = self.only_no_local_matches(&msg.topic, publisher);
        let matched = self.spread(&msg, publisher);
        let published = |matched| Outcome::Published { position, matched };
        if only_itself { Want::OneOf(vec![published(false), published(true)]) } else { Want::Is(published(matched)) }
    }
}

impl Session {
    /// Called when its connection has ended.
    fn start_deadlines(&mut self, now: u64) {
        let expiry = u64::from(self.expiry_s) * 1000;
        self.expires_at = (self.expiry_s != u32::MAX).then_some(now + expiry);
        self.will_due = self.will.as_ref().map(|will| now + expiry.min(u64::from(will.delay_s) * 1000));
    }
}
