//! The load: publishers and subscribers with persistent sessions that resume on whichever node answers,
//! and what each of them saw.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::checker::{Delivery, History, PublishedMessage, PublisherHistory, SubscriberHistory};
use crate::client::{Client, ClientError, Event, Outgoing, Phases, Qos, SessionOptions, Version};

/// Publishes of one publisher that may be unacknowledged.
const WINDOW_MAX: u16 = 64;
/// Deliveries to one subscriber that may be unacknowledged.
const RECEIVE_MAXIMUM: u16 = 200;
/// Subscribers release half of what they owe this often, so that every phase of QoS 2 has something in it.
const ACK_INTERVAL: Duration = Duration::from_millis(3);
/// Before the next node is tried.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// A node that does not accept a client by then is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of a payload.
const PAYLOAD_BYTES: usize = 256;
/// Sessions of the demo end this long after it.
const EXPIRY_S: u32 = 3_600;

/// One connection of a client.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRecord {
    /// Index of the node.
    pub node: usize,
    /// When its first acknowledgement or message came.
    pub first_progress: Option<Instant>,
    /// When it broke.
    pub closed: Option<Instant>,
}

/// What a client did and saw; shared with the demo's director.
#[derive(Debug, Default)]
pub struct Record {
    /// In order.
    pub connections: Vec<ConnectionRecord>,
    /// Exchanges on the connection now.
    pub phases: Phases,
    /// Publisher: when acknowledgements came.
    pub acknowledged_at: Vec<Instant>,
    /// Publisher: its messages.
    pub messages: Vec<PublishedMessage>,
    /// Subscriber: deliveries.
    pub deliveries: Vec<Delivery>,
    /// Times that the server had forgotten the session.
    pub sessions_lost: u64,
    /// Subscriber: its subscription is acknowledged.
    pub is_subscribed: bool,
    /// Publisher: messages that are not completed.
    pub unacknowledged: usize,
    /// Why the last connection ended.
    pub last_error: Option<String>,
}

impl Record {
    /// The node that it is connected to.
    #[must_use]
    pub fn node(&self) -> Option<usize> {
        self.connections.last().filter(|connection| connection.closed.is_none()).map(|connection| connection.node)
    }

    fn message(&mut self, token: u64) -> Option<&mut PublishedMessage> {
        self.messages.get_mut(usize::try_from(token).ok()?)
    }

    fn progress(&mut self, at: Instant) {
        if let Some(connection) = self.connections.last_mut() {
            connection.first_progress.get_or_insert(at);
        }
    }
}

