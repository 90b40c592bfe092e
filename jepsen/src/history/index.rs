//! A history put in order for the checkers: operations joined with their ends, connections with theirs, deliveries
//! with what they deliver. Built in one pass; what no harness may write down is an error of [`Fault`].
#![expect(clippy::indexing_slicing, reason = "places are handed out by the index itself and never taken back")]

use std::collections::HashMap;

use super::MessageName;
use super::event::{Answer, Call, Client, Closing, Connection, Event, OpId, Step, What};
use super::read::{Fault, Line, ReadError};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted.
    Ok,
    /// Certainly without effect.
    Fail,
    /// Nobody knows; also when the history says nothing more about it.
    Info,
}

/// An operation's place in time.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its invoke.
    pub invoked: Line,
    /// Its end; [`Line::NEVER`] without one.
    pub ended: Line,
    /// How.
    pub outcome: Outcome,
}

/// The place of a client in [`Index::clients`]; likewise the others.
pub type ClientAt = usize;
/// Place of a connection.
pub type ConnAt = usize;
/// Place of a publish.
pub type PublishAt = usize;
/// Place of a message.
pub type MessageAt = usize;
/// Place of a delivery.
pub type DeliveryAt = usize;
/// A topic's or a filter's text.
pub type TextAt = usize;

/// A CONNECT and what came of it.
#[derive(Clone, Debug)]
pub struct Conn {
    /// Whose.
    pub client: ClientAt,
    /// Its number.
    pub number: Connection,
    /// To which node.
    pub node: TextAt,
    /// Clean Start.
    pub clean_start: bool,
    /// Session Expiry Interval.
    pub expiry_s: u32,
    /// Will and its delay in seconds.
    pub will: Option<(MessageAt, u32)>,
    /// The CONNECT.
    pub span: Span,
    /// Session Present.
    pub present: bool,
    /// How it ended.
    pub closed: Option<(Line, Closing)>,
    /// DISCONNECT: when, and whether with the will.
    pub disconnect: Option<(Line, bool)>,
    /// Invoke of the latest operation that was accepted on it, itself at least: it lived after that.
    pub alive_after: Line,
}

/// A PUBLISH.
#[derive(Clone, Debug)]
pub struct Publish {
    /// By whom.
    pub client: ClientAt,
    /// What.
    pub message: MessageAt,
    /// The first sending and each later one.
    pub sendings: Vec<(Line, ConnAt)>,
    /// When.
    pub span: Span,
    /// Position that its acknowledgement says.
    pub position: Option<u64>,
}

/// Where a message comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Publishes: more than one under one idempotency key.
    Publishes(Vec<PublishAt>),
    /// The will of a connection.
    Will(ConnAt),
}

/// A message.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its name.
    pub name: MessageName,
    /// Topic Name.
    pub topic: TextAt,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// Idempotency key.
    pub key: Option<TextAt>,
    /// Message Expiry Interval, seconds: after that it need not come.
    pub expiry_s: Option<u32>,
    /// From where.
    pub origin: Origin,
}

/// What a client did to its subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// SUBSCRIBE at this QoS: the granted one, or the one asked for.
    Subscribe(u8),
    /// UNSUBSCRIBE.
    Unsubscribe,
    /// A read of a retained value subscribes too, and leaves nothing certain behind.
    Read,
}

/// SUBSCRIBE, UNSUBSCRIBE, or a read of a retained value.
#[derive(Clone, Copy, Debug)]
pub struct Subscribing {
    /// By whom.
    pub client: ClientAt,
    /// On which connection.
    pub conn: ConnAt,
    /// The filter.
    pub filter: TextAt,
    /// What.
    pub change: Change,
    /// When.
    pub span: Span,
    /// The value that was read.
    pub value: Option<MessageName>,
}

/// A PUBLISH that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When.
    pub line: Line,
    /// At whom.
    pub client: ClientAt,
    /// On which connection.
    pub conn: ConnAt,
    /// Its name.
    pub name: MessageName,
    /// What; none: nobody sent it.
    pub message: Option<MessageAt>,
    /// Topic Name.
    pub topic: TextAt,
    /// QoS.
    pub qos: u8,
    /// DUP.
    pub dup: bool,
    /// RETAIN.
    pub retain: bool,
    /// Packet identifier.
    pub packet_id: u16,
    /// QoS 2: received before and not released since.
    pub repeated: bool,
    /// Position.
    pub position: Option<u64>,
}

