//! A publisher and its subscriber that come back whenever their connection ends: the sessions go on where they were,
//! and what was not acknowledged is sent again [MQTT-4.4.0-1].

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use quorate_jepsen::wire::{Ack, AckKind, Version, ack_of, encode, publish_of};

use crate::BenchError;
use crate::connection::{Connection, client};
use crate::publisher::{self, Template};
use crate::seen::Seen;
use crate::shared::{Phase, Shared, Stamp};

/// Pause before a client that was not served tries again.
const RETRY: Duration = Duration::from_millis(20);

/// What both clients of a pair went through.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// How often everything was killed so far.
    pub(crate) kills: Cell<u32>,
    pub(crate) acknowledged: RefCell<Seen>,
    pub(crate) delivered: RefCell<Seen>,
    /// Deliveries beyond the first.
    pub(crate) repeated: Cell<u64>,
    /// PUBLISH packets sent again.
    pub(crate) resent: Cell<u64>,
    /// Publishes that were refused with a reason code.
    pub(crate) refused: Cell<u64>,
    /// Times that a session was gone.
    pub(crate) sessions_lost: Cell<u64>,
    /// First acknowledgement and delivery on a connection that was opened after the kill.
    pub(crate) first_ack: Cell<Option<Instant>>,
    pub(crate) first_delivery: Cell<Option<Instant>>,
}

impl Account {
    /// Everything is killed now.
    pub(crate) fn killed(&self) {
        self.kills.set(self.kills.get() + 1);
    }

    fn mark(&self, first: &Cell<Option<Instant>>, opened: u32) {
        if self.kills.get() > 0 && opened == self.kills.get() && first.get().is_none() {
            first.set(Some(Instant::now()));
        }
    }
}

/// Whether a client may try again after this: the broker was not there, did not answer, or sent it away.
fn is_passing(error: &BenchError) -> bool {
    matches!(
        error,
        BenchError::Io { .. } | BenchError::Closed { .. } | BenchError::Silent { .. } | BenchError::Refused { .. }
    )
}