/// Locks a record; a panicked client's record is still worth reading.
pub fn read(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client and its record.
#[derive(Clone, Debug)]
pub struct LoadClient {
    /// Name, which is its client identifier.
    pub name: String,
    /// QoS at which it publishes; `None` for subscribers.
    pub publishes: Option<Qos>,
    /// What it saw.
    pub record: Arc<Mutex<Record>>,
    options: SessionOptions,
    home: usize,
}

/// All clients.
#[derive(Debug)]
pub struct Load {
    /// Publishers first.
    pub clients: Vec<LoadClient>,
    topic: String,
    addresses: Vec<String>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Two publishers (QoS 1 and 2) and a subscriber on each node, 3.1.1 and 5.0 in turn. Nothing runs yet.
    #[must_use]
    pub fn new(addresses: Vec<String>) -> Self {
        let run = rand::random::<u32>();
        let client = |name: String, home: usize, publishes| {
            let version = if (home + usize::from(publishes == Some(Qos::ExactlyOnce))).is_multiple_of(2) {
                Version::V5
            } else {
                Version::V311
            };
            let options = SessionOptions {
                version,
                client_id: name.clone(),
                clean_start: false,
                expiry_s: EXPIRY_S,
                receive_maximum: RECEIVE_MAXIMUM,
                window_max: WINDOW_MAX,
                keep_alive_s: 10,
            };
            LoadClient { name, publishes, record: Arc::default(), options, home }
        };
        let mut clients = Vec::new();
        for home in 0..addresses.len() {
            for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
                clients.push(client(format!("demo-{run:08x}-pub{}-qos{}", home + 1, qos as u8), home, Some(qos)));
            }
        }
        for home in 0..addresses.len() {
            clients.push(client(format!("demo-{run:08x}-sub{}", home + 1), home, None));
        }
        Self { clients, topic: format!("demo/{run:08x}"), addresses, stop: watch::channel(false).0, tasks: Vec::new() }
    }

    /// Starts the subscribers.
    pub fn subscribe(&mut self) {
        for client in self.clients.iter().filter(|client| client.publishes.is_none()) {
            let filter = format!("{}/#", self.topic);
            self.tasks.push(tokio::spawn(subscriber(client.clone(), self.addresses.clone(), filter)));
        }
    }

    /// Starts the publishers, `rate` messages a second each.
    pub fn publish(&mut self, rate: u32) {
        let pace = Duration::from_secs(1) / rate.max(1);
        for (number, client) in self.clients.iter().enumerate() {
            let Some(qos) = client.publishes else { continue };
            let publisher = Publisher { number, qos, topic: format!("{}/{number}", self.topic), pace };
            let task = publisher.run(client.clone(), self.addresses.clone(), self.stop.subscribe());
            self.tasks.push(tokio::spawn(task));
        }
    }

    /// Publishers send nothing new; what they have sent they bring to its end.
    pub fn stop_publishing(&self) {
        self.stop.send_replace(true);
    }

    /// Ends all clients at once.
    pub fn abort(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }

    /// Ends the sessions on the server, so that nothing of the demo stays in the cluster.
    pub async fn forget_sessions(&mut self) {
        self.abort();
        for client in &self.clients {
            let options = SessionOptions { clean_start: true, expiry_s: 0, ..client.options.clone() };
            let mut client = Client::new(options);
            for address in &self.addresses {
                if client.connect(address, CONNECT_TIMEOUT).await.is_ok() {
                    client.disconnect(CONNECT_TIMEOUT).await;
                    break;
                }
            }
        }
    }

    /// What everybody saw.
    #[must_use]
    pub fn history(&self) -> History {
        let mut history = History::default();
        for client in &self.clients {
            let record = read(&client.record);
            match client.publishes {
                Some(qos) => history.publishers.push(PublisherHistory { qos, messages: record.messages.clone() }),
                None => history.subscribers.push(SubscriberHistory {
                    deliveries: record.deliveries.clone(),
                    sessions_lost: record.sessions_lost,
                }),
            }
        }
        history
    }
}

/// Walks from node to node until one accepts; `start` is tried first.
async fn connect(client: &mut Client, shared: &LoadClient, addresses: &[String], start: usize) -> usize {
    for node in (0..addresses.len()).cycle().skip(start) {
        let Some(address) = addresses.get(node) else { break };
        match client.connect(address, CONNECT_TIMEOUT).await {
            Ok(present) => {
                let mut record = read(&shared.record);
                if !present && !record.connections.is_empty() {
                    record.sessions_lost += 1;
                }
                record.connections.push(ConnectionRecord { node, first_progress: None, closed: None });
                return node;
            }
            Err(error) => read(&shared.record).last_error = Some(format!("{address}: {error}")),
        }
        sleep(RETRY_PAUSE).await;
    }
    // Only without any address.
    start
}

fn closed(shared: &LoadClient, error: &ClientError) {
    let mut record = read(&shared.record);
    record.last_error = Some(error.to_string());
    if let Some(connection) = record.connections.last_mut() {
        connection.closed = Some(Instant::now());
    }
}

struct Publisher {
    number: usize,
    qos: Qos,
    topic: String,
    pace: Duration,
}

