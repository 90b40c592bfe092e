//! The client's half of a session, sans-IO: packets and calls go in, packets to send and events come out.
//!
//! It owns what MQTT 5.0 §4.1 calls the client's session state: QoS 1 and 2 publishes that are not completely
//! acknowledged, and QoS 2 deliveries that are. That state outlives connections, so a session is resumed on
//! whichever node answers. Acknowledgements of deliveries are *held* until [`Session::release_acks`]: the
//! caller decides when a message is taken, and the demo keeps every phase of QoS 2 populated with it.
//! No socket, clock or randomness.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use super::packet::{Ack, AckKind, Connect, Packet, Publish, Qos, Version};

/// How a session is opened.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Protocol version.
    pub version: Version,
    /// Client identifier.
    pub client_id: String,
    /// Begin anew: the first CONNECT has Clean Start, later ones resume (when `expiry_s` is not 0).
    pub clean_start: bool,
    /// Session Expiry Interval; in 3.1.1 anything but 0 means Clean Session 0.
    pub expiry_s: u32,
    /// Deliveries at QoS 1 and 2 that we take at a time.
    pub receive_maximum: u16,
    /// Our own publishes at QoS 1 and 2 that may be unacknowledged (the server may allow fewer).
    pub window_max: u16,
    /// Keep Alive.
    pub keep_alive_s: u16,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server accepted the connection.
    Connected {
        /// Session Present.
        present: bool,
    },
    /// PUBLISH is sent again, after [`Event::Connected`].
    Resent {
        /// What was passed to [`Session::publish`].
        token: u64,
    },
    /// The server refused the connection.
    Refused {
        /// Reason code.
        reason: u8,
        /// Reason String and Server Reference, when it gave them.
        detail: Option<String>,
    },
    /// PUBACK or PUBREC came: the message is the server's, or it was refused (reason of 0x80 and above).
    Acknowledged {
        /// What was passed to [`Session::publish`].
        token: u64,
        /// Reason code.
        reason: u8,
    },
    /// The last packet of a publish came.
    Completed {
        /// What was passed to [`Session::publish`].
        token: u64,
    },
    /// A message, once; QoS 1 repeats are shown as they come. Its acknowledgement is held.
    Message(Message),
    /// A repeat of a QoS 2 message that was shown before; its acknowledgement is held.
    Repeated {
        /// Packet identifier.
        packet_id: u16,
    },
    /// PUBREL came; PUBCOMP is held.
    Released {
        /// Packet identifier.
        packet_id: u16,
    },
    /// SUBACK.
    Subscribed {
        /// One for each filter.
        reasons: Vec<u8>,
    },
    /// The server ends the connection (5.0).
    Disconnected {
        /// Reason code.
        reason: u8,
        /// Server Reference.
        server_reference: Option<String>,
    },
}

/// A message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic Name.
    pub topic: String,
    /// QoS of the delivery.
    pub qos: Qos,
    /// DUP.
    pub dup: bool,
    /// RETAIN.
    pub retain: bool,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// Payload.
    pub payload: Bytes,
    /// Number of the connection on which it came, from 1.
    pub connection: u64,
}

/// How many exchanges stand in each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Our QoS 1 PUBLISH sent, no PUBACK yet.
    pub publish_without_puback: usize,
    /// Our QoS 2 PUBLISH sent, no PUBREC yet.
    pub publish_without_pubrec: usize,
    /// Our PUBREL sent, no PUBCOMP yet.
    pub pubrel_without_pubcomp: usize,
    /// QoS 1 delivery taken, PUBACK not sent yet.
    pub received_without_puback: usize,
    /// QoS 2 delivery taken, PUBREC not sent yet.
    pub received_without_pubrec: usize,
    /// PUBREC sent, no PUBREL yet.
    pub pubrec_without_pubrel: usize,
    /// PUBREL taken, PUBCOMP not sent yet.
    pub released_without_pubcomp: usize,
}

impl std::ops::AddAssign for Phases {
    fn add_assign(&mut self, other: Self) {
        self.publish_without_puback += other.publish_without_puback;
        self.publish_without_pubrec += other.publish_without_pubrec;
        self.pubrel_without_pubcomp += other.pubrel_without_pubcomp;
        self.received_without_puback += other.received_without_puback;
        self.received_without_pubrec += other.received_without_pubrec;
        self.pubrec_without_pubrel += other.pubrec_without_pubrel;
        self.released_without_pubcomp += other.released_without_pubcomp;
    }
}

