//! From an accepted socket to one in which MQTT is spoken: bounds, PROXY header, TLS, WebSocket.
//!
//! All of it within the time that a connection has for its CONNECT. Each connection is counted from its first to its
//! last moment, and gives back what it took however it ends.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ntex::io::{Filter, Io, IoBoxed};
use ntex::time::Millis;
use ntex::util::Either;

use super::handshake::{self, HandshakeError};
use super::limits::Refusal;
use super::open::Listener;
use super::options::ProxyHeader;
use super::proxy::ProxyDecoder;
use super::stats::Failure;
use super::upgrade::Upgrade;
use super::websocket::WebSocket;
use crate::mqtt::options::REFUSALS_MAX;
use crate::mqtt::stats;
use crate::mqtt::worker::Worker;

/// Who is at the other end.
#[derive(Debug, Default)]
pub(in crate::mqtt) struct Client {
    /// Its address: what a PROXY header says, or else the socket's.
    pub(in crate::mqtt) peer: Option<SocketAddr>,
    /// That address is its proxy's, which did not say for whom it speaks.
    pub(in crate::mqtt) is_unknown: bool,
    /// The user that its certificate names.
    pub(in crate::mqtt) certificate_user: Option<Box<str>>,
}

/// Counts a connection while it exists.
pub(in crate::mqtt) struct Arrival {
    worker: Rc<Worker>,
    pub(in crate::mqtt) listener: Arc<Listener>,
    /// What it holds in the bounds, and under which address.
    place: Option<Option<IpAddr>>,
    refusal: Option<Refusal>,
}

impl Arrival {
    /// Counts a new socket. `None` when there are too many to even tell it so.
    pub(in crate::mqtt) fn new(worker: Rc<Worker>, listener: Arc<Listener>) -> Option<Self> {
        stats::add(&worker.mailbox.stats.connections, 1);
        stats::add(&worker.mailbox.stats.connections_total, 1);
        stats::add(&listener.stats.connections, 1);
        stats::add(&listener.stats.connections_total, 1);
        let mut arrival = Self { worker, listener, place: None, refusal: None };
        let now = Instant::now();
        let shared = arrival.worker.shared.clone();
        // Those that have no place yet, because a PROXY header is to come first, are not without bound.
        let sockets_max = shared.options.connections_max.saturating_add(REFUSALS_MAX * 2);
        let sockets = arrival.worker.mailbox.stats.connections.load(Ordering::Relaxed);
        if sockets > sockets_max as u64 {
            arrival.refuse(Refusal::Connections, now);
            return None;
        }
        // The listener first: what it does not take must not use up the node's rate, which is for the others, too.
        if arrival.listener.bounds.arrives(now) && shared.bounds.arrives(now) {
            return Some(arrival);
        }
        // As many again are told; telling more would cost what the bound is there to save.
        let tells = shared.told.arrives(now) && arrival.listener.told.arrives(now);
        (arrival.refuse(Refusal::Rate, now) && tells).then_some(arrival)
    }

    /// Why it is not served, if it is not.
    pub(in crate::mqtt) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Takes a place under the bounds of the node and the listener, unless it is refused already. False when there
    /// is none, and too many wait to be told so.
    pub(in crate::mqtt) fn enter(&mut self, address: Option<IpAddr>) -> bool {
        if self.refusal.is_some() {
            return true;
        }
        let (node, listener) = (&self.worker.shared.bounds, &self.listener.bounds);
        let entered = node.enter(address).and_then(|()| listener.enter(address).inspect_err(|_| node.leave(address)));
        match entered {
            Ok(()) => {
                self.place = Some(address);
                true
            }
            Err(refusal) => self.refuse(refusal, Instant::now()),
        }
    }

    /// Counts it as refused. Whether it can be told.
    fn refuse(&mut self, refusal: Refusal, now: Instant) -> bool {
        self.refusal = Some(refusal);
        let listener = &self.listener;
        let is_due = listener.stats.refuse(refusal, now);
        let name = &listener.options.name;
        if is_due {
            tracing::warn!(listener = %name, ?refusal, "connections are refused: a bound is reached (said once in 10 s)");
        } else {
            tracing::debug!(listener = %name, ?refusal, "a connection is refused");
        }
        self.worker.shared.refusals.fetch_add(1, Ordering::Relaxed) < REFUSALS_MAX
    }

