//! What several checks ask of a history: which connection came after which, when a session may have ended, when a
//! message may have been published, and who was subscribed to it.

use std::collections::{BTreeMap, HashMap};

use crate::history::MessageName;
use crate::history::event::Client;
use crate::history::index::{
    Arrival, Change, ClientAt, ConnAt, DeliveryAt, Inbound, Index, MessageAt, Origin, Outcome, TextAt,
};
use crate::history::read::Line;

use super::filter;
use super::outage::Outages;
use super::timeline::{End, Start, Timeline};
use super::verdict::{Expectations, Guarantee, Kind, Violation};

/// Place of a timeline.
pub(super) type TimelineAt = usize;

/// What a connection is among those of its client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// CONNACK of the first connection that was opened wholly after this one's: from here on this one is nobody's.
    pub(super) fence: Line,
    /// That connection.
    pub(super) next: Option<ConnAt>,
    /// CONNACK of the first connection that was opened at the same time and may be the later of the two: from here on
    /// nobody knows which is the owner.
    murky: Line,
    /// Another was opened at the same time.
    is_one_of_several: bool,
    /// The session of this connection is certainly that of all others of the client with the same number.
    pub(super) life: u32,
}

impl Place {
    const UNKNOWN: Self =
        Self { fence: Line::NEVER, next: None, murky: Line::NEVER, is_one_of_several: false, life: 0 };
}

/// Messages of one publisher on one topic at one QoS, in the order of publishing.
pub(super) type Stream = (ClientAt, TextAt, u8);

/// Whether a delivery counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It does.
    Fresh,
    /// Perhaps on a connection that is nobody's.
    Doubtful,
    /// On a connection that is nobody's.
    Stale,
}

/// When a message may have been published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effect {
    /// Not before this.
    pub(super) from: Line,
    /// The first time that it was published is not later than this.
    pub(super) by: Line,
    /// QoS 1 or 2, and acknowledged: it was published.
    pub(super) is_acknowledged: bool,
    /// How often at most.
    pub(super) times: usize,
}

/// Subscriptions of one client that match a topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    pub(super) direct: Vec<TimelineAt>,
    pub(super) shared: Vec<TimelineAt>,
}

pub(super) struct Run<'a> {
    pub(super) index: &'a Index,
    pub(super) expectations: &'a Expectations,
    /// For each connection.
    pub(super) places: Vec<Place>,
    pub(super) timelines: Vec<Timeline>,
    /// For each message.
    pub(super) effects: Vec<Effect>,
    /// For each topic, for each client with a filter that matches it.
    routes: HashMap<TextAt, BTreeMap<ClientAt, Routes>>,
    /// The connection that each client has at the end.
    pub(super) attached: Vec<Option<ConnAt>>,
    /// For each CONNECT the last line at which it, or one of its client before it, may take effect.
    pub(super) reach: Vec<Line>,
    pub(super) outages: Outages,
}

impl<'a> Run<'a> {
    pub(super) fn new(index: &'a Index, expectations: &'a Expectations) -> Self {
        let mut run = Self {
            index,
            expectations,
            places: Vec::new(),
            timelines: Vec::new(),
            effects: Vec::new(),
            routes: HashMap::new(),
            attached: Vec::new(),
            reach: vec![Line::START; index.conns.len()],
            outages: Outages::of(index),
        };
        for client in &index.clients {
            let mut reach = Line::START;
            for &conn in &client.conns {
                reach = reach.max(run.connected_by(conn));
                run.reach[conn] = reach;
            }
        }
        run.places = run.place_all();
        run.timelines = run.all_timelines();
        run.effects = (0..index.messages.len()).map(|message| run.effect_of(message)).collect();
        run.routes = run.all_routes();
        run.attached = (0..index.clients.len()).map(|client| run.attached_of(client)).collect();
        run
    }

    pub(super) fn is_drained(&self) -> bool {
        self.index.drain.is_some()
    }

    pub(super) fn client(&self, at: ClientAt) -> Client {
        self.index.clients[at].client
    }

    pub(super) fn name(&self, at: MessageAt) -> MessageName {
        self.index.messages[at].name
    }

    pub(super) fn routes(&self, topic: TextAt) -> Option<&BTreeMap<ClientAt, Routes>> {
        self.routes.get(&topic)
    }

    pub(super) fn routes_to(&self, client: ClientAt, topic: TextAt) -> Option<&Routes> {
        self.routes.get(&topic)?.get(&client)
    }

