//! Leaves nothing behind on a cluster that is not the run's own: sessions end, retained messages go.
//!
//! Nothing of it is in the history: the run is over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::conn::Conn;
use super::{Directory, Identity};
use crate::rng::Rng;
use crate::wire::{Packet, Publish, Version, encode};

/// How long a broker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest time for one client, all nodes tried.
const CLIENT_MAX: Duration = Duration::from_secs(20);
/// When no retained message has come for so long, there are no more.
const QUIET: Duration = Duration::from_secs(1);
/// Looks for retained messages: each finds fewer, the last none.
const LOOKS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// Ends the sessions of the clients `0..clients` and removes the retained messages below the run's topics. What is still
/// there, in words.
pub(crate) fn sweep(directory: &Directory, identity: &Identity, clients: u32) -> Vec<String> {
    let mut left = Vec::new();
    for id in 0..clients {
        let client_id = identity.client_id(id);
        if let Err(why) = try_nodes(directory, |at, node| end_session(at, node, identity, &client_id)) {
            left.push(format!("the session of client {client_id} may be left: {why}"));
        }
    }
    if let Err(why) = try_nodes(directory, |at, node| remove_retained(at, node, identity, clients)) {
        left.push(format!("retained messages below {} may be left: {why}", identity.topics));
    }
    left
}

/// A client of the run's is welcome on this node.
///
/// # Errors
/// What the node says, or that it says nothing.
pub(crate) fn knock(at: SocketAddr, node: &str, identity: &Identity) -> Result<(), String> {
    end_session(at, node, identity, &identity.client_id(0))
}

fn try_nodes(directory: &Directory, mut act: impl FnMut(SocketAddr, &str) -> Result<(), String>) -> Result<(), String> {
    let (end, mut rng) = (Instant::now() + CLIENT_MAX, Rng::new(1));
    let mut last: Option<String> = None;
    loop {
        let Some((node, at)) = directory.pick(&mut rng, last.as_deref()) else {
            return Err("no node is known".to_owned());
        };
        match act(at, &node) {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() >= end => return Err(format!("{node}: {why}")),
            Err(_) => std::thread::sleep(PAUSE),
        }
        last = Some(node);
    }
}

/// A connection whose session begins anew and ends with it.
fn connect(at: SocketAddr, node: &str, identity: &Identity, client_id: &str) -> Result<Conn, String> {
    let mut conn = Conn::open(at, node, Version::V5, ANSWER_MAX).map_err(|e| e.to_string())?;
    let connect = encode::Connect {
        client_id: client_id.to_owned(),
        clean: true,
        keep_alive_s: 30,
        expiry_s: 0,
        receive_maximum: u16::MAX,
        will: None,
    };
    let mut bytes = Vec::new();
    encode::connect_as(&mut bytes, Version::V5, &connect, identity.login.as_ref());
    conn.send(&bytes).map_err(|e| e.to_string())?;
    match next(&mut conn, ANSWER_MAX)? {
        Some(Packet::ConnAck { code: 0, .. }) => Ok(conn),
        Some(Packet::ConnAck { code, .. }) => Err(format!("CONNECT was refused with {code:#04x}")),
        _ => Err("no CONNACK".to_owned()),
    }
}

fn next(conn: &mut Conn, bound: Duration) -> Result<Option<Packet>, String> {
    match conn.read(bound) {
        Ok(arrived) => Ok(arrived.map(|arrived| arrived.packet)),
        Err(over) => Err(format!("{over:?}")),
    }
}

fn disconnect(mut conn: Conn) -> Result<(), String> {
    let mut bytes = Vec::new();
    encode::disconnect(&mut bytes, Version::V5, 0, None);
    conn.send(&bytes).map_err(|e| e.to_string())?;
    // The broker closes when it has read it.
    while next(&mut conn, ANSWER_MAX).is_ok_and(|packet| packet.is_some()) {}
    conn.shut();
    Ok(())
}

fn end_session(at: SocketAddr, node: &str, identity: &Identity, client_id: &str) -> Result<(), String> {
    disconnect(connect(at, node, identity, client_id)?)
}

fn remove_retained(at: SocketAddr, node: &str, identity: &Identity, id: u32) -> Result<(), String> {
    let mut conn = connect(at, node, identity, &identity.client_id(id))?;
    for _ in 0..LOOKS_MAX {
        let topics = retained(&mut conn, identity)?;
        if topics.is_empty() {
            return disconnect(conn);
        }
        for topic in topics {
            remove(&mut conn, topic)?;
        }
    }
    Err("they come back: somebody else publishes there".to_owned())
}

/// Topics below the run's that have a retained message, by a new subscription.
fn retained(conn: &mut Conn, identity: &Identity) -> Result<Vec<String>, String> {
    let (filter, mut bytes, mut topics) = (identity.filter("#"), Vec::new(), Vec::new());
    encode::subscribe(&mut bytes, Version::V5, 1, &[(&filter, 0)]);
    conn.send(&bytes).map_err(|e| e.to_string())?;
    let mut bound = ANSWER_MAX;
    loop {
        match next(conn, bound)? {
            Some(Packet::SubAck { codes, .. }) if codes.iter().all(|code| *code < 0x80) => bound = QUIET,
            Some(Packet::SubAck { codes, .. }) => {
                return Err(format!("SUBSCRIBE to {filter} was refused: {codes:02x?}"));
            }
            Some(Packet::Publish(publish)) if publish.retain => topics.push(publish.topic),
            Some(_) => {}
            None => break,
        }
    }
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, Version::V5, 2, &[&filter]);
    conn.send(&bytes).map_err(|e| e.to_string())?;
    loop {
        match next(conn, ANSWER_MAX)? {
            Some(Packet::UnsubAck { .. }) => return Ok(topics),
            Some(_) => {}
            None => return Err("no UNSUBACK".to_owned()),
        }
    }
}

/// An empty retained message.
fn remove(conn: &mut Conn, topic: String) -> Result<(), String> {
    let publish =
        Publish { dup: false, qos: 1, retain: true, topic, id: 3, properties: Vec::new(), payload: Vec::new() };
    let mut bytes = Vec::new();
    encode::publish(&mut bytes, Version::V5, &publish);
    conn.send(&bytes).map_err(|e| e.to_string())?;
    loop {
        match next(conn, ANSWER_MAX)? {
            Some(Packet::Ack(ack)) if ack.code < 0x80 => return Ok(()),
            Some(Packet::Ack(ack)) => return Err(format!("{} was refused with {:#04x}", publish.topic, ack.code)),
            Some(_) => {}
            None => return Err("no PUBACK".to_owned()),
        }
    }
}
