//! What goes out to one client: the cursor over its queue, the window of what is in flight, and who waits
//! for which acknowledgement.
//!
//! A durable session's queue is rows in the log's state: deliveries that arrive while the client keeps up
//! are sent as they come, everything else is read from the rows in pages; of what comes meanwhile, a bounded
//! number is kept until the pages have come to it. The packet identifier is a function of the row, rows go
//! out in order, a row is sent at most once on a connection, and the window moves only when our Settle was
//! *applied*. A transient session has rows of shared groups only; all else waits in [`super::memory`]. Both share
//! the window and the packet identifiers, and are sent in turn.
//!
//! Pure: it writes packets, commands and page requests into an [`Output`], and reads no clock.

mod acknowledged;

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_store::command::{Ack, AckKind};
use quorate_store::effect::Delivery;
use quorate_store::ids::{PacketId, Position, QoS, QueueSeq};
use quorate_store::message::SharedMessage;
use quorate_store::rows::QueuePage;
use quorate_store::seeded_bug::{SeededBug, is_seeded};

use super::aliases::Aliases;
use super::memory::Memory;
use super::paging::{Asked, PageWanted};
use super::{Now, Output};
use crate::mqtt::options::{DELIVERY_OVERHEAD_BYTES, MqttOptions, READY_ROWS_MAX};
use crate::mqtt::packet::{Delivered, Outgoing, Version};
use crate::mqtt::reason::Reason;
use crate::mqtt::wire;

/// Identifiers repeat after so many rows; what is in flight spans less.
const IDENTIFIERS: u64 = 65_535;
/// With fewer rows ready than this, the next page is asked for: early enough that it is there in time.
const READY_ROWS_LOW: usize = 128;

/// Where the queue stands when a connection begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Deliveries are rows, also those that are not of shared groups.
    pub(super) durable: bool,
    /// First row that may be unsettled.
    pub(super) head: QueueSeq,
    /// Rows below may have been sent before.
    pub(super) sent_until: QueueSeq,
    /// Rows below exist already, or have existed.
    pub(super) tail: QueueSeq,
    /// Rows that may be unsettled at once.
    pub(super) window: u16,
    /// Topic aliases that may be set.
    pub(super) alias_max: u16,
}

/// What the outbox needs to know of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'a> {
    pub(super) version: Version,
    /// Maximum Packet Size of the client.
    pub(super) packet_bytes_max: usize,
    pub(super) options: &'a MqttOptions,
}

/// A delivery that waits for its turn.
#[derive(Debug)]
struct Ready {
    seq: QueueSeq,
    qos: QoS,
    retain: bool,
    identifiers: Arc<[u32]>,
    message: SharedMessage,
}

impl Ready {
    fn of(seq: QueueSeq, d: Delivery) -> Self {
        Self { seq, qos: d.qos, retain: d.retain, identifiers: d.identifiers, message: d.message }
    }

    fn bytes(&self) -> usize {
        self.message.charge_bytes() + DELIVERY_OVERHEAD_BYTES
    }
}

/// Why a row is passed over, as if it had been sent and completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skipped {
    /// [MQTT-3.3.2-5]
    Expired,
    /// Above the client's Maximum Packet Size [MQTT-3.1.2-25].
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// PUBLISH was sent.
    Sent,
    /// An acknowledgement is on its way through the log.
    Settling(AckKind),
    /// PUBREL was sent.
    Released,
}

/// A row between its PUBLISH (or, resumed, its PUBREL) and the end of its exchange.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    seq: QueueSeq,
    position: Position,
    qos: QoS,
    phase: Phase,
}