    /// Whether this comes by a subscription of the client's own and not by a shared one.
    pub(super) fn is_direct(&self, arrival: &Arrival) -> bool {
        self.routes_to(arrival.client, arrival.topic).is_none_or(|routes| routes.shared.is_empty())
    }

    pub(super) fn freshness(&self, arrival: &Arrival) -> Freshness {
        self.freshness_at(arrival.conn, arrival.line)
    }

    pub(super) fn freshness_at(&self, conn: ConnAt, line: Line) -> Freshness {
        let place = self.places[conn];
        if line > place.fence {
            Freshness::Stale
        } else if line > place.murky && line > self.index.conns[conn].alive_after {
            Freshness::Doubtful
        } else {
            Freshness::Fresh
        }
    }

    /// Whether another CONNECT of its client, answered or not, may stand on either side of this one.
    pub(super) fn is_contested(&self, conn: ConnAt) -> bool {
        let conns = &self.index.conns;
        let span = conns[conn].span;
        let all = &self.index.clients[conns[conn].client].conns;
        let until = all.partition_point(|&other| conns[other].span.invoked < span.ended);
        all[..until].iter().rev().take_while(|&&other| self.reach[other] > span.invoked).any(|&other| {
            let outcome = conns[other].span.outcome;
            other != conn && outcome != Outcome::Fail && self.connected_by(other) > span.invoked
        })
    }

    /// First deliveries that count of everything to one client above QoS 0, live and by its own subscriptions.
    pub(super) fn firsts(&self, client: ClientAt) -> Vec<(MessageAt, DeliveryAt)> {
        let mut seen = std::collections::HashSet::new();
        let mut firsts = Vec::new();
        for inbound in &self.index.clients[client].inbound {
            let Inbound::Arrived(at) = *inbound else { continue };
            let arrival = &self.index.arrivals[at];
            let Some(message) = arrival.message else { continue };
            if arrival.qos == 0 || arrival.retain || !self.is_direct(arrival) {
                continue;
            }
            if self.freshness(arrival) == Freshness::Fresh {
                if seen.insert(message) {
                    firsts.push((message, at));
                }
            } else if self.effects[message].times > 1 {
                // What comes later may be its second time.
                seen.insert(message);
            }
        }
        firsts
    }

    /// Whether the first delivery of the message to the client is certainly that of the first time it was published.
    pub(super) fn is_of_the_first_time(&self, client: ClientAt, message: MessageAt) -> bool {
        let effect = self.effects[message];
        // Of two that expire the first may have, and the second come.
        let comes_surely = self.index.messages[message].expiry_s.is_none();
        effect.times <= 1 || (comes_surely && self.is_subscribed(client, message, effect.by))
    }

    /// Certainly subscribed, above QoS 0, from before the message could be published until `to`.
    pub(super) fn is_subscribed(&self, client: ClientAt, message: MessageAt, to: Line) -> bool {
        self.is_subscribed_to(client, self.index.messages[message].topic, self.effects[message].from, to)
    }

    /// Certainly subscribed, above QoS 0, to a topic from the one to the other.
    pub(super) fn is_subscribed_to(&self, client: ClientAt, topic: TextAt, from: Line, to: Line) -> bool {
        let Some(routes) = self.routes_to(client, topic) else { return false };
        routes.direct.iter().any(|&at| {
            let timeline = &self.timelines[at];
            timeline.is_certain(from, to) && timeline.qos(from, to) & 1 == 0
        })
    }

    /// The stream of a message; none of a will, and of what several clients published under one key.
    pub(super) fn stream_of(&self, message: MessageAt) -> Option<Stream> {
        let m = &self.index.messages[message];
        let mut publishes = self.index.publishes_of(message);
        let publish = publishes.next()?;
        publishes.next().is_none().then_some((publish.client, m.topic, m.qos))
    }

    /// Whether the first of two messages of a stream was certainly published before the second, if both were: wherever
    /// the second went out, the first had been acknowledged, or had gone out before on the same connection.
    pub(super) fn is_before(&self, first: MessageAt, second: MessageAt) -> bool {
        let acknowledged = if self.effects[first].is_acknowledged { self.effects[first].by } else { Line::NEVER };
        let mut sendings = self.index.publishes_of(second).flat_map(|publish| &publish.sendings);
        sendings.all(|&(line, conn)| {
            let mut earlier = self.index.publishes_of(first).flat_map(|publish| &publish.sendings);
            acknowledged < line || earlier.any(|&(before, on)| on == conn && before < line)
        })
    }