/// The server broke the protocol: the connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// Before CONNACK, or a second one.
    #[error("{0} where it does not belong")]
    OutOfPlace(&'static str),
    /// [MQTT-4.3.2-3], [MQTT-4.3.3-3]: an acknowledgement of nothing we sent.
    #[error("{kind:?} for packet identifier {packet_id}, which is not in use")]
    UnknownAck {
        /// Which.
        kind: AckKind,
        /// Identifier.
        packet_id: u16,
    },
}

/// A publish was not taken: the window is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("as many publishes are unacknowledged as the server or the window allow")]
pub struct WindowFull;

/// What to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Topic Name.
    pub topic: String,
    /// QoS.
    pub qos: Qos,
    /// RETAIN.
    pub retain: bool,
    /// Payload.
    pub payload: Bytes,
}

#[derive(Debug)]
struct Flight {
    token: u64,
    publish: Publish,
    /// PUBREC has come: PUBREL is what is owed.
    is_released: bool,
    /// Sent on some connection: the next PUBLISH is a repeat.
    was_sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inbound {
    /// Taken; PUBREC held or not owed on this connection.
    Taken,
    /// PUBREC sent on this connection.
    PubrecSent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    Open,
}

/// The client's half of a session.
#[derive(Debug)]
pub struct Session {
    options: SessionOptions,
    state: State,
    connection: u64,
    was_connected: bool,
    /// In the order of their first sending; at most `window_max`.
    flights: VecDeque<Flight>,
    next_id: u16,
    server_window: u16,
    subscribing: Option<u16>,
    /// Bounded by our Receive Maximum, which the server keeps to.
    inbound: HashMap<u16, Inbound>,
    held: VecDeque<Ack>,
    outbox: VecDeque<Packet>,
}

impl Session {
    /// A session that has not connected yet.
    #[must_use]
    pub fn new(options: SessionOptions) -> Self {
        Self {
            options,
            state: State::Closed,
            connection: 0,
            was_connected: false,
            flights: VecDeque::new(),
            next_id: 1,
            server_window: u16::MAX,
            subscribing: None,
            inbound: HashMap::new(),
            held: VecDeque::new(),
            outbox: VecDeque::new(),
        }
    }

    /// How it was opened.
    #[must_use]
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Whether the server has accepted the connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Publishes that are not completely acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.flights.len()
    }

    /// Begins a connection: CONNECT is the first packet to send.
    pub fn connect(&mut self) {
        self.lost();
        self.state = State::Connecting;
        self.connection += 1;
        let resumes = self.was_connected && self.options.expiry_s > 0;
        let transient_v3 = self.options.version == Version::V311 && self.options.expiry_s == 0;
        self.outbox.push_back(Packet::Connect(Connect {
            client_id: self.options.client_id.clone(),
            clean_start: transient_v3 || (self.options.clean_start && !resumes),
            expiry_s: self.options.expiry_s,
            receive_maximum: self.options.receive_maximum,
            keep_alive_s: self.options.keep_alive_s,
        }));
    }

    /// The connection is gone; what was not acknowledged stays.
    pub fn lost(&mut self) {
        self.state = State::Closed;
        self.outbox.clear();
        // The server sends again what it has no acknowledgement of.
        self.held.clear();
        self.subscribing = None;
        for inbound in self.inbound.values_mut() {
            *inbound = Inbound::Taken;
        }
    }

