//! A network between hosts: TCP as its users see it, with what networks do to it.
//!
//! A connection is two pipes. Bytes of a pipe come in order, each piece after a time of its own; loss is what TCP makes
//! of it, a piece that comes 200 ms, 400 ms, ... later, and holds up those behind it. Connections do not wait for each
//! other. Through a link that is cut nothing comes until it heals; a sender whose bytes are unacknowledged for 3 s, and
//! a receiver that hears nothing for 6 s, find their connection broken, as the peers' socket options make it
//! (`raft/src/peer/socket.rs`). A process that dies closes what it had open; a machine that vanishes closes nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::{BoxFuture, poll_fn};
use quorate_raft::{Caller, PeerAcceptor, PeerStream, PeerTransport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::now_ns;
use crate::world::{self, after, between, note, one_in};

/// The peer port of every host.
const PORT: u16 = 7400;
/// Bytes on their way in a pipe, above which its writer waits.
const PIPE_BYTES_MAX: usize = 256 << 10;
/// As TCP_USER_TIMEOUT of the peers' sockets.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);
/// As their keep-alive: 3 s of silence, then questions without an answer for 3 s.
const SILENCE_MAX: Duration = Duration::from_secs(6);

/// A host, counted from 1.
pub(crate) type Host = u64;

/// How long pieces take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// At least.
    pub(crate) least: Duration,
    /// At most, mostly.
    pub(crate) most: Duration,
    /// One piece in so many is lost once (and then, of those, again).
    pub(crate) loss_one_in: Option<u32>,
}

#[derive(Debug, Default)]
struct Pipe {
    /// Sent and not there yet, with the times of sending and arriving. Empty: the end.
    on_the_way: VecDeque<(u64, u64, Bytes)>,
    bytes: usize,
    there: VecDeque<Bytes>,
    is_ended: bool,
    has_sent_end: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    last_arrival_ns: u64,
    heard_ns: u64,
}

#[derive(Debug)]
struct Connection {
    /// Caller and called.
    hosts: [Host; 2],
    /// What 0 sends to 1, what 1 sends to 0.
    pipes: [Pipe; 2],
    /// Each end's error, when it is broken.
    broken: [Option<io::ErrorKind>; 2],
    /// Each end's process is there and has it open (reader, writer).
    open: [[bool; 2]; 2],
}

#[derive(Debug, Default)]
struct Port {
    callers: VecDeque<u64>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Net {
    weather: Weather,
    connections: BTreeMap<u64, Connection>,
    made: u64,
    /// Hosts with a process that listens.
    ports: BTreeMap<Host, Port>,
    /// Machines that have power.
    up: BTreeSet<Host>,
    /// From, to: nothing comes through.
    cut: BTreeSet<(Host, Host)>,
}

thread_local! {
    static NET: RefCell<Option<Net>> = const { RefCell::new(None) };
}

fn with<T>(f: impl FnOnce(&mut Net) -> T) -> T {
    NET.with_borrow_mut(|net| f(net.as_mut().expect("a simulation runs in this thread")))
}

/// A network with this weather and nobody in it.
pub(crate) fn begin(weather: Weather) {
    NET.set(Some(Net {
        weather,
        connections: BTreeMap::new(),
        made: 0,
        ports: BTreeMap::new(),
        up: BTreeSet::new(),
        cut: BTreeSet::new(),
    }));
}

/// Where a host's peer port is.
pub(crate) fn address_of(host: Host) -> String {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, host as u8), PORT)).to_string()
}

fn host_of(address: &str) -> Option<Host> {
    match address.parse::<SocketAddr>().ok()? {
        SocketAddr::V4(at) => Some(u64::from(at.ip().octets()[3])),
        SocketAddr::V6(_) => None,
    }
}

/// Changes the weather, for what is sent from now on.
pub(crate) fn set_weather(weather: Weather) {
    with(|net| net.weather = weather);
}