fn add(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// Publishes until the run is over and all is acknowledged.
pub(crate) async fn publish(plan: publisher::Plan, shared: Rc<Shared>, account: Rc<Account>) -> Result<(), BenchError> {
    let mut publisher = Publisher {
        template: Template::new(&plan),
        in_flight: vec![None; plan.window + 1],
        free: (1..=plan.window as u16).rev().collect(),
        next_seq: 0,
        is_known: false,
        plan,
        shared,
        account,
    };
    loop {
        match publisher.connected().await {
            Ok(()) => return Ok(()),
            Err(e) if is_passing(&e) => tokio::time::sleep(RETRY).await,
            Err(e) => return Err(e),
        }
    }
}

struct Publisher {
    plan: publisher::Plan,
    template: Template,
    shared: Rc<Shared>,
    account: Rc<Account>,
    /// By packet identifier: number and time of what is not acknowledged.
    in_flight: Vec<Option<(u64, u64)>>,
    free: Vec<u16>,
    next_seq: u64,
    /// The broker has said that it has the session.
    is_known: bool,
}

impl Publisher {
    async fn connected(&mut self) -> Result<(), BenchError> {
        let opened_in = self.account.kills.get();
        let connect = client(self.plan.version, &self.plan.client_id, true, !self.is_known);
        let (mut connection, is_present) = Connection::open(self.plan.at, self.plan.version, &connect).await?;
        if self.is_known && !is_present {
            add(&self.account.sessions_lost);
        }
        if !self.is_known {
            self.is_known = true;
            self.shared.publisher_ready();
        }
        self.again(&mut connection);
        self.shared.started().await;
        loop {
            let is_over = self.shared.phase() == Phase::Over;
            if is_over && self.free.len() == self.plan.window {
                return connection.close().await;
            }
            while !is_over && let Some(id) = self.free.pop() {
                let now_ns = self.shared.now_ns();
                self.append(&mut connection.out, id, (self.next_seq, now_ns));
                self.next_seq += 1;
            }
            connection.flush().await?;
            connection.read().await?;
            self.acknowledgements(&mut connection, opened_in)?;
        }
    }

    /// What is not acknowledged, in the order in which it was sent first.
    fn again(&mut self, connection: &mut Connection) {
        let mut unacknowledged: Vec<(u16, (u64, u64))> =
            (0..).zip(&self.in_flight).filter_map(|(id, sent)| sent.map(|sent| (id, sent))).collect();
        unacknowledged.sort_unstable_by_key(|(_, (seq, _))| *seq);
        for (id, sent) in unacknowledged {
            let start = connection.out.len();
            self.append(&mut connection.out, id, sent);
            if let Some(first) = connection.out.get_mut(start) {
                // DUP [MQTT-3.3.1-1].
                *first |= 0x08;
            }
            add(&self.account.resent);
        }
    }

    fn append(&mut self, out: &mut Vec<u8>, id: u16, (seq, sent_ns): (u64, u64)) {
        if let Some(slot) = self.in_flight.get_mut(usize::from(id)) {
            *slot = Some((seq, sent_ns));
        }
        self.template.append(out, id, Stamp { sent_ns, publisher: self.plan.number, seq });
    }

    fn acknowledgements(&mut self, connection: &mut Connection, opened_in: u32) -> Result<(), BenchError> {
        let now_ns = self.shared.now_ns();
        while let Some(frame) = connection.input.next()? {
            if frame.kind() != AckKind::Puback as u8 {
                return Err(BenchError::Closed { at: self.plan.at });
            }
            let ack = ack_of(&frame)?;
            // One that answers nothing: the first PUBACK was lost with its connection, and this is the second's.
            let Some((seq, sent_ns)) = self.in_flight.get_mut(usize::from(ack.id)).and_then(Option::take) else {
                continue;
            };
            self.free.push(ack.id);
            if ack.code >= 0x80 {
                add(&self.account.refused);
                continue;
            }
            self.account.acknowledged.borrow_mut().insert(seq);
            self.account.mark(&self.account.first_ack, opened_in);
            self.shared.acknowledged(Some(now_ns.saturating_sub(sent_ns)));
        }
        Ok(())
    }
}

/// Where a subscriber is.
#[derive(Clone, Debug)]
pub(crate) struct Subscribing {
    pub(crate) at: SocketAddr,
    pub(crate) client_id: String,
    pub(crate) filter: String,
}

/// Receives until the task is aborted. The first connection is there already.
pub(crate) async fn receive(
    plan: Subscribing,
    first: Connection,
    shared: Rc<Shared>,
    account: Rc<Account>,
) -> Result<(), BenchError> {
    let mut connection = Some(first);
    loop {
        let opened_in = account.kills.get();
        let end = match connection.take() {
            Some(connection) => received(connection, &shared, &account, opened_in).await,
            None => {
                let connect = client(Version::V5, &plan.client_id, true, false);
                match Connection::open(plan.at, Version::V5, &connect).await {
                    Ok((mut opened, is_present)) => {
                        if !is_present {
                            // What comes from now on is not missing as well.
                            add(&account.sessions_lost);
                            opened.subscribe(&plan.filter, 1).await?;
                        }
                        connection = Some(opened);
                        continue;
                    }
                    Err(e) => Err(e),
                }
            }
        };
        match end {
            Err(e) if !is_passing(&e) => return Err(e),
            Ok(()) | Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn received(
    mut connection: Connection,
    shared: &Shared,
    account: &Account,
    opened_in: u32,
) -> Result<(), BenchError> {
    loop {
        let version = connection.version;
        while let Some(frame) = connection.input.next()? {
            if frame.kind() != 3 {
                // DISCONNECT: the node sends its clients away.
                return Ok(());
            }
            let publish = publish_of(&frame, version)?;
            encode::ack(&mut connection.out, Ack { kind: AckKind::Puback, id: publish.id, code: 0 });
            let Some(stamp) = Stamp::parse(publish.payload) else { continue };
            account.mark(&account.first_delivery, opened_in);
            if account.delivered.borrow_mut().insert(stamp.seq) {
                shared.delivered(shared.now_ns().saturating_sub(stamp.sent_ns));
            } else {
                add(&account.repeated);
            }
        }
        connection.flush().await?;
        connection.read().await?;
    }
}