    /// Whether [`Self::publish`] at QoS 1 or 2 would be taken now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.is_open() && self.flights.len() < usize::from(self.options.window_max.min(self.server_window))
    }

    /// Publishes. At QoS 1 and 2 `token` comes back in the events, and the message is kept until it is done.
    ///
    /// # Errors
    /// [`WindowFull`]; also without a connection.
    pub fn publish(&mut self, message: Outgoing, token: u64) -> Result<(), WindowFull> {
        let Outgoing { topic, qos, retain, payload } = message;
        if qos == Qos::AtMostOnce {
            if !self.is_open() {
                return Err(WindowFull);
            }
            let publish = Publish { dup: false, qos, retain, topic, packet_id: 0, payload };
            self.outbox.push_back(Packet::Publish(publish));
            return Ok(());
        }
        if !self.has_room() {
            return Err(WindowFull);
        }
        let packet_id = self.free_id();
        let publish = Publish { dup: false, qos, retain, topic, packet_id, payload };
        self.outbox.push_back(Packet::Publish(publish.clone()));
        self.flights.push_back(Flight { token, publish, is_released: false, was_sent: true });
        Ok(())
    }

    /// Subscribes; [`Event::Subscribed`] answers.
    pub fn subscribe(&mut self, filters: Vec<(String, Qos)>) {
        let packet_id = self.free_id();
        self.subscribing = Some(packet_id);
        self.outbox.push_back(Packet::Subscribe { packet_id, filters });
    }

    /// PINGREQ.
    pub fn ping(&mut self) {
        self.outbox.push_back(Packet::PingReq);
    }

    /// DISCONNECT with reason 0.
    pub fn disconnect(&mut self) {
        self.outbox.push_back(Packet::Disconnect { reason: 0, server_reference: None });
    }

    /// The next packet to send.
    pub fn next_packet(&mut self) -> Option<Packet> {
        self.outbox.pop_front()
    }

    /// Acknowledgements that are held.
    #[must_use]
    pub fn held_acks(&self) -> usize {
        self.held.len()
    }

    /// Lets the oldest `count` held acknowledgements go.
    pub fn release_acks(&mut self, count: usize) {
        for _ in 0..count {
            let Some(ack) = self.held.pop_front() else { return };
            if ack.kind == AckKind::Pubrec
                && let Some(state) = self.inbound.get_mut(&ack.packet_id)
            {
                *state = Inbound::PubrecSent;
            }
            self.outbox.push_back(Packet::Ack(ack));
        }
    }

    /// Takes a packet from the server.
    ///
    /// # Errors
    /// [`ProtocolError`]: close the connection.
    pub fn receive(&mut self, packet: Packet, events: &mut Vec<Event>) -> Result<(), ProtocolError> {
        match (self.state, packet) {
            (State::Connecting, Packet::ConnAck(ack)) => {
                if ack.reason >= 0x80 {
                    self.state = State::Closed;
                    let detail = match (ack.reason_string, ack.server_reference) {
                        (reason, None) => reason,
                        (None, Some(server)) => Some(format!("use {server}")),
                        (Some(reason), Some(server)) => Some(format!("{reason}; use {server}")),
                    };
                    events.push(Event::Refused { reason: ack.reason, detail });
                    return Ok(());
                }
                self.server_window = ack.receive_maximum.max(1);
                self.opened(ack.present, events);
                Ok(())
            }
            (State::Open, Packet::Publish(publish)) => {
                self.take_publish(publish, events);
                Ok(())
            }
            (State::Open, Packet::Ack(ack)) => self.take_ack(ack, events),
            (State::Open, Packet::SubAck { packet_id, reasons }) => {
                if self.subscribing.take() != Some(packet_id) {
                    return Err(ProtocolError::OutOfPlace("SUBACK"));
                }
                events.push(Event::Subscribed { reasons });
                Ok(())
            }
            (State::Open, Packet::PingResp) => Ok(()),
            (_, Packet::Disconnect { reason, server_reference }) => {
                events.push(Event::Disconnected { reason, server_reference });
                Ok(())
            }
            (_, Packet::ConnAck(_)) => Err(ProtocolError::OutOfPlace("CONNACK")),
            (_, _) => Err(ProtocolError::OutOfPlace("a packet")),
        }
    }

    /// Resends what the server may not have, in the order of its first sending [MQTT-4.4.0-1].
    fn opened(&mut self, present: bool, events: &mut Vec<Event>) {
        self.state = State::Open;
        self.was_connected = true;
        events.push(Event::Connected { present });
        if !present {
            // The server knows nothing: what it had taken over is done, the rest is published as if for the first time.
            self.inbound.clear();
            let (released, rest): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.flights).into_iter().partition(|f| f.is_released);
            events.extend(released.into_iter().map(|flight| Event::Completed { token: flight.token }));
            self.flights = rest;
            for flight in &mut self.flights {
                flight.was_sent = false;
            }
        }
        for flight in &mut self.flights {
            let packet_id = flight.publish.packet_id;
            let packet = if flight.is_released {
                Packet::Ack(Ack { kind: AckKind::Pubrel, packet_id, reason: 0 })
            } else {
                flight.publish.dup = flight.was_sent;
                flight.was_sent = true;
                events.push(Event::Resent { token: flight.token });
                Packet::Publish(flight.publish.clone())
            };
            self.outbox.push_back(packet);
        }
    }

    fn take_publish(&mut self, publish: Publish, events: &mut Vec<Event>) {
        let Publish { dup, qos, retain, topic, packet_id, payload } = publish;
        let is_new = match qos {
            Qos::AtMostOnce => true,
            Qos::AtLeastOnce => {
                self.held.push_back(Ack { kind: AckKind::Puback, packet_id, reason: 0 });
                true
            }
            Qos::ExactlyOnce => {
                self.held.push_back(Ack { kind: AckKind::Pubrec, packet_id, reason: 0 });
                self.inbound.insert(packet_id, Inbound::Taken).is_none()
            }
        };
        let connection = self.connection;
        events.push(if is_new {
            Event::Message(Message { topic, qos, dup, retain, packet_id, payload, connection })
        } else {
            Event::Repeated { packet_id }
        });
    }

    fn take_ack(&mut self, ack: Ack, events: &mut Vec<Event>) -> Result<(), ProtocolError> {
        let Ack { kind, packet_id, reason } = ack;
        if kind == AckKind::Pubrel {
            self.inbound.remove(&packet_id);
            self.held.push_back(Ack { kind: AckKind::Pubcomp, packet_id, reason: 0 });
            events.push(Event::Released { packet_id });
            return Ok(());
        }
        let unknown = ProtocolError::UnknownAck { kind, packet_id };
        let place =
            self.flights.iter().position(|flight| flight.publish.packet_id == packet_id).ok_or(unknown.clone())?;
        let flight = self.flights.get_mut(place).ok_or(unknown.clone())?;
        let token = flight.token;
        match (kind, flight.publish.qos, flight.is_released) {
            (AckKind::Puback, Qos::AtLeastOnce, _) => {
                self.flights.remove(place);
                events.extend([Event::Acknowledged { token, reason }, Event::Completed { token }]);
            }
            (AckKind::Pubrec, Qos::ExactlyOnce, false) => {
                events.push(Event::Acknowledged { token, reason });
                if reason >= 0x80 {
                    self.flights.remove(place);
                    events.push(Event::Completed { token });
                } else {
                    flight.is_released = true;
                    self.outbox.push_back(Packet::Ack(Ack { kind: AckKind::Pubrel, packet_id, reason: 0 }));
                }
            }
            // The answer to a repeat: the PUBREL is owed all the same.
            (AckKind::Pubrec, Qos::ExactlyOnce, true) => {
                self.outbox.push_back(Packet::Ack(Ack { kind: AckKind::Pubrel, packet_id, reason: 0 }));
            }
            (AckKind::Pubcomp, Qos::ExactlyOnce, true) => {
                self.flights.remove(place);
                events.push(Event::Completed { token });
            }
            _ => return Err(unknown),
        }
        Ok(())
    }

    /// An identifier that no exchange of ours uses.
    fn free_id(&mut self) -> u16 {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            // At most `window_max` and one more are in use, of 65,535.
            if self.subscribing != Some(id) && !self.flights.iter().any(|flight| flight.publish.packet_id == id) {
                return id;
            }
        }
    }

    /// How many exchanges stand in each phase.
    #[must_use]
    pub fn phases(&self) -> Phases {
        let mut phases = Phases::default();
        for flight in &self.flights {
            match (flight.publish.qos, flight.is_released) {
                (Qos::ExactlyOnce, true) => phases.pubrel_without_pubcomp += 1,
                (Qos::ExactlyOnce, false) => phases.publish_without_pubrec += 1,
                _ => phases.publish_without_puback += 1,
            }
        }
        for ack in &self.held {
            match ack.kind {
                AckKind::Puback => phases.received_without_puback += 1,
                AckKind::Pubrec => phases.received_without_pubrec += 1,
                AckKind::Pubcomp => phases.released_without_pubcomp += 1,
                AckKind::Pubrel => {}
            }
        }
        phases.pubrec_without_pubrel = self.inbound.values().filter(|state| **state == Inbound::PubrecSent).count();
        phases
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