/// The machine has power, or not. Without, nothing of it is closed: it is just gone.
pub(crate) fn set_power(host: Host, is_on: bool) {
    let concerned = with(|net| {
        if is_on {
            // What was open before: whoever still sends into it learns that there is no such connection.
            net.up.insert(host);
        } else {
            net.up.remove(&host);
            net.ports.remove(&host);
        }
        let mut concerned = Vec::new();
        for (id, connection) in &mut net.connections {
            for end in [0, 1] {
                if connection.hosts[end] == host {
                    connection.open[end] = [false, false];
                    concerned.push((*id, 1 - end));
                }
            }
        }
        concerned
    });
    for (id, pipe) in concerned {
        if is_on { deliver_later(id, pipe) } else { check_later(id) }
    }
}

/// The process on a host is gone: its port is closed. (Its connections it closes itself, by being dropped.)
pub(crate) fn close_port(host: Host) {
    let wakers = with(|net| {
        let callers = net.ports.remove(&host).map(|port| port.callers).unwrap_or_default();
        let mut wakers = Vec::new();
        for id in callers {
            if let Some(connection) = net.connections.get_mut(&id) {
                connection.open[1] = [false, false];
                wakers.extend(break_end(connection, 0, io::ErrorKind::ConnectionReset));
            }
        }
        wakers
    });
    wake(wakers);
}

/// Cuts a link in one direction, or heals it.
pub(crate) fn set_link(from: Host, to: Host, is_cut: bool) {
    with(|net| if is_cut { net.cut.insert((from, to)) } else { net.cut.remove(&(from, to)) });
    let concerned = with(|net| {
        let concerns = |c: &&Connection| c.hosts == [from, to] || c.hosts == [to, from];
        net.connections.iter().filter(|(_, c)| concerns(c)).map(|(id, _)| *id).collect::<Vec<_>>()
    });
    for id in concerned {
        if is_cut {
            check_later(id);
        } else {
            for pipe in [0, 1] {
                deliver_later(id, pipe);
            }
        }
    }
}

fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

fn check_later(id: u64) {
    for delay in [UNACKNOWLEDGED_MAX, SILENCE_MAX] {
        after(delay + Duration::from_millis(1), move || check(id));
    }
}

/// Breaks what has been stalled for too long.
fn check(id: u64) {
    let now = now_ns();
    let old = |since: u64, most: Duration| now.saturating_sub(since) >= most.as_nanos() as u64;
    let wakers = with(|net| {
        let Some(connection) = net.connections.get_mut(&id) else { return Vec::new() };
        let [a, b] = connection.hosts;
        let is_stalled = |from, to| net.cut.contains(&(from, to)) || !net.up.contains(&to);
        let stalled = [is_stalled(a, b), is_stalled(b, a)];
        let mut broken = Vec::new();
        for end in [0, 1] {
            // An acknowledgement needs the way back, too.
            let unacknowledged = connection.pipes[end].on_the_way.front().map(|(sent, _, _)| *sent);
            let is_silent = stalled[1 - end] && old(connection.pipes[1 - end].heard_ns, SILENCE_MAX);
            if (stalled[end] && unacknowledged.is_some_and(|sent| old(sent, UNACKNOWLEDGED_MAX))) || is_silent {
                broken.push(end);
            }
        }
        broken.into_iter().flat_map(|end| break_end(connection, end, io::ErrorKind::TimedOut)).collect()
    });
    wake(wakers);
}

fn break_end(connection: &mut Connection, end: usize, error: io::ErrorKind) -> Vec<Waker> {
    if connection.broken[end].is_none() {
        connection.broken[end] = Some(error);
    }
    let reader = connection.pipes[1 - end].reader.take();
    let writer = connection.pipes[end].writer.take();
    reader.into_iter().chain(writer).collect()
}