/// What a connection saw and did about deliveries, in order.
#[derive(Clone, Copy, Debug)]
pub enum Inbound {
    /// A delivery.
    Arrived(DeliveryAt),
    /// An answer to one.
    Settled(Line, ConnAt, u16, Step),
    /// PUBREL.
    Released(Line, ConnAt, u16),
}

/// A client over its whole life.
#[derive(Clone, Debug)]
pub struct ClientLife {
    /// Its name.
    pub client: Client,
    /// Its connections, in the order of their CONNECTs.
    pub conns: Vec<ConnAt>,
    /// Deliveries and what it did about them, over all its connections.
    pub inbound: Vec<Inbound>,
}

/// An accepted operation as a proof of who owned the client identifier.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    /// Of whom.
    pub client: ClientAt,
    /// On which connection.
    pub conn: ConnAt,
    /// Invoke.
    pub invoked: Line,
    /// Answer.
    pub ended: Line,
}

#[derive(Clone, Copy)]
enum Target {
    Connect(ConnAt),
    Disconnect,
    Publish(PublishAt),
    Subscribing(usize),
}

#[derive(Clone, Copy)]
struct Op {
    target: Target,
    client: ClientAt,
    conn: ConnAt,
    span: Span,
    again: bool,
}

/// See the module.
#[derive(Default)]
pub struct Index {
    /// Every event; line n is at n - 1.
    pub events: Vec<Event>,
    /// Every client.
    pub clients: Vec<ClientLife>,
    /// Every CONNECT.
    pub conns: Vec<Conn>,
    /// Every PUBLISH, in the order of the invokes.
    pub publishes: Vec<Publish>,
    /// Every message, wills too.
    pub messages: Vec<Message>,
    /// SUBSCRIBE, UNSUBSCRIBE and reads.
    pub subscribing: Vec<Subscribing>,
    /// Every delivery.
    pub arrivals: Vec<Arrival>,
    /// Accepted operations.
    pub proofs: Vec<Proof>,
    /// Line of [`What::Drain`].
    pub drain: Option<Line>,
    /// From here on the wall clock of a node may be wrong.
    pub wrong_clock: Option<Line>,
    texts: Vec<String>,
    by_text: HashMap<String, TextAt>,
    by_client: HashMap<Client, ClientAt>,
    by_conn: HashMap<(ClientAt, Connection), ConnAt>,
    by_name: HashMap<MessageName, MessageAt>,
    by_op: HashMap<OpId, usize>,
    ops: Vec<Op>,
}

const OPEN: Outcome = Outcome::Info;

impl Index {
    /// From events as they are read.
    ///
    /// # Errors
    /// Those of the reader, and [`ReadError::Invalid`].
    pub fn build(events: impl IntoIterator<Item = Result<Event, ReadError>>) -> Result<Self, ReadError> {
        let mut index = Self::default();
        let mut latest_ns = 0;
        for (at, event) in events.into_iter().enumerate() {
            let event = event?;
            let line = Line(u32::try_from(at + 1).map_err(|_| ReadError::TooLong)?);
            let invalid = |fault| ReadError::Invalid { line, fault };
            if event.at_ns < latest_ns {
                return Err(invalid(Fault::TimeGoesBack));
            }
            latest_ns = event.at_ns;
            index.take(line, &event).map_err(invalid)?;
            index.events.push(event);
        }
        index.name_arrivals();
        Ok(index)
    }

    /// The text of a topic, a filter, a key or a node.
    #[must_use]
    pub fn text(&self, at: TextAt) -> &str {
        self.texts.get(at).map_or("", String::as_str)
    }

    /// How many texts there are.
    #[must_use]
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// Nanoseconds of a line; of [`Line::NEVER`] those of the last.
    #[must_use]
    pub fn at_ns(&self, line: Line) -> u64 {
        match self.events.get((line.0 as usize).saturating_sub(1)) {
            Some(event) if line != Line::START => event.at_ns,
            Some(_) => 0,
            None => self.events.last().map_or(0, |event| event.at_ns),
        }
    }

