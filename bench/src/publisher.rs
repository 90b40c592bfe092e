//! A publisher: keeps its window full and times each acknowledgement.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use quorate_jepsen::wire::encode;
use quorate_jepsen::wire::{Ack, AckKind, Publish, Version, ack_of};

use crate::BenchError;
use crate::connection::{Connection, client};
use crate::shared::{Phase, Shared, Stamp};

/// Fewest packet identifiers in use, so that a small window does not reuse one at once.
const IDENTIFIERS_MIN: usize = 256;

/// What a publisher does.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) at: SocketAddr,
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) number: u32,
    pub(crate) topic: String,
    pub(crate) qos: u8,
    /// Unacknowledged publishes at a time (at QoS 0: publishes in one write).
    pub(crate) window: usize,
    pub(crate) payload_bytes: usize,
    /// Payloads that no compression makes shorter; else all of one publisher are alike but for their stamps.
    pub(crate) is_noise: bool,
    pub(crate) is_persistent: bool,
    /// Publishes a second; none: as fast as the window lets.
    pub(crate) rate: Option<f64>,
    /// Stops after so many.
    pub(crate) messages_max: u64,
}

/// An encoded PUBLISH with the places that change.
pub(crate) struct Template {
    bytes: Vec<u8>,
    id_at: Option<usize>,
    payload_at: usize,
    is_noise: bool,
}

impl Template {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut bytes = Vec::new();
        let payload_bytes = plan.payload_bytes.max(Stamp::BYTES);
        let publish = Publish {
            dup: false,
            qos: plan.qos,
            retain: false,
            topic: plan.topic.clone(),
            id: 0,
            properties: Vec::new(),
            payload: vec![b'.'; payload_bytes],
        };
        encode::publish(&mut bytes, plan.version, &publish);
        let payload_at = bytes.len() - payload_bytes;
        let properties = usize::from(plan.version == Version::V5);
        Self { id_at: (plan.qos > 0).then(|| payload_at - properties - 2), payload_at, bytes, is_noise: plan.is_noise }
    }

    /// One more with this packet identifier and stamp.
    pub(crate) fn append(&self, out: &mut Vec<u8>, id: u16, stamp: Stamp) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(place) = self.id_at.and_then(|at| out.get_mut(start + at..start + at + 2)) {
            place.copy_from_slice(&id.to_be_bytes());
        }
        if let Some(place) = out.get_mut(start + self.payload_at..start + self.payload_at + Stamp::BYTES) {
            place.copy_from_slice(&stamp.to_bytes());
        }
        if self.is_noise {
            noise(out.get_mut(start + self.payload_at + Stamp::BYTES..).unwrap_or_default(), stamp);
        }
    }
}

/// Bytes that look random (splitmix64), the same for the same message.
fn noise(payload: &mut [u8], stamp: Stamp) {
    let mut state = stamp.seq ^ (u64::from(stamp.publisher) << 40);
    for place in payload.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (mixed ^ (mixed >> 31)).to_le_bytes();
        place.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    }
}

/// Publishes until the run is over or it has sent what it should; returns when all is acknowledged.
pub(crate) async fn publish(plan: Plan, shared: Rc<Shared>) -> Result<(), BenchError> {
    let connect = client(plan.version, &plan.client_id, plan.is_persistent, true);
    let (connection, _) = Connection::open(plan.at, plan.version, &connect).await?;
    shared.publisher_ready();
    let identifiers = (plan.window * 4).clamp(IDENTIFIERS_MIN, usize::from(u16::MAX));
    let mut publisher = Publisher {
        template: Template::new(&plan),
        connection,
        shared,
        sent_ns: vec![0; identifiers + 1],
        next_id: 1,
        next_seq: 0,
        in_flight: 0,
        plan,
    };
    publisher.run().await?;
    publisher.connection.close().await
}

struct Publisher {
    plan: Plan,
    template: Template,
    connection: Connection,
    shared: Rc<Shared>,
    /// When each identifier in flight was sent; 0 when it is free.
    sent_ns: Vec<u64>,
    next_id: usize,
    next_seq: u64,
    in_flight: usize,
}

