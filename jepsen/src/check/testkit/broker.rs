//! A right broker with clients, faults and takeovers, run by dice: histories that every check must pass.
//!
//! One log, in which each packet from a client takes effect at a moment of its own; packets wait on the way in both
//! directions and are lost with their connection; a connection that is nobody's any more still gets what was on its
//! way. Nothing here is the broker's code, nor the checkers'.

mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Connect, History, Random};
use crate::history::event::{Answer, Call, Closing, Connection, Delivery, OpId, Step, What, Will};

type Name = (u32, u64);

/// So many packet identifiers are used, one after the other.
const IDENTIFIERS: u16 = 50_000;

/// What may happen in a run.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) publishers: u32,
    pub(crate) subscribers: u32,
    pub(crate) members: u32,
    pub(crate) steps: usize,
    /// One step in so many breaks a connection, or takes it over; 0: none does.
    pub(crate) faults_one_in: usize,
    /// Subscriptions and sessions come and go.
    pub(crate) has_churn: bool,
    pub(crate) has_wills: bool,
    /// After so many steps everything on its way arrives; 0: only at the end.
    pub(crate) settled_every: usize,
}

impl World {
    pub(crate) const CALM: Self = Self {
        publishers: 2,
        subscribers: 3,
        members: 2,
        steps: 300,
        faults_one_in: 0,
        has_churn: false,
        has_wills: false,
        settled_every: 0,
    };
    pub(crate) const FAULTY: Self = Self { faults_one_in: 12, has_wills: true, ..Self::CALM };
    pub(crate) const WILD: Self = Self { has_churn: true, ..Self::FAULTY };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Publisher,
    Subscriber,
    Member,
}

#[derive(Clone, Debug)]
struct Message {
    name: Name,
    topic: String,
    qos: u8,
    position: u64,
}

#[derive(Clone, Debug)]
struct Row {
    message: Message,
    qos: u8,
    retain: bool,
    packet_id: u16,
    sent_on: Option<usize>,
    may_be_sent: bool,
    is_released: bool,
    group: Option<String>,
}

#[derive(Clone, Debug)]
enum Up {
    Connect { op: OpId, clean_start: bool, expiry_s: u32, will: Option<(Name, String)> },
    Publish { op: OpId, name: Name, topic: String, qos: u8, retain: bool, key: Option<String> },
    Subscribe(OpId, String, u8),
    Unsubscribe(OpId, String),
    Read(OpId, String),
    Settle(u16, Step),
    Disconnect,
    Gone,
}

enum Down {
    Answer(OpId, Answer),
    Publish { message: Message, qos: u8, retain: bool, dup: bool, packet_id: u16 },
    Release(u16),
    Kick,
}

struct Conn {
    client: u32,
    number: u32,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    is_open: bool,
    /// CONNACK was seen.
    is_up: bool,
}

#[derive(Default)]
struct Session {
    owner: Option<usize>,
    expiry_s: u32,
    rows: Vec<Row>,
    next_id: u16,
    filters: BTreeMap<String, u8>,
    inbound: BTreeMap<Name, u64>,
    will: Option<(Name, String)>,
}

struct Client {
    role: Role,
    conns: Vec<usize>,
    next_conn: u32,
    seq: u64,
    unreleased: BTreeSet<u16>,
    /// Publishes without acknowledgement, in order, with the connection of their last sending.
    open: Vec<(OpId, Up, usize)>,
    /// Other operations without an answer.
    asked: Vec<(OpId, usize)>,
    settles: Vec<(usize, u16, Step)>,
}

pub(crate) struct Broker {
    world: World,
    dice: Random,
    pub(crate) history: History,
    position: u64,
    sessions: BTreeMap<u32, Session>,
    retained: BTreeMap<String, Message>,
    keys: BTreeMap<String, u64>,
    groups: BTreeMap<String, VecDeque<(Message, u8)>>,
    conns: Vec<Conn>,
    clients: BTreeMap<u32, Client>,
    topics: Vec<String>,
    faults: u32,
}

/// A whole run, drained.
pub(crate) fn run(world: World, seed: u64) -> History {
    let mut broker = Broker::new(world, seed);
    broker.start();
    for step in 1..=world.steps {
        broker.step();
        if step.checked_rem(world.settled_every) == Some(0) {
            broker.settle_down();
        }
    }
    broker.end();
    broker.history
}