    /// The last line of those at or before this time.
    #[must_use]
    pub fn line_at(&self, at_ns: u64) -> Line {
        Line(u32::try_from(self.events.partition_point(|event| event.at_ns <= at_ns)).unwrap_or(u32::MAX))
    }

    /// The message of a name.
    #[must_use]
    pub fn message(&self, name: MessageName) -> Option<MessageAt> {
        self.by_name.get(&name).copied()
    }

    /// The publishes of a message; none for a will.
    pub fn publishes_of(&self, message: MessageAt) -> impl Iterator<Item = &Publish> {
        let publishes = match self.messages.get(message).map(|m| &m.origin) {
            Some(Origin::Publishes(publishes)) => publishes.as_slice(),
            _ => &[],
        };
        publishes.iter().filter_map(|&at| self.publishes.get(at))
    }

    fn text_at(&mut self, text: &str) -> TextAt {
        if let Some(&at) = self.by_text.get(text) {
            return at;
        }
        self.texts.push(text.to_owned());
        self.by_text.insert(text.to_owned(), self.texts.len() - 1);
        self.texts.len() - 1
    }

    fn client_at(&mut self, client: Client) -> ClientAt {
        let clients = &mut self.clients;
        *self.by_client.entry(client).or_insert_with(|| {
            clients.push(ClientLife { client, conns: Vec::new(), inbound: Vec::new() });
            clients.len() - 1
        })
    }

    fn conn_at(&self, client: ClientAt, connection: Connection) -> Result<ConnAt, Fault> {
        let known = self.by_conn.get(&(client, connection)).copied();
        known.ok_or(Fault::NeverOpened(self.clients[client].client, connection))
    }

    fn living(&self, client: ClientAt, connection: Connection) -> Result<ConnAt, Fault> {
        let at = self.conn_at(client, connection)?;
        let (name, conn) = (self.clients[client].client, &self.conns[at]);
        match conn.span.outcome {
            Outcome::Ok if conn.closed.is_some() => Err(Fault::AfterEnd(name, connection)),
            Outcome::Ok => Ok(at),
            _ => Err(Fault::BeforeConnack(name, connection)),
        }
    }

    fn op(&self, client: ClientAt, op: OpId) -> Result<usize, Fault> {
        let at = *self.by_op.get(&op).ok_or(Fault::Unknown(op))?;
        if self.ops[at].client != client {
            return Err(Fault::Another(op));
        }
        if self.ops[at].span.ended != Line::NEVER {
            return Err(Fault::EndsTwice(op));
        }
        Ok(at)
    }

    fn take(&mut self, line: Line, event: &Event) -> Result<(), Fault> {
        match &event.what {
            What::Drain => self.drain = self.drain.or(Some(line)),
            What::Fault { nemesis, .. } if nemesis.to_ascii_lowercase().contains("clock") => {
                self.wrong_clock = self.wrong_clock.or(Some(line));
            }
            What::Fault { .. }
            | What::Healed { .. }
            | What::NotInstalled { .. }
            | What::Leader { .. }
            | What::Digest { .. } => {}
            what => {
                let client = self.client_at(event.client.ok_or(Fault::NoClient)?);
                self.take_of_client(line, client, what)?;
            }
        }
        Ok(())
    }