/// The client broke the protocol, or its queue overflowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) Reason);

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Of a transient session: what is not rows.
    memory: Option<Box<Memory>>,
    /// Whether that comes next.
    memory_is_next: bool,
    window: usize,
    sent_until: QueueSeq,
    /// First row of this connection.
    first: QueueSeq,
    /// Next row to send: everything below was sent on this connection, or needs not be.
    cursor: QueueSeq,
    /// Rows below are in `ready`, sent, or gone.
    fetched: QueueSeq,
    /// Rows below may exist.
    tail: QueueSeq,
    /// Where the search for owed PUBRELs goes on; nothing new is sent before it is over.
    owed_from: Option<QueueSeq>,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    /// All rows from the first of these up to the tail: they came while earlier ones were, or are, to be paged.
    live: VecDeque<Ready>,
    live_bytes: usize,
    /// In order of `seq`.
    in_flight: VecDeque<InFlight>,
    /// How many of them are below the cursor; the others are owed PUBRELs that it has not come to.
    passed: usize,
    /// Last row that is passed over, expired or too large, and whose end is not applied: nothing goes out behind it.
    /// Otherwise, were the connection lost before, the next one would send it behind rows that came after it.
    skipped: Option<QueueSeq>,
    /// Not yet proposed.
    acks: Vec<Ack>,
    /// Proposed and not yet applied, in order.
    settling: VecDeque<Ack>,
    asked: Option<Box<Asked>>,
    /// The write buffer was full when there was something to send.
    blocked: bool,
    aliases: Aliases,
}

impl Outbox {
    pub(super) fn new(start: Start) -> Self {
        Self {
            memory: (!start.durable).then(|| Box::new(Memory::new())),
            memory_is_next: false,
            window: usize::from(start.window.max(1)),
            sent_until: start.sent_until,
            first: start.head,
            cursor: start.head,
            fetched: start.head,
            tail: start.tail.max(start.head),
            owed_from: (start.durable && start.sent_until > start.head).then_some(start.head),
            ready: VecDeque::new(),
            ready_bytes: 0,
            live: VecDeque::new(),
            live_bytes: 0,
            in_flight: VecDeque::new(),
            passed: 0,
            skipped: None,
            acks: Vec::new(),
            settling: VecDeque::new(),
            asked: None,
            blocked: false,
            aliases: Aliases::new(start.alias_max),
        }
    }

    /// First row that was certainly not sent on this connection, nor on an earlier one.
    pub(super) fn sent_until(&self) -> QueueSeq {
        self.cursor.max(self.sent_until)
    }

    pub(super) fn window(&self) -> u16 {
        u16::try_from(self.window).unwrap_or(u16::MAX)
    }