impl Broker {
    fn new(world: World, seed: u64) -> Self {
        let client = |role| Client {
            role,
            conns: Vec::new(),
            next_conn: 1,
            seq: 0,
            unreleased: BTreeSet::new(),
            open: Vec::new(),
            asked: Vec::new(),
            settles: Vec::new(),
        };
        let roles = (0..world.publishers)
            .map(|n| (n + 1, client(Role::Publisher)))
            .chain((0..world.subscribers).map(|n| (n + 101, client(Role::Subscriber))))
            .chain((0..world.members).map(|n| (n + 201, client(Role::Member))));
        Self {
            world,
            dice: Random::new(seed),
            history: History::new(),
            position: 0,
            sessions: BTreeMap::new(),
            retained: BTreeMap::new(),
            keys: BTreeMap::new(),
            groups: BTreeMap::new(),
            conns: Vec::new(),
            clients: roles.collect(),
            topics: ["t/1", "t/2", "r/1", "w"].map(str::to_owned).to_vec(),
            faults: 0,
        }
    }

    fn client(&mut self, client: u32) -> &mut Client {
        self.clients.get_mut(&client).unwrap()
    }

    /// Everybody is connected and subscribed.
    fn start(&mut self) {
        self.history.leader("n1", 1);
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.connect(client, false);
            self.settle_down();
            let filters = match self.clients[&client].role {
                Role::Publisher => vec![],
                Role::Subscriber => vec![("t/+", 2), ("r/1", 1), ("w", 1)],
                Role::Member => vec![("$share/g/t/1", 2 - u8::from(client % 2 == 0))],
            };
            for (filter, qos) in filters {
                self.subscribe(client, filter, qos);
                self.settle_down();
            }
        }
    }

    /// Everything on its way arrives.
    fn settle_down(&mut self) {
        loop {
            let before = self.history.events.len() + self.waiting();
            for conn in 0..self.conns.len() {
                while self.apply(conn) {}
                while self.read(conn) {}
            }
            for client in self.clients.keys().copied().collect::<Vec<_>>() {
                while self.answer(client) {}
                while self.send(client) {}
            }
            if before == self.history.events.len() + self.waiting() && self.waiting() == 0 {
                return;
            }
        }
    }

    fn waiting(&self) -> usize {
        self.conns.iter().map(|c| c.up.len() + if c.is_open { c.down.len() } else { 0 }).sum()
    }

    fn end(&mut self) {
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.settle_down();
            if self.current(client).is_none() {
                self.connect(client, false);
            }
            self.settle_down();
        }
        self.history.drain().wait_s(100);
        self.settle_down();
        for node in ["n1", "n2", "n3"] {
            self.history.digest(node, self.position, "same");
        }
    }

    fn current(&self, client: u32) -> Option<usize> {
        self.clients[&client].conns.iter().copied().rev().find(|&at| self.conns[at].is_open && self.conns[at].is_up)
    }

    fn step(&mut self) {
        let clients: Vec<u32> = self.clients.keys().copied().collect();
        let client = clients[self.dice.below(clients.len())];
        let faults = self.world.faults_one_in;
        if faults > 0 && self.dice.one_in(faults) {
            return self.fault(client);
        }
        match self.dice.below(6) {
            0 => self.act(client),
            1 | 2 => {
                let conn = self.dice.below(self.conns.len());
                self.apply(conn);
            }
            3 => {
                let conn = self.dice.below(self.conns.len());
                self.read(conn);
            }
            4 => drop(self.send(client)),
            _ => drop(self.answer(client)),
        }
    }

    fn fault(&mut self, client: u32) {
        self.faults += 1;
        let number = self.faults;
        self.history.fault(number, "cut");
        match self.current(client) {
            Some(conn) if !self.dice.one_in(3) => self.cut(conn),
            // Another connection, while there is one or while one is being asked for.
            _ if self.clients[&client].conns.iter().filter(|&&at| self.conns[at].is_open).count() < 2 => {
                let clean_start = self.world.has_churn && self.dice.one_in(4);
                self.connect(client, clean_start);
            }
            _ => {
                let open = self.clients[&client].conns.iter().copied().find(|&at| self.conns[at].is_open);
                open.into_iter().for_each(|conn| self.cut(conn));
            }
        }
        self.history.healed(number);
    }

    fn act(&mut self, client: u32) {
        let Some(conn) = self.current(client) else {
            if self.clients[&client].conns.iter().all(|&at| !self.conns[at].is_open) {
                let clean_start = self.world.has_churn && self.dice.one_in(6);
                self.connect(client, clean_start);
            }
            return;
        };
        match self.clients[&client].role {
            Role::Publisher => self.publish(client, conn),
            Role::Member => {}
            Role::Subscriber if self.dice.one_in(3) => {
                let op = self.ask(client, conn, |c| Call::ReadRetained { connection: c, topic: "r/1".to_owned() });
                self.conns[conn].up.push_back(Up::Read(op, "r/1".to_owned()));
            }
            Role::Subscriber if self.world.has_churn => {
                let filter = ["t/1", "t/+", "t/2", "r/1"][self.dice.below(4)];
                if self.dice.one_in(2) {
                    let qos = u8::try_from(self.dice.below(3)).unwrap();
                    self.subscribe(client, filter, qos);
                } else {
                    let op = self
                        .ask(client, conn, |connection| Call::Unsubscribe { connection, filter: filter.to_owned() });
                    self.conns[conn].up.push_back(Up::Unsubscribe(op, filter.to_owned()));
                }
            }
            Role::Subscriber => {}
        }
        if self.world.has_churn && self.dice.one_in(30) {
            let op = self
                .history
                .open(client, Call::Disconnect { connection: Connection(self.conns[conn].number), with_will: false });
            self.history.ok(client, op, Answer::Sent);
            self.conns[conn].up.push_back(Up::Disconnect);
            self.close(conn, Closing::Disconnected);
        }
    }

    fn ask(&mut self, client: u32, conn: usize, call: impl FnOnce(Connection) -> Call) -> OpId {
        let op = self.history.open(client, call(Connection(self.conns[conn].number)));
        self.client(client).asked.push((op, conn));
        op
    }

    fn subscribe(&mut self, client: u32, filter: &str, qos: u8) {
        let Some(conn) = self.current(client) else { return };
        let call = |connection| Call::Subscribe { connection, filter: filter.to_owned(), qos };
        let op = self.ask(client, conn, call);
        self.conns[conn].up.push_back(Up::Subscribe(op, filter.to_owned(), qos));
    }

    fn publish(&mut self, client: u32, conn: usize) {
        let topic = self.topics[self.dice.below(3)].clone();
        let qos = u8::try_from(self.dice.below(3)).unwrap();
        let retain = topic.starts_with('r');
        let seq = self.clients[&client].seq;
        self.client(client).seq += 1;
        let key = (qos == 1 && (retain || self.dice.one_in(4))).then(|| format!("k{client}/{seq}"));
        let call = Call::Publish {
            connection: Connection(self.conns[conn].number),
            message: History::name((client, seq)),
            topic: topic.clone(),
            qos,
            retain,
            packet_id: u16::try_from(seq % u64::from(IDENTIFIERS) + 1).unwrap(),
            key: key.clone(),
            expiry_s: None,
        };
        let op = self.history.open(client, call);
        let up = Up::Publish { op, name: (client, seq), topic, qos, retain, key };
        self.conns[conn].up.push_back(up.clone());
        if qos == 0 {
            self.history.ok(client, op, Answer::Sent);
        } else {
            self.client(client).open.push((op, up, conn));
        }
    }

    fn connect(&mut self, client: u32, clean_start: bool) {
        let number = self.clients[&client].next_conn;
        self.client(client).next_conn += 1;
        let expiry_s = if self.world.has_churn && self.dice.one_in(5) { 0 } else { 3600 };
        let will = (self.world.has_wills && self.clients[&client].role == Role::Publisher)
            .then(|| ((1000 + client, u64::from(number)), "w".to_owned()));
        let asked = Connect {
            clean_start,
            expiry_s,
            will: will.clone().map(|(name, topic)| Will { message: History::name(name), topic, qos: 1, delay_s: 0 }),
        };
        let op = self.history.connect_as(client, number, asked);
        let at = self.conns.len();
        let up = VecDeque::from([Up::Connect { op, clean_start, expiry_s, will }]);
        self.conns.push(Conn { client, number, up, down: VecDeque::new(), is_open: true, is_up: false });
        let client = self.client(client);
        client.conns.push(at);
        client.asked.push((op, at));
    }

    /// The network takes what is on its way.
    fn cut(&mut self, conn: usize) {
        let keep = self.dice.below(self.conns[conn].up.len() + 1);
        self.conns[conn].up.truncate(keep);
        self.close(conn, Closing::Lost);
    }

    /// The client's end.
    fn close(&mut self, conn: usize, how: Closing) {
        let (client, number) = (self.conns[conn].client, self.conns[conn].number);
        self.conns[conn].is_open = false;
        self.conns[conn].down.clear();
        self.conns[conn].up.push_back(Up::Gone);
        let (gone, asked) = self.client(client).asked.drain(..).partition(|&(_, at)| at == conn);
        let gone: Vec<(OpId, usize)> = gone;
        self.client(client).asked = asked;
        for (op, _) in gone {
            self.history.info(client, op);
        }
        self.client(client).settles.retain(|&(at, ..)| at != conn);
        self.history.push(Some(client), What::Closed { connection: Connection(number), how });
    }

    /// A client reads one packet.
    fn read(&mut self, conn: usize) -> bool {
        if !self.conns[conn].is_open {
            return false;
        }
        let Some(down) = self.conns[conn].down.pop_front() else { return false };
        let (client, connection) = (self.conns[conn].client, Connection(self.conns[conn].number));
        let is_newest = self.current(client).is_none_or(|current| current == conn);
        match down {
            Down::Answer(op, answer) => self.answered(client, conn, op, answer),
            Down::Kick => self.close(conn, Closing::Told { code: 0x8E }),
            Down::Release(packet_id) => {
                self.history.push(Some(client), What::Released { connection, packet_id });
                self.client(client).unreleased.remove(&packet_id);
                self.client(client).settles.push((conn, packet_id, Step::Complete));
            }
            Down::Publish { message, qos, retain, dup, packet_id } => {
                let repeated = qos == 2 && self.clients[&client].unreleased.contains(&packet_id);
                if qos == 2 && is_newest {
                    self.client(client).unreleased.insert(packet_id);
                }
                self.history.push(
                    Some(client),
                    What::Deliver(Delivery {
                        connection,
                        message: History::name(message.name),
                        topic: message.topic,
                        qos,
                        dup,
                        retain,
                        packet_id,
                        repeated,
                        position: Some(message.position),
                    }),
                );
                match qos {
                    0 => {}
                    1 => self.client(client).settles.push((conn, packet_id, Step::Ack)),
                    _ => self.client(client).settles.push((conn, packet_id, Step::Received)),
                }
            }
        }
        true
    }

    fn answered(&mut self, client: u32, conn: usize, op: OpId, answer: Answer) {
        let state = self.client(client);
        let known = state.asked.iter().position(|(asked, _)| *asked == op);
        let open = state.open.iter().position(|(open, ..)| *open == op);
        if let Some(at) = known {
            state.asked.remove(at);
        } else if let Some(at) = open {
            state.open.remove(at);
        } else {
            return;
        }
        let connected = if let Answer::Connected { present } = answer { Some(present) } else { None };
        self.history.ok(client, op, answer);
        let Some(present) = connected else { return };
        self.conns[conn].is_up = true;
        if !present {
            self.client(client).unreleased.clear();
        }
        for (op, up, _) in std::mem::take(&mut self.client(client).open) {
            if matches!(up, Up::Publish { qos: 2, .. }) && !present {
                self.history.info(client, op);
                continue;
            }
            let connection = Connection(self.conns[conn].number);
            self.history.push(Some(client), What::Again { op, connection });
            self.conns[conn].up.push_back(up.clone());
            self.client(client).open.push((op, up, conn));
        }
    }

    /// A client settles one delivery.
    fn answer(&mut self, client: u32) -> bool {
        if self.clients[&client].settles.is_empty() {
            return false;
        }
        let (conn, packet_id, step) = self.client(client).settles.remove(0);
        let connection = Connection(self.conns[conn].number);
        self.history.push(Some(client), What::Settle { connection, packet_id, step });
        self.conns[conn].up.push_back(Up::Settle(packet_id, step));
        true
    }
}