/// Brings what has arrived on `pipe` of connection `id`.
fn deliver(id: u64, pipe: usize) {
    let now = now_ns();
    let wakers = with(|net| {
        let Some(connection) = net.connections.get_mut(&id) else { return Vec::new() };
        let (from, to) = (connection.hosts[pipe], connection.hosts[1 - pipe]);
        if net.cut.contains(&(from, to)) || !net.up.contains(&to) || !net.up.contains(&from) {
            return Vec::new();
        }
        let receiver = 1 - pipe;
        let has_reader = connection.open[receiver][0];
        let mut wakers = Vec::new();
        let flow = &mut connection.pipes[pipe];
        let mut brought = 0;
        while flow.on_the_way.front().is_some_and(|(_, at, _)| *at <= now) {
            let Some((_, _, bytes)) = flow.on_the_way.pop_front() else { break };
            flow.heard_ns = now;
            flow.bytes -= bytes.len();
            brought += bytes.len();
            if bytes.is_empty() {
                flow.is_ended = true;
            } else if has_reader {
                flow.there.push_back(bytes);
            } else if connection.broken[pipe].is_none() {
                // Nobody reads there: a reset comes back.
                connection.broken[pipe] = Some(io::ErrorKind::ConnectionReset);
            }
        }
        if brought > 0 {
            note!("net {from}>{to} #{id} {brought} bytes");
        }
        wakers.extend(flow.reader.take());
        wakers.extend(flow.writer.take());
        if connection.broken[pipe].is_some() {
            wakers.extend(break_end(connection, pipe, io::ErrorKind::ConnectionReset));
        }
        wakers
    });
    wake(wakers);
}

fn deliver_later(id: u64, pipe: usize) {
    let due = with(|net| {
        let weather = net.weather;
        let connection = net.connections.get_mut(&id)?;
        Some((connection.pipes[pipe].on_the_way.front().map(|(_, at, _)| *at)?, weather))
    });
    if let Some((at, weather)) = due {
        let wait = Duration::from_nanos(at.saturating_sub(now_ns())).max(between(weather.least, weather.most));
        after(wait, move || deliver(id, pipe));
    }
}

/// How long one piece takes.
fn travel(weather: Weather) -> Duration {
    let mut time = between(weather.least, weather.most);
    let mut again = Duration::from_millis(200);
    while weather.loss_one_in.is_some_and(one_in) && again < Duration::from_secs(2) {
        time += again;
        again *= 2;
    }
    time
}

fn send(id: u64, pipe: usize, bytes: Bytes) {
    let weather = with(|net| net.weather);
    let time = travel(weather);
    let now = now_ns();
    let sent = with(|net| {
        let connection = net.connections.get_mut(&id)?;
        let (from, to) = (connection.hosts[pipe], connection.hosts[1 - pipe]);
        let flow = &mut connection.pipes[pipe];
        let at = (now + time.as_nanos() as u64).max(flow.last_arrival_ns);
        flow.last_arrival_ns = at;
        flow.bytes += bytes.len();
        flow.on_the_way.push_back((now, at, bytes));
        Some((at - now, net.cut.contains(&(from, to)) || !net.up.contains(&to)))
    });
    if let Some((wait, is_stalled)) = sent {
        after(Duration::from_nanos(wait), move || deliver(id, pipe));
        if is_stalled {
            check_later(id);
        }
    }
}

/// One direction of one end.
#[derive(Debug)]
struct End {
    id: u64,
    /// 0: the caller's.
    end: usize,
}