    pub(super) fn violation(
        &self,
        guarantee: Guarantee,
        kind: Kind,
        client: Option<ClientAt>,
        message: Option<MessageAt>,
        what: String,
    ) -> Violation {
        let mut lines = Vec::new();
        if let Some(message) = message {
            match &self.index.messages[message].origin {
                Origin::Will(conn) => lines.push(self.index.conns[*conn].span.invoked),
                Origin::Publishes(_) => {
                    for publish in self.index.publishes_of(message).take(2) {
                        lines.extend(publish.sendings.iter().take(2).map(|(line, _)| *line));
                        lines.extend(Some(publish.span.ended).filter(|&line| line != Line::NEVER));
                    }
                }
            }
        }
        let client = client.map(|client| self.client(client));
        Violation { guarantee, kind, client, message: message.map(|m| self.name(m)), what, lines }
    }

    /// The last line at which what was invoked on this connection, and not answered, may have an effect.
    pub(super) fn latest_effect(&self, conn: ConnAt) -> Line {
        self.places[conn].fence
    }

    /// When a CONNECT without an answer has certainly been forgotten.
    pub(super) fn forgotten(&self, conn: ConnAt) -> Line {
        let invoked_ns = self.index.at_ns(self.index.conns[conn].span.invoked);
        // It may stand in the log of a leader that commits nothing for as long as nobody can.
        let deadline_ns = self.outages.after(invoked_ns, self.expectations.connect_deadline_ns);
        let line = self.index.line_at(deadline_ns);
        if line.0 as usize >= self.index.events.len() { Line::NEVER } else { line }
    }

    /// The last line at which this CONNECT may have had its effect.
    pub(super) fn connected_by(&self, conn: ConnAt) -> Line {
        let span = self.index.conns[conn].span;
        match span.outcome {
            Outcome::Ok => span.ended,
            Outcome::Fail => Line::START,
            Outcome::Info => self.forgotten(conn),
        }
    }

    fn place_all(&self) -> Vec<Place> {
        let conns = &self.index.conns;
        let mut places = vec![Place::UNKNOWN; conns.len()];
        for client in &self.index.clients {
            let mut opened: Vec<ConnAt> = client.conns.clone();
            opened.retain(|&at| conns[at].span.outcome == Outcome::Ok);
            // The earliest CONNACK of those from each on.
            let mut earliest: Vec<(Line, Option<ConnAt>)> = vec![(Line::NEVER, None); opened.len() + 1];
            for (i, &at) in opened.iter().enumerate().rev() {
                earliest[i] = earliest[i + 1].min((conns[at].span.ended, Some(at)));
            }
            for (i, &at) in opened.iter().enumerate() {
                let ended = conns[at].span.ended;
                let after = opened.partition_point(|&other| conns[other].span.invoked < ended);
                (places[at].fence, places[at].next) = earliest[after];
                for &other in &opened[i + 1..after] {
                    for (one, by) in [(at, other), (other, at)] {
                        let taken = conns[by].span.ended;
                        places[one].is_one_of_several = true;
                        // What was accepted after the CONNACK of the other says that it is the later one.
                        if conns[one].alive_after < taken {
                            places[one].murky = places[one].murky.min(taken);
                        }
                    }
                }
            }
            self.lives(client.conns.as_slice(), opened, &mut places);
        }
        places
    }

    fn lives(&self, all: &[ConnAt], mut opened: Vec<ConnAt>, places: &mut [Place]) {
        let conns = &self.index.conns;
        opened.sort_by_key(|&at| conns[at].span.ended);
        // What may have made a new session without our knowing: at once, or where the one before had expired. The last
        // that was invoked is the last to be forgotten.
        let unanswered: Vec<ConnAt> =
            all.iter().copied().filter(|&at| conns[at].span.outcome == Outcome::Info).collect();
        let doubtful: Vec<ConnAt> = unanswered.iter().copied().filter(|&at| self.ends_a_session(at)).collect();
        let is_open = |of: &[ConnAt], line: Line, since: Line| {
            let count = of.partition_point(|&d| conns[d].span.invoked < line);
            count.checked_sub(1).is_some_and(|last| self.forgotten(of[last]) > since)
        };
        let mut life = 0;
        let mut before: Option<ConnAt> = None;
        for at in opened {
            let goes_on = before.is_some_and(|before| {
                let (since, until) = (conns[before].span.invoked, conns[at].span.ended);
                let may_have_expired = || self.may_have_expired(before, until).is_some();
                conns[at].present
                    && conns[before].expiry_s > 0
                    && !places[at].is_one_of_several
                    && !places[before].is_one_of_several
                    && !is_open(&doubtful, until, since)
                    && (!is_open(&unanswered, until, since) || !may_have_expired())
            });
            if !goes_on {
                life += 1;
            }
            places[at].life = life;
            before = Some(at);
        }
    }