    fn take_of_client(&mut self, line: Line, client: ClientAt, what: &What) -> Result<(), Fault> {
        match what {
            What::Invoke { op, call } => self.begin(line, client, *op, call)?,
            What::Again { op, connection } => {
                let (at, conn) = (self.op(client, *op)?, self.conn_at(client, *connection)?);
                let Target::Publish(publish) = self.ops[at].target else { return Err(Fault::NotAPublish(*op)) };
                self.publishes[publish].sendings.push((line, conn));
                self.ops[at].conn = conn;
                self.ops[at].again = true;
            }
            What::Ok { op, answer } => self.accepted(line, client, *op, answer)?,
            What::Fail { op, .. } => self.end(line, client, *op, Outcome::Fail)?,
            What::Info { op, .. } => self.end(line, client, *op, Outcome::Info)?,
            What::Deliver(d) => {
                let conn = self.living(client, d.connection)?;
                let topic = self.text_at(&d.topic);
                self.clients[client].inbound.push(Inbound::Arrived(self.arrivals.len()));
                self.arrivals.push(Arrival {
                    line,
                    client,
                    conn,
                    name: d.message,
                    message: None,
                    topic,
                    qos: d.qos,
                    dup: d.dup,
                    retain: d.retain,
                    packet_id: d.packet_id,
                    repeated: d.repeated,
                    position: d.position,
                });
            }
            What::Settle { connection, packet_id, step } => {
                let conn = self.conn_at(client, *connection)?;
                self.clients[client].inbound.push(Inbound::Settled(line, conn, *packet_id, *step));
            }
            What::Released { connection, packet_id } => {
                let conn = self.living(client, *connection)?;
                self.clients[client].inbound.push(Inbound::Released(line, conn, *packet_id));
            }
            What::Closed { connection, how } => {
                let conn = self.conn_at(client, *connection)?;
                if self.conns[conn].closed.is_some() {
                    return Err(Fault::AfterEnd(self.clients[client].client, *connection));
                }
                self.conns[conn].closed = Some((line, *how));
            }
            // Not a client's: taken before.
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, line: Line, client: ClientAt, op: OpId, call: &Call) -> Result<(), Fault> {
        let span = Span { invoked: line, ended: Line::NEVER, outcome: OPEN };
        let (target, conn) = match call {
            Call::Connect { connection, .. } => {
                let conn = self.connect(span, client, *connection, call)?;
                (Target::Connect(conn), conn)
            }
            Call::Disconnect { connection, with_will } => {
                let conn = self.conn_at(client, *connection)?;
                self.conns[conn].disconnect = Some((line, *with_will));
                (Target::Disconnect, conn)
            }
            Call::Publish { connection, message, topic, qos, retain, key, expiry_s, .. } => {
                let conn = self.conn_at(client, *connection)?;
                let (topic, key) = (self.text_at(topic), key.as_ref().map(|key| self.text_at(key)));
                let at = self.publishes.len();
                let message = self.publish_of(
                    Message {
                        name: *message,
                        topic,
                        qos: *qos,
                        retain: *retain,
                        key,
                        expiry_s: *expiry_s,
                        origin: Origin::Publishes(Vec::new()),
                    },
                    at,
                )?;
                let sendings = vec![(line, conn)];
                self.publishes.push(Publish { client, message, sendings, span, position: None });
                (Target::Publish(at), conn)
            }
            Call::Subscribe { connection, filter, qos } => {
                self.subscribing(span, client, *connection, filter, Change::Subscribe(*qos))?
            }
            Call::Unsubscribe { connection, filter } => {
                self.subscribing(span, client, *connection, filter, Change::Unsubscribe)?
            }
            Call::ReadRetained { connection, topic } => {
                self.subscribing(span, client, *connection, topic, Change::Read)?
            }
        };
        if self.by_op.insert(op, self.ops.len()).is_some() {
            return Err(Fault::BeginsTwice(op));
        }
        self.ops.push(Op { target, client, conn, span, again: false });
        Ok(())
    }

    fn connect(&mut self, span: Span, client: ClientAt, number: Connection, call: &Call) -> Result<ConnAt, Fault> {
        let Call::Connect { node, clean_start, expiry_s, will, .. } = call else {
            return Err(Fault::NeverOpened(self.clients[client].client, number));
        };
        let (at, node) = (self.conns.len(), self.text_at(node));
        let will = match will {
            None => None,
            Some(will) => {
                let topic = self.text_at(&will.topic);
                let message = Message {
                    name: will.message,
                    topic,
                    qos: will.qos,
                    retain: false,
                    key: None,
                    expiry_s: None,
                    origin: Origin::Will(at),
                };
                Some((self.new_message(message)?, will.delay_s))
            }
        };
        if self.by_conn.insert((client, number), at).is_some() {
            return Err(Fault::ConnectsTwice(self.clients[client].client, number));
        }
        self.clients[client].conns.push(at);
        self.conns.push(Conn {
            client,
            number,
            node,
            clean_start: *clean_start,
            expiry_s: *expiry_s,
            will,
            span,
            present: false,
            closed: None,
            disconnect: None,
            alive_after: span.invoked,
        });
        Ok(at)
    }

    fn new_message(&mut self, message: Message) -> Result<MessageAt, Fault> {
        let at = self.messages.len();
        if self.by_name.insert(message.name, at).is_some() {
            return Err(Fault::NameTakenTwice(message.name));
        }
        self.messages.push(message);
        Ok(at)
    }

    fn publish_of(&mut self, message: Message, publish: PublishAt) -> Result<MessageAt, Fault> {
        let name = message.name;
        let at = match self.by_name.get(&name) {
            Some(&at) if message.key.is_some() && self.messages[at].key == message.key => at,
            Some(_) => return Err(Fault::NameTakenTwice(name)),
            None => self.new_message(message)?,
        };
        if let Origin::Publishes(publishes) = &mut self.messages[at].origin {
            publishes.push(publish);
        }
        Ok(at)
    }

    fn subscribing(
        &mut self,
        span: Span,
        client: ClientAt,
        connection: Connection,
        filter: &str,
        change: Change,
    ) -> Result<(Target, ConnAt), Fault> {
        let (conn, filter) = (self.conn_at(client, connection)?, self.text_at(filter));
        self.subscribing.push(Subscribing { client, conn, filter, change, span, value: None });
        Ok((Target::Subscribing(self.subscribing.len() - 1), conn))
    }

    fn end(&mut self, line: Line, client: ClientAt, op: OpId, outcome: Outcome) -> Result<(), Fault> {
        let at = self.op(client, op)?;
        let span = &mut self.ops[at].span;
        (span.ended, span.outcome) = (line, outcome);
        let span = *span;
        match self.ops[at].target {
            Target::Connect(conn) => self.conns[conn].span = span,
            Target::Publish(publish) => self.publishes[publish].span = span,
            Target::Subscribing(at) => self.subscribing[at].span = span,
            Target::Disconnect => {}
        }
        Ok(())
    }

    fn accepted(&mut self, line: Line, client: ClientAt, op: OpId, answer: &Answer) -> Result<(), Fault> {
        let at = self.op(client, op)?;
        // All that its client knows of what was only sent is that it was sent.
        let outcome = if *answer == Answer::Sent { Outcome::Info } else { Outcome::Ok };
        self.end(line, client, op, outcome)?;
        let Op { target, conn, span, again, .. } = self.ops[at];
        match (target, answer) {
            (Target::Connect(conn), Answer::Connected { present }) => self.conns[conn].present = *present,
            (Target::Publish(publish), Answer::Published { position, .. }) => {
                self.publishes[publish].position = *position;
            }
            (Target::Subscribing(at), Answer::Subscribed { code })
                if matches!(self.subscribing[at].change, Change::Subscribe(_)) =>
            {
                self.subscribing[at].change = Change::Subscribe(*code);
            }
            (Target::Subscribing(at), Answer::Unsubscribed { .. })
                if self.subscribing[at].change == Change::Unsubscribe => {}
            (Target::Subscribing(at), Answer::Retained { message }) if self.subscribing[at].change == Change::Read => {
                self.subscribing[at].value = *message;
            }
            (Target::Disconnect | Target::Publish(_), Answer::Sent) => return Ok(()),
            _ => return Err(Fault::WrongAnswer(op)),
        }
        // The PUBREC of a PUBLISH that goes out again may be for its first sending: it says nothing of this one.
        if !again {
            self.proofs.push(Proof { client, conn, invoked: span.invoked, ended: line });
            let alive_after = &mut self.conns[conn].alive_after;
            *alive_after = span.invoked.max(*alive_after);
        }
        Ok(())
    }

    fn name_arrivals(&mut self) {
        for arrival in &mut self.arrivals {
            arrival.message = self.by_name.get(&arrival.name).copied();
        }
    }
}

#[cfg(test)]
#[path = "index/tests.rs"]
mod tests;