    pub(super) fn alias_max(&self) -> u16 {
        self.aliases.max()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// There is room in the write buffer again.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Rows up to `seq` exist; their messages were not handed over.
    pub(super) fn note(&mut self, seq: QueueSeq) {
        if seq >= self.tail {
            self.tail = seq.next();
            self.live.clear();
            self.live_bytes = 0;
        }
    }

    /// Row `seq` is gone: it is not sent any more.
    pub(super) fn withdraw(&mut self, seq: QueueSeq) {
        for (rows, bytes) in [(&mut self.ready, &mut self.ready_bytes), (&mut self.live, &mut self.live_bytes)] {
            if let Ok(i) = rows.binary_search_by_key(&seq, |r| r.seq)
                && let Some(gone) = rows.remove(i)
            {
                *bytes = bytes.saturating_sub(gone.bytes());
            }
        }
        if let Some(asked) = &mut self.asked {
            asked.withdraw(seq);
        }
    }

    /// Takes a delivery. QoS 0 goes out at once or is dropped, a row is sent in its turn.
    pub(super) fn deliver(
        &mut self,
        delivery: Delivery,
        link: Link<'_>,
        now: Now,
        out: &mut Output,
    ) -> Result<(), Broken> {
        match (delivery.seq, delivery.qos) {
            (_, QoS::AtMostOnce) => self.send_qos0(delivery, link, now, out),
            (Some(seq), _) => self.offer(seq, delivery, link.options),
            (None, _) => match &mut self.memory {
                Some(memory) => return memory.queue(delivery, link.options.transient_queue_bytes_max, out),
                // No row for a durable session: the apply thread and this connection disagree on what the session
                // is, so nothing here may go on.
                None => return Err(Broken(Reason::IMPLEMENTATION_SPECIFIC_ERROR)),
            },
        }
        Ok(())
    }

    fn send_qos0(&mut self, delivery: Delivery, link: Link<'_>, now: Now, out: &mut Output) {
        let Some(expiry_s) = expiry_left(&delivery.message, now) else {
            out.counts.expired += 1;
            return;
        };
        let delivered = Delivered {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: delivery.retain,
            id: None,
            expiry_s,
            identifiers: delivery.identifiers,
            alias: None,
            message: delivery.message,
        };
        match self.weigh(delivered, link) {
            None => out.counts.too_large += 1,
            Some(_) if out.room == 0 => out.counts.qos0_dropped += 1,
            Some((bytes, delivered)) => self.hand_over(bytes, delivered, out),
        }
    }

    /// What a PUBLISH takes, with an alias where the client takes one; `None` when it is above the client's Maximum
    /// Packet Size. Nothing is set before it is handed over.
    fn weigh(&self, mut delivered: Delivered, link: Link<'_>) -> Option<(usize, Delivered)> {
        delivered.alias = self.aliases.offer(&delivered.message.topic);
        let mut bytes = wire::publish_len(link.version, &delivered);
        if bytes > link.packet_bytes_max && delivered.alias.is_some_and(|alias| !alias.is_known) {
            delivered.alias = None; // it may be the alias that is too much
            bytes = wire::publish_len(link.version, &delivered);
        }
        (bytes <= link.packet_bytes_max).then_some((bytes, delivered))
    }

    fn hand_over(&mut self, bytes: usize, delivered: Delivered, out: &mut Output) {
        if let Some(alias) = delivered.alias {
            self.aliases.sent(alias, &delivered.message.topic);
        }
        out.room = out.room.saturating_sub(bytes);
        out.counts.publish_out(delivered.qos, delivered.message.payload.len());
        out.packets.push(Outgoing::Publish(delivered));
    }

    fn offer(&mut self, seq: QueueSeq, delivery: Delivery, options: &MqttOptions) {
        if seq < self.fetched {
            return; // sent or ready already: a page was quicker
        }
        if seq != self.tail {
            return self.note(seq);
        }
        let room = |rows: &VecDeque<Ready>, bytes| rows.len() < READY_ROWS_MAX && bytes < options.page_bytes_max;
        if self.fetched == self.tail && room(&self.ready, self.ready_bytes) {
            self.tail = seq.next();
            self.fetched = self.tail;
            self.push_ready(Ready::of(seq, delivery));
        } else if room(&self.live, self.live_bytes)
            && self.tail.0.saturating_sub(self.fetched.0) < READY_ROWS_MAX as u64
        {
            self.tail = seq.next();
            let ready = Ready::of(seq, delivery);
            self.live_bytes += ready.bytes();
            self.live.push_back(ready);
        } else {
            self.note(seq);
        }
    }

    /// When the pages have come to the rows that came meanwhile, those are ready too. Whether any are.
    fn join(&mut self) -> bool {
        // Without any the tail is where pages have to come to.
        if self.live.front().is_none_or(|first| first.seq > self.fetched) {
            return false;
        }
        for ready in std::mem::take(&mut self.live) {
            if ready.seq >= self.fetched {
                self.push_ready(ready);
            }
        }
        self.live_bytes = 0;
        self.fetched = self.tail;
        true
    }

    fn push_ready(&mut self, ready: Ready) {
        self.ready_bytes += ready.bytes();
        self.ready.push_back(ready);
    }

    /// Takes the page that was asked for.
    pub(super) fn page(&mut self, page: QueuePage, options: &MqttOptions, out: &mut Output) {
        let Some(asked) = self.asked.take() else { return };
        // The search for owed PUBRELs may go over more rows than are kept: those are read again.
        let room = self.ready.len() < READY_ROWS_MAX && self.ready_bytes < options.page_bytes_max;
        let keep = asked.from == self.fetched && room;
        // Rows that this connection has not heard of may be given to the next one of the session: a page that was read
        // late must not send them.
        let until = asked.until.min(self.tail);
        let next = page.next.min(until);
        let end = page.end && asked.until >= asked.tail;
        let looking = self.owed_from.is_some();
        let sent_until = self.sent_until;
        for row in page.rows {
            if row.released {
                // Owed since an earlier connection; found in the first search, passed over afterwards.
                if looking && row.seq < sent_until {
                    self.in_flight.push_back(InFlight {
                        seq: row.seq,
                        position: row.message.position,
                        qos: row.qos,
                        phase: Phase::Released,
                    });
                    let id = id_of(self.first, row.seq);
                    out.packets.push(Outgoing::PubRel(id, Reason::SUCCESS));
                }
            } else if keep && row.seq >= self.fetched && row.seq < until && !asked.withdrawn.contains(&row.seq) {
                self.push_ready(Ready {
                    seq: row.seq,
                    qos: row.qos,
                    retain: row.retain,
                    identifiers: row.identifiers,
                    message: row.message,
                });
            }
        }
        if keep {
            self.fetched = self.fetched.max(next);
            if end {
                self.fetched = self.fetched.max(asked.tail); // whatever was there has vanished
            }
            self.tail = self.tail.max(self.fetched);
            self.join();
        }
        if looking {
            self.owed_from = (!page.end && page.next < sent_until).then_some(page.next);
        }
    }

    /// The page that is needed next, if any: to look for owed PUBRELs, or to fill the window.
    pub(super) fn want_page(&mut self, options: &MqttOptions) -> Option<PageWanted> {
        if self.asked.is_some() {
            return None;
        }
        if self.ready.len() < READY_ROWS_LOW {
            self.join();
        }
        let from = match self.owed_from {
            Some(from) => from,
            None if self.fetched < self.tail
                && self.ready.len() < READY_ROWS_LOW
                && self.ready_bytes < options.page_bytes_max
                && self.in_flight_of_both() < self.window
                && !self.blocked =>
            {
                self.fetched
            }
            None => return None,
        };
        let (tail, until) = (self.tail, QueueSeq(u64::MAX));
        self.asked = Some(Box::new(Asked { from, tail, withdrawn: Vec::new(), until }));
        Some(PageWanted { from, rows_max: options.page_rows_max, bytes_max: options.page_bytes_max })
    }

    /// Sends what is ready, as far as the window and the write buffer have room.
    pub(super) fn pump(&mut self, link: Link<'_>, now: Now, out: &mut Output) {
        if self.owed_from.is_some() {
            return; // owed PUBRELs first
        }
        while self.send_next(link, now, out) {
            self.memory_is_next = !self.memory_is_next;
        }
    }

    /// Sends what comes next, of rows and memory in turn; false when nothing may be sent now.
    fn send_next(&mut self, link: Link<'_>, now: Now, out: &mut Output) -> bool {
        (self.memory_is_next && self.send_from_memory(link, now, out))
            || self.send_row(link, now, out)
            || self.send_from_memory(link, now, out)
    }

    fn in_flight_of_both(&self) -> usize {
        self.passed + self.memory.as_deref().map_or(0, Memory::in_flight)
    }

    /// Whether one more may be sent now.
    fn has_room(&mut self, out: &Output) -> bool {
        if self.in_flight_of_both() >= self.window {
            return false;
        }
        self.blocked |= out.room == 0;
        out.room > 0
    }

    /// Deals with the next row; false when there is none, or none may be sent now.
    fn send_row(&mut self, link: Link<'_>, now: Now, out: &mut Output) -> bool {
        if self.ready.is_empty() {
            self.join();
        }
        let Some(seq) = self.ready.front().map(|next| next.seq) else { return false };
        self.pass(seq);
        let span = self.in_flight.front().filter(|f| f.seq < seq).map_or(0, |f| seq.0 - f.seq.0);
        let is_taken = self.memory.as_ref().is_some_and(|memory| memory.has(seq.packet_id()));
        if span + 1 >= IDENTIFIERS || is_taken || !self.has_room(out) || self.waits_for_skipped(link, now) {
            return false;
        }
        let Some(ready) = self.ready.pop_front() else { return false };
        self.ready_bytes = self.ready_bytes.saturating_sub(ready.bytes());
        self.send(ready, link, now, out);
        true
    }

    /// Whether the next row has to wait; one that is passed over, too, has not.
    fn waits_for_skipped(&self, link: Link<'_>, now: Now) -> bool {
        let Some(next) = self.ready.front().filter(|_| self.skipped.is_some()) else { return false };
        let Ready { seq, qos, retain, identifiers, message } = next;
        let (identifiers, message) = (identifiers.clone(), message.clone());
        self.prepare(Ready { seq: *seq, qos: *qos, retain: *retain, identifiers, message }, link, now).is_ok()
    }

    /// The same for what is not rows.
    fn send_from_memory(&mut self, link: Link<'_>, now: Now, out: &mut Output) -> bool {
        if self.memory.as_deref().is_none_or(Memory::is_empty) || !self.has_room(out) {
            return false;
        }
        let Some(mut memory) = self.memory.take() else { return false };
        if let Some(delivered) = memory.next(self.cursor.packet_id(), |id| self.find(id).is_some(), now, out) {
            match self.weigh(delivered, link) {
                Some((bytes, delivered)) => {
                    memory.sent(&delivered);
                    self.hand_over(bytes, delivered, out);
                }
                None => out.counts.too_large += 1, // [MQTT-3.1.2-25]
            }
        }
        self.memory = Some(memory);
        true
    }

    /// The memory, when the identifier is in use there.
    fn memory_of(&mut self, id: PacketId) -> Option<&mut Memory> {
        self.memory.as_deref_mut().filter(|memory| memory.has(id))
    }

    /// Moves the cursor to `seq`, over owed PUBRELs.
    fn pass(&mut self, seq: QueueSeq) {
        self.cursor = self.cursor.max(seq);
        while self.in_flight.get(self.passed).is_some_and(|f| f.seq < self.cursor) {
            self.passed += 1;
        }
    }

    /// The PUBLISH of a row, and what it takes; or why there is none.
    fn prepare(&self, ready: Ready, link: Link<'_>, now: Now) -> Result<(usize, Delivered), Skipped> {
        let Ready { seq, qos, retain, identifiers, message } = ready;
        let dup = seq < self.sent_until && !is_seeded(SeededBug::DupNotSet);
        let expiry_s = match expiry_left(&message, now) {
            Some(left) => left,
            // What may have been sent already goes on until it is acknowledged, expired or not.
            None if dup && !is_seeded(SeededBug::SentRowDroppedByExpiry) => Some(1),
            None => return Err(Skipped::Expired),
        };
        let id = Some(self.id_of(seq));
        let delivered = Delivered { dup, qos, retain, id, expiry_s, identifiers, alias: None, message };
        self.weigh(delivered, link).ok_or(Skipped::TooLarge)
    }

    fn send(&mut self, ready: Ready, link: Link<'_>, now: Now, out: &mut Output) {
        let (seq, qos, position) = (ready.seq, ready.qos, ready.message.position);
        match self.prepare(ready, link, now) {
            Ok((bytes, delivered)) => {
                self.hand_over(bytes, delivered, out);
                self.enter(InFlight { seq, position, qos, phase: Phase::Sent });
            }
            Err(why) => {
                match why {
                    Skipped::Expired => out.counts.expired += 1,
                    Skipped::TooLarge => out.counts.too_large += 1,
                }
                let kind = if qos == QoS::ExactlyOnce { AckKind::PubrecRefused } else { AckKind::Puback };
                self.enter(InFlight { seq, position, qos, phase: Phase::Settling(kind) });
                self.acks.push(Ack { seq, position, kind });
                self.skipped = Some(seq);
            }
        }
        self.cursor = seq.next();
    }

    fn enter(&mut self, entry: InFlight) {
        self.in_flight.insert(self.passed, entry);
        self.passed += 1;
    }

    /// Index of the exchange with this identifier: it spans less than the identifiers, so it is unique.
    fn find(&self, id: PacketId) -> Option<usize> {
        let first = self.in_flight.front()?.seq;
        let distance = (u64::from(id.get()) + IDENTIFIERS - u64::from(self.id_of(first).get())) % IDENTIFIERS;
        self.find_seq(QueueSeq(first.0 + distance))
    }

    fn id_of(&self, seq: QueueSeq) -> PacketId {
        id_of(self.first, seq)
    }

    fn find_seq(&self, seq: QueueSeq) -> Option<usize> {
        self.in_flight.binary_search_by_key(&seq, |f| f.seq).ok()
    }
}

/// The packet identifier of a row, on whatever connection.
fn id_of(first: QueueSeq, seq: QueueSeq) -> PacketId {
    if is_seeded(SeededBug::PacketIdReused) {
        return QueueSeq(seq.0.saturating_sub(first.0)).packet_id();
    }
    seq.packet_id()
}

/// Message Expiry Interval that is left: `None` when the message has expired, `Some(None)` when it never does.
#[allow(clippy::option_option)]
pub(super) fn expiry_left(message: &quorate_store::message::Message, now: Now) -> Option<Option<u32>> {
    let Some(at) = message.expires_at else { return Some(None) };
    // This node's estimate of cluster time may be behind the time of the entry; the interval only ever gets shorter.
    let now = now.cluster.max(message.published_at);
    let left_ms = at.0.checked_sub(now.0).filter(|ms| *ms > 0)?;
    Some(Some(u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX)))
}