    fn ends_a_session(&self, conn: ConnAt) -> bool {
        let conn = &self.index.conns[conn];
        conn.clean_start || conn.expiry_s == 0
    }

    /// Whether the session of this connection, once it is over, may be gone at this time.
    pub(super) fn may_have_expired(&self, conn: ConnAt, at: Line) -> Option<Line> {
        let conn = &self.index.conns[conn];
        if conn.expiry_s == 0 {
            return Some(conn.alive_after);
        }
        if conn.expiry_s == u32::MAX {
            return None;
        }
        // After a total outage cluster time is what the wall clocks of a majority say, also when they are wrong.
        let alive_ns = self.index.at_ns(conn.alive_after);
        let wrong_ns = self.index.wrong_clock.map(|since| self.index.at_ns(since).max(alive_ns));
        if wrong_ns.is_some_and(|since| self.outages.may_be_cold(since, self.index.at_ns(at))) {
            return Some(conn.alive_after);
        }
        // Cluster time is not our clock: some slack.
        let expiry_ns = u64::from(conn.expiry_s).saturating_mul(900_000_000).saturating_sub(1_000_000_000);
        let from_ns = self.index.at_ns(conn.alive_after).saturating_add(expiry_ns);
        let from = self.index.line_at(from_ns).max(conn.alive_after);
        (self.index.at_ns(at) >= from_ns).then_some(from)
    }

    /// What may have ended the sessions of a client.
    fn session_ends(&self, client: ClientAt) -> Vec<End> {
        let conns = &self.index.conns;
        let mut ends = Vec::new();
        for &at in &self.index.clients[client].conns {
            let conn = &conns[at];
            let (from, is_ok) = (conn.span.invoked, conn.span.outcome == Outcome::Ok);
            match conn.span.outcome {
                Outcome::Ok if conn.clean_start || !conn.present => {
                    ends.push(End { from, by: conn.span.ended, is_certain: true });
                }
                Outcome::Info if self.ends_a_session(at) => {
                    ends.push(End { from, by: self.forgotten(at), is_certain: false });
                }
                _ => {}
            }
            let Place { fence, next, .. } = self.places[at];
            // Session Present may also tell of a session that a CONNECT which nobody answered has made since.
            let is_resumed = next.is_some_and(|next| {
                conns[next].present && !conns[next].clean_start && !self.is_unanswered_between(client, at, next)
            });
            if is_resumed && conn.expiry_s > 0 {
                continue;
            }
            if !is_ok || (conn.closed.is_none() && fence == Line::NEVER && self.places[at].murky == Line::NEVER) {
                continue;
            }
            if let Some(from) = self.may_have_expired(at, fence) {
                ends.push(End { from, by: fence, is_certain: false });
            }
        }
        ends
    }

    /// Whether a CONNECT of which nobody knows stands between two of its connections.
    fn is_unanswered_between(&self, client: ClientAt, at: ConnAt, next: ConnAt) -> bool {
        let conns = self.index.clients[client].conns.iter();
        let mut between = conns.skip_while(|conn| **conn != at).skip(1).take_while(|conn| **conn != next);
        between.any(|&conn| self.index.conns[conn].span.outcome == Outcome::Info)
    }