impl Publisher {
    async fn run(&mut self) -> Result<(), BenchError> {
        self.shared.started().await;
        let start_ns = self.shared.now_ns();
        loop {
            let now_ns = self.shared.now_ns();
            let is_over = self.shared.phase() == Phase::Over || self.next_seq >= self.plan.messages_max;
            if is_over && self.in_flight == 0 {
                return Ok(());
            }
            let due = self.due(now_ns - start_ns);
            if !is_over {
                self.fill(now_ns, due);
            }
            self.connection.flush().await?;
            if self.plan.qos == 0 {
                self.wait_qos0(is_over).await;
                continue;
            }
            let is_waiting_for_turn = !is_over && self.in_flight < self.plan.window && due <= self.next_seq;
            if is_waiting_for_turn || self.in_flight == 0 {
                let turn = Duration::from_micros(500);
                match tokio::time::timeout(turn, self.connection.read()).await {
                    Ok(read) => read?,
                    Err(_) => continue,
                }
            } else {
                self.connection.read().await?;
            }
            self.acknowledgements()?;
        }
    }

    /// How many should have been sent `elapsed_ns` after the start.
    fn due(&self, elapsed_ns: u64) -> u64 {
        self.plan.rate.map_or(u64::MAX, |rate| (elapsed_ns as f64 / 1e9 * rate) as u64 + 1)
    }

    fn fill(&mut self, now_ns: u64, due: u64) {
        let mut room = self.plan.window - self.in_flight.min(self.plan.window);
        while room > 0 && self.next_seq < due.min(self.plan.messages_max) {
            if self.plan.qos > 0 {
                match self.sent_ns.get_mut(self.next_id) {
                    // Acknowledged out of order: this identifier is still in flight.
                    Some(sent) if *sent > 0 => return,
                    Some(sent) => *sent = now_ns,
                    None => return,
                }
                self.in_flight += 1;
            }
            let stamp = Stamp { sent_ns: now_ns, publisher: self.plan.number, seq: self.next_seq };
            self.template.append(&mut self.connection.out, self.next_id as u16, stamp);
            self.next_id = if self.next_id + 1 < self.sent_ns.len() { self.next_id + 1 } else { 1 };
            self.next_seq += 1;
            room -= 1;
            if self.plan.qos == 0 {
                self.shared.acknowledged(None);
            }
        }
    }

    async fn wait_qos0(&self, is_over: bool) {
        if self.plan.rate.is_some() && !is_over {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }

    fn acknowledgements(&mut self) -> Result<(), BenchError> {
        let now_ns = self.shared.now_ns();
        while let Some(frame) = self.connection.input.next()? {
            if !(4..=7).contains(&frame.kind()) {
                let answer = format!("packet type {} for a publisher", frame.kind());
                return Err(BenchError::Refused { at: self.plan.at, answer });
            }
            let ack = ack_of(&frame)?;
            if ack.code >= 0x80 {
                self.shared.refused();
            } else if ack.kind == AckKind::Pubrec {
                encode::ack(&mut self.connection.out, Ack { kind: AckKind::Pubrel, id: ack.id, code: 0 });
                continue;
            }
            let Some(sent) = self.sent_ns.get_mut(usize::from(ack.id)).filter(|sent| **sent > 0) else {
                let answer = format!("{ack:?}, which was not sent");
                return Err(BenchError::Refused { at: self.plan.at, answer });
            };
            self.in_flight -= 1;
            if ack.code < 0x80 {
                self.shared.acknowledged(Some(now_ns.saturating_sub(*sent)));
            }
            *sent = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_differs_from_message_to_message() {
        let of = |seq| {
            let mut payload = [0; 21];
            noise(&mut payload, Stamp { sent_ns: 1, publisher: 3, seq });
            payload
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        assert!(of(0).iter().filter(|byte| **byte == 0).count() < 4);
    }
}
