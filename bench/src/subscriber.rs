//! A subscriber: acknowledges what comes in one write for each read, and times and counts it.

use std::net::SocketAddr;
use std::rc::Rc;

use quorate_jepsen::wire::encode;
use quorate_jepsen::wire::{Ack, AckKind, Version, ack_of, publish_of};

use crate::BenchError;
use crate::connection::{Connection, client};
use crate::shared::{Shared, Stamp};

/// What a subscriber does.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) at: SocketAddr,
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) filter: String,
    pub(crate) qos: u8,
    pub(crate) is_persistent: bool,
    /// Publishers that there are.
    pub(crate) publishers: usize,
}

/// What a subscriber found wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Oddities {
    repeated: u64,
    skipped: u64,
}

/// Connects as new and subscribes.
pub(crate) async fn open(plan: &Plan) -> Result<Connection, BenchError> {
    let connect = client(plan.version, &plan.client_id, plan.is_persistent, true);
    let (mut connection, _) = Connection::open(plan.at, plan.version, &connect).await?;
    connection.subscribe(&plan.filter, plan.qos).await?;
    Ok(connection)
}

/// Receives until the task is aborted or the connection ends.
pub(crate) async fn receive(plan: Plan, mut connection: Connection, shared: Rc<Shared>) -> Result<(), BenchError> {
    let mut next_seq = vec![0_u64; plan.publishers];
    loop {
        connection.read().await?;
        let now_ns = shared.now_ns();
        let mut oddities = Oddities::default();
        while let Some(frame) = connection.input.next()? {
            match frame.kind() {
                3 => {
                    let publish = publish_of(&frame, plan.version)?;
                    match publish.qos {
                        1 => encode::ack(&mut connection.out, Ack { kind: AckKind::Puback, id: publish.id, code: 0 }),
                        2 => encode::ack(&mut connection.out, Ack { kind: AckKind::Pubrec, id: publish.id, code: 0 }),
                        _ => {}
                    }
                    let Some(stamp) = Stamp::parse(publish.payload) else { continue };
                    shared.delivered(now_ns.saturating_sub(stamp.sent_ns));
                    if let Some(next) = next_seq.get_mut(stamp.publisher as usize) {
                        if stamp.seq < *next {
                            oddities.repeated += 1;
                        } else {
                            oddities.skipped += stamp.seq - *next;
                            *next = stamp.seq + 1;
                        }
                    }
                }
                6 => {
                    let id = ack_of(&frame)?.id;
                    encode::ack(&mut connection.out, Ack { kind: AckKind::Pubcomp, id, code: 0 });
                }
                13 => {}
                other => {
                    let answer = format!("packet type {other} for a subscriber");
                    return Err(BenchError::Refused { at: plan.at, answer });
                }
            }
        }
        shared.odd(oddities.repeated, oddities.skipped);
        connection.flush().await?;
    }
}