    fn all_timelines(&self) -> Vec<Timeline> {
        let mut changes: BTreeMap<(ClientAt, TextAt), (Vec<Start>, Vec<End>)> = BTreeMap::new();
        for change in &self.index.subscribing {
            let (starts, ends) = changes.entry((change.client, change.filter)).or_default();
            let by = match change.span.outcome {
                Outcome::Ok => change.span.ended,
                Outcome::Fail => continue,
                Outcome::Info => self.latest_effect(change.conn),
            };
            let (from, is_certain) = (change.span.invoked, change.span.outcome == Outcome::Ok);
            match change.change {
                Change::Subscribe(qos) => {
                    starts.push(Start { invoked: from, by, is_certain, qos: 1 << qos.min(2) });
                }
                // SUBSCRIBE at QoS 1, and then, whatever the answer was, perhaps UNSUBSCRIBE.
                Change::Read => {
                    starts.push(Start { invoked: from, by, is_certain: false, qos: 0b011 });
                    ends.push(End { from, by: self.latest_effect(change.conn), is_certain: false });
                }
                Change::Unsubscribe => ends.push(End { from, by, is_certain }),
            }
        }
        let ends_of: Vec<Vec<End>> = (0..self.index.clients.len()).map(|client| self.session_ends(client)).collect();
        changes
            .into_iter()
            .map(|((client, filter), (starts, mut ends))| {
                ends.extend_from_slice(&ends_of[client]);
                let is_shared = filter::split(self.index.text(filter)).1.is_some();
                Timeline::new(client, filter, is_shared, starts, &ends)
            })
            .collect()
    }

    fn effect_of(&self, message: MessageAt) -> Effect {
        let m = &self.index.messages[message];
        if let Origin::Will(conn) = m.origin {
            let conn = &self.index.conns[conn];
            let times = usize::from(conn.span.outcome != Outcome::Fail);
            return Effect { from: conn.span.invoked, by: Line::NEVER, is_acknowledged: false, times };
        }
        let mut effect = Effect { from: Line::NEVER, by: Line::START, is_acknowledged: false, times: 0 };
        let (mut acknowledged, mut latest) = (Line::NEVER, Line::START);
        for publish in self.index.publishes_of(message) {
            if publish.span.outcome == Outcome::Fail {
                continue;
            }
            effect.from = effect.from.min(publish.span.invoked);
            if publish.span.outcome == Outcome::Ok {
                acknowledged = acknowledged.min(publish.span.ended);
                effect.is_acknowledged |= m.qos > 0;
                latest = latest.max(publish.span.ended);
            } else {
                let last = publish.sendings.last().map_or(Line::NEVER, |(_, conn)| self.latest_effect(*conn));
                latest = latest.max(last);
            }
            effect.times += match m.qos {
                1 => publish.sendings.len(),
                // Its identifier is known until its session ends.
                2 => 1 + publish.sendings.windows(2).filter(|pair| self.are_apart(pair[0].1, pair[1].1)).count(),
                _ => 1,
            };
        }
        if m.key.is_some() {
            effect.times = effect.times.min(1);
        }
        effect.by = latest.min(acknowledged);
        effect
    }

    fn are_apart(&self, a: ConnAt, b: ConnAt) -> bool {
        self.places[a].life != self.places[b].life
    }

    fn all_routes(&self) -> HashMap<TextAt, BTreeMap<ClientAt, Routes>> {
        let mut by_filter: BTreeMap<TextAt, Vec<TimelineAt>> = BTreeMap::new();
        for (at, timeline) in self.timelines.iter().enumerate() {
            by_filter.entry(timeline.filter).or_default().push(at);
        }
        let mut topics: Vec<TextAt> = self.index.messages.iter().map(|m| m.topic).collect();
        topics.extend(self.index.arrivals.iter().map(|arrival| arrival.topic));
        topics.sort_unstable();
        topics.dedup();
        let mut routes = HashMap::new();
        for topic in topics {
            let mut to: BTreeMap<ClientAt, Routes> = BTreeMap::new();
            for (&filter, timelines) in &by_filter {
                if !filter::matches(filter::split(self.index.text(filter)).0, self.index.text(topic)) {
                    continue;
                }
                for &at in timelines {
                    let routes = to.entry(self.timelines[at].client).or_default();
                    if self.timelines[at].is_shared { routes.shared.push(at) } else { routes.direct.push(at) }
                }
            }
            routes.insert(topic, to);
        }
        routes
    }

    fn attached_of(&self, client: ClientAt) -> Option<ConnAt> {
        let conns = &self.index.conns;
        let opened = self.index.clients[client].conns.iter().copied();
        let is_owner = |at: ConnAt| self.places[at].murky == Line::NEVER && self.places[at].fence == Line::NEVER;
        let last = opened.filter(|&at| conns[at].span.outcome == Outcome::Ok && is_owner(at));
        last.max_by_key(|&at| conns[at].span.ended).filter(|&at| conns[at].closed.is_none())
    }
}