impl Publisher {
    async fn run(self, shared: LoadClient, addresses: Vec<String>, mut stop: watch::Receiver<bool>) {
        let mut client = Client::new(shared.options.clone());
        let mut node = connect(&mut client, &shared, &addresses, shared.home).await;
        let mut tick = interval(self.pace);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let publishes = !*stop.borrow_and_update() && client.session().has_room();
            tokio::select! {
                event = client.next() => match event {
                    Ok(event) => self.take(&event, &mut client, &shared),
                    Err(error) => {
                        closed(&shared, &error);
                        node = connect(&mut client, &shared, &addresses, node + 1).await;
                    }
                },
                _ = tick.tick(), if publishes => self.publish(&mut client, &shared),
                _ = stop.changed() => {}
            }
        }
    }

    fn publish(&self, client: &mut Client, shared: &LoadClient) {
        let mut record = read(&shared.record);
        let mut payload = format!("{} {} ", self.number, record.messages.len());
        payload.extend(std::iter::repeat_n('.', PAYLOAD_BYTES.saturating_sub(payload.len())));
        let message =
            Outgoing { topic: self.topic.clone(), qos: self.qos, retain: false, payload: Bytes::from(payload) };
        let token = record.messages.len() as u64;
        if client.session().publish(message, token).is_ok() {
            record.messages.push(PublishedMessage { sends: 1, ..PublishedMessage::default() });
        }
        record.phases = client.session().phases();
        record.unacknowledged = client.session().unacknowledged();
    }

    fn take(&self, event: &Event, client: &mut Client, shared: &LoadClient) {
        let mut record = read(&shared.record);
        match event {
            Event::Resent { token } => {
                if let Some(message) = record.message(*token) {
                    message.sends += 1;
                }
            }
            Event::Acknowledged { token, reason } => {
                if let Some(message) = record.message(*token) {
                    message.acknowledged = *reason < 0x80;
                    message.refused = *reason >= 0x80;
                }
                let now = Instant::now();
                record.acknowledged_at.push(now);
                record.progress(now);
            }
            _ => {}
        }
        record.phases = client.session().phases();
        record.unacknowledged = client.session().unacknowledged();
    }
}

async fn subscriber(shared: LoadClient, addresses: Vec<String>, filter: String) {
    let mut client = Client::new(shared.options.clone());
    let mut node = connect(&mut client, &shared, &addresses, shared.home).await;
    client.session().subscribe(vec![(filter.clone(), Qos::ExactlyOnce)]);
    let mut tick = interval(ACK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            event = client.next() => match event {
                Ok(event) => {
                    take_delivery(event, &shared);
                    read(&shared.record).phases = client.session().phases();
                }
                Err(error) => {
                    closed(&shared, &error);
                    node = connect(&mut client, &shared, &addresses, node + 1).await;
                    if !read(&shared.record).is_subscribed {
                        client.session().subscribe(vec![(filter.clone(), Qos::ExactlyOnce)]);
                    }
                }
            },
            _ = tick.tick(), if client.session().held_acks() > 0 => {
                let half = client.session().held_acks().div_ceil(2);
                client.session().release_acks(half);
                read(&shared.record).phases = client.session().phases();
            }
        }
    }
}

fn take_delivery(event: Event, shared: &LoadClient) {
    let mut record = read(&shared.record);
    match event {
        Event::Subscribed { reasons } => record.is_subscribed = reasons.iter().all(|reason| *reason < 0x80),
        Event::Message(message) => {
            let mut words = std::str::from_utf8(&message.payload).unwrap_or_default().split(' ').map(str::parse);
            // What nobody published is judged as such.
            let mut word = || words.next().and_then(Result::ok).unwrap_or(usize::MAX);
            let (publisher, number) = (word(), word());
            record.deliveries.push(Delivery {
                publisher,
                number,
                qos: message.qos,
                dup: message.dup,
                packet_id: message.packet_id,
                connection: message.connection,
            });
            record.progress(Instant::now());
        }
        _ => {}
    }
}