    fn fail(&self, failure: Failure, peer: Option<SocketAddr>, why: &dyn std::fmt::Display) {
        let name = &self.listener.options.name;
        if self.listener.stats.fail(failure, Instant::now()) {
            tracing::warn!(listener = %name, ?failure, ?peer, %why, "a connection came to nothing (said once in 10 s)");
        } else {
            tracing::debug!(listener = %name, ?failure, ?peer, %why, "a connection came to nothing");
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.worker.mailbox.stats.connections.fetch_sub(1, Ordering::Relaxed);
        self.listener.stats.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.place {
            self.worker.shared.bounds.leave(address);
            self.listener.bounds.leave(address);
        }
        if self.refusal.is_some() {
            self.worker.shared.refusals.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Takes off what stands before MQTT. `None` when the connection came to nothing.
pub(in crate::mqtt) async fn unwrap(
    io: Io,
    socket: Option<SocketAddr>,
    arrival: &mut Arrival,
) -> Option<(IoBoxed, Client)> {
    let listener = arrival.listener.clone();
    let (peer, is_unknown) = match listener.options.proxy {
        ProxyHeader::None => (socket, false),
        _ => {
            let source = proxied(&io, socket, arrival).await?;
            (source.or(socket), source.is_none())
        }
    };
    if !arrival.enter(peer.map(|peer| peer.ip())) {
        return None;
    }
    let Some(tls) = &listener.tls else {
        return upgrade(io, arrival, peer).await.map(|io| (io, Client { peer, is_unknown, certificate_user: None }));
    };
    let timeout = arrival.worker.shared.options.connect_timeout;
    let timeout = Millis(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
    let io = match handshake::Tls::accept(io, tls.config(), timeout).await {
        Ok(io) => io,
        Err(HandshakeError::Closed) => return None, // a health check
        Err(error) => {
            arrival.fail(Failure::Tls, peer, &error);
            return None;
        }
    };
    let certificate_user = io.filter().client_certificate().and_then(|certificate| tls.user(&certificate));
    upgrade(io, arrival, peer).await.map(|io| (io, Client { peer, is_unknown, certificate_user }))
}

/// For whom the proxy speaks, if it says so.
async fn proxied(io: &Io, socket: Option<SocketAddr>, arrival: &Arrival) -> Option<Option<SocketAddr>> {
    let options = &arrival.listener.options;
    let is_known = |proxy: SocketAddr| options.proxy_from.iter().any(|net| net.contains(&proxy.ip().to_canonical()));
    if !options.proxy_from.is_empty() && !socket.is_some_and(is_known) {
        arrival.fail(Failure::Proxy, socket, &"the address is not among those of proxy_from");
        return None;
    }
    match io.recv(&ProxyDecoder(options.proxy)).await {
        Ok(Some(source)) => return Some(source),
        Ok(None) => {} // a health check
        Err(Either::Left(bad)) => arrival.fail(Failure::Proxy, socket, &bad),
        Err(Either::Right(error)) => arrival.fail(Failure::Proxy, socket, &error),
    }
    None
}

/// Opens the WebSocket, if the listener has one.
async fn upgrade<F: Filter>(io: Io<F>, arrival: &Arrival, peer: Option<SocketAddr>) -> Option<IoBoxed> {
    let options = &arrival.listener.options;
    let Some(path) = &options.websocket else { return Some(io.boxed()) };
    match io.recv(&Upgrade { path, origins: &options.origins }).await {
        Ok(Some(answer)) => {
            io.encode_slice(&answer).ok()?;
            return Some(io.add_filter(WebSocket::default()).boxed());
        }
        Ok(None) => {}
        Err(Either::Left(refused)) => {
            arrival.fail(Failure::WebSocket, peer, &refused);
            let _ = io.encode_slice(&refused.answer());
        }
        Err(Either::Right(error)) => arrival.fail(Failure::WebSocket, peer, &error),
    }
    let _ = io.shutdown().await; // the answer, and the end of TLS
    None
}