struct Reader(End);
struct Writer(End);

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let End { id, end } = self.0;
        with(|net| {
            let Some(connection) = net.connections.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            let flow = &mut connection.pipes[1 - end];
            if let Some(front) = flow.there.front_mut() {
                let taken = front.len().min(buffer.remaining());
                buffer.put_slice(&front[..taken]);
                front.advance(taken);
                if front.is_empty() {
                    flow.there.pop_front();
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = connection.broken[end] {
                return Poll::Ready(Err(error.into()));
            }
            if flow.is_ended {
                return Poll::Ready(Ok(()));
            }
            flow.reader = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let End { id, end } = self.0;
        let room = with(|net| {
            let Some(connection) = net.connections.get_mut(&id) else {
                return Err(io::ErrorKind::ConnectionReset);
            };
            if let Some(error) = connection.broken[end] {
                return Err(error);
            }
            let flow = &mut connection.pipes[end];
            let room = PIPE_BYTES_MAX.saturating_sub(flow.bytes);
            if room == 0 {
                flow.writer = Some(context.waker().clone());
            }
            Ok(room)
        });
        match room {
            Err(error) => Poll::Ready(Err(error.into())),
            Ok(0) => Poll::Pending,
            Ok(room) => {
                let taken = bytes.len().min(room);
                send(id, end, Bytes::copy_from_slice(&bytes[..taken]));
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        end_of(&self.0);
        Poll::Ready(Ok(()))
    }
}

/// The end goes out, once.
fn end_of(of: &End) {
    let is_first = with(|net| {
        let connection = net.connections.get_mut(&of.id)?;
        let is_here = net.up.contains(&connection.hosts[of.end]) && connection.open[of.end][1];
        let flow = &mut connection.pipes[of.end];
        (is_here && !std::mem::replace(&mut flow.has_sent_end, true)).then_some(())
    });
    if is_first.is_some() {
        send(of.id, of.end, Bytes::new());
    }
}

fn closed(of: &End, half: usize) {
    let is_over = with(|net| {
        let Some(connection) = net.connections.get_mut(&of.id) else { return false };
        connection.open[of.end][half] = false;
        connection.open.iter().flatten().all(|is_open| !is_open)
    });
    if is_over {
        with(|net| net.connections.remove(&of.id));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if NET.with_borrow(Option::is_some) {
            end_of(&self.0);
            closed(&self.0, 1);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if NET.with_borrow(Option::is_some) {
            closed(&self.0, 0);
        }
    }
}

fn stream(id: u64, end: usize) -> PeerStream {
    PeerStream { reader: Box::new(Reader(End { id, end })), writer: Box::new(Writer(End { id, end })) }
}

/// A host's way to the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport(pub(crate) Host);

impl PeerTransport for Transport {
    fn listen(&self, _: &str) -> BoxFuture<'static, io::Result<Box<dyn PeerAcceptor>>> {
        let host = self.0;
        with(|net| net.ports.insert(host, Port::default()));
        Box::pin(std::future::ready(Ok(Box::new(Acceptor(host)) as Box<dyn PeerAcceptor>)))
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<PeerStream>> {
        let (from, to) = (self.0, host_of(address));
        Box::pin(async move {
            let Some(to) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
            tokio::time::sleep(travel(with(|net| net.weather))).await;
            let is_reached =
                |net: &Net| !net.cut.contains(&(from, to)) && !net.cut.contains(&(to, from)) && net.up.contains(&to);
            // A lost SYN, or its answer, comes again until the caller gives up.
            while !with(|net| is_reached(net)) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let made = with(|net| {
                let port = net.ports.get_mut(&to)?;
                net.made += 1;
                let id = net.made;
                port.callers.push_back(id);
                let waker = port.waker.take();
                let mut connection = Connection {
                    hosts: [from, to],
                    pipes: [Pipe::default(), Pipe::default()],
                    broken: [None, None],
                    open: [[true, true]; 2],
                };
                connection.pipes.iter_mut().for_each(|pipe| pipe.heard_ns = now_ns());
                net.connections.insert(id, connection);
                Some((id, waker))
            });
            let Some((id, waker)) = made else { return Err(io::ErrorKind::ConnectionRefused.into()) };
            wake(waker);
            let stream = stream(id, 0);
            tokio::time::sleep(travel(with(|net| net.weather))).await;
            Ok(stream)
        })
    }
}

struct Acceptor(Host);

impl PeerAcceptor for Acceptor {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::new(10, 0, 0, self.0 as u8), PORT)))
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>> {
        let host = self.0;
        Box::pin(poll_fn(move |context| {
            with(|net| {
                let Some(port) = net.ports.get_mut(&host) else { return Poll::Pending };
                let Some(id) = port.callers.pop_front() else {
                    port.waker = Some(context.waker().clone());
                    return Poll::Pending;
                };
                let from = net.connections.get(&id).map_or(0, |c| c.hosts[0]);
                let from = SocketAddr::from((Ipv4Addr::new(10, 0, 0, from as u8), 0));
                let set_up: BoxFuture<'static, io::Result<PeerStream>> = Box::pin(async move { Ok(stream(id, 1)) });
                Poll::Ready(Ok((from, set_up)))
            })
        }))
    }
}

/// Weather of a run, by chance.
pub(crate) fn some_weather() -> Weather {
    let ms = Duration::from_millis;
    let us = Duration::from_micros;
    match world::below(4) {
        0 => Weather { least: us(50), most: ms(1), loss_one_in: None },
        1 => Weather { least: us(200), most: ms(5), loss_one_in: Some(2000) },
        2 => Weather { least: ms(1), most: ms(40), loss_one_in: Some(500) },
        _ => Weather { least: ms(10), most: ms(120), loss_one_in: Some(200) },
    }
}
